/* What a bench saw: shoal.bench/1 rows for programs, a table for people.
 *
 * The bound of a step is the larger of two times that a perfect overlap would leave: reading
 * weights, selected KV and summaries once from device memory at its measured rate, and bringing
 * the misses over the link at its rate. They are counted from what the engine did, not from what
 * was asked for. */
#include "worker/bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- numbers --------------------------------------------------------------------------------- */

static double weight_bytes(const bench *b)
{
    const model *m = b->model;
    uint64_t sum = kern_weight_bytes(m->lm_head);
    for (uint32_t l = 0; l < m->config.layers; l++) {
        const model_layer *w = &m->layer[l];
        sum += kern_weight_bytes(w->qkv) + kern_weight_bytes(w->o) + kern_weight_bytes(w->gate_up) +
               kern_weight_bytes(w->down);
    }
    return (double)sum;
}

bench_bound bench_bound_of(const bench *b, const bench_span *span)
{
    const model_config *c = &b->model->config;
    double steps = span->steps > 0 ? (double)span->steps : 1, rows = (double)span->rows / steps;
    double heads = (double)c->layers * c->kv_heads;
    double block = block_layout_bytes(&b->model->layout);
    double read = (double)(span->hits + span->misses) / steps + rows * heads; /* + the open ones */
    double windows = (double)span->positions / c->sparse.stride;
    bool scores = b->selector.query > 0;
    bench_bound out = {.weights = weight_bytes(b), .kv = read * block};
    out.summaries = heads * windows * 2.0 * ((scores ? c->head_dim : 0) + 1) +
                    (b->selector.bias ? read * KERN_BLOCK * 2.0 : 0);
    if (b->selector.near > 0) out.summaries += heads * windows * 2.0 * c->head_dim; /* Vc */
    if (b->selector.total == UINT32_MAX) /* nothing is scored */
        out.summaries = b->selector.bias ? read * KERN_BLOCK * 2.0 : 0;
    out.memory_ms = (out.weights + out.kv + out.summaries) / (b->ceilings.memory_gbs * 1e6);
    out.link_ms =
        (double)(span->host + span->remote) / steps * block / (b->ceilings.link_gbs * 1e6);
    out.ms = out.memory_ms > out.link_ms ? out.memory_ms : out.link_ms;
    return out;
}

static int by_value(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return a < b ? -1 : a > b;
}

