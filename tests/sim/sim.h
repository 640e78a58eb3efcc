/* tests/sim/sim.h - a whole cluster in one thread, from a seed.
 *
 * Flow:    load (what workers would do) -> kv_client -> net -> kv_server; faults -> all of them;
 *          oracle watches and says which promise broke.
 * Threads: one. Memory: one arena for the simulator, one for each life of a node or client.
 *
 * sim.c     one seed from birth to the last read
 * net.c     the network
 * load.c    puts, gets, drops, cancels; what is handed out is held for a while
 * faults.c  which faults a seed has, and when they strike
 * fetch.c   the io side of a worker as the second client, in some seeds
 * oracle.c  what was acknowledged, what must still be there, what must never happen */
#ifndef TESTS_SIM_SIM_H
#define TESTS_SIM_SIM_H

#include "kvstore/client.h"
#include "kvstore/server.h"
#include "tests/sim/net.h"

enum {
    SIM_NODES = 3,
    SIM_CLIENTS = 2,
    SIM_ADMIN = SIM_NODES + SIM_CLIENTS, /* port of who hands out maps */
    SIM_CONTEXTS = 48,
    SIM_PER_CONTEXT = 24,
    SIM_BLOCKS = SIM_CONTEXTS * SIM_PER_CONTEXT,
    SIM_OPS = 96, /* open operations of a client */
    SIM_BATCH = 16,
    SIM_SLOTS_MAX = 64,
    SIM_LINES = 400, /* of the trace kept for a failure */
    SIM_LINE = 144,
    SIM_WATCHED = 1024, /* exchanges the oracle listens to */
};

static const uint64_t SIM_US = 1000, SIM_MS = 1000 * 1000;

typedef enum sim_fault {
    FAULT_DROP,
    FAULT_DELAY,
    FAULT_REORDER,
    FAULT_DUPLICATE,
    FAULT_BREAK,
    FAULT_PARTITION,
    FAULT_KILL,
    FAULT_RESTART,
    FAULT_PAUSE,
    FAULT_SLOW,
    FAULT_STALL, /* the client itself is not scheduled */
    FAULT_FLIP_WIRE,
    FAULT_FLIP_MEMORY,
    FAULT_MAP,
    FAULT_DRAIN,
    FAULTS,
} sim_fault;
extern const char *const sim_fault_name[FAULTS];

typedef struct sim_node {
    arena *memory;
    kv_transport *transport;
    kv_server *server;                    /* NULL: dead */
    uint64_t paused_ns, slow_ns, next_ns; /* not polled before; polled rarely until; next poll */
    uint64_t restart_ns;                  /* when dead */
    uint64_t bad_ns;                      /* last moment it was not in full health */
    uint64_t born_ns;
    uint32_t starts;
    uint64_t lost_ns; /* its memory, last */
} sim_node;

typedef struct sim_context {
    context_id id;
    uint32_t client;
    bool used, dropping, dropped; /* dropped: DROP was acknowledged as complete */
    uint64_t drop_ns;
} sim_context;

typedef struct sim_block {
    block_id id;
    uint64_t digest;
    bool known; /* id and digest are set */
    bool tried; /* put at least once */
    bool acked;
    uint64_t put_ns;    /* submit of the put that was acknowledged first or again */
    uint64_t losses_at; /* all losses when it was submitted */
    uint64_t flipped_ns[SIM_NODES];
    uint64_t flips, flips_at; /* of its stored bytes: all, and when it was submitted */
} sim_block;

typedef struct sim_op {
    kv_ticket ticket; /* 0: free */
    kv_kind kind;
    kv_class class;
    uint32_t count;
    uint32_t block[SIM_BATCH];
    bool foreign[SIM_BATCH]; /* asked for with a digest that nobody put */
    uint64_t submit_ns, deadline_ns;
    uint64_t losses_at, flips_at;
    bool canceled, final;     /* final: of the last read, must succeed */
    uint32_t must[SIM_BATCH]; /* GET: nodes that were well and had the block; PUT: [0] well nodes */
} sim_op;

typedef struct sim_held {
    int32_t slot;
    uint32_t block;
    uint64_t until_ns;
} sim_held;

typedef struct sim_client {
    arena *memory;
    kv_transport *transport;
    kv_client *client; /* NULL: not in this seed */
    uint8_t *landing;
    sim_op op[SIM_OPS];
    sim_held held[SIM_SLOTS_MAX];
    uint32_t held_count, open_count;
    uint64_t stalled_ns, bad_ns, next_op_ns;
    uint32_t cursor;                   /* slot whose poison is looked at next */
    bool landed[SIM_SLOTS_MAX];        /* written while it was posted, not poisoned since */
    uint64_t heard_ns[SIM_NODES];      /* last LEASE or HELLO that a node got */
    uint64_t welcomed_ns[SIM_NODES];   /* last WELCOME from a node */
    uint64_t lease_lost_ns[SIM_NODES]; /* last time the node could let go of our contexts */
} sim_client;

