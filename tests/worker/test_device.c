/* A device that fails under the engine, at every kind of call: no abort, no wrong token, one
 * FINISHED event a request. The device is the CPU backend with tables that count calls and begin to
 * fail at one of them, for good, as a GPU does after a launch error or an uncorrectable ECC one. */
#include "tests/test.h"
#include "tests/worker/run.h"

#include "kernels/backend.h"

enum { REQUESTS = 3, PROMPT = 300, NEW = 70 };

static struct {
    const kern_ops *ops;
    const kern_device_ops *device;
    uint64_t calls, fail_at; /* from call fail_at on every call fails */
    bool flip_parked;        /* a bit of a parked sequence's open block, in host memory */
} broken;

static bool works(void)
{
    return broken.calls++ < broken.fail_at;
}

#define X(op)                                                                                      \
    static status broken_##op(kern_stream *stream, const kern_##op##_args *args)                   \
    {                                                                                              \
        if (!works()) return STATUS_GPU;                                                           \
        return broken.ops->op(stream, args);                                                       \
    }
KERN_OPS(X)
#undef X

static status broken_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes)
{
    return works() ? broken.device->copy(stream, to, from, bytes) : STATUS_GPU;
}

static status broken_fill(kern_stream *stream, void *to, int byte, uint64_t bytes)
{
    return works() ? broken.device->fill(stream, to, byte, bytes) : STATUS_GPU;
}

static status broken_sync(kern_stream *stream)
{
    return works() ? broken.device->stream_sync(stream) : STATUS_GPU;
}

static const kern_ops broken_ops = {
#define X(op) .op = broken_##op,
    KERN_OPS(X)
#undef X
};

/* Two sequences fit the pool, so that the third makes them park. */
static run *open_broken(uint64_t fail_at)
{
    run_setup setup = {.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .selector = {.name = "nosa", .budget = "8"},
                       .max_len = 512,
                       .seqs = REQUESTS,
                       .batched = 100,
                       .threads = 1,
                       .pool_bytes = 4 << 20,
                       .park_quantum = 4,
                       .hub_nodes = 2,
                       .hub_replicas = 1};
    static kern_ops ops;
    static kern_device_ops device;
    run *r = run_open(&setup);
    kern_backend *b = run_engine(r)->backend;
    broken.ops = b->ops;
    broken.device = b->device;
    broken.calls = 0;
    broken.fail_at = fail_at;
    ops = broken_ops;
    device = *b->device;
    device.copy = broken_copy;
    device.fill = broken_fill;
    device.stream_sync = broken_sync;
    b->ops = &ops;
    b->device = &device;
    return r;
}

typedef struct outcome {
    int32_t token[REQUESTS][NEW];
    uint32_t tokens[REQUESTS], finished[REQUESTS];
    status result[REQUESTS];
    uint32_t parks, recomputes;
    status ended; /* of the step that ended the engine, or OK */
} outcome;

static void submit(run *r, uint64_t id)
{
    int32_t tokens[PROMPT];
    rng g;
    rng_seed(&g, 100 + id);
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = (int32_t)(1 + rng_below(&g, 4000));
    worker_request request = {.id = id,
                              .prompt = tokens,
                              .prompt_count = PROMPT,
                              .max_new = NEW,
                              .selector = *run_selector(r),
                              .sampling = {.top_p = 1.0f}};
    EXPECT_MSG(worker_submit(run_engine(r), &request) == STATUS_OK, "%s", log_last_error());
}

static void take_events(run *r, outcome *o)
{
    worker_event event;
    while (worker_next_event(run_engine(r), &event)) {
        EXPECT(event.id < REQUESTS && o->finished[event.id] == 0);
        if (event.kind == WORKER_TOKEN) {
            o->token[event.id][o->tokens[event.id]++] = event.sampled.token;
        } else {
            o->finished[event.id]++;
            o->result[event.id] = event.result;
            o->parks += event.parks;
            o->recomputes += event.recomputes;
        }
    }
}

