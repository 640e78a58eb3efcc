/* tests/kernels/gpu_check.cu - every op of the CUDA backend against `ref`, and its bits against
 * themselves.
 *
 *   gpu_check [--small] [--seed N] [--only model|linear|blocks|table|attention|score]
 *
 * Prints one line a check and last "N passed, N failed". Exit 0, 1, or 77 without a usable GPU.
 * --small: the rows that compute-sanitizer can afford. */
#include "tests/kernels/gpu_checks.cuh"

#include <ctime>

int checks_passed, checks_failed;

int main(int count, char **words)
{
    bool small = false;
    uint64_t seed = (uint64_t)time(nullptr);
    std::string only;
    for (int i = 1; i < count; i++) {
        if (strcmp(words[i], "--small") == 0) {
            small = true;
        } else if (strcmp(words[i], "--seed") == 0 && i + 1 < count) {
            seed = strtoull(words[++i], nullptr, 10);
        } else if (strcmp(words[i], "--only") == 0 && i + 1 < count) {
            only = words[++i];
        } else {
            fprintf(stderr, "usage: gpu_check [--small] [--seed N] [--only PART]\n");
            return 2;
        }
    }
    gpu_bench b = {};
    const kern_config gpu = {"cuda", 0, nullptr}, ref = {"ref", 0, nullptr};
    if (kern_backend_open(&gpu, &b.gpu_backend) == STATUS_UNSUPPORTED) {
        printf("skipped: no usable GPU\n");
        return 77;
    }
    NEED(b.gpu_backend != nullptr, "the CUDA backend does not open");
    expect_ok(kern_backend_open(&ref, &b.ref_backend), "ref");
    expect_ok(kern_stream_create(b.gpu_backend, &b.gpu), "stream");
    expect_ok(kern_stream_create(b.ref_backend, &b.ref), "stream");
    printf("%s, %s, seed %llu\n", kern_backend_describe(b.gpu_backend),
           kern_numerics_id(b.gpu_backend), (unsigned long long)seed);
    random_source r = {seed};
    const auto wanted = [&only](const char *part) { return only.empty() || only == part; };
    if (wanted("model")) check_model(b, r, small);
    if (wanted("linear")) check_linear(b, r, small);
    if (wanted("blocks")) check_blocks(b, r, small);
    if (wanted("table")) check_table(b, r, small);
    if (wanted("attention")) check_attention(b, r, small);
    if (wanted("score")) check_score(b, r, small);
    if (wanted("attention") && !small) check_far_slots(b, r);
    kern_stream_destroy(b.gpu);
    kern_stream_destroy(b.ref);
    kern_backend_close(b.gpu_backend);
    kern_backend_close(b.ref_backend);
    CUDA(cudaDeviceSynchronize());
    printf("%d passed, %d failed\n", checks_passed, checks_failed);
    return checks_failed ? 1 : 0;
}
