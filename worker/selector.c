/* What a user says about selection -> one row of kern_selector.
 *
 * A selector is data (score, pool, force, select, attend: kernels.h); this file only decides which
 * numbers fit together and says in one sentence why others do not. */
#include "worker/config.h"

#include <stdlib.h>
#include <string.h>

static status kind_from_name(const model_config *c, const char *name, selector_kind *out_kind)
{
    static const char *const names[] = {
        [SELECTOR_FULL] = "full", [SELECTOR_NOSA] = "nosa", [SELECTOR_INFLLMV2] = "infllmv2"};
    if (!name) {
        *out_kind = c->sparse.kind;
        return STATUS_OK;
    }
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out_kind = (selector_kind)i;
        return STATUS_OK;
    }
    return FAIL(INVALID, "selector \"%.40s\": nosa, infllmv2 and full are known", name);
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

status model_selector(const model_config *config, const selector_choice *choice,
                      kern_selector *out_selector)
{
    CHECK(config && choice && out_selector);
    const sparse_config *s = &config->sparse;
    selector_kind kind;
    kern_source source;
    TRY(kind_from_name(config, choice->name, &kind));
    TRY(source_from_name(choice->source, &source));
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
