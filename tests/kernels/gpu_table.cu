/* tests/kernels/gpu_table.cu - pool, select, plan, install and candidates on the device: exactly
 * what `ref` decides, step after step over one table. */
#include "tests/kernels/gpu_checks.cuh"

#include <algorithm>

namespace
{

/* One layer's table on both sides; every sequence owns `entries` entries a head. */
struct table_pair {
    uint32_t seqs, kv_heads, max_blocks, max_entries;
    mirror<int32_t> entry_of, block_of, slot_of, entries;
    mirror<uint32_t> used;

    table_pair(const scene &s, uint32_t entries_each)
        : seqs(s.seqs), kv_heads(s.kv_heads), max_blocks((s.tokens + 63) / 64 + 1),
          max_entries(entries_each)
    {
        const size_t places = (size_t)seqs * kv_heads;
        entry_of.resize(places * max_blocks), block_of.resize(places * max_entries);
        slot_of.resize(places * max_entries), used.resize(places * max_entries);
        entries.resize(seqs);
        std::fill(entry_of.host.begin(), entry_of.host.end(), -1);
        std::fill(block_of.host.begin(), block_of.host.end(), -1);
        for (size_t i = 0; i < slot_of.host.size(); i++)
            slot_of.host[i] = (int32_t)(slot_of.host.size() - 1 - i);
        for (uint32_t q = 0; q < seqs; q++)
            entries.host[q] = (int32_t)(max_entries - q % 3);
        entry_of.up(), block_of.up(), slot_of.up(), used.up(), entries.up();
    }
    kern_table view(bool gpu)
    {
        kern_table t = {};
        t.entry_of = gpu ? entry_of.device : entry_of.host.data();
        t.block_of = gpu ? block_of.device : block_of.host.data();
        t.slot_of = gpu ? slot_of.device : slot_of.host.data();
        t.used_step = gpu ? used.device : used.host.data();
        t.entries = gpu ? entries.device : entries.host.data();
        t.seqs = seqs, t.kv_heads = kv_heads, t.max_blocks = max_blocks,
        t.max_entries = max_entries;
        return t;
    }
    bool same() const
    {
        return entry_of.down() == entry_of.host && block_of.down() == block_of.host &&
               used.down() == used.host;
    }
};

struct step_buffers {
    uint32_t n, m;
    mirror<float> scores, query, importance;
    mirror<int32_t> block, count, settled, slot, status;
    mirror<uint8_t> mask, late;
    mirror<uint32_t> hits, misses;

