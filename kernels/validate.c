/* kernels/validate.c - the arguments of every op, checked before anything is written.
 *
 * Shapes are checked for all backends; index arrays only where the host can read them. */
#include "kernels/backend.h"
#include "kernels/selector.h"

#define REQUIRE(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) return FAIL(INVALID, __VA_ARGS__);                                            \
    } while (0)

static status check_heads(const char *op, uint32_t heads, uint32_t kv_heads, uint32_t dim)
{
    REQUIRE(kv_heads > 0 && dim > 0 && dim <= KERN_DIM_MAX && dim % 32 == 0,
            "%s: %u KV heads of dimension %u (a multiple of 32 up to %d is needed)", op, kv_heads,
            dim, KERN_DIM_MAX);
    REQUIRE(heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= KERN_GROUP_HEADS_MAX,
            "%s: %u query heads do not share %u KV heads evenly", op, heads, kv_heads);
    return STATUS_OK;
}

static status check_range(const kern_backend *b, const char *what, const int32_t *values,
                          uint32_t count, uint32_t limit)
{
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t i = 0; i < count; i++)
        REQUIRE(values[i] >= 0 && (uint32_t)values[i] < limit, "%s %d of row %u is not below %u",
                what, values[i], i, limit);
    return STATUS_OK;
}

static status check_summary(const char *op, const kern_summary *s)
{
    REQUIRE(s->seqs > 0 && s->kv_heads > 0 && s->max_tokens > 0, "%s: the summary is empty", op);
    REQUIRE(s->max_windows <= KERN_WINDOWS_MAX, "%s: %u windows are more than %d", op,
            s->max_windows, KERN_WINDOWS_MAX);
    REQUIRE(s->window > 0 && s->window <= KERN_KEY_RING && s->stride > 0 && s->stride <= s->window,
            "%s: windows of %u keys every %u", op, s->window, s->stride);
    return STATUS_OK;
}

/* A selector row that these rows use. */
static status check_selector(const char *op, const kern_selector *s)
{
    REQUIRE(s->block == 16 || s->block == 32 || s->block == 64 ||
                (s->block % 128 == 0 && s->block > 0 && s->block <= 4096),
            "%s: a selection block of %u tokens (16, 32, 64 or a multiple of 128 up to 4096)", op,
            s->block);
    REQUIRE(s->chunk == 0 || (s->chunk % 2 == 0 && s->query <= s->chunk && s->init == 0 &&
                              s->local == 0 && !s->fill_by_importance),
            "%s: a search by chunks of %u blocks for %u picks", op, s->chunk, s->query);
    REQUIRE(!s->raw || s->window == s->stride, "%s: raw scores of windows that overlap", op);
    REQUIRE(s->near == 0 || (!s->bias && !s->fill_by_importance && !s->raw),
            "%s: a sliding window of %u tokens beside importance or raw scores", op, s->near);
    REQUIRE(s->window > 0 && s->stride > 0 && s->stride <= s->window, "%s: windows of %u every %u",
            op, s->window, s->stride);
    REQUIRE(s->total > 0 && s->init <= KERN_SELECT_BLOCKS_MAX && s->local <= KERN_SELECT_BLOCKS_MAX,
            "%s: a selection of %u blocks", op, s->total);
    REQUIRE(s->source >= SOURCE_OWN && s->source <= SOURCE_STEP, "%s: selection source %d", op,
            (int)s->source);
    return STATUS_OK;
}

status kern_selector_check(const kern_backend *backend, const kern_selector *selector)
{
    CHECK(backend != NULL && selector != NULL);
    return check_selector("selector", selector);
}

static status check_selectors(const kern_backend *b, const char *op, const int32_t *row_selector,
                              const kern_selector *selectors, uint32_t rows)
{
    if (!b->host_memory) return STATUS_OK;
    uint32_t seen = 0;
    TRY(check_range(b, "selector", row_selector, rows, KERN_SELECTORS_MAX));
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t bit = 1u << row_selector[r];
        if ((seen & bit) == 0) TRY(check_selector(op, &selectors[row_selector[r]]));
        seen |= bit;
    }
    return STATUS_OK;
}

