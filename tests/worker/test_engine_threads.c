/* tests/worker/test_engine_threads.c - step thread and io thread of an engine without a store: more
 * requests than slots, a small host tier, cancellation at any moment. Runs under ThreadSanitizer
 * too; so prompts are short. */
#include "tests/test.h"
#include "tests/worker/run.h"

enum { REQUESTS = 6, PROMPT = 150, NEW = 8 };

static run_setup small_setup(void)
{
    return (run_setup){.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .selector = {.name = "nosa", .budget = "8"},
                       .max_len = 256,
                       .seqs = 2,
                       .batched = 64,
                       .threads = 2,
                       .park_quantum = 2,
                       .pool_bytes = 8 << 20};
}

typedef struct outcome {
    uint32_t tokens;
    uint64_t digest; /* chained over logits and tokens */
    bool finished;
    worker_event final;
} outcome;

static void submit(run *r, uint64_t id, uint32_t max_new)
{
    int32_t prompt[PROMPT];
    rng random;
    rng_seed(&random, id);
    for (uint32_t i = 0; i < PROMPT; i++)
        prompt[i] = (int32_t)(1 + rng_below(&random, 4000));
    const worker_request request = {.id = id,
                                    .prompt = prompt,
                                    .prompt_count = PROMPT,
                                    .max_new = max_new,
                                    .selector = *run_selector(r),
                                    .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(run_engine(r), &request) == STATUS_OK, "%s", log_last_error());
}

static void step_once(run *r, outcome *out)
{
    const status s = worker_step(run_engine(r));
    EXPECT(s == STATUS_OK || s == STATUS_PENDING);
    worker_event event;
    while (worker_next_event(run_engine(r), &event)) {
        EXPECT(event.id < REQUESTS);
        outcome *o = &out[event.id];
        EXPECT(!o->finished); /* nothing comes after the end */
        if (event.kind == WORKER_FINISHED) {
            o->finished = true;
            o->final = event;
            continue;
        }
        const uint64_t link[3] = {o->digest, event.logits_digest, (uint64_t)event.sampled.token};
        o->digest = bytes_digest(link, sizeof link, 0);
        EXPECT_EQ_U64(event.index, o->tokens++);
    }
}

static void run_to_idle(run *r, outcome *out)
{
    while (!worker_idle(run_engine(r)))
        step_once(r, out);
}

TEST(requests_that_share_an_engine_have_the_bits_they_have_alone)
{
    run_setup setup = small_setup();
    outcome alone[REQUESTS] = {0}, together[REQUESTS] = {0};
    run *r = run_open(&setup);
    for (uint64_t id = 0; id < REQUESTS; id++)
        submit(r, id, NEW);
    run_to_idle(r, together);
    run_close(r);
    setup.seqs = 1;
    setup.threads = 1;
    r = run_open(&setup);
    for (uint64_t id = 0; id < REQUESTS; id += 3) {
        submit(r, id, NEW);
        run_to_idle(r, alone);
    }
    run_close(r);
    for (uint64_t id = 0; id < REQUESTS; id++) {
        EXPECT(together[id].finished && together[id].tokens == NEW);
        EXPECT_EQ_I64(together[id].final.reason, REASON_LENGTH);
        if (alone[id].finished) EXPECT_EQ_X64(together[id].digest, alone[id].digest);
    }
}

TEST(a_cancelled_request_ends_once_wherever_it_was)
{
    run_setup setup = small_setup();
    run *r = run_open(&setup);
    outcome out[REQUESTS] = {0};
    for (uint64_t id = 0; id < REQUESTS; id++)
        submit(r, id, id == 0 ? NEW : 100);
    worker_cancel(run_engine(r), REQUESTS - 1); /* still queued */
    worker_cancel(run_engine(r), 999);          /* nobody: no harm */
    for (uint64_t id = 1; id < REQUESTS - 1; id++) {
        while (out[id].tokens < id - 1 && !out[id].finished) /* id 1: before its first token */
            step_once(r, out);
        worker_cancel(run_engine(r), id);
        worker_cancel(run_engine(r), id); /* twice is once */
    }
    run_to_idle(r, out);
    run_close(r);
    EXPECT_EQ_I64(out[0].final.reason, REASON_LENGTH);
    EXPECT_EQ_U64(out[0].tokens, NEW);
    for (uint64_t id = 1; id < REQUESTS; id++) {
        EXPECT(out[id].finished && out[id].tokens < 100);
        EXPECT_EQ_I64(out[id].final.reason, REASON_CANCELED);
    }
    EXPECT_EQ_U64(out[REQUESTS - 1].tokens, 0);
}

TEST_MAIN()
