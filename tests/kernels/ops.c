/* tests/kernels/ops.c - every op at many shapes: check against `ref` and between vector levels,
 * threads and batches, or measure.
 *
 *     ops check [--only=OP]             against ref within the row's tolerance; the same bits for
 * every level, for 1 and 3 threads, and row by row ops perf  [--only=OP] [--json]    medians of the
 * best level, one thread ops list                          the rows ops oracle CASES RESULTS case
 * files for the float64 oracle (kernels/README.md)
 *
 * Exit 0 when all rows agree, 1 when one does not, 2 on wrong usage. */
#include "tests/kernels/ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PERF_RUNS = 9 };

/* ---- shared with the cases ------------------------------------------------------------------- */

uint32_t ops_backends(ops_backend out[OPS_BACKENDS_MAX], uint32_t threads)
{
    static const struct {
        const char *name, *backend, *isa;
    } all[] = {{"ref", "ref", NULL},
               {"cpu/generic", "cpu", "generic"},
               {"cpu/avx2", "cpu", "avx2"},
               {"cpu/avx512", "cpu", "avx512"}};
    const log_config quiet = {.level = LOG_ERROR, .program = "ops", .file = tmpfile()};
    const log_config loud = {.level = LOG_ERROR, .program = "ops"};
    uint32_t count = 0;
    log_setup(&quiet); /* a level that this machine lacks is left out, not an error */
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        const kern_config config = {all[i].backend, threads, all[i].isa};
        kern_backend *b;
        if (kern_backend_open(&config, &b) != STATUS_OK) continue;
        kern_backend_close(b);
        out[count++] = (ops_backend){all[i].name, config};
    }
    log_setup(&loud);
    if (quiet.file != NULL) (void)fclose(quiet.file);
    return count;
}

float ops_normal(rng *r)
{
    double sum = -6.0;
    for (int i = 0; i < 12; i++)
        sum += rng_unit(r);
    return (float)sum;
}

float *ops_floats(op_fixture *f, uint64_t count, float scale)
{
    float *x = ARENA_NEW(f->memory, float, count + 16);
    for (uint64_t i = 0; i < count; i++)
        x[i] = scale * ops_normal(&f->random);
    return x;
}

uint16_t *ops_bf16s(op_fixture *f, uint64_t count, float scale)
{
    uint16_t *x = ARENA_NEW(f->memory, uint16_t, count + 32);
    for (uint64_t i = 0; i < count; i++)
        x[i] = kern_f32_to_bf16(scale * ops_normal(&f->random));
    return x;
}

void ops_output(op_fixture *f, const char *name, const void *data, uint64_t count, value_kind kind)
{
    CHECK(f->outputs < OP_OUTPUTS);
    f->output[f->outputs++] = (op_output){name, data, count, kind};
}

/* ---- fixtures -------------------------------------------------------------------------------- */

static status fixture_open(const op_case *c, const kern_config *config, op_fixture *f)
{
    memset(f, 0, sizeof *f);
    f->param = c->param;
    rng_seed(&f->random, 0x5e1ec7);
    TRY(kern_backend_open(config, &f->backend));
    TRY(kern_stream_create(f->backend, &f->stream));
    f->memory = arena_create("op");
    c->build(f);
    return STATUS_OK;
}

static void fixture_close(op_fixture *f)
{
    kern_weight_free(f->weight);
    if (f->memory != NULL) arena_destroy(f->memory);
    kern_stream_destroy(f->stream);
    kern_backend_close(f->backend);
}

static uint64_t output_bytes(const op_output *o)
{
    return o->count * (o->kind == VALUE_F32 ? 4 : o->kind == VALUE_BF16 ? 2 : 1);
}

static double value_at(const op_output *o, uint64_t i)
{
    if (o->kind == VALUE_F32) return (double)((const float *)o->data)[i];
    if (o->kind == VALUE_BF16) return (double)kern_bf16_to_f32(((const uint16_t *)o->data)[i]);
    return ((const uint8_t *)o->data)[i];
}

