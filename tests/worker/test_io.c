/* The io side of a worker against a real client and a real node in one thread: what a demand that
 * waits for a prefetch may rely on. */
#include "worker/io_impl.h"

#include "tests/kvstore/rig.h"
#include "worker/model.h"

enum { LAYERS = 4, HEADS = 2, BLOCKS = 16, GROUPS = LAYERS + 2, CAPACITY = 8, AHEAD = LAYERS };

typedef struct bench {
    rig *r;
    arena *memory;
    model model;
    cluster_config cluster;
    worker_config worker;
    context_id context;
    kern_home home[LAYERS * HEADS * BLOCKS];
    kern_exchange exchange[GROUPS];
    worker_io *io;
} bench;

static void pump(void *self)
{
    (void)self; /* rig_run turns nodes and clock */
}

/* prefetch_credit: blocks of PREFETCH that may be under way at once. */
static bench *bench_open_on(const rig_options *options, uint32_t prefetch_credit)
{
    static bench all;
    bench *b = &all;
    *b = (bench){.memory = arena_create("io"), .context = {7, 11}};
    b->r = rig_create(options);
    b->cluster = b->r->config;
    b->cluster.landing_bytes = (uint64_t)64 * b->r->block_bytes;
    b->cluster.inflight_max[KV_PREFETCH] = prefetch_credit;
    b->model.layout = b->r->layout;
    b->worker = (worker_config){.model = &b->model,
                                .cluster = &b->cluster,
                                .with_store = true,
                                .pump = pump,
                                .clock = b->r->clock,
                                .seed = test_seed(),
                                .verify = true};
    EXPECT_OK(kv_transport_local_open(b->memory, b->r->hub, &b->worker.transport));
    for (uint32_t g = 0; g < GROUPS; g++) {
        b->exchange[g].miss = ARENA_NEW(b->memory, kern_miss, CAPACITY);
        b->exchange[g].arrival = ARENA_NEW(b->memory, kern_arrival, CAPACITY);
        b->exchange[g].capacity = CAPACITY;
    }
    io_config config = {.memory = b->memory,
                        .worker = &b->worker,
                        .shared = {.context = &b->context, .home = b->home},
                        .seqs = 1,
                        .layers = LAYERS,
                        .demands = LAYERS,
                        .kv_heads = HEADS,
                        .max_blocks = BLOCKS,
                        .block_bytes = b->r->block_bytes,
                        .slots = LAYERS * HEADS * BLOCKS,
                        .groups = GROUPS,
                        .exchange = b->exchange};
    EXPECT_OK(io_create(&config, &b->io));
    return b;
}

static bench *bench_open(uint32_t prefetch_credit)
{
    return bench_open_on(&(rig_options){.nodes = 1, .replicas = 1}, prefetch_credit);
}

static void bench_close(bench *b)
{
    io_destroy(b->io);
    rig_destroy(b->r);
    arena_destroy(b->memory);
}

static void run_for(bench *b, uint64_t ns)
{
    for (uint64_t end = b->r->now_ns + ns; b->r->now_ns < end;) {
        io_pause(b->io, b->r->now_ns);
        rig_run(b->r, 50 * RIG_US);
    }
    io_pause(b->io, b->r->now_ns);
}

/* Blocks of layer 0 and head 0 are sealed and in the store, and nowhere else. */
static int32_t seal(bench *b, int32_t layer, int32_t head, int32_t k)
{
    io_command c = {.op = IO_SEALED, .layer = layer, .kv_head = head, .block = k};
    block_id id = io_block_id(b->io, 0, layer, head, k);
    kern_home *home = io_home(b->io, 0, layer, head, k);
    c.slot = io_slot_take(b->io);
    rig_fill(b->r, &id, io_slot_bytes(b->io, c.slot));
    home->seed = block_id_hash(&id);
    home->digest = rig_digest(b->r, &id);
    io_send(b->io, &c);
    return c.slot;
}

static void seal_all(bench *b)
{
    for (int32_t k = 0; k < BLOCKS; k++)
        (void)seal(b, 0, 0, k);
    run_for(b, 100 * RIG_MS);
    io_stats stats;
    io_stats_read(b->io, &stats);
    EXPECT_EQ_U64(stats.stored_blocks, BLOCKS);
}

