/* The engine on a device that works behind its stream (apart.h), against itself where ops run when
 * they are called: the same bits, with and without a store, parking, lookahead and prefetch. What a
 * GPU needs of the engine, as far as a CPU can show it. */
#include "kernels/backend.h"
#include "tests/test.h"
#include "tests/worker/apart.h"
#include "tests/worker/program.h"
#include "tests/worker/run.h"
#include "worker/fetch.h"
#include "worker/json.h"
#include "worker/trace.h"

enum {
    REQUESTS = 3,
    PROMPT = 400,
    LONG = 800,
    NEW = 70,
    FEW_NEW = 24,
    MANY = 19,
    MANY_NEW = 24,
    TIMED_STEPS = 6
}; /* LONG: where there is room */

typedef struct outcome {
    uint64_t digest[MANY];
    uint32_t tokens[MANY], parks;
    bool merged;
    worker_blocks blocks; /* of all requests */
    worker_stats stats;
    uint64_t landed_used; /* of stats.prefetch.used, out of the landing zone */
} outcome;

static run_setup setup_of(const char *source, uint32_t nodes)
{
    return (run_setup){.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .selector = {.name = "nosa", .budget = "8", .source = source},
                       .max_len = 512,
                       .seqs = REQUESTS,
                       .batched = 100,
                       .threads = 1,
                       .pool_bytes = 4 << 20,
                       .park_quantum = 4,
                       .hub_nodes = nodes,
                       .hub_replicas = 1};
}

static void submit(run *r, uint64_t id, uint32_t new_tokens)
{
    int32_t tokens[LONG];
    const uint32_t count = run_engine(r)->max_len > LONG ? LONG : PROMPT;
    const uint32_t known = run_engine(r)->vocab - 1;
    rng g;
    rng_seed(&g, 200 + id);
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = (int32_t)(1 + rng_below(&g, known < 4000 ? known : 4000));
    worker_request request = {.id = id,
                              .prompt = tokens,
                              .prompt_count = count - 3 * (uint32_t)id,
                              .max_new = new_tokens,
                              .selector = *run_selector(r),
                              .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(run_engine(r), &request) == STATUS_OK, "%s", log_last_error());
}

static void take_event(outcome *o, const worker_event *event)
{
    uint64_t *d = &o->digest[event->id];
    if (event->kind == WORKER_FINISHED) {
        EXPECT(event->result == STATUS_OK);
        o->parks += event->parks;
        o->blocks.resident += event->blocks.resident;
        o->blocks.host += event->blocks.host;
        o->blocks.remote += event->blocks.remote;
        return;
    }
    const uint64_t link[3] = {*d, event->logits_digest, (uint64_t)event->sampled.token};
    *d = bytes_digest(link, sizeof link, 0);
    o->tokens[event->id]++;
}

static void nothing(worker_engine *e)
{
    (void)e;
}

/* stepped: called after each step. */
static outcome outcome_many(const run_setup *setup, uint32_t requests, uint32_t new_tokens,
                            void (*stepped)(worker_engine *e))
{
    outcome o = {.parks = 0};
    run *r = run_open(setup);
    uint32_t sent = 0;
    while (sent < requests || !worker_idle(run_engine(r))) {
        for (; sent < requests && run_engine(r)->queue_count < ENGINE_QUEUE; sent++)
            submit(r, sent, new_tokens);
        const status s = worker_step(run_engine(r));
        o.merged |= run_engine(r)->decode_rows > 0 && fetch_merges_late(run_engine(r));
        EXPECT_MSG(s == STATUS_OK || s == STATUS_PENDING, "%s", log_last_error());
        stepped(run_engine(r));
        worker_event event;
        while (worker_next_event(run_engine(r), &event))
            take_event(&o, &event);
    }
    worker_stats_read(run_engine(r), &o.stats);
    o.landed_used = run_engine(r)->landed_used;
    run_close(r);
    return o;
}

static outcome outcome_of(const run_setup *setup)
{
    return outcome_many(setup, REQUESTS, NEW, nothing);
}

static void same_apart(run_setup setup)
{
    const outcome here = outcome_of(&setup);
    setup.wrap = apart_open;
    const outcome there = outcome_of(&setup);
    EXPECT(here.parks > 0 && there.parks > 0);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        EXPECT_EQ_U64(there.tokens[i], NEW);
        EXPECT_EQ_X64(there.digest[i], here.digest[i]);
    }
}