/* Largest difference as a share of the largest value; infinities must stand in the same places. */
static double distance(const op_output *a, const op_output *b)
{
    double most = 0.0, apart = 0.0;
    for (uint64_t i = 0; i < a->count; i++) {
        const double x = value_at(a, i), y = value_at(b, i);
        if (x == y) continue;
        if (!isfinite(x) || !isfinite(y)) return INFINITY;
        apart = fmax(apart, fabs(x - y));
    }
    for (uint64_t i = 0; i < a->count; i++)
        if (isfinite(value_at(a, i))) most = fmax(most, fabs(value_at(a, i)));
    return apart == 0.0 ? 0.0 : apart / most;
}

static bool same_bits(const op_fixture *a, const op_fixture *b, const char **out_name)
{
    for (uint32_t i = 0; i < a->outputs; i++) {
        *out_name = a->output[i].name;
        if (memcmp(a->output[i].data, b->output[i].data, output_bytes(&a->output[i])) != 0)
            return false;
    }
    return true;
}

/* ---- check ----------------------------------------------------------------------------------- */

typedef struct check_state {
    const op_case *c;
    op_fixture ref, first; /* ref's results; the first cpu level's */
    bool have_first;
    double worst;
    char problem[160];
} check_state;

/* In pieces of 1, 2, 3, ... rows. */
static status run_split(op_fixture *f)
{
    for (uint32_t at = 0, size = 1; at < f->rows; at += size, size = size % 5 + 1) {
        if (size > f->rows - at) size = f->rows - at;
        TRY(f->run(f, at, size));
    }
    return STATUS_OK;
}

static void check_against(check_state *s, op_fixture *f, const char *how)
{
    const char *name = "";
    for (uint32_t i = 0; i < f->outputs; i++) {
        const double d = distance(&s->ref.output[i], &f->output[i]);
        s->worst = fmax(s->worst, d);
        if (!(d <= (double)s->c->tolerance))
            (void)snprintf(s->problem, sizeof s->problem, "%s: %s is %.3g away from ref", how,
                           f->output[i].name, d);
    }
    if (s->have_first && !same_bits(&s->first, f, &name))
        (void)snprintf(s->problem, sizeof s->problem, "%s: %s has other bits than the first level",
                       how, name);
}

static void check_variant(check_state *s, const ops_backend *b, uint32_t threads, bool split)
{
    char how[64];
    (void)snprintf(how, sizeof how, "%s %u threads%s", b->name, threads, split ? " split" : "");
    kern_config config = b->config;
    config.threads = threads;
    op_fixture f;
    status st = fixture_open(s->c, &config, &f);
    if (st == STATUS_OK) st = split ? run_split(&f) : f.run(&f, 0, f.rows);
    if (st != STATUS_OK)
        (void)snprintf(s->problem, sizeof s->problem, "%s: %s", how, status_name(st));
    else
        check_against(s, &f, how);
    if (st == STATUS_OK && !s->have_first) {
        s->first = f;
        s->have_first = true;
        return;
    }
    fixture_close(&f);
}

static bool check_case(const op_case *c)
{
    ops_backend backends[OPS_BACKENDS_MAX];
    const uint32_t count = ops_backends(backends, 1);
    check_state s = {.c = c};
    if (fixture_open(c, &backends[0].config, &s.ref) != STATUS_OK ||
        s.ref.run(&s.ref, 0, s.ref.rows) != STATUS_OK)
        (void)snprintf(s.problem, sizeof s.problem, "ref does not run");
    for (uint32_t i = 1; i < count && s.problem[0] == 0; i++) {
        check_variant(&s, &backends[i], 1, false);
        check_variant(&s, &backends[i], 3, false);
        if (!c->whole) check_variant(&s, &backends[i], 1, true);
    }
    if (s.have_first) fixture_close(&s.first);
    fixture_close(&s.ref);
    printf("%s %-10s %-58s %.2g of %.2g%s%s\n", s.problem[0] == 0 ? "ok    " : "FAILED", c->op,
           c->dims, s.worst, (double)c->tolerance, s.problem[0] == 0 ? "" : "  ", s.problem);
    return s.problem[0] == 0;
}