/* found: the block's state when the io side hears of it. */
static void fetch_found(bench *b, int32_t group, int32_t block, uint64_t ns, bool verify,
                        status found)
{
    kern_exchange *x = &b->exchange[group];
    x->miss[0] = (kern_miss){.row = -1, .block = block};
    atomic_store(&x->arrival[0].state, found);
    atomic_store(&x->published, 1);
    io_command c = {.op = IO_FETCH,
                    .group = group,
                    .class = group < LAYERS ? KV_DEMAND : KV_PREFETCH,
                    .deadline_ns = b->r->now_ns + ns,
                    .step = 7,
                    .verify = verify};
    io_send(b->io, &c);
    io_pause(b->io, b->r->now_ns);
}

static void fetch_as(bench *b, int32_t group, int32_t block, uint64_t ns, bool verify)
{
    fetch_found(b, group, block, ns, verify, STATUS_PENDING);
}

static void fetch(bench *b, int32_t group, int32_t block, uint64_t ns)
{
    fetch_as(b, group, block, ns, false);
}

static status state(const bench *b, int32_t group)
{
    return (status)atomic_load(&b->exchange[group].arrival[0].state);
}

static uint64_t late(bench *b)
{
    io_stats stats;
    io_stats_read(b->io, &stats);
    return stats.late;
}

TEST(a_demand_for_a_block_on_its_way_waits_for_that_one)
{
    bench *b = bench_open(4);
    seal_all(b);
    b->r->node[0].paused = true;
    fetch(b, AHEAD, 3, 50 * RIG_MS);
    fetch(b, 0, 3, 50 * RIG_MS);
    EXPECT_EQ_U64(late(b), 1);
    EXPECT(b->exchange[0].answered == 0);
    b->r->node[0].paused = false;
    run_for(b, 5 * RIG_MS);
    EXPECT(state(b, AHEAD) == STATUS_OK && state(b, 0) == STATUS_OK);
    EXPECT(b->exchange[0].answered == 7 && b->exchange[AHEAD].answered == 0);
    io_stats stats;
    io_stats_read(b->io, &stats);
    EXPECT_EQ_U64(stats.client.blocks_received, 1);
    bench_close(b);
}

TEST(a_demand_ends_at_its_own_deadline_whatever_prefetch_brings_its_block)
{
    bench *b = bench_open(4);
    seal_all(b);
    b->r->node[0].paused = true;
    fetch(b, AHEAD, 3, 500 * RIG_MS);
    fetch(b, 0, 3, 50 * RIG_MS);
    run_for(b, 49 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_PENDING);
    run_for(b, 2 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_DEADLINE);
    EXPECT(state(b, AHEAD) == STATUS_PENDING);
    bench_close(b);
}

static void let_demand_go(bench *b)
{
    io_command gathered = {.op = IO_GATHERED, .group = 0};
    io_send(b->io, &gathered);
    run_for(b, RIG_MS);
}

/* One prefetch has all the credit, the second waits: a demand for its block does not. */
TEST(a_demand_takes_over_what_a_prefetch_has_not_asked_for)
{
    bench *b = bench_open(1);
    seal_all(b);
    b->r->node[0].paused = true;
    fetch(b, AHEAD, 2, 100 * RIG_MS);
    fetch(b, AHEAD + 1, 3, 200 * RIG_MS);
    fetch(b, 0, 3, 20 * RIG_MS);
    EXPECT_EQ_U64(late(b), 0);
    EXPECT(state(b, AHEAD + 1) == STATUS_STALE && state(b, 0) == STATUS_PENDING);
    run_for(b, 21 * RIG_MS);
    EXPECT(state(b, 0) != STATUS_PENDING && state(b, 0) != STATUS_OK);
    /* Nor does it leave anything behind for the next one to wait for. */
    b->r->node[0].paused = false;
    let_demand_go(b);
    fetch(b, 0, 3, 100 * RIG_MS);
    run_for(b, 60 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_OK);
    bench_close(b);
}

