/* tests/sim/faults.c - which faults a seed has, and when they strike.
 *
 * Each seed draws the set of faults that are on, how hard they are and how often they strike; some
 * have none, some exactly one, so that a fault is also seen without the noise of the others.
 * Memory is lost by killing a node (it comes back empty) and by flipping bits of stored blocks;
 * both are told to the oracle, which then expects less. */
#include "tests/sim/sim.h"

#include <string.h>

const char *const sim_fault_name[FAULTS] = {
    [FAULT_DROP] = "drop",
    [FAULT_DELAY] = "delay",
    [FAULT_REORDER] = "reorder",
    [FAULT_DUPLICATE] = "duplicate",
    [FAULT_BREAK] = "break",
    [FAULT_PARTITION] = "partition",
    [FAULT_KILL] = "kill",
    [FAULT_RESTART] = "restart",
    [FAULT_PAUSE] = "pause",
    [FAULT_SLOW] = "slow",
    [FAULT_STALL] = "stall",
    [FAULT_FLIP_WIRE] = "flip_wire",
    [FAULT_FLIP_MEMORY] = "flip_memory",
    [FAULT_MAP] = "map",
    [FAULT_DRAIN] = "drain",
};

static void draw_set(sim *s)
{
    sim_profile *p = &s->profile;
    uint64_t what = sim_below(s, 100);
    p->clean = what < 8;
    if (p->clean) return;
    if (what < 30) {
        p->on[sim_below(s, FAULTS)] = true;
    } else {
        double share = 0.1 + rng_unit(&s->random) * 0.6;
        for (uint32_t f = 0; f < FAULTS; f++)
            p->on[f] = sim_chance(s, share);
    }
    if (p->on[FAULT_KILL]) p->on[FAULT_RESTART] = true;
    if (p->on[FAULT_RESTART]) p->on[FAULT_KILL] = true;
}

static double drawn_share(sim *s, double most)
{
    double u = rng_unit(&s->random);
    return most * u * u;
}

static void draw_weather(sim *s)
{
    const sim_profile *p = &s->profile;
    net_weather *w = &s->weather;
    *w = (net_weather){.latency_ns = (2 + sim_below(s, 300)) * SIM_US,
                       .jitter_ns = sim_below(s, 400) * SIM_US,
                       .window = p->clean ? NET_RECORDS : 4u << sim_below(s, 6)};
    if (sim_chance(s, 0.3)) w->bytes_per_s = (50 + sim_below(s, 950)) * 1000000;
    if (p->on[FAULT_DELAY]) {
        w->spike = drawn_share(s, 0.05);
        w->spike_ns = (1 + sim_below(s, 100)) * SIM_MS;
    }
    if (p->on[FAULT_REORDER]) w->reorder_ns = (1 + sim_below(s, 3)) * SIM_MS;
    if (p->on[FAULT_DROP]) w->drop = drawn_share(s, 0.05);
    if (p->on[FAULT_DUPLICATE]) w->duplicate = drawn_share(s, 0.2);
    if (p->on[FAULT_FLIP_WIRE]) w->flip = drawn_share(s, 0.1);
}

void faults_draw(sim *s)
{
    sim_profile *p = &s->profile;
    *p = (sim_profile){.clients = 1 + (uint32_t)sim_below(s, SIM_CLIENTS)};
    draw_set(s);
    p->worker = SIM_WITH_WORKER && p->clients == 1 && sim_chance(s, 0.5);
    p->replicas = sim_chance(s, 0.7) ? 2 : 1 + (uint32_t)sim_below(s, 3);
    p->domains = p->replicas < 3 && sim_chance(s, 0.2) ? 2 : 3;
    p->slots = SIM_BATCH + (uint32_t)sim_below(s, SIM_SLOTS_MAX - SIM_BATCH + 1);
    bool tight = !p->clean && sim_chance(s, 0.2);
    p->node_bytes = (tight ? 8 + sim_below(s, 120) : 1200) * NET_BODY_MAX;
    p->length_ns = (300 + sim_below(s, 2500)) * SIM_MS;
    p->gap_ns = (50 + sim_below(s, p->clean ? 2000 : 4000)) * SIM_US;
    p->poll_ns = 1 + sim_below(s, 200) * SIM_US;
    p->fault_gap_ns = (20 + sim_below(s, 400)) * SIM_MS;
    s->fault_next_ns = s->now_ns + sim_below(s, p->fault_gap_ns);
    draw_weather(s);
}

/* ---- maps ------------------------------------------------------------------------------------ */

static void admin_opened(void *owner, kv_peer peer)
{
    sim *s = owner;
    for (uint32_t i = 0; i < s->map.node_count; i++) {
        wire_node *r = &s->admin.rows[i];
        memset(r, 0, sizeof *r);
        memcpy(r->name, s->map.node[i].name, sizeof r->name);
        memcpy(r->data, s->map.node[i].data, sizeof r->data);
        memcpy(r->domain, s->map.node[i].domain, sizeof r->domain);
        r->weight = s->map.node[i].weight;
        r->alive = s->map.node[i].alive;
    }
    uint32_t bytes = s->map.node_count * (uint32_t)sizeof(wire_node);
    wire_map head = {
        .epoch = s->map.epoch, .replicas = s->map.replicas, .node_count = s->map.node_count};
    wire_head_set(&head.head, WIRE_MAP, 0, bytes);
    kv_message m = {
        .head = &head, .head_bytes = sizeof head, .body = s->admin.rows, .body_bytes = bytes};
    (void)s->admin.transport->ops->send(s->admin.transport, peer, &m);
}

