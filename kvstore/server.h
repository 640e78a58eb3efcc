/* kvstore/server.h - inside of a node: connections, jobs, and who does what.
 *
 * server.c      create, poll, connections, handshake, leases, stats
 * server_job.c  bounded queues by class and the answering of jobs
 * server_put.c  PUT and DROP: reserve, verify, publish, forget */
#ifndef KVSTORE_SERVER_H
#define KVSTORE_SERVER_H

#include "kvstore/contexts.h"
#include "kvstore/maps.h"
#include "kvstore/plant.h"

enum {
    SERVER_JOBS_MAX = 512,   /* exchanges queued or being answered */
    SERVER_SCRATCH = 16,     /* copies of blocks to flip a bit in, when faults ask for it */
    SERVER_SERVED = 1024,    /* blocks sent and not looked at since */
    SERVER_SCRATCH_BIT = 62, /* cookies of scratch bodies; others are slots, or maps (bit 63) */
};

typedef struct server_conn {
    kv_peer peer;           /* 0: free */
    uint64_t since_ns;      /* accepted */
    uint64_t full_since_ns; /* it takes nothing since then; 0: it does */
    uint64_t heard_ns;      /* about when it last said something */
    uint64_t lease_ns;      /* that it last asked for */
    uint64_t owner;         /* id in its HELLO */
    uint32_t tenant;
    uint32_t pending; /* jobs in the queues */
    bool ready;       /* HELLO accepted */
    bool heard;       /* since the last look at the clock */
    uint32_t landing; /* slot that the body of a PUT is being read into; KV_NO_SLOT: none */
    uint64_t landing_request;
} server_conn;

typedef enum job_kind { JOB_GET, JOB_PUT, JOB_RESULT } job_kind;

typedef struct job {
    uint32_t next; /* in its queue or the free list */
    job_kind kind;
    uint32_t conn;
    kv_class class;
    uint64_t request;
    uint64_t since_ns;    /* when it came */
    uint64_t ready_ns;    /* not answered before (a delay that faults ask for) */
    uint64_t deadline_ns; /* GET: nobody waits after it */
    /* GET */
    uint32_t ordinal; /* next block to answer */
    bool fated;       /* that block's faults were drawn already; its send was refused */
    bool corrupted;   /* faults: this block goes out flipped */
    int8_t block_status[WIRE_GET_MAX];
    wire_get_list list;
    /* PUT, RESULT */
    uint32_t slot;   /* reserved, or KV_NO_SLOT once the result stands */
    wire_kind reply; /* PUT_DONE or DROP_DONE */
    status result;
    uint64_t hint_ns;
} job;

typedef struct job_queue {
    uint32_t head, tail, count;
} job_queue;

struct kv_server {
    kv_server_config config;
    char address[CLUSTER_ADDRESS_MAX]; /* bound */
    kv_transport *transport;
    kv_tier tier;
    kv_contexts *contexts;
    server_conn *conn;  /* [connections_max] */
    uint32_t conn_last; /* where the last lookup hit */
    job *jobs;
    uint32_t job_free, jobs_used;
    job_queue queue[KV_CLASSES];
    uint32_t layout, block_bytes; /* 0: not fixed yet */
    uint64_t incarnation;
    cluster_map map; /* newest known; its epoch is the node's; node_count 0: rows not known */
    kv_maps maps;
    wire_node *map_scratch;
    bool fenced; /* the map says this node is out */
    bool busy;   /* the last poll moved something */
    uint64_t check_next_ns;
    rng random, fault_random;
    block_id *served; /* [SERVER_SERVED], a ring: those to look at */
    uint32_t served_first, served_count;
    uint8_t *scratch[SERVER_SCRATCH];
    uint32_t scratch_lent; /* bit i: in flight */
    kv_server_stats stats;
};

/* server_job.c */
void server_jobs_init(kv_server *s);
/* A job at the tail of its class, or NULL: full (make room for DEMAND by shedding PREFETCH). */
job *server_job_add(kv_server *s, uint32_t conn, job_kind kind, kv_class class, uint64_t request);
void server_get(kv_server *s, uint32_t conn, const kv_message *m);
bool server_jobs_run(kv_server *s, uint64_t now);
void server_jobs_forget(kv_server *s, uint32_t conn); /* its peer is gone */
/* One of the blocks that were sent, when nothing else is to do: whether its memory still has the
 * bytes. Who asks compares digests itself, so nobody waits for this. True: there was one. */
bool server_look_behind(kv_server *s);
/* When a delayed job becomes ready; UINT64_MAX: none is delayed. */
uint64_t server_jobs_next(const kv_server *s);

/* server_put.c */
void server_put(kv_server *s, uint32_t conn, const kv_message *m);
/* Where the body of a PUT goes: a reserved slot, which is the connection's until the PUT has come
 * whole; NULL: it will be refused, or is copied when it has. */
void *server_put_land(kv_server *s, uint32_t conn, const kv_message *m);
void server_put_land_end(kv_server *s, uint32_t conn); /* the slot goes back, if there is one */
void server_drop(kv_server *s, uint32_t conn, const kv_message *m);
void server_put_verify(kv_server *s, job *j, uint64_t now); /* reserved -> result */
void server_discard(kv_server *s, uint32_t slot);           /* a published slot and its links */
bool server_still_right(kv_server *s, uint32_t slot);       /* published; false: it was given up */
bool server_reclaim(kv_server *s);                          /* some slots of dropped contexts */

/* server.c */
void server_malformed(kv_server *s, uint32_t conn, const char *what);
/* True when the frame's epoch is older than ours: the map is on its way, refuse with FENCED. */
bool server_epoch_old(kv_server *s, uint32_t conn, uint64_t epoch);
status server_send(kv_server *s, uint32_t conn, const kv_message *m);
/* PUT_DONE, DROP_DONE or BUSY. */
status server_send_result(kv_server *s, uint32_t conn, wire_kind kind, const wire_result *result);
uint64_t server_busy_hint(const kv_server *s, kv_class class);

#endif