    step_buffers(const scene &s, uint32_t blocks, uint32_t max_select) : n(blocks), m(max_select)
    {
        const size_t lists = (size_t)s.rows * s.kv_heads;
        scores.resize(lists * s.windows), query.resize(lists * n), importance.resize(lists * n);
        block.resize(lists * m), slot.resize(lists * m), mask.resize(lists * m);
        count.resize(lists), settled.resize(lists), status.resize(s.rows);
        hits.resize(s.rows), misses.resize(s.rows), late.resize(lists * ((m + 63) / 64));
        status.up(), hits.up(), misses.up();
    }
};

/* joined: as one op. */
void run_select(gpu_bench &b, scene &s, step_buffers &x, bool gpu, bool joined)
{
    kern_stream *stream = gpu ? b.gpu : b.ref;
    auto at = [gpu](auto &m) { return gpu ? m.device : m.host.data(); };
    kern_pool_args p = {};
    p.scores = at(x.scores);
    p.row_seq = at(s.row_seq), p.row_pos = at(s.row_pos), p.row_selector = at(s.row_selector);
    p.selectors = at(s.selectors);
    p.summary = s.view(gpu);
    p.query = at(x.query), p.importance = at(x.importance);
    p.rows = s.rows, p.max_select_blocks = x.n;
    kern_select_args c = {};
    c.query = p.query, c.importance = p.importance;
    c.row_pos = p.row_pos, c.row_selector = p.row_selector, c.selectors = p.selectors;
    c.block = at(x.block), c.mask = at(x.mask), c.count = at(x.count), c.settled = at(x.settled);
    c.rows = s.rows, c.kv_heads = s.kv_heads, c.max_select_blocks = x.n, c.max_select = x.m;
    const kern_pick_args both = {p, c};
    if (joined) {
        expect_ok(kern_pick(stream, &both), "pick");
        return;
    }
    expect_ok(kern_pool(stream, &p), "pool");
    expect_ok(kern_select(stream, &c), "select");
}

kern_plan_args plan_args(scene &s, step_buffers &x, table_pair &t, kern_exchange *exchange,
                         uint32_t step, bool gpu)
{
    auto at = [gpu](auto &m) { return gpu ? m.device : m.host.data(); };
    kern_plan_args p = {};
    p.block = at(x.block), p.count = at(x.count), p.settled = at(x.settled);
    p.importance = at(x.importance);
    p.row_seq = at(s.row_seq), p.row_pos = at(s.row_pos);
    p.table = t.view(gpu);
    p.slot = at(x.slot), p.late = at(x.late);
    p.exchange = exchange;
    p.row_status = at(x.status), p.row_hits = at(x.hits), p.row_misses = at(x.misses);
    p.rows = s.rows, p.max_select = x.m, p.max_select_blocks = x.n;
    p.select_block = s.selectors.host[0].block, p.step = step;
    return p;
}

/* The same misses, and the same of them found in host memory. */
bool same_misses(const kern_exchange *a, const kern_exchange *b)
{
    if (*(const int32_t *)&a->published != *(const int32_t *)&b->published ||
        *(const int32_t *)&a->unanswered != *(const int32_t *)&b->unanswered)
        return false;
    for (int32_t i = 0; i < *(const int32_t *)&a->published; i++) {
        const kern_arrival &want = a->arrival[i], &got = b->arrival[i];
        if (memcmp(&a->miss[i], &b->miss[i], sizeof a->miss[i]) != 0) return false;
        if (got.state != want.state) return false;
        if (want.state == STATUS_OK &&
            (got.source != want.source || got.seed != want.seed || got.digest != want.digest ||
             got.source_kind != KERN_FROM_HOME))
            return false;
    }
    return true;
}

/* What plan keeps for the device's ops is what it published, and each of it is on its way. */
bool same_own(const kern_exchange *x)
{
    uint32_t counts[3] = {};
    CUDA(cudaMemcpy(counts, x->own_count, sizeof counts, cudaMemcpyDefault));
    if (counts[0] != (uint32_t) * (const int32_t *)&x->published || counts[1] != x->own_tag ||
        counts[2] != (uint32_t) * (const int32_t *)&x->unanswered)
        return false;
    const size_t misses = counts[0] * sizeof *x->miss, arrivals = counts[0] * sizeof *x->arrival;
    std::vector<uint8_t> miss(misses), arrival(arrivals);
    CUDA(cudaMemcpy(miss.data(), x->own_miss, misses, cudaMemcpyDefault));
    CUDA(cudaMemcpy(arrival.data(), (const void *)x->own_arrival, arrivals, cudaMemcpyDefault));
    std::vector<uint32_t> coming(x->capacity);
    CUDA(cudaMemcpy(coming.data(), x->coming, coming.size() * sizeof coming[0], cudaMemcpyDefault));
    for (uint32_t i = 0; i < counts[0]; i++)
        if (coming[x->miss[i].place] != 1) return false;
    return memcmp(miss.data(), x->miss, misses) == 0 &&
           memcmp(arrival.data(), (const void *)x->arrival, arrivals) == 0;
}

/* Homes of one layer out of two, where some blocks are in host memory (that nobody reads here). */
struct some_homes {
    kern_home *home = nullptr;
    kern_homes view = {};
    some_homes(random_source &r, const table_pair &t)
    {
        const uint32_t each = t.kv_heads * t.max_blocks, all = 2 * t.seqs * each;
        CUDA(cudaHostAlloc((void **)&home, all * sizeof *home, cudaHostAllocMapped));
        for (uint32_t i = 0; i < all; i++)
            home[i] = {r.next(), r.next(), r.below(3) == 0 ? -1 : (int32_t)i, 0};
        view = {home + each, (const uint8_t *)home, 2ull * each, 64};
    }
    ~some_homes() { (void)cudaFreeHost(home); }
};

/* Scores drift a little from step to step, with many equal values among them. Where a block's score
 * is a sum of them (MoBA, NSA) they round, and are NaN where nobody may look: windows that the row
 * does not see. */
void draw_scores(random_source &r, scene &s, step_buffers &x, uint32_t step)
{
    const kern_selector &selector = s.selectors.host[0];
    const bool sums = selector.raw || selector.near != 0;
    for (float &v : x.scores.host)
        if (step == 0 || std::isnan(v) || r.below(8) == 0)
            v = sums && r.below(4) != 0 ? 5.0f * r.normal() : (float)r.below(64) / 64.0f;
    for (uint32_t i = 0; i < s.rows && step > 0; i++)
        if (s.row_pos.host[i] + 1 < (int32_t)s.tokens) s.row_pos.host[i]++;
    for (size_t i = 0; i < x.scores.host.size() && sums; i++) {
        const uint32_t row = (uint32_t)(i / s.windows / s.kv_heads), w = (uint32_t)(i % s.windows);
        if (w >= selector_visible(&selector, s.row_pos.host[row])) x.scores.host[i] = NAN;
    }
    x.scores.up(), s.row_pos.up();
}

/* Bits of what pool wrote: blocks up to the current one. */
bool same_pooled(const scene &s, const step_buffers &x)
{
    const std::vector<float> query = x.query.down(), importance = x.importance.down();
    bool same = true;
    for (uint32_t i = 0; i < s.rows * s.kv_heads; i++) {
        const uint32_t row = i / s.kv_heads;
        const kern_selector &selector = s.selectors.host[(size_t)s.row_selector.host[row]];
        const size_t bytes = (selector_current(&selector, s.row_pos.host[row]) + 1) * sizeof(float);
        const size_t at = (size_t)i * x.n;
        same &= memcmp(&query[at], &x.query.host[at], bytes) == 0 &&
                memcmp(&importance[at], &x.importance.host[at], bytes) == 0;
    }
    return same;
}

void table_case(gpu_bench &b, random_source &r, const char *name, const kern_selector &selector,
                uint32_t rows, uint32_t tokens, uint32_t entries, uint32_t steps)
{
    scene s;
    s.window = selector.window, s.stride = selector.stride;
    make_scene(s, r, rows, 4, 2, 64, tokens);
    for (uint16_t &u : s.uc.host)
        u = kern_f32_to_bf16((float)r.below(40) / 16.0f - 1.0f);
    s.uc.up();
    for (int32_t &pos : s.row_pos.host)
        pos = std::max(pos - (int32_t)steps, 0);
    s.row_pos.up();
    s.selectors.host[0] = selector;
    s.selectors.up();
    uint32_t max_select = 1;
    for (uint32_t pos = 0; pos < tokens; pos++)
        max_select = std::max(max_select, selector_storage_max(&selector, (int32_t)pos));
    step_buffers x(s, tokens / selector.block + 1, max_select);
    table_pair t(s, entries);
    shared_exchange host(rows * 2 * max_select), gpu(rows * 2 * max_select);
    gpu.take_own(0, 0);
    some_homes homes(r, t);
    bool selected = true, planned = true, published = true;
    for (uint32_t step = 0; step < steps; step++) {
        draw_scores(r, s, x, step);
        x.block.poison(), x.mask.poison(), x.slot.poison(), x.late.poison();
        x.query.poison(), x.importance.poison();
        run_select(b, s, x, false, false);
        run_select(b, s, x, true, step % 2 == 0);
        kern_plan_args p = plan_args(s, x, t, host.x, step + 1, false);
        if (step % 4 != 3) p.homes = homes.view;
        expect_ok(kern_plan(b.ref, &p), "plan");
        p = plan_args(s, x, t, gpu.x, step + 1, true);
        if (step % 4 != 3) p.homes = homes.view;
        expect_ok(kern_plan(b.gpu, &p), "plan");
        b.sync();
        selected &= same_pooled(s, x) && x.block.down() == x.block.host &&
                    x.mask.down() == x.mask.host && x.count.down() == x.count.host &&
                    x.settled.down() == x.settled.host;
        planned &= x.slot.down() == x.slot.host && x.late.down() == x.late.host && t.same() &&
                   x.status.down() == x.status.host && x.hits.down() == x.hits.host &&
                   x.misses.down() == x.misses.host;
        published &= same_misses(host.x, gpu.x) && same_own(gpu.x);
    }
    check_that(selected, "pool and select %s, as two ops and as one: %u steps as ref", name, steps);
    check_that(planned, "plan %s: table, slots, late groups and counters as ref over %u steps",
               name, steps);
    check_that(published, "plan %s: the same misses in the same order, the same of them answered",
               name);

    mirror<int32_t> seq(rows), next(rows), which(rows), block((size_t)rows * 2 * 50);
    for (uint32_t i = 0; i < rows; i++)
        seq.host[i] = s.row_seq.host[i], next.host[i] = s.row_pos.host[i] + 1;
    seq.up(), next.up(), which.up();
    auto candidates = [&](bool on) {
        kern_candidates_args c = {};
        c.seq = on ? seq.device : seq.host.data();
        c.next_pos = on ? next.device : next.host.data();
        c.selector = on ? which.device : which.host.data();
        c.selectors = on ? s.selectors.device : s.selectors.host.data();
        c.summary = s.view(on), c.table = t.view(on);
        c.block = on ? block.device : block.host.data();
        c.n = rows, c.max_candidates = 50, c.forced = true;
        expect_ok(kern_candidates(on ? b.gpu : b.ref, &c), "candidates");
    };
    for (int32_t &n : next.host)
        n = std::min(n, (int32_t)tokens - 1);
    next.up();
    candidates(false), candidates(true);
    b.sync();
    char text[120];
    snprintf(text, sizeof text, "candidates %s", name);
    check_same(text, block.down(), block.host);
}

/* Rows enter the blocks that they are in, some of which have no slot: by the table, or, with
 * `home`, as tokens of one prompt. */
void enter_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t dim, bool home)
{
    const uint32_t kv_heads = 2;
    const uint64_t stride = 2 * kv_heads * dim + 32;
    scene s;
    make_scene(s, r, rows, 4, kv_heads, dim, 700);
    table_pair t(s, 3);
    mirror<int32_t> homes((size_t)kv_heads * t.max_blocks), slot((size_t)rows * kv_heads);
    mirror<float> kv(rows * stride);
    const size_t slots = std::max(homes.host.size(), t.slot_of.host.size());
    mirror<uint16_t> pool(slots * 2 * KERN_BLOCK * dim);
    for (uint32_t i = 0; i < rows * kv_heads; i++) {
        const uint32_t row = i / kv_heads;
        const size_t place = (size_t)s.row_seq.host[row] * kv_heads + i % kv_heads;
        if (home) s.row_pos.host[row] = (int32_t)(55 + row);
        if (r.below(4) != 0)
            t.entry_of.host[place * t.max_blocks + s.row_pos.host[row] / KERN_BLOCK] =
                (int32_t)r.below(3);
    }
    for (size_t i = 0; i < homes.host.size(); i++)
        homes.host[i] = i % 3 == 2 ? -1 : (int32_t)(slots - 1 - i);
    fill_normal(r, kv.host, 1.0f);
    s.row_pos.up(), t.entry_of.up(), homes.up(), kv.up(), pool.up(), slot.poison();
    for (bool gpu : {false, true}) {
        auto at = [gpu](auto &m) { return gpu ? m.device : m.host.data(); };
        kern_enter_args a = {};
        a.locate.row_seq = at(s.row_seq), a.locate.row_pos = a.append.row_pos = at(s.row_pos);
        a.locate.home = home ? at(homes) : nullptr;
        a.locate.table = t.view(gpu);
        a.locate.slot = at(slot), a.append.slot = at(slot);
        a.locate.rows = a.append.rows = rows, a.locate.max_select = 1;
        a.append.k = at(kv), a.append.v = a.append.k + kv_heads * dim;
        a.append.pool = (uint8_t *)at(pool), a.append.row_stride = stride;
        a.append.kv_heads = kv_heads, a.append.head_dim = dim;
        expect_ok(kern_enter(gpu ? b.gpu : b.ref, &a), "enter");
    }
    b.sync();
    check_same(home ? "enter, a prompt: slots" : "enter: slots", slot.down(), slot.host);
    check_same(home ? "enter, a prompt: pool" : "enter: pool", pool.down(), pool.host);
}

