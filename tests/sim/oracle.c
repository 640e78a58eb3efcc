/* tests/sim/oracle.c - what was acknowledged, what must still be there, what must never happen.
 *
 * P1  An acknowledged block has R copies when it is acknowledged, less what was lost since its put
 *     without the client being able to know; later, R less every loss since. A loss is a node that
 *     restarted empty, a flipped bit of a stored block, a lease that ran out unheard.
 * P2  Bytes handed out are the bytes put; CORRUPT only comes where bits were flipped.
 * P3  A node says PUT_DONE OK only with verified bytes in hand; results come from a short list; a
 *     DROP that is OK left nothing behind.
 * P4  An operation is completed, once, at the first poll after its deadline at the latest; a slot
 *     is written only between its post and its completion; a lent body does not change.
 * P5  With a well node that has the block, a read takes at most 100 ms; with R well nodes a write
 *     takes at most 300 ms.
 * P7  A frame of an older epoch is never obeyed, and a node that is out acknowledges no put.
 * P8  Slots, credits, asks, stages, pins and connections add up, always and at the end. */
#include "tests/sim/sim.h"

#include <string.h>

enum { WELL_MS = 300, READ_WITHIN_MS = 100, PUT_WITHIN_MS = 300, SCAN_MS = 100 };

static uint64_t bit(uint32_t n)
{
    return UINT64_C(1) << n;
}

static uint32_t block_of(const sim *s, const block_id *id)
{
    uint64_t x = id->context.hi - s->seed * 1000;
    uint64_t b = x * SIM_PER_CONTEXT + id->block * 8 + id->kv_head * 4u + id->layer;
    if (x >= SIM_CONTEXTS || !s->block[b].known || !block_id_equal(&s->block[b].id, id))
        return SIM_BLOCKS;
    return (uint32_t)b;
}

static const client_node *view_of(const sim *s, uint32_t c, uint32_t n)
{
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        const client_node *k = &s->client[c].client->node[i];
        if (k->name[0] == 'n' && k->name[1] == (char)('0' + n)) return k;
    }
    return NULL;
}

bool oracle_intact(sim *s, uint32_t n, uint32_t b)
{
    kv_server *server = s->node[n].server;
    if (server == NULL || !s->block[b].known) return false;
    uint32_t slot = server->tier.ops->find(server->tier.self, &s->block[b].id);
    if (slot == KV_NO_SLOT || !kv_context_alive(server->contexts, slot)) return false;
    kv_slot_info info;
    const uint8_t *bytes = server->tier.ops->bytes(server->tier.self, slot, &info);
    return info.digest == s->block[b].digest &&
           block_digest(&s->block[b].id, bytes, NET_BODY_MAX) == info.digest;
}

static uint64_t domain_of(const sim *s, uint32_t n)
{
    return bit(n < s->profile.domains ? n : 0);
}

static uint64_t intact_domains(sim *s, uint32_t b)
{
    uint64_t domains = 0;
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (oracle_intact(s, n, b)) domains |= domain_of(s, n);
    return domains;
}

static bool lease_lost(const sim *s, uint32_t c, uint32_t n, uint64_t since)
{
    const sim_client *me = &s->client[c];
    uint64_t limit = s->config.lease_ns + UINT64_C(1500) * SIM_MS;
    return me->lease_lost_ns[n] >= since ||
           (me->heard_ns[n] != 0 && s->now_ns - me->heard_ns[n] >= limit);
}

static bool dropping(const sim *s, uint32_t b)
{
    return s->context[b / SIM_PER_CONTEXT].dropping;
}

bool oracle_well(const sim *s, uint32_t n, uint32_t c)
{
    const sim_node *node = &s->node[n];
    uint32_t port = SIM_NODES + c;
    uint64_t ill = node->bad_ns > node->born_ns ? node->bad_ns : node->born_ns;
    if (s->net->bad_ns[n][port] > ill) ill = s->net->bad_ns[n][port];
    if (s->net->bad_ns[port][n] > ill) ill = s->net->bad_ns[port][n];
    if (s->client[c].bad_ns > ill) ill = s->client[c].bad_ns;
    const client_node *view = view_of(s, c, n);
    return node->server != NULL && !node->server->fenced && s->map.node[n].alive && view != NULL &&
           view->state == NODE_READY && view->incarnation == node->server->incarnation &&
           ill + WELL_MS * SIM_MS <= s->now_ns;
}

