/* kvstore/client_node.c - one state machine a node, and the map that lists them.
 *
 *   OUT -> IDLE -> DIALING -> GREETING -> READY        a dial, a greeting
 *           ^        |           |          |
 *           |      failed     refused     closed       IDLE again at once after a break that was
 *           +--------+--- DOWN <-+----------+          READY; DOWN with growing, jittered pauses
 *                                                      when the dial or the greeting failed
 *
 * Suspicion comes from late or broken replies and only steers: a suspect is asked after the others.
 * Puts do not mind late gets: a moment's haste of theirs would put copies where nobody looks first.
 * A map without a node alive leaves nobody to hear of a newer map from, so all its nodes are
 * dialled then, as scouts: they are not placed on, not told of drops and not counted as alive. A
 * node number stays with a name and address for the client's life, so sets of nodes are 64 bits. A
 * node that greets with another incarnation was restarted: its copies do not exist any more. */
#include "kvstore/client.h"

#include <string.h>

enum {
    BACKOFF_FIRST_NS = 20 * 1000 * 1000,
    REDIAL_NS_MAX = 2 * 1000 * 1000,
    LEASE_AGAIN_NS = 1000 * 1000, /* a full connection must not starve a lease */
};
static const uint64_t backoff_max_ns = UINT64_C(1000) * 1000 * 1000;
static const uint64_t silence_ns_max = UINT64_C(4000) * 1000 * 1000;

/* ---- the map --------------------------------------------------------------------------------- */

static void node_out(kv_client *c, uint32_t i)
{
    client_node *n = &c->node[i];
    if (n->state == NODE_OUT) return;
    n->state = NODE_OUT;
    kv_timer_stop(&c->timers, &n->timer);
    kv_timer_stop(&c->timers, &n->lease);
    if (n->peer != 0) c->transport->ops->hang_up(c->transport, n->peer);
}

/* The number this node had, or one that no node has. */
static uint32_t number_for(kv_client *c, const cluster_node *node)
{
    uint32_t place = CLIENT_NONE;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        const client_node *n = &c->node[i];
        if (strcmp(n->name, node->name) == 0 && strcmp(n->address, node->data) == 0) return i;
        if (n->state == NODE_OUT && n->peer == 0 && place == CLIENT_NONE) place = i;
    }
    return place;
}

static void node_in(kv_client *c, uint32_t i, const cluster_node *node)
{
    client_node *n = &c->node[i];
    n->scout = !node->alive;
    if (n->state != NODE_OUT) return;
    memcpy(n->name, node->name, sizeof n->name);
    memcpy(n->address, node->data, sizeof n->address);
    n->state = NODE_IDLE;
    n->incarnation = 0;
    client_put_forget(c, i); /* copies of the node that had this number are none of this one's */
    n->suspect_until_ns = n->put_suspect_until_ns = n->backoff_ns = 0;
    kv_timer_set(&c->timers, &n->timer, clock_now(&c->config.clock));
}

static void domains_count(kv_client *c)
{
    const cluster_map *map = &c->cluster.map;
    c->domains_alive = 0;
    for (uint32_t m = 0; m < map->node_count; m++) {
        if (!map->node[m].alive || c->number_of[m] == UINT8_MAX) continue;
        client_node *n = &c->node[c->number_of[m]];
        n->domain = c->number_of[m];
        bool first = true;
        for (uint32_t k = 0; k < m; k++) {
            if (!map->node[k].alive || c->number_of[k] == UINT8_MAX) continue;
            if (strcmp(map->node[k].domain, map->node[m].domain) != 0) continue;
            n->domain = c->node[c->number_of[k]].domain;
            first = false;
            break;
        }
        c->domains_alive += first;
    }
}

bool client_node_in_map(const kv_client *c, uint32_t node)
{
    return c->node[node].state != NODE_OUT && !c->node[node].scout;
}

uint64_t client_nodes_ready(const kv_client *c)
{
    uint64_t ready = 0;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if (c->node[i].state == NODE_READY) ready |= UINT64_C(1) << i;
    return ready;
}