static status check_rows(const kern_backend *b, const kern_summary *s, const int32_t *row_seq,
                         const int32_t *row_pos, uint32_t rows)
{
    TRY(check_range(b, "sequence", row_seq, rows, s->seqs));
    return check_range(b, "position", row_pos, rows, s->max_tokens);
}

status kern_validate_embed(const kern_backend *b, const kern_embed_args *a)
{
    REQUIRE(a->hidden > 0 && a->vocab > 0, "embed: a table of %u x %u", a->vocab, a->hidden);
    return check_range(b, "token", a->ids, a->rows, a->vocab);
}

static status check_bf16(const kern_backend *b, const char *op, const uint16_t *rows)
{
    REQUIRE(rows == NULL || b->rounds_operands,
            "%s: rows in bf16, which this backend does not round", op);
    return STATUS_OK;
}

status kern_validate_rmsnorm(const kern_backend *b, const kern_rmsnorm_args *a)
{
    TRY(check_bf16(b, "rmsnorm", a->out_bf16));
    REQUIRE(a->hidden > 0 && a->eps >= 0.0f, "rmsnorm: hidden %u, eps %g", a->hidden,
            (double)a->eps);
    return STATUS_OK;
}

status kern_validate_rope(const kern_backend *b, const kern_rope_args *a)
{
    TRY(check_heads("rope", a->heads, a->heads, a->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)a->heads * a->head_dim, "rope: rows overlap");
    return check_range(b, "position", a->row_pos, a->rows, a->max_tokens);
}

status kern_validate_linear(const kern_backend *b, const kern_linear_args *a)
{
    REQUIRE(a->weight != NULL && a->weight->backend == b, "linear: a weight of another backend");
    REQUIRE(a->columns <= a->weight->n && a->x_stride >= a->weight->k &&
                a->out_stride >= kern_linear_columns(a),
            "linear: strides %llu, %llu and %u columns for a weight of %u x %u",
            (unsigned long long)a->x_stride, (unsigned long long)a->out_stride, a->columns,
            a->weight->n, a->weight->k);
    REQUIRE(a->x_bf16 == NULL || a->x_stride == a->weight->k, "linear: rows in bf16 are not dense");
    return check_bf16(b, "linear", a->x_bf16);
}

status kern_validate_swiglu(const kern_backend *b, const kern_swiglu_args *a)
{
    TRY(check_bf16(b, "swiglu", a->out_bf16));
    REQUIRE(a->ffn > 0 && a->in_stride >= a->ffn, "swiglu: %u values every %llu", a->ffn,
            (unsigned long long)a->in_stride);
    return STATUS_OK;
}

status kern_validate_gate(const kern_backend *b, const kern_gate_args *a)
{
    TRY(check_bf16(b, "gate", a->out_bf16));
    TRY(check_heads("gate", a->heads, a->heads, a->head_dim));
    REQUIRE(a->gate_stride >= a->heads, "gate: %u gates every %llu", a->heads,
            (unsigned long long)a->gate_stride);
    return STATUS_OK;
}

status kern_validate_importance(const kern_backend *b, const kern_importance_args *a)
{
    (void)b;
    TRY(check_heads("importance", a->kv_heads, a->kv_heads, a->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)a->kv_heads * a->head_dim, "importance: rows overlap");
    REQUIRE(a->a == NULL || a->delta != NULL, "importance: A without delta");
    return STATUS_OK;
}

status kern_validate_compress(const kern_backend *b, const kern_compress_args *a)
{
    const kern_summary *s = &a->summary;
    TRY(check_summary("compress", s));
    TRY(check_heads("compress", s->kv_heads, s->kv_heads, s->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)s->kv_heads * s->head_dim, "compress: rows overlap");
    REQUIRE(s->vc == NULL || (s->value_ring != NULL && a->v != NULL),
            "compress: means of values that are not given");
    return check_rows(b, s, a->row_seq, a->row_pos, a->rows);
}