/* Was it well when the operation began, and is it still? */
static bool stayed_well(const sim *s, uint32_t n, uint32_t c, uint64_t since)
{
    const sim_node *node = &s->node[n];
    uint32_t port = SIM_NODES + c;
    return node->server != NULL && node->bad_ns < since && node->born_ns < since &&
           s->net->bad_ns[n][port] < since && s->net->bad_ns[port][n] < since &&
           s->client[c].bad_ns < since && s->map_changed_ns + 2000 * (uint64_t)SIM_MS < s->now_ns;
}

void oracle_submitted(sim *s, uint32_t c, sim_op *op)
{
    const kv_client *k = s->client[c].client;
    if (op->kind == KV_KIND_DROP || s->weather.window < 32) return; /* overload is no fault */
    uint32_t busy = k->inflight[KV_DEMAND] + k->inflight[KV_PREFETCH];
    if (op->kind == KV_KIND_GET && (op->class != KV_DEMAND || busy > k->slots_free)) return;
    for (uint32_t n = 0; n < SIM_NODES; n++) {
        if (!oracle_well(s, n, c)) continue;
        kv_tier_usage u;
        s->node[n].server->tier.ops->usage(s->node[n].server->tier.self, &u);
        bool room = u.free >= 64 && op->kind == KV_KIND_PUT;
        for (uint32_t i = 0; i < op->count; i++)
            if (room || (op->kind == KV_KIND_GET && oracle_intact(s, n, op->block[i])))
                op->must[i] |= 1u << n;
    }
}

void oracle_lost_memory(sim *s, uint32_t n)
{
    s->losses++;
    s->node[n].lost_ns = s->now_ns;
    s->structure_dirty = true;
}

/* ---- the taps -------------------------------------------------------------------------------- */

static void watch(sim *s, const sim_watch *w)
{
    s->watch[s->watch_next++ % SIM_WATCHED] = *w;
}

static sim_watch *watched(sim *s, uint64_t request, uint32_t node, bool get)
{
    for (uint32_t k = 1; k <= SIM_WATCHED; k++) {
        sim_watch *w = &s->watch[(s->watch_next - k) % SIM_WATCHED];
        if (w->request == request && w->node == node && w->get == get) return w;
    }
    return NULL;
}

static void heard(sim *s, uint32_t n, uint32_t c)
{
    sim_client *me = &s->client[c];
    if (lease_lost(s, c, n, net_never)) {
        me->lease_lost_ns[n] = s->now_ns;
        s->structure_dirty = true;
    }
    me->heard_ns[n] = s->now_ns;
}

static void tap_landed(void *self, uint32_t port, const uint8_t *at)
{
    sim *s = self;
    if (port < SIM_NODES || port == SIM_ADMIN || s->client[port - SIM_NODES].client == NULL) return;
    sim_client *me = &s->client[port - SIM_NODES];
    size_t slot = (size_t)(at - me->landing) / NET_BODY_MAX;
    CHECK(at >= me->landing && slot < s->profile.slots);
    if (me->client->slot_use[slot] != SLOT_POSTED)
        sim_fail(s, "P4", "c%u: a reply was read into slot %zu, which waits for none",
                 port - SIM_NODES, slot);
    me->landed[slot] = true;
}

