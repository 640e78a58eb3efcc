/* The step: one row for every decoding sequence and a chunk of one prompt, through all layers.
 *
 * No host branch depends on what the device computed until the step is over: selections, misses and
 * failures live in the arrays that ops pass on. A row whose block could not be had is void: the
 * batch finishes, that row's token is thrown away and the position is repeated. */
#include "worker/fetch.h"

#include <math.h>
#include <string.h>

/* ---- rows ------------------------------------------------------------------------------------ */

static void row_add(worker_engine *e, uint32_t seq, uint32_t pos)
{
    uint32_t r = e->rows++;
    CHECK(r < e->rows_max);
    e->row.seq[r] = (int32_t)seq;
    e->row.pos[r] = (int32_t)pos;
    e->row.token[r] = e->seq[seq].token[pos];
    e->row.selector[r] = e->seq[seq].selector;
    e->row.next_pos[r] = (int32_t)pos + 1;
    e->row.status[r] = STATUS_OK;
    e->row.hits[r] = e->row.misses[r] = 0;
}

/* A block that this row completes needs host slots for its copies. */
static bool may_decode(worker_engine *e, const sequence *s, uint32_t *slots_promised)
{
    if (s->state != SEQ_ACTIVE) return false;
    if (s->done % KERN_BLOCK != KERN_BLOCK - 1) return true;
    uint32_t need = e->layers * e->kv_heads;
    if (io_slots_free(e->io) < *slots_promised + need) return false;
    *slots_promised += need;
    return true;
}

/* Two parts, where every decode row's plan waits for its own query. The prompt's rows go last. */
static void choose_parts(worker_engine *e)
{
    bool two = e->halves == 2 && e->early == SOURCE_OWN && e->decode_rows > 1 &&
               e->source_rows[SOURCE_OWN].count == e->decode_rows;
    uint32_t half = two ? (e->decode_rows + 1) / 2 : 0;
    e->parts = two ? 2 : 1;
    e->now = 0;
    e->part[0] = (step_part){{0, half}, {0, half}};
    e->part[e->parts - 1] = (step_part){{half, e->rows - half}, {half, e->decode_rows - half}};
}

static void choose_rows(worker_engine *e)
{
    uint32_t promised = 0, sources = 0;
    e->rows = 0;
    e->early = SOURCE_OWN;
    for (int source = SOURCE_OWN; source <= SOURCE_STEP; source++) {
        e->source_rows[source].first = e->rows;
        for (uint32_t i = 0; i < e->seqs; i++) {
            const sequence *s = &e->seq[i];
            if (s->state != SEQ_ACTIVE || (int)e->selectors[s->selector].source != source) continue;
            if (may_decode(e, s, &promised))
                row_add(e, i, s->done);
            else
                select_keep(e, i);
        }
        e->source_rows[source].count = e->rows - e->source_rows[source].first;
        if (e->source_rows[source].count == 0) continue;
        e->early = (kern_source)source;
        sources++;
    }
    if (sources > 1) e->early = SOURCE_OWN; /* one plan a layer: early only when all agree */
    e->decode_rows = e->rows;
    e->prefill_rows = (row_range){e->rows, 0};
    e->selects = e->early == SOURCE_INPUT || e->early == SOURCE_STEP ? e->picker : e->stream;
    uint32_t seq;
    sequence *s = sched_prefilling(e, &seq);
    if (s == NULL || e->rows >= e->rows_max) return;
    uint32_t budget = e->cluster.max_num_batched_tokens > e->rows
                          ? e->cluster.max_num_batched_tokens - e->rows
                          : 1;
    uint32_t left = s->prefill_count - s->done;
    uint32_t n = prefill_reserve(e, seq, left < budget ? left : budget);
    for (uint32_t i = 0; i < n; i++)
        row_add(e, seq, s->done + i);
    e->prefill_rows.count = n;
    if (n > 0) e->selects = e->stream; /* a prompt's own selections use the same scratch */
}

/* The lists lie one after the other, on both sides. */
static status push_rows(worker_engine *e)
{
    return kern_copy(e->stream, e->dev.seq, e->row.seq,
                     ENGINE_ROW_LISTS * (uint64_t)e->rows_max * sizeof(int32_t));
}

