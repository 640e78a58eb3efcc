/* kvstore/transport_ucx.c - messages over UCX: one eager active message each.
 *
 * One worker a transport, for one thread. The head travels as the active message's header, the body
 * as its payload; both go eagerly (over TCP that is several times faster than rendezvous here, and
 * the only path on which killed peers never took the survivor with them: README.md). Endpoints are
 * in peer error mode with short keepalives; a failed one is only marked in the callback and closed
 * from poll. UCX is configured by ucp_config_modify, never by the environment, as far as UCX lets
 * us: what we do not set is UCX's default.
 *
 * Sending is bounded: so many messages altogether, and so many bytes in flight to one peer. A send
 * that UCX finished at once is reported by the next poll as well, so events come from poll only.
 *
 * Not here: RDMA (the seam is made for it: a message could be received into the landing slot),
 * shared memory (UCX's refuses peer error mode), IPv6, TLS: which addresses may be listened to is
 * decided by the caller (cluster_listen_check), on which devices by ucx's NET_DEVICES, which we
 * always set: its data connections would listen on every one. */
#include "kvstore/transport.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <ucp/api/ucp.h>
#include <ucs/debug/log_def.h>

enum {
    CONNS_MAX = 1024,
    OPS_MAX = 8192,           /* sends in flight altogether */
    CONN_BYTES_MAX = 4 << 20, /* bodies in flight to one peer */
    CONN_OPS_MAX = 512,       /* messages in flight to one peer */
    ACCEPT_MAX = 128,         /* dials seen and not yet accepted */
    PROGRESS_MAX = 64,        /* a poll */
    MESSAGE_ID = 1,
    CLOSE_PATIENCE = 100000, /* progress calls to wait for endpoints to close at the end */
};

typedef struct ucx ucx;

typedef enum conn_state { CONN_FREE, CONN_NEW, CONN_OPEN, CONN_CLOSING } conn_state;

typedef struct conn {
    ucx *owner;
    ucp_ep_h endpoint;
    conn_state state;
    uint32_t generation;
    uint32_t ops, bytes; /* in flight */
    bool failed;         /* by UCX */
    bool hung_up;        /* by the owner */
    void *closing;       /* request of ucp_ep_close_nbx, NULL: done */
} conn;

typedef struct send_op {
    struct send_op *next;
    conn *conn;
    uint64_t cookie;
    uint32_t body_bytes;
    alignas(8) uint8_t head[WIRE_HEAD_MAX];
} send_op;

struct ucx {
    kv_transport base;
    ucp_context_h context;
    ucp_worker_h worker;
    ucp_listener_h listener; /* NULL: not listening */
    int wake_fd;
    bool spin;
    conn *conns;
    uint32_t conns_used; /* [0, conns_used) were ever used */
    uint32_t generation;
    conn *last; /* where the last lookup hit */
    send_op *op_free;
    send_op *finished, **finished_tail; /* to be reported, in order */
    ucp_conn_request_h accept[ACCEPT_MAX];
    uint32_t accept_count;
};

static const kv_transport_ops ucx_ops;

/* ---- set up ---------------------------------------------------------------------------------- */

/* Options of a transport go by their name without its prefix: UCX 1.13 takes "TCP_KEEPIDLE" too,
 * and does nothing with it. */
static const struct setting {
    const char *name, *value;
} settings[] = {
    {"TLS", "tcp"},
    {"SOCKADDR_TLS_PRIORITY", "tcp"},
    {"RNDV_THRESH", "inf"},
    {"ZCOPY_THRESH", "inf"}, /* 1.13 aborts the sender when a peer goes during a zero-copy send */
    {"TX_SEG_SIZE", "72K"},  /* a 64 KiB block in one segment instead of eight */
    {"RX_SEG_SIZE", "144K"},
    {"KEEPALIVE_INTERVAL",
     "1s"}, /* with the three below: a silent partition is seen in about 3 s */
    {"KEEPIDLE", "1s"},
    {"KEEPINTVL", "1s"},
    {"KEEPCNT", "2"},
    /* connect() that blocks would hold this thread for as long as a vanished peer is retried, and
     * 1.13 aborts when a peer dies between its connect() and its first send (README.md). */
    {"CONN_NB", "y"},
};