static void tap_delivered(void *self, uint32_t from, uint32_t to, const kv_message *m)
{
    sim *s = self;
    uint8_t kind = ((const uint8_t *)m->head)[0];
    const kv_server *server = to < SIM_NODES ? s->node[to].server : NULL;
    if (from == SIM_ADMIN || to == SIM_ADMIN) return;
    sim_trace(s, "  %s%u to %s%u: frame %u, request %llx", from < SIM_NODES ? "n" : "c",
              from < SIM_NODES ? from : from - SIM_NODES, to < SIM_NODES ? "n" : "c",
              to < SIM_NODES ? to : to - SIM_NODES, kind,
              (unsigned long long)((const wire_head *)m->head)->request);
    if (kind == WIRE_WELCOME && to >= SIM_NODES)
        s->client[to - SIM_NODES].welcomed_ns[from] = s->now_ns;
    if (server == NULL) return;
    uint32_t c = from - SIM_NODES;
    sim_watch w = {.node = to, .client = c, .since_ns = s->now_ns};
    if (kind == WIRE_LEASE) {
        heard(s, to, c);
    } else if (kind == WIRE_HELLO) { /* one of an older epoch is refused, and renews nothing */
        wire_hello hello;
        memcpy(&hello, m->head, sizeof hello);
        if (hello.epoch >= server->map.epoch) heard(s, to, c);
    } else if (kind == WIRE_PUT) {
        wire_put put;
        memcpy(&put, m->head, sizeof put);
        w.request = put.head.request;
        w.block = block_of(s, &put.id);
        w.fenced = put.epoch < server->map.epoch || server->fenced || server->stats.draining;
        watch(s, &w);
    } else if (kind == WIRE_GET) {
        wire_get get;
        memcpy(&get, m->head, sizeof get);
        w.request = get.head.request;
        w.get = true;
        w.fenced = get.epoch < server->map.epoch;
        watch(s, &w);
    }
}

static void put_answered(sim *s, uint32_t n, const wire_result *r)
{
    const sim_watch *w = watched(s, r->head.request, n, false);
    if (w == NULL || r->status != STATUS_OK) return;
    if (w->fenced)
        sim_fail(s, "P7", "n%u acknowledged a put of an older epoch, or while it was out", n);
    if (w->block == SIM_BLOCKS || dropping(s, w->block)) return;
    if (s->block[w->block].flipped_ns[n] >= w->since_ns) return;
    if (lease_lost(s, s->context[w->block / SIM_PER_CONTEXT].client, n, w->since_ns)) return;
    if (!oracle_intact(s, n, w->block))
        sim_fail(s, "P3", "n%u acknowledged %u.%u without having its bytes", n,
                 w->block / SIM_PER_CONTEXT, w->block % SIM_PER_CONTEXT);
}

static void tap_sent(void *self, uint32_t from, uint32_t to, const kv_message *m)
{
    sim *s = self;
    const wire_head *h = m->head;
    if (from >= SIM_NODES || to == SIM_ADMIN) return;
    if (h->kind == WIRE_PUT_DONE) put_answered(s, from, m->head);
    if (h->kind != WIRE_BLOCK) return;
    const sim_watch *w = watched(s, h->request, from, true);
    if (w != NULL && w->fenced) sim_fail(s, "P7", "n%u answered a get of an older epoch", from);
}

static void tap_body_changed(void *self, uint32_t from, uint32_t kind)
{
    sim *s = self;
    if (from == SIM_ADMIN) return;
    sim_fail(s, "P4", "the body of a frame %u of %s%u changed while it was lent", kind,
             from < SIM_NODES ? "n" : "c", from < SIM_NODES ? from : from - SIM_NODES);
}

const net_tap oracle_tap = {.sent = tap_sent,
                            .delivered = tap_delivered,
                            .landed = tap_landed,
                            .body_changed = tap_body_changed};

/* ---- completions ----------------------------------------------------------------------------- */

static bool excused(const sim *s, uint32_t n, uint32_t c, const sim_op *op)
{
    uint32_t b = op->block[0];
    const sim_node *node = &s->node[n];
    if (s->block[b].flipped_ns[n] >= op->submit_ns) return true;
    if (lease_lost(s, c, n, op->submit_ns)) return true;
    if (node->lost_ns < op->submit_ns) return false;
    if (s->client[c].welcomed_ns[n] == s->now_ns) return true; /* learned after the completion */
    const client_node *view = view_of(s, c, n);
    return node->server == NULL || view == NULL || view->incarnation != node->server->incarnation;
}

