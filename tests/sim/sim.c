/* tests/sim/sim.c - one seed: draw it, run it, calm it, read everything back.
 *
 * Time leaps to the next thing that may happen, plus a drawn lag, as a scheduler would. At each
 * stop everybody who is not paused is polled once in a drawn order, then the oracle looks. */
#include "tests/sim/sim.h"

#include <stdarg.h>
#include <string.h>

enum { SLOTS_SETTLE_MS = 3000, READ_MS = 300 };

static uint64_t sim_now(void *self)
{
    return ((sim *)self)->now_ns;
}

uint64_t sim_below(sim *s, uint64_t bound)
{
    return rng_below(&s->random, bound);
}

bool sim_chance(sim *s, double share)
{
    return rng_unit(&s->random) < share;
}

/* ---- what is told ---------------------------------------------------------------------------- */

void sim_trace(sim *s, const char *format, ...)
{
    char *line = s->lines[s->lines_count++ % SIM_LINES];
    memset(line, 0, SIM_LINE);
    int n = snprintf(line, SIM_LINE, "%12.3f ms  ", (double)s->now_ns / 1e6);
    va_list args;
    va_start(args, format);
    vsnprintf(line + n, (size_t)(SIM_LINE - n), format, args);
    va_end(args);
    s->trace_hash = bytes_digest(line, SIM_LINE, s->trace_hash);
    if (s->tracing) fprintf(stderr, "%s\n", line);
}

void sim_trace_print(const sim *s, FILE *out)
{
    uint64_t first = s->lines_count > SIM_LINES ? s->lines_count - SIM_LINES : 0;
    for (uint64_t i = first; i < s->lines_count; i++)
        fprintf(out, "%s\n", s->lines[i % SIM_LINES]);
}

void sim_fail(sim *s, const char *promise, const char *format, ...)
{
    if (s->failed) return;
    s->failed = true;
    int n = snprintf(s->reason, sizeof s->reason, "%s: ", promise);
    va_list args;
    va_start(args, format);
    vsnprintf(s->reason + n, sizeof s->reason - (size_t)n, format, args);
    va_end(args);
    sim_trace(s, "BROKEN %s", s->reason);
}

/* ---- birth and death ------------------------------------------------------------------------- */

sim *sim_create(void)
{
    arena *a = arena_create("simulator");
    sim *s = ARENA_NEW(a, sim, 1);
    s->memory = a;
    s->net = net_create(a, &s->net_random, &s->now_ns);
    s->lines = arena_alloc(a, (size_t)SIM_LINES * SIM_LINE, 64);
    s->admin.rows = ARENA_NEW(a, wire_node, WIRE_NODES_MAX);
    return s;
}

void sim_destroy(sim *s)
{
    if (s != NULL) arena_destroy(s->memory);
}

static void config_fill(sim *s)
{
    cluster_config_default(&s->config);
    s->map = (cluster_map){.epoch = 1, .replicas = s->profile.replicas, .node_count = SIM_NODES};
    for (uint32_t i = 0; i < SIM_NODES; i++) {
        cluster_node *n = &s->map.node[i];
        snprintf(n->name, sizeof n->name, "n%u", i);
        snprintf(n->data, sizeof n->data, "sim:%u", i);
        snprintf(n->domain, sizeof n->domain, "d%u", i < s->profile.domains ? i : 0);
        n->weight = 1;
        n->alive = true;
    }
    s->config.map = s->map;
    s->config.tenant = 7;
    s->config.hedge_after_ns = (5 + sim_below(s, 6)) * SIM_MS;
    s->config.suspect_ns = 50 * SIM_MS;
    s->config.connect_deadline_ns = 100 * SIM_MS;
    s->config.lease_ns = UINT64_C(1000) * SIM_MS;
    for (uint32_t c = 0; c < KV_CLASSES; c++)
        s->config.inflight_max[c] = 24 + (uint32_t)sim_below(s, 40);
}

void sim_node_start(sim *s, uint32_t i)
{
    sim_node *n = &s->node[i];
    CHECK(n->server == NULL);
    n->memory = arena_create("sim node");
    n->transport = net_open(s->net, i);
    kv_server_config config = {
        .memory = n->memory,
        .transport = n->transport,
        .clock = s->clock,
        .seed = s->seed * 1000 + i * 100 + ++n->starts,
        .memory_bytes = s->profile.node_bytes,
        .lease_grace_ns = UINT64_C(1500) * SIM_MS,
        .connections_max = 16,
        .epoch = s->map.epoch,
        .map = sim_chance(s, 0.8) ? &s->map : NULL,
    };
    snprintf(config.name, sizeof config.name, "n%u", i);
    snprintf(config.listen, sizeof config.listen, "sim:%u", i);
    CHECK(kv_server_create(&config, &n->server) == STATUS_OK);
    n->paused_ns = n->slow_ns = n->next_ns = 0;
    n->born_ns = s->now_ns;
    sim_trace(s, "node n%u starts, life %u", i, n->starts);
}

