/* Reads and writes of random blocks: one node of ours on loopback, over plain TCP and over UCX,
 * with digests checked at both ends, plain sockets, and Redis, each one client and one server
 * process, in turns.
 *
 *     bench_store SECONDS [REDIS_PORT REDIS_PID] [--only=OP,KIB,BATCH,WINDOW[,TARGET]]
 *
 * One JSON line a case, target and direction: GB/s and processor seconds per GiB (client and
 * server together) of each of RUNS runs. bench.py makes rows of them.
 *
 * A write of ours is of a block that is not there yet: the client computes its digest, the node
 * verifies it, and what was written is dropped between runs. It goes into memory that held blocks
 * before: the first touch of a page, which the kernel clears, is once in a node's life. Peers
 * overwrite theirs. */
#include "tests/bench/target.h"

#include "tests/kvstore/process.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

enum { RUNS = 5, TARGETS = 4 };

static uint64_t now(void)
{
    return clock_now(&clock_monotonic);
}

const uint8_t *target_source(uint32_t block_bytes, uint32_t block)
{
    static uint8_t *bytes;
    static const size_t all = (size_t)TARGET_BLOCKS * (64 << 10);
    if (bytes == NULL) {
        rng g;
        rng_seed(&g, 7);
        bytes = malloc(all);
        CHECK(bytes != NULL);
        for (size_t i = 0; i < all; i += 8) {
            uint64_t word = rng_next(&g);
            memcpy(bytes + i, &word, 8);
        }
    }
    return bytes + (size_t)block * block_bytes;
}

/* ---- our store ------------------------------------------------------------------------------- */

enum { READ_CONTEXT = 1, WARM_BYTES = 640 << 20 };

typedef struct ours {
    node_process node;
    store s;
    uint64_t digest[TARGET_BLOCKS];
    uint64_t context;        /* that writes go into */
    uint32_t written, acked; /* blocks of it; puts that ended and were not counted yet */
} ours;

static bool shoal_read(ours *o, const uint32_t *block, uint32_t count)
{
    block_id id[TARGET_BATCH_MAX];
    uint64_t digest[TARGET_BATCH_MAX];
    for (uint32_t i = 0; i < count; i++) {
        id[i] = store_id(&o->s, READ_CONTEXT, block[i]);
        digest[i] = o->digest[block[i]];
    }
    kv_get get = {id, digest, count, KV_DEMAND, now() + UINT64_C(5000000000), false};
    kv_ticket ticket;
    return kv_get_submit(o->s.client, &get, &ticket) == STATUS_OK;
}

static bool shoal_put(ours *o, uint32_t block)
{
    block_id id = store_id(&o->s, o->context, o->written);
    const uint8_t *bytes = target_source(o->s.block_bytes, block);
    kv_put put = {id, bytes, block_digest(&id, bytes, o->s.block_bytes), KV_WRITE_BACK,
                  now() + UINT64_C(5000000000)};
    kv_ticket ticket;
    kv_done done;
    for (status st; (st = kv_put_submit(o->s.client, &put, &ticket)) != STATUS_OK;) {
        if (st != STATUS_BUSY || !store_next(&o->s, UINT64_C(5000000000), &done)) return false;
        o->acked += done.result == STATUS_OK;
    }
    o->written++;
    return true;
}

static bool shoal_submit(target *t, bool write, const uint32_t *block, uint32_t count)
{
    ours *o = t->self;
    if (!write) return shoal_read(o, block, count);
    for (uint32_t i = 0; i < count; i++)
        if (!shoal_put(o, block[i])) return false;
    return true;
}

static uint32_t shoal_finish(target *t, bool write, uint32_t count)
{
    ours *o = t->self;
    kv_done done;
    uint32_t good = 0;
    if (!write) {
        if (!store_next(&o->s, UINT64_C(5000000000), &done)) return 0;
        for (uint32_t i = 0; i < done.count; i++) {
            if (done.slot[i] < 0) continue;
            kv_slot_release(o->s.client, done.slot[i]);
            good++;
        }
        return good;
    }
    for (; o->acked < count; o->acked += done.result == STATUS_OK)
        if (!store_next(&o->s, UINT64_C(5000000000), &done)) return o->acked;
    o->acked -= count;
    return count;
}

