/* shoal-worker bench decode: the production engine on contexts that nobody computed.
 *
 *   open ─► fill (held) ─► release ─► first fill ─► warm ─► runs of steps ─► rows
 *
 * There is no second decode loop: worker_step is called and counters are read between runs. What
 * is made up is the input: weights, contexts, and the network when it is simulated. */
#include "worker/bench.h"

#include "worker/batch.h"
#include "worker/fetch.h"
#include "worker/json.h"
#include "worker/session.h"
#include "worker/tokenizer.h"
#include "worker/verbs.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { PARALLEL_MAX = 64, TRACE_SPANS = 1 << 17, TRACE_STEPS = 8, TEXT_LINE_MAX = 16 << 20 };

/* ---- helpers --------------------------------------------------------------------------------- */

typedef struct parallel {
    bench_task task;
    void *context;
    uint32_t count;
    _Atomic uint32_t next;
} parallel;

static void *parallel_main(void *argument)
{
    parallel *p = argument;
    for (uint32_t i; (i = atomic_fetch_add(&p->next, 1)) < p->count;)
        p->task(p->context, i);
    return NULL;
}

void bench_parallel(uint32_t threads, uint32_t count, bench_task task, void *context)
{
    pthread_t helper[PARALLEL_MAX];
    parallel p = {.task = task, .context = context, .count = count};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t wanted = threads > 0 ? threads : cores > 0 ? (uint32_t)cores : 1, started = 0;
    if (wanted > count) wanted = count;
    while (started + 1 < wanted && started < PARALLEL_MAX &&
           pthread_create(&helper[started], NULL, parallel_main, &p) == 0)
        started++;
    (void)parallel_main(&p);
    for (uint32_t i = 0; i < started; i++)
        (void)pthread_join(helper[i], NULL);
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static uint32_t context_of(const bench *b, uint32_t i)
{
    return b->options.context[i % b->options.context_count];
}

/* Pool entries of sequence i, as the engine's scheduler counts them. */
static uint64_t entries_of(const bench *b, uint32_t i)
{
    const kern_selector *s = &b->selector;
    uint64_t blocks = (context_of(b, i) + b->new_tokens + KERN_BLOCK - 1) / KERN_BLOCK;
    uint64_t select =
        s->block > KERN_BLOCK ? (uint64_t)s->total * (s->block / KERN_BLOCK) : s->total;
    uint64_t longest = b->max_len / KERN_BLOCK;
    select = select < longest ? select : longest;
    uint64_t entries = select + (select * b->options.margin + 99) / 100;
    return entries < blocks ? entries : blocks;
}

static uint64_t pool_bytes_of(const bench *b, uint32_t i)
{
    const model_config *c = &b->model->config;
    return entries_of(b, i) * c->layers * c->kv_heads * block_layout_bytes(&b->model->layout);
}

/* Window means, importance and rings of one sequence, at the engine's longest length. */
static uint64_t summary_bytes(const bench *b)
{
    const model_config *c = &b->model->config;
    uint64_t windows = b->max_len / c->sparse.stride, d = c->head_dim;
    uint64_t values = c->sparse.kind == SELECTOR_NSA ? (windows + KERN_KEY_RING) * d : 0;
    return (uint64_t)c->layers * c->kv_heads *
           (windows * (d + 1) + b->max_len + KERN_KEY_RING * d + values) * sizeof(uint16_t);
}

/* The batch and its pool by the memory that was given. */
static status size_batch(bench *b)
{
    bench_options *o = &b->options;
    uint64_t pool = 0, limit = o->kv_memory > 0 ? o->kv_memory : o->device_pool;
    uint64_t each = o->kv_memory > 0 ? summary_bytes(b) : 0;
    uint32_t n = 0;
    while (n < (o->batch > 0 ? o->batch : 512)) {
        uint64_t more = pool_bytes_of(b, n);
        if (o->batch == 0 && pool + more + (n + 1) * each > limit) break;
        pool += more;
        n++;
    }
    if (n == 0)
        return FAIL(NO_MEMORY,
                    "not one context of %u tokens fits: its pool needs %.1f MiB and "
                    "its summaries %.1f MiB",
                    context_of(b, 0), (double)pool_bytes_of(b, 0) / 1048576,
                    (double)summary_bytes(b) / 1048576);
    b->batch = n;
    if (o->kv_memory > 0 && n * each >= o->kv_memory)
        return FAIL(NO_MEMORY, "--kv-memory: the summaries of %u sequences alone need %.1f MiB", n,
                    (double)(n * each) / 1048576);
    if (o->device_pool > 0) pool = o->device_pool;
    if (o->kv_memory > 0 && o->batch > 0) pool = o->kv_memory - n * each;
    b->cluster.device_pool_bytes = pool;
    return STATUS_OK;
}

/* ---- open ------------------------------------------------------------------------------------ */

static bool has_weights(const char *directory)
{
    static const char *const names[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[4096];
    for (int i = 0; i < 2; i++) {
        (void)snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        if (access(path, F_OK) == 0) return true;
    }
    return false;
}

static status open_made(bench *b, model_config *config)
{
    const bench_options *o = &b->options;
    bool other = config->sparse.typed && config->sparse.kind != SELECTOR_NOSA;
    bool importance = !other || (o->selector != NULL && strcmp(o->selector, "nosa") == 0);
    config->has_gate = config->sparse.kind == SELECTOR_SSA || config->sparse.kind == SELECTOR_NSA;
    TRY(config_settle(o->model, importance, config));
    bench_weights_start(b->weights, config, o->seed, o->threads);
    selector_choice choice = {o->selector, o->budget, o->lookahead};
    TRY(model_selector(config, &choice, &b->selector));
    uint32_t shortest = UINT32_MAX;
    for (uint32_t i = 0; i < o->context_count; i++)
        shortest = o->context[i] < shortest ? o->context[i] : shortest;
    walk_shape shape = walk_shape_of(&b->selector, shortest, 2 * b->weights->slow_count);
    bool full = b->selector.total == UINT32_MAX;
    b->walk = walk_faster(1.0);
    if (o->churn > 0 && !full) {
        TRY(walk_calibrate(&shape, o->churn, &b->walk));
    } else if (!full && shape.hot > 0) {
        uint32_t exact = shape.forced - 1 + shape.picks + shape.fill;
        b->walk.misses = walk_misses(&shape, &b->walk, exact, 200, 1);
    }
    b->weights->walk = b->walk;
    model_source source = bench_weights_source(b->weights);
    uint64_t bytes = bench_weights_room(b->weights);
    void *room = NULL;
    TRY(kern_alloc_shared(b->backend, bytes, &room));
    b->weights->room = room;
    b->weights->room_items = bytes / BENCH_ROOMS / sizeof(uint16_t);
    status made = model_make(b->backend, &b->weights->config, b->max_len, &source, &b->model);
    b->weights->room = NULL;
    kern_free_shared(b->backend, room);
    return made;
}

static status open_model(bench *b)
{
    bench_options *o = &b->options;
    model_config config;
    kern_config kernels = {.backend = o->device, .threads = o->threads};
    TRY(config_load(o->model, &config));
    b->made = !has_weights(o->model);
    uint32_t longest = 0;
    for (uint32_t i = 0; i < o->context_count; i++)
        longest = o->context[i] > longest ? o->context[i] : longest;
    b->new_tokens = o->warm + o->runs * o->steps;
    if (b->team != NULL) b->new_tokens *= 2; /* alone, then together */
    b->new_tokens += 2 * KERN_BLOCK;
    b->max_len = (longest + b->new_tokens + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;
    if (b->max_len > config.positions_max)
        return FAIL(INVALID,
                    "contexts of %u tokens and %u steps after them exceed the %u positions of %s",
                    longest, b->new_tokens, config.positions_max, o->model);
    TRY(kern_backend_open(&kernels, &b->backend));
    if (b->made && o->text != NULL)
        return FAIL(INVALID, "--text: %s has no weights, so no text means anything to it",
                    o->model);
    if (b->made) return open_made(b, &config);
    TRY(model_load(b->backend, o->model, b->max_len, NULL, NULL, &b->model));
    bench_weights_start(b->weights, &b->model->config, o->seed, o->threads);
    selector_choice choice = {o->selector, o->budget, o->lookahead};
    return model_selector(&b->model->config, &choice, &b->selector);
}

static status open_limits(bench *b)
{
    const bench_options *o = &b->options;
    cluster_config *c = &b->cluster;
    cluster_config_default(c);
    if (o->cluster != NULL) TRY(cluster_config_load(o->cluster, c));
    b->with_store = o->cluster != NULL || o->nodes > 0;
    if (o->cluster != NULL && c->map.node_count == 0)
        return FAIL(INVALID, "%s: names no node, so there is no store", o->cluster);
    c->victim_margin_percent = o->margin;
    c->park_quantum_steps = o->quantum;
    c->host_tier_bytes = o->host_tier;
    c->threads = o->threads;
    c->max_num_batched_tokens = o->text != NULL ? 512 : 16;
    if (o->nodes > 0) { /* a slow link is what is measured, not a fault */
        c->fetch_deadline_ns = 5000000000u;
        c->put_deadline_ns = 60000000000u;
        c->hedge_after_ns = 1000000000u + (uint64_t)(o->rtt_us * 1000);
        if (o->fault == FAULT_PAUSE || o->fault == FAULT_KILL) c->hedge_after_ns = 20000000u;
        /* else the first flip, while warming up, would keep the node out of all that is measured */
        if (o->fault == FAULT_FLIP) c->suspect_ns = 1000000u;
    }
    return STATUS_OK;
}

static uint64_t context_bytes(const bench *b)
{
    const model_config *c = &b->model->config;
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < b->batch; i++)
        blocks += (context_of(b, i) + b->new_tokens) / KERN_BLOCK + 1;
    return blocks * c->layers * c->kv_heads * block_layout_bytes(&b->model->layout);
}

/* Made-up weights change little from layer to layer, so that a guess finds all. The shipped model's
 * finds this share of what its pool of 20 slots misses, by candidates a query pick (its four; with
 * 4, 6, 8, 12 and 16 candidates). */
static float guess_left_out(const bench *b)
{
    static const double found[][2] = {{1, 0.53}, {1.5, 0.69}, {2, 0.78}, {3, 0.87}, {4, 0.91}};
    enum { LAST = sizeof found / sizeof *found - 1 };
    const kern_selector *s = &b->selector, g = guess_selector(s, b->options.guess);
    uint32_t always = selector_always(s);
    if (!b->made || g.query <= always || s->query <= always) return 0;
    double each = (double)(g.query - always) / (s->query - always);
    uint32_t i = 1;
    while (i < LAST && found[i][0] < each)
        i++;
    double at = (each - found[i - 1][0]) / (found[i][0] - found[i - 1][0]);
    at = fmin(fmax(at, 0), 1);
    return (float)(1 - found[i - 1][1] - at * (found[i][1] - found[i - 1][1]));
}

static status open_engine(bench *b)
{
    const bench_options *o = &b->options;
    cluster_config *c = &b->cluster;
    c->max_num_seqs = b->batch;
    c->max_model_len = b->max_len;
    uint64_t block = block_layout_bytes(&b->model->layout);
    /* With lookahead `step` the misses of two steps are there at once, in a quarter of it. */
    uint64_t each = b->selector.source == SOURCE_STEP ? 1024 : 256;
    uint64_t landing = (uint64_t)b->batch * b->model->config.kv_heads * block * each;
    uint64_t most = each << 22;
    if (o->nodes > 0 && landing > c->landing_bytes)
        c->landing_bytes = landing < most ? landing : most;
    if (o->nodes > 0) TRY(bench_store_open(o, context_bytes(b), c, &b->store));
    worker_config config = {.model = b->model,
                            .cluster = c,
                            .with_store = b->with_store,
                            .hub = b->store != NULL ? bench_store_hub(b->store) : NULL,
                            .hub_thread = b->store != NULL,
                            .clock = clock_monotonic,
                            .seed = b->team == NULL ? o->seed : o->seed + bench_team_index(b->team),
                            .hbm_bytes = o->hbm,
                            .prefetch = !o->no_prefetch,
                            .guess = o->guess,
                            .guess_left_out = guess_left_out(b),
                            .two_batch = o->two_batch,
                            .overlap = !o->no_overlap,
                            .late_merge = !o->no_late_merge,
                            .tiles = true,
                            .verify = true,
                            .widest = b->selector};
    TRY(worker_create(&config, o->quiet ? NULL : stderr, &b->engine));
    b->host_bytes = context_bytes(b) * (o->nodes > 0 ? o->replicas : 1);
    b->last_token = ARENA_NEW(b->memory, int32_t, b->batch);
    if (o->profile) b->run_profile = ARENA_NEW(b->memory, profile, o->runs);
    if (o->trace != NULL) b->trace = trace_create(b->memory, b->engine, TRACE_SPANS);
    return STATUS_OK;
}

/* What this device and its link give, measured now, before anything else runs. */
static status measure_ceilings(bench *b)
{
    TRY(kern_probe(b->backend, "read", &b->ceilings.memory_gbs));
    if (b->options.gbit > 0) {
        b->ceilings.link_gbs = b->options.gbit / 8;
        b->ceilings.link = "simulated network";
        return STATUS_OK;
    }
    b->ceilings.link = "gather from host memory";
    return kern_probe(b->backend, "host_gather", &b->ceilings.link_gbs);
}

static status open_all(bench *b)
{
    uint64_t begun = clock_now(&clock_monotonic);
    b->weights = ARENA_NEW(b->memory, bench_weights, 1);
    b->stats = ARENA_NEW(b->memory, worker_stats, 1);
    b->stats_before = ARENA_NEW(b->memory, worker_stats, 1);
    hist_reset(&b->step_ns);
    (void)prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0); /* threads to come inherit it: waits are short */
    TRY(open_limits(b));
    TRY(open_model(b));
    TRY(size_batch(b));
    TRY(measure_ceilings(b));
    TRY(open_engine(b));
    b->open_ns = clock_now(&clock_monotonic) - begun;
    return STATUS_OK;
}

/* ---- real text ------------------------------------------------------------------------------- */

/* The first `count` tokens of line i of the file, in memory of `a`. */
static status text_tokens(bench *b, batch_reader *reader, tokenizer *words, uint32_t count,
                          arena *a, int32_t **out_ids)
{
    batch_line line;
    cJSON *tree = NULL;
    uint32_t got = 0;
    TRY(batch_reader_next(reader, &line));
    TRY(json_parse(b->options.text, line.bytes, line.count, &tree));
    const cJSON *words_of = json_get(tree, "text");
    status done =
        cJSON_IsString(words_of)
            ? tokenizer_encode(words, json_text(words_of->valuestring, a), true, a, out_ids, &got)
            : FAIL(INVALID, "%s: a line needs \"text\"", b->options.text);
    if (done == STATUS_OK && got < count)
        done = FAIL(INVALID, "%s: a text of %u tokens is too short for a context and steps of %u",
                    b->options.text, got, count);
    json_free(tree);
    return done;
}

/* Prefill of real texts; sequences wait, held, until all are there. Their next tokens are forced.
 */
static status fill_text(bench *b)
{
    arena *a = arena_create("text");
    tokenizer *words = NULL;
    batch_reader *reader = NULL;
    status done = tokenizer_load(b->options.model, &words);
    if (done == STATUS_OK) done = batch_reader_open(b->options.text, TEXT_LINE_MAX, &reader);
    for (uint32_t i = 0; i < b->batch && done == STATUS_OK; i++) {
        uint32_t count = context_of(b, i) + b->new_tokens;
        int32_t *ids = NULL;
        done = text_tokens(b, reader, words, count, a, &ids);
        worker_request request = {.id = i,
                                  .prompt = ids,
                                  .prompt_count = count,
                                  .step_count = b->new_tokens,
                                  .selector = b->selector,
                                  .sampling = {.top_p = 1.0f},
                                  .score = ARENA_NEW(b->memory, float, count)};
        if (done == STATUS_OK) done = worker_submit(b->engine, &request);
        while (done == STATUS_OK) {
            done = worker_step(b->engine);
            if (done == STATUS_PENDING) done = STATUS_OK;
            if (session_interrupted()) done = FAIL(CANCELED, "interrupted in prefill");
            uint32_t seq;
            if (b->engine->queue_count == 0 && sched_prefilling(b->engine, &seq) == NULL) break;
        }
        for (uint32_t k = 0; k < b->engine->seqs; k++) {
            sequence *s = &b->engine->seq[k];
            if (s->state != SEQ_READY || s->groups_open > 0) continue;
            io_command unhold = {.op = IO_UNHOLD, .seq = (int32_t)k}; /* room for the next */
            io_send(b->engine->io, &unhold);
            s->groups_open++;
        }
    }
    batch_reader_close(reader);
    tokenizer_destroy(words);
    arena_destroy(a);
    return done;
}

/* ---- steps ----------------------------------------------------------------------------------- */

static void take_events(bench *b)
{
    worker_event event;
    while (worker_next_event(b->engine, &event)) {
        if (event.kind == WORKER_FINISHED) {
            b->failed = event.result != STATUS_OK ? event.result : STATUS_PENDING;
        } else if (b->made) {
            int32_t want = bench_weights_next(b->weights, b->last_token[event.id]);
            b->off_walk += event.sampled.token != want;
            b->last_token[event.id] = event.sampled.token;
        }
    }
}

/* One step that did something. */
static status step_once(bench *b, bool timed)
{
    for (;;) {
        if (session_interrupted()) return FAIL(CANCELED, "interrupted");
        uint64_t begin = clock_now(&clock_monotonic);
        status done = worker_step(b->engine);
        uint64_t end = clock_now(&clock_monotonic);
        take_events(b);
        if (b->failed != STATUS_OK)
            return FAIL(INTERNAL, "a sequence ended before it should: %s",
                        b->failed == STATUS_PENDING ? "all its tokens are made"
                                                    : status_sentence(b->failed));
        if (done == STATUS_PENDING) continue;
        if (done != STATUS_OK) return done;
        if (timed) hist_add(&b->step_ns, end - begin);
        if (timed && b->trace != NULL) trace_step(b->trace, begin, end, b->engine->rows);
        return STATUS_OK;
    }
}

static uint64_t positions(const bench *b)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < b->engine->seqs; i++)
        sum += b->engine->seq[i].state == SEQ_ACTIVE ? b->engine->seq[i].done : 0;
    return sum;
}

