/* The two transports of a real network, on loopback: what both must do, and what is one's alone. */
#include "kvstore/transport.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct peer_log {
    uint8_t *landing;    /* where bodies go; NULL: nowhere */
    uint32_t land_asked; /* how often */
    uint32_t land_until; /* asked more often than this: withdrawn; 0: never */
    uint32_t landed;     /* bodies that came there */
    uint32_t withdrawn;  /* messages without the body that they have */
    uint32_t opened, closed, messages, sent;
    kv_peer last;
    uint8_t head[WIRE_HEAD_MAX];
    uint64_t body_digest;
    uint32_t body_bytes;
} peer_log;

static void log_opened(void *owner, kv_peer peer)
{
    peer_log *l = owner;
    l->opened++;
    l->last = peer;
}

static void log_message(void *owner, kv_peer peer, const kv_message *m)
{
    peer_log *l = owner;
    l->messages++;
    l->last = peer;
    memcpy(l->head, m->head, m->head_bytes);
    l->body_bytes = m->body_bytes;
    l->landed += m->body != NULL && m->body == l->landing;
    l->withdrawn += m->body == NULL && m->body_bytes > 0;
    if (m->body != NULL) l->body_digest = bytes_digest(m->body, m->body_bytes, 1);
}

static void log_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)peer;
    (void)cookie;
    ((peer_log *)owner)->sent++;
}

static void log_closed(void *owner, kv_peer peer, status why)
{
    (void)peer;
    (void)why;
    ((peer_log *)owner)->closed++;
}

static void *log_land(void *owner, kv_peer peer, const kv_message *m)
{
    (void)peer;
    peer_log *l = owner;
    EXPECT(m->body == NULL && m->body_bytes > 0);
    l->land_asked++;
    return l->land_until != 0 && l->land_asked > l->land_until ? NULL : l->landing;
}

static const kv_events log_events = {log_opened, log_message, log_sent, log_closed, NULL};
static const kv_events land_events = {log_opened, log_message, log_sent, log_closed, log_land};

typedef enum kind { UCX, TCP } kind;

static status open_one(kind with, arena *a, kv_transport **out)
{
    return with == UCX ? kv_transport_ucx_open(a, false, out)
                       : kv_transport_tcp_open(a, false, out);
}

/* How many descriptors are open, of those that a test may have. */
static int fds_open(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

/* Poll both until `*counter` reaches `want`, or five seconds have passed. */
static bool until(kv_transport *a, kv_transport *b, const uint32_t *counter, uint32_t want)
{
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    while (*counter < want && clock_now(&clock_monotonic) < end) {
        kv_transport_flush(a);
        if (b != NULL) kv_transport_flush(b);
        bool moved = a->ops->poll(a);
        if (b != NULL) moved |= b->ops->poll(b);
        if (!moved) a->ops->wait(a, -1, 100 * 1000);
    }
    return *counter >= want;
}

/* A server and a client that is connected to it. */
typedef struct pair {
    arena *a;
    kv_transport *server, *client;
    peer_log at_server, at_client;
    kv_peer peer; /* the client's end */
    char address[CLUSTER_ADDRESS_MAX];
} pair;

/* The client's end is open; the server may yet have to accept it. */
static void pair_dial(pair *p, kind with, const char *listen, const kv_events *server_events)
{
    *p = (pair){.a = arena_create("pair")};
    EXPECT(open_one(with, p->a, &p->server) == STATUS_OK);
    EXPECT(open_one(with, p->a, &p->client) == STATUS_OK);
    kv_transport_bind(p->server, server_events, &p->at_server);
    kv_transport_bind(p->client, &log_events, &p->at_client);
    EXPECT_OK(p->server->ops->listen(p->server, listen, p->address));
    EXPECT(p->client->ops->dial(p->client, p->address, &p->peer) == STATUS_OK);
    EXPECT(until(p->client, p->server, &p->at_client.opened, 1));
}

static void pair_open(pair *p, kind with, const kv_events *server_events)
{
    pair_dial(p, with, "127.0.0.1:0", server_events);
    EXPECT(until(p->server, p->client, &p->at_server.opened, 1));
}

static void pair_close(pair *p)
{
    kv_transport_close(p->client);
    kv_transport_close(p->server);
    arena_destroy(p->a);
}

static void messages_cross(kind with)
{
    pair p;
    pair_open(&p, with, &log_events);
    uint8_t *body = calloc(1, 1 << 20);
    for (uint32_t i = 0; i < 1 << 20; i++)
        body[i] = (uint8_t)(i * 7 + i / 251);
    static const uint32_t sizes[] = {1, 100, 8192, 16384, 32768, 65536, 1 << 20};
    for (uint32_t i = 0; i < 7; i++) {
        kv_message m = {"0123456789abcdef", 16, body, sizes[i], i};
        EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_OK);
        EXPECT(until(p.client, p.server, &p.at_server.messages, i + 1));
        EXPECT_EQ_U64(p.at_server.body_bytes, sizes[i]);
        EXPECT_EQ_X64(p.at_server.body_digest, bytes_digest(body, sizes[i], 1));
        EXPECT(until(p.client, p.server, &p.at_client.sent, i + 1));
    }
    kv_message reply = {"answer", 6, NULL, 0, 0};
    EXPECT(p.server->ops->send(p.server, p.at_server.last, &reply) == STATUS_OK);
    EXPECT(until(p.client, p.server, &p.at_client.messages, 1));
    EXPECT_EQ_MEM(p.at_client.head, "answer", 6);
    kv_transport_close(p.server);
    EXPECT(until(p.client, NULL, &p.at_client.closed, 1));
    kv_transport_close(p.client);
    free(body);
    arena_destroy(p.a);
}

