/* tests/kernels/gpu_bench.cu - how near the CUDA kernels come to what this card allows, measured in
 * the same run: its read ceiling (a sum over several GiB) and its pinned-gather ceiling (a copy by
 * SMs).
 *
 *   gpu_bench --out FILE [--commit C] [--date D] [--peer FILE] [--only BENCH]
 *
 * One shoal.bench/1 row a case, JSON lines appended to FILE, and a table on stdout. A run is the
 * replay of a CUDA graph of several calls over rotating buffers larger than L2; each value is the
 * median of RUNS.
 * --peer: lines "case microseconds" of another program's attention, measured on this machine
 * before. */
#include "tests/kernels/gpu_bench.cuh"

int checks_passed, checks_failed;

namespace
{

/* ---- ceilings -------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(512) sum_kernel(const uint4 *from, uint64_t count, uint32_t *out)
{
    uint32_t sum = 0;
    const uint64_t step = (uint64_t)gridDim.x * 512;
    uint64_t i = (uint64_t)blockIdx.x * 512 + threadIdx.x;
    for (; i + 7 * step < count; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++)
            v[j] = __ldcs(from + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++)
            sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < count; i += step)
        sum += from[i].x;
    if (sum == 0x12345u) *out = sum;
}

void measure_read(bench &k)
{
    const uint64_t bytes = 8ull << 30;
    uint8_t *memory = random_bytes(k, bytes);
    uint32_t *out = nullptr;
    CUDA(cudaMalloc((void **)&out, 4));
    std::vector<double> best;
    for (uint32_t ctas : {132u * 2, 132u * 4, 132u * 16, 132u * 64}) {
        const std::vector<double> us = time_calls(k, 2, [&](int) {
            sum_kernel<<<ctas, 512, 0, k.stream>>>((const uint4 *)memory, bytes / 16, out);
        });
        if (best.empty() || sorted(us)[RUNS / 2] < sorted(best)[RUNS / 2]) best = us;
    }
    k.read_ceiling = (double)bytes / sorted(best)[RUNS / 2] * 1e-3;
    report(k, {"read_ceiling", "sum over 8 GiB", "GB/s", (double)bytes, 0.0}, best);
    CUDA(cudaFree(memory));
    CUDA(cudaFree(out));
}

__global__ void __launch_bounds__(512)
    copy_kernel(const uint8_t *from, uint8_t *to, uint32_t blocks, uint32_t bytes)
{
    for (uint32_t i = blockIdx.x; i < blocks; i += gridDim.x) {
        const uint4 *f = (const uint4 *)(from + (uint64_t)i * bytes);
        uint4 *t = (uint4 *)(to + (uint64_t)i * bytes);
        for (uint32_t j = threadIdx.x; j < bytes / 16; j += 2048) {
            uint4 v[4];
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                if (j + e * 512 < bytes / 16) v[e] = f[j + e * 512];
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                if (j + e * 512 < bytes / 16) t[j + e * 512] = v[e];
        }
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

struct geometry {
    uint32_t rows, heads, kv_heads, dim, entries, slots_each;
    const char *name;
};

/* A layer's arguments on the device; slots in random order over the whole pool. */
struct attend_bench {
    mirror<int32_t> block, slot, count, row_seq, row_pos, row_selector;
    mirror<uint8_t> mask;
    mirror<uint16_t> u;
    mirror<kern_selector> selectors;
    mirror<float> q, out;
    uint8_t *pool = nullptr;
    kern_attend_args args = {};
    double bytes = 0.0;
    int calls = 1;

