/* Prompt rows: K and V go to host slots (staging), where the rows read all earlier blocks of the
 * layer; complete blocks are sealed and put while the prompt goes on.
 * Rows are attended by the same op in the same canonical order as decode rows, so a prompt's bits
 * do not depend on how it was cut into chunks. */
#include "worker/engine.h"

#include <string.h>

static int32_t *stage(const worker_engine *e, const sequence *s, uint32_t layer, uint32_t kv_head,
                      uint32_t block)
{
    return &s->stage_slot[((size_t)layer * e->kv_heads + kv_head) * e->max_blocks + block];
}

/* Host slots for the next `rows` positions, a block of all layers at a time. Decode comes first: a
 * reserve stays for its seals and for parking. Returns how many rows have room. */
uint32_t prefill_reserve(worker_engine *e, uint32_t seq, uint32_t rows)
{
    sequence *s = &e->seq[seq];
    uint32_t per_block = e->layers * e->kv_heads, reserve = 2 * e->seqs * per_block;
    for (uint32_t row = 0; row < rows;) {
        uint32_t block = (s->done + row) / KERN_BLOCK;
        if (*stage(e, s, 0, 0, block) < 0) {
            if (io_slots_free(e->io) < per_block + reserve) return row;
            for (uint32_t l = 0; l < e->layers; l++) {
                for (uint32_t h = 0; h < e->kv_heads; h++)
                    *stage(e, s, l, h, block) = io_slot_take(e->io);
            }
        }
        row = (block + 1) * KERN_BLOCK - s->done;
    }
    return rows;
}

/* Queries that select for prompt rows [rows), by the sequence's source. NULL: the rows' own. */
static const float *pick_queries(worker_engine *e, uint32_t layer, kern_source source)
{
    size_t width = (size_t)e->heads * e->head_dim;
    row_range all = e->prefill_rows;
    if (source == SOURCE_MID || source == SOURCE_INPUT)
        return layer == 0 ? NULL : e->pick_q[layer & 1] + (size_t)all.first * width;
    if (source == SOURCE_OWN) return NULL;
    uint32_t seq = (uint32_t)e->row_seq[all.first], pos = (uint32_t)e->row_pos[all.first];
    for (uint32_t r = 0; r < all.count;
         r++) { /* step: the query of the token before; row 0 its own */
        const float *from = e->qkv + (size_t)(all.first + r - 1) * e->qkv_stride;
        if (r == 0 && pos == 0)
            from = e->qkv + (size_t)all.first * e->qkv_stride;
        else if (r == 0)
            from =
                e->last_q + (((size_t)((pos - 1) & 1) * e->seqs + seq) * e->layers + layer) * width;
        memcpy(e->q_prev + (size_t)r * width, from, width * sizeof(float));
    }
    return e->q_prev;
}

static void keep_last_pick(worker_engine *e, uint32_t layer, uint32_t tile_row, sequence *s)
{
    for (uint32_t h = 0; h < e->kv_heads; h++) {
        size_t at = (size_t)tile_row * e->kv_heads + h;
        int32_t *to = s->last_pick + ((size_t)layer * e->kv_heads + h) * e->max_select;
        for (uint32_t i = 0; i < e->max_select; i++) {
            to[i] =
                (int32_t)i < e->prefill.count[at] ? e->prefill.block[at * e->max_select + i] : -1;
        }
    }
}

static status attend_tile(worker_engine *e, uint32_t layer, row_range rows, const float *pick_q)
{
    sequence *s = &e->seq[e->row_seq[rows.first]];
    size_t width = (size_t)e->heads * e->head_dim;
    uint32_t offset = rows.first - e->prefill_rows.first;
    const float *q = e->qkv + (size_t)rows.first * e->qkv_stride;
    pick_rows of = pick_rows_of(e, rows, pick_q != NULL ? pick_q + (size_t)offset * width : q,
                                pick_q != NULL ? width : e->qkv_stride);
    pick_buffers *p = &e->prefill;
    of.prefill = true;
    TRY(select_rows(e, layer, &of, p, 0));
    for (size_t at = 0; at < (size_t)rows.count * e->kv_heads; at++) {
        uint32_t h = (uint32_t)(at % e->kv_heads);
        for (int32_t i = 0; i < p->count[at]; i++) {
            size_t k = at * e->max_select + (size_t)i;
            p->slot[k] = *stage(e, s, layer, h, (uint32_t)p->block[k]);
        }
    }
    kern_attend_args attend = {
        .q = q,
        .block = p->block,
        .slot = p->slot,
        .count = p->count,
        .mask = p->mask,
        .row_seq = of.seq,
        .row_pos = of.pos,
        .row_selector = of.selector,
        .selectors = e->selectors,
        .pool = io_slot_bytes(e->io, 0),
        .summary = engine_summary(e, layer),
        .out = e->heads_out + (size_t)rows.first * width,
        .row_stride = e->qkv_stride,
        .rows = rows.count,
        .heads = e->heads,
        .max_select = e->max_select,
        .block_bytes = e->block_bytes,
        .prefill = true,
    };
    TRY(kern_attend(e->stream, &attend));
    if (e->row_pos[rows.first + rows.count - 1] + 1 == (int32_t)s->prefill_count)
        keep_last_pick(e, layer, rows.count - 1, s);
    return STATUS_OK;
}

