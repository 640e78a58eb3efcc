/* tests/kernels/gpu_attend.cu - attend on the device against `ref`, and its bits
 * against themselves in another batch, another split and other slots. */
#include "tests/kernels/gpu_checks.cuh"

#include <algorithm>

namespace
{

/* Lists of blocks for every row and KV head, each in a slot of its own, in random order. */
struct attend_lists {
    uint32_t max_select, slots;
    mirror<int32_t> block, slot, count;
    mirror<uint8_t> mask, pool;
};

/* The first token of a row's sliding window; 0 without one. */
int32_t near_from(const scene &s, size_t row)
{
    const uint32_t near = s.selectors.host[(size_t)s.row_selector.host[row]].near;
    return near == 0 ? 0 : std::max(s.row_pos.host[row] + 1 - (int32_t)near, 0);
}

/* Two windows of different lengths, which rows have by turns. */
void near_selectors(scene &s, uint32_t near)
{
    s.selectors.host[0] = nsa_selector(16, 16, near);
    s.selectors.host[1] = nsa_selector(16, 16, near / 7 + 1);
    for (uint32_t i = 0; i < s.rows; i++)
        s.row_selector.host[i] = (int32_t)(i & 1);
    s.selectors.up(), s.row_selector.up();
}

void make_lists(attend_lists &l, scene &s, random_source &r, uint32_t max_select, bool parts)
{
    const size_t lists = (size_t)s.rows * s.kv_heads;
    l.max_select = max_select;
    l.slots = (uint32_t)(lists * max_select) + 3;
    l.block.resize(lists * max_select), l.slot.resize(lists * max_select), l.count.resize(lists);
    l.mask.resize(lists * max_select);
    std::vector<int32_t> order(l.slots);
    for (uint32_t i = 0; i < l.slots; i++)
        order[i] = (int32_t)i;
    for (uint32_t i = l.slots - 1; i > 0; i--)
        std::swap(order[i], order[r.below(i + 1)]);
    for (size_t i = 0; i < lists; i++) {
        const uint32_t blocks = (uint32_t)s.row_pos.host[i / s.kv_heads] / KERN_BLOCK + 1;
        const uint32_t count = std::min(max_select, blocks);
        std::vector<int32_t> all(blocks);
        for (uint32_t b = 0; b < blocks; b++)
            all[b] = (int32_t)b;
        for (uint32_t b = 0; b + 1 < blocks && count < blocks; b++) /* the last one stays in */
            std::swap(all[b], all[b + r.below(blocks - 1 - b)]);
        if (count < blocks) std::swap(all[count - 1], all[blocks - 1]);
        std::sort(all.begin(), all.begin() + count);
        l.count.host[i] = (int32_t)count;
        for (uint32_t e = 0; e < max_select; e++) {
            l.block.host[i * max_select + e] = e < count ? all[e] : -1;
            l.slot.host[i * max_select + e] = e < count ? order[i * max_select + e] : -1;
            const uint8_t some = (uint8_t)r.below(16); /* with NSA some parts are empty */
            l.mask.host[i * max_select + e] = (uint8_t)(e >= count ? 0 : parts ? some : 15);
        }
    }
    const size_t block_bytes = 2 * KERN_BLOCK * s.dim * 2;
    l.pool.resize(l.slots * block_bytes);
    uint16_t *values = (uint16_t *)l.pool.host.data();
    for (size_t i = 0; i < l.pool.host.size() / 2; i++)
        values[i] = kern_f32_to_bf16(r.normal());
    for (size_t i = 0; i < lists; i++) { /* NaN where nobody may look: beyond pos in the last block,
                                          * before the window of the branch that has one */
        const int32_t pos = s.row_pos.host[i / s.kv_heads];
        const int32_t from = near_from(s, i / s.kv_heads);
        for (int32_t e = 0; e < l.count.host[i]; e++) {
            const size_t at = i * max_select + (size_t)e;
            uint16_t *k = values + (size_t)l.slot.host[at] * block_bytes / 2;
            for (int32_t t = 0; t < KERN_BLOCK; t++) {
                const int32_t token = l.block.host[at] * KERN_BLOCK + t;
                if (token >= from && token <= pos) continue;
                for (uint32_t d = 0; d < s.dim; d++)
                    k[(size_t)t * s.dim + d] = k[(size_t)(KERN_BLOCK + t) * s.dim + d] = 0x7fc1;
            }
        }
    }
    l.block.up(), l.slot.up(), l.count.up(), l.mask.up(), l.pool.up();
}

kern_attend_args attend_args(scene &s, attend_lists &l, float *out, bool gpu)
{
    kern_attend_args a = scene_args<kern_attend_args>(s, out, gpu);
    a.block = gpu ? l.block.device : l.block.host.data();
    a.slot = gpu ? l.slot.device : l.slot.host.data();
    a.count = gpu ? l.count.device : l.count.host.data();
    a.mask = gpu ? l.mask.device : l.mask.host.data();
    a.pool = gpu ? l.pool.device : l.pool.host.data();
    a.max_select = l.max_select;
    a.block_bytes = 2 * KERN_BLOCK * s.dim * 2;
    return a;
}

/* The same arguments, rows first .. first + count - 1 only. */
kern_attend_args attend_rows(kern_attend_args a, uint32_t first, uint32_t count)
{
    const uint64_t lists = (uint64_t)first * a.summary.kv_heads;
    a = scene_rows(a, first, count, (uint64_t)a.heads * a.summary.head_dim);
    a.block += lists * a.max_select, a.slot += lists * a.max_select, a.mask += lists * a.max_select;
    a.count += lists;
    return a;
}

/* The same once more, left in bf16: what it left in float32, rounded. */
void check_narrow(gpu_bench &b, kern_attend_args a, const char *name,
                  const std::vector<float> &whole)
{
    mirror<uint16_t> narrow(whole.size());
    narrow.poison();
    a.out = nullptr, a.out_bf16 = narrow.device;
    expect_ok(kern_attend(b.gpu, &a), name);
    b.sync();
    std::vector<uint16_t> want(whole.size());
    for (size_t i = 0; i < want.size(); i++)
        want[i] = kern_f32_to_bf16(whole[i]);
    char text[160];
    snprintf(text, sizeof text, "attend %s in bf16", name);
    check_same(text, narrow.down(), want);
}

/* In two calls: the first must not look at late blocks, which are NaN meanwhile. The second begins
 * when they are there, or before: then it waits for each of them, as does a single call. */
void check_late(gpu_bench &b, random_source &r, kern_attend_args a, attend_lists &l,
                const char *name, const std::vector<float> &whole)
{
    const size_t lists = l.count.host.size(), bytes = l.pool.host.size() / l.slots;
    const size_t each = (a.max_select + 63) / 64;
    mirror<float> out(whole.size());
    mirror<uint8_t> late(lists * each);
    const std::vector<uint8_t> pool = l.pool.host;
    mirror<uint32_t> coming(lists * a.max_select);
    mirror<uint64_t> waited(1);
    kern_exchange beside = {};
    beside.coming = coming.device;
    a.waited_ns = waited.device;
    bool same = true;
    /* none, some, most, all; some, most, all before; all before and at once */
    for (uint32_t odds = 0; odds < 8; odds++) {
        waited.host[0] = 0, waited.up();
        std::fill(late.host.begin(), late.host.end(), 0);
        std::fill(coming.host.begin(), coming.host.end(), 0);
        for (size_t i = 0; i < lists * a.max_select; i++) {
            const size_t list = i / a.max_select, e = i % a.max_select;
            if ((int32_t)e >= l.count.host[list] || r.below(3 * 8) >= (odds - odds / 4 * 3) * 8)
                continue;
            coming.host[i] = 1;
            late.host[list * each + e / 64] |= (uint8_t)(1u << e % 64 / 8);
            memset(&l.pool.host[(size_t)l.slot.host[i] * bytes], 0xff, bytes);
        }
        late.up(), l.pool.up(), out.poison();
        a.out = out.device, a.late = late.device, a.part = ATTEND_PRESENT;
        if (odds < 7) expect_ok(kern_attend(b.gpu, &a), name);
        b.sync();
        l.pool.host = pool;
        a.part = odds < 7 ? ATTEND_LATE : ATTEND_WHOLE;
        a.after = odds > 3 ? &beside : nullptr;
        if (odds > 3) coming.up();
        if (odds > 3) expect_ok(kern_attend(b.gpu, &a), name);
        l.pool.up();
        std::fill(coming.host.begin(), coming.host.end(), 0);
        coming.up();
        if (odds <= 3) expect_ok(kern_attend(b.gpu, &a), name);
        b.sync();
        a.after = nullptr;
        same &= out.down() == whole && (waited.down()[0] > 0) == (odds > 3);
    }
    check_that(same, "attend %s: what is late is merged with the same bits", name);
}

/* Right behind the op that writes the rows' own tokens, NaN until then, and begun before it ends.
 */
void check_entered(gpu_bench &b, scene &s, kern_attend_args a, attend_lists &l, const char *name,
                   const std::vector<float> &whole)
{
    const size_t lists = l.count.host.size(), bytes = l.pool.host.size() / l.slots, dim = s.dim;
    const std::vector<uint8_t> pool = l.pool.host;
    mirror<float> k(lists * dim), v(lists * dim), out(whole.size());
    mirror<int32_t> slot(lists);
    for (size_t i = 0; i < lists; i++) {
        const int32_t pos = s.row_pos.host[i / s.kv_heads];
        slot.host[i] = l.slot.host[i * a.max_select + (size_t)l.count.host[i] - 1];
        uint16_t *key = (uint16_t *)&l.pool.host[(size_t)slot.host[i] * bytes] +
                        (size_t)(pos % KERN_BLOCK) * dim;
        for (size_t d = 0; d < dim; d++) {
            uint16_t *value = key + KERN_BLOCK * dim + d;
            k.host[i * dim + d] = kern_bf16_to_f32(key[d]), key[d] = 0x7fc1;
            v.host[i * dim + d] = kern_bf16_to_f32(*value), *value = 0x7fc1;
        }
    }
    k.up(), v.up(), slot.up();
    kern_append_args append = {};
    append.k = k.device, append.v = v.device, append.slot = slot.device;
    append.row_pos = s.row_pos.device, append.pool = l.pool.device;
    append.row_stride = s.kv_heads * dim;
    append.rows = s.rows, append.kv_heads = s.kv_heads, append.head_dim = s.dim;
    a.entered = true, a.out = out.device;
    bool same = true;
    for (int i = 0; i < 4; i++) {
        l.pool.up(), out.poison();
        b.sync();
        expect_ok(kern_append(b.gpu, &append), name);
        expect_ok(kern_attend(b.gpu, &a), name);
        b.sync();
        same &= out.down() == whole;
    }
    l.pool.host = pool, l.pool.up();
    check_that(same, "attend %s: begun while rows enter has the same bits", name);
}

/* near: BRANCH_NEAR, with windows of so many tokens; 0: BRANCH_SELECTED. */
void attend_case(gpu_bench &b, random_source &r, const char *name, uint32_t rows, uint32_t heads,
                 uint32_t kv_heads, uint32_t dim, uint32_t tokens, uint32_t max_select, bool parts,
                 uint32_t near = 0)
{
    scene s;
    attend_lists l;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    if (near != 0) near_selectors(s, near);
    make_lists(l, s, r, max_select, parts);
    mirror<float> out((size_t)rows * heads * dim), ref(out.host.size()), again(out.host.size());
    out.poison();
    kern_attend_args gpu = attend_args(s, l, out.device, true);
    gpu.branch = near != 0 ? BRANCH_NEAR : BRANCH_SELECTED;
    expect_ok(kern_attend(b.gpu, &gpu), name);
    kern_attend_args host = attend_args(s, l, ref.host.data(), false);
    host.branch = gpu.branch;
    expect_ok(kern_attend(b.ref, &host), name);
    b.sync();
    const std::vector<float> first = out.down();
    char text[160];
    snprintf(text, sizeof text, "attend %s against ref", name);
    check_close(text, first, ref.host, 2e-5);
    check_narrow(b, gpu, name, first);
    if (near == 0) check_late(b, r, gpu, l, name, first);
    check_entered(b, s, gpu, l, name, first);

    again.poison(); /* one row at a time: the other split, no neighbours */
    kern_attend_args alone = gpu;
    alone.out = again.device;
    for (uint32_t row = 0; row < rows; row++) {
        const kern_attend_args one = attend_rows(alone, row, 1);
        expect_ok(kern_attend(b.gpu, &one), name);
    }
    b.sync();
    snprintf(text, sizeof text, "attend %s: a row alone has the bits it has in the batch", name);
    check_same(text, again.down(), first);

    const size_t block_bytes = 2 * KERN_BLOCK * dim * 2; /* reversed slots */
    std::vector<uint8_t> pool(l.pool.host.size());
    for (uint32_t i = 0; i < l.slots; i++)
        memcpy(&pool[(l.slots - 1 - i) * block_bytes], &l.pool.host[i * block_bytes], block_bytes);
    l.pool.host = pool;
    for (int32_t &slot : l.slot.host)
        if (slot >= 0) slot = (int32_t)l.slots - 1 - slot;
    l.pool.up(), l.slot.up();
    again.poison();
    alone.out = again.device;
    expect_ok(kern_attend(b.gpu, &alone), name);
    b.sync();
    snprintf(text, sizeof text, "attend %s: slots do not show in the bits", name);
    check_same(text, again.down(), first);
}

/* A stretch of one prompt: the last `rows` tokens of sequence 2. Lists keep a few blocks in common
 * and are in two ascending parts, as select leaves them. */
void prefill_lists(attend_lists &l, scene &s, random_source &r, uint32_t max_select, bool parts)
{
    const size_t lists = (size_t)s.rows * s.kv_heads;
    const uint32_t blocks = (s.tokens + KERN_BLOCK - 1) / KERN_BLOCK;
    const size_t block_bytes = 2 * KERN_BLOCK * s.dim * 2;
    l.max_select = max_select, l.slots = s.kv_heads * blocks + 3;
    l.block.resize(lists * max_select), l.slot.resize(lists * max_select), l.count.resize(lists);
    l.mask.resize(lists * max_select), l.pool.resize(l.slots * block_bytes);
    uint16_t *values = (uint16_t *)l.pool.host.data();
    for (size_t i = 0; i < l.pool.host.size() / 2; i++)
        values[i] = kern_f32_to_bf16(r.normal());
    for (uint32_t i = 0; i < s.rows; i++)
        s.row_seq.host[i] = 2, s.row_pos.host[i] = (int32_t)(s.tokens - s.rows + i);
    for (size_t i = 0; i < lists; i++) {
        const uint32_t head = (uint32_t)(i % s.kv_heads);
        const uint32_t current = (uint32_t)s.row_pos.host[i / s.kv_heads] / KERN_BLOCK;
        const uint32_t count = std::min(max_select, current + 1), late = count / 3;
        std::vector<int32_t> all(current);
        for (uint32_t b = 0; b < current; b++)
            all[b] = (int32_t)b;
        for (uint32_t b = 1; b < current; b++)
            std::swap(all[b], all[b + r.below(current - b)]);
        all.resize(count - 1);
        all.push_back((int32_t)current);
        std::sort(all.begin(), all.end() - late), std::sort(all.end() - late, all.end());
        l.count.host[i] = (int32_t)count;
        for (uint32_t e = 0; e < max_select; e++) {
            const uint8_t some = (uint8_t)r.below(16);
            l.block.host[i * max_select + e] = e < count ? all[e] : -1;
            l.slot.host[i * max_select + e] =
                e < count ? (int32_t)(((uint32_t)all[e] * 5 + 1) % blocks + head * blocks) : -1;
            l.mask.host[i * max_select + e] = (uint8_t)(e >= count ? 0 : parts ? some : 15);
        }
    }
    const uint32_t last = s.tokens - 1; /* NaN where no row may look */
    for (uint32_t head = 0; head < s.kv_heads; head++)
        for (uint32_t t = last % KERN_BLOCK + 1; t < KERN_BLOCK; t++) {
            const size_t slot = (size_t)(last / KERN_BLOCK * 5 + 1) % blocks + head * blocks;
            uint16_t *k = values + slot * block_bytes / 2;
            for (uint32_t d = 0; d < s.dim; d++)
                k[(size_t)t * s.dim + d] = k[(size_t)(KERN_BLOCK + t) * s.dim + d] = 0x7fc1;
        }
    s.row_seq.up(), s.row_pos.up();
    l.block.up(), l.slot.up(), l.count.up(), l.mask.up(), l.pool.up();
}

/* ---- attend: NSA's other branches ------------------------------------------------------------ */

/* NaN where nobody may look: means of windows that no row of the sequence sees. */
void hide_means(scene &s)
{
    std::vector<uint32_t> seen(s.seqs, 0);
    for (uint32_t i = 0; i < s.rows; i++) {
        uint32_t &most = seen[(size_t)s.row_seq.host[i]];
        most = std::max(most, selector_windows_at(s.window, s.stride, s.row_pos.host[i]));
    }
    for (size_t w = 0; w < (size_t)s.seqs * s.kv_heads * s.windows; w++) {
        if (w % s.windows < seen[w / s.windows / s.kv_heads]) continue;
        std::fill_n(&s.kc.host[w * s.dim], s.dim, (uint16_t)0x7fc1);
        std::fill_n(&s.vc.host[w * s.dim], s.dim, (uint16_t)0x7fc1);
    }
    s.kc.up(), s.vc.up();
}

/* There are no lists: nobody reads one. */
kern_attend_args coarse_args(scene &s, attend_lists &none, float *out, bool gpu)
{
    none.max_select = 1;
    kern_attend_args a = attend_args(s, none, out, gpu);
    a.block = a.slot = a.count = nullptr;
    a.mask = a.pool = nullptr;
    a.branch = BRANCH_COARSE;
    return a;
}

/* Rows anew, `size` of them first, then size + step, ...: with the bits that they had together. */
void coarse_again(gpu_bench &b, kern_attend_args gpu, const char *text, uint32_t size,
                  uint32_t step, const std::vector<float> &want)
{
    mirror<float> again(want.size());
    again.poison();
    for (uint32_t row = 0; row < gpu.rows; row += size, size += step) {
        kern_attend_args some = gpu;
        some.q += row * some.row_stride;
        some.row_seq += row, some.row_pos += row, some.row_selector += row;
        some.out = again.device + (size_t)row * some.heads * some.summary.head_dim;
        some.rows = std::min(size, gpu.rows - row);
        expect_ok(kern_attend(b.gpu, &some), text);
    }
    b.sync();
    check_same(text, again.down(), want);
}

/* Means of windows: of row 0 all, of row 1 none, of row 2 one. `prompt`: rows at consecutive
 * positions of one sequence instead, as prefill. */
void coarse_case(gpu_bench &b, random_source &r, const char *name, uint32_t rows, uint32_t heads,
                 uint32_t kv_heads, uint32_t dim, uint32_t tokens, uint32_t window, uint32_t stride,
                 bool prompt = false)
{
    scene s;
    attend_lists none;
    s.window = window, s.stride = stride, s.values = true;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    if (!prompt) s.row_pos.host[1] = (int32_t)window - 2, s.row_pos.host[2] = (int32_t)window - 1;
    for (uint32_t i = 0; prompt && i < rows; i++)
        s.row_seq.host[i] = 1, s.row_pos.host[i] = (int32_t)(tokens - rows + i);
    s.row_seq.up(), s.row_pos.up();
    hide_means(s);
    mirror<float> out((size_t)rows * heads * dim), ref(out.host.size());
    out.poison();
    kern_attend_args gpu = coarse_args(s, none, out.device, true);
    gpu.prefill = prompt;
    expect_ok(kern_attend(b.gpu, &gpu), name);
    const kern_attend_args host = coarse_args(s, none, ref.host.data(), false);
    expect_ok(kern_attend(b.ref, &host), name);
    b.sync();
    const std::vector<float> first = out.down();
    char text[160];
    snprintf(text, sizeof text, "attend means %s against ref", name);
    check_close(text, first, ref.host, 2e-5);
    check_narrow(b, gpu, name, first);
    if (!prompt) {
        const size_t each = (size_t)heads * dim;
        bool zero = true;
        for (size_t i = each; i < 2 * each; i++)
            zero &= first[i] == 0.0f;
        check_that(zero, "attend means %s: a row without a window gets 0", name);
    }
    snprintf(text, sizeof text, "attend means %s: %s do not show in the bits", name,
             prompt ? "chunks" : "other rows");
    coarse_again(b, gpu, text, 1, prompt ? 1 : 0, first);
}

/* tokens / 64 has no common divisor with 5, so that blocks have slots of their own. */
void prefill_case(gpu_bench &b, random_source &r, const char *name, uint32_t rows, uint32_t heads,
                  uint32_t kv_heads, uint32_t dim, uint32_t tokens, uint32_t max_select, bool parts,
                  uint32_t near = 0)
{
    scene s;
    attend_lists l;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    for (kern_selector &one : s.selectors.host)
        if (near != 0) one = nsa_selector(16, 16, near);
    s.selectors.up();
    prefill_lists(l, s, r, max_select, parts);
    mirror<float> out((size_t)rows * heads * dim), ref(out.host.size()), again(out.host.size());
    out.poison();
    kern_attend_args gpu = attend_args(s, l, out.device, true);
    gpu.prefill = true;
    gpu.branch = near != 0 ? BRANCH_NEAR : BRANCH_SELECTED;
    expect_ok(kern_attend(b.gpu, &gpu), name);
    kern_attend_args host = attend_args(s, l, ref.host.data(), false);
    host.branch = gpu.branch;
    expect_ok(kern_attend(b.ref, &host), name);
    b.sync();
    const std::vector<float> first = out.down();
    char text[160];
    snprintf(text, sizeof text, "prefill %s against ref", name);
    check_close(text, first, ref.host, near != 0 ? 2e-5 : 4e-3);
    check_narrow(b, gpu, name, first);
    again.poison(); /* chunks of 1, 2, 3, ... rows: other tiles, other neighbours */
    kern_attend_args alone = gpu;
    alone.out = again.device;
    for (uint32_t row = 0, size = 1; row < rows; row += size, size++) {
        const kern_attend_args some = attend_rows(alone, row, std::min(size, rows - row));
        expect_ok(kern_attend(b.gpu, &some), name);
        if (row + size >= rows) break;
    }
    b.sync();
    snprintf(text, sizeof text, "prefill %s: chunks do not show in the bits", name);
    check_same(text, again.down(), first);
}

/* The same rows repeated until every super has a CTA: the split by supers against the one by
 * groups. */
void attend_wide(gpu_bench &b, random_source &r, uint32_t copies)
{
    scene s;
    attend_lists l;
    make_scene(s, r, 4, 8, 2, 128, 12000);
    make_lists(l, s, r, 150, false);
    mirror<float> narrow((size_t)4 * 8 * 128), wide(narrow.host.size() * copies);
    narrow.poison(), wide.poison();
    kern_attend_args a = attend_args(s, l, narrow.device, true);
    expect_ok(kern_attend(b.gpu, &a), "attend");
    mirror<int32_t> block(l.block.host.size() * copies), slot(block.host.size());
    mirror<int32_t> count(l.count.host.size() * copies), seq(4 * copies), pos(4 * copies);
    mirror<int32_t> selector(4 * copies);
    mirror<uint8_t> mask(block.host.size());
    mirror<float> q(s.q.host.size() * copies);
    auto repeat = [copies](auto &to, const auto &from) {
        for (size_t i = 0; i < to.host.size(); i++)
            to.host[i] = from.host[i % from.host.size()];
        (void)copies;
        to.up();
    };
    repeat(block, l.block), repeat(slot, l.slot), repeat(count, l.count), repeat(mask, l.mask);
    repeat(seq, s.row_seq), repeat(pos, s.row_pos), repeat(selector, s.row_selector);
    repeat(q, s.q);
    a.block = block.device, a.slot = slot.device, a.count = count.device, a.mask = mask.device;
    a.row_seq = seq.device, a.row_pos = pos.device, a.row_selector = selector.device;
    a.q = q.device, a.out = wide.device, a.rows = 4 * copies;
    expect_ok(kern_attend(b.gpu, &a), "attend");
    b.sync();
    const std::vector<float> once = narrow.down(), many = wide.down();
    std::vector<float> expected(many.size());
    for (size_t i = 0; i < many.size(); i++)
        expected[i] = once[i % once.size()];
    check_same("attend: groups and supers split alike, every copy of a row has the same bits", many,
               expected);
}

} // namespace