TEST(messages_cross_whole_and_a_closed_end_is_told)
{
    messages_cross(UCX);
    messages_cross(TCP);
}

static void hang_up(kind with)
{
    pair p;
    pair_open(&p, with, &log_events);
    /* Of twenty sleeps of 20 ms one at least is not cut short: nothing is left to do. */
    uint64_t longest = 0;
    for (uint32_t i = 0; i < 20; i++) {
        while (p.client->ops->poll(p.client))
            continue;
        uint64_t start = clock_now(&clock_monotonic);
        p.client->ops->wait(p.client, -1, 20 * 1000 * 1000);
        uint64_t slept = clock_now(&clock_monotonic) - start;
        if (slept > longest) longest = slept;
    }
    EXPECT_GE_U64(longest, 19 * 1000 * 1000);
    p.client->ops->hang_up(p.client, p.peer);
    EXPECT(until(p.client, p.server, &p.at_client.closed, 1));
    EXPECT(until(p.server, p.client, &p.at_server.closed, 1));
    kv_message m = {"late", 4, NULL, 0, 0};
    EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_PEER_LOST);
    kv_peer again; /* its place is another's now: the old name does not reach it */
    EXPECT(p.client->ops->dial(p.client, p.address, &again) == STATUS_OK && again != p.peer);
    EXPECT(until(p.client, p.server, &p.at_client.opened, 2));
    EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_PEER_LOST);
    EXPECT(p.client->ops->send(p.client, again, &m) == STATUS_OK);
    EXPECT(until(p.client, p.server, &p.at_server.messages, 1));
    for (uint32_t i = 0; i < 20; i++) { /* until nothing cuts a sleep short any more */
        while (p.client->ops->poll(p.client))
            continue;
        p.client->ops->wait(p.client, -1, 1000 * 1000);
    }
    p.client->ops->hang_up(p.client, again); /* there is something to do: no sleep */
    uint64_t start = clock_now(&clock_monotonic);
    p.client->ops->wait(p.client, -1, UINT64_C(5000) * 1000 * 1000);
    EXPECT(clock_now(&clock_monotonic) - start < UINT64_C(4000) * 1000 * 1000);
    EXPECT(p.client->ops->dial(p.client, p.address, &again) ==
           STATUS_OK); /* and one half way there */
    EXPECT(until(p.client, p.server, &p.at_client.opened, 3));
    EXPECT(p.client->ops->send(p.client, again, &m) == STATUS_OK);
    pair_close(&p);
}

TEST(who_hangs_up_is_told_when_it_is_over_and_an_idle_connection_sleeps)
{
    hang_up(UCX);
    hang_up(TCP);
}

