/* kernels/kernels.h - the operations of a decode worker, as one table that every backend fills.
 *
 * Flow:    worker/step -> kern_<op>(stream, args) -> backend ("ref", "cpu", later "cuda").
 * Threads: a backend and its streams belong to the step thread. An op may use the backend's own
 *          threads, but has finished reading its args struct when it returns; results are visible
 *          after kern_stream_sync (the CPU backends run every op inline).
 * Memory:  ops allocate nothing. Buffers are the caller's, taken from kern_alloc; weights are
 *          packed once by kern_weight_pack.
 * Bits:    a row's result has the same bits whatever batch, chunk, thread count, slot or vector
 *          width it was computed in (kernels/README.md says how). Activations are float32; K, V, u,
 *          Kc and uc are rounded to bf16 (nearest, ties to even) before their first use.
 *
 * Letters in shapes: rows R (decode rows and prefill rows alike), kv_heads Hk, heads Hq = G * Hk,
 * D head_dim, W max_windows, B max_blocks, E max_entries, S seqs. A bf16 is a uint16_t.
 * A row is one token of one sequence: row_seq[r] is its sequence slot, row_pos[r] its position
 * from 0, ascending within one sequence. int32 index -1 means absent. Offsets are 64-bit. The
 * mathematics is that of NOSA, arXiv 2510.13602. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "proto/proto.h"

typedef struct kern_backend kern_backend;
typedef struct kern_stream kern_stream;
typedef struct kern_weight kern_weight;

enum {
    KERN_BLOCK = PROTO_BLOCK_TOKENS, /* storage block: 64 tokens, K[64][D] then V[64][D] bf16 */
    KERN_GROUP_ENTRIES = 8,          /* one softmax partial for every 8 consecutive entries */
    KERN_LATE_ENTRIES = 8 * KERN_GROUP_ENTRIES, /* of a byte of late, a bit each group */
    KERN_KEY_RING = 128, /* last keys kept a (sequence, layer, KV head): >= window */
    KERN_SELECTORS_MAX = 16,
    KERN_TOP_LOGPROBS_MAX = 20,
    KERN_DIGEST_MIN = 61, /* floats of a row that a device takes the digest of */
};

/* ---- selector: score -> pool -> force -> select -> attend, as data --------------------------- */

typedef enum kern_source { SOURCE_OWN, SOURCE_MID, SOURCE_INPUT, SOURCE_STEP } kern_source;

/* Counts are in selection blocks of `block` tokens. `full` is total = UINT32_MAX. */
typedef struct kern_selector {
    uint32_t window, stride; /* keys: mean of `window` rotated ones every `stride` tokens */
    uint32_t block;          /* selection block: 16, 32, 64 or a multiple of 128 up to 4096 */
    uint32_t init;           /* the first blocks, always selected */
    uint32_t local;          /* blocks before the current one, always selected with it */
    uint32_t query;          /* best by query score, forced ones counted (0: no query scores) */
    uint32_t total;          /* what importance fills the selection up to */
    bool fill_by_importance; /* false (InfLLM-V2): nothing beyond the query picks */
    bool bias;               /* add u to the attention logits */
    kern_source source;      /* where the selection's query comes from. Other than
                              * SOURCE_OWN, row i sees only windows complete at i - 1 */
    uint32_t chunk;          /* 0: exact top-k. W: as SSA's released kernel searches, the W / 2 best
                              * before the last aligned W blocks and the W / 2 best of those; then
                              * query <= W and nothing but the current block is forced or filled */
    bool raw;                /* MoBA: a score is the plain q . Kc summed over the group, a block's
                              * score the mean over its windows (else: softmax, maximum) */
    uint32_t near;           /* NSA: the sliding branch sees this many last tokens, the row's own
                              * among them; their storage blocks are in every selection, some with
                              * an empty mask. Then no bias, nothing filled, and a block's score is
                              * the sum of its windows' by the strides they share. 0: one branch */
} kern_selector;

/* What a row attends to. NSA (arXiv 2502.11089) adds three of these, each times a gate. */
typedef enum kern_branch {
    BRANCH_SELECTED, /* the selection's parts */
    BRANCH_NEAR,     /* the last `near` tokens: every entry, whatever its mask */
    BRANCH_COARSE,   /* means Kc and Vc of all windows complete at the row; no list is read, and a
                      * row without one gets 0 */
} kern_branch;

