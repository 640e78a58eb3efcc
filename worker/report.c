/* worker/report.c - how a run goes.
 *
 * Text is for people and may change; keys of the JSON are kept. Shares are of what was there, and 0
 * where nothing was. */
#include "worker/report.h"

#include <stdarg.h>
#include <unistd.h>

enum { DRAW_EVERY_NS = 200000000 };

void report_begin(report *r, bool quiet)
{
    r->on = !quiet && isatty(STDERR_FILENO) == 1;
    r->begun_ns = clock_now(&clock_monotonic);
    r->drawn_ns = 0;
}

bool report_due(report *r)
{
    uint64_t now = r->on ? clock_now(&clock_monotonic) : 0;
    if (!r->on || now - r->drawn_ns < DRAW_EVERY_NS) return false;
    r->drawn_ns = now;
    return true;
}

double report_seconds(const report *r)
{
    return (double)(clock_now(&clock_monotonic) - r->begun_ns) / 1e9;
}

void report_draw(report *r, const char *line, double part)
{
    enum { CELLS = 20 };
    char bar[CELLS + 1];
    for (int i = 0; i < CELLS; i++)
        bar[i] = (double)i < part * CELLS ? '#' : '.';
    bar[CELLS] = '\0';
    double spent = report_seconds(r), left = part > 0 ? spent / part - spent : 0;
    unsigned seconds = left < 360000 ? (unsigned)left : 359999;
    (void)fprintf(stderr, "\r\033[K[%s] %s  left %u:%02u", bar, line, seconds / 60, seconds % 60);
    (void)fflush(stderr);
}

void report_end(report *r)
{
    if (r->on && r->drawn_ns != 0) (void)fputs("\r\033[K", stderr);
    (void)fflush(stderr);
    r->on = false;
}

/* ---- summaries ------------------------------------------------------------------------------- */

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static uint64_t kv_bytes(const report_decode *run, const session *s)
{
    const model_config *c = &s->model->config;
    return run->kv_tokens * c->layers * c->kv_heads * c->head_dim * 2 * 2; /* K and V, bf16 */
}

static void add_count(text *out, const char *key, uint64_t value)
{
    text_key(out, key);
    text_format(out, "%llu", (unsigned long long)value);
}

static void add_number(text *out, const char *key, double value)
{
    text_key(out, key);
    text_number(out, value);
}

static void add_word(text *out, const char *key, const char *value)
{
    text_key(out, key);
    text_quote_string(out, value);
}

static void add_traffic(text *out, const worker_stats *w)
{
    text_key(out, "blocks");
    text_add_string(out, "{");
    add_count(out, "resident", w->blocks.resident);
    add_count(out, "host", w->blocks.host);
    add_count(out, "remote", w->blocks.remote);
    add_count(out, "recomputed", w->blocks.recomputed);
    text_add_string(out, "}");
    text_key(out, "prefetch");
    text_add_string(out, "{");
    add_count(out, "issued", w->prefetch.issued);
    add_count(out, "used", w->prefetch.used);
    add_count(out, "late", w->prefetch.late);
    add_count(out, "wasted", w->prefetch.wasted);
    text_add_string(out, "}");
    text_key(out, "agnostic");
    text_add_string(out, "{");
    add_count(out, "fetched", w->agnostic_fetched);
    add_count(out, "ahead", w->agnostic_ahead);
    text_add_string(out, "}");
    text_key(out, "stored");
    text_add_string(out, "{");
    add_count(out, "blocks", w->stored.blocks);
    add_count(out, "bytes", w->stored.bytes);
    add_count(out, "replicas", w->stored.replicas);
    text_add_string(out, "}");
    text_key(out, "served");
    text_add_string(out, "{");
    add_count(out, "blocks", w->served.blocks);
    add_count(out, "bytes", w->served.bytes);
    text_add_string(out, "}");
}

static void add_client(text *out, const kv_client_stats *c)
{
    text_key(out, "client");
    text_add_string(out, "{");
    add_count(out, "hedged", c->hedged);
    add_count(out, "failed_over", c->failed_over);
    add_count(out, "corrupt", c->corrupt);
    add_count(out, "late_replies", c->late_replies);
    add_count(out, "reconnects", c->reconnects);
    add_number(out, "get_ms_p50", (double)hist_quantile(&c->get_ns, 0.5) / 1e6);
    add_number(out, "get_ms_p99", (double)hist_quantile(&c->get_ns, 0.99) / 1e6);
    text_add_string(out, "}");
}

static void add_times(text *out, const report_decode *run, const worker_stats *w)
{
    add_number(out, "ttft_ms_p50", (double)hist_quantile(&w->ttft_ns, 0.5) / 1e6);
    add_number(out, "ttft_ms_p99", (double)hist_quantile(&w->ttft_ns, 0.99) / 1e6);
    add_number(out, "itl_ms_p50", (double)hist_quantile(&w->itl_ns, 0.5) / 1e6);
    add_number(out, "itl_ms_p99", (double)hist_quantile(&w->itl_ns, 0.99) / 1e6);
    add_number(out, "tokens_per_s", share((double)run->new_tokens, run->wall_s));
    add_number(out, "wall_s", run->wall_s);
    add_number(out, "fetch_exposed_fraction", share((double)w->waited_ns, (double)w->fetch_ns));
    add_number(out, "stall_ms_max", (double)w->stall_ns_max / 1e6);
}