/* Two rows of one sequence, and a table too small for the second: it is void, the first is not. */
void plan_full(gpu_bench &b, random_source &r)
{
    scene s;
    make_scene(s, r, 2, 4, 2, 64, 3000);
    s.row_seq.host = {1, 1}, s.row_pos.host = {2900, 2901};
    s.row_seq.up(), s.row_pos.up();
    kern_selector one = nosa_selector();
    one.local = 4, one.query = 12, one.total = 16;
    s.selectors.host[0] = one;
    s.selectors.up();
    step_buffers x(s, 3000 / 64 + 1, 16);
    table_pair t(s, 18);
    shared_exchange exchange(64);
    draw_scores(r, s, x, 0);
    run_select(b, s, x, true, true);
    const kern_plan_args p = plan_args(s, x, t, exchange.x, 1, true);
    expect_ok(kern_plan(b.gpu, &p), "plan");
    b.sync();
    const std::vector<int32_t> status = x.status.down();
    check_that(status[0] == STATUS_OK && status[1] == STATUS_NO_MEMORY,
               "plan: a row that does not fit its entries is void (%s, %s)",
               status_name((enum status)status[0]), status_name((enum status)status[1]));
}

} // namespace

void check_table(gpu_bench &b, random_source &r, bool small)
{
    kern_selector nosa = nosa_selector(), fine = nosa_selector(), full = nosa_selector();
    fine.block = 16, fine.window = 16, fine.local = 3, fine.query = 12, fine.total = 16;
    full.total = UINT32_MAX, full.query = 0, full.fill_by_importance = false;
    kern_selector wide = nosa_selector();
    wide.block = 128, wide.local = 2, wide.query = 6, wide.total = 9;
    plan_full(b, r);
    enter_case(b, r, 5, 64, false);
    enter_case(b, r, 20, 128, true);
    table_case(b, r, "small budget", wide, 3, 3000, 40, small ? 4 : 70);
    table_case(b, r, "MoBA 256", moba_selector(256, 3), 3, 3000, 20, small ? 4 : 300);
    table_case(b, r, "SSA by chunks", chunked_selector(16, 16), 3, small ? 1500 : 4000, 24,
               small ? 4 : 70);
    table_case(b, r, "NSA", nsa_selector(16, 16, 100), 3, small ? 1500 : 4000, 24, small ? 4 : 70);
    table_case(b, r, "NSA, overlap", nsa_overlap_selector(6, 200), 3, 3000, 20, small ? 4 : 70);
    if (small) return;
    kern_selector nsa_chunked = chunked_selector(16, 16), nsa_odd = nsa_overlap_selector(8, 511);
    nsa_chunked.near = 512, nsa_odd.window = 100, nsa_odd.stride = 7;
    table_case(b, r, "NSA by chunks", nsa_chunked, 3, 5000, 40, 70);
    table_case(b, r, "NSA, odd windows", nsa_odd, 3, 5000, 40, 70);
    table_case(b, r, "NSA, 128K", nsa_overlap_selector(16, 512), 3, 131072, 40, 20);
    table_case(b, r, "MoBA 512, 128K", moba_selector(512, 12), 3, 131072, 120, 70);
    table_case(b, r, "MoBA 4096", moba_selector(4096, 2), 3, 20000, 140, 5);
    table_case(b, r, "SSA by chunks of 32", chunked_selector(32, 20), 3, 5000, 32, 70);
    table_case(b, r, "SSA by chunks of 64", chunked_selector(64, 64), 3, 70000, 80, 20);
    table_case(b, r, "SSA by chunks, 128K", chunked_selector(16, 9), 3, 131072, 24, 20);
    table_case(b, r, "NOSA, 80 slots", nosa, 5, 16384, 80, 140);
    table_case(b, r, "block 16", fine, 4, 4000, 40, 70);
    table_case(b, r, "full", full, 3, 2000, 36, 70);
    table_case(b, r, "NOSA, 128K", nosa, 3, 131072, 70, 20);
}
