/* The control plane on loopback, both ends of it real. */
#include "tests/test.h"

#include "proto/rpc.h"

#include <dirent.h>
#include <poll.h>
#include <proto/health.pb-c.h>
#include <proto/shoal_node.pb-c.h>
#include <pthread.h>
#include <stdlib.h>

enum { TIMEOUT_MS = 20000 };

#define STATUS_REQUEST (&shoal__v1__node_status_request__descriptor)
#define STATUS_REPLY   (&shoal__v1__node_status__descriptor)

static Shoal__V1__NodeStatusRequest request = SHOAL__V1__NODE_STATUS_REQUEST__INIT;

/* What the handlers of this file saw. Written by the server's thread, read after it was joined. */
static struct {
    rpc_call *kept;
    _Atomic uint32_t entered, canceled;
    uint32_t sent, refused;
} seen;

static void on_status(rpc_call *call, const ProtobufCMessage *message, void *user)
{
    (void)message;
    Shoal__V1__NodeStatus reply = SHOAL__V1__NODE_STATUS__INIT;
    uint32_t layouts[] = {7, 0xfffffff0u};
    reply.name = user;
    reply.incarnation = 0x8000000000000001u;
    reply.n_layout = 2;
    reply.layout = layouts;
    reply.state = SHOAL__V1__NODE_STATE__NODE_STATE_SERVING;
    rpc_call_reply(call, &reply.base);
}

static void on_fail(rpc_call *call, const ProtobufCMessage *message, void *user)
{
    (void)message;
    rpc_call_finish(call, *(status *)user, "the plan did not survive");
}

static void note_cancel(rpc_call *call, void *user)
{
    (void)user;
    seen.canceled++;
    rpc_call_finish(call, STATUS_CANCELED, NULL);
    seen.kept = NULL;
}

/* Keeps the call: it ends by cancel, deadline, or because the test answers it later. */
static void on_keep(rpc_call *call, const ProtobufCMessage *message, void *user)
{
    (void)message;
    (void)user;
    seen.kept = call;
    rpc_call_on_cancel(call, note_cancel, NULL);
    seen.entered++;
}

static void send_more(rpc_call *call, void *user)
{
    const uint32_t wanted = *(uint32_t *)user;
    while (seen.sent < wanted) {
        Shoal__V1__NodeStatus reply = SHOAL__V1__NODE_STATUS__INIT;
        reply.epoch = seen.sent;
        const status s = rpc_call_send(call, &reply.base);
        if (s == STATUS_BUSY) {
            seen.refused++;
            return;
        }
        if (s == STATUS_CANCELED) return; /* note_cancel ends it */
        CHECK(s == STATUS_OK);
        seen.sent++;
    }
    rpc_call_finish(call, STATUS_OK, NULL);
}

static void on_stream(rpc_call *call, const ProtobufCMessage *message, void *user)
{
    (void)message;
    rpc_call_on_writable(call, send_more, user);
    rpc_call_on_cancel(call, note_cancel, NULL);
    send_more(call, user);
}

typedef struct pair {
    rpc_server *server;
    rpc_client *client;
} pair;

static uint32_t stream_length;
static status fail_with;

static pair open_pair(bool threaded, uint32_t calls_max)
{
    memset(&seen, 0, sizeof seen);
    const rpc_method methods[] = {
        {"/shoal.v1.Node/Status", STATUS_REQUEST, on_status, "north"},
        {"/test/Fail", STATUS_REQUEST, on_fail, &fail_with},
        {"/test/Keep", STATUS_REQUEST, on_keep, NULL},
        {"/test/Stream", STATUS_REQUEST, on_stream, &stream_length},
    };
    const rpc_server_config config = {.address = {"127.0.0.1:0"},
                                      .methods = methods,
                                      .method_count = 4,
                                      .calls_max = calls_max,
                                      .threaded = threaded};
    pair p = {0};
    EXPECT_OK(rpc_server_create(&config, &p.server));
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned)rpc_server_port(p.server, 0));
    EXPECT_OK(rpc_client_create(address, NULL, &p.client));
    return p;
}

