/* kvstore/client_get.c - ask for blocks, take replies, hedge, fail over.
 *
 * A block walks down the ranks of its home until a copy arrives: each failure (not there, corrupt,
 * busy, connection lost) moves it on, and when the first answer is late the next rank is asked too
 * and whoever comes first wins. A node that was busy or broke may be asked again later; one that
 * has no copy may not. When nobody is left the block ends with the gravest cause seen.
 *
 * A reply is matched by ask, connection, ordinal and slot before one byte reaches the slot, and its
 * digest compared before the slot is anybody's, unless the caller does that. What matches no open
 * ask is counted and dropped. Where the transport can, it reads one reply a slot straight into it;
 * it asks before each part, so none is written once the block is done. Other replies are verified
 * first and then copied. */
#include "kvstore/client.h"

#include <string.h>

static uint64_t bit(uint32_t node)
{
    return UINT64_C(1) << node;
}

/* ---- how a block ends or goes on ------------------------------------------------------------- */

static bool is_waiting(const client_block *b)
{
    return b->state == BLOCK_WAIT_SLOT || b->state == BLOCK_WAIT_NODE;
}

static void block_state_set(kv_client *c, client_block *b, block_state state)
{
    client_request *r = &c->requests[b->request];
    bool was = is_waiting(b);
    b->state = state;
    if (is_waiting(b) && !was) r->waiting++;
    if (!is_waiting(b) && was) r->waiting--;
    if (is_waiting(b)) c->dirty = true;
}

static void request_check(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    if (r->done || r->done_count < r->count) return;
    status result = STATUS_OK;
    for (uint32_t b = r->first_block; b != CLIENT_NONE; b = c->blocks[b].next)
        if (c->blocks[b].result != STATUS_OK && result == STATUS_OK) result = c->blocks[b].result;
    if (PLANT(FAILURE_HIDDEN) && r->failed_over > 0) result = STATUS_OK;
    client_complete(c, request, result);
}

/* A reply that was let into the slot is not to be written there any more. */
static void landing_end(kv_client *c, client_block *b)
{
    if (b->landing == 0) return;
    b->landing = 0;
    if (c->transport->ops->recall != NULL)
        c->transport->ops->recall(c->transport, kv_slot_bytes(c, b->slot));
}

static void block_end(kv_client *c, client_block *b, status result)
{
    client_request *r = &c->requests[b->request];
    kv_class_stats *stats = &c->stats.class[r->class];
    CHECK(b->state != BLOCK_DONE);
    if (result != STATUS_OK) landing_end(c, b);
    block_state_set(c, b, BLOCK_DONE);
    b->result = result;
    r->done_count++;
    if (result == STATUS_OK) {
        c->slot_use[b->slot] = SLOT_FILLED;
        c->slots_filled++;
        stats->blocks_ok++;
        stats->bytes += c->block_bytes;
        return;
    }
    client_slot_drop(c, b);
    stats->blocks_failed++;
    if (result == STATUS_BUSY && r->class == KV_PREFETCH) stats->shed++;
}

void client_get_finish(kv_client *c, uint32_t request, status result)
{
    client_request *r = &c->requests[request];
    for (uint32_t b = r->first_block; b != CLIENT_NONE; b = c->blocks[b].next)
        if (c->blocks[b].state != BLOCK_DONE) block_end(c, &c->blocks[b], result);
    request_check(c, request);
}

/* Of two causes, the one that says more about what is wrong. */
static status graver(status a, status b)
{
    static const status order[] = {STATUS_CORRUPT, STATUS_PEER_LOST, STATUS_UNREACHABLE,
                                   STATUS_FENCED,  STATUS_REFUSED,   STATUS_DEADLINE,
                                   STATUS_BUSY,    STATUS_NOT_FOUND};
    for (uint32_t i = 0; i < sizeof order / sizeof order[0]; i++)
        if (a == order[i] || b == order[i]) return order[i];
    return b;
}

static bool is_transient(status s)
{
    return s == STATUS_BUSY || s == STATUS_PEER_LOST || s == STATUS_FENCED || s == STATUS_DEADLINE;
}

