/* kernels/watch.h - part of kernels.h, which includes it: looking at a backend from outside, for
 * timelines, benchmarks and `shoal doctor`.
 *
 * Threads: the step thread, as everything of a backend. Memory: none. */
#ifndef KERNELS_WATCH_H
#define KERNELS_WATCH_H

/* KERN_OP_linear ...: what a watch is told. */
enum kern_op {
#define X(op) KERN_OP_##op,
    KERN_ALL_OPS(X)
#undef X
        KERN_OP_COUNT
};
const char *kern_op_name(uint32_t op);

/* Told of every op of a stream, on the calling thread, before and after the call. On a backend that
 * works behind its stream (cuda) that is the time of the launch. args: the op's own args struct. */
typedef struct kern_watch {
    void (*begin)(void *self, uint32_t op, const void *args);
    void (*end)(void *self, uint32_t op, const void *args);
    void *self;
    /* NULL, or what such a backend is told to do beside: it takes the time of each op on its own
     * clock, and at each kern_stream_sync tells of those since the last, in order. Nanoseconds of
     * the host's monotonic clock, to some microseconds; exact between ops of all streams that were
     * watched together. Before them comes op KERN_OP_COUNT: of them `end_ns`, the last, did not fit
     * and are left out. */
    void (*ran)(void *self, uint32_t op, uint64_t begin_ns, uint64_t end_ns);
} kern_watch;
/* NULL ends it. The watch is borrowed until then. */
void kern_stream_watch(kern_stream *stream, const kern_watch *watch);

/* Measure or read one thing of the device. GB are 10^9 bytes; rates count bytes read + written.
 *
 *   read, copy          device memory, GB/s                      (every backend)
 *   gather              blocks of 32 KiB in random order, GB/s   (every backend)
 *   host_gather         the same out of (pinned) host memory; counts each byte once
 *   h2d, d2h            one large pinned copy, GB/s              (cuda)
 *   memory, memory_free bytes of device memory                   (cuda)
 *   stream_bytes        bytes of it that a stream owns           (cuda)
 *   ecc                 1 on, 0 off                              (cuda)
 *   clock, clock_max, memory_clock, memory_clock_max             MHz (cuda, with NVML)
 *   pcie_gen, pcie_gen_max, pcie_width, pcie_width_max           (cuda, with NVML)
 *   throttle            NVML's reasons as a bit mask; 0 or 1 (idle) is healthy
 *
 * UNSUPPORTED, without a log line, where a backend does not know it. Takes up to a second and up to
 * 2 GiB of device memory. */
status kern_probe(kern_backend *backend, const char *what, double *out_value);

#endif
