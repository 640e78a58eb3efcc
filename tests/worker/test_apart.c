/* The engine on a device that works behind its stream (apart.h), against itself where ops run when
 * they are called: the same bits, with and without a store, parking, lookahead and prefetch. What a
 * GPU needs of the engine, as far as a CPU can show it. */
#include "kernels/backend.h"
#include "tests/test.h"
#include "tests/worker/apart.h"
#include "tests/worker/run.h"

enum { REQUESTS = 3, PROMPT = 400, NEW = 70 };

typedef struct outcome {
    uint64_t digest[REQUESTS];
    uint32_t tokens[REQUESTS], parks;
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

static void submit(run *r, uint64_t id)
{
    int32_t tokens[PROMPT];
    rng g;
    rng_seed(&g, 200 + id);
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(1 + rng_below(&g, 4000));
    worker_request request = {.id = id,
                              .prompt = tokens,
                              .prompt_count = PROMPT - 3 * (uint32_t)id,
                              .max_new = NEW,
                              .selector = *run_selector(r),
                              .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(run_engine(r), &request) == STATUS_OK, "%s", log_last_error());
}

static outcome outcome_of(const run_setup *setup)
{
    outcome o = {{0}, {0}, 0};
    run *r = run_open(setup);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(r, i);
    while (!worker_idle(run_engine(r))) {
        const status s = worker_step(run_engine(r));
        EXPECT_MSG(s == STATUS_OK || s == STATUS_PENDING, "%s", log_last_error());
        worker_event event;
        while (worker_next_event(run_engine(r), &event)) {
            uint64_t *d = &o.digest[event.id];
            if (event.kind == WORKER_FINISHED) {
                EXPECT(event.result == STATUS_OK);
                o.parks += event.parks;
                continue;
            }
            const uint64_t link[3] = {*d, event.logits_digest, (uint64_t)event.sampled.token};
            *d = bytes_digest(link, sizeof link, 0);
            o.tokens[event.id]++;
        }
    }
    run_close(r);
    return o;
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
        submit(r, i);
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
