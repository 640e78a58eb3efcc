/* An early guess at the next layer's picks, for rows that select by their own query: the state
 * after this layer's attention, through that layer's norm, query and rotation, is near the query
 * that it will have, so most of what the layer will miss is among its best blocks. They are fetched
 * from the store while the MLP runs, and the plan finds them landed or on their way.
 *
 * A hint and nothing more: what is selected, and so every bit, is what it was. On a device with
 * streams beside the layers' the guess is made on one of them, beside the MLP. The layer's plan
 * waits for it, since it reads the block table. */
#include "worker/fetch.h"

enum { GUESS_LAUNCHES = 10 };

/* The query's best beside what is always selected, as far as the budget goes. The windows that the
 * row itself completes do not exist yet. */
kern_selector guess_selector(const kern_selector *s, uint32_t percent)
{
    kern_selector g = *s;
    uint32_t always = selector_always(s), picks = s->query > always ? s->query - always : 0;
    uint64_t wanted = always + ((uint64_t)picks * percent + 99) / 100;
    g.query = g.total = wanted < s->total ? (uint32_t)wanted : s->total;
    g.fill_by_importance = g.bias = false;
    g.source = SOURCE_MID;
    g.chunk = 0;
    return g;
}

static bool picks_by_query(const worker_engine *e, uint32_t row)
{
    const kern_selector *s = &e->selectors[e->row.selector[row]];
    return s->query > selector_always(s);
}

/* Neighbouring steps ask alike, so what is asked for stays as many steps as there is room for. */
void guess_begin(worker_engine *e)
{
    row_range rows = e->source_rows[SOURCE_OWN];
    if (e->guess_full)
        e->guess_keep /= 2;
    else if (e->guess_keep < ENGINE_GUESS_KEEP)
        e->guess_keep++;
    e->guess_full = e->guessing = false;
    if (e->config.guess == 0 || !fetch_asks_ahead(e)) return;
    for (uint32_t r = rows.first; r < rows.first + rows.count && !e->guessing; r++)
        e->guessing = picks_by_query(e, r);
    e->guessed = e->parts; /* nobody guesses the first layer */
    for (uint32_t g = 0; g < e->demands && e->guessing; g++)
        atomic_store_explicit(&e->guess_made[g], 0, memory_order_relaxed);
}

uint32_t guess_launches(const worker_engine *e)
{
    return e->guessing ? GUESS_LAUNCHES : 0;
}

/* What a layer's guess is read back as: counts, then blocks, then slots. */
static size_t seen_size(const worker_engine *e)
{
    return (size_t)e->seqs * e->kv_heads * (1 + 2 * (size_t)e->max_select);
}

/* ---- on the device --------------------------------------------------------------------------- */

static status read_back(worker_engine *e, uint32_t layer)
{
    size_t size = seen_size(e), demand = engine_demand(e, layer, e->now);
    if (!e->inline_ops)
        TRY(kern_copy(e->picker, e->guess_seen + demand * size, e->guess.count,
                      size * sizeof *e->guess_seen));
    return kern_stream_tell(e->picker, &e->guess_made[demand]);
}

static status make(worker_engine *e, uint32_t layer, row_range rows)
{
    size_t width = (size_t)e->heads * e->head_dim;
    pick_rows of = pick_rows_of(e, rows, e->guess_q, width);
    of.stream = e->picker;
    of.selectors = e->dev_selectors + KERN_SELECTORS_MAX;
    kern_locate_args there = {.block = e->guess.block,
                              .count = e->guess.count,
                              .row_seq = of.seq,
                              .row_pos = of.pos,
                              .table = engine_table(e, layer),
                              .slot = e->guess.slot,
                              .rows = rows.count,
                              .max_select = e->max_select};
    TRY(select_query(e, e->picker, layer, rows, e->x_next + (size_t)rows.first * e->hidden,
                     e->ahead_norm, e->guess_q));
    TRY(select_rows(e, layer, &of, &e->guess, 0));
    TRY(kern_locate(e->picker, &there));
    return read_back(e, layer);
}

status guess_layer(worker_engine *e, uint32_t layer)
{
    if (!e->guessing || layer + 1 == e->layers) return STATUS_OK;
    TRY(fetch_follows(e->picker, e->stream, 0));
    TRY(make(e, layer + 1, engine_rows(e, SOURCE_OWN, e->now)));
    if (e->inline_ops) guess_ask(e);
    return kern_stream_place(e->picker, GUESS_PLACE);
}

status guess_settle(worker_engine *e, uint32_t layer)
{
    if (!e->guessing || layer == 0) return STATUS_OK;
    return kern_stream_after(e->stream, e->picker, GUESS_PLACE);
}

/* ---- and what the host asks for -------------------------------------------------------------- */

bool guess_leaves_out(const worker_engine *e, const kern_miss *miss)
{
    const int32_t where[] = {miss->seq, (int32_t)miss->place, miss->kv_head, miss->block};
    uint64_t draw = bytes_digest(where, sizeof where, e->step_number);
    return (double)(draw >> 11) * 0x1p-53 < (double)e->config.guess_left_out;
}

static void ask(worker_engine *e, uint32_t layer, uint32_t part)
{
    row_range rows = engine_rows(e, SOURCE_OWN, part);
    size_t m = e->max_select, lists = (size_t)e->seqs * e->kv_heads;
    size_t demand = e->inline_ops ? 0 : engine_demand(e, layer, part);
    const int32_t *count = e->guess_seen + demand * seen_size(e);
    const int32_t *block = count + lists, *slot = block + lists * m;
    for (uint32_t r = 0; r < rows.count && !e->guess_full; r++) {
        size_t list = (size_t)r * e->kv_heads;
        fetch_wish wish = {.seq = (uint32_t)e->row.seq[rows.first + r],
                           .layer = layer,
                           .per_head = e->max_select,
                           .block = block + list * m,
                           .count = count + list,
                           .slot = slot + list * m,
                           .stay = true,
                           .guess = true};
        if (picks_by_query(e, rows.first + r)) e->guess_full = !fetch_ahead(e, &wish);
    }
}

/* In the order of plans. Once the layer's plan is over it has asked for itself. */
void guess_ask(worker_engine *e)
{
    for (; e->guessing && e->guessed < engine_plans(e); e->guessed++) {
        uint32_t layer = e->guessed / e->parts, part = e->guessed % e->parts;
        uint32_t demand = engine_demand(e, layer, part);
        const kern_exchange *x = &e->exchange[demand];
        if (atomic_load_explicit(&x->published, memory_order_acquire) != ENGINE_NOT_PLANNED)
            continue;
        if (atomic_load_explicit(&e->guess_made[demand], memory_order_acquire) == 0) return;
        ask(e, layer, part);
    }
}
