/* worker/checkpoint.h - the tensors of a Hugging Face directory, as it is on disk.
 *
 * Flow:    DIR/model.safetensors, or DIR/model.safetensors.index.json and its shards ->
 * [checkpoint]
 *          -> model.
 * Threads: after checkpoint_open everything is read-only; any thread may look.
 * Memory:  files are mapped, not read. Views live until checkpoint_close. A file that is truncated
 *          by somebody else while it is mapped ends the process (SIGBUS), as with any mapping.
 *
 * Everything in a header is validated before a byte of data is looked at, by the rules of the
 * safetensors format: header at most 100 MB, offsets in range, no overlap, no hole, shape times
 * element size equal to the bytes, no name twice. */
#ifndef WORKER_CHECKPOINT_H
#define WORKER_CHECKPOINT_H

#include "proto/base.h"

enum { CHECKPOINT_RANK_MAX = 8, CHECKPOINT_SHARDS_MAX = 4096 };

typedef struct checkpoint checkpoint;

typedef struct tensor {
    const char *name;
    const char *dtype;   /* "BF16", as in the file */
    const uint8_t *data; /* bytes, row-major, little endian, any alignment */
    uint64_t bytes;
    uint64_t shape[CHECKPOINT_RANK_MAX];
    uint32_t rank;
    uint32_t shard; /* index of the file */
} tensor;

/* NOT_FOUND: no checkpoint in the directory. INVALID, UNSUPPORTED: one sentence names file and
 * tensor. IO. */
status checkpoint_open(const char *directory, checkpoint **out_checkpoint);
void checkpoint_close(checkpoint *c); /* NULL is fine */

uint32_t checkpoint_count(const checkpoint *c);
const tensor *checkpoint_at(const checkpoint *c, uint32_t index);     /* by name, ascending */
const tensor *checkpoint_find(const checkpoint *c, const char *name); /* NULL: no such tensor */
const char *checkpoint_path(const checkpoint *c, uint32_t shard);

/* The tensor as bf16. Its shape must be shape[0..rank). A BF16 tensor at an even address is a view
 * of the file; others are copied into memory of `a`: F16 and F32 are rounded to bf16 (nearest, ties
 * to even). INVALID (missing, or of another shape), UNSUPPORTED (another dtype). */
status checkpoint_bf16(const checkpoint *c, const char *name, const uint64_t *shape, uint32_t rank,
                       arena *a, const uint16_t **out_data);

/* XXH3-64 over the headers of all shards and 64 samples of 64 bytes, evenly spread, of every
 * tensor: which weights these are, without reading them all. */
uint64_t checkpoint_digest(const checkpoint *c, uint64_t seed);

#endif