static void shoal_settle(target *t)
{
    ours *o = t->self;
    kv_ticket ticket;
    kv_done done;
    if (o->written == 0) return;
    context_id context = store_id(&o->s, o->context, 0).context;
    if (kv_drop_submit(o->s.client, context, now() + UINT64_C(5000000000), &ticket) == STATUS_OK)
        (void)store_next(&o->s, UINT64_C(5000000000), &done);
    o->context++;
    o->written = 0;
}

static void shoal_open(target *out, uint32_t block_bytes, bool tcp)
{
    static ours both[2];
    ours *o = &both[tcp];
    memset(o, 0, sizeof *o);
    node_spawn_sized(&o->node, "n0", "3GiB", tcp);
    uint32_t dtype_bytes = block_bytes / (128 * 64 * 2);
    store_open_layout(&o->s, &o->node, 1, 1, true, (block_layout){64, 128, dtype_bytes, 4, 2, 99});
    CHECK(o->s.block_bytes == block_bytes);
    uint8_t *bytes = malloc(block_bytes);
    CHECK(bytes != NULL);
    for (uint32_t k = 0; k < TARGET_BLOCKS; k++) {
        block_id id = store_id(&o->s, READ_CONTEXT, k);
        store_fill(&o->s, &id, bytes);
        o->digest[k] = block_digest(&id, bytes, block_bytes);
    }
    free(bytes);
    CHECK(store_put_all(&o->s, READ_CONTEXT, TARGET_BLOCKS) == TARGET_BLOCKS);
    o->context = READ_CONTEXT + 1;
    o->written = WARM_BYTES / block_bytes; /* a store that runs has used its memory before */
    CHECK(store_put_all(&o->s, o->context, o->written) == o->written);
    *out = (target){.name = tcp ? "shoal_tcp" : "shoal",
                    .block_bytes = block_bytes,
                    .server = o->node.pid,
                    .submit = shoal_submit,
                    .finish = shoal_finish,
                    .settle = shoal_settle,
                    .self = o};
    shoal_settle(out);
}

static void shoal_close(target *t)
{
    ours *o = t->self;
    store_close(&o->s);
    node_signal(&o->node, SIGTERM);
    (void)node_reap(&o->node);
}

/* ---- the loop -------------------------------------------------------------------------------- */

typedef struct load_case {
    bool write;
    uint32_t batch, window;
    double seconds;
    const char *target; /* empty: all */
} load_case;

typedef struct result {
    double gbs[RUNS], cpu[RUNS], server_cpu[RUNS], request_us[RUNS];
    uint64_t bad; /* blocks that did not come */
} result;