    attend_bench(bench &k, const geometry &g)
    {
        const size_t lists = (size_t)g.rows * g.kv_heads, list_slots = lists * g.slots_each;
        const uint32_t block_bytes = 2 * KERN_BLOCK * g.dim * 2, tokens = g.slots_each * KERN_BLOCK;
        const uint64_t layer = (uint64_t)list_slots * block_bytes;
        while ((uint64_t)calls * layer < (1ull << 30))
            calls++; /* rotate well past L2 */
        pool = random_bytes(k, layer * (uint64_t)calls);
        std::vector<int32_t> order(list_slots);
        for (size_t i = 0; i < list_slots; i++)
            order[i] = (int32_t)i;
        for (size_t i = list_slots - 1; i > 0; i--)
            std::swap(order[i], order[k.r.below((uint32_t)i + 1)]);
        block.resize(lists * g.entries), slot.resize(lists * g.entries), count.resize(lists);
        mask.resize(lists * g.entries);
        row_seq.resize(g.rows), row_pos.resize(g.rows), row_selector.resize(g.rows);
        for (size_t i = 0; i < lists; i++) {
            count.host[i] = (int32_t)g.entries;
            for (uint32_t e = 0; e < g.entries; e++) {
                block.host[i * g.entries + e] = (int32_t)(g.slots_each - g.entries + e);
                slot.host[i * g.entries + e] = order[i * g.slots_each + e];
                mask.host[i * g.entries + e] = 15;
            }
        }
        for (uint32_t i = 0; i < g.rows; i++)
            row_seq.host[i] = (int32_t)i, row_pos.host[i] = (int32_t)tokens - 1;
        u.resize(lists * tokens), selectors.resize(KERN_SELECTORS_MAX);
        fill_bf16(k.r, u.host, 1.0f);
        selectors.host[0] = nosa_selector();
        q.resize((size_t)g.rows * g.heads * g.dim), out.resize(q.host.size());
        fill_normal(k.r, q.host, 1.0f);
        block.up(), slot.up(), count.up(), mask.up(), row_seq.up(), row_pos.up();
        row_selector.up(), u.up(), selectors.up(), q.up();
        args.q = q.device, args.block = block.device, args.slot = slot.device;
        args.count = count.device, args.mask = mask.device, args.row_seq = row_seq.device;
        args.row_pos = row_pos.device, args.row_selector = row_selector.device;
        args.selectors = selectors.device, args.pool = pool, args.out = out.device;
        args.summary.u = u.device, args.summary.seqs = g.rows, args.summary.kv_heads = g.kv_heads;
        args.summary.head_dim = g.dim, args.summary.max_tokens = tokens;
        args.row_stride = (uint64_t)g.heads * g.dim;
        args.rows = g.rows, args.heads = g.heads, args.max_select = g.entries;
        args.block_bytes = block_bytes;
        bytes =
            (double)lists * g.entries * (block_bytes + 2.0 * KERN_BLOCK) + 2.0 * (double)q.bytes();
        layer_bytes = layer;
    }
    ~attend_bench() { (void)cudaFree(pool); }
    void run(bench &k, int call)
    {
        kern_attend_args a = args;
        a.pool = pool + (uint64_t)(call % calls) * layer_bytes;
        expect_ok(kern_attend(k.b.gpu, &a), "attend");
    }
    uint64_t layer_bytes = 0;
};

void bench_attend(bench &k)
{
    const geometry sparse[] = {
        {32, 32, 2, 128, 64, 80, "8B B=32 M=64"},
        {64, 32, 2, 128, 64, 80, "8B B=64 M=64"},
        {128, 32, 2, 128, 64, 80, "8B B=128 M=64"},
        {32, 32, 8, 128, 64, 80, "Hk=8 G=4 B=32 M=64"},
        {32, 16, 4, 64, 64, 80, "D=64 G=4 Hk=4 B=32"},
        {256, 8, 2, 64, 24, 32, "D=64 G=4 Hk=2 B=256 M=24"},
        {45, 32, 2, 128, 64, 80, "8B B=45 M=64"},
    };
    for (const geometry &g : sparse) {
        if (!wanted(k, "attend_sparse")) break;
        attend_bench a(k, g);
        report(k, {"attend_sparse", g.name, "GB/s", a.bytes, k.read_ceiling},
               time_calls(k, std::max(a.calls, 8), [&](int i) { a.run(k, i); }));
    }
    for (uint32_t rows :
         {16u, 45u}) { /* with a seventh of the groups late: whole, then each call */
        if (!wanted(k, "attend_late")) break;
        attend_bench a(k, {rows, 32, 2, 128, 64, 80, ""});
        mirror<uint8_t> late((size_t)rows * 2);
        uint32_t lates = 0;
        for (uint8_t &bits : late.host)
            for (uint32_t g = 0; g < 8; g++)
                if (k.r.below(7) == 0) bits |= (uint8_t)(1u << g), lates++;
        late.up();
        a.args.late = late.device;
        const double share = (double)lates / (rows * 2 * 8);
        const struct {
            const char *name;
            kern_attend_part part;
            double share;
        } parts[] = {{"whole", ATTEND_WHOLE, 1.0},
                     {"present", ATTEND_PRESENT, 1.0 - share},
                     {"late", ATTEND_LATE, share}};
        for (const auto &p : parts) {
            a.args.part = p.part;
            report(k,
                   {"attend_late", "8B B=" + std::to_string(rows) + " M=64 " + p.name, "us", 0.0,
                    p.share * a.bytes / k.read_ceiling * 1e-3},
                   time_calls(k, std::max(a.calls, 8), [&](int i) { a.run(k, i); }));
        }
    }
    for (uint32_t m : {8u, 16u, 32u, 64u}) { /* what a launch costs beside its bytes */
        if (k.only != "attend_probe") break;
        attend_bench a(k, {32, 32, 2, 128, m, 80, ""});
        report(k,
               {"attend_probe", "8B B=32 M=" + std::to_string(m), "us", 0.0,
                a.bytes / k.read_ceiling * 1e-3},
               time_calls(k, std::max(a.calls, 8), [&](int i) { a.run(k, i); }));
    }
    const geometry dense[] = {
        {1, 32, 8, 128, 2048, 2048, "Hk=8 128K B=1"},
        {4, 32, 2, 128, 2048, 2048, "Hk=2 128K B=4"},
        {16, 32, 2, 128, 2048, 2048, "Hk=2 128K B=16"},
        {16, 32, 2, 128, 512, 512, "Hk=2 32K B=16"},
        {64, 32, 2, 128, 256, 256, "Hk=2 16K B=64"},
        {16, 32, 8, 128, 512, 512, "Hk=8 32K B=16"},
    };
    for (const geometry &g : dense) {
        if (!wanted(k, "attend_dense")) break;
        attend_bench a(k, g);
        row w = {"attend_dense", g.name, "GB/s", a.bytes, k.read_ceiling};
        if (k.peer.count(g.name)) {
            w.peer = "PyTorch SDPA";
            w.peer_value = a.bytes / k.peer[g.name] * 1e-3;
        }
        report(k, w, time_calls(k, std::max(a.calls, 4), [&](int i) { a.run(k, i); }));
    }
}

/* ---- score, selection ------------------------------------------------------------------------ */

void bench_score(bench &k)
{
    const struct {
        uint32_t rows, heads, kv_heads, dim, tokens;
        const char *name;
    } cases[] = {
        {32, 32, 2, 128, 16384, "8B B=32 16K"},   {64, 32, 2, 128, 16384, "8B B=64 16K"},
        {32, 32, 2, 128, 65536, "8B B=32 64K"},   {32, 32, 2, 128, 131072, "8B B=32 128K"},
        {64, 32, 2, 128, 131072, "8B B=64 128K"}, {64, 8, 2, 64, 16384, "D=64 G=4 B=64 16K"}};
    for (const auto &c : cases) {
        if (!wanted(k, "score")) break;
        const uint32_t windows = c.tokens / 16;
        const uint64_t keys = (uint64_t)c.rows * c.kv_heads * windows * c.dim;
        int calls = 1;
        while ((uint64_t)calls * keys * 2 < (1ull << 30))
            calls++;
        uint8_t *kc = random_bytes(k, keys * 2 * (uint64_t)calls);
        mirror<float> q((size_t)c.rows * c.heads * c.dim),
            out((size_t)c.rows * c.kv_heads * windows);
        mirror<int32_t> seq(c.rows), pos(c.rows), which(c.rows);
        mirror<kern_selector> selectors(KERN_SELECTORS_MAX);
        fill_normal(k.r, q.host, 1.0f);
        for (uint32_t i = 0; i < c.rows; i++)
            seq.host[i] = (int32_t)i, pos.host[i] = (int32_t)c.tokens - 1;
        selectors.host[0] = nosa_selector();
        q.up(), seq.up(), pos.up(), which.up(), selectors.up();
        kern_score_args a = {};
        a.q = q.device, a.row_seq = seq.device, a.row_pos = pos.device,
        a.row_selector = which.device;
        a.selectors = selectors.device, a.out = out.device;
        a.summary.seqs = c.rows, a.summary.kv_heads = c.kv_heads, a.summary.head_dim = c.dim;
        a.summary.max_windows = windows, a.summary.max_tokens = c.tokens;
        a.summary.window = 32, a.summary.stride = 16;
        a.row_stride = (uint64_t)c.heads * c.dim, a.rows = c.rows, a.heads = c.heads;
        const double bytes = (double)keys * 2 + (double)out.bytes() + (double)q.bytes();
        report(k, {"score", c.name, "GB/s", bytes, k.read_ceiling},
               time_calls(k, std::max(calls, 8), [&](int i) {
                   kern_score_args one = a;
                   one.summary.kc = (uint16_t *)kc + (uint64_t)(i % calls) * keys;
                   expect_ok(kern_score(k.b.gpu, &one), "score");
               }));
        CUDA(cudaFree(kc));
    }
}

/* pool, select and plan of one layer in the steady state: nothing misses, as most lists do. */
void bench_select(bench &k, uint32_t rows, uint32_t tokens, const char *name)
{
    if (!wanted(k, "select")) return;
    scene s;
    make_scene(s, k.r, rows, 4, 2, 64, tokens);
    for (int32_t &pos : s.row_pos.host)
        pos = (int32_t)tokens - 2;
    s.row_pos.up();
    const uint32_t n = tokens / 64, m = 64, entries = 80;
    const size_t lists = (size_t)rows * 2;
    mirror<float> scores(lists * s.windows), query(lists * n), importance(lists * n);
    mirror<int32_t> block(lists * m), count(lists), settled(lists), slot(lists * m), status(rows);
    mirror<int32_t> entry_of(lists * (n + 1)), block_of(lists * entries),
        slot_of(block_of.host.size());
    mirror<int32_t> own(rows);
    mirror<uint8_t> mask(lists * m);
    mirror<uint32_t> hits(rows), misses(rows), used(block_of.host.size());
    for (float &v : scores.host)
        v = k.r.unit();
    std::fill(entry_of.host.begin(), entry_of.host.end(), -1);
    std::fill(block_of.host.begin(), block_of.host.end(), -1);
    std::fill(own.host.begin(), own.host.end(), (int32_t)entries);
    scores.up(), entry_of.up(), block_of.up(), slot_of.up(), own.up(), status.up(), hits.up();
    misses.up(), used.up();
    shared_exchange exchange((uint32_t)lists * m);
    kern_pool_args p = {scores.device,
                        s.row_seq.device,
                        s.row_pos.device,
                        s.row_selector.device,
                        s.selectors.device,
                        s.view(true),
                        query.device,
                        importance.device,
                        rows,
                        n};
    kern_select_args c = {};
    c.query = query.device, c.importance = importance.device, c.row_pos = s.row_pos.device;
    c.row_selector = s.row_selector.device, c.selectors = s.selectors.device,
    c.block = block.device;
    c.mask = mask.device, c.count = count.device, c.settled = settled.device;
    c.rows = rows, c.kv_heads = 2, c.max_select_blocks = n, c.max_select = m;
    kern_plan_args a = {};
    a.block = block.device, a.count = count.device, a.settled = settled.device;
    a.importance = importance.device, a.row_seq = s.row_seq.device, a.row_pos = s.row_pos.device;
    a.table.entry_of = entry_of.device, a.table.block_of = block_of.device;
    a.table.slot_of = slot_of.device, a.table.used_step = used.device, a.table.entries = own.device;
    a.table.seqs = rows, a.table.kv_heads = 2, a.table.max_blocks = n + 1;
    a.table.max_entries = entries;
    a.slot = slot.device, a.exchange = exchange.x, a.row_status = status.device;
    a.row_hits = hits.device, a.row_misses = misses.device;
    a.rows = rows, a.max_select = m, a.max_select_blocks = n, a.select_block = 64, a.step = 1;
    const struct {
        const char *part;
        std::function<void()> run;
    } parts[] = {
        {"pool", [&] { expect_ok(kern_pool(k.b.gpu, &p), "pool"); }},
        {"select", [&] { expect_ok(kern_select(k.b.gpu, &c), "select"); }},
        {"plan", [&] { expect_ok(kern_plan(k.b.gpu, &a), "plan"); }},
        {"pool + select + plan",
         [&] {
             const kern_pick_args both = {p, c};
             expect_ok(kern_pick(k.b.gpu, &both), "pick");
             expect_ok(kern_plan(k.b.gpu, &a), "plan");
         }},
    };
    for (const auto &part : parts)
        report(k, {"select", std::string(name) + " " + part.part, "us", 0.0, 0.0},
               time_calls(k, 20, [&](int) { part.run(); }));
}

/* ---- blocks from the host -------------------------------------------------------------------- */

struct gather_bench {
    uint32_t blocks, bytes;
    uint8_t *source = nullptr;
    mirror<uint8_t> pool;
    mirror<int32_t> map, entries, status;
    shared_exchange exchange;

