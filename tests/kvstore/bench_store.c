/* Reads of random blocks from one node process over UCX on loopback, digests checked at both ends.
 * One line a case: blocks of 16, 32, 64 KiB; batches of 1, 8, 64; windows of 1 and 8 requests.
 *
 *     bench_store [seconds a case [2: only 32 KiB, 4: only 64 KiB]]
 *     beside it: ucx_perftest -t ucp_am_bw -s 32768 */
#include <signal.h>
#include <stdlib.h>

#include "tests/kvstore/process.h"

enum { BLOCKS = 1024, BATCH_MAX = 64, WINDOW_MAX = 8 };

static uint64_t now(void)
{
    return clock_now(&clock_monotonic);
}

typedef struct load {
    store *s;
    rng random;
    uint32_t batch;
    uint64_t digest[BLOCKS];
} load;

static uint64_t submit(load *l)
{
    block_id id[BATCH_MAX];
    uint64_t digest[BATCH_MAX];
    for (uint32_t i = 0; i < l->batch; i++) {
        uint32_t k = (uint32_t)rng_below(&l->random, BLOCKS);
        id[i] = store_id(l->s, 1, k);
        digest[i] = l->digest[k];
    }
    kv_get get = {id, digest, l->batch, KV_DEMAND, now() + UINT64_C(5000000000)};
    kv_ticket ticket;
    return kv_get_submit(l->s->client, &get, &ticket) == STATUS_OK;
}

static void run_case(load *l, uint32_t batch, uint32_t window, double seconds)
{
    static hist latency;
    hist_reset(&latency);
    l->batch = batch;
    kv_client_stats before, after;
    kv_client_stats_read(l->s->client, &before);
    uint64_t start = now(), end = start + (uint64_t)(seconds * 1e9), blocks = 0, last = start;
    uint32_t open = 0;
    while (now() < end || open > 0) {
        while (open < window && now() < end && submit(l))
            open++;
        kv_done done;
        if (!store_next(l->s, UINT64_C(1000000000), &done)) break;
        open--;
        for (uint32_t i = 0; i < done.count; i++) {
            blocks += done.slot[i] >= 0;
            if (done.slot[i] >= 0) kv_slot_release(l->s->client, done.slot[i]);
        }
        uint64_t t = now();
        hist_add(&latency, t - last);
        last = t;
    }
    double took = (double)(now() - start) / 1e9;
    kv_client_stats_read(l->s->client, &after);
    printf("block %2u KiB batch %2u window %u: %6.2f GB/s %7.0f blocks/s, request every %6.0f us "
           "(p99 %6.0f), hedged %llu, corrupt %llu\n",
           l->s->block_bytes / 1024, batch, window, (double)blocks * l->s->block_bytes / took / 1e9,
           (double)blocks / took, (double)hist_quantile(&latency, 0.5) / 1e3,
           (double)hist_quantile(&latency, 0.99) / 1e3,
           (unsigned long long)(after.hedged - before.hedged),
           (unsigned long long)(after.corrupt - before.corrupt));
    fflush(stdout);
}

static void run_size(uint32_t head_dim, uint32_t dtype_bytes, double seconds)
{
    static load l;
    static store s;
    node_process node;
    node_spawn(&node, "n0", NULL, NULL);
    store_open_layout(&s, &node, 1, 1, true, (block_layout){64, head_dim, dtype_bytes, 4, 2, 99});
    l.s = &s;
    rng_seed(&l.random, 1);
    uint8_t *bytes = malloc(s.block_bytes);
    CHECK(bytes != NULL);
    for (uint32_t k = 0; k < BLOCKS; k++) {
        block_id id = store_id(&s, 1, k);
        store_fill(&s, &id, bytes);
        l.digest[k] = block_digest(&id, bytes, s.block_bytes);
    }
    free(bytes);
    uint64_t start = now();
    uint32_t stored = store_put_all(&s, 1, BLOCKS);
    double took = (double)(now() - start) / 1e9;
    printf("block %2u KiB put: %u blocks, %.2f GB/s (with making them up)\n", s.block_bytes / 1024,
           stored, (double)stored * s.block_bytes / took / 1e9);
    static const uint32_t batches[] = {1, 8, 64}, windows[] = {1, 8};
    for (uint32_t w = 0; w < 2; w++)
        for (uint32_t b = 0; b < 3; b++) {
            if (batches[b] * windows[w] > s.slots) continue;
            run_case(&l, batches[b], windows[w], seconds);
        }
    store_close(&s);
    node_signal(&node, SIGTERM);
    (void)node_reap(&node);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? strtod(argv[1], NULL) : 1;
    if (argc > 2) {
        run_size(128, (uint32_t)strtoul(argv[2], NULL, 10), seconds);
        return 0;
    }
    run_size(64, 2, seconds);
    run_size(128, 2, seconds);
    run_size(128, 4, seconds);
    return 0;
}
