/* tests/kernels/gpu_bench.cuh - what the parts of gpu_bench share: timing by graph replay, one
 * shoal.bench/1 row a case, buffers of random bf16. */
#ifndef TESTS_KERNELS_GPU_BENCH_CUH
#define TESTS_KERNELS_GPU_BENCH_CUH

#include "tests/kernels/gpu_common.cuh"

#include <algorithm>
#include <map>

constexpr int RUNS = 9;

struct bench {
    gpu_bench b;
    cudaStream_t stream;
    FILE *out;
    std::string commit, date, device, only;
    std::map<std::string, double> peer;  /* case -> microseconds */
    double read_ceiling, gather_ceiling; /* GB/s */
    random_source r;
};

struct row {
    std::string bench, name, unit;
    double amount; /* bytes a call when the unit is GB/s, operations when it is TFLOP/s */
    double bound;
    double peer_value = 0.0;
    std::string peer = {};
};

inline std::vector<double> sorted(std::vector<double> v)
{
    std::sort(v.begin(), v.end());
    return v;
}

/* Microseconds a call, RUNS times: `calls` calls of work(i) make a graph, replayed. */
inline std::vector<double> time_calls(bench &k, int calls, const std::function<void(int)> &work)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    work(0);
    CUDA(cudaStreamSynchronize(k.stream));
    CUDA(cudaStreamBeginCapture(k.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < calls; i++)
        work(i);
    CUDA(cudaStreamEndCapture(k.stream, &graph));
    CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t from, to;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&to));
    std::vector<double> us;
    for (int i = 0; i < RUNS + 2; i++) { /* two to warm up */
        CUDA(cudaEventRecord(from, k.stream));
        CUDA(cudaGraphLaunch(exec, k.stream));
        CUDA(cudaEventRecord(to, k.stream));
        CUDA(cudaEventSynchronize(to));
        float ms = 0.0f;
        CUDA(cudaEventElapsedTime(&ms, from, to));
        if (i >= 2) us.push_back((double)ms * 1e3 / calls);
    }
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(to));
    CUDA(cudaGraphExecDestroy(exec));
    CUDA(cudaGraphDestroy(graph));
    return us;
}

/* One JSON line. us: microseconds a call; the row's amount over it when the unit is a rate. */
inline void report(bench &k, const row &w, const std::vector<double> &us)
{
    const bool rate = w.unit != "us";
    std::vector<double> runs;
    for (double t : us)
        runs.push_back(rate ? w.amount / t * (w.unit == "GB/s" ? 1e-3 : 1e-6) : t);
    const double value = sorted(runs)[runs.size() / 2];
    const double fraction = w.bound > 0.0 ? (rate ? value / w.bound : w.bound / value) : 0.0;
    printf("%-14s %-34s %9.1f %-5s", w.bench.c_str(), w.name.c_str(), value, w.unit.c_str());
    if (w.bound > 0.0) printf("  %5.1f %% of %.1f", fraction * 100.0, w.bound);
    if (w.peer_value > 0.0)
        printf("  %.2fx %s", rate ? value / w.peer_value : w.peer_value / value, w.peer.c_str());
    printf("\n");
    fflush(stdout);
    fprintf(k.out,
            "{\"schema\":\"shoal.bench/1\",\"bench\":\"%s\",\"case\":\"%s\",\"value\":%.6g,"
            "\"unit\":\"%s\",\"higher_is_better\":%s",
            w.bench.c_str(), w.name.c_str(), value, w.unit.c_str(), rate ? "true" : "false");
    if (w.bound > 0.0) fprintf(k.out, ",\"bound\":%.6g,\"fraction\":%.4f", w.bound, fraction);
    if (w.peer_value > 0.0)
        fprintf(k.out, ",\"peer\":\"%s\",\"peer_value\":%.6g,\"ratio\":%.4f", w.peer.c_str(),
                w.peer_value, rate ? value / w.peer_value : w.peer_value / value);
    fprintf(k.out, ",\"runs\":[");
    for (size_t i = 0; i < runs.size(); i++)
        fprintf(k.out, "%s%.6g", i ? "," : "", runs[i]);
    fprintf(k.out, "],\"simulated\":false,\"device\":\"%s\",\"commit\":\"%s\",\"date\":\"%s\"}\n",
            k.device.c_str(), k.commit.c_str(), k.date.c_str());
    fflush(k.out);
}

inline bool wanted(const bench &k, const char *name)
{
    return k.only.empty() || k.only == name;
}

static __global__ void random_kernel(uint64_t *out, uint64_t count, uint64_t seed)
{
    for (uint64_t i = (uint64_t)blockIdx.x * 256 + threadIdx.x; i < count;
         i += (uint64_t)gridDim.x * 256) {
        uint64_t z = seed + i * 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        out[i] = (z & 0x80ff80ff80ff80ffu) | 0x3f003f003f003f00u; /* bf16 of magnitude 0.5 to 2 */
    }
}

inline uint8_t *random_bytes(bench &k, uint64_t bytes)
{
    uint8_t *memory = nullptr;
    CUDA(cudaMalloc((void **)&memory, bytes));
    random_kernel<<<2048, 256, 0, k.stream>>>((uint64_t *)memory, bytes / 8, k.r.next());
    CUDA(cudaGetLastError());
    return memory;
}

void bench_prefill(bench &k);

#endif
