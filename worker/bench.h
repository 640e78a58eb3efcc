/* worker/bench.h - private: the parts of `shoal-worker bench decode`.
 *
 *   bench.c          the verb: open, fill, run, close
 *   bench_args.c     its command line, and what makes no sense together
 *   bench_weights.c  a model made from a seed, whose greedy decoding is a random walk
 *   bench_walk.c     how fast that walk must go to see a given churn
 *   bench_fill.c     contexts that were never computed: distinct blocks, sealed and put as any
 *   bench_store.c    nodes of a store in this process, on threads of their own, and their faults
 *   bench_team.c     several workers at a time, a process each
 *   bench_report.c   spans of steps -> rows, table
 *
 * Threads: one, but for the nodes' (bench_store.c) and short-lived helpers (bench_parallel). */
#ifndef WORKER_BENCH_H
#define WORKER_BENCH_H

#include "worker/engine.h"
#include "worker/profile.h"
#include "worker/text.h"
#include "worker/trace.h"

enum {
    BENCH_CONTEXTS_MAX = 64,
    BENCH_RUNS_MAX = 32,
    BENCH_NODES_MAX = 8,
    BENCH_WORKERS_MAX = 16,
    BENCH_DEVICE_MAX = 16 /* "cuda:12" */
};

typedef enum bench_fault { FAULT_NONE, FAULT_KILL, FAULT_FLIP, FAULT_PAUSE } bench_fault;

typedef struct bench_options {
    const char *model, *cluster, *text;
    const char *selector, *budget, *lookahead, *device, *trace, *commit, *label, *fault_name;
    const char *batch_text, *contexts_text, *format, *log_level;
    char devices[BENCH_WORKERS_MAX][BENCH_DEVICE_MAX]; /* --device, a worker each */
    uint32_t workers;
    uint32_t context[BENCH_CONTEXTS_MAX], context_count; /* tokens; sequence i takes i % count */
    uint32_t batch;                                      /* 0: as many as the memory holds */
    uint32_t runs, steps, warm;                          /* steps: of one run */
    uint32_t nodes, replicas, threads, margin, quantum, guess;
    uint64_t device_pool, kv_memory, hbm, host_tier, seed;
    double churn; /* 0: not given, the walk that was measured */
    double rtt_us, gbit;
    bool resident, nosi_like, two_batch, no_prefetch, no_overlap, no_late_merge;
    bool profile, quiet, json, help;
    bool paced; /* --rtt-us or --gbit was given */
    bench_fault fault;
} bench_options;

/* INVALID: one sentence has been logged. argv[0] is the verb. */
status bench_options_parse(int argc, char **argv, bench_options *out_options);
void bench_help(FILE *to);

/* ---- helpers --------------------------------------------------------------------------------- */

/* task(context, 0 .. count - 1) on `threads` threads, this one included; returns when all is done.
 */
typedef void (*bench_task)(void *context, uint32_t index);
void bench_parallel(uint32_t threads, uint32_t count, bench_task task, void *context);

/* ---- the walk -------------------------------------------------------------------------------- */

/* What a head selects from, without the forced blocks: `hot` candidates that can win, in `dims`
 * directions of the query; `picks` by query, then `fill` of the others by importance. */
typedef struct walk_shape {
    uint32_t hot, dims, picks, fill, forced;
} walk_shape;

/* q(t) = sqrt(1 - jitter^2) s(t) + jitter w(t), s(t) = keep s(t - 1) + sqrt(1 - keep^2) w'(t). */
typedef struct walk {
    double keep, jitter;
    double misses; /* by walk_misses at exact fit; 0: not calibrated, a walk of the middle */
} walk;

enum {
    WALK_HOT = 234, /* candidates of a 16K context, where the churn to repeat was measured */
    WALK_EXACT = 63 /* slots beside the open block that fit NOSA's selection of 64 exactly */
};

walk_shape walk_shape_of(const kern_selector *s, uint32_t context, uint32_t dims);
/* Misses a step of one KV head whose pool has `slots` slots beside the open block's, victims by
 * recency: a simulation of blocks alone, mean over `steps` after as many to settle. */
double walk_misses(const walk_shape *shape, const walk *w, uint32_t slots, uint32_t steps,
                   uint64_t seed);
/* The walk of NOSA's measured curve (3.58, 1.20, 0.71 misses at 63, 80, 128 slots), made faster or
 * slower until an exact fit sees `churn`. INVALID: no walk of this shape can; says what it can. */
status walk_calibrate(const walk_shape *shape, double churn, walk *out_walk);
walk walk_faster(double factor); /* 1: the measured curve's */

/* ---- made weights ---------------------------------------------------------------------------- */

