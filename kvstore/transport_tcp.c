/* kvstore/transport_tcp.c - messages over plain TCP sockets: one stream a connection, epoll.
 *
 * A message is a frame of eight bytes (magic, size of the head, size of the body), the head and the
 * body. Sends queue a frame and lend the body; the queue goes out in one sendmsg when it holds
 * FLUSH_BYTES, else from flush, poll or wait: so the blocks of a reply leave with their DONE, and
 * many short answers together. A body that is lent is read by the kernel's copy alone.
 *
 * Receiving asks the owner where a long body shall go (kv_events.land) and reads it straight there,
 * part by part, asking again before each part: nothing but the readv in this file ever writes into
 * the owner's memory, so a landing that was withdrawn is never written to late. Where the owner
 * wants none, bodies are delivered in a buffer of the connection.
 *
 * Sending is bounded like the UCX transport's: messages altogether, and bytes lent to one peer. A
 * peer that vanished is seen by keepalives in about 3 s, by TCP_USER_TIMEOUT when it owes us an
 * acknowledgement. Hostile bytes: a frame that is no frame closes the connection.
 *
 * Not here: RDMA, TLS, several rails. */
#include "kvstore/transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    CONNS_MAX = 1024,
    OPS_MAX = 8192,           /* sends in flight altogether */
    CONN_BYTES_MAX = 4 << 20, /* bodies lent to one peer */
    CONN_OPS_MAX = 512,       /* messages queued to one peer */
    FLUSH_BYTES = 256 << 10,
    LAND_BYTES = 4096,      /* bodies longer than this land where the owner says */
    SEND_OPS_MAX = 32,      /* messages in one sendmsg */
    READ_BYTES = 256 << 10, /* one read, where bodies do not land */
    PEEK_BYTES = 4096,    /* one read, where they may: short messages, or the head of a long one */
    LOOK_BYTES = 512,     /* read past a body that lands: the next head is in it */
    POLL_BYTES = 1 << 20, /* from one connection in one poll */
    EVENTS_MAX = 64,      /* of epoll, in one poll */
    BACKLOG = 128,
    FRAME_BYTES = 8,
    FRAME_MAGIC = 0x5348,
    RECEIVE_BYTES = READ_BYTES + WIRE_BLOCK_BYTES_MAX + WIRE_HEAD_MAX + FRAME_BYTES,
    KEEP_IDLE_S = 1,
    KEEP_EVERY_S = 1,
    KEEP_COUNT = 2,
    UNACKNOWLEDGED_MS = 4000,
};

typedef struct frame {
    uint16_t magic, head_bytes;
    uint32_t body_bytes;
} frame;
_Static_assert(sizeof(frame) == FRAME_BYTES, "frames are written as they lie");

typedef enum conn_state {
    CONN_FREE,
    CONN_DIALING,
    CONN_NEW, /* `opened` is to be told */
    CONN_OPEN,
    CONN_CLOSING, /* its socket is closed; what it had queued is being told */
} conn_state;

typedef struct conn conn;

typedef struct send_op {
    struct send_op *next;
    conn *conn;
    uint64_t cookie;
    const void *body;
    uint32_t body_bytes, head_bytes; /* head_bytes: with the frame before it */
    alignas(8) uint8_t head[FRAME_BYTES + WIRE_HEAD_MAX];
} send_op;

struct conn {
    int fd;
    conn_state state;
    uint32_t generation;
    uint32_t ops, bytes; /* in flight: messages, and bytes of bodies lent */
    bool failed;         /* the socket */
    bool hung_up;        /* by the owner */
    bool full;           /* the socket took no more: waits for EPOLLOUT */
    send_op *queue, **queue_tail;
    uint64_t queued;    /* bytes of the queue that the socket has not taken */
    uint64_t head_sent; /* bytes of the queue's first message that it has */
    uint8_t *rx;        /* [RECEIVE_BYTES], bytes [rx_from, rx_to) are not yet delivered */
    uint32_t rx_from, rx_to;
    /* A message whose body is going to the owner's memory; rx is empty meanwhile. */
    bool landing;
    uint8_t *land_at; /* NULL: withdrawn, the rest is thrown away */
    uint32_t land_have;
    frame land_frame;
    alignas(8) uint8_t land_head[WIRE_HEAD_MAX];
};