/* NSA: the sliding window and the means. */
static void check_branches(gpu_bench &b, random_source &r, bool small)
{
    attend_case(b, r, "near, D 64 G 2", 5, 4, 2, 64, small ? 900 : 6001, small ? 9 : 40, true, 300);
    attend_case(b, r, "near, D 128 G 16", 5, 32, 2, 128, small ? 900 : 9000, small ? 9 : 64, true,
                512);
    prefill_case(b, r, "near, D 64 G 2", 21, 4, 2, 64, small ? 1000 : 6001, 9, true, 200);
    coarse_case(b, r, "D 64 G 2, 16 by 16", 5, 4, 2, 64, small ? 1500 : 16384, 16, 16);
    coarse_case(b, r, "D 128 G 16, 32 by 16", 5, 32, 2, 128, small ? 1500 : 16384, 32, 16);
    coarse_case(b, r, "D 64 G 2, a prompt", 21, 4, 2, 64, small ? 700 : 5001, 16, 16, true);
    if (small) return;
    attend_case(b, r, "near, short rows", 6, 4, 4, 128, 70, 2, true, 50);
    attend_case(b, r, "near, all there, D 64 G 24", 3, 24, 1, 64, 5000, 79, true, 4000);
    attend_case(b, r, "near, longer than the row", 3, 8, 8, 128, 3000, 47, true, 1 << 24);
    coarse_case(b, r, "D 128 G 1, 128K", 3, 8, 8, 128, 131072, 32, 16);
    coarse_case(b, r, "D 64 G 24, a window a token", 3, 24, 1, 64, 20000, 2, 1);
    coarse_case(b, r, "D 128 G 16, 60,000 windows", 3, 32, 2, 128, 960000, 16, 16);
    coarse_case(b, r, "D 128 G 5, odd windows", 5, 10, 2, 128, 12345, 100, 7);
}

