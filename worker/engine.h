/* worker/engine.h - private: what an engine keeps. Letters as in kernels.h: S sequence slots, L
 * layers, Hk KV heads, B blocks, E entries, M selected blocks, N selection blocks, R rows.
 *
 * engine.c   creation, events                 request.c what is refused, the queue
 * sched.c    admit, park, resume, recompute   step.c    the step
 * select.c   score .. plan of rows            prefill.c a prompt's rows in a layer
 * ahead.c    lookahead `step`                 fetch.c   misses, prefetch, accounting
 * guess.c    the next layer's picks, guessed  branch.c  attention's branches and gates */
#ifndef WORKER_ENGINE_H
#define WORKER_ENGINE_H

#include "worker/io.h"
#include "worker/worker.h"

enum {
    ENGINE_QUEUE = 16, /* requests waiting for a sequence slot, each with room for a prompt */
    ENGINE_PREFILL_TILE = 256, /* prompt rows that are scored and attended at once */
    ENGINE_LOGIT_ROWS = 64,
    ENGINE_VOID_MAX = 8, /* times a position is tried before its blocks count as lost */
    ENGINE_RECOMPUTE_MAX = 3,
    ENGINE_DOUBT_STEPS = 64, /* after a corrupt block the client compares digests so long */
    ENGINE_ROW_LISTS = 8,    /* of row_lists */
    ENGINE_MEMORY_MAX = 128,
    ENGINE_WARM_EACH = 64, /* products are tried with each number of rows up to it, then with */
    ENGINE_WARM_STEP = 64, /* every so many, before the first step (step_warm) */
    ENGINE_GUESS_KEEP = 16,
    ENGINE_GUESS_GROUPS = 145,      /* a layer, at most */
    ENGINE_NOT_PLANNED = INT32_MAX, /* kern_exchange.published of a layer whose plan has not run */
    ENGINE_LAUNCHES_AHEAD = 700,    /* ops given to the stream beyond the last plan that was seen */
};

typedef enum seq_state {
    SEQ_FREE,
    SEQ_PREFILL,  /* its prompt is being computed (also again, after a loss) */
    SEQ_READY,    /* parked: blocks in the store or in host memory, no pool */
    SEQ_RESUMING, /* has pool entries, waits for its first blocks */
    SEQ_ACTIVE,   /* a row in every step */
    SEQ_CLOSING,  /* finished; the io side still forgets it */
} seq_state;

typedef struct sequence {
    seq_state state;
    worker_request request; /* prompt and eos point nowhere: see token, eos */
    int32_t *token;         /* [max_model_len] prompt, then generated */
    int32_t eos[8];
    uint32_t count;         /* tokens known */
    uint32_t prefill_count; /* of them by prefill: the prompt but its step_count */
    uint32_t done;          /* positions whose K and V exist: [0, done) */
    uint32_t sampled;       /* new tokens made so far */
    uint32_t blocks_max;    /* of the longest this sequence can get */
    int32_t selector;       /* index in engine.selectors */
    int32_t entries;        /* pool entries a (layer, KV head) while active */
    int32_t *pool_slot;     /* [L * Hk * entries] taken while active */
    int32_t *tail_slot;     /* [L * Hk] host slots of the open block while parked, or -1 */
    uint64_t *tail_digest;  /* [L * Hk] of its bytes, from when they got there */
    int32_t *stage_slot;    /* [L, Hk, B] host slots while in prefill */
    bool staged;            /* in prefill: its blocks stand in engine.stage, from where they are
                             * copied to stage_slot */
    int32_t *last_pick;     /* [L, Hk, M] last selection, -1 pads: what to bring back first */
    uint32_t generation;    /* grows when the slot's occupant or its entries change */
    uint32_t groups_open;   /* prefetch groups under way */
    uint32_t groups_stay;   /* of them, those whose blocks stay in the landing zone */
    uint32_t ran;           /* steps since it became active */
    uint32_t ahead_set;     /* of its ahead_bit, how many are set */
    uint32_t ahead_step;    /* when prefetch brought something last */
    uint32_t whole_step;    /* the last whose row was not void, or when it got its entries */
    uint32_t row, row_step; /* its row in that step; last_pick has not the picks yet. 0: it has */
    uint32_t void_tries;    /* at this position */
    status void_status;
    bool cancel;
    bool forgotten;    /* CLOSING: the io side let go */
    status put_status; /* a block cannot be stored */
    uint64_t order;    /* admission order */
    bool aside;        /* lookahead `step`: picks for position aside_pos were put aside */
    uint32_t aside_pos;
    worker_event final; /* counters gathered for FINISHED */
    uint64_t last_token_ns;
} sequence;