typedef struct tcp {
    kv_transport base;
    int epoll, listener; /* listener -1: not listening */
    bool spin;
    conn *conns;
    uint32_t conns_used; /* [0, conns_used) were ever used */
    uint32_t generation;
    send_op *op_free;
    send_op *finished, **finished_tail; /* to be told, in order */
    uint8_t *buffers;                   /* [CONNS_MAX][RECEIVE_BYTES], touched as they are used */
    uint8_t sink[READ_BYTES];           /* where withdrawn bodies end */
} tcp;

static const kv_transport_ops tcp_ops;
static const size_t buffers_bytes = (size_t)CONNS_MAX * RECEIVE_BYTES;

status kv_transport_tcp_open(arena *a, bool spin, kv_transport **out_transport)
{
    void *buffers = mmap(NULL, buffers_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (buffers == MAP_FAILED)
        return FAIL(NO_MEMORY, "cannot map buffers of connections: %s", strerror(errno));
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) {
        (void)munmap(buffers, buffers_bytes);
        return FAIL(IO, "no epoll: %s", strerror(errno));
    }
    tcp *t = ARENA_NEW(a, tcp, 1);
    t->base.ops = &tcp_ops;
    t->epoll = epoll;
    t->listener = -1;
    t->spin = spin;
    t->finished_tail = &t->finished;
    t->buffers = buffers;
    t->conns = ARENA_NEW(a, conn, CONNS_MAX);
    send_op *ops = ARENA_NEW(a, send_op, OPS_MAX);
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        ops[i].next = t->op_free;
        t->op_free = &ops[i];
    }
    *out_transport = &t->base;
    return STATUS_OK;
}

/* ---- connections ----------------------------------------------------------------------------- */

static kv_peer handle(const tcp *t, const conn *c)
{
    return (uint64_t)c->generation << 16 | (uint64_t)(c - t->conns + 1);
}

static conn *resolve(tcp *t, kv_peer peer)
{
    uint64_t index = (peer & 0xffff) - 1;
    CHECK(peer != 0 && index < CONNS_MAX);
    conn *c = &t->conns[index];
    return c->state != CONN_FREE && c->generation == (uint32_t)(peer >> 16) ? c : NULL;
}

static bool option(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value) == 0;
}

static bool watch(tcp *t, conn *c, int how)
{
    struct epoll_event e = {.data.u64 = handle(t, c)};
    e.events = EPOLLIN | (c->full || c->state == CONN_DIALING ? (uint32_t)EPOLLOUT : 0);
    return epoll_ctl(t->epoll, how, c->fd, &e) == 0;
}

/* A connection for this socket, which is closed when there is no room for it. */
static conn *conn_new(tcp *t, int fd, conn_state state)
{
    uint32_t i = 0;
    while (i < CONNS_MAX && t->conns[i].state != CONN_FREE)
        i++;
    bool set = i < CONNS_MAX && option(fd, IPPROTO_TCP, TCP_NODELAY, 1) &&
               option(fd, SOL_SOCKET, SO_KEEPALIVE, 1) &&
               option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEP_IDLE_S) &&
               option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEP_EVERY_S) &&
               option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEP_COUNT) &&
               option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS);
    if (set) {
        conn *c = &t->conns[i];
        *c = (conn){.fd = fd, .state = state, .generation = ++t->generation};
        c->queue_tail = &c->queue;
        c->rx = t->buffers + (size_t)i * RECEIVE_BYTES;
        if (i >= t->conns_used) t->conns_used = i + 1;
        if (watch(t, c, EPOLL_CTL_ADD)) return c;
        c->state = CONN_FREE;
    }
    (void)close(fd);
    return NULL;
}

/* A dial to a port of this host that nobody listens on can meet itself. */
static bool met_itself(int fd)
{
    struct sockaddr_storage here = {0}, there = {0};
    socklen_t here_bytes = sizeof here, there_bytes = sizeof there;
    return getsockname(fd, (struct sockaddr *)&here, &here_bytes) == 0 &&
           getpeername(fd, (struct sockaddr *)&there, &there_bytes) == 0 &&
           here_bytes == there_bytes && memcmp(&here, &there, here_bytes) == 0;
}

