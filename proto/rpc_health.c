/* grpc.health.v1: Check answers, Watch stays open and tells every change.
 *
 * A watcher that does not read loses nothing that matters: when its queue is full the newest state
 * is kept and sent when there is room, so only states in between are skipped. */
#include "proto/rpc_internal.h"

#include <proto/health.pb-c.h>
#include <string.h>

enum { SERVICE_BYTES = 128 };

typedef Grpc__Health__V1__HealthCheckResponse health_response;
typedef Grpc__Health__V1__HealthCheckRequest health_request;

typedef struct service {
    char name[SERVICE_BYTES];
    bool serving;
} service;

typedef struct watcher {
    rpc_call *call; /* NULL: free */
    char name[SERVICE_BYTES];
    int told; /* last state sent */
} watcher;

struct rpc_health {
    service service[RPC_HEALTH_SERVICES];
    uint32_t service_count;
    watcher watcher[RPC_HEALTH_WATCHERS];
    bool ended;
};

rpc_health *rpc_health_create(arena *a)
{
    rpc_health *h = ARENA_NEW(a, rpc_health, 1);
    h->service_count = 1; /* "", not serving */
    return h;
}

static int state_of(const rpc_health *h, const char *name)
{
    for (uint32_t i = 0; i < h->service_count; i++) {
        if (strcmp(h->service[i].name, name) == 0)
            return h->service[i].serving
                       ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                       : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
    }
    return GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN;
}

static health_response response_of(int state)
{
    health_response response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)state;
    return response;
}

static void on_check(rpc_call *call, const ProtobufCMessage *request, void *user)
{
    const rpc_health *h = user;
    const int state = state_of(h, ((const health_request *)request)->service);
    if (state == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN) {
        rpc_call_finish(call, STATUS_NOT_FOUND, "no such service here");
        return;
    }
    const health_response response = response_of(state);
    rpc_call_reply(call, &response.base);
}

static void tell(const rpc_health *h, watcher *w)
{
    const int state = state_of(h, w->name);
    if (state == w->told) return;
    const health_response response = response_of(state);
    if (rpc_call_send(w->call, &response.base) == STATUS_OK) w->told = state;
}

static watcher *watcher_of(rpc_health *h, const rpc_call *call)
{
    for (uint32_t i = 0; i < RPC_HEALTH_WATCHERS; i++) {
        if (h->watcher[i].call == call) return &h->watcher[i];
    }
    return NULL;
}

static void on_cancel(rpc_call *call, void *user)
{
    watcher *w = watcher_of(user, call);
    CHECK(w != NULL);
    w->call = NULL;
    rpc_call_finish(call, STATUS_CANCELED, NULL);
}

static void on_writable(rpc_call *call, void *user)
{
    watcher *w = watcher_of(user, call);
    CHECK(w != NULL);
    tell(user, w);
}

static void on_watch(rpc_call *call, const ProtobufCMessage *request, void *user)
{
    rpc_health *h = user;
    const char *name = ((const health_request *)request)->service;
    watcher *w = watcher_of(h, NULL);
    if (strlen(name) >= SERVICE_BYTES) {
        rpc_call_finish(call, STATUS_INVALID, "the service's name is too long");
    } else if (h->ended) {
        rpc_call_finish(call, STATUS_UNREACHABLE, "this server is ending");
    } else if (w == NULL) {
        rpc_call_finish(call, STATUS_BUSY, "too many watchers");
    } else if (rpc_call_canceled(call)) {
        rpc_call_finish(call, STATUS_CANCELED, NULL);
    } else {
        w->call = call;
        w->told = -1;
        snprintf(w->name, sizeof w->name, "%s", name);
        rpc_call_on_cancel(call, on_cancel, h);
        rpc_call_on_writable(call, on_writable, h);
        tell(h, w);
    }
}

void rpc_health_methods(rpc_health *h, rpc_method out_methods[RPC_HEALTH_METHODS])
{
    const ProtobufCMessageDescriptor *type = &grpc__health__v1__health_check_request__descriptor;
    out_methods[0] = (rpc_method){"/grpc.health.v1.Health/Check", type, on_check, h};
    out_methods[1] = (rpc_method){"/grpc.health.v1.Health/Watch", type, on_watch, h};
}

static void tell_all(rpc_health *h)
{
    for (uint32_t i = 0; i < RPC_HEALTH_WATCHERS; i++) {
        if (h->watcher[i].call != NULL) tell(h, &h->watcher[i]);
    }
}

void rpc_health_set(rpc_health *h, const char *name, bool serving)
{
    CHECK(strlen(name) < SERVICE_BYTES);
    uint32_t at = 0;
    while (at < h->service_count && strcmp(h->service[at].name, name) != 0)
        at++;
    CHECK(at < RPC_HEALTH_SERVICES);
    if (at == h->service_count) {
        snprintf(h->service[at].name, SERVICE_BYTES, "%s", name);
        h->service_count++;
    }
    h->service[at].serving = serving && !h->ended;
    tell_all(h);
}

void rpc_health_end(rpc_health *h)
{
    h->ended = true;
    for (uint32_t i = 0; i < h->service_count; i++)
        h->service[i].serving = false;
    tell_all(h);
    for (uint32_t i = 0; i < RPC_HEALTH_WATCHERS; i++) {
        if (h->watcher[i].call == NULL) continue;
        rpc_call_finish(h->watcher[i].call, STATUS_UNREACHABLE, "this server is ending");
        h->watcher[i].call = NULL;
    }
}
