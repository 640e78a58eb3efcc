/* kernels/probe_cpu.c - what the host's memory gives all compute threads together: the ceilings
 * that kern_probe reports for `ref` and `cpu`.
 *
 * Buffers are larger than any cache that a core's share of work could stay in; each rate is the
 * best of a few passes, since a ceiling is what nothing disturbed. */
#include "kernels/backend.h"

#include <string.h>

enum {
    PROBE_BYTES = 256 << 20,
    PROBE_PIECES = 64,
    PROBE_BLOCK = 32 << 10,
    PROBE_PASSES = 4,
    PROBE_BLOCKS = PROBE_BYTES / PROBE_BLOCK,
};

typedef uint64_t probe_word __attribute__((vector_size(64)));

typedef struct probe_job {
    const uint8_t *from;
    uint8_t *to;
    const uint32_t *order; /* [PROBE_BLOCKS] */
    uint64_t *sum;         /* [PROBE_PIECES] */
} probe_job;

static void read_piece(const void *context, uint32_t task, void *scratch)
{
    const probe_job *job = context;
    const probe_word *at =
        (const probe_word *)(job->from + (uint64_t)task * (PROBE_BYTES / PROBE_PIECES));
    probe_word sum[4] = {0};
    (void)scratch;
    for (uint64_t i = 0; i < PROBE_BYTES / PROBE_PIECES / sizeof(probe_word); i += 4) {
        for (uint32_t k = 0; k < 4; k++)
            sum[k] += at[i + k];
    }
    sum[0] += sum[1] + sum[2] + sum[3];
    job->sum[task] = sum[0][0] ^ sum[0][7];
}

static void copy_piece(const void *context, uint32_t task, void *scratch)
{
    const probe_job *job = context;
    const uint64_t bytes = PROBE_BYTES / PROBE_PIECES;
    (void)scratch;
    memcpy(job->to + task * bytes, job->from + task * bytes, bytes);
}

static void gather_piece(const void *context, uint32_t task, void *scratch)
{
    const probe_job *job = context;
    (void)scratch;
    for (uint32_t i = task; i < PROBE_BLOCKS; i += PROBE_PIECES)
        memcpy(job->to + (uint64_t)i * PROBE_BLOCK,
               job->from + (uint64_t)job->order[i] * PROBE_BLOCK, PROBE_BLOCK);
}

static double best_seconds(kern_team *team, kern_task task, const probe_job *job)
{
    double best = 1e9;
    for (uint32_t pass = 0; pass <= PROBE_PASSES; pass++) { /* the first warms up */
        const uint64_t from = clock_now(&clock_monotonic);
        kern_team_run(team, PROBE_PIECES, true, task, job);
        const double seconds = (double)(clock_now(&clock_monotonic) - from) * 1e-9;
        if (pass > 0 && seconds < best) best = seconds;
    }
    return best;
}

status kern_host_probe(kern_backend *backend, const char *what, double *out_value)
{
    static const struct {
        const char *name;
        kern_task task;
        double counted; /* times each byte counts */
    } probes[] = {{"read", read_piece, 1},
                  {"copy", copy_piece, 2},
                  {"gather", gather_piece, 2},
                  {"host_gather", gather_piece, 1}};
    for (size_t i = 0; i < sizeof probes / sizeof *probes; i++) {
        if (strcmp(probes[i].name, what) != 0) continue;
        arena *a = arena_create("probe");
        uint32_t *order = ARENA_NEW(a, uint32_t, PROBE_BLOCKS);
        probe_job *job = ARENA_NEW(a, probe_job, 1);
        rng r;
        rng_seed(&r, 1);
        for (uint32_t k = 0; k < PROBE_BLOCKS; k++) {
            const uint32_t other = (uint32_t)rng_below(&r, k + 1);
            order[k] = order[other];
            order[other] = k;
        }
        uint8_t *from = kern_memory_alloc(PROBE_BYTES), *to = kern_memory_alloc(PROBE_BYTES);
        *job = (probe_job){
            .from = from, .to = to, .order = order, .sum = ARENA_NEW(a, uint64_t, PROBE_PIECES)};
        status done = STATUS_OK;
        if (from == NULL || to == NULL)
            done = FAIL(NO_MEMORY, "no memory to measure memory with: two times 256 MiB");
        if (done == STATUS_OK)
            *out_value = probes[i].counted * PROBE_BYTES * 1e-9 /
                         best_seconds(backend->team, probes[i].task, job);
        kern_memory_free(from);
        kern_memory_free(to);
        arena_destroy(a);
        return done;
    }
    return STATUS_UNSUPPORTED;
}
