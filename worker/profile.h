/* worker/profile.h - where the time of steps goes, op by op.
 *
 * Flow:    ops (kern_watch) -> [profile] -> `decode --profile`, `bench decode --profile`.
 * Threads: the step thread.
 * Memory:  its own struct; the stream is borrowed while it runs.
 *
 * An op's time runs from its call to its end; on a device that works behind its stream it is the
 * device's, from begin to end of the op's work there, and the time between ops, in which the device
 * waited for launches or moved what is no op, is told apart. An op costs two looks at a clock more:
 * about 0.1 us on host backends, about 2 us between the ops of a device. `wait` is time that a step
 * had nothing to do. */
#ifndef WORKER_PROFILE_H
#define WORKER_PROFILE_H

#include "worker/text.h"

#include "kernels/kernels.h"

enum { PROFILE_LANES = 3 };

typedef struct profile_op {
    uint64_t calls, ns;
} profile_op;

/* One of the streams that are watched. */
typedef struct profile_lane {
    struct profile *of;
    kern_stream *stream;
    kern_watch watch;
    uint64_t ended_ns; /* device: the last op's end */
} profile_lane;

typedef struct profile {
    profile_op op[KERN_OP_COUNT];
    profile_lane lane[PROFILE_LANES]; /* after the first: what runs beside it */
    uint32_t lanes;
    uint64_t begun_ns;             /* of the op that runs */
    uint64_t between_ns, aside_ns; /* device: first lane, between ops; other lanes, in ops */
    uint64_t left_out;             /* ops whose time was not taken */
    uint64_t started_ns, whole_ns; /* of the profile; set by profile_stop */
} profile;

/* Counts from zero until profile_stop; nothing else may watch the streams meanwhile: the one whose
 * time is told, then `count - 1` that run beside it, PROFILE_LANES at most. */
void profile_start(profile *p, kern_stream *const *streams, uint32_t count, bool inline_ops);
void profile_stop(profile *p);
void profile_add(profile *to, const profile *from); /* several runs as one */
/* One object, {"schema":"shoal.profile/1","steps":...,"whole_ms":...,"ops":{...}} and a newline, or
 * a table. "Beside ops" is what was left of the time between start and stop. */
void profile_json(text *out, const profile *p, uint64_t steps);
void profile_text(text *out, const profile *p, uint64_t steps);

#endif
