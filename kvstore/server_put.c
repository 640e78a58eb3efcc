/* kvstore/server_put.c - keep a block, forget a context.
 *
 * PUT: reserve a slot for the bytes, when the message arrives (they are copied: its buffer is the
 * transport's) or when the transport asks where to read them; then, in order of class, verify what
 * stands in the slot against the digest and publish. Only then is it answered
 * OK. A block that is here already is answered OK when its stored bytes still verify, so that an
 * acknowledgement always means verified bytes; another digest under the same id is REFUSED. A full
 * store says NO_SPACE and evicts nothing. */
#include "kvstore/server.h"

#include <string.h>

enum {
    RECLAIM_PER_POLL = 2048,
    NO_SPACE_HINT_NS = 100 * 1000 * 1000,
};

void server_discard(kv_server *s, uint32_t slot)
{
    kv_context_detach(s->contexts, slot);
    s->tier.ops->discard(s->tier.self, slot);
}

bool server_reclaim(kv_server *s)
{
    for (uint32_t i = 0; i < RECLAIM_PER_POLL; i++) {
        uint32_t slot = kv_context_reclaim(s->contexts);
        if (slot == KV_NO_SLOT) return i > 0;
        s->tier.ops->discard(s->tier.self, slot);
        s->stats.dropped_blocks++;
    }
    return true;
}

static bool slot_verifies(kv_server *s, uint32_t slot)
{
    kv_slot_info info;
    const uint8_t *bytes = s->tier.ops->bytes(s->tier.self, slot, &info);
    return block_digest(&info.id, bytes, s->block_bytes) == info.digest;
}

bool server_still_right(kv_server *s, uint32_t slot)
{
    if (slot_verifies(s, slot)) return true;
    s->stats.corrupt++;
    server_discard(s, slot); /* it will never verify again; a repair may put it anew */
    return false;
}

/* What a block that is here already means for a PUT of it. PENDING: nothing, go on and store. */
static status existing(kv_server *s, const block_id *id, uint64_t digest)
{
    uint32_t slot = s->tier.ops->find(s->tier.self, id);
    if (slot == KV_NO_SLOT) return STATUS_PENDING;
    if (!kv_context_alive(s->contexts, slot)) {
        server_discard(s, slot);
        return STATUS_PENDING;
    }
    kv_slot_info info;
    (void)s->tier.ops->bytes(s->tier.self, slot, &info);
    if (info.digest != digest) return STATUS_REFUSED;
    if (PLANT(REPLICA_UNVERIFIED) || server_still_right(s, slot)) return STATUS_OK;
    return STATUS_PENDING;
}

/* May this connection put this block? PENDING: yes. */
static status put_allowed(kv_server *s, uint32_t conn, const wire_put *put, uint32_t body_bytes)
{
    const server_conn *c = &s->conn[conn];
    if (server_epoch_old(s, conn, put->epoch)) return STATUS_FENCED;
    if (s->fenced || s->stats.draining) return STATUS_FENCED;
    if (put->id.layout != s->layout || put->id.tenant != c->tenant) return STATUS_REFUSED;
    return body_bytes == s->block_bytes ? STATUS_PENDING : STATUS_REFUSED;
}

static status accept_put(kv_server *s, uint32_t conn, const wire_put *put, const kv_message *m,
                         uint32_t *out_slot)
{
    server_conn *c = &s->conn[conn];
    status allowed = put_allowed(s, conn, put, m->body_bytes);
    if (allowed != STATUS_PENDING) return allowed;
    status here = existing(s, &put->id, put->digest);
    if (here != STATUS_PENDING) return here;
    if (c->landing != KV_NO_SLOT) { /* the bytes stand there already */
        *out_slot = c->landing;
        c->landing = KV_NO_SLOT;
        return STATUS_PENDING;
    }
    kv_slot_info info = {.id = put->id, .digest = put->digest};
    TRY(s->tier.ops->reserve(s->tier.self, &info, out_slot));
    CHECK(m->body != NULL); /* a landing is not withdrawn while its connection lives */
    memcpy(s->tier.ops->bytes(s->tier.self, *out_slot, NULL), m->body, m->body_bytes);
    return STATUS_PENDING;
}

