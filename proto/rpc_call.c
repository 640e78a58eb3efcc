/* The answer to one call: a bounded queue of messages, then one status.
 *
 * gRPC allows one batch with a message in flight a call; so messages queue here and each EVENT_SEND
 * posts the next; the status follows once the queue is empty, a unary reply and its status
 * together. The headers travel with whichever batch comes first. After a cancel, posting goes on as
 * before: gRPC completes such batches at once, and there is one way through the states instead of
 * two. */
#include "proto/rpc_internal.h"

#include <string.h>

#include <grpc/slice.h>
#include <grpc/status.h>
#include <grpc/support/alloc.h>

void rpc_call_post(rpc_call *call, const grpc_op *ops, size_t count, rpc_event kind)
{
    if (rpc_server_drained(call->server)) return;
    CHECK(grpc_call_start_batch(call->call, ops, count, &call->tag[kind], NULL) == GRPC_CALL_OK);
    call->batches++;
}

static grpc_op headers_op(rpc_call *call)
{
    CHECK(!call->headers_sent);
    call->headers_sent = true;
    return (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
}

static grpc_op message_op(rpc_call *call)
{
    return (grpc_op){.op = GRPC_OP_SEND_MESSAGE,
                     .data.send_message.send_message = call->queue[call->queue_head]};
}

static void post_message(rpc_call *call)
{
    grpc_op ops[2];
    size_t count = 0;
    if (!call->headers_sent) ops[count++] = headers_op(call);
    ops[count++] = message_op(call);
    call->sending = true;
    rpc_call_post(call, ops, count, EVENT_SEND);
}

/* The status, behind the one message that may be queued: a unary reply is one batch. */
static void post_status(rpc_call *call)
{
    CHECK(!call->status_posted && call->queue_count <= 1);
    grpc_slice detail = grpc_slice_from_copied_string(call->detail);
    grpc_metadata named = {
        .key = grpc_slice_from_static_string(RPC_STATUS_KEY),
        .value = grpc_slice_from_static_string(status_name(call->result)),
    };
    grpc_op ops[3];
    size_t count = 0;
    if (!call->headers_sent) ops[count++] = headers_op(call);
    if (call->queue_count == 1) ops[count++] = message_op(call);
    ops[count] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
    ops[count].data.send_status_from_server.status =
        (grpc_status_code)rpc_code_from_status(call->result);
    ops[count].data.send_status_from_server.status_details = &detail;
    if (call->result != STATUS_OK) {
        ops[count].data.send_status_from_server.trailing_metadata_count = 1;
        ops[count].data.send_status_from_server.trailing_metadata = &named;
    }
    call->status_posted = true;
    rpc_call_post(call, ops, count + 1, EVENT_STATUS);
    grpc_slice_unref(detail);
}

static void pop_sent(rpc_call *call)
{
    CHECK(call->sending && call->queue_count > 0);
    grpc_byte_buffer_destroy(call->queue[call->queue_head]);
    call->queue_head = (call->queue_head + 1) % RPC_SEND_QUEUE;
    call->queue_count--;
    call->sending = false;
}

void rpc_call_advance(rpc_call *call, rpc_event kind)
{
    if (kind == EVENT_CLOSE && call->canceled_by_core != 0) {
        call->canceled = true;
        if (!call->finished && call->on_cancel != NULL) call->on_cancel(call, call->on_cancel_user);
    } else if (kind == EVENT_SEND) {
        const bool was_full = call->queue_count == RPC_SEND_QUEUE;
        pop_sent(call);
        if (call->queue_count > 0) post_message(call);
        if (was_full && !call->finished && call->on_writable != NULL)
            call->on_writable(call, call->on_writable_user);
    }
    if (call->finished && !call->sending && !call->status_posted) post_status(call);
}

static void enqueue(rpc_call *call, const ProtobufCMessage *message)
{
    const uint32_t at = (call->queue_head + call->queue_count) % RPC_SEND_QUEUE;
    call->queue[at] = rpc_pack(message);
    call->queue_count++;
}

status rpc_call_send(rpc_call *call, const ProtobufCMessage *message)
{
    CHECK(!call->finished);
    if (call->canceled) return STATUS_CANCELED;
    if (call->queue_count == RPC_SEND_QUEUE) return STATUS_BUSY;
    enqueue(call, message);
    if (!call->sending) post_message(call);
    return STATUS_OK;
}

void rpc_call_finish(rpc_call *call, status s, const char *detail)
{
    CHECK(!call->finished && s != STATUS_PENDING);
    call->finished = true;
    call->result = s;
    const char *text = detail != NULL ? detail : s == STATUS_OK ? "" : status_sentence(s);
    snprintf(call->detail, sizeof call->detail, "%s", text);
    if (!call->sending) post_status(call);
}

void rpc_call_reply(rpc_call *call, const ProtobufCMessage *message)
{
    CHECK(call->queue_count == 0);
    if (call->canceled) {
        rpc_call_finish(call, STATUS_CANCELED, NULL);
        return;
    }
    enqueue(call, message);
    rpc_call_finish(call, STATUS_OK, NULL);
}

bool rpc_call_canceled(const rpc_call *call)
{
    return call->canceled;
}

void rpc_call_on_cancel(rpc_call *call, rpc_call_event f, void *user)
{
    call->on_cancel = f;
    call->on_cancel_user = user;
}

void rpc_call_on_writable(rpc_call *call, rpc_call_event f, void *user)
{
    call->on_writable = f;
    call->on_writable_user = user;
}

void rpc_call_peer(const rpc_call *call, char *out, size_t room)
{
    CHECK(room > 0);
    out[0] = 0;
    grpc_auth_context *context = grpc_call_auth_context(call->call);
    if (context == NULL) return;
    grpc_auth_property_iterator names =
        grpc_auth_context_find_properties_by_name(context, GRPC_X509_CN_PROPERTY_NAME);
    const grpc_auth_property *name = grpc_auth_property_iterator_next(&names);
    if (name != NULL && name->value_length < room) {
        memcpy(out, name->value, name->value_length);
        out[name->value_length] = 0;
    }
    grpc_auth_context_release(context);
}

void rpc_call_clear(rpc_call *call)
{
    if (call->call == NULL) return;
    while (call->queue_count > 0) {
        call->sending = true;
        pop_sent(call);
    }
    if (call->received != NULL) grpc_byte_buffer_destroy(call->received);
    call->received = NULL;
    grpc_call_details_destroy(&call->details);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_unref(call->call);
    call->call = NULL;
}
