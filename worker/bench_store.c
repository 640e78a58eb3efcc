/* Nodes of a store in this process, each on a thread of its own, over the in-process network.
 *
 * The production server, client and protocol; only the wire is missing, and its pace is made
 * (kv_hub_pace). Where there are cores enough nodes and io thread spin, so that a round trip is the
 * one that was asked for and not the scheduler's. Where there are still more, threads of the hub
 * write what nodes send into the landing zone, as a network card does: the worker's io thread need
 * not.
 *
 * Threads: bench_store_* belong to the caller; a node's transport and server to its thread. */
#include "worker/bench.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { PAUSE_NS = 2000000000, CARD_THREADS = 4 };

typedef struct store_node {
    arena *memory;
    kv_transport *transport;
    kv_server *server;
    pthread_t thread;
    bool started, spin;
    _Atomic bool stop;
    _Atomic uint64_t sleep_until_ns;
} store_node;

struct bench_store {
    arena *memory;
    const bench_options *options;
    kv_hub *hub;
    uint32_t nodes, card_threads;
    store_node node[BENCH_NODES_MAX];
};

static void *node_main(void *argument)
{
    store_node *n = argument;
    while (!atomic_load_explicit(&n->stop, memory_order_relaxed)) {
        uint64_t now = clock_now(&clock_monotonic);
        uint64_t asleep = atomic_load_explicit(&n->sleep_until_ns, memory_order_relaxed);
        if (now < asleep) { /* a process that was stopped: its connections stay */
            (void)poll(NULL, 0, 1);
            continue;
        }
        kv_server_poll(n->server);
        if (!n->spin) kv_server_wait(n->server, -1, now + 5000000);
    }
    kv_transport_close(n->transport);
    kv_server_destroy(n->server);
    return NULL;
}

static status node_start(bench_store *s, uint32_t i, uint64_t bytes, const cluster_config *config)
{
    store_node *n = &s->node[i];
    n->memory = arena_create("node");
    TRY(kv_transport_local_open(n->memory, s->hub, &n->transport));
    kv_server_config server = {.memory = n->memory,
                               .transport = n->transport,
                               .clock = clock_monotonic,
                               .seed = s->options->seed + i,
                               .memory_bytes = bytes,
                               .lease_grace_ns = config->lease_grace_ns,
                               .connections_max = 4,
                               .epoch = 1,
                               .map = &config->map};
    if (s->options->fault == FAULT_FLIP && i == 0)
        server.faults = (kv_faults){.seed = s->options->seed, .flip_wire = 0.05};
    (void)snprintf(server.name, sizeof server.name, "%s", config->map.node[i].name);
    (void)snprintf(server.listen, sizeof server.listen, "%s", config->map.node[i].data);
    TRY(kv_server_create(&server, &n->server));
    if (pthread_create(&n->thread, NULL, node_main, n) != 0)
        return FAIL(NO_MEMORY, "no thread for a node of the simulated store");
    n->started = true;
    return STATUS_OK;
}

/* What nodes and worker leave, halved: another worker may be beside this one. */
static uint32_t card_threads(long cores, uint32_t nodes)
{
    long spare = (cores - 2 * (long)nodes - 4) / 2;
    if (spare < 2) return 0;
    return spare > CARD_THREADS ? CARD_THREADS : (uint32_t)spare;
}

/* Whether the worker's io thread spins as the nodes do: a core of its own beside them and what
 * computes. */
static bool io_spins(const bench_options *o, long cores)
{
    long computing = strncmp(o->device, "cuda", 4) == 0 ? 1 : o->threads > 0 ? o->threads : cores;
    return cores >= 2 * (long)o->nodes + computing + 2;
}

status bench_store_open(const bench_options *o, uint64_t bytes, cluster_config *config,
                        bench_store **out_store)
{
    CHECK(o->nodes > 0 && o->nodes <= BENCH_NODES_MAX);
    arena *a = arena_create("store");
    bench_store *s = ARENA_NEW(a, bench_store, 1);
    s->memory = a;
    s->options = o;
    s->nodes = o->nodes;
    s->hub = kv_hub_create(a, clock_monotonic, 0, 0);
    config->map = (cluster_map){.epoch = 1, .replicas = o->replicas, .node_count = o->nodes};
    for (uint32_t i = 0; i < o->nodes; i++) {
        cluster_node *n = &config->map.node[i];
        *n = (cluster_node){.weight = 1, .alive = true};
        (void)snprintf(n->name, sizeof n->name, "sim%u", i);
        (void)snprintf(n->domain, sizeof n->domain, "sim%u", i);
        (void)snprintf(n->data, sizeof n->data, "127.0.0.1:%u", 7101 + i);
    }
    /* Placement of few contexts is uneven: each node could take them all. Untouched pages are free.
     */
    uint64_t room = bytes + bytes / 8 + (64 << 20);
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    config->spin = io_spins(o, cores);
    uint32_t threads = card_threads(cores, o->nodes);
    if (threads > 0 && kv_hub_card_start(s->hub, threads) == STATUS_OK) s->card_threads = threads;
    for (uint32_t i = 0; i < o->nodes; i++) {
        s->node[i].spin = cores > 2 * (long)o->nodes + 2;
        status started = node_start(s, i, room, config);
        if (started != STATUS_OK) {
            bench_store_close(s);
            return started;
        }
    }
    *out_store = s;
    return STATUS_OK;
}

kv_hub *bench_store_hub(bench_store *s)
{
    return s->hub;
}

uint32_t bench_store_card(const bench_store *s)
{
    return s->card_threads;
}

void bench_store_pace(bench_store *s)
{
    const bench_options *o = s->options;
    kv_hub_pace(s->hub, (uint64_t)(o->rtt_us * 1000), (uint64_t)(o->gbit * 1e9 / 8));
}

static void node_stop(store_node *n)
{
    if (n->started) {
        atomic_store(&n->stop, true);
        atomic_store(&n->sleep_until_ns, 0);
        (void)pthread_join(n->thread, NULL);
    } else if (n->transport != NULL) {
        kv_transport_close(n->transport);
        if (n->server != NULL) kv_server_destroy(n->server);
    }
    if (n->memory != NULL) arena_destroy(n->memory);
    *n = (store_node){.started = false};
}

void bench_store_fault(bench_store *s)
{
    if (s->options->fault == FAULT_KILL) node_stop(&s->node[0]);
    if (s->options->fault == FAULT_PAUSE)
        atomic_store(&s->node[0].sleep_until_ns, clock_now(&clock_monotonic) + PAUSE_NS);
}

void bench_store_close(bench_store *s)
{
    if (s == NULL) return;
    for (uint32_t i = 0; i < s->nodes; i++)
        node_stop(&s->node[i]);
    kv_hub_card_stop(s->hub);
    arena_destroy(s->memory);
}
