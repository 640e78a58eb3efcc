/* Compute devices: what kern_probe measures, what our ops reach of it, and what the card says of
 * itself. The same lines for the host's memory and for a card's, since both stand behind one op
 * table. */
#include "worker/doctor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MATRIX_N = 8192, MATRIX_K = 8192, PASSES = 5, BLOCKS = 2048, BLOCK_BYTES = 32 << 10 };

static double seconds_since(uint64_t from_ns)
{
    return (double)(clock_now(&clock_monotonic) - from_ns) * 1e-9;
}

/* ---- what ours reach ------------------------------------------------------------------------- */

/* One row through a matrix of 128 MiB: GB/s of weights. NAN: it does not fit. */
static double reach_read(kern_backend *backend, kern_stream *stream)
{
    arena *a = arena_create("matrix");
    kern_matrix zeros = {ARENA_NEW(a, uint16_t, (size_t)MATRIX_N * MATRIX_K), MATRIX_N};
    kern_weight *weight = NULL;
    void *x = NULL, *out = NULL;
    double best = NAN;
    if (kern_weight_pack(backend, &zeros, 1, MATRIX_K, &weight) == STATUS_OK &&
        kern_alloc(backend, MATRIX_K * sizeof(float), &x) == STATUS_OK &&
        kern_alloc(backend, MATRIX_N * sizeof(float), &out) == STATUS_OK) {
        kern_linear_args args = {.weight = weight,
                                 .x = x,
                                 .out = out,
                                 .x_stride = MATRIX_K,
                                 .out_stride = MATRIX_N,
                                 .rows = 1,
                                 .scale = 1.0f};
        for (int i = 0; i <= PASSES; i++) {
            uint64_t from = clock_now(&clock_monotonic);
            if (kern_linear(stream, &args) != STATUS_OK || kern_stream_sync(stream) != STATUS_OK)
                break;
            double gbs = (double)kern_weight_bytes(weight) * 1e-9 / seconds_since(from);
            if (i > 0 && !(gbs <= best)) best = gbs;
        }
    }
    kern_free(backend, x);
    kern_free(backend, out);
    kern_weight_free(weight);
    arena_destroy(a);
    return best;
}

/* Digests of 64 MiB of blocks in device memory: GB/s. */
static double reach_digest(kern_backend *backend, kern_stream *stream)
{
    void *pool = NULL, *memory = NULL;
    double best = NAN;
    size_t each = sizeof(int32_t) + 2 * sizeof(uint64_t);
    if (kern_alloc(backend, (uint64_t)BLOCKS * BLOCK_BYTES, &pool) == STATUS_OK &&
        kern_alloc(backend, BLOCKS * each, &memory) == STATUS_OK) {
        uint64_t *seed = memory, *digest = seed + BLOCKS;
        int32_t *slot = (int32_t *)(digest + BLOCKS); /* zeros: one block again and again */
        kern_seal_args args = {.pool = pool,
                               .slot = slot,
                               .seed = seed,
                               .digest = digest,
                               .n = BLOCKS,
                               .block_bytes = BLOCK_BYTES};
        for (int i = 0; i <= PASSES; i++) {
            uint64_t from = clock_now(&clock_monotonic);
            if (kern_seal(stream, &args) != STATUS_OK || kern_stream_sync(stream) != STATUS_OK)
                break;
            double gbs = (double)BLOCKS * BLOCK_BYTES * 1e-9 / seconds_since(from);
            if (i > 0 && !(gbs <= best)) best = gbs;
        }
    }
    kern_free(backend, pool);
    kern_free(backend, memory);
    return best;
}

/* ---- rates ----------------------------------------------------------------------------------- */

typedef struct rate_row {
    const char *probe, *check, *words;
    double (*ours)(kern_backend *backend, kern_stream *stream);
} rate_row;

static void measure_rates(doctor *d, kern_backend *backend, const char *prefix)
{
    static const rate_row rows[] = {
        {"read", "read", "device memory; ours: products of one row", reach_read},
        {"copy", "copy", "device memory, read and written", NULL},
        {"gather", "gather", "blocks of 32 KiB in random order, read and written", NULL},
        {"host_gather", "host_gather", "the same out of host memory, each byte once", NULL},
        {"h2d", "h2d", "one pinned copy to the device", NULL},
        {"d2h", "d2h", "one pinned copy from the device", NULL},
    };
    kern_stream *stream = NULL;
    if (kern_stream_create(backend, &stream) != STATUS_OK) return;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double value = NAN;
        char check[24];
        if (kern_probe(backend, rows[i].probe, &value) != STATUS_OK) continue;
        (void)snprintf(check, sizeof check, "%s_%s", prefix, rows[i].check);
        doctor_finding *f = doctor_add(d, DOCTOR_OK, check, "%s", rows[i].words);
        f->value = value;
        f->unit = "GB/s";
        if (rows[i].ours != NULL) f->ours = rows[i].ours(backend, stream);
        if (f->ours > f->value) f->value = f->ours; /* a ceiling is the best anything reached */
    }
    char check[24];
    (void)snprintf(check, sizeof check, "%s_digest", prefix);
    doctor_finding *f = doctor_add(d, DOCTOR_OK, check, "XXH3 of one hot block of 32 KiB");
    f->value = reach_digest(backend, stream);
    f->unit = "GB/s";
    kern_stream_destroy(stream);
}

