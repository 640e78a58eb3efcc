/* The server: listeners, slots for calls, one pump thread, and an orderly end.
 *
 *     gRPC's threads -> completion queue -> pump thread -+-> (threaded) handlers run here
 *                                                        +-> ring + eventfd -> owner's poll ->
 * handlers
 *
 * gRPC's queue can only be waited for by a blocking call, which an epoll loop cannot own; so one
 * thread does nothing but wait there and, unless the server is threaded, hand the events on. All
 * state of calls is touched by the thread that runs handlers and by no other.
 *
 * Bounds: calls_max calls, and ARMED slots more that wait for requests. A call beyond calls_max is
 * answered BUSY from such a slot. Each slot has at most one event of each kind on its way, which
 * bounds the ring.
 *
 * The end: drain tells gRPC (no new calls, an event when the last one is over); the pump cancels
 * what is left when the grace is over; destroy waits for both, closes the queue and joins the pump.
 */
#include "proto/rpc_internal.h"

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <grpc/slice.h>

enum { ARMED = 4, CALLS_DEFAULT = 256, CALLS_MAX = 65536 };

typedef struct event {
    rpc_tag *tag;
    int success;
} event;

struct rpc_server {
    arena *memory;
    grpc_server *core;
    grpc_completion_queue *queue;
    rpc_method method[RPC_METHODS_MAX];
    uint32_t method_count;
    uint16_t port[RPC_ADDRESSES_MAX];
    uint32_t port_count;
    rpc_call *slot; /* [calls_max + ARMED] */
    rpc_call *free;
    uint32_t slot_count, calls_max, armed, in_flight;
    bool threaded, pump_started;
    pthread_t pump;
    ring *events;
    int event_fd;
    rpc_tag shutdown_tag;
    _Atomic bool draining, drained, closing;
    _Atomic uint64_t cancel_at_ns; /* end of the grace; set before draining */
};

/* ---- calls ----------------------------------------------------------------------------------- */

static void arm(rpc_server *s)
{
    while (s->armed < ARMED && s->free != NULL && !s->draining) {
        rpc_call *call = s->free;
        rpc_call *next = call->free_next;
        const rpc_call fresh = {.server = s};
        *call = fresh;
        for (int kind = 0; kind < RPC_EVENT_KINDS; kind++)
            call->tag[kind] = (rpc_tag){.kind = (rpc_event)kind, .call = call};
        grpc_call_details_init(&call->details);
        grpc_metadata_array_init(&call->metadata);
        if (grpc_server_request_call(s->core, &call->call, &call->details, &call->metadata,
                                     s->queue, s->queue,
                                     &call->tag[EVENT_REQUEST]) != GRPC_CALL_OK) {
            call->free_next = next;
            return;
        }
        s->free = next;
        s->armed++;
    }
}

static void release(rpc_server *s, rpc_call *call)
{
    rpc_call_clear(call);
    call->free_next = s->free;
    s->free = call;
    CHECK(s->in_flight > 0);
    s->in_flight--;
    arm(s);
}

static const rpc_method *find_method(const rpc_server *s, grpc_slice name)
{
    for (uint32_t i = 0; i < s->method_count; i++) {
        if (grpc_slice_str_cmp(name, s->method[i].name) == 0) return &s->method[i];
    }
    return NULL;
}

static void on_request(rpc_server *s, rpc_call *call, bool success)
{
    s->armed--;
    if (!success) { /* the server is ending */
        grpc_call_details_destroy(&call->details);
        grpc_metadata_array_destroy(&call->metadata);
        call->free_next = s->free;
        s->free = call;
        return;
    }
    s->in_flight++;
    arm(s);
    const grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                           .data.recv_close_on_server.cancelled = &call->canceled_by_core};
    rpc_call_post(call, &close, 1, EVENT_CLOSE);
    call->method = find_method(s, call->details.method);
    if (s->in_flight > s->calls_max) {
        rpc_call_finish(call, STATUS_BUSY, "too many calls in flight; try again later");
    } else if (call->method == NULL) {
        rpc_call_finish(call, STATUS_UNSUPPORTED, "this server has no such method");
    } else {
        const grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE,
                                 .data.recv_message.recv_message = &call->received};
        rpc_call_post(call, &receive, 1, EVENT_MESSAGE);
    }
}