static void span_close(bench *b, uint64_t begun_ns, bench_span *out)
{
    worker_stats_read(b->engine, b->stats);
    const worker_stats *now = b->stats, *was = b->stats_before;
    uint64_t missed = 0;
    for (int l = 0; l < 64; l++)
        missed += now->misses_by_layer[l] - was->misses_by_layer[l];
    *out = (bench_span){.ns = clock_now(&clock_monotonic) - begun_ns,
                        .steps = now->steps - was->steps,
                        .rows = now->decode_rows - was->decode_rows,
                        .waited_ns = now->waited_ns - was->waited_ns,
                        .fetch_ns = now->fetch_ns - was->fetch_ns,
                        .step_ns = now->step_ns - was->step_ns,
                        .hits = now->blocks.resident - was->blocks.resident,
                        .misses = missed,
                        .host = now->blocks.host - was->blocks.host,
                        .remote = now->blocks.remote - was->blocks.remote,
                        .issued = now->prefetch.issued - was->prefetch.issued,
                        .used = now->prefetch.used - was->prefetch.used,
                        .late = now->prefetch.late - was->prefetch.late,
                        .wasted = now->prefetch.wasted - was->prefetch.wasted,
                        .voids = now->void_rows - was->void_rows,
                        .parks = now->parks - was->parks,
                        .recomputes = now->recomputes - was->recomputes,
                        .stored = now->stored.blocks - was->stored.blocks,
                        .received = now->served.blocks - was->served.blocks,
                        .agnostic = now->agnostic_fetched - was->agnostic_fetched,
                        .agnostic_ahead = now->agnostic_ahead - was->agnostic_ahead,
                        .failed_over = now->client.failed_over - was->client.failed_over,
                        .hedged = now->client.hedged - was->client.hedged,
                        .corrupt = now->client.corrupt + now->corrupt - was->client.corrupt -
                                   was->corrupt};
}