/* ---- perf ------------------------------------------------------------------------------------ */

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Time that this thread had a processor: others on the machine cost it cache, not time. */
static double cpu_seconds(void)
{
    struct timespec t;
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Processor seconds of one run, PERF_RUNS times, each long enough to time; sorted. */
static void sample_seconds(op_fixture *f, double sample[PERF_RUNS])
{
    uint32_t repeats = 1;
    for (int i = -1; i < PERF_RUNS; i++) {
        const double start = cpu_seconds();
        for (uint32_t j = 0; j < repeats; j++)
            CHECK(f->run(f, 0, f->rows) == STATUS_OK);
        const double each = (cpu_seconds() - start) / repeats;
        if (i < 0)
            repeats = each > 5e-3 ? 1 : (uint32_t)(5e-3 / (each + 1e-8)) + 1;
        else
            sample[i] = each;
    }
    qsort(sample, PERF_RUNS, sizeof sample[0], by_value);
}

static bool perf_case(const op_case *c, const char *isa, bool json)
{
    const kern_config config = {"cpu", 1, isa};
    op_fixture f;
    if (fixture_open(c, &config, &f) != STATUS_OK) return false;
    double sample[PERF_RUNS];
    sample_seconds(&f, sample);
    const double seconds = sample[PERF_RUNS / 2];
    const double gflops = f.flops / seconds * 1e-9, gbytes = f.bytes / seconds * 1e-9;
    if (json) {
        printf(
            "{\"schema\":\"shoal.ops/1\",\"op\":\"%s\",\"case\":\"%s\",\"us\":%.3f,\"gflops\":%.2f,"
            "\"gbytes\":%.2f,\"backend\":\"%s\",\"runs_us\":[",
            c->op, c->dims, seconds * 1e6, gflops, gbytes, kern_backend_describe(f.backend));
        for (int i = 0; i < PERF_RUNS; i++)
            printf("%s%.3f", i > 0 ? "," : "", sample[i] * 1e6);
        printf("]}\n");
    } else {
        printf("%-10s %-58s %10.2f us %8.2f GF/s %8.2f GB/s\n", c->op, c->dims, seconds * 1e6,
               gflops, gbytes);
    }
    fixture_close(&f);
    return true;
}

/* ---- command line ---------------------------------------------------------------------------- */

static int run_table(const char *verb, const char *only, const char *isa, bool json)
{
    const op_case *tables[] = {ops_model_cases, ops_attend_cases};
    const uint32_t counts[] = {ops_model_case_count, ops_attend_case_count};
    uint32_t passed = 0, failed = 0;
    for (int t = 0; t < 2; t++)
        for (uint32_t i = 0; i < counts[t]; i++) {
            const op_case *c = &tables[t][i];
            bool good = true;
            if (only != NULL && strcmp(only, c->op) != 0) continue;
            if (strcmp(verb, "check") == 0)
                good = check_case(c);
            else if (strcmp(verb, "perf") == 0)
                good = perf_case(c, isa, json);
            else
                printf("%-10s %s\n", c->op, c->dims);
            passed += good;
            failed += !good;
            (void)fflush(stdout);
        }
    if (strcmp(verb, "check") == 0) printf("%u passed, %u failed\n", passed, failed);
    return failed == 0 && passed > 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    const char *only = NULL, *isa = NULL;
    bool json = false, wrong = argc < 2;
    if (argc == 4 && strcmp(argv[1], "oracle") == 0) return oracle_main(argv[2], argv[3]);
    for (int i = 2; i < argc; i++) {
        if (strncmp(argv[i], "--only=", 7) == 0)
            only = argv[i] + 7;
        else if (strncmp(argv[i], "--isa=", 6) == 0)
            isa = argv[i] + 6;
        else if (strcmp(argv[i], "--json") == 0)
            json = true;
        else
            wrong = true;
    }
    const char *verb = wrong ? "" : argv[1];
    if (strcmp(verb, "check") != 0 && strcmp(verb, "perf") != 0 && strcmp(verb, "list") != 0) {
        (void)fprintf(stderr, "usage: ops check|perf|list [--only=OP] [--isa=LEVEL] [--json]\n"
                              "       ops oracle CASES RESULTS\n");
        return 2;
    }
    return run_table(verb, only, isa, json);
}