void client_nodes_update(kv_client *c)
{
    const cluster_map *map = &c->cluster.map;
    uint64_t in = 0;
    for (uint32_t m = 0; m < map->node_count; m++) { /* known ones first: they keep their numbers */
        uint32_t i = number_for(c, &map->node[m]);
        /* A scout that is in again greets anew: only so does it learn that it is. */
        if (i != CLIENT_NONE && client_node_in_map(c, i) && map->node[m].alive)
            in |= UINT64_C(1) << i;
    }
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if ((in >> i & 1) == 0) node_out(c, i);
    c->nodes_alive = 0;
    memset(c->number_of, UINT8_MAX, sizeof c->number_of);
    for (uint32_t m = 0; m < map->node_count; m++) {
        if (!map->node[m].alive) continue;
        uint32_t i = number_for(c, &map->node[m]);
        if (i == CLIENT_NONE) continue; /* its number's old connection is closing: next update */
        node_in(c, i, &map->node[m]);
        c->number_of[m] = (uint8_t)i;
        c->nodes_alive++;
    }
    for (uint32_t m = 0; m < map->node_count && c->nodes_alive == 0; m++) {
        uint32_t i = number_for(c, &map->node[m]);
        if (i != CLIENT_NONE) node_in(c, i, &map->node[m]);
    }
    domains_count(c);
    memset(c->places, 0, CLIENT_PLACES * sizeof c->places[0]);
    c->dirty = true;
}

/* A newer map: what was tried under the old one may be tried again. */
static void map_adopt(kv_client *c, const cluster_map *map)
{
    if (map->epoch <= c->cluster.map.epoch) return;
    LOG(INFO, "map epoch %llu replaces %llu", (unsigned long long)map->epoch,
        (unsigned long long)c->cluster.map.epoch);
    c->cluster.map = *map;
    client_nodes_update(c);
    uint64_t in = 0;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if (client_node_in_map(c, i)) in |= UINT64_C(1) << i;
    for (uint32_t i = 0; i < c->requests_max; i++) {
        client_request *r = &c->requests[i];
        if (!r->active || r->done) continue;
        /* A copy on a node that is out is no copy; nor is its domain known. */
        if (!PLANT(OUT_COUNTED)) r->acked &= in;
        r->tried = r->open | r->acked;
        r->pending |= r->kind == KV_KIND_PUT;
        for (uint32_t b = r->first_block; b != CLIENT_NONE; b = c->blocks[b].next)
            if (c->blocks[b].asks_open == 0) c->blocks[b].tried = 0;
    }
}

const placement *client_place(kv_client *c, context_id context, uint32_t layer)
{
    uint32_t layers = c->config.layout.layers;
    uint32_t group = layer * 4 / layers;
    placement *p =
        &c->places[(context.lo ^ context.hi ^ (uint64_t)group * 0x9e37u) % CLIENT_PLACES];
    if (p->count != 0 && p->group == group && context_id_equal(p->context, context)) return p;
    uint32_t rank[CLIENT_RANKS_MAX];
    uint32_t count = cluster_place(&c->cluster.map, context, layer, layers, rank, CLIENT_RANKS_MAX);
    CHECK(count <= CLIENT_RANKS_MAX);
    *p = (placement){.context = context, .group = group};
    for (uint32_t i = 0; i < count; i++)
        if (c->number_of[rank[i]] != UINT8_MAX) p->rank[p->count++] = c->number_of[rank[i]];
    return p;
}

bool client_node_connecting(const kv_client *c, uint32_t node)
{
    node_state s = c->node[node].state;
    return s == NODE_IDLE || s == NODE_DIALING || s == NODE_GREETING;
}

bool client_node_new(const kv_client *c, uint32_t node)
{
    const client_node *n = &c->node[node];
    return !n->was_ready && n->backoff_ns == 0 && client_node_connecting(c, node);
}

uint32_t client_node_pick(const kv_client *c, const placement *p, kv_kind kind, uint64_t not_these,
                          bool *out_wait)
{
    uint64_t now = clock_now(&c->config.clock);
    uint32_t second = CLIENT_NONE;
    *out_wait = false;
    for (uint32_t r = 0; r < p->count; r++) {
        uint32_t i = p->rank[r];
        if ((not_these >> i & 1) != 0) continue;
        if (client_node_connecting(c, i)) *out_wait = true;
        if (c->node[i].state != NODE_READY) continue;
        uint64_t until =
            kind == KV_KIND_PUT ? c->node[i].put_suspect_until_ns : c->node[i].suspect_until_ns;
        if (now >= until) return i;
        if (second == CLIENT_NONE) second = i;
    }
    return second;
}

