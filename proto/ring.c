/* A bounded ring between two threads.
 *
 * head and tail count up forever and are masked on use, so full and empty differ without a spare
 * item. Each side keeps a stale copy of the other's counter and reads the shared one only when the
 * stale copy says full (or empty): in a busy ring most calls touch no line the other side writes.
 * Ordering: the producer's release of tail publishes the item, the consumer's release of head gives
 * its place back; the acquire loads on the other side pair with them. */
#include "proto/base.h"

#include <string.h>

struct ring {
    alignas(64) _Atomic uint32_t tail; /* written by the producer */
    uint32_t head_seen;                /* producer's copy of head */
    alignas(64) _Atomic uint32_t head; /* written by the consumer */
    uint32_t tail_seen;                /* consumer's copy of tail */
    alignas(64) uint32_t capacity;
    uint32_t item_bytes;
    unsigned char *items;
};

ring *ring_create(arena *a, uint32_t capacity, uint32_t item_bytes)
{
    CHECK(capacity != 0 && (capacity & (capacity - 1)) == 0);
    CHECK(capacity <= 1u << 30 && item_bytes != 0);
    ring *r = ARENA_NEW(a, ring, 1);
    r->capacity = capacity;
    r->item_bytes = item_bytes;
    r->items = arena_alloc(a, (size_t)capacity * item_bytes, 64);
    return r;
}

static unsigned char *item_at(const ring *r, uint32_t counter)
{
    return r->items + (size_t)(counter & (r->capacity - 1)) * r->item_bytes;
}

bool ring_push(ring *r, const void *item)
{
    const uint32_t tail = atomic_load_explicit(&r->tail, memory_order_relaxed);
    if (tail - r->head_seen == r->capacity) {
        r->head_seen = atomic_load_explicit(&r->head, memory_order_acquire);
        if (tail - r->head_seen == r->capacity) return false;
    }
    memcpy(item_at(r, tail), item, r->item_bytes);
    atomic_store_explicit(&r->tail, tail + 1, memory_order_release);
    return true;
}

bool ring_pop(ring *r, void *out_item)
{
    const uint32_t head = atomic_load_explicit(&r->head, memory_order_relaxed);
    if (head == r->tail_seen) {
        r->tail_seen = atomic_load_explicit(&r->tail, memory_order_acquire);
        if (head == r->tail_seen) return false;
    }
    memcpy(out_item, item_at(r, head), r->item_bytes);
    atomic_store_explicit(&r->head, head + 1, memory_order_release);
    return true;
}

/* head is read first: tail can only have grown since, so the difference is never negative. It may
 * exceed the capacity when both moved in between, and is capped. */
uint32_t ring_count(const ring *r)
{
    const uint32_t head = atomic_load_explicit(&r->head, memory_order_acquire);
    const uint32_t tail = atomic_load_explicit(&r->tail, memory_order_acquire);
    return tail - head < r->capacity ? tail - head : r->capacity;
}
