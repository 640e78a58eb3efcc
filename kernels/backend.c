/* kernels/backend.c - opening backends by name, and the way from kern_<op> to a backend's function.
 *
 * Every op is validated here once. Does not know what any op computes. */
#include "kernels/backend.h"
#include "kernels/module.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- memory ---------------------------------------------------------------------------------- */

enum { HUGE_PAGE = 2 << 20 };

void *kern_memory_alloc(uint64_t bytes)
{
    if (bytes == 0) bytes = 64;
    const bool large = bytes >= 2 * (uint64_t)HUGE_PAGE;
    const uint64_t align = large ? HUGE_PAGE : 64;
    if (bytes > UINT64_MAX / 2) return NULL;
    const uint64_t rounded = (bytes + align - 1) / align * align;
    void *memory = aligned_alloc(align, rounded);
    if (memory == NULL) return NULL;
    if (large) (void)madvise(memory, rounded, MADV_HUGEPAGE); /* only ever a hint */
    memset(memory, 0, rounded);
    return memory;
}

void kern_memory_free(void *memory)
{
    free(memory);
}

status kern_alloc(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    CHECK(backend != NULL && out_memory != NULL);
    return backend->device->alloc(backend, bytes, out_memory);
}

void kern_free(kern_backend *backend, void *memory)
{
    CHECK(backend != NULL);
    if (memory != NULL) backend->device->free(backend, memory);
}

status kern_alloc_shared(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    CHECK(backend != NULL && out_memory != NULL);
    return backend->device->alloc_shared(backend, bytes, out_memory);
}

void kern_free_shared(kern_backend *backend, void *memory)
{
    CHECK(backend != NULL);
    if (memory != NULL) backend->device->free_shared(backend, memory);
}

bool kern_runs_inline(const kern_backend *backend)
{
    return backend->host_memory;
}

bool kern_attends_beside(const kern_backend *backend)
{
    CHECK(backend != NULL);
    return backend->attends_beside;
}

bool kern_rounds_operands(const kern_backend *backend)
{
    return backend->rounds_operands;
}

status kern_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes)
{
    CHECK(stream != NULL && (bytes == 0 || (to != NULL && from != NULL)));
    if (bytes == 0 || to == from) return STATUS_OK;
    return stream->backend->device->copy(stream, to, from, bytes);
}

status kern_fill(kern_stream *stream, void *to, int byte, uint64_t bytes)
{
    CHECK(stream != NULL && (bytes == 0 || to != NULL));
    if (bytes == 0) return STATUS_OK;
    return stream->backend->device->fill(stream, to, byte, bytes);
}

/* ---- backends -------------------------------------------------------------------------------- */

static const struct opener {
    const char *name;
    status (*open)(const kern_config *config, kern_backend **out_backend);
} openers[] = {
    {"ref", kern_host_open},
    {"cpu", kern_host_open},
    {"cuda", kern_cuda_open},
};

status kern_backend_open(const kern_config *config, kern_backend **out_backend)
{
    CHECK(config != NULL && out_backend != NULL);
    const char *name = config->backend == NULL ? "cpu" : config->backend;
    const size_t length = strcspn(name, ":"); /* ":1" is the opener's affair */
    for (size_t i = 0; i < sizeof openers / sizeof openers[0]; i++)
        if (strncmp(openers[i].name, name, length) == 0 && openers[i].name[length] == '\0')
            return openers[i].open(config, out_backend);
    return FAIL(UNSUPPORTED, "no backend '%s' in this build (there are: ref, cpu, cuda)", name);
}

void kern_backend_close(kern_backend *backend)
{
    if (backend != NULL) backend->device->close(backend);
}

const char *kern_numerics_id(const kern_backend *backend)
{
    return backend->numerics_id;
}

const char *kern_backend_describe(const kern_backend *backend)
{
    return backend->describe;
}

status kern_stream_create(kern_backend *backend, kern_stream **out_stream)
{
    CHECK(backend != NULL && out_stream != NULL);
    return backend->device->stream_create(backend, out_stream);
}

void kern_stream_destroy(kern_stream *stream)
{
    if (stream != NULL) stream->backend->device->stream_destroy(stream);
}

status kern_stream_sync(kern_stream *stream)
{
    return stream->backend->device->stream_sync(stream);
}

status kern_stream_poll(kern_stream *stream)
{
    return stream->backend->device->stream_poll(stream);
}

status kern_stream_place(kern_stream *stream, uint32_t place)
{
    CHECK(stream != NULL && place < KERN_STREAM_PLACES);
    return stream->backend->device->stream_place(stream, place);
}

status kern_stream_after(kern_stream *stream, kern_stream *of, uint32_t place)
{
    CHECK(stream != NULL && of != NULL && stream->backend == of->backend);
    CHECK(place < KERN_STREAM_PLACES);
    if (stream == of) return STATUS_OK;
    return stream->backend->device->stream_after(stream, of, place);
}

status kern_stream_tell(kern_stream *stream, _Atomic int32_t *flag)
{
    CHECK(stream != NULL && flag != NULL);
    return stream->backend->device->stream_tell(stream, flag);
}