/* What the host reads of a step, once the stream is at rest. */
static status pull_results(worker_engine *e)
{
    size_t lists = (size_t)e->rows_max + e->decode_rows; /* status of all rows, and hits */
    size_t heads = (size_t)e->layers * e->seqs * e->kv_heads;
    bool seals = false;
    TRY(kern_copy(e->stream, e->row.status, e->dev.status, lists * sizeof(int32_t)));
    for (uint32_t r = 0; r < e->decode_rows; r++)
        seals |= seal_wanted(e, r);
    if (e->config.with_store && !e->inline_ops)
        TRY(kern_copy(e->stream, e->seen_stood_ns, e->stood_ns, sizeof *e->stood_ns));
    if (seals) TRY(kern_copy(e->stream, e->seen_open, e->open_slot, heads * sizeof(int32_t)));
    return fetch_wants_picks(e) ? select_read(e) : STATUS_OK;
}

/* ---- a layer, of the part under way ---------------------------------------------------------- */

static row_range part_rows(const worker_engine *e)
{
    return e->part[e->now].rows;
}

/* x: of the part. */
static status project(worker_engine *e, const kern_weight *w, operand x, uint64_t x_stride,
                      float *out, uint64_t out_stride)
{
    row_range rows = part_rows(e);
    kern_linear_args a = {.weight = w,
                          .x = x.f32,
                          .x_bf16 = x.bf16,
                          .out = out + rows.first * out_stride,
                          .x_stride = x_stride,
                          .out_stride = out_stride,
                          .rows = rows.count,
                          .scale = 1.0f};
    return kern_linear(e->stream, &a);
}

static status add_residual(worker_engine *e, const kern_weight *w, operand x, uint64_t x_stride,
                           const float *residual, float *out)
{
    row_range rows = part_rows(e);
    size_t at = (size_t)rows.first * e->hidden;
    kern_linear_args a = {.weight = w,
                          .x = x.f32,
                          .x_bf16 = x.bf16,
                          .residual = residual + at,
                          .out = out + at,
                          .x_stride = x_stride,
                          .out_stride = e->hidden,
                          .rows = rows.count,
                          .scale = (float)e->config.model->config.residual_scale};
    return kern_linear(e->stream, &a);
}

static status norm(worker_engine *e, const float *x, const uint16_t *weight, row_range rows)
{
    kern_rmsnorm_args a = {.x = x + (size_t)rows.first * e->hidden,
                           .weight = weight,
                           .out = e->norm.f32,
                           .out_bf16 = e->norm.bf16,
                           .rows = rows.count,
                           .hidden = e->hidden,
                           .eps = (float)e->config.model->config.norm_eps};
    return kern_rmsnorm(e->stream, &a);
}

static status project_in(worker_engine *e, const model_layer *w)
{
    TRY(project(e, w->qkv, e->norm, e->hidden, e->qkv, e->qkv_stride));
    if (w->out_gate == NULL) return STATUS_OK;
    return project(e, w->out_gate, e->norm, e->hidden, e->out_gate, (uint64_t)e->gates * e->heads);
}

static status project_out(worker_engine *e, const model_layer *w)
{
    return add_residual(e, w->o, e->heads_out, (uint64_t)e->heads * e->head_dim, e->x, e->x_next);
}

static status project_up(worker_engine *e, const model_layer *w)
{
    return project(e, w->gate_up, e->norm, e->hidden, e->gate_up, 2 * (uint64_t)e->ffn);
}

static status project_down(worker_engine *e, const model_layer *w)
{
    return add_residual(e, w->down, e->act, e->ffn, e->x_next, e->x);
}

/* q, k and v of all rows, q and k turned, u; k and u of decode rows into the summaries, and the
 * windows that they complete. */