static int32_t home_slot(bench *b, int32_t block)
{
    return atomic_load(&b->home[block].slot);
}

static uint32_t landing_free(bench *b)
{
    static io_stats stats;
    io_stats_read(b->io, &stats);
    return stats.client.slots_free;
}

TEST(what_a_prefetch_brought_is_at_home_in_the_landing_zone_until_it_is_let_go)
{
    bench *b = bench_open(4);
    seal_all(b);
    uint32_t all = landing_free(b);
    EXPECT(home_slot(b, 3) == -1 && all == io_landing_slots(b->io));
    fetch(b, AHEAD, 3, 50 * RIG_MS);
    run_for(b, 10 * RIG_MS);
    const kern_arrival *ahead = &b->exchange[AHEAD].arrival[0];
    EXPECT(state(b, AHEAD) == STATUS_OK && io_is_landed(b->io, ahead->source));
    /* A plan finds it by its home, */
    EXPECT(home_slot(b, 3) >= 0);
    EXPECT(io_slot_bytes(b->io, home_slot(b, 3)) == ahead->source);
    /* a demand that comes the long way gets it at once, and keeps it beyond the prefetch's end. */
    fetch(b, 0, 3, 50 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_OK && b->exchange[0].arrival[0].source == ahead->source);
    io_let_go(b->io, AHEAD);
    EXPECT(home_slot(b, 3) == -1);
    run_for(b, RIG_MS);
    EXPECT_EQ_U64(landing_free(b), all - 1);
    let_demand_go(b);
    EXPECT_EQ_U64(landing_free(b), all);
    io_stats stats;
    io_stats_read(b->io, &stats);
    EXPECT_EQ_U64(stats.client.blocks_received, 1);
    bench_close(b);
}

TEST(a_block_sealed_again_is_at_home_in_its_new_copy)
{
    bench *b = bench_open(4);
    seal_all(b);
    fetch(b, AHEAD, 3, 50 * RIG_MS);
    run_for(b, 10 * RIG_MS);
    int32_t landed = home_slot(b, 3);
    int32_t copy = seal(b, 0, 0, 3);
    io_pause(b->io, b->r->now_ns);
    EXPECT(landed >= 0 && home_slot(b, 3) == copy);
    io_let_go(b->io, AHEAD);
    EXPECT(home_slot(b, 3) == copy);
    bench_close(b);
}

/* ---- digests --------------------------------------------------------------------------------- */

/* Three copies of every block, and a node that flips a bit of all it sends. */
static bench *flips_open(void)
{
    bench *b = bench_open_on(&(rig_options){.nodes = 3, .replicas = 3}, 4);
    block_id id = io_block_id(b->io, 0, 0, 0, 0);
    uint32_t first = rig_rank(b->r, &id, 0);
    rig_node_kill(b->r, first);
    b->r->node[first].faults.flip_wire = 1;
    rig_node_start(b->r, first);
    run_for(b, 200 * RIG_MS); /* connected, and no longer suspect */
    seal_all(b);
    return b;
}

/* The arrival is OK; whether its bytes are those that were sealed. */
static bool is_right(bench *b, int32_t group)
{
    const kern_arrival *a = &b->exchange[group].arrival[0];
    EXPECT(state(b, group) == STATUS_OK);
    return bytes_digest(a->source, b->r->block_bytes, a->seed) == a->digest;
}

TEST(digests_are_left_to_the_gather_unless_it_found_one_wrong)
{
    bench *b = flips_open();
    fetch(b, 0, 3, 50 * RIG_MS);
    run_for(b, 10 * RIG_MS);
    EXPECT(!is_right(b, 0));
    let_demand_go(b);
    fetch_as(b, 0, 3, 50 * RIG_MS, true);
    run_for(b, 10 * RIG_MS);
    EXPECT(is_right(b, 0));
    static io_stats stats;
    io_stats_read(b->io, &stats);
    EXPECT(stats.client.corrupt == 1 && stats.client.failed_over == 1);
    bench_close(b);
}

