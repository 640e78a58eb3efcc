/* kernels/backend.h - what a backend is inside this folder.
 *
 * A backend is a table of ops, a table of device functions and a name. kernels/backend.c validates
 * the arguments of every op once (kernels/validate.c) and then calls the table, so that an op's
 * function may take its shapes for granted.
 *
 * Threads: kern_team belongs to the thread that created it; only that thread may run work on it.
 * Memory:  what a backend owns comes from its arena or from kern_memory_alloc. */
#ifndef KERNELS_BACKEND_H
#define KERNELS_BACKEND_H

#include "kernels/kernels.h"

enum {
    KERN_DIM_MAX = 256,             /* head_dim: a multiple of 32 up to this */
    KERN_GROUP_HEADS_MAX = 64,      /* G */
    KERN_WINDOWS_MAX = 65536,       /* a row of scores of one tile of heads fits the scratch */
    KERN_SELECT_BLOCKS_MAX = 65536, /* selection blocks of a row */
    KERN_VOCAB_MAX = 1 << 18,
    KERN_SCRATCH_BYTES = 4 << 20, /* for each thread; touched only as far as it is used */
    KERN_PANEL = 32,              /* columns of a packed weight panel */
};

/* ---- threads --------------------------------------------------------------------------------- */

/* Runs tasks 0 .. count - 1 of a job on the caller and the threads of the team, in any order and
 * place. A task's result must not depend on either. scratch: KERN_SCRATCH_BYTES of the running
 * thread. */
typedef struct kern_team kern_team;
typedef void (*kern_task)(const void *context, uint32_t task, void *scratch);

status kern_team_create(arena *a, uint32_t threads, kern_team **out_team);
void kern_team_destroy(kern_team *team); /* stops the threads; the memory is the arena's */
uint32_t kern_team_threads(const kern_team *team);
void *kern_team_scratch(kern_team *team); /* the caller's, for ops that run on one thread */
/* parallel false: all on the caller, for work too small to wake anyone. Returns when all are done.
 */
void kern_team_run(kern_team *team, uint32_t count, bool parallel, kern_task task,
                   const void *context);

/* ---- backend --------------------------------------------------------------------------------- */

/* NULL in a joined op's place: it is made of its parts. */
typedef struct kern_ops {
#define X(op) status (*op)(kern_stream * stream, const kern_##op##_args *args);
    KERN_ALL_OPS(X)
#undef X
} kern_ops;

/* Everything of a backend that is not an op. */
typedef struct kern_device_ops {
    status (*alloc)(kern_backend *backend, uint64_t bytes, void **out_memory);
    void (*free)(kern_backend *backend, void *memory);
    status (*alloc_shared)(kern_backend *backend, uint64_t bytes, void **out_memory);
    void (*free_shared)(kern_backend *backend, void *memory);
    status (*copy)(kern_stream *stream, void *to, const void *from, uint64_t bytes);
    status (*fill)(kern_stream *stream, void *to, int byte, uint64_t bytes);
    status (*stream_create)(kern_backend *backend, kern_stream **out_stream);
    void (*stream_destroy)(kern_stream *stream);
    status (*stream_sync)(kern_stream *stream);
    status (*stream_poll)(kern_stream *stream);
    status (*stream_place)(kern_stream *stream, uint32_t place);
    status (*stream_after)(kern_stream *stream, kern_stream *of, uint32_t place); /* two streams */
    status (*stream_tell)(kern_stream *stream, _Atomic int32_t *flag);
    status (*weight_pack)(kern_backend *backend, const kern_matrix *parts, uint32_t part_count,
                          uint32_t k, kern_weight **out_weight);
    void (*weight_free)(kern_weight *weight);
    void (*close)(kern_backend *backend);
    status (*probe)(kern_backend *backend, const char *what, double *out_value);
    /* For kern_watch.ran: what is given to the stream from here on is `op`, until the next mark.
     * NULL: ops run inline. */
    void (*mark)(kern_stream *stream, uint32_t op);
} kern_device_ops;

struct kern_backend {
    const kern_ops *ops;
    const kern_device_ops *device;
    const char *numerics_id;
    bool host_memory; /* index arrays may be read by the host: validate looks into them */
    bool rounds_operands, attends_beside;
    char describe[64];
    arena *arena;
    kern_team *team;
    void *own; /* the backend's, if it needs more */
};

struct kern_stream {
    kern_backend *backend;
    const kern_watch *watch; /* NULL: nobody */
};

struct kern_weight {
    kern_backend *backend;
    uint32_t n, k;
    uint64_t bytes;
    uint16_t
        *data; /* [ceil(n / 32)][k][32] bf16; column i and 16 + i of a panel stand side by side */
};

status kern_host_probe(kern_backend *backend, const char *what, double *out_value);
/* Each refuses what this machine or build lacks with UNSUPPORTED. */
status kern_host_open(const kern_config *config, kern_backend **out_backend); /* "ref" and "cpu" */

/* 64-byte aligned, zeroed; huge pages where large. NULL: none left. */
void *kern_memory_alloc(uint64_t bytes);
void kern_memory_free(void *memory);

static inline uint32_t kern_linear_columns(const kern_linear_args *a)
{
    return a->columns == 0 ? a->weight->n : a->columns;
}

/* ---- validation: INVALID with a sentence, before anything is written ------------------------- */

#define X(op) status kern_validate_##op(const kern_backend *backend, const kern_##op##_args *args);
KERN_ALL_OPS(X) /* of a joined op: that its parts belong together */
#undef X

/* ---- op tables of the host backends ---------------------------------------------------------- */

#define X(op)                                                                                      \
    status ref_##op(kern_stream *stream, const kern_##op##_args *args);                            \
    status host_##op(kern_stream *stream, const kern_##op##_args *args);                           \
    status cpu_generic_##op(kern_stream *stream, const kern_##op##_args *args);                    \
    status cpu_avx2_##op(kern_stream *stream, const kern_##op##_args *args);                       \
    status cpu_avx512_##op(kern_stream *stream, const kern_##op##_args *args);
KERN_OPS(X)
#undef X

extern const kern_ops kern_ops_ref, kern_ops_generic, kern_ops_avx2, kern_ops_avx512;

/* sample: what needs arithmetic in bulk is the backend's, the rest is shared (sample.c). */
typedef struct kern_sample_math {
    float (*largest)(const float *logits, uint32_t count); /* NaN is passed over */
    /* Natural log of the sum of e^logit; top is the largest. */
    float (*log_sum_exp)(const float *logits, uint32_t count, float top);
    /* out = e^((logit - top) * inverse) */
    void (*weights)(const float *logits, uint32_t count, float top, float inverse, float *out);
} kern_sample_math;
status kern_sample_rows(kern_stream *stream, const kern_sample_args *args,
                        const kern_sample_math *math);

#endif