void check_attention(gpu_bench &b, random_source &r, bool small)
{
    attend_case(b, r, "D 128 G 16 sparse", 5, 32, 2, 128, small ? 1500 : 9000, small ? 20 : 64,
                false);
    attend_case(b, r, "D 64 G 4 sparse, parts", 5, 8, 2, 64, small ? 1000 : 6001, small ? 9 : 40,
                true);
    prefill_case(b, r, "D 128 G 16 sparse", 29, 32, 2, 128, small ? 1500 : 9000, 12, false);
    prefill_case(b, r, "D 64 G 4 sparse, parts", 45, 8, 2, 64, small ? 1000 : 6001, 9, true);
    attend_case(b, r, "D 64 G 1", 5, 4, 4, 64, small ? 1000 : 9000, small ? 9 : 40, true);
    check_branches(b, r, small);
    if (small) return;
    attend_case(b, r, "D 128 G 1 short", 6, 4, 4, 128, 70, 2, false);
    attend_case(b, r, "D 128 G 1 sparse", 3, 8, 8, 128, 9000, 12, false);
    attend_case(b, r, "D 128 G 4 dense", 4, 32, 8, 128, 20000, 313, false);
    attend_case(b, r, "D 64 G 24", 3, 24, 1, 64, 5000, 30, true);
    attend_wide(b, r, 120);
    prefill_case(b, r, "D 128 G 16 full", 300, 32, 2, 128, 5001, 79, false);
    prefill_case(b, r, "D 128 G 5 full", 65, 10, 2, 128, 3001, 47, false);
    prefill_case(b, r, "D 64 G 1 sparse", 150, 2, 2, 64, 70001, 40, true);
}

