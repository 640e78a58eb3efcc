/* Prompt rows: K and V go where the rows read all earlier blocks of the layer: to a stage in device
 * memory, where the whole prompt has room there, else to the host slots that each block is given in
 * any case. Complete blocks are sealed, out of the stage with a copy into their host slots, and put
 * while the prompt goes on.
 * A row's bits depend on neither chunks nor batch, by the tile kernels either, whose order of
 * summation is their own: what came by prefill is recomputed by prefill. */
#include "worker/fetch.h"

#include <string.h>

static int32_t *stage(const worker_engine *e, const sequence *s, uint32_t layer, uint32_t kv_head,
                      uint32_t block)
{
    return &s->stage_slot[((size_t)layer * e->kv_heads + kv_head) * e->max_blocks + block];
}

/* The block of one of the L * Hk lists in engine.stage. */
static uint32_t place_of(const worker_engine *e, uint32_t list, uint32_t block)
{
    return list * e->stage_blocks + block;
}

/* What the slots of a layer are counted from, and these slots, [Hk, B]. */
static uint8_t *memory_of(const worker_engine *e, const sequence *s, uint32_t layer)
{
    if (!s->staged) return io_slot_bytes(e->io, 0);
    return e->stage + (size_t)place_of(e, layer * e->kv_heads, 0) * e->block_bytes;
}

static const int32_t *homes_of(const worker_engine *e, const sequence *s, uint32_t layer)
{
    if (s->staged) return e->stage_place;
    return e->stage_home + (size_t)layer * e->kv_heads * e->max_blocks;
}

/* Host slots for the next `rows` positions, a block of all layers at a time. Decode comes first: a
 * reserve stays for its seals and for parking. Returns how many rows have room. */