static void on_message(rpc_server *s, rpc_call *call)
{
    if (s->closing || call->finished) return;
    ProtobufCMessage *request =
        call->received != NULL ? rpc_unpack(call->method->request, call->received) : NULL;
    if (request == NULL) {
        rpc_call_finish(call, STATUS_INVALID, "the request is not a message of this method's type");
        return;
    }
    call->method->handler(call, request, call->method->user);
    protobuf_c_message_free_unpacked(request, NULL);
}

static void wake_owner(rpc_server *s)
{
    const uint64_t one = 1;
    CHECK(write(s->event_fd, &one, sizeof one) == (ssize_t)sizeof one || errno == EAGAIN);
}

static void handle(rpc_server *s, event e)
{
    rpc_call *call = e.tag->call;
    if (call == NULL) {
        s->drained = true;
        if (s->threaded) wake_owner(s);
        return;
    }
    CHECK(call->server == s);
    if (e.tag->kind == EVENT_REQUEST) {
        on_request(s, call, e.success != 0);
        if (call->call == NULL) return;
    } else {
        if (e.tag->kind == EVENT_MESSAGE)
            on_message(s, call);
        else
            rpc_call_advance(call, e.tag->kind);
        CHECK(call->batches > 0);
        call->batches--;
    }
    if (call->finished && call->status_posted && call->batches == 0) release(s, call);
}

/* ---- the pump -------------------------------------------------------------------------------- */

/* How long to wait for the next event: forever, or to the end of the grace when draining. The
 * requests that were armed come back at once when a drain begins, which ends the wait forever. */
static gpr_timespec pump_deadline(const rpc_server *s, bool canceled)
{
    if (!s->draining || canceled) return rpc_deadline(UINT64_MAX);
    const uint64_t now = clock_now(&clock_monotonic);
    const uint64_t at = s->cancel_at_ns;
    return rpc_deadline(at > now ? (at - now) / 1000000 + 1 : 0);
}

