/* kernels/host.c - the two host backends: `ref` (plain C, one thread, doubles inside) and `cpu`
 * (one object for each vector level, chosen here by cpuid). Ops that only move integers or bytes
 * (locate, plan, wait, gather, install, candidates, seal, digest, and pool and select, whose floats
 * are only compared) are the same functions in both.
 *
 * The levels of `cpu` share their bits, so they share one numerics id. */
#include "kernels/backend.h"

#include <stdio.h>
#include <string.h>

/* Raised whenever a change moves a bit of any op of `cpu` or `ref`. */
#define NUMERICS_CPU "cpu/1"
#define NUMERICS_REF "ref/1"

#define HOST_OPS                                                                                   \
    .locate = host_locate, .pool = host_pool, .select = host_select, .plan = host_plan,            \
    .wait = host_wait, .gather = host_gather, .install = host_install,                             \
    .candidates = host_candidates, .seal = host_seal, .digest = host_digest
#define LEVEL_OPS(level)                                                                           \
    .embed = level##_embed, .rmsnorm = level##_rmsnorm, .rope = level##_rope,                      \
    .linear = level##_linear, .swiglu = level##_swiglu, .importance = level##_importance,          \
    .compress = level##_compress, .append = level##_append, .score = level##_score,                \
    .attend = level##_attend, .sample = level##_sample, .gate = level##_gate

const kern_ops kern_ops_ref = {HOST_OPS, LEVEL_OPS(ref)};
const kern_ops kern_ops_generic = {HOST_OPS, LEVEL_OPS(cpu_generic)};
#if defined(__x86_64__)
const kern_ops kern_ops_avx2 = {HOST_OPS, LEVEL_OPS(cpu_avx2)};
const kern_ops kern_ops_avx512 = {HOST_OPS, LEVEL_OPS(cpu_avx512)};
#endif

typedef struct level_row {
    const char *name;
    const kern_ops *ops;
    bool (*runs_here)(void);
} level_row;

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/* Best first. */
static const level_row levels[] = {
#if defined(__x86_64__)
    {"avx512", &kern_ops_avx512, has_avx512},
    {"avx2", &kern_ops_avx2, has_avx2},
#endif
    {"generic", &kern_ops_generic, always},
};

static status choose_level(const char *isa, const level_row **out_level)
{
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        if (isa != NULL && strcmp(isa, levels[i].name) != 0) continue;
        if (!levels[i].runs_here()) {
            if (isa == NULL) continue;
            return FAIL(UNSUPPORTED, "this processor lacks the vector level '%s'", isa);
        }
        *out_level = &levels[i];
        return STATUS_OK;
    }
    return FAIL(UNSUPPORTED, "no vector level '%s' in this build", isa == NULL ? "" : isa);
}

/* ---- device functions ------------------------------------------------------------------------ */

static status host_alloc(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    (void)backend;
    void *memory = kern_memory_alloc(bytes);
    if (memory == NULL)
        return FAIL(NO_MEMORY, "no %llu bytes of memory left", (unsigned long long)bytes);
    *out_memory = memory;
    return STATUS_OK;
}

static void host_free(kern_backend *backend, void *memory)
{
    (void)backend;
    kern_memory_free(memory);
}

static status host_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes)
{
    (void)stream;
    memcpy(to, from, bytes);
    return STATUS_OK;
}

static status host_fill(kern_stream *stream, void *to, int byte, uint64_t bytes)
{
    (void)stream;
    memset(to, byte, bytes);
    return STATUS_OK;
}

static status host_stream_create(kern_backend *backend, kern_stream **out_stream)
{
    kern_stream *stream = kern_memory_alloc(sizeof *stream);
    if (stream == NULL) return FAIL(NO_MEMORY, "no memory for a stream");
    stream->backend = backend;
    *out_stream = stream;
    return STATUS_OK;
}

static void host_stream_destroy(kern_stream *stream)
{
    kern_memory_free(stream);
}

static status host_stream_sync(kern_stream *stream)
{
    (void)stream;
    return STATUS_OK;
}

static status host_stream_place(kern_stream *stream, uint32_t place)
{
    (void)stream; /* what a stream was given is over */
    (void)place;
    return STATUS_OK;
}

