/* tests/sim/load.c - what workers would ask for: puts, gets, prefetches, drops, cancels.
 *
 * A context is filled block by block by one client, read by all, dropped now and then. Its id is
 * never used again. What a get hands out is compared, held for a drawn time, compared again and
 * released; a slot that is not held is full of poison. */
#include "tests/sim/sim.h"

#include <string.h>

void load_bytes(const sim *s, uint32_t block, uint8_t *out)
{
    rng g;
    rng_seed(&g, block_id_hash(&s->block[block].id));
    for (uint32_t i = 0; i < NET_BODY_MAX; i += 8) {
        uint64_t word = rng_next(&g);
        memcpy(out + i, &word, 8);
    }
}

static void block_know(sim *s, uint32_t b)
{
    sim_block *k = &s->block[b];
    if (k->known) return;
    uint32_t in = b % SIM_PER_CONTEXT;
    alignas(64) uint8_t bytes[NET_BODY_MAX];
    k->id = (block_id){
        .context = s->context[b / SIM_PER_CONTEXT].id,
        .layout = s->layout_hash,
        .tenant = s->config.tenant,
        .block = in / 8,
        .layer = (uint16_t)(in % 4),
        .kv_head = (uint16_t)(in / 4 % 2),
    };
    k->known = true;
    load_bytes(s, b, bytes);
    k->digest = block_digest(&k->id, bytes, sizeof bytes);
}

/* A context of this client to write to, or any client's to read; SIM_CONTEXTS: none. */
static uint32_t context_pick(sim *s, uint32_t c, bool write)
{
    uint32_t first = (uint32_t)sim_below(s, SIM_CONTEXTS);
    uint32_t window = 6; /* few are written at a time, so that they fill */
    for (uint32_t k = 0; k < SIM_CONTEXTS; k++) {
        uint32_t i = write ? k : (first + k) % SIM_CONTEXTS;
        sim_context *x = &s->context[i];
        if (write && !x->used) {
            *x = (sim_context){.used = true, .client = c};
            x->id = (context_id){s->seed * 1000 + i, rng_next(&s->random)};
            return i;
        }
        if (!x->used || (write && (x->client != c || x->dropping))) continue;
        if (!write || sim_below(s, window) == 0) return i;
    }
    return SIM_CONTEXTS;
}

static sim_op *op_free(sim_client *c)
{
    for (uint32_t i = 0; i < SIM_OPS; i++)
        if (c->op[i].ticket == 0) return &c->op[i];
    return NULL;
}

static uint64_t drawn_deadline(sim *s)
{
    static const uint64_t ms[] = {1, 5, 20, 60, 250, 400, 1000};
    uint64_t at = ms[sim_below(s, s->profile.clean ? 1 : sizeof ms / sizeof ms[0])] * SIM_MS;
    if (s->profile.clean) at = (uint64_t)400 * SIM_MS;
    return s->now_ns + at - sim_below(s, at / 4);
}

static void opened(sim *s, uint32_t c, sim_op *op)
{
    op->losses_at = s->losses;
    if (op->kind == KV_KIND_PUT) op->flips_at = s->block[op->block[0]].flips;
    s->client[c].open_count++;
    oracle_submitted(s, c, op);
}

static void put(sim *s, uint32_t c)
{
    sim_client *me = &s->client[c];
    sim_op *op = op_free(me);
    uint32_t x = context_pick(s, c, true);
    if (op == NULL || x == SIM_CONTEXTS) return;
    uint32_t b = x * SIM_PER_CONTEXT + (uint32_t)sim_below(s, SIM_PER_CONTEXT);
    if (s->block[b].acked && !sim_chance(s, 0.2)) return; /* again: after a loss, or in vain */
    block_know(s, b);
    alignas(64) uint8_t bytes[NET_BODY_MAX];
    load_bytes(s, b, bytes);
    kv_put p = {.id = s->block[b].id,
                .bytes = bytes,
                .digest = s->block[b].digest,
                .class = sim_chance(s, 0.9) ? KV_WRITE_BACK : KV_REPAIR,
                .deadline_ns = drawn_deadline(s)};
    *op = (sim_op){.kind = KV_KIND_PUT,
                   .class = p.class,
                   .count = 1,
                   .block = {b},
                   .submit_ns = s->now_ns,
                   .deadline_ns = p.deadline_ns};
    status r = kv_put_submit(me->client, &p, &op->ticket);
    memset(bytes, 0x5a, sizeof bytes); /* the contract says until the completion; it copies */
    if (r != STATUS_OK) {
        op->ticket = 0;
        if (r != STATUS_BUSY) sim_fail(s, "P3", "a PUT was refused with %s", status_name(r));
        return;
    }
    s->block[b].tried = true;
    sim_trace(s, "c%u put %u.%u ticket %llx", c, x, b % SIM_PER_CONTEXT,
              (unsigned long long)op->ticket);
    opened(s, c, op);
}

