#include "tests/worker/run.h"

#include <stdlib.h>

#include "tests/test.h"

/* The tests of the engine are built a second time for the GPU. */
#ifndef RUN_BACKEND
#define RUN_BACKEND "cpu"
#endif
#ifndef RUN_TILES
#define RUN_TILES false
#endif

struct run {
    kern_backend *backend;
    model *model;
    worker_engine *engine;
    kern_selector selector;
    cluster_config cluster;
    kv_hub *hub;
    uint32_t servers;
    kv_server *server[8];
    kv_transport *transport[8];
    arena *hub_memory;
    uint64_t node_bytes;
    kv_faults node_faults;
};

static void pump(void *self)
{
    run *r = self;
    for (uint32_t i = 0; i < r->servers; i++) {
        if (r->server[i] != NULL) kv_server_poll(r->server[i]);
    }
}

static void start_node(run *r, uint32_t i)
{
    EXPECT(kv_transport_local_open(r->hub_memory, r->hub, &r->transport[i]) == STATUS_OK);
    kv_server_config config = {.memory = r->hub_memory,
                               .transport = r->transport[i],
                               .clock = clock_monotonic,
                               .seed = 77 + i,
                               .memory_bytes = r->node_bytes,
                               .lease_grace_ns = 30000000000u,
                               .connections_max = 4,
                               .epoch = 1,
                               .faults = r->node_faults};
    snprintf(config.name, sizeof config.name, "n%u", i);
    snprintf(config.listen, sizeof config.listen, "%s", r->cluster.map.node[i].data);
    EXPECT_MSG(kv_server_create(&config, &r->server[i]) == STATUS_OK, "%s", log_last_error());
}

static void open_hub(run *r, const run_setup *setup)
{
    arena *a = arena_create("hub");
    r->hub = kv_hub_create(a, clock_monotonic, 0, 0);
    if (setup->hub_card_threads > 0)
        EXPECT(kv_hub_card_start(r->hub, setup->hub_card_threads) == STATUS_OK);
    r->servers = setup->hub_nodes;
    r->hub_memory = a;
    r->node_bytes = setup->hub_memory_bytes != 0 ? setup->hub_memory_bytes : 256 << 20;
    r->node_faults = setup->hub_faults;
    r->cluster.map.epoch = 1;
    r->cluster.map.node_count = setup->hub_nodes;
    r->cluster.map.replicas = setup->hub_replicas;
    for (uint32_t i = 0; i < setup->hub_nodes; i++) {
        cluster_node *n = &r->cluster.map.node[i];
        *n = (cluster_node){.weight = 1, .alive = true};
        snprintf(n->name, sizeof n->name, "n%u", i);
        snprintf(n->domain, sizeof n->domain, "d%u", i);
        snprintf(n->data, sizeof n->data, "127.0.0.1:%u", 7101 + i);
        start_node(r, i);
    }
}

void run_hub_kill(run *r, uint32_t node)
{
    kv_transport_close(r->transport[node]);
    kv_server_destroy(r->server[node]);
    r->server[node] = NULL;
}

void run_hub_restart(run *r, uint32_t node)
{
    start_node(r, node);
}

void *run_memory(size_t bytes)
{
    static arena *all;
    if (all == NULL) all = arena_create("test");
    return arena_alloc(all, bytes, 64);
}

static void open_model(run *r, const run_setup *setup)
{
    kern_config kern = {.backend = RUN_BACKEND, .threads = setup->threads};
    status opened = kern_backend_open(&kern, &r->backend);
    if (opened == STATUS_UNSUPPORTED) SKIP("%s", log_last_error());
    EXPECT_MSG(opened == STATUS_OK, "%s", log_last_error());
    if (setup->wrap != NULL) r->backend = setup->wrap(r->backend);
    EXPECT_MSG(model_load(r->backend, setup->model_dir, setup->max_len, NULL, NULL, &r->model) ==
                   STATUS_OK,
               "%s", log_last_error());
    EXPECT_MSG(model_selector(&r->model->config, &setup->selector, &r->selector) == STATUS_OK, "%s",
               log_last_error());
}