static void *pump(void *arg)
{
    rpc_server *s = arg;
    bool canceled = false;
    for (;;) {
        const grpc_event got =
            grpc_completion_queue_next(s->queue, pump_deadline(s, canceled), NULL);
        if (got.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        if (s->draining && !canceled && clock_now(&clock_monotonic) >= s->cancel_at_ns) {
            canceled = true;
            grpc_server_cancel_all_calls(s->core);
        }
        if (got.type != GRPC_OP_COMPLETE) continue;
        const event e = {.tag = got.tag, .success = got.success};
        if (s->threaded) {
            handle(s, e);
        } else {
            CHECK(ring_push(s->events, &e));
            wake_owner(s);
        }
    }
}

static void handle_queued(rpc_server *s)
{
    uint64_t ignored;
    (void)!read(s->event_fd, &ignored, sizeof ignored);
    for (event e; ring_pop(s->events, &e);)
        handle(s, e);
}

void rpc_server_poll(rpc_server *s, uint32_t timeout_ms)
{
    CHECK(!s->threaded);
    struct pollfd wait = {.fd = s->event_fd, .events = POLLIN};
    if (timeout_ms > 0 && ring_count(s->events) == 0)
        poll(&wait, 1, timeout_ms < INT32_MAX ? (int)timeout_ms : INT32_MAX);
    handle_queued(s);
}

int rpc_server_fd(const rpc_server *s)
{
    CHECK(!s->threaded);
    return s->event_fd;
}

uint16_t rpc_server_port(const rpc_server *s, uint32_t index)
{
    CHECK(index < s->port_count);
    return s->port[index];
}

/* ---- start ----------------------------------------------------------------------------------- */

/* gRPC says only that it could not listen; ask the system why, for the sentence. */
static const char *bind_problem(const char *host, uint16_t port, char *out, size_t room)
{
    char service[8];
    snprintf(service, sizeof service, "%u", (unsigned)port);
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
    struct addrinfo *found = NULL;
    const int error = getaddrinfo(host, service, &hints, &found);
    if (error != 0) {
        snprintf(out, room, "%s", gai_strerror(error));
        return out;
    }
    const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    const bool failed = bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0;
    const int cause = errno;
    if (failed && cause == EADDRINUSE)
        snprintf(out, room, "the port is in use");
    else if (failed)
        snprintf(out, room, "%s", strerrordesc_np(cause));
    else
        snprintf(out, room, "the key may not belong to the certificate");
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    return out;
}

static status listen_on(rpc_server *s, const char *address, const rpc_pem *pem)
{
    char host[RPC_HOST_BYTES];
    uint16_t port = 0;
    TRY(rpc_address_split(address, host, &port));
    if (pem == NULL && !rpc_host_is_loopback(host))
        return FAIL(REFUSED, "%s is beyond loopback: listening there needs TLS", address);
    grpc_server_credentials *credentials = NULL;
    if (pem != NULL) {
        const grpc_ssl_pem_key_cert_pair pair = {pem->key, pem->certificate};
        credentials = grpc_ssl_server_credentials_create_ex(
            pem->authority, (grpc_ssl_pem_key_cert_pair *)&pair, 1,
            GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, NULL);
    } else {
        credentials = grpc_insecure_server_credentials_create();
    }
    const int got = grpc_server_add_http2_port(s->core, address, credentials);
    grpc_server_credentials_release(credentials);
    if (got <= 0) {
        char why[160];
        return FAIL(IO, "cannot listen on %s: %s", address,
                    bind_problem(host, port, why, sizeof why));
    }
    s->port[s->port_count++] = (uint16_t)got;
    return STATUS_OK;
}

static status listen_all(rpc_server *s, const rpc_server_config *config)
{
    rpc_pem pem;
    arena *secrets = arena_create("rpc tls");
    status result = STATUS_OK;
    if (config->tls != NULL) result = rpc_pem_read(secrets, config->tls, &pem);
    for (uint32_t i = 0; result == STATUS_OK && i < RPC_ADDRESSES_MAX; i++) {
        if (config->address[i] == NULL) break;
        result = listen_on(s, config->address[i], config->tls != NULL ? &pem : NULL);
    }
    arena_destroy(secrets);
    if (result == STATUS_OK && s->port_count == 0)
        return FAIL(INVALID, "a server needs an address to listen on");
    return result;
}

static grpc_arg integer_arg(const char *key, int value)
{
    return (grpc_arg){.type = GRPC_ARG_INTEGER, .key = (char *)key, .value.integer = value};
}

static rpc_server *server_new(const rpc_server_config *config)
{
    arena *a = arena_create("rpc server");
    rpc_server *s = ARENA_NEW(a, rpc_server, 1);
    s->memory = a;
    s->threaded = config->threaded;
    s->calls_max = config->calls_max != 0 ? config->calls_max : CALLS_DEFAULT;
    CHECK(s->calls_max <= CALLS_MAX);
    s->method_count = config->method_count;
    for (uint32_t i = 0; i < config->method_count; i++)
        s->method[i] = config->methods[i];
    s->slot_count = s->calls_max + ARMED;
    s->slot = ARENA_NEW(a, rpc_call, s->slot_count);
    for (uint32_t i = s->slot_count; i-- > 0;) {
        s->slot[i].free_next = s->free;
        s->free = &s->slot[i];
    }
    uint32_t capacity = 1;
    while (capacity < s->slot_count * RPC_EVENT_KINDS + 1)
        capacity *= 2;
    s->events = ring_create(a, capacity, sizeof(event));
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    arena_seal(a);

    const uint32_t bytes = config->message_bytes_max;
    grpc_arg args[] = {
        /* Without this a second process would share the port silently. */
        integer_arg(GRPC_ARG_ALLOW_REUSEPORT, 0),
        integer_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
                    (int)(bytes != 0 ? bytes : RPC_MESSAGE_BYTES_DEFAULT)),
    };
    const grpc_channel_args all = {.num_args = sizeof args / sizeof args[0], .args = args};
    rpc_begin();
    s->core = grpc_server_create(&all, NULL);
    s->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->core, s->queue, NULL);
    return s;
}