status kern_validate_append(const kern_backend *b, const kern_append_args *a)
{
    TRY(check_heads("append", a->kv_heads, a->kv_heads, a->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)a->kv_heads * a->head_dim, "append: rows overlap");
    return check_range(b, "position", a->row_pos, a->rows, INT32_MAX);
}

/* Rows of a prompt are consecutive tokens of one sequence. */
static status check_prefill(const kern_backend *b, const char *op, const int32_t *row_seq,
                            const int32_t *row_pos, uint32_t rows)
{
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t r = 1; r < rows; r++)
        REQUIRE(row_seq[r] == row_seq[0] && row_pos[r] == row_pos[r - 1] + 1,
                "%s: prefill row %u is position %d of sequence %d, after %d of %d", op, r,
                row_pos[r], row_seq[r], row_pos[r - 1], row_seq[0]);
    return STATUS_OK;
}

status kern_validate_locate(const kern_backend *b, const kern_locate_args *a)
{
    REQUIRE(a->table.kv_heads > 0 && a->table.max_blocks > 0, "locate: an empty table");
    REQUIRE((a->block == NULL) == (a->count == NULL), "locate: blocks and counts go together");
    REQUIRE(a->max_select > 0 && (a->block != NULL || a->max_select == 1),
            "locate: %u blocks a row", a->max_select);
    return check_range(b, "position", a->row_pos, a->rows, a->table.max_blocks * KERN_BLOCK);
}

status kern_validate_enter(const kern_backend *b, const kern_enter_args *a)
{
    (void)b;
    REQUIRE(a->locate.block == NULL && a->locate.slot == a->append.slot &&
                a->locate.row_pos == a->append.row_pos && a->locate.rows == a->append.rows &&
                a->locate.table.kv_heads == a->append.kv_heads,
            "enter: %u rows are located and %u others appended", a->locate.rows, a->append.rows);
    return STATUS_OK;
}

status kern_validate_qkv(const kern_backend *b, const kern_qkv_args *a)
{
    (void)b;
    const kern_rope_args *r = &a->rope;
    const kern_importance_args *u = &a->importance;
    const kern_compress_args *c = &a->compress;
    REQUIRE(r->rows == u->rows && r->row_stride == u->row_stride && r->head_dim == u->head_dim &&
                r->heads > u->kv_heads && u->v == r->x + (uint64_t)r->heads * r->head_dim,
            "qkv: rope of %u heads and u of %u heads behind them", r->heads, u->kv_heads);
    REQUIRE(c->rows == 0 ||
                (c->rows <= r->rows && c->row_stride == r->row_stride &&
                 c->k == u->v - (uint64_t)u->kv_heads * u->head_dim && c->u == u->out &&
                 (c->v == u->v || c->v == NULL) && c->row_pos == r->row_pos &&
                 c->summary.kv_heads == u->kv_heads && c->summary.head_dim == u->head_dim),
            "qkv: summaries of other rows");
    return STATUS_OK;
}

status kern_validate_score(const kern_backend *b, const kern_score_args *a)
{
    const kern_summary *s = &a->summary;
    TRY(check_summary("score", s));
    TRY(check_heads("score", a->heads, s->kv_heads, s->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)a->heads * s->head_dim, "score: rows overlap");
    TRY(check_selectors(b, "score", a->row_selector, a->selectors, a->rows));
    TRY(check_rows(b, s, a->row_seq, a->row_pos, a->rows));
    return a->prefill ? check_prefill(b, "score", a->row_seq, a->row_pos, a->rows) : STATUS_OK;
}