    gather_bench(bench &k, uint32_t count, uint32_t block_bytes)
        : blocks(count), bytes(block_bytes), pool((size_t)count * block_bytes), exchange(count)
    {
        const size_t all = (size_t)blocks * bytes;
        CUDA(cudaHostAlloc((void **)&source, all, cudaHostAllocMapped));
        uint8_t *values = random_bytes(k, all);
        CUDA(cudaStreamSynchronize(k.stream));
        CUDA(cudaMemcpy(source, values, all, cudaMemcpyDeviceToHost));
        CUDA(cudaFree(values));
        map.resize(blocks), entries.resize(1), status.resize(blocks);
        for (uint32_t i = 0; i < blocks; i++) {
            const uint32_t from = (uint32_t)(((uint64_t)i * 2654435761u) % blocks);
            kern_arrival *a = &exchange.x->arrival[i];
            map.host[i] = (int32_t)i;
            exchange.x->miss[i] = {(int32_t)i, 0, 0, (int32_t)i, (int32_t)i, (int32_t)i, 0, i};
            a->source = source + (size_t)from * bytes;
            a->seed = k.r.next();
            a->digest = bytes_digest(a->source, bytes, a->seed);
            a->state = STATUS_OK;
        }
        *(int32_t *)&exchange.x->published = (int32_t)blocks;
        map.up(), entries.up(), status.up();
    }
    ~gather_bench() { (void)cudaFreeHost(source); }
    /* Only the first `count` of the list, as a layer's misses are. */
    void publish(uint32_t count) { exchange.take_own(count, 0); }
    void run(bench &k, bool verify, bool ahead = false)
    {
        kern_gather_args g = {};
        g.exchange = exchange.x;
        g.table.entry_of = g.table.block_of = g.table.slot_of = map.device;
        g.table.seqs = g.table.kv_heads = 1, g.table.max_blocks = g.table.max_entries = blocks;
        g.pool = pool.device, g.row_status = status.device;
        g.block_bytes = bytes, g.verify = verify, g.ahead = ahead;
        expect_ok(kern_gather(k.b.gpu, &g), "gather");
    }
};

void bench_gather(bench &k, uint32_t bytes, const char *name)
{
    if (!wanted(k, "gather_host")) return;
    gather_bench g(k, (512u << 20) / bytes, bytes);
    const double all = (double)g.blocks * bytes;
    std::vector<double> best;
    for (uint32_t ctas : {8u, 16u, 32u, 64u}) {
        const std::vector<double> us = time_calls(k, 1, [&](int) {
            copy_kernel<<<ctas, 512, 0, k.stream>>>(g.source, g.pool.device, g.blocks, bytes);
        });
        if (best.empty() || sorted(us)[RUNS / 2] < sorted(best)[RUNS / 2]) best = us;
    }
    k.gather_ceiling = all / sorted(best)[RUNS / 2] * 1e-3;
    report(k, {"gather_ceiling", name, "GB/s", all, 0.0}, best);
    report(k, {"gather_host", std::string(name) + " no digest", "GB/s", all, k.gather_ceiling},
           time_calls(k, 1, [&](int) { g.run(k, false); }));
    report(k, {"gather_host", std::string(name) + " digest", "GB/s", all, k.gather_ceiling},
           time_calls(k, 1, [&](int) { g.run(k, true); }));
    report(k, {"gather_host", std::string(name) + " digest, ahead", "GB/s", all, k.gather_ceiling},
           time_calls(k, 1, [&](int) { g.run(k, true, true); }));
    for (uint32_t count : {1u, 16u, 40u, 120u, 400u}) {
        g.publish(count);
        report(k,
               {"gather_host", std::string(name) + ", a list of " + std::to_string(count), "us",
                0.0, 0.0},
               time_calls(k, 20, [&](int) { g.run(k, true); }));
    }
    const std::vector<int32_t> status = g.status.down();
    NEED(std::all_of(status.begin(), status.end(), [](int32_t s) { return s == STATUS_OK; }),
         "a digest did not match");
}

/* Attention while a gather runs beside it on another stream, against attention alone; as one that
 * waits for what that gather brings, which is nothing here. */
void bench_together(bench &k)
{
    if (!wanted(k, "gather_host")) return;
    gather_bench g(k, 16384, 32768);
    attend_bench a(k, {64, 32, 2, 128, 64, 80, ""});
    mirror<uint32_t> coming(a.block.host.size());
    kern_exchange nothing = {};
    coming.up();
    nothing.coming = coming.device;
    a.args.after = &nothing;
    kern_stream *other = nullptr;
    expect_ok(kern_stream_create(k.b.gpu_backend, &other), "stream");
    kern_stream *const own = k.b.gpu;
    auto timed = [&](bool beside, bool ahead) {
        std::vector<double> us;
        cudaEvent_t from, to;
        CUDA(cudaEventCreate(&from));
        CUDA(cudaEventCreate(&to));
        for (int run = 0; run < RUNS; run++) {
            if (beside) {
                k.b.gpu = other;
                g.run(k, true, ahead); /* 512 MiB: about 10.5 ms, longer than what is timed */
                k.b.gpu = own;
            }
            a.run(k, 0);
            CUDA(cudaEventRecord(from, k.stream));
            for (int i = 0; i < 40; i++)
                a.run(k, i);
            CUDA(cudaEventRecord(to, k.stream));
            CUDA(cudaDeviceSynchronize());
            float ms = 0.0f;
            CUDA(cudaEventElapsedTime(&ms, from, to));
            us.push_back((double)ms * 1e3 / 40);
        }
        CUDA(cudaEventDestroy(from));
        CUDA(cudaEventDestroy(to));
        return us;
    };
    const double speed = a.bytes / sorted(timed(false, false))[RUNS / 2] * 1e-3;
    report(k, {"gather_host", "attend B=64 beside a gather", "GB/s", a.bytes, speed},
           timed(true, false));
    report(k, {"gather_host", "attend B=64 beside a gather ahead", "GB/s", a.bytes, speed},
           timed(true, true));
    kern_stream_destroy(other);
}

void bench_digest(bench &k)
{
    if (!wanted(k, "digest")) return;
    const uint32_t blocks = 8192, bytes = 32768;
    uint8_t *pool = random_bytes(k, (uint64_t)blocks * bytes * 4);
    mirror<int32_t> slot(blocks);
    mirror<uint64_t> seed(blocks), digest(blocks);
    for (uint32_t i = 0; i < blocks; i++)
        slot.host[i] = (int32_t)i, seed.host[i] = k.r.next();
    slot.up(), seed.up();
    kern_seal_args s = {};
    s.slot = slot.device, s.seed = seed.device, s.digest = digest.device, s.n = blocks;
    s.block_bytes = bytes;
    report(k,
           {"digest", "XXH3 of 8192 blocks of 32 KiB in HBM", "GB/s", (double)blocks * bytes,
            k.read_ceiling},
           time_calls(k, 4, [&](int i) {
               s.pool = pool + (uint64_t)i * blocks * bytes;
               expect_ok(kern_seal(k.b.gpu, &s), "seal");
           }));
    CUDA(cudaFree(pool));
}

/* ---- matrix products ------------------------------------------------------------------------- */

#define BLAS(call) NEED((call) == CUBLAS_STATUS_SUCCESS, "cublasLt")

/* cublasLt's fastest of its 64 best-ranked algorithms, split K allowed, rounded activations given.
 */
double best_product(bench &k, const uint16_t *const *w, int copies, uint32_t n, uint32_t kk,
                    uint32_t rows)
{
    cublasLtHandle_t blas = cuda_device_of(k.b.gpu_backend)->blas;
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t lw, lx, lo;
    cublasLtMatmulPreference_t pref;
    const cublasOperation_t t = CUBLAS_OP_T;
    const uint64_t space = 32ull << 20;
    uint8_t *memory =
        random_bytes(k, space + (uint64_t)rows * kk * 2 + (uint64_t)rows * n * 4 + 512);
    uint16_t *x = (uint16_t *)(memory + space);
    float *out = (float *)(memory + space + ((uint64_t)rows * kk * 2 + 255) / 256 * 256);
    BLAS(cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS(cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t));
    BLAS(cublasLtMatrixLayoutCreate(&lw, CUDA_R_16BF, kk, n, kk));
    BLAS(cublasLtMatrixLayoutCreate(&lx, CUDA_R_16BF, kk, rows, kk));
    BLAS(cublasLtMatrixLayoutCreate(&lo, CUDA_R_32F, n, rows, n));
    BLAS(cublasLtMatmulPreferenceCreate(&pref));
    BLAS(cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                              &space, sizeof space));
    cublasLtMatmulHeuristicResult_t found[64];
    int count = 0;
    BLAS(cublasLtMatmulAlgoGetHeuristic(blas, d, lw, lx, lo, lo, pref, 64, found, &count));
    double best = 1e30;
    const float one = 1.0f, zero = 0.0f;
    for (int i = 0; i < count; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS) continue;
        const std::vector<double> us = time_calls(k, copies, [&](int c) {
            BLAS(cublasLtMatmul(blas, d, &one, w[c % copies], lw, x, lx, &zero, out, lo, out, lo,
                                &found[i].algo, memory, space, k.stream));
        });
        best = std::min(best, sorted(us)[RUNS / 2]);
    }
    cublasLtMatmulPreferenceDestroy(pref);
    cublasLtMatrixLayoutDestroy(lw), cublasLtMatrixLayoutDestroy(lx),
        cublasLtMatrixLayoutDestroy(lo);
    cublasLtMatmulDescDestroy(d);
    CUDA(cudaFree(memory));
    return best;
}

