/* worker/fetch.h - private: the blocks that a step needs and the pool lacks.
 *
 * Flow:    plans --misses--> [fetch.c] --> io side; what comes back goes into the pool. Ahead of
 *          need: locality blocks (fetch.c), a guess at the next layer's picks (guess.c), the picks
 *          of the next step (ahead.c).
 * Threads: the step thread. */
#ifndef WORKER_FETCH_H
#define WORKER_FETCH_H

#include "worker/engine.h"

/* Places: of the side stream gathers, by layer or part; of the picker plans, by layer, then what
 * reads states and queries of the layers. */
enum { FETCH_PLACES = 2, PLAN_PLACES = 2, READ_PLACE = PLAN_PLACES, GUESS_PLACE = READ_PLACE };
_Static_assert((int)READ_PLACE < (int)KERN_STREAM_PLACES, "a place of its own");

/* fetch.c */
void fetch_begin(worker_engine *e);                  /* before the step's first plan */
void fetch_pump(worker_engine *e);                   /* published misses on to io */
status fetch_room(worker_engine *e, uint32_t layer); /* before a layer goes to the stream */
/* Whether decode rows attend first to what is in the pool, while the rest is gathered. */
bool fetch_merges_late(const worker_engine *e);
/* Whose gather attention waits for by itself; NULL: fetch_finish sees to it. */
const kern_exchange *fetch_beside(const worker_engine *e, uint32_t layer);
status fetch_planned(worker_engine *e, uint32_t layer); /* the stream has its plan */
status fetch_finish(worker_engine *e, uint32_t layer);  /* wait, gather */
status fetch_drain(worker_engine *e);                   /* every layer's misses are with io */
/* `stream`, what `of` has by now, which it notes as `place`. One stream: nothing to do. */
status fetch_follows(kern_stream *stream, kern_stream *of, uint32_t place);
void fetch_abandon(worker_engine *e);           /* after a failed step */
void fetch_over(worker_engine *e);              /* the stream is at rest: count */
bool fetch_wants_picks(const worker_engine *e); /* of the step under way: to count by prefetch */
/* Counting that fetch_over put off until the device works again: of a sequence, or of all (-1). */
void fetch_settle(worker_engine *e, int32_t seq);
/* Blocks of one layer that a sequence will want. */
typedef struct fetch_wish {
    uint32_t seq, layer, per_head;
    const int32_t *block;    /* [Hk, per_head], most wanted first, -1 pads */
    const int32_t *count;    /* [Hk] of them, NULL: per_head */
    const int32_t *slot;     /* [Hk, per_head] where they are in the pool, or NULL */
    const int32_t *resident; /* [Hk, B] entries of the sequence's blocks in this layer, NULL: no
                              * block is in the pool */
    bool resume;             /* its first blocks: also what is in host memory */
    bool stay;               /* not to be installed: plans find them in the landing zone */
    bool guess;              /* then for this step and some more, else for the next one */
} fetch_wish;
bool fetch_asks_ahead(const worker_engine *e); /* prefetch is on, and there is a store to ask */
bool fetch_ahead(worker_engine *e, const fetch_wish *wish);
void fetch_arrived(worker_engine *e, int32_t group); /* every block of it has its state */
void fetch_install(worker_engine *e); /* between steps: what arrived, into the pool */
/* Between steps: misses that stand in the layers' exchanges with their arrivals, into the pool. Not
 * OK: the device failed. */
status fetch_install_lists(worker_engine *e, bool verify);
/* Candidates of n sequences in all layers into e->candidate [L, n, Hk, M]. */
status fetch_candidates_of(worker_engine *e, const uint32_t *seq, uint32_t n, bool forced);
void fetch_candidates(worker_engine *e, const uint32_t *seq, uint32_t n); /* what the pool lacks */
void fetch_forget_ahead(worker_engine *e, uint32_t seq);
void fetch_let_go(
    worker_engine *e); /* between steps: groups in the landing zone that were for this */

/* guess.c */
kern_selector guess_selector(const kern_selector *s, uint32_t percent);
/* The stream has this layer's attention: the next one's picks are guessed, beside the MLP. */
status guess_layer(worker_engine *e, uint32_t layer);
status guess_settle(worker_engine *e, uint32_t layer); /* before the layer's plan */
void guess_begin(worker_engine *e);                    /* before the step's first layer */
void guess_ask(worker_engine *e);                      /* for what has been guessed by now */
bool guess_leaves_out(const worker_engine *e, const kern_miss *miss); /* guess_left_out */
uint32_t guess_launches(const worker_engine *e);                      /* of a layer */

/* ahead.c: lookahead `step` */
status ahead_load(worker_engine *e, uint32_t layer, row_range rows, pick_buffers *picks);
status ahead_select(worker_engine *e, uint32_t layer); /* after attention: for the next position */
void ahead_ask(worker_engine *e, uint32_t layer);      /* and fetch what those picks lack */
uint32_t ahead_launches(const worker_engine *e);       /* of a layer, for both, at most */
void ahead_void(worker_engine *e, uint32_t seq);       /* its row has to repeat its position */
void ahead_leave(worker_engine *e, uint32_t seq);      /* it has no row in the next step */
float *ahead_last_query(const worker_engine *e, uint32_t seq, uint32_t layer);

#endif