static status tcp_dial(kv_transport *base, const char *address, kv_peer *out_peer)
{
    tcp *t = (tcp *)base;
    struct sockaddr_storage to;
    socklen_t bytes;
    if (kv_address_parse(address, &to, &bytes) != STATUS_OK) return STATUS_UNREACHABLE;
    int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return STATUS_UNREACHABLE;
    int connected = connect(fd, (const struct sockaddr *)&to, bytes);
    bool refused = connected != 0 && errno != EINPROGRESS;
    conn *c = conn_new(t, fd, CONN_DIALING);
    if (c == NULL) return STATUS_BUSY;
    c->failed = refused;
    *out_peer = handle(t, c);
    return STATUS_OK;
}

/* Whether the dial went well is known now. */
static void dialled(tcp *t, conn *c)
{
    int error = 0;
    socklen_t bytes = sizeof error;
    bool good = getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 && error == 0 &&
                !met_itself(c->fd);
    c->state = CONN_NEW;
    c->failed = !good || !watch(t, c, EPOLL_CTL_MOD);
}

static bool accept_all(tcp *t)
{
    bool moved = false;
    for (uint32_t i = 0; i < BACKLOG; i++) {
        int fd = accept4(t->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) break;
        (void)conn_new(t, fd, CONN_NEW); /* none: closed, as a full house does */
        moved = true;
    }
    return moved;
}

static status bound_address(int fd, char out[CLUSTER_ADDRESS_MAX])
{
    struct sockaddr_storage at = {0};
    socklen_t bytes = sizeof at;
    char host[64], port[8];
    if (getsockname(fd, (struct sockaddr *)&at, &bytes) != 0 ||
        getnameinfo((const struct sockaddr *)&at, bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return FAIL(IO, "cannot tell the address that is listened on");
    bool v6 = at.ss_family == AF_INET6;
    snprintf(out, CLUSTER_ADDRESS_MAX, "%s%s%s:%s", v6 ? "[" : "", host, v6 ? "]" : "", port);
    return STATUS_OK;
}

static status tcp_listen(kv_transport *base, const char *address,
                         char out_bound[CLUSTER_ADDRESS_MAX])
{
    tcp *t = (tcp *)base;
    CHECK(t->listener < 0);
    struct sockaddr_storage at;
    socklen_t bytes;
    TRY(kv_address_parse(address, &at, &bytes));
    int fd = socket(at.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0};
    bool good = fd >= 0 && option(fd, SOL_SOCKET, SO_REUSEADDR, 1) &&
                bind(fd, (const struct sockaddr *)&at, bytes) == 0 && listen(fd, BACKLOG) == 0 &&
                epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &e) == 0;
    int why = errno;
    if (good) {
        t->listener = fd;
        return bound_address(fd, out_bound);
    }
    if (fd >= 0) (void)close(fd);
    if (why == EADDRINUSE) return FAIL(IO, "cannot listen on %s: the address is in use", address);
    return FAIL(IO, "cannot listen on %s: %s", address, strerror(why));
}

static void tcp_hang_up(kv_transport *base, kv_peer peer)
{
    conn *c = resolve((tcp *)base, peer);
    if (c != NULL) c->hung_up = true;
}

static bool is_usable(const conn *c)
{
    return c->state == CONN_OPEN && !c->failed && !c->hung_up;
}

/* ---- sending --------------------------------------------------------------------------------- */

static void op_finish(tcp *t, conn *c)
{
    send_op *op = c->queue;
    c->queue = op->next;
    if (c->queue == NULL) c->queue_tail = &c->queue;
    op->next = NULL;
    *t->finished_tail = op;
    t->finished_tail = &op->next;
}

/* The socket took so many bytes from the front of the queue. */
static void taken(tcp *t, conn *c, uint64_t bytes)
{
    CHECK(bytes <= c->queued);
    c->queued -= bytes;
    c->head_sent += bytes;
    while (c->queue != NULL) {
        uint64_t whole = (uint64_t)c->queue->head_bytes + c->queue->body_bytes;
        if (c->head_sent < whole) return;
        c->head_sent -= whole;
        op_finish(t, c);
    }
}

static int gather(const conn *c, struct iovec *iov)
{
    int parts = 0;
    uint64_t skip = c->head_sent;
    for (send_op *op = c->queue; op != NULL && parts < 2 * SEND_OPS_MAX; op = op->next) {
        uint64_t in_head = skip < op->head_bytes ? skip : op->head_bytes, in_body = skip - in_head;
        skip = 0;
        if (in_head < op->head_bytes)
            iov[parts++] = (struct iovec){op->head + in_head, op->head_bytes - in_head};
        if (in_body < op->body_bytes)
            iov[parts++] = (struct iovec){(uint8_t *)op->body + in_body, op->body_bytes - in_body};
    }
    return parts;
}

/* Give the socket what is queued, until it is full. */
static void flush(tcp *t, conn *c)
{
    while (c->queue != NULL && !c->full && is_usable(c)) {
        struct iovec iov[2 * SEND_OPS_MAX + 1];
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = (size_t)gather(c, iov)};
        uint64_t offered = 0;
        for (size_t i = 0; i < m.msg_iovlen; i++)
            offered += iov[i].iov_len;
        ssize_t n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN) {
            c->failed = true;
            return;
        }
        if (n > 0) taken(t, c, (uint64_t)n);
        if (n >= 0 && (uint64_t)n == offered) continue;
        c->full = true;
        c->failed = !watch(t, c, EPOLL_CTL_MOD);
    }
}

