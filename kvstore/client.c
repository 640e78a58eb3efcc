/* kvstore/client.c - requests from submit to completion, and the memory they land in.
 *
 * Everything is taken at create: blocks, requests and staging buffers as many as the credits of the
 * classes allow, asks for twice that. A submit that finds no credit says BUSY. A completion frees
 * its credits when it is polled, so what was completed and not polled is bounded too.
 *
 * Landing slots: FREE -> POSTED (a reply may fill it) -> FILLED (belongs to a completion and then
 * to the caller) -> FREE. Bytes are copied into a slot only after the reply matched, so a request
 * that ends early gives its slots back at once: nothing can arrive there late. A PREFETCH takes its
 * slots when it is submitted, at most half of the zone altogether, and is told BUSY for blocks that
 * get none. DEMAND waits for slots in order of submission: a batch begins when the caller releases.
 */
#include "kvstore/client.h"

#include <string.h>

enum {
    RETRY_NS_MIN = 500 * 1000,   /* half a millisecond: a round trip and a little */
    BLOCKED_NS_MAX = 100 * 1000, /* nobody says when a full table has room again */
};

static uint32_t credit(const kv_client_config *config, kv_class class)
{
    uint32_t max = config->config->inflight_max[class];
    return max > 0 ? max : 1;
}

/* A request larger than the credit is let in when it is alone, so blocks for one are always there.
 */
static uint32_t blocks_max(const kv_client_config *config, kv_class class)
{
    uint32_t max = credit(config, class);
    return max > KV_BATCH_MAX ? max : KV_BATCH_MAX;
}

static status config_check(const kv_client_config *config)
{
    CHECK(config->memory != NULL && config->transport != NULL && config->config != NULL);
    CHECK(config->landing != NULL && (uintptr_t)config->landing % 64 == 0);
    if (config->landing_slots < 2 || config->landing_slots > INT32_MAX)
        return FAIL(INVALID, "the landing zone holds %u blocks: it needs 2 at least",
                    config->landing_slots);
    const cluster_map *map = &config->config->map;
    if (map->node_count > CLUSTER_NODES_MAX || map->replicas < 1 ||
        map->replicas > CLUSTER_REPLICAS_MAX)
        return FAIL(INVALID, "the map names %u nodes and %u replicas", map->node_count,
                    map->replicas);
    uint32_t bytes = block_layout_bytes(&config->layout);
    if (bytes == 0 || bytes % 64 != 0 || bytes > WIRE_BLOCK_BYTES_MAX)
        return FAIL(INVALID, "blocks of %u bytes cannot be stored", bytes);
    return STATUS_OK;
}

