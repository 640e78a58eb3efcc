#include "tests/worker/run.h"

#include <stdlib.h>

#include "tests/test.h"

struct run {
    kern_backend *backend;
    model *model;
    worker_engine *engine;
    kern_selector selector;
    cluster_config cluster;
};

void *run_memory(size_t bytes)
{
    static arena *all;
    if (all == NULL) all = arena_create("test");
    return arena_alloc(all, bytes, 64);
}

run *run_open(const run_setup *setup)
{
    run *r = run_memory(sizeof *r);
    kern_config kern = {.backend = "cpu", .threads = setup->threads};
    EXPECT(kern_backend_open(&kern, &r->backend) == STATUS_OK);
    EXPECT_MSG(model_load(r->backend, setup->model_dir, setup->max_len, NULL, NULL, &r->model) ==
                   STATUS_OK, "%s", log_last_error());
    EXPECT_MSG(model_selector(&r->model->config, &setup->selector, &r->selector) == STATUS_OK, "%s",
               log_last_error());
    if (setup->cluster != NULL) r->cluster = *setup->cluster;
    else cluster_config_default(&r->cluster);
    r->cluster.device_pool_bytes = setup->pool_bytes;
    r->cluster.host_tier_bytes = setup->host_tier_bytes;
    r->cluster.max_num_seqs = setup->seqs;
    r->cluster.max_num_batched_tokens = setup->batched;
    r->cluster.max_model_len = setup->max_len;
    r->cluster.park_quantum_steps = setup->park_quantum != 0 ? setup->park_quantum : 16;
    worker_config config = {.model = r->model, .cluster = &r->cluster,
                            .with_store = setup->cluster != NULL, .clock = clock_monotonic,
                            .seed = 1, .prefetch = !setup->no_prefetch,
                            .verify = !setup->no_verify, .widest = r->selector};
    EXPECT_MSG(worker_create(&config, NULL, &r->engine) == STATUS_OK, "%s", log_last_error());
    return r;
}

void run_close(run *r)
{
    worker_destroy(r->engine);
    model_free(r->model);
    kern_backend_close(r->backend);
}

worker_engine *run_engine(run *r)
{
    return r->engine;
}

const kern_selector *run_selector(run *r)
{
    return &r->selector;
}

void run_tap(run *r, void (*tap)(void *, uint64_t, uint32_t, const float *), void *self)
{
    r->engine->tap = tap;
    r->engine->tap_self = self;
}

void run_score(run *r, const int32_t *tokens, uint32_t count, float *score)
{
    worker_request request = {.id = 1, .prompt = tokens, .prompt_count = count, .score = score,
                              .selector = r->selector, .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(r->engine, &request) == STATUS_OK, "%s", log_last_error());
    worker_event event;
    bool finished = false;
    while (!finished || !worker_idle(r->engine)) {
        status s = worker_step(r->engine);
        EXPECT(s == STATUS_OK || s == STATUS_PENDING);
        while (worker_next_event(r->engine, &event)) finished |= event.kind == WORKER_FINISHED;
    }
    EXPECT(event.result == STATUS_OK);
}