static status tcp_send(kv_transport *base, kv_peer peer, const kv_message *message)
{
    tcp *t = (tcp *)base;
    conn *c = resolve(t, peer);
    CHECK(message->head_bytes <= WIRE_HEAD_MAX && message->body_bytes <= WIRE_BLOCK_BYTES_MAX);
    if (c == NULL || !is_usable(c)) return STATUS_PEER_LOST;
    if (c->ops >= CONN_OPS_MAX || t->op_free == NULL) return STATUS_BUSY;
    if (message->body_bytes > 0 && c->bytes > 0 && c->bytes + message->body_bytes > CONN_BYTES_MAX)
        return STATUS_BUSY;
    send_op *op = t->op_free;
    t->op_free = op->next;
    op->next = NULL;
    op->conn = c;
    op->cookie = message->cookie;
    op->body = message->body;
    op->body_bytes = message->body_bytes;
    op->head_bytes = FRAME_BYTES + message->head_bytes;
    frame f = {FRAME_MAGIC, (uint16_t)message->head_bytes, message->body_bytes};
    memcpy(op->head, &f, sizeof f);
    memcpy(op->head + FRAME_BYTES, message->head, message->head_bytes);
    *c->queue_tail = op;
    c->queue_tail = &op->next;
    c->ops++;
    c->bytes += op->body_bytes;
    c->queued += (uint64_t)op->head_bytes + op->body_bytes;
    if (c->queued >= FLUSH_BYTES) flush(t, c);
    return STATUS_OK; /* if the socket failed meanwhile, `closed` follows */
}

static bool report_sent(tcp *t)
{
    bool moved = t->finished != NULL;
    while (t->finished != NULL) {
        send_op *op = t->finished;
        t->finished = op->next;
        if (t->finished == NULL) t->finished_tail = &t->finished;
        conn *c = op->conn;
        uint64_t cookie = op->cookie;
        bool body = op->body_bytes > 0;
        CHECK(c->ops > 0 && c->bytes >= op->body_bytes);
        c->ops--;
        c->bytes -= op->body_bytes;
        op->next = t->op_free;
        t->op_free = op;
        if (body) t->base.events->sent(t->base.owner, handle(t, c), cookie);
    }
    return moved;
}

/* ---- receiving ------------------------------------------------------------------------------- */

/* NULL: the owner has no place of its own for it. */
static void *land(tcp *t, conn *c, const frame *f, const void *head)
{
    if (t->base.events->land == NULL) return NULL;
    kv_message m = {.head = head, .head_bytes = f->head_bytes, .body_bytes = f->body_bytes};
    return t->base.events->land(t->base.owner, handle(t, c), &m);
}

static void deliver(tcp *t, conn *c, const frame *f, const void *head, const void *body)
{
    kv_message m = {
        .head = head,
        .head_bytes = f->head_bytes,
        .body = f->body_bytes == 0 ? NULL : body,
        .body_bytes = f->body_bytes,
    };
    t->base.events->message(t->base.owner, handle(t, c), &m);
}