static status qkv_u(worker_engine *e, uint32_t layer)
{
    const model *m = e->config.model;
    const model_layer *w = &m->layer[layer];
    const step_part *part = &e->part[e->now];
    uint32_t first = part->rows.first;
    float *q = e->qkv + first * e->qkv_stride;
    float *k = q + (size_t)e->heads * e->head_dim, *v = k + (size_t)e->kv_heads * e->head_dim;
    uint16_t *u = e->row_u + (size_t)first * e->kv_heads;
    kern_qkv_args a = {
        .rope = {.x = q,
                 .row_pos = e->dev.pos + first,
                 .cos = m->cos,
                 .sin = m->sin,
                 .rows = part->rows.count,
                 .heads = e->heads + e->kv_heads, /* k lies behind q */
                 .head_dim = e->head_dim,
                 .max_tokens = m->max_tokens,
                 .row_stride = e->qkv_stride},
        .importance = {.v = v,
                       .a = w->a,
                       .delta = w->delta,
                       .out = u,
                       .row_stride = e->qkv_stride,
                       .rows = part->rows.count,
                       .kv_heads = e->kv_heads,
                       .head_dim = e->head_dim},
        .compress = {.k = k,
                     .v = v,
                     .u = u,
                     .row_seq = e->dev.seq + first,
                     .row_pos = e->dev.pos + first,
                     .summary = engine_summary(e, layer),
                     .row_stride = e->qkv_stride,
                     .rows = part->decode.count},
    };
    TRY(norm(e, e->x, w->input_norm, part->rows));
    TRY(project_in(e, w));
    return kern_qkv(e->stream, &a);
}

/* K and V into the open block, whose entry the plan has made sure of. */
static status append(worker_engine *e, uint32_t layer)
{
    row_range rows = e->part[e->now].decode;
    int32_t *slot = e->open_slot + ((size_t)layer * e->seqs + rows.first) * e->kv_heads;
    const float *k = e->qkv + rows.first * e->qkv_stride + (size_t)e->heads * e->head_dim;
    const int32_t *pos = e->dev.pos + rows.first;
    kern_enter_args a = {.locate = {.row_seq = e->dev.seq + rows.first,
                                    .row_pos = pos,
                                    .table = engine_table(e, layer),
                                    .slot = slot,
                                    .rows = rows.count,
                                    .max_select = 1},
                         .append = {.k = k,
                                    .v = k + (size_t)e->kv_heads * e->head_dim,
                                    .slot = slot,
                                    .row_pos = pos,
                                    .pool = e->pool,
                                    .row_stride = e->qkv_stride,
                                    .rows = rows.count,
                                    .kv_heads = e->kv_heads,
                                    .head_dim = e->head_dim}};
    return kern_enter(e->stream, &a);
}

static status attend_part(worker_engine *e, uint32_t layer, kern_attend_part part)
{
    row_range rows = e->part[e->now].decode;
    pick_buffers p = engine_picks(e, layer);
    const kern_exchange *beside = fetch_beside(e, layer);
    kern_attend_args a = {.q = e->qkv + rows.first * e->qkv_stride,
                          .block = p.block,
                          .slot = p.slot,
                          .count = p.count,
                          .mask = p.mask,
                          .row_seq = e->dev.seq + rows.first,
                          .row_pos = e->dev.pos + rows.first,
                          .row_selector = e->dev.selector + rows.first,
                          .selectors = e->dev_selectors,
                          .pool = e->pool,
                          .summary = engine_summary(e, layer),
                          .row_stride = e->qkv_stride,
                          .rows = rows.count,
                          .heads = e->heads,
                          .max_select = e->max_select,
                          .block_bytes = e->block_bytes,
                          .part = part,
                          .after = part == ATTEND_PRESENT ? NULL : beside,
                          .entered = beside != NULL && part != ATTEND_LATE,
                          .waited_ns = e->stood_ns,
                          .late = p.late,
                          .next = e->config.model->layer[layer].o};
    return branch_attend(e, &a, rows.first);
}

/* Decode rows, when their blocks are there, or first to those that are. */
static status attend(worker_engine *e, uint32_t layer)
{
    if (e->part[e->now].decode.count == 0) return STATUS_OK;
    bool late = fetch_merges_late(e);
    if (late) TRY(attend_part(e, layer, ATTEND_PRESENT));
    TRY(fetch_finish(e, layer));
    return attend_part(e, layer, late ? ATTEND_LATE : ATTEND_WHOLE);
}