/* A request that waits; its prompt and eos are copies. */
typedef struct engine_request {
    worker_request request;
    int32_t *prompt; /* [max_model_len] */
    int32_t eos[8];
    uint64_t submitted_ns;
    bool cancel;
} engine_request;

/* What ops are told of the rows of a step. The host writes the shared side and reads `status` and
 * `hits` of it after the step; ops have the device's side, the same memory where they run inline.
 */
typedef struct row_lists {
    int32_t *seq, *pos, *token, *selector, *next_pos, *status; /* [R] each, one after the other */
    uint32_t *hits, *misses;                                   /* of decode rows, by plan */
} row_lists;

/* The picks of all layers of a step, [L, R, Hk, M] and [L, R, Hk]. */
typedef struct picked {
    int32_t *block, *slot, *count, *settled;
} picked;

/* A decode row of the last step whose picks prefetch may have brought, not counted yet. */
typedef struct row_uncounted {
    int32_t seq; /* -1: it is */
    uint32_t row;
    int32_t open; /* its current block, which nobody fetches */
    bool is_void;
} row_uncounted;

/* One layer's lists of a range of rows. */
typedef struct pick_buffers {
    float *scores;             /* [R, Hk, W] */
    float *query, *importance; /* [R, Hk, N] */
    int32_t *block, *slot;     /* [R, Hk, M] */
    uint8_t *mask;             /* [R, Hk, M] */
    uint8_t *late;             /* [R, Hk, ceil(M / KERN_LATE_ENTRIES)], by plan */
    int32_t *count, *settled;  /* [R, Hk] */
} pick_buffers;

/* Picks that were made for a later step; shapes as pick_buffers. */
typedef struct ahead_lists {
    int32_t *block, *count, *settled;
    uint8_t *mask;
} ahead_lists;

typedef struct prefetch_group {
    bool used;
    int32_t seq, layer;
    uint32_t generation;
    uint32_t step; /* when it was asked for */
    bool resume;
    bool stay, arrived; /* stay: not to be installed; arrived: all of it has its state */
    bool guess;
} prefetch_group;

/* Rows that a product takes: one of the two is set (kern_rounds_operands). */
typedef struct operand {
    float *f32;
    uint16_t *bf16;
} operand;

/* Decode rows of one selection source, a range; the prefill rows have their own. */
typedef struct row_range {
    uint32_t first, count;
} row_range;

/* Rows that go through a layer together: all of a step's, or, where two parts take turns, half of
 * its decode rows; the last part has the prompt's too. */
typedef struct step_part {
    row_range rows, decode; /* decode: the first of `rows` */
} step_part;

/* Rows to select for, at positions that may lie one step ahead, with the queries to do it by. */
typedef struct pick_rows {
    kern_stream *stream;            /* that the ops go to */
    const kern_selector *selectors; /* the device's, or as they guess */
    uint32_t count;
    const int32_t *seq, *pos, *selector; /* [count] */
    const float *q;                      /* [count, Hq, D], stride floats between rows */
    uint64_t stride;
    bool prefill; /* a stretch of one prompt */
} pick_rows;