/* A node that owes answers and has said nothing at all for a while is dialled anew. While bytes
 * wait to be acknowledged TCP sends no keepalives: it repeats them at intervals that double, for a
 * quarter of an hour, so the old connection may stay silent after a partition for as long as that
 * took. Looked at when an answer is late, and with each heartbeat. */
static void silence_end(kv_client *c, uint32_t i, uint64_t now)
{
    client_node *n = &c->node[i];
    if (n->state != NODE_READY || n->owes_since_ns == 0) return;
    if (now - n->owes_since_ns < silence_ns_max) return;
    LOG(WARN, "node %s has said nothing for %llu ms; dialling it anew", n->name,
        (unsigned long long)((now - n->owes_since_ns) / 1000000));
    n->owes_since_ns = 0;
    c->transport->ops->hang_up(c->transport, n->peer);
}

void client_node_suspect(kv_client *c, uint32_t node, bool by_puts_too)
{
    uint64_t now = clock_now(&c->config.clock), until = now + c->cluster.suspect_ns;
    c->node[node].suspect_until_ns = until;
    if (by_puts_too) c->node[node].put_suspect_until_ns = until;
    silence_end(c, node, now);
}

/* ---- connections ----------------------------------------------------------------------------- */

static uint32_t node_of(const kv_client *c, kv_peer peer)
{
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if (c->node[i].peer == peer) return i;
    return CLIENT_NONE;
}

/* Pass the node over for a while that doubles with each failure in a row. */
static void node_down(kv_client *c, uint32_t i)
{
    client_node *n = &c->node[i];
    n->state = NODE_DOWN;
    n->backoff_ns = n->backoff_ns == 0 ? BACKOFF_FIRST_NS : n->backoff_ns * 2;
    if (n->backoff_ns > backoff_max_ns) n->backoff_ns = backoff_max_ns;
    uint64_t pause = n->backoff_ns / 2 + rng_below(&c->random, n->backoff_ns);
    kv_timer_set(&c->timers, &n->timer, clock_now(&c->config.clock) + pause);
    kv_timer_stop(&c->timers, &n->lease);
    c->dirty = true; /* who waited for it looks elsewhere */
}

static void node_dial(kv_client *c, uint32_t i)
{
    client_node *n = &c->node[i];
    if (n->peer != 0) { /* the old connection is not gone yet */
        kv_timer_set(&c->timers, &n->timer, clock_now(&c->config.clock) + REDIAL_NS_MAX);
        return;
    }
    kv_peer peer;
    if (c->transport->ops->dial(c->transport, n->address, &peer) != STATUS_OK) {
        node_down(c, i);
        return;
    }
    n->peer = peer;
    n->full_since_ns = n->owes_since_ns = 0;
    n->state = NODE_DIALING;
    kv_timer_set(&c->timers, &n->timer,
                 clock_now(&c->config.clock) + c->cluster.connect_deadline_ns);
}

void client_node_timer(kv_client *c, uint32_t i)
{
    client_node *n = &c->node[i];
    if (n->state == NODE_IDLE || n->state == NODE_DOWN) {
        n->state = NODE_IDLE;
        node_dial(c, i);
    } else if (n->state == NODE_DIALING || n->state == NODE_GREETING) {
        LOG(DEBUG, "node %s did not greet in time", n->name);
        if (n->peer != 0) c->transport->ops->hang_up(c->transport, n->peer);
        node_down(c, i);
    }
}

static void hello(kv_client *c, uint32_t i)
{
    wire_hello h = {
        .owner = c->owner,
        .epoch = c->cluster.map.epoch,
        .lease_ns = c->cluster.lease_ns > 0 ? c->cluster.lease_ns : 1,
        .layout = c->layout,
        .tenant = c->cluster.tenant,
        .block_bytes = c->block_bytes,
    };
    wire_head_set(&h.head, WIRE_HELLO, 0, 0);
    kv_message m = {.head = &h, .head_bytes = sizeof h};
    (void)client_send(c, i, &m); /* unsent: the greeting's timer hangs up */
    c->node[i].state = NODE_GREETING;
}