TEST(a_device_apart_has_the_bits_of_one_that_runs_inline)
{
    same_apart(setup_of("own", 0));
}
TEST(so_it_has_with_a_store_in_this_process)
{
    same_apart(setup_of("own", 2));
}
TEST(so_it_has_with_lookahead_mid)
{
    same_apart(setup_of("mid", 2));
}
TEST(so_it_has_with_lookahead_input)
{
    same_apart(setup_of("input", 2));
}
TEST(so_it_has_with_lookahead_step)
{
    same_apart(setup_of("step", 2));
}

TEST(so_it_has_with_prompts_on_the_device)
{
    run_setup setup = setup_of("step", 2);
    setup.prompt_stage_bytes = 64 << 20;
    same_apart(setup);
}

TEST(so_it_has_with_gathers_before_attention_and_not_beside_it)
{
    run_setup setup = setup_of("own", 2);
    setup.no_overlap = true;
    same_apart(setup);
}

/* A timeline of some steps, while they are made. */
static struct {
    arena *memory;
    trace *trace;
    uint64_t begun_ns;
    uint32_t steps;
} timed;

static void time_step(worker_engine *e)
{
    uint64_t now = clock_now(&clock_monotonic);
    if (e->decode_rows > 0 && timed.steps < TIMED_STEPS) {
        if (timed.trace == NULL) {
            timed.trace = trace_create(timed.memory, e, 1 << 16);
            trace_switch(timed.trace, true);
        } else {
            trace_step(timed.trace, timed.begun_ns, now, e->decode_rows);
            if (++timed.steps == TIMED_STEPS) {
                trace_switch(timed.trace, false);
                EXPECT(trace_write(timed.trace, program_path("apart.json"), "apart") == STATUS_OK);
            }
        }
    }
    timed.begun_ns = clock_now(&clock_monotonic);
}

/* By the device's clock: ops of a stream one after the other and within their step, those beside
 * the layers in a lane of their own, and each of a layer. What the device leaves out is lost, and
 * the layers of the others are still theirs. */
TEST(a_timeline_shows_when_the_device_ran_each_op)
{
    enum { OPS = 1, BESIDE = 3 };
    run_setup setup = setup_of("own", 2);
    setup.wrap = apart_open;
    timed.memory = arena_create("timeline");
    (void)outcome_many(&setup, REQUESTS, NEW, time_step);
    EXPECT_EQ_U64(timed.steps, TIMED_STEPS);
    cJSON *tree = cJSON_Parse(program_read(timed.memory, "apart.json"));
    EXPECT(tree != NULL);
    double ended[4] = {0};
    uint32_t layer = 0, attends = 0, gathers = 0, steps = 0;
    EXPECT(json_get(json_get(tree, "otherData"), "left_out")->valuedouble > 0);
    const cJSON *at;
    cJSON_ArrayForEach(at, json_get(tree, "traceEvents"))
    {
        const char *name = json_get(at, "name")->valuestring;
        const int lane = json_get(at, "tid") != NULL ? json_get(at, "tid")->valueint : -1;
        if (json_get(at, "dur") == NULL) continue;
        const double from = json_get(at, "ts")->valuedouble;
        EXPECT_MSG(lane == 0 || from >= ended[lane] - 0.01,
                   "%s begins %.3f us before the end of "
                   "what is ahead of it",
                   name, ended[lane] - from);
        ended[lane] = from + json_get(at, "dur")->valuedouble;
        steps += lane == 0;
        gathers += lane == BESIDE && strcmp(name, "gather") == 0;
        if (lane != OPS || strcmp(name, "attend") != 0) continue;
        const uint32_t l = (uint32_t)json_get(json_get(at, "args"), "layer")->valueint;
        EXPECT_MSG(l == layer || l == (layer + 1) % 8, "layer %u after layer %u", l, layer);
        layer = l;
        attends++;
    }
    EXPECT_EQ_U64(steps, TIMED_STEPS);
    EXPECT(attends >= 8 * TIMED_STEPS && gathers >= 7 * TIMED_STEPS);
    cJSON_Delete(tree);
    arena_destroy(timed.memory);
}

