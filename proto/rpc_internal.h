/* proto/rpc_internal.h - what rpc*.c share: starting gRPC, messages as byte buffers, credentials.
 *
 * Threads: the functions here are pure or safe anywhere; a call in flight follows rpc.h.
 * Memory:  slices and buffers returned are the caller's. */
#ifndef PROTO_RPC_INTERNAL_H
#define PROTO_RPC_INTERNAL_H

#include "proto/rpc.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <protobuf-c/protobuf-c.h>

#define RPC_STATUS_KEY "shoal-status"
enum { RPC_DETAIL_BYTES = 512, RPC_HOST_BYTES = 128, RPC_MESSAGE_BYTES_DEFAULT = 4 << 20 };

/* Each create calls begin, each destroy end; gRPC's own log lines go to ours from the first on. */
void rpc_begin(void);
void rpc_end(void);

/* Pack straight into gRPC's memory. */
grpc_byte_buffer *rpc_pack(const ProtobufCMessage *message);
/* NULL: the bytes are no message of that type. */
ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *buffer);

/* Read the three PEM files into the arena. IO or INVALID, with the file's name. */
typedef struct rpc_pem {
    char *authority, *certificate, *key;
} rpc_pem;
status rpc_pem_read(arena *a, const rpc_tls *tls, rpc_pem *out_pem);

/* Split "host:port" or "[v6]:port" (brackets removed). */
status rpc_address_split(const char *address, char out_host[RPC_HOST_BYTES], uint16_t *out_port);
/* 127.0.0.0/8, ::1 and localhost, by text: no name is resolved to find out. */
bool rpc_host_is_loopback(const char *host);

gpr_timespec rpc_deadline(uint64_t timeout_ms); /* from now; UINT64_MAX: never */

/* ---- a call on the server: rpc_server.c takes it from gRPC, rpc_call.c answers it ------------ */

typedef enum rpc_event {
    EVENT_REQUEST,
    EVENT_MESSAGE,
    EVENT_CLOSE,
    EVENT_SEND,
    EVENT_STATUS
} rpc_event;
enum { RPC_EVENT_KINDS = EVENT_STATUS + 1 };

typedef struct rpc_tag {
    rpc_event kind;
    rpc_call *call; /* NULL: the server's own, shutdown */
} rpc_tag;

typedef void (*rpc_call_event)(rpc_call *call, void *user);

/* A slot of the server. It returns to the free list when it is finished and every batch that was
 * posted has come back, so a tag never outlives what it points to. */
struct rpc_call {
    rpc_server *server;
    rpc_call *free_next;
    rpc_tag tag[RPC_EVENT_KINDS];
    grpc_call *call; /* NULL: slot is free or armed */
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *received;
    const rpc_method *method;
    int canceled_by_core; /* written by gRPC until EVENT_CLOSE */
    uint32_t batches;     /* posted and not come back */
    bool canceled, finished, status_posted, headers_sent, sending;
    grpc_byte_buffer *queue[RPC_SEND_QUEUE];
    uint32_t queue_head, queue_count;
    status result;
    char detail[RPC_DETAIL_BYTES];
    rpc_call_event on_cancel, on_writable;
    void *on_cancel_user, *on_writable_user;
};

/* A batch of the call came back (all kinds but EVENT_REQUEST and EVENT_MESSAGE). */
void rpc_call_advance(rpc_call *call, rpc_event kind);
/* Post a batch, unless the server has drained: then every call is dead, and its queue may be closed
 * next. The thread that posts is the one that marks the server drained, so there is no race. */
void rpc_call_post(rpc_call *call, const grpc_op *ops, size_t count, rpc_event kind);
/* Everything the slot holds goes back to gRPC. */
void rpc_call_clear(rpc_call *call);

#endif
