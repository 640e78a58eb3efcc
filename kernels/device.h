/* kernels/device.h - part of kernels.h, which includes it: backends, their streams and memory.
 *
 * Threads: the step thread, as everything of a backend. Memory: each thing is released by its own
 * function, streams and memory before the backend. */
#ifndef KERNELS_DEVICE_H
#define KERNELS_DEVICE_H

/* ---- backends -------------------------------------------------------------------------------- */

typedef struct kern_config {
    const char *backend; /* "ref", "cpu", "cuda"; "cuda:1" is the second device */
    uint32_t threads;    /* compute threads, the caller's included; 0: one a core */
    const char *isa;     /* NULL: best here; "avx2", "avx512", "generic" to force one (tests) */
} kern_config;

/* UNSUPPORTED: no such backend in this build or on this machine. */
status kern_backend_open(const kern_config *config, kern_backend **out_backend);
void kern_backend_close(kern_backend *backend);
/* INVALID: no backend computes such a selector; UNSUPPORTED: this one does not. Whoever fills a
 * table of selectors asks once, since ops of a device cannot look into it. */
status kern_selector_check(const kern_backend *backend, const kern_selector *selector);
/* Backend and its version: what has the same id has the same bits. "cpu/1" at every CPU level. */
const char *kern_numerics_id(const kern_backend *backend);
const char *kern_backend_describe(const kern_backend *backend); /* "cpu avx512 2 threads" */

enum { KERN_STREAM_PLACES = 3 };

/* Ops of one stream run in the order they were called; its results are visible after a sync. */
status kern_stream_create(kern_backend *backend, kern_stream **out_stream);
void kern_stream_destroy(kern_stream *stream);
status kern_stream_sync(kern_stream *stream);
/* OK: at rest; PENDING: ops under way; else what went wrong with one. */
status kern_stream_poll(kern_stream *stream);
/* Notes as `place` (below KERN_STREAM_PLACES) how far `stream` will have come when all that it has
 * been given until now is over. */
status kern_stream_place(kern_stream *stream, uint32_t place);
/* What `stream` is given from here on begins when `of` has come to the place it noted last as
 * `place`, whatever else it has been given since. Both of one backend; the same one: nothing to do.
 */
status kern_stream_after(kern_stream *stream, kern_stream *of, uint32_t place);
/* 1 into *flag, in shared memory, when all that the stream has been given until now is over: a host
 * that reads it there (acquire) sees what that has left in shared memory, while the stream goes on.
 */
status kern_stream_tell(kern_stream *stream, _Atomic int32_t *flag);

/* Device memory, zeroed, 64-byte aligned. NO_MEMORY. */
status kern_alloc(kern_backend *backend, uint64_t bytes, void **out_memory);
void kern_free(kern_backend *backend, void *memory);
/* Host memory that ops may be given too, at the same address: pinned where a device reads it over a
 * link. Zeroed, page aligned when large. NO_MEMORY. */
status kern_alloc_shared(kern_backend *backend, uint64_t bytes, void **out_memory);
void kern_free_shared(kern_backend *backend, void *memory);
/* True: an op has run when its call returns, and device memory is plain memory of the host. */
bool kern_runs_inline(const kern_backend *backend);
/* True: kern_linear rounds the rows it is given to bf16, so ops that make such rows may leave them
 * in bf16, and it then has nothing to round. The bits are the same either way. */
bool kern_rounds_operands(const kern_backend *backend);
/* Whether attention may be given `after` (kern_attend_args): two streams then run at once. */
bool kern_attends_beside(const kern_backend *backend);

/* Copy and fill in the order of the stream, between any of device, shared and host memory. Host
 * memory that is not shared may be reused when the call returns. to == from: nothing to do. */
status kern_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes);
status kern_fill(kern_stream *stream, void *to, int byte, uint64_t bytes);

typedef struct kern_matrix {
    const uint16_t *data; /* row-major bf16 [n, k], in host or device memory */
    uint32_t n;
} kern_matrix;
/* Pack a row-major bf16 matrix [n, k] for kern_linear; several matrices with the same k can be
 * stacked by giving parts (q|k|v, gate|up): output columns in the order of the parts. */
status kern_weight_pack(kern_backend *backend, const kern_matrix *parts, uint32_t part_count,
                        uint32_t k, kern_weight **out_weight);
void kern_weight_free(kern_weight *weight);
uint64_t kern_weight_bytes(const kern_weight *weight);

#endif