static uint64_t span_open(bench *b)
{
    worker_stats_read(b->engine, b->stats_before);
    return clock_now(&clock_monotonic);
}

/* Turns without steps until whoever fits the pool has its first blocks there: otherwise the first
 * sequences would run ahead while the last still wait for a slow store. */
static status resume_all(bench *b)
{
    worker_engine *e = b->engine;
    uint32_t quiet = 0;
    while (quiet < 2) { /* one sequence gets its entries a turn */
        uint32_t resuming = 0, before = e->pool_free;
        if (session_interrupted()) return FAIL(CANCELED, "interrupted while the pool was filled");
        sched_turn(e);
        for (uint32_t i = 0; i < e->seqs; i++)
            resuming += e->seq[i].state == SEQ_RESUMING;
        quiet = resuming == 0 && e->pool_free == before ? quiet + 1 : 0;
        if (resuming > 0) io_pause(e->io, clock_now(&e->config.clock) + 1000000);
    }
    return STATUS_OK;
}

/* From the release of the contexts until every sequence that the pool holds has made a token. */
static status first_fill(bench *b)
{
    worker_engine *e = b->engine;
    uint64_t begun = span_open(b);
    bench_release(b);
    TRY(resume_all(b));
    if (b->options.resident) TRY(bench_bring_all(b));
    for (bool waiting = true; waiting;) {
        TRY(step_once(b, false));
        waiting = false;
        for (uint32_t i = 0; i < e->seqs; i++)
            waiting |= e->seq[i].state == SEQ_ACTIVE && e->seq[i].ran == 0;
    }
    span_close(b, begun, &b->first);
    return STATUS_OK;
}