static void tables_create(kv_client *c)
{
    const kv_client_config *config = &c->config;
    arena *a = config->memory;
    uint32_t gets = blocks_max(config, KV_DEMAND) + blocks_max(config, KV_PREFETCH);
    c->stages_max = credit(config, KV_WRITE_BACK) + credit(config, KV_REPAIR);
    c->requests_max = gets + c->stages_max + CLIENT_DROPS_MAX;
    CHECK(c->requests_max < UINT16_MAX * 16u);

    c->blocks = ARENA_NEW(a, client_block, gets);
    for (uint32_t i = 0; i < gets; i++)
        c->blocks[i].next = i + 1 < gets ? i + 1 : CLIENT_NONE;
    c->requests = ARENA_NEW(a, client_request, c->requests_max);
    for (uint32_t i = 0; i < c->requests_max; i++)
        c->requests[i].next = i + 1 < c->requests_max ? i + 1 : CLIENT_NONE;
    for (uint32_t k = 0; k < KV_CLASSES; k++)
        c->list_head[k] = c->list_tail[k] = CLIENT_NONE;
    c->drop_head = c->drop_tail = c->done_head = c->done_tail = CLIENT_NONE;

    c->stages = ARENA_NEW(a, client_stage, c->stages_max);
    for (uint32_t i = 0; i < c->stages_max; i++)
        c->stages[i].next = i + 1 < c->stages_max ? i + 1 : CLIENT_NONE;
    c->stage_bytes = ARENA_NEW(a, uint8_t, (uint64_t)c->stages_max * c->block_bytes);

    uint32_t wanted = 2 * (credit(config, KV_DEMAND) + credit(config, KV_PREFETCH) + c->stages_max);
    uint32_t asks = 256;
    while (asks < wanted && asks < 4096)
        asks *= 2;
    c->ask_mask = asks - 1;
    c->asks = ARENA_NEW(a, client_ask, asks);

    c->slot_use = ARENA_NEW(a, uint8_t, config->landing_slots);
    c->slot_class = ARENA_NEW(a, uint8_t, config->landing_slots);
    c->slot_free = ARENA_NEW(a, uint32_t, config->landing_slots);
    c->slots_free = config->landing_slots;
    for (uint32_t i = 0; i < c->slots_free; i++)
        c->slot_free[i] = c->slots_free - 1 - i;

    c->done_status = ARENA_NEW(a, status, KV_BATCH_MAX);
    c->done_slot = ARENA_NEW(a, int32_t, KV_BATCH_MAX);
    c->places = ARENA_NEW(a, placement, CLIENT_PLACES);
    c->map_scratch = ARENA_NEW(a, wire_node, WIRE_NODES_MAX);
    kv_maps_init(&c->maps, a);
    kv_timers_init(&c->timers, a, 2 * c->requests_max + asks + 2 * CLUSTER_NODES_MAX);
}

status kv_client_create(const kv_client_config *config, kv_client **out_client)
{
    TRY(config_check(config));
    kv_client *c = ARENA_NEW(config->memory, kv_client, 1);
    c->config = *config;
    c->cluster = *config->config;
    c->config.config = &c->cluster;
    c->transport = config->transport;
    c->layout = layout_hash(&config->layout);
    c->block_bytes = block_layout_bytes(&config->layout);
    rng_seed(&c->random, config->seed);
    do
        c->owner = rng_next(&c->random);
    while (c->owner == 0);
    do
        c->ask_next = rng_next(&c->random);
    while (c->ask_next == 0);
    tables_create(c);
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        c->node[i].timer.kind = TIMER_NODE;
        c->node[i].lease.kind = TIMER_LEASE;
    }
    kv_transport_bind(c->transport, &client_events, c);
    client_nodes_update(c);
    *out_client = c;
    return STATUS_OK;
}

void kv_client_destroy(kv_client *client)
{
    if (client == NULL) return;
    /* Memory is the arena's. Peers see the connections go when the transport is closed. */
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        client_node *n = &client->node[i];
        if (n->state != NODE_READY) continue;
        wire_bye bye;
        wire_head_set(&bye.head, WIRE_BYE, 0, 0);
        kv_message m = {.head = &bye, .head_bytes = sizeof bye};
        (void)client_send(client, i, &m);
    }
}

/* ---- requests -------------------------------------------------------------------------------- */

static void list_heads(kv_client *c, const client_request *r, uint32_t **head, uint32_t **tail)
{
    *head = r->kind == KV_KIND_DROP ? &c->drop_head : &c->list_head[r->class];
    *tail = r->kind == KV_KIND_DROP ? &c->drop_tail : &c->list_tail[r->class];
}

static void list_push(kv_client *c, uint32_t i)
{
    uint32_t *head, *tail;
    client_request *r = &c->requests[i];
    list_heads(c, r, &head, &tail);
    r->next = CLIENT_NONE;
    r->prev = *tail;
    if (*tail == CLIENT_NONE)
        *head = i;
    else
        c->requests[*tail].next = i;
    *tail = i;
}

static void list_remove(kv_client *c, uint32_t i)
{
    uint32_t *head, *tail;
    client_request *r = &c->requests[i];
    list_heads(c, r, &head, &tail);
    if (r->prev == CLIENT_NONE)
        *head = r->next;
    else
        c->requests[r->prev].next = r->next;
    if (r->next == CLIENT_NONE)
        *tail = r->prev;
    else
        c->requests[r->next].prev = r->prev;
}

