/* kvstore/client_put.c - write a block to R nodes in distinct failure domains; drop a context.
 *
 * A PUT asks the first R fit nodes of the block's ranks at once, suspects last, waits for one that
 * is being connected for the first time, and walks down for each that fails or is late. Late is a
 * matter of the put's own deadline, not of hedge_after. It is OK when R of them, no two in one
 * domain, have verified the bytes and none of these was restarted meanwhile. When nobody is left to
 * ask it ends: NO_SPACE if a store was full, else DEGRADED. REFUSED (another block under this id)
 * and STALE (a dropped context) end it at once. A DROP tells every node; one that cannot be told
 * now will learn from the lease. */
#include "kvstore/client.h"

static uint64_t bit(uint32_t node)
{
    return UINT64_C(1) << node;
}

static uint64_t domains_of(const kv_client *c, uint64_t nodes)
{
    uint64_t domains = 0;
    for (uint64_t left = nodes; left != 0; left &= left - 1)
        domains |= bit(c->node[__builtin_ctzll(left)].domain);
    return domains;
}

static uint32_t count_of(uint64_t set)
{
    return (uint32_t)__builtin_popcountll(set);
}

/* ---- PUT ------------------------------------------------------------------------------------- */

/* How long a PUT waits for one node before it asks another. A copy that goes to another node than
 * its rank says stays there, and every get asks in vain first: so a node that is only slow is
 * waited for, as long as the deadline leaves time for others. */
static uint64_t put_patience(const kv_client *c, const client_request *r)
{
    uint64_t late = c->cluster.hedge_after_ns * CLIENT_LATE_FACTOR + 1;
    uint64_t whole = r->deadline_ns > r->submit_ns ? r->deadline_ns - r->submit_ns : 0;
    return whole / CLIENT_PUT_SHARE > late ? whole / CLIENT_PUT_SHARE : late;
}

/* As many nodes of better ranks as copies are missing are being connected for the first time: who
 * puts at once when a client opens would send every copy to the node that greets first. Their end,
 * or this timer, brings the next dispatch. */
static bool put_waits(kv_client *c, client_request *r, const placement *p, uint32_t node,
                      uint64_t not_these)
{
    uint64_t until = r->submit_ns + put_patience(c, r);
    uint64_t domains = domains_of(c, r->acked | (r->open & ~r->late));
    if (clock_now(&c->config.clock) >= until) return false;
    for (uint32_t k = 0; k < p->count && p->rank[k] != node; k++) {
        uint32_t i = p->rank[k];
        if ((not_these & bit(i)) != 0 || !client_node_new(c, i)) continue;
        domains |= bit(c->node[i].domain);
        if (count_of(domains) < c->cluster.map.replicas) continue;
        if (r->retry.place == 0) kv_timer_set(&c->timers, &r->retry, until);
        return true;
    }
    return false;
}

/* PENDING: the transport or the table of asks has no room now. */
static status put_send(kv_client *c, uint32_t request, uint32_t node)
{
    client_request *r = &c->requests[request];
    if ((c->full & bit(node)) != 0) return STATUS_PENDING;
    client_ask *ask = client_ask_new(c, KV_KIND_PUT, node, request);
    if (ask == NULL) return STATUS_PENDING;
    wire_put put = {
        .epoch = c->cluster.map.epoch,
        .id = r->id,
        .digest = r->digest,
        .class = r->class,
    };
    wire_head_set(&put.head, WIRE_PUT, ask->id, c->block_bytes);
    kv_message m = {
        .head = &put,
        .head_bytes = sizeof put,
        .body = c->stage_bytes + (uint64_t)r->stage * c->block_bytes,
        .body_bytes = c->block_bytes,
        .cookie = (uint64_t)(ask - c->asks),
    };
    status sent = client_send(c, node, &m);
    if (sent != STATUS_OK) {
        client_ask_end(c, ask);
        return sent == STATUS_BUSY ? STATUS_PENDING : sent;
    }
    ask->lent = true;
    ask->block[0] = r->stage;
    c->stages[r->stage].lent++;
    r->open |= bit(node);
    r->tried |= bit(node);
    kv_timer_set(&c->timers, &ask->timer, clock_now(&c->config.clock) + put_patience(c, r));
    return STATUS_OK;
}