void client_node_lease(kv_client *c, uint32_t i)
{
    client_node *n = &c->node[i];
    if (n->state != NODE_READY) return;
    silence_end(c, i, clock_now(&c->config.clock));
    uint64_t lease = c->cluster.lease_ns > 3 ? c->cluster.lease_ns : 3;
    wire_lease l = {.epoch = c->cluster.map.epoch, .lease_ns = lease};
    wire_head_set(&l.head, WIRE_LEASE, 0, 0);
    kv_message m = {.head = &l, .head_bytes = sizeof l};
    bool soon = client_send(c, i, &m) == STATUS_BUSY && lease / 3 > LEASE_AGAIN_NS;
    uint64_t next = PLANT(LEASE_FORGOTTEN) ? UINT64_C(1000) * lease
                    : soon                 ? LEASE_AGAIN_NS
                                           : lease / 3;
    kv_timer_set(&c->timers, &n->lease, clock_now(&c->config.clock) + next);
}

static void node_ready(kv_client *c, uint32_t i, const wire_welcome *w)
{
    client_node *n = &c->node[i];
    kv_timer_stop(&c->timers, &n->timer);
    n->state = NODE_READY;
    n->refused = false;
    n->backoff_ns = 0;
    if (n->was_ready) c->stats.reconnects++;
    n->was_ready = true;
    if (n->incarnation != 0 && n->incarnation != w->incarnation) {
        LOG(WARN, "node %s was restarted: its copies are gone", n->name);
        if (!PLANT(RESTART_IGNORED)) client_put_forget(c, i);
    }
    n->incarnation = w->incarnation;
    if (w->epoch < c->cluster.map.epoch)
        kv_maps_send(&c->maps, c->transport, n->peer, &c->cluster.map);
    kv_timer_set(&c->timers, &n->lease, clock_now(&c->config.clock) + c->cluster.lease_ns / 3);
    c->dirty = true;
}

/* A matter for people, not for haste. */
static void node_refused(kv_client *c, uint32_t i)
{
    c->node[i].refused = true;
    c->node[i].backoff_ns = backoff_max_ns;
}

static void on_welcome(kv_client *c, uint32_t i, const kv_message *m)
{
    client_node *n = &c->node[i];
    wire_welcome w;
    status decoded = wire_decode_welcome(m->head, m->head_bytes, &w);
    if (n->state != NODE_GREETING) return; /* of an earlier HELLO */
    if (decoded == STATUS_OK && w.status == STATUS_OK && strcmp(w.name, n->name) == 0) {
        node_ready(c, i, &w);
        return;
    }
    if (decoded == STATUS_OK && w.status == STATUS_FENCED && w.epoch <= c->cluster.map.epoch) {
        hello(c, i); /* its map came with the refusal and is ours now */
        return;
    }
    if (decoded != STATUS_OK)
        LOG(WARN, "node %s sent a malformed WELCOME", n->name);
    else if (w.status == STATUS_OK)
        LOG(WARN, "%s is node %s, not %s as the map says", n->address, w.name, n->name);
    else if (w.status == STATUS_REFUSED)
        LOG(WARN, "node %s refused us: it serves another block layout, version or tenant", n->name);
    else
        LOG(WARN, "node %s refused us: %s", n->name, status_sentence((status)w.status));
    if (decoded != STATUS_OK || w.status == STATUS_OK || w.status == STATUS_REFUSED)
        node_refused(c, i);
    c->transport->ops->hang_up(c->transport, n->peer);
    node_down(c, i);
}

/* A node of another version answers in it: HELLO and WELCOME keep kind and version in their first
 * two bytes whatever else changes. */
static void on_foreign(kv_client *c, uint32_t i, const kv_message *m)
{
    client_node *n = &c->node[i];
    const uint8_t *bytes = m->head;
    bool version = m->head_bytes >= 2 && bytes[0] == WIRE_WELCOME && bytes[1] != PROTO_VERSION;
    if (version && n->state == NODE_GREETING) {
        LOG(WARN, "node %s speaks version %u of the protocol, this program %u", n->name, bytes[1],
            (unsigned)PROTO_VERSION);
        node_refused(c, i);
        c->transport->ops->hang_up(c->transport, n->peer);
        node_down(c, i);
        return;
    }
    LOG(ERROR, "node %s sent a frame that makes no sense; closing", n->name);
    c->transport->ops->hang_up(c->transport, n->peer);
}