/* Of what rows attend to, what a call takes. Two calls on a stream with nothing between them but
 * waits, with the same args: the first takes what needs no late block, the second the others, and
 * then `out` is there, with the bits of the one call. A backend may leave all to the second. */
typedef enum kern_attend_part { ATTEND_WHOLE, ATTEND_PRESENT, ATTEND_LATE } kern_attend_part;

/* ---- what stays on the device for every token: one layer's view ------------------------------ */

typedef struct kern_summary {
    uint16_t *kc;       /* [S, Hk, W, D] mean of `window` rotated keys; window j = tokens
                         * stride * j .. stride * j + window - 1 */
    uint16_t *uc;       /* [S, Hk, W]    mean of u over the same tokens */
    uint16_t *u;        /* [S, Hk, T]    importance of every token */
    uint16_t *key_ring; /* [S, Hk, KERN_KEY_RING, D] rotated keys, token t at t % KERN_KEY_RING */
    uint32_t seqs, kv_heads, head_dim, max_windows, max_tokens;
    uint32_t window, stride;
    uint16_t *vc;         /* [S, Hk, W, D] mean of V over the same tokens; NULL: nobody needs it */
    uint16_t *value_ring; /* as key_ring, with vc */
} kern_summary;

#include "kernels/exchange.h"

/* ---- ops: one args struct each --------------------------------------------------------------- */
/* clang-format off */

typedef struct kern_embed_args {     /* out[r] = scale * table[ids[r]] */
    const uint16_t *table;           /* [vocab, hidden] bf16 */
    const int32_t *ids;              /* [R], each in [0, vocab) */
    float *out;                      /* [R, hidden] */
    uint32_t rows, hidden, vocab;
    float scale;
} kern_embed_args;

/* out_bf16, x_bf16: the rows that a product takes, rounded to bf16 by who makes them, where the
 * backend's products round them in any case (kern_rounds_operands); INVALID elsewhere. Where one is
 * set, `out` or `x` is not looked at. Dense, aligned as kern_alloc leaves it. */
typedef struct kern_rmsnorm_args {   /* out = x * rsqrt(mean(x^2) + eps) * weight, all float32 */
    const float *x;                  /* [R, hidden] */
    const uint16_t *weight;          /* [hidden] bf16 */
    float *out;                      /* [R, hidden], may be x */
    uint32_t rows, hidden;
    float eps;
    uint16_t *out_bf16;              /* [R, hidden] in place of out, or NULL */
} kern_rmsnorm_args;

typedef struct kern_rope_args {      /* half-split rotation over D, in place */
    float *x;                        /* [R, heads, D] with row_stride floats between rows */
    const int32_t *row_pos;          /* [R] */
    const float *cos, *sin;          /* [max_tokens, D / 2], attention_factor included */
    uint32_t rows, heads, head_dim, max_tokens;
    uint64_t row_stride;
} kern_rope_args;

typedef struct kern_linear_args {    /* out[r,n] = residual[r,n] (NULL: 0) + scale * sum_k x[r,k] w[n,k],
                                      * one fma chain over ascending k an output */
    const kern_weight *weight;       /* packed [N, K] */
    const float *x;                  /* [R, K] with x_stride floats between rows */
    const float *residual;           /* [R, N] or NULL; may be out (CUDA: by a slow kernel) */
    float *out;                      /* [R, N] with out_stride floats between rows */
    uint64_t x_stride, out_stride;   /* residual uses out_stride */
    uint32_t rows;
    uint32_t columns;                /* only the first so many of N; 0: all */
    float scale;
    const uint16_t *x_bf16;          /* [R, K] in place of x, or NULL; x_stride is K then */
} kern_linear_args;

typedef struct kern_swiglu_args {    /* out = silu(gate) * up */
    const float *gate, *up;          /* [R, ffn] with in_stride floats between rows */
    float *out;                      /* [R, ffn] dense */
    uint64_t in_stride;
    uint32_t rows, ffn;
    uint16_t *out_bf16;              /* [R, ffn] in place of out, or NULL */
} kern_swiglu_args;

typedef struct kern_importance_args { /* u = bf16(A[h] * softplus(delta[h] . v)) */
    const float *v;                  /* [R, Hk, D] with row_stride; rounded to bf16 before use */
    const uint16_t *a;               /* [Hk] bf16, NULL: u = 0 */
    const uint16_t *delta;           /* [Hk, Hk * D] bf16 */
    uint16_t *out;                   /* [R, Hk] */
    uint64_t row_stride;
    uint32_t rows, kv_heads, head_dim;
} kern_importance_args;

