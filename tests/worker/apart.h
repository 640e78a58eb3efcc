/* tests/worker/apart.h - a device apart: the CPU backend behind a stream that works when it gets to
 * it, on a thread of its own, as a GPU does. The engine then keeps device and host memory apart,
 * runs ahead of the stream and passes misses on while the step runs.
 *
 * Threads: calls come from one thread; ops run on the stream's. Memory: the wrapped backend is
 * closed with this one. A copy from memory that neither kind of allocation knows is waited for, and
 * fails the test behind a kern_wait, where a GPU would never come back. */
#ifndef TESTS_WORKER_APART_H
#define TESTS_WORKER_APART_H

#include "kernels/kernels.h"

kern_backend *apart_open(kern_backend *inner);
/* The same with products that round the rows they are given to bf16, as a GPU's do; `given`: they
 * also take rows that are rounded (kern_rounds_operands). */
kern_backend *apart_open_rounding(kern_backend *inner);
kern_backend *apart_open_given(kern_backend *inner);
/* Told of every product when it is asked for. */
void apart_watch_linear(void (*seen)(const kern_linear_args *args));

#endif
