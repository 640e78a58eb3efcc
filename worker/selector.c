/* What a user says about selection -> one row of kern_selector.
 *
 * A selector is data (score, pool, force, select, attend: kernels.h); this file only decides which
 * numbers fit together and says in one sentence why others do not. */
#include "worker/config.h"

#include <stdlib.h>
#include <string.h>

static const struct known_selector {
    const char *name;
    selector_kind kind;
    bool chunked;
} known_selectors[] = {
    {"full", SELECTOR_FULL, false},         {"nosa", SELECTOR_NOSA, false},
    {"infllmv2", SELECTOR_INFLLMV2, false}, {"ssa", SELECTOR_SSA, false},
    {"ssa-chunked", SELECTOR_SSA, true},    {"moba", SELECTOR_MOBA, false},
    {"moba-group", SELECTOR_SSA, false}, /* the SSA paper's MoBA: the same selection, other weights
                                          */
    {"nsa", SELECTOR_NSA, false},           {"nsa-chunked", SELECTOR_NSA, true},
};

enum { KNOWN_SELECTORS = sizeof known_selectors / sizeof known_selectors[0] };

const char *model_selector_name(const model_config *config, const selector_choice *choice)
{
    CHECK(config && choice);
    for (int i = 0; i < KNOWN_SELECTORS; i++) { /* the choice's own text may not live as long */
        const struct known_selector *k = &known_selectors[i];
        if (choice->name != NULL && strcmp(choice->name, k->name) == 0) return k->name;
        if (choice->name != NULL) continue;
        if (k->kind == config->sparse.kind && k->chunked == config->sparse.chunked) return k->name;
    }
    return "full";
}

static status kind_from_name(const model_config *c, const char *name, struct known_selector *out)
{
    *out = (struct known_selector){NULL, c->sparse.kind, c->sparse.chunked};
    if (!name) return STATUS_OK;
    for (int i = 0; i < KNOWN_SELECTORS; i++) {
        if (strcmp(name, known_selectors[i].name) != 0) continue;
        *out = known_selectors[i];
        return STATUS_OK;
    }
    return FAIL(
        INVALID,
        "selector \"%.40s\": nosa, infllmv2, full, ssa, ssa-chunked, moba, moba-group, nsa and "
        "nsa-chunked are known",
        name);
}

static status source_from_name(const char *name, kern_source *out_source)
{
    static const char *const names[] = {[SOURCE_OWN] = "own",
                                        [SOURCE_MID] = "mid",
                                        [SOURCE_INPUT] = "input",
                                        [SOURCE_STEP] = "step"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name ? name : "own", names[i]) != 0) continue;
        *out_source = (kern_source)i;
        return STATUS_OK;
    }
    return FAIL(INVALID, "lookahead \"%.40s\": own, mid, input and step are known", name);
}

/* "16" gives 1, "1,4,10,16" gives 4; 0: neither. */
static int parse_numbers(const char *text, uint32_t out[4])
{
    for (int count = 0; count < 4;) {
        if (*text < '0' || *text > '9') return 0;
        char *end = NULL;
        unsigned long v = strtoul(text, &end, 10);
        if (v > 1 << 20) return 0;
        out[count++] = (uint32_t)v;
        if (*end == '\0') return count;
        if (*end != ',') return 0;
        text = end + 1;
    }
    return 0;
}

static status unlisted(const sparse_config *s, uint32_t number)
{
    char list[CONFIG_BUDGETS_MAX * 12];
    size_t used = 0;
    for (uint32_t i = 0; i < s->budget_count; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%u", i ? ", " : "",
                                 s->budgets[i].name);
    return FAIL(
        INVALID,
        "budget %u is not listed by this model (listed: %s); another one needs four numbers: "
        "first,before the current,query picks,total",
        number, list);
}

static status row_from_text(const sparse_config *s, const char *text, budget_row *out_row)
{
    if (!text) {
        *out_row = s->row;
        return STATUS_OK;
    }
    uint32_t v[4];
    int count = parse_numbers(text, v);
    if (count == 4) {
        *out_row = (budget_row){v[0], v[1], v[2], v[3]};
        return STATUS_OK;
    }
    if (count != 1)
        return FAIL(INVALID,
                    "budget \"%.60s\": one number or four with commas, e.g. 16 or 1,4,10,16", text);
    for (uint32_t i = 0; i < s->budget_count; i++) {
        if (s->budgets[i].name != v[0]) continue;
        *out_row = s->budgets[i].row;
        return STATUS_OK;
    }
    return unlisted(s, v[0]);
}

status budget_row_check(const char *what, const budget_row *r)
{
    uint64_t forced = (uint64_t)r->init + r->local + 1;
    if (r->total < forced)
        return FAIL(
            INVALID,
            "%s: a total of %u blocks is below the %llu forced ones (%u first, %u before the "
            "current one, and the current one)",
            what, r->total, (unsigned long long)forced, r->init, r->local);
    if (r->query != 0 && r->query < forced)
        return FAIL(INVALID,
                    "%s: %u query picks are below the %llu forced blocks, which count among them "
                    "(0: no query picks)",
                    what, r->query, (unsigned long long)forced);
    if (r->query > r->total)
        return FAIL(INVALID, "%s: %u query picks exceed the total of %u blocks", what, r->query,
                    r->total);
    return STATUS_OK;
}

