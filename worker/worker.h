/* worker/worker.h - decode a batch of sequences whose KV cache does not fit the device.
 *
 * Flow: requests -> worker_submit -> [admit, prefill, decode, park, resume] -> events. One
 * worker_step is one step of the whole batch: a row for every decoding sequence, and a chunk of
 * one sequence's prompt while the token budget allows.
 *
 * Threads: an engine belongs to the thread that created it (the step thread). It owns one io
 * thread, which owns the store's client; they talk through rings.
 *
 * Memory: all of it is taken by worker_create, which prints its plan and refuses what cannot fit.
 *
 * Promise: a request's tokens and logits have the same bits whatever batch, chunking, tier,
 * replica or fault served it; or it ends with a status. Never a wrong token. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "kernels/kernels.h"
#include "kvstore/kvstore.h"
#include "worker/model.h"

typedef struct worker_engine worker_engine;

typedef struct worker_config {
    const model *model;            /* borrowed; its backend is the engine's */
    const cluster_config *cluster; /* limits, pool, tiers, deadlines; nodes if with_store */
    bool with_store;               /* false: all KV stays in this process' memory */
    kv_hub *hub; /* NULL: a real network and an io thread. Else the in-process network (tests,
                  * simulated links), polled by the step thread itself */
    kv_transport *transport;  /* NULL, or a network of the caller's in place of both; it is closed
                               * with the engine, and there is no io thread either */
    void (*pump)(void *self); /* with a hub: called when the engine polls, e.g. to poll servers */
    void *pump_self;
    bool hub_thread; /* with a hub: an io thread all the same, as with a real network; the other
                      * ends have threads of their own, and there is no pump */
    clock_ops clock;
    uint64_t seed;  /* request ids and jitter, never tokens */
    bool prefetch;  /* locality blocks a step ahead; on by default in the programs */
    uint32_t guess; /* so many candidates, percent of the query's picks, an early guess asks the
                     * store for; 0: none is made. With prefetch, of rows that select by their
                     * own query */
    float guess_left_out; /* of what is guessed the share that is not asked for: 0, but in
                           * benchmarks whose weights guess better than a trained model's */
    bool two_batch;       /* halves of the batch take turns in each layer: one's blocks come while
                           * the other computes. Weights are read twice a step. Where all rows
                           * select by their own query */
    bool overlap;         /* gathers run beside the layers, where the backend can */
    bool late_merge;      /* then attention begins with the blocks that are there */
    bool tiles;           /* prompts by the backend's tile kernels, where it has them: faster, in
                           * an order of its own (kern_attend_args.prefill). On in the programs */
    bool verify;          /* false only in the control that proves tests can fail */
    uint64_t hbm_bytes;   /* device memory for weights, workspaces, summaries and pool; 0: no limit.
                           * The driver's own is not counted */
    uint64_t prompt_stage_bytes; /* of that, for the blocks of the prompt being computed; a longer
                                  * prompt's stand in host memory. 0: all prompts' do */
    kern_selector widest;        /* the largest selector a request will bring: sizes buffers */
} worker_config;

/* cluster.device_pool_bytes: what hbm_bytes leaves, at most what all sequences can use. */
#define WORKER_POOL_REST UINT64_MAX
uint64_t worker_pool_bytes(const worker_engine *engine);
/* Prints the memory plan to `plan` when not NULL. NO_MEMORY names what is short and what would do.
 */
status worker_create(const worker_config *config, FILE *plan, worker_engine **out_engine);
/* Ends the io thread, sends DROP for every live context, frees everything. */
void worker_destroy(worker_engine *engine);

typedef struct worker_request {
    uint64_t id;            /* the caller's, unique among live requests */
    const int32_t *prompt;  /* [prompt_count], copied; each in [0, vocab) */
    uint32_t prompt_count;  /* >= 1 */
    uint32_t max_new;       /* 0 with score: prefill only */
    uint32_t step_count;    /* the prompt's last tokens that go one a step, as if they had
                             * been generated: 0 but to measure; < prompt_count */
    kern_selector selector; /* from model_selector */
    kern_sampling sampling;
    const int32_t *eos; /* [eos_count], copied (<= 8); ends the sequence; not an output */
    uint32_t eos_count; /* 0: ignore EOS */
    float *score;       /* NULL, or [prompt_count - 1]: natural log probability of prompt
                         * token i + 1; the caller's until FINISHED */
} worker_request;

