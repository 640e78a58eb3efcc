/* cluster/cli/ask.h - questions to nodes over their control plane.
 *
 * Threads: one. Memory: answers are plain data. */
#ifndef CLUSTER_CLI_ASK_H
#define CLUSTER_CLI_ASK_H

#include "cluster/cluster.h"

typedef enum ask_state { ASK_UNREACHABLE, ASK_STARTING, ASK_SERVING, ASK_DRAINING } ask_state;

typedef struct ask_answer {
    ask_state state;
    char version[32];
    uint64_t incarnation, epoch, uptime_ms, contexts, connections;
    uint64_t slots, slots_used, slot_bytes, memory_bytes, used_bytes;
    uint64_t served_blocks, served_bytes, stored_blocks, stored_bytes;
    uint64_t misses, corrupt, busy, dropped_blocks;
} ask_answer;

/* A node and how it is asked: with TLS when the configuration has it. */
typedef struct ask_whom {
    const cluster_config *config;
    const char *control;
    uint32_t timeout_ms;
} ask_whom;

const char *ask_state_name(ask_state state); /* "serving" */
/* grpc.health.v1: true when the node as a whole says SERVING. */
bool ask_health(const ask_whom *whom);
/* Status and Stats together. UNREACHABLE or DEADLINE when the node does not answer. */
status ask_node(const ask_whom *whom, ask_answer *out_answer);
status ask_drain(const ask_whom *whom);

#endif