static void client_start(sim *s, uint32_t i)
{
    sim_client *c = &s->client[i];
    memset(c, 0, sizeof *c);
    if (i >= s->profile.clients) return;
    c->memory = arena_create("sim client");
    c->transport = net_open(s->net, SIM_NODES + i);
    size_t bytes = (size_t)s->profile.slots * NET_BODY_MAX;
    c->landing = arena_alloc(c->memory, bytes, 64);
    memset(c->landing, 0xa5, bytes);
    kv_client_config config = {
        .memory = c->memory,
        .transport = c->transport,
        .clock = s->clock,
        .seed = s->seed * 77 + i,
        .layout = s->layout,
        .tenant = s->config.tenant,
        .config = &s->config,
        .landing = c->landing,
        .landing_slots = s->profile.slots,
        .verify = true,
    };
    CHECK(kv_client_create(&config, &c->client) == STATUS_OK);
}

static void begin(sim *s, uint64_t seed)
{
    s->seed = seed;
    rng_seed(&s->random, seed);
    rng_seed(&s->net_random, seed ^ 0x5eed0fae7u);
    s->failed = s->calm = s->structure_dirty = false;
    s->now_ns = UINT64_C(1000) * SIM_MS;
    s->clock = (clock_ops){sim_now, s};
    s->lines_count = s->trace_hash = s->losses = s->watch_next = 0;
    s->map_changed_ns = s->full_ns = s->drained_ns = s->scan_next_ns = 0;
    memset(s->node, 0, sizeof s->node);
    memset(s->context, 0, sizeof s->context);
    memset(s->block, 0, sizeof s->block);
    memset(s->watch, 0, sizeof s->watch);
    net_reset(s->net);
    s->net->tap = oracle_tap;
    s->net->tap.self = s;
    s->layout = (block_layout){64, 32, 2, 4, 2, 99};
    s->layout_hash = layout_hash(&s->layout);
    CHECK(block_layout_bytes(&s->layout) == NET_BODY_MAX);
    faults_draw(s);
    config_fill(s);
    for (uint32_t i = 0; i < SIM_NODES; i++)
        sim_node_start(s, i);
    for (uint32_t i = 0; i < SIM_CLIENTS; i++)
        client_start(s, i);
    fetch_start(s);
    faults_admin_open(s);
    s->net->weather = s->weather;
}

static void end(sim *s)
{
    fetch_end(s);
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        if (s->client[i].client == NULL) continue;
        kv_client_destroy(s->client[i].client);
        kv_transport_close(s->client[i].transport);
        arena_destroy(s->client[i].memory);
    }
    for (uint32_t i = 0; i < SIM_NODES; i++) {
        if (s->node[i].server == NULL) continue;
        kv_transport_close(s->node[i].transport);
        kv_server_destroy(s->node[i].server);
        arena_destroy(s->node[i].memory);
    }
    for (uint32_t f = 0; f < NET_EVENTS; f++) {
        static const sim_fault as[NET_EVENTS] = {
            [NET_DROPPED] = FAULT_DROP,      [NET_DUPLICATED] = FAULT_DUPLICATE,
            [NET_FLIPPED] = FAULT_FLIP_WIRE, [NET_SPIKED] = FAULT_DELAY,
            [NET_REORDERED] = FAULT_REORDER,
        };
        s->totals.faults[as[f]] += s->net->events[f];
    }
    s->totals.messages += s->net->messages;
    s->totals.seeds++;
    s->totals.simulated_ns += s->now_ns - UINT64_C(1000) * SIM_MS;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static uint64_t next_time(sim *s)
{
    uint64_t next = net_next(s->net);
    for (uint32_t i = 0; i < SIM_CLIENTS; i++) {
        if (s->client[i].client == NULL) continue;
        uint64_t at = kv_timer_next(&s->client[i].client->timers);
        if (at < next) next = at;
        if (s->client[i].next_op_ns < next) next = s->client[i].next_op_ns;
    }
    uint64_t latest = s->now_ns + 4 * SIM_MS;
    if (next > latest) next = latest;
    if (next <= s->now_ns) next = s->now_ns + 100 * SIM_US; /* it waits for somebody paused */
    return next + sim_below(s, s->profile.poll_ns);
}

static void poll_node(sim *s, uint32_t i)
{
    sim_node *n = &s->node[i];
    if (n->server == NULL || s->now_ns < n->paused_ns || s->now_ns < n->next_ns) return;
    if (s->now_ns < n->slow_ns) n->next_ns = s->now_ns + sim_below(s, 30 * SIM_MS);
    kv_server_poll(n->server);
}

