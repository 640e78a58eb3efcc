/* kvstore/transport.h - the transport seam: reliable, ordered messages between two ends.
 *
 * Flow: client or server -> kv_transport -> (UCX | hub in this process | simulator) -> the other.
 *
 * Threads: a transport and its peers belong to one thread; every event is called from inside poll.
 * What `recall` is for may be written by another thread, as by a network card.
 *
 * Memory: the head of a message is copied by send; its body is borrowed until the `sent` event of
 * the same cookie, or the `closed` event of the peer, whichever comes first. What an event points
 * to is valid during the call only.
 *
 * An implementation embeds struct kv_transport first and fills in ops; its owner binds events. */
#ifndef KVSTORE_TRANSPORT_H
#define KVSTORE_TRANSPORT_H

#include <sys/socket.h>

#include "kvstore/kvstore.h"
#include "proto/wire.h"

/* One end of one connection. Never reused within a transport's life, so a late event or a stale
 * handle cannot hit another connection. 0 is none. */
typedef uint64_t kv_peer;

typedef struct kv_message {
    const void *head; /* <= WIRE_HEAD_MAX bytes, copied */
    uint32_t head_bytes;
    const void *body; /* borrowed until sent; NULL when body_bytes is 0 */
    uint32_t body_bytes;
    uint64_t cookie; /* given back by `sent` when there is a body */
} kv_message;

/* The owner's side. Events may call send and hang_up, never poll. */
typedef struct kv_events {
    void (*opened)(void *owner, kv_peer peer); /* accepted, or a dial succeeded: send is allowed */
    void (*message)(void *owner, kv_peer peer, const kv_message *message);
    void (*sent)(void *owner, kv_peer peer, uint64_t cookie);
    /* The last event of a peer, also after hang_up. */
    void (*closed)(void *owner, kv_peer peer, status why);
    /* NULL: never. Where a message's body, which has begun to come, shall go: the owner's memory,
     * of its size; NULL: anywhere. A transport may ask, and then asks again before each part that
     * it writes; once the answer is another, that memory is not written to any more and `message`
     * comes with body NULL. Else it comes with the body there. A transport that has `recall` asks
     * once, and writes when it likes until the message comes or the memory is recalled. */
    void *(*land)(void *owner, kv_peer peer, const kv_message *message);
} kv_events;

typedef struct kv_transport_ops {
    /* Accept dials to "host:port" (port 0: any); out_bound gets the real one. At most once.
     * IO with a sentence when the port is taken, UNSUPPORTED when this transport cannot carry such
     * an address. */
    status (*listen)(kv_transport *t, const char *address, char out_bound[CLUSTER_ADDRESS_MAX]);
    /* OK: `opened` or `closed` follows. UNREACHABLE: the address is nonsense, or none that this
     * transport carries; BUSY: no more room. */
    status (*dial)(kv_transport *t, const char *address, kv_peer *out_peer);
    /* BUSY: this peer has as much in flight as it may; try again after one of its `sent`, or after
     * the next poll. PEER_LOST: `closed` is on its way. What was taken goes with the next flush,
     * poll or wait at the latest. */
    status (*send)(kv_transport *t, kv_peer peer, const kv_message *message);
    /* Close at once, dropping what is in flight; `closed` follows from a later poll. */
    void (*hang_up)(kv_transport *t, kv_peer peer);
    bool (*poll)(kv_transport *t);  /* true: something happened */
    void (*flush)(kv_transport *t); /* let what `send` took go now; NULL: it goes at once */
    /* Sleep until poll may find something, wake_fd (-1: none) is readable, or at most ns. */
    void (*wait)(kv_transport *t, int wake_fd, uint64_t ns_max);
    void (*close)(kv_transport *t); /* no events are called from here on */
    /* What `land` named is not written to any more once this returns; the message comes with its
     * body elsewhere. NULL: nothing is written outside of poll. */
    void (*recall)(kv_transport *t, const void *memory);
} kv_transport_ops;

struct kv_transport {
    const kv_transport_ops *ops;
    const kv_events *events; /* bound by the owner before the first listen or dial */
    void *owner;
};

/* Who gets the events. A transport has one owner at a time. */
void kv_transport_bind(kv_transport *t, const kv_events *events, void *owner);
void kv_transport_flush(kv_transport *t);
/* "127.0.0.1:7000", "[::1]:7000", "localhost:7000": numbers only, so that nothing waits for DNS. */
status kv_address_parse(const char *address, struct sockaddr_storage *out, socklen_t *out_bytes);
/* poll() on wake_fd and another descriptor for at most ns_max; shared by the implementations. */
void kv_sleep(int fd, int wake_fd, uint64_t ns_max);

#endif