/* K, V, u and windows of the chunk, then selection and attention, a tile of rows at a time. Windows
 * are written a tile at a time too: a row never reads what a later row completes (it masks by its
 * position), so the order cannot matter. */
status prefill_layer(worker_engine *e, uint32_t layer)
{
    row_range all = e->prefill_rows;
    if (all.count == 0) return STATUS_OK;
    sequence *s = &e->seq[e->row_seq[all.first]];
    const kern_selector *selector = &e->selectors[s->selector];
    size_t q_width = (size_t)e->heads * e->head_dim, kv_width = (size_t)e->kv_heads * e->head_dim;
    const float *k = e->qkv + (size_t)all.first * e->qkv_stride + q_width;
    const float *pick_q = pick_queries(e, layer, selector->source);
    int32_t *slots = e->append_slot + (size_t)all.first * e->kv_heads;
    for (uint32_t r = 0; r < all.count; r++) {
        uint32_t block = (uint32_t)e->row_pos[all.first + r] / KERN_BLOCK;
        for (uint32_t h = 0; h < e->kv_heads; h++)
            slots[(size_t)r * e->kv_heads + h] = *stage(e, s, layer, h, block);
    }
    kern_compress_args compress = {.k = k,
                                   .u = e->row_u + (size_t)all.first * e->kv_heads,
                                   .row_seq = e->row_seq + all.first,
                                   .row_pos = e->row_pos + all.first,
                                   .summary = engine_summary(e, layer),
                                   .row_stride = e->qkv_stride,
                                   .rows = all.count};
    kern_append_args append = {.k = k,
                               .v = k + kv_width,
                               .slot = slots,
                               .row_pos = e->row_pos + all.first,
                               .pool = io_slot_bytes(e->io, 0),
                               .row_stride = e->qkv_stride,
                               .rows = all.count,
                               .kv_heads = e->kv_heads,
                               .head_dim = e->head_dim};
    TRY(kern_compress(e->stream, &compress));
    TRY(kern_append(e->stream, &append));
    for (uint32_t done = 0; done < all.count; done += ENGINE_PREFILL_TILE) {
        row_range tile = {all.first + done, all.count - done};
        if (tile.count > ENGINE_PREFILL_TILE) tile.count = ENGINE_PREFILL_TILE;
        TRY(attend_tile(e, layer, tile, pick_q));
    }
    return STATUS_OK;
}

/* ---- after the step -------------------------------------------------------------------------- */

static status seal_block(worker_engine *e, uint32_t seq, uint32_t block)
{
    sequence *s = &e->seq[seq];
    for (uint32_t l = 0; l < e->layers; l++) {
        for (uint32_t h = 0; h < e->kv_heads; h++) {
            int32_t *slot = stage(e, s, l, h, block);
            block_id id = io_block_id(e->io, (int32_t)seq, (int32_t)l, (int32_t)h, (int32_t)block);
            uint64_t seed = block_id_hash(&id), digest = 0;
            kern_seal_args seal = {.pool = io_slot_bytes(e->io, 0),
                                   .slot = slot,
                                   .seed = &seed,
                                   .digest = &digest,
                                   .n = 1,
                                   .block_bytes = e->block_bytes};
            TRY(kern_seal(e->stream, &seal));
            TRY(engine_digest_set(e, seq, l, h, block, digest));
            io_command command = {.op = IO_SEALED,
                                  .seq = (int32_t)seq,
                                  .layer = (int32_t)l,
                                  .kv_head = (int32_t)h,
                                  .block = (int32_t)block,
                                  .slot = *slot,
                                  .hold = true};
            io_send(e->io, &command);
            if (s->final.recomputes > 0) s->final.blocks.recomputed++, e->stats.blocks.recomputed++;
        }
    }
    return STATUS_OK;
}

/* The chunk is computed: seal what it completed; at the prompt's end the sequence becomes READY,
 * its open block in host slots of its own. */
status prefill_sealed(worker_engine *e)
{
    row_range all = e->prefill_rows;
    if (all.count == 0) return STATUS_OK;
    uint32_t seq = (uint32_t)e->row_seq[all.first];
    sequence *s = &e->seq[seq];
    uint32_t from = s->done / KERN_BLOCK, to = (s->done + all.count) / KERN_BLOCK;
    for (uint32_t b = from; b < to; b++) {
        status result = seal_block(e, seq, b);
        if (result != STATUS_OK) {
            sched_finish(e, seq, REASON_FAILED, result);
            return STATUS_OK;
        }
    }
    s->done += all.count;
    e->stats.prefill_rows += all.count;
    if (s->done < s->prefill_count) return STATUS_OK;
    for (uint32_t l = 0; l < e->layers; l++) {
        for (uint32_t h = 0; h < e->kv_heads; h++) {
            size_t at = (size_t)l * e->kv_heads + h;
            s->tail_slot[at] = s->done % KERN_BLOCK == 0 ? -1 : *stage(e, s, l, h, to);
        }
    }
    memset(s->stage_slot, 0xff,
           (size_t)e->layers * e->kv_heads * e->max_blocks * sizeof(int32_t)); /* all -1 */
    s->state = SEQ_READY;
    return STATUS_OK;
}
