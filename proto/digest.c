/* Digests by libxxhash. The same function runs on the GPU; the words here are the judge of it. */
#include "proto/proto.h"

#include <xxhash.h>

uint64_t bytes_digest(const void *bytes, size_t count, uint64_t seed)
{
    CHECK(bytes != NULL || count == 0);
    return XXH3_64bits_withSeed(bytes, count, seed);
}

uint64_t block_digest(const block_id *id, const void *bytes, size_t count)
{
    CHECK(id != NULL);
    return bytes_digest(bytes, count, block_id_hash(id));
}
