/* Several workers at a time, one a device, each a process of its own.
 *
 *   parent     fork ─► wait for all
 *   worker 0   open, fill, warm ─┬─ runs alone ─┬─ warm ─┬─ run 1 ─┬─ run 2 ─ .. ─┬─ row
 *   worker 1   open, fill, warm ─┴─ (waits)  ───┴─ warm ─┴─ run 1 ─┴─ run 2 ─ .. ─┴─
 *                               gate           gate     gate      gate           gate
 *
 * A run begins when all stand at its gate and lasts until the last of them is done, so the slowest
 * worker counts, and so does the time that others wait for it. What one worker does alone is
 * measured in the same call, by the same process on the same contexts.
 *
 * Processes share one mapping, made before the first fork: each writes its own member, all count
 * arrivals. The parent opens no device. */
#include "worker/bench.h"
#include "worker/session.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct team_shared {
    _Atomic uint64_t arrived; /* at gates, all workers together */
    _Atomic bool broken;      /* one of them is gone */
    bench_member member[BENCH_WORKERS_MAX];
} team_shared;

struct bench_team {
    uint32_t count, index;
    uint64_t gates; /* that this worker came to */
    team_shared *shared;
    pid_t pid[BENCH_WORKERS_MAX];
};

/* ---- parent ---------------------------------------------------------------------------------- */

static void signal_all(const bench_team *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->pid[i] > 0) (void)kill(t->pid[i], SIGTERM);
    }
}

/* What a worker's end means to the program; one that was killed could not say so itself. */
static int code_of(bench_team *t, pid_t ended, int how)
{
    uint32_t i = 0;
    while (i + 1 < t->count && t->pid[i] != ended)
        i++;
    t->pid[i] = 0;
    if (!WIFSIGNALED(how)) return WEXITSTATUS(how);
    LOG(ERROR, "worker %u of %u was ended by signal %d", i, t->count, WTERMSIG(how));
    return status_exit_code(STATUS_INTERNAL);
}

/* Until all have ended: the code of the first that failed. The others leave at their next gate. */
static int wait_all(bench_team *t)
{
    int code = 0;
    bool told = false;
    for (;;) {
        int how = 0;
        if (session_interrupted() && !told) {
            signal_all(t);
            told = true;
        }
        pid_t ended = waitpid(-1, &how, 0);
        if (ended < 0 && errno == EINTR) continue;
        if (ended < 0) return code;
        int its = code_of(t, ended, how);
        if (its != 0) atomic_store(&t->shared->broken, true);
        if (code == 0) code = its;
    }
}

status bench_team_start(arena *a, bench_options *options, bench_team **out_team, int *out_code)
{
    bench_team *t = ARENA_NEW(a, bench_team, 1);
    void *shared =
        mmap(NULL, sizeof(team_shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) return FAIL(NO_MEMORY, "no memory that workers could share");
    t->shared = shared;
    t->count = options->workers;
    pid_t parent = getpid();
    for (uint32_t i = 0; i < t->count; i++) {
        t->pid[i] = fork();
        if (t->pid[i] < 0) {
            signal_all(t);
            (void)wait_all(t);
            return FAIL(NO_MEMORY, "no process for worker %u: %s", i, strerror(errno));
        }
        if (t->pid[i] > 0) continue;
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0);
        if (getppid() != parent) return FAIL(CANCELED, "interrupted");
        t->index = i;
        options->device = options->devices[i];
        options->quiet |= i > 0;
        *out_team = t;
        return STATUS_OK;
    }
    *out_code = wait_all(t);
    return STATUS_OK;
}

/* ---- workers --------------------------------------------------------------------------------- */

uint32_t bench_team_index(const bench_team *t)
{
    return t->index;
}

/* CANCELED: another worker failed, and has said why. */
static status gate(bench_team *t)
{
    uint64_t all = ++t->gates * t->count;
    atomic_fetch_add(&t->shared->arrived, 1);
    while (atomic_load(&t->shared->arrived) < all) {
        if (atomic_load(&t->shared->broken)) return STATUS_CANCELED;
        if (session_interrupted()) return FAIL(CANCELED, "interrupted");
        (void)poll(NULL, 0, 1);
    }
    return STATUS_OK;
}

status bench_team_run(bench *b)
{
    bench_team *t = b->team;
    bench_member *me = &t->shared->member[t->index];
    uint32_t runs = b->options.runs;
    TRY(gate(t));
    for (uint32_t run = 0; run < runs && t->index == 0; run++)
        TRY(bench_measure(b, run, &me->alone[run]));
    TRY(gate(t));
    TRY(bench_warm(b));
    for (uint32_t run = 0; run < runs; run++) {
        TRY(gate(t));
        me->begun_ns[run] = clock_now(&clock_monotonic);
        TRY(bench_measure(b, run, &me->run[run]));
    }
    me->batch = b->batch;
    me->host_bytes = b->host_bytes;
    me->off_walk = b->off_walk;
    return gate(t);
}

const bench_member *bench_team_members(const bench_team *t)
{
    return t->shared->member;
}

void bench_team_close(bench_team *t)
{
    if (t != NULL) (void)munmap(t->shared, sizeof *t->shared);
}
