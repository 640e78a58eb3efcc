/* The node's control plane: message bodies through the real handlers of kvstore/control.c and
 * proto/rpc_health.c, over a stand-in for proto/rpc.h that has no sockets.
 *
 * Input: steps. The low three bits of a step's first byte say what happens: 0..4 a call of that
 * method, whose body follows a length byte; 5 the data thread answers and the control plane is
 * polled; 6 a call is canceled; 7 a reader reads, or, of call 0xff, the node drains. Held true: a
 * call is finished once, at the end at the latest; a reply is a message of its type that packs and
 * unpacks; a body that is no message never reaches a handler. */
#include "kvstore/node.h"
#include "proto/health.pb-c.h"
#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/fuzz/fuzz.h"

enum { CALLS = 300, COMMANDS = 64 };

struct rpc_call {
    const rpc_method *method;
    bool finished, canceled;
    uint32_t queued;
    void (*on_cancel)(rpc_call *call, void *user);
    void (*on_writable)(rpc_call *call, void *user);
    void *on_cancel_user, *on_writable_user;
};

struct rpc_server {
    rpc_method method[RPC_METHODS_MAX];
    uint32_t methods, calls;
    bool draining;
    rpc_call call[CALLS];
};

static rpc_server stand_in;
static node fuzzed;
static node_options options = {.name = "n0", .listen = "fuzz:0", .control = "127.0.0.1:0"};

/* ---- rpc.h ----------------------------------------------------------------------------------- */

status rpc_server_create(const rpc_server_config *config, rpc_server **out_server)
{
    CHECK(config->method_count <= RPC_METHODS_MAX);
    memset(&stand_in, 0, sizeof stand_in);
    memcpy(stand_in.method, config->methods, config->method_count * sizeof stand_in.method[0]);
    stand_in.methods = config->method_count;
    *out_server = &stand_in;
    return STATUS_OK;
}

uint16_t rpc_server_port(const rpc_server *server, uint32_t index)
{
    (void)server;
    return (uint16_t)(7000 + index);
}

int rpc_server_fd(const rpc_server *server)
{
    (void)server;
    return -1;
}

void rpc_server_poll(rpc_server *server, uint32_t timeout_ms)
{
    (void)server, (void)timeout_ms;
}

void rpc_server_drain(rpc_server *server, uint32_t grace_ms)
{
    (void)grace_ms;
    server->draining = true;
}

bool rpc_server_drained(const rpc_server *server)
{
    for (uint32_t i = 0; i < server->calls; i++)
        if (!server->call[i].finished) return false;
    return server->draining;
}

static void cancel(rpc_call *call)
{
    if (call->canceled) return;
    call->canceled = true;
    if (!call->finished && call->on_cancel != NULL) call->on_cancel(call, call->on_cancel_user);
}

void rpc_server_destroy(rpc_server *server)
{
    for (uint32_t i = 0; i < server->calls; i++) {
        cancel(&server->call[i]);
        CHECK(server->call[i].finished);
    }
}

/* What a client would do with a reply is done to it. */
static const ProtobufCMessageDescriptor *reply_of(const char *method)
{
    if (strcmp(method, "/shoal.v1.Node/Status") == 0) return &shoal__v1__node_status__descriptor;
    if (strcmp(method, "/shoal.v1.Node/Stats") == 0) return &shoal__v1__node_stats__descriptor;
    if (strcmp(method, "/shoal.v1.Node/Drain") == 0)
        return &shoal__v1__node_drain_reply__descriptor;
    CHECK(strncmp(method, "/grpc.health.v1.Health/", 23) == 0);
    return &grpc__health__v1__health_check_response__descriptor;
}

static void receive(const rpc_call *call, const ProtobufCMessage *message)
{
    static uint8_t bytes[4096];
    const ProtobufCMessageDescriptor *type = reply_of(call->method->name);
    CHECK(message->descriptor == type && protobuf_c_message_check(message));
    size_t size = protobuf_c_message_get_packed_size(message);
    CHECK(size <= sizeof bytes && protobuf_c_message_pack(message, bytes) == size);
    ProtobufCMessage *got = protobuf_c_message_unpack(type, NULL, size, bytes);
    CHECK(got != NULL);
    protobuf_c_message_free_unpacked(got, NULL);
}

void rpc_call_finish(rpc_call *call, status s, const char *detail)
{
    (void)detail;
    CHECK(!call->finished && s != STATUS_PENDING);
    call->finished = true;
}

void rpc_call_reply(rpc_call *call, const ProtobufCMessage *message)
{
    CHECK(!call->finished);
    receive(call, message);
    rpc_call_finish(call, STATUS_OK, NULL);
}