/* Means beyond 2^31 elements of Kc and Vc: sequence 1 of two so far apart. */
static void check_far_means(gpu_bench &b, random_source &r)
{
    scene s;
    attend_lists none;
    s.values = true;
    make_scene(s, r, 3, 32, 2, 128, 3000);
    const uint64_t each = (uint64_t)s.kv_heads * KERN_WINDOWS_MAX * s.dim;
    const uint32_t far = (uint32_t)((1ull << 31) / each) + 1;
    size_t available = 0, total = 0;
    CUDA(cudaMemGetInfo(&available, &total));
    if (available < 4 * (far + 1) * each + (1ull << 30)) {
        printf("skip    attend means past 2^31 elements: too little device memory\n");
        return;
    }
    std::fill(s.row_seq.host.begin(), s.row_seq.host.end(), 1);
    s.row_seq.up();
    mirror<float> near_out((size_t)3 * 32 * 128), far_out(near_out.host.size());
    kern_attend_args a = coarse_args(s, none, near_out.device, true);
    expect_ok(kern_attend(b.gpu, &a), "attend");
    uint16_t *means[2] = {};
    const uint16_t *from[2] = {s.kc.device, s.vc.device};
    for (int i = 0; i < 2; i++) {
        CUDA(cudaMalloc((void **)&means[i], (far + 1) * each * 2));
        for (uint64_t h = 0; h < s.kv_heads; h++)
            CUDA(cudaMemcpy(means[i] + far * each + h * KERN_WINDOWS_MAX * s.dim,
                            from[i] + (s.kv_heads + h) * s.windows * s.dim,
                            (size_t)s.windows * s.dim * 2, cudaMemcpyDeviceToDevice));
    }
    std::fill(s.row_seq.host.begin(), s.row_seq.host.end(), (int32_t)far);
    b.sync();
    s.row_seq.up();
    far_out.poison();
    a.summary.kc = means[0], a.summary.vc = means[1];
    a.summary.max_windows = KERN_WINDOWS_MAX, a.summary.seqs = far + 1, a.out = far_out.device;
    expect_ok(kern_attend(b.gpu, &a), "attend");
    b.sync();
    check_same("attend means past 2^31 elements", far_out.down(), near_out.down());
    CUDA(cudaFree(means[0]));
    CUDA(cudaFree(means[1]));
}