static void dial_to_nobody(kind with)
{
    arena *a = arena_create("network test");
    kv_transport *client;
    peer_log at_client = {0};
    kv_peer peer;
    EXPECT(open_one(with, a, &client) == STATUS_OK);
    kv_transport_bind(client, &log_events, &at_client);
    EXPECT(client->ops->dial(client, "127.0.0.1:1", &peer) == STATUS_OK);
    EXPECT(until(client, NULL, &at_client.closed, 1));
    if (with == TCP) {
        EXPECT(client->ops->dial(client, "255.255.255.255:1", &peer) == STATUS_OK); /* no way */
        EXPECT(until(client, NULL, &at_client.closed, 2));
        EXPECT_EQ_U64(at_client.opened, 0);
    }
    EXPECT(client->ops->dial(client, "nobody:1", &peer) == STATUS_UNREACHABLE);
    kv_transport_close(client);
    arena_destroy(a);
}

TEST(a_dial_to_nobody_is_closed_soon)
{
    dial_to_nobody(UCX);
    dial_to_nobody(TCP);
}

static void taken_port(kind with)
{
    arena *a = arena_create("network test");
    kv_transport *one, *two;
    peer_log l = {0};
    char address[CLUSTER_ADDRESS_MAX], other[CLUSTER_ADDRESS_MAX];
    EXPECT(open_one(with, a, &one) == STATUS_OK);
    EXPECT(open_one(with, a, &two) == STATUS_OK);
    kv_transport_bind(one, &log_events, &l);
    EXPECT(one->ops->listen(one, "127.0.0.1:0", address) == STATUS_OK);
    EXPECT(two->ops->listen(two, address, other) == STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "the address is in use");
    int open_before = fds_open();
    EXPECT(two->ops->listen(two, address, other) == STATUS_IO);
    EXPECT_EQ_I64(fds_open(), open_before); /* what failed holds no descriptor */
    kv_transport_close(one);
    EXPECT_OK(two->ops->listen(two, address, other)); /* who closed listens no more */
    EXPECT_EQ_STR(other, address);
    kv_transport_close(two);
    arena_destroy(a);
}

TEST(a_taken_port_is_refused_with_a_sentence_and_free_again_when_its_owner_closed)
{
    taken_port(UCX);
    taken_port(TCP);
}

TEST(an_address_that_is_not_here_is_refused_with_another_sentence)
{
    kv_transport *t;
    char bound[CLUSTER_ADDRESS_MAX];
    arena *a = arena_create("network test");
    EXPECT(open_one(TCP, a, &t) == STATUS_OK);
    EXPECT_STATUS(t->ops->listen(t, "192.0.2.77:0", bound), STATUS_IO); /* TEST-NET-1 */
    EXPECT(strstr(log_last_error(), "in use") == NULL);
    EXPECT_HAS_STR(log_last_error(), "192.0.2.77");
    kv_transport_close(t);
    arena_destroy(a);
}

static bool has_ipv6(void)
{
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool good = fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0;
    if (fd >= 0) close(fd);
    return good;
}

static void bound_to(kind with, const char *listen, const char *begins)
{
    pair p;
    pair_dial(&p, with, listen, &log_events);
    EXPECT_MSG(strncmp(p.address, begins, strlen(begins)) == 0, "bound to %s", p.address);
    EXPECT(atoi(p.address + strlen(begins)) > 0);
    pair_close(&p);
}

TEST(the_address_that_is_listened_on_is_told_as_it_can_be_dialled)
{
    bound_to(UCX, "127.0.0.1:0", "127.0.0.1:");
    bound_to(TCP, "127.0.0.1:0", "127.0.0.1:");
    if (!has_ipv6()) SKIP("no IPv6 on loopback");
    bound_to(TCP, "[::1]:0", "[::1]:");
}

TEST(ucx_refuses_to_listen_on_or_dial_an_ipv6_address_and_says_what_to_do)
{
    static const char *const six[] = {"[::1]:0", "[::1]:7101", "[::ffff:127.0.0.1]:7101"};
    arena *a = arena_create("network test");
    kv_transport *t;
    peer_log l = {0};
    char bound[CLUSTER_ADDRESS_MAX];
    kv_peer peer;
    EXPECT(open_one(UCX, a, &t) == STATUS_OK);
    kv_transport_bind(t, &log_events, &l);
    for (size_t i = 0; i < sizeof six / sizeof six[0]; i++) {
        EXPECT_STATUS(t->ops->listen(t, six[i], bound), STATUS_UNSUPPORTED);
        EXPECT_HAS_STR(log_last_error(), six[i]);
        EXPECT_HAS_STR(log_last_error(), "network.tcp: true");
        LOG(ERROR, "another");
        EXPECT_STATUS(t->ops->dial(t, six[i], &peer), STATUS_UNREACHABLE);
        EXPECT_HAS_STR(log_last_error(), six[i]);
        EXPECT_HAS_STR(log_last_error(), "network.tcp: true");
    }
    EXPECT_OK(t->ops->listen(t, "127.0.0.1:0", bound)); /* nothing of it is left behind */
    kv_transport_close(t);
    EXPECT_EQ_U64(l.opened + l.closed, 0);
    arena_destroy(a);
}