/* Nobody is left to ask: later again, or the end. */
static void block_exhausted(kv_client *c, client_block *b, const placement *p)
{
    client_request *r = &c->requests[b->request];
    uint64_t again = 0, down = 0;
    for (uint32_t k = 0; k < p->count; k++) {
        uint32_t i = p->rank[k];
        bool alive = c->node[i].state == NODE_READY || client_node_connecting(c, i);
        if (alive && (b->transient & bit(i)) != 0) again |= bit(i);
        if (!alive) down |= bit(i);
    }
    if (again != 0 && !(r->class == KV_PREFETCH && b->result == STATUS_BUSY)) {
        b->tried &= ~again;
        b->transient &= ~again;
        block_state_set(c, b, BLOCK_WAIT_TIME);
        client_retry_later(c, b->request);
        return;
    }
    status cause = b->result == STATUS_OK ? STATUS_NOT_FOUND : b->result;
    if (down != 0 || p->count == 0) cause = graver(cause, STATUS_UNREACHABLE);
    block_end(c, b, cause);
}

void client_get_retry(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    for (uint32_t b = r->first_block; b != CLIENT_NONE; b = c->blocks[b].next)
        if (c->blocks[b].state == BLOCK_WAIT_TIME)
            block_state_set(c, &c->blocks[b], BLOCK_WAIT_NODE);
}

/* One ask of this block ended without its bytes. */
static void block_failed(kv_client *c, client_block *b, uint32_t node, status why)
{
    if (b->state == BLOCK_DONE) return;
    CHECK(b->state == BLOCK_ASKED && b->asks_open > 0);
    CHECK(node < CLUSTER_NODES_MAX);
    b->asks_open--;
    if (b->landing == node + 1) landing_end(c, b);
    b->tried |= bit(node);
    if (is_transient(why)) b->transient |= bit(node);
    b->result = b->result == STATUS_OK ? why : graver(b->result, why);
    if (b->asks_open > 0) return;
    c->requests[b->request].failed_over++;
    c->stats.failed_over++;
    block_state_set(c, b, BLOCK_WAIT_NODE);
}

/* ---- asking ---------------------------------------------------------------------------------- */

/* Frames under construction for one request: one a node. */
typedef struct builder {
    uint32_t request;
    client_ask *ask[CLUSTER_NODES_MAX];
} builder;

static void ask_add(client_ask *ask, const client_block *b, uint32_t index)
{
    uint32_t k = ask->list.count++;
    ask->list.id[k] = b->id;
    ask->list.slot[k] = (uint32_t)b->slot;
    ask->block[k] = index;
    ask->open |= UINT64_C(1) << k;
}

/* Take back an ask that could not be sent: its blocks wait again, this node stays untried. */
static void ask_undo(kv_client *c, client_ask *ask, bool lost)
{
    for (uint32_t k = 0; k < ask->list.count; k++) {
        client_block *b = &c->blocks[ask->block[k]];
        if (b->state == BLOCK_DONE) continue;
        b->asks_open--;
        if (!lost) b->tried &= ~bit(ask->node);
        if (lost) b->transient |= bit(ask->node);
        if (b->asks_open == 0) block_state_set(c, b, BLOCK_WAIT_NODE);
    }
    client_ask_end(c, ask);
    c->dirty = false; /* not in this pass: `blocked` brings the next */
    c->blocked = true;
}

static void ask_send(kv_client *c, client_ask *ask)
{
    client_request *r = &c->requests[ask->request];
    uint64_t now = clock_now(&c->config.clock);
    wire_get get = {
        .epoch = c->cluster.map.epoch,
        .remaining_ns = r->deadline_ns > now ? r->deadline_ns - now : 0,
        .class = r->class,
    };
    uint32_t bytes = wire_encode_get(&ask->list, &get, ask->body);
    wire_head_set(&get.head, WIRE_GET, ask->id, bytes);
    kv_message m = {
        .head = &get,
        .head_bytes = sizeof get,
        .body = ask->body,
        .body_bytes = bytes,
        .cookie = (uint64_t)(ask - c->asks),
    };
    status sent = client_send(c, ask->node, &m);
    if (sent != STATUS_OK) {
        ask_undo(c, ask, sent != STATUS_BUSY);
        return;
    }
    ask->lent = true;
    uint64_t late = c->cluster.hedge_after_ns > 0 ? c->cluster.hedge_after_ns : 1;
    kv_timer_set(&c->timers, &ask->timer, now + late);
}