/* Many rows, each with misses of its own. */
static void same_many(const char *source, bool merged)
{
    run_setup setup = setup_of(source, 0);
    setup.seqs = MANY;
    setup.batched = 500;
    setup.selector.budget = "1,1,3,4";
    setup.pool_bytes = 64 << 20;
    const outcome here = outcome_many(&setup, MANY, MANY_NEW, nothing);
    setup.wrap = apart_open;
    const outcome there = outcome_many(&setup, MANY, MANY_NEW, nothing);
    EXPECT(!here.merged && there.merged == merged && there.stats.blocks.host > 0);
    EXPECT_EQ_U64(there.stats.blocks.host, here.stats.blocks.host);
    EXPECT_EQ_U64(there.stats.blocks.resident, here.stats.blocks.resident);
    for (uint32_t i = 0; i < MANY; i++) {
        EXPECT_EQ_U64(there.tokens[i], MANY_NEW);
        EXPECT_EQ_X64(there.digest[i], here.digest[i]);
    }
}

TEST(so_it_has_with_rows_that_attend_while_what_they_lack_is_gathered)
{
    same_many("own", true);
}
TEST(so_it_has_with_many_rows_that_come_and_go_while_picks_are_made_a_step_ahead)
{
    same_many("step", false);
}

/* ---- counters: on a device apart most of the counting waits for the next step --------------- */

/* More blocks than entries, so that each step misses some; no deadline passes on a busy machine. */
static run_setup long_setup(cluster_config *cluster, uint64_t pool_bytes)
{
    run_setup setup = setup_of("own", 2);
    cluster_config_default(cluster);
    cluster->fetch_deadline_ns = cluster->put_deadline_ns = 30000000000u;
    setup.cluster = cluster;
    setup.max_len = 1024;
    setup.pool_bytes = pool_bytes;
    return setup;
}

/* With `step` blocks are found to be corrupt in the landing zone too. */
TEST(flipped_replies_change_nothing_wherever_blocks_were)
{
    static const char *const source[] = {"own", "step"};
    cluster_config cluster;
    for (uint32_t i = 0; i < 2; i++) {
        run_setup setup = long_setup(&cluster, 16 << 20);
        setup.selector.source = source[i];
        setup.hub_nodes = 3;
        setup.hub_replicas = 2;
        const outcome right = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
        EXPECT(right.stats.corrupt + right.stats.void_rows == 0);
        setup.hub_faults = (kv_faults){.seed = 5, .flip_wire = 0.05};
        setup.wrap = apart_open;
        const outcome o = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
        EXPECT(o.stats.corrupt > 0 && o.stats.client.corrupt > 0 && o.stats.recomputes == 0);
        for (uint32_t k = 0; k < REQUESTS; k++)
            EXPECT_EQ_X64(o.digest[k], right.digest[k]);
    }
}

/* Beside the layers, where a plan may come before it, and is asked for while the device goes on. */
TEST(an_early_guess_changes_nothing_and_fetches_more)
{
    cluster_config cluster;
    run_setup setup = long_setup(&cluster, 16 << 20);
    setup.selector.budget = "1,1,4,8";
    const outcome here = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
    setup.wrap = apart_open;
    setup.guess = 200;
    for (uint32_t overlap = 0; overlap < 2; overlap++) {
        setup.no_overlap = overlap == 0;
        const outcome guessed = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
        for (uint32_t i = 0; i < REQUESTS; i++)
            EXPECT_EQ_X64(guessed.digest[i], here.digest[i]);
        EXPECT(guessed.stats.prefetch.issued > here.stats.prefetch.issued);
    }
}

/* Halves of a batch take turns: the same bits on every kind of device, while requests come and go
 * and prompts are computed beside them, from every place blocks can be in. */
static void same_in_turns(run_setup setup, uint32_t guess, uint32_t ways)
{
    const outcome whole = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
    setup.two_batch = true;
    setup.guess = guess;
    for (uint32_t i = 0; i < ways; i++) {
        setup.wrap = i == 1 ? NULL : apart_open;
        setup.no_overlap = i == 2;
        setup.no_late_merge = i == 3;
        const outcome turns = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
        for (uint32_t k = 0; k < REQUESTS; k++) {
            EXPECT_EQ_U64(turns.tokens[k], whole.tokens[k]);
            EXPECT_EQ_X64(turns.digest[k], whole.digest[k]);
        }
        EXPECT(turns.stats.decode_rows == whole.stats.decode_rows);
    }
}