static status host_stream_after(kern_stream *stream, kern_stream *of, uint32_t place)
{
    (void)stream;
    (void)of;
    (void)place;
    return STATUS_OK;
}

static status host_stream_tell(kern_stream *stream, _Atomic int32_t *flag)
{
    (void)stream;
    atomic_store_explicit(flag, 1, memory_order_release);
    return STATUS_OK;
}

/* Columns 32 p + i and 32 p + 16 + i share a 32-bit word of panel p: one load, a shift and a mask
 * give two vectors of float32. Columns beyond n are zero. */
static status host_weight_pack(kern_backend *backend, const kern_matrix *parts, uint32_t part_count,
                               uint32_t k, kern_weight **out_weight)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < part_count; i++)
        n += parts[i].n;
    const uint64_t panels = ((uint64_t)n + KERN_PANEL - 1) / KERN_PANEL;
    const uint64_t bytes = panels * k * KERN_PANEL * sizeof(uint16_t);
    kern_weight *weight = kern_memory_alloc(sizeof *weight);
    uint16_t *data = kern_memory_alloc(bytes);
    if (weight == NULL || data == NULL) {
        kern_memory_free(weight);
        kern_memory_free(data);
        return FAIL(NO_MEMORY, "no %llu bytes for a packed weight", (unsigned long long)bytes);
    }
    *weight = (kern_weight){backend, n, k, bytes, data};
    uint32_t column = 0;
    for (uint32_t part = 0; part < part_count; part++) {
        for (uint32_t row = 0; row < parts[part].n; row++, column++) {
            const uint16_t *source = parts[part].data + (uint64_t)row * k;
            const uint32_t place = column % KERN_PANEL;
            uint16_t *target = data + (uint64_t)(column / KERN_PANEL) * k * KERN_PANEL +
                               (place < 16 ? 2 * place : 2 * (place - 16) + 1);
            for (uint32_t i = 0; i < k; i++)
                target[(uint64_t)i * KERN_PANEL] = source[i];
        }
    }
    *out_weight = weight;
    return STATUS_OK;
}

static void host_weight_free(kern_weight *weight)
{
    kern_memory_free(weight->data);
    kern_memory_free(weight);
}

static void host_close(kern_backend *backend)
{
    kern_team_destroy(backend->team);
    arena_destroy(backend->arena);
}

static const kern_device_ops host_device = {
    .alloc = host_alloc,
    .free = host_free,
    .alloc_shared = host_alloc,
    .free_shared = host_free,
    .copy = host_copy,
    .fill = host_fill,
    .stream_create = host_stream_create,
    .stream_destroy = host_stream_destroy,
    .stream_sync = host_stream_sync,
    .stream_poll = host_stream_sync, /* always at rest */
    .stream_place = host_stream_place,
    .stream_after = host_stream_after,
    .stream_tell = host_stream_tell,
    .weight_pack = host_weight_pack,
    .weight_free = host_weight_free,
    .close = host_close,
    .probe = kern_host_probe,
};

status kern_host_open(const kern_config *config, kern_backend **out_backend)
{
    const bool ref = config->backend != NULL && strcmp(config->backend, "ref") == 0;
    if (config->backend != NULL && strchr(config->backend, ':') != NULL)
        return FAIL(UNSUPPORTED, "'%s': only cuda devices have numbers", config->backend);
    const level_row *level = NULL;
    if (!ref) TRY(choose_level(config->isa, &level));
    arena *a = arena_create("kernels");
    kern_backend *backend = ARENA_NEW(a, kern_backend, 1);
    backend->arena = a;
    backend->ops = ref ? &kern_ops_ref : level->ops;
    backend->device = &host_device;
    backend->numerics_id = ref ? NUMERICS_REF : NUMERICS_CPU;
    backend->host_memory = true;
    const status s = kern_team_create(a, ref ? 1 : config->threads, &backend->team);
    if (s != STATUS_OK) {
        arena_destroy(a);
        return s;
    }
    const uint32_t threads = kern_team_threads(backend->team);
    (void)snprintf(backend->describe, sizeof backend->describe, "%s%s%s %u thread%s",
                   ref ? "ref" : "cpu", ref ? "" : " ", ref ? "" : level->name, threads,
                   threads == 1 ? "" : "s");
    arena_seal(a);
    *out_backend = backend;
    return STATUS_OK;
}