typedef struct bench_weights {
    model_config config; /* settled; untied */
    walk walk;
    uint64_t seed;
    uint32_t threads;
    uint32_t slow_pairs[CONFIG_ROPE_PAIRS_MAX], slow_count; /* pairs that RoPE hardly turns */
    float normal[4096]; /* quantiles of a unit normal, in random order */
    uint16_t *room; /* [BENCH_ROOMS, room_items] for matrices being packed; NULL: fresh memory */
    size_t room_items;
    uint32_t turn;
} bench_weights;

enum { BENCH_ROOMS = 3 }; /* as many as are packed together */

void bench_weights_start(bench_weights *w, const model_config *config, uint64_t seed,
                         uint32_t threads);
model_source bench_weights_source(bench_weights *w);
uint64_t bench_weights_room(const bench_weights *w); /* bytes of `room` that hold any matrix */
/* Greedy decoding of made weights answers `token` with this. */
int32_t bench_weights_next(const bench_weights *w, int32_t token);

/* ---- the store ------------------------------------------------------------------------------- */

typedef struct bench_store bench_store;
/* Writes the nodes into config->map. bytes: what all contexts need once. */
status bench_store_open(const bench_options *o, uint64_t bytes, cluster_config *config,
                        bench_store **out_store);
kv_hub *bench_store_hub(bench_store *s);
uint32_t bench_store_card(const bench_store *s); /* threads of the network card; 0: none */
void bench_store_pace(bench_store *s);           /* by the options, from now on */
void bench_store_fault(bench_store *s);
void bench_store_close(bench_store *s); /* NULL is fine */

/* ---- the bench ------------------------------------------------------------------------------- */

/* Counters over a stretch of steps. */
typedef struct bench_span {
    uint64_t ns, steps, rows, waited_ns, fetch_ns, step_ns;
    uint64_t hits, misses, host, remote, issued, used, late, wasted, voids, parks, recomputes;
    uint64_t stored, received, agnostic, agnostic_ahead;
    uint64_t failed_over, hedged, corrupt;
    uint64_t positions; /* sum over rows of the position */
} bench_span;

typedef struct bench_ceilings {
    double memory_gbs, link_gbs; /* device memory read; misses: host gather or simulated link */
    const char *link;            /* what link_gbs is of */
} bench_ceilings;

typedef struct bench_team bench_team;

typedef struct bench {
    bench_options options;
    bench_team *team; /* NULL: one worker, this process */
    arena *memory;
    cluster_config cluster;
    bool with_store, made;
    kern_backend *backend;
    bench_weights *weights; /* made */
    model *model;
    kern_selector selector;
    bench_store *store;
    worker_engine *engine;
    trace *trace;
    profile profile;      /* of all runs */
    profile *run_profile; /* [runs] with --profile */
    uint32_t batch, max_len, new_tokens;
    worker_stats *stats, *stats_before;
    bench_ceilings ceilings;
    walk walk;
    bench_span first, run[BENCH_RUNS_MAX];
    uint64_t open_ns; /* model, kernels, memory */
    uint64_t fill_bytes, fill_ns;
    uint64_t off_walk; /* tokens that did not follow the walk */
    uint64_t host_bytes;
    hist step_ns;
    double load;
    int32_t *last_token; /* [batch] by request id */
    status failed;       /* of a sequence */
} bench;

/* Contexts for all sequences, READY but held back. IO, NO_SPACE, CANCELED. */
status bench_fill(bench *b);
void bench_release(bench *b); /* lets them go */
/* --resident: every block into the pool. */
status bench_bring_all(bench *b);
status bench_warm(bench *b);
status bench_measure(bench *b, uint32_t run, bench_span *out_span);

/* ---- several workers ------------------------------------------------------------------------- */

/* What a worker tells the others, complete when bench_team_run returns. */
typedef struct bench_member {
    bench_span alone[BENCH_RUNS_MAX]; /* of worker 0 */
    bench_span run[BENCH_RUNS_MAX];
    uint64_t begun_ns[BENCH_RUNS_MAX]; /* of each run, on the clock that all share */
    uint64_t host_bytes, off_walk;
    uint32_t batch;
} bench_member;

/* Forks. Returns in the parent when all workers have ended, with *out_code to exit with and no
 * team; in worker i with its team, and options->device its own. */
status bench_team_start(arena *a, bench_options *options, bench_team **out_team, int *out_code);
uint32_t bench_team_index(const bench_team *t);
/* Runs of worker 0 alone, then of all at the same time. CANCELED: another one failed and said so.
 */
status bench_team_run(bench *b);
const bench_member *bench_team_members(const bench_team *t); /* [options.workers] */
void bench_team_close(bench_team *t);                        /* NULL is fine */

/* ---- report ---------------------------------------------------------------------------------- */

/* Bytes the steps of a span had to read: weights, KV, summaries. */
typedef struct bench_bound {
    double weights, kv, summaries; /* bytes a step */
    double memory_ms, link_ms, ms;
} bench_bound;
bench_bound bench_bound_of(const bench *b, const bench_span *span);
void bench_report(bench *b, FILE *to);

#endif
