/* The client: blocking calls from one thread over one channel.
 *
 * Every call, unary ones too, is an rpc_stream with a completion queue of its own, plucked by tag;
 * so a call waits for its own events only and needs no thread behind it. Closing always waits for
 * every batch to come back (after a cancel they do at once), since gRPC writes into the stream
 * until then.
 *
 * Channels do not share connections or their back-off with other channels of the process, and do
 * not follow http_proxy: where a node is dialled must not depend on the environment. */
#include "proto/rpc_internal.h"

#include <string.h>

#include <grpc/slice.h>
#include <grpc/status.h>

enum { TAG_SEND = 1, TAG_HEADERS, TAG_MESSAGE, TAG_STATUS, TAG_COUNT };

struct rpc_client {
    arena *memory;
    grpc_channel *channel;
    const char *address;
};

struct rpc_stream {
    arena *memory;
    const rpc_client *client;
    const char *method;
    const ProtobufCMessageDescriptor *reply_type;
    grpc_completion_queue *queue;
    grpc_call *call;
    grpc_byte_buffer *request, *received;
    grpc_metadata_array headers, trailers;
    grpc_status_code code;
    grpc_slice details;
    bool pending[TAG_COUNT]; /* batches posted and not come back */
    bool over;               /* the end was read; result says how */
    status result;
};

/* gRPC only hands tags back: the address of a byte of its own is as good as any. */
static void *tag_of(uint32_t tag)
{
    static char bytes[TAG_COUNT];
    CHECK(tag < TAG_COUNT);
    return &bytes[tag];
}

static grpc_arg integer_arg(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

static status credentials_create(const rpc_tls *tls, grpc_channel_credentials **out_credentials)
{
    if (tls == NULL) {
        *out_credentials = grpc_insecure_credentials_create();
        return STATUS_OK;
    }
    arena *secrets = arena_create("rpc tls");
    rpc_pem pem;
    const status result = rpc_pem_read(secrets, tls, &pem);
    if (result == STATUS_OK) {
        grpc_ssl_pem_key_cert_pair pair = {pem.key, pem.certificate};
        *out_credentials = grpc_ssl_credentials_create_ex(pem.authority, &pair, NULL, NULL);
    }
    arena_destroy(secrets);
    return result;
}

status rpc_client_create(const char *address, const rpc_tls *tls, rpc_client **out_client)
{
    char host[RPC_HOST_BYTES];
    uint16_t port = 0;
    TRY(rpc_address_split(address, host, &port));
    rpc_begin();
    grpc_channel_credentials *credentials = NULL;
    const status result = credentials_create(tls, &credentials);
    if (result != STATUS_OK) {
        rpc_end();
        return result;
    }
    grpc_arg args[] = {
        integer_arg(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
        integer_arg(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
        integer_arg(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100),
        integer_arg(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000),
    };
    const grpc_channel_args all = {.num_args = sizeof args / sizeof args[0], .args = args};
    arena *a = arena_create("rpc client");
    rpc_client *c = ARENA_NEW(a, rpc_client, 1);
    c->memory = a;
    c->address = arena_string(a, address);
    c->channel = grpc_channel_create(address, credentials, &all);
    grpc_channel_credentials_release(credentials);
    arena_seal(a);
    *out_client = c;
    return STATUS_OK;
}

void rpc_client_destroy(rpc_client *c)
{
    if (c == NULL) return;
    grpc_channel_destroy(c->channel);
    rpc_end();
    arena_destroy(c->memory);
}

static void post(rpc_stream *s, const grpc_op *ops, size_t count, uint32_t tag)
{
    CHECK(!s->pending[tag]);
    CHECK(grpc_call_start_batch(s->call, ops, count, tag_of(tag), NULL) == GRPC_CALL_OK);
    s->pending[tag] = true;
}

static void wait_for(rpc_stream *s, uint32_t tag)
{
    if (!s->pending[tag]) return;
    const grpc_event got =
        grpc_completion_queue_pluck(s->queue, tag_of(tag), rpc_deadline(UINT64_MAX), NULL);
    CHECK(got.type == GRPC_OP_COMPLETE);
    s->pending[tag] = false;
}

static void post_all(rpc_stream *s)
{
    const grpc_op send[] = {
        {.op = GRPC_OP_SEND_INITIAL_METADATA},
        {.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = s->request},
        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
    };
    const grpc_op headers = {.op = GRPC_OP_RECV_INITIAL_METADATA,
                             .data.recv_initial_metadata.recv_initial_metadata = &s->headers};
    const grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                         .data.recv_status_on_client.trailing_metadata = &s->trailers,
                         .data.recv_status_on_client.status = &s->code,
                         .data.recv_status_on_client.status_details = &s->details};
    post(s, &end, 1, TAG_STATUS);
    post(s, send, 3, TAG_SEND);
    post(s, &headers, 1, TAG_HEADERS);
}

status rpc_stream_open(rpc_client *c, const char *method, const ProtobufCMessage *request,
                       const ProtobufCMessageDescriptor *reply_type, uint32_t timeout_ms,
                       rpc_stream **out_stream)
{
    CHECK(method[0] == '/' && reply_type != NULL);
    arena *a = arena_create("rpc stream");
    rpc_stream *s = ARENA_NEW(a, rpc_stream, 1);
    s->memory = a;
    s->client = c;
    s->method = arena_string(a, method);
    s->reply_type = reply_type;
    arena_seal(a);
    s->queue = grpc_completion_queue_create_for_pluck(NULL);
    s->call =
        grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, s->queue,
                                 grpc_slice_from_static_string(s->method), NULL,
                                 rpc_deadline(timeout_ms != 0 ? timeout_ms : UINT64_MAX), NULL);
    grpc_metadata_array_init(&s->headers);
    grpc_metadata_array_init(&s->trailers);
    s->details = grpc_empty_slice();
    s->request = rpc_pack(request);
    post_all(s);
    *out_stream = s;
    return STATUS_OK;
}

/* The name in the trailer when it is one of ours and agrees with the code, else the code's. */
static status result_of(const rpc_stream *s)
{
    const status by_code = rpc_status_from_code((int)s->code);
    for (size_t i = 0; i < s->trailers.count; i++) {
        if (grpc_slice_str_cmp(s->trailers.metadata[i].key, RPC_STATUS_KEY) != 0) continue;
        for (int32_t wire = -1; wire >= -(int32_t)STATUS_ROW_COUNT; wire--) {
            const status named = (status)wire;
            if (grpc_slice_str_cmp(s->trailers.metadata[i].value, status_name(named)) == 0 &&
                rpc_code_from_status(named) == (int)s->code)
                return named;
        }
    }
    return by_code;
}

static status finish_read(rpc_stream *s)
{
    wait_for(s, TAG_STATUS);
    s->over = true;
    if (s->result != STATUS_OK) return s->result; /* a reply that was no message of ours */
    s->result = result_of(s);
    if (s->result != STATUS_OK) {
        const int length = (int)GRPC_SLICE_LENGTH(s->details);
        const char *text = (const char *)GRPC_SLICE_START_PTR(s->details);
        log_write(s->result == STATUS_CANCELED ? LOG_INFO : LOG_ERROR, __FILE__, __LINE__,
                  "%s %s: %.*s (%s)", s->client->address, s->method, length, text,
                  status_name(s->result));
    }
    return s->result;
}

status rpc_stream_read(rpc_stream *s, ProtobufCMessage **out_reply)
{
    if (!s->over) {
        const grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE,
                                 .data.recv_message.recv_message = &s->received};
        post(s, &receive, 1, TAG_MESSAGE);
        wait_for(s, TAG_MESSAGE);
    }
    if (s->received != NULL) {
        ProtobufCMessage *reply = rpc_unpack(s->reply_type, s->received);
        grpc_byte_buffer_destroy(s->received);
        s->received = NULL;
        if (reply != NULL) {
            *out_reply = reply;
            return STATUS_OK;
        }
        s->result = FAIL(CORRUPT, "%s %s: the reply is not a message of this method's type",
                         s->client->address, s->method);
        rpc_stream_cancel(s);
    }
    if (!s->over) finish_read(s);
    if (s->result == STATUS_OK) *out_reply = NULL;
    return s->result;
}

