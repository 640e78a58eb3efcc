/* Matrix products against OpenBLAS, and what this machine can at most: its fused multiply-adds and
 * its memory reads, measured in the same run.
 *
 *     bench_kernels [THREADS [ceilings]]
 *
 * One JSON line a measurement. OpenBLAS gets the same weights as f32, so its matrices take twice
 * the memory; a product with one row is given to sgemv too, and the faster one counts. The two are
 * timed in turns with the same number of threads. On several threads each runs for a while before
 * it is timed: idle threads of OpenBLAS spin for 2^28 cycles before they sleep, and would share
 * their core with ours. Such a sample is taken again when other programs had a tenth of the machine
 * or more; `disturbed` counts those that they had in all tries. Which of OpenBLAS's kernels it took
 * stands in the line of ceilings. */
#include "kernels/kernels.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef BENCH_OPENBLAS
#include <cblas.h>
#endif
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { RUNS = 7, ROWS_MAX = 128, SAMPLE_NS = 2000000, SETTLE_NS = 150000000, TRIES = 20 };

/* With one thread processor time, which other programs hardly touch; else the wall's. */
static bool by_wall;
static long cores;

static uint64_t now(void)
{
    struct timespec t;
    if (by_wall) return clock_now(&clock_monotonic);
    CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0);
    return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

/* ---- ceilings -------------------------------------------------------------------------------- */

/* Twelve independent chains; returns operations done. */
#ifdef __x86_64__
__attribute__((target("avx512f"))) static double fma_512(uint64_t rounds, float *out)
{
    __m512 sum[12], x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(1e-9f);
    for (int i = 0; i < 12; i++)
        sum[i] = _mm512_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sum[i] = _mm512_fmadd_ps(sum[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sum[0] = _mm512_add_ps(sum[0], sum[i]);
    _mm512_storeu_ps(out, sum[0]);
    return 12.0 * 16 * 2 * (double)rounds;
}

__attribute__((target("avx2,fma"))) static double fma_256(uint64_t rounds, float *out)
{
    __m256 sum[12], x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(1e-9f);
    for (int i = 0; i < 12; i++)
        sum[i] = _mm256_set1_ps((float)i);
    for (uint64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; i++)
            sum[i] = _mm256_fmadd_ps(sum[i], x, y);
    }
    for (int i = 1; i < 12; i++)
        sum[0] = _mm256_add_ps(sum[0], sum[i]);
    _mm256_storeu_ps(out, sum[0]);
    return 12.0 * 8 * 2 * (double)rounds;
}

static double fma_some(uint64_t rounds, float *out)
{
    if (__builtin_cpu_supports("avx512f")) return fma_512(rounds, out);
    return __builtin_cpu_supports("fma") ? fma_256(rounds, out) : 0;
}
#else
static double fma_some(uint64_t rounds, float *out)
{
    (void)rounds;
    (void)out;
    return 0;
}
#endif

static void print_list(const char *name, const double *values)
{
    printf(",\"%s\":[", name);
    for (int i = 0; i < RUNS; i++)
        printf("%s%.6g", i > 0 ? "," : "", values[i]);
    printf("]");
}

/* A ceiling of one thread. */
static void ceilings(const char *isa)
{
    kern_backend *backend;
    const kern_config config = {"cpu", 1, isa};
    double fma[RUNS], read[RUNS];
    static volatile float keep;
    float out[16] = {0};
    CHECK(kern_backend_open(&config, &backend) == STATUS_OK);
    for (int i = 0; i < RUNS; i++) {
        const uint64_t from = now();
        const double flops = fma_some(UINT64_C(2000000), out);
        fma[i] = flops / (double)(now() - from);
        keep = out[0];
        CHECK(kern_probe(backend, "read", &read[i]) == STATUS_OK);
    }
    (void)keep;
    printf("{\"kind\":\"ceiling\",\"device\":\"%s\"", kern_backend_describe(backend));
    print_list("fma_gflops", fma);
    print_list("read_gbs", read);
#ifdef BENCH_OPENBLAS
    printf(",\"peer_core\":\"%s\"", openblas_get_corename());
#endif
    printf("}\n");
    kern_backend_close(backend);
}

/* ---- products -------------------------------------------------------------------------------- */

typedef struct shape {
    const char *model, *name;
    uint32_t n, k;
} shape;

static const shape shapes[] = {
    {"small", "q", 512, 256},        {"small", "kv", 256, 256},   {"small", "o", 256, 512},
    {"small", "gate_up", 1408, 256}, {"small", "down", 256, 704}, {"small", "lm_head", 4096, 256},
    {"8b", "q", 4096, 4096},         {"8b", "kv", 512, 4096},     {"8b", "o", 4096, 4096},
    {"8b", "gate_up", 32768, 4096},  {"8b", "down", 4096, 16384},
};

typedef struct product {
    kern_stream *stream;
    kern_linear_args args;
    const float *wide; /* the weight as f32 [n, k] */
    float *peer_out;
    uint32_t n, k;
} product;

static void run_ours(const product *p)
{
    CHECK(kern_linear(p->stream, &p->args) == STATUS_OK);
}

#ifdef BENCH_OPENBLAS
static void run_gemm(const product *p)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)p->args.rows, (int)p->n, (int)p->k,
                1.0f, p->args.x, (int)p->k, p->wide, (int)p->k, 0.0f, p->peer_out, (int)p->n);
}

