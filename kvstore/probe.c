/* kvstore/probe.c - what the loopback network gives: plain TCP sockets, and our UCX transport.
 *
 * The transport's part: a thread that receives, and this one that sends bodies of 64 KiB as fast as
 * credit allows, then heads alone back and forth. Sockets: the same bytes by writes of 64 KiB and
 * reads that throw them away, which is about what UCX over TCP can reach at best. */
#include "kvstore/transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PROBE_BODY = 64 << 10, PROBE_PINGS = 400 };
static const uint64_t PROBE_BYTES = 512u << 20, PROBE_NS = 400000000, GIVE_UP_NS = 5000000000;

/* ---- the transport --------------------------------------------------------------------------- */

typedef struct end {
    kv_transport *transport;
    kv_peer peer;
    bool echo; /* answers heads */
    _Atomic uint64_t bytes, heads;
    _Atomic bool stop;
} end;

static void on_opened(void *owner, kv_peer peer)
{
    ((end *)owner)->peer = peer;
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    end *e = owner;
    atomic_fetch_add(&e->bytes, m->body_bytes);
    if (m->body_bytes > 0) return;
    atomic_fetch_add(&e->heads, 1);
    if (e->echo) (void)e->transport->ops->send(e->transport, peer, m);
}

static void on_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)owner;
    (void)peer;
    (void)cookie;
}

static void on_closed(void *owner, kv_peer peer, status why)
{
    (void)peer;
    (void)why;
    ((end *)owner)->peer = 0;
}

static const kv_events probe_events = {on_opened, on_message, on_sent, on_closed, NULL};

static void *receive(void *argument)
{
    end *e = argument;
    while (!atomic_load(&e->stop)) {
        if (!e->transport->ops->poll(e->transport))
            e->transport->ops->wait(e->transport, -1, 1000000);
    }
    return NULL;
}

/* Polls until `*counter` reaches `want` or the clock `until`. */
static bool reach(end *e, const _Atomic uint64_t *counter, uint64_t want, uint64_t until)
{
    while (atomic_load(counter) < want) {
        if (clock_now(&clock_monotonic) > until) return false;
        e->transport->ops->poll(e->transport);
    }
    return true;
}

static bool send_all(end *from, end *to, const void *body, double *out_gbs)
{
    kv_message m = {.head = "b", .head_bytes = 1, .body = body, .body_bytes = PROBE_BODY};
    uint64_t begun = clock_now(&clock_monotonic), sent = 0;
    while (sent < PROBE_BYTES && clock_now(&clock_monotonic) < begun + PROBE_NS) {
        status s = from->transport->ops->send(from->transport, from->peer, &m);
        if (s == STATUS_OK)
            sent += PROBE_BODY;
        else if (s != STATUS_BUSY)
            return false;
        if (s == STATUS_BUSY || sent % (UINT64_C(16) * PROBE_BODY) == 0)
            from->transport->ops->poll(from->transport);
    }
    if (!reach(from, &to->bytes, sent, begun + GIVE_UP_NS)) return false;
    *out_gbs = (double)sent / (double)(clock_now(&clock_monotonic) - begun);
    return true;
}

static bool ping(end *from, double *out_us)
{
    kv_message m = {.head = "p", .head_bytes = 1};
    uint64_t begun = clock_now(&clock_monotonic);
    for (uint64_t i = 1; i <= PROBE_PINGS; i++) {
        if (from->transport->ops->send(from->transport, from->peer, &m) != STATUS_OK) return false;
        if (!reach(from, &from->heads, i, begun + GIVE_UP_NS)) return false;
    }
    *out_us = (double)(clock_now(&clock_monotonic) - begun) * 1e-3 / PROBE_PINGS;
    return true;
}