static void put_done(sim *s, uint32_t c, const sim_op *op, status result)
{
    sim_block *k = &s->block[op->block[0]];
    uint32_t well = 0;
    uint64_t took = s->now_ns - op->submit_ns, domains = 0;
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if ((op->must[0] >> n & 1) != 0 && stayed_well(s, n, c, op->submit_ns))
            domains |= domain_of(s, n);
    well = (uint32_t)__builtin_popcountll(domains);
    bool must = well >= s->map.replicas && !op->canceled && !dropping(s, op->block[0]);
    s->totals.must_puts += must;
    if (must && took > PUT_WITHIN_MS * (uint64_t)SIM_MS)
        sim_fail(s, "P5", "a put took %llu ms with %u nodes well",
                 (unsigned long long)(took / SIM_MS), well);
    bool early = op->deadline_ns - op->submit_ns < PUT_WITHIN_MS * (uint64_t)SIM_MS;
    if (must && result != STATUS_OK && !early)
        sim_fail(s, "P5", "a put ended %s with %u nodes well", status_name(result), well);
    if (result != STATUS_OK) {
        s->totals.puts_failed++;
        return;
    }
    s->totals.puts_acked++;
    k->acked = true;
    k->put_ns = op->submit_ns;
    k->losses_at = op->losses_at;
    k->flips_at = op->flips_at;
    if (dropping(s, op->block[0])) return;
    domains = intact_domains(s, op->block[0]);
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if (excused(s, n, c, op)) domains |= domain_of(s, n);
    if ((uint32_t)__builtin_popcountll(domains) < s->map.replicas)
        sim_fail(s, "P1", "%u.%u was acknowledged with fewer than %u copies",
                 op->block[0] / SIM_PER_CONTEXT, op->block[0] % SIM_PER_CONTEXT, s->map.replicas);
}

static bool result_allowed(const sim *s, const sim_op *op, uint32_t i, status r)
{
    bool flips = s->profile.on[FAULT_FLIP_WIRE] || s->profile.on[FAULT_FLIP_MEMORY];
    switch (r) {
    case STATUS_OK:
    case STATUS_DEADLINE:
        return true;
    case STATUS_CANCELED:
        return op->canceled;
    case STATUS_CORRUPT:
        return op->kind == KV_KIND_GET && (flips || op->foreign[i]);
    case STATUS_NOT_FOUND:
    case STATUS_BUSY:
    case STATUS_PEER_LOST:
    case STATUS_FENCED:
        return op->kind == KV_KIND_GET;
    case STATUS_UNREACHABLE:
        return op->kind != KV_KIND_PUT;
    case STATUS_DEGRADED:
    case STATUS_NO_SPACE:
        return op->kind == KV_KIND_PUT;
    case STATUS_STALE:
        return op->kind == KV_KIND_PUT && dropping(s, op->block[0]);
    default:
        return false;
    }
}

/* Somebody who was well all the time has the block; the request had time enough. */
static bool must_come(sim *s, uint32_t c, const sim_op *op, uint32_t i)
{
    uint32_t b = op->block[i];
    if (op->foreign[i] || op->canceled || dropping(s, b)) return false;
    if (op->deadline_ns - op->submit_ns < READ_WITHIN_MS * SIM_MS) return false;
    for (uint32_t n = 0; n < SIM_NODES; n++)
        if ((op->must[i] >> n & 1) != 0 && stayed_well(s, n, c, op->submit_ns) &&
            oracle_intact(s, n, b))
            return true;
    return false;
}

static void block_read(sim *s, const sim_op *op, uint32_t i, status r)
{
    uint32_t b = op->block[i];
    if (r == STATUS_OK)
        s->totals.blocks_read++;
    else
        s->totals.blocks_failed++;
    if (r == STATUS_OK && op->foreign[i])
        sim_fail(s, "P2", "%u.%u was handed out under a digest that nobody put",
                 b / SIM_PER_CONTEXT, b % SIM_PER_CONTEXT);
    if (op->final && r != STATUS_OK)
        sim_fail(s, "P1", "%u.%u has a copy in a calm cluster but reading it ends %s",
                 b / SIM_PER_CONTEXT, b % SIM_PER_CONTEXT, status_name(r));
}