/* The first part of a long body is in the buffer: let it and the rest go to the owner's memory. */
static void land_begin(tcp *t, conn *c, const frame *f, const uint8_t *head)
{
    const uint8_t *body = c->rx + c->rx_from + FRAME_BYTES + f->head_bytes;
    uint32_t have = c->rx_to - c->rx_from - FRAME_BYTES - f->head_bytes;
    uint8_t *at = f->body_bytes > LAND_BYTES ? land(t, c, f, head) : NULL;
    if (at == NULL) return;
    CHECK(have < f->body_bytes);
    memcpy(at, body, have);
    memcpy(c->land_head, head, f->head_bytes);
    c->land_frame = *f;
    c->land_at = at;
    c->land_have = have;
    c->landing = true;
    c->rx_from = c->rx_to = 0;
}

/* Deliver what is whole in the buffer. */
static void parse(tcp *t, conn *c)
{
    while (is_usable(c) && !c->landing) {
        uint32_t have = c->rx_to - c->rx_from;
        alignas(8) uint8_t head[WIRE_HEAD_MAX];
        frame f;
        if (have < FRAME_BYTES) break;
        memcpy(&f, c->rx + c->rx_from, sizeof f);
        if (f.magic != FRAME_MAGIC || f.head_bytes > WIRE_HEAD_MAX ||
            f.body_bytes > WIRE_BLOCK_BYTES_MAX) {
            LOG(WARN, "closing a connection that does not speak this protocol");
            c->hung_up = true;
            break;
        }
        uint32_t before = FRAME_BYTES + f.head_bytes;
        if (have < before) break;
        memcpy(head, c->rx + c->rx_from + FRAME_BYTES, f.head_bytes);
        if (have < before + f.body_bytes) {
            land_begin(t, c, &f, head);
            break;
        }
        const uint8_t *body = c->rx + c->rx_from + before;
        c->rx_from += before + f.body_bytes;
        deliver(t, c, &f, head, body);
    }
    if (c->rx_from == c->rx_to) {
        c->rx_from = c->rx_to = 0;
    } else if (c->rx_from > READ_BYTES) { /* so that the largest message always has room */
        memmove(c->rx, c->rx + c->rx_from, c->rx_to - c->rx_from);
        c->rx_to -= c->rx_from;
        c->rx_from = 0;
    }
}

/* One read; *out_full: there may be more. False: nothing came. */
static bool read_once(tcp *t, conn *c, uint64_t *out_bytes, bool *out_full)
{
    struct iovec iov[2];
    int parts = 0;
    uint32_t rest = 0, most = READ_BYTES;
    if (t->base.events->land != NULL) most = c->landing ? LOOK_BYTES : PEEK_BYTES;
    if (most > RECEIVE_BYTES - c->rx_to) most = RECEIVE_BYTES - c->rx_to;
    if (c->landing) {
        rest = c->land_frame.body_bytes - c->land_have;
        if (c->land_at != NULL && land(t, c, &c->land_frame, c->land_head) != c->land_at)
            c->land_at = NULL;
        uint8_t *at = c->land_at != NULL ? c->land_at + c->land_have : t->sink;
        if (c->land_at == NULL && rest > READ_BYTES) {
            rest = READ_BYTES;
            most = 0; /* what follows is the body's still */
        }
        iov[parts++] = (struct iovec){at, rest};
    }
    iov[parts++] = (struct iovec){c->rx + c->rx_to, most};
    ssize_t n = readv(c->fd, iov, parts);
    if (n <= 0) {
        c->failed = n == 0 || (errno != EAGAIN && errno != EINTR);
        return false;
    }
    *out_bytes += (uint64_t)n;
    *out_full = (uint64_t)n == (uint64_t)rest + most;
    uint32_t landed = n < rest ? (uint32_t)n : rest;
    c->land_have += landed;
    c->rx_to += (uint32_t)(n - landed);
    return true;
}

static bool receive(tcp *t, conn *c)
{
    uint64_t bytes = 0;
    bool full = true;
    while (full && bytes < POLL_BYTES && is_usable(c)) {
        if (!read_once(t, c, &bytes, &full)) break;
        if (c->landing && c->land_have == c->land_frame.body_bytes) {
            c->landing = false;
            deliver(t, c, &c->land_frame, c->land_head, c->land_at);
        }
        parse(t, c);
    }
    return bytes > 0 || c->failed;
}