/* Rows' selection blocks fit N. */
static status check_select_blocks(const kern_backend *b, const char *op,
                                  const int32_t *row_selector, const int32_t *row_pos,
                                  const kern_selector *selectors, const uint32_t limits[2])
{
    REQUIRE(limits[1] > 0 && limits[1] <= KERN_SELECT_BLOCKS_MAX, "%s: %u selection blocks", op,
            limits[1]);
    TRY(check_selectors(b, op, row_selector, selectors, limits[0]));
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t r = 0; r < limits[0]; r++)
        REQUIRE(row_pos[r] >= 0 &&
                    selector_current(&selectors[row_selector[r]], row_pos[r]) < limits[1],
                "%s: position %d of row %u needs more than %u selection blocks", op, row_pos[r], r,
                limits[1]);
    return STATUS_OK;
}

status kern_validate_pool(const kern_backend *b, const kern_pool_args *a)
{
    TRY(check_summary("pool", &a->summary));
    const uint32_t limits[2] = {a->rows, a->max_select_blocks};
    TRY(check_select_blocks(b, "pool", a->row_selector, a->row_pos, a->selectors, limits));
    return check_rows(b, &a->summary, a->row_seq, a->row_pos, a->rows);
}

status kern_validate_select(const kern_backend *b, const kern_select_args *a)
{
    REQUIRE(a->kv_heads > 0 && a->max_select > 0, "select: %u KV heads, %u entries", a->kv_heads,
            a->max_select);
    const uint32_t limits[2] = {a->rows, a->max_select_blocks};
    TRY(check_select_blocks(b, "select", a->row_selector, a->row_pos, a->selectors, limits));
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t r = 0; r < a->rows; r++) {
        const uint32_t most =
            selector_storage_max(&a->selectors[a->row_selector[r]], a->row_pos[r]);
        REQUIRE(most <= a->max_select, "select: row %u may select %u blocks, there is room for %u",
                r, most, a->max_select);
    }
    return STATUS_OK;
}

status kern_validate_pick(const kern_backend *b, const kern_pick_args *a)
{
    (void)b;
    const kern_pool_args *p = &a->pool;
    const kern_select_args *s = &a->select;
    REQUIRE(p->rows == s->rows && p->summary.kv_heads == s->kv_heads &&
                p->max_select_blocks == s->max_select_blocks && p->query == s->query &&
                p->importance == s->importance && p->row_pos == s->row_pos &&
                p->row_selector == s->row_selector && p->selectors == s->selectors,
            "pick: %u rows are pooled and %u others selected from", p->rows, s->rows);
    return STATUS_OK;
}

static status check_table(const kern_backend *b, const char *op, const kern_table *t)
{
    REQUIRE(t->seqs > 0 && t->kv_heads > 0 && t->max_blocks > 0 && t->max_entries > 0,
            "%s: the block table is empty", op);
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t s = 0; s < t->seqs; s++)
        REQUIRE(t->entries[s] >= 0 && (uint32_t)t->entries[s] <= t->max_entries,
                "%s: sequence %u has %d entries of %u", op, s, t->entries[s], t->max_entries);
    return STATUS_OK;
}

status kern_validate_plan(const kern_backend *b, const kern_plan_args *a)
{
    TRY(check_table(b, "plan", &a->table));
    REQUIRE(a->exchange != NULL && a->select_block > 0 && a->max_select > 0,
            "plan: %u entries of selection blocks of %u", a->max_select, a->select_block);
    REQUIRE((uint64_t)a->rows * a->table.kv_heads * a->max_select <= a->exchange->capacity,
            "plan: the exchange holds %u misses, %u rows may have more", a->exchange->capacity,
            a->rows);
    REQUIRE(a->homes.home == NULL || (a->homes.memory != NULL && a->homes.block_bytes > 0),
            "plan: homes of blocks of %u bytes", a->homes.block_bytes);
    TRY(check_range(b, "sequence", a->row_seq, a->rows, a->table.seqs));
    TRY(check_range(b, "position", a->row_pos, a->rows, INT32_MAX));
    if (!b->host_memory) return STATUS_OK;
    for (uint64_t i = 0; i < (uint64_t)a->rows * a->table.kv_heads; i++) {
        const uint32_t row = (uint32_t)(i / a->table.kv_heads);
        if (a->row_on != NULL && a->row_on[row] == 0) continue;
        if (a->row_status[row] != STATUS_OK) continue;
        REQUIRE(a->count[i] >= 0 && (uint32_t)a->count[i] <= a->max_select,
                "plan: row %u selects %d of %u entries", row, a->count[i], a->max_select);
        for (int32_t e = 0; e < a->count[i]; e++) {
            const int32_t block = a->block[i * a->max_select + (uint64_t)e];
            REQUIRE(block >= 0 && (uint32_t)block < a->table.max_blocks,
                    "plan: row %u selects block %d of %u", row, block, a->table.max_blocks);
        }
    }
    return STATUS_OK;
}