/* ---- plain TCP ------------------------------------------------------------------------------- */

TEST(a_long_body_is_read_where_the_owner_says_and_a_short_one_is_not)
{
    pair p;
    pair_open(&p, TCP, &land_events);
    uint8_t *body = calloc(1, 1 << 20);
    p.at_server.landing = calloc(1, 1 << 20);
    for (uint32_t i = 0; i < 1 << 20; i++)
        body[i] = (uint8_t)(i * 11 + i / 257);
    static const uint32_t sizes[] = {4096, 8192, 32768, 40000, 65536, 1 << 20};
    for (uint32_t i = 0; i < 6; i++) {
        memset(p.at_server.landing, 0, 1 << 20);
        for (uint32_t twin = 0; twin < 2; twin++) { /* the second's head comes with the first */
            kv_message m = {"head", 4, body, sizes[i], i};
            EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_OK);
        }
        EXPECT(until(p.client, p.server, &p.at_server.messages, 2 * i + 2));
        EXPECT_EQ_U64(p.at_server.landed, 2 * i);
        EXPECT_EQ_X64(p.at_server.body_digest, bytes_digest(body, sizes[i], 1));
        if (i > 0) EXPECT_EQ_MEM(p.at_server.landing, body, sizes[i]);
    }
    EXPECT_EQ_U64(p.at_server.withdrawn, 0);
    free(p.at_server.landing);
    free(body);
    pair_close(&p);
}

TEST(a_landing_that_was_withdrawn_is_not_written_any_more)
{
    pair p;
    pair_open(&p, TCP, &land_events);
    uint8_t *body = malloc(1 << 20);
    p.at_server.landing = calloc(1, 1 << 20);
    memset(body, 7, 1 << 20);
    p.at_server.land_until = 2; /* once for the head's part, once for the next */
    kv_message m = {"head", 4, body, 1 << 20, 1};
    EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_OK);
    while (p.at_server.land_asked <= 2) {
        kv_transport_flush(p.client);
        p.client->ops->poll(p.client);
        p.server->ops->poll(p.server);
    }
    memset(p.at_server.landing, 0, 1 << 20); /* somebody else's now */
    EXPECT(until(p.client, p.server, &p.at_server.messages, 1));
    EXPECT(p.at_server.withdrawn == 1 && p.at_server.landed == 0);
    for (uint32_t i = 0; i < 1 << 20; i++)
        CHECK(p.at_server.landing[i] == 0);
    p.at_server.land_until = 0; /* the stream goes on */
    EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_OK);
    EXPECT(until(p.client, p.server, &p.at_server.landed, 1));
    EXPECT_EQ_MEM(p.at_server.landing, body, 1 << 20);
    free(p.at_server.landing);
    free(body);
    pair_close(&p);
}

