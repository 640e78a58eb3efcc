/* A timeline: one lane of steps, one of ops, one of waits for blocks, and one for each stream that
 * runs beside them.
 *
 * Ops do not know their layer; the weights, summaries, tables and exchanges they are given do. A
 * device that works behind its stream tells afterwards when each op ran, in the order in which they
 * were launched: until then their layers stand in a queue. */
#include "worker/trace.h"

#include <stdlib.h>
#include <string.h>

enum { LANE_STEP, LANE_OP, LANE_WAIT, LANE_GATHER, LANE_AHEAD, LANES };
enum { LAUNCHED_MAX = 4096 }; /* ops of a stream from one sync to the next; a step has about 900 */

typedef struct span_row {
    uint64_t begin_ns, end_ns;
    int32_t layer; /* LANE_STEP: rows */
    uint8_t lane, op;
} span_row;

/* One of the streams that are watched. */
typedef struct trace_stream {
    trace *of;
    kern_watch watch;
    uint8_t lane;
    int32_t layer[LAUNCHED_MAX]; /* of ops launched and not yet told of */
    uint64_t launched, told, left_out;
} trace_stream;

struct trace {
    worker_engine *engine;
    span_row *row;
    uint32_t count, room;
    uint64_t lost, begun_ns;
    trace_stream stream[ENGINE_STREAMS]; /* as engine_streams has them */
};

static void keep(trace *t, span_row row)
{
    if (t->count == t->room)
        t->lost++;
    else
        t->row[t->count++] = row;
}

/* ---- layers ---------------------------------------------------------------------------------- */

static int32_t layer_of_weight(const worker_engine *e, const kern_weight *w)
{
    for (uint32_t l = 0; l < e->layers; l++) {
        const model_layer *m = &e->config.model->layer[l];
        if (w == m->qkv || w == m->o || w == m->gate_up || w == m->down) return (int32_t)l;
    }
    return -1;
}

static int32_t layer_of_norm(const worker_engine *e, const uint16_t *weight)
{
    for (uint32_t l = 0; l < e->layers; l++) {
        const model_layer *m = &e->config.model->layer[l];
        if (weight == m->input_norm || weight == m->post_norm) return (int32_t)l;
    }
    return -1;
}

static int32_t layer_of_summary(const worker_engine *e, const kern_summary *s)
{
    size_t stride = (size_t)e->seqs * e->kv_heads * e->max_len;
    return (int32_t)((size_t)(s->u - e->u) / stride);
}

static int32_t layer_of_table(const worker_engine *e, const kern_table *t)
{
    size_t stride = (size_t)e->seqs * e->kv_heads * e->max_blocks;
    return (int32_t)((size_t)(t->entry_of - e->entry_of) / stride);
}

static int32_t layer_of_exchange(const worker_engine *e, const kern_exchange *x)
{
    size_t i = (size_t)(x - e->exchange);
    return i < e->demands ? (int32_t)(i / e->halves) : -1;
}

int32_t trace_layer_of(const worker_engine *e, uint32_t op, const void *args)
{
    switch (op) {
    case KERN_OP_linear:
        return layer_of_weight(e, ((const kern_linear_args *)args)->weight);
    case KERN_OP_rmsnorm:
        return layer_of_norm(e, ((const kern_rmsnorm_args *)args)->weight);
    case KERN_OP_compress:
        return layer_of_summary(e, &((const kern_compress_args *)args)->summary);
    case KERN_OP_qkv:
        return layer_of_summary(e, &((const kern_qkv_args *)args)->compress.summary);
    case KERN_OP_enter:
        return layer_of_table(e, &((const kern_enter_args *)args)->locate.table);
    case KERN_OP_score:
        return layer_of_summary(e, &((const kern_score_args *)args)->summary);
    case KERN_OP_pool:
        return layer_of_summary(e, &((const kern_pool_args *)args)->summary);
    case KERN_OP_pick:
        return layer_of_summary(e, &((const kern_pick_args *)args)->pool.summary);
    case KERN_OP_attend:
        return layer_of_summary(e, &((const kern_attend_args *)args)->summary);
    case KERN_OP_candidates:
        return layer_of_summary(e, &((const kern_candidates_args *)args)->summary);
    case KERN_OP_plan:
        return layer_of_table(e, &((const kern_plan_args *)args)->table);
    case KERN_OP_gather:
        return layer_of_table(e, &((const kern_gather_args *)args)->table);
    case KERN_OP_bring:
        return layer_of_table(e, &((const kern_bring_args *)args)->gather.table);
    case KERN_OP_install:
        return layer_of_table(e, &((const kern_install_args *)args)->table);
    case KERN_OP_wait:
        return layer_of_exchange(e, ((const kern_wait_args *)args)->exchange);
    default:
        return -1;
    }
}

/* ---- recording ------------------------------------------------------------------------------- */

static void on_begin(void *self, uint32_t op, const void *args)
{
    trace *t = ((trace_stream *)self)->of;
    (void)op;
    (void)args;
    t->begun_ns = clock_now(&t->engine->config.clock);
}

