/* Complete blocks: their digests, a copy for the host, and off to the io side, which puts them to R
 * nodes. All blocks of a call are one launch and one wait for the stream, since between steps the
 * device has nothing else to do. */
#include "worker/engine.h"

#include <string.h>

status seal_digest_set(worker_engine *e, uint32_t seq, uint32_t layer, uint32_t kv_head,
                       uint32_t block, uint64_t digest)
{
    kern_home *home = &e->shared.home[engine_home(e, seq, layer, kv_head, block)];
    block_id id =
        io_block_id(e->io, (int32_t)seq, (int32_t)layer, (int32_t)kv_head, (int32_t)block);
    if (home->digest != 0 && home->digest != digest)
        return FAIL(INTERNAL,
                    "block %u of layer %u, KV head %u has other bytes when computed again", block,
                    layer, kv_head);
    home->seed = block_id_hash(&id);
    home->digest = digest;
    return STATUS_OK;
}

void seal_send(worker_engine *e, uint32_t seq, uint32_t list, uint32_t block, int32_t slot,
               bool hold)
{
    io_command command = {.op = IO_SEALED,
                          .seq = (int32_t)seq,
                          .layer = (int32_t)(list / e->kv_heads),
                          .kv_head = (int32_t)(list % e->kv_heads),
                          .block = (int32_t)block,
                          .slot = slot,
                          .hold = hold};
    io_send(e->io, &command);
}

static uint32_t lists_of(const worker_engine *e)
{
    return e->layers * e->kv_heads;
}

/* Seeds of one block in all layers and heads, from e->seal_seed[at] on. */
static void seeds_of(worker_engine *e, uint32_t at, uint32_t seq, uint32_t block)
{
    for (uint32_t i = 0; i < lists_of(e); i++) {
        block_id id = io_block_id(e->io, (int32_t)seq, (int32_t)(i / e->kv_heads),
                                  (int32_t)(i % e->kv_heads), (int32_t)block);
        e->seal_seed[at + i] = block_id_hash(&id);
    }
}

static status seal(worker_engine *e, uint32_t n, const uint8_t *pool, bool copy)
{
    kern_seal_args args = {.pool = pool,
                           .slot = e->seal_slot,
                           .seed = e->seal_seed,
                           .copy = copy ? e->seal_copy : NULL,
                           .digest = e->seal_digest,
                           .n = n,
                           .block_bytes = e->block_bytes};
    status result = kern_seal(e->stream, &args);
    if (result == STATUS_OK) result = kern_stream_sync(e->stream);
    engine_device_failed(e, result);
    return result;
}

status seal_block(worker_engine *e, uint32_t seq, uint32_t block, const uint8_t *memory, bool copy)
{
    seeds_of(e, 0, seq, block);
    return seal(e, lists_of(e), memory, copy);
}

/* ---- of decoding sequences ------------------------------------------------------------------- */

/* Host slots to take the blocks whose pool slots stand in e->seal_slot from `at` on. */
static void copies_take(worker_engine *e, uint32_t at, uint32_t n, int32_t *slot)
{
    for (uint32_t i = 0; i < n; i++) {
        slot[i] = io_slot_take(e->io);
        e->seal_copy[at + i] = io_slot_bytes(e->io, slot[i]);
    }
}

static void copies_give(worker_engine *e, uint32_t n, int32_t *slot)
{
    for (uint32_t i = 0; i < n; i++) {
        io_slot_give(e->io, slot[i]);
        slot[i] = -1;
    }
}

void seal_tail_given(worker_engine *e, uint32_t seq, uint32_t block)
{
    sequence *s = &e->seq[seq];
    seeds_of(e, 0, seq, block);
    for (uint32_t i = 0; i < lists_of(e); i++) {
        if (s->tail_slot[i] < 0) continue;
        s->tail_digest[i] =
            bytes_digest(io_slot_bytes(e->io, s->tail_slot[i]), e->block_bytes, e->seal_seed[i]);
    }
}

