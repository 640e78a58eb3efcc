/* worker/io.h - the io side of a worker: host memory for blocks, the store's client, and the
 * answers to what steps miss.
 *
 * Flow:    step --commands--> [io] --> kv_client ; arrivals and events --> step.
 * Threads: one io thread owns everything here but the functions of the section "step side", which
 *          belong to the step thread. The two talk through rings and kern_exchange. With a hub
 *          there is no thread: io_poll is called by the step thread.
 * Memory:  host slots (block-sized) are taken at create. A slot belongs to the step thread from
 *          io_slot_take until a SEALED command names it or io_slot_give returns it.
 *
 * A host slot is, in turn: the place where prefill writes a block, the copy that outlives a sealed
 * block's device slot until R nodes have acknowledged it, and (with a host tier) a cache of it.
 *
 * The landing zone lies behind the host slots. What a PREFETCH group brought stays there until the
 * step thread lets the group go, and a block's home names the landing slot as long: to a plan it is
 * a block in host memory, which nobody has to be asked for. */
#ifndef WORKER_IO_H
#define WORKER_IO_H

#include "worker/worker.h"

typedef struct worker_io worker_io;

typedef enum io_op {
    IO_FETCH,    /* group: answer what is PENDING of arrival[0 .. published) by deadline */
    IO_GATHERED, /* group: sources may be reused. Of a prefetch group by io_let_go alone */
    IO_SEALED, /* slot holds block (seq, layer, kv_head, block) complete; hold: prefill reads it */
    IO_UNHOLD, /* seq: prefill is over */
    IO_FORGET, /* seq: the context is finished; answered by IO_FORGOTTEN */
} io_op;

typedef struct io_command {
    io_op op;
    int32_t seq, layer, kv_head, block, slot;
    int32_t group;
    bool hold;
    kv_class class;
    uint64_t deadline_ns;
    uint32_t step; /* IO_FETCH of a demand: exchange.answered becomes it with the last answer */
    bool verify;   /* IO_FETCH: digests are compared before a block of a node is handed over. Else
                    * whoever takes it into the pool is the first to compare them */
} io_command;

typedef enum io_event_kind {
    IO_GROUP_DONE, /* group: every arrival of a PREFETCH group has its state */
    IO_PUT_FAILED, /* seq: a block could not be stored; result says why */
    IO_FORGOTTEN,  /* seq: nothing refers to it any more */
} io_event_kind;

typedef struct io_event {
    io_event_kind kind;
    int32_t seq, group;
    status result;
} io_event;

/* Where an arrival came from: kern_arrival.source_kind. */
/* TAKEN: of a prefetch, whose block a demand waited for and has too. */
enum { IO_SOURCE_HOST = KERN_FROM_HOME, IO_SOURCE_REMOTE, IO_SOURCE_TAKEN };

/* What steps and io know of a sequence. Written by the step thread between steps, before the
 * command that needs it, never while commands of that sequence are under way; but a home's slot is
 * the io side's, from creation on. Ops read host slots that homes name: the step thread writes into
 * a slot that it got back only when the stream is at rest. */
typedef struct io_shared {
    context_id *context; /* [S] */
    kern_home *home;     /* [S, L, Hk, B] */
} io_shared;

typedef struct io_config {
    arena *memory;
    kern_backend *backend; /* its device reads host slots and landing zone; NULL: plain memory */
    const worker_config *worker;
    io_shared shared;
    uint32_t seqs, layers, kv_heads, max_blocks, block_bytes;
    uint32_t demands;        /* a whole number a layer */
    uint32_t slots;          /* host slots */
    uint32_t tier_slots;     /* clean copies kept; UINT32_MAX: everything (no store) */
    uint32_t groups;         /* the first `demands` are those of a step, in the order of layers */
    kern_exchange *exchange; /* [groups]; of one capacity the first `demands`, of one the others */
} io_config;

status io_create(const io_config *config, worker_io **out_io);
void io_destroy(worker_io *io); /* stops the thread, DROPs nothing: send IO_FORGET first */

/* ---- step side ------------------------------------------------------------------------------- */

void io_send(worker_io *io, const io_command *command);
/* A prefetch group is over: what it brought may be overwritten. The stream is at rest. */
void io_let_go(worker_io *io, int32_t group);
/* A block that landed is not to be found there any more, though its group is not over. */
void io_disown(worker_io *io, uint32_t layer, const kern_miss *miss, const kern_arrival *arrival);
bool io_receive(worker_io *io, io_event *out_event);
/* Until something may have arrived or `until_ns`; also kern_host.pause. */
void io_pause(worker_io *io, uint64_t until_ns);
int32_t io_slot_take(worker_io *io); /* -1: none free now */
void io_slot_give(worker_io *io, int32_t slot);
uint32_t io_slots_free(worker_io *io);
block_id io_block_id(const worker_io *io, int32_t seq, int32_t layer, int32_t kv_head,
                     int32_t block);
uint8_t *io_slot_bytes(worker_io *io, int32_t slot);
uint32_t io_landing_slots(const worker_io *io);             /* 0 without a store */
bool io_is_landed(const worker_io *io, const void *source); /* of an arrival: in landing zone */
bool io_is_threaded(const worker_io *io);                   /* false: io_pause does its work */
uint64_t io_shared_bytes(const worker_io *io); /* taken of the backend, not of the arena */

typedef struct io_stats {
    uint64_t stored_blocks, stored_bytes;
    uint64_t fetch_ns, late, put_retries;
    uint32_t dirty_blocks; /* not yet acknowledged */
    kv_client_stats client;
} io_stats;
/* A snapshot taken by the io side not long ago. */
void io_stats_read(worker_io *io, io_stats *out_stats);
bool io_quiet(worker_io *io); /* no put, drop or fetch under way, no command unread */

#endif