static void get_done(sim *s, uint32_t c, const sim_op *op, const kv_done *done)
{
    uint64_t took = s->now_ns - op->submit_ns;
    uint32_t must = 0;
    for (uint32_t i = 0; i < op->count && !s->failed; i++) {
        status r = done->block_status[i];
        block_read(s, op, i, r);
        if (!must_come(s, c, op, i)) continue;
        must++;
        if (r != STATUS_OK)
            sim_fail(s, "P5", "%u.%u, which a well node has, ended %s after %llu ms",
                     op->block[i] / SIM_PER_CONTEXT, op->block[i] % SIM_PER_CONTEXT, status_name(r),
                     (unsigned long long)(took / SIM_MS));
    }
    s->totals.must_reads += must;
    if (must == op->count && took > READ_WITHIN_MS * SIM_MS)
        sim_fail(s, "P5", "a get of blocks that well nodes have took %llu ms",
                 (unsigned long long)(took / SIM_MS));
}

static void drop_done(sim *s, uint32_t c, const sim_op *op)
{
    uint32_t x = op->block[0] / SIM_PER_CONTEXT;
    if (s->map_changed_ns != 0) return; /* nodes that were out were not told */
    (void)c;
    s->context[x].dropped = true;
    for (uint32_t n = 0; n < SIM_NODES; n++)
        for (uint32_t i = 0; i < SIM_PER_CONTEXT; i++)
            if (oracle_intact(s, n, x * SIM_PER_CONTEXT + i))
                sim_fail(s, "P3", "context %u was dropped but n%u still has block %u", x, n, i);
}

void oracle_done(sim *s, uint32_t c, const sim_op *op, const kv_done *done)
{
    status worst = STATUS_OK;
    for (uint32_t i = 0; i < op->count; i++) {
        status r = op->kind == KV_KIND_GET ? done->block_status[i] : done->result;
        if (r != STATUS_OK && worst == STATUS_OK) worst = r;
        if (!result_allowed(s, op, i, r))
            sim_fail(s, "P3", "kind %d ended %s", op->kind, status_name(r));
    }
    if (done->result != worst)
        sim_fail(s, "P3", "a request ended %s with its blocks %s", status_name(done->result),
                 status_name(worst));
    if (op->kind == KV_KIND_PUT) put_done(s, c, op, done->result);
    if (op->kind == KV_KIND_DROP && done->result == STATUS_OK) drop_done(s, c, op);
    if (op->kind != KV_KIND_GET) return;
    if (done->count != op->count) sim_fail(s, "P3", "a GET came back with another count");
    get_done(s, c, op, done);
}

/* ---- after every step ------------------------------------------------------------------------ */

void oracle_structure(sim *s)
{
    s->structure_dirty = false;
    for (uint32_t b = 0; b < SIM_BLOCKS && !s->failed; b++) {
        const sim_block *k = &s->block[b];
        if (!k->acked || dropping(s, b)) continue;
        uint64_t lost = s->losses - k->losses_at + k->flips - k->flips_at;
        uint32_t c = s->context[b / SIM_PER_CONTEXT].client;
        for (uint32_t n = 0; n < SIM_NODES; n++)
            lost += lease_lost(s, c, n, k->put_ns);
        if (lost >= s->map.replicas) {
            s->totals.excused++;
            continue;
        }
        uint64_t have = (uint64_t)__builtin_popcountll(intact_domains(s, b));
        if (have + lost < s->map.replicas)
            sim_fail(s, "P1", "%u.%u has %llu copies after %llu losses, of %u", b / SIM_PER_CONTEXT,
                     b % SIM_PER_CONTEXT, (unsigned long long)have, (unsigned long long)lost,
                     s->map.replicas);
    }
}

static bool poisoned(const uint8_t *slot)
{
    return slot[0] == 0xa5 && memcmp(slot, slot + 1, NET_BODY_MAX - 1) == 0;
}

/* A slot that replies were read into holds rubbish once its request has ended: it is poisoned anew.
 */
static void slot_look(sim *s, uint32_t c, uint32_t slot)
{
    sim_client *me = &s->client[c];
    uint8_t *bytes = me->landing + (size_t)slot * NET_BODY_MAX;
    if (me->client->slot_use[slot] == SLOT_FILLED) return;
    if (me->landed[slot]) {
        if (me->client->slot_use[slot] == SLOT_POSTED) return;
        me->landed[slot] = false;
        memset(bytes, 0xa5, NET_BODY_MAX);
    } else if (!poisoned(bytes))
        sim_fail(s, "P4", "c%u: slot %u was written while it belonged to nobody", c, slot);
}

