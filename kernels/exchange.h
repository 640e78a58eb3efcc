/* kernels/exchange.h - part of kernels.h, which includes it: the table of blocks on the device, and
 * what a step asks the host for.
 *
 * Threads: a table is the device's; miss and arrival are handed over by the atomics that say so.
 * Memory: the caller's. Letters in shapes are those of kernels.h. */
#ifndef KERNELS_EXCHANGE_H
#define KERNELS_EXCHANGE_H

/* ---- block table: which blocks of a sequence are in the device pool, one layer's view -------- */

/* A sequence owns `entries[seq]` entries a (layer, KV head); an entry owns one slot of the pool and
 * holds one block or none. Slot numbers index the pool: pool + slot * block_bytes. */
typedef struct kern_table {
    int32_t *entry_of;      /* [S, Hk, B] storage block -> entry or -1 */
    int32_t *block_of;      /* [S, Hk, E] entry -> storage block or -1 */
    int32_t *slot_of;       /* [S, Hk, E] entry -> pool slot; fixed while the sequence is active */
    uint32_t *used_step;    /* [S, Hk, E] last step whose selection held it */
    const int32_t *entries; /* [S] entries in use, <= E */
    uint32_t seqs, kv_heads, max_blocks, max_entries;
} kern_table;

/* What is known of a sealed block, in memory that host and device both see. Only `slot` may change
 * while ops run; a slot that it named keeps its bytes until the stream has come to rest. */
typedef struct kern_home {
    uint64_t seed;        /* XXH3-64 of the block's id: block_id_hash */
    uint64_t digest;      /* XXH3-64 of the bytes under that seed */
    _Atomic int32_t slot; /* in host memory, -1: not there */
    uint32_t reserved;
} kern_home;

/* Blocks that lie in host memory, one layer's view: misses of them need nobody's answer. */
typedef struct kern_homes {
    const kern_home *home; /* [S, Hk, B], seq_stride between sequences; NULL: no block is there */
    const uint8_t *memory; /* slot s at memory + s * block_bytes */
    uint64_t seq_stride;
    uint32_t block_bytes;
} kern_homes;

/* A block that a step needs and the pool does not hold. In memory that host and device both see. */
typedef struct kern_miss {
    int32_t row, seq, kv_head, block; /* row: -1 in an install list */
    int32_t entry, slot;              /* where it goes */
    uint32_t agnostic;                /* 1: forced or importance-filled, 0: free query pick */
    uint32_t place;                   /* from plan: which pick of [R, Hk, M]; else its caller's */
} kern_miss;

enum { KERN_FROM_HOME = 1 }; /* kern_arrival.source_kind of what plan found in host memory */

/* Filled by plan or by the io side for the miss of the same index, `state` last (release). */
typedef struct kern_arrival {
    const void *source;    /* block_bytes readable until the gather is done */
    uint64_t seed;         /* XXH3-64 of the block's id: block_id_hash */
    uint64_t digest;       /* expected XXH3-64 of the bytes under that seed */
    _Atomic int32_t state; /* STATUS_PENDING, STATUS_OK, or the status that made the row void */
    int32_t source_kind;   /* KERN_FROM_HOME, or the io side's own; not looked at */
} kern_arrival;

/* The misses of one layer and their arrivals. `published` counts the misses the device has made
 * visible (release); the io side answers those of arrival[0 .. published) that are PENDING. */
typedef struct kern_exchange {
    kern_miss *miss;             /* [capacity] */
    kern_arrival *arrival;       /* [capacity] */
    _Atomic uint32_t published;  /* with the next one word: a device stores both at once */
    _Atomic uint32_t unanswered; /* of them PENDING when they were published; not written later */
    /* The step of the plan whose misses have all been answered: stored by who answers the last, or
     * by the plan that left nothing PENDING (kern_wait_args.step). */
    _Atomic uint32_t answered;
    uint32_t capacity; /* >= R * Hk * max_select: never overflows */
    /* NULL, or where a plan on a device puts the same once more, in memory of its own, so that the
     * ops behind it need not read it back over the link. Who answers looks at the lists above. */
    kern_miss *own_miss;       /* [capacity] */
    kern_arrival *own_arrival; /* [capacity] as it was published */
    uint32_t *own_count;       /* [3], at 8 bytes: published, the tag, unanswered */
    uint32_t own_tag;          /* exchanges that share that memory, in turn, have different ones */
    uint32_t *coming;          /* [capacity] by place: 1 from the plan on until the gather is done
                                * with the miss; 0 at first */
} kern_exchange;

/* Wakes whoever answers misses, and lets a single-threaded host answer them inside kern_wait. */
typedef struct kern_host {
    void (*notify)(void *self);                   /* after a publish; must not block */
    void (*pause)(void *self, uint64_t until_ns); /* from kern_wait: returns when something may have
                                                   * arrived, or at until_ns */
    void *self;
    clock_ops clock;
} kern_host;

/* clang-format off */
typedef struct kern_wait_args {      /* until every published miss has its arrival, or the deadline:
                                      * what is still PENDING then becomes DEADLINE */
    kern_exchange *exchange;
    const kern_host *host;
    uint64_t deadline_ns;
    uint64_t *waited_ns;             /* shared memory, added to: time with nothing to do but wait */
    uint32_t step;                   /* 0, or of the plan, where who answers promises to answer all and
                                      * then to store `answered`: without waited_ns a stream may wait
                                      * for that, and for no deadline, with no thread on the device */
} kern_wait_args;

typedef struct kern_gather_args {    /* copy each arrived block into its slot and check its digest in
                                      * the same pass. A miss that failed or does not match unmaps its
                                      * entry and makes its row void (row_status) */
    kern_exchange *exchange;
    kern_table table;
    uint8_t *pool;
    int32_t *row_status;             /* [R]; misses with row -1 report through arrival.state only */
    uint32_t block_bytes;
    bool ahead;                      /* who needs the blocks comes later: slower, if what runs beside is
                                      * then faster */
    bool verify;                     /* false only in the control that proves tests can fail */
} kern_gather_args;

typedef struct kern_bring_args {     /* wait, then gather; the time of waiting is not counted */
    kern_wait_args wait;             /* waited_ns NULL */
    kern_gather_args gather;
} kern_bring_args;
/* clang-format on */

#endif