bool run_can(const run_setup *setup)
{
    run *r = run_memory(sizeof *r);
    open_model(r, setup);
    status asked = kern_selector_check(r->backend, &r->selector);
    EXPECT_MSG(asked == STATUS_OK || (asked == STATUS_UNSUPPORTED && !kern_runs_inline(r->backend)),
               "%s", log_last_error());
    if (asked != STATUS_OK)
        printf("%s with selector %s is left out: %s\n", setup->model_dir, setup->selector.name,
               log_last_error());
    model_free(r->model);
    kern_backend_close(r->backend);
    return asked == STATUS_OK;
}

run *run_open(const run_setup *setup)
{
    run *r = run_memory(sizeof *r);
    open_model(r, setup);
    if (setup->cluster != NULL)
        r->cluster = *setup->cluster;
    else
        cluster_config_default(&r->cluster);
    r->cluster.device_pool_bytes = setup->pool_bytes;
    r->cluster.host_tier_bytes = setup->host_tier_bytes;
    r->cluster.max_num_seqs = setup->seqs;
    r->cluster.max_num_batched_tokens = setup->batched;
    r->cluster.max_model_len = setup->max_len;
    r->cluster.park_quantum_steps = setup->park_quantum != 0 ? setup->park_quantum : 16;
    if (setup->hub_nodes > 0) open_hub(r, setup);
    worker_config config = {.model = r->model,
                            .cluster = &r->cluster,
                            .with_store = setup->cluster != NULL || setup->hub_nodes > 0,
                            .hub = r->hub,
                            .pump = pump,
                            .pump_self = r,
                            .clock = clock_monotonic,
                            .seed = 1,
                            .prefetch = !setup->no_prefetch,
                            .guess = setup->guess,
                            .two_batch = setup->two_batch,
                            .overlap = !setup->no_overlap,
                            .late_merge = !setup->no_late_merge,
                            .verify = !setup->no_verify,
                            .tiles = RUN_TILES,
                            .prompt_stage_bytes = setup->prompt_stage_bytes,
                            .widest = r->selector};
    EXPECT_MSG(worker_create(&config, NULL, &r->engine) == STATUS_OK, "%s", log_last_error());
    return r;
}

void run_close(run *r)
{
    worker_destroy(r->engine);
    for (uint32_t i = 0; i < r->servers; i++) {
        if (r->server[i] != NULL) run_hub_kill(r, i);
    }
    if (r->hub != NULL) kv_hub_card_stop(r->hub);
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
    worker_request request = {.id = 1,
                              .prompt = tokens,
                              .prompt_count = count,
                              .score = score,
                              .selector = r->selector,
                              .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(r->engine, &request) == STATUS_OK, "%s", log_last_error());
    worker_event event;
    bool finished = false;
    while (!finished || !worker_idle(r->engine)) {
        status s = worker_step(r->engine);
        EXPECT(s == STATUS_OK || s == STATUS_PENDING);
        while (worker_next_event(r->engine, &event))
            finished |= event.kind == WORKER_FINISHED;
    }
    EXPECT(event.result == STATUS_OK);
}

status run_decode(run *r, const int32_t *tokens, uint32_t count, uint32_t max_new,
                  uint64_t *out_digest, worker_event *out_final)
{
    return run_decode_stepped(r, tokens, count, max_new, NULL, out_digest, out_final);
}

status run_decode_stepped(run *r, const int32_t *tokens, uint32_t count, uint32_t max_new,
                          void (*stepped)(run *r), uint64_t *out_digest, worker_event *out_final)
{
    worker_request request = {.id = 1,
                              .prompt = tokens,
                              .prompt_count = count,
                              .max_new = max_new,
                              .selector = r->selector,
                              .sampling = {.top_p = 1.0f}};
    TRY(worker_submit(r->engine, &request));
    *out_digest = 0;
    bool finished = false;
    while (!finished || !worker_idle(r->engine)) {
        status s = worker_step(r->engine);
        if (s != STATUS_OK && s != STATUS_PENDING) return s;
        if (stepped != NULL) stepped(r);
        worker_event event;
        while (worker_next_event(r->engine, &event)) {
            uint64_t step[3] = {*out_digest, event.logits_digest, (uint64_t)event.sampled.token};
            if (event.kind == WORKER_TOKEN)
                *out_digest = bytes_digest(step, sizeof step, 0);
            else
                *out_final = event;
            finished |= event.kind == WORKER_FINISHED;
        }
    }
    return out_final->result;
}
