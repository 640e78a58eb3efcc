/* kvstore/contexts.c - contexts by hash, their slots and their owners by lists of indexes.
 *
 * Three lists: hash chains over contexts, contexts of an owner, slots of a context. All links are
 * indexes into fixed tables; freeing the last slot of a dropped context frees its row. */
#include "kvstore/contexts.h"

#include <string.h>

#include "kvstore/plant.h"

enum { CONTEXTS_MAX = 1 << 16, DROPPED_MAX = 1 << 12 };

typedef struct link_pair {
    uint32_t next, prev;
} link_pair;

typedef struct context_row {
    context_id id;
    uint32_t tenant;
    uint32_t owner;      /* KV_NONE: dropped, or the row is free */
    uint32_t first_slot; /* KV_NONE: no blocks */
    uint32_t chain;      /* next in the hash chain; next free row */
    link_pair peers;     /* among the owner's contexts; among the dropped ones (next only) */
} context_row;

typedef struct owner_row {
    uint64_t id; /* 0: free */
    uint64_t until_ns;
    uint32_t tenant;
    uint32_t first_context;
} owner_row;

typedef struct dropped_row {
    context_id id;
    uint32_t tenant;
    uint32_t chain;
} dropped_row;

struct kv_contexts {
    context_row *row;
    uint32_t *bucket; /* [rows_max] heads of hash chains */
    uint32_t rows_max, free_row, dropped_first;
    uint64_t alive;
    owner_row *owner;
    uint32_t owners_max;
    uint32_t *slot_row; /* [slots_max] context of a slot */
    link_pair *slot_peers;
    dropped_row dropped[DROPPED_MAX]; /* the last ones, oldest overwritten */
    uint32_t dropped_bucket[DROPPED_MAX];
    uint64_t dropped_count;
};

kv_contexts *kv_contexts_create(arena *a, uint32_t owners_max, uint64_t slots_max)
{
    CHECK(owners_max > 0 && slots_max > 0 && slots_max < KV_NONE);
    kv_contexts *c = ARENA_NEW(a, kv_contexts, 1);
    c->rows_max = 16; /* a power of two, so that a hash masks to a bucket */
    while (c->rows_max < CONTEXTS_MAX && c->rows_max < slots_max)
        c->rows_max *= 2;
    c->row = ARENA_NEW(a, context_row, c->rows_max);
    c->bucket = ARENA_NEW(a, uint32_t, c->rows_max);
    for (uint32_t i = 0; i < c->rows_max; i++) {
        c->bucket[i] = KV_NONE;
        c->row[i].owner = KV_NONE;
        c->row[i].chain = i + 1 < c->rows_max ? i + 1 : KV_NONE;
    }
    c->dropped_first = KV_NONE;
    c->owners_max = owners_max;
    c->owner = ARENA_NEW(a, owner_row, owners_max);
    for (uint32_t i = 0; i < owners_max; i++)
        c->owner[i].first_context = KV_NONE;
    c->slot_row = ARENA_NEW(a, uint32_t, slots_max);
    c->slot_peers = ARENA_NEW(a, link_pair, slots_max);
    for (uint32_t i = 0; i < DROPPED_MAX; i++)
        c->dropped_bucket[i] = KV_NONE;
    return c;
}

static uint64_t hash_of(uint32_t tenant, context_id id)
{
    uint64_t key[2] = {id.hi, id.lo};
    return bytes_digest(key, sizeof key, tenant);
}

uint64_t kv_context_count(const kv_contexts *c)
{
    return c->alive;
}

/* ---- dropped ids ----------------------------------------------------------------------------- */

static bool was_dropped(const kv_contexts *c, uint32_t tenant, context_id id)
{
    uint32_t i = c->dropped_bucket[hash_of(tenant, id) % DROPPED_MAX];
    while (i != KV_NONE) {
        const dropped_row *d = &c->dropped[i];
        if (d->tenant == tenant && context_id_equal(d->id, id)) return true;
        i = d->chain;
    }
    return false;
}

