/* tests/kvstore/peer.h - one end of the data plane played by hand: a transport that keeps what its
 * owner sends, and frames that the test makes up.
 *
 * Threads: one. Memory: bodies are given back at the next poll, unless `hold`. */
#ifndef TESTS_KVSTORE_PEER_H
#define TESTS_KVSTORE_PEER_H

#include "kvstore/transport.h"
#include "tests/test.h"

enum { PEER_SENT_MAX = 4096, PEER_CONNS = 8 };

typedef struct peer_sent {
    kv_peer to;
    wire_kind kind;
    uint64_t cookie;
    uint32_t body_bytes;
    alignas(8) uint8_t head[WIRE_HEAD_MAX];
} peer_sent;

typedef struct peer {
    kv_transport base;
    uint64_t now_ns;
    uint64_t tick_ns; /* how far each look at the clock moves it: 0, or as a real one */
    clock_ops clock;
    peer_sent sent[PEER_SENT_MAX];
    uint32_t count;  /* of sent */
    uint32_t told;   /* bodies before this place were given back */
    bool full;       /* every send is BUSY */
    kv_peer full_to; /* so are those to this one */
    bool hold;       /* bodies are kept */
    kv_peer dialled, hung_up;
    uint32_t dials, hang_ups;
    char address[PEER_CONNS][CLUSTER_ADDRESS_MAX]; /* of dial i: its peer is i + 1 */
    uint64_t waited_ns;
    const void *recalled; /* the last memory that was */
    uint32_t recalls;
} peer;

void peer_init(peer *p);
void peer_opened(peer *p, kv_peer who);
void peer_closed(peer *p, kv_peer who);
/* Deliver a frame to the owner; kind, sizes and request are filled in. */
void peer_says(peer *p, kv_peer who, wire_kind kind, void *head, uint32_t head_bytes,
               uint64_t request, const void *body, uint32_t body_bytes);
/* Where the owner wants the body of such a frame, which has begun to come. */
void *peer_land(peer *p, kv_peer who, wire_kind kind, void *head, uint32_t head_bytes,
                uint64_t request, uint32_t body_bytes);
/* The last frame of this kind sent to `who` (0: to anybody) since place `from`; NULL: none. */
const peer_sent *peer_last(const peer *p, kv_peer who, wire_kind kind, uint32_t from);
uint32_t peer_count(const peer *p, kv_peer who, wire_kind kind, uint32_t from);

#endif