/* UCX's own words go to our log: what it calls an error is often a peer that went away. */
/* NOLINTNEXTLINE(readability-function-size): seven parameters, as UCX wants them */
static ucs_log_func_rc_t ucx_log(const char *file, unsigned line, const char *function,
                                 ucs_log_level_t level, const ucs_log_component_config_t *component,
                                 const char *message, va_list ap)
{
    (void)function;
    (void)component;
    if (level > UCS_LOG_LEVEL_WARN) return UCS_LOG_FUNC_RC_STOP;
    char text[256];
    vsnprintf(text, sizeof text, message, ap);
    const char *name = strrchr(file, '/');
    log_write(level == UCS_LOG_LEVEL_FATAL ? LOG_ERROR : LOG_DEBUG, name != NULL ? name + 1 : file,
              (int)line, "ucx: %s", text);
    return UCS_LOG_FUNC_RC_STOP;
}

static status context_open(ucx *t, const char *devices)
{
    ucp_config_t *config;
    /* So that a restarted node gets its port back at once. UCX 1.13 reads the options of its
     * connection manager from here only; we write it, whatever the user's says. */
    if (setenv("UCX_TCP_CM_REUSEADDR", "y", 1) != 0) return FAIL(NO_MEMORY, "setenv failed");
    ucs_status_t s = ucp_config_read(NULL, NULL, &config);
    if (s != UCS_OK) return FAIL(UNSUPPORTED, "UCX: no configuration: %s", ucs_status_string(s));
    for (size_t i = 0; i < sizeof settings / sizeof settings[0] && s == UCS_OK; i++) {
        s = ucp_config_modify(config, settings[i].name, settings[i].value);
        if (s != UCS_OK)
            LOG(ERROR, "UCX does not take %s=%s: %s", settings[i].name, settings[i].value,
                ucs_status_string(s));
    }
    if (s == UCS_OK && (s = ucp_config_modify(config, "NET_DEVICES", devices)) != UCS_OK)
        LOG(ERROR, "UCX does not take the devices %s: %s", devices, ucs_status_string(s));
    ucp_params_t params = {
        .field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
        .features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 0,
    };
    if (s == UCS_OK) s = ucp_init(&params, config, &t->context);
    ucp_config_release(config);
    if (s != UCS_OK) return FAIL(UNSUPPORTED, "UCX cannot start: %s", ucs_status_string(s));
    return STATUS_OK;
}

static ucs_status_t on_message(void *arg, const void *head, size_t head_bytes, void *body,
                               size_t body_bytes, const ucp_am_recv_param_t *param);

static status worker_open(ucx *t)
{
    ucp_worker_params_t params = {
        .field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
        .thread_mode = UCS_THREAD_MODE_SINGLE,
    };
    ucs_status_t s = ucp_worker_create(t->context, &params, &t->worker);
    if (s != UCS_OK) {
        ucp_cleanup(t->context);
        return FAIL(UNSUPPORTED, "UCX: no worker: %s", ucs_status_string(s));
    }
    ucp_am_handler_param_t handler = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = MESSAGE_ID,
        .cb = on_message,
        .arg = t,
    };
    s = ucp_worker_set_am_recv_handler(t->worker, &handler);
    if (s == UCS_OK) s = ucp_worker_get_efd(t->worker, &t->wake_fd);
    if (s != UCS_OK) {
        ucp_worker_destroy(t->worker);
        ucp_cleanup(t->context);
        return FAIL(UNSUPPORTED, "UCX: worker without wakeup: %s", ucs_status_string(s));
    }
    return STATUS_OK;
}

status kv_transport_ucx_open(arena *a, bool spin, kv_transport **out_transport)
{
    return kv_transport_ucx_open_on(a, "lo", spin, out_transport);
}

status kv_transport_ucx_open_on(arena *a, const char *devices, bool spin,
                                kv_transport **out_transport)
{
    static atomic_bool log_taken;
    if (!atomic_exchange(&log_taken, true)) ucs_log_push_handler(ucx_log);
    ucx *t = ARENA_NEW(a, ucx, 1);
    t->base.ops = &ucx_ops;
    t->spin = spin;
    t->finished_tail = &t->finished;
    t->conns = ARENA_NEW(a, conn, CONNS_MAX);
    send_op *ops = ARENA_NEW(a, send_op, OPS_MAX);
    for (uint32_t i = 0; i < OPS_MAX; i++) {
        ops[i].next = t->op_free;
        t->op_free = &ops[i];
    }
    TRY(context_open(t, devices));
    TRY(worker_open(t));
    *out_transport = &t->base;
    return STATUS_OK;
}