TEST(halves_that_take_turns_have_the_bits_of_the_whole_batch)
{
    same_in_turns(setup_of("own", 0), 0, 4);
}
TEST(so_they_have_over_a_store_and_with_a_guess)
{
    cluster_config cluster;
    run_setup setup = long_setup(&cluster, 16 << 20);
    same_in_turns(setup, 100, 2);
}
TEST(so_they_have_with_replies_that_flip_and_rows_that_are_void)
{
    cluster_config cluster;
    run_setup setup = long_setup(&cluster, 16 << 20);
    setup.hub_nodes = 3;
    setup.hub_replicas = 2;
    const outcome right = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
    setup.hub_faults = (kv_faults){.seed = 5, .flip_wire = 0.05};
    setup.two_batch = true;
    for (uint32_t i = 0; i < 2; i++) {
        setup.wrap = i == 0 ? NULL : apart_open;
        const outcome o = outcome_many(&setup, REQUESTS, FEW_NEW, nothing);
        EXPECT(o.stats.corrupt > 0 && o.stats.void_rows > 0 && o.stats.recomputes == 0);
        for (uint32_t k = 0; k < REQUESTS; k++)
            EXPECT_EQ_X64(o.digest[k], right.digest[k]);
    }
}
TEST(who_looks_ahead_takes_no_turns)
{
    run_setup setup = setup_of("mid", 2);
    setup.two_batch = true;
    same_apart(setup);
}

TEST(counters_are_those_of_a_device_that_runs_inline)
{
    cluster_config cluster;
    run_setup setup = long_setup(&cluster, 16 << 20);
    setup.no_prefetch = true; /* what it brings in time depends on the clock */
    const outcome here = outcome_of(&setup);
    setup.wrap = apart_open;
    for (uint32_t i = 0; i < 2; i++) {
        setup.two_batch = i == 1;
        const outcome there = outcome_of(&setup);
        const worker_stats *a = &here.stats, *b = &there.stats;
        EXPECT(a->blocks.remote > 500 && a->agnostic_fetched > 100);
        EXPECT_EQ_U64(b->decode_rows, a->decode_rows);
        EXPECT_EQ_U64(b->blocks.resident, a->blocks.resident);
        EXPECT_EQ_U64(b->blocks.host + b->blocks.remote, a->blocks.host + a->blocks.remote);
        EXPECT_EQ_U64(b->agnostic_fetched, a->agnostic_fetched);
        for (int l = 0; l < 64; l++)
            EXPECT_EQ_U64(b->misses_by_layer[l], a->misses_by_layer[l]);
        EXPECT_EQ_U64(there.blocks.resident, b->blocks.resident);
        EXPECT_EQ_U64(there.blocks.host + there.blocks.remote, b->blocks.host + b->blocks.remote);
    }
}

/* What prefetch.used comes to when a step is over and all is counted at once. */
static struct {
    uint64_t used, steps, later; /* later: rows that were left for later */
} at_once;

static bool was_ahead(const worker_engine *e, const row_uncounted *row, size_t place, uint32_t k)
{
    const size_t list =
        ((place / e->kv_heads) * e->seqs + row->row) * e->kv_heads + place % e->kv_heads;
    const int32_t block = e->seen.block[list * e->max_select + k];
    const uint8_t *ahead =
        e->ahead_bit + engine_home(e, (uint32_t)row->seq, (uint32_t)(place / e->kv_heads),
                                   (uint32_t)(place % e->kv_heads), 0);
    return (int32_t)k < e->seen.count[list] && block != row->open && ahead[block] != 0;
}

/* A row whose sequence left the batch in its step is counted in it. */
static void count_at_once(worker_engine *e)
{
    bool ended = false;
    if (e->stats.steps == at_once.steps) return;
    at_once.steps = e->stats.steps;
    for (uint32_t i = 0; i < e->uncounted_count; i++)
        ended |= e->uncounted[i].seq < 0;
    EXPECT_GE_U64(e->stats.prefetch.used, at_once.used);
    if (!ended) EXPECT_EQ_U64(e->stats.prefetch.used, at_once.used);
    at_once.used = e->stats.prefetch.used;
    for (uint32_t i = 0; i < e->uncounted_count; i++) {
        if (e->uncounted[i].seq < 0) continue;
        EXPECT(!e->uncounted[i].is_void);
        for (size_t place = 0; place < (size_t)e->layers * e->kv_heads; place++)
            for (uint32_t k = 0; k < e->max_select; k++)
                at_once.used += was_ahead(e, &e->uncounted[i], place, k);
        at_once.later++;
    }
}

