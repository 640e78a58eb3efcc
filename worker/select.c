/* Selection of a range of rows: score -> pool -> select, then plan against the block table.
 * The query is an argument, so that it may come from a layer or a step earlier (lookahead). */
#include "worker/engine.h"

#include <string.h>

pick_rows pick_rows_of(const worker_engine *e, row_range rows, const float *q, uint64_t stride)
{
    return (pick_rows){.count = rows.count,
                       .seq = e->dev.seq + rows.first,
                       .pos = e->dev.pos + rows.first,
                       .selector = e->dev.selector + rows.first,
                       .q = q,
                       .stride = stride};
}

/* The picks are written from row out_row of `out` on. */
status select_rows(worker_engine *e, uint32_t layer, const pick_rows *rows, pick_buffers *out,
                   uint32_t out_row)
{
    size_t h = (size_t)out_row * e->kv_heads;
    kern_summary summary = engine_summary(e, layer);
    kern_score_args score = {
        .q = rows->q,
        .row_seq = rows->seq,
        .row_pos = rows->pos,
        .row_selector = rows->selector,
        .selectors = e->dev_selectors,
        .summary = summary,
        .out = out->scores + h * e->max_windows,
        .row_stride = rows->stride,
        .rows = rows->count,
        .heads = e->heads,
        .prefill = rows->prefill,
    };
    kern_pool_args pool = {
        .scores = score.out,
        .row_seq = rows->seq,
        .row_pos = rows->pos,
        .row_selector = rows->selector,
        .selectors = e->dev_selectors,
        .summary = summary,
        .query = out->query + h * e->max_select_blocks,
        .importance = out->importance + h * e->max_select_blocks,
        .rows = rows->count,
        .max_select_blocks = e->max_select_blocks,
    };
    kern_select_args select = {
        .query = pool.query,
        .importance = pool.importance,
        .row_pos = rows->pos,
        .row_selector = rows->selector,
        .selectors = e->dev_selectors,
        .block = out->block + h * e->max_select,
        .mask = out->mask + h * e->max_select,
        .count = out->count + h,
        .settled = out->settled + h,
        .rows = rows->count,
        .kv_heads = e->kv_heads,
        .max_select_blocks = e->max_select_blocks,
        .max_select = e->max_select,
    };
    TRY(kern_score(e->stream, &score));
    TRY(kern_pool(e->stream, &pool));
    return kern_select(e->stream, &select);
}

static status project_query(worker_engine *e, const model_layer *w, uint32_t rows, float *out)
{
    kern_linear_args q = {.weight = w->qkv,
                          .x = e->norm,
                          .out = out,
                          .x_stride = e->hidden,
                          .out_stride = (uint64_t)e->heads * e->head_dim,
                          .rows = rows,
                          .columns = e->heads * e->head_dim,
                          .scale = 1.0f};
    return kern_linear(e->stream, &q);
}

/* See step_warm: the product of select_query. */
status select_warm(worker_engine *e, uint32_t rows)
{
    return project_query(e, &e->config.model->layer[0], rows, e->pick_q[0]);
}

/* The layer's own query of other states: norm -> q_proj -> RoPE. out: [count, Hq * D] dense. */
status select_query(worker_engine *e, uint32_t layer, row_range rows, const float *x, float *out)
{
    const model_layer *w = &e->config.model->layer[layer];
    kern_rmsnorm_args norm = {.x = x,
                              .weight = w->input_norm,
                              .out = e->norm,
                              .rows = rows.count,
                              .hidden = e->hidden,
                              .eps = (float)e->config.model->config.norm_eps};
    uint64_t width = (uint64_t)e->heads * e->head_dim;
    kern_rope_args rope = {.x = out,
                           .row_pos = e->dev.pos + rows.first,
                           .cos = e->config.model->cos,
                           .sin = e->config.model->sin,
                           .rows = rows.count,
                           .heads = e->heads,
                           .head_dim = e->head_dim,
                           .max_tokens = e->config.model->max_tokens,
                           .row_stride = width};
    TRY(kern_rmsnorm(e->stream, &norm));
    TRY(project_query(e, w, rows.count, out));
    return kern_rope(e->stream, &rope);
}

/* ---- lookahead `step`: picks kept a sequence from one step to the next ----------------------- */

static size_t ahead_home(const worker_engine *e, uint32_t seq, uint32_t layer)
{
    return ((size_t)seq * e->layers + layer) * e->kv_heads;
}

