/* worker/trace.h - a timeline of steps as Chrome trace JSON (chrome://tracing, Perfetto).
 *
 * On a device that works behind its stream a span is an op's work there, by the device's clock, and
 * ops beside the layers have a lane of their own. Between them stand events, so that none begins
 * before the one ahead of it in its stream has ended: a step takes longer than when nobody looks.
 *
 * Flow:    ops (kern_watch), steps and waits -> [trace] -> a file.
 * Threads: the step thread.
 * Memory:  a fixed number of spans, taken at create; what comes after is counted, not kept. */
#ifndef WORKER_TRACE_H
#define WORKER_TRACE_H

#include "worker/engine.h"

typedef struct trace trace;

/* spans: room. The engine is borrowed; its streams are watched while the trace is on. */
trace *trace_create(arena *a, worker_engine *engine, uint32_t spans);
void trace_switch(trace *t, bool on);
/* A span of its own, on the lane of steps. */
void trace_step(trace *t, uint64_t begin_ns, uint64_t end_ns, uint32_t rows);
/* IO: the file. */
status trace_write(const trace *t, const char *path, const char *title);
/* The layer of an op by what its arguments point at; -1: of no layer. */
int32_t trace_layer_of(const worker_engine *e, uint32_t op, const void *args);

#endif
