/* tests/sim/fetch.c - the io side of a worker (worker/io*.c) as the second client of a cluster.
 *
 * What its step thread would do, without a model: seal blocks, publish misses of a layer or a
 * prefetch, look at what arrives, keep the sources for a while, let go, forget a context and take
 * another. Held true: an arrival is answered by its deadline; one that is OK points at the bytes
 * that were sealed, from the answer to the gather, unless their digest, which half of the fetches
 * leave to us, says otherwise; nothing fails in a seed without faults; at the end every host slot
 * and landing slot is back. */
#include "tests/sim/sim.h"

#include <string.h>

#include "worker/io.h"

enum {
    SEQS = 2,
    LAYERS = 4,
    HEADS = 2,
    BLOCKS = 3,
    PER_SEQ = LAYERS * HEADS * BLOCKS,
    GROUPS = LAYERS + 2,
    CAPACITY = SEQS * HEADS * BLOCKS,
    HOST_SLOTS = 40,
    LANDING = 64,
};

typedef struct fetch_seq {
    bool sealed[PER_SEQ];
    bool forgetting, idle;
} fetch_seq;

typedef struct fetch_watch {
    bool active, judged, verify;
    uint64_t deadline_ns, gather_ns;
} fetch_watch;

struct sim_fetch {
    arena *memory;
    worker_io *io;
    worker_config worker;
    model model;
    cluster_config cluster;
    context_id context[SEQS];
    kern_home home[SEQS * PER_SEQ];
    kern_exchange exchange[GROUPS];
    fetch_seq seq[SEQS];
    fetch_watch group[GROUPS];
    uint64_t next_ns;
    bool ending;
};

static void seq_begin(sim *s, sim_fetch *f, uint32_t q)
{
    f->seq[q] = (fetch_seq){.idle = false};
    f->context[q] = (context_id){rng_next(&s->random), rng_next(&s->random) | 1};
}

void fetch_start(sim *s)
{
    s->fetch = NULL;
    if (!s->profile.worker) return;
    arena *a = arena_create("sim worker");
    sim_fetch *f = ARENA_NEW(a, sim_fetch, 1);
    f->memory = a;
    f->cluster = s->config;
    f->cluster.landing_bytes = (uint64_t)LANDING * NET_BODY_MAX;
    f->cluster.put_deadline_ns = (50 + sim_below(s, 400)) * SIM_MS;
    f->model.layout = s->layout;
    f->worker = (worker_config){
        .model = &f->model,
        .cluster = &f->cluster,
        .with_store = true,
        .transport = net_open(s->net, SIM_NODES + 1),
        .clock = s->clock,
        .seed = s->seed * 77 + 1,
        .verify = true,
    };
    for (uint32_t g = 0; g < GROUPS; g++) {
        f->exchange[g].miss = ARENA_NEW(a, kern_miss, CAPACITY);
        f->exchange[g].arrival = ARENA_NEW(a, kern_arrival, CAPACITY);
        f->exchange[g].capacity = CAPACITY;
    }
    for (uint32_t q = 0; q < SEQS; q++)
        seq_begin(s, f, q);
    io_config config = {
        .memory = a,
        .worker = &f->worker,
        .shared = {.context = f->context, .home = f->home},
        .seqs = SEQS,
        .layers = LAYERS,
        .demands = LAYERS,
        .kv_heads = HEADS,
        .max_blocks = BLOCKS,
        .block_bytes = NET_BODY_MAX,
        .slots = HOST_SLOTS,
        .tier_slots = (uint32_t)sim_below(s, 8),
        .groups = GROUPS,
        .exchange = f->exchange,
    };
    CHECK(io_create(&config, &f->io) == STATUS_OK);
    s->fetch = f;
}

static void bytes_of(const block_id *id, uint8_t *out)
{
    rng g;
    rng_seed(&g, block_id_hash(id));
    for (uint32_t i = 0; i < NET_BODY_MAX; i += 8) {
        uint64_t word = rng_next(&g);
        memcpy(out + i, &word, 8);
    }
}

static uint32_t place_of(int32_t layer, int32_t head, int32_t block)
{
    return (uint32_t)((layer * HEADS + head) * BLOCKS + block);
}

/* ---- what a step would ask for --------------------------------------------------------------- */

