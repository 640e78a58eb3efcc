/* proto/rpc.h - the control plane: protobuf messages over gRPC's C core, unary and server
 * streaming.
 *
 * Flow: CLI or worker -> rpc_client -> HTTP/2 (mTLS beyond loopback) -> rpc_server -> handler.
 *
 * Threads: a server's handlers and all rpc_call_* functions run on one thread: the one that polls
 * it, or the server's own when config.threaded. A client and its streams belong to one thread;
 * only rpc_stream_cancel may come from another.
 *
 * Memory: a request belongs to the server for the time of its handler. A reply from a client
 * belongs to the caller, who gives it to protobuf_c_message_free_unpacked(reply, NULL). No block
 * travels here, so clarity is bought with a copy or two. Client streaming is not offered. */
#ifndef PROTO_RPC_H
#define PROTO_RPC_H

#include "proto/base.h"

struct ProtobufCMessage;
struct ProtobufCMessageDescriptor;

/* PEM files. Both ends show a certificate signed by the authority, or there is no connection.
 * A certificate needs a subject alternative name equal to the host that is dialled. */
typedef struct rpc_tls {
    const char *authority; /* path */
    const char *certificate;
    const char *key;
} rpc_tls;

/* ---- server ---------------------------------------------------------------------------------- */

typedef struct rpc_server rpc_server;
typedef struct rpc_call rpc_call; /* one call in flight, until it is finished */

/* Answer now or keep `call` and answer later; each call must be finished exactly once, by
 * rpc_call_reply or rpc_call_finish, also after it was canceled. */
typedef void (*rpc_handler)(rpc_call *call, const struct ProtobufCMessage *request, void *user);

typedef struct rpc_method {
    const char *name; /* "/shoal.v1.Node/Status"; static */
    const struct ProtobufCMessageDescriptor *request;
    rpc_handler handler;
    void *user;
} rpc_method;

enum { RPC_ADDRESSES_MAX = 8, RPC_METHODS_MAX = 64 };

typedef struct rpc_server_config {
    const char *address[RPC_ADDRESSES_MAX]; /* "host:port", "[::1]:0"; up to the first NULL */
    const rpc_tls *tls;                     /* NULL: plaintext, which only loopback may listen to */
    const rpc_method *methods;              /* [method_count], copied */
    uint32_t method_count;
    uint32_t calls_max;         /* in flight; one more is answered BUSY. 0: 256 */
    uint32_t message_bytes_max; /* 0: 4 MiB */
    bool threaded;
} rpc_server_config;

/* Listen. REFUSED: an address beyond loopback without TLS. IO: an address is in use or not ours, or
 * a PEM file cannot be read. INVALID: a malformed address or PEM. */
status rpc_server_create(const rpc_server_config *config, rpc_server **out_server);
/* The port that address `index` got, for those that asked for port 0. */
uint16_t rpc_server_port(const rpc_server *server, uint32_t index);
/* Readable when rpc_server_poll has something to do. Not for a threaded server. */
int rpc_server_fd(const rpc_server *server);
/* Run what is ready on this thread, waiting for it up to timeout_ms. Not for a threaded server. */
void rpc_server_poll(rpc_server *server, uint32_t timeout_ms);
/* Take no new calls; those in flight may end within grace_ms and are canceled then. Returns at
 * once, and may come from any thread. A second call does nothing. */
void rpc_server_drain(rpc_server *server, uint32_t grace_ms);
/* No call is in flight any more, after rpc_server_drain. */
bool rpc_server_drained(const rpc_server *server);
/* Ends whatever still runs (CANCELED) and waits for that; open rpc_call pointers die. */
void rpc_server_destroy(rpc_server *server);

/* Unary: send the one message and finish OK. */
void rpc_call_reply(rpc_call *call, const struct ProtobufCMessage *message);
/* Streaming: queue one message. BUSY: RPC_SEND_QUEUE of them wait for the reader; try again after
 * on_writable. CANCELED: nobody reads any more. */
enum { RPC_SEND_QUEUE = 16 };
status rpc_call_send(rpc_call *call, const struct ProtobufCMessage *message);
/* End the call after what is queued. detail: one sentence, or NULL for the status's own. */
void rpc_call_finish(rpc_call *call, status s, const char *detail);
bool rpc_call_canceled(const rpc_call *call);
/* The client went away, canceled, or its deadline passed: told once, if not finished by then. */
void rpc_call_on_cancel(rpc_call *call, void (*f)(rpc_call *call, void *user), void *user);
/* A full queue has room again. */
void rpc_call_on_writable(rpc_call *call, void (*f)(rpc_call *call, void *user), void *user);
/* Common name of the peer's certificate into out; "" without TLS. */
void rpc_call_peer(const rpc_call *call, char *out, size_t room);

/* ---- client ---------------------------------------------------------------------------------- */

typedef struct rpc_client rpc_client;
typedef struct rpc_stream rpc_stream;

/* Connects at the first call and again whenever a connection broke. tls NULL: plaintext. */
status rpc_client_create(const char *address, const rpc_tls *tls, rpc_client **out_client);
void rpc_client_destroy(rpc_client *client); /* its streams are closed before */

/* One request, one reply. A failure is logged with the server's sentence. UNREACHABLE: nobody
 * answers there, or TLS was not agreed. UNSUPPORTED: no such method. CORRUPT: the reply is not of
 * reply_type. */
status rpc_client_call(rpc_client *client, const char *method,
                       const struct ProtobufCMessage *request,
                       const struct ProtobufCMessageDescriptor *reply_type, uint32_t timeout_ms,
                       struct ProtobufCMessage **out_reply);

/* One request, many replies. timeout_ms bounds the whole stream; 0: no bound. */
status rpc_stream_open(rpc_client *client, const char *method,
                       const struct ProtobufCMessage *request,
                       const struct ProtobufCMessageDescriptor *reply_type, uint32_t timeout_ms,
                       rpc_stream **out_stream);
/* Wait for the next message: OK writes it; OK with *out_reply NULL means the server ended the
 * stream well; anything else is how it failed, again on each further read. */
status rpc_stream_read(rpc_stream *stream, struct ProtobufCMessage **out_reply);
void rpc_stream_cancel(rpc_stream *stream); /* a read under way ends CANCELED; any thread */
void rpc_stream_close(rpc_stream *stream);  /* cancels what still runs */

/* ---- status on the wire: a gRPC code, our name in the trailers, the sentence as details ------ */

/* The code of google.rpc.Code. */
int rpc_code_from_status(status s);
/* The nearest of ours; INTERNAL for a code outside the table. */
status rpc_status_from_code(int code);

/* ---- grpc.health.v1 -------------------------------------------------------------------------- */

/* Threads: the server's. Memory: the arena's. */
typedef struct rpc_health rpc_health;
enum { RPC_HEALTH_METHODS = 2, RPC_HEALTH_SERVICES = 16, RPC_HEALTH_WATCHERS = 64 };
rpc_health *rpc_health_create(arena *a);
void rpc_health_methods(rpc_health *health, rpc_method out_methods[RPC_HEALTH_METHODS]);
/* "" is the server as a whole, known and not serving from the start. Watchers are told. */
void rpc_health_set(rpc_health *health, const char *name, bool serving);
/* Everything is NOT_SERVING and every Watch ends, so that a drain need not wait for them. */
void rpc_health_end(rpc_health *health);

#endif