static int dial_plain(const char *address)
{
    struct sockaddr_storage to;
    socklen_t bytes;
    EXPECT(kv_address_parse(address, &to, &bytes) == STATUS_OK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT(fd >= 0 && connect(fd, (struct sockaddr *)&to, bytes) == 0);
    return fd;
}

TEST(what_is_no_frame_ends_the_connection_and_what_is_half_of_one_waits)
{
    static const struct {
        uint8_t bytes[8];
        uint32_t count;
        bool ends;
    } say[] = {
        {{0x48, 0x53, 4, 0, 0, 0, 0, 0}, 8, false},   /* a head is to come */
        {{0x48, 0x53, 4}, 3, false},                  /* half a frame */
        {{0x49, 0x53, 4, 0, 0, 0, 0, 0}, 8, true},    /* another magic */
        {{0x48, 0x53, 129, 0, 0, 0, 0, 0}, 8, true},  /* a head longer than any */
        {{0x48, 0x53, 4, 0, 1, 0, 0x10, 0}, 8, true}, /* a body of 1 MiB and a byte */
        {{'G', 'E', 'T', ' ', '/', ' ', 'H', 'T'}, 8, true},
    };
    pair p;
    pair_open(&p, TCP, &log_events);
    for (uint32_t i = 0; i < sizeof say / sizeof say[0]; i++) {
        uint32_t opened = p.at_server.opened, closed = p.at_server.closed;
        int fd = dial_plain(p.address);
        EXPECT(until(p.server, p.client, &p.at_server.opened, opened + 1));
        EXPECT(write(fd, say[i].bytes, say[i].count) == (ssize_t)say[i].count);
        if (say[i].ends) EXPECT(until(p.server, p.client, &p.at_server.closed, closed + 1));
        for (uint32_t n = 0; n < 50; n++)
            p.server->ops->poll(p.server);
        EXPECT_EQ_U64(p.at_server.closed, closed + say[i].ends);
        close(fd);
        EXPECT(until(p.server, p.client, &p.at_server.closed, closed + 1));
    }
    EXPECT_EQ_U64(p.at_server.messages, 0);
    EXPECT_EQ_U64(p.at_client.closed, 0);
    pair_close(&p);
}

/* Whoever dials says so much that the other must have looked at it. */
static void across(kind listens)
{
    arena *a = arena_create("network test");
    kv_transport *server, *client, *friend;
    peer_log at_server = {0}, at_client = {0}, at_friend = {0};
    char address[CLUSTER_ADDRESS_MAX];
    kv_peer peer;
    static uint8_t body[64 << 10];
    EXPECT(open_one(listens, a, &server) == STATUS_OK);
    EXPECT(open_one(listens, a, &friend) == STATUS_OK);
    EXPECT(open_one(listens == UCX ? TCP : UCX, a, &client) == STATUS_OK);
    kv_transport_bind(server, &log_events, &at_server);
    kv_transport_bind(client, &log_events, &at_client);
    kv_transport_bind(friend, &log_events, &at_friend);
    EXPECT(server->ops->listen(server, "127.0.0.1:0", address) == STATUS_OK);
    EXPECT(client->ops->dial(client, address, &peer) == STATUS_OK);
    kv_message m = {"hello", 5, body, sizeof body, 1};
    for (uint32_t n = 0; n < 2000 && at_client.closed == 0; n++) {
        if (at_client.opened > 0 && n % 100 == 0) (void)client->ops->send(client, peer, &m);
        if (!client->ops->poll(client)) client->ops->wait(client, -1, 100 * 1000);
        (void)server->ops->poll(server);
    }
    EXPECT_EQ_U64(at_server.messages + at_client.messages, 0);
    EXPECT(friend->ops->dial(friend, address, &peer) == STATUS_OK); /* nobody was harmed */
    EXPECT(until(friend, server, &at_friend.opened, 1));
    EXPECT(friend->ops->send(friend, peer, &m) == STATUS_OK);
    EXPECT(until(friend, server, &at_server.messages, 1));
    kv_transport_close(client);
    kv_transport_close(friend);
    kv_transport_close(server);
    arena_destroy(a);
}

TEST(a_dial_from_ucx_to_tcp_or_back_delivers_nothing_and_harms_nobody)
{
    across(TCP);
    across(UCX);
}

TEST(who_does_not_read_makes_busy_and_gets_everything_in_order_when_it_does)
{
    enum { BODY = 64 << 10, MAX = 4096 };
    pair p;
    pair_open(&p, TCP, &log_events);
    uint8_t *body = calloc(1, BODY);
    uint32_t sent = 0;
    kv_message m = {.head = &sent, .head_bytes = 4, .body = body, .body_bytes = BODY};
    for (status s = STATUS_OK; s == STATUS_OK && sent < MAX; sent += s == STATUS_OK) {
        s = p.client->ops->send(p.client, p.peer, &m);
        p.client->ops->poll(p.client);
        EXPECT(s == STATUS_OK || s == STATUS_BUSY);
    }
    EXPECT(sent > 64 && sent < MAX);
    EXPECT(until(p.client, p.server, &p.at_server.messages, sent));
    uint32_t last = sent - 1;
    EXPECT_EQ_MEM(p.at_server.head, &last, 4);
    EXPECT(until(p.client, p.server, &p.at_client.sent, sent));
    EXPECT(p.client->ops->send(p.client, p.peer, &m) == STATUS_OK);
    p.client->ops->hang_up(p.client, p.peer); /* what was not sent is given back */
    EXPECT(until(p.client, p.server, &p.at_client.closed, 1));
    EXPECT_EQ_U64(p.at_client.sent, sent + 1);
    free(body);
    pair_close(&p);
}

/* ---- both, message by message ---------------------------------------------------------------- */

/* Bodies that were not given back yet are bounded by bytes, before messages are. */
static void lent_bound(kind with)
{
    enum { BODY = 64 << 10, FIT = (4 << 20) / BODY };
    pair e;
    pair_open(&e, with, &log_events);
    uint8_t *body = calloc(1, BODY);
    uint32_t sent = 0;
    kv_message m = {.head = "body", .head_bytes = 4, .body = body, .body_bytes = BODY};
    while (sent < 2 * FIT && e.client->ops->send(e.client, e.peer, &m) == STATUS_OK)
        sent++;
    EXPECT_EQ_U64(sent, FIT);
    EXPECT_STATUS(e.client->ops->send(e.client, e.peer, &m), STATUS_BUSY);
    kv_message word = {.head = "word", .head_bytes = 4}; /* lends nothing */
    EXPECT_OK(e.client->ops->send(e.client, e.peer, &word));
    EXPECT(until(e.client, e.server, &e.at_client.sent, FIT));
    EXPECT(until(e.client, e.server, &e.at_server.messages, FIT + 1));
    EXPECT_EQ_MEM(e.at_server.head, "word", 4);
    EXPECT_OK(e.client->ops->send(e.client, e.peer, &m));
    EXPECT(until(e.client, e.server, &e.at_client.sent, FIT + 1));
    free(body);
    pair_close(&e);
}

TEST(four_mib_of_bodies_at_most_are_lent_to_one_peer)
{
    lent_bound(UCX);
    lent_bound(TCP);
}

/* Who sleeps is woken by a message, and the poll that delivers it says that something moved. */
static void message_wakes(kind with)
{
    pair e;
    pair_open(&e, with, &log_events);
    kv_message m = {.head = "word", .head_bytes = 4};
    EXPECT_OK(e.client->ops->send(e.client, e.peer, &m)); /* the connection is all there */
    EXPECT(until(e.client, e.server, &e.at_server.messages, 1));
    for (uint32_t i = 0; i < 1000; i++) {
        (void)e.client->ops->poll(e.client);
        (void)e.server->ops->poll(e.server);
    }
    uint64_t start = clock_now(&clock_monotonic);
    EXPECT_OK(e.client->ops->send(e.client, e.peer, &m));
    kv_transport_flush(e.client);
    (void)e.client->ops->poll(e.client);
    while (e.at_server.messages == 1) {
        e.server->ops->wait(e.server, -1, UINT64_C(5000) * 1000 * 1000);
        bool moved = e.server->ops->poll(e.server);
        EXPECT(e.at_server.messages == 1 || moved);
        EXPECT(clock_now(&clock_monotonic) - start < UINT64_C(4000) * 1000 * 1000);
    }
    pair_close(&e);
}

TEST(a_message_ends_the_sleep_of_who_it_is_for)
{
    message_wakes(UCX);
    message_wakes(TCP);
}

TEST(what_is_flushed_leaves_though_its_sender_never_polls)
{
    pair e;
    pair_open(&e, TCP, &log_events);
    kv_message m = {.head = "word", .head_bytes = 4};
    for (uint32_t i = 0; i < 3; i++) {
        EXPECT_OK(e.client->ops->send(e.client, e.peer, &m));
        errno = EINTR; /* an old error means nothing */
        kv_transport_flush(e.client);
    }
    EXPECT(until(e.server, NULL, &e.at_server.messages, 3));
    for (uint32_t i = 0; i < 50; i++)
        (void)e.server->ops->poll(e.server);
    EXPECT(e.at_server.messages == 3 && e.at_server.closed == 0); /* once each */
    pair_close(&e);
}

TEST(short_messages_leave_together_and_at_once_when_they_are_many)
{
    static uint8_t body[64 << 10];
    pair e;
    pair_open(&e, TCP, &log_events);
    kv_message m = {.head = "word", .head_bytes = 4};
    EXPECT_OK(e.client->ops->send(e.client, e.peer, &m));
    for (uint32_t i = 0; i < 50; i++)
        (void)e.server->ops->poll(e.server);
    EXPECT_EQ_U64(e.at_server.messages, 0); /* it waits for others, or a flush */
    m.body = body;
    m.body_bytes = sizeof body;
    for (uint32_t i = 0; i < 4; i++)
        EXPECT_OK(e.client->ops->send(e.client, e.peer, &m));
    EXPECT(until(e.server, NULL, &e.at_server.messages, 1));
    pair_close(&e);
}

TEST(one_poll_takes_all_the_short_messages_that_are_there)
{
    static uint8_t body[1000];
    pair p;
    pair_open(&p, TCP, &land_events);
    kv_message m = {.head = "word", .head_bytes = 4, .body = body, .body_bytes = sizeof body};
    for (uint32_t i = 0; i < 20; i++)
        EXPECT_OK(p.client->ops->send(p.client, p.peer, &m));
    kv_transport_flush(p.client);
    EXPECT(until(p.server, NULL, &p.at_server.messages, 1));
    EXPECT_EQ_U64(p.at_server.messages, 20); /* of one poll, by reads of a few each */
    pair_close(&p);
}

TEST(sending_to_who_has_closed_ends_the_connection)
{
    pair e;
    pair_open(&e, TCP, &log_events);
    kv_transport_close(e.server);
    kv_message m = {.head = "word", .head_bytes = 4};
    for (uint32_t i = 0; i < 8; i++) { /* the first is answered by a reset */
        (void)e.client->ops->send(e.client, e.peer, &m);
        kv_transport_flush(e.client);
    }
    EXPECT_STATUS(e.client->ops->send(e.client, e.peer, &m), STATUS_PEER_LOST);
    EXPECT(until(e.client, NULL, &e.at_client.closed, 1));
    kv_transport_close(e.client);
    arena_destroy(e.a);
}

TEST(a_connection_that_was_reset_is_over_with_the_poll_that_sees_it)
{
    pair p;
    pair_open(&p, TCP, &log_events);
    int fd = dial_plain(p.address);
    EXPECT(until(p.server, p.client, &p.at_server.opened, 2));
    kv_peer peer = p.at_server.last;
    while (p.server->ops->poll(p.server))
        continue;
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    EXPECT(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now) == 0 && close(fd) == 0);
    p.server->ops->wait(p.server, -1, UINT64_C(5000) * 1000 * 1000);
    (void)p.server->ops->poll(p.server);
    kv_message m = {.head = "word", .head_bytes = 4};
    EXPECT_STATUS(p.server->ops->send(p.server, peer, &m), STATUS_PEER_LOST);
    EXPECT(until(p.server, NULL, &p.at_server.closed, 1));
    pair_close(&p);
}