static void on_map(kv_client *c, uint32_t i, const kv_message *m)
{
    cluster_map map;
    if (kv_map_decode(m, c->map_scratch, &map) != STATUS_OK) {
        LOG(ERROR, "node %s sent a malformed MAP", c->node[i].name);
        return;
    }
    map_adopt(c, &map);
}

static void on_opened(void *owner, kv_peer peer)
{
    kv_client *c = owner;
    uint32_t i = node_of(c, peer);
    if (i == CLIENT_NONE || c->node[i].state != NODE_DIALING) return; /* given up meanwhile */
    kv_timer_set(&c->timers, &c->node[i].timer,
                 clock_now(&c->config.clock) + c->cluster.connect_deadline_ns);
    hello(c, i);
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    kv_client *c = owner;
    uint32_t i = node_of(c, peer);
    if (i == CLIENT_NONE || c->node[i].state == NODE_OUT) return;
    c->node[i].owes_since_ns = 0;
    wire_head head = {.kind = 0};
    if (wire_decode_head(m->head, m->head_bytes, m->body_bytes, &head) != STATUS_OK) head.kind = 0;
    if (head.kind == WIRE_BLOCK)
        client_on_block(c, i, m);
    else if (head.kind == WIRE_DONE)
        client_on_done(c, i, m);
    else if (head.kind == WIRE_PUT_DONE || head.kind == WIRE_DROP_DONE || head.kind == WIRE_BUSY)
        client_on_result(c, i, (wire_kind)head.kind, m);
    else if (head.kind == WIRE_WELCOME)
        on_welcome(c, i, m);
    else if (head.kind == WIRE_MAP)
        on_map(c, i, m);
    else if (head.kind == WIRE_BYE)
        c->transport->ops->hang_up(c->transport, peer);
    else
        on_foreign(c, i, m);
}

static void *on_land(void *owner, kv_peer peer, const kv_message *m)
{
    kv_client *c = owner;
    uint32_t i = node_of(c, peer);
    return i == CLIENT_NONE || c->node[i].state == NODE_OUT ? NULL : client_get_land(c, i, m);
}

static void on_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)peer;
    kv_client *c = owner;
    if (c->blocked) c->dirty = true;
    if (cookie >> KV_MAP_COOKIE_BIT != 0) {
        kv_maps_sent(&c->maps, cookie);
        return;
    }
    client_ask *ask = &c->asks[cookie];
    CHECK(cookie <= c->ask_mask && ask->lent);
    ask->lent = false;
    if (ask->kind == KV_KIND_PUT) {
        CHECK(c->stages[ask->block[0]].lent > 0);
        c->stages[ask->block[0]].lent--;
        client_stage_free(c, ask->block[0], false);
    }
    if (ask->request == CLIENT_NONE) client_ask_end(c, ask);
}

/* Everything asked of a node whose connection is over is asked elsewhere. */
static void asks_fail(kv_client *c, uint32_t node)
{
    for (uint32_t k = 0; k <= c->ask_mask; k++) {
        client_ask *ask = &c->asks[k];
        if (ask->id == 0 || ask->node != node || ask->request == CLIENT_NONE) continue;
        if (ask->kind == KV_KIND_GET)
            client_get_failed(c, ask, STATUS_PEER_LOST);
        else if (ask->kind == KV_KIND_PUT)
            client_put_failed(c, ask, STATUS_PEER_LOST, 0);
        else
            client_drop_failed(c, ask, STATUS_PEER_LOST);
    }
}

static void on_closed(void *owner, kv_peer peer, status why)
{
    (void)why;
    kv_client *c = owner;
    uint32_t i = node_of(c, peer);
    if (i == CLIENT_NONE) return;
    client_node *n = &c->node[i];
    n->peer = 0;
    node_state was = n->state;
    if (was == NODE_READY) {
        LOG(WARN, "the connection to node %s broke", n->name);
        n->state = NODE_IDLE;
        kv_timer_stop(&c->timers, &n->lease);
        client_node_suspect(c, i, true);
        kv_timer_set(&c->timers, &n->timer,
                     clock_now(&c->config.clock) + rng_below(&c->random, REDIAL_NS_MAX));
    } else if (was == NODE_DIALING || was == NODE_GREETING) {
        node_down(c, i);
    }
    asks_fail(c, i);
    c->dirty = true;
}

const kv_events client_events = {
    .opened = on_opened,
    .message = on_message,
    .sent = on_sent,
    .closed = on_closed,
    .land = on_land,
};