static void admin_message(void *owner, kv_peer peer, const kv_message *m)
{
    (void)owner, (void)peer, (void)m;
}

static void admin_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)owner, (void)peer, (void)cookie;
}

static void admin_closed(void *owner, kv_peer peer, status why)
{
    sim *s = owner;
    (void)why;
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (s->admin.peer[n] == peer) s->admin.peer[n] = 0;
}

static const kv_events admin_events = {
    .opened = admin_opened, .message = admin_message, .sent = admin_sent, .closed = admin_closed};

void faults_admin_open(sim *s)
{
    memset(s->admin.peer, 0, sizeof s->admin.peer);
    s->admin.transport = net_open(s->net, SIM_ADMIN);
    kv_transport_bind(s->admin.transport, &admin_events, s);
}

static void map_tell(sim *s, uint32_t n)
{
    char address[CLUSTER_ADDRESS_MAX];
    snprintf(address, sizeof address, "sim:%u", n);
    if (s->admin.peer[n] != 0 || s->node[n].server == NULL) return;
    kv_peer peer;
    if (s->admin.transport->ops->dial(s->admin.transport, address, &peer) != STATUS_OK) return;
    s->admin.peer[n] = peer;
    s->admin.until_ns[n] = s->now_ns + 30 * SIM_MS;
}

/* The admin's connections carry one map each and end; rows change only when none is open. */
static void admin_step(sim *s)
{
    (void)s->admin.transport->ops->poll(s->admin.transport);
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (s->admin.peer[n] != 0 && s->now_ns >= s->admin.until_ns[n])
            s->admin.transport->ops->hang_up(s->admin.transport, s->admin.peer[n]);
}

static bool admin_busy(const sim *s)
{
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (s->admin.peer[n] != 0) return true;
    return false;
}

static void strike_map(sim *s)
{
    if (admin_busy(s)) return;
    uint32_t n = (uint32_t)sim_below(s, SIM_NODES);
    s->map.node[n].alive = !s->map.node[n].alive;
    s->map.epoch += 1 + sim_below(s, 3);
    s->map_changed_ns = s->now_ns;
    sim_trace(s, "map epoch %llu: n%u is %s", (unsigned long long)s->map.epoch, n,
              s->map.node[n].alive ? "in" : "out");
    for (uint32_t i = 0; i < SIM_NODES; i++)
        if (sim_chance(s, 0.7)) map_tell(s, i);
}

/* ---- nodes ----------------------------------------------------------------------------------- */

static void strike_kill(sim *s, uint32_t n)
{
    sim_node *node = &s->node[n];
    if (node->server == NULL) return;
    oracle_lost_memory(s, n);
    bool silent = sim_chance(s, 0.3); /* the host is gone: nobody says so for a while */
    net_kill(s->net, n, silent ? (200 + sim_below(s, 2500)) * SIM_MS : sim_below(s, SIM_MS));
    kv_server_destroy(node->server);
    arena_destroy(node->memory);
    node->server = NULL;
    node->restart_ns = s->now_ns + sim_below(s, s->profile.length_ns / 2 + 1);
    sim_trace(s, "kill n%u%s", n, silent ? ", silently" : "");
    s->totals.faults[FAULT_KILL]++;
}

static void strike_flip(sim *s, uint32_t n)
{
    sim_node *node = &s->node[n];
    if (node->server == NULL) return;
    uint32_t first = (uint32_t)sim_below(s, SIM_BLOCKS);
    for (uint32_t k = 0; k < SIM_BLOCKS; k++) {
        uint32_t b = (first + k) % SIM_BLOCKS;
        if (!s->block[b].tried || !oracle_intact(s, n, b)) continue;
        kv_tier *tier = &node->server->tier;
        uint32_t slot = tier->ops->find(tier->self, &s->block[b].id);
        uint64_t bit = sim_below(s, (uint64_t)NET_BODY_MAX * 8);
        tier->ops->bytes(tier->self, slot, NULL)[bit / 8] ^= (uint8_t)(1u << bit % 8);
        s->net->flips++;
        s->block[b].flips++;
        s->block[b].flipped_ns[n] = s->now_ns;
        s->structure_dirty = true;
        sim_trace(s, "flip a bit of %u.%u on n%u", b / SIM_PER_CONTEXT, b % SIM_PER_CONTEXT, n);
        s->totals.faults[FAULT_FLIP_MEMORY]++;
        return;
    }
}