status bench_warm(bench *b)
{
    for (uint32_t i = 0; i < b->options.warm; i++)
        TRY(step_once(b, false));
    return STATUS_OK;
}

status bench_measure(bench *b, uint32_t run, bench_span *out_span)
{
    const bench_options *o = &b->options;
    bool last = run + 1 == o->runs;
    if (run == 1 && b->store != NULL) bench_store_fault(b->store);
    uint64_t begun = span_open(b), from = positions(b);
    if (last && b->trace != NULL) trace_switch(b->trace, true);
    if (o->profile) {
        kern_stream *streams[ENGINE_STREAMS];
        uint32_t count = engine_streams(b->engine, streams);
        profile_start(&b->run_profile[run], streams, count, b->engine->inline_ops);
    }
    for (uint32_t i = 0; i < o->steps; i++) {
        TRY(step_once(b, true));
        if (last && i + 1 == TRACE_STEPS && b->trace != NULL) trace_switch(b->trace, false);
    }
    if (b->trace != NULL) trace_switch(b->trace, false);
    if (o->profile) profile_stop(&b->run_profile[run]);
    span_close(b, begun, out_span);
    out_span->positions = (from + positions(b)) / 2;
    return STATUS_OK;
}

static status run_all(bench *b)
{
    TRY(b->options.text != NULL ? fill_text(b) : bench_fill(b));
    if (b->store != NULL) bench_store_pace(b->store);
    TRY(first_fill(b));
    TRY(bench_warm(b));
    if (b->team != NULL) return bench_team_run(b);
    for (uint32_t run = 0; run < b->options.runs; run++)
        TRY(bench_measure(b, run, &b->run[run]));
    return STATUS_OK;
}

