/* cluster/cli/daemon.h - the node processes of this host: start, find again, stop.
 *
 * A node is found by its pid file, which holds the pid and the start time that /proc shows for it,
 * so a number that the system gave to another process is never signalled.
 * Threads: one.
 * Memory:  none. */
#ifndef CLUSTER_CLI_DAEMON_H
#define CLUSTER_CLI_DAEMON_H

#include <sys/types.h>

#include "cluster/cluster.h"

typedef struct daemon_process {
    pid_t pid;        /* 0: none */
    uint64_t started; /* clock ticks after boot */
} daemon_process;

/* The node's process while it lives; pid 0 when it does not. A stale pid file is no failure. */
daemon_process daemon_find(const char *state_dir, const char *name);
/* Starts shoal-kvstore for the node, with its output in NAME.log, and writes the pid file. What the
 * node is told is the name of `file`, from which `config` is: all of it holds for the node. */
status daemon_start(const char *file, const cluster_config *config, const cluster_node *node,
                    daemon_process *out_process);
/* SIGTERM, then SIGKILL after `grace_ns`; removes the pid file. *out_killed: the grace was not
 * enough. An interrupt ends the grace. */
status daemon_stop(const char *state_dir, const char *name, uint64_t grace_ns, bool *out_killed);
bool daemon_alive(daemon_process process);
/* The last line of the node's log without its end of line; "" when there is none. */
void daemon_last_words(const char *state_dir, const char *name, char *out, size_t room);
/* "STATE_DIR/NAME.SUFFIX" */
void daemon_path(const char *state_dir, const char *name, const char *suffix, char out[512]);
/* IO when an address of the node cannot be listened to now. */
status daemon_address_free(const cluster_node *node, const char *key, const char *address);

#endif