/* An exchange as the taps saw it: a PUT that was delivered, to be compared with its answer. */
typedef struct sim_watch {
    uint64_t request;
    uint32_t node, client, block;
    uint64_t since_ns;
    bool fenced; /* must not be answered OK: it carried an older epoch, or the node was out */
    bool get;
} sim_watch;

typedef struct sim_profile { /* of a seed */
    bool on[FAULTS];
    bool clean;  /* no fault at all: everything must succeed */
    bool worker; /* the second port is a worker's io side */
    uint32_t clients, replicas, slots, domains;
    uint64_t node_bytes, length_ns, gap_ns, poll_ns;
    uint64_t fault_gap_ns;
} sim_profile;

typedef struct sim_totals {
    uint64_t seeds, simulated_ns, messages, puts_acked, puts_failed, blocks_read, blocks_failed,
        fetched, fetch_failed, sealed, drops, canceled, final_reads, excused, must_reads, must_puts;
    uint64_t faults[FAULTS];
} sim_totals;

typedef struct sim {
    arena *memory;
    uint64_t seed;
    bool tracing, failed;
    char reason[512];
    rng random;     /* of the load and the faults */
    rng net_random; /* of the network */
    uint64_t now_ns;
    clock_ops clock;
    net *net;
    net_weather weather;
    sim_profile profile;
    cluster_config config;
    cluster_map map; /* the newest */
    block_layout layout;
    uint32_t layout_hash;
    sim_node node[SIM_NODES];
    sim_client client[SIM_CLIENTS];
    struct sim_fetch *fetch;
    sim_context context[SIM_CONTEXTS];
    sim_block block[SIM_BLOCKS];
    sim_watch watch[SIM_WATCHED];
    uint32_t watch_next;
    uint64_t losses; /* of a node's memory, all together */
    uint64_t map_changed_ns, full_ns, drained_ns;
    uint64_t fault_next_ns;
    bool calm;
    bool structure_dirty; /* a loss happened: look at all copies */
    uint64_t scan_next_ns;
    uint64_t trace_hash;
    struct {
        kv_transport *transport;
        kv_peer peer[SIM_NODES];
        uint64_t until_ns[SIM_NODES];
        wire_node *rows;
    } admin;
    char (*lines)[SIM_LINE];
    uint64_t lines_count;
    sim_totals totals;
} sim;

/* sim.c */
sim *sim_create(void);
void sim_destroy(sim *s);
bool sim_run(sim *s, uint64_t seed); /* false: a promise was broken; s->reason says which */
void sim_node_start(sim *s, uint32_t n);
void sim_trace(sim *s, const char *format, ...) __attribute__((format(printf, 2, 3)));
void sim_trace_print(const sim *s, FILE *out); /* the last lines */
/* A promise ("P1") is broken; the first one counts. */
void sim_fail(sim *s, const char *promise, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
uint64_t sim_below(sim *s, uint64_t bound);
bool sim_chance(sim *s, double share);

/* load.c */
void load_step(sim *s, uint32_t c);        /* submit, cancel, release what is due */
void load_drain(sim *s, uint32_t c);       /* take completions */
void load_release_all(sim *s, uint32_t c); /* landing slots */
bool load_read(sim *s, uint32_t c, const uint32_t *block, uint32_t count, uint64_t ns);
void load_bytes(const sim *s, uint32_t block, uint8_t *out);

/* fetch.c */
typedef struct sim_fetch sim_fetch;
void fetch_start(sim *s);  /* s->fetch, when the profile has a worker */
void fetch_step(sim *s);   /* poll it, look at what came, ask for more */
bool fetch_finish(sim *s); /* in a calm cluster: forget everything; true: done and all is back */
void fetch_end(sim *s);

/* faults.c */
void faults_draw(sim *s); /* profile and weather of the seed */
void faults_step(sim *s);
void faults_end(sim *s); /* all is well from here on */
void faults_admin_open(sim *s);

/* oracle.c */
extern const net_tap oracle_tap;
void oracle_submitted(sim *s, uint32_t c, sim_op *op);
void oracle_done(sim *s, uint32_t c, const sim_op *op, const kv_done *done);
void oracle_check(sim *s);     /* after every step */
void oracle_structure(sim *s); /* every acknowledged block has the copies it must have */
void oracle_idle(sim *s);      /* nothing is under way: everything is back */
void oracle_lost_memory(sim *s, uint32_t n);
bool oracle_intact(sim *s, uint32_t n, uint32_t block);
bool oracle_well(const sim *s, uint32_t n, uint32_t c); /* node and both ways to it, for a while */

#endif