/* Put the block into the node's frame; false: no ask is free. */
static bool build(kv_client *c, builder *f, uint32_t node, uint32_t index)
{
    client_block *b = &c->blocks[index];
    client_ask *ask = f->ask[node];
    if (ask == NULL) ask = client_ask_new(c, KV_KIND_GET, node, f->request);
    if (ask == NULL) {
        c->blocked = true;
        return false;
    }
    b->asks_open++;
    b->tried |= bit(node);
    if (b->state != BLOCK_ASKED) block_state_set(c, b, BLOCK_ASKED);
    ask_add(ask, b, index);
    f->ask[node] = ask;
    if (ask->list.count < WIRE_GET_MAX) return true;
    f->ask[node] = NULL;
    ask_send(c, ask);
    return true;
}

static void build_end(kv_client *c, builder *f)
{
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        if (f->ask[i] != NULL) ask_send(c, f->ask[i]);
}

/* A landing slot for the block; false: it has to wait. */
static bool slot_for(kv_client *c, client_request *r, client_block *b)
{
    bool room = c->slots_free > 0;
    if (r->class == KV_PREFETCH) {
        room = room && c->prefetch_slots < c->config.landing_slots / 2;
        if (!room) { /* PREFETCH does not wait */
            block_end(c, b, STATUS_BUSY);
            return false;
        }
    } else {
        room = room && !c->starved; /* an older request that still waits goes first */
        if (!room) c->starved = true;
    }
    if (!room) return false;
    client_slot_take(c, b, r->class);
    block_state_set(c, b, BLOCK_WAIT_NODE);
    return true;
}

void client_get_dispatch(kv_client *c, uint32_t request)
{
    client_request *r = &c->requests[request];
    builder f = {.request = request};
    for (uint32_t i = r->first_block; i != CLIENT_NONE; i = c->blocks[i].next) {
        client_block *b = &c->blocks[i];
        if (b->state == BLOCK_WAIT_SLOT && !slot_for(c, r, b) && b->state == BLOCK_WAIT_SLOT) break;
        if (b->state != BLOCK_WAIT_NODE) continue;
        const placement *p = client_place(c, b->id.context, b->id.layer);
        bool wait;
        uint32_t node = client_node_pick(c, p, KV_KIND_GET, b->tried, &wait);
        if (node != CLIENT_NONE) {
            if (!build(c, &f, node, i)) break;
        } else if (!wait) {
            block_exhausted(c, b, p);
        }
    }
    build_end(c, &f);
    request_check(c, request);
}

/* ---- late ------------------------------------------------------------------------------------ */

static void hedge(kv_client *c, client_ask *ask)
{
    client_request *r = &c->requests[ask->request];
    builder f = {.request = ask->request};
    if (r->class == KV_PREFETCH) return; /* not worth asking twice */
    for (uint64_t left = ask->open; left != 0; left &= left - 1) {
        uint32_t index = ask->block[__builtin_ctzll(left)];
        client_block *b = &c->blocks[index];
        if (b->state != BLOCK_ASKED || b->asks_open != 1) continue;
        bool wait;
        const placement *p = client_place(c, b->id.context, b->id.layer);
        uint32_t node = client_node_pick(c, p, KV_KIND_GET, b->tried, &wait);
        if (node == CLIENT_NONE || !build(c, &f, node, index)) continue;
        r->hedged++;
        c->stats.hedged++;
    }
    build_end(c, &f);
}

void client_get_late(kv_client *c, client_ask *ask)
{
    client_node_suspect(c, ask->node, false);
    if (ask->hedge_checked) {
        client_get_failed(c, ask, STATUS_DEADLINE);
        return;
    }
    ask->hedge_checked = true;
    uint64_t more = c->cluster.hedge_after_ns * (CLIENT_LATE_FACTOR - 1);
    kv_timer_set(&c->timers, &ask->timer, clock_now(&c->config.clock) + more + 1);
    hedge(c, ask);
}

void client_get_failed(kv_client *c, client_ask *ask, status why)
{
    uint32_t request = ask->request;
    for (uint64_t left = ask->open; left != 0; left &= left - 1)
        block_failed(c, &c->blocks[ask->block[__builtin_ctzll(left)]], ask->node, why);
    ask->open = 0;
    client_ask_end(c, ask);
    request_check(c, request);
}