static void close_pair(pair p)
{
    rpc_client_destroy(p.client);
    rpc_server_destroy(p.server);
}

static status call(rpc_client *client, const char *method, uint32_t timeout_ms,
                   Shoal__V1__NodeStatus **out_reply)
{
    return rpc_client_call(client, method, &request.base, STATUS_REPLY, timeout_ms,
                           (ProtobufCMessage **)out_reply);
}

static void free_reply(Shoal__V1__NodeStatus *reply)
{
    protobuf_c_message_free_unpacked(&reply->base, NULL);
}

TEST(a_unary_call_brings_the_reply)
{
    const pair p = open_pair(true, 0);
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_OK(call(p.client, "/shoal.v1.Node/Status", TIMEOUT_MS, &reply));
    EXPECT_EQ_STR(reply->name, "north");
    EXPECT_EQ_X64(reply->incarnation, 0x8000000000000001u);
    EXPECT_EQ_U64(reply->n_layout, 2);
    EXPECT_EQ_U64(reply->layout[1], 0xfffffff0u);
    free_reply(reply);
    close_pair(p);
}

TEST(every_status_arrives_by_name_with_its_sentence)
{
    const pair p = open_pair(true, 0);
    for (int row = 0; row < STATUS_ROW_COUNT; row++) {
        fail_with = (status)(-1 - row);
        Shoal__V1__NodeStatus *reply = NULL;
        EXPECT_STATUS(call(p.client, "/test/Fail", TIMEOUT_MS, &reply), fail_with);
        EXPECT(reply == NULL);
        if (fail_with != STATUS_CANCELED)
            EXPECT_HAS_STR(log_last_error(), "the plan did not survive");
    }
    close_pair(p);
}

TEST(codes_of_foreign_servers_become_the_nearest_status)
{
    for (int row = 0; row < STATUS_ROW_COUNT; row++) {
        const int code = rpc_code_from_status((status)(-1 - row));
        EXPECT(code > 0 && code <= 16);
        EXPECT_EQ_I64(rpc_code_from_status(rpc_status_from_code(code)), code);
    }
    EXPECT_EQ_I64(rpc_code_from_status(STATUS_OK), 0);
    EXPECT_EQ_I64(rpc_status_from_code(0), STATUS_OK);
    EXPECT_EQ_I64(rpc_status_from_code(2), STATUS_INTERNAL);
    EXPECT_EQ_I64(rpc_status_from_code(16), STATUS_REFUSED);
    EXPECT_EQ_I64(rpc_status_from_code(4711), STATUS_INTERNAL);
}

TEST(an_unknown_method_is_unsupported)
{
    const pair p = open_pair(true, 0);
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_STATUS(call(p.client, "/shoal.v1.Node/Fly", TIMEOUT_MS, &reply), STATUS_UNSUPPORTED);
    EXPECT_EQ_I64(rpc_code_from_status(STATUS_UNSUPPORTED), 12);
    close_pair(p);
}

TEST(bytes_that_are_no_request_are_invalid_and_the_server_lives)
{
    const pair p = open_pair(true, 0);
    /* A health request whose name is not UTF-8-clean field 1 is no NodeStatusRequest problem: that
     * type has no fields and skips unknown ones. So send to a method a message with a field whose
     * wire type is broken: a group start (3), which protobuf-c refuses. */
    uint8_t broken[] = {0x0b};
    ProtobufCMessageUnknownField field = {
        .tag = 1, .wire_type = (ProtobufCWireType)3, .len = sizeof broken, .data = broken};
    Shoal__V1__NodeStatusRequest bad = SHOAL__V1__NODE_STATUS_REQUEST__INIT;
    bad.base.n_unknown_fields = 1;
    bad.base.unknown_fields = &field;
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_STATUS(rpc_client_call(p.client, "/shoal.v1.Node/Status", &bad.base, STATUS_REPLY,
                                  TIMEOUT_MS, (ProtobufCMessage **)&reply),
                  STATUS_INVALID);
    EXPECT_OK(call(p.client, "/shoal.v1.Node/Status", TIMEOUT_MS, &reply));
    free_reply(reply);
    close_pair(p);
}