status kern_validate_wait(const kern_backend *b, const kern_wait_args *a)
{
    /* A device may wait by itself for a host that answers from other threads. */
    REQUIRE(a->exchange != NULL && a->host != NULL && a->host->notify != NULL &&
                (a->host->pause != NULL || !b->host_memory) && a->host->clock.now_ns != NULL,
            "wait: nobody to wait for");
    return STATUS_OK;
}

static status check_exchange(const kern_backend *b, const char *op, const kern_exchange *x,
                             const kern_table *t, uint32_t block_bytes)
{
    TRY(check_table(b, op, t));
    REQUIRE(x != NULL && block_bytes > 0 && block_bytes % 64 == 0, "%s: blocks of %u bytes", op,
            block_bytes);
    if (!b->host_memory) return STATUS_OK;
    const uint32_t count = atomic_load_explicit(&x->published, memory_order_acquire);
    REQUIRE(count <= x->capacity, "%s: %u misses in an exchange of %u", op, count, x->capacity);
    for (uint32_t i = 0; i < count; i++) {
        const kern_miss *m = &x->miss[i];
        REQUIRE(m->seq >= 0 && (uint32_t)m->seq < t->seqs && m->kv_head >= 0 &&
                    (uint32_t)m->kv_head < t->kv_heads && m->block >= 0 &&
                    (uint32_t)m->block < t->max_blocks,
                "%s: miss %u names sequence %d, KV head %d, block %d", op, i, m->seq, m->kv_head,
                m->block);
    }
    return STATUS_OK;
}

status kern_validate_gather(const kern_backend *b, const kern_gather_args *a)
{
    TRY(check_exchange(b, "gather", a->exchange, &a->table, a->block_bytes));
    if (!b->host_memory) return STATUS_OK;
    const uint32_t count = atomic_load_explicit(&a->exchange->published, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        const kern_miss *m = &a->exchange->miss[i];
        REQUIRE(m->slot >= 0 && m->entry >= 0 && m->entry < a->table.entries[m->seq],
                "gather: miss %u goes to entry %d, slot %d", i, m->entry, m->slot);
    }
    return STATUS_OK;
}

status kern_validate_install(const kern_backend *b, const kern_install_args *a)
{
    REQUIRE(a->keep_step != NULL, "install: no steps to keep");
    return check_exchange(b, "install", a->exchange, &a->table, a->block_bytes);
}

status kern_validate_bring(const kern_backend *b, const kern_bring_args *a)
{
    (void)b;
    REQUIRE(a->wait.exchange == a->gather.exchange && a->wait.waited_ns == NULL,
            "bring: waits for one exchange and gathers another");
    return STATUS_OK;
}

static status check_branch(const kern_attend_args *a)
{
    REQUIRE(a->branch == BRANCH_NEAR || a->branch == BRANCH_COARSE, "attend: branch %d",
            (int)a->branch);
    if (a->branch == BRANCH_NEAR) return STATUS_OK;
    TRY(check_summary("attend", &a->summary));
    REQUIRE(a->summary.vc != NULL, "attend: a summary without means of values");
    return STATUS_OK;
}