static kv_ticket ticket_of(const kv_client *c, uint32_t i)
{
    return (uint64_t)c->requests[i].generation << 32 | (i + 1);
}

static uint32_t request_new(kv_client *c, kv_kind kind, kv_class class, uint64_t deadline_ns)
{
    uint32_t i = c->request_free;
    CHECK(i != CLIENT_NONE); /* credits are fewer than requests */
    client_request *r = &c->requests[i];
    c->request_free = r->next;
    uint32_t generation = r->generation + 1;
    *r = (client_request){
        .generation = generation,
        .active = true,
        .kind = kind,
        .class = class,
        .submit_ns = clock_now(&c->config.clock),
        .deadline_ns = deadline_ns,
        .deadline.kind = TIMER_DEADLINE,
        .retry.kind = TIMER_RETRY,
        .first_ask = CLIENT_NONE,
        .first_block = CLIENT_NONE,
        .stage = CLIENT_NONE,
    };
    list_push(c, i);
    kv_timer_set(&c->timers, &r->deadline, deadline_ns);
    c->dirty = true;
    return i;
}

/* The request ends: whatever it still has in flight is nobody's from here on. */
void client_complete(kv_client *c, uint32_t i, status result)
{
    client_request *r = &c->requests[i];
    CHECK(r->active && !r->done);
    r->done = true;
    r->result = result;
    kv_timer_stop(&c->timers, &r->deadline);
    kv_timer_stop(&c->timers, &r->retry);
    while (r->first_ask != CLIENT_NONE)
        client_ask_end(c, &c->asks[r->first_ask]);
    list_remove(c, i);
    r->next = CLIENT_NONE;
    if (c->done_tail == CLIENT_NONE)
        c->done_head = i;
    else
        c->requests[c->done_tail].next = i;
    c->done_tail = i;
    kv_class_stats *stats = &c->stats.class[r->class];
    if (r->kind == KV_KIND_DROP) return;
    if (result == STATUS_OK)
        stats->done_ok++;
    else
        stats->done_failed++;
    uint64_t now = clock_now(&c->config.clock);
    if (now > r->deadline_ns && now - r->deadline_ns > c->stats.late_ns_max)
        c->stats.late_ns_max = now - r->deadline_ns;
    hist_add(r->kind == KV_KIND_GET ? &c->stats.get_ns : &c->stats.put_ns, now - r->submit_ns);
}

static bool ids_fit(const kv_client *c, const block_id *id, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (id[i].layout != c->layout || id[i].tenant != c->cluster.tenant ||
            id[i].layer >= c->config.layout.layers || id[i].kv_head >= c->config.layout.kv_heads)
            return false;
    return true;
}

static bool credit_for(kv_client *c, kv_class class, uint32_t count)
{
    uint32_t max = credit(&c->config, class);
    if (c->inflight[class] == 0 || c->inflight[class] + count <= max) return true;
    c->stats.class[class].refused_busy++;
    return false;
}

status kv_get_submit(kv_client *client, const kv_get *get, kv_ticket *out_ticket)
{
    kv_client *c = client;
    CHECK(get->id != NULL && get->digest != NULL);
    if (get->count < 1 || get->count > KV_BATCH_MAX || get->count > c->config.landing_slots)
        return FAIL(INVALID, "a GET of %u blocks: 1 .. %d and no more than the %u landing slots",
                    get->count, KV_BATCH_MAX, c->config.landing_slots);
    if (get->class != KV_DEMAND && get->class != KV_PREFETCH)
        return FAIL(INVALID, "a GET is DEMAND or PREFETCH");
    if (!ids_fit(c, get->id, get->count))
        return FAIL(INVALID, "a GET of blocks of another layout or tenant than the client's");
    if (c->nodes_alive == 0) return STATUS_DEGRADED;
    if (!credit_for(c, get->class, get->count)) return STATUS_BUSY;

    uint32_t i = request_new(c, KV_KIND_GET, get->class, get->deadline_ns);
    client_request *r = &c->requests[i];
    r->count = get->count;
    r->unchecked = get->unchecked || !c->config.verify;
    uint32_t *tail = &r->first_block;
    for (uint32_t k = 0; k < get->count; k++) {
        uint32_t b = c->block_free;
        CHECK(b != CLIENT_NONE);
        c->block_free = c->blocks[b].next;
        c->blocks[b] = (client_block){
            .next = CLIENT_NONE,
            .request = i,
            .id = get->id[k],
            .digest = get->digest[k],
            .slot = -1,
            .result = STATUS_OK,
            .state = BLOCK_WAIT_SLOT,
        };
        *tail = b;
        tail = &c->blocks[b].next;
    }
    r->waiting = get->count;
    c->inflight[get->class] += get->count;
    c->stats.class[get->class].submitted++;
    *out_ticket = ticket_of(c, i);
    return STATUS_OK;
}