static double median(const double *values, uint32_t count)
{
    double sorted[BENCH_RUNS_MAX];
    memcpy(sorted, values, count * sizeof *values);
    qsort(sorted, count, sizeof *sorted, by_value);
    return count % 2 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

static void add_span(bench_span *sum, const bench_span *span)
{
    uint64_t *to = (uint64_t *)sum;
    const uint64_t *from = (const uint64_t *)span;
    for (size_t k = 0; k < sizeof *sum / sizeof *to; k++)
        to[k] += from[k];
}

/* All runs as one; positions: the mean. */
static bench_span sum_runs(const bench *b)
{
    bench_span all = {0};
    CHECK(b->options.runs > 0);
    for (uint32_t i = 0; i < b->options.runs; i++)
        add_span(&all, &b->run[i]);
    all.positions /= b->options.runs;
    return all;
}
_Static_assert(sizeof(bench_span) % sizeof(uint64_t) == 0, "a span is counters and nothing else");

typedef struct per_run {
    double tokens[BENCH_RUNS_MAX], step_ms[BENCH_RUNS_MAX], exposed_ms[BENCH_RUNS_MAX];
} per_run;

static void count_runs(const bench *b, per_run *out)
{
    for (uint32_t i = 0; i < b->options.runs; i++) {
        const bench_span *s = &b->run[i];
        out->tokens[i] = (double)s->rows / ((double)s->ns * 1e-9);
        out->step_ms[i] = (double)s->ns * 1e-6 / (double)s->steps;
        out->exposed_ms[i] = (double)s->waited_ns * 1e-6 / (double)s->steps;
    }
}

/* Demand misses a layer, KV head and row. */
static double churn_of(const bench *b, const bench_span *s)
{
    double heads = (double)b->model->config.layers * b->model->config.kv_heads;
    return s->rows == 0 ? 0 : (double)s->misses / ((double)s->rows * heads);
}

static double share(uint64_t part, uint64_t whole)
{
    return whole == 0 ? 0 : (double)part / (double)whole;
}

/* ---- words ----------------------------------------------------------------------------------- */

static const char *bench_name(const bench *b)
{
    if (b->team != NULL) return "two_gpu";
    return b->options.nosi_like ? "nosi_like" : "decode";
}

static const char *selector_name(const bench *b)
{
    const selector_choice choice = {.name = b->options.selector};
    return model_selector_name(&b->model->config, &choice);
}

static void case_name(const bench *b, text *out)
{
    const bench_options *o = &b->options;
    if (o->label != NULL) text_format(out, "%s, ", o->label);
    text_format(out, "%s", selector_name(b));
    if (b->selector.total != UINT32_MAX) text_format(out, " %u", b->selector.total);
    text_format(out, ", contexts %s, batch %u", o->contexts_text, b->batch);
    if (b->team != NULL) text_format(out, " on each of %u workers", o->workers);
    if (o->resident)
        text_add_string(out, ", resident");
    else if (b->selector.total != UINT32_MAX)
        text_format(out, ", margin %u%%", o->margin);
    if (b->made && !o->resident && b->selector.total != UINT32_MAX)
        text_format(out, ", churn %.3g", o->churn > 0 ? o->churn : b->walk.misses);
    if (o->lookahead != NULL) text_format(out, ", lookahead %s", o->lookahead);
    if (o->guess > 0) text_format(out, ", guess %u%%", o->guess);
    if (o->two_batch) text_add_string(out, ", two batches");
    if (o->no_prefetch && !o->resident) text_add_string(out, ", no prefetch");
    if (o->nodes > 0)
        text_format(out, ", %u simulated nodes R=%u, RTT %g us, %g Gb/s", o->nodes, o->replicas,
                    o->rtt_us, o->gbit);
    if (o->cluster != NULL) text_add_string(out, ", real store");
    if (o->fault_name != NULL) text_format(out, ", fault %s", o->fault_name);
}

/* ---- rows ------------------------------------------------------------------------------------ */

typedef struct row {
    const char *bench, *unit;
    const double *runs;
    bool higher_is_better;
    double bound; /* 0: none */
} row;

static void row_begin(const bench *b, text *out, const row *r)
{
    double value = median(r->runs, b->options.runs);
    text name;
    text_start(&name, b->memory);
    case_name(b, &name);
    text_add_string(out, "{\"schema\":\"shoal.bench/1\"");
    text_key(out, "bench");
    text_quote_string(out, r->bench);
    text_key(out, "case");
    text_quote(out, name.bytes, name.count);
    text_key(out, "value");
    text_number(out, value);
    text_key(out, "unit");
    text_quote_string(out, r->unit);
    text_format(out, ",\"higher_is_better\":%s", r->higher_is_better ? "true" : "false");
    if (r->bound > 0) {
        text_key(out, "bound");
        text_number(out, r->bound);
        text_key(out, "fraction");
        text_number(out, r->higher_is_better ? value / r->bound : r->bound / value);
    }
    text_add_string(out, ",\"runs\":[");
    for (uint32_t i = 0; i < b->options.runs; i++) {
        if (i > 0) text_add_string(out, ",");
        text_number(out, r->runs[i]);
    }
    text_format(out, "],\"simulated\":%s", b->options.nodes > 0 ? "true" : "false");
}

static void row_end(const bench *b, text *out)
{
    time_t now = (time_t)(clock_wall_ms() / 1000);
    struct tm day;
    char date[32] = "";
    if (gmtime_r(&now, &day) != NULL) (void)strftime(date, sizeof date, "%Y-%m-%d", &day);
    text_key(out, "device");
    text_quote_string(out, kern_backend_describe(b->backend));
    text_key(out, "load");
    text_number(out, b->load);
    if (b->options.commit != NULL) {
        text_key(out, "commit");
        text_quote_string(out, b->options.commit);
    }
    text_key(out, "date");
    text_quote_string(out, date);
    text_add_string(out, "}\n");
}

static void number(text *out, const char *name, double value)
{
    text_key(out, name);
    text_number(out, value);
}

static void decode_row(const bench *b, text *out, const per_run *runs, const bench_span *all,
                       const bench_bound *bound)
{
    double rows = (double)all->rows / (double)all->steps, steps = (double)all->steps;
    double block = block_layout_bytes(&b->model->layout);
    row_begin(b, out,
              &(row){bench_name(b), "tokens/s", runs->tokens, true, rows / (bound->ms * 1e-3)});
    number(out, "steps", steps);
    number(out, "batch", b->batch);
    number(out, "rows_a_step", rows);
    number(out, "step_ms_p50", (double)hist_quantile(&b->step_ns, 0.5) * 1e-6);
    number(out, "step_ms_p99", (double)hist_quantile(&b->step_ns, 0.99) * 1e-6);
    number(out, "misses_a_head_and_step", churn_of(b, all));
    number(out, "resident_share", share(all->hits, all->hits + all->misses));
    number(out, "host_share_of_fetched", share(all->host, all->host + all->remote));
    number(out, "host_bytes_a_step", (double)all->host * block / steps);
    number(out, "remote_bytes_a_step", (double)all->remote * block / steps);
    number(out, "stored_bytes_a_step", (double)all->stored * block / steps);
    if (b->store != NULL) number(out, "card_threads", bench_store_card(b->store));
    if (b->store != NULL) number(out, "io_spins", b->cluster.spin);
    number(out, "prefetch_issued", (double)all->issued);
    number(out, "prefetch_used", (double)all->used);
    number(out, "failed_over", (double)all->failed_over);
    number(out, "corrupt", (double)all->corrupt);
    number(out, "void_rows", (double)all->voids);
    number(out, "parks", (double)all->parks);
    number(out, "host_resident_bytes", (double)b->host_bytes);
    number(out, "first_fill_ms", (double)b->first.ns * 1e-6);
    number(out, "open_ms", (double)b->open_ns * 1e-6);
    number(out, "contexts_ms", (double)b->fill_ns * 1e-6);
    number(out, "first_fill_blocks", (double)(b->first.host + b->first.remote));
    if (b->made) number(out, "tokens_off_the_walk", (double)b->off_walk);
    row_end(b, out);
}

/* A row an op that ran: its ms a step. */
static void profile_rows(const bench *b, text *out)
{
    for (uint32_t op = 0; op < KERN_OP_COUNT; op++) {
        double ms[BENCH_RUNS_MAX], calls = 0;
        for (uint32_t i = 0; i < b->options.runs; i++) {
            ms[i] = (double)b->run_profile[i].op[op].ns * 1e-6 / (double)b->run[i].steps;
            calls = (double)b->run_profile[i].op[op].calls / (double)b->run[i].steps;
        }
        if (calls == 0) continue;
        row_begin(b, out, &(row){"op", "ms", ms, false, 0});
        text_key(out, "op");
        text_quote_string(out, kern_op_name(op));
        number(out, "calls_a_step", calls);
        row_end(b, out);
    }
}

static void report_json(const bench *b, text *out, const per_run *runs, const bench_span *all,
                        const bench_bound *bound)
{
    decode_row(b, out, runs, all, bound);
    row_begin(b, out, &(row){"step_bound", "ms", runs->step_ms, false, bound->ms});
    number(out, "memory_ms", bound->memory_ms);
    number(out, "link_ms", bound->link_ms);
    number(out, "weight_bytes", bound->weights);
    number(out, "kv_bytes", bound->kv);
    number(out, "summary_bytes", bound->summaries);
    number(out, "memory_gbs", b->ceilings.memory_gbs);
    number(out, "link_gbs", b->ceilings.link_gbs);
    text_key(out, "link");
    text_quote_string(out, b->ceilings.link);
    row_end(b, out);
    row_begin(b, out, &(row){"exposed", "ms", runs->exposed_ms, false, 0});
    number(out, "fetch_ms", (double)all->fetch_ns * 1e-6 / (double)all->steps);
    number(out, "stall_ms_max", (double)b->stats->stall_ns_max * 1e-6);
    row_end(b, out);
    if (b->options.profile) profile_rows(b, out);
}

/* ---- table ----------------------------------------------------------------------------------- */

/* Four digits, never an exponent. */
static void figure(text *out, double value)
{
    text_format(out, fabs(value) < 1000 ? "%.4g" : "%.0f", value);
}

static void spread(text *out, const char *what, const double *runs, uint32_t count,
                   const char *unit)
{
    double least = runs[0], most = runs[0];
    for (uint32_t i = 1; i < count; i++) {
        least = fmin(least, runs[i]);
        most = fmax(most, runs[i]);
    }
    text_format(out, "%-22s ", what);
    figure(out, median(runs, count));
    text_format(out, " %s (", unit);
    figure(out, least);
    text_add_string(out, " to ");
    figure(out, most);
    text_format(out, " over %u runs)\n", count);
}

static void report_text(const bench *b, text *out, const per_run *runs, const bench_span *all,
                        const bench_bound *bound)
{
    const double mib = 1.0 / 1048576.0, block = block_layout_bytes(&b->model->layout);
    double steps = (double)all->steps, step = median(runs->step_ms, b->options.runs);
    uint64_t asked = all->hits + all->misses;
    case_name(b, out);
    text_format(out, "\n%s%s\n\n", kern_backend_describe(b->backend),
                b->options.nodes > 0 ? "; SIMULATED network in this process" : "");
    spread(out, "speed", runs->tokens, b->options.runs, "tokens/s");
    spread(out, "step", runs->step_ms, b->options.runs, "ms");
    text_format(out, "%-22s %.4g ms: step is %.2f times that\n", "bound", bound->ms,
                step / bound->ms);
    text_format(out, "%-22s %.4g ms: weights %.1f, KV %.1f, summaries %.1f MiB at %.4g GB/s\n",
                "  device memory", bound->memory_ms, bound->weights * mib, bound->kv * mib,
                bound->summaries * mib, b->ceilings.memory_gbs);
    text_format(out, "%-22s %.4g ms: %.2f MiB at %.4g GB/s, %s\n", "  misses", bound->link_ms,
                (double)(all->host + all->remote) / steps * block * mib, b->ceilings.link_gbs,
                b->ceilings.link);
    spread(out, "exposed fetch", runs->exposed_ms, b->options.runs, "ms a step");
    text_format(out, "%-22s %.2f %% of %.0f a step; %.3g misses a layer, KV head and row",
                "pool hits", 100 * share(all->hits, asked), (double)asked / steps,
                churn_of(b, all));
    if (b->made && b->walk.misses > 0)
        text_format(out, " (the walk: %.3g at an exact fit)", b->walk.misses);
    text_format(out, "\n%-22s host %.2f MiB, remote %.2f MiB; stored %.2f MiB\n", "moved a step",
                (double)all->host / steps * block * mib, (double)all->remote / steps * block * mib,
                (double)all->stored / steps * block * mib);
    text_format(out, "%-22s issued %llu, used %llu, late %llu, wasted %llu\n", "prefetch",
                (unsigned long long)all->issued, (unsigned long long)all->used,
                (unsigned long long)all->late, (unsigned long long)all->wasted);
    if (b->with_store)
        text_format(out, "%-22s failed over %llu, hedged %llu, corrupt %llu\n", "store",
                    (unsigned long long)all->failed_over, (unsigned long long)all->hedged,
                    (unsigned long long)all->corrupt);
    text_format(out, "%-22s %.1f ms, %llu blocks; contexts were made in %.2f s\n", "first fill",
                (double)b->first.ns * 1e-6, (unsigned long long)(b->first.host + b->first.remote),
                (double)b->fill_ns * 1e-9);
    text_format(out, "%-22s %.1f MiB of distinct KV in host memory; pool %.1f MiB\n", "memory",
                (double)b->host_bytes * mib, (double)b->cluster.device_pool_bytes * mib);
    text_format(out,
                "%-22s %llu steps, %llu rows; void rows %llu, parked %llu, off the walk %llu\n",
                "steady state", (unsigned long long)all->steps, (unsigned long long)all->rows,
                (unsigned long long)all->voids, (unsigned long long)all->parks,
                (unsigned long long)b->off_walk);
    if (b->options.profile) {
        profile p = {0};
        for (uint32_t i = 0; i < b->options.runs; i++)
            profile_add(&p, &b->run_profile[i]);
        text_add_string(out, "\n");
        profile_text(out, &p, all->steps);
    }
}

/* ---- several workers ------------------------------------------------------------------------- */

typedef struct team_runs {
    double together[BENCH_RUNS_MAX], alone[BENCH_RUNS_MAX]; /* tokens/s */
    double overlap; /* share of a run's time in which all were at it; the least of the runs */
    bench_span all; /* of all workers and runs */
    uint64_t host_bytes, off_walk;
} team_runs;

/* A run lasts from the first worker's begin to the last one's end. */
static void merge_run(const bench *b, const bench_member *m, uint32_t run, team_runs *out)
{
    uint64_t first = UINT64_MAX, end = 0, common_from = 0, common_to = UINT64_MAX, rows = 0;
    for (uint32_t i = 0; i < b->options.workers; i++) {
        uint64_t from = m[i].begun_ns[run], to = from + m[i].run[run].ns;
        if (from < first) first = from;
        if (to > end) end = to;
        if (from > common_from) common_from = from;
        if (to < common_to) common_to = to;
        rows += m[i].run[run].rows;
        add_span(&out->all, &m[i].run[run]);
    }
    double whole = (double)(end - first);
    double common = common_to > common_from ? (double)(common_to - common_from) : 0;
    out->together[run] = (double)rows / (whole * 1e-9);
    out->alone[run] = (double)m[0].alone[run].rows / ((double)m[0].alone[run].ns * 1e-9);
    if (run == 0 || common / whole < out->overlap) out->overlap = common / whole;
}

static void team_json(const bench *b, text *out, const team_runs *t)
{
    const bench_options *o = &b->options;
    const bench_member *m = bench_team_members(b->team);
    double alone = median(t->alone, o->runs), steps = (double)t->all.steps / o->workers;
    double block = block_layout_bytes(&b->model->layout);
    row_begin(b, out, &(row){bench_name(b), "tokens/s", t->together, true, 0});
    text_add_string(out, ",\"peer\":\"one worker alone, in the same call\"");
    number(out, "peer_value", alone);
    text_add_string(out, ",\"peer_runs\":[");
    for (uint32_t i = 0; i < o->runs; i++) {
        if (i > 0) text_add_string(out, ",");
        text_number(out, t->alone[i]);
    }
    text_add_string(out, "]");
    number(out, "ratio", median(t->together, o->runs) / alone);
    number(out, "workers", o->workers);
    text_add_string(out, ",\"batches\":[");
    for (uint32_t i = 0; i < o->workers; i++)
        text_format(out, "%s%u", i > 0 ? "," : "", m[i].batch);
    text_add_string(out, "]");
    number(out, "overlap", t->overlap);
    number(out, "steps_a_worker", steps);
    number(out, "misses_a_head_and_step", churn_of(b, &t->all));
    number(out, "host_bytes_a_step", (double)t->all.host * block / steps);
    number(out, "remote_bytes_a_step", (double)t->all.remote * block / steps);
    number(out, "exposed_ms_a_worker", (double)t->all.waited_ns * 1e-6 / (double)t->all.steps);
    number(out, "failed_over", (double)t->all.failed_over);
    number(out, "corrupt", (double)t->all.corrupt);
    number(out, "void_rows", (double)t->all.voids);
    number(out, "host_resident_bytes", (double)t->host_bytes);
    if (b->made) number(out, "tokens_off_the_walk", (double)t->off_walk);
    row_end(b, out);
}

static void team_text(const bench *b, text *out, const team_runs *t)
{
    uint32_t runs = b->options.runs;
    case_name(b, out);
    text_format(out, "\n%s\n\n", kern_backend_describe(b->backend));
    spread(out, "all workers together", t->together, runs, "tokens/s");
    spread(out, "one of them alone", t->alone, runs, "tokens/s");
    text_format(out, "%-22s %.3g times one; all at work in %.1f %% of the time\n", "together",
                median(t->together, runs) / median(t->alone, runs), 100 * t->overlap);
}

static void report_team(const bench *b, text *out)
{
    const bench_member *m = bench_team_members(b->team);
    team_runs *t = ARENA_NEW(b->memory, team_runs, 1);
    for (uint32_t run = 0; run < b->options.runs; run++)
        merge_run(b, m, run, t);
    for (uint32_t i = 0; i < b->options.workers; i++) {
        t->host_bytes += m[i].host_bytes;
        t->off_walk += m[i].off_walk;
    }
    if (b->options.json)
        team_json(b, out, t);
    else
        team_text(b, out, t);
}

static void report_one(const bench *b, text *out)
{
    per_run *runs = ARENA_NEW(b->memory, per_run, 1);
    count_runs(b, runs);
    bench_span all = sum_runs(b);
    bench_bound bound = bench_bound_of(b, &all);
    if (b->options.json)
        report_json(b, out, runs, &all, &bound);
    else
        report_text(b, out, runs, &all, &bound);
}

void bench_report(bench *b, FILE *to)
{
    if (getloadavg(&b->load, 1) != 1) b->load = 0;
    text out;
    text_start(&out, b->memory);
    if (b->team != NULL)
        report_team(b, &out);
    else
        report_one(b, &out);
    (void)fputs(out.bytes, to);
}