static float *last_q(worker_engine *e, uint32_t seq, uint32_t layer, uint32_t pos)
{
    size_t width = (size_t)e->heads * e->head_dim;
    return e->last_q + (((size_t)(pos & 1) * e->seqs + seq) * e->layers + layer) * width;
}

/* One row: the picks made a step ahead, or made now from the query of the token before. */
static status load_ahead(worker_engine *e, uint32_t layer, uint32_t row, pick_buffers *picks)
{
    uint32_t seq = (uint32_t)e->row.seq[row], pos = (uint32_t)e->row.pos[row];
    const sequence *s = &e->seq[seq];
    size_t width = (size_t)e->heads * e->head_dim;
    row_range one = {row, 1};
    pick_rows rows = pick_rows_of(e, one, last_q(e, seq, layer, pos == 0 ? 0 : pos - 1), width);
    if (pos == 0 || !s->ahead_valid || s->ahead_pos != pos)
        return select_rows(e, layer, &rows, picks, row);
    size_t from = ahead_home(e, seq, layer), to = (size_t)row * e->kv_heads;
    size_t m = e->max_select, heads = e->kv_heads;
    TRY(kern_copy(e->stream, picks->block + to * m, e->ahead_block + from * m,
                  heads * m * sizeof(int32_t)));
    TRY(kern_copy(e->stream, picks->mask + to * m, e->ahead_mask + from * m, heads * m));
    TRY(kern_copy(e->stream, picks->count + to, e->ahead_count + from, heads * sizeof(int32_t)));
    TRY(kern_copy(e->stream, picks->settled + to, e->ahead_settled + from,
                  heads * sizeof(int32_t)));
    kern_pool_args pool = {
        /* victims are weighed by importance; the scores do not matter here */
        .scores = picks->scores + to * e->max_windows,
        .row_seq = rows.seq,
        .row_pos = rows.pos,
        .row_selector = rows.selector,
        .selectors = e->dev_selectors,
        .summary = engine_summary(e, layer),
        .query = picks->query + to * e->max_select_blocks,
        .importance = picks->importance + to * e->max_select_blocks,
        .rows = 1,
        .max_select_blocks = e->max_select_blocks,
    };
    return kern_pool(e->stream, &pool);
}

/* A row whose next position has room: its picks for that are worth making. */
static bool goes_on(const worker_engine *e, uint32_t r)
{
    const sequence *s = &e->seq[e->row.seq[r]];
    return (uint32_t)e->row.pos[r] + 1 < s->blocks_max * KERN_BLOCK;
}

/* After attention of `layer`: select for the next position with this step's query and keep the
 * picks. A whole step passes before they are needed. */
status select_ahead(worker_engine *e, uint32_t layer)
{
    row_range rows = e->source_rows[SOURCE_STEP];
    size_t m = e->max_select, heads = e->kv_heads;
    for (uint32_t r = rows.first; r < rows.first + rows.count; r++) {
        if (!goes_on(e, r)) continue;
        uint32_t seq = (uint32_t)e->row.seq[r], pos = (uint32_t)e->row.pos[r];
        row_range one = {r, 1};
        pick_rows next =
            pick_rows_of(e, one, last_q(e, seq, layer, pos), (uint64_t)e->heads * e->head_dim);
        next.pos = e->dev.next_pos + r;
        size_t to = ahead_home(e, seq, layer);
        pick_buffers ahead = e->prefill; /* its scores are scratch, idle here */
        ahead.block = e->ahead_block + to * m;
        ahead.mask = e->ahead_mask + to * m;
        ahead.count = e->ahead_count + to;
        ahead.settled = e->ahead_settled + to;
        TRY(select_rows(e, layer, &next, &ahead, 0));
        if (e->inline_ops) continue;
        TRY(kern_copy(e->stream, e->seen_ahead_block + to * m, ahead.block,
                      heads * m * sizeof(int32_t)));
        TRY(kern_copy(e->stream, e->seen_ahead_count + to, ahead.count, heads * sizeof(int32_t)));
    }
    return STATUS_OK;
}

/* Ask for what those picks need and the pool lacks: the layer's table is read for all rows at once.
 * Without a store all of it is as near as it can be. */