static uint32_t stage_take(kv_client *c)
{
    uint32_t i = c->stage_free;
    if (i == CLIENT_NONE) return i;
    CHECK(!c->stages[i].used && (c->stages[i].lent == 0 || PLANT(STAGE_EARLY)));
    c->stage_free = c->stages[i].next;
    c->stages[i].used = true;
    return i;
}

/* A request or a send let go of it: the last of them makes it free, the next put takes it, whose
 * bytes are in the cache still. */
void client_stage_free(kv_client *c, uint32_t i, bool by_request)
{
    client_stage *s = &c->stages[i];
    bool still_lent = s->lent != 0 && !PLANT(STAGE_EARLY);
    if (by_request) s->used = false;
    if (s->used || still_lent || (!by_request && PLANT(STAGE_EARLY))) return;
    s->next = c->stage_free;
    c->stage_free = i;
}

status kv_put_submit(kv_client *client, const kv_put *put, kv_ticket *out_ticket)
{
    kv_client *c = client;
    CHECK(put->bytes != NULL);
    if (put->class != KV_WRITE_BACK && put->class != KV_REPAIR)
        return FAIL(INVALID, "a PUT is WRITE_BACK or REPAIR");
    if (!ids_fit(c, &put->id, 1))
        return FAIL(INVALID, "a PUT of a block of another layout or tenant than the client's");
    if (!credit_for(c, put->class, 1)) return STATUS_BUSY;
    uint32_t stage = stage_take(c);
    if (stage == CLIENT_NONE) {
        c->stats.class[put->class].refused_busy++;
        return STATUS_BUSY;
    }
    uint32_t i = request_new(c, KV_KIND_PUT, put->class, put->deadline_ns);
    client_request *r = &c->requests[i];
    r->id = put->id;
    r->digest = put->digest;
    r->pending = 1;
    r->stage = stage;
    /* A copy: a node that stops reading may hold a send past the deadline. */
    memcpy(c->stage_bytes + (uint64_t)stage * c->block_bytes, put->bytes, c->block_bytes);
    c->inflight[put->class]++;
    c->stats.class[put->class].submitted++;
    *out_ticket = ticket_of(c, i);
    return STATUS_OK;
}

status kv_drop_submit(kv_client *client, context_id context, uint64_t deadline_ns,
                      kv_ticket *out_ticket)
{
    kv_client *c = client;
    if (c->drops == CLIENT_DROPS_MAX) return STATUS_BUSY;
    /* Its puts end here: one that went on to a node restarted after the DROP would bring the
     * context back, since that node no longer knows that it was dropped. */
    for (uint32_t k = 0; k < c->requests_max; k++) {
        client_request *p = &c->requests[k];
        if (p->active && !p->done && p->kind == KV_KIND_PUT &&
            context_id_equal(p->id.context, context))
            client_complete(c, k, STATUS_STALE);
    }
    uint32_t i = request_new(c, KV_KIND_DROP, KV_DEMAND, deadline_ns);
    client_request *r = &c->requests[i];
    r->id.context = context;
    for (uint32_t n = 0; n < CLUSTER_NODES_MAX; n++)
        if (client_node_in_map(c, n)) r->pending |= UINT64_C(1) << n;
    c->drops++;
    *out_ticket = ticket_of(c, i);
    return STATUS_OK;
}