static void remember_dropped(kv_contexts *c, uint32_t tenant, context_id id)
{
    if (was_dropped(c, tenant, id)) return;
    uint32_t i = (uint32_t)(c->dropped_count % DROPPED_MAX);
    dropped_row *d = &c->dropped[i];
    if (c->dropped_count >= DROPPED_MAX) {
        uint32_t *at = &c->dropped_bucket[hash_of(d->tenant, d->id) % DROPPED_MAX];
        while (*at != i)
            at = &c->dropped[*at].chain;
        *at = d->chain;
    }
    uint32_t *head = &c->dropped_bucket[hash_of(tenant, id) % DROPPED_MAX];
    *d = (dropped_row){.id = id, .tenant = tenant, .chain = *head};
    *head = i;
    c->dropped_count++;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static uint32_t row_find(const kv_contexts *c, uint32_t tenant, context_id id)
{
    uint32_t i = c->bucket[hash_of(tenant, id) & (c->rows_max - 1)];
    while (i != KV_NONE) {
        const context_row *r = &c->row[i];
        if (r->tenant == tenant && context_id_equal(r->id, id)) break;
        i = r->chain;
    }
    return i;
}

static void owner_link(kv_contexts *c, uint32_t owner, uint32_t i)
{
    context_row *r = &c->row[i];
    owner_row *o = &c->owner[owner];
    r->owner = owner;
    r->peers = (link_pair){.next = o->first_context, .prev = KV_NONE};
    if (o->first_context != KV_NONE) c->row[o->first_context].peers.prev = i;
    o->first_context = i;
}

static void owner_unlink(kv_contexts *c, uint32_t i)
{
    context_row *r = &c->row[i];
    if (r->peers.prev != KV_NONE)
        c->row[r->peers.prev].peers.next = r->peers.next;
    else
        c->owner[r->owner].first_context = r->peers.next;
    if (r->peers.next != KV_NONE) c->row[r->peers.next].peers.prev = r->peers.prev;
    r->owner = KV_NONE;
}

static uint32_t row_add(kv_contexts *c, uint32_t tenant, context_id id)
{
    uint32_t i = c->free_row;
    if (i == KV_NONE) return KV_NONE;
    context_row *r = &c->row[i];
    c->free_row = r->chain;
    uint32_t *head = &c->bucket[hash_of(tenant, id) & (c->rows_max - 1)];
    *r = (context_row){
        .id = id,
        .tenant = tenant,
        .owner = KV_NONE,
        .first_slot = KV_NONE,
        .chain = *head,
    };
    *head = i;
    c->alive++;
    return i;
}

/* Out of the hash and the owner's list; its slots wait to be reclaimed. */
static void row_drop(kv_contexts *c, uint32_t i)
{
    context_row *r = &c->row[i];
    owner_unlink(c, i);
    uint32_t *at = &c->bucket[hash_of(r->tenant, r->id) & (c->rows_max - 1)];
    while (*at != i)
        at = &c->row[*at].chain;
    *at = r->chain;
    r->peers.next = c->dropped_first;
    c->dropped_first = i;
    CHECK(c->alive > 0);
    c->alive--;
}

status kv_context_attach(kv_contexts *c, uint32_t owner, uint32_t slot, const block_id *id)
{
    CHECK(owner < c->owners_max && c->owner[owner].id != 0);
    if (was_dropped(c, id->tenant, id->context)) return STATUS_STALE;
    uint32_t i = row_find(c, id->tenant, id->context);
    if (i == KV_NONE) i = row_add(c, id->tenant, id->context);
    if (i == KV_NONE) return STATUS_NO_SPACE;
    if (c->row[i].owner != owner) {
        if (c->row[i].owner != KV_NONE) owner_unlink(c, i);
        owner_link(c, owner, i);
    }
    uint32_t first = c->row[i].first_slot;
    c->slot_row[slot] = i;
    c->slot_peers[slot] = (link_pair){.next = first, .prev = KV_NONE};
    if (first != KV_NONE) c->slot_peers[first].prev = slot;
    c->row[i].first_slot = slot;
    return STATUS_OK;
}

void kv_context_detach(kv_contexts *c, uint32_t slot)
{
    link_pair peers = c->slot_peers[slot];
    if (peers.prev != KV_NONE)
        c->slot_peers[peers.prev].next = peers.next;
    else
        c->row[c->slot_row[slot]].first_slot = peers.next;
    if (peers.next != KV_NONE) c->slot_peers[peers.next].prev = peers.prev;
}

bool kv_context_alive(const kv_contexts *c, uint32_t slot)
{
    return c->row[c->slot_row[slot]].owner != KV_NONE;
}

status kv_context_drop(kv_contexts *c, uint32_t tenant, context_id context)
{
    remember_dropped(c, tenant, context); /* a put may still be on its way */
    uint32_t i = row_find(c, tenant, context);
    if (i == KV_NONE) return STATUS_NOT_FOUND;
    if (PLANT(DROP_LIVE)) i = c->owner[c->row[i].owner].first_context;
    row_drop(c, i);
    return STATUS_OK;
}

uint32_t kv_context_reclaim(kv_contexts *c)
{
    while (c->dropped_first != KV_NONE) {
        uint32_t i = c->dropped_first;
        uint32_t slot = c->row[i].first_slot;
        if (slot != KV_NONE) {
            kv_context_detach(c, slot);
            return slot;
        }
        c->dropped_first = c->row[i].peers.next;
        c->row[i].chain = c->free_row;
        c->free_row = i;
    }
    return KV_NO_SLOT;
}

/* ---- owners ---------------------------------------------------------------------------------- */

uint32_t kv_owner_find(kv_contexts *c, uint64_t id, uint32_t tenant, uint64_t now_ns)
{
    CHECK(id != 0);
    uint32_t place = KV_NONE;
    for (uint32_t i = 0; i < c->owners_max; i++) {
        owner_row *o = &c->owner[i];
        if (o->id == id && o->tenant == tenant) return i;
        bool idle = o->id == 0 || (o->first_context == KV_NONE && o->until_ns < now_ns);
        if (idle && place == KV_NONE) place = i;
    }
    if (place != KV_NONE)
        c->owner[place] = (owner_row){.id = id, .tenant = tenant, .first_context = KV_NONE};
    return place;
}

void kv_owner_renew(kv_contexts *c, uint32_t owner, uint64_t until_ns)
{
    CHECK(owner < c->owners_max && c->owner[owner].id != 0);
    if (until_ns > c->owner[owner].until_ns) c->owner[owner].until_ns = until_ns;
}

uint32_t kv_owner_expire(kv_contexts *c, uint64_t now_ns, uint64_t grace_ns)
{
    uint32_t expired = 0;
    for (uint32_t i = 0; i < c->owners_max; i++) {
        owner_row *o = &c->owner[i];
        if (o->id == 0 || o->first_context == KV_NONE) continue;
        if (now_ns < o->until_ns || now_ns - o->until_ns < grace_ns) continue;
        while (o->first_context != KV_NONE)
            row_drop(c, o->first_context);
        expired++;
    }
    return expired;
}
