/* proto/proto.h - the words on the wire: ids, digests, the geometry of a block.
 *
 * Frames of the data plane are in proto/wire.h's place at the end of this header; messages of the
 * control plane are in the .proto files beside it. */
#ifndef PROTO_PROTO_H
#define PROTO_PROTO_H

#include "proto/base.h"

enum {
    PROTO_VERSION = 1,       /* of the data plane; refused at the handshake when it differs */
    PROTO_BLOCK_TOKENS = 64, /* tokens in a storage and transfer block */
};

/* A context: one token sequence's KV. Random, never used again. */
typedef struct context_id {
    uint64_t hi, lo;
} context_id;

/* A block: K then V of 64 consecutive tokens of one layer and one KV head.
 * Laid out as it travels: little endian, no padding. */
typedef struct block_id {
    context_id context;
    uint32_t layout; /* geometry, dtype and model revision: layout_hash */
    uint32_t tenant;
    uint32_t block; /* index in the context: tokens 64 * block .. 64 * block + 63 */
    uint16_t layer;
    uint16_t kv_head;
} block_id;
_Static_assert(sizeof(block_id) == 32 && alignof(block_id) == 8, "block_id travels as 32 bytes");

/* What two peers must agree on before a block means the same to both. */
typedef struct block_layout {
    uint32_t block_tokens; /* 64 */
    uint32_t head_dim;     /* D: 64 or 128 */
    uint32_t dtype_bytes;  /* 2: bf16 */
    uint32_t layers;
    uint32_t kv_heads;
    uint64_t model; /* digest of config and weights' header: the model revision */
} block_layout;
/* Bytes of a block: K[64][D] then V[64][D], row-major. */
static inline uint32_t block_layout_bytes(const block_layout *l)
{
    return 2 * l->block_tokens * l->head_dim * l->dtype_bytes;
}
uint32_t layout_hash(const block_layout *l); /* never 0 */

status context_id_random(context_id *out_id);
bool context_id_equal(context_id a, context_id b);
bool block_id_equal(const block_id *a, const block_id *b);
uint64_t block_id_hash(const block_id *id); /* XXH3-64 of the 32 bytes */
/* "<context hex>/<layer>/<kv_head>/<block>"; out has BLOCK_ID_TEXT bytes. */
enum { BLOCK_ID_TEXT = 64 };
const char *block_id_text(const block_id *id, char *out);

/* XXH3-64 of the bytes, seeded with the XXH3-64 of the id: torn, flipped, stale and foreign bytes
 * all fail the same comparison. */
uint64_t block_digest(const block_id *id, const void *bytes, size_t count);
uint64_t bytes_digest(const void *bytes, size_t count, uint64_t seed); /* plain XXH3-64 */

#endif