static void run_gemv(const product *p)
{
    cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)p->n, (int)p->k, 1.0f, p->wide, (int)p->k,
                p->args.x, 1, 0.0f, p->peer_out, 1);
}
#endif

/* Processor seconds that all have had but this process; 0 where Linux does not say. */
static double others_had(void)
{
    FILE *f = fopen("/proc/stat", "r");
    double user = 0, nice = 0, system = 0;
    struct timespec own;
    if (f == NULL) return 0;
    const int got = fscanf(f, "cpu %lf %lf %lf", &user, &nice, &system);
    (void)fclose(f);
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &own) == 0);
    if (got != 3) return 0;
    return (user + nice + system) / (double)sysconf(_SC_CLK_TCK) - (double)own.tv_sec -
           (double)own.tv_nsec * 1e-9;
}

/* Microseconds of one call; *repeats is settled by the first. */
static double time_once(void (*run)(const product *), const product *p, uint32_t *repeats)
{
    if (*repeats == 0) {
        run(p);
        const uint64_t from = now();
        run(p);
        const uint64_t once = now() - from + 1;
        *repeats = once > SAMPLE_NS ? 1 : (uint32_t)(SAMPLE_NS / once);
    }
    const uint64_t from = now();
    for (uint32_t i = 0; i < *repeats; i++)
        run(p);
    return (double)(now() - from) / *repeats * 1e-3;
}

/* Whether others had a tenth of the machine or more since then. A tick is 10 ms, and each processor
 * may owe one. */
static bool is_disturbed(uint64_t begin, double others)
{
    return others_had() - others > (double)(now() - begin) * 1e-10 * (double)cores + 0.02;
}

static void wait_for_quiet(void)
{
    for (int i = 0; i < TRIES; i++) {
        const double others = others_had();
        const uint64_t begin = now();
        (void)poll(NULL, 0, SETTLE_NS / 1000000);
        if (!is_disturbed(begin, others)) return;
    }
}

static double time_one(void (*run)(const product *), const product *p, uint32_t *repeats,
                       uint32_t *disturbed)
{
    double us = 0;
    for (int i = 0; i < TRIES; i++) {
        const double others = others_had();
        const uint64_t begin = now();
        while (by_wall && now() - begin < SETTLE_NS)
            run(p);
        us = time_once(run, p, repeats);
        if (!by_wall || !is_disturbed(begin, others)) return us;
        wait_for_quiet();
    }
    ++*disturbed;
    return us;
}

