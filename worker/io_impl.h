/* worker/io_impl.h - private to io.c, io_host.c and io_fetch.c: what the io side keeps.
 *
 * Threads: everything is the io side's, except the members of `step` and the atomics. */
#ifndef WORKER_IO_IMPL_H
#define WORKER_IO_IMPL_H

#include <pthread.h>

#include "worker/io.h"

enum {
    IO_RING = 1 << 14, /* commands under way */
    IO_EVENTS = 1 << 12,
    IO_GETS_MAX = 512, /* get requests under way */
    IO_PUT_TRIES = 3,  /* at least, before a sequence is told that its block cannot be stored */
    /* Handed to the client before it is polled again: answers and demands wait behind no more
     * copying than that. */
    IO_PUTS_A_TURN = 32,
    IO_NONE = -1,
};

typedef enum slot_state {
    SLOT_FREE,  /* free, or the step thread's */
    SLOT_DIRTY, /* sealed, to be put */
    SLOT_PUT,   /* put under way */
    SLOT_CLEAN, /* R nodes have it (or there is no store) */
} slot_state;

typedef struct host_slot {
    int32_t seq, layer, kv_head, block;
    slot_state state;
    bool hold;         /* prefill still reads it */
    bool orphan;       /* its context was forgotten or the block was sealed again: free when idle */
    uint8_t tries;     /* to store it */
    uint64_t tried_ns; /* when the first began */
    uint32_t pins;     /* arrivals that point into it */
    kv_ticket ticket;
    int32_t prev, next; /* in the list of its state: dirty queue, puts under way, held, clean LRU */
    int32_t seq_prev, seq_next; /* among those of its sequence */
} host_slot;

typedef struct slot_list {
    int32_t head, tail;
    uint32_t count;
} slot_list;

/* One block of a fetch group. */
typedef struct fetch_block {
    enum {
        FETCH_IDLE,
        FETCH_HOST,
        FETCH_PENDING,
        FETCH_ASKED,
        FETCH_ATTACHED,
        FETCH_LANDED,
        FETCH_FAILED
    } state;
    int32_t slot;                   /* host slot or landing slot */
    int32_t wait_group, wait_index; /* a demand that waits for this prefetch, or IO_NONE */
    bool taken;                     /* one has waited, and has it */
} fetch_block;

typedef struct fetch_group {
    fetch_block *block; /* [capacity of its exchange] */
    uint32_t count;     /* blocks of the fetch under way */
    uint32_t open;      /* of them without an answer */
    uint32_t cursor;    /* first that may be FETCH_PENDING */
    bool active;        /* between IO_FETCH and IO_GATHERED */
    bool queued;        /* stands in todo */
    bool verify;        /* the client compares digests */
    kv_class class;
    uint32_t step; /* of a demand: IO_FETCH's */
    uint64_t started_ns, deadline_ns;
} fetch_group;

typedef struct get_request {
    bool used;
    kv_ticket ticket;
    int32_t group;
    uint32_t count;
    uint32_t index[KV_BATCH_MAX]; /* in the group */
} get_request;

struct worker_io {
    io_config config;
    clock_ops clock;
    bool store, threaded, spin;
    uint64_t put_deadline_ns;
    uint32_t layout; /* layout_hash of the model's */

    ring *commands, *events, *freed; /* step -> io, io -> step, io -> step (slots) */
    struct {
        int32_t *stack;
        uint32_t count;
    } step; /* the step thread's free slots */

    uint8_t *memory; /* [slots, block_bytes] */
    host_slot *slot; /* [slots] */
    slot_list dirty, putting;
    slot_list clean, held;         /* held: clean, and prefill still reads it */
    int32_t *of_seq;               /* [S] the first of a sequence's slots, IO_NONE */
    uint64_t retry_ns, trouble_ns; /* of puts: not before; when it was last said that they fail */
    uint8_t *forgetting;           /* [S] IO_FORGET seen; waits for its puts and drop */
    uint32_t *seq_busy;            /* [S] puts and drops under way */
    kv_ticket *drop_ticket;        /* [S] 0: none */

    fetch_group *group; /* [groups] */
    get_request *get;   /* [IO_GETS_MAX] */
    int32_t *todo;      /* prefetch groups that may have something to ask for, oldest first */
    uint32_t todo_count;
    uint16_t *landing_refs; /* [landing slots] */
    uint8_t *landing_ahead; /* [landing slots] a prefetch took it */
    uint8_t *landing_sure;  /* [landing slots] its digest has been compared */
    uint32_t landing_slots; /* behind `memory`'s host slots */
    uint32_t ahead_out;     /* prefetched blocks asked for, or landed and not let go */
    /* prefetched blocks on their way: open addressing, key = block coordinates */
    uint64_t *flight_key; /* 0: empty */
    int32_t *flight_group, *flight_index;
    uint32_t flight_mask;

    kv_transport *transport;
    kv_client *client;
    pthread_t thread;
    int wake_fd;
    _Atomic bool stop, asleep;
    _Atomic bool awaited;      /* the step thread waits for the next */
    _Atomic uint32_t answered; /* grows with every arrival or event: what io_pause waits on */
    _Atomic uint32_t commands_sent, commands_done;
    _Atomic uint32_t busy; /* work under way that is not in the rings */
    io_stats stats, snapshot;
    _Atomic uint32_t snapshot_wanted, snapshot_made;
};

/* io_host.c: host slots */
kern_home *io_home(const worker_io *io, int32_t seq, int32_t layer, int32_t kv_head, int32_t block);
void io_host_sealed(worker_io *io, const io_command *command);
void io_host_unhold(worker_io *io, int32_t seq);
void io_host_forget(worker_io *io, int32_t seq);
bool io_host_put_some(worker_io *io); /* true: there are more, and credit */
void io_host_put_done(worker_io *io, int32_t slot, status result);
void io_host_unpin(worker_io *io, int32_t slot);
void io_host_forgotten_check(worker_io *io, int32_t seq);

/* io_fetch.c: groups */
void io_fetch_begin(worker_io *io, const io_command *command);
void io_fetch_gathered(worker_io *io, int32_t group);
void io_fetch_submit(worker_io *io);
void io_fetch_get_done(worker_io *io, const kv_done *done);

/* io.c */
void io_emit(worker_io *io, io_event_kind kind, int32_t seq, int32_t group, status result);
void io_answered(worker_io *io);

#endif
