/* kvstore/node.h - the program shoal-kvstore: a data thread, a control thread, and what they say.
 *
 * Threads: the data thread owns transport and server; the main thread owns the control plane. They
 *          talk through two rings, each with one producer and one consumer, and wake each other by
 *          an eventfd. No lock on the data path.
 *
 * main.c     flags, signals, exit codes
 * node.c     the data thread
 * control.c  the Node service and the health service */
#ifndef KVSTORE_NODE_H
#define KVSTORE_NODE_H

#include <pthread.h>

#include "kvstore/kvstore.h"

typedef struct node_options {
    char name[CLUSTER_NAME_MAX];
    char listen[CLUSTER_ADDRESS_MAX];
    char control[CLUSTER_ADDRESS_MAX];
    uint64_t memory_bytes, lease_grace_ns;
    uint32_t connections_max;
    bool has_map;
    cluster_config config; /* map, network and TLS are used; the rest stands above */
    bool spin;
    bool json;
    log_level level;
    kv_faults faults;
} node_options;

typedef enum node_command { NODE_STATS, NODE_DRAIN, NODE_STOP } node_command;

typedef struct node {
    arena *memory;
    const node_options *options;
    kv_transport *transport;
    kv_server *server;
    ring *commands; /* node_command, main -> data */
    ring *answers;  /* kv_server_stats, data -> main: one for each NODE_STATS and NODE_DRAIN */
    int command_fd, answer_fd;
    pthread_t thread;
    uint64_t started_ns;
    atomic_bool stopped; /* the data thread is through */
} node;

/* Opens the transport, listens and starts the data thread. */
status node_start(node *n, const node_options *options);
/* BUSY: too many commands wait. */
status node_tell(node *n, node_command command);
void node_stop(node *n); /* and wait for the thread */

/* The control plane on this thread; returns the signal that ended it. */
typedef struct control control;
status control_open(node *n, control **out_control);
const char *control_address(const control *c);
void control_poll(control *c);
int control_fd(const control *c);
void control_drain(control *c); /* health NOT_SERVING, no new calls */
bool control_drained(const control *c);
void control_close(control *c);

#endif