/* Nobody is left to ask and not enough have it. */
static void put_exhausted(kv_client *c, uint32_t request, const placement *p)
{
    client_request *r = &c->requests[request];
    uint64_t again = 0;
    for (uint32_t k = 0; k < p->count; k++) {
        uint32_t i = p->rank[k];
        if (c->node[i].state == NODE_READY || client_node_connecting(c, i))
            again |= r->transient & bit(i);
    }
    if (again != 0) {
        r->tried &= ~again;
        r->transient &= ~again;
        client_retry_later(c, request);
        return;
    }
    client_complete(c, request, r->result == STATUS_NO_SPACE ? STATUS_NO_SPACE : STATUS_DEGRADED);
}

void client_put_dispatch(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    if (r->pending == 0) return;
    uint32_t replicas = c->cluster.map.replicas;
    r->pending = 0;
    if (c->domains_alive < replicas) {
        client_complete(c, request, STATUS_DEGRADED);
        return;
    }
    const placement *p = client_place(c, r->id.context, r->id.layer);
    while (count_of(domains_of(c, r->acked | (r->open & ~r->late))) < replicas) {
        uint64_t counted = domains_of(c, r->acked | (r->open & ~r->late));
        uint64_t not_these = r->tried | r->open;
        for (uint32_t k = 0; k < p->count; k++)
            if ((counted & bit(c->node[p->rank[k]].domain)) != 0) not_these |= bit(p->rank[k]);
        bool wait;
        uint32_t node = client_node_pick(c, p, KV_KIND_PUT, not_these, &wait);
        if (node == CLIENT_NONE) {
            r->pending = wait; /* being connected: that event brings the next dispatch */
            if (!wait && r->open == 0) put_exhausted(c, request, p);
            return;
        }
        if (put_waits(c, r, p, node, not_these)) {
            r->pending = 1;
            return;
        }
        status sent = put_send(c, request, node);
        if (sent == STATUS_PENDING) {
            r->pending = 1;
            c->blocked = true;
            return;
        }
        if (sent != STATUS_OK) {
            r->tried |= bit(node);
            r->transient |= bit(node);
        }
    }
}

static void put_again(kv_client *c, client_request *r)
{
    r->pending = 1;
    c->dirty = true;
}

void client_put_retry(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    if (r->kind == KV_KIND_DROP) {
        r->pending |= r->transient;
        r->transient = 0;
        c->dirty = true;
    } else {
        put_again(c, r);
    }
}

void client_put_failed(kv_client *c, client_ask *ask, status why, uint64_t hint_ns)
{
    uint32_t request = ask->request;
    client_request *r = &c->requests[request];
    uint64_t node = bit(ask->node);
    bool newer_map = ask->epoch < c->cluster.map.epoch;
    client_ask_end(c, ask);
    r->open &= ~node;
    r->late &= ~node;
    r->failed_over++;
    if (why == STATUS_FENCED && newer_map) r->tried &= ~node; /* refused for the old one */
    if (why == STATUS_REFUSED || why == STATUS_STALE) {
        client_complete(c, request, why);
        return;
    }
    if (why == STATUS_NO_SPACE) r->result = why;
    if (why == STATUS_BUSY || why == STATUS_PEER_LOST || why == STATUS_CORRUPT)
        r->transient |= node;
    if (hint_ns > r->hint_ns) r->hint_ns = hint_ns;
    put_again(c, r);
}

/* A PUT that is late is not counted on any more, but its answer still counts. */
void client_put_late(kv_client *c, client_ask *ask)
{
    uint32_t request = ask->request;
    client_request *r = &c->requests[request];
    client_node_suspect(c, ask->node, true);
    if (ask->kind == KV_KIND_DROP) { /* DROP again: it may have been lost, and does no harm twice */
        client_drop_failed(c, ask, STATUS_BUSY);
        return;
    }
    if (ask->hedge_checked) { /* lost for good: its node may be asked again */
        client_put_failed(c, ask, STATUS_BUSY, 0);
        return;
    }
    ask->hedge_checked = true;
    uint64_t more = c->cluster.hedge_after_ns * CLIENT_LATE_FACTOR * CLIENT_LATE_FACTOR + 1;
    if (more < put_patience(c, r)) more = put_patience(c, r);
    kv_timer_set(&c->timers, &ask->timer, clock_now(&c->config.clock) + more);
    r->late |= bit(ask->node);
    r->hedged++;
    c->stats.hedged++;
    put_again(c, r);
}

void client_put_forget(kv_client *c, uint32_t node)
{
    for (uint32_t i = 0; i < c->requests_max; i++) {
        client_request *r = &c->requests[i];
        if (!r->active || r->done || r->kind != KV_KIND_PUT) continue;
        r->tried &= ~bit(node) | r->open;
        r->acked &= ~bit(node);
        put_again(c, r);
    }
}

