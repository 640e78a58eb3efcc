/* kvstore/kvstore.h - keep sealed KV blocks on R nodes, get them back by id before a deadline.
 *
 * Flow:    worker io thread -> kv_client -> transport -> kv_server -> tier (DRAM slab).
 * Threads: a client, a server and a transport belong to the thread that created them; no call
 *          blocks except kv_client_wait / kv_server_wait.
 * Memory:  bytes given to a put are the client's until its completion. Landing slots are the
 *          client's zone: a completion hands filled slots out, kv_slot_release gives them back.
 * Promise: a _submit that returns OK has exactly one completion, by its deadline; anything else has
 *          none. A block completes OK only if its digest matched, unless the get is unchecked. No
 *          late write reaches a slot that was handed out or reused. Time and randomness are
 *          arguments. */
#ifndef KVSTORE_KVSTORE_H
#define KVSTORE_KVSTORE_H

#include "cluster/cluster.h"
#include "proto/proto.h"

typedef enum kv_class { KV_DEMAND, KV_WRITE_BACK, KV_PREFETCH, KV_REPAIR, KV_CLASSES } kv_class;
enum { KV_BATCH_MAX = 1024 };

/* ---- transport seam: reliable ordered messages between two ends ------------------------------ */

typedef struct kv_transport kv_transport; /* opened below, closed by its owner */
status kv_transport_ucx_open(arena *a, bool spin, kv_transport **out_transport); /* on loopback */
/* On these network devices, "eth0" or "eth0,eth1": it listens and dials on no other. */
status kv_transport_ucx_open_on(arena *a, const char *devices, bool spin,
                                kv_transport **out_transport);
/* Plain TCP sockets: it dials by the host's routes, and listens where it is told to. */
status kv_transport_tcp_open(arena *a, bool spin, kv_transport **out_transport);
/* The devices a configuration asks for, else those that carry `listen` (a node), or from which the
 * map's nodes are reached (listen NULL: a client). INVALID: no device carries `listen`. */
enum { KV_DEVICES_MAX = 256 };
status kv_devices_find(const cluster_config *config, const char *listen,
                       char out_devices[KV_DEVICES_MAX]);
/* The one that the configuration asks for; of a node that will listen there, of a client: NULL. */
status kv_transport_open(arena *a, const cluster_config *config, const char *listen, bool spin,
                         kv_transport **out_transport);
/* A network inside this process: every transport opened on the same hub can dial the others by
 * address. Delivery happens inside poll. rtt and rate pace it when not 0 (label results simulated).
 */
typedef struct kv_hub kv_hub;
kv_hub *kv_hub_create(arena *a, clock_ops clock, uint64_t rtt_ns, uint64_t bytes_per_s);
/* Another pace, for messages sent from now on. Any thread. */
void kv_hub_pace(kv_hub *hub, uint64_t rtt_ns, uint64_t bytes_per_s);
status kv_transport_local_open(arena *a, kv_hub *hub, kv_transport **out_transport);
/* A network card: `threads` threads of the hub write the bodies of messages to who dialled where
 * kv_events.land says, before they are due, while that one's own thread does other things. Start
 * it before the first transport is opened and stop it after the last one was closed. NO_MEMORY: no
 * thread, and no card. */
enum { KV_CARD_THREADS_MAX = 8 };
status kv_hub_card_start(kv_hub *hub, uint32_t threads);
void kv_hub_card_stop(kv_hub *hub); /* also of a hub without one */
void kv_transport_close(kv_transport *transport);

/* The loopback network of this host, measured in about a second: plain sockets, and the
 * transport that clients and nodes use by default. GB are 10^9 bytes. IO with a sentence. */
typedef struct kv_loopback {
    double tcp_gbs, transport_gbs, transport_rtt_us;
} kv_loopback;
status kv_loopback_measure(kv_loopback *out_loopback);

/* ---- client ---------------------------------------------------------------------------------- */

typedef struct kv_client kv_client;
typedef uint64_t kv_ticket;

typedef struct kv_client_config {
    arena *memory;
    kv_transport *transport; /* borrowed */
    clock_ops clock;
    uint64_t seed; /* request ids, jitter */
    block_layout layout;
    uint32_t tenant;
    const cluster_config *config; /* map, deadlines, credits, lease; copied */
    uint8_t *landing;             /* landing_slots * block bytes, 64-byte aligned, may be pinned */
    uint32_t landing_slots;
    bool verify; /* false only in the control that proves tests can fail */
} kv_client_config;

status kv_client_create(const kv_client_config *config, kv_client **out_client);
void kv_client_destroy(
    kv_client *client); /* completions not polled are lost; slots are forgotten */

typedef struct kv_get {
    const block_id *id;     /* [count], most wanted first; copied */
    const uint64_t *digest; /* [count] expected block_digest; copied */
    uint32_t count;         /* 1 .. KV_BATCH_MAX */
    kv_class class;         /* KV_DEMAND or KV_PREFETCH; PREFETCH may be dropped: BUSY a block */
    uint64_t deadline_ns;
    bool unchecked; /* the caller compares the digest of every block before anybody uses its bytes;
                     * where one is wrong he asks again without this, since only the comparison
                     * here finds out which replica is to be passed over */
} kv_get;
/* Queue a read. BUSY: out of credit for this class. DEGRADED: no node alive in the map. */
status kv_get_submit(kv_client *client, const kv_get *get, kv_ticket *out_ticket);