/* ---- connections ----------------------------------------------------------------------------- */

static kv_peer handle(const ucx *t, const conn *c)
{
    return (uint64_t)c->generation << 16 | (uint64_t)(c - t->conns + 1);
}

static conn *resolve(ucx *t, kv_peer peer)
{
    uint64_t index = (peer & 0xffff) - 1;
    CHECK(peer != 0 && index < CONNS_MAX);
    conn *c = &t->conns[index];
    return c->state != CONN_FREE && c->generation == (uint32_t)(peer >> 16) ? c : NULL;
}

static conn *conn_new(ucx *t)
{
    for (uint32_t i = 0; i < CONNS_MAX; i++) {
        conn *c = &t->conns[i];
        if (c->state != CONN_FREE) continue;
        if (i >= t->conns_used) t->conns_used = i + 1;
        *c = (conn){.owner = t, .state = CONN_NEW, .generation = ++t->generation};
        return c;
    }
    return NULL;
}

static conn *conn_of(ucx *t, ucp_ep_h endpoint)
{
    if (t->last != NULL && t->last->endpoint == endpoint) return t->last;
    for (uint32_t i = 0; i < t->conns_used; i++)
        if (t->conns[i].state != CONN_FREE && t->conns[i].endpoint == endpoint)
            return t->last = &t->conns[i];
    return NULL;
}

/* From within progress: only mark. */
static void on_error(void *arg, ucp_ep_h endpoint, ucs_status_t why)
{
    (void)endpoint;
    (void)why;
    conn *c = arg;
    c->failed = true;
}

static bool endpoint_create(ucx *t, conn *c, ucp_ep_params_t *params)
{
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
    params->err_mode = UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_error;
    params->err_handler.arg = c;
    ucs_status_t s = ucp_ep_create(t->worker, params, &c->endpoint);
    if (s == UCS_OK) return true;
    LOG(DEBUG, "ucx: no endpoint: %s", ucs_status_string(s));
    c->endpoint = NULL;
    c->state = CONN_FREE;
    return false;
}

/* UCX 1.13 corrupts its heap where an IPv6 peer is accepted (README.md), so it gets none. */
static status address_take(const char *address, struct sockaddr_storage *out, socklen_t *out_bytes)
{
    TRY(kv_address_parse(address, out, out_bytes));
    if (out->ss_family == AF_INET) return STATUS_OK;
    return FAIL(UNSUPPORTED,
                "%s is an IPv6 address, and UCX carries IPv4 only: set network.tcp: true "
                "(a node: --tcp), or use an IPv4 address",
                address);
}

static status ucx_dial(kv_transport *base, const char *address, kv_peer *out_peer)
{
    ucx *t = (ucx *)base;
    struct sockaddr_storage storage;
    socklen_t bytes;
    if (address_take(address, &storage, &bytes) != STATUS_OK) return STATUS_UNREACHABLE;
    conn *c = conn_new(t);
    if (c == NULL) return STATUS_BUSY;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
        .sockaddr = {.addr = (const struct sockaddr *)&storage, .addrlen = bytes},
    };
    if (!endpoint_create(t, c, &params)) return STATUS_UNREACHABLE;
    *out_peer = handle(t, c);
    return STATUS_OK;
}

static void on_dialled(ucp_conn_request_h request, void *arg)
{
    ucx *t = arg;
    if (t->accept_count < ACCEPT_MAX)
        t->accept[t->accept_count++] = request;
    else
        (void)ucp_listener_reject(t->listener, request);
}