void bench_linear(bench &k)
{
    const struct {
        uint32_t n, k;
        const char *name;
    } shapes[] = {{4608, 4096, "qkv 4608x4096"},
                  {4096, 4096, "o 4096x4096"},
                  {32768, 4096, "gate|up 32768x4096"},
                  {4096, 16384, "down 4096x16384"},
                  {73448, 4096, "lm_head 73448x4096"}};
    for (const auto &s : shapes) {
        if (!wanted(k, "linear")) break;
        const uint64_t bytes = (uint64_t)s.n * s.k * 2;
        int copies = 2;
        while ((uint64_t)copies * bytes < (400ull << 20))
            copies++;
        std::vector<kern_weight *> weights((size_t)copies);
        std::vector<const uint16_t *> data((size_t)copies);
        for (int i = 0; i < copies; i++) {
            uint8_t *source = random_bytes(k, bytes);
            CUDA(cudaStreamSynchronize(k.stream));
            const kern_matrix part = {(const uint16_t *)source, s.n};
            const uint64_t began = clock_now(&clock_monotonic);
            expect_ok(kern_weight_pack(k.b.gpu_backend, &part, 1, s.k, &weights[(size_t)i]),
                      "pack");
            if (i == 0) /* which chooses the algorithms of all */
                report(k, {"linear", std::string(s.name) + " first pack", "us", 0.0, 0.0},
                       {(double)(clock_now(&clock_monotonic) - began) * 1e-3});
            data[(size_t)i] = weights[(size_t)i]->data;
            CUDA(cudaFree(source));
        }
        for (uint32_t rows : {1u, 16u, 45u, 64u, 256u, 2048u}) {
            if (rows > 64 && s.n > 65536) break;    /* logits are of few rows */
            mirror<uint16_t> x((size_t)rows * s.k); /* as the step has them, and cublasLt here */
            mirror<float> out((size_t)rows * s.n);
            fill_bf16(k.r, x.host, 1.0f);
            x.up();
            kern_linear_args a = {};
            a.x_bf16 = x.device, a.out = out.device;
            a.x_stride = s.k, a.out_stride = s.n;
            a.rows = rows, a.scale = 1.0f;
            const double best = best_product(k, data.data(), copies, s.n, s.k, rows);
            const double operations = 2.0 * s.n * s.k * rows;
            const std::vector<double> us = time_calls(k, copies, [&](int i) {
                kern_linear_args one = a;
                one.weight = weights[(size_t)(i % copies)];
                expect_ok(kern_linear(k.b.gpu, &one), "linear");
            });
            row w = {"linear", std::string(s.name) + " rows=" + std::to_string(rows), "us", 0.0,
                     rows > 256 ? 0.0 : (double)bytes / k.read_ceiling * 1e-3};
            w.peer = "cublasLt best of 64";
            w.peer_value = best;
            report(k, w, us);
            if (rows <= 256) continue; /* arithmetic, no longer the weights, takes the time */
            w.name += " rate", w.unit = "TFLOP/s", w.amount = operations;
            w.peer_value = operations / best * 1e-6;
            report(k, w, us);
        }
        for (kern_weight *w : weights)
            kern_weight_free(w);
    }
}

