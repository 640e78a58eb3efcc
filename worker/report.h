/* worker/report.h - how a run goes, for people while it runs and for programs when it has ended.
 *
 * Flow:    worker_stats -> [report] -> a line on the terminal; a table or JSON on standard output.
 * Threads: one owner.
 * Memory:  none of its own; text goes into the caller's. */
#ifndef WORKER_REPORT_H
#define WORKER_REPORT_H

#include "worker/session.h"

/* A line that is drawn over itself on standard error, at most five times a second, and only on a
 * terminal. */
typedef struct report {
    bool on;
    uint64_t begun_ns, drawn_ns;
} report;
void report_begin(report *r, bool quiet);
bool report_due(report *r);
/* "decode  3/8 prompts ..." and the time left when `part` of the work (0 .. 1) is done. */
void report_draw(report *r, const char *line, double part);
void report_end(report *r);             /* take the line away */
double report_seconds(const report *r); /* since report_begin */

/* What decode counts itself; the rest are the engine's numbers. */
typedef struct report_decode {
    uint64_t prompts, failed, skipped, prompt_tokens, new_tokens, kv_tokens;
    uint64_t output_digest;
    double wall_s;
} report_decode;

/* One object a line, {"schema":"shoal.decode/1",...} and a newline. */
void report_decode_json(text *out, const report_decode *run, session *s);
void report_decode_text(text *out, const report_decode *run, session *s);

#endif
