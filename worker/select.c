/* Selection of a range of rows: score -> pool -> select, then plan against the block table.
 * The query is an argument, so that it may come from a layer or a step earlier (lookahead). */
#include "worker/fetch.h"

#include <string.h>

pick_rows pick_rows_of(const worker_engine *e, row_range rows, const float *q, uint64_t stride)
{
    return (pick_rows){.stream = e->selects,
                       .selectors = e->dev_selectors,
                       .count = rows.count,
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
        .selectors = rows->selectors,
        .summary = summary,
        .out = out->scores + h * e->max_windows,
        .row_stride = rows->stride,
        .rows = rows->count,
        .heads = e->heads,
        .prefill = rows->prefill,
    };
    kern_pick_args pick;
    pick.pool = (kern_pool_args){
        .scores = score.out,
        .row_seq = rows->seq,
        .row_pos = rows->pos,
        .row_selector = rows->selector,
        .selectors = rows->selectors,
        .summary = summary,
        .query = out->query + h * e->max_select_blocks,
        .importance = out->importance + h * e->max_select_blocks,
        .rows = rows->count,
        .max_select_blocks = e->max_select_blocks,
    };
    pick.select = (kern_select_args){
        .query = pick.pool.query,
        .importance = pick.pool.importance,
        .row_pos = rows->pos,
        .row_selector = rows->selector,
        .selectors = rows->selectors,
        .block = out->block + h * e->max_select,
        .mask = out->mask + h * e->max_select,
        .count = out->count + h,
        .settled = out->settled + h,
        .rows = rows->count,
        .kv_heads = e->kv_heads,
        .max_select_blocks = e->max_select_blocks,
        .max_select = e->max_select,
    };
    TRY(kern_score(rows->stream, &score));
    return kern_pick(rows->stream, &pick);
}

static status project_query(worker_engine *e, kern_stream *stream, const model_layer *w,
                            operand norm, uint32_t rows, float *out)
{
    kern_linear_args q = {.weight = w->qkv,
                          .x = norm.f32,
                          .x_bf16 = norm.bf16,
                          .out = out,
                          .x_stride = e->hidden,
                          .out_stride = (uint64_t)e->heads * e->head_dim,
                          .rows = rows,
                          .columns = e->heads * e->head_dim,
                          .scale = 1.0f};
    return kern_linear(stream, &q);
}

/* See step_warm: the product of select_query. */
status select_warm(worker_engine *e, uint32_t rows)
{
    return project_query(e, e->stream, &e->config.model->layer[0], e->norm, rows, e->pick_q[0]);
}

/* The layer's own query of other states: norm -> q_proj -> RoPE. out: [count, Hq * D] dense. */
status select_query(worker_engine *e, kern_stream *stream, uint32_t layer, row_range rows,
                    const float *x, operand norm, float *out)
{
    const model_layer *w = &e->config.model->layer[layer];
    kern_rmsnorm_args normed = {.x = x,
                                .weight = w->input_norm,
                                .out = norm.f32,
                                .out_bf16 = norm.bf16,
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
    TRY(kern_rmsnorm(stream, &normed));
    TRY(project_query(e, stream, w, norm, rows.count, out));
    return kern_rope(stream, &rope);
}

/* ---- the plan of a layer --------------------------------------------------------------------- */

static status pick_layer(worker_engine *e, uint32_t layer, pick_buffers *picks)
{
    uint64_t width = (uint64_t)e->heads * e->head_dim;
    for (int source = SOURCE_OWN; source <= SOURCE_STEP; source++) {
        row_range rows = engine_rows(e, (kern_source)source, e->now);
        if (rows.count == 0) continue;
        if (source == SOURCE_STEP) {
            TRY(ahead_load(e, layer, rows, picks));
            continue;
        }
        bool own = source == SOURCE_OWN || layer == 0;
        const float *q = own ? e->qkv + (size_t)rows.first * e->qkv_stride
                             : e->pick_q[layer & 1] + (size_t)rows.first * width;
        pick_rows of = pick_rows_of(e, rows, q, own ? e->qkv_stride : width);
        TRY(select_rows(e, layer, &of, picks, rows.first - e->part[e->now].decode.first));
    }
    return STATUS_OK;
}

status plan_layer(worker_engine *e, uint32_t layer)
{
    row_range rows = e->part[e->now].decode;
    if (rows.count == 0) return STATUS_OK;
    pick_buffers picks = engine_picks(e, layer);
    TRY(fetch_follows(e->selects, e->stream, 0));
    TRY(pick_layer(e, layer, &picks));
    kern_plan_args plan = {
        .block = picks.block,
        .count = picks.count,
        .settled = picks.settled,
        .importance = picks.importance,
        .row_seq = e->dev.seq + rows.first,
        .row_pos = e->dev.pos + rows.first,
        .table = engine_table(e, layer),
        .slot = picks.slot,
        .late = picks.late,
        .homes = engine_homes(e, layer),
        .exchange = engine_exchange(e, layer),
        .row_status = e->dev.status + rows.first,
        .row_hits = e->dev.hits + rows.first,
        .row_misses = e->dev.misses + rows.first,
        .rows = rows.count,
        .max_select = e->max_select,
        .max_select_blocks = e->max_select_blocks,
        .select_block = e->select_block,
        .step = e->step_number,
    };
    TRY(guess_settle(e, layer));
    TRY(kern_plan(e->selects, &plan));
    if (e->selects != e->stream) TRY(kern_stream_place(e->selects, layer % PLAN_PLACES));
    TRY(fetch_planned(e, layer));
    fetch_pump(e);
    return STATUS_OK;
}

status select_planned(worker_engine *e, uint32_t layer)
{
    return kern_stream_after(e->stream, e->selects, layer % PLAN_PLACES);
}

/* ---- ahead of the layer ---------------------------------------------------------------------- */

status select_reads(worker_engine *e)
{
    return e->selects == e->stream ? STATUS_OK : kern_stream_place(e->selects, READ_PLACE);
}

status select_ahead(worker_engine *e, uint32_t layer, row_range rows, const float *x)
{
    size_t width = (size_t)e->heads * e->head_dim;
    float *q = e->pick_q[layer & 1] + (size_t)rows.first * width;
    TRY(fetch_follows(e->selects, e->stream, 0));
    return select_query(e, e->selects, layer, rows, x + (size_t)rows.first * e->hidden,
                        e->ahead_norm, q);
}

status select_settle(worker_engine *e)
{
    return kern_stream_after(e->stream, e->selects, READ_PLACE);
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
    ahead_leave(e, seq);
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
