/* Client and nodes over real UCX on loopback. */
#include "kvstore/transport.h"
#include "tests/test.h"

#include <stdlib.h>

typedef struct peer_log {
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
    l->body_digest = bytes_digest(m->body, m->body_bytes, 1);
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

static const kv_events log_events = {log_opened, log_message, log_sent, log_closed};

/* Poll both until `*counter` reaches `want`, or five seconds have passed. */
static bool until(kv_transport *a, kv_transport *b, const uint32_t *counter, uint32_t want)
{
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    while (*counter < want && clock_now(&clock_monotonic) < end) {
        bool moved = a->ops->poll(a);
        if (b != NULL) moved |= b->ops->poll(b);
        if (!moved) a->ops->wait(a, -1, 100 * 1000);
    }
    return *counter >= want;
}

TEST(messages_cross_whole_and_a_closed_end_is_told)
{
    arena *a = arena_create("ucx test");
    kv_transport *server, *client;
    peer_log at_server = {0}, at_client = {0};
    char address[CLUSTER_ADDRESS_MAX];
    kv_peer peer;
    EXPECT(kv_transport_ucx_open(a, false, &server) == STATUS_OK);
    EXPECT(kv_transport_ucx_open(a, false, &client) == STATUS_OK);
    kv_transport_bind(server, &log_events, &at_server);
    kv_transport_bind(client, &log_events, &at_client);
    EXPECT(server->ops->listen(server, "127.0.0.1:0", address) == STATUS_OK);
    EXPECT(client->ops->dial(client, address, &peer) == STATUS_OK);
    EXPECT(until(client, server, &at_client.opened, 1));
    uint8_t *body = calloc(1, 1 << 20);
    for (uint32_t i = 0; i < 1 << 20; i++)
        body[i] = (uint8_t)(i * 7 + i / 251);
    static const uint32_t sizes[] = {1, 100, 8192, 16384, 32768, 65536, 1 << 20};
    for (uint32_t i = 0; i < 7; i++) {
        kv_message m = {"0123456789abcdef", 16, body, sizes[i], i};
        EXPECT(client->ops->send(client, peer, &m) == STATUS_OK);
        EXPECT(until(client, server, &at_server.messages, i + 1));
        EXPECT_EQ_U64(at_server.body_bytes, sizes[i]);
        EXPECT_EQ_X64(at_server.body_digest, bytes_digest(body, sizes[i], 1));
        EXPECT(until(client, server, &at_client.sent, i + 1));
    }
    kv_message reply = {"answer", 6, NULL, 0, 0};
    EXPECT(server->ops->send(server, at_server.last, &reply) == STATUS_OK);
    EXPECT(until(client, server, &at_client.messages, 1));
    EXPECT_EQ_MEM(at_client.head, "answer", 6);
    kv_transport_close(server);
    EXPECT(until(client, NULL, &at_client.closed, 1));
    kv_transport_close(client);
    free(body);
    arena_destroy(a);
}

TEST(who_hangs_up_is_told_when_it_is_over_and_an_idle_connection_sleeps)
{
    arena *a = arena_create("ucx test");
    kv_transport *server, *client;
    peer_log at_server = {0}, at_client = {0};
    char address[CLUSTER_ADDRESS_MAX];
    kv_peer peer;
    EXPECT(kv_transport_ucx_open(a, false, &server) == STATUS_OK);
    EXPECT(kv_transport_ucx_open(a, false, &client) == STATUS_OK);
    kv_transport_bind(server, &log_events, &at_server);
    kv_transport_bind(client, &log_events, &at_client);
    EXPECT(server->ops->listen(server, "127.0.0.1:0", address) == STATUS_OK);
    EXPECT(client->ops->dial(client, address, &peer) == STATUS_OK);
    EXPECT(until(client, server, &at_client.opened, 1));
    EXPECT(until(server, client, &at_server.opened, 1));
    /* Of twenty sleeps of 20 ms one at least is not cut short: nothing is left to do. */
    uint64_t longest = 0;
    for (uint32_t i = 0; i < 20; i++) {
        while (client->ops->poll(client))
            continue;
        uint64_t start = clock_now(&clock_monotonic);
        client->ops->wait(client, -1, 20 * 1000 * 1000);
        uint64_t slept = clock_now(&clock_monotonic) - start;
        if (slept > longest) longest = slept;
    }
    EXPECT_GE_U64(longest, 19 * 1000 * 1000);
    client->ops->hang_up(client, peer);
    EXPECT(until(client, server, &at_client.closed, 1));
    EXPECT(until(server, client, &at_server.closed, 1));
    kv_message m = {"late", 4, NULL, 0, 0};
    EXPECT(client->ops->send(client, peer, &m) == STATUS_PEER_LOST);
    kv_transport_close(client);
    kv_transport_close(server);
    arena_destroy(a);
}

TEST(a_dial_to_nobody_is_closed_soon)
{
    arena *a = arena_create("ucx test");
    kv_transport *client;
    peer_log at_client = {0};
    kv_peer peer;
    EXPECT(kv_transport_ucx_open(a, false, &client) == STATUS_OK);
    kv_transport_bind(client, &log_events, &at_client);
    EXPECT(client->ops->dial(client, "127.0.0.1:1", &peer) == STATUS_OK);
    EXPECT(until(client, NULL, &at_client.closed, 1));
    kv_transport_close(client);
    arena_destroy(a);
}

TEST(a_taken_port_is_refused_with_a_sentence)
{
    arena *a = arena_create("ucx test");
    kv_transport *one, *two;
    peer_log l = {0};
    char address[CLUSTER_ADDRESS_MAX], other[CLUSTER_ADDRESS_MAX];
    EXPECT(kv_transport_ucx_open(a, false, &one) == STATUS_OK);
    EXPECT(kv_transport_ucx_open(a, false, &two) == STATUS_OK);
    kv_transport_bind(one, &log_events, &l);
    EXPECT(one->ops->listen(one, "127.0.0.1:0", address) == STATUS_OK);
    EXPECT(two->ops->listen(two, address, other) == STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "in use");
    kv_transport_close(two);
    kv_transport_close(one);
    arena_destroy(a);
}

TEST(devices_are_those_asked_for_or_those_of_the_addresses)
{
    cluster_config c;
    char devices[KV_DEVICES_MAX];
    cluster_config_default(&c);
    EXPECT_OK(kv_devices_find(&c, "127.0.0.1:0", devices));
    EXPECT_EQ_STR(devices, "lo");
    EXPECT_OK(kv_devices_find(&c, NULL, devices)); /* no nodes: loopback */
    EXPECT_EQ_STR(devices, "lo");
    c.map.node_count = 2; /* both on one device: named once */
    snprintf(c.map.node[0].data, sizeof c.map.node[0].data, "127.0.0.1:7101");
    snprintf(c.map.node[1].data, sizeof c.map.node[1].data, "127.3.2.1:7102");
    EXPECT_OK(kv_devices_find(&c, NULL, devices));
    EXPECT_EQ_STR(devices, "lo");
    EXPECT_STATUS(kv_devices_find(&c, "192.0.2.77:7101", devices), STATUS_INVALID); /* TEST-NET-1 */
    EXPECT_HAS_STR(log_last_error(), "no network device here carries 192.0.2.77");
    snprintf(c.device, sizeof c.device, "eth8,eth9");
    EXPECT_OK(kv_devices_find(&c, "192.0.2.77:7101", devices));
    EXPECT_EQ_STR(devices, "eth8,eth9");
}

TEST(a_transport_on_a_device_that_is_not_there_is_refused)
{
    kv_transport *t = NULL;
    arena *a = arena_create("ucx");
    EXPECT(kv_transport_ucx_open_on(a, "nodevice7", false, &t) != STATUS_OK ||
           t->ops->listen(t, "127.0.0.1:0", (char[CLUSTER_ADDRESS_MAX]){0}) != STATUS_OK);
    kv_transport_close(t);
    arena_destroy(a);
}

TEST(the_loopback_network_is_measured)
{
    kv_loopback seen = {0};
    EXPECT(kv_loopback_measure(&seen) == STATUS_OK);
    EXPECT(seen.tcp_gbs > 0.01 && seen.transport_gbs > 0.01 && seen.transport_rtt_us > 0.5);
    printf("loopback: TCP %.2f GB/s, UCX %.2f GB/s, round trip %.1f us\n", seen.tcp_gbs,
           seen.transport_gbs, seen.transport_rtt_us);
}

TEST_MAIN()