/* Blocks of an open GET that have come already: their slots are filled and not handed out. */
static uint32_t filled_early(const kv_client *k, const sim_op *op)
{
    uint32_t filled = 0, request = (uint32_t)op->ticket - 1;
    if (op->kind != KV_KIND_GET) return 0;
    for (uint32_t b = k->requests[request].first_block; b != CLIENT_NONE; b = k->blocks[b].next)
        filled += k->blocks[b].state == BLOCK_DONE && k->blocks[b].result == STATUS_OK;
    return filled;
}

static void client_check(sim *s, uint32_t c)
{
    sim_client *me = &s->client[c];
    const kv_client *k = me->client;
    uint32_t use[3] = {0}, inflight[KV_CLASSES] = {0}, drops = 0, early = 0;
    for (uint32_t i = 0; i < s->profile.slots; i++)
        use[k->slot_use[i]]++;
    for (uint32_t i = 0; i < SIM_OPS; i++) {
        const sim_op *op = &me->op[i];
        if (op->ticket == 0) continue;
        early += filled_early(k, op);
        if (op->kind == KV_KIND_DROP)
            drops++;
        else
            inflight[op->class] += op->count;
        if (op->deadline_ns <= s->now_ns && s->now_ns >= me->stalled_ns)
            sim_fail(s, "P4", "c%u: ticket %llx is open after its deadline", c,
                     (unsigned long long)op->ticket);
    }
    bool sums = use[SLOT_FREE] == k->slots_free && use[SLOT_FILLED] == k->slots_filled &&
                k->slots_filled == me->held_count + early &&
                k->prefetch_slots <= s->profile.slots / 2;
    if (!sums) sim_fail(s, "P8", "c%u: landing slots do not add up", c);
    if (use[SLOT_POSTED] > 0 && me->open_count == 0)
        sim_fail(s, "P8", "c%u: a slot is posted for nobody", c);
    for (uint32_t i = 0; i < KV_CLASSES; i++)
        if (inflight[i] != k->inflight[i]) sim_fail(s, "P8", "c%u: credit of class %u leaks", c, i);
    if (drops != k->drops) sim_fail(s, "P8", "c%u: drops do not add up", c);
    me->cursor = (me->cursor + 1) % s->profile.slots;
    slot_look(s, c, me->cursor);
}

static void node_check(sim *s, uint32_t n)
{
    const kv_server *server = s->node[n].server;
    if (server == NULL) return;
    uint32_t reserved = 0, jobs = 0;
    kv_tier_usage u;
    server->tier.ops->usage(server->tier.self, &u); /* CHECKs its own sum */
    for (uint32_t q = 0; q < KV_CLASSES; q++)
        for (uint32_t i = server->queue[q].head; i != KV_NONE; i = server->jobs[i].next) {
            jobs++;
            reserved += server->jobs[i].kind == JOB_PUT && server->jobs[i].slot != KV_NO_SLOT;
        }
    for (uint32_t i = 0; i < server->config.connections_max; i++)
        reserved += server->conn[i].peer != 0 && server->conn[i].landing != KV_NO_SLOT;
    if (reserved != u.reserved || jobs != server->jobs_used)
        sim_fail(s, "P8", "n%u: %u slots reserved for %llu, %u jobs of %u", n, reserved,
                 (unsigned long long)u.reserved, jobs, server->jobs_used);
    if (u.quarantined > net_lent(s->net, n))
        sim_fail(s, "P8", "n%u: more slots in quarantine than bodies lent", n);
}

