/* kernels/linear_cpu.c - matrix products whose bits depend on nothing but the row.
 *
 * Each output is one chain of fma over ascending k. Columns stand in the lanes, so neither the
 * number of rows, nor a row's place in a tile, nor the width of a register can change an output. A
 * unit is what two registers hold of a panel (VN_LANES words); a tile is some rows times some
 * units, chosen so that its sums stay in registers: 12 rows x 1 panel with AVX-512, 6 rows x 1/2
 * panel with AVX2. Few rows take more units at once, since a chain alone would wait for the latency
 * of each fma. */
#include "kernels/simd.h"

enum {
    UNITS = 16 / VN_LANES, /* units of a panel */
    ROW_BLOCK = 96,        /* rows of a task */
    STRIP = 4,             /* panels of a task at most */
    SMALL_WORK = 1 << 18,  /* products below which nobody is woken: 7 us, and waking takes 1 to 5 */
};

typedef struct linear_job {
    const kern_linear_args *a;
    uint32_t panels, strip, row_blocks, strips;
} linear_job;

/* One unit's sums of one row, to columns 32 panel + VN_LANES half .. and + 16. */
LANE_OP void finish(const kern_linear_args *a, uint64_t row, uint32_t column, vn sum)
{
    float value[VN_LANES];
    vn_store(value, sum);
    if (column >= kern_linear_columns(a)) return;
    const uint32_t left = kern_linear_columns(a) - column;
    const uint32_t count = left < VN_LANES ? left : VN_LANES;
    float *out = a->out + row * a->out_stride + column;
    if (a->residual == NULL) {
        for (uint32_t i = 0; i < count; i++)
            out[i] = a->scale * value[i];
    } else {
        const float *residual = a->residual + row * a->out_stride + column;
        for (uint32_t i = 0; i < count; i++)
            out[i] = fmaf(a->scale, value[i], residual[i]);
    }
}

/* rows x units sums, for rows from `row` and the units from `unit` on (unit = panel * UNITS +
 * part). */
LANE_OP void tile(const kern_linear_args *a, uint32_t rows, uint32_t units, uint64_t row,
                  uint32_t unit)
{
    const uint32_t depth = a->weight->k;
    const float *x = a->x + row * a->x_stride;
    const uint16_t *w[4];
    vn low[12 * 4], high[12 * 4];
    UNROLL(4)
    for (uint32_t j = 0; j < units; j++)
        w[j] = a->weight->data + (uint64_t)((unit + j) / UNITS) * depth * KERN_PANEL +
               (uint64_t)((unit + j) % UNITS) * 2 * VN_LANES;
    UNROLL(48)
    for (uint32_t i = 0; i < rows * units; i++)
        low[i] = high[i] = vn_zero();
    for (uint32_t k = 0; k < depth; k++) {
        UNROLL(4)
        for (uint32_t j = 0; j < units; j++) {
            vn w_low, w_high;
            vn_pair(w[j] + (uint64_t)k * KERN_PANEL, &w_low, &w_high);
            UNROLL(12)
            for (uint32_t i = 0; i < rows; i++) {
                const vn xk = vn_set1(x[i * a->x_stride + k]);
                low[i * units + j] = vn_fma(xk, w_low, low[i * units + j]);
                high[i * units + j] = vn_fma(xk, w_high, high[i * units + j]);
            }
        }
    }
    UNROLL(12)
    for (uint32_t i = 0; i < rows; i++)
        UNROLL(4)
    for (uint32_t j = 0; j < units; j++) {
        const uint32_t column = (unit + j) / UNITS * KERN_PANEL + (unit + j) % UNITS * VN_LANES;
        finish(a, row + i, column, low[i * units + j]);
        finish(a, row + i, column + 16, high[i * units + j]);
    }
}

/* All units [unit, end) for `rows` rows, `wide` units at a time while they last. */
LANE_OP void sweep(const kern_linear_args *a, uint32_t rows, uint32_t wide, uint64_t row,
                   uint32_t unit, uint32_t end)
{
    for (; unit + wide <= end; unit += wide)
        tile(a, rows, wide, row, unit);
    if (wide == 4 && unit + 2 <= end) tile(a, rows, 2, row, unit), unit += 2;
    for (; unit < end; unit++)
        tile(a, rows, 1, row, unit);
}

static void strip_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const linear_job *job = context;
    const kern_linear_args *a = job->a;
    const uint32_t panel = task / job->row_blocks * job->strip;
    const uint32_t last = panel + job->strip < job->panels ? panel + job->strip : job->panels;
    const uint32_t unit = panel * UNITS, end = last * UNITS;
    uint64_t row = (uint64_t)(task % job->row_blocks) * ROW_BLOCK;
    const uint64_t row_end = row + ROW_BLOCK < a->rows ? row + ROW_BLOCK : a->rows;
    while (row < row_end) {
        const uint64_t left = row_end - row;
#if defined(__AVX512F__)
        if (left >= 12)
            sweep(a, 12, 1, row, unit, end), row += 12;
        else if (left >= 8)
            sweep(a, 8, 1, row, unit, end), row += 8;
        else if (left >= 6)
            sweep(a, 6, 2, row, unit, end), row += 6;
#else
        if (left >= 6) sweep(a, 6, 1, row, unit, end), row += 6;
#endif
        else if (left >= 4)
            sweep(a, 4, VN_LANES / 8, row, unit, end), row += 4;
        else if (left == 3)
            sweep(a, 3, 2, row, unit, end), row += 3;
        else if (left == 2)
            sweep(a, 2, VN_LANES / 4, row, unit, end), row += 2;
        else
            sweep(a, 1, 4, row, unit, end), row += 1;
    }
}

/* Panels of a task: two tasks a thread. One or two rows need a panel's neighbours to keep the
 * arithmetic busy, so they get one task a thread; and what one thread does alone is not cut up. */
static uint32_t strip_of(uint32_t panels, uint32_t rows, uint32_t threads)
{
    const uint32_t strip = panels / ((rows <= 2 || threads == 1 ? 1 : 2) * threads);
    return strip > STRIP ? STRIP : strip < 1 ? 1 : strip;
}

status LEVEL(linear)(kern_stream *stream, const kern_linear_args *args)
{
    kern_team *team = stream->backend->team;
    linear_job job = {.a = args};
    const uint32_t columns = kern_linear_columns(args);
    const bool parallel = (uint64_t)args->rows * columns * args->weight->k >= SMALL_WORK;
    job.panels = (columns + KERN_PANEL - 1) / KERN_PANEL;
    job.row_blocks = (args->rows + ROW_BLOCK - 1) / ROW_BLOCK;
    job.strip = strip_of(job.panels, args->rows, parallel ? kern_team_threads(team) : 1);
    job.strips = (job.panels + job.strip - 1) / job.strip;
    kern_team_run(team, job.strips * job.row_blocks, parallel, strip_task, &job);
    return STATUS_OK;
}
