/* How long a layer's misses take: from the command to the io side until the last of them has its
 * answer, over the in-process network at a pace, where everybody who serves them spins.
 *
 *     bench_fetch [--rtt-us N] [--gbit N] [--nodes N] [--blocks N] [--kib N] [--count N]
 *                 [--commit ID]
 *
 * A line of shoal.bench/1: the median of the last answer in microseconds beside what the wire
 * takes, that of the first, tails, and how many threads wrote what came. The worker's own io side,
 * client and servers; random blocks of 1 to 2 GiB. */
#include "worker/bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "worker/io.h"

enum { LAYERS = 32, HEADS = 2, BLOCKS = 256, SEQS = 4, GROUPS = LAYERS + 1, CAPACITY = 512 };

typedef struct bench_args {
    double rtt_us, gbit;
    uint32_t nodes, blocks, kib, count;
    const char *commit;
} bench_args;

typedef struct fetch_bench {
    bench_args args;
    arena *memory;
    bench_options options;
    bench_store *store;
    model model;
    cluster_config cluster;
    worker_config worker;
    context_id context[SEQS];
    kern_home *home; /* [SEQS, LAYERS, HEADS, BLOCKS] */
    kern_exchange exchange[GROUPS];
    worker_io *io;
    rng random;
} fetch_bench;

static uint64_t now(void)
{
    return clock_now(&clock_monotonic);
}

static bool number(const char *s, double *out)
{
    char *end;
    *out = strtod(s, &end);
    return end != s && *end == 0 && *out >= 0 && *out < 1e9;
}

static bool parse(int argc, char **argv, bench_args *out)
{
    *out = (bench_args){.rtt_us = 50,
                        .gbit = 400,
                        .nodes = 2,
                        .blocks = 17,
                        .kib = 32,
                        .count = 2000,
                        .commit = "unknown"};
    for (int i = 1; i + 1 < argc; i += 2) {
        double value;
        if (strcmp(argv[i], "--commit") == 0) {
            out->commit = argv[i + 1];
            continue;
        }
        if (!number(argv[i + 1], &value)) return false;
        if (strcmp(argv[i], "--rtt-us") == 0)
            out->rtt_us = value;
        else if (strcmp(argv[i], "--gbit") == 0)
            out->gbit = value;
        else if (strcmp(argv[i], "--nodes") == 0)
            out->nodes = (uint32_t)value;
        else if (strcmp(argv[i], "--blocks") == 0)
            out->blocks = (uint32_t)value;
        else if (strcmp(argv[i], "--kib") == 0)
            out->kib = (uint32_t)value;
        else if (strcmp(argv[i], "--count") == 0)
            out->count = (uint32_t)value;
        else
            return false;
    }
    return argc % 2 == 1 && out->nodes > 0 && out->nodes <= BENCH_NODES_MAX && out->blocks > 0 &&
           out->blocks <= CAPACITY && out->count > 0 && (out->kib == 16 || out->kib == 32);
}

static status open_all(fetch_bench *b)
{
    const bench_args *a = &b->args;
    arena *m = b->memory;
    uint64_t block_bytes = (uint64_t)a->kib << 10;
    uint64_t all = (uint64_t)SEQS * LAYERS * HEADS * BLOCKS * block_bytes;
    cluster_config_default(&b->cluster);
    b->options = (bench_options){.device = "cuda",
                                 .nodes = a->nodes,
                                 .replicas = 1,
                                 .seed = 1,
                                 .rtt_us = a->rtt_us,
                                 .gbit = a->gbit};
    TRY(bench_store_open(&b->options, all, &b->cluster, &b->store));
    b->model.layout = (block_layout){.block_tokens = KERN_BLOCK,
                                     .head_dim = a->kib * 4,
                                     .dtype_bytes = 2,
                                     .layers = LAYERS,
                                     .kv_heads = HEADS,
                                     .model = 1};
    b->worker = (worker_config){.model = &b->model,
                                .cluster = &b->cluster,
                                .with_store = true,
                                .hub = bench_store_hub(b->store),
                                .hub_thread = true,
                                .clock = clock_monotonic,
                                .seed = 1};
    b->home = ARENA_NEW(m, kern_home, (size_t)SEQS * LAYERS * HEADS * BLOCKS);
    for (uint32_t g = 0; g < GROUPS; g++) {
        b->exchange[g].miss = ARENA_NEW(m, kern_miss, CAPACITY);
        b->exchange[g].arrival = ARENA_NEW(m, kern_arrival, CAPACITY);
        b->exchange[g].capacity = CAPACITY;
    }
    for (uint32_t s = 0; s < SEQS; s++)
        b->context[s] = (context_id){7, s + 1};
    io_config io = {.memory = m,
                    .worker = &b->worker,
                    .shared = {.context = b->context, .home = b->home},
                    .seqs = SEQS,
                    .layers = LAYERS,
                    .demands = LAYERS,
                    .kv_heads = HEADS,
                    .max_blocks = BLOCKS,
                    .block_bytes = (uint32_t)block_bytes,
                    .slots = 1024,
                    .groups = GROUPS,
                    .exchange = b->exchange};
    return io_create(&io, &b->io);
}