uint32_t prefill_reserve(worker_engine *e, uint32_t seq, uint32_t rows)
{
    sequence *s = &e->seq[seq];
    uint32_t per_block = e->layers * e->kv_heads, reserve = 2 * e->seqs * per_block;
    if (s->done == 0) s->staged = s->prefill_count <= e->stage_blocks * KERN_BLOCK;
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

status prefill_begin(worker_engine *e)
{
    const sequence *s = &e->seq[e->row.seq[e->prefill_rows.first]];
    uint64_t homes = (uint64_t)e->layers * e->kv_heads * e->max_blocks;
    if (s->staged) return STATUS_OK;
    return kern_copy(e->stream, e->stage_home, s->stage_slot, homes * sizeof(int32_t));
}

/* Tile kernels know nothing of the blocks that only NSA's window is in. */
static bool in_tiles(const worker_engine *e)
{
    return e->config.tiles && e->gates != 3;
}

/* Select for a tile of prompt rows with the queries that the sequence's source says. */
static status select_tile(worker_engine *e, uint32_t layer, row_range rows, kern_source source)
{
    size_t width = (size_t)e->heads * e->head_dim;
    const float *own = e->qkv + (size_t)rows.first * e->qkv_stride;
    if (source == SOURCE_OWN || (source != SOURCE_STEP && layer == 0)) {
        pick_rows of = pick_rows_of(e, rows, own, e->qkv_stride);
        of.prefill = in_tiles(e);
        return select_rows(e, layer, &of, &e->prefill, 0);
    }
    if (source != SOURCE_STEP) {
        const float *q = e->pick_q[layer & 1] + (size_t)rows.first * width;
        pick_rows of = pick_rows_of(e, rows, q, width);
        of.prefill = in_tiles(e);
        return select_rows(e, layer, &of, &e->prefill, 0);
    }
    /* The query of the token before: another row's, or kept from the last chunk; token 0 has its
     * own. */
    uint32_t first = 0;
    if (rows.first == e->prefill_rows.first) {
        uint32_t seq = (uint32_t)e->row.seq[rows.first], pos = (uint32_t)e->row.pos[rows.first];
        row_range one = {rows.first, 1};
        pick_rows of =
            pick_rows_of(e, one, pos == 0 ? own : ahead_last_query(e, seq, layer), width);
        of.prefill = in_tiles(e);
        TRY(select_rows(e, layer, &of, &e->prefill, 0));
        first = 1;
    }
    if (rows.count == first) return STATUS_OK;
    row_range rest = {rows.first + first, rows.count - first};
    const float *before = e->qkv + (size_t)(rest.first - 1) * e->qkv_stride;
    pick_rows of = pick_rows_of(e, rest, before, e->qkv_stride);
    of.prefill = in_tiles(e);
    return select_rows(e, layer, &of, &e->prefill, first);
}

/* The picks of the prompt's last row: what to bring into the pool first. */
static status keep_last_pick(worker_engine *e, uint32_t layer, uint32_t tile_row)
{
    size_t at = (size_t)tile_row * e->kv_heads, to = (size_t)layer * e->kv_heads;
    size_t m = e->max_select;
    TRY(kern_copy(e->stream, e->prompt_block + to * m, e->prefill.block + at * m,
                  e->kv_heads * m * sizeof(int32_t)));
    return kern_copy(e->stream, e->prompt_count + to, e->prefill.count + at,
                     e->kv_heads * sizeof(int32_t));
}

static status attend_tile(worker_engine *e, uint32_t layer, row_range rows)
{
    const sequence *s = &e->seq[e->row.seq[rows.first]];
    pick_buffers *p = &e->prefill;
    TRY(select_tile(e, layer, rows, e->selectors[s->selector].source));
    kern_locate_args locate = {
        .block = p->block,
        .count = p->count,
        .row_seq = e->dev.seq + rows.first,
        .row_pos = e->dev.pos + rows.first,
        .home = homes_of(e, s, layer),
        .table = engine_table(e, layer),
        .slot = p->slot,
        .rows = rows.count,
        .max_select = e->max_select,
    };
    TRY(kern_locate(e->stream, &locate));
    kern_attend_args attend = {
        .q = e->qkv + (size_t)rows.first * e->qkv_stride,
        .block = p->block,
        .slot = p->slot,
        .count = p->count,
        .mask = p->mask,
        .row_seq = e->dev.seq + rows.first,
        .row_pos = e->dev.pos + rows.first,
        .row_selector = e->dev.selector + rows.first,
        .selectors = e->dev_selectors,
        .pool = memory_of(e, s, layer),
        .summary = engine_summary(e, layer),
        .row_stride = e->qkv_stride,
        .rows = rows.count,
        .heads = e->heads,
        .max_select = e->max_select,
        .block_bytes = e->block_bytes,
        .prefill = in_tiles(e),
    };
    TRY(branch_attend(e, &attend, rows.first));
    if (e->row.pos[rows.first + rows.count - 1] + 1 == (int32_t)s->prefill_count)
        return keep_last_pick(e, layer, rows.count - 1);
    return STATUS_OK;
}

/* K, V, u and windows of the chunk, then selection and attention, a tile of rows at a time. Windows
 * are written a tile at a time too: a row never reads what a later row completes (it masks by its
 * position), so the order cannot matter. */
status prefill_layer(worker_engine *e, uint32_t layer)
{
    row_range all = e->prefill_rows;
    if (all.count == 0) return STATUS_OK;
    size_t q_width = (size_t)e->heads * e->head_dim, kv_width = (size_t)e->kv_heads * e->head_dim;
    const float *k = e->qkv + (size_t)all.first * e->qkv_stride + q_width;
    int32_t *slots = e->append_slot + (size_t)all.first * e->kv_heads;
    const sequence *s = &e->seq[e->row.seq[all.first]];
    kern_compress_args compress = {.k = k,
                                   .v = k + kv_width,
                                   .u = e->row_u + (size_t)all.first * e->kv_heads,
                                   .row_seq = e->dev.seq + all.first,
                                   .row_pos = e->dev.pos + all.first,
                                   .summary = engine_summary(e, layer),
                                   .row_stride = e->qkv_stride,
                                   .rows = all.count};
    kern_enter_args enter = {.locate = {.row_seq = e->dev.seq + all.first,
                                        .row_pos = e->dev.pos + all.first,
                                        .home = homes_of(e, s, layer),
                                        .table = engine_table(e, layer),
                                        .slot = slots,
                                        .rows = all.count,
                                        .max_select = 1},
                             .append = {.k = k,
                                        .v = k + kv_width,
                                        .slot = slots,
                                        .row_pos = e->dev.pos + all.first,
                                        .pool = memory_of(e, s, layer),
                                        .row_stride = e->qkv_stride,
                                        .rows = all.count,
                                        .kv_heads = e->kv_heads,
                                        .head_dim = e->head_dim}};
    TRY(kern_compress(e->stream, &compress));
    TRY(kern_enter(e->stream, &enter));
    for (uint32_t done = 0; done < all.count; done += ENGINE_PREFILL_TILE) {
        row_range tile = {all.first + done, all.count - done};
        if (tile.count > ENGINE_PREFILL_TILE) tile.count = ENGINE_PREFILL_TILE;
        TRY(attend_tile(e, layer, tile));
    }
    return STATUS_OK;
}

/* ---- after the step -------------------------------------------------------------------------- */

static status seal_computed(worker_engine *e, uint32_t seq, uint32_t block)
{
    sequence *s = &e->seq[seq];
    uint32_t n = e->layers * e->kv_heads;
    const int32_t *slot = s->stage_slot + block; /* of list i: [i * max_blocks] */
    for (uint32_t i = 0; i < n; i++) {
        int32_t host = slot[(size_t)i * e->max_blocks];
        e->seal_slot[i] = s->staged ? (int32_t)place_of(e, i, block) : host;
        e->seal_copy[i] = io_slot_bytes(e->io, host);
    }
    status result = seal_block(e, seq, block, memory_of(e, s, 0), s->staged);
    for (uint32_t i = 0; i < n && result == STATUS_OK; i++)
        result =
            seal_digest_set(e, seq, i / e->kv_heads, i % e->kv_heads, block, e->seal_digest[i]);
    if (result != STATUS_OK) return result; /* all of it is still ours, or all is the io side's */
    for (uint32_t i = 0; i < n; i++) {
        seal_send(e, seq, i, block, slot[(size_t)i * e->max_blocks], true);
        if (s->final.recomputes > 0) s->final.blocks.recomputed++, e->stats.blocks.recomputed++;
    }
    return STATUS_OK;
}

/* The open block out of the stage into its host slots. */
static status copy_tail(worker_engine *e, const sequence *s, uint32_t block)
{
    for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
        const uint8_t *from = e->stage + (size_t)place_of(e, i, block) * e->block_bytes;
        TRY(kern_copy(e->stream, io_slot_bytes(e->io, s->tail_slot[i]), from, e->block_bytes));
    }
    return kern_stream_sync(e->stream);
}