TEST(what_prefetch_had_brought_is_counted_a_step_later_as_at_once)
{
    cluster_config cluster;
    run_setup setup = long_setup(&cluster, 4 << 20);
    setup.wrap = apart_open;
    const outcome there = outcome_many(&setup, REQUESTS, NEW, count_at_once);
    const worker_stats *s = &there.stats;
    EXPECT(there.parks > 0 && at_once.later > 100 && at_once.used > 1000);
    EXPECT_EQ_U64(s->prefetch.used - there.landed_used, at_once.used);
    EXPECT(s->prefetch.used + s->prefetch.wasted <= s->prefetch.issued);
    EXPECT_EQ_U64(there.blocks.resident, s->blocks.resident);
}

/* Each value is rounded once either way; without rounding there are other bits. */
static void same_given(run_setup setup)
{
    setup.wrap = apart_open;
    const outcome exact = outcome_of(&setup);
    setup.wrap = apart_open_rounding;
    const outcome rounded = outcome_of(&setup);
    setup.wrap = apart_open_given;
    const outcome given = outcome_of(&setup);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        EXPECT_EQ_U64(given.tokens[i], NEW);
        EXPECT_EQ_X64(given.digest[i], rounded.digest[i]);
        EXPECT(exact.digest[i] != rounded.digest[i]);
    }
}

TEST(rows_that_their_maker_rounds_have_the_bits_of_rows_that_the_product_rounds)
{
    same_given(setup_of("own", 0));
    same_given(setup_of("mid", 0));
}

TEST(so_they_have_behind_one_gate_and_behind_three)
{
    const char *const kind[] = {"ssa", "nsa"};
    for (uint32_t i = 0; i < 2; i++) {
        char dir[256];
        run_setup setup = setup_of("own", 0);
        (void)snprintf(dir, sizeof dir, TEST_SOURCE_DIR "/tests/golden/selectors/%s", kind[i]);
        setup.model_dir = dir;
        setup.selector = (selector_choice){.name = kind[i], .budget = "6"};
        same_given(setup);
    }
}

TEST(a_backend_that_does_not_round_refuses_rows_in_bf16)
{
    kern_backend *backend;
    kern_stream *stream;
    EXPECT(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend) ==
           STATUS_OK);
    EXPECT(kern_stream_create(backend, &stream) == STATUS_OK);
    EXPECT(!kern_rounds_operands(backend));
    float x[32] = {1}, out[32] = {0};
    uint16_t weight[32] = {0}, narrow[32] = {0};
    kern_rmsnorm_args a = {.x = x, .weight = weight, .out = out, .rows = 1, .hidden = 32, .eps = 1};
    EXPECT(kern_rmsnorm(stream, &a) == STATUS_OK);
    a.out_bf16 = narrow;
    EXPECT(kern_rmsnorm(stream, &a) == STATUS_INVALID);
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

/* Products by shape, strides, sum and number of rows, seen while the engine is made or later. */
enum { SEEN = 4096 };
static struct {
    uint64_t known[SEEN];
    uint32_t count, after;
    bool made;
} seen;

static void product_seen(const kern_linear_args *a)
{
    const uint64_t of[] = {a->weight->n, a->weight->k,  a->rows,
                           a->x_stride,  a->out_stride, a->residual != NULL};
    const uint64_t key = bytes_digest(of, sizeof of, 0);
    uint32_t i = 0;
    while (i < seen.count && seen.known[i] != key)
        i++;
    if (seen.made) {
        EXPECT_MSG(i < seen.count,
                   "a step makes a product of %u x %u with %u rows for the first time",
                   a->weight->n, a->weight->k, a->rows);
        seen.after++;
    } else if (i == seen.count) {
        EXPECT(seen.count < SEEN);
        seen.known[seen.count++] = key;
    }
}

TEST(every_product_of_a_step_was_made_once_before_the_first_step)
{
    run_setup setup = setup_of("mid", 0);
    setup.wrap = apart_open;
    setup.batched = 32; /* prompts in chunks of up to 32 rows beside the decode rows */
    apart_watch_linear(product_seen);
    run *r = run_open(&setup);
    seen.made = true;
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(r, i, NEW);
    worker_event event;
    while (!worker_idle(run_engine(r))) {
        (void)worker_step(run_engine(r));
        while (worker_next_event(run_engine(r), &event)) {
        }
    }
    run_close(r);
    apart_watch_linear(NULL);
    EXPECT(seen.after > 1000);
}

TEST_MAIN()