static status bound_address(ucx *t, char out[CLUSTER_ADDRESS_MAX])
{
    ucp_listener_attr_t attr = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    char host[64], port[8];
    if (ucp_listener_query(t->listener, &attr) != UCS_OK ||
        getnameinfo((const struct sockaddr *)&attr.sockaddr, sizeof attr.sockaddr, host,
                    sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return FAIL(IO, "cannot tell the address that UCX listens on");
    snprintf(out, CLUSTER_ADDRESS_MAX, "%s:%s", host, port);
    return STATUS_OK;
}

static status ucx_listen(kv_transport *base, const char *address,
                         char out_bound[CLUSTER_ADDRESS_MAX])
{
    ucx *t = (ucx *)base;
    CHECK(t->listener == NULL);
    struct sockaddr_storage storage;
    socklen_t bytes;
    TRY(address_take(address, &storage, &bytes));
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {.addr = (const struct sockaddr *)&storage, .addrlen = bytes},
        .conn_handler = {.cb = on_dialled, .arg = t},
    };
    ucs_status_t s = ucp_listener_create(t->worker, &params, &t->listener);
    if (s != UCS_OK) {
        t->listener = NULL;
        if (s == UCS_ERR_BUSY)
            return FAIL(IO, "cannot listen on %s: the address is in use", address);
        return FAIL(IO, "cannot listen on %s: %s", address, ucs_status_string(s));
    }
    return bound_address(t, out_bound);
}

static void ucx_hang_up(kv_transport *base, kv_peer peer)
{
    conn *c = resolve((ucx *)base, peer);
    if (c != NULL) c->hung_up = true;
}

/* ---- messages -------------------------------------------------------------------------------- */

static ucs_status_t on_message(void *arg, const void *head, size_t head_bytes, void *body,
                               size_t body_bytes, const ucp_am_recv_param_t *param)
{
    ucx *t = arg;
    if ((param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0) return UCS_OK; /* not ours */
    conn *c = conn_of(t, param->reply_ep);
    if (c == NULL || c->state != CONN_OPEN || c->hung_up) return UCS_OK;
    bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
    if (rendezvous || head_bytes > WIRE_HEAD_MAX || body_bytes > UINT32_MAX) {
        LOG(WARN, "closing a connection that sends what this version does not take");
        c->hung_up = true;
        return UCS_OK;
    }
    kv_message m = {
        .head = head,
        .head_bytes = (uint32_t)head_bytes,
        .body = body_bytes == 0 ? NULL : body,
        .body_bytes = (uint32_t)body_bytes,
    };
    t->base.events->message(t->base.owner, handle(t, c), &m);
    return UCS_OK;
}

static void op_finish(ucx *t, send_op *op)
{
    op->next = NULL;
    *t->finished_tail = op;
    t->finished_tail = &op->next;
}

static void on_sent(void *request, ucs_status_t s, void *arg)
{
    (void)s; /* a failed send comes with a failed endpoint */
    send_op *op = arg;
    ucp_request_free(request);
    op_finish(op->conn->owner, op);
}

static status ucx_send(kv_transport *base, kv_peer peer, const kv_message *message)
{
    ucx *t = (ucx *)base;
    conn *c = resolve(t, peer);
    CHECK(message->head_bytes <= WIRE_HEAD_MAX);
    if (c == NULL || c->state != CONN_OPEN || c->failed || c->hung_up) return STATUS_PEER_LOST;
    if (c->ops >= CONN_OPS_MAX || t->op_free == NULL) return STATUS_BUSY;
    if (message->body_bytes > 0 && c->bytes > 0 && c->bytes + message->body_bytes > CONN_BYTES_MAX)
        return STATUS_BUSY;
    send_op *op = t->op_free;
    t->op_free = op->next;
    op->conn = c;
    op->cookie = message->cookie;
    op->body_bytes = message->body_bytes;
    memcpy(op->head, message->head, message->head_bytes);
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
        .flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = op,
    };
    ucs_status_ptr_t r = ucp_am_send_nbx(c->endpoint, MESSAGE_ID, op->head, message->head_bytes,
                                         message->body, message->body_bytes, &param);
    if (UCS_PTR_IS_ERR(r)) {
        op->next = t->op_free;
        t->op_free = op;
        c->failed = true;
        return STATUS_PEER_LOST;
    }
    c->ops++;
    c->bytes += message->body_bytes;
    if (r == NULL) op_finish(t, op);
    return STATUS_OK;
}

/* ---- poll ------------------------------------------------------------------------------------ */

static bool accept_all(ucx *t)
{
    uint32_t count = t->accept_count;
    t->accept_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        conn *c = conn_new(t);
        if (c == NULL) {
            (void)ucp_listener_reject(t->listener, t->accept[i]);
            continue;
        }
        ucp_ep_params_t params = {
            .field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
            .conn_request = t->accept[i],
        };
        (void)endpoint_create(t, c, &params);
    }
    return count > 0;
}

