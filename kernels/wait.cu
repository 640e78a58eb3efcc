/* kernels/wait.cu - the stream waits for arrivals, and tells the host how far it has come.
 *
 * Where the host says when all misses have been answered the stream itself waits for that word, by
 * the driver's stream memory operations. Even one warp that waits keeps an SM from a product whose
 * CTAs need it whole, and a product of one CTA an SM takes half as long again when one has to come
 * after the others.
 *
 * A host that answers misses from other threads (kern_host without `pause`) is waited for on the
 * device: one warp watches the states until all are answered or the deadline has passed; what is
 * then still PENDING becomes DEADLINE (by a store: atomics on host memory are no promise over PCIe,
 * and an answer of the same moment may win as well). The deadline is carried over to the device's
 * timer by the offset measured at open.
 *
 * A host with `pause` has one thread for everything: it is called here, after the stream has come
 * to rest, exactly as the CPU backends do. */
#include "kernels/cuda.cuh"

namespace
{

struct wait_params {
    kern_arrival *arrival;
    const int32_t *published, *unanswered;
    uint64_t deadline_ns; /* on the device's timer */
    uint64_t *waited_ns;  /* NULL, or where the time spent here is added */
};

/* A product's CTAs may take all of an SM but a thousand registers, and where another CTA stands
 * they stand one after the other: so it is one warp, several reads of each thread under way. */
constexpr uint32_t WAITING = 32, AT_ONCE = 4;

__global__ void __launch_bounds__(WAITING) wait_kernel(const __grid_constant__ wait_params p)
{
    cuda_begin();
    if (cta_load_acquire(p.unanswered) == 0) return; /* the plan found all in host memory */
    const uint32_t published = (uint32_t)load_relaxed(p.published);
    const uint64_t start = device_now();
    for (uint32_t first = threadIdx.x; first < published; first += WAITING * AT_ONCE) {
        bool pending = true;
        while (pending && device_now() < p.deadline_ns) {
            int32_t state[AT_ONCE];
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++) {
                const uint32_t i = min(first + k * WAITING, published - 1);
                state[k] = load_relaxed(&p.arrival[i].state);
            }
            pending = false;
#pragma unroll
            for (uint32_t k = 0; k < AT_ONCE; k++)
                pending |= state[k] == STATUS_PENDING;
        }
        for (uint32_t k = 0; pending && k < AT_ONCE && first + k * WAITING < published; k++) {
            int32_t *state = &p.arrival[first + k * WAITING].state;
            if (load_relaxed(state) == STATUS_PENDING) *(volatile int32_t *)state = STATUS_DEADLINE;
        }
    }
    __threadfence_system(); /* what the states stand for, to the launches that follow */
    __syncthreads();
    if (threadIdx.x == 0 && p.waited_ns) *p.waited_ns += device_now() - start;
}

bool all_arrived(const kern_exchange *x, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (__atomic_load_n(&x->arrival[i].state, __ATOMIC_ACQUIRE) == STATUS_PENDING) return false;
    return true;
}

status waits(int done) /* a CUresult */
{
    return done == 0 ? STATUS_OK
                     : FAIL(GPU, "a stream cannot wait for host memory: driver error %d", done);
}

/* Behind a copy too: a launch begins when the copy before it is done. */
__global__ void tell_kernel(int32_t *flag)
{
    cuda_begin();
    __threadfence_system();
    asm volatile("st.release.sys.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}

} // namespace

extern "C" status cuda_wait(kern_stream *stream, const kern_wait_args *args)
{
    cuda_stream *s = cuda_stream_of(stream);
    kern_exchange *x = args->exchange;
    const kern_host *host = args->host;
    if (!host->pause) {
        if (host->notify) host->notify(host->self);
        const auto wait_value = cuda_device_of(stream->backend)->wait_value;
        if (args->step != 0 && !args->waited_ns && wait_value)
            return waits(wait_value(s->handle, (uint64_t)(uintptr_t)&x->answered, args->step, 0));
        wait_params p = {};
        p.arrival = x->arrival;
        p.published = x->own_count ? (const int32_t *)x->own_count : (const int32_t *)&x->published;
        p.unanswered =
            x->own_count ? (const int32_t *)x->own_count + 2 : (const int32_t *)&x->unanswered;
        p.deadline_ns = cuda_deadline(stream, args);
        p.waited_ns = args->waited_ns; /* shared memory */
        cuda_launch(s, {1, WAITING}, wait_kernel, p);
        return cuda_launched("wait");
    }
    TRY_CUDA(cudaStreamSynchronize(s->handle));
    const uint32_t count = (uint32_t)__atomic_load_n(&x->published, __ATOMIC_ACQUIRE);
    if (count == 0) return STATUS_OK;
    if (host->notify) host->notify(host->self);
    const uint64_t start = clock_now(&host->clock);
    uint64_t now = start;
    while (!all_arrived(x, count) && now < args->deadline_ns) {
        host->pause(host->self, args->deadline_ns);
        now = clock_now(&host->clock);
    }
    for (uint32_t i = 0; i < count; i++) {
        int32_t pending = STATUS_PENDING;
        (void)__atomic_compare_exchange_n(&x->arrival[i].state, &pending, (int32_t)STATUS_DEADLINE,
                                          false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    if (args->waited_ns) *args->waited_ns += now - start;
    return STATUS_OK;
}

/* kern_stream_tell */
extern "C" status cuda_tell(kern_stream *stream, int32_t *flag)
{
    cuda_launch(cuda_stream_of(stream), {1, 1}, tell_kernel, flag);
    return cuda_launched("tell");
}