void read_peer(bench &k, const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) return;
    char line[200];
    while (fgets(line, sizeof line, f)) {
        char *tab = strchr(line, '\t');
        if (!tab) continue;
        *tab = '\0';
        k.peer[line] = atof(tab + 1);
    }
    (void)fclose(f);
}

} // namespace

int main(int count, char **words)
{
    bench k = {};
    k.r.state = 20261124;
    const char *out = nullptr;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(words[i], "--out") == 0) out = words[i + 1];
        if (strcmp(words[i], "--commit") == 0) k.commit = words[i + 1];
        if (strcmp(words[i], "--date") == 0) k.date = words[i + 1];
        if (strcmp(words[i], "--only") == 0) k.only = words[i + 1];
        if (strcmp(words[i], "--peer") == 0) read_peer(k, words[i + 1]);
    }
    if (!out) {
        fprintf(
            stderr,
            "usage: gpu_bench --out FILE [--commit C] [--date D] [--peer FILE] [--only BENCH]\n");
        return 2;
    }
    const kern_config gpu = {"cuda", 0, nullptr};
    if (kern_backend_open(&gpu, &k.b.gpu_backend) != STATUS_OK) {
        printf("skipped: no usable GPU\n");
        return 77;
    }
    expect_ok(kern_stream_create(k.b.gpu_backend, &k.b.gpu), "stream");
    k.stream = cuda_stream_of(k.b.gpu)->handle;
    cudaDeviceProp prop;
    CUDA(cudaGetDeviceProperties(&prop, 0));
    k.device = prop.name;
    k.out = fopen(out, "a");
    NEED(k.out != nullptr, "%s cannot be written", out);
    measure_read(k);
    bench_attend(k);
    bench_score(k);
    bench_select(k, 32, 16384, "B=32 16K");
    bench_select(k, 64, 131072, "B=64 128K");
    bench_gather(k, 32768, "32 KiB blocks");
    bench_gather(k, 16384, "16 KiB blocks");
    bench_together(k);
    bench_digest(k);
    bench_linear(k);
    bench_prefill(k);
    (void)fclose(k.out);
    return 0;
}
