/* kvstore/transport.c - what all transports share. */
#include "kvstore/transport.h"

#include <poll.h>
#include <time.h>

void kv_transport_bind(kv_transport *t, const kv_events *events, void *owner)
{
    CHECK(t->owner == NULL || owner == NULL);
    t->events = events;
    t->owner = owner;
}

status kv_transport_open(arena *a, const cluster_config *config, const char *listen, bool spin,
                         kv_transport **out_transport)
{
    char devices[KV_DEVICES_MAX];
    if (config->tcp) return kv_transport_tcp_open(a, spin, out_transport);
    TRY(kv_devices_find(config, listen, devices));
    return kv_transport_ucx_open_on(a, devices, spin, out_transport);
}

void kv_transport_flush(kv_transport *t)
{
    if (t->ops->flush != NULL) t->ops->flush(t);
}

void kv_transport_close(kv_transport *transport)
{
    if (transport != NULL) transport->ops->close(transport);
}

void kv_sleep(int fd, int wake_fd, uint64_t ns_max)
{
    struct pollfd fds[2];
    nfds_t count = 0;
    if (fd >= 0) fds[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
    if (wake_fd >= 0) fds[count++] = (struct pollfd){.fd = wake_fd, .events = POLLIN};
    struct timespec limit = {
        .tv_sec = (time_t)(ns_max / 1000000000),
        .tv_nsec = (long)(ns_max % 1000000000),
    };
    (void)ppoll(fds, count, &limit,
                NULL); /* woken, timed out or interrupted: all mean poll again */
}