/* In a network of its own where the only port to dial from is the one that is dialled: 0 when the
 * dial was told to be in vain, 1 when not, 2 when there can be no such network here. */
static int dial_oneself(void)
{
    kv_transport *t;
    peer_log log = {0};
    kv_peer peer;
    struct ifreq lo = {.ifr_name = "lo"};
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0) return 2;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &lo) != 0) return 2;
    lo.ifr_flags |= IFF_UP;
    int ports = open("/proc/sys/net/ipv4/ip_local_port_range", O_WRONLY | O_CLOEXEC);
    if (ioctl(fd, SIOCSIFFLAGS, &lo) != 0 || ports < 0 || write(ports, "40001 40001", 11) != 11)
        return 2;
    if (kv_transport_tcp_open(arena_create("self"), false, &t) != STATUS_OK) return 2;
    kv_transport_bind(t, &log_events, &log);
    if (t->ops->dial(t, "127.0.0.1:40001", &peer) != STATUS_OK) return 1;
    return until(t, NULL, &log.closed, 1) && log.opened == 0 ? 0 : 1;
}

TEST(a_dial_that_meets_itself_is_in_vain)
{
    int state = 0;
    pid_t child = fork();
    if (child == 0) _exit(dial_oneself());
    EXPECT(child > 0 && waitpid(child, &state, 0) == child && WIFEXITED(state));
    if (WEXITSTATUS(state) == 2) SKIP("no network namespace can be made here");
    EXPECT_EQ_I64(WEXITSTATUS(state), 0);
}

TEST_MAIN()
