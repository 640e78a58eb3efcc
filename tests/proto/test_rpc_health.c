#include "tests/test.h"

#include "proto/rpc.h"

#include <proto/health.pb-c.h>

enum {
    TIMEOUT_MS = 20000,
    UNKNOWN_SERVICE = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN,
    SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING,
    NOT_SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING,
};

typedef Grpc__Health__V1__HealthCheckResponse response;
#define RESPONSE (&grpc__health__v1__health_check_response__descriptor)

static arena *memory;
static rpc_health *health;
static rpc_server *server;
static rpc_client *client;

static void open_all(bool threaded)
{
    memory = arena_create("test");
    health = rpc_health_create(memory);
    rpc_health_set(health, "shoal.v1.Node", true);
    rpc_method methods[RPC_HEALTH_METHODS];
    rpc_health_methods(health, methods);
    const rpc_server_config config = {.address = {"127.0.0.1:0"},
                                      .methods = methods,
                                      .method_count = RPC_HEALTH_METHODS,
                                      .threaded = threaded};
    EXPECT_OK(rpc_server_create(&config, &server));
    char address[64];
    snprintf(address, sizeof address, "127.0.0.1:%u", (unsigned)rpc_server_port(server, 0));
    EXPECT_OK(rpc_client_create(address, NULL, &client));
}

static void close_all(void)
{
    rpc_client_destroy(client);
    rpc_server_destroy(server);
    arena_destroy(memory);
}

static Grpc__Health__V1__HealthCheckRequest about(const char *service)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    request.service = (char *)service;
    return request;
}

static status check(const char *service, int *out_state)
{
    const Grpc__Health__V1__HealthCheckRequest request = about(service);
    response *reply = NULL;
    TRY(rpc_client_call(client, "/grpc.health.v1.Health/Check", &request.base, RESPONSE, TIMEOUT_MS,
                        (ProtobufCMessage **)&reply));
    *out_state = (int)reply->status;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return STATUS_OK;
}

TEST(check_tells_the_state_of_each_service_and_not_found_of_others)
{
    open_all(true);
    int state = 0;
    EXPECT_OK(check("shoal.v1.Node", &state));
    EXPECT_EQ_I64(state, SERVING);
    EXPECT_OK(check("", &state));
    EXPECT_EQ_I64(state, NOT_SERVING);
    EXPECT_STATUS(check("shoal.v1.Cloud", &state), STATUS_NOT_FOUND);
    close_all();
}

static rpc_stream *watch(const char *service)
{
    const Grpc__Health__V1__HealthCheckRequest request = about(service);
    rpc_stream *s = NULL;
    EXPECT_OK(rpc_stream_open(client, "/grpc.health.v1.Health/Watch", &request.base, RESPONSE,
                              TIMEOUT_MS, &s));
    return s;
}

/* The server is polled by this thread, and a read blocks it: let the server settle before. */
static void settle(void)
{
    for (int i = 0; i < 15; i++)
        rpc_server_poll(server, 10);
}

static int next_state(rpc_stream *s)
{
    settle();
    response *reply = NULL;
    EXPECT_OK(rpc_stream_read(s, (ProtobufCMessage **)&reply));
    EXPECT(reply != NULL);
    const int state = (int)reply->status;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return state;
}

TEST(watch_tells_the_state_now_and_every_change)
{
    open_all(false);
    rpc_stream *node = watch("shoal.v1.Node"), *later = watch("later");
    EXPECT_EQ_I64(next_state(node), SERVING);
    EXPECT_EQ_I64(next_state(later), UNKNOWN_SERVICE);
    rpc_health_set(health, "shoal.v1.Node", true); /* no change, no message */
    rpc_health_set(health, "shoal.v1.Node", false);
    rpc_health_set(health, "later", true);
    EXPECT_EQ_I64(next_state(node), NOT_SERVING);
    EXPECT_EQ_I64(next_state(later), SERVING);
    rpc_stream_close(later);
    settle();
    rpc_health_set(health, "later", false); /* to nobody */
    rpc_health_set(health, "shoal.v1.Node", true);
    EXPECT_EQ_I64(next_state(node), SERVING);

    /* A reader that sleeps through many changes still ends on the last. */
    for (int i = 0; i < 101; i++)
        rpc_health_set(health, "shoal.v1.Node", i % 2 == 1);
    int state = SERVING;
    for (int i = 0; i < 200 && state != NOT_SERVING; i++)
        state = next_state(node);
    EXPECT_EQ_I64(state, NOT_SERVING);
    rpc_stream_close(node);
    close_all();
}

TEST(an_ending_server_tells_its_watchers_and_lets_go_of_them)
{
    open_all(false);
    rpc_stream *node = watch("shoal.v1.Node");
    EXPECT_EQ_I64(next_state(node), SERVING);
    rpc_health_end(health);
    EXPECT_EQ_I64(next_state(node), NOT_SERVING);
    settle();
    ProtobufCMessage *reply = NULL;
    EXPECT_STATUS(rpc_stream_read(node, &reply), STATUS_UNREACHABLE);
    rpc_stream_close(node);
    rpc_server_drain(server, TIMEOUT_MS);
    for (int i = 0; i < TIMEOUT_MS / 10 && !rpc_server_drained(server); i++)
        rpc_server_poll(server, 10);
    EXPECT(rpc_server_drained(server));
    close_all();
}

TEST_MAIN()