/* ---- replies --------------------------------------------------------------------------------- */

static void ask_check(kv_client *c, client_ask *ask)
{
    if (ask->open == 0 && ask->done_seen) client_ask_end(c, ask);
}

/* The open ask that a BLOCK answers; NULL: none. */
static client_ask *block_ask(kv_client *c, uint32_t node, const kv_message *m, wire_block *w)
{
    if (wire_decode_block(m->head, m->head_bytes, m->body_bytes, w) != STATUS_OK) return NULL;
    client_ask *ask = client_ask_find(c, w->head.request, node);
    bool fits = ask != NULL && ask->kind == KV_KIND_GET && (ask->open >> w->ordinal & 1) != 0 &&
                ask->list.slot[w->ordinal] == w->slot && m->body_bytes == c->block_bytes;
    return fits ? ask : NULL;
}

void *client_get_land(kv_client *c, uint32_t node, const kv_message *m)
{
    wire_block w;
    client_ask *ask = block_ask(c, node, m, &w);
    if (ask == NULL) return NULL;
    client_block *b = &c->blocks[ask->block[w.ordinal]];
    if (b->state == BLOCK_DONE || (b->landing != 0 && b->landing != node + 1)) return NULL;
    CHECK((uint32_t)b->slot == w.slot && c->slot_use[w.slot] == SLOT_POSTED);
    b->landing = (uint8_t)(node + 1);
    return kv_slot_bytes(c, b->slot);
}

/* The block's bytes came from this node: into its slot already, or to be copied there; NULL when
 * the slot was taken back from under them. */
static void block_came(kv_client *c, client_block *b, uint32_t node, const void *bytes)
{
    uint8_t *slot = kv_slot_bytes(c, b->slot);
    bool unchecked = c->requests[b->request].unchecked || PLANT(DIGEST_IGNORED);
    bool right =
        bytes != NULL && (unchecked || block_digest(&b->id, bytes, c->block_bytes) == b->digest);
    if (!right) {
        c->stats.corrupt++;
        block_failed(c, b, node, STATUS_CORRUPT);
        return;
    }
    CHECK(c->slot_use[b->slot] == SLOT_POSTED);
    if (bytes != slot) { /* the other's reply may be on its way into the slot */
        landing_end(c, b);
        memcpy(slot, bytes, c->block_bytes);
    }
    block_end(c, b, STATUS_OK);
}

void client_on_block(kv_client *c, uint32_t node, const kv_message *m)
{
    wire_block w = {.head.kind = 0};
    client_ask *ask = block_ask(c, node, m, &w);
    c->stats.blocks_received += w.head.kind == WIRE_BLOCK;
    if (PLANT(LATE_WRITE) && ask == NULL && m->body != NULL)
        memcpy(kv_slot_bytes(c, (int32_t)w.slot), m->body, m->body_bytes);
    if (ask == NULL) {
        c->stats.late_replies++;
        return;
    }
    client_block *b = &c->blocks[ask->block[w.ordinal]];
    uint32_t request = ask->request;
    ask->open &= ~(UINT64_C(1) << w.ordinal);
    if (b->state == BLOCK_DONE)
        c->stats.late_replies++; /* the hedge was faster */
    else
        block_came(c, b, node, m->body);
    ask_check(c, ask);
    request_check(c, request);
}

void client_on_done(kv_client *c, uint32_t node, const kv_message *m)
{
    wire_done w;
    client_ask *ask = NULL;
    if (wire_decode_done(m->head, m->head_bytes, &w) == STATUS_OK)
        ask = client_ask_find(c, w.head.request, node);
    if (ask == NULL || ask->kind != KV_KIND_GET || w.count != ask->list.count) {
        c->stats.late_replies++;
        return;
    }
    uint32_t request = ask->request;
    ask->done_seen = true;
    for (uint64_t left = ask->open; left != 0; left &= left - 1) {
        uint32_t k = (uint32_t)__builtin_ctzll(left);
        if (w.block_status[k] == STATUS_OK) continue; /* its bytes are still on their way */
        ask->open &= ~(UINT64_C(1) << k);
        block_failed(c, &c->blocks[ask->block[k]], node, (status)w.block_status[k]);
    }
    ask_check(c, ask);
    request_check(c, request);
}