status rpc_server_create(const rpc_server_config *config, rpc_server **out_server)
{
    CHECK(config->method_count <= RPC_METHODS_MAX);
    rpc_server *s = server_new(config);
    status result = s->event_fd >= 0
                        ? listen_all(s, config)
                        : FAIL(IO, "no eventfd for the control plane (errno %d)", errno);
    grpc_server_start(s->core);
    if (result == STATUS_OK) {
        arm(s);
        s->pump_started = pthread_create(&s->pump, NULL, pump, s) == 0;
        if (!s->pump_started) result = FAIL(IO, "no thread for the control plane");
    }
    if (result != STATUS_OK) {
        rpc_server_destroy(s);
        return result;
    }
    *out_server = s;
    return STATUS_OK;
}

/* ---- end ------------------------------------------------------------------------------------- */

void rpc_server_drain(rpc_server *s, uint32_t grace_ms)
{
    uint64_t unset = 0;
    const uint64_t at = clock_now(&clock_monotonic) + (uint64_t)grace_ms * 1000000 + 1;
    if (!atomic_compare_exchange_strong(&s->cancel_at_ns, &unset, at)) return;
    s->draining = true;
    grpc_server_shutdown_and_notify(s->core, s->queue, &s->shutdown_tag);
}

bool rpc_server_drained(const rpc_server *s)
{
    return s->drained;
}

/* Take events here: only where no pump was ever started, so only when create failed half way. */
static void pump_here_until_drained(rpc_server *s)
{
    while (!s->drained) {
        const grpc_event got = grpc_completion_queue_next(s->queue, rpc_deadline(UINT64_MAX), NULL);
        if (got.type == GRPC_OP_COMPLETE)
            handle(s, (event){.tag = got.tag, .success = got.success});
    }
}

static void wait_until_drained(rpc_server *s)
{
    struct pollfd wait = {.fd = s->event_fd, .events = POLLIN};
    while (!s->drained) {
        poll(&wait, 1, 1000);
        if (!s->threaded) handle_queued(s);
    }
}

void rpc_server_destroy(rpc_server *s)
{
    if (s == NULL) return;
    rpc_server_drain(s, 0);
    grpc_server_cancel_all_calls(s->core); /* a drain before may still have grace left */
    if (s->pump_started)
        wait_until_drained(s);
    else
        pump_here_until_drained(s);
    s->closing = true;
    grpc_completion_queue_shutdown(s->queue);
    if (s->pump_started) {
        pthread_join(s->pump, NULL);
    } else {
        while (grpc_completion_queue_next(s->queue, rpc_deadline(UINT64_MAX), NULL).type !=
               GRPC_QUEUE_SHUTDOWN) {
        }
    }
    handle_queued(s);
    for (uint32_t i = 0; i < s->slot_count; i++)
        rpc_call_clear(&s->slot[i]); /* calls that their handler never finished */
    grpc_server_destroy(s->core);
    grpc_completion_queue_destroy(s->queue);
    if (s->event_fd >= 0) close(s->event_fd);
    rpc_end();
    arena_destroy(s->memory);
}
