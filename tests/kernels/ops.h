/* tests/kernels/ops.h - the op driver: what its files share.
 *
 * ops.c: command line and the runner. cases_*.c: rows of the table. oracle.c: case files for the
 * float64 oracle (kernels/README.md). */
#ifndef TESTS_KERNELS_OPS_H
#define TESTS_KERNELS_OPS_H

#include "kernels/kernels.h"

/* ---- backends to run on ---------------------------------------------------------------------- */

enum { OPS_BACKENDS_MAX = 8 };

typedef struct ops_backend {
    const char *name; /* "ref", "cpu/generic", ... */
    kern_config config;
} ops_backend;

/* ref first, then every level of cpu that runs on this machine. */
uint32_t ops_backends(ops_backend out[OPS_BACKENDS_MAX], uint32_t threads);

int oracle_main(const char *cases_path, const char *results_path);

/* ---- one row of the table -------------------------------------------------------------------- */

typedef enum value_kind { VALUE_F32, VALUE_BF16, VALUE_BYTES } value_kind;

/* What an op has written. */
typedef struct op_output {
    const char *name;
    const void *data;
    uint64_t count; /* values, or bytes */
    value_kind kind;
} op_output;

enum { OP_PARAMS = 8, OP_OUTPUTS = 5 };

/* One op at one shape on one backend. Inputs come from `random`, the same for every backend. */
typedef struct op_fixture {
    arena *memory;
    rng random;
    kern_backend *backend;
    kern_stream *stream;
    const int *param;
    void *args;    /* the op's args struct */
    void *context; /* the case's own */
    kern_weight *weight;
    uint32_t rows;
    op_output output[OP_OUTPUTS];
    uint32_t outputs;
    double flops, bytes; /* of one run over all rows */
    /* Runs rows first .. first + count - 1, as if there were no others. */
    status (*run)(struct op_fixture *f, uint32_t first, uint32_t count);
} op_fixture;

typedef struct op_case {
    const char *op;
    const char *dims; /* for people; names the parameters in order */
    int param[OP_PARAMS];
    float tolerance; /* against ref: of the largest value of the output; 0: the same bits */
    bool whole;      /* rows depend on each other: no splitting (compress is split in order) */
    void (*build)(op_fixture *f);
} op_case;

extern const op_case ops_model_cases[], ops_attend_cases[];
extern const uint32_t ops_model_case_count, ops_attend_case_count;

/* ---- helpers of the cases -------------------------------------------------------------------- */

float ops_normal(rng *r); /* about normal, mean 0, variance 1 */
float *ops_floats(op_fixture *f, uint64_t count, float scale);
uint16_t *ops_bf16s(op_fixture *f, uint64_t count, float scale);
void ops_output(op_fixture *f, const char *name, const void *data, uint64_t count, value_kind kind);

#endif