static void bench_rows(const product *p, const shape *s, const char *device, uint32_t threads)
{
    double ours[RUNS], gemm[RUNS], gemv[RUNS];
    uint32_t repeats[3] = {0}, disturbed = 0;
    for (int i = 0; i < RUNS; i++) {
        ours[i] = time_one(run_ours, p, &repeats[0], &disturbed);
#ifdef BENCH_OPENBLAS
        gemm[i] = time_one(run_gemm, p, &repeats[1], &disturbed);
        if (p->args.rows == 1) gemv[i] = time_one(run_gemv, p, &repeats[2], &disturbed);
#endif
    }
    printf("{\"kind\":\"product\",\"model\":\"%s\",\"name\":\"%s\",\"n\":%u,\"k\":%u,\"rows\":%u,"
           "\"threads\":%u,\"device\":\"%s\",\"disturbed\":%u,\"weight_bytes\":%llu,"
           "\"peer_bytes\":%llu",
           s->model, s->name, s->n, s->k, p->args.rows, threads, device, disturbed,
           (unsigned long long)kern_weight_bytes(p->args.weight),
           (unsigned long long)s->n * s->k * sizeof(float));
    print_list("us", ours);
#ifdef BENCH_OPENBLAS
    print_list("gemm_us", gemm);
    if (p->args.rows == 1) print_list("gemv_us", gemv);
#else
    (void)gemm;
    (void)gemv;
#endif
    printf("}\n");
    fflush(stdout);
}

static void bench_shape(kern_backend *backend, const shape *s, uint32_t threads)
{
    static const uint32_t rows[] = {1, 4, 16, 128};
    const uint64_t count = (uint64_t)s->n * s->k;
    uint16_t *narrow = malloc(count * sizeof *narrow);
    float *wide = malloc(count * sizeof *wide), *x = malloc((size_t)ROWS_MAX * s->k * sizeof *x);
    float *out = malloc((size_t)ROWS_MAX * s->n * sizeof *out);
    float *peer_out = malloc((size_t)ROWS_MAX * s->n * sizeof *peer_out);
    CHECK(narrow != NULL && wide != NULL && x != NULL && out != NULL && peer_out != NULL);
    rng r;
    rng_seed(&r, 3);
    for (uint64_t i = 0; i < count; i++) {
        narrow[i] = kern_f32_to_bf16((float)(rng_next(&r) >> 40) * 1e-8f - 0.08f);
        wide[i] = kern_bf16_to_f32(narrow[i]);
    }
    for (uint64_t i = 0; i < (uint64_t)ROWS_MAX * s->k; i++)
        x[i] = (float)(rng_next(&r) >> 40) * 1e-7f - 0.8f;
    const kern_matrix part = {narrow, s->n};
    kern_weight *weight;
    product p = {.wide = wide, .peer_out = peer_out, .n = s->n, .k = s->k};
    CHECK(kern_weight_pack(backend, &part, 1, s->k, &weight) == STATUS_OK);
    CHECK(kern_stream_create(backend, &p.stream) == STATUS_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        p.args = (kern_linear_args){.weight = weight,
                                    .x = x,
                                    .out = out,
                                    .x_stride = s->k,
                                    .out_stride = s->n,
                                    .rows = rows[i],
                                    .scale = 1.0f};
        bench_rows(&p, s, kern_backend_describe(backend), threads);
    }
    kern_stream_destroy(p.stream);
    kern_weight_free(weight);
    free(narrow);
    free(wide);
    free(x);
    free(out);
    free(peer_out);
}

int main(int argc, char **argv)
{
    cores = sysconf(_SC_NPROCESSORS_ONLN);
    const uint32_t threads = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : (uint32_t)cores;
    const kern_config config = {"cpu", threads, NULL};
    kern_backend *backend;
    ceilings(NULL);
    if (argc > 2) return 0;
    by_wall = threads > 1;
#ifdef BENCH_OPENBLAS
    openblas_set_num_threads((int)threads);
#endif
    CHECK(kern_backend_open(&config, &backend) == STATUS_OK);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        bench_shape(backend, &shapes[i], threads);
    kern_backend_close(backend);
    return 0;
}