static void flip_parked(worker_engine *e)
{
    for (uint32_t i = 0; i < e->seqs && broken.flip_parked; i++) {
        const sequence *s = &e->seq[i];
        if (s->state != SEQ_READY || s->final.parks == 0 || s->tail_slot[0] < 0) continue;
        io_slot_bytes(e->io, s->tail_slot[0])[100] ^= 0x10;
        broken.flip_parked = false;
    }
}

static void run_out(run *r, outcome *o)
{
    *o = (outcome){.ended = STATUS_OK};
    while (!worker_idle(run_engine(r)) && o->ended == STATUS_OK) {
        status s = worker_step(run_engine(r));
        if (s != STATUS_OK && s != STATUS_PENDING) o->ended = s;
        take_events(r, o);
        flip_parked(run_engine(r));
    }
    take_events(r, o);
    for (uint32_t i = 0; i < REQUESTS; i++)
        EXPECT_EQ_U64(o->finished[i], 1);
}

static const outcome *whole(uint64_t *out_calls)
{
    static outcome known;
    static uint64_t calls;
    if (calls == 0) {
        run *r = open_broken(UINT64_MAX);
        for (uint32_t i = 0; i < REQUESTS; i++)
            submit(r, i);
        calls = broken.calls;
        run_out(r, &known);
        EXPECT(known.ended == STATUS_OK && known.parks > 0);
        calls = broken.calls;
        run_close(r);
    }
    *out_calls = calls;
    return &known;
}

static void fails_at(uint64_t call)
{
    uint64_t all;
    const outcome *good = whole(&all);
    outcome o;
    run *r = open_broken(UINT64_MAX);
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(r, i);
    broken.fail_at = call;
    run_out(r, &o);
    bool reached = broken.calls > call; /* runs differ a little: prefetch follows the clock */
    EXPECT_MSG(o.ended == (reached ? STATUS_GPU : STATUS_OK),
               "call %llu of %llu: the engine ended with %s", (unsigned long long)call,
               (unsigned long long)broken.calls, status_sentence(o.ended));
    for (uint32_t i = 0; i < REQUESTS; i++) {
        EXPECT(o.result[i] == STATUS_GPU || (o.result[i] == STATUS_OK && o.tokens[i] == NEW));
        for (uint32_t k = 0; k < o.tokens[i]; k++)
            EXPECT_EQ_U64((uint32_t)o.token[i][k], (uint32_t)good->token[i][k]);
    }
    EXPECT(worker_idle(run_engine(r)));
    if (reached) EXPECT(worker_step(run_engine(r)) == STATUS_INTERNAL);
    run_close(r);
}

TEST(a_device_that_fails_at_any_call_fails_every_request_and_gives_no_wrong_token)
{
    uint64_t all;
    (void)whole(&all);
    const uint64_t start = 1; /* of the tables' copies when requests come */
    rng g;
    rng_seed(&g, 5);
    for (uint32_t i = 0; i < 40; i++) /* spread over the run, none at a fixed distance */
        fails_at(start + (all - start) * i / 40 + rng_below(&g, (uint32_t)(all / 40)));
}

TEST(a_parked_block_that_comes_back_with_other_bytes_is_computed_again)
{
    uint64_t all;
    const outcome *good = whole(&all);
    outcome o;
    run *r = open_broken(UINT64_MAX);
    broken.flip_parked = true;
    for (uint32_t i = 0; i < REQUESTS; i++)
        submit(r, i);
    run_out(r, &o);
    EXPECT(!broken.flip_parked && o.ended == STATUS_OK);
    EXPECT_EQ_U64(o.recomputes, 1);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        EXPECT(o.result[i] == STATUS_OK && o.tokens[i] == NEW);
        for (uint32_t k = 0; k < NEW; k++)
            EXPECT_EQ_U64((uint32_t)o.token[i][k], (uint32_t)good->token[i][k]);
    }
    run_close(r);
}

TEST_MAIN()