static void request_end(kv_client *c, uint32_t i, status why)
{
    if (c->requests[i].kind == KV_KIND_GET)
        client_get_finish(c, i, why);
    else
        client_complete(c, i, why);
}

void kv_cancel(kv_client *client, kv_ticket ticket)
{
    uint32_t i = (uint32_t)ticket - 1;
    if (i >= client->requests_max) return;
    client_request *r = &client->requests[i];
    if (!r->active || r->done || ticket_of(client, i) != ticket) return;
    request_end(client, i, STATUS_CANCELED);
}

void client_retry_later(kv_client *c, uint32_t i)
{
    client_request *r = &c->requests[i];
    if (r->retry.place != 0) return;
    uint64_t wait = r->hint_ns;
    if (wait < RETRY_NS_MIN) wait = RETRY_NS_MIN;
    wait += rng_below(&c->random, wait / 2 + 1);
    r->hint_ns = 0;
    kv_timer_set(&c->timers, &r->retry, clock_now(&c->config.clock) + wait);
}

/* ---- asks ------------------------------------------------------------------------------------ */

client_ask *client_ask_new(kv_client *c, kv_kind kind, uint32_t node, uint32_t request)
{
    if (c->asks_used > c->ask_mask) return NULL;
    /* Ids are never used again; one whose place is taken is skipped. */
    while (c->ask_next == 0 || c->asks[c->ask_next & c->ask_mask].id != 0)
        c->ask_next++;
    client_ask *ask = &c->asks[c->ask_next & c->ask_mask];
    CHECK(ask->timer.place == 0 && !ask->lent);
    ask->id = c->ask_next++;
    ask->kind = kind;
    ask->node = node;
    ask->epoch = c->cluster.map.epoch;
    ask->request = request;
    ask->timer.kind = TIMER_ASK;
    ask->open = 0;
    ask->hedge_checked = ask->done_seen = false;
    ask->list.count = 0;
    client_request *r = &c->requests[request];
    uint32_t place = (uint32_t)(ask - c->asks);
    ask->prev = CLIENT_NONE;
    ask->next = r->first_ask;
    if (r->first_ask != CLIENT_NONE) c->asks[r->first_ask].prev = place;
    r->first_ask = place;
    c->asks_used++;
    return ask;
}

void client_ask_end(kv_client *c, client_ask *ask)
{
    CHECK(ask->id != 0);
    kv_timer_stop(&c->timers, &ask->timer);
    if (ask->request != CLIENT_NONE) {
        if (ask->prev == CLIENT_NONE)
            c->requests[ask->request].first_ask = ask->next;
        else
            c->asks[ask->prev].next = ask->next;
        if (ask->next != CLIENT_NONE) c->asks[ask->next].prev = ask->prev;
        ask->request = CLIENT_NONE;
    }
    if (ask->lent) return;
    ask->id = 0;
    c->asks_used--;
    if (c->blocked) c->dirty = true;
}

client_ask *client_ask_find(kv_client *c, uint64_t id, uint32_t node)
{
    client_ask *ask = &c->asks[id & c->ask_mask];
    if (id == 0 || ask->id != id || ask->node != node || ask->request == CLIENT_NONE) return NULL;
    return ask;
}

static bool kind_asks(const kv_message *m)
{
    uint8_t kind = ((const wire_head *)m->head)->kind;
    return kind == WIRE_GET || kind == WIRE_PUT || kind == WIRE_DROP;
}