/* Every block into the store. */
static void fill(fetch_bench *b)
{
    io_command c = {.op = IO_SEALED};
    for (uint32_t i = 0; i < SEQS * LAYERS * HEADS * BLOCKS; i++) {
        c.block = (int32_t)(i % BLOCKS), c.kv_head = (int32_t)(i / BLOCKS % HEADS);
        c.layer = (int32_t)(i / BLOCKS / HEADS % LAYERS);
        c.seq = (int32_t)(i / BLOCKS / HEADS / LAYERS);
        while ((c.slot = io_slot_take(b->io)) < 0)
            io_pause(b->io, now() + 1000000);
        uint64_t *word = (uint64_t *)io_slot_bytes(b->io, c.slot);
        for (uint32_t k = 0; k < b->args.kib << 7; k++)
            word[k] = (uint64_t)i << 32 | k;
        block_id id = io_block_id(b->io, c.seq, c.layer, c.kv_head, c.block);
        b->home[i].seed = block_id_hash(&id);
        b->home[i].digest = block_digest(&id, word, (size_t)b->args.kib << 10);
        io_send(b->io, &c);
    }
    while (!io_quiet(b->io))
        io_pause(b->io, now() + 1000000);
}

static uint32_t answered(const kern_exchange *x, uint32_t count)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++)
        n += atomic_load_explicit(&x->arrival[i].state, memory_order_acquire) != STATUS_PENDING;
    return n;
}

static status fetch_one(fetch_bench *b, uint32_t layer, double *out_first_us, double *out_last_us)
{
    uint32_t count = b->args.blocks;
    kern_exchange *x = &b->exchange[layer];
    for (uint32_t i = 0; i < count; i++) {
        uint64_t at = rng_next(&b->random);
        x->miss[i] = (kern_miss){.row = -1,
                                 .seq = (int32_t)(at % SEQS),
                                 .kv_head = (int32_t)(at >> 8 & (HEADS - 1)),
                                 .block = (int32_t)((at >> 16 & (BLOCKS / 2 - 1)) * 2 + i % 2)};
        atomic_store(&x->arrival[i].state, STATUS_PENDING);
    }
    atomic_store(&x->published, count);
    io_command c = {.op = IO_FETCH, .group = (int32_t)layer, .class = KV_DEMAND};
    uint64_t begun = now(), first = 0;
    c.deadline_ns = begun + 1000000000;
    io_send(b->io, &c);
    for (uint32_t n = 0; n < count;) {
        n = answered(x, count);
        if (n > 0 && first == 0) first = now();
    }
    *out_last_us = (double)(now() - begun) * 1e-3;
    *out_first_us = (double)(first - begun) * 1e-3;
    for (uint32_t i = 0; i < count; i++)
        if (atomic_load(&x->arrival[i].state) != STATUS_OK)
            return FAIL(INTERNAL, "a block could not be had");
    io_send(b->io, &(io_command){.op = IO_GATHERED, .group = (int32_t)layer});
    return STATUS_OK;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status run(fetch_bench *b)
{
    const bench_args *a = &b->args;
    double *first = ARENA_NEW(b->memory, double, a->count);
    double *last = ARENA_NEW(b->memory, double, a->count);
    TRY(open_all(b));
    fill(b);
    bench_store_pace(b->store);
    for (uint32_t i = 0; i < a->count; i++)
        TRY(fetch_one(b, i % LAYERS, &first[i], &last[i]));
    qsort(first, a->count, sizeof *first, by_size);
    qsort(last, a->count, sizeof *last, by_size);
    double bits = a->blocks * a->kib * 8192.0, wire = a->gbit > 0 ? bits * 1e-3 / a->gbit : 0;
    printf(
        "{\"schema\":\"shoal.bench/1\",\"bench\":\"fetch\",\"case\":\"a layer's misses, %u blocks "
        "of %u KiB, %u simulated nodes, RTT %g us, %g Gb/s\",\"value\":%.1f,\"unit\":\"us\","
        "\"higher_is_better\":false,\"bound\":%.1f,\"simulated\":true,\"first_us\":%.1f,"
        "\"p90_us\":%.1f,\"p99_us\":%.1f,\"samples\":%u,\"card_threads\":%u,\"device\":\"%ld "
        "cores\",\"commit\":\"%s\"}\n",
        a->blocks, a->kib, a->nodes, a->rtt_us, a->gbit, last[a->count / 2], a->rtt_us + wire,
        first[a->count / 2], last[a->count * 9 / 10], last[a->count * 99 / 100], a->count,
        bench_store_card(b->store), sysconf(_SC_NPROCESSORS_ONLN), a->commit);
    return STATUS_OK;
}

int main(int argc, char **argv)
{
    static fetch_bench all;
    fetch_bench *b = &all;
    if (!parse(argc, argv, &b->args)) {
        fprintf(stderr, "usage: bench_fetch [--rtt-us N] [--gbit N] [--nodes N] [--blocks N] "
                        "[--kib 16|32] [--count N] [--commit ID]\n");
        return 2;
    }
    b->memory = arena_create("fetch");
    rng_seed(&b->random, 3);
    status result = run(b);
    if (b->io != NULL) io_destroy(b->io);
    bench_store_close(b->store);
    arena_destroy(b->memory);
    return result == STATUS_OK ? 0 : 1;
}