static double cpu_of(pid_t pid)
{
    clockid_t id = CLOCK_PROCESS_CPUTIME_ID;
    struct timespec t = {0};
    if (pid != 0) CHECK(clock_getcpuclockid(pid, &id) == 0);
    CHECK(clock_gettime(id, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run_once(target *t, const load_case *c, rng *random, uint32_t run, result *out)
{
    double client = cpu_of(0), server = cpu_of(t->server);
    uint64_t start = now(), end = start + (uint64_t)(c->seconds * 1e9), good = 0, requests = 0;
    uint32_t open = 0, block[TARGET_BATCH_MAX];
    while (now() < end || open > 0) {
        while (open < c->window && now() < end) {
            for (uint32_t i = 0; i < c->batch; i++)
                block[i] = (uint32_t)rng_below(random, TARGET_BLOCKS);
            if (!t->submit(t, c->write, block, c->batch)) break;
            open++;
        }
        if (open == 0) break;
        t->landing = t->landings + (uint64_t)(requests % c->window) * c->batch * t->block_bytes;
        uint32_t came = t->finish(t, c->write, c->batch);
        good += came;
        out->bad += c->batch - came;
        requests++;
        open--;
    }
    double took = (double)(now() - start) * 1e-9, bytes = (double)good * t->block_bytes;
    out->gbs[run] = bytes / took / 1e9;
    double gib = good == 0 ? 1 : bytes / (1 << 30);
    out->server_cpu[run] = (cpu_of(t->server) - server) / gib;
    out->cpu[run] = out->server_cpu[run] + (cpu_of(0) - client) / gib;
    out->request_us[run] = requests == 0 ? 0 : took * 1e6 / (double)requests;
    if (t->settle != NULL) t->settle(t);
}

static void print_list(const char *name, const double *values)
{
    printf(",\"%s\":[", name);
    for (int i = 0; i < RUNS; i++)
        printf("%s%.5g", i > 0 ? "," : "", values[i]);
    printf("]");
}

static bool is_named(const char *name, const target *t)
{
    return name[0] == 0 || strcmp(name, t->name) == 0;
}

static void run_case(target *all, uint32_t count, const load_case *c, rng *random)
{
    static result results[TARGETS];
    memset(results, 0, sizeof results);
    double load = 0; /* of the machine: what runs beside us */
    (void)getloadavg(&load, 1);
    for (uint32_t run = 0; run < RUNS; run++)
        for (uint32_t i = 0; i < count; i++)
            if (is_named(c->target, &all[i])) run_once(&all[i], c, random, run, &results[i]);
    for (uint32_t i = 0; i < count; i++) {
        if (!is_named(c->target, &all[i])) continue;
        printf("{\"target\":\"%s\",\"op\":\"%s\",\"block\":%u,\"batch\":%u,\"window\":%u",
               all[i].name, c->write ? "write" : "read", all[i].block_bytes, c->batch, c->window);
        print_list("gbs", results[i].gbs);
        print_list("cpu", results[i].cpu);
        print_list("server_cpu", results[i].server_cpu);
        print_list("request_us", results[i].request_us);
        printf(",\"load\":%.2f,\"bad\":%llu}\n", load, (unsigned long long)results[i].bad);
    }
    fflush(stdout);
}

/* What to run: --only=read,32,8,1,shoal is one case, to look at with a profiler. */
typedef struct only {
    char op[8], target[16]; /* empty: all */
    uint32_t kib, batch, window;
} only;

static bool is_wanted(const only *o, const load_case *c)
{
    return o->op[0] == 0 || (strcmp(o->op, c->write ? "write" : "read") == 0 &&
                             o->batch == c->batch && o->window == c->window);
}

static void run_size(uint32_t block_bytes, double seconds, uint16_t port, pid_t redis,
                     const only *o)
{
    if (o->op[0] != 0 && o->kib << 10 != block_bytes) return;
    static const uint32_t batches[] = {1, 8, 64}, windows[] = {1, 8};
    static uint8_t landing[TARGET_WINDOW_MAX * TARGET_BATCH_MAX * (64 << 10)];
    target all[TARGETS];
    uint32_t count = 3;
    rng random;
    rng_seed(&random, 1);
    shoal_open(&all[0], block_bytes, false);
    sockets_open(&all[1], block_bytes);
    shoal_open(&all[2], block_bytes, true);
    bool with_redis = port != 0 && redis_open(&all[3], block_bytes, port, redis);
    count += with_redis;
    for (uint32_t i = 0; i < count; i++)
        all[i].landings = landing;
    for (int write = 0; write < 2; write++)
        for (uint32_t w = 0; w < 2; w++)
            for (uint32_t b = 0; b < 3; b++) {
                load_case c = {write != 0, batches[b], windows[w], seconds, o->target};
                if (is_wanted(o, &c)) run_case(all, count, &c, &random);
            }
    if (with_redis) redis_close(&all[3]);
    shoal_close(&all[2]);
    sockets_close(&all[1]);
    shoal_close(&all[0]);
}

int main(int argc, char **argv)
{
    only o = {.op = ""};
    if (argc > 1 &&
        sscanf(argv[argc - 1], "--only=%7[a-z],%" SCNu32 ",%" SCNu32 ",%" SCNu32 ",%15s", o.op,
               &o.kib, &o.batch, &o.window, o.target) >= 4)
        argc--;
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 0.1;
    uint16_t port = argc > 3 ? (uint16_t)strtoul(argv[2], NULL, 10) : 0;
    pid_t redis = argc > 3 ? (pid_t)strtol(argv[3], NULL, 10) : 0;
    run_size(32 << 10, seconds, port, redis, &o);
    run_size(64 << 10, seconds, port, redis, &o);
    return 0;
}