/* By the query of a prompt's last row the next one is selected for, with lookahead `step`. */
static status keep_query(worker_engine *e, uint32_t layer)
{
    if (e->prefill_rows.count == 0) return STATUS_OK;
    uint32_t r = e->rows - 1, seq = (uint32_t)e->row.seq[r];
    if (e->selectors[e->row.selector[r]].source != SOURCE_STEP) return STATUS_OK;
    return kern_copy(e->stream, ahead_last_query(e, seq, layer), e->qkv + (size_t)r * e->qkv_stride,
                     (uint64_t)e->heads * e->head_dim * sizeof(float));
}

/* Queries for the next layer's selection, from states x of this one: of decode rows, and of a
 * prompt. */
static status queries_ahead(worker_engine *e, uint32_t layer, kern_source source, const float *x)
{
    row_range rows = e->source_rows[source];
    if (rows.count == 0 || layer + 1 == e->layers) return STATUS_OK;
    return select_ahead(e, layer + 1, rows, x);
}

static status prompt_queries(worker_engine *e, uint32_t layer, kern_source source, const float *x)
{
    row_range rows = e->prefill_rows;
    if (rows.count == 0 || layer + 1 == e->layers) return STATUS_OK;
    if (e->selectors[e->row.selector[rows.first]].source != source) return STATUS_OK;
    size_t width = (size_t)e->heads * e->head_dim;
    return select_query(e, e->stream, layer + 1, rows, x + (size_t)rows.first * e->hidden, e->norm,
                        e->pick_q[(layer + 1) & 1] + (size_t)rows.first * width);
}

static status mlp(worker_engine *e, uint32_t layer)
{
    const model_layer *w = &e->config.model->layer[layer];
    row_range rows = part_rows(e);
    uint64_t in_stride = 2 * (uint64_t)e->ffn;
    float *gate = e->gate_up + rows.first * in_stride;
    TRY(norm(e, e->x_next, w->post_norm, rows));
    TRY(project_up(e, w));
    kern_swiglu_args a = {.gate = gate,
                          .up = gate + e->ffn,
                          .out = e->act.f32,
                          .out_bf16 = e->act.bf16,
                          .in_stride = in_stride,
                          .rows = rows.count,
                          .ffn = e->ffn};
    TRY(kern_swiglu(e->stream, &a));
    TRY(select_settle(e));
    return project_down(e, w);
}

/* Up to the plan, and what needs no missed block. */
static status layer_begin(worker_engine *e, uint32_t l)
{
    bool early = e->early != SOURCE_OWN;
    TRY(fetch_room(e, l));
    TRY(queries_ahead(e, l, SOURCE_INPUT, e->x));
    if (early && e->early != SOURCE_MID && l + 1 < e->layers) {
        TRY(plan_layer(e, l + 1));
        if (e->early == SOURCE_INPUT) TRY(select_reads(e)); /* step: when the next picks are made */
    }
    TRY(qkv_u(e, l));
    if (!early || (l == 0 && e->early != SOURCE_STEP)) TRY(plan_layer(e, l));
    if (e->part[e->now].decode.count == 0) return STATUS_OK;
    if (l == 0) TRY(select_planned(e, l)); /* the others' were settled under the MLP before */
    return append(e, l);
}

static status layer_end(worker_engine *e, uint32_t l)
{
    const model_layer *w = &e->config.model->layer[l];
    bool last = e->now + 1 == e->parts; /* that has the prompt's rows */
    if (last) TRY(prefill_layer(e, l)); /* they compute while blocks arrive */
    TRY(attend(e, l));
    if (!e->inline_ops) fetch_pump(e); /* a layer takes tens of microseconds to launch */
    TRY(branch_gate(e));
    if (last) TRY(keep_query(e, l));
    TRY(project_out(e, w));
    TRY(guess_layer(e, l));
    TRY(queries_ahead(e, l, SOURCE_MID, e->x_next));
    if (e->early == SOURCE_MID && l + 1 < e->layers) TRY(plan_layer(e, l + 1)); /* under the MLP */
    if (last) TRY(prompt_queries(e, l, SOURCE_MID, e->x_next));
    if (last) TRY(prompt_queries(e, l, SOURCE_INPUT, e->x));
    if (e->source_rows[SOURCE_STEP].count > 0) TRY(ahead_select(e, l));
    if (e->source_rows[SOURCE_STEP].count > 0 && e->inline_ops) ahead_ask(e, l);
    return mlp(e, l);
}

