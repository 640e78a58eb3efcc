/* tests/sim/net.h - a network that misbehaves from a seed: the transport seam of the simulator.
 *
 * Flow:    kv_client, kv_server -> kv_transport_ops -> net -> the other's events, inside its poll.
 * Threads: one. Time is what the simulator says; nothing here reads a clock.
 * Memory:  records and copies come from the arena given to create; a body is read from its sender
 *          at a drawn moment between send and `sent`, as a network card does, so a body reused too
 *          early arrives wrong.
 *
 * What the contract of the seam allows is drawn for every message: latency, when the body is read,
 * when `sent` is told, a full window (BUSY), a connection that breaks with both ends told at
 * different times, a peer that vanishes without a word. One connection stays in order; connections
 * overtake each other. Beyond the contract, because the protocol should not need it: single
 * messages are lost or come twice. Bits are flipped in the bodies of GET, BLOCK and PUT only:
 * heads and MAP rows carry no digest and lean on the checksums of the network below. */
#ifndef TESTS_SIM_NET_H
#define TESTS_SIM_NET_H

#include "kvstore/transport.h"

enum {
    NET_PORTS = 8,
    NET_CONNS = 64,
    NET_RECORDS = 128, /* in flight one way on one connection; a power of two */
    NET_BODY_MAX = 8192,
    NET_LAND_MIN = 1024, /* shorter bodies come in one piece */
    NET_COPIES = 4096,
    NET_BODY_DIGEST_SEED = 77,
};
static const uint64_t net_never = UINT64_MAX;

typedef struct net_record {
    uint64_t read_ns, told_ns, arrive_ns, cookie, digest, flips;
    const void *body; /* the sender's, until read */
    uint8_t *copy;
    uint32_t head_bytes, body_bytes;
    bool lost, flip;
    uint8_t copies; /* 2: delivered twice */
    bool land_asked;
    uint8_t *land; /* its first half was written there; NULL: nowhere */
    alignas(8) uint8_t head[WIRE_HEAD_MAX];
} net_record;

typedef struct net_lane { /* counters of records: read, told and delivered are at most sent */
    uint64_t sent, read, told, delivered;
    uint64_t last_arrive_ns;
    net_record *record; /* [NET_RECORDS] */
} net_lane;

typedef struct net_end {
    uint32_t port;
    bool opened, hung_up, over;
    uint64_t open_ns, closes_ns;
} net_end;

typedef struct net_conn {
    uint64_t serial;   /* 0: free */
    uint64_t extra_ns; /* of latency, when reordering is on */
    net_end end[2];    /* 0: who dialled */
    net_lane lane[2];  /* [i]: from end i */
} net_conn;

/* What the weather does to messages; all 0: nothing but latency. */
typedef struct net_weather {
    uint64_t latency_ns, jitter_ns, spike_ns, reorder_ns;
    double drop, duplicate, flip, spike;
    uint32_t window;      /* records in flight one way, <= NET_RECORDS */
    uint64_t bytes_per_s; /* of every connection; 0: no limit */
} net_weather;

typedef enum net_event {
    NET_DROPPED,
    NET_DUPLICATED,
    NET_FLIPPED,
    NET_SPIKED,
    NET_REORDERED,
    NET_EVENTS
} net_event;

typedef struct net net;
typedef struct net_port {
    kv_transport base;
    net *owner;
    uint32_t number;
    bool open;
    char address[CLUSTER_ADDRESS_MAX]; /* empty: does not listen */
} net_port;

/* The ear of the oracle: every message as its sender hands it over and as its receiver gets it. */
typedef struct net_tap {
    void (*sent)(void *self, uint32_t from, uint32_t to, const kv_message *m);
    void (*delivered)(void *self, uint32_t from, uint32_t to, const kv_message *m);
    void (*body_changed)(void *self, uint32_t from, uint32_t kind); /* while it was lent */
    void *self;
    /* A part of a body was written there, where the owner of the port wanted it. */
    void (*landed)(void *self, uint32_t port, const uint8_t *at);
} net_tap;

struct net {
    rng *random;
    const uint64_t *now_ns;
    net_weather weather;
    net_tap tap;
    net_port port[NET_PORTS];
    net_conn conn[NET_CONNS];
    uint64_t serial;
    uint64_t blocked_ns[NET_PORTS][NET_PORTS]; /* [from][to]: nothing arrives before */
    uint64_t bad_ns[NET_PORTS][NET_PORTS];     /* last time weather hit this way */
    uint64_t flips; /* memory flips so far: bodies may change under a lent body then */
    uint64_t events[NET_EVENTS], messages;
    uint8_t *copies;
    uint32_t copy_free[NET_COPIES];
    uint32_t copies_free;
};

net *net_create(arena *a, rng *random, const uint64_t *now_ns);
void net_reset(net *n); /* as created, for the next seed */
kv_transport *net_open(net *n, uint32_t port);
/* The process behind the port dies: its memory is gone. The others are told after `notice_ns`. */
void net_kill(net *n, uint32_t port, uint64_t notice_ns);
/* Break the connections between two ports; each end hears of it after a drawn time below limit. */
void net_break(net *n, uint32_t a, uint32_t b, uint64_t limit_ns);
void net_block(net *n, uint32_t from, uint32_t to, uint64_t until_ns);
void net_calm(net *n);           /* no weather; what is closing or blocked does so now */
void net_advance(net *n);        /* bodies whose time has come are read */
uint64_t net_next(const net *n); /* when something may happen; net_never: nothing is under way */
uint32_t net_lent(const net *n, uint32_t port); /* bodies of this port not told as sent */
/* Its ends that are not over; heard_of: of which it was told. */
uint32_t net_conns(const net *n, uint32_t port, bool heard_of);

#endif
