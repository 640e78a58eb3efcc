/* tests/e2e/nodes.h - real store nodes of a test: processes on loopback, started, paused, killed by
 * the pid that fork gave, and asked for their counters over gRPC. */
#ifndef TESTS_E2E_NODES_H
#define TESTS_E2E_NODES_H

#include <sys/types.h>

#include "cluster/cluster.h"

enum { NODES_MAX = 8 };

typedef struct node_counts {
    uint64_t served, stored, corrupt, misses, connections, contexts;
} node_counts;

/* Ports are free ones found now. faults: --fault SPEC of every node, or NULL. memory: "256MiB". */
void nodes_start(uint32_t count, uint32_t replicas, const char *memory, const char *faults,
                 cluster_config *out_config);
/* Elsewhere than on loopback: the nodes of a configuration file, asked with its TLS. enter: called
 * in the process that becomes node `index`, before it does. */
typedef struct nodes_site {
    const char *config_path;
    void (*enter)(uint32_t index);
    uint32_t faulty; /* bit i: node i commits the faults */
} nodes_site;
void nodes_start_at(const nodes_site *site, const char *faults);
void nodes_restart(uint32_t index); /* the same address, empty memory */
void nodes_signal(uint32_t index, int signal);
void nodes_kill(uint32_t index);         /* SIGKILL and reaped */
void nodes_counts(node_counts *out_sum); /* over nodes that answer */
status nodes_count_one(uint32_t index, uint32_t timeout_ms, node_counts *out_counts);
pid_t nodes_pid(uint32_t index); /* 0: not running */
void nodes_stop(void);           /* SIGTERM, all must exit 0 by themselves */

#endif
