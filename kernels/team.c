/* kernels/team.c - threads for ops that are worth waking someone.
 *
 * One job at a time. `ticket` holds (generation, next task); a thread takes a task by moving it on
 * with compare-and-swap, which fails if the job has changed meanwhile, so a thread that wakes late
 * finds nothing to take and nobody waits for it. `done` counts finished tasks; the caller takes
 * tasks too and waits only for those that others still hold. Idle threads spin for a few
 * microseconds (the gap between two ops of a step), then sleep on a futex.
 *
 * Does not pin threads, and does not balance by cost: tasks are taken in ascending order. */
#include "kernels/backend.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPIN_ROUNDS = 300, THREADS_MAX = 256 };

typedef struct team_thread {
    kern_team *team;
    void *scratch;
    pthread_t id;
} team_thread;

struct kern_team {
    uint32_t threads; /* the caller's included */
    _Atomic uint64_t ticket;
    _Atomic uint32_t count;
    _Atomic(kern_task) task;
    _Atomic(const void *) context;
    _Atomic uint32_t done;
    _Atomic uint32_t wake; /* changes with every job */
    _Atomic uint32_t sleepers;
    _Atomic bool caller_sleeps;
    _Atomic bool stop;
    team_thread *thread; /* [threads], 0 is the caller */
};

static void spin_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    (void)syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

/* Take and run tasks of the current job until none is left. */
static void take_tasks(kern_team *team, void *scratch)
{
    uint64_t ticket = atomic_load(&team->ticket);
    for (;;) {
        const uint32_t count = atomic_load_explicit(&team->count, memory_order_relaxed);
        const kern_task task = atomic_load_explicit(&team->task, memory_order_relaxed);
        const void *context = atomic_load_explicit(&team->context, memory_order_relaxed);
        const uint32_t index = (uint32_t)ticket;
        if (index >= count) return;
        if (!atomic_compare_exchange_weak(&team->ticket, &ticket, ticket + 1)) continue;
        /* The swap succeeded, so the job read above is still this generation's. */
        task(context, index, scratch);
        if (atomic_fetch_add(&team->done, 1) + 1 == count && atomic_load(&team->caller_sleeps))
            futex_wake(&team->done, 1);
        ticket = atomic_load(&team->ticket);
    }
}

static void *thread_main(void *argument)
{
    team_thread *self = argument;
    kern_team *team = self->team;
    uint32_t seen = 0;
    for (;;) {
        for (int i = 0; i < SPIN_ROUNDS && atomic_load(&team->wake) == seen; i++)
            spin_pause();
        while (atomic_load(&team->wake) == seen) {
            atomic_fetch_add(&team->sleepers, 1);
            futex_wait(&team->wake, seen);
            atomic_fetch_sub(&team->sleepers, 1);
        }
        seen = atomic_load(&team->wake);
        if (atomic_load(&team->stop)) return NULL;
        take_tasks(team, self->scratch);
    }
}

static void start_job(kern_team *team)
{
    atomic_fetch_add(&team->wake, 1);
    if (atomic_load(&team->sleepers) > 0) futex_wake(&team->wake, INT_MAX);
}

status kern_team_create(arena *a, uint32_t threads, kern_team **out_team)
{
    if (threads == 0) {
        const long cores = sysconf(_SC_NPROCESSORS_ONLN);
        threads = cores < 1 ? 1 : (uint32_t)cores;
    }
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    kern_team *team = ARENA_NEW(a, kern_team, 1);
    team->thread = ARENA_NEW(a, team_thread, threads);
    for (uint32_t i = 0; i < threads; i++) {
        team->thread[i].team = team;
        team->thread[i].scratch = arena_alloc(a, KERN_SCRATCH_BYTES, 64);
    }
    team->threads = 1;
    for (uint32_t i = 1; i < threads; i++) {
        if (pthread_create(&team->thread[i].id, NULL, thread_main, &team->thread[i]) != 0) {
            kern_team_destroy(team);
            return FAIL(NO_MEMORY, "cannot start compute thread %u of %u", i + 1, threads);
        }
        team->threads++;
    }
    *out_team = team;
    return STATUS_OK;
}

void kern_team_destroy(kern_team *team)
{
    if (team == NULL) return;
    atomic_store(&team->stop, true);
    start_job(team);
    for (uint32_t i = 1; i < team->threads; i++)
        CHECK(pthread_join(team->thread[i].id, NULL) == 0);
    team->threads = 1;
}

uint32_t kern_team_threads(const kern_team *team)
{
    return team->threads;
}

void *kern_team_scratch(kern_team *team)
{
    return team->thread[0].scratch;
}

void kern_team_run(kern_team *team, uint32_t count, bool parallel, kern_task task,
                   const void *context)
{
    CHECK(task != NULL);
    if (!parallel || team->threads == 1 || count < 2) {
        for (uint32_t i = 0; i < count; i++)
            task(context, i, team->thread[0].scratch);
        return;
    }
    const uint64_t generation = (atomic_load(&team->ticket) >> 32) + 1;
    atomic_store_explicit(&team->count, 0, memory_order_relaxed);
    atomic_store_explicit(&team->done, 0, memory_order_relaxed);
    atomic_store_explicit(&team->task, task, memory_order_relaxed);
    atomic_store_explicit(&team->context, context, memory_order_relaxed);
    atomic_store(&team->ticket, generation << 32);
    atomic_store(&team->count, count);
    start_job(team);
    take_tasks(team, team->thread[0].scratch);
    for (int i = 0; i < SPIN_ROUNDS && atomic_load(&team->done) != count; i++)
        spin_pause();
    atomic_store(&team->caller_sleeps, true);
    for (uint32_t done; (done = atomic_load(&team->done)) != count;)
        futex_wait(&team->done, done);
    atomic_store(&team->caller_sleeps, false);
}
