/* The worker's forward pass against what other programs computed (tests/golden): Hugging Face
 * transformers for Llama- and MiniCPM-style checkpoints, the float64 oracle for NOSA. */
#include "tests/test.h"
#include "tests/worker/run.h"

#include <cjson/cJSON.h>
#include <stdlib.h>

/* How far a logit may be off, in sigma of all logits and as a number: float32 activations against
 * float64. A backend that rounds activations has bounds of its own. */
#ifndef FORWARD_SIGMA
#define FORWARD_SIGMA  0.01
#define FORWARD_LOGIT  0.06
#define SELECTOR_SIGMA 0.03
#endif
/* How far the sum over all tokens of the small model may be off, in nats. */
#ifndef FORWARD_NLL
#define FORWARD_NLL 1.0
#endif
/* Logits of tests/golden/selectors; a backend that rounds activations is held against those of a
 * program that does so too, for a rounding that turns a selection over moves logits by sigmas. */
#ifndef SELECTOR_LOGITS
#define SELECTOR_LOGITS "logits.f32"
#endif
/* Above 0: rows whose closest selection has a smaller margin may fall the other way, and are not
 * judged. */
#ifndef SELECTOR_MARGIN
#define SELECTOR_MARGIN 0.0
#endif

static char *read_all(const char *path, size_t *out_bytes)
{
    FILE *f = fopen(path, "rb");
    EXPECT_MSG(f != NULL, "cannot read %s", path);
    EXPECT(fseek(f, 0, SEEK_END) == 0);
    long n = ftell(f);
    rewind(f);
    char *bytes = run_memory((size_t)n + 1);
    EXPECT(fread(bytes, 1, (size_t)n, f) == (size_t)n);
    bytes[n] = 0;
    fclose(f);
    *out_bytes = (size_t)n;
    return bytes;
}

typedef struct golden {
    cJSON *json;
    int32_t token[4096];
    uint32_t count, rows, vocab;
    uint32_t row[64];
    const float *logits; /* [runs, rows, vocab] */
} golden;

static void golden_open(const char *folder, const char *rows_key, const char *logits, golden *g)
{
    char path[512];
    size_t n;
    snprintf(path, sizeof path, "%s/tests/golden/%s/golden.json", TEST_SOURCE_DIR, folder);
    g->json = cJSON_Parse(read_all(path, &n));
    EXPECT(g->json != NULL);
    const cJSON *tokens = cJSON_GetObjectItem(g->json, "tokens");
    const cJSON *rows = cJSON_GetObjectItem(g->json, rows_key), *item;
    g->count = g->rows = 0;
    cJSON_ArrayForEach(item, tokens) g->token[g->count++] = item->valueint;
    cJSON_ArrayForEach(item, rows) g->row[g->rows++] = (uint32_t)item->valueint;
    g->vocab = (uint32_t)cJSON_GetObjectItem(g->json, "vocab")->valueint;
    snprintf(path, sizeof path, "%s/tests/golden/%s/%s", TEST_SOURCE_DIR, folder, logits);
    g->logits = (const float *)(const void *)read_all(path, &n);
    EXPECT(g->rows > 0 && g->vocab > 0);
    EXPECT(n % (g->rows * g->vocab * sizeof(float)) == 0);
}

/* What the engine says at the golden rows. */
typedef struct compare {
    const golden *g;
    const float *want;     /* [rows, vocab] */
    const cJSON *margin;   /* [rows] of the selections, null: any; NULL: all rows are judged */
    uint32_t seen, judged; /* rows */
    double worst, square, mean;
    uint64_t n;
} compare;

static void compare_row(void *self, uint64_t id, uint32_t pos, const float *logits)
{
    compare *c = self;
    (void)id;
    for (uint32_t r = 0; r < c->g->rows; r++) {
        if (c->g->row[r] != pos) continue;
        const float *want = c->want + (size_t)r * c->g->vocab;
        const cJSON *margin = cJSON_GetArrayItem(c->margin, (int)r);
        const bool judged = !cJSON_IsNumber(margin) || margin->valuedouble >= SELECTOR_MARGIN;
        c->seen++;
        c->judged += judged;
        for (uint32_t v = 0; v < c->g->vocab; v++) {
            double d = fabs((double)logits[v] - (double)want[v]);
            if (judged && !(d <= c->worst)) c->worst = d; /* NaN too */
            c->mean += want[v];
            c->square += (double)want[v] * want[v];
            c->n++;
        }
    }
}

static void llama_matches(const char *folder)
{
    golden g;
    golden_open(folder, "rows", "logits_stored.f32", &g);
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/%s", TEST_SOURCE_DIR, folder);
    run_setup setup = {.model_dir = path,
                       .selector = {.name = "full"},
                       .max_len = g.count,
                       .seqs = 1,
                       .batched = 64,
                       .pool_bytes = 64 << 20,
                       .threads = 1};
    run *r = run_open(&setup);
    compare c = {.g = &g, .want = g.logits};
    run_tap(r, compare_row, &c);
    float score[4096];
    run_score(r, g.token, g.count, score);
    run_close(r);
    cJSON_Delete(g.json);
    double mean = c.mean / (double)c.n;
    double deviation = sqrt(c.square / (double)c.n - mean * mean);
    EXPECT_GE_U64(c.seen, g.rows - 1); /* the last row predicts nothing and has no logits */
    printf("%s: the worst logit is off by %.5f sigma\n", folder, c.worst / deviation);
    EXPECT_LE_F64(c.worst / deviation, FORWARD_SIGMA);
}