void report_decode_json(text *out, const report_decode *run, session *s)
{
    const worker_stats *w = session_stats(s);
    const selection *way = &s->selection[0];
    text_add_string(out, "{");
    add_word(out, "schema", "shoal.decode/1");
    add_count(out, "prompts", run->prompts);
    add_count(out, "failed", run->failed);
    add_count(out, "skipped", run->skipped);
    add_count(out, "prompt_tokens", run->prompt_tokens);
    add_count(out, "new_tokens", run->new_tokens);
    add_word(out, "selector", way->name);
    text_key(out, "budget");
    text_add_string(out, way->budget);
    add_word(out, "lookahead", way->lookahead);
    add_traffic(out, w);
    add_client(out, &w->client);
    add_count(out, "nodes", s->with_store ? s->cluster.map.node_count : 0);
    add_count(out, "pool_bytes", s->cluster.device_pool_bytes);
    add_count(out, "kv_bytes", kv_bytes(run, s));
    add_number(out, "pool_fraction",
               share((double)s->cluster.device_pool_bytes, (double)kv_bytes(run, s)));
    add_times(out, run, w);
    add_count(out, "steps", w->steps);
    add_count(out, "decode_rows", w->decode_rows);
    add_count(out, "prefill_rows", w->prefill_rows);
    add_count(out, "parks", w->parks);
    add_count(out, "resumes", w->resumes);
    add_count(out, "void_rows", w->void_rows);
    add_count(out, "recomputes", w->recomputes);
    text_key(out, "output_digest");
    text_format(out, "\"%016llx\"", (unsigned long long)run->output_digest);
    add_word(out, "numerics", kern_numerics_id(s->backend));
    add_word(out, "backend", kern_backend_describe(s->backend));
    text_add_string(out, "}\n");
}

static void row(text *out, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void row(text *out, const char *name, const char *format, ...)
{
    char value[160];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(value, sizeof value, format, list);
    va_end(list);
    text_format(out, "%-16s %s\n", name, value);
}

static double mebibytes(uint64_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void rows_of_traffic(text *out, const session *s, const worker_stats *w)
{
    const worker_blocks *b = &w->blocks;
    double fetched = (double)(b->host + b->remote + b->recomputed);
    double all = fetched + (double)b->resident;
    row(out, "blocks used",
        "%.0f: %.2f%% in the pool, %llu from host, %llu from nodes, %llu recomputed", all,
        100 * share((double)b->resident, all), (unsigned long long)b->host,
        (unsigned long long)b->remote, (unsigned long long)b->recomputed);
    row(out, "prefetched", "%llu asked for, %llu used, %llu late, %llu wasted",
        (unsigned long long)w->prefetch.issued, (unsigned long long)w->prefetch.used,
        (unsigned long long)w->prefetch.late, (unsigned long long)w->prefetch.wasted);
    if (!s->with_store) return;
    row(out, "stored", "%llu blocks, %.1f MiB, %u replicas", (unsigned long long)w->stored.blocks,
        mebibytes(w->stored.bytes), w->stored.replicas);
    row(out, "served by nodes", "%llu blocks, %.1f MiB", (unsigned long long)w->served.blocks,
        mebibytes(w->served.bytes));
    row(out, "fetch hidden", "%.1f%% of %.2f s, longest wait %.1f ms",
        100 - 100 * share((double)w->waited_ns, (double)w->fetch_ns), (double)w->fetch_ns / 1e9,
        (double)w->stall_ns_max / 1e6);
}

void report_decode_text(text *out, const report_decode *run, session *s)
{
    const worker_stats *w = session_stats(s);
    const selection *way = &s->selection[0];
    row(out, "prompts", "%llu answered, %llu failed, %llu skipped",
        (unsigned long long)(run->prompts - run->failed), (unsigned long long)run->failed,
        (unsigned long long)run->skipped);
    row(out, "tokens", "%llu in, %llu out, %.1f a second over %.1f s",
        (unsigned long long)run->prompt_tokens, (unsigned long long)run->new_tokens,
        share((double)run->new_tokens, run->wall_s), run->wall_s);
    row(out, "selection", "%s %s, lookahead %s", way->name, way->budget, way->lookahead);
    row(out, "device pool", "%.1f MiB for %.1f MiB of KV", mebibytes(s->cluster.device_pool_bytes),
        mebibytes(kv_bytes(run, s)));
    rows_of_traffic(out, s, w);
    row(out, "first token", "p50 %.1f ms, p99 %.1f ms",
        (double)hist_quantile(&w->ttft_ns, 0.5) / 1e6,
        (double)hist_quantile(&w->ttft_ns, 0.99) / 1e6);
    row(out, "between tokens", "p50 %.2f ms, p99 %.2f ms",
        (double)hist_quantile(&w->itl_ns, 0.5) / 1e6,
        (double)hist_quantile(&w->itl_ns, 0.99) / 1e6);
    row(out, "steps", "%llu, %llu parks, %llu void rows, %llu recomputes",
        (unsigned long long)w->steps, (unsigned long long)w->parks,
        (unsigned long long)w->void_rows, (unsigned long long)w->recomputes);
    row(out, "output digest", "%016llx (%s)", (unsigned long long)run->output_digest,
        kern_numerics_id(s->backend));
}