static void seal(sim *s, sim_fetch *f)
{
    uint32_t q = (uint32_t)sim_below(s, SEQS), k = (uint32_t)sim_below(s, PER_SEQ);
    if (f->seq[q].forgetting || f->seq[q].idle || f->seq[q].sealed[k]) return;
    int32_t slot = io_slot_take(f->io);
    if (slot < 0) return;
    io_command c = {
        .op = IO_SEALED,
        .seq = (int32_t)q,
        .layer = (int32_t)(k / (HEADS * BLOCKS)),
        .kv_head = (int32_t)(k / BLOCKS % HEADS),
        .block = (int32_t)(k % BLOCKS),
        .slot = slot,
    };
    block_id id = io_block_id(f->io, c.seq, c.layer, c.kv_head, c.block);
    bytes_of(&id, io_slot_bytes(f->io, slot));
    f->home[q * PER_SEQ + k].seed = block_id_hash(&id);
    f->home[q * PER_SEQ + k].digest = block_digest(&id, io_slot_bytes(f->io, slot), NET_BODY_MAX);
    f->seq[q].sealed[k] = true;
    s->totals.sealed++;
    io_send(f->io, &c);
}

static uint32_t publish(sim *s, sim_fetch *f, uint32_t g, uint32_t layer, bool all)
{
    kern_exchange *x = &f->exchange[g];
    uint32_t n = 0;
    for (int32_t q = 0; q < SEQS; q++)
        for (int32_t i = 0; i < HEADS * BLOCKS; i++) {
            int32_t head = i / BLOCKS, block = i % BLOCKS;
            const fetch_seq *seq = &f->seq[q];
            if (seq->forgetting || !seq->sealed[place_of((int32_t)layer, head, block)]) continue;
            if (!all && sim_chance(s, 0.4)) continue;
            if (g >= LAYERS && n > 0 && x->miss[0].seq != q) continue; /* a prefetch is one's */
            x->miss[n] = (kern_miss){.seq = q, .kv_head = head, .block = block, .place = layer};
            atomic_store(&x->arrival[n].state, STATUS_PENDING);
            n++;
        }
    atomic_store(&x->published, n);
    return n;
}

static void fetch(sim *s, sim_fetch *f)
{
    uint32_t g = (uint32_t)sim_below(s, GROUPS);
    uint32_t layer = g < LAYERS ? g : (uint32_t)sim_below(s, LAYERS);
    if (f->group[g].active) return;
    uint32_t n = publish(s, f, g, layer, false);
    if (n == 0) return;
    uint64_t ns = s->profile.clean ? 400 * SIM_MS : (1 + sim_below(s, 300)) * SIM_MS;
    f->group[g] =
        (fetch_watch){.active = true, .deadline_ns = s->now_ns + ns, .verify = sim_chance(s, 0.5)};
    io_command c = {
        .op = IO_FETCH,
        .group = (int32_t)g,
        .class = g < LAYERS ? KV_DEMAND : KV_PREFETCH,
        .deadline_ns = f->group[g].deadline_ns,
        .verify = f->group[g].verify,
    };
    sim_trace(s, "io fetch group %u: %u blocks", g, n);
    io_send(f->io, &c);
}

static bool in_use(const sim_fetch *f, int32_t q)
{
    for (uint32_t g = 0; g < GROUPS; g++)
        for (uint32_t i = 0; f->group[g].active && i < f->exchange[g].published; i++)
            if (f->exchange[g].miss[i].seq == q) return true;
    return false;
}

static void forget(sim *s, sim_fetch *f, int32_t q)
{
    if (f->seq[q].forgetting || f->seq[q].idle || in_use(f, q)) return;
    f->seq[q].forgetting = true;
    sim_trace(s, "io forgets sequence %d", q);
    io_command c = {.op = IO_FORGET, .seq = q};
    io_send(f->io, &c);
}

/* ---- what came ------------------------------------------------------------------------------- */

static void compare(sim *s, sim_fetch *f, uint32_t g, uint32_t i, const char *when)
{
    const kern_miss *m = &f->exchange[g].miss[i];
    alignas(64) uint8_t want[NET_BODY_MAX];
    block_id id = io_block_id(f->io, m->seq, (int32_t)m->place, m->kv_head, m->block);
    bytes_of(&id, want);
    if (memcmp(f->exchange[g].arrival[i].source, want, sizeof want) != 0)
        sim_fail(s, "P2", "io group %u arrival %u: other bytes %s", g, i, when);
}