TEST(untied_sharded_llama_matches_transformers)
{
    llama_matches("llama/untied");
}
TEST(tied_llama3_scaled_llama_matches_transformers)
{
    llama_matches("llama/tied-llama3");
}
TEST(linearly_scaled_multi_query_llama_matches_transformers)
{
    llama_matches("llama/linear");
}
TEST(minicpm_scalings_match_transformers)
{
    llama_matches("llama/minicpm");
}

static void small_model_run(const golden *g, uint32_t index, const cJSON *of)
{
    const cJSON *s = cJSON_GetObjectItem(of, "selector");
    const char *name = cJSON_GetObjectItem(of, "name")->valuestring;
    char budget[64];
    run_setup setup = {.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .max_len = 1536,
                       .seqs = 1,
                       .batched = 256,
                       .pool_bytes = 16 << 20,
                       .threads = 1};
    setup.selector.name = strcmp(name, "full") == 0         ? "full"
                          : strncmp(name, "infllm", 6) == 0 ? "infllmv2"
                                                            : "nosa";
    if (strcmp(name, "full") != 0) {
        snprintf(budget, sizeof budget, "%d,%d,%d,%d", cJSON_GetObjectItem(s, "init")->valueint,
                 cJSON_GetObjectItem(s, "local")->valueint,
                 cJSON_GetObjectItem(s, "query")->valueint,
                 cJSON_GetObjectItem(s, "total")->valueint);
        setup.selector.budget = budget;
        setup.selector.source = cJSON_GetObjectItem(s, "source")->valuestring;
    }
    run *r = run_open(&setup);
    compare c = {.g = g, .want = g->logits + (size_t)index * g->rows * g->vocab};
    run_tap(r, compare_row, &c);
    float score[4096];
    run_score(r, g->token, g->count, score);
    run_close(r);
    double nll = 0;
    for (uint32_t i = 0; i + 1 < g->count; i++)
        nll -= score[i];
    double want = cJSON_GetObjectItem(of, "nll")->valuedouble;
    EXPECT_MSG(fabs(nll - want) <= FORWARD_NLL, "%s: nll is %.3f, expected %.3f within %g", name,
               nll, want, FORWARD_NLL);
    EXPECT_GE_U64(c.seen, g->rows - 1);
    printf("%s: the worst logit is off by %.4f, nll by %.3f\n", name, c.worst, fabs(nll - want));
    EXPECT_MSG(c.worst <= FORWARD_LOGIT, "%s: a logit is off by %.4f, allowed %g", name, c.worst,
               FORWARD_LOGIT);
}

TEST(every_selector_and_source_of_the_small_model_matches_the_float64_oracle)
{
    golden g;
    golden_open("small-model", "positions", "logits.f32", &g);
    const cJSON *item, *runs = cJSON_GetObjectItem(g.json, "runs");
    uint32_t index = 0;
    cJSON_ArrayForEach(item, runs) small_model_run(&g, index++, item);
    EXPECT_EQ_U64(index, 10);
    cJSON_Delete(g.json);
}

static const char *word(const cJSON *of, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItem(cJSON_GetObjectItem(of, "choice"), key));
}

/* One run of tests/golden/selectors. Logits are compared in units of their standard deviation. */
static void selector_run(const golden *g, const char *path, uint32_t index, const cJSON *of)
{
    run_setup setup = {
        .model_dir = path,
        .selector = {word(of, "selector"), word(of, "budget"), word(of, "lookahead")},
        .max_len = 960,
        .seqs = 1,
        .batched = 100,
        .pool_bytes = 16 << 20,
        .threads = 1};
    if (!run_can(&setup)) return;
    run *r = run_open(&setup);
    compare c = {.g = g, .want = g->logits + (size_t)index * g->rows * g->vocab};
    c.margin = SELECTOR_MARGIN > 0.0 ? cJSON_GetObjectItem(of, "margin_rounded") : NULL;
    EXPECT(SELECTOR_MARGIN == 0.0 || cJSON_GetArraySize(c.margin) == (int)g->rows);
    run_tap(r, compare_row, &c);
    float score[4096];
    run_score(r, g->token, g->count, score);
    run_close(r);
    const char *name = cJSON_GetObjectItem(of, "name")->valuestring;
    double mean = c.mean / (double)c.n, deviation = sqrt(c.square / (double)c.n - mean * mean);
    EXPECT_EQ_U64(c.seen, g->rows);
    EXPECT_GE_U64(c.judged, g->rows / 4);
    printf("%s: the worst logit of %u rows is off by %.4f sigma\n", name, c.judged,
           c.worst / deviation);
    EXPECT_MSG(c.worst <= SELECTOR_SIGMA * deviation, "%s: a logit is off by %.4f of %.3f", name,
               c.worst, deviation);
}

static void selectors_match(const char *folder, uint32_t runs)
{
    golden g;
    golden_open(folder, "positions", SELECTOR_LOGITS, &g);
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/%s", TEST_SOURCE_DIR, folder);
    const cJSON *item;
    uint32_t index = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(g.json, "runs"))
        selector_run(&g, path, index++, item);
    EXPECT_EQ_U64(index, runs);
    cJSON_Delete(g.json);
}

TEST(a_gated_ssa_model_matches_the_float64_oracle_sparse_at_two_budgets_by_chunks_and_full)
{
    selectors_match("selectors/ssa", 5);
}

TEST(a_moba_model_with_blocks_of_two_means_matches_the_float64_oracle)
{
    selectors_match("selectors/moba", 2);
}

TEST(an_nsa_model_of_three_gated_branches_matches_the_float64_oracle)
{
    selectors_match("selectors/nsa", 4);
}

TEST(an_nsa_model_of_overlapping_windows_matches_the_float64_oracle)
{
    selectors_match("selectors/nsa-overlap", 2);
}

TEST_MAIN()