static void keep_op(const trace_stream *s, uint32_t op, int32_t layer, uint64_t begin_ns,
                    uint64_t end_ns)
{
    bool waits = op == KERN_OP_wait && s->lane == LANE_OP;
    keep(s->of, (span_row){.begin_ns = begin_ns,
                           .end_ns = end_ns,
                           .layer = layer,
                           .lane = waits ? LANE_WAIT : s->lane,
                           .op = (uint8_t)op});
}

static void on_end(void *self, uint32_t op, const void *args)
{
    trace_stream *s = self;
    int32_t layer = trace_layer_of(s->of->engine, op, args);
    if (s->watch.ran != NULL)
        s->layer[s->launched++ % LAUNCHED_MAX] = layer;
    else
        keep_op(s, op, layer, s->of->begun_ns, clock_now(&s->of->engine->config.clock));
}

/* Ops left out are the last of those told of together: their layers come before the next ones'. */
static void on_ran(void *self, uint32_t op, uint64_t begin_ns, uint64_t end_ns)
{
    trace_stream *s = self;
    if (op == KERN_OP_COUNT) {
        s->told += s->left_out;
        s->left_out = end_ns;
        s->of->lost += end_ns;
        return;
    }
    bool known = s->launched - s->told <= LAUNCHED_MAX;
    keep_op(s, op, known ? s->layer[s->told % LAUNCHED_MAX] : -1, begin_ns, end_ns);
    s->told++;
}

trace *trace_create(arena *a, worker_engine *engine, uint32_t spans)
{
    CHECK(engine != NULL && spans > 0);
    trace *t = ARENA_NEW(a, trace, 1);
    t->engine = engine;
    t->row = ARENA_NEW(a, span_row, spans);
    t->room = spans;
    for (uint32_t i = 0; i < ENGINE_STREAMS; i++) {
        trace_stream *s = &t->stream[i];
        s->of = t;
        s->lane = i == 0 ? LANE_OP : (uint8_t)(LANE_GATHER + i - 1);
        s->watch = (kern_watch){on_begin, on_end, s, engine->inline_ops ? NULL : on_ran};
    }
    return t;
}

void trace_switch(trace *t, bool on)
{
    kern_stream *streams[ENGINE_STREAMS];
    uint32_t count = engine_streams(t->engine, streams);
    for (uint32_t i = 0; i < count; i++)
        kern_stream_watch(streams[i], on ? &t->stream[i].watch : NULL);
}

void trace_step(trace *t, uint64_t begin_ns, uint64_t end_ns, uint32_t rows)
{
    keep(t, (span_row){begin_ns, end_ns, (int32_t)rows, LANE_STEP, 0});
}

/* ---- the file -------------------------------------------------------------------------------- */

static void write_row(FILE *f, const span_row *r, uint64_t zero_ns)
{
    double from = (double)(r->begin_ns - zero_ns) * 1e-3;
    double us = (double)(r->end_ns - r->begin_ns) * 1e-3;
    if (r->lane == LANE_STEP) {
        (void)fprintf(f,
                      ",\n{\"name\":\"step\",\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"ts\":%.3f,"
                      "\"dur\":%.3f,\"args\":{\"rows\":%d}}",
                      r->lane, from, us, r->layer);
        return;
    }
    (void)fprintf(f,
                  ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":1,\"tid\":%u,\"ts\":%.3f,\"dur\":%.3f",
                  kern_op_name(r->op), r->lane, from, us);
    if (r->layer >= 0) (void)fprintf(f, ",\"args\":{\"layer\":%d}", r->layer);
    (void)fputs("}", f);
}

status trace_write(const trace *t, const char *path, const char *title)
{
    static const char *const lanes[LANES] = {"steps", "ops", "waits for blocks", "gathers",
                                             "selections ahead"};
    uint32_t used = t->engine->side == t->engine->stream ? LANE_GATHER : LANES;
    FILE *f = fopen(path, "we");
    if (f == NULL) return FAIL(IO, "%s: cannot be written", path);
    uint64_t zero_ns = UINT64_MAX;
    for (uint32_t i = 0; i < t->count; i++)
        zero_ns = t->row[i].begin_ns < zero_ns ? t->row[i].begin_ns : zero_ns;
    (void)fprintf(f,
                  "{\"displayTimeUnit\":\"ms\",\"otherData\":{\"spans\":%u,\"left_out\":%llu},"
                  "\"traceEvents\":[\n"
                  "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"%s\"}}",
                  t->count, (unsigned long long)t->lost, title);
    for (uint32_t i = 0; i < used; i++)
        (void)fprintf(f,
                      ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%u,"
                      "\"args\":{\"name\":\"%s\"}}",
                      i, lanes[i]);
    for (uint32_t i = 0; i < t->count; i++)
        write_row(f, &t->row[i], zero_ns);
    (void)fputs("\n]}\n", f);
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) return FAIL(IO, "%s: cannot be written", path);
    return STATUS_OK;
}
