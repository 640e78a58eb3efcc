/* Lookahead `step`: a position's selection is made one step before, after attention, by the query
 * of the token before it; a whole step passes before its blocks are needed.
 *
 * The picks stand by the row that made them, [L, S, Hk, M], until the next step loads them: in a
 * batch that stays, all rows at once. Who leaves the batch, and whose row was void and has to
 * repeat its position, has its picks put aside by its sequence. Whoever has neither, since it comes
 * from prefill, selects by the query that its prompt's last row left. All three are the same picks.
 */
#include "worker/fetch.h"

enum { RUN_LAUNCHES = 8 }; /* of a run of rows, loaded or selected for, at most */

static size_t row_lists_at(const worker_engine *e, uint32_t layer, uint32_t row)
{
    return ((size_t)layer * e->seqs + row) * e->kv_heads;
}

static size_t aside_at(const worker_engine *e, uint32_t seq, uint32_t layer)
{
    return ((size_t)seq * e->layers + layer) * e->kv_heads;
}

float *ahead_last_query(const worker_engine *e, uint32_t seq, uint32_t layer)
{
    size_t width = (size_t)e->heads * e->head_dim;
    return e->last_q + ((size_t)seq * e->layers + layer) * width;
}

static status copy_lists(const worker_engine *e, kern_stream *stream, const ahead_lists *to,
                         size_t to_list, const ahead_lists *from, size_t from_list, size_t lists)
{
    size_t m = e->max_select, one = sizeof(int32_t);
    TRY(kern_copy(stream, to->block + to_list * m, from->block + from_list * m, lists * m * one));
    TRY(kern_copy(stream, to->mask + to_list * m, from->mask + from_list * m, lists * m));
    TRY(kern_copy(stream, to->count + to_list, from->count + from_list, lists * one));
    return kern_copy(stream, to->settled + to_list, from->settled + from_list, lists * one);
}

static ahead_lists lists_of_picks(const pick_buffers *p)
{
    return (ahead_lists){p->block, p->count, p->settled, p->mask};
}

/* ---- this step's picks ----------------------------------------------------------------------- */

typedef enum made_by { BY_QUERY, BY_ROW, ASIDE } made_by;

static made_by where_of(const worker_engine *e, uint32_t row)
{
    uint32_t pos = (uint32_t)e->row.pos[row];
    const sequence *s = &e->seq[e->row.seq[row]];
    if (pos == 0) return BY_QUERY;
    if (s->aside && s->aside_pos == pos) return ASIDE;
    return s->row_step != 0 && s->row_step + 1 == e->step_number ? BY_ROW : BY_QUERY;
}

/* Rows from `row` on whose picks stand one under the other where the last step's rows left them. */
static uint32_t run_of(const worker_engine *e, uint32_t row, uint32_t end)
{
    uint32_t first = e->seq[e->row.seq[row]].row, n = 1;
    while (row + n < end && where_of(e, row + n) == BY_ROW &&
           e->seq[e->row.seq[row + n]].row == first + n)
        n++;
    return n;
}

/* Victims are weighed by importance; the scores do not matter here. */
static status pool_rows(worker_engine *e, uint32_t layer, uint32_t row, uint32_t rows,
                        const pick_buffers *picks)
{
    size_t to = (size_t)row * e->kv_heads;
    kern_pool_args pool = {
        .scores = picks->scores + to * e->max_windows,
        .row_seq = e->dev.seq + row,
        .row_pos = e->dev.pos + row,
        .row_selector = e->dev.selector + row,
        .selectors = e->dev_selectors,
        .summary = engine_summary(e, layer),
        .query = picks->query + to * e->max_select_blocks,
        .importance = picks->importance + to * e->max_select_blocks,
        .rows = rows,
        .max_select_blocks = e->max_select_blocks,
    };
    return kern_pool(e->selects, &pool);
}

status ahead_load(worker_engine *e, uint32_t layer, row_range rows, pick_buffers *picks)
{
    uint32_t end = rows.first + rows.count;
    ahead_lists to = lists_of_picks(picks);
    for (uint32_t r = rows.first, n; r < end; r += n) {
        uint32_t seq = (uint32_t)e->row.seq[r];
        made_by where = where_of(e, r);
        n = where == BY_ROW ? run_of(e, r, end) : 1;
        if (where == BY_QUERY) {
            pick_rows one = pick_rows_of(e, (row_range){r, 1}, ahead_last_query(e, seq, layer),
                                         (uint64_t)e->heads * e->head_dim);
            TRY(select_rows(e, layer, &one, picks, r));
            continue;
        }
        const ahead_lists *from = where == BY_ROW ? &e->ahead : &e->aside;
        size_t at =
            where == BY_ROW ? row_lists_at(e, layer, e->seq[seq].row) : aside_at(e, seq, layer);
        TRY(copy_lists(e, e->selects, &to, (size_t)r * e->kv_heads, from, at,
                       (size_t)n * e->kv_heads));
        TRY(pool_rows(e, layer, r, n, picks));
    }
    return STATUS_OK;
}

/* ---- the next step's ------------------------------------------------------------------------- */