status client_send(kv_client *c, uint32_t node, const kv_message *m)
{
    client_node *n = &c->node[node];
    CHECK(n->peer != 0);
    status sent = c->transport->ops->send(c->transport, n->peer, m);
    if (n->owes_since_ns == 0 && kind_asks(m)) n->owes_since_ns = clock_now(&c->config.clock);
    if (sent != STATUS_BUSY) {
        n->full_since_ns = 0;
        return sent;
    }
    c->full |= UINT64_C(1) << node;
    uint64_t now = clock_now(&c->config.clock);
    if (n->full_since_ns == 0)
        n->full_since_ns = now;
    else if (now - n->full_since_ns >= c->cluster.hedge_after_ns)
        client_node_suspect(c, node, true); /* no ask gets out to be late: others go first */
    return sent;
}

/* ---- landing slots --------------------------------------------------------------------------- */

void client_slot_take(kv_client *c, client_block *b, kv_class class)
{
    CHECK(c->slots_free > 0 && b->slot < 0);
    uint32_t slot = c->slot_free[--c->slots_free];
    CHECK(c->slot_use[slot] == SLOT_FREE);
    c->slot_use[slot] = SLOT_POSTED;
    c->slot_class[slot] = (uint8_t) class;
    if (class == KV_PREFETCH) c->prefetch_slots++;
    b->slot = (int32_t)slot;
}

static void slot_free(kv_client *c, uint32_t slot)
{
    if (c->slot_class[slot] == KV_PREFETCH) c->prefetch_slots--;
    c->slot_use[slot] = SLOT_FREE;
    c->slot_free[c->slots_free++] = slot;
    c->dirty = true;
}

void client_slot_drop(kv_client *c, client_block *b)
{
    if (b->slot < 0) return;
    CHECK(c->slot_use[b->slot] == SLOT_POSTED);
    slot_free(c, (uint32_t)b->slot);
    b->slot = -1;
}

void *kv_slot_bytes(kv_client *client, int32_t slot)
{
    CHECK(slot >= 0 && (uint32_t)slot < client->config.landing_slots);
    return client->config.landing + (uint64_t)slot * client->block_bytes;
}

