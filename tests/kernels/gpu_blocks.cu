/* tests/kernels/gpu_blocks.cu - blocks on the move: gather and install with their digest check,
 * seal; digests against proto's, which are xxHash's own. */
#include "tests/kernels/gpu_checks.cuh"

#include <thread>

namespace
{

struct block_scene {
    uint32_t n, bytes;
    uint8_t *source; /* pinned, n blocks */
    mirror<uint8_t> pool;
    mirror<int32_t> entry_of, block_of, slot_of, entries, status;
    mirror<uint32_t> used;
    shared_exchange exchange;

    /* One sequence, one head; block i belongs in entry i, slot n - 1 - i; all mapped, as after
     * plan. */
    block_scene(random_source &r, uint32_t count, uint32_t block_bytes)
        : n(count), bytes(block_bytes), exchange(count)
    {
        CUDA(cudaHostAlloc((void **)&source, (size_t)n * bytes, cudaHostAllocMapped));
        for (size_t i = 0; i < (size_t)n * bytes / 8; i++)
            ((uint64_t *)source)[i] = r.next();
        pool.resize((size_t)n * bytes);
        entry_of.resize(n), block_of.resize(n), slot_of.resize(n), used.resize(n);
        entries.resize(1), status.resize(n);
        entries.host[0] = (int32_t)n;
        for (uint32_t i = 0; i < n; i++) {
            entry_of.host[i] = block_of.host[i] = (int32_t)i;
            slot_of.host[i] = (int32_t)(n - 1 - i);
            kern_miss miss = {(int32_t)i, 0, 0, (int32_t)i, (int32_t)i, (int32_t)(n - 1 - i), 0, i};
            exchange.x->miss[i] = miss;
            kern_arrival *a = &exchange.x->arrival[i];
            a->source = source + (size_t)i * bytes;
            a->seed = i == 0 ? 0 : r.next();
            a->digest = bytes_digest(a->source, bytes, a->seed);
            a->state = STATUS_OK;
        }
        *(int32_t *)&exchange.x->published = (int32_t)n;
        entry_of.up(), block_of.up(), slot_of.up(), used.up(), entries.up(), status.up();
        pool.poison();
    }
    ~block_scene() { (void)cudaFreeHost(source); }
    kern_table table()
    {
        kern_table t = {};
        t.entry_of = entry_of.device, t.block_of = block_of.device, t.slot_of = slot_of.device;
        t.used_step = used.device, t.entries = entries.device;
        t.seqs = t.kv_heads = 1, t.max_blocks = t.max_entries = n;
        return t;
    }
    bool block_arrived(const std::vector<uint8_t> &now, uint32_t i, uint32_t slot) const
    {
        return memcmp(&now[(size_t)slot * bytes], source + (size_t)i * bytes, bytes) == 0;
    }
};

void gather(gpu_bench &b, block_scene &s, bool ahead)
{
    kern_gather_args g = {};
    g.exchange = s.exchange.x;
    g.table = s.table();
    g.pool = s.pool.device;
    g.row_status = s.status.device;
    g.block_bytes = s.bytes;
    g.ahead = ahead, g.verify = true;
    expect_ok(kern_gather(b.gpu, &g), "gather");
    b.sync();
}

void gather_case(gpu_bench &b, random_source &r, uint32_t count, uint32_t bytes)
{
    block_scene s(r, count, bytes);
    gather(b, s, false);
    const std::vector<uint8_t> pool = s.pool.down();
    bool all = s.status.down() == s.status.host && s.entry_of.down() == s.entry_of.host;
    for (uint32_t i = 0; i < count; i++)
        all &= s.block_arrived(pool, i, count - 1 - i);
    check_that(all, "gather: %u blocks of %u bytes pass their digest and are whole", count, bytes);

    /* One bit flipped at a random place of a third of them; a few failed before they came. */
    std::vector<int32_t> expected(count, STATUS_OK);
    for (uint32_t i = 0; i < count; i++) {
        if (i % 3 == 0) {
            s.source[(size_t)i * bytes + r.below(bytes)] ^= (uint8_t)(1u << r.below(8));
            expected[i] = STATUS_CORRUPT;
        } else if (i % 7 == 1) {
            s.exchange.x->arrival[i].state = expected[i] = STATUS_PEER_LOST;
        } else if (i % 7 == 2) {
            s.exchange.x->arrival[i].state = STATUS_PENDING;
            expected[i] = STATUS_DEADLINE;
        }
    }
    gather(b, s, true);
    bool unmapped = true;
    const std::vector<int32_t> entry_of = s.entry_of.down(), block_of = s.block_of.down();
    for (uint32_t i = 0; i < count; i++) {
        const bool good = expected[i] == STATUS_OK;
        unmapped &= (entry_of[i] == (good ? (int32_t)i : -1)) && (block_of[i] == entry_of[i]);
        unmapped &= s.exchange.x->arrival[i].state == expected[i];
    }
    check_that(s.status.down() == expected && unmapped,
               "gather: each of %u flipped, failed or late blocks is unmapped and its row void",
               count);
}

/* By the lists that a plan leaves on the device: some answered later. */
void gather_own_case(gpu_bench &b, random_source &r, uint32_t count, uint32_t bytes)
{
    block_scene s(r, count, bytes);
    kern_exchange *x = s.exchange.x;
    for (uint32_t i = 0; i < count; i += 5)
        x->arrival[i].state = STATUS_PENDING;
    s.exchange.take_own(count, (count + 4) / 5);
    for (uint32_t i = 0; i < count; i += 5)
        x->arrival[i].state = STATUS_OK;
    gather(b, s, true);
    const std::vector<uint8_t> pool = s.pool.down();
    bool all = s.status.down() == s.status.host && s.entry_of.down() == s.entry_of.host;
    for (uint32_t i = 0; i < count; i++)
        all &= s.block_arrived(pool, i, count - 1 - i);
    check_that(all, "gather: %u blocks by the device's own lists, some answered late", count);
}

/* Wait and gather as one: most arrive while it waits, some never, and its end is counted. */
void bring_case(gpu_bench &b, random_source &r, uint32_t count, uint32_t bytes)
{
    block_scene s(r, count, bytes);
    kern_exchange *x = s.exchange.x;
    kern_host host = {};
    host.notify = [](void *) {};
    host.clock = clock_monotonic;
    std::vector<int32_t> expected(count, STATUS_OK);
    for (uint32_t i = 0; i < count; i += 2)
        x->arrival[i].state = STATUS_PENDING;
    s.exchange.take_own(count, (count + 1) / 2);
    kern_bring_args a = {};
    a.wait.exchange = a.gather.exchange = x;
    a.wait.host = &host;
    a.wait.deadline_ns = clock_now(&clock_monotonic) + 300000000;
    a.gather.table = s.table(), a.gather.pool = s.pool.device;
    a.gather.row_status = s.status.device, a.gather.block_bytes = bytes, a.gather.verify = true;
    expect_ok(kern_bring(b.gpu, &a), "bring");
    for (uint32_t i = 0; i < count; i += 2) {
        const int32_t state = i % 10 == 0 ? STATUS_PENDING : i % 10 == 2 ? STATUS_PEER_LOST : 0;
        expected[i] = state == STATUS_PENDING ? STATUS_DEADLINE : state;
        __atomic_store_n((int32_t *)&x->arrival[i].state, state, __ATOMIC_RELEASE);
    }
    b.sync();
    const std::vector<uint8_t> pool = s.pool.down();
    bool right = s.status.down() == expected;
    for (uint32_t i = 0; i < count; i++)
        right &= expected[i] != STATUS_OK || s.block_arrived(pool, i, count - 1 - i);
    check_that(right && s.exchange.still_coming() == 0,
               "bring: %u blocks, some late, lost or never there; each of them is done with",
               count);
}

void install_case(gpu_bench &b, random_source &r, uint32_t bytes)
{
    block_scene s(r, 12, bytes);
    for (uint32_t i = 0; i < 12; i++) { /* 0-3 stay, 4-7 are old, 8-11 hold nothing */
        const bool held = i < 8;
        s.block_of.host[i] = s.entry_of.host[i] = held ? (int32_t)i : -1;
        s.used.host[i] = i < 4 ? 10 : i == 6 ? 1 : 2;
    }
    s.entries.host[0] = 10; /* two free entries, four old ones */
    s.block_of.up(), s.entry_of.up(), s.used.up(), s.entries.up();
    const int32_t wanted[5] = {8, 3, 9, 10, 11};
    for (uint32_t i = 0; i < 5; i++) {
        kern_miss miss = {-1, 0, 0, wanted[i], 0, 0, 0, 0};
        s.exchange.x->miss[i] = miss;
    }
    *(int32_t *)&s.exchange.x->published = 5;
    s.source[(size_t)3 * bytes + 5] ^= 4; /* the arrival of block 10 */
    kern_install_args a = {};
    a.exchange = s.exchange.x;
    a.table = s.table();
    a.pool = s.pool.device;
    mirror<uint32_t> keep(1);
    keep.host[0] = 10, keep.up();
    a.block_bytes = bytes, a.step = 11, a.keep_step = keep.device, a.verify = true;
    expect_ok(kern_install(b.gpu, &a), "install");
    b.sync();
    const kern_arrival *got = s.exchange.x->arrival;
    check_that(got[0].state == STATUS_OK && got[1].state == STATUS_STALE &&
                   got[2].state == STATUS_OK && got[3].state == STATUS_CORRUPT &&
                   got[4].state == STATUS_OK,
               "install: free entries, resident, free, corrupt, victim");
    const kern_miss *miss = s.exchange.x->miss;
    const std::vector<uint8_t> pool = s.pool.down();
    const std::vector<int32_t> entry_of = s.entry_of.down(); /* the corrupt one had taken entry 6 */
    check_that(miss[0].entry == 8 && miss[2].entry == 9 && miss[4].entry == 4 &&
                   miss[1].entry == -1 && s.block_arrived(pool, 0, 12 - 1 - 8) &&
                   s.block_arrived(pool, 4, 12 - 1 - 4) && entry_of[4] == -1 && entry_of[6] == -1 &&
                   entry_of[10] == -1 && entry_of[11] == 4,
               "install: the lowest free entry, then the least recently used");
}

void seal_case(gpu_bench &b, random_source &r, uint32_t count, uint32_t bytes)
{
    block_scene s(r, count, bytes);
    mirror<int32_t> slot(count);
    mirror<uint64_t> seed(count), digest(count);
    mirror<uint8_t *> copy(count);
    uint8_t *out = nullptr;
    CUDA(cudaHostAlloc((void **)&out, (size_t)count * bytes, cudaHostAllocMapped));
    CUDA(cudaMemcpy(s.pool.device, s.source, s.pool.bytes(), cudaMemcpyHostToDevice));
    bool right = true;
    for (uint32_t i = 0; i < count; i++) {
        slot.host[i] = (int32_t)((i * 5 + 2) % count);
        seed.host[i] = r.next();
        copy.host[i] = i % 4 == 3 ? nullptr : out + (size_t)i * bytes;
    }
    slot.up(), seed.up(), copy.up(), digest.poison();
    kern_seal_args a = {};
    a.pool = s.pool.device;
    a.slot = slot.device, a.seed = seed.device, a.copy = copy.device, a.digest = digest.device;
    a.n = count, a.block_bytes = bytes;
    expect_ok(kern_seal(b.gpu, &a), "seal");
    b.sync();
    const std::vector<uint64_t> got = digest.down();
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *block = s.source + (size_t)slot.host[i] * bytes;
        right &= got[i] == bytes_digest(block, bytes, seed.host[i]);
        if (copy.host[i]) right &= memcmp(copy.host[i], block, bytes) == 0;
    }
    check_that(right, "seal: %u digests of %u bytes are xxHash's, copies whole", count, bytes);
    (void)cudaFreeHost(out);
}

