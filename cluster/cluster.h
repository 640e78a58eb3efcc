/* cluster/cluster.h - who the nodes are and where a block lives: config file, map, placement.
 *
 * Flow:    config file -> cluster_map -> kvstore client and nodes (placement) ; CLI -> map file.
 * Threads: plain data and pure functions; a map is immutable once shared.
 * Memory:  everything returned through an arena lives as long as the arena.
 * The cluster knows hosts and hashes, never blocks, models or the network's bytes. */
#ifndef CLUSTER_CLUSTER_H
#define CLUSTER_CLUSTER_H

#include "proto/proto.h"

enum {
    CLUSTER_NODES_MAX = 64,
    CLUSTER_NAME_MAX = 64,
    CLUSTER_ADDRESS_MAX = 96,
    CLUSTER_REPLICAS_MAX = 4,
    CLUSTER_WEIGHT_MAX = 1 << 20
};

typedef struct cluster_node {
    char name[CLUSTER_NAME_MAX];       /* unique, [a-z0-9-] */
    char data[CLUSTER_ADDRESS_MAX];    /* host:port of the data plane (UCX) */
    char control[CLUSTER_ADDRESS_MAX]; /* host:port of the control plane (gRPC) */
    char domain[CLUSTER_NAME_MAX];     /* failure domain; replicas lie in distinct ones */
    uint32_t weight;                   /* relative share of blocks, 1 .. CLUSTER_WEIGHT_MAX */
    bool alive;                        /* false: administratively out (drained, declared dead) */
} cluster_node;

typedef struct cluster_map {
    uint64_t epoch;    /* >= 1, grows with every change */
    uint32_t replicas; /* R */
    uint32_t node_count;
    cluster_node node[CLUSTER_NODES_MAX];
} cluster_map;

/* Ranked homes of (context, layer group): rendezvous hashing, weighted, alive nodes only, best
 * first, at most one a failure domain until every domain has one. Layer group = layer * 4 / layers.
 * Writes at most `max` node indexes, returns how many. The same on every machine, and removing a
 * node moves only what it held. (Highest random weight: Thaler and Ravishankar 1998.) */
uint32_t cluster_place(const cluster_map *map, context_id context, uint32_t layer, uint32_t layers,
                       uint32_t *out_rank, uint32_t max);

/* The map store seam: a file when embedded (one writer, `shoal cluster`), etcd in clusters. */
typedef struct map_store_ops {
    status (*load)(void *self, cluster_map *out_map);
    status (*save)(void *self,
                   const cluster_map *map); /* FENCED unless map->epoch is newer by one */
    void *self;
} map_store_ops;
status cluster_map_store_file(arena *a, const char *path, map_store_ops *out_store);

/* The configuration file: one YAML, every knob typed, units mandatory on sizes and times, unknown
 * keys refused. Defaults are those of cluster_config_default. */
typedef struct cluster_config {
    cluster_map map;     /* nodes, replicas; epoch 1 */
    char state_dir[256]; /* pids, logs and the map file of `shoal cluster up` */
    uint32_t tenant;
    /* network */
    char device[64]; /* the data plane's, "eth0" or "eth0,eth1"; "": those of its addresses */
    bool plain_data; /* it may leave loopback unencrypted, on private addresses */
    bool tcp;        /* plain TCP carries it, not UCX: nodes and clients must agree */
    /* of the control plane: PEM files, all or none */
    char tls_authority[256], tls_certificate[256], tls_key[256];
    /* node */
    uint64_t node_memory_bytes; /* DRAM for blocks, a node */
    uint64_t lease_grace_ns;    /* after a worker's lease ended, before its contexts go */
    uint32_t node_connections_max;
    /* client */
    uint64_t fetch_deadline_ns; /* DEMAND, and PREFETCH */
    uint64_t hedge_after_ns;    /* ask the next replica too when the first is this late */
    uint64_t put_deadline_ns;
    uint64_t connect_deadline_ns;
    uint64_t suspect_ns; /* how long a failed node is passed over before it is tried again */
    uint64_t lease_ns;
    uint64_t landing_bytes;   /* the worker's landing zone */
    uint32_t inflight_max[4]; /* blocks in flight a class: demand, write_back, prefetch, repair */
    /* worker */
    uint64_t device_pool_bytes;
    uint64_t host_tier_bytes;
    uint32_t max_num_seqs, max_num_batched_tokens, max_model_len; /* max_model_len 0: the model's */
    uint32_t park_quantum_steps;
    uint32_t victim_margin_percent;
    uint32_t threads; /* 0: one a core */
    bool spin;        /* io threads spin instead of epoll: reserved cores only */
} cluster_config;

void cluster_config_default(cluster_config *out_config);
/* INVALID with one sentence that names file, key and what would do. */
status cluster_config_load(const char *path, cluster_config *out_config);
/* Parse "64MiB", "1GiB", "512KiB", "4096B" / "5ms", "2s", "300us", "10ns". INVALID without a unit.
 */
status cluster_parse_bytes(const char *text, uint64_t *out_bytes);
status cluster_parse_time(const char *text, uint64_t *out_ns);
/* true for 127.0.0.0/8, ::1 and localhost */
bool cluster_address_is_loopback(const char *address);
/* Loopback, or of a private network: 10/8, 172.16/12, 192.168/16, 169.254/16, fc00::/7, fe80::/10.
 */
bool cluster_address_is_private(const char *address);
/* Whether a node may listen there. REFUSED: beyond loopback without TLS for control, or with a data
 * plane that was not allowed out (plain_data) or lies on no private address. */
status cluster_listen_check(const cluster_config *config, const char *data, const char *control);

#endif