void kv_slot_release(kv_client *client, int32_t slot)
{
    CHECK(slot >= 0 && (uint32_t)slot < client->config.landing_slots);
    CHECK(client->slot_use[slot] == SLOT_FILLED);
    client->slots_filled--;
    slot_free(client, (uint32_t)slot);
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void ask_timer(kv_client *c, client_ask *ask)
{
    if (ask->kind == KV_KIND_GET)
        client_get_late(c, ask);
    else
        client_put_late(c, ask);
}

#define OWNER_OF(timer_ptr, type, field) ((type *)((char *)(timer_ptr)-offsetof(type, field)))

static void timer_fire(kv_client *c, kv_timer *t)
{
    client_request *r;
    switch ((client_timer_kind)t->kind) {
    case TIMER_NODE:
        client_node_timer(c, (uint32_t)(OWNER_OF(t, client_node, timer) - c->node));
        break;
    case TIMER_LEASE:
        client_node_lease(c, (uint32_t)(OWNER_OF(t, client_node, lease) - c->node));
        break;
    case TIMER_DEADLINE:
        r = OWNER_OF(t, client_request, deadline);
        if (PLANT(COMPLETION_LOST) && r->kind == KV_KIND_PUT && r->acked != 0) break;
        request_end(c, (uint32_t)(r - c->requests), STATUS_DEADLINE);
        break;
    case TIMER_RETRY:
        r = OWNER_OF(t, client_request, retry);
        if (r->kind == KV_KIND_GET)
            client_get_retry(c, (uint32_t)(r - c->requests));
        else
            client_put_retry(c, (uint32_t)(r - c->requests));
        break;
    case TIMER_ASK:
        ask_timer(c, OWNER_OF(t, client_ask, timer));
        break;
    }
}

static void dispatch(kv_client *c)
{
    static const kv_class order[] = {KV_DEMAND, KV_WRITE_BACK, KV_PREFETCH, KV_REPAIR};
    c->dirty = c->blocked = c->starved = false;
    c->full = 0;
    uint64_t full = 0;
    for (uint32_t k = 0; k < KV_CLASSES; k++) {
        for (uint32_t i = c->list_head[order[k]]; i != CLIENT_NONE;) {
            if (c->full != full && (client_nodes_ready(c) & ~c->full) == 0) return; /* `blocked` */
            full = c->full;
            uint32_t next = c->requests[i].next; /* a request may complete meanwhile */
            if (c->requests[i].kind == KV_KIND_PUT)
                client_put_dispatch(c, i);
            else if (c->requests[i].waiting > 0)
                client_get_dispatch(c, i);
            i = next;
        }
    }
    for (uint32_t i = c->drop_head; i != CLIENT_NONE;) {
        uint32_t next = c->requests[i].next;
        client_drop_dispatch(c, i);
        i = next;
    }
}

void kv_client_poll(kv_client *client)
{
    kv_client *c = client;
    (void)c->transport->ops->poll(c->transport);
    uint64_t now = clock_now(&c->config.clock);
    for (kv_timer *t; (t = kv_timer_due(&c->timers, now)) != NULL;)
        timer_fire(c, t);
    if (c->dirty || c->blocked) dispatch(c);
    kv_transport_flush(c->transport);
}

bool kv_client_next(kv_client *client, kv_done *out_done)
{
    kv_client *c = client;
    uint32_t i = c->done_head;
    if (i == CLIENT_NONE) return false;
    client_request *r = &c->requests[i];
    c->done_head = r->next;
    if (c->done_head == CLIENT_NONE) c->done_tail = CLIENT_NONE;
    if (PLANT(COMPLETION_TWICE) && r->hedged > 1) c->done_head = i;
    *out_done = (kv_done){
        .ticket = ticket_of(c, i),
        .kind = r->kind,
        .result = r->result,
        .hedged = r->hedged,
        .failed_over = r->failed_over,
    };
    if (r->kind == KV_KIND_GET) {
        out_done->count = r->count;
        out_done->block_status = c->done_status;
        out_done->slot = c->done_slot;
        uint32_t k = 0;
        for (uint32_t b = r->first_block, next; b != CLIENT_NONE; b = next) {
            c->done_status[k] = c->blocks[b].result;
            c->done_slot[k++] = c->blocks[b].slot;
            next = c->blocks[b].next;
            c->blocks[b].next = c->block_free;
            c->block_free = b;
        }
        CHECK(k == r->count);
        c->inflight[r->class] -= r->count;
        if (PLANT(CREDIT_LEAK)) c->inflight[r->class] += r->result == STATUS_CANCELED;
    } else if (r->kind == KV_KIND_PUT) {
        client_stage_free(c, r->stage, true);
        c->inflight[r->class]--;
    } else {
        c->drops--;
    }
    r->active = false;
    r->next = c->request_free;
    c->request_free = i;
    return true;
}

void kv_client_wait(kv_client *client, int wake_fd, uint64_t until_ns)
{
    kv_client *c = client;
    if (c->done_head != CLIENT_NONE || c->dirty) return;
    uint64_t now = clock_now(&c->config.clock);
    uint64_t next = kv_timer_next(&c->timers);
    if (next > until_ns) next = until_ns;
    if (c->blocked && next > now + BLOCKED_NS_MAX) next = now + BLOCKED_NS_MAX;
    if (next > now) c->transport->ops->wait(c->transport, wake_fd, next - now);
}

void kv_client_stats_read(const kv_client *client, kv_client_stats *out_stats)
{
    *out_stats = client->stats;
    out_stats->slots_free = client->slots_free;
    out_stats->slots_filled = client->slots_filled;
    out_stats->slots_held = 0; /* eager replies are copied by us: no slot outlives its request */
    out_stats->slots_posted =
        client->config.landing_slots - client->slots_free - client->slots_filled;
    uint64_t now = clock_now(&client->config.clock);
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        const client_node *n = &client->node[i];
        if (n->state == NODE_READY) out_stats->nodes_connected++;
        if (n->state != NODE_OUT && n->refused) out_stats->nodes_refused++;
        if (n->state == NODE_DOWN || (n->state != NODE_OUT && now < n->suspect_until_ns))
            out_stats->nodes_suspect++;
    }
}