/* The prompt is over: what its last row attended to, and its open block in host slots of its own.
 */
static void prompt_over(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    uint32_t open = s->done / KERN_BLOCK, n = e->layers * e->kv_heads;
    bool whole = s->done % KERN_BLOCK == 0;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t *from = e->prompt_block + (size_t)i * e->max_select;
        int32_t *to = s->last_pick + (size_t)i * e->max_select;
        for (uint32_t k = 0; k < e->max_select; k++)
            to[k] = (int32_t)k < e->prompt_count[i] ? from[k] : -1;
        s->tail_slot[i] = whole ? -1 : *stage(e, s, i / e->kv_heads, i % e->kv_heads, open);
    }
    memset(s->stage_slot, 0xff, (size_t)n * e->max_blocks * sizeof(int32_t)); /* all -1 */
    if (s->staged && !whole) engine_device_failed(e, copy_tail(e, s, open));
    seal_tail_given(e, seq, open);
    s->state = SEQ_READY;
}

/* The chunk is computed: seal what it completed; at the prompt's end the sequence becomes READY. */
status prefill_sealed(worker_engine *e)
{
    row_range all = e->prefill_rows;
    if (all.count == 0) return STATUS_OK;
    uint32_t seq = (uint32_t)e->row.seq[all.first];
    sequence *s = &e->seq[seq];
    uint32_t from = s->done / KERN_BLOCK, to = (s->done + all.count) / KERN_BLOCK;
    for (uint32_t b = from; b < to; b++) {
        status result = seal_computed(e, seq, b);
        if (result != STATUS_OK) {
            s->done = b * KERN_BLOCK; /* blocks before it are the io side's */
            sched_finish(e, seq, REASON_FAILED, result);
            return STATUS_OK;
        }
    }
    s->done += all.count;
    e->stats.prefill_rows += all.count;
    if (s->staged) e->stats.staged_rows += all.count;
    if (s->done == s->prefill_count) prompt_over(e, seq);
    return STATUS_OK;
}