/* Slots beyond 2^31 elements of the pool. */
void check_far_slots(gpu_bench &b, random_source &r)
{
    check_far_means(b, r);
    scene s;
    attend_lists l;
    make_scene(s, r, 2, 32, 2, 128, 3000);
    make_lists(l, s, r, 40, false);
    const uint64_t block_bytes = 32768, far = (1ull << 32) / block_bytes + 5; /* > 2^31 elements */
    size_t available = 0, total = 0;
    CUDA(cudaMemGetInfo(&available, &total));
    if (available < (far + l.slots) * block_bytes + (1ull << 30)) {
        printf("skip    attend past 2^31 elements: too little device memory\n");
        return;
    }
    mirror<float> near_out((size_t)2 * 32 * 128), far_out(near_out.host.size());
    kern_attend_args a = attend_args(s, l, near_out.device, true);
    expect_ok(kern_attend(b.gpu, &a), "attend");
    b.sync();
    uint8_t *pool = nullptr;
    CUDA(cudaMalloc((void **)&pool, (far + l.slots) * block_bytes));
    CUDA(cudaMemcpy(pool + far * block_bytes, l.pool.device, l.pool.bytes(),
                    cudaMemcpyDeviceToDevice));
    for (int32_t &slot : l.slot.host)
        if (slot >= 0) slot += (int32_t)far;
    l.slot.up();
    far_out.poison();
    a.pool = pool, a.out = far_out.device;
    expect_ok(kern_attend(b.gpu, &a), "attend");
    b.sync();
    check_same("attend: slots past 2^31 elements of the pool", far_out.down(), near_out.down());
    CUDA(cudaFree(pool));
}