void *server_put_land(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_put put;
    server_conn *c = &s->conn[conn];
    if (wire_decode_put(m->head, m->head_bytes, m->body_bytes, &put) != STATUS_OK) return NULL;
    if (c->landing_request != put.head.request) server_put_land_end(s, conn); /* never came whole */
    if (c->landing == KV_NO_SLOT) {
        kv_slot_info info = {.id = put.id, .digest = put.digest};
        if (!c->ready || put_allowed(s, conn, &put, m->body_bytes) != STATUS_PENDING ||
            s->tier.ops->find(s->tier.self, &put.id) != KV_NO_SLOT ||
            s->tier.ops->reserve(s->tier.self, &info, &c->landing) != STATUS_OK)
            return NULL;
        c->landing_request = put.head.request;
    }
    return s->tier.ops->bytes(s->tier.self, c->landing, NULL);
}

void server_put_land_end(kv_server *s, uint32_t conn)
{
    server_conn *c = &s->conn[conn];
    if (c->landing != KV_NO_SLOT) s->tier.ops->discard(s->tier.self, c->landing);
    c->landing = KV_NO_SLOT;
}

void server_put(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_put put;
    if (wire_decode_put(m->head, m->head_bytes, m->body_bytes, &put) != STATUS_OK ||
        (put.class != KV_WRITE_BACK && put.class != KV_REPAIR)) {
        server_malformed(s, conn, "PUT");
        return;
    }
    kv_class class = put.class;
    s->stats.class[class].submitted++;
    job *j = server_job_add(s, conn, JOB_PUT, class, put.head.request);
    if (j == NULL) {
        server_put_land_end(s, conn);
        s->stats.class[class].refused_busy++;
        wire_result busy = {
            .head.request = put.head.request,
            .status = STATUS_BUSY,
            .hint_ns = server_busy_hint(s, class),
        };
        (void)server_send_result(s, conn, WIRE_BUSY, &busy);
        return;
    }
    j->reply = WIRE_PUT_DONE;
    j->slot = KV_NO_SLOT;
    j->result = accept_put(s, conn, &put, m, &j->slot);
    server_put_land_end(s, conn); /* not taken: it was refused */
    j->hint_ns = j->result == STATUS_NO_SPACE ? NO_SPACE_HINT_NS : 0;
}

/* A reserved slot verified: make it findable, unless someone was faster or its context is gone. */
static status publish(kv_server *s, const server_conn *c, uint32_t slot, uint64_t now)
{
    kv_slot_info info;
    (void)s->tier.ops->bytes(s->tier.self, slot, &info);
    uint32_t owner = kv_owner_find(s->contexts, c->owner, c->tenant, now);
    if (owner == KV_NONE) return STATUS_NO_SPACE;
    status here = existing(s, &info.id, info.digest);
    if (here != STATUS_PENDING) return here;
    TRY(kv_context_attach(s->contexts, owner, slot, &info.id));
    CHECK(s->tier.ops->publish(s->tier.self, slot) == STATUS_OK); /* existing() saw nobody */
    return STATUS_OK;
}

void server_put_verify(kv_server *s, job *j, uint64_t now)
{
    if (j->slot == KV_NO_SLOT) return;
    uint32_t slot = j->slot;
    j->slot = KV_NO_SLOT;
    j->result = STATUS_CORRUPT;
    if (slot_verifies(s, slot) || PLANT(ACK_UNVERIFIED))
        j->result = publish(s, &s->conn[j->conn], slot, now);
    else
        s->stats.corrupt++;
    s->stats.stale += j->result == STATUS_STALE;
    kv_slot_info info;
    (void)s->tier.ops->bytes(s->tier.self, slot, &info);
    if (s->tier.ops->find(s->tier.self, &info.id) != slot) {
        s->tier.ops->discard(s->tier.self, slot);
        return;
    }
    s->stats.class[j->class].blocks_ok++;
    s->stats.class[j->class].bytes += s->block_bytes;
    if (rng_unit(&s->fault_random) < s->config.faults.flip_memory) {
        uint64_t bit = rng_below(&s->fault_random, (uint64_t)s->block_bytes * 8);
        s->tier.ops->bytes(s->tier.self, slot, NULL)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

void server_drop(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_drop drop;
    if (wire_decode_drop(m->head, m->head_bytes, &drop) != STATUS_OK) {
        server_malformed(s, conn, "DROP");
        return;
    }
    status result = STATUS_FENCED;
    if (!server_epoch_old(s, conn, drop.epoch))
        result = kv_context_drop(s->contexts, s->conn[conn].tenant, drop.context);
    s->stats.contexts_dropped += result == STATUS_OK;
    job *j = server_job_add(s, conn, JOB_RESULT, KV_DEMAND, drop.head.request);
    if (j == NULL) return; /* the blocks are gone; the client asks again for the word */
    j->reply = WIRE_DROP_DONE;
    j->slot = KV_NO_SLOT;
    j->result = result;
    j->hint_ns = 0;
}