static void put_acked(kv_client *c, client_ask *ask)
{
    uint32_t request = ask->request;
    client_request *r = &c->requests[request];
    uint64_t node = bit(ask->node);
    client_ask_end(c, ask);
    r->open &= ~node;
    r->late &= ~node;
    r->acked |= node;
    c->stats.put_replicas_acked++;
    kv_class_stats *stats = &c->stats.class[r->class];
    uint32_t copies = count_of(domains_of(c, r->acked));
    if (PLANT(HEDGE_TWICE)) copies += r->hedged > 0;
    if (copies < c->cluster.map.replicas) {
        put_again(c, r);
        return;
    }
    stats->blocks_ok++;
    stats->bytes += c->block_bytes;
    client_complete(c, request, STATUS_OK);
}

/* ---- DROP ------------------------------------------------------------------------------------ */

static void drop_check(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    if (r->done || (r->pending | r->open | r->transient) != 0) return;
    client_complete(c, request, r->failed == 0 ? STATUS_OK : STATUS_UNREACHABLE);
}

void client_drop_dispatch(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    for (uint64_t left = r->pending; left != 0; left &= left - 1) {
        uint32_t node = (uint32_t)__builtin_ctzll(left);
        bool in = client_node_in_map(c, node);
        if (in && client_node_connecting(c, node)) continue;
        if (!in || c->node[node].state != NODE_READY) {
            r->pending &= ~bit(node);
            if (in && c->node[node].state == NODE_DOWN) r->failed |= bit(node);
            continue;
        }
        client_ask *ask = client_ask_new(c, KV_KIND_DROP, node, request);
        if (ask == NULL) {
            c->blocked = true;
            break;
        }
        wire_drop drop = {.epoch = c->cluster.map.epoch, .context = r->id.context};
        wire_head_set(&drop.head, WIRE_DROP, ask->id, 0);
        kv_message m = {.head = &drop, .head_bytes = sizeof drop};
        if (client_send(c, node, &m) != STATUS_OK) {
            client_ask_end(c, ask);
            c->blocked = true;
            continue;
        }
        r->pending &= ~bit(node);
        r->open |= bit(node);
        uint64_t late = c->cluster.hedge_after_ns * CLIENT_LATE_FACTOR + 1;
        kv_timer_set(&c->timers, &ask->timer, clock_now(&c->config.clock) + late);
    }
    drop_check(c, request);
}

void client_drop_failed(kv_client *c, client_ask *ask, status why)
{
    uint32_t request = ask->request;
    client_request *r = &c->requests[request];
    uint64_t node = bit(ask->node);
    client_ask_end(c, ask);
    r->open &= ~node;
    if (why == STATUS_PEER_LOST)
        r->pending |= node; /* told again once it is back, or counted as failed when it is down */
    else
        r->transient |= node;
    if (why != STATUS_PEER_LOST) client_retry_later(c, request);
    c->dirty = true;
}

/* ---- answers --------------------------------------------------------------------------------- */

void client_on_result(kv_client *c, uint32_t node, wire_kind kind, const kv_message *m)
{
    wire_result w;
    client_ask *ask = NULL;
    if (wire_decode_result(m->head, m->head_bytes, kind, &w) == STATUS_OK)
        ask = client_ask_find(c, w.head.request, node);
    bool fits =
        ask != NULL && (kind == WIRE_BUSY ? ask->kind != KV_KIND_DROP
                                          : (kind == WIRE_PUT_DONE) == (ask->kind == KV_KIND_PUT));
    if (!fits || (ask->kind == KV_KIND_GET && kind != WIRE_BUSY)) {
        c->stats.late_replies++;
        return;
    }
    client_request *r = &c->requests[ask->request];
    uint32_t request = ask->request;
    if (ask->kind == KV_KIND_GET) {
        if (w.hint_ns > r->hint_ns) r->hint_ns = w.hint_ns;
        client_get_failed(c, ask, STATUS_BUSY);
    } else if (ask->kind == KV_KIND_PUT) {
        if (kind == WIRE_PUT_DONE && w.status == STATUS_OK)
            put_acked(c, ask);
        else
            client_put_failed(c, ask, kind == WIRE_BUSY ? STATUS_BUSY : (status)w.status,
                              w.hint_ns);
    } else if (w.status == STATUS_OK || w.status == STATUS_NOT_FOUND) {
        client_ask_end(c, ask);
        r->open &= ~bit(node);
        drop_check(c, request);
    } else {
        client_drop_failed(c, ask, (status)w.status);
    }
}