struct worker_engine {
    worker_config config;
    cluster_config cluster;
    arena *memory;
    kern_backend *backend;
    kern_stream *stream;
    kern_stream *side;    /* gathers run here, beside the layers; `stream` where they do not */
    kern_stream *picker;  /* and here what is selected ahead of its layer; likewise */
    kern_stream *selects; /* this step: picker where all decode rows look ahead, else `stream` */
    kern_host host;
    worker_io *io;
    /* dims */
    uint32_t seqs, layers, heads, kv_heads, head_dim, hidden, ffn, vocab;
    uint32_t max_len, max_blocks, max_windows, max_entries, max_select, max_select_blocks;
    uint32_t rows_max, select_block, block_bytes;
    uint64_t qkv_stride;
    /* selectors */
    kern_selector selectors[2 * KERN_SELECTORS_MAX];
    uint32_t selector_count;
    kern_selector *dev_selectors; /* the device's copy; behind it, as each guesses (guess.c) */
    /* memory of the backend: on the device, or shared with it where it says so */
    bool inline_ops; /* ops have run when their call returns */
    struct engine_memory {
        void *at;
        bool shared;
    } taken[ENGINE_MEMORY_MAX];
    uint32_t taken_count;
    uint64_t device_bytes, shared_bytes, summary_bytes, stream_bytes; /* device: pool, the rest */
    uint16_t *kc, *uc, *u, *key_ring;
    uint16_t *vc, *value_ring; /* NSA */
    int32_t *entry_of, *block_of, *slot_of;
    uint32_t *used_step;
    int32_t *entries;       /* [S] */
    uint32_t *keep_step;    /* [S] of an install under way (shared) */
    int32_t *seen_entry_of; /* read back (shared): [L, Hk, B] of a sequence */
    uint8_t *pool;
    uint32_t pool_slots, pool_free;
    int32_t *pool_stack;
    /* rows of the step under way: decode rows by source, then prefill rows */
    uint32_t rows, decode_rows;
    row_range source_rows[4], prefill_rows;
    step_part part[2];
    uint32_t parts, now; /* of this step; which one the ops are being given for, 0 between steps */
    uint32_t halves;     /* parts at most */
    kern_source early;   /* the source all decode rows share, else SOURCE_OWN */
    row_lists row, dev;
    float *x, *x_next, *qkv, *gate_up, *pick_q[2];
    operand norm, act, heads_out; /* of the part under way, as all that a layer ends with */
    operand attended;             /* heads_out before its gates; the same without any */
    float *out_gate; /* [R, gates, Hq] output gates before their logistic; NULL without one */
    uint32_t gates;  /* a query head: 0, 1 (SSA), 3 (NSA) */
    float *coarse_out, *near_out; /* [R, Hq, D] NSA's other branches, beside attended */
    uint16_t *row_u;
    int32_t *append_slot;
    /* decode rows: scores by layer parity (a layer ahead may be planned already), picks by layer */
    pick_buffers scratch[2];
    picked picks, seen; /* seen: the last step's, read back where somebody needs them */
    uint32_t seen_step; /* the step whose lists they are */
    uint8_t *pick_mask;
    pick_buffers prefill;
    uint8_t *stage; /* [L, Hk, stage_blocks] blocks of the prompt in prefill, if that has room */
    uint32_t stage_blocks;
    int32_t *stage_place; /* [Hk, B] slots of its blocks in stage, from a layer's first one on */
    int32_t *stage_home;  /* [L, Hk, B] host slots of the prompt in prefill, for ops */
    int32_t *prompt_block, *prompt_count; /* [L, Hk, M], [L, Hk] its last row's picks (shared) */
    /* candidates of several sequences (shared): [L, S, Hk, M]; [S] each */
    int32_t *candidate, *candidate_seq, *candidate_pos, *candidate_selector;
    int32_t *resume_list;           /* [Hk, 2 M] */
    int32_t *open_slot, *seen_open; /* [L, S, Hk] of decode rows; read back to seal them */
    /* blocks to seal, each in all layers and heads (shared): [S * L * Hk] */
    int32_t *seal_slot, *copy_slot; /* copy_slot: the host's own */
    uint64_t *seal_seed, *seal_digest;
    uint8_t **seal_copy;
    /* lookahead `step`: picks by the row that made them, [L, S, Hk, ...], and by sequence, [S, L,
     * Hk,
     * ...]; [S, L, Hq * D] queries of prompts' last rows */
    ahead_lists ahead, aside;
    float *last_q;
    int32_t *seen_ahead_block, *seen_ahead_count; /* ahead, read back (shared) */
    int32_t *seen_ahead_slot;                     /* pool slots of these (shared), -1: not there */
    operand ahead_norm; /* [S, hidden] states that decode rows make a query of ahead of its layer */
    /* an early guess: a layer's lists and their queries; counts, blocks and slots lie one after the
     * other, and are read back by layer, each then told of in guess_made (shared) */
    pick_buffers guess;
    float *guess_q;
    int32_t *guess_seen; /* where ops run inline, guess.count */
    _Atomic int32_t *guess_made;
    float *logits, *seen_logits; /* [ENGINE_LOGIT_ROWS, vocab]; read back */
    kern_sampling *sampling;     /* shared, as the next three */
    int32_t *sample_pos;
    kern_sampled *sampled;
    uint64_t *logits_digest; /* [ENGINE_LOGIT_ROWS] */
    /* exchange with io */
    kern_exchange *exchange;  /* [groups]: demands, [L, halves], then prefetch */
    prefetch_group *prefetch; /* [groups - demands] */
    uint32_t groups, demands;
    uint32_t group_next; /* of prefetch, where the search for a free one begins */
    int32_t *arrived;    /* groups that wait for fetch_install */
    uint32_t arrived_count;
    io_shared shared;
    bool *fetching; /* [demands] IO_FETCH sent, IO_GATHERED owed: not all was in host memory */
    status failed;  /* OK, or why the device may be in any state: nothing is computed any more */
    uint32_t run_ahead; /* layers of this step that the stream may have beyond the last plan seen */
    uint32_t planned,
        gathered;             /* plans of this step that are over, [L, parts], and their gathers */
    uint32_t counted;         /* ... whose misses are accounted for */
    uint32_t asked;           /* ... whose picks for the next step have been asked for */
    bool guessing;            /* this step guesses */
    bool guess_full;          /* not all that it wanted had room */
    uint32_t guess_keep;      /* steps that what was asked for stays, if it has */
    uint32_t guessed;         /* ... whose guess has been asked for, or comes too late */
    uint32_t stay_blocks;     /* asked for to stay in the landing zone, and there still */
    uint32_t landed_open;     /* used out of the landing zone, their groups not over yet */
    uint64_t landed_used;     /* all that were used out of it */
    uint32_t doubt_until;     /* the client compares digests in steps before it */
    row_uncounted *uncounted; /* [S] */
    uint32_t uncounted_count;
    uint64_t *wait_ns;                  /* what kern_wait adds to in a step (shared) */
    uint64_t *stood_ns, *seen_stood_ns; /* what attention adds to; read back after a step */
    uint64_t stood_before_ns;           /* up to the last step */
    uint8_t *ahead_bit;                 /* [S, L, Hk, B] installed by prefetch, not used yet */
    /* tests look at every row of logits here: the row at `pos` predicts token pos + 1 */
    void (*tap)(void *self, uint64_t id, uint32_t pos, const float *logits);
    void *tap_self;
    /* sequences */
    sequence *seq;
    uint32_t step_number;
    uint64_t admitted;
    engine_request *queue; /* ring of ENGINE_QUEUE */
    uint32_t queue_head, queue_count;
    ring *events;
    worker_stats stats;
};