/* Two parts take turns: from the plan of one to its attention the other computes. */
static status layers_run(worker_engine *e)
{
    if (e->parts == 2) TRY(layer_begin(e, 0));
    for (uint32_t l = 0; l < e->layers; l++) {
        e->now = e->parts - 1;
        TRY(layer_begin(e, l));
        e->now = 0;
        TRY(layer_end(e, l));
        if (e->parts == 1) continue;
        if (l + 1 < e->layers) TRY(layer_begin(e, l + 1));
        e->now = 1;
        TRY(layer_end(e, l));
    }
    e->now = 0;
    return STATUS_OK;
}

/* ---- logits ---------------------------------------------------------------------------------- */

static float log_softmax_at(const float *logits, uint32_t vocab, int32_t target)
{
    float most = logits[0];
    for (uint32_t i = 1; i < vocab; i++)
        most = logits[i] > most ? logits[i] : most;
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp((double)logits[i] - most);
    return (float)((double)logits[target] - most - log(sum));
}

static void emit_token(worker_engine *e, sequence *s, uint32_t i)
{
    uint64_t now = clock_now(&e->config.clock);
    if (s->sampled == 0) {
        s->final.first_token_ns = now;
        hist_add(&e->stats.ttft_ns, now - s->final.submitted_ns);
    } else {
        hist_add(&e->stats.itl_ns, now - s->last_token_ns);
    }
    s->last_token_ns = now;
    worker_event event = {.id = s->request.id,
                          .kind = WORKER_TOKEN,
                          .sampled = e->sampled[i],
                          .index = s->sampled,
                          .logits_digest = e->logits_digest[i]};
    s->token[s->count++] = e->sampled[i].token;
    s->sampled++;
    engine_emit(e, &event);
}

/* The row predicts a token that nobody knows yet. */
static bool row_samples(const worker_engine *e, uint32_t r)
{
    const sequence *s = &e->seq[e->row.seq[r]];
    return (uint32_t)e->row.pos[r] + 1 == s->count && s->sampled < s->request.max_new;
}

static bool row_scores(const worker_engine *e, uint32_t r)
{
    const sequence *s = &e->seq[e->row.seq[r]];
    return s->request.score != NULL && (uint32_t)e->row.pos[r] + 1 < s->request.prompt_count;
}

/* States of the rows, one under the other in x_next: a run of rows is one copy. */
static status collect_states(worker_engine *e, const uint32_t *rows, uint32_t n)
{
    for (uint32_t i = 0, run; i < n; i += run) {
        for (run = 1; i + run < n && rows[i + run] == rows[i] + run; run++) {
        }
        TRY(kern_copy(e->stream, e->x_next + (size_t)i * e->hidden,
                      e->x + (size_t)rows[i] * e->hidden,
                      (uint64_t)run * e->hidden * sizeof(float)));
    }
    return STATUS_OK;
}

/* What a void row came to is thrown away. */
static void take_logits(worker_engine *e, uint32_t r, uint32_t i)
{
    sequence *s = &e->seq[e->row.seq[r]];
    uint32_t pos = (uint32_t)e->row.pos[r];
    const float *logits = e->seen_logits + (size_t)i * e->vocab;
    if (e->row.status[r] != STATUS_OK) return;
    if (e->tap != NULL) e->tap(e->tap_self, s->request.id, pos, logits);
    if (row_scores(e, r))
        s->request.score[pos] = log_softmax_at(logits, e->vocab, s->token[pos + 1]);
    if (row_samples(e, r)) emit_token(e, s, i);
}

