#include "tests/worker/apart.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "tests/test.h"

enum { QUEUE = 1024, RANGES = 512, MARKS = 8192 }; /* a GPU takes about as many launches ahead */

typedef struct apart_stream apart_stream;

typedef union command_args {
#define X(op) kern_##op##_args op;
    KERN_OPS(X)
#undef X
    struct {
        void *to;
        const void *from;
        uint64_t bytes;
        int byte;
    } move;
    struct {
        apart_stream *of;
        uint64_t until;
    } after;
    uint32_t mark;
    _Atomic int32_t *flag;
} command_args;

typedef struct command {
    status (*run)(apart_stream *s, const command_args *args);
    command_args args;
} command;

struct apart_stream {
    kern_stream base; /* first */
    kern_stream *inner;
    arena *memory;
    command *queue; /* [QUEUE] */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    uint64_t asked, done, waits;        /* waits: asked for and not over. Under the mutex */
    uint64_t place[KERN_STREAM_PLACES]; /* what had been asked for there: the caller's */
    bool stop;
    status failed;
    struct {
        uint32_t op;
        uint64_t ns;
    } mark[MARKS]; /* the device's until a sync */
    uint32_t marked;
};

static struct {
    kern_backend backend;
    kern_backend *inner;
    pthread_mutex_t ops; /* of all streams: the backend within has one team of threads */
    struct {
        const uint8_t *at;
        uint64_t bytes;
    } range[RANGES];
    void (*linear_seen)(const kern_linear_args *args);
    bool rounds; /* products do */
} apart;

void apart_watch_linear(void (*seen)(const kern_linear_args *args))
{
    apart.linear_seen = seen;
}

/* ---- the device's side ----------------------------------------------------------------------- */

#define X(op)                                                                                      \
    static status run_##op(apart_stream *s, const command_args *args)                              \
    {                                                                                              \
        pthread_mutex_lock(&apart.ops);                                                            \
        const status done = apart.inner->ops->op(s->inner, &args->op);                             \
        pthread_mutex_unlock(&apart.ops);                                                          \
        return done;                                                                               \
    }
KERN_OPS(X)
#undef X

/* ---- products of rows in bf16 ---- */

static float *floats(uint64_t count)
{
    float *p = malloc((count + 1) * sizeof *p);
    EXPECT(p != NULL);
    return p;
}

static status run_product(apart_stream *s, const command_args *args)
{
    if (!apart.rounds) return run_linear(s, args);
    command_args inner = *args;
    kern_linear_args *a = &inner.linear;
    const uint32_t k = a->weight->k;
    float *x = floats((uint64_t)a->rows * k);
    for (uint64_t i = 0; i < (uint64_t)a->rows * k; i++)
        x[i] = kern_bf16_to_f32(
            a->x_bf16 != NULL ? a->x_bf16[i] : kern_f32_to_bf16(a->x[i / k * a->x_stride + i % k]));
    a->x = x;
    a->x_bf16 = NULL;
    a->x_stride = k;
    const status done = run_linear(s, &inner);
    free(x);
    return done;
}

