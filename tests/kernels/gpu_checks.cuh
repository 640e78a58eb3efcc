/* tests/kernels/gpu_checks.cuh - the parts of gpu_check, a family of ops each. `small` rows are
 * those that compute-sanitizer can afford. */
#ifndef TESTS_KERNELS_GPU_CHECKS_CUH
#define TESTS_KERNELS_GPU_CHECKS_CUH

#include "tests/kernels/gpu_common.cuh"

void check_attention(gpu_bench &b, random_source &r, bool small);
void check_score(gpu_bench &b, random_source &r, bool small);
void check_far_slots(gpu_bench &b, random_source &r);
void check_table(gpu_bench &b, random_source &r, bool small);
void check_blocks(gpu_bench &b, random_source &r, bool small);
void check_linear(gpu_bench &b, random_source &r, bool small);
void check_model(gpu_bench &b, random_source &r, bool small);

#endif