/* The device has failed: whoever waited for blocks was told, before the io side had begun. */
TEST(a_step_that_was_given_up_has_nothing_fetched)
{
    bench *b = bench_open(4);
    seal_all(b);
    fetch_found(b, 0, 3, 50 * RIG_MS, false, STATUS_DEADLINE);
    run_for(b, 5 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_DEADLINE);
    io_stats stats;
    io_stats_read(b->io, &stats);
    EXPECT_EQ_U64(stats.client.blocks_received, 0);
    fetch(b, 0, 3, 50 * RIG_MS);
    run_for(b, 5 * RIG_MS);
    EXPECT(state(b, 0) == STATUS_OK);
    bench_close(b);
}

TEST(a_demand_that_is_to_be_sure_waits_for_no_prefetch_that_is_not)
{
    bench *b = flips_open();
    fetch(b, AHEAD, 3, 50 * RIG_MS);
    EXPECT(state(b, AHEAD) == STATUS_PENDING);
    fetch_as(b, 0, 3, 50 * RIG_MS, true);
    EXPECT_EQ_U64(late(b), 0);
    run_for(b, 10 * RIG_MS);
    EXPECT(!is_right(b, AHEAD) && is_right(b, 0));
    let_demand_go(b);
    /* Nor does it take what landed so. What is sure it does. */
    fetch_as(b, 0, 3, 50 * RIG_MS, true);
    EXPECT(state(b, 0) == STATUS_PENDING);
    run_for(b, 10 * RIG_MS);
    EXPECT(is_right(b, 0) && home_slot(b, 3) >= 0);
    let_demand_go(b);
    fetch_as(b, AHEAD + 1, 4, 50 * RIG_MS, true);
    run_for(b, 10 * RIG_MS);
    EXPECT(is_right(b, AHEAD + 1));
    fetch_as(b, 0, 4, 50 * RIG_MS, true);
    EXPECT(is_right(b, 0));
    bench_close(b);
}

TEST(what_turned_out_to_be_corrupt_is_at_home_no_more_and_goes_with_its_group)
{
    bench *b = flips_open();
    uint32_t all = landing_free(b);
    fetch(b, AHEAD, 3, 50 * RIG_MS);
    run_for(b, 10 * RIG_MS);
    kern_exchange *x = &b->exchange[AHEAD];
    EXPECT(home_slot(b, 3) >= 0 && !is_right(b, AHEAD));
    io_disown(b->io, 0, &x->miss[0], &x->arrival[0]);
    EXPECT(home_slot(b, 3) == -1);
    fetch(b, 0, 3, 50 * RIG_MS); /* asks a node */
    EXPECT(state(b, 0) == STATUS_PENDING);
    run_for(b, 10 * RIG_MS);
    let_demand_go(b);
    EXPECT_EQ_U64(landing_free(b), all - 1);
    int32_t copy = seal(b, 0, 0, 3);
    io_pause(b->io, b->r->now_ns);
    io_disown(b->io, 0, &x->miss[0], &x->arrival[0]); /* of what was there before */
    EXPECT(home_slot(b, 3) == copy);
    io_let_go(b->io, AHEAD);
    EXPECT(home_slot(b, 3) == copy);
    run_for(b, RIG_MS);
    EXPECT_EQ_U64(landing_free(b), all);
    bench_close(b);
}

/* ---- puts ------------------------------------------------------------------------------------ */

TEST(many_sealed_blocks_are_put_some_at_a_time_and_all_of_them)
{
    enum { SOME = 3 * IO_PUTS_A_TURN + 1 };
    bench *b = bench_open(64);
    kv_client_stats stats;
    run_for(b, 5 * RIG_MS); /* connected */
    for (int32_t i = 0; i < SOME; i++)
        (void)seal(b, i / BLOCKS / HEADS, i / BLOCKS % HEADS, i % BLOCKS);
    io_pause(b->io, b->r->now_ns); /* two turns */
    kv_client_stats_read(b->io->client, &stats);
    EXPECT_EQ_U64(stats.class[KV_WRITE_BACK].submitted, 2 * IO_PUTS_A_TURN);
    run_for(b, 5 * RIG_MS);
    io_stats all;
    io_stats_read(b->io, &all);
    EXPECT_EQ_U64(all.stored_blocks, SOME);
    bench_close(b);
}

TEST_MAIN()