void digest_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t count)
{
    mirror<float> x((size_t)rows * count);
    mirror<uint64_t> digest(rows);
    for (float &v : x.host)
        v = (float)r.below(1 << 20) * 0.001f;
    x.up(), digest.poison();
    kern_digest_args a = {};
    a.x = x.device, a.digest = digest.device, a.rows = rows, a.count = count;
    expect_ok(kern_digest(b.gpu, &a), "digest");
    b.sync();
    const std::vector<uint64_t> got = digest.down();
    bool right = true;
    for (uint32_t i = 0; i < rows; i++)
        right &= got[i] == bytes_digest(x.host.data() + (size_t)i * count, count * 4, 0);
    check_that(right, "digest: %u rows of %u floats are xxHash's", rows, count);
}

void wait_case(gpu_bench &b, random_source &r)
{
    block_scene s(r, 9, 1024);
    for (uint32_t i = 0; i < 9; i++)
        s.exchange.x->arrival[i].state = STATUS_PENDING;
    *(int32_t *)&s.exchange.x->unanswered = 9;
    kern_host host = {};
    host.clock = clock_monotonic;
    host.notify = [](void *) {};
    kern_wait_args w = {};
    w.exchange = s.exchange.x;
    w.host = &host;
    w.deadline_ns = clock_now(&clock_monotonic) + 2000000000u;
    expect_ok(kern_wait(b.gpu, &w), "wait");
    std::thread answer([&s] {
        for (int i = 0; i < 9; i++)
            __atomic_store_n(&s.exchange.x->arrival[i].state, (int32_t)STATUS_OK, __ATOMIC_RELEASE);
    });
    gather(b, s, true);
    answer.join();
    check_that(s.status.down() == s.status.host, "wait: the stream goes on when all have arrived");

    s.exchange.x->arrival[4].state = STATUS_PENDING;
    const uint64_t start = clock_now(&clock_monotonic);
    w.deadline_ns = start + 20000000u;
    expect_ok(kern_wait(b.gpu, &w), "wait");
    b.sync();
    const double took_ms = (double)(clock_now(&clock_monotonic) - start) * 1e-6;
    check_that(
        s.exchange.x->arrival[4].state == STATUS_DEADLINE && took_ms >= 19.0 && took_ms < 200.0,
        "wait: what is pending at the deadline becomes DEADLINE (20 ms took %.1f ms)", took_ms);
}

} // namespace