/* A gather that compares digests, where nobody has yet. */
static status gathered(sim_fetch *f, uint32_t g, uint32_t i)
{
    kern_exchange *x = &f->exchange[g];
    kern_arrival *a = &x->arrival[i];
    status r = (status)atomic_load(&a->state);
    if (r != STATUS_OK || f->group[g].verify) return r;
    if (bytes_digest(a->source, NET_BODY_MAX, a->seed) == a->digest) return r;
    io_disown(f->io, x->miss[i].place, &x->miss[i], a);
    atomic_store(&a->state, STATUS_CORRUPT);
    return STATUS_CORRUPT;
}

static void judge(sim *s, sim_fetch *f, uint32_t g)
{
    kern_exchange *x = &f->exchange[g];
    for (uint32_t i = 0; i < x->published; i++) {
        status r = gathered(f, g, i);
        if (r == STATUS_OK) {
            s->totals.fetched++;
            compare(s, f, g, i, "when it was answered");
            continue;
        }
        s->totals.fetch_failed++;
        if (s->profile.clean && g < LAYERS)
            sim_fail(s, "P3", "io group %u arrival %u ended %s without any fault", g, i,
                     status_name(r));
    }
}

static void group_step(sim *s, sim_fetch *f, uint32_t g)
{
    fetch_watch *w = &f->group[g];
    kern_exchange *x = &f->exchange[g];
    if (!w->active) return;
    bool open = false;
    for (uint32_t i = 0; i < x->published; i++)
        open |= atomic_load(&x->arrival[i].state) == STATUS_PENDING;
    if (open) {
        if (s->now_ns >= w->deadline_ns)
            sim_fail(s, "P4", "io group %u has no answer by its deadline", g);
        return;
    }
    if (!w->judged) {
        w->judged = true;
        judge(s, f, g);
        w->gather_ns = s->now_ns + sim_below(s, sim_chance(s, 0.1) ? 60 * SIM_MS : SIM_MS);
        return;
    }
    if (s->now_ns < w->gather_ns) return;
    for (uint32_t i = 0; i < x->published; i++)
        if (atomic_load(&x->arrival[i].state) == STATUS_OK) compare(s, f, g, i, "when gathered");
    w->active = false;
    io_command c = {.op = IO_GATHERED, .group = (int32_t)g};
    if (g >= LAYERS)
        io_let_go(f->io, (int32_t)g);
    else
        io_send(f->io, &c);
}

void fetch_step(sim *s)
{
    sim_fetch *f = s->fetch;
    io_pause(f->io, s->now_ns);
    io_event e;
    while (io_receive(f->io, &e)) {
        if (e.kind == IO_PUT_FAILED && s->profile.clean)
            sim_fail(s, "P3", "io could not store a block without any fault");
        if (e.kind != IO_FORGOTTEN) continue;
        if (!f->seq[e.seq].forgetting) sim_fail(s, "P8", "io forgot what nobody asked it to");
        seq_begin(s, f, (uint32_t)e.seq);
        f->seq[e.seq].idle = f->ending;
    }
    for (uint32_t g = 0; g < GROUPS; g++)
        group_step(s, f, g);
    if (f->ending || s->now_ns < f->next_ns) return;
    f->next_ns = s->now_ns + sim_below(s, 4 * s->profile.gap_ns);
    uint64_t what = sim_below(s, 100);
    if (what < 50)
        seal(s, f);
    else if (what < 98)
        fetch(s, f);
    else
        forget(s, f, (int32_t)sim_below(s, SEQS));
}

/* ---- the end --------------------------------------------------------------------------------- */

bool fetch_finish(sim *s)
{
    sim_fetch *f = s->fetch;
    f->ending = true;
    bool idle = true;
    for (int32_t q = 0; q < SEQS; q++) {
        forget(s, f, q);
        idle &= f->seq[q].idle;
    }
    if (!idle || !io_quiet(f->io)) return false;
    static io_stats stats;
    io_stats_read(f->io, &stats);
    uint32_t landed = stats.client.slots_free;
    if (io_slots_free(f->io) != HOST_SLOTS || landed != LANDING)
        sim_fail(s, "P8", "io has %u of %d host slots and %u of %d landing slots at rest",
                 io_slots_free(f->io), HOST_SLOTS, landed, LANDING);
    return true;
}

void fetch_end(sim *s)
{
    if (s->fetch == NULL) return;
    arena *memory = s->fetch->memory;
    io_destroy(s->fetch->io);
    arena_destroy(memory);
    s->fetch = NULL;
}