static void strike_partition(sim *s, uint32_t n, uint32_t c)
{
    uint64_t until = s->now_ns + sim_below(s, sim_chance(s, 0.1) ? 4000 * SIM_MS : 200 * SIM_MS);
    uint64_t ways = sim_below(s, 3);
    if (ways != 1) net_block(s->net, n, SIM_NODES + c, until);
    if (ways != 2) net_block(s->net, SIM_NODES + c, n, until);
    sim_trace(s, "partition n%u c%u (%s) for %llu ms", n, c,
              ways == 0   ? "both ways"
              : ways == 1 ? "requests"
                          : "replies",
              (unsigned long long)((until - s->now_ns) / SIM_MS));
}

static uint64_t drawn_pause(sim *s)
{
    return s->now_ns + sim_below(s, sim_chance(s, 0.1) ? 3500 * SIM_MS : 150 * SIM_MS);
}

static void strike(sim *s, sim_fault f)
{
    uint32_t n = (uint32_t)sim_below(s, SIM_NODES);
    uint32_t ports = s->profile.worker ? SIM_CLIENTS : s->profile.clients;
    uint32_t c = (uint32_t)sim_below(s, ports);
    sim_node *node = &s->node[n];
    if (f == FAULT_KILL || f == FAULT_RESTART) {
        strike_kill(s, n);
        return; /* counted there, and at the restart */
    }
    if (f == FAULT_FLIP_MEMORY) {
        strike_flip(s, n);
        return;
    }
    if (f == FAULT_BREAK) {
        net_break(s->net, n, SIM_NODES + c, sim_chance(s, 0.3) ? 1500 * SIM_MS : SIM_MS);
        sim_trace(s, "break n%u c%u", n, c);
    } else if (f == FAULT_PARTITION) {
        strike_partition(s, n, c);
    } else if (f == FAULT_PAUSE) {
        node->paused_ns = drawn_pause(s);
        sim_trace(s, "pause n%u for %llu ms", n,
                  (unsigned long long)((node->paused_ns - s->now_ns) / SIM_MS));
    } else if (f == FAULT_SLOW) {
        node->slow_ns = s->now_ns + sim_below(s, 500 * SIM_MS);
        sim_trace(s, "slow n%u", n);
    } else if (f == FAULT_STALL) {
        s->client[c].stalled_ns = s->client[c].bad_ns = drawn_pause(s);
        sim_trace(s, "stall c%u for %llu ms", c,
                  (unsigned long long)((s->client[c].stalled_ns - s->now_ns) / SIM_MS));
    } else if (f == FAULT_MAP) {
        strike_map(s);
    } else if (f == FAULT_DRAIN && node->server != NULL) {
        kv_server_drain(node->server);
        sim_trace(s, "drain n%u", n);
    }
    s->totals.faults[f]++;
}

static void restart(sim *s, uint32_t n)
{
    sim_node_start(s, n);
    s->totals.faults[FAULT_RESTART]++;
}

static void health_note(sim *s)
{
    for (uint32_t n = 0; n < SIM_NODES; n++) {
        sim_node *node = &s->node[n];
        uint64_t ill = node->paused_ns > node->slow_ns ? node->paused_ns : node->slow_ns;
        if (ill > node->bad_ns) node->bad_ns = ill;
        if (node->server == NULL || node->server->stats.draining) node->bad_ns = s->now_ns;
    }
}

void faults_step(sim *s)
{
    admin_step(s);
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (s->node[n].server == NULL && s->now_ns >= s->node[n].restart_ns) restart(s, n);
    if (!s->calm && !s->profile.clean && s->now_ns >= s->fault_next_ns) {
        s->fault_next_ns = s->now_ns + sim_below(s, 2 * s->profile.fault_gap_ns);
        sim_fault f = (sim_fault)sim_below(s, FAULTS);
        for (uint32_t k = 0; k < FAULTS && !s->profile.on[f]; k++)
            f = (f + 1) % FAULTS;
        bool weather = f == FAULT_DROP || f == FAULT_DELAY || f == FAULT_REORDER ||
                       f == FAULT_DUPLICATE || f == FAULT_FLIP_WIRE;
        if (!weather && s->profile.on[f]) strike(s, f);
    }
    if (s->calm && s->map_changed_ns != 0 && !admin_busy(s))
        for (uint32_t n = 0; n < SIM_NODES; n++)
            if (s->node[n].server != NULL && (s->node[n].server->map.epoch < s->map.epoch ||
                                              s->node[n].server->map.node_count == 0))
                map_tell(s, n);
    health_note(s);
}

void faults_end(sim *s)
{
    net_calm(s->net);
    for (uint32_t n = 0; n < SIM_NODES; n++) {
        s->node[n].paused_ns = s->node[n].slow_ns = s->node[n].next_ns = 0;
        if (s->node[n].server == NULL) restart(s, n);
        if (!s->map.node[n].alive) s->map_changed_ns = s->now_ns;
        s->map.node[n].alive = true;
    }
    for (uint32_t c = 0; c < SIM_CLIENTS; c++)
        s->client[c].stalled_ns = 0;
    if (s->map_changed_ns != 0) s->map.epoch++;
}