/* ---- the verb -------------------------------------------------------------------------------- */

static void close_all(bench *b)
{
    if (b->engine != NULL) {
        bench_release(b);
        worker_destroy(b->engine);
    }
    bench_store_close(b->store);
    model_free(b->model);
    if (b->backend != NULL) kern_backend_close(b->backend);
    bench_team_close(b->team);
    arena_destroy(b->memory);
}

static status finish(bench *b)
{
    if (b->trace != NULL) {
        char title[96];
        (void)snprintf(title, sizeof title, "bench decode on %s",
                       kern_backend_describe(b->backend));
        TRY(trace_write(b->trace, b->options.trace, title));
    }
    if (b->team == NULL || bench_team_index(b->team) == 0) bench_report(b, stdout);
    if (fflush(stdout) != 0 || ferror(stdout)) return FAIL(IO, "the result cannot be written");
    return STATUS_OK;
}

int worker_bench(int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "decode") != 0) {
        bool help = argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
        if (help) {
            bench_help(stdout);
            return 0;
        }
        LOG(ERROR, "bench what? `bench decode` is known; `bench decode --help` tells its flags");
        return status_exit_code(STATUS_INVALID);
    }
    arena *memory = arena_create("bench");
    bench *b = ARENA_NEW(memory, bench, 1);
    b->memory = memory;
    int code = 0; /* of workers that are processes of their own */
    status done = bench_options_parse(argc - 1, argv + 1, &b->options);
    if (done == STATUS_OK && !b->options.help) {
        log_config log = {.level = LOG_WARN, .program = "shoal-worker"};
        (void)log_level_from_name(b->options.log_level, &log.level);
        log_setup(&log);
        session_catch_signals();
        if (b->options.workers > 1) done = bench_team_start(memory, &b->options, &b->team, &code);
        if (done == STATUS_OK && (b->options.workers == 1 || b->team != NULL)) {
            done = open_all(b);
            if (done == STATUS_OK) done = run_all(b);
            if (done == STATUS_OK) done = finish(b);
        }
    } else if (done == STATUS_OK) {
        bench_help(stdout);
    }
    close_all(b);
    return code != 0 ? code : status_exit_code(done);
}
