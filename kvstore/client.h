/* kvstore/client.h - inside of a client: requests, blocks, asks, nodes.
 *
 * client.c       create, submit, complete, landing slots, stats
 * client_node.c  connections, handshake, map, leases, suspicion
 * client_get.c   asking for blocks, replies, hedges, failover
 * client_put.c   writing to R nodes, dropping contexts
 *
 * A request is what the caller submitted. A GET has blocks. An ask is one frame sent to one node:
 * at most WIRE_GET_MAX blocks of one GET, or one PUT or DROP. An ask has its own id, which starts
 * at random and is never used again; a reply must name an open ask of that very connection. */
#ifndef KVSTORE_CLIENT_H
#define KVSTORE_CLIENT_H

#include "kvstore/maps.h"
#include "kvstore/plant.h"
#include "kvstore/timer.h"

enum {
    CLIENT_NONE = UINT32_MAX,
    CLIENT_RANKS_MAX = 8,   /* how far down the ranks a block is looked for */
    CLIENT_DROPS_MAX = 64,  /* DROPs in flight */
    CLIENT_PLACES = 256,    /* remembered placements */
    CLIENT_LATE_FACTOR = 4, /* an ask this many times hedge_after_ns old is given up */
    CLIENT_PUT_SHARE = 8,   /* a put waits this share of its time for one node, if that is more */
};

typedef enum client_timer_kind {
    TIMER_NODE,     /* dial, or give up a handshake */
    TIMER_LEASE,    /* next heartbeat */
    TIMER_DEADLINE, /* of a request */
    TIMER_RETRY,    /* of a request whose nodes were busy */
    TIMER_ASK,      /* it is late: hedge, then give up */
} client_timer_kind;

typedef enum node_state {
    NODE_OUT,  /* not in the map, or not alive in it and no scout */
    NODE_IDLE, /* to be dialled when its timer says so: soon */
    NODE_DIALING,
    NODE_GREETING, /* HELLO sent */
    NODE_READY,
    NODE_DOWN, /* failed: passed over until its timer says so */
} node_state;

typedef struct client_node {
    char name[CLUSTER_NAME_MAX];
    char address[CLUSTER_ADDRESS_MAX];
    uint32_t domain; /* lowest node number with the same failure domain */
    node_state state;
    kv_peer peer; /* 0: none */
    uint64_t incarnation;
    uint64_t suspect_until_ns; /* gets ask the others first */
    uint64_t
        put_suspect_until_ns; /* puts do: not for a late get, since copies stay where they went */
    uint64_t full_since_ns;   /* its connection takes nothing since then; 0: it does */
    uint64_t owes_since_ns;   /* asked then, and not a word from it since; 0: it owes nothing */
    uint64_t backoff_ns;
    bool was_ready;
    bool refused; /* its last answer was a refusal that only people can mend */
    bool scout;   /* the map has no node alive: connected to hear of a newer one, nothing else */
    kv_timer timer, lease;
} client_node;

typedef enum block_state {
    BLOCK_WAIT_SLOT, /* no landing slot yet */
    BLOCK_WAIT_NODE, /* to be asked for at the next dispatch */
    BLOCK_WAIT_TIME, /* its nodes are busy: asked again after the request's retry timer */
    BLOCK_ASKED,
    BLOCK_DONE,
} block_state;

typedef struct client_block {
    uint32_t next; /* of the same request; of the free list */
    uint32_t request;
    block_id id;
    uint64_t digest;
    uint64_t tried;     /* nodes asked already */
    uint64_t transient; /* of these, the ones that may answer better later */
    int32_t slot;       /* landing slot, -1: none */
    status result;      /* when done; before: the gravest cause so far */
    block_state state;
    uint8_t asks_open;
    uint8_t landing; /* 1 + node whose reply is being read into the slot; 0: none */
} client_block;

typedef struct client_request {
    uint32_t next, prev; /* in the list of its class, oldest first; free list; done list */
    uint32_t generation;
    bool active, done;
    kv_kind kind;
    kv_class class;
    uint64_t submit_ns, deadline_ns;
    uint64_t hint_ns; /* longest wait a busy node asked for */
    kv_timer deadline, retry;
    uint32_t first_ask;
    status result;
    uint32_t hedged, failed_over;
    /* GET */
    uint32_t first_block, count, done_count;
    uint32_t waiting; /* blocks in WAIT_SLOT and WAIT_NODE */
    bool unchecked;   /* their digests are the caller's to compare */
    /* PUT and DROP, as sets of nodes */
    uint64_t pending;   /* DROP: still to be told. PUT: 1 while it wants to be dispatched */
    uint64_t open;      /* asked, not answered */
    uint64_t late;      /* of open: not counted on any more */
    uint64_t acked;     /* PUT: verified there */
    uint64_t tried;     /* PUT: asked since it last made sense to */
    uint64_t transient; /* PUT: of tried, may do better later */
    uint64_t failed;    /* DROP: could not be told */
    block_id id;        /* PUT; DROP: its context */
    uint64_t digest;
    uint32_t stage; /* PUT: staging buffer */
} client_request;

typedef struct client_ask {
    uint64_t id; /* 0: free */
    kv_kind kind;
    uint32_t node;
    uint64_t epoch;      /* of the map it was sent under */
    uint32_t request;    /* CLIENT_NONE: over, waits for its body */
    uint32_t next, prev; /* of the same request: places in the table */
    kv_timer timer;
    uint64_t open;      /* GET: ordinals not answered */
    bool hedge_checked; /* its timer fired once */
    bool done_seen;
    bool lent; /* its body is with the transport */
    wire_get_list list;
    uint32_t block[WIRE_GET_MAX];
    alignas(8) uint8_t body[WIRE_GET_BODY_MAX];
} client_ask;