/* The streams that ops go to, of which only the first is always there. */
enum { ENGINE_STREAMS = 3 };
uint32_t engine_streams(const worker_engine *e, kern_stream *out_streams[ENGINE_STREAMS]);

/* views */
kern_summary engine_summary(const worker_engine *e, uint32_t layer);
kern_table engine_table(const worker_engine *e, uint32_t layer);
kern_homes engine_homes(const worker_engine *e, uint32_t layer);
uint32_t engine_plans(const worker_engine *e); /* of this step, in the order [L, parts] */
/* Of a layer and part: the place of its exchange and demand group, [L, halves]. */
uint32_t engine_demand(const worker_engine *e, uint32_t layer, uint32_t part);
kern_exchange *engine_exchange(const worker_engine *e, uint32_t layer); /* of the part under way */
/* Decode rows of a part that select by this source. */
row_range engine_rows(const worker_engine *e, kern_source source, uint32_t part);
pick_buffers engine_picks(const worker_engine *e, uint32_t layer); /* of its decode rows */
/* The entries of a sequence's blocks, read back into seen_entry_of. Between steps. */
status engine_read_table(worker_engine *e, uint32_t seq);
size_t engine_home(const worker_engine *e, uint32_t seq, uint32_t layer, uint32_t kv_head,
                   uint32_t block);
uint32_t selector_entries(const worker_engine *e, const kern_selector *s);
uint32_t selector_always(const kern_selector *s); /* blocks that are selected whatever the query */
void engine_notify(void *self);                   /* kern_host.notify */
void engine_pause(void *self, uint64_t until_ns); /* kern_host.pause */
bool engine_selectors_equal(const kern_selector *a, const kern_selector *b);
void engine_emit(worker_engine *e, const worker_event *event);
/* An op, a copy or a wait for the device did not work. The first such status is kept, and the step
 * under way or the next one ends the engine with it. OK: nothing. */
