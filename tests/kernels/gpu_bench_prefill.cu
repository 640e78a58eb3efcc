/* tests/kernels/gpu_bench_prefill.cu - attention of whole prompts: full against PyTorch's, NOSA
 * against our own full, with and without the selection that NOSA needs first. */
#include "tests/kernels/gpu_bench.cuh"

namespace
{

constexpr uint32_t HEADS = 32, KV_HEADS = 2, DIM = 128, CHUNK = 4096, SPARSE_MAX = 64;

/* Lists of full attention for a chunk of rows. */
__global__ void __launch_bounds__(256)
    full_lists(kern_attend_args a, int32_t *block, int32_t *slot, int32_t *count, uint8_t *mask,
               uint32_t slots_head)
{
    const uint64_t list = blockIdx.x;
    const int32_t pos = a.row_pos[list / KV_HEADS];
    const uint32_t head = (uint32_t)(list % KV_HEADS), blocks = (uint32_t)pos / KERN_BLOCK + 1;
    for (uint32_t e = threadIdx.x; e < blocks; e += 256) {
        block[list * a.max_select + e] = (int32_t)e;
        slot[list * a.max_select + e] = (int32_t)(head * slots_head + e);
        mask[list * a.max_select + e] = 15;
    }
    if (threadIdx.x == 0) count[list] = (int32_t)blocks;
}

__global__ void __launch_bounds__(64)
    slots_of(const int32_t *block, const int32_t *count, int32_t *slot, uint32_t slots_head)
{
    const uint64_t list = blockIdx.x;
    for (int32_t e = (int32_t)threadIdx.x; e < count[list]; e += 64)
        slot[list * SPARSE_MAX + e] =
            (int32_t)(list % KV_HEADS * slots_head) + block[list * SPARSE_MAX + e];
}

template <class T> struct device_array {
    T *at = nullptr;
    explicit device_array(size_t count)
    {
        CUDA(cudaMalloc((void **)&at, count * sizeof(T)));
        CUDA(cudaMemset(at, 0, count * sizeof(T)));
    }
    device_array(const device_array &) = delete;
    ~device_array() { (void)cudaFree(at); }
};

/* One prompt's layer: keys, summaries, queries of one chunk (the same for all), lists. */
struct prompt {
    uint32_t tokens, windows, blocks;
    mirror<int32_t> seq, pos, selector;
    mirror<kern_selector> selectors;
    mirror<float> q;
    uint8_t *pool, *u, *kc, *uc;
    device_array<float> out, scores, query, importance;
    device_array<int32_t> block, slot, count, settled;
    device_array<uint8_t> mask;
    kern_summary summary = {};

    prompt(bench &k, uint32_t length, uint32_t max_select)
        : tokens(length), windows(length / 16), blocks(length / KERN_BLOCK), seq(CHUNK),
          pos(length), selector(CHUNK), selectors(KERN_SELECTORS_MAX),
          q((size_t)CHUNK * HEADS * DIM), out((size_t)CHUNK * HEADS * DIM),
          scores((size_t)CHUNK * KV_HEADS * windows), query((size_t)CHUNK * KV_HEADS * blocks),
          importance((size_t)CHUNK * KV_HEADS * blocks),
          block((size_t)CHUNK * KV_HEADS * max_select), slot((size_t)CHUNK * KV_HEADS * max_select),
          count((size_t)CHUNK * KV_HEADS), settled((size_t)CHUNK * KV_HEADS),
          mask((size_t)CHUNK * KV_HEADS * max_select)
    {
        for (uint32_t i = 0; i < length; i++)
            pos.host[i] = (int32_t)i;
        selectors.host[0] = nosa_selector();
        fill_normal(k.r, q.host, 1.0f);
        seq.up(), pos.up(), selector.up(), selectors.up(), q.up();
        pool = random_bytes(k, (uint64_t)KV_HEADS * tokens * DIM * 4);
        u = random_bytes(k, (uint64_t)KV_HEADS * tokens * 2);
        kc = random_bytes(k, (uint64_t)KV_HEADS * windows * DIM * 2);
        uc = random_bytes(k, (uint64_t)KV_HEADS * windows * 2);
        summary.kc = (uint16_t *)kc, summary.uc = (uint16_t *)uc, summary.u = (uint16_t *)u;
        summary.seqs = 1, summary.kv_heads = KV_HEADS, summary.head_dim = DIM;
        summary.max_windows = windows, summary.max_tokens = tokens;
        summary.window = 32, summary.stride = 16;
    }
    ~prompt() { (void)cudaFree(pool), (void)cudaFree(u), (void)cudaFree(kc), (void)cudaFree(uc); }

