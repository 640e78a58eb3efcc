/* What rows attend to, and the gates of it: after attention, before the output projection.
 *
 * SSA (arXiv 2511.20102) has one gate a query head. NSA (arXiv 2502.11089, as the SSA paper trains
 * it) attends three times with the same query, keys and values: to the means of all complete
 * blocks, to the selection, to the last tokens; each output times its own gate, and the sum goes
 * on. The sliding window's blocks are in the selection's list already, so one plan fetches for
 * both. */
#include "worker/engine.h"

status branch_attend(worker_engine *e, kern_attend_args *rows, uint32_t first_row)
{
    uint32_t row = first_row - e->part[e->now].rows.first;
    size_t at = (size_t)row * e->heads * e->head_dim;
    if (e->attended.bf16 != NULL)
        rows->out_bf16 = e->attended.bf16 + at;
    else
        rows->out = e->attended.f32 + at;
    TRY(kern_attend(e->stream, rows));
    if (e->gates != 3) return STATUS_OK;
    rows->branch = BRANCH_COARSE;
    rows->out = e->coarse_out + at;
    TRY(kern_attend(e->stream, rows));
    rows->branch = BRANCH_NEAR;
    rows->out = e->near_out + at;
    return kern_attend(e->stream, rows);
}

/* x = add + x times the branch's gate; the last one leaves what the output projection takes. */
static status gate_one(worker_engine *e, uint32_t branch, float *x, const float *add, bool last)
{
    row_range rows = e->part[e->now].rows;
    uint64_t gate_stride = (uint64_t)e->gates * e->heads;
    kern_gate_args a = {.x = x,
                        .out_bf16 = last ? e->heads_out.bf16 : NULL,
                        .gate = e->out_gate + rows.first * gate_stride + (size_t)branch * e->heads,
                        .add = add,
                        .gate_stride = gate_stride,
                        .rows = rows.count,
                        .heads = e->heads,
                        .head_dim = e->head_dim};
    return kern_gate(e->stream, &a);
}

status branch_gate(worker_engine *e)
{
    if (e->gates == 0) return STATUS_OK;
    if (e->gates == 1) return gate_one(e, 0, e->attended.f32, NULL, true);
    TRY(gate_one(e, 0, e->coarse_out, NULL, false));
    TRY(gate_one(e, 2, e->near_out, e->coarse_out, false));
    return gate_one(e, 1, e->attended.f32, e->near_out, true);
}