static void poll_client(sim *s, uint32_t i)
{
    sim_client *c = &s->client[i];
    if (i == 1 && s->profile.worker && s->now_ns >= c->stalled_ns) fetch_step(s);
    if (c->client == NULL || s->now_ns < c->stalled_ns) return;
    load_step(s, i);
    kv_client_poll(c->client);
    load_drain(s, i);
}

static void step(sim *s)
{
    s->now_ns = next_time(s);
    net_advance(s->net);
    faults_step(s);
    uint32_t first = (uint32_t)sim_below(s, SIM_NODES + SIM_CLIENTS);
    for (uint32_t k = 0; k < SIM_NODES + SIM_CLIENTS; k++) {
        uint32_t who = (first + k) % (SIM_NODES + SIM_CLIENTS);
        if (who < SIM_NODES)
            poll_node(s, who);
        else
            poll_client(s, who - SIM_NODES);
    }
    oracle_check(s);
}

static void run_for(sim *s, uint64_t ns)
{
    for (uint64_t until = s->now_ns + ns; s->now_ns < until && !s->failed;)
        step(s);
}

static bool all_connected(const sim *s)
{
    for (uint32_t i = 0; i < s->profile.clients; i++) {
        const kv_client *c = s->client[i].client;
        uint32_t ready = 0;
        for (uint32_t k = 0; k < CLUSTER_NODES_MAX; k++)
            ready += c->node[k].state == NODE_READY;
        if (ready != SIM_NODES || c->cluster.map.epoch != s->map.epoch) return false;
        if (s->client[i].open_count != 0) return false;
    }
    return true;
}

/* Everything acknowledged and not lost by the rule, and whatever else still has a copy. */
static void read_all(sim *s)
{
    uint32_t list[SIM_BATCH], count = 0, reader = 0;
    for (uint32_t b = 0; b <= SIM_BLOCKS && !s->failed; b++) {
        if (count == SIM_BATCH || (b == SIM_BLOCKS && count > 0)) {
            if (!load_read(s, reader, list, count, (uint64_t)READ_MS * SIM_MS)) return;
            while (!s->failed && s->client[reader].open_count + s->client[reader].held_count > 0)
                step(s);
            s->totals.final_reads += count;
            count = 0;
            reader = (reader + 1) % s->profile.clients;
        }
        if (b == SIM_BLOCKS || !s->block[b].acked) continue;
        const sim_context *x = &s->context[b / SIM_PER_CONTEXT];
        if (x->dropping) continue;
        bool there = false;
        for (uint32_t n = 0; n < SIM_NODES; n++)
            there |= oracle_intact(s, n, b);
        if (there) list[count++] = b; /* oracle_structure judged the others */
    }
}

/* A connection that died unseen is found by the next lease and made again at any moment: what is on
 * its way then is no leak. One never comes to rest, and oracle_idle names it. */
static void rest(sim *s)
{
    uint64_t until = s->now_ns + (uint64_t)SLOTS_SETTLE_MS * SIM_MS;
    for (bool busy = true; busy && !s->failed && s->now_ns < until;) {
        run_for(s, 5 * SIM_MS);
        busy = !all_connected(s);
        for (uint32_t port = 0; port < SIM_NODES + s->profile.clients; port++)
            busy |= net_lent(s->net, port) != 0;
    }
}

static void settle(sim *s)
{
    s->calm = true;
    faults_end(s);
    sim_trace(s, "all faults end");
    uint64_t until = s->now_ns + (uint64_t)SLOTS_SETTLE_MS * SIM_MS;
    while (!s->failed && !all_connected(s) && s->now_ns < until)
        run_for(s, 5 * SIM_MS);
    if (!s->failed && !all_connected(s))
        sim_fail(s, "P5",
                 "3 s after the last fault a client is not connected to all nodes, has an "
                 "old map or an operation open");
    for (uint32_t i = 0; i < s->profile.clients; i++)
        load_release_all(s, i);
    until = s->now_ns + (uint64_t)SLOTS_SETTLE_MS * SIM_MS;
    while (!s->failed && s->profile.worker && !fetch_finish(s)) {
        run_for(s, 5 * SIM_MS);
        if (s->now_ns > until) sim_fail(s, "P8", "a worker's io side does not come to rest");
    }
    run_for(s, 50 * SIM_MS);
    if (s->failed) return;
    oracle_structure(s);
    read_all(s);
    run_for(s, 50 * SIM_MS);
    rest(s);
    if (!s->failed) oracle_idle(s);
}

bool sim_run(sim *s, uint64_t seed)
{
    begin(s, seed);
    while (!all_connected(s) && s->profile.clean && s->now_ns < UINT64_C(2000) * SIM_MS)
        step(s);
    run_for(s, s->profile.length_ns);
    if (!s->failed) settle(s);
    end(s);
    return !s->failed;
}