static void get_submit(sim *s, uint32_t c, sim_op *op)
{
    sim_client *me = &s->client[c];
    block_id id[SIM_BATCH];
    uint64_t digest[SIM_BATCH];
    for (uint32_t i = 0; i < op->count; i++) {
        block_know(s, op->block[i]);
        id[i] = s->block[op->block[i]].id;
        digest[i] = s->block[op->block[i]].digest ^ (op->foreign[i] ? 1 : 0);
    }
    kv_get g = {.id = id,
                .digest = digest,
                .count = op->count,
                .class = op->class,
                .deadline_ns = op->deadline_ns};
    status r = kv_get_submit(me->client, &g, &op->ticket);
    if (r != STATUS_OK) {
        op->ticket = 0;
        bool alive = me->client->nodes_alive > 0;
        if (r != STATUS_BUSY && !(r == STATUS_DEGRADED && !alive))
            sim_fail(s, "P3", "a GET was refused with %s", status_name(r));
        return;
    }
    sim_trace(s, "c%u get %u blocks from %u.%u class %d ticket %llx", c, op->count,
              op->block[0] / SIM_PER_CONTEXT, op->block[0] % SIM_PER_CONTEXT, op->class,
              (unsigned long long)op->ticket);
    opened(s, c, op);
}

static void get(sim *s, uint32_t c, kv_class class)
{
    sim_op *op = op_free(&s->client[c]);
    uint32_t x = context_pick(s, c, false);
    if (op == NULL || x == SIM_CONTEXTS) return;
    *op = (sim_op){.kind = KV_KIND_GET,
                   .class = class,
                   .submit_ns = s->now_ns,
                   .deadline_ns = drawn_deadline(s)};
    uint32_t want = 1 + (uint32_t)sim_below(s, SIM_BATCH);
    if (want > s->profile.slots) want = s->profile.slots;
    bool near = sim_chance(s, 0.6); /* neighbours travel as runs */
    uint32_t first = (uint32_t)sim_below(s, SIM_PER_CONTEXT);
    for (uint32_t i = 0; i < want; i++) {
        uint32_t in =
            (near ? first + i : (uint32_t)sim_below(s, SIM_PER_CONTEXT)) % SIM_PER_CONTEXT;
        uint32_t b = x * SIM_PER_CONTEXT + in;
        if (!s->block[b].tried && !sim_chance(s, 0.05)) continue; /* mostly what exists */
        op->foreign[op->count] = sim_chance(s, 0.01);
        op->block[op->count++] = b;
    }
    if (op->count > 0) get_submit(s, c, op);
}

static void drop(sim *s, uint32_t c)
{
    sim_op *op = op_free(&s->client[c]);
    uint32_t x = context_pick(s, c, false);
    if (op == NULL || x == SIM_CONTEXTS) return;
    sim_context *k = &s->context[x];
    if (k->client != c || (k->dropping && !sim_chance(s, 0.2))) return;
    *op = (sim_op){.kind = KV_KIND_DROP,
                   .count = 1,
                   .block = {x * SIM_PER_CONTEXT},
                   .submit_ns = s->now_ns,
                   .deadline_ns = s->now_ns + (50 + sim_below(s, 400)) * SIM_MS};
    if (kv_drop_submit(s->client[c].client, k->id, op->deadline_ns, &op->ticket) != STATUS_OK) {
        op->ticket = 0;
        return;
    }
    if (!k->dropping) k->drop_ns = s->now_ns;
    k->dropping = true;
    s->totals.drops++;
    sim_trace(s, "c%u drop context %u", c, x);
    opened(s, c, op);
}

static void cancel(sim *s, uint32_t c)
{
    sim_client *me = &s->client[c];
    sim_op *op = &me->op[sim_below(s, SIM_OPS)];
    if (op->ticket == 0) {
        kv_cancel(me->client, rng_next(&s->random)); /* a ticket of nobody */
        return;
    }
    sim_trace(s, "c%u cancel ticket %llx", c, (unsigned long long)op->ticket);
    op->canceled = true;
    s->totals.canceled++;
    kv_cancel(me->client, op->ticket);
}

/* ---- what was handed out --------------------------------------------------------------------- */