typedef struct kern_compress_args {  /* key ring and u of every row, then each window that the row
                                      * completes (token stride * j + window - 1): Kc and uc, and
                                      * Vc where the summary has it. Repeating rows repeats the same
                                      * writes. */
    const float *k;                  /* [R, Hk, D] rotated, row_stride */
    const uint16_t *u;               /* [R, Hk] */
    const int32_t *row_seq, *row_pos;
    kern_summary summary;
    uint64_t row_stride;
    uint32_t rows;
    const float *v;                  /* [R, Hk, D], row_stride; NULL without summary.vc */
} kern_compress_args;

typedef struct kern_append_args {    /* K and V of every row into row_pos % 64 of its slot */
    const float *k, *v;              /* [R, Hk, D], row_stride */
    const int32_t *slot;             /* [R, Hk], -1: skip */
    const int32_t *row_pos;
    uint8_t *pool;
    uint64_t row_stride;
    uint32_t rows, kv_heads, head_dim;
} kern_append_args;

typedef struct kern_locate_args {    /* pool slots of blocks, -1: not there. By the table, or, with
                                      * `home`, by a list of one sequence's blocks (a prompt's) */
    const int32_t *block, *count;    /* [R, Hk, M], [R, Hk] from select; NULL: the block of each row's
                                      * own position, M = 1 */
    const int32_t *row_seq, *row_pos; /* [R] */
    const int32_t *home;             /* [Hk, B] slot of every block, or NULL */
    kern_table table;                /* with home, only its kv_heads and max_blocks count */
    int32_t *slot;                   /* [R, Hk, M] out */
    uint32_t rows, max_select;
} kern_locate_args;

typedef struct kern_qkv_args {       /* rope, importance, then compress, of the rows [q | k | v] of one
                                      * projection: k are the last heads of rope, v lie behind them;
                                      * the first rows go on to compress, each of another sequence */
    kern_rope_args rope;
    kern_importance_args importance;
    kern_compress_args compress;     /* rows 0: none do */
} kern_qkv_args;

typedef struct kern_enter_args {     /* locate the rows' own blocks, then append to them */
    kern_locate_args locate;
    kern_append_args append;
} kern_enter_args;

typedef struct kern_score_args {     /* out[r,h,j] = sum over G heads of softmax_j(q . Kc[j] / sqrt(D))
                                      * over visible windows, 0 elsewhere. Rows whose
                                      * selector has query == 0 or selects everything may be left out */
    const float *q;                  /* [R, Hq, D] rotated, row_stride */
    const int32_t *row_seq, *row_pos, *row_selector;
    const kern_selector *selectors;  /* [<= KERN_SELECTORS_MAX] */
    kern_summary summary;
    float *out;                      /* [R, Hk, W] */
    uint64_t row_stride;
    uint32_t rows, heads;
    bool prefill;                    /* as in kern_attend_args */
} kern_score_args;

typedef struct kern_pool_args {      /* windows -> selection blocks, then forcing.
                                      * query[b] = max of scores of visible windows that touch b,
                                      * importance[b] = max of uc of the same windows, -inf: none;
                                      * forced blocks +inf in both; only b <= current are written */
    const float *scores;             /* [R, Hk, W] */
    const int32_t *row_seq, *row_pos, *row_selector;
    const kern_selector *selectors;
    kern_summary summary;
    float *query, *importance;       /* [R, Hk, N] */
    uint32_t rows, max_select_blocks; /* N */
} kern_pool_args;

typedef struct kern_select_args {    /* top-k, ties to the smaller block, as storage
                                      * blocks in canonical order: first those with a forced
                                      * or importance-filled part, ascending, then free query picks,
                                      * ascending. Blocks of a sliding window belong to the first */
    const float *query, *importance; /* [R, Hk, N] */
    const int32_t *row_pos, *row_selector;
    const kern_selector *selectors;
    int32_t *block;                  /* [R, Hk, M] storage blocks */
    uint8_t *mask;                   /* [R, Hk, M] bit i: tokens 16 i .. 16 i + 15 are selected */
    int32_t *count, *settled;        /* [R, Hk] entries, and how many belong to the first part */
    uint32_t rows, kv_heads, max_select_blocks, max_select; /* N, M */
} kern_select_args;

