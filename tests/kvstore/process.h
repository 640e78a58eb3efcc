/* tests/kvstore/process.h - store nodes as processes of their own, and a client over the network.
 */
#ifndef TESTS_KVSTORE_PROCESS_H
#define TESTS_KVSTORE_PROCESS_H

#include <sys/types.h>

#include "kvstore/kvstore.h"
#include "tests/test.h"

typedef struct node_process {
    pid_t pid; /* 0: not running */
    bool tcp;
    char name[16];
    char data[CLUSTER_ADDRESS_MAX], control[CLUSTER_ADDRESS_MAX];
} node_process;

/* Start shoal-kvstore and read its ready line. data NULL: any port. */
void node_spawn(node_process *n, const char *name, const char *data, const char *faults);
/* The same over plain TCP, or UCX. */
void node_spawn_over(node_process *n, const char *name, const char *data, const char *faults,
                     bool tcp);
void node_spawn_sized(node_process *n, const char *name, const char *memory, bool tcp); /* "1MiB" */
/* Of 32 MiB; lease_grace "1s". */
void node_spawn_grace(node_process *n, const char *name, const char *lease_grace, bool tcp);
void node_signal(node_process *n, int signal);
int node_reap(node_process *n); /* wait for its end: exit code, or 128 + signal */

typedef struct store {
    arena *memory;
    cluster_config config;
    block_layout layout;
    uint32_t block_bytes, slots;
    kv_transport *transport;
    kv_client *client;
} store;

/* A client of these nodes, connected to all of them within five seconds if `ready`. */
void store_open(store *s, const node_process *node, uint32_t nodes, uint32_t replicas, bool ready);
void store_open_layout(store *s, const node_process *node, uint32_t nodes, uint32_t replicas,
                       bool ready, block_layout layout);
void store_close(store *s);
block_id store_id(const store *s, uint64_t context, uint32_t block);
void store_fill(const store *s, const block_id *id, uint8_t *out_bytes);
/* Next completion within ns of real time. */
bool store_next(store *s, uint64_t ns, kv_done *out_done);
/* Put blocks [0, count) of a context, up to 64 in flight; the number that is OK. */
uint32_t store_put_all(store *s, uint64_t context, uint32_t count);
/* Get them again in batches; bytes are compared. Number OK; *out_late: latest end past a deadline.
 */
uint32_t store_get_all(store *s, uint64_t context, uint32_t count, uint32_t batch,
                       uint64_t *out_late_ns);

#endif