void rpc_stream_cancel(rpc_stream *s)
{
    grpc_call_cancel(s->call, NULL);
}

void rpc_stream_close(rpc_stream *s)
{
    if (s == NULL) return;
    if (!s->over) grpc_call_cancel(s->call, NULL);
    for (uint32_t tag = TAG_SEND; tag < TAG_COUNT; tag++)
        wait_for(s, tag);
    if (s->received != NULL) grpc_byte_buffer_destroy(s->received);
    grpc_byte_buffer_destroy(s->request);
    grpc_metadata_array_destroy(&s->headers);
    grpc_metadata_array_destroy(&s->trailers);
    grpc_slice_unref(s->details);
    grpc_call_unref(s->call);
    grpc_completion_queue_shutdown(s->queue);
    grpc_completion_queue_destroy(s->queue);
    arena_destroy(s->memory);
}

status rpc_client_call(rpc_client *c, const char *method, const ProtobufCMessage *request,
                       const ProtobufCMessageDescriptor *reply_type, uint32_t timeout_ms,
                       ProtobufCMessage **out_reply)
{
    rpc_stream *s = NULL;
    TRY(rpc_stream_open(c, method, request, reply_type, timeout_ms, &s));
    ProtobufCMessage *reply = NULL, *more = NULL;
    status result = rpc_stream_read(s, &reply);
    if (result == STATUS_OK && reply == NULL)
        result = FAIL(CORRUPT, "%s %s: ended well without a reply", c->address, method);
    if (result == STATUS_OK) result = rpc_stream_read(s, &more); /* the status behind the reply */
    if (more != NULL) {
        protobuf_c_message_free_unpacked(more, NULL);
        result = FAIL(CORRUPT, "%s %s: more than one reply", c->address, method);
    }
    rpc_stream_close(s);
    if (result == STATUS_OK)
        *out_reply = reply;
    else if (reply != NULL)
        protobuf_c_message_free_unpacked(reply, NULL);
    return result;
}