static status head(worker_engine *e, uint32_t n)
{
    kern_linear_args a = {.weight = e->config.model->lm_head,
                          .x = e->norm.f32,
                          .x_bf16 = e->norm.bf16,
                          .out = e->logits,
                          .x_stride = e->hidden,
                          .out_stride = e->vocab,
                          .rows = n,
                          .scale = (float)e->config.model->config.logit_scale};
    return kern_linear(e->stream, &a);
}

/* Where logits are made they are digested; the host gets them for what only it can do. */
static status digest_and_copy(worker_engine *e, const uint32_t *rows, uint32_t n)
{
    kern_digest_args digest = {
        .x = e->logits, .digest = e->logits_digest, .rows = n, .count = e->vocab};
    bool few = e->vocab < KERN_DIGEST_MIN, seen = few || e->tap != NULL;
    if (!few) TRY(kern_digest(e->stream, &digest));
    for (uint32_t i = 0; i < n && !seen; i++)
        seen = row_scores(e, rows[i]);
    if (!seen) return STATUS_OK;
    return kern_copy(e->stream, e->seen_logits, e->logits, (uint64_t)n * e->vocab * sizeof(float));
}

static status logits_of(worker_engine *e, const uint32_t *rows, uint32_t n)
{
    TRY(collect_states(e, rows, n));
    TRY(norm(e, e->x_next, e->config.model->final_norm, (row_range){0, n}));
    TRY(head(e, n));
    for (uint32_t i = 0; i < n; i++) {
        e->sample_pos[i] = e->row.pos[rows[i]] + 1;
        e->sampling[i] = e->seq[e->row.seq[rows[i]]].request.sampling;
    }
    kern_sample_args sample = {.logits = e->logits,
                               .sampling = e->sampling,
                               .row_pos = e->sample_pos,
                               .out = e->sampled,
                               .rows = n,
                               .vocab = e->vocab};
    TRY(kern_sample(e->stream, &sample));
    TRY(digest_and_copy(e, rows, n));
    TRY(kern_stream_sync(e->stream));
    for (uint32_t i = 0; i < n && e->vocab < KERN_DIGEST_MIN; i++)
        e->logits_digest[i] =
            bytes_digest(e->seen_logits + (size_t)i * e->vocab, e->vocab * sizeof(float), 0);
    for (uint32_t i = 0; i < n; i++)
        take_logits(e, rows[i], i);
    return STATUS_OK;
}

/* A library of products may load a kernel when it first sees a number of rows, and loading waits
 * for the device, which may be waiting for a block that this thread has yet to ask for. So each
 * product of a layer is made once with every number of rows that a step of decode rows may have,
 * and with some of those that prompts add, where the choice of a kernel is coarser. The layers'
 * weights are of the same shapes. Nothing here is kept: memory is as it was taken, or zeros times
 * weights. */
status step_warm(worker_engine *e)
{
    const model_layer *w = &e->config.model->layer[0];
    if (e->inline_ops) return STATUS_OK;
    for (uint32_t n = 1, next; n <= e->rows_max; n = next) {
        next = n < e->seqs || n < ENGINE_WARM_EACH ? n + 1 : n + ENGINE_WARM_STEP;
        if (n < e->rows_max && next > e->rows_max) next = e->rows_max;
        e->part[0].rows.count = n;
        TRY(project_in(e, w));
        TRY(project_out(e, w));
        TRY(project_up(e, w));
        TRY(project_down(e, w));
        TRY(select_warm(e, n));
        if (n <= ENGINE_LOGIT_ROWS) TRY(head(e, n));
    }
    e->part[0].rows.count = 0;
    return kern_stream_sync(e->stream);
}

static status logits_all(worker_engine *e)
{
    uint32_t rows[ENGINE_LOGIT_ROWS], n = 0;
    for (uint32_t r = 0; r < e->rows; r++) {
        if (row_samples(e, r) || row_scores(e, r)) rows[n++] = r;
        if (n == ENGINE_LOGIT_ROWS || (r + 1 == e->rows && n > 0)) {
            TRY(logits_of(e, rows, n));
            n = 0;
        }
    }
    return kern_stream_sync(e->stream);
}