static bool report_sent(ucx *t)
{
    bool moved = t->finished != NULL;
    while (t->finished != NULL) {
        send_op *op = t->finished;
        t->finished = op->next;
        if (t->finished == NULL) t->finished_tail = &t->finished;
        conn *c = op->conn;
        uint64_t cookie = op->cookie;
        bool body = op->body_bytes > 0;
        CHECK(c->ops > 0 && c->bytes >= op->body_bytes);
        c->ops--;
        c->bytes -= op->body_bytes;
        op->next = t->op_free;
        t->op_free = op;
        if (body) t->base.events->sent(t->base.owner, handle(t, c), cookie);
    }
    return moved;
}

static void *endpoint_close(conn *c)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
    };
    ucs_status_ptr_t r = ucp_ep_close_nbx(c->endpoint, &param);
    return UCS_PTR_IS_PTR(r) ? r : NULL;
}

static bool close_finished(conn *c)
{
    if (c->closing == NULL) return true;
    if (ucp_request_check_status(c->closing) == UCS_INPROGRESS) return false;
    ucp_request_free(c->closing);
    c->closing = NULL;
    return true;
}

static bool conn_step(ucx *t, conn *c)
{
    if (c->state == CONN_NEW && !c->failed && !c->hung_up) {
        c->state = CONN_OPEN;
        t->base.events->opened(t->base.owner, handle(t, c));
        return true;
    }
    if (c->state != CONN_CLOSING && (c->failed || c->hung_up)) {
        c->state = CONN_CLOSING;
        c->closing = endpoint_close(c);
        return true;
    }
    if (c->state != CONN_CLOSING || !close_finished(c) || c->ops > 0) return false;
    kv_peer peer = handle(t, c);
    status why = c->hung_up ? STATUS_OK : STATUS_PEER_LOST;
    c->state = CONN_FREE;
    c->endpoint = NULL;
    t->base.events->closed(t->base.owner, peer, why);
    return true;
}

static bool ucx_poll(kv_transport *base)
{
    ucx *t = (ucx *)base;
    bool moved = false;
    for (uint32_t i = 0; i < PROGRESS_MAX && ucp_worker_progress(t->worker) != 0; i++)
        moved = true;
    moved |= accept_all(t);
    moved |= report_sent(t);
    for (uint32_t i = 0; i < t->conns_used; i++)
        if (t->conns[i].state != CONN_FREE) moved |= conn_step(t, &t->conns[i]);
    return moved;
}

/* Something that poll would find without a new event. */
static bool has_work(const ucx *t)
{
    if (t->finished != NULL || t->accept_count > 0) return true;
    for (uint32_t i = 0; i < t->conns_used; i++) {
        const conn *c = &t->conns[i];
        if (c->state == CONN_NEW) return true;
        if (c->state == CONN_OPEN && (c->failed || c->hung_up)) return true;
    }
    return false;
}

static void ucx_wait(kv_transport *base, int wake_fd, uint64_t ns_max)
{
    ucx *t = (ucx *)base;
    if (t->spin || has_work(t)) return;
    if (ucp_worker_arm(t->worker) != UCS_OK) return; /* BUSY: there is something to progress */
    kv_sleep(t->wake_fd, wake_fd, ns_max);
}

static void ucx_close(kv_transport *base)
{
    ucx *t = (ucx *)base;
    if (t->listener != NULL) {
        for (uint32_t i = 0; i < t->accept_count; i++)
            (void)ucp_listener_reject(t->listener, t->accept[i]);
        ucp_listener_destroy(t->listener);
    }
    uint32_t open = 0;
    for (uint32_t i = 0; i < t->conns_used; i++) {
        conn *c = &t->conns[i];
        if (c->state == CONN_FREE) continue;
        if (c->state != CONN_CLOSING) c->closing = endpoint_close(c);
        c->state = CONN_CLOSING;
        c->hung_up = true;
        open++;
    }
    for (uint32_t n = 0; n < CLOSE_PATIENCE && open > 0; n++) {
        (void)ucp_worker_progress(t->worker);
        for (uint32_t i = 0; i < t->conns_used; i++) {
            conn *c = &t->conns[i];
            if (c->state != CONN_CLOSING || !close_finished(c)) continue;
            c->state = CONN_FREE;
            open--;
        }
    }
    ucp_worker_destroy(t->worker);
    ucp_cleanup(t->context);
}

static const kv_transport_ops ucx_ops = {
    .listen = ucx_listen,
    .dial = ucx_dial,
    .send = ucx_send,
    .hang_up = ucx_hang_up,
    .poll = ucx_poll,
    .wait = ucx_wait,
    .close = ucx_close,
};