void engine_device_failed(worker_engine *e, status why);

/* sched.c */
void sched_turn(worker_engine *e); /* everything between steps */
void sched_finish(worker_engine *e, uint32_t seq, worker_reason reason, status result);
/* The engine is over: every request has its FINISHED event, and nothing is asked of device or io.
 */
void sched_fail_all(worker_engine *e, status why);
void sched_recompute(worker_engine *e, uint32_t seq);
uint32_t sched_entries_needed(const worker_engine *e, const kern_selector *s, uint32_t blocks);
sequence *sched_prefilling(worker_engine *e, uint32_t *out_seq);

/* seal.c */
/* INTERNAL: the block was sealed before with other bytes (a recompute must repeat them). */
status seal_digest_set(worker_engine *e, uint32_t seq, uint32_t layer, uint32_t kv_head,
                       uint32_t block, uint64_t digest);
/* What fails otherwise in sealing is the device, and the engine with it.
 * A block of a prompt, in all layers and KV heads in slots e->seal_slot of `memory`: digests into
 * e->seal_digest, and with `copy` its bytes to e->seal_copy. */
status seal_block(worker_engine *e, uint32_t seq, uint32_t block, const uint8_t *memory, bool copy);
/* A block that has its digest goes to the io side; list: layer * Hk + KV head. hold: see
 * IO_SEALED. */
void seal_send(worker_engine *e, uint32_t seq, uint32_t list, uint32_t block, int32_t slot,
               bool hold);
/* The open block of a sequence in the pool, into fresh host slots tail_slot, with its digests.
 * BUSY: there are too few. Where it fails, no slot is kept and tail_slot is all -1. */
status seal_tail(worker_engine *e, uint32_t seq);
/* The open block stands in tail_slot already: its digests. */
void seal_tail_given(worker_engine *e, uint32_t seq, uint32_t block);
bool seal_wanted(const worker_engine *e, uint32_t row); /* the decode row completes a block */
/* After the step: what its rows completed is digested, copied and the io side's. A sequence whose
 * block has other bytes than before is finished. */
status seal_rows(worker_engine *e);

/* select.c */
pick_rows pick_rows_of(const worker_engine *e, row_range rows, const float *q, uint64_t stride);
status select_rows(worker_engine *e, uint32_t layer, const pick_rows *rows, pick_buffers *out,
                   uint32_t out_row);
/* Decode rows of the part under way: select, plan, fetch_start, on e->selects. */
status plan_layer(worker_engine *e, uint32_t layer);
status select_planned(worker_engine *e, uint32_t layer); /* e->stream goes on when that is over */
/* Queries of decode rows for `layer`, which looks ahead, from states x [rows, hidden] of the step.
 */
status select_ahead(worker_engine *e, uint32_t layer, row_range rows, const float *x);
/* Behind the ops that read states or queries of the layers, and the plan of the next one; before
 * these are written again, and that one begins. */
status select_reads(worker_engine *e);
status select_settle(worker_engine *e);
/* States x in the layer's norm (scratch `norm`) and query projection, turned; out: [count, Hq * D].
 */
status select_query(worker_engine *e, kern_stream *stream, uint32_t layer, row_range rows,
                    const float *x, operand norm, float *out);
status select_warm(worker_engine *e, uint32_t rows);
/* The picks of the last step to `seen`, once the stream is at rest. */
status select_read(worker_engine *e);
/* Between steps: those of its last row to the sequence's last_pick, if they stand only there. */
void select_keep(worker_engine *e, uint32_t seq);

/* branch.c */
/* Attention of rows from first_row of the step on, which the part under way has, in all branches
 * that the model has, into e->attended and beside it: `rows` has no output yet. */
status branch_attend(worker_engine *e, kern_attend_args *rows, uint32_t first_row);
status branch_gate(worker_engine *e); /* the part's rows: heads_out is then the sum */

/* prefill.c */
uint32_t prefill_reserve(worker_engine *e, uint32_t seq, uint32_t rows); /* rows with host slots */
status prefill_begin(worker_engine *e); /* before the first layer of a step with prompt rows */
status prefill_layer(worker_engine *e, uint32_t layer);
status prefill_sealed(worker_engine *e); /* after the step: digests, SEALED commands, prompt end */

/* step.c */
status step_run(worker_engine *e);
status step_warm(worker_engine *e); /* at creation: what a device loads, it loads now */

#endif
