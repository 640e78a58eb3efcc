/* cluster/cli/ask.c - see ask.h. A connection a question: the CLI is short-lived and asks little.
 */
#include "cluster/cli/ask.h"

#include "proto/health.pb-c.h"
#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"

const char *ask_state_name(ask_state state)
{
    static const char *const names[] = {"unreachable", "starting", "serving", "draining"};
    CHECK((size_t)state < sizeof names / sizeof *names);
    return names[state];
}

/* One call on a connection of its own. The reply is the caller's. */
typedef struct question {
    const char *method;
    const ProtobufCMessage *request;
    const ProtobufCMessageDescriptor *reply_type;
} question;

static status ask(const ask_whom *whom, const question *q, ProtobufCMessage **out_reply)
{
    const cluster_config *c = whom->config;
    const rpc_tls tls = {c->tls_authority, c->tls_certificate, c->tls_key};
    rpc_client *client = NULL;
    TRY(rpc_client_create(whom->control, c->tls_key[0] != 0 ? &tls : NULL, &client));
    status s =
        rpc_client_call(client, q->method, q->request, q->reply_type, whom->timeout_ms, out_reply);
    rpc_client_destroy(client);
    return s;
}

bool ask_health(const ask_whom *whom)
{
    Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    const question q = {"/grpc.health.v1.Health/Check", &request.base,
                        &grpc__health__v1__health_check_response__descriptor};
    if (ask(whom, &q, &reply) != STATUS_OK) return false;
    bool serving = ((const Grpc__Health__V1__HealthCheckResponse *)reply)->status ==
                   GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING;
    protobuf_c_message_free_unpacked(reply, NULL);
    return serving;
}

static void take_status(const Shoal__V1__NodeStatus *from, ask_answer *to)
{
    to->state = from->state == SHOAL__V1__NODE_STATE__NODE_STATE_SERVING    ? ASK_SERVING
                : from->state == SHOAL__V1__NODE_STATE__NODE_STATE_DRAINING ? ASK_DRAINING
                                                                            : ASK_STARTING;
    snprintf(to->version, sizeof to->version, "%s", from->version ? from->version : "");
    to->incarnation = from->incarnation;
    to->epoch = from->epoch;
    to->uptime_ms = from->uptime_ms;
    to->contexts = from->contexts;
    to->connections = from->connections;
    if (!from->capacity) return;
    to->slots = from->capacity->slots;
    to->slots_used = from->capacity->slots_used;
    to->slot_bytes = from->capacity->slot_bytes;
    to->memory_bytes = from->capacity->memory_bytes;
    to->used_bytes = from->capacity->used_bytes;
}

static void take_stats(const Shoal__V1__NodeStats *from, ask_answer *to)
{
    to->served_blocks = from->hits;
    to->served_bytes = from->bytes_served;
    to->stored_blocks = from->puts_stored;
    to->stored_bytes = from->bytes_stored;
    to->misses = from->misses;
    to->corrupt = from->corrupt;
    to->busy = from->busy;
    to->dropped_blocks = from->blocks_dropped;
}

status ask_node(const ask_whom *whom, ask_answer *out_answer)
{
    Shoal__V1__NodeStatusRequest want_status = SHOAL__V1__NODE_STATUS_REQUEST__INIT;
    Shoal__V1__NodeStatsRequest want_stats = SHOAL__V1__NODE_STATS_REQUEST__INIT;
    ask_answer answer = {0};
    ProtobufCMessage *reply = NULL;
    const question first = {"/shoal.v1.Node/Status", &want_status.base,
                            &shoal__v1__node_status__descriptor};
    const question second = {"/shoal.v1.Node/Stats", &want_stats.base,
                             &shoal__v1__node_stats__descriptor};
    TRY(ask(whom, &first, &reply));
    take_status((const Shoal__V1__NodeStatus *)reply, &answer);
    protobuf_c_message_free_unpacked(reply, NULL);
    TRY(ask(whom, &second, &reply));
    take_stats((const Shoal__V1__NodeStats *)reply, &answer);
    protobuf_c_message_free_unpacked(reply, NULL);
    *out_answer = answer;
    return STATUS_OK;
}

status ask_drain(const ask_whom *whom)
{
    Shoal__V1__NodeDrainRequest request = SHOAL__V1__NODE_DRAIN_REQUEST__INIT;
    char reason[] = "shoal node drain"; /* the generated type has no const */
    request.reason = reason;
    ProtobufCMessage *reply = NULL;
    const question q = {"/shoal.v1.Node/Drain", &request.base,
                        &shoal__v1__node_drain_reply__descriptor};
    TRY(ask(whom, &q, &reply));
    protobuf_c_message_free_unpacked(reply, NULL);
    return STATUS_OK;
}
