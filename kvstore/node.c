/* kvstore/node.c - the data thread of shoal-kvstore.
 *
 * It polls the server, obeys commands and sleeps until a message, a command or a tenth of a second.
 * A stop is obeyed when nothing is queued any more, or after a second. */
#include "kvstore/node.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { COMMANDS = 64, NAP_NS = 100 * 1000 * 1000 };
static const uint64_t stop_patience_ns = UINT64_C(1000) * 1000 * 1000;

static void ring_bell(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    CHECK(n == sizeof one || errno == EAGAIN);
}

static void hush_bell(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof count);
    CHECK(n == sizeof count || errno == EAGAIN || errno == EINTR);
}

static void answer(node *n)
{
    kv_server_stats stats;
    kv_server_stats_read(n->server, &stats);
    CHECK(ring_push(n->answers, &stats)); /* as many places as commands */
    ring_bell(n->answer_fd);
}

static void *data_main(void *arg)
{
    node *n = arg;
    const clock_ops *clock = &clock_monotonic;
    uint64_t stop_at = UINT64_MAX;
    bool stopping = false;
    while (!stopping || clock_now(clock) < stop_at) {
        kv_server_poll(n->server);
        node_command command;
        while (ring_pop(n->commands, &command)) {
            if (command != NODE_STATS) kv_server_drain(n->server);
            if (command != NODE_STOP) answer(n);
            if (command == NODE_STOP && !stopping) stop_at = clock_now(clock) + stop_patience_ns;
            stopping |= command == NODE_STOP;
        }
        if (stopping && kv_server_idle(n->server)) break;
        kv_server_wait(n->server, n->command_fd, clock_now(clock) + NAP_NS);
        hush_bell(n->command_fd);
    }
    kv_transport_close(n->transport);
    kv_server_destroy(n->server);
    atomic_store(&n->stopped, true);
    ring_bell(n->answer_fd);
    return NULL;
}

static status server_open(node *n)
{
    const node_options *o = n->options;
    TRY(kv_transport_open(n->memory, &o->config, o->listen, o->spin, &n->transport));
    kv_server_config config = {
        .memory = n->memory,
        .transport = n->transport,
        .clock = clock_monotonic,
        .memory_bytes = o->memory_bytes,
        .lease_grace_ns = o->lease_grace_ns,
        .connections_max = o->connections_max,
        .epoch = o->has_map ? o->config.map.epoch : 0,
        .map = o->has_map ? &o->config.map : NULL,
        .faults = o->faults,
    };
    snprintf(config.name, sizeof config.name, "%s", o->name);
    snprintf(config.listen, sizeof config.listen, "%s", o->listen);
    status s = rng_system(&config.seed, sizeof config.seed);
    if (s == STATUS_OK) s = kv_server_create(&config, &n->server);
    if (s != STATUS_OK) kv_transport_close(n->transport);
    return s;
}

status node_start(node *n, const node_options *options)
{
    *n = (node){.memory = arena_create("node"), .options = options};
    n->started_ns = clock_now(&clock_monotonic);
    n->commands = ring_create(n->memory, COMMANDS, sizeof(node_command));
    n->answers = ring_create(n->memory, COMMANDS, sizeof(kv_server_stats));
    n->command_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    n->answer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (n->command_fd < 0 || n->answer_fd < 0) return FAIL(IO, "no eventfd");
    TRY(server_open(n));
    arena_seal(n->memory);
    int failed = pthread_create(&n->thread, NULL, data_main, n);
    if (failed == 0) return STATUS_OK;
    kv_transport_close(n->transport);
    kv_server_destroy(n->server);
    return FAIL(NO_MEMORY, "cannot start the data thread");
}

status node_tell(node *n, node_command command)
{
    if (!ring_push(n->commands, &command)) return STATUS_BUSY;
    ring_bell(n->command_fd);
    return STATUS_OK;
}

void node_stop(node *n)
{
    while (node_tell(n, NODE_STOP) != STATUS_OK && !atomic_load(&n->stopped))
        hush_bell(n->answer_fd);
    CHECK(pthread_join(n->thread, NULL) == 0);
    close(n->command_fd);
    close(n->answer_fd);
    arena_destroy(n->memory);
}
