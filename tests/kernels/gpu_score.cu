/* tests/kernels/gpu_score.cu - score on the device against `ref`, and its bits against themselves
 * in another batch. */
#include "tests/kernels/gpu_checks.cuh"

#include <algorithm>
#include <string>

namespace
{

/* Of few blocks, so that scores matter at all lengths. */
kern_selector short_selector()
{
    kern_selector s = nosa_selector();
    s.query = 12, s.total = 20;
    return s;
}

/* NaN where nobody may look: means of windows that no row of the sequence sees. */
void hide_windows(scene &s)
{
    std::vector<uint32_t> seen(s.seqs, 0);
    for (uint32_t i = 0; i < s.rows; i++) {
        uint32_t &most = seen[(size_t)s.row_seq.host[i]];
        most = std::max(most, selector_visible(&s.selectors.host[0], s.row_pos.host[i]));
    }
    for (size_t w = 0; w < (size_t)s.seqs * s.kv_heads * s.windows; w++) {
        if (w % s.windows < seen[w / s.windows / s.kv_heads]) continue;
        std::fill_n(&s.kc.host[w * s.dim], s.dim, (uint16_t)0x7fc1);
    }
    s.kc.up();
}

struct row_piece {
    uint32_t first, count;
};

/* All rows by device and `ref`, within `bound`; then in pieces. */
void score_scene(gpu_bench &b, scene &s, const std::string &name, bool prefill, double bound,
                 const std::vector<row_piece> &pieces, const char *same)
{
    const size_t each = (size_t)s.kv_heads * s.windows;
    mirror<float> out(s.rows * each), ref(out.host.size()), again(out.host.size());
    out.poison(), again.poison();
    kern_score_args gpu = scene_args<kern_score_args>(s, out.device, true);
    gpu.prefill = prefill;
    expect_ok(kern_score(b.gpu, &gpu), name.c_str());
    const kern_score_args host = scene_args<kern_score_args>(s, ref.host.data(), false);
    expect_ok(kern_score(b.ref, &host), name.c_str());
    b.sync();
    const std::vector<float> first = out.down();
    check_close((name + " against ref").c_str(), first, ref.host, bound);
    gpu.out = again.device;
    for (const row_piece &piece : pieces) {
        const kern_score_args some = scene_rows(gpu, piece.first, piece.count, each);
        expect_ok(kern_score(b.gpu, &some), name.c_str());
    }
    b.sync();
    check_same((name + ": " + same).c_str(), again.down(), first);
}

void score_case(gpu_bench &b, random_source &r, const char *name, uint32_t rows, uint32_t heads,
                uint32_t kv_heads, uint32_t dim, uint32_t tokens,
                const kern_selector &selector = short_selector())
{
    scene s;
    s.window = selector.window, s.stride = selector.stride;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    s.selectors.host[0] = selector;
    s.selectors.up();
    hide_windows(s);
    std::vector<row_piece> pieces;
    for (uint32_t row = rows; row-- > 0;)
        pieces.push_back({row, 1});
    score_scene(b, s, std::string("score ") + name, false, 2e-5, pieces,
                "a row alone has the bits it has in the batch");
}

/* Rows of raw products and rows of shares of a softmax over the same windows, side by side. */
void score_mixed(gpu_bench &b, random_source &r, uint32_t tokens)
{
    scene s;
    s.window = s.stride = 128;
    make_scene(s, r, 5, 4, 2, 64, tokens);
    s.selectors.host[0] = s.selectors.host[1] = moba_selector(256, 3);
    s.selectors.host[1].raw = false;
    for (uint32_t i = 0; i < s.rows; i++)
        s.row_selector.host[i] = (int32_t)(i & 1);
    s.selectors.up(), s.row_selector.up();
    hide_windows(s);
    const size_t each = (size_t)s.kv_heads * s.windows;
    mirror<float> out(s.rows * each), ref(out.host.size());
    out.poison();
    const kern_score_args gpu = scene_args<kern_score_args>(s, out.device, true);
    expect_ok(kern_score(b.gpu, &gpu), "score");
    const kern_score_args host = scene_args<kern_score_args>(s, ref.host.data(), false);
    expect_ok(kern_score(b.ref, &host), "score");
    b.sync();
    const std::vector<float> got = out.down();
    double worst = 0.0; /* a row at a time: raw ones are a hundred times larger */
    for (uint32_t i = 0; i < s.rows; i++) {
        const std::vector<float> row(&got[i * each], &got[i * each] + each);
        const std::vector<float> want(&ref.host[i * each], &ref.host[i * each] + each);
        const double error = relative_error(row, want);
        worst = error <= worst ? worst : error; /* keeps NaN */
    }
    check_that(worst <= 2e-5, "score, raw rows among others: relative error of a row at most %.3g",
               worst);
}

/* A stretch of a prompt: rows of sequence 1 at ascending positions. */
void score_prefill(gpu_bench &b, random_source &r, const char *name, uint32_t rows, uint32_t heads,
                   uint32_t kv_heads, uint32_t dim, uint32_t tokens,
                   const kern_selector &selector = short_selector())
{
    scene s;
    s.window = selector.window, s.stride = selector.stride;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    s.selectors.host[0] = selector;
    for (uint32_t i = 0; i < rows; i++)
        s.row_seq.host[i] = 1, s.row_pos.host[i] = (int32_t)(tokens - rows + i);
    s.selectors.up(), s.row_seq.up(), s.row_pos.up();
    hide_windows(s);
    std::vector<row_piece> pieces;
    for (uint32_t row = 0, size = 1; row < rows; row += size, size++)
        pieces.push_back({row, std::min(size, rows - row)});
    score_scene(b, s, std::string("prefill score ") + name, true, selector.raw ? 2e-5 : 4e-3,
                pieces, "chunks do not show in the bits");
}

/* Keys of a short summary laid out in a long one: two passes instead of a cluster, the same bits.
 */
void score_two_pass(gpu_bench &b, random_source &r)
{
    scene s;
    make_scene(s, r, 3, 16, 1, 128, 40000);
    const uint32_t wide = 9000;
    mirror<uint16_t> kc((size_t)3 * wide * 128);
    for (uint32_t q = 0; q < 3; q++)
        memcpy(&kc.host[(size_t)q * wide * 128], &s.kc.host[(size_t)q * s.windows * 128],
               (size_t)s.windows * 128 * 2);
    kc.up();
    mirror<float> narrow((size_t)3 * s.windows), broad((size_t)3 * wide);
    narrow.poison(), broad.poison();
    kern_score_args a = scene_args<kern_score_args>(s, narrow.device, true);
    expect_ok(kern_score(b.gpu, &a), "score");
    a.summary.kc = kc.device, a.summary.max_windows = wide, a.out = broad.device;
    expect_ok(kern_score(b.gpu, &a), "score");
    b.sync();
    const std::vector<float> all = broad.down(), few = narrow.down();
    std::vector<float> part(few.size());
    for (uint32_t q = 0; q < 3; q++)
        std::copy_n(&all[(size_t)q * wide], s.windows, &part[(size_t)q * s.windows]);
    check_same("score: two passes have the bits of a cluster", part, few);
    bool zero = true;
    for (uint32_t q = 0; q < 3; q++)
        for (uint32_t w = s.windows; w < wide; w++)
            zero &= all[(size_t)q * wide + w] == 0.0f;
    check_that(zero, "score: windows that no row sees are 0");
}

} // namespace

