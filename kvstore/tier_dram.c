/* kvstore/tier_dram.c - blocks in memory: one slab, one index.
 *
 * The slab is one anonymous mapping with a hint for huge pages. The index is a table of fixed
 * capacity with open addressing and linear probing, at most half full: a cell holds a slot and 32
 * bits of the id's hash, the id itself lies in the slot's entry. Removing shifts the cells behind
 * back, so there are no tombstones and no rebuild. Nothing is allocated after create.
 *
 * It evicts nothing: a full tier says NO_SPACE. */
#include "kvstore/tier.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "kvstore/plant.h"

enum {
    BLOCK_BYTES_MIN = 8192, /* smallest block that tables are sized for: D = 64, one byte a value */
    MEMORY_SLOTS_MAX = 1 << 28,
};

typedef enum slot_state { FREE, RESERVED, PUBLISHED, QUARANTINED } slot_state;

typedef struct slot_entry {
    kv_slot_info info;
    uint32_t pins;
    uint32_t next_free; /* while FREE */
    slot_state state;
} slot_entry;

typedef struct cell {
    uint32_t slot; /* KV_NO_SLOT: empty */
    uint32_t tag;  /* low half of the id's hash: decides the home cell, filters compares */
} cell;

typedef struct dram {
    uint8_t *memory;
    uint64_t memory_bytes, mapped_bytes;
    slot_entry *entry; /* [slots_max] */
    cell *cells;       /* [mask + 1] */
    uint32_t mask;
    uint32_t slots_max;
    uint32_t free_head;
    uint32_t touched; /* slots [touched, slots) were never used: no list of them is needed */
    kv_tier_usage usage;
} dram;

static const kv_tier_ops dram_ops;

uint64_t kv_tier_slots_max(uint64_t memory_bytes)
{
    return memory_bytes / BLOCK_BYTES_MIN;
}