status kern_weight_pack(kern_backend *backend, const kern_matrix *parts, uint32_t part_count,
                        uint32_t k, kern_weight **out_weight)
{
    CHECK(backend != NULL && parts != NULL && out_weight != NULL);
    uint64_t n = 0;
    for (uint32_t i = 0; i < part_count; i++) {
        if (parts[i].data == NULL || parts[i].n == 0)
            return FAIL(INVALID, "part %u of a weight is empty", i);
        n += parts[i].n;
    }
    if (n == 0 || n > INT32_MAX || k == 0 || k > INT32_MAX)
        return FAIL(INVALID, "a weight of %llu x %u cannot be packed", (unsigned long long)n, k);
    return backend->device->weight_pack(backend, parts, part_count, k, out_weight);
}

void kern_weight_free(kern_weight *weight)
{
    if (weight != NULL) weight->backend->device->weight_free(weight);
}

uint64_t kern_weight_bytes(const kern_weight *weight)
{
    return weight->bytes;
}

/* ---- dispatch -------------------------------------------------------------------------------- */

const char *kern_op_name(uint32_t op)
{
    static const char *const names[] = {
#define X(name) #name,
        KERN_ALL_OPS(X)
#undef X
    };
    CHECK(op < KERN_OP_COUNT);
    return names[op];
}

void kern_stream_watch(kern_stream *stream, const kern_watch *watch)
{
    CHECK(stream != NULL);
    stream->watch = watch;
}

status kern_probe(kern_backend *backend, const char *what, double *out_value)
{
    CHECK(backend != NULL && what != NULL && out_value != NULL);
    return backend->device->probe(backend, what, out_value);
}

/* The device's own clock is looked at where somebody wants to know and it is not ours. */
static void mark(kern_stream *stream, const kern_watch *watch, uint32_t op)
{
    if (watch->ran != NULL && stream->backend->device->mark != NULL)
        stream->backend->device->mark(stream, op);
}

#define X(op)                                                                                      \
    static status run_##op(kern_stream *stream, const kern_##op##_args *args)                      \
    {                                                                                              \
        const kern_watch *watch = stream->watch;                                                   \
        if (watch == NULL) return stream->backend->ops->op(stream, args);                          \
        watch->begin(watch->self, KERN_OP_##op, args);                                             \
        mark(stream, watch, KERN_OP_##op);                                                         \
        const status done = stream->backend->ops->op(stream, args);                                \
        mark(stream, watch, KERN_OP_COUNT);                                                        \
        watch->end(watch->self, KERN_OP_##op, args);                                               \
        return done;                                                                               \
    }
KERN_ALL_OPS(X)
#undef X

#define X(op)                                                                                      \
    status kern_##op(kern_stream *stream, const kern_##op##_args *args)                            \
    {                                                                                              \
        CHECK(stream != NULL && args != NULL);                                                     \
        TRY(kern_validate_##op(stream->backend, args));                                            \
        return run_##op(stream, args);                                                             \
    }
KERN_OPS(X)
#undef X

/* ---- joined ops ------------------------------------------------------------------------------ */

status kern_qkv(kern_stream *stream, const kern_qkv_args *args)
{
    CHECK(stream != NULL && args != NULL);
    TRY(kern_validate_qkv(stream->backend, args));
    if (stream->backend->ops->qkv == NULL) {
        TRY(kern_rope(stream, &args->rope));
        TRY(kern_importance(stream, &args->importance));
        return args->compress.rows == 0 ? STATUS_OK : kern_compress(stream, &args->compress);
    }
    TRY(kern_validate_rope(stream->backend, &args->rope));
    TRY(kern_validate_importance(stream->backend, &args->importance));
    if (args->compress.rows > 0) TRY(kern_validate_compress(stream->backend, &args->compress));
    return run_qkv(stream, args);
}

status kern_enter(kern_stream *stream, const kern_enter_args *args)
{
    CHECK(stream != NULL && args != NULL);
    TRY(kern_validate_enter(stream->backend, args));
    if (stream->backend->ops->enter == NULL) {
        TRY(kern_locate(stream, &args->locate));
        return kern_append(stream, &args->append);
    }
    TRY(kern_validate_locate(stream->backend, &args->locate));
    TRY(kern_validate_append(stream->backend, &args->append));
    return run_enter(stream, args);
}

status kern_pick(kern_stream *stream, const kern_pick_args *args)
{
    CHECK(stream != NULL && args != NULL);
    TRY(kern_validate_pick(stream->backend, args));
    if (stream->backend->ops->pick == NULL) {
        TRY(kern_pool(stream, &args->pool));
        return kern_select(stream, &args->select);
    }
    TRY(kern_validate_pool(stream->backend, &args->pool));
    TRY(kern_validate_select(stream->backend, &args->select));
    return run_pick(stream, args);
}

status kern_bring(kern_stream *stream, const kern_bring_args *args)
{
    CHECK(stream != NULL && args != NULL);
    TRY(kern_validate_bring(stream->backend, args));
    if (stream->backend->ops->bring == NULL) {
        TRY(kern_wait(stream, &args->wait));
        return kern_gather(stream, &args->gather);
    }
    TRY(kern_validate_wait(stream->backend, &args->wait));
    TRY(kern_validate_gather(stream->backend, &args->gather));
    return run_bring(stream, args);
}