static void slot_compare(sim *s, uint32_t c, int32_t slot, uint32_t b, const char *when)
{
    alignas(64) uint8_t want[NET_BODY_MAX];
    load_bytes(s, b, want);
    if (memcmp(kv_slot_bytes(s->client[c].client, slot), want, sizeof want) == 0) return;
    sim_fail(s, when[0] == 'h' ? "P2" : "P4", "c%u slot %d does not hold block %u.%u %s", c, slot,
             b / SIM_PER_CONTEXT, b % SIM_PER_CONTEXT, when);
}

static void release(sim *s, uint32_t c, uint32_t i)
{
    sim_client *me = &s->client[c];
    sim_held h = me->held[i];
    me->held[i] = me->held[--me->held_count];
    slot_compare(s, c, h.slot, h.block, "while it was held");
    memset(kv_slot_bytes(me->client, h.slot), 0xa5, NET_BODY_MAX);
    me->landed[h.slot] = false;
    kv_slot_release(me->client, h.slot);
}

void load_release_all(sim *s, uint32_t c)
{
    while (s->client[c].held_count > 0)
        release(s, c, s->client[c].held_count - 1);
}

static void hand_out(sim *s, uint32_t c, const sim_op *op, const kv_done *done)
{
    sim_client *me = &s->client[c];
    for (uint32_t i = 0; i < done->count; i++) {
        if ((done->block_status[i] == STATUS_OK) != (done->slot[i] >= 0))
            sim_fail(s, "P3", "block %u: %s and slot %d", i, status_name(done->block_status[i]),
                     done->slot[i]);
        if (done->slot[i] < 0) continue;
        for (uint32_t k = 0; k < me->held_count; k++)
            if (me->held[k].slot == done->slot[i])
                sim_fail(s, "P4", "slot %d is handed out twice", done->slot[i]);
        if (s->failed || me->held_count == SIM_SLOTS_MAX) return;
        slot_compare(s, c, done->slot[i], op->block[i], "handed out");
        uint64_t hold = sim_chance(s, 0.7) ? sim_below(s, SIM_MS) : sim_below(s, 80 * SIM_MS);
        me->held[me->held_count++] =
            (sim_held){.slot = done->slot[i], .block = op->block[i], .until_ns = s->now_ns + hold};
    }
}

void load_drain(sim *s, uint32_t c)
{
    sim_client *me = &s->client[c];
    kv_done done;
    while (!s->failed && kv_client_next(me->client, &done)) {
        uint32_t i = 0;
        while (i < SIM_OPS && me->op[i].ticket != done.ticket)
            i++;
        if (i == SIM_OPS || done.ticket == 0 || done.kind != me->op[i].kind) {
            sim_fail(s, "P4", "c%u: a completion of ticket %llx, which is not open", c,
                     (unsigned long long)done.ticket);
            return;
        }
        sim_op op = me->op[i];
        me->op[i].ticket = 0;
        me->open_count--;
        sim_trace(s, "c%u done %llx kind %d: %s", c, (unsigned long long)done.ticket, done.kind,
                  status_name(done.result));
        oracle_done(s, c, &op, &done);
        if (done.kind == KV_KIND_GET) hand_out(s, c, &op, &done);
    }
}

void load_step(sim *s, uint32_t c)
{
    sim_client *me = &s->client[c];
    for (uint32_t i = me->held_count; i-- > 0;)
        if (me->held[i].until_ns <= s->now_ns) release(s, c, i);
    if (s->calm || s->now_ns < me->next_op_ns) {
        if (s->calm) me->next_op_ns = net_never;
        return;
    }
    me->next_op_ns = s->now_ns + sim_below(s, 2 * s->profile.gap_ns);
    uint64_t what = sim_below(s, 1000);
    if (what < 420)
        put(s, c);
    else if (what < 780)
        get(s, c, KV_DEMAND);
    else if (what < 950)
        get(s, c, KV_PREFETCH);
    else if (what < 985)
        cancel(s, c);
    else
        drop(s, c);
}

/* In a calm cluster: ask for these blocks, which must come. False: something failed. */
bool load_read(sim *s, uint32_t c, const uint32_t *block, uint32_t count, uint64_t ns)
{
    sim_op *op = op_free(&s->client[c]);
    CHECK(op != NULL && count <= SIM_BATCH);
    *op = (sim_op){.kind = KV_KIND_GET,
                   .class = KV_DEMAND,
                   .submit_ns = s->now_ns,
                   .deadline_ns = s->now_ns + ns,
                   .final = true};
    if (count > s->profile.slots) count = s->profile.slots;
    for (uint32_t i = 0; i < count; i++)
        op->block[op->count++] = block[i];
    get_submit(s, c, op);
    if (op->ticket == 0) {
        sim_fail(s, "P1", "a calm cluster refuses a GET");
        return false;
    }
    return !s->failed;
}
