/* kvstore/contexts.h - which blocks of a node belong to which context, and who keeps it alive.
 *
 * Flow:    PUT, DROP, LEASE -> kv_server -> contexts -> slots to give back.
 * Threads: the server's.
 * Memory:  fixed tables taken at create.
 *
 * A context belongs to the owner (a client) that last put a block into it, and lives while the
 * owner's lease does, plus a grace. Dropping one hides its blocks at once; their slots are given
 * back a few at a time. Ids that were dropped by word are remembered for a while, so that a late
 * put cannot bring a dead context back to life; one that only outlived its lease may be put again.
 */
#ifndef KVSTORE_CONTEXTS_H
#define KVSTORE_CONTEXTS_H

#include "kvstore/tier.h"

enum { KV_NONE = UINT32_MAX };

typedef struct kv_contexts kv_contexts;

kv_contexts *kv_contexts_create(arena *a, uint32_t owners_max, uint64_t slots_max);

/* The owner of this id and tenant, made when new; KV_NONE: the table is full of living ones. */
uint32_t kv_owner_find(kv_contexts *c, uint64_t id, uint32_t tenant, uint64_t now_ns);
void kv_owner_renew(kv_contexts *c, uint32_t owner, uint64_t until_ns);
/* Drop what belongs to owners whose lease and grace are over; returns how many owners that were. */
uint32_t kv_owner_expire(kv_contexts *c, uint64_t now_ns, uint64_t grace_ns);

/* Count a published slot to its context. STALE: that context was dropped. NO_SPACE: no room for
 * another context. */
status kv_context_attach(kv_contexts *c, uint32_t owner, uint32_t slot, const block_id *id);
void kv_context_detach(kv_contexts *c, uint32_t slot);
bool kv_context_alive(const kv_contexts *c, uint32_t slot); /* false: dropped, not yet given back */
/* NOT_FOUND: no such context of this tenant here. */
status kv_context_drop(kv_contexts *c, uint32_t tenant, context_id context);
/* The next slot of a dropped context, detached; KV_NO_SLOT: none is left. */
uint32_t kv_context_reclaim(kv_contexts *c);
uint64_t kv_context_count(const kv_contexts *c); /* alive */

#endif
