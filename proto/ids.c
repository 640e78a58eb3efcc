/* Identities: contexts, blocks, layouts. */
#include "proto/proto.h"

#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "ids are hashed and sent as they lie in memory: little endian only"
#endif

uint32_t layout_hash(const block_layout *l)
{
    CHECK(l != NULL);
    unsigned char packed[28];
    const uint32_t words[5] = {l->block_tokens, l->head_dim, l->dtype_bytes, l->layers,
                               l->kv_heads};
    memcpy(packed, words, sizeof words);
    memcpy(packed + sizeof words, &l->model, sizeof l->model);
    const uint64_t wide = bytes_digest(packed, sizeof packed, 0);
    const uint32_t hash = (uint32_t)(wide ^ (wide >> 32));
    return hash != 0 ? hash : 1;
}

status context_id_random(context_id *out_id)
{
    context_id id;
    TRY(rng_system(&id, sizeof id));
    *out_id = id;
    return STATUS_OK;
}

bool context_id_equal(context_id a, context_id b)
{
    return a.hi == b.hi && a.lo == b.lo;
}

bool block_id_equal(const block_id *a, const block_id *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

uint64_t block_id_hash(const block_id *id)
{
    return bytes_digest(id, sizeof *id, 0);
}

const char *block_id_text(const block_id *id, char *out)
{
    CHECK(id != NULL && out != NULL);
    const int used =
        snprintf(out, BLOCK_ID_TEXT, "%016llx%016llx/%u/%u/%u", (unsigned long long)id->context.hi,
                 (unsigned long long)id->context.lo, (unsigned)id->layer, (unsigned)id->kv_head,
                 (unsigned)id->block);
    CHECK(used > 0 && used < BLOCK_ID_TEXT);
    return out;
}
