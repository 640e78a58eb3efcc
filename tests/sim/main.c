/* tests/sim/main.c - the simulator's command line.
 *
 *     sim --seeds A..B [--for SECONDS]   run them, fewer when the time is up
 *     sim --fresh SECONDS [--at-least N] new seeds from the clock's time of day
 *     sim --seed N [--trace]             one, with everything that happens in it
 *
 * Progress and failures go to stderr; the last line of stdout is one JSON object of totals. Exit 0:
 * no promise was broken. 1: one was; the seed, the last events and a replay command are printed. */
#include "tests/sim/sim.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static sim *running;
static const char *program;

typedef struct options {
    uint64_t from, to; /* inclusive */
    uint64_t seconds, at_least;
    bool trace, quiet;
} options;

static void failed_print(const char *reason)
{
    fprintf(stderr, "\n");
    if (!running->tracing) sim_trace_print(running, stderr);
    fprintf(stderr, "seed %llu: %s\nreplay: %s --seed %llu --trace\n",
            (unsigned long long)running->seed, reason, program, (unsigned long long)running->seed);
}

static void on_abort(int signal_number)
{
    (void)signal_number; /* a failed CHECK, raised by this thread: stdio is safe enough */
    failed_print("an invariant of the program failed (above)");
    _exit(1);
}

static bool parse(int argc, char **argv, options *out)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        char *end = NULL;
        if (strcmp(argv[i], "--trace") == 0) {
            out->trace = true;
        } else if (strcmp(argv[i], "--quiet") == 0) {
            out->quiet = true;
        } else if (strcmp(argv[i], "--seed") == 0) {
            out->from = out->to = strtoull(value, &end, 10);
            i++;
        } else if (strcmp(argv[i], "--seeds") == 0) {
            out->from = strtoull(value, &end, 10);
            if (strncmp(end, "..", 2) != 0) return false;
            out->to = strtoull(end + 2, &end, 10);
            i++;
        } else if (strcmp(argv[i], "--for") == 0) {
            out->seconds = strtoull(value, &end, 10);
            i++;
        } else if (strcmp(argv[i], "--fresh") == 0) {
            out->seconds = strtoull(value, &end, 10);
            out->from = clock_wall_ms() * 1000;
            out->to = UINT64_MAX - 1;
            i++;
        } else if (strcmp(argv[i], "--at-least") == 0) {
            out->at_least = strtoull(value, &end, 10);
            i++;
        } else {
            return false;
        }
        if (end != NULL && *end != 0) return false;
    }
    return out->to >= out->from && (out->to != 0 || out->from != 0);
}

/* One sentence for people: what ran, and what struck it. */
static void summary_print(const sim *s, uint64_t first, uint64_t last, bool failed)
{
    fprintf(stderr,
            "sim: seeds %llu..%llu, %.2f simulated hours, %s; faults:", (unsigned long long)first,
            (unsigned long long)last, (double)s->totals.simulated_ns / 3.6e12,
            failed ? "the last one FAILED" : "no promise broken");
    for (uint32_t f = 0; f < FAULTS; f++)
        fprintf(stderr, " %s %llu", sim_fault_name[f], (unsigned long long)s->totals.faults[f]);
    fprintf(stderr, "\n");
}

static void totals_print(const sim *s, double seconds, uint64_t first, uint64_t last, bool failed)
{
    const sim_totals *t = &s->totals;
    printf("{\"schema\":\"shoal.sim/1\",\"seeds\":%llu,\"first_seed\":%llu,"
           "\"last_seed\":%llu,\"failed\":%d,",
           (unsigned long long)t->seeds, (unsigned long long)first, (unsigned long long)last,
           failed);
    printf("\"simulated_hours\":%.3f,\"wall_s\":%.1f,\"messages\":%llu,",
           (double)t->simulated_ns / 3.6e12, seconds, (unsigned long long)t->messages);
    printf("\"puts_acked\":%llu,\"puts_failed\":%llu,\"blocks_read\":%llu,\"blocks_failed\":%llu,",
           (unsigned long long)t->puts_acked, (unsigned long long)t->puts_failed,
           (unsigned long long)t->blocks_read, (unsigned long long)t->blocks_failed);
    printf("\"fetched\":%llu,\"fetch_failed\":%llu,\"sealed\":%llu,",
           (unsigned long long)t->fetched, (unsigned long long)t->fetch_failed,
           (unsigned long long)t->sealed);
    printf("\"drops\":%llu,\"canceled\":%llu,\"final_reads\":%llu,\"must_reads\":%llu,"
           "\"must_puts\":%llu,\"faults\":{",
           (unsigned long long)t->drops, (unsigned long long)t->canceled,
           (unsigned long long)t->final_reads, (unsigned long long)t->must_reads,
           (unsigned long long)t->must_puts);
    for (uint32_t f = 0; f < FAULTS; f++)
        printf("%s\"%s\":%llu", f == 0 ? "" : ",", sim_fault_name[f],
               (unsigned long long)t->faults[f]);
    printf("}}\n");
}

int main(int argc, char **argv)
{
    options o = {0};
    program = argv[0];
    if (!parse(argc, argv, &o)) {
        fprintf(stderr,
                "usage: %s --seed N [--trace] | --seeds A..B [--for SECONDS] |\n"
                "       --fresh SECONDS [--at-least N]\n",
                argv[0]);
        return 2;
    }
    log_config quiet = {.level = o.trace ? LOG_INFO : LOG_ERROR, .program = "sim"};
    if (!o.trace) quiet.file = fopen("/dev/null", "w");
    log_setup(&quiet);
    running = sim_create();
    running->tracing = o.trace;
    (void)signal(SIGABRT, on_abort);
    uint64_t start = clock_now(&clock_monotonic), told = start, done = 0;
    bool good = true;
    uint64_t seed = o.from;
    for (;; seed++) {
        good = sim_run(running, seed);
        if (!good || seed == o.to) break;
        uint64_t now = clock_now(&clock_monotonic);
        done++;
        if (o.seconds != 0 && now - start > o.seconds * 1000000000 && done >= o.at_least) break;
        if (o.quiet || now - told < UINT64_C(2000000000)) continue;
        told = now;
        fprintf(stderr, "\rsim: %llu seeds, %.2f simulated hours",
                (unsigned long long)running->totals.seeds,
                (double)running->totals.simulated_ns / 3.6e12);
    }
    if (!o.quiet && !o.trace) fprintf(stderr, "\n");
    if (!good) failed_print(running->reason);
    if (!o.quiet) summary_print(running, o.from, seed, !good);
    totals_print(running, (double)(clock_now(&clock_monotonic) - start) / 1e9, o.from, seed, !good);
    if (o.trace) fprintf(stderr, "trace digest %016llx\n", (unsigned long long)running->trace_hash);
    sim_destroy(running);
    if (quiet.file != NULL) fclose(quiet.file);
    return good ? 0 : 1;
}