typedef enum slot_use { SLOT_FREE, SLOT_POSTED, SLOT_FILLED } slot_use;

typedef struct placement {
    context_id context;
    uint32_t group;
    uint32_t count;                 /* 0: empty */
    uint8_t rank[CLIENT_RANKS_MAX]; /* node numbers */
} placement;

typedef struct client_stage {
    uint32_t next; /* of the free list */
    uint32_t lent; /* sends that still read it */
    bool used;     /* belongs to a request */
} client_stage;

struct kv_client {
    kv_client_config config;
    cluster_config cluster; /* our copy; its map is the newest known */
    kv_transport *transport;
    uint32_t layout, block_bytes;
    uint64_t owner; /* random id of this client */
    rng random;
    kv_timers timers;
    kv_maps maps;
    wire_node *map_scratch;

    client_node node[CLUSTER_NODES_MAX];
    uint8_t number_of[CLUSTER_NODES_MAX]; /* map index -> node number */
    uint32_t nodes_alive, domains_alive;
    placement *places; /* [CLIENT_PLACES] */

    client_block *blocks;
    uint32_t block_free;
    client_request *requests;
    uint32_t request_free, requests_max;
    uint32_t list_head[KV_CLASSES], list_tail[KV_CLASSES];
    uint32_t drop_head, drop_tail;
    uint32_t done_head, done_tail;
    uint32_t inflight[KV_CLASSES], drops; /* blocks submitted and not polled as done */

    client_ask *asks; /* [ask_mask + 1], an ask lies at id & ask_mask */
    uint32_t ask_mask, asks_used;
    uint64_t ask_next;

    uint8_t *slot_use;   /* [landing_slots] */
    uint8_t *slot_class; /* who took it */
    uint32_t *slot_free; /* stack */
    uint32_t slots_free, slots_filled, prefetch_slots;

    client_stage *stages;
    uint8_t *stage_bytes;
    uint32_t stages_max;
    uint32_t stage_free; /* neither used nor lent, the last one freed first */

    bool dirty;          /* something may be dispatched */
    bool starved;        /* this dispatch: a DEMAND found no landing slot */
    bool blocked;        /* a send or a table refused: try again soon */
    uint64_t full;       /* this dispatch: nodes whose connection took no more */
    status *done_status; /* [KV_BATCH_MAX] of the completion handed out last */
    int32_t *done_slot;
    kv_client_stats stats;
};

/* client.c */
void client_complete(kv_client *c, uint32_t request, status result);
client_ask *client_ask_new(kv_client *c, kv_kind kind, uint32_t node, uint32_t request);
void client_ask_end(kv_client *c, client_ask *ask); /* frees it, or when its body is back */
client_ask *client_ask_find(kv_client *c, uint64_t id, uint32_t node); /* NULL: not open there */
status client_send(kv_client *c, uint32_t node, const kv_message *m);
void client_stage_free(kv_client *c, uint32_t stage, bool by_request);
void client_retry_later(kv_client *c, uint32_t request);
void client_slot_take(kv_client *c, client_block *b, kv_class class);
void client_slot_drop(kv_client *c, client_block *b); /* posted, will not be filled */

/* client_node.c */
extern const kv_events client_events;
void client_nodes_update(kv_client *c); /* after the map changed */
void client_node_timer(kv_client *c, uint32_t node);
void client_node_lease(kv_client *c, uint32_t node);
void client_node_suspect(kv_client *c, uint32_t node, bool by_puts_too);
bool client_node_connecting(const kv_client *c, uint32_t node);
/* So for the first time, and nothing is known against it. */
bool client_node_new(const kv_client *c, uint32_t node);
bool client_node_in_map(const kv_client *c, uint32_t node); /* alive in it */
uint64_t client_nodes_ready(const kv_client *c);            /* as a set */
const placement *client_place(kv_client *c, context_id context, uint32_t layer);
/* Best node for one more try: READY and not suspect, then READY. CLIENT_NONE: none; *out_wait: one
 * that is just being connected may do. */
uint32_t client_node_pick(const kv_client *c, const placement *p, kv_kind kind, uint64_t not_these,
                          bool *out_wait);

/* client_get.c */
void client_get_dispatch(kv_client *c, uint32_t request);
void client_get_finish(kv_client *c, uint32_t request, status result); /* blocks not done end so */
void client_get_failed(kv_client *c, client_ask *ask, status why);     /* all that is still open */
void client_get_late(kv_client *c, client_ask *ask);
void client_get_retry(kv_client *c, uint32_t request);
/* Where the bytes of a BLOCK go; NULL: it is late, or another reply is going there. */
void *client_get_land(kv_client *c, uint32_t node, const kv_message *m);
void client_on_block(kv_client *c, uint32_t node, const kv_message *m);
void client_on_done(kv_client *c, uint32_t node, const kv_message *m);

/* client_put.c */
void client_put_dispatch(kv_client *c, uint32_t request);
void client_drop_dispatch(kv_client *c, uint32_t request);
void client_put_failed(kv_client *c, client_ask *ask, status why, uint64_t hint_ns);
void client_drop_failed(kv_client *c, client_ask *ask, status why);
void client_put_late(kv_client *c, client_ask *ask);
void client_put_retry(kv_client *c, uint32_t request);
void client_put_forget(kv_client *c, uint32_t node); /* a new incarnation: its copies are gone */
void client_on_result(kv_client *c, uint32_t node, wire_kind kind, const kv_message *m);

#endif