static status run_transport(arena *a, end *here, end *there, kv_loopback *out)
{
    char bound[CLUSTER_ADDRESS_MAX];
    pthread_t thread;
    TRY(there->transport->ops->listen(there->transport, "127.0.0.1:0", bound));
    if (pthread_create(&thread, NULL, receive, there) != 0)
        return FAIL(NO_MEMORY, "no thread to measure the network with");
    kv_peer dialled;
    status done = here->transport->ops->dial(here->transport, bound, &dialled);
    uint64_t until = clock_now(&clock_monotonic) + GIVE_UP_NS;
    void *body = arena_alloc(a, PROBE_BODY, 4096);
    while (done == STATUS_OK && here->peer == 0 && clock_now(&clock_monotonic) < until)
        here->transport->ops->poll(here->transport);
    if (done != STATUS_OK || here->peer == 0 || !ping(here, &out->transport_rtt_us) ||
        !send_all(here, there, body, &out->transport_gbs))
        done = FAIL(IO, "our transport does not deliver over loopback");
    atomic_store(&there->stop, true);
    (void)pthread_join(thread, NULL);
    return done;
}

static status probe_transport(kv_loopback *out)
{
    arena *a = arena_create("loopback");
    end *here = ARENA_NEW(a, end, 1), *there = ARENA_NEW(a, end, 1);
    there->echo = true;
    status done = kv_transport_ucx_open(a, false, &here->transport);
    if (done == STATUS_OK) {
        kv_transport_bind(here->transport, &probe_events, here);
        done = kv_transport_ucx_open(a, false, &there->transport);
    }
    if (done == STATUS_OK) {
        kv_transport_bind(there->transport, &probe_events, there);
        done = run_transport(a, here, there, out);
    }
    if (here->transport != NULL) kv_transport_close(here->transport);
    if (there->transport != NULL) kv_transport_close(there->transport);
    arena_destroy(a);
    return done;
}

/* ---- sockets --------------------------------------------------------------------------------- */

typedef struct drain {
    int fd;
    void *buffer;
} drain;

static void *drain_main(void *argument)
{
    drain *d = argument;
    while (recv(d->fd, d->buffer, PROBE_BODY, 0) > 0)
        continue;
    char over = 1;
    (void)send(d->fd, &over, 1, MSG_NOSIGNAL);
    return NULL;
}

/* Everything sent was read when the answer comes. */
static bool pour(int fd, const void *body, double *out_gbs)
{
    uint64_t begun = clock_now(&clock_monotonic), sent = 0;
    while (sent < PROBE_BYTES && clock_now(&clock_monotonic) < begun + PROBE_NS) {
        ssize_t n = send(fd, body, PROBE_BODY, MSG_NOSIGNAL);
        if (n <= 0) return false;
        sent += (uint64_t)n;
    }
    char over;
    if (shutdown(fd, SHUT_WR) != 0 || recv(fd, &over, 1, 0) != 1) return false;
    *out_gbs = (double)sent / (double)(clock_now(&clock_monotonic) - begun);
    return true;
}

static status probe_sockets(kv_loopback *out)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    arena *a = arena_create("sockets");
    drain d = {.fd = -1, .buffer = arena_alloc(a, PROBE_BODY, 4096)};
    void *body = arena_alloc(a, PROBE_BODY, 4096);
    bool good = listener >= 0 && fd >= 0 && bind(listener, (struct sockaddr *)&at, size) == 0 &&
                listen(listener, 1) == 0 &&
                getsockname(listener, (struct sockaddr *)&at, &size) == 0 &&
                connect(fd, (struct sockaddr *)&at, size) == 0;
    if (good) d.fd = accept(listener, NULL, NULL);
    pthread_t thread;
    bool started = good && d.fd >= 0 && pthread_create(&thread, NULL, drain_main, &d) == 0;
    good = started && pour(fd, body, &out->tcp_gbs);
    if (fd >= 0) close(fd);
    if (started) (void)pthread_join(thread, NULL);
    if (d.fd >= 0) close(d.fd);
    if (listener >= 0) close(listener);
    arena_destroy(a);
    return good ? STATUS_OK : FAIL(IO, "TCP over loopback does not work: %s", strerror(errno));
}

status kv_loopback_measure(kv_loopback *out_loopback)
{
    CHECK(out_loopback != NULL);
    kv_loopback seen = {0};
    TRY(probe_sockets(&seen));
    TRY(probe_transport(&seen));
    *out_loopback = seen;
    return STATUS_OK;
}