/* ---- commit ---------------------------------------------------------------------------------- */

/* Blocks that no replica has can only be made again; what else failed may work the next time. */
static void row_void(worker_engine *e, uint32_t seq, status why)
{
    sequence *s = &e->seq[seq];
    s->void_tries++;
    s->void_status = why;
    ahead_void(e, seq);
    s->final.void_rows++;
    e->stats.void_rows++;
    if (why == STATUS_NO_MEMORY || why == STATUS_INTERNAL)
        sched_finish(e, seq, REASON_FAILED, why);
    else if (why == STATUS_NOT_FOUND || s->void_tries >= ENGINE_VOID_MAX)
        sched_recompute(e, seq);
}

static void row_done(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    s->void_tries = 0;
    s->whole_step = e->step_number;
    s->done++;
    s->ran++;
}

/* Other locality blocks may be wanted from the next step on. */
static bool has_news(const worker_engine *e, const sequence *s)
{
    if (s->state != SEQ_ACTIVE) return false;
    return (s->done + 1) % e->selectors[s->selector].stride == 0 || s->done % KERN_BLOCK == 0;
}

static void finish_if_over(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->state == SEQ_FREE || s->state == SEQ_CLOSING || s->done < s->prefill_count) return;
    if (s->sampled > 0) {
        for (uint32_t i = 0; i < s->request.eos_count; i++) {
            if (s->token[s->count - 1] != s->eos[i]) continue;
            sched_finish(e, seq, REASON_EOS, STATUS_OK);
            return;
        }
    }
    bool over = s->request.max_new > 0 || s->done == s->count;
    if (over && s->sampled >= s->request.max_new) sched_finish(e, seq, REASON_LENGTH, STATUS_OK);
}

static status commit(worker_engine *e)
{
    uint32_t decoded[512] = {0};
    CHECK(e->decode_rows <= 512);
    for (uint32_t r = 0; r < e->decode_rows; r++)
        decoded[r] = (uint32_t)e->row.seq[r];
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        if (e->row.status[r] != STATUS_OK)
            row_void(e, decoded[r], (status)e->row.status[r]);
        else
            row_done(e, decoded[r]);
    }
    TRY(seal_rows(e));
    uint32_t news[512], news_count = 0;
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        if (e->row.status[r] == STATUS_OK && has_news(e, &e->seq[decoded[r]]))
            news[news_count++] = decoded[r];
    }
    fetch_candidates(e, news, news_count);
    uint32_t prompt = e->prefill_rows.count > 0 ? (uint32_t)e->row.seq[e->prefill_rows.first] : 0;
    TRY(prefill_sealed(e));
    for (uint32_t r = 0; r < e->decode_rows; r++)
        finish_if_over(e, decoded[r]);
    if (e->prefill_rows.count > 0) finish_if_over(e, prompt);
    return STATUS_OK;
}

status step_run(worker_engine *e)
{
    choose_rows(e);
    choose_parts(e);
    if (e->rows == 0) return STATUS_PENDING;
    uint64_t started = clock_now(&e->config.clock);
    e->step_number++;
    fetch_begin(e);
    TRY(push_rows(e));
    if (e->prefill_rows.count > 0) TRY(prefill_begin(e));
    kern_embed_args embed = {.table = e->config.model->embed,
                             .ids = e->dev.token,
                             .out = e->x,
                             .rows = e->rows,
                             .hidden = e->hidden,
                             .vocab = e->vocab,
                             .scale = (float)e->config.model->config.embed_scale};
    TRY(kern_embed(e->stream, &embed));
    if (e->early == SOURCE_STEP) TRY(plan_layer(e, 0));
    TRY(layers_run(e));
    TRY(fetch_drain(e));
    TRY(pull_results(e));
    TRY(logits_all(e));
    TRY(kern_stream_sync(e->side)); /* at rest since the last layer's attention */
    TRY(kern_stream_sync(e->picker));
    fetch_over(e);
    e->stats.steps++;
    e->stats.decode_rows += e->decode_rows;
    if (e->decode_rows > 0) e->stats.step_ns += clock_now(&e->config.clock) - started;
    return commit(e);
}