typedef struct kv_put {
    block_id id;
    const void *bytes; /* block bytes; the client's until the completion */
    uint64_t digest;
    kv_class class; /* KV_WRITE_BACK or KV_REPAIR */
    uint64_t deadline_ns;
} kv_put;
/* Queue a write to R nodes in distinct failure domains. Its completion is OK only when R nodes have
 * verified the bytes; DEGRADED when fewer than R could be reached, NO_SPACE when stores are full.
 */
status kv_put_submit(kv_client *client, const kv_put *put, kv_ticket *out_ticket);
/* Tell every node that a context is finished; its blocks go. Completes when alive nodes answered.
 * Puts of it that are still open end at once: STALE. */
status kv_drop_submit(kv_client *client, context_id context, uint64_t deadline_ns,
                      kv_ticket *out_ticket);
/* Ask for an early end; the completion still comes (CANCELED, unless it was done already). */
void kv_cancel(kv_client *client, kv_ticket ticket);

typedef enum kv_kind { KV_KIND_GET, KV_KIND_PUT, KV_KIND_DROP } kv_kind;
typedef struct kv_done {
    kv_ticket ticket;
    kv_kind kind;
    status result;                /* PUT, DROP: the result. GET: OK when every block is */
    uint32_t count;               /* GET: blocks */
    const status *block_status;   /* GET: [count], valid until the next kv_client_next */
    const int32_t *slot;          /* GET: [count] landing slot of each OK block, else -1 */
    uint32_t hedged, failed_over; /* blocks asked of a second node because late / failed */
} kv_done;

/* Move everything that can move without blocking. */
void kv_client_poll(kv_client *client);
/* Next completion. False: none now. */
bool kv_client_next(kv_client *client, kv_done *out_done);
/* Sleep until there may be something to poll, fd `wake_fd` (-1: none) is readable, or until_ns. */
void kv_client_wait(kv_client *client, int wake_fd, uint64_t until_ns);
void *kv_slot_bytes(kv_client *client, int32_t slot);
void kv_slot_release(kv_client *client, int32_t slot);

typedef struct kv_class_stats {
    uint64_t submitted, done_ok, done_failed; /* requests */
    uint64_t blocks_ok, blocks_failed, bytes; /* blocks: OK handed to the caller, others */
    uint64_t refused_busy, shed;              /* no credit; PREFETCH dropped */
} kv_class_stats;
typedef struct kv_client_stats {
    kv_class_stats class[KV_CLASSES];
    uint64_t hedged, failed_over, corrupt, late_replies, reconnects, put_replicas_acked;
    uint64_t late_ns_max;     /* longest that a completion came after its deadline */
    uint64_t blocks_received; /* all that nodes sent, late and doubled ones too */
    uint32_t slots_free, slots_posted, slots_filled, slots_held; /* sum = landing_slots */
    uint32_t nodes_connected, nodes_suspect;
    uint32_t nodes_refused; /* of another layout, version, tenant or name, by their last answer */
    hist get_ns, put_ns;
} kv_client_stats;
void kv_client_stats_read(const kv_client *client, kv_client_stats *out_stats);

/* ---- server ---------------------------------------------------------------------------------- */

typedef struct kv_server kv_server;

/* Faults a test asks a node to commit, with its own seed. All 0 in production. */
typedef struct kv_faults {
    uint64_t seed;
    double flip_wire; /* share of replies whose bytes get one flipped bit after the node's check */
    double flip_memory; /* share of stored blocks that lose a bit after they were acknowledged */
    double drop_reply;  /* share of replies never sent */
    uint64_t delay_ns;  /* before every reply */
} kv_faults;

typedef struct kv_server_config {
    arena *memory;
    kv_transport *transport; /* borrowed, not yet listening */
    clock_ops clock;
    uint64_t seed; /* incarnation and jitter */
    char name[CLUSTER_NAME_MAX];
    char listen[CLUSTER_ADDRESS_MAX];
    uint64_t memory_bytes; /* slabs are allocated at start; the block size is fixed by the
                            * first handshake after start or a DROP of everything */
    uint64_t lease_grace_ns;
    uint32_t connections_max;
    uint64_t epoch;
    const cluster_map *map; /* copied; NULL: only the epoch is known until a client tells */
    kv_faults faults;
} kv_server_config;

status kv_server_create(const kv_server_config *config, kv_server **out_server);
void kv_server_destroy(kv_server *server);              /* after its transport was closed */
const char *kv_server_address(const kv_server *server); /* as bound: the port is never 0 */
void kv_server_poll(kv_server *server);
void kv_server_wait(kv_server *server, int wake_fd, uint64_t until_ns);
bool kv_server_idle(const kv_server *server); /* nothing queued, nothing being answered */
void kv_server_drain(kv_server *server);      /* refuse new contexts and puts, keep serving gets */

typedef struct kv_server_stats {
    kv_class_stats class[KV_CLASSES]; /* blocks_ok: served (get) or published (put) */
    uint64_t incarnation, epoch;
    uint64_t slots, slots_free, slots_used, slots_reserved; /* sum of the last three = slots */
    uint64_t block_bytes, contexts, connections, corrupt, not_found, leases_expired, dropped_blocks;
    uint64_t slots_quarantined; /* of slots_used: given up, but a reply still reads them */
    uint64_t connections_total, contexts_dropped, stale, oldest_operation_ns;
    uint32_t layout; /* layout_hash of the blocks; 0: none yet */
    bool draining;
} kv_server_stats;
void kv_server_stats_read(const kv_server *server, kv_server_stats *out_stats);

#endif