status select_ahead_ask(worker_engine *e, uint32_t layer)
{
    row_range rows = e->source_rows[SOURCE_STEP];
    size_t m = e->max_select, heads = e->kv_heads, homes = heads * e->max_blocks;
    int32_t *wanted = e->resume_list; /* idle here */
    if (!e->config.prefetch || !e->config.with_store) return STATUS_OK;
    TRY(kern_copy(e->stream, e->seen_entry_of, engine_table(e, layer).entry_of,
                  e->seqs * homes * sizeof(int32_t)));
    TRY(kern_stream_sync(e->stream));
    for (uint32_t r = rows.first; r < rows.first + rows.count; r++) {
        if (e->row.status[r] != STATUS_OK || !goes_on(e, r)) continue;
        uint32_t seq = (uint32_t)e->row.seq[r];
        size_t from = ahead_home(e, seq, layer);
        for (size_t h = 0; h < heads; h++) {
            for (size_t i = 0; i < m; i++) {
                bool there = (int32_t)i < e->seen_ahead_count[from + h];
                wanted[h * m + i] = there ? e->seen_ahead_block[(from + h) * m + i] : -1;
            }
        }
        fetch_ahead(e, seq, layer, wanted, e->max_select, e->seen_entry_of + seq * homes, false);
    }
    return STATUS_OK;
}

/* ---- the plan of a layer --------------------------------------------------------------------- */

static status pick_layer(worker_engine *e, uint32_t layer, pick_buffers *picks)
{
    uint64_t width = (uint64_t)e->heads * e->head_dim;
    for (int source = SOURCE_OWN; source <= SOURCE_STEP; source++) {
        row_range rows = e->source_rows[source];
        if (rows.count == 0) continue;
        if (source == SOURCE_STEP) {
            for (uint32_t r = rows.first; r < rows.first + rows.count; r++)
                TRY(load_ahead(e, layer, r, picks));
            continue;
        }
        bool own = source == SOURCE_OWN || layer == 0;
        const float *q = own ? e->qkv + (size_t)rows.first * e->qkv_stride
                             : e->pick_q[layer & 1] + (size_t)rows.first * width;
        pick_rows of = pick_rows_of(e, rows, q, own ? e->qkv_stride : width);
        TRY(select_rows(e, layer, &of, picks, rows.first));
    }
    return STATUS_OK;
}

status plan_layer(worker_engine *e, uint32_t layer)
{
    if (e->decode_rows == 0) return STATUS_OK;
    pick_buffers picks = engine_picks(e, layer);
    TRY(pick_layer(e, layer, &picks));
    kern_plan_args plan = {
        .block = picks.block,
        .count = picks.count,
        .settled = picks.settled,
        .importance = picks.importance,
        .row_seq = e->dev.seq,
        .row_pos = e->dev.pos,
        .table = engine_table(e, layer),
        .slot = picks.slot,
        .homes = engine_homes(e, layer),
        .exchange = &e->exchange[layer],
        .row_status = e->dev.status,
        .row_hits = e->dev.hits,
        .row_misses = e->dev.misses,
        .rows = e->decode_rows,
        .max_select = e->max_select,
        .max_select_blocks = e->max_select_blocks,
        .select_block = e->select_block,
        .step = e->step_number,
    };
    TRY(kern_plan(e->stream, &plan));
    TRY(fetch_planned(e, layer));
    fetch_pump(e);
    return STATUS_OK;
}

/* ---- what was selected last ------------------------------------------------------------------ */

status select_read(worker_engine *e)
{
    size_t lists = (size_t)e->layers * e->seqs * e->kv_heads * sizeof(int32_t);
    e->seen_step = e->step_number;
    if (e->inline_ops) return STATUS_OK;
    TRY(kern_copy(e->stream, e->seen.block, e->picks.block, lists * e->max_select));
    return kern_copy(e->stream, e->seen.count, e->picks.count, 2 * lists); /* and settled */
}

/* The device keeps the lists of a step until the next one, and only who leaves the batch has its
 * own looked at. */
void select_keep(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->row_step == 0 || s->row_step != e->step_number) return;
    s->row_step = 0;
    if (e->seen_step != e->step_number) {
        status result = select_read(e);
        if (result == STATUS_OK) result = kern_stream_sync(e->stream);
        engine_device_failed(e, result);
        if (result != STATUS_OK) return;
    }
    for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
        size_t list =
            ((size_t)(i / e->kv_heads) * e->seqs + s->row) * e->kv_heads + i % e->kv_heads;
        int32_t *to = s->last_pick + (size_t)i * e->max_select;
        uint32_t count = (uint32_t)e->seen.count[list];
        memcpy(to, e->seen.block + list * e->max_select, count * sizeof *to);
        memset(to + count, 0xff, (e->max_select - count) * sizeof *to);
    }
}