void check_score(gpu_bench &b, random_source &r, bool small)
{
    score_prefill(b, r, "D 128 G 16", 29, 32, 2, 128, small ? 3000 : 20000);
    score_prefill(b, r, "D 64 G 4", 45, 8, 2, 64, small ? 2000 : 9001);
    score_prefill(b, r, "raw, D 64 G 1", 150, 2, 2, 64, small ? 3000 : 20000,
                  moba_selector(256, 3));
    score_case(b, r, "raw, D 64 G 1", 3, 4, 4, 64, 9000, moba_selector(256, 3));
    score_case(b, r, "NSA, D 64 G 2", 3, 4, 2, 64, 4000, nsa_overlap_selector(8, 512));
    score_mixed(b, r, small ? 5000 : 100000);
    if (small) {
        score_case(b, r, "D 128 G 16", 2, 16, 1, 128, 18000);
        score_case(b, r, "D 64 G 4", 3, 8, 2, 64, 4000);
        return;
    }
    score_prefill(b, r, "raw, D 128 G 1", 300, 2, 2, 128, 40001, moba_selector(512, 3));
    score_prefill(b, r, "raw, D 128 G 16", 29, 32, 2, 128, 9000, moba_selector(256, 3));
    score_prefill(b, r, "raw, D 64 G 5", 77, 10, 2, 64, 8192, moba_selector(512, 2));
    score_case(b, r, "raw, D 128 G 1, 128K", 5, 8, 8, 128, 131072, moba_selector(512, 12));
    score_case(b, r, "raw, D 128 G 5", 3, 10, 2, 128, 12345, moba_selector(256, 3));
    score_case(b, r, "raw, two passes", 3, 1, 1, 128, 1100000, moba_selector(4096, 12));
    score_case(b, r, "SSA by chunks, D 64 G 16", 3, 32, 2, 64, 20000, chunked_selector(16, 16));
    score_case(b, r, "D 128 G 16, 128K", 3, 32, 2, 128, 131072);
    score_case(b, r, "D 128 G 16, 16K", 5, 32, 2, 128, 16384);
    score_case(b, r, "D 64 G 5, odd length", 5, 10, 2, 64, 12345);
    score_prefill(b, r, "D 64 G 7", 31, 14, 2, 64, 7777);
    score_two_pass(b, r);
}