    void attend(bench &k, uint32_t first, uint32_t max_select, bool full)
    {
        kern_attend_args a = {};
        a.q = q.device, a.block = block.at, a.slot = slot.at, a.count = count.at, a.mask = mask.at;
        a.row_seq = seq.device, a.row_pos = pos.device + first, a.row_selector = selector.device;
        a.selectors = selectors.device, a.pool = pool, a.summary = summary, a.out = out.at;
        a.row_stride = HEADS * DIM, a.rows = CHUNK, a.heads = HEADS, a.max_select = max_select;
        a.block_bytes = KERN_BLOCK * DIM * 4, a.prefill = true;
        if (full)
            full_lists<<<CHUNK * KV_HEADS, 256, 0, k.stream>>>(a, block.at, slot.at, count.at,
                                                               mask.at, blocks);
        expect_ok(kern_attend(k.b.gpu, &a), "attend");
    }

    void score(bench &k, uint32_t first)
    {
        kern_score_args a = {};
        a.q = q.device, a.row_seq = seq.device, a.row_pos = pos.device + first;
        a.row_selector = selector.device, a.selectors = selectors.device, a.summary = summary;
        a.out = scores.at, a.row_stride = HEADS * DIM, a.rows = CHUNK, a.heads = HEADS;
        a.prefill = true;
        expect_ok(kern_score(k.b.gpu, &a), "score");
    }

    void select(bench &k, uint32_t first)
    {
        const kern_pool_args p = {
            scores.at, seq.device, pos.device + first, selector.device, selectors.device,
            summary,   query.at,   importance.at,      CHUNK,           blocks};
        kern_select_args c = {};
        c.query = query.at, c.importance = importance.at, c.row_pos = pos.device + first;
        c.row_selector = selector.device, c.selectors = selectors.device, c.block = block.at;
        c.mask = mask.at, c.count = count.at, c.settled = settled.at, c.rows = CHUNK;
        c.kv_heads = KV_HEADS, c.max_select_blocks = blocks, c.max_select = SPARSE_MAX;
        expect_ok(kern_pool(k.b.gpu, &p), "pool");
        expect_ok(kern_select(k.b.gpu, &c), "select");
        slots_of<<<CHUNK * KV_HEADS, 64, 0, k.stream>>>(block.at, count.at, slot.at, blocks);
    }
};

double full_operations(uint32_t tokens)
{
    return 4.0 * DIM * HEADS * ((double)tokens * (tokens + 1.0) / 2.0);
}

/* Every chunk of the prompt, one after another. */
void whole(prompt &p, const std::function<void(uint32_t)> &chunk)
{
    for (uint32_t first = 0; first < p.tokens; first += CHUNK)
        chunk(first);
}

double full_prompt(bench &k, uint32_t tokens, const std::string &name)
{
    prompt p(k, tokens, tokens / KERN_BLOCK);
    row w = {"prefill", "full " + name, "TFLOP/s", full_operations(tokens), 0.0};
    if (k.peer.count("prefill " + name)) {
        w.peer = "PyTorch SDPA";
        w.peer_value = full_operations(tokens) / k.peer["prefill " + name] * 1e-6;
    }
    const std::vector<double> us = time_calls(
        k, 1, [&](int) { whole(p, [&](uint32_t first) { p.attend(k, first, p.blocks, true); }); });
    report(k, w, us);
    return sorted(us)[RUNS / 2];
}

void nosa_prompt(bench &k, uint32_t tokens, const std::string &name, double full_us)
{
    prompt p(k, tokens, SPARSE_MAX);
    row w = {"prefill", "NOSA " + name + " attend", "us", 0.0, 0.0};
    whole(p, [&](uint32_t first) { p.score(k, first), p.select(k, first); });
    const auto timed = [&](const char *part, const std::function<void(uint32_t)> &chunk) {
        w.name = "NOSA " + name + " " + part;
        w.peer = full_us > 0.0 ? "our full attention at 128K" : "";
        w.peer_value = full_us;
        report(k, w, time_calls(k, 1, [&](int) { whole(p, chunk); }));
    };
    timed("score", [&](uint32_t first) { p.score(k, first); });
    timed("pool + select", [&](uint32_t first) { p.select(k, first); });
    timed("attend", [&](uint32_t first) { p.attend(k, first, SPARSE_MAX, false); });
    timed("all", [&](uint32_t first) {
        p.score(k, first);
        p.select(k, first);
        p.attend(k, first, SPARSE_MAX, false);
    });
}

} // namespace

void bench_prefill(bench &k)
{
    if (!wanted(k, "prefill")) return;
    (void)full_prompt(k, 65536, "64K");
    const double full_us = full_prompt(k, 131072, "128K");
    nosa_prompt(k, 65536, "64K", full_us);
    nosa_prompt(k, 131072, "128K", full_us);
}