/* SSA, MoBA and NSA: picks by query over means of whole blocks, the current one among them. */
static status block_selector(const model_config *config, const selector_choice *choice,
                             struct known_selector of, kern_selector *out)
{
    const sparse_config *s = &config->sparse;
    const char *name = model_selector_name(config, choice);
    bool moba = of.kind == SELECTOR_MOBA, nsa = of.kind == SELECTOR_NSA;
    if (!nsa && (s->window != s->stride || (!moba && s->window != s->block)))
        return FAIL(
            INVALID,
            "selector %s takes means of whole blocks, and this model's are of %u keys every %u "
            "for blocks of %u",
            name, s->window, s->stride, s->block);
    if (!moba && !config->has_gate)
        return FAIL(INVALID,
                    "selector %s needs the output gate, and this checkpoint has no "
                    "model.layers.0.self_attn.g_proj.weight: use infllmv2 or full",
                    name);
    if (moba && config->heads != config->kv_heads)
        return FAIL(UNSUPPORTED,
                    "selector moba selects for each query head, and this model's %u share %u KV "
                    "heads; only as many KV heads as query heads are supported",
                    config->heads, config->kv_heads);
    const uint32_t init = nsa ? s->row.init : 0, local = nsa ? s->row.local : 0;
    uint32_t v[4] = {init, local, s->row.total, s->row.total}, least = init + local + 1;
    int count = choice->budget ? parse_numbers(choice->budget, v) : 4;
    if (count == 1) v[3] = v[2] = v[0], v[0] = init;
    if (count == 0 || v[3] < least || v[0] != init || v[1] != local || v[2] != v[3] ||
        v[3] > 1 << 16)
        return FAIL(
            INVALID,
            "selector %s picks everything by query: budget \"%.60s\" must be a number from %u "
            "to 65536",
            name, choice->budget, least);
    if (of.chunked && least > 1)
        return FAIL(INVALID,
                    "selector %s forces none but the current block, and this model's other %u too",
                    name, least - 1);
    if (of.chunked && v[3] > s->block)
        return FAIL(INVALID,
                    "selector %s keeps at most as many blocks as a block has tokens: %u exceeds %u",
                    name, v[3], s->block);
    out->init = init;
    out->local = local;
    out->query = out->total = v[3];
    out->near = nsa ? s->near : 0;
    out->chunk = of.chunked ? s->block : 0;
    out->raw = moba;
    return STATUS_OK;
}

/* Three branches are trained together: neither they nor anything else works alone. */
static status check_branches(const model_config *config, const selector_choice *choice,
                             selector_kind kind)
{
    bool trained = config->sparse.kind == SELECTOR_NSA;
    if (trained == (kind == SELECTOR_NSA)) return STATUS_OK;
    const char *name = model_selector_name(config, choice);
    if (trained)
        return FAIL(UNSUPPORTED,
                    "selector %s: this model was trained with three gated branches, which only nsa "
                    "and nsa-chunked have",
                    name);
    return FAIL(UNSUPPORTED,
                "selector %s needs a model trained with three gated branches (a \"window_size\" in "
                "a llama-nsa configuration, or sparse_config of type nsa)",
                name);
}

status model_selector(const model_config *config, const selector_choice *choice,
                      kern_selector *out_selector)
{
    CHECK(config && choice && out_selector);
    const sparse_config *s = &config->sparse;
    struct known_selector of;
    kern_source source;
    TRY(kind_from_name(config, choice->name, &of));
    const selector_kind kind = of.kind;
    TRY(source_from_name(choice->source, &source));
    TRY(check_branches(config, choice, kind));
    kern_selector out = {.window = s->window, .stride = s->stride, .block = s->block};
    out.source = source;
    if (kind == SELECTOR_FULL) {
        if (choice->budget)
            return FAIL(INVALID, "selector full takes no budget: it attends to everything");
        out.init = 1;
        out.total = UINT32_MAX;
        out.fill_by_importance = true; /* one ascending list, as kern_select orders it */
        out.bias = config->has_importance;
        out.source = SOURCE_OWN; /* nothing is selected, so nothing is looked ahead for */
        *out_selector = out;
        return STATUS_OK;
    }
    if (kind == SELECTOR_SSA || kind == SELECTOR_MOBA || kind == SELECTOR_NSA) {
        TRY(block_selector(config, choice, of, &out));
        *out_selector = out;
        return STATUS_OK;
    }
    if (kind == SELECTOR_NOSA && !config->has_importance)
        return FAIL(INVALID, "selector nosa needs importance, and this checkpoint has no "
                             "model.layers.0.self_attn.A: use infllmv2 or full");
    budget_row row;
    TRY(row_from_text(s, choice->budget, &row));
    bool four = choice->budget && strchr(choice->budget, ',');
    if (kind == SELECTOR_INFLLMV2 && four && row.query != row.total)
        return FAIL(INVALID,
                    "selector infllmv2 picks everything by query: the third number, %u, must equal "
                    "the fourth, %u",
                    row.query, row.total);
    if (kind == SELECTOR_INFLLMV2) row.query = row.total;
    char what[80];
    (void)snprintf(what, sizeof what, "budget %.60s",
                   choice->budget ? choice->budget : "by default");
    TRY(budget_row_check(what, &row));
    out.init = row.init;
    out.local = row.local;
    out.query = row.query;
    out.total = row.total;
    out.fill_by_importance = out.bias = kind == SELECTOR_NOSA;
    *out_selector = out;
    return STATUS_OK;
}
