/* kvstore/tier.h - the tier seam: where a node keeps blocks.
 *
 * Flow:    kv_server -> tier -> slab.
 * Threads: a tier belongs to the server's thread.
 * Memory:  slots never move; kv_tier_ops.bytes points into the tier until the slot is discarded and
 *          its last pin is gone.
 *
 * A slot is free -> reserved -> published -> free, or -> quarantined while a reply still reads it:
 * discarded, no longer found, given back with its last pin. free + reserved + published +
 * quarantined = slots, always. */
#ifndef KVSTORE_TIER_H
#define KVSTORE_TIER_H

#include "kvstore/kvstore.h"

enum { KV_NO_SLOT = UINT32_MAX };

typedef struct kv_slot_info {
    block_id id;
    uint64_t digest;
} kv_slot_info;

typedef struct kv_tier_usage {
    uint64_t slots, free, reserved, published, quarantined;
    uint64_t block_bytes; /* 0: not formatted yet */
} kv_tier_usage;

typedef struct kv_tier_ops {
    /* Cut the memory into slots of block_bytes. Only while nothing is kept. */
    status (*format)(void *self, uint32_t block_bytes);
    /* The slot of a published block; KV_NO_SLOT: not here. */
    uint32_t (*find)(const void *self, const block_id *id);
    /* A free slot for a block that is not here yet: NO_SPACE when there is none. It is not found
     * until published. */
    status (*reserve)(void *self, const kv_slot_info *info, uint32_t *out_slot);
    /* Make a reserved slot findable. STALE: another writer published that id meanwhile. */
    status (*publish)(void *self, uint32_t slot);
    /* Give a reserved or published slot back, at once or with its last pin. */
    void (*discard)(void *self, uint32_t slot);
    /* Where its bytes are, and what it holds. */
    uint8_t *(*bytes)(void *self, uint32_t slot, kv_slot_info *out_info);
    /* +1 or -1 reader that the slot must outlive. */
    void (*pin)(void *self, uint32_t slot, int change);
    void (*usage)(const void *self, kv_tier_usage *out_usage);
} kv_tier_ops;

typedef struct kv_tier {
    const kv_tier_ops *ops;
    void *self;
} kv_tier;

/* Slabs of DRAM with huge pages where the kernel has them. memory_bytes is mapped at once and
 * touched as blocks come. UNSUPPORTED sizes and a failed mapping come with a sentence. */
status kv_tier_dram_create(arena *a, uint64_t memory_bytes, kv_tier *out_tier);
void kv_tier_dram_destroy(kv_tier *tier);
/* Most slots that memory can be cut into: the size of tables indexed by slot. */
uint64_t kv_tier_slots_max(uint64_t memory_bytes);

#endif