status kv_tier_dram_create(arena *a, uint64_t memory_bytes, kv_tier *out_tier)
{
    uint64_t slots = kv_tier_slots_max(memory_bytes);
    if (slots == 0 || slots > MEMORY_SLOTS_MAX)
        return FAIL(INVALID, "node memory of %llu bytes is outside 8KiB .. 2TiB",
                    (unsigned long long)memory_bytes);
    uint64_t huge = UINT64_C(2) << 20;
    uint64_t mapped = (memory_bytes + huge - 1) / huge * huge;
    void *memory = mmap(NULL, mapped, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return FAIL(NO_MEMORY, "cannot map %llu bytes for blocks: %s", (unsigned long long)mapped,
                    strerror(errno));
    (void)madvise(memory, mapped, MADV_HUGEPAGE); /* a hint: kernels without it serve small pages */

    dram *d = ARENA_NEW(a, dram, 1);
    d->memory = memory;
    d->memory_bytes = memory_bytes;
    d->mapped_bytes = mapped;
    d->slots_max = (uint32_t)slots;
    d->entry = ARENA_NEW(a, slot_entry, slots);
    uint32_t cells = 16;
    while (cells < 2 * slots)
        cells *= 2;
    d->mask = cells - 1;
    d->cells = ARENA_NEW(a, cell, cells);
    for (uint32_t i = 0; i < cells; i++)
        d->cells[i].slot = KV_NO_SLOT;
    d->free_head = KV_NO_SLOT;
    *out_tier = (kv_tier){.ops = &dram_ops, .self = d};
    return STATUS_OK;
}

void kv_tier_dram_destroy(kv_tier *tier)
{
    if (tier->self == NULL) return;
    dram *d = tier->self;
    CHECK(munmap(d->memory, d->mapped_bytes) == 0);
    tier->self = NULL;
}

static status dram_format(void *self, uint32_t block_bytes)
{
    dram *d = self;
    CHECK(d->usage.free == d->usage.slots); /* nothing kept, nothing read */
    if (block_bytes < BLOCK_BYTES_MIN || block_bytes % 64 != 0)
        return FAIL(UNSUPPORTED, "blocks of %u bytes: the store takes multiples of 64 from %d",
                    block_bytes, BLOCK_BYTES_MIN);
    if (block_bytes > d->memory_bytes)
        return FAIL(NO_SPACE, "node memory of %llu bytes holds no block of %u",
                    (unsigned long long)d->memory_bytes, block_bytes);
    uint64_t slots = d->memory_bytes / block_bytes;
    d->usage = (kv_tier_usage){.slots = slots, .free = slots, .block_bytes = block_bytes};
    d->free_head = KV_NO_SLOT;
    d->touched = 0;
    return STATUS_OK;
}

/* ---- index ----------------------------------------------------------------------------------- */

static uint32_t tag_of(const block_id *id)
{
    return (uint32_t)block_id_hash(id);
}

/* The cell that holds the id, or the empty one where it would go. */
static uint32_t probe(const dram *d, const block_id *id, uint32_t tag)
{
    uint32_t i = tag & d->mask;
    while (d->cells[i].slot != KV_NO_SLOT) {
        if (d->cells[i].tag == tag && block_id_equal(&d->entry[d->cells[i].slot].info.id, id))
            break;
        i = (i + 1) & d->mask;
    }
    return i;
}

static void index_remove(dram *d, const block_id *id)
{
    uint32_t hole = probe(d, id, tag_of(id));
    CHECK(d->cells[hole].slot != KV_NO_SLOT);
    for (uint32_t i = (hole + 1) & d->mask; d->cells[i].slot != KV_NO_SLOT; i = (i + 1) & d->mask) {
        uint32_t home = d->cells[i].tag & d->mask;
        /* A cell may move back into the hole unless its home lies behind the hole. */
        if (((i - home) & d->mask) < ((i - hole) & d->mask)) continue;
        d->cells[hole] = d->cells[i];
        hole = i;
    }
    d->cells[hole].slot = KV_NO_SLOT;
}

static uint32_t dram_find(const void *self, const block_id *id)
{
    const dram *d = self;
    return d->cells[probe(d, id, tag_of(id))].slot;
}

/* ---- slots ----------------------------------------------------------------------------------- */

static status dram_reserve(void *self, const kv_slot_info *info, uint32_t *out_slot)
{
    dram *d = self;
    if (d->usage.free == 0) return STATUS_NO_SPACE; /* not logged: a state, not an accident */
    uint32_t slot = d->free_head;
    if (slot != KV_NO_SLOT)
        d->free_head = d->entry[slot].next_free;
    else
        slot = d->touched++;
    CHECK(slot < d->usage.slots && d->entry[slot].state == FREE && d->entry[slot].pins == 0);
    d->entry[slot].info = *info;
    d->entry[slot].state = RESERVED;
    d->usage.free--;
    d->usage.reserved++;
    *out_slot = slot;
    return STATUS_OK;
}

static status dram_publish(void *self, uint32_t slot)
{
    dram *d = self;
    CHECK(slot < d->usage.slots && d->entry[slot].state == RESERVED);
    uint32_t tag = tag_of(&d->entry[slot].info.id);
    uint32_t i = probe(d, &d->entry[slot].info.id, tag);
    if (d->cells[i].slot != KV_NO_SLOT) return STATUS_STALE;
    d->cells[i] = (cell){.slot = slot, .tag = tag};
    d->entry[slot].state = PUBLISHED;
    d->usage.reserved--;
    d->usage.published++;
    return STATUS_OK;
}

static void slot_free(dram *d, uint32_t slot)
{
    d->entry[slot].state = FREE;
    d->entry[slot].next_free = d->free_head;
    d->free_head = slot;
    d->usage.free++;
}

static void dram_discard(void *self, uint32_t slot)
{
    dram *d = self;
    CHECK(slot < d->usage.slots);
    slot_entry *e = &d->entry[slot];
    CHECK(e->state == RESERVED || e->state == PUBLISHED);
    if (e->state == PUBLISHED) {
        index_remove(d, &e->info.id);
        d->usage.published--;
    } else {
        d->usage.reserved--;
    }
    if (e->pins == 0) {
        slot_free(d, slot);
        return;
    }
    e->state = QUARANTINED;
    d->usage.quarantined++;
}

static uint8_t *dram_bytes(void *self, uint32_t slot, kv_slot_info *out_info)
{
    dram *d = self;
    CHECK(slot < d->usage.slots && d->entry[slot].state != FREE);
    if (out_info != NULL) *out_info = d->entry[slot].info;
    return d->memory + (uint64_t)slot * d->usage.block_bytes;
}

static void dram_pin(void *self, uint32_t slot, int change)
{
    dram *d = self;
    CHECK(slot < d->usage.slots && (change == 1 || change == -1));
    if (PLANT(SLOT_REUSED)) return;
    slot_entry *e = &d->entry[slot];
    CHECK(change == 1 ? e->state == PUBLISHED : e->pins > 0);
    e->pins = change == 1 ? e->pins + 1 : e->pins - 1;
    if (e->state != QUARANTINED || e->pins != 0) return;
    d->usage.quarantined--;
    slot_free(d, slot);
}

static void dram_usage(const void *self, kv_tier_usage *out_usage)
{
    const dram *d = self;
    *out_usage = d->usage;
    CHECK(out_usage->free + out_usage->reserved + out_usage->published + out_usage->quarantined ==
          out_usage->slots);
}

static const kv_tier_ops dram_ops = {
    .format = dram_format,
    .find = dram_find,
    .reserve = dram_reserve,
    .publish = dram_publish,
    .discard = dram_discard,
    .bytes = dram_bytes,
    .pin = dram_pin,
    .usage = dram_usage,
};