/* ---- poll ------------------------------------------------------------------------------------ */

/* The socket goes at once, what it had queued is finished: its bodies are the owner's again. */
static void conn_close(tcp *t, conn *c)
{
    c->state = CONN_CLOSING;
    (void)close(c->fd);
    c->fd = -1;
    while (c->queue != NULL)
        op_finish(t, c);
    const size_t page = 4096, skip = (page - (uintptr_t)c->rx % page) % page;
    (void)madvise(c->rx + skip, (RECEIVE_BYTES - skip) / page * page, MADV_DONTNEED); /* a hint */
}

static bool conn_step(tcp *t, conn *c)
{
    if (c->state == CONN_CLOSING) {
        if (c->ops > 0) return false;
        kv_peer peer = handle(t, c);
        status why = c->hung_up ? STATUS_OK : STATUS_PEER_LOST;
        c->state = CONN_FREE;
        t->base.events->closed(t->base.owner, peer, why);
        return true;
    }
    if (c->failed || c->hung_up) {
        conn_close(t, c);
        return true;
    }
    if (c->state == CONN_NEW) {
        c->state = CONN_OPEN;
        t->base.events->opened(t->base.owner, handle(t, c));
        return true;
    }
    return false;
}

static bool conn_event(tcp *t, const struct epoll_event *e)
{
    if (e->data.u64 == 0) return accept_all(t);
    conn *c = resolve(t, e->data.u64);
    if (c == NULL || c->state == CONN_CLOSING || c->failed || c->hung_up) return false;
    if (c->state == CONN_DIALING) {
        dialled(t, c);
        return true;
    }
    if ((e->events & EPOLLOUT) != 0 && c->full) {
        c->full = false;
        flush(t, c);
        if (!c->full && !c->failed) c->failed = !watch(t, c, EPOLL_CTL_MOD);
    }
    return c->state == CONN_OPEN && receive(t, c);
}

static void tcp_flush(kv_transport *base)
{
    tcp *t = (tcp *)base;
    for (uint32_t i = 0; i < t->conns_used; i++)
        if (t->conns[i].queue != NULL && !t->conns[i].full) flush(t, &t->conns[i]);
}

static bool tcp_poll(kv_transport *base)
{
    tcp *t = (tcp *)base;
    struct epoll_event events[EVENTS_MAX];
    bool moved = false;
    tcp_flush(base);
    int count = epoll_wait(t->epoll, events, EVENTS_MAX, 0);
    for (int i = 0; i < count; i++)
        moved |= conn_event(t, &events[i]);
    moved |= report_sent(t);
    for (uint32_t i = 0; i < t->conns_used; i++)
        if (t->conns[i].state != CONN_FREE) moved |= conn_step(t, &t->conns[i]);
    return moved;
}

static void tcp_wait(kv_transport *base, int wake_fd, uint64_t ns_max)
{
    tcp *t = (tcp *)base;
    tcp_flush(base);
    if (t->spin) return;
    for (uint32_t i = 0; i < t->conns_used; i++) {
        conn *c = &t->conns[i];
        if (c->state == CONN_NEW || c->state == CONN_CLOSING) return;
        if (c->state != CONN_FREE && (c->failed || c->hung_up)) return;
    }
    if (t->finished != NULL) return;
    kv_sleep(t->epoll, wake_fd, ns_max);
}

static void tcp_close(kv_transport *base)
{
    tcp *t = (tcp *)base;
    tcp_flush(base);
    for (uint32_t i = 0; i < t->conns_used; i++) {
        conn *c = &t->conns[i];
        if (c->state == CONN_FREE || c->state == CONN_CLOSING) continue;
        (void)close(c->fd);
        c->state = CONN_FREE;
    }
    if (t->listener >= 0) (void)close(t->listener);
    (void)close(t->epoll);
    CHECK(munmap(t->buffers, buffers_bytes) == 0);
}

static const kv_transport_ops tcp_ops = {
    .listen = tcp_listen,
    .dial = tcp_dial,
    .send = tcp_send,
    .hang_up = tcp_hang_up,
    .poll = tcp_poll,
    .flush = tcp_flush,
    .wait = tcp_wait,
    .close = tcp_close,
};
