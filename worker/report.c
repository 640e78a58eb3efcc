/* worker/report.c - how a run goes.
 *
 * The summary is one table of rows: what JSON calls a value and what people call it stand side by
 * side, so neither can forget one. Text may change; keys of the JSON are kept. Shares are of what
 * was there, and 0 where nothing was. */
#include "worker/report.h"

#include <string.h>
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

/* ---- what there is to say -------------------------------------------------------------------- */

/* All that rows point into. */
typedef struct facts {
    report_decode run;
    worker_stats stats;
    uint64_t nodes, pool_bytes, kv_bytes;
    double pool_fraction, tokens_per_s, exposed_fraction;
    const char *selector, *budget, *lookahead, *two_batch, *numerics, *backend;
    uint32_t guess;
} facts;

static double share(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static const facts *facts_of(const report_decode *run, session *s)
{
    facts *f = ARENA_NEW(s->memory, facts, 1);
    const model_config *c = &s->model->config;
    const selection *way = &s->selection[0];
    f->run = *run;
    f->stats = *session_stats(s);
    f->nodes = s->with_store ? s->cluster.map.node_count : 0;
    f->pool_bytes = s->cluster.device_pool_bytes;
    f->kv_bytes = run->kv_tokens * c->layers * c->kv_heads * c->head_dim * 2 * 2; /* bf16 K, V */
    f->pool_fraction = share((double)f->pool_bytes, (double)f->kv_bytes);
    f->tokens_per_s = share((double)run->new_tokens, run->wall_s);
    f->exposed_fraction = share((double)f->stats.waited_ns, (double)f->stats.fetch_ns);
    f->selector = way->name;
    f->budget = way->budget;
    f->lookahead = way->lookahead;
    f->guess = s->args->guess;
    f->two_batch = s->args->two_batch ? "true" : "false";
    f->numerics = kern_numerics_id(s->backend);
    f->backend = kern_backend_describe(s->backend);
    return f;
}

typedef enum value_kind {
    COUNT,   /* uint64_t */
    COUNT32, /* uint32_t */
    BYTES,   /* uint64_t; people read MiB */
    SECONDS, /* double */
    NUMBER,  /* double */
    SHARE,   /* double; people read percent */
    MS,      /* uint64_t in ns, given in ms */
    P50,     /* hist in ns, its quantile in ms */
    P99,
    WORD, /* const char * */
    RAW,  /* const char * that is JSON already */
    HEX,  /* uint64_t */
} value_kind;

typedef struct fact_row {
    const char *group, *key;   /* JSON: object and key in it; "": the summary itself */
    const char *line, *before; /* text: the line's name, and words around the value; NULL: none */
    const char *after;
    value_kind kind;
    bool store; /* a line of runs with a store only */
    size_t offset;
} fact_row;

#define AT(member) offsetof(facts, member)
/* clang-format off */
static const fact_row rows[] = {
    {"", "prompts", "prompts", "", " in all", COUNT, false, AT(run.prompts)},
    {"", "failed", "prompts", "", " failed", COUNT, false, AT(run.failed)},
    {"", "skipped", "prompts", "", " skipped", COUNT, false, AT(run.skipped)},
    {"", "prompt_tokens", "tokens", "", " in", COUNT, false, AT(run.prompt_tokens)},
    {"", "new_tokens", "tokens", "", " out", COUNT, false, AT(run.new_tokens)},
    {"", "tokens_per_s", "tokens", "", " a second", NUMBER, false, AT(tokens_per_s)},
    {"", "wall_s", "tokens", "in ", " s", SECONDS, false, AT(run.wall_s)},
    {"", "selector", "selection", "", "", WORD, false, AT(selector)},
    {"", "budget", "selection", "budget ", "", RAW, false, AT(budget)},
    {"", "lookahead", "selection", "lookahead ", "", WORD, false, AT(lookahead)},
    {"", "guess_percent", NULL, "", "", COUNT32, false, AT(guess)},
    {"", "two_batch", NULL, "", "", RAW, false, AT(two_batch)},
    {"", "nodes", NULL, "", "", COUNT, false, AT(nodes)},
    {"", "pool_bytes", "device pool", "", "", BYTES, false, AT(pool_bytes)},
    {"", "kv_bytes", "device pool", "for ", " of KV", BYTES, false, AT(kv_bytes)},
    {"", "pool_fraction", "device pool", "", "", SHARE, false, AT(pool_fraction)},
    {"blocks", "resident", "blocks used", "", " in the pool", COUNT, false, AT(stats.blocks.resident)},
    {"blocks", "host", "blocks used", "", " from host memory", COUNT, false, AT(stats.blocks.host)},
    {"blocks", "remote", "blocks used", "", " from nodes", COUNT, false, AT(stats.blocks.remote)},
    {"blocks", "recomputed", "blocks used", "", " recomputed", COUNT, false, AT(stats.blocks.recomputed)},
    {"blocks", "corrupt", "blocks used", "", " corrupt", COUNT, false, AT(stats.corrupt)},
    {"prefetch", "issued", "prefetched", "", " asked for", COUNT, false, AT(stats.prefetch.issued)},
    {"prefetch", "used", "prefetched", "", " used", COUNT, false, AT(stats.prefetch.used)},
    {"prefetch", "late", "prefetched", "", " late", COUNT, false, AT(stats.prefetch.late)},
    {"prefetch", "wasted", "prefetched", "", " wasted", COUNT, false, AT(stats.prefetch.wasted)},
    {"prefetch", "refused", "prefetched", "", " had no room", COUNT, false, AT(stats.prefetch.refused)},
    {"agnostic", "fetched", "known ahead", "", " needed from elsewhere", COUNT, false, AT(stats.agnostic_fetched)},
    {"agnostic", "ahead", "known ahead", "", " there in time", COUNT, false, AT(stats.agnostic_ahead)},
    {"stored", "blocks", "stored", "", " blocks", COUNT, true, AT(stats.stored.blocks)},
    {"stored", "bytes", "stored", "", "", BYTES, true, AT(stats.stored.bytes)},
    {"stored", "replicas", "stored", "", " replicas", COUNT32, true, AT(stats.stored.replicas)},
    {"served", "blocks", "served by nodes", "", " blocks", COUNT, true, AT(stats.served.blocks)},
    {"served", "bytes", "served by nodes", "", "", BYTES, true, AT(stats.served.bytes)},
    {"client", "hedged", "the store", "", " hedged", COUNT, true, AT(stats.client.hedged)},
    {"client", "failed_over", "the store", "", " failed over", COUNT, true, AT(stats.client.failed_over)},
    {"client", "corrupt", "the store", "", " corrupt", COUNT, true, AT(stats.client.corrupt)},
    {"client", "late_replies", NULL, "", "", COUNT, true, AT(stats.client.late_replies)},
    {"client", "reconnects", "the store", "", " reconnects", COUNT, true, AT(stats.client.reconnects)},
    {"client", "late_ms_max", NULL, "", "", MS, true, AT(stats.client.late_ns_max)},
    {"client", "get_ms_p50", "a fetch", "p50 ", " ms", P50, true, AT(stats.client.get_ns)},
    {"client", "get_ms_p99", "a fetch", "p99 ", " ms", P99, true, AT(stats.client.get_ns)},
    {"", "fetch_exposed_fraction", "waiting", "", " of the fetches' time", SHARE, true, AT(exposed_fraction)},
    {"", "stall_ms_max", "waiting", "longest ", " ms", MS, true, AT(stats.stall_ns_max)},
    {"", "ttft_ms_p50", "first token", "p50 ", " ms", P50, false, AT(stats.ttft_ns)},
    {"", "ttft_ms_p99", "first token", "p99 ", " ms", P99, false, AT(stats.ttft_ns)},
    {"", "itl_ms_p50", "between tokens", "p50 ", " ms", P50, false, AT(stats.itl_ns)},
    {"", "itl_ms_p99", "between tokens", "p99 ", " ms", P99, false, AT(stats.itl_ns)},
    {"", "steps", "steps", "", "", COUNT, false, AT(stats.steps)},
    {"", "decode_rows", NULL, "", "", COUNT, false, AT(stats.decode_rows)},
    {"", "prefill_rows", NULL, "", "", COUNT, false, AT(stats.prefill_rows)},
    {"", "parks", "steps", "", " parks", COUNT, false, AT(stats.parks)},
    {"", "resumes", NULL, "", "", COUNT, false, AT(stats.resumes)},
    {"", "void_rows", "steps", "", " void rows", COUNT, false, AT(stats.void_rows)},
    {"", "recomputes", "steps", "", " recomputes", COUNT, false, AT(stats.recomputes)},
    {"", "output_digest", "output digest", "", "", HEX, false, AT(run.output_digest)},
    {"", "numerics", "output digest", "numerics ", "", WORD, false, AT(numerics)},
    {"", "backend", NULL, "", "", WORD, false, AT(backend)},
};
/* clang-format on */
enum { ROWS = sizeof rows / sizeof rows[0] };

/* ---- one value ------------------------------------------------------------------------------- */

static double milliseconds(const fact_row *r, const void *at)
{
    if (r->kind == MS) return (double)*(const uint64_t *)at / 1e6;
    return (double)hist_quantile((const hist *)at, r->kind == P50 ? 0.5 : 0.99) / 1e6;
}

static void value_json(text *out, const fact_row *r, const void *at)
{
    switch (r->kind) {
    case COUNT:
    case BYTES:
        text_format(out, "%llu", (unsigned long long)*(const uint64_t *)at);
        break;
    case COUNT32:
        text_format(out, "%u", *(const uint32_t *)at);
        break;
    case SECONDS:
    case NUMBER:
    case SHARE:
        text_number(out, *(const double *)at);
        break;
    case MS:
    case P50:
    case P99:
        text_number(out, milliseconds(r, at));
        break;
    case WORD:
        text_quote_string(out, *(const char *const *)at);
        break;
    case RAW:
        text_add_string(out, *(const char *const *)at);
        break;
    case HEX:
        text_format(out, "\"%016llx\"", (unsigned long long)*(const uint64_t *)at);
        break;
    }
}

/* As JSON, but for what people read otherwise. */
static void value_text(text *out, const fact_row *r, const void *at)
{
    switch (r->kind) {
    case BYTES:
        text_format(out, "%.1f MiB", (double)*(const uint64_t *)at / (1 << 20));
        break;
    case SECONDS:
    case NUMBER:
        text_format(out, "%.1f", *(const double *)at);
        break;
    case SHARE:
        text_format(out, "%.1f%%", 100 * *(const double *)at);
        break;
    case MS:
    case P50:
    case P99:
        text_format(out, "%.2f", milliseconds(r, at));
        break;
    case WORD:
        text_add_string(out, *(const char *const *)at);
        break;
    case HEX:
        text_format(out, "%016llx", (unsigned long long)*(const uint64_t *)at);
        break;
    case COUNT:
    case COUNT32:
    case RAW:
        value_json(out, r, at);
        break;
    }
}

/* ---- all of them ----------------------------------------------------------------------------- */

void report_decode_json(text *out, const report_decode *run, session *s)
{
    const facts *f = facts_of(run, s);
    const char *group = "";
    text_add_string(out, "{");
    text_key(out, "schema");
    text_quote_string(out, "shoal.decode/1");
    for (int i = 0; i < ROWS; i++) {
        const fact_row *r = &rows[i];
        if (strcmp(r->group, group) != 0) {
            if (group[0] != '\0') text_add_string(out, "}");
            if (r->group[0] != '\0') {
                text_key(out, r->group);
                text_add_string(out, "{");
            }
            group = r->group;
        }
        text_key(out, r->key);
        value_json(out, r, (const char *)f + r->offset);
    }
    text_add_string(out, "}\n");
}

void report_decode_text(text *out, const report_decode *run, session *s)
{
    const facts *f = facts_of(run, s);
    const char *line = NULL;
    for (int i = 0; i < ROWS; i++) {
        const fact_row *r = &rows[i];
        if (r->line == NULL || (r->store && !s->with_store)) continue;
        bool same = line != NULL && strcmp(line, r->line) == 0;
        bool told = line != NULL && strcmp(line, "tokens") == 0; /* who asked, and for how much */
        if (!same && told && f->stats.steps == 0) break;
        if (!same && line != NULL) text_add_string(out, "\n");
        if (same)
            text_add_string(out, ", ");
        else
            text_format(out, "%-16s ", r->line);
        line = r->line;
        text_add_string(out, r->before);
        value_text(out, r, (const char *)f + r->offset);
        text_add_string(out, r->after);
    }
    text_add_string(out, "\n");
}