status seal_tail(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    uint32_t n = lists_of(e), block = s->done / KERN_BLOCK;
    if (io_slots_free(e->io) < n) return STATUS_BUSY;
    status result = engine_read_table(e, seq);
    for (uint32_t i = 0; i < n && result == STATUS_OK; i++) {
        int32_t entry = e->seen_entry_of[(size_t)i * e->max_blocks + block];
        if (entry < 0 || entry >= s->entries) /* a row there was OK, so the plan gave it an entry */
            result = FAIL(INTERNAL, "block %u of layer %u, KV head %u is in entry %d of %d", block,
                          i / e->kv_heads, i % e->kv_heads, entry, s->entries);
        else
            e->seal_slot[i] = s->pool_slot[i * (uint32_t)s->entries + (uint32_t)entry];
    }
    engine_device_failed(e, result);
    TRY(result);
    copies_take(e, 0, n, s->tail_slot);
    seeds_of(e, 0, seq, block);
    result = seal(e, n, e->pool, true);
    if (result == STATUS_OK)
        memcpy(s->tail_digest, e->seal_digest, n * sizeof *s->tail_digest);
    else
        copies_give(e, n, s->tail_slot);
    return result;
}

bool seal_wanted(const worker_engine *e, uint32_t row)
{
    return e->row.pos[row] % KERN_BLOCK == KERN_BLOCK - 1;
}

/* The row's block, where the step left it in the pool, as the next of those to be sealed. */
static status add_row(worker_engine *e, uint32_t row, uint32_t at)
{
    uint32_t n = lists_of(e), seq = (uint32_t)e->row.seq[row];
    CHECK(io_slots_free(e->io) >= n); /* may_decode saw to it */
    for (uint32_t i = 0; i < n; i++) {
        uint32_t l = i / e->kv_heads, h = i % e->kv_heads;
        int32_t slot = e->seen_open[((size_t)l * e->seqs + row) * e->kv_heads + h];
        if (slot < 0 || (uint32_t)slot >= e->pool_slots) /* the row is OK: it wrote there */
            return FAIL(INTERNAL, "the open block of layer %u, KV head %u is in slot %d of %u", l,
                        h, slot, e->pool_slots);
        e->seal_slot[at + i] = slot;
    }
    copies_take(e, at, n, e->copy_slot + at);
    seeds_of(e, at, seq, (uint32_t)e->row.pos[row] / KERN_BLOCK);
    return STATUS_OK;
}

/* Off to R nodes. INTERNAL: the block was sealed before with other bytes. */
static status hand_over(worker_engine *e, uint32_t row, uint32_t at)
{
    uint32_t seq = (uint32_t)e->row.seq[row], block = (uint32_t)e->row.pos[row] / KERN_BLOCK;
    status result = STATUS_OK;
    for (uint32_t i = 0; i < lists_of(e); i++) {
        status same = seal_digest_set(e, seq, i / e->kv_heads, i % e->kv_heads, block,
                                      e->seal_digest[at + i]);
        seal_send(e, seq, i, block, e->copy_slot[at + i], false);
        if (result == STATUS_OK) result = same;
    }
    return result;
}

status seal_rows(worker_engine *e)
{
    uint32_t each = lists_of(e), n = 0;
    status result = STATUS_OK;
    for (uint32_t r = 0; r < e->decode_rows && result == STATUS_OK; r++) {
        if (e->row.status[r] != STATUS_OK || !seal_wanted(e, r)) continue;
        result = add_row(e, r, n);
        if (result == STATUS_OK) n += each;
    }
    if (n > 0 && result == STATUS_OK) result = seal(e, n, e->pool, true);
    if (result != STATUS_OK) copies_give(e, n, e->copy_slot);
    TRY(result);
    for (uint32_t r = 0, at = 0; r < e->decode_rows; r++) {
        if (e->row.status[r] != STATUS_OK || !seal_wanted(e, r)) continue;
        status same = hand_over(e, r, at);
        if (same != STATUS_OK) sched_finish(e, (uint32_t)e->row.seq[r], REASON_FAILED, same);
        at += each;
    }
    return STATUS_OK;
}
