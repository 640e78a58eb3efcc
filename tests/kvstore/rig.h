/* tests/kvstore/rig.h - a client and some nodes in one thread, on a clock that the test turns. */
#ifndef TESTS_KVSTORE_RIG_H
#define TESTS_KVSTORE_RIG_H

#include "kvstore/kvstore.h"
#include "tests/test.h"

enum { RIG_NODES_MAX = 5, RIG_US = 1000, RIG_MS = 1000 * 1000 };

typedef struct rig_node {
    arena *memory;
    kv_transport *transport;
    kv_server *server; /* NULL: killed */
    bool paused;       /* not polled, as after SIGSTOP */
    kv_faults faults;  /* for its next start */
    uint64_t memory_bytes;
    uint32_t starts;
} rig_node;

typedef struct rig {
    uint64_t now_ns;
    clock_ops clock;
    arena *memory; /* hub and client */
    kv_hub *hub;
    kv_transport *transport;
    kv_client *client;
    cluster_config config;
    block_layout layout;
    uint32_t block_bytes;
    uint8_t *landing;
    uint32_t nodes;
    rig_node node[RIG_NODES_MAX];
} rig;

typedef struct rig_options {
    uint32_t nodes, replicas, landing_slots;
    uint64_t rtt_ns;
    uint64_t memory_bytes; /* a node */
    bool trust;            /* the client does not verify */
    kv_faults faults;      /* of every node */
    uint32_t inflight;     /* blocks a class; 0: 256 */
    uint32_t card_threads; /* of the hub's network card; 0: none */
} rig_options;

rig *rig_create(const rig_options *options);
void rig_destroy(rig *r);
void rig_node_start(rig *r, uint32_t i);
void rig_node_kill(rig *r, uint32_t i);
/* Let everyone work and time pass in small steps. */
void rig_run(rig *r, uint64_t ns);
/* Run until a completion comes or `ns` have passed. */
bool rig_next(rig *r, uint64_t ns, kv_done *out_done);
bool rig_ready(rig *r); /* every living node is connected */

/* Block k of context n: its id, its bytes (deterministic) and their digest. */
block_id rig_id(const rig *r, uint64_t context, uint32_t block);
void rig_fill(const rig *r, const block_id *id, uint8_t *out_bytes);
uint64_t rig_digest(const rig *r, const block_id *id);

status rig_put(rig *r, const block_id *id); /* and wait for the completion */
/* Get `count` blocks and wait; every OK block's bytes are compared, its slot released. */
kv_done rig_get(rig *r, const block_id *id, uint32_t count, kv_class class, status *out_status);
void rig_check(rig *r); /* conservation of slots at client and nodes */
/* Rank of the nodes for block 0 of a context. */
uint32_t rig_rank(const rig *r, const block_id *id, uint32_t rank);

#endif