typedef struct kern_pick_args {      /* pool, then select from what it wrote */
    kern_pool_args pool;
    kern_select_args select;
} kern_pick_args;

typedef struct kern_plan_args {      /* diff the selection against the table, choose victims (least
                                      * recently used, then least important, then lowest entry; never a
                                      * block of this selection), hand out entries, list the misses.
                                      * The current block, when absent at position % 64 == 0, gets an
                                      * entry and is no miss. A row that does not fit its entries is
                                      * made void with NO_MEMORY */
    const int32_t *block, *count, *settled; /* from select */
    const float *importance;         /* [R, Hk, N] from pool, in blocks of select_block tokens */
    const int32_t *row_seq, *row_pos;
    const uint8_t *row_on;           /* [R] or NULL: 0 rows are left alone */
    kern_table table;
    int32_t *slot;                   /* [R, Hk, M] out: pool slot of each entry of the selection */
    uint8_t *late;                   /* [R, Hk, ceil(M / KERN_LATE_ENTRIES)] or NULL: out, bit g of byte
                                      * i: a miss is among the entries 64 i + 8 g .. 64 i + 8 g + 7 */
    kern_homes homes;
    kern_exchange *exchange;         /* out: miss[0 .. published), arrivals of blocks in host memory
                                      * OK, of others PENDING */
    int32_t *row_status;             /* [R] in/out: first failure; rows already void skip */
    uint32_t *row_hits, *row_misses; /* [R] counters, added to: entries that the table held, but the
                                      * current block's; misses published */
    uint32_t rows, max_select, max_select_blocks, select_block, step;
} kern_plan_args;

typedef struct kern_attend_args {    /* softmax over the selection with bias u, canonical order, one
                                      * partial for every KERN_GROUP_ENTRIES entries. Tokens beyond
                                      * row_pos and masked parts weigh 0. With `prefill` a backend
                                      * may use an order of its own: ascending blocks, one state */
    const float *q;                  /* [R, Hq, D] rotated, row_stride */
    const int32_t *block, *slot, *count; /* [R, Hk, M], [R, Hk, M], [R, Hk] */
    const uint8_t *mask;             /* [R, Hk, M] */
    const int32_t *row_seq, *row_pos, *row_selector;
    const kern_selector *selectors;
    const uint8_t *pool;             /* device pool for decode, staging for prefill */
    kern_summary summary;            /* for u */
    float *out;                      /* [R, Hq, D] dense */
    uint64_t row_stride;
    uint32_t rows, heads, max_select, block_bytes;
    bool prefill;                    /* rows are consecutive tokens of one sequence under one
                                      * selector, and a block has one slot in all their lists */
    bool entered;                    /* all that is read here was there before the op ahead of this one
                                      * in the stream began, but what an `enter` writes into the pool */
    kern_branch branch;
    kern_attend_part part;           /* not ATTEND_WHOLE: BRANCH_SELECTED of decode rows */
    const uint8_t *late;             /* from plan; read where part is not ATTEND_WHOLE */
    const kern_exchange *after;      /* NULL, or where kern_attends_beside, not with ATTEND_PRESENT:
                                      * the gather of these misses, already given to another stream,
                                      * is waited for here, so that it need not have ended before */
    uint64_t *waited_ns;             /* NULL, or with `after`, device memory, added to: how long its
                                      * CTAs stood still for that, on average */
    uint16_t *out_bf16;              /* [R, Hq, D] in place of out, or NULL */
    const kern_weight *next;         /* NULL, or of the product that comes next: who waits with `after`
                                      * brings some of it nearer. No bit depends on it */
} kern_attend_args;

typedef struct kern_gate_args {      /* x[r,h,:] = add[r,h,:] + x[r,h,:] / (1 + e^-gate[r,h]), in place
                                      * (SSA, arXiv 2511.20102: after attention, before the output
                                      * projection; NSA adds its branches so) */
    float *x;                        /* [R, heads, D] dense */
    const float *gate;               /* [R, heads] with gate_stride floats between rows */
    uint64_t gate_stride;
    uint32_t rows, heads, head_dim;
    const float *add;                /* [R, heads, D] dense, or NULL: nothing */
    uint16_t *out_bf16;              /* [R, heads, D] in place of x, which stays; or NULL */
} kern_gate_args;