/* What was copied before is there when the flag is seen, though the stream is not at rest. */
static void tell_case(gpu_bench &b, random_source &r)
{
    enum { COUNT = 1 << 18, TIMES = 50 };
    mirror<uint32_t> from(COUNT);
    uint32_t *to = nullptr;
    int32_t *flag = nullptr;
    bool same = true;
    expect_ok(kern_alloc_shared(b.gpu_backend, COUNT * sizeof *to, (void **)&to), "shared");
    expect_ok(kern_alloc_shared(b.gpu_backend, sizeof *flag, (void **)&flag), "shared");
    for (uint32_t t = 0; t < TIMES && same; t++) {
        for (uint32_t i = 0; i < COUNT; i++)
            from.host[i] = (uint32_t)r.next();
        from.up();
        *(volatile int32_t *)flag = 0;
        expect_ok(kern_copy(b.gpu, to, from.device, COUNT * sizeof *to), "copy");
        expect_ok(kern_stream_tell(b.gpu, flag), "tell");
        for (uint32_t more = 0; more < 100; more++)
            expect_ok(kern_fill(b.gpu, from.device, 0, COUNT * sizeof *to), "fill");
        while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) == 0) {
        }
        same = memcmp(to, from.host.data(), COUNT * sizeof *to) == 0;
        b.sync();
    }
    check_that(same, "tell: what lies before it is there");
    kern_free_shared(b.gpu_backend, to);
    kern_free_shared(b.gpu_backend, flag);
}

void check_blocks(gpu_bench &b, random_source &r, bool small)
{
    tell_case(b, r);
    gather_case(b, r, 21, 32768);
    gather_own_case(b, r, 23, 16384);
    bring_case(b, r, 37, 16384);
    install_case(b, r, 16384);
    seal_case(b, r, 9, 32768);
    if (small) return;
    gather_own_case(b, r, 700, 1024);
    for (uint32_t bytes : {1024u, 2048u, 8192u, 16384u, 17408u, 65536u}) {
        gather_case(b, r, 40, bytes);
        seal_case(b, r, 11, bytes);
    }
    for (uint32_t count : {61u, 64u, 255u, 256u, 257u, 272u, 1029u, 5003u, 32768u})
        digest_case(b, r, 3, count);
    wait_case(b, r);
}