/* ---- the card -------------------------------------------------------------------------------- */

static double probe(kern_backend *backend, const char *what)
{
    double value = NAN;
    return kern_probe(backend, what, &value) == STATUS_OK ? value : NAN;
}

/* Bits of nvmlClocksThrottleReasons: idle and clocks that an application set are no trouble. */
enum { THROTTLE_HARMLESS = 1 | 2 };

static void judge_link(doctor *d, const doctor_card *c)
{
    if (isnan(c->gen) || isnan(c->width)) return;
    bool narrow = c->width < c->width_max;
    doctor_finding *f = doctor_add(d, narrow ? DOCTOR_BAD : DOCTOR_OK, "cuda_pcie",
                                   "generation %.0f of %.0f, %.0f of %.0f lanes", c->gen,
                                   c->gen_max, c->width, c->width_max);
    if (narrow)
        doctor_advise(f,
                      "The card does not have all its lanes: reseat it, or move it to a slot "
                      "that is wired for %.0f.",
                      c->width_max);
    else if (c->gen < c->gen_max)
        doctor_advise(f,
                      "An idle card may slow its link down; under load it should be "
                      "generation %.0f.",
                      c->gen_max);
}

void doctor_judge_card(doctor *d, const doctor_card *c)
{
    if (!isnan(c->memory)) {
        bool taken = c->free < 0.9 * c->memory;
        doctor_finding *f =
            doctor_add(d, taken ? DOCTOR_NOTE : DOCTOR_OK, "cuda_memory", "%.1f GiB, %.1f free",
                       c->memory / 1073741824, c->free / 1073741824);
        if (taken) doctor_advise(f, "Others hold the rest: nvidia-smi names their processes.");
    }
    if (!isnan(c->ecc)) {
        bool on = c->ecc != 0;
        doctor_finding *f =
            doctor_add(d, on ? DOCTOR_OK : DOCTOR_BAD, "cuda_ecc", "ECC is %s", on ? "on" : "off");
        if (!on)
            doctor_advise(f, "Digests guard blocks, nothing guards weights and sums: as root "
                             "nvidia-smi -e 1, then reboot.");
    }
    if (!isnan(c->throttle)) {
        unsigned long reasons = (unsigned long)c->throttle;
        bool held = (reasons & ~(unsigned long)THROTTLE_HARMLESS) != 0;
        doctor_finding *f = doctor_add(d, held ? DOCTOR_BAD : DOCTOR_OK, "cuda_clocks",
                                       "SM clock %.0f of %.0f MHz%s", c->clock, c->clock_max,
                                       held ? ", held down" : "");
        if (held)
            doctor_advise(f,
                          "Throttle reasons 0x%lx: look at power cap and temperature with "
                          "nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE.",
                          reasons);
    }
    judge_link(d, c);
}

static void look_at_card(doctor *d, kern_backend *backend)
{
    doctor_card c = {.ecc = probe(backend, "ecc"),
                     .clock = probe(backend, "clock"),
                     .clock_max = probe(backend, "clock_max"),
                     .throttle = probe(backend, "throttle"),
                     .gen = probe(backend, "pcie_gen"),
                     .gen_max = probe(backend, "pcie_gen_max"),
                     .width = probe(backend, "pcie_width"),
                     .width_max = probe(backend, "pcie_width_max"),
                     .free = probe(backend, "memory_free"),
                     .memory = probe(backend, "memory")};
    doctor_judge_card(d, &c);
}

/* ---- devices --------------------------------------------------------------------------------- */

static void look_at(doctor *d, const char *name, bool asked)
{
    kern_backend *backend = NULL;
    kern_config config = {.backend = name, .threads = d->threads};
    bool cuda = strcmp(name, "cuda") == 0;
    FILE *nowhere = asked ? NULL : fopen("/dev/null", "we"); /* no card is no complaint */
    if (nowhere != NULL)
        log_setup(&(log_config){.level = LOG_ERROR, .program = "shoal-worker", .file = nowhere});
    status opened = kern_backend_open(&config, &backend);
    log_setup(&(log_config){.level = LOG_WARN, .program = "shoal-worker"});
    if (nowhere != NULL) (void)fclose(nowhere);
    if (opened != STATUS_OK) {
        bool card = access("/dev/nvidia0", F_OK) == 0;
        doctor_finding *f = doctor_add(d, card || asked ? DOCTOR_BAD : DOCTOR_NOTE, name, "%.150s",
                                       log_last_error());
        if (f->state == DOCTOR_BAD)
            doctor_advise(f, "%s",
                          card ? "There is a card here: install the driver and put "
                                 "kernels_cuda.so beside shoal-worker."
                               : "Nothing says that this host has a card; --device cpu "
                                 "leaves it out.");
        return;
    }
    doctor_add(d, DOCTOR_OK, name, "%s, numerics %s", kern_backend_describe(backend),
               kern_numerics_id(backend));
    if (cuda) look_at_card(d, backend);
    if (!d->quick) measure_rates(d, backend, cuda ? "cuda" : "cpu");
    kern_backend_close(backend);
}

void doctor_devices(doctor *d)
{
    bool every = strcmp(d->device, "auto") == 0;
    if (every || strcmp(d->device, "cpu") == 0) look_at(d, "cpu", true);
    if (every || strcmp(d->device, "cuda") == 0) look_at(d, "cuda", !every);
}