status kern_validate_attend(const kern_backend *b, const kern_attend_args *a)
{
    const kern_summary *s = &a->summary;
    TRY(check_bf16(b, "attend", a->out_bf16));
    TRY(check_heads("attend", a->heads, s->kv_heads, s->head_dim));
    REQUIRE(a->row_stride >= (uint64_t)a->heads * s->head_dim, "attend: rows overlap");
    REQUIRE(a->max_select > 0 && a->block_bytes == 4u * KERN_BLOCK * s->head_dim,
            "attend: blocks of %u bytes for dimension %u", a->block_bytes, s->head_dim);
    TRY(check_rows(b, s, a->row_seq, a->row_pos, a->rows));
    TRY(check_range(b, "selector", a->row_selector, a->rows, KERN_SELECTORS_MAX));
    if (a->prefill) TRY(check_prefill(b, "attend", a->row_seq, a->row_pos, a->rows));
    if (a->branch != BRANCH_SELECTED) TRY(check_branch(a));
    REQUIRE(a->part == ATTEND_WHOLE ||
                (a->late != NULL && !a->prefill && a->branch == BRANCH_SELECTED),
            "attend: part %d of rows that are whole", (int)a->part);
    REQUIRE(a->after == NULL || (b->attends_beside && a->part != ATTEND_PRESENT && !a->prefill &&
                                 a->branch == BRANCH_SELECTED && a->after->coming != NULL),
            "attend: part %d after a gather that leaves no sign", (int)a->part);
    if (!b->host_memory || a->branch == BRANCH_COARSE) return STATUS_OK;
    for (uint64_t i = 0; i < (uint64_t)a->rows * s->kv_heads; i++)
        REQUIRE(a->count[i] >= 0 && (uint32_t)a->count[i] <= a->max_select,
                "attend: list %llu has %d entries of %u", (unsigned long long)i, a->count[i],
                a->max_select);
    return STATUS_OK;
}

status kern_validate_candidates(const kern_backend *b, const kern_candidates_args *a)
{
    TRY(check_summary("candidates", &a->summary));
    TRY(check_table(b, "candidates", &a->table));
    REQUIRE(a->table.kv_heads == a->summary.kv_heads && a->max_candidates > 0,
            "candidates: %u wanted", a->max_candidates);
    TRY(check_range(b, "sequence", a->seq, a->n, a->table.seqs));
    const uint32_t limits[2] = {a->n, KERN_SELECT_BLOCKS_MAX};
    return check_select_blocks(b, "candidates", a->selector, a->next_pos, a->selectors, limits);
}

status kern_validate_seal(const kern_backend *b, const kern_seal_args *a)
{
    REQUIRE(a->block_bytes > 0 && a->block_bytes % 64 == 0, "seal: blocks of %u bytes",
            a->block_bytes);
    return check_range(b, "slot", a->slot, a->n, INT32_MAX);
}

status kern_validate_digest(const kern_backend *b, const kern_digest_args *a)
{
    (void)b;
    REQUIRE(a->x != NULL && a->digest != NULL && a->count > 0 && a->count <= KERN_VOCAB_MAX,
            "digest: rows of %u", a->count);
    return STATUS_OK;
}

status kern_validate_sample(const kern_backend *b, const kern_sample_args *a)
{
    REQUIRE(a->vocab > 0 && a->vocab <= KERN_VOCAB_MAX, "sample: a vocabulary of %u", a->vocab);
    if (!b->host_memory) return STATUS_OK;
    for (uint32_t r = 0; r < a->rows; r++) {
        const kern_sampling *s = &a->sampling[r];
        REQUIRE(s->temperature >= 0.0f && s->top_p > 0.0f &&
                    s->top_logprobs <= KERN_TOP_LOGPROBS_MAX,
                "sample: row %u has temperature %g, top_p %g, %u logprobs", r,
                (double)s->temperature, (double)s->top_p, s->top_logprobs);
    }
    return STATUS_OK;
}