/* A row whose next position has room: its picks for that are worth making. */
static bool goes_on(const worker_engine *e, uint32_t r)
{
    const sequence *s = &e->seq[e->row.seq[r]];
    return (uint32_t)e->row.pos[r] + 1 < s->blocks_max * KERN_BLOCK;
}

static status select_run(worker_engine *e, uint32_t layer, row_range rows)
{
    pick_rows next =
        pick_rows_of(e, rows, e->qkv + (size_t)rows.first * e->qkv_stride, e->qkv_stride);
    next.pos = e->dev.next_pos + rows.first;
    size_t to = row_lists_at(e, layer, rows.first), lists = (size_t)rows.count * e->kv_heads;
    size_t m = e->max_select;
    pick_buffers ahead = e->prefill; /* its scores are scratch, idle here */
    ahead.block = e->ahead.block + to * m;
    ahead.mask = e->ahead.mask + to * m;
    ahead.count = e->ahead.count + to;
    ahead.settled = e->ahead.settled + to;
    TRY(select_rows(e, layer, &next, &ahead, 0));
    if (!fetch_asks_ahead(e)) return STATUS_OK;
    kern_locate_args there = {.block = ahead.block,
                              .count = ahead.count,
                              .row_seq = next.seq,
                              .row_pos = next.pos,
                              .table = engine_table(e, layer),
                              .slot = e->seen_ahead_slot + to * m,
                              .rows = rows.count,
                              .max_select = e->max_select};
    TRY(kern_locate(next.stream, &there));
    if (e->inline_ops) return STATUS_OK;
    TRY(kern_copy(next.stream, e->seen_ahead_block + to * m, ahead.block,
                  lists * m * sizeof(int32_t)));
    return kern_copy(next.stream, e->seen_ahead_count + to, ahead.count, lists * sizeof(int32_t));
}

status ahead_select(worker_engine *e, uint32_t layer)
{
    row_range rows = e->source_rows[SOURCE_STEP];
    TRY(fetch_follows(e->selects, e->stream, 0));
    for (uint32_t r = rows.first, end = r + rows.count, n; r < end; r += n) {
        for (n = 0; r + n < end && n < ENGINE_PREFILL_TILE && goes_on(e, r + n); n++) {
        }
        if (n > 0) TRY(select_run(e, layer, (row_range){r, n}));
        n = n > 0 ? n : 1;
    }
    return select_reads(e);
}

uint32_t ahead_launches(const worker_engine *e)
{
    row_range rows = e->source_rows[SOURCE_STEP];
    uint32_t loads = 0, selects = 0, end = rows.first + rows.count;
    for (uint32_t r = rows.first; r < end; loads++)
        r += where_of(e, r) == BY_ROW ? run_of(e, r, end) : 1;
    for (uint32_t r = rows.first; r < end; r++)
        selects +=
            (r - rows.first) % ENGINE_PREFILL_TILE == 0 || goes_on(e, r) != goes_on(e, r - 1);
    return RUN_LAUNCHES * (loads + selects);
}

/* Ask for what those picks need and the pool lacks. A device works on the step meanwhile: whether a
 * row of it is void turns out later, and does no harm here. */
void ahead_ask(worker_engine *e, uint32_t layer)
{
    row_range rows = e->source_rows[SOURCE_STEP];
    if (!fetch_asks_ahead(e)) return;
    for (uint32_t r = rows.first; r < rows.first + rows.count; r++) {
        if (e->row.status[r] != STATUS_OK || !goes_on(e, r)) continue;
        size_t list = row_lists_at(e, layer, r);
        fetch_wish wish = {.seq = (uint32_t)e->row.seq[r],
                           .layer = layer,
                           .per_head = e->max_select,
                           .block = e->seen_ahead_block + list * e->max_select,
                           .count = e->seen_ahead_count + list,
                           .slot = e->seen_ahead_slot + list * e->max_select,
                           .stay = true};
        if (!fetch_ahead(e, &wish)) return;
    }
}

/* ---- put aside ------------------------------------------------------------------------------- */

static void put_aside(worker_engine *e, uint32_t seq, bool repeats)
{
    sequence *s = &e->seq[seq];
    status result = STATUS_OK;
    for (uint32_t l = 0; l < e->layers && result == STATUS_OK; l++) {
        pick_buffers picks = engine_picks(e, l);
        ahead_lists from = repeats ? lists_of_picks(&picks) : e->ahead;
        size_t at = repeats ? (size_t)s->row * e->kv_heads : row_lists_at(e, l, s->row);
        result = copy_lists(e, e->stream, &e->aside, aside_at(e, seq, l), &from, at, e->kv_heads);
    }
    engine_device_failed(e, result);
    s->aside = true;
    s->aside_pos = s->done;
}

static bool looks_ahead(const worker_engine *e, const sequence *s)
{
    return e->selectors[s->selector].source == SOURCE_STEP;
}

void ahead_void(worker_engine *e, uint32_t seq)
{
    if (looks_ahead(e, &e->seq[seq])) put_aside(e, seq, true);
}

void ahead_leave(worker_engine *e, uint32_t seq)
{
    const sequence *s = &e->seq[seq];
    bool kept = s->aside && s->aside_pos == s->done; /* its row was void */
    if (looks_ahead(e, s) && !kept) put_aside(e, seq, false);
}