status rpc_call_send(rpc_call *call, const ProtobufCMessage *message)
{
    CHECK(!call->finished);
    if (call->canceled) return STATUS_CANCELED;
    if (call->queued == RPC_SEND_QUEUE) return STATUS_BUSY;
    receive(call, message);
    call->queued++;
    return STATUS_OK;
}

bool rpc_call_canceled(const rpc_call *call)
{
    return call->canceled;
}

void rpc_call_on_cancel(rpc_call *call, void (*f)(rpc_call *call, void *user), void *user)
{
    call->on_cancel = f;
    call->on_cancel_user = user;
}

void rpc_call_on_writable(rpc_call *call, void (*f)(rpc_call *call, void *user), void *user)
{
    call->on_writable = f;
    call->on_writable_user = user;
}

/* ---- the node's other half ------------------------------------------------------------------- */

status node_tell(node *n, node_command command)
{
    return ring_push(n->commands, &command) ? STATUS_OK : STATUS_BUSY;
}

static void node_open(void)
{
    arena *a = arena_create("fuzz node");
    kv_transport *transport;
    kv_server_config config = {
        .memory = a,
        .clock = clock_monotonic,
        .seed = 1,
        .name = "n0",
        .listen = "fuzz:0",
        .memory_bytes = 16 * 8192,
        .connections_max = 2,
        .epoch = 3,
    };
    kv_hub *hub = kv_hub_create(a, clock_monotonic, 0, 0);
    CHECK(kv_transport_local_open(a, hub, &transport) == STATUS_OK);
    config.transport = transport;
    fuzzed.memory = a;
    fuzzed.options = &options;
    fuzzed.commands = ring_create(a, COMMANDS, sizeof(node_command));
    fuzzed.answers = ring_create(a, COMMANDS, sizeof(kv_server_stats));
    CHECK(kv_server_create(&config, &fuzzed.server) == STATUS_OK);
}

/* As the data thread does: one answer a command, in their order. */
static void node_obey(void)
{
    node_command command;
    while (ring_pop(fuzzed.commands, &command)) {
        if (command == NODE_DRAIN) kv_server_drain(fuzzed.server);
        kv_server_stats stats;
        kv_server_stats_read(fuzzed.server, &stats);
        CHECK(ring_push(fuzzed.answers, &stats));
    }
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void call_begin(uint32_t m, const uint8_t *body, size_t size)
{
    rpc_server *s = &stand_in;
    if (s->calls == CALLS || s->draining || m >= s->methods) return;
    rpc_call *call = &s->call[s->calls++];
    *call = (rpc_call){.method = &s->method[m]};
    ProtobufCMessage *request = protobuf_c_message_unpack(call->method->request, NULL, size, body);
    if (request == NULL) {
        rpc_call_finish(call, STATUS_INVALID, NULL);
        return;
    }
    call->method->handler(call, request, call->method->user);
    protobuf_c_message_free_unpacked(request, NULL);
}

static void read_one(rpc_call *call)
{
    bool was_full = call->queued == RPC_SEND_QUEUE;
    if (call->queued > 0) call->queued--;
    if (was_full && !call->finished && call->on_writable != NULL)
        call->on_writable(call, call->on_writable_user);
}

static size_t step(control *c, const uint8_t *data, size_t size)
{
    uint32_t what = data[0] & 7;
    size_t next = size > 1 ? 2 : 1, argument = size > 1 ? data[1] : 0;
    if (what < 5) {
        size_t room = size - next, length = argument < room ? argument : room;
        call_begin(what, data + next, length);
        return next + length;
    }
    rpc_call *call = &stand_in.call[argument % CALLS];
    bool begun = argument % CALLS < stand_in.calls;
    if (what == 5) {
        node_obey();
        control_poll(c);
        return 1;
    }
    if (what == 6 && begun) cancel(call);
    if (what == 7 && argument == 0xff) control_drain(c);
    if (what == 7 && begun) read_one(call);
    return next;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (fuzzed.server == NULL) node_open();
    control *c;
    CHECK(control_open(&fuzzed, &c) == STATUS_OK);
    CHECK(stand_in.methods == 5 && control_address(c)[0] != 0 && control_fd(c) == -1);
    while (size > 0) {
        size_t used = step(c, data, size);
        data += used;
        size -= used;
    }
    bool ended = control_drained(c);
    control_close(c);
    CHECK(!ended || rpc_server_drained(&stand_in));
    node_obey(); /* what was asked and not answered goes to nobody */
    for (kv_server_stats stats; ring_pop(fuzzed.answers, &stats);)
        continue;
    return 0;
}
