/* Where the time of steps goes, op by op. What the ops do not account for is the engine's own:
 * planning rows, taking events, the clock itself. */
#include "worker/profile.h"

static void on_begin(void *self, uint32_t op, const void *args)
{
    profile *p = ((profile_lane *)self)->of;
    (void)op;
    (void)args;
    p->begun_ns = clock_now(&clock_monotonic);
}

static void on_end(void *self, uint32_t op, const void *args)
{
    const profile_lane *lane = self;
    profile *p = lane->of;
    (void)args;
    if (lane->watch.ran != NULL) return; /* on_ran */
    p->op[op].calls++;
    p->op[op].ns += clock_now(&clock_monotonic) - p->begun_ns;
}

static void on_ran(void *self, uint32_t op, uint64_t begin_ns, uint64_t end_ns)
{
    profile_lane *lane = self;
    profile *p = lane->of;
    if (op == KERN_OP_COUNT) { /* those since a sync */
        p->left_out += end_ns;
        lane->ended_ns = 0;
        return;
    }
    bool aside = lane != &p->lane[0];
    if (!aside && lane->ended_ns > 0 && begin_ns > lane->ended_ns)
        p->between_ns += begin_ns - lane->ended_ns;
    if (aside) p->aside_ns += end_ns - begin_ns;
    lane->ended_ns = end_ns;
    p->op[op].calls++;
    p->op[op].ns += end_ns - begin_ns;
}

void profile_start(profile *p, kern_stream *const *streams, uint32_t count, bool inline_ops)
{
    CHECK(count > 0 && count <= PROFILE_LANES);
    *p = (profile){.started_ns = clock_now(&clock_monotonic), .lanes = count};
    for (uint32_t i = 0; i < count; i++) {
        profile_lane *lane = &p->lane[i];
        *lane = (profile_lane){.of = p, .stream = streams[i]};
        lane->watch = (kern_watch){on_begin, on_end, lane, inline_ops ? NULL : on_ran};
        kern_stream_watch(lane->stream, &lane->watch);
    }
}

void profile_stop(profile *p)
{
    for (uint32_t i = 0; i < p->lanes; i++)
        kern_stream_watch(p->lane[i].stream, NULL);
    p->whole_ns = clock_now(&clock_monotonic) - p->started_ns;
}

void profile_add(profile *to, const profile *from)
{
    for (uint32_t op = 0; op < KERN_OP_COUNT; op++) {
        to->op[op].calls += from->op[op].calls;
        to->op[op].ns += from->op[op].ns;
    }
    to->whole_ns += from->whole_ns;
    to->between_ns += from->between_ns;
    to->aside_ns += from->aside_ns;
    to->left_out += from->left_out;
}

static uint64_t in_ops(const profile *p)
{
    uint64_t sum = 0;
    for (uint32_t op = 0; op < KERN_OP_COUNT; op++)
        sum += p->op[op].ns;
    return sum;
}

static uint64_t beside_ops(const profile *p)
{
    const uint64_t ops = in_ops(p) - p->aside_ns + p->between_ns;
    return p->whole_ns > ops ? p->whole_ns - ops : 0;
}

void profile_json(text *out, const profile *p, uint64_t steps)
{
    text_add_string(out, "{\"schema\":\"shoal.profile/1\"");
    text_format(out, ",\"steps\":%llu", (unsigned long long)steps);
    text_key(out, "whole_ms");
    text_number(out, (double)p->whole_ns * 1e-6);
    text_key(out, "beside_ops_ms");
    text_number(out, (double)beside_ops(p) * 1e-6);
    text_key(out, "between_ops_ms");
    text_number(out, (double)p->between_ns * 1e-6);
    text_key(out, "aside_ms");
    text_number(out, (double)p->aside_ns * 1e-6);
    text_format(out, ",\"left_out\":%llu", (unsigned long long)p->left_out);
    text_key(out, "ops");
    text_add_string(out, "{");
    for (uint32_t op = 0; op < KERN_OP_COUNT; op++) {
        if (p->op[op].calls == 0) continue;
        text_key(out, kern_op_name(op));
        text_format(out, "{\"calls\":%llu,\"ms\":", (unsigned long long)p->op[op].calls);
        text_number(out, (double)p->op[op].ns * 1e-6);
        text_add_string(out, "}");
    }
    text_add_string(out, "}}\n");
}

static void line(text *out, const char *name, const profile_op *op, double steps, double step_ns)
{
    text_format(out, "%-12s %9.1f calls %10.2f us a step %6.1f%%", name, (double)op->calls / steps,
                (double)op->ns * 1e-3 / steps, 100 * (double)op->ns / step_ns);
    if (op->calls > 0)
        text_format(out, " %9.2f us a call", (double)op->ns * 1e-3 / (double)op->calls);
    text_add_string(out, "\n");
}

void profile_text(text *out, const profile *p, uint64_t steps)
{
    const double count = steps > 0 ? (double)steps : 1,
                 all = p->whole_ns > 0 ? (double)p->whole_ns : 1;
    bool shown[KERN_OP_COUNT] = {false};
    for (;;) { /* the largest first */
        uint32_t most = KERN_OP_COUNT;
        for (uint32_t op = 0; op < KERN_OP_COUNT; op++)
            if (!shown[op] && p->op[op].calls > 0 &&
                (most == KERN_OP_COUNT || p->op[op].ns > p->op[most].ns))
                most = op;
        if (most == KERN_OP_COUNT) break;
        shown[most] = true;
        line(out, kern_op_name(most), &p->op[most], count, all);
    }
    if (p->aside_ns > 0)
        text_format(out, "(gathers: beside the rest; what of them it waits for is between ops)\n");
    if (p->between_ns > 0) line(out, "between ops", &(profile_op){0, p->between_ns}, count, all);
    if (p->left_out > 0)
        text_format(out, "(%llu ops of these steps are not in the table)\n",
                    (unsigned long long)p->left_out);
    line(out, "beside ops", &(profile_op){0, beside_ops(p)}, count, all);
    line(out, "a step", &(profile_op){0, p->whole_ns}, count, all);
}