/* A well node hears of its clients' leases three times a lease. */
static void leases_check(sim *s)
{
    for (uint32_t c = 0; c < s->profile.clients; c++)
        for (uint32_t n = 0; n < SIM_NODES; n++) {
            uint64_t since = s->now_ns - s->config.lease_ns;
            if (!oracle_well(s, n, c) || s->node[n].bad_ns >= since) continue;
            if (s->node[n].born_ns + WELL_MS * SIM_MS >= since) continue;
            if (s->net->bad_ns[SIM_NODES + c][n] + 100 * SIM_MS < since &&
                s->client[c].bad_ns + 100 * SIM_MS < since && s->client[c].heard_ns[n] < since)
                sim_fail(s, "P1", "n%u has heard of no lease of c%u for a whole lease", n, c);
        }
}

void oracle_check(sim *s)
{
    for (uint32_t c = 0; c < s->profile.clients; c++)
        client_check(s, c);
    for (uint32_t n = 0; n < SIM_NODES; n++)
        node_check(s, n);
    if (!s->structure_dirty && s->now_ns < s->scan_next_ns) return;
    s->scan_next_ns = s->now_ns + SCAN_MS * SIM_MS;
    leases_check(s);
    oracle_structure(s);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void client_idle(sim *s, uint32_t c)
{
    const kv_client *k = s->client[c].client;
    if (k->slots_free != s->profile.slots) sim_fail(s, "P8", "c%u: slots are missing", c);
    if (k->asks_used != 0 || net_lent(s->net, SIM_NODES + c) != 0)
        sim_fail(s, "P8", "c%u: %u asks are left", c, k->asks_used);
    for (uint32_t i = 0; i < k->stages_max; i++)
        if (k->stages[i].used || k->stages[i].lent != 0)
            sim_fail(s, "P8", "c%u: staging buffer %u is left over", c, i);
    uint32_t timers = 0;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++)
        timers += (uint32_t)(k->node[i].timer.place != 0) + (uint32_t)(k->node[i].lease.place != 0);
    if (k->timers.count != timers || timers != SIM_NODES)
        sim_fail(s, "P8", "c%u: %u timers are left", c, k->timers.count);
    for (uint32_t i = 0; i < KV_MAP_BUFFERS; i++)
        if (k->maps.lent[i]) sim_fail(s, "P8", "c%u: a map is still lent", c);
    for (uint32_t i = 0; i < s->profile.slots; i++)
        slot_look(s, c, i);
    if (net_conns(s->net, SIM_NODES + c, false) != SIM_NODES)
        sim_fail(s, "P8", "c%u: connections are left over", c);
}

static void node_idle(sim *s, uint32_t n)
{
    kv_server *server = s->node[n].server;
    kv_tier_usage u;
    server->tier.ops->usage(server->tier.self, &u);
    uint64_t kept = 0;
    for (uint32_t b = 0; b < SIM_BLOCKS; b++)
        if (s->block[b].known &&
            server->tier.ops->find(server->tier.self, &s->block[b].id) != KV_NO_SLOT)
            kept++;
    bool leak =
        s->profile.worker ? kept > u.published : kept != u.published; /* its are not known */
    if (leak || u.reserved != 0 || u.quarantined != 0)
        sim_fail(s, "P8", "n%u: %llu published for %llu blocks, %llu reserved, %llu quarantined", n,
                 (unsigned long long)u.published, (unsigned long long)kept,
                 (unsigned long long)u.reserved, (unsigned long long)u.quarantined);
    /* A worker's client, which may dial at any moment, is on no list that rest() waits for. */
    uint32_t conns = net_conns(s->net, n, true);
    if (!kv_server_idle(server) || server->stats.connections != conns)
        sim_fail(s, "P8", "n%u: %s, %llu connections of %u", n,
                 kv_server_idle(server) ? "idle" : "jobs are left over",
                 (unsigned long long)server->stats.connections, conns);
    for (uint32_t i = 0; i < server->config.connections_max; i++)
        if (server->conn[i].pending != 0) sim_fail(s, "P8", "n%u: jobs are counted wrong", n);
    for (uint32_t i = 0; i < KV_MAP_BUFFERS; i++)
        if (server->maps.lent[i]) sim_fail(s, "P8", "n%u: a map is still lent", n);
}

void oracle_idle(sim *s)
{
    for (uint32_t c = 0; c < s->profile.clients; c++)
        client_idle(s, c);
    for (uint32_t n = 0; n < SIM_NODES; n++)
        node_idle(s, n);
}
