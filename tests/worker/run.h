/* tests/worker/run.h - an engine for tests: open it on a model, run requests, look at logits. */
#ifndef TESTS_WORKER_RUN_H
#define TESTS_WORKER_RUN_H

#include "worker/engine.h"

typedef struct run run;

typedef struct run_setup {
    const char *model_dir;
    selector_choice selector;
    uint32_t max_len, seqs, batched, threads;
    uint64_t pool_bytes, host_tier_bytes, prompt_stage_bytes;
    uint32_t park_quantum;         /* 0: 16 */
    const cluster_config *cluster; /* nodes and deadlines; NULL: no store */
    uint32_t guess;                /* percent */
    bool two_batch, no_verify, no_prefetch, no_overlap, no_late_merge;
    uint32_t hub_nodes, hub_replicas; /* > 0: nodes in this process on an in-process network */
    uint64_t hub_memory_bytes;        /* a node's; 0: 256 MiB */
    uint32_t hub_card_threads;        /* of its network card; 0: none */
    kv_faults hub_faults;
    kern_backend *(*wrap)(kern_backend *backend); /* NULL, or what the engine gets in its place */
} run_setup;

run *run_open(const run_setup *setup); /* fails the test when it cannot */
void run_close(run *r);
/* Whether the backend computes the setup's selector; it says why not. Host backends compute all. */
bool run_can(const run_setup *setup);
worker_engine *run_engine(run *r);
const kern_selector *run_selector(run *r);
void run_tap(run *r, void (*tap)(void *, uint64_t, uint32_t, const float *), void *self);
/* Teacher-forced: score[i] = log p(token i + 1). */
void run_score(run *r, const int32_t *tokens, uint32_t count, float *score);
/* One request to its end; digest: chained over tokens and logits. Returns the result. */
status run_decode(run *r, const int32_t *tokens, uint32_t count, uint32_t max_new,
                  uint64_t *out_digest, worker_event *out_final);
/* stepped: called after each step. */
status run_decode_stepped(run *r, const int32_t *tokens, uint32_t count, uint32_t max_new,
                          void (*stepped)(run *r), uint64_t *out_digest, worker_event *out_final);
void run_hub_kill(run *r, uint32_t node);    /* its memory is gone; nobody answers there */
void run_hub_restart(run *r, uint32_t node); /* it answers again, empty */
void *run_memory(size_t bytes);              /* freed at exit */

#endif
