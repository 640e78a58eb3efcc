/* kernels/prefill.cuh - attend.cu's way to prefill.cu: which rows it takes, and taking them. */
#ifndef KERNELS_PREFILL_CUH
#define KERNELS_PREFILL_CUH

#include "kernels/cuda.cuh"

/* Whether this device and geometry have the tile kernel. Depends on nothing else, so a row always
 * goes the same way. */
bool cuda_prefill_can(const cuda_stream *stream, const kern_attend_args *args);

/* args->prefill is set: rows of one sequence at ascending positions. */
status cuda_prefill(cuda_stream *stream, const kern_attend_args *args);

#endif