TEST(a_stream_brings_every_message_in_order_through_a_bounded_queue)
{
    stream_length = 3000;
    const pair p = open_pair(true, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(
        rpc_stream_open(p.client, "/test/Stream", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    for (uint32_t i = 0; i < stream_length; i++) {
        Shoal__V1__NodeStatus *reply = NULL;
        EXPECT_OK(rpc_stream_read(s, (ProtobufCMessage **)&reply));
        EXPECT(reply != NULL);
        EXPECT_EQ_U64(reply->epoch, i);
        free_reply(reply);
    }
    ProtobufCMessage *end = &request.base;
    EXPECT_OK(rpc_stream_read(s, &end));
    EXPECT(end == NULL);
    EXPECT_OK(rpc_stream_read(s, &end)); /* and stays ended */
    EXPECT(end == NULL);
    rpc_stream_close(s);
    close_pair(p);
    EXPECT_EQ_U64(seen.sent, stream_length);
    EXPECT_GE_U64(seen.refused, 1);
}

TEST(a_stream_may_be_left_unread)
{
    stream_length = 1000000; /* more than the windows between the ends can hold */
    const pair p = open_pair(true, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(
        rpc_stream_open(p.client, "/test/Stream", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    ProtobufCMessage *reply = NULL;
    EXPECT_OK(rpc_stream_read(s, &reply));
    protobuf_c_message_free_unpacked(reply, NULL);
    rpc_stream_close(s);
    close_pair(p);
    EXPECT_EQ_U64(seen.canceled, 1);
}

TEST(a_deadline_ends_the_call_at_both_ends)
{
    const pair p = open_pair(true, 0);
    const uint64_t start = clock_now(&clock_monotonic);
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_STATUS(call(p.client, "/test/Keep", 60, &reply), STATUS_DEADLINE);
    EXPECT_GE_U64(clock_now(&clock_monotonic) - start, 59000000u);
    close_pair(p); /* joins the server's thread: its cancel has been seen */
    EXPECT_EQ_U64(seen.canceled, 1);
}

static void *cancel_when_entered(void *arg)
{
    while (seen.entered == 0)
        poll(NULL, 0, 1);
    rpc_stream_cancel(arg);
    return NULL;
}

TEST(a_cancel_from_another_thread_ends_the_read)
{
    const pair p = open_pair(true, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    pthread_t other;
    EXPECT_EQ_I64(pthread_create(&other, NULL, cancel_when_entered, s), 0);
    ProtobufCMessage *reply = NULL;
    EXPECT_STATUS(rpc_stream_read(s, &reply), STATUS_CANCELED);
    pthread_join(other, NULL);
    rpc_stream_close(s);
    close_pair(p);
    EXPECT_EQ_U64(seen.canceled, 1);
}

TEST(a_polled_server_runs_on_its_owners_loop_and_a_kept_call_is_answered_later)
{
    const pair p = open_pair(false, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    struct pollfd wait = {.fd = rpc_server_fd(p.server), .events = POLLIN};
    while (seen.kept == NULL) {
        EXPECT_EQ_I64(poll(&wait, 1, TIMEOUT_MS), 1);
        rpc_server_poll(p.server, 0);
    }
    Shoal__V1__NodeStatus answer = SHOAL__V1__NODE_STATUS__INIT;
    answer.epoch = 99;
    rpc_call_reply(seen.kept, &answer.base);
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_OK(rpc_stream_read(s, (ProtobufCMessage **)&reply));
    EXPECT_EQ_U64(reply->epoch, 99);
    free_reply(reply);
    rpc_stream_close(s);
    close_pair(p);
}

TEST(a_call_beyond_calls_max_is_busy)
{
    const pair p = open_pair(true, 2);
    rpc_stream *kept[2];
    for (uint32_t i = 0; i < 2; i++) {
        EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS,
                                  &kept[i]));
        while (seen.entered <= i)
            poll(NULL, 0, 1);
    }
    Shoal__V1__NodeStatus *reply = NULL;
    for (int i = 0; i < 20; i++)
        EXPECT_STATUS(call(p.client, "/shoal.v1.Node/Status", TIMEOUT_MS, &reply), STATUS_BUSY);
    rpc_stream_close(kept[0]);
    rpc_stream_close(kept[1]);
    /* The slots come back once the server has heard of it. */
    status s = STATUS_BUSY;
    for (int i = 0; i < 5000 && s == STATUS_BUSY; i++) {
        s = call(p.client, "/shoal.v1.Node/Status", TIMEOUT_MS, &reply);
        poll(NULL, 0, 1);
    }
    EXPECT_OK(s);
    free_reply(reply);
    close_pair(p);
}

TEST(a_drain_lets_the_call_in_flight_finish_and_takes_no_new_one)
{
    const pair p = open_pair(false, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    while (seen.kept == NULL)
        rpc_server_poll(p.server, 100);
    rpc_server_drain(p.server, TIMEOUT_MS);
    for (int i = 0; i < 20; i++)
        rpc_server_poll(p.server, 2);
    EXPECT(!rpc_server_drained(p.server));

    rpc_client *late = NULL;
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned)rpc_server_port(p.server, 0));
    EXPECT_OK(rpc_client_create(address, NULL, &late));
    Shoal__V1__NodeStatus *none = NULL;
    EXPECT_STATUS(call(late, "/shoal.v1.Node/Status", 2000, &none), STATUS_UNREACHABLE);
    rpc_client_destroy(late);

    Shoal__V1__NodeStatus answer = SHOAL__V1__NODE_STATUS__INIT;
    answer.epoch = 5;
    rpc_call_reply(seen.kept, &answer.base);
    Shoal__V1__NodeStatus *reply = NULL;
    ProtobufCMessage *end = &request.base;
    EXPECT_OK(rpc_stream_read(s, (ProtobufCMessage **)&reply));
    EXPECT_EQ_U64(reply->epoch, 5);
    free_reply(reply);
    EXPECT_OK(rpc_stream_read(s, &end));
    EXPECT(end == NULL);
    for (int i = 0; i < TIMEOUT_MS / 10 && !rpc_server_drained(p.server); i++)
        rpc_server_poll(p.server, 10);
    EXPECT(rpc_server_drained(p.server));
    EXPECT_EQ_U64(seen.canceled, 0);
    rpc_stream_close(s);
    close_pair(p);
}

TEST(a_drain_cancels_what_outlives_the_grace)
{
    const pair p = open_pair(true, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    while (seen.entered == 0)
        poll(NULL, 0, 1);
    rpc_server_drain(p.server, 30);
    rpc_server_drain(p.server, TIMEOUT_MS); /* the first one counts */
    ProtobufCMessage *reply = NULL;
    EXPECT(rpc_stream_read(s, &reply) != STATUS_OK);
    for (int i = 0; i < TIMEOUT_MS && !rpc_server_drained(p.server); i++)
        poll(NULL, 0, 1);
    EXPECT(rpc_server_drained(p.server));
    rpc_stream_close(s);
    close_pair(p);
    EXPECT_EQ_U64(seen.canceled, 1);
}

TEST(destroy_ends_calls_that_nobody_finished)
{
    const pair p = open_pair(true, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    while (seen.entered == 0)
        poll(NULL, 0, 1);
    rpc_server_destroy(p.server);
    ProtobufCMessage *reply = NULL;
    EXPECT(rpc_stream_read(s, &reply) != STATUS_OK);
    rpc_stream_close(s);
    rpc_client_destroy(p.client);
}

TEST(nobody_there_is_unreachable)
{
    pair p = open_pair(true, 0);
    rpc_server_destroy(p.server); /* its port is free now */
    Shoal__V1__NodeStatus *reply = NULL;
    EXPECT_STATUS(call(p.client, "/shoal.v1.Node/Status", 2000, &reply), STATUS_UNREACHABLE);
    rpc_client_destroy(p.client);
}

static status listen_at(const char *first, const char *second)
{
    const rpc_server_config config = {.address = {first, second}};
    rpc_server *server = NULL;
    const status s = rpc_server_create(&config, &server);
    rpc_server_destroy(server);
    return s;
}

TEST(listening_beyond_loopback_without_tls_is_refused)
{
    const char *beyond[] = {"0.0.0.0:0", "10.0.0.1:70", "[::]:0", "example.com:70", "128.0.0.1:1"};
    for (size_t i = 0; i < sizeof beyond / sizeof beyond[0]; i++) {
        EXPECT_STATUS(listen_at(beyond[i], NULL), STATUS_REFUSED);
        EXPECT_HAS_STR(log_last_error(), "listening there needs TLS");
        EXPECT_STATUS(listen_at("127.0.0.1:0", beyond[i]), STATUS_REFUSED);
    }
    EXPECT_OK(listen_at("127.0.0.1:0", "127.9.9.9:0"));
    EXPECT_OK(listen_at("localhost:0", NULL));
}

TEST(a_port_in_use_is_said_so)
{
    const pair p = open_pair(true, 0);
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned)rpc_server_port(p.server, 0));
    EXPECT_STATUS(listen_at(address, NULL), STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "the port is in use");
    close_pair(p);
}

TEST(a_malformed_address_is_invalid)
{
    const char *bad[] = {"",           "localhost",       ":70",          "::1:70",      "[::1]",
                         "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:7a", "127.0.0.1:-1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        rpc_client *client = NULL;
        EXPECT_STATUS(listen_at(bad[i], NULL), STATUS_INVALID);
        EXPECT_STATUS(rpc_client_create(bad[i], NULL, &client), STATUS_INVALID);
    }
    EXPECT_STATUS(listen_at(NULL, NULL), STATUS_INVALID);
}

static uint32_t open_fds(void)
{
    uint32_t count = 0;
    DIR *dir = opendir("/proc/self/fd");
    EXPECT(dir != NULL);
    while (readdir(dir) != NULL)
        count++;
    closedir(dir);
    return count;
}

TEST(a_thousand_calls_and_forty_servers_leak_no_file_descriptor)
{
    close_pair(open_pair(true, 0)); /* gRPC keeps a few of its own after its first start */
    const uint32_t before = open_fds();
    for (int round = 0; round < 40; round++) {
        const pair p = open_pair(round % 2 == 0, 0);
        for (int i = 0; i < 50 && round % 2 == 0; i++) {
            Shoal__V1__NodeStatus *reply = NULL;
            EXPECT_OK(call(p.client, "/shoal.v1.Node/Status", TIMEOUT_MS, &reply));
            free_reply(reply);
        }
        close_pair(p);
    }
    /* Sockets close on gRPC's own threads, a moment later. */
    for (int i = 0; i < 5000 && open_fds() > before; i++)
        poll(NULL, 0, 1);
    EXPECT_LE_U64(open_fds(), before);
}

TEST(a_peer_without_tls_has_no_name)
{
    const pair p = open_pair(false, 0);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(p.client, "/test/Keep", &request.base, STATUS_REPLY, TIMEOUT_MS, &s));
    while (seen.kept == NULL)
        rpc_server_poll(p.server, 100);
    char name[32] = "x";
    rpc_call_peer(seen.kept, name, sizeof name);
    EXPECT_EQ_STR(name, "");
    EXPECT(!rpc_call_canceled(seen.kept));
    rpc_stream_close(s);
    close_pair(p);
}

TEST_MAIN()