/* Queue a request. INVALID (too long for the model, ids out of range, selector beyond `widest`) or
 * NO_MEMORY (can never fit the device pool: says how much it needs) refuse it; BUSY: queue full. */
status worker_submit(worker_engine *engine, const worker_request *request);
/* End a request early, e.g. at a stop string; its FINISHED event follows with reason CANCELED. */
void worker_cancel(worker_engine *engine, uint64_t id);

typedef enum worker_reason {
    REASON_LENGTH, /* max_new reached */
    REASON_EOS,
    REASON_CANCELED,
    REASON_FAILED, /* event.result says why */
} worker_reason;

/* Where blocks came from. A block is counted once for each step, layer and KV head that used it. */
typedef struct worker_blocks {
    uint64_t resident;   /* in the device pool when asked for */
    uint64_t host;       /* gathered from host memory: staging, parked or host tier */
    uint64_t remote;     /* fetched from the store on demand */
    uint64_t recomputed; /* made again from tokens because no replica could give them */
} worker_blocks;

typedef struct worker_event {
    uint64_t id;
    enum { WORKER_TOKEN, WORKER_FINISHED } kind;
    kern_sampled sampled;                  /* TOKEN */
    uint32_t index;                        /* TOKEN: 0-based index among new tokens */
    uint64_t logits_digest;                /* TOKEN: XXH3-64 of the float32 logits row */
    worker_reason reason;                  /* FINISHED */
    status result;                         /* FINISHED */
    worker_blocks blocks;                  /* FINISHED: of this request */
    uint32_t recomputes, void_rows, parks; /* FINISHED */
    uint64_t submitted_ns, first_token_ns, finished_ns; /* FINISHED; config.clock */
} worker_event;

/* One step: OK when something moved, PENDING when every sequence waits (the call then waited at
 * most a few ms itself), else a status that ends the engine: the device failed (GPU: a launch,
 * ECC), and every request's FINISHED event says FAILED with it. What was handed out before is
 * right. */
status worker_step(worker_engine *engine);
bool worker_idle(
    const worker_engine *engine); /* nothing queued, running or waiting for the store */
bool worker_next_event(worker_engine *engine, worker_event *out_event);

typedef struct worker_stats {
    uint64_t steps, decode_rows, prefill_rows, void_rows, recomputes, parks, resumes;
    uint64_t staged_rows; /* of prefill_rows, those of prompts that stood in device memory */
    worker_blocks blocks;
    uint64_t corrupt; /* blocks that came with other bytes than were sealed and were not attended
                       * to, found on the way into the pool; the client's own are client.corrupt */
    uint64_t agnostic_fetched; /* query-agnostic blocks a step needed that had left the pool */
    uint64_t agnostic_ahead; /* ... and that prefetch had brought back before they were asked for */
    struct {
        uint64_t issued, used, late, wasted;
        uint64_t refused; /* wanted ahead, and no room in the landing zone */
    } prefetch;           /* blocks; late: asked for before arrival */
    struct {
        uint64_t blocks, bytes;
        uint32_t replicas;
    } stored; /* acknowledged by R nodes */
    struct {
        uint64_t blocks, bytes;
    } served;                     /* by nodes, as the client counted: hedged ones twice */
    uint64_t fetch_ns;            /* sum over fetch batches of submit to completion */
    uint64_t waited_ns;           /* part of it that a step spent waiting */
    uint64_t step_ns;             /* time in steps with at least one decode row */
    uint64_t stall_ns_max;        /* longest single wait of a step */
    hist ttft_ns, itl_ns;         /* per request, per token */
    uint64_t misses_by_layer[64]; /* demand misses (pool), to compare with LRU models */
    kv_client_stats client;       /* zero without a store */
} worker_stats;
void worker_stats_read(worker_engine *engine, worker_stats *out_stats);

#endif