typedef struct kern_install_args {   /* between steps: put arrived blocks (prefetched, resumed, staged
                                      * by prefill) into entries of their sequence. Free entries first,
                                      * then the least recently used, but never one used at keep_step
                                      * of its sequence or later; a block already resident, or one
                                      * without room, is left out with STALE / BUSY in arrival.state.
                                      * When all have their entries they are gathered: a block that
                                      * does not match is CORRUPT and unmapped. Fills miss.entry, .slot */
    kern_exchange *exchange;         /* miss[0 .. published) with seq, kv_head, block; arrivals OK */
    kern_table table;
    uint8_t *pool;
    const uint32_t *keep_step;       /* [S] */
    uint32_t block_bytes, step;
    bool verify;
} kern_install_args;

typedef struct kern_candidates_args { /* the unforced blocks that next position selects by importance
                                      * whatever its query (selector_fill) and the table does not
                                      * hold, best first: what to prefetch. With `forced`, the forced
                                      * ones too, and those that some query leaves to importance */
    const int32_t *seq, *next_pos;   /* [n] */
    const int32_t *selector;         /* [n] */
    const kern_selector *selectors;
    kern_summary summary;
    kern_table table;
    int32_t *block;                  /* [n, Hk, max_candidates] storage blocks, -1 pads */
    uint32_t n, max_candidates;
    bool forced;
} kern_candidates_args;

typedef struct kern_seal_args {      /* digest of complete blocks of the pool, a copy for the host */
    const uint8_t *pool;
    const int32_t *slot;             /* [n] */
    const uint64_t *seed;            /* [n] block_id_hash */
    uint8_t *const *copy;            /* [n] block_bytes each, or NULL: digest only */
    uint64_t *digest;                /* [n] out */
    uint32_t n, block_bytes;
} kern_seal_args;

typedef struct kern_sampling {
    float temperature;               /* 0: greedy (smallest id among equals) */
    float top_p;                     /* 1: off */
    uint32_t top_k;                  /* 0: off */
    uint32_t top_logprobs;           /* 0 .. KERN_TOP_LOGPROBS_MAX */
    uint64_t seed;                   /* with the position, all the randomness there is */
} kern_sampling;

typedef struct kern_sampled {
    int32_t token;
    float logprob;                   /* natural log of the softmax at temperature 1 */
    int32_t top_token[KERN_TOP_LOGPROBS_MAX];
    float top_logprob[KERN_TOP_LOGPROBS_MAX];
} kern_sampled;

typedef struct kern_sample_args {
    const float *logits;             /* [R, vocab] */
    const kern_sampling *sampling;   /* [R] */
    const int32_t *row_pos;          /* [R] position of the token being sampled */
    kern_sampled *out;               /* [R] */
    uint32_t rows, vocab;
} kern_sample_args;

typedef struct kern_digest_args {    /* XXH3-64 of each row's bytes, seed 0: one step's evidence */
    const float *x;                  /* [R, count] dense; on CUDA count >= KERN_DIGEST_MIN */
    uint64_t *digest;                /* [R] out */
    uint32_t rows, count;
} kern_digest_args;

/* ---- the table ------------------------------------------------------------------------------- */

/* X(op): every backend has status <backend>_<op>(kern_stream *, const kern_<op>_args *).
 * INVALID: shapes out of range (checked before anything is written). */
#define KERN_OPS(X)                                                                                \
    X(embed) X(rmsnorm) X(rope) X(linear) X(swiglu) X(importance) X(compress) X(append) X(locate)  \
    X(score) X(pool) X(select) X(plan) X(wait) X(gather) X(attend) X(install) X(candidates)        \
    X(seal) X(sample) X(gate) X(digest)

/* Ops that are others one after the other, with the bits of those: a backend that makes them of one
 * piece has status <backend>_<op> here too, the others are called for the parts (backend.c). */
#define KERN_JOINED_OPS(X) X(qkv) X(enter) X(pick) X(bring)
#define KERN_ALL_OPS(X)    KERN_OPS(X) KERN_JOINED_OPS(X)

#define X(op) status kern_##op(kern_stream *stream, const kern_##op##_args *args);
KERN_ALL_OPS(X)
#undef X

/* clang-format on */

#include "kernels/bf16.h"
#include "kernels/device.h"
#include "kernels/watch.h"
#endif