/* An op that makes `count` such rows' values. */
#define X(op, out, count)                                                                          \
    static status run_##op##_given(apart_stream *s, const command_args *args)                      \
    {                                                                                              \
        const kern_##op##_args *asked = &args->op;                                                 \
        if (asked->out_bf16 == NULL) return run_##op(s, args);                                     \
        EXPECT(kern_rounds_operands(s->base.backend));                                             \
        const uint64_t n = (count);                                                                \
        command_args inner = *args;                                                                \
        inner.op.out_bf16 = NULL;                                                                  \
        inner.op.out = floats(n);                                                                  \
        if (KERN_OP_##op == KERN_OP_gate) memcpy(inner.op.out, args->gate.x, n * sizeof(float));   \
        const status done = run_##op(s, &inner);                                                   \
        for (uint64_t i = 0; i < n; i++)                                                           \
            asked->out_bf16[i] = kern_f32_to_bf16(inner.op.out[i]);                                \
        free(inner.op.out);                                                                        \
        return done;                                                                               \
    }
X(rmsnorm, out, (uint64_t)asked->rows * asked->hidden)
X(swiglu, out, (uint64_t)asked->rows * asked->ffn)
X(attend, out, (uint64_t)asked->rows * asked->heads * asked->summary.head_dim)
X(gate, x, (uint64_t)asked->rows * asked->heads * asked->head_dim)
#undef X

static status run_copy(apart_stream *s, const command_args *args)
{
    (void)s;
    memmove(args->move.to, args->move.from, args->move.bytes);
    return STATUS_OK;
}

static status run_fill(apart_stream *s, const command_args *args)
{
    (void)s;
    memset(args->move.to, args->move.byte, args->move.bytes);
    return STATUS_OK;
}

/* As wait.cu: the host answers from its own threads, and nobody is asked to pause. */
static status run_watch(apart_stream *s, const command_args *args)
{
    const kern_wait_args *a = &args->wait;
    kern_exchange *x = a->exchange;
    const uint32_t count = atomic_load_explicit(&x->published, memory_order_acquire);
    const uint64_t start = clock_now(&a->host->clock);
    while (a->step != 0 && a->waited_ns == NULL &&
           (int32_t)(atomic_load_explicit(&x->answered, memory_order_acquire) - a->step) < 0)
        sched_yield();
    for (uint32_t i = 0; i < count; i++) {
        while (atomic_load_explicit(&x->arrival[i].state, memory_order_acquire) == STATUS_PENDING &&
               clock_now(&a->host->clock) < a->deadline_ns)
            sched_yield();
        int32_t pending = STATUS_PENDING;
        (void)atomic_compare_exchange_strong(&x->arrival[i].state, &pending, STATUS_DEADLINE);
    }
    if (a->waited_ns != NULL) *a->waited_ns += clock_now(&a->host->clock) - start;
    pthread_mutex_lock(&s->mutex);
    s->waits--;
    pthread_mutex_unlock(&s->mutex);
    return STATUS_OK;
}

static status run_after(apart_stream *s, const command_args *args)
{
    apart_stream *other = args->after.of;
    (void)s;
    pthread_mutex_lock(&other->mutex);
    while (other->done < args->after.until)
        pthread_cond_wait(&other->changed, &other->mutex);
    const status result = other->failed;
    pthread_mutex_unlock(&other->mutex);
    return result;
}

static status run_tell(apart_stream *s, const command_args *args)
{
    (void)s;
    atomic_store_explicit(args->flag, 1, memory_order_release);
    return STATUS_OK;
}

static status run_mark(apart_stream *s, const command_args *args)
{
    EXPECT(s->marked < MARKS);
    s->mark[s->marked].op = args->mark;
    s->mark[s->marked++].ns = clock_now(&clock_monotonic);
    return STATUS_OK;
}

static void *work(void *self)
{
    apart_stream *s = self;
    pthread_mutex_lock(&s->mutex);
    for (;;) {
        while (s->done == s->asked && !s->stop)
            pthread_cond_wait(&s->changed, &s->mutex);
        if (s->done == s->asked) break;
        const command *c = &s->queue[s->done % QUEUE];
        pthread_mutex_unlock(&s->mutex);
        const status result = s->failed == STATUS_OK ? c->run(s, &c->args) : s->failed;
        pthread_mutex_lock(&s->mutex);
        s->failed = result;
        s->done++;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- the host's side ------------------------------------------------------------------------- */

static command_args *next_args(apart_stream *s, status (*run)(apart_stream *, const command_args *))
{
    pthread_mutex_lock(&s->mutex);
    while (s->asked - s->done == QUEUE)
        pthread_cond_wait(&s->changed, &s->mutex);
    command *c = &s->queue[s->asked % QUEUE];
    pthread_mutex_unlock(&s->mutex);
    c->run = run;
    return &c->args;
}

static void hand_over(apart_stream *s, bool is_wait)
{
    pthread_mutex_lock(&s->mutex);
    s->asked++;
    s->waits += is_wait;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static apart_stream *of(kern_stream *stream)
{
    return (apart_stream *)(void *)stream;
}

#define X(op)                                                                                      \
    static status apart_##op(kern_stream *stream, const kern_##op##_args *args)                    \
    {                                                                                              \
        next_args(of(stream), run_##op)->op = *args;                                               \
        hand_over(of(stream), false);                                                              \
        return STATUS_OK;                                                                          \
    }
KERN_OPS(X)
#undef X

static status apart_watch(kern_stream *stream, const kern_wait_args *args)
{
    EXPECT(args->host->pause == NULL);
    next_args(of(stream), run_watch)->wait = *args;
    hand_over(of(stream), true);
    return STATUS_OK;
}

static status apart_product(kern_stream *stream, const kern_linear_args *args)
{
    if (apart.linear_seen != NULL) apart.linear_seen(args);
    next_args(of(stream), run_product)->linear = *args;
    hand_over(of(stream), false);
    return STATUS_OK;
}

#define X(op)                                                                                      \
    static status apart_##op##_given(kern_stream *stream, const kern_##op##_args *args)            \
    {                                                                                              \
        next_args(of(stream), run_##op##_given)->op = *args;                                       \
        hand_over(of(stream), false);                                                              \
        return STATUS_OK;                                                                          \
    }
X(rmsnorm)
X(swiglu)
X(attend)
X(gate)
#undef X

static void apart_mark(kern_stream *stream, uint32_t op)
{
    next_args(of(stream), run_mark)->mark = op;
    hand_over(of(stream), false);
}

/* As module.cu tells; the last op of all is left out, if there is anybody to tell. */
static void tell_marks(apart_stream *s)
{
    const kern_watch *watch = s->base.watch;
    const uint32_t marked = s->marked;
    uint32_t last = marked;
    s->marked = 0;
    if (watch == NULL || watch->ran == NULL || marked == 0) return;
    while (last > 0 && s->mark[last - 1].op == KERN_OP_COUNT)
        last--;
    watch->ran(watch->self, KERN_OP_COUNT, 0, last > 0);
    for (uint32_t i = 0; i + 1 < last; i++)
        if (s->mark[i].op != KERN_OP_COUNT)
            watch->ran(watch->self, s->mark[i].op, s->mark[i].ns, s->mark[i + 1].ns);
}

static status apart_sync(kern_stream *stream)
{
    apart_stream *s = of(stream);
    pthread_mutex_lock(&s->mutex);
    while (s->done != s->asked)
        pthread_cond_wait(&s->changed, &s->mutex);
    const status result = s->failed;
    pthread_mutex_unlock(&s->mutex);
    tell_marks(s);
    return result;
}

static status apart_poll(kern_stream *stream)
{
    apart_stream *s = of(stream);
    pthread_mutex_lock(&s->mutex);
    const status result = s->done != s->asked ? STATUS_PENDING : s->failed;
    pthread_mutex_unlock(&s->mutex);
    return result;
}

static status apart_place(kern_stream *stream, uint32_t place)
{
    apart_stream *s = of(stream);
    pthread_mutex_lock(&s->mutex);
    s->place[place] = s->asked;
    pthread_mutex_unlock(&s->mutex);
    return STATUS_OK;
}

static status apart_tell(kern_stream *stream, _Atomic int32_t *flag)
{
    next_args(of(stream), run_tell)->flag = flag;
    hand_over(of(stream), false);
    return STATUS_OK;
}

static status apart_after(kern_stream *stream, kern_stream *other, uint32_t place)
{
    command_args *args = next_args(of(stream), run_after);
    args->after.of = of(other);
    args->after.until = of(other)->place[place];
    hand_over(of(stream), false);
    return STATUS_OK;
}

static bool is_known(const void *memory)
{
    const uint8_t *at = memory;
    for (uint32_t i = 0; i < RANGES; i++) {
        if (apart.range[i].at != NULL && at >= apart.range[i].at &&
            at < apart.range[i].at + apart.range[i].bytes)
            return true;
    }
    return false;
}

static status apart_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes)
{
    apart_stream *s = of(stream);
    command_args *args = next_args(s, run_copy);
    args->move.to = to;
    args->move.from = from;
    args->move.bytes = bytes;
    EXPECT_MSG(is_known(to), "%s", "a copy into memory that is neither the device's nor shared");
    const bool pageable = !is_known(from);
    pthread_mutex_lock(&s->mutex);
    const uint64_t waits = s->waits;
    pthread_mutex_unlock(&s->mutex);
    EXPECT_MSG(!pageable || waits == 0, "%s", "a copy from plain memory stands behind a wait");
    hand_over(s, false);
    return pageable ? apart_sync(stream) : STATUS_OK;
}

static status apart_fill(kern_stream *stream, void *to, int byte, uint64_t bytes)
{
    EXPECT(is_known(to));
    command_args *args = next_args(of(stream), run_fill);
    args->move.to = to;
    args->move.byte = byte;
    args->move.bytes = bytes;
    hand_over(of(stream), false);
    return STATUS_OK;
}

/* ---- memory, streams, the whole -------------------------------------------------------------- */

static status apart_alloc(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    (void)backend;
    TRY(kern_alloc(apart.inner, bytes, out_memory));
    for (uint32_t i = 0; i < RANGES; i++) {
        if (apart.range[i].at != NULL) continue;
        apart.range[i].at = *out_memory;
        apart.range[i].bytes = bytes;
        return STATUS_OK;
    }
    EXPECT_MSG(false, "%s", "too many allocations for the list of them");
    return STATUS_INTERNAL;
}

static void apart_free(kern_backend *backend, void *memory)
{
    (void)backend;
    for (uint32_t i = 0; i < RANGES; i++)
        if (apart.range[i].at == memory) apart.range[i].at = NULL;
    kern_free(apart.inner, memory);
}

static status apart_stream_create(kern_backend *backend, kern_stream **out_stream)
{
    arena *a = arena_create("apart");
    apart_stream *s = ARENA_NEW(a, apart_stream, 1);
    s->memory = a;
    s->base.backend = backend;
    s->queue = ARENA_NEW(a, command, QUEUE);
    TRY(kern_stream_create(apart.inner, &s->inner));
    EXPECT(pthread_mutex_init(&s->mutex, NULL) == 0 && pthread_cond_init(&s->changed, NULL) == 0);
    EXPECT(pthread_create(&s->thread, NULL, work, s) == 0);
    *out_stream = &s->base;
    return STATUS_OK;
}

static void apart_stream_destroy(kern_stream *stream)
{
    apart_stream *s = of(stream);
    pthread_mutex_lock(&s->mutex);
    s->stop = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    EXPECT(pthread_join(s->thread, NULL) == 0);
    kern_stream_destroy(s->inner);
    arena_destroy(s->memory);
}

static status apart_weight_pack(kern_backend *backend, const kern_matrix *parts,
                                uint32_t part_count, uint32_t k, kern_weight **out_weight)
{
    TRY(kern_weight_pack(apart.inner, parts, part_count, k, out_weight));
    (*out_weight)->backend = backend;
    return STATUS_OK;
}

static void apart_weight_free(kern_weight *weight)
{
    apart.inner->device->weight_free(weight);
}

static void apart_close(kern_backend *backend)
{
    (void)backend;
    kern_backend_close(apart.inner);
    apart.inner = NULL;
}

static status apart_probe(kern_backend *backend, const char *what, double *out_value)
{
    (void)backend;
    return kern_probe(apart.inner, what, out_value);
}

static const kern_device_ops apart_device = {
    .alloc = apart_alloc,
    .free = apart_free,
    .alloc_shared = apart_alloc,
    .free_shared = apart_free,
    .copy = apart_copy,
    .fill = apart_fill,
    .stream_create = apart_stream_create,
    .stream_destroy = apart_stream_destroy,
    .stream_sync = apart_sync,
    .stream_poll = apart_poll,
    .stream_place = apart_place,
    .stream_after = apart_after,
    .stream_tell = apart_tell,
    .weight_pack = apart_weight_pack,
    .weight_free = apart_weight_free,
    .close = apart_close,
    .probe = apart_probe,
    .mark = apart_mark,
};

kern_backend *apart_open(kern_backend *inner)
{
    static kern_ops ops = {
#define X(op) .op = apart_##op,
        KERN_OPS(X)
#undef X
    };
    EXPECT(apart.inner == NULL); /* one at a time */
    EXPECT(pthread_mutex_init(&apart.ops, NULL) == 0);
    ops.wait = apart_watch;
    ops.linear = apart_product;
    ops.rmsnorm = apart_rmsnorm_given;
    ops.swiglu = apart_swiglu_given;
    ops.attend = apart_attend_given;
    ops.gate = apart_gate_given;
    apart.inner = inner;
    apart.rounds = false;
    apart.backend = *inner;
    apart.backend.ops = &ops;
    apart.backend.device = &apart_device;
    apart.backend.host_memory = false;
    return &apart.backend;
}

kern_backend *apart_open_rounding(kern_backend *inner)
{
    kern_backend *backend = apart_open(inner);
    apart.rounds = true;
    return backend;
}

kern_backend *apart_open_given(kern_backend *inner)
{
    kern_backend *backend = apart_open_rounding(inner);
    backend->rounds_operands = true;
    return backend;
}
