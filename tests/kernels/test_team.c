/* tests/kernels/test_team.c - threads run every task of a job once, whoever comes late; and an op's
 * bits do not depend on how many there are. */
#include "kernels/backend.h"
#include "tests/test.h"

enum { TASKS_MAX = 300 };

typedef struct tally {
    _Atomic uint32_t *ran;
    uint64_t value; /* differs from job to job: a thread that mixes two jobs shows */
    _Atomic uint64_t sum;
} tally;

static void count_task(const void *context, uint32_t task, void *scratch)
{
    tally *t = (tally *)(uintptr_t)context;
    ((volatile char *)scratch)[task] = 1; /* nobody else's: a race here is a race */
    atomic_fetch_add_explicit(&t->ran[task], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->sum, t->value * (task + 1), memory_order_relaxed);
}

static void run_jobs(uint32_t threads, uint32_t jobs)
{
    static _Atomic uint32_t ran[TASKS_MAX];
    arena *a = arena_create("team");
    kern_team *team;
    EXPECT_OK(kern_team_create(a, threads, &team));
    rng random;
    rng_seed(&random, test_seed() + threads);
    for (uint32_t job = 0; job < jobs; job++) {
        const uint32_t count = (uint32_t)rng_below(&random, TASKS_MAX);
        memset((void *)ran, 0, sizeof ran);
        tally t = {ran, job + 1, 0};
        kern_team_run(team, count, job % 7 != 0, count_task, &t);
        for (uint32_t i = 0; i < TASKS_MAX; i++)
            EXPECT(ran[i] == (i < count));
        EXPECT_EQ_U64(t.sum, (uint64_t)(job + 1) * count * (count + 1) / 2);
    }
    kern_team_destroy(team);
    arena_destroy(a);
}

TEST(every_task_runs_once_on_one_thread)
{
    run_jobs(1, 50);
}

TEST(every_task_runs_once_on_four_threads)
{
    run_jobs(4, 2000);
}

TEST(more_threads_than_tasks_or_cores_do_no_harm)
{
    run_jobs(13, 300);
}

TEST(an_unknown_backend_or_level_is_refused)
{
    kern_backend *backend = NULL;
    EXPECT_STATUS(kern_backend_open(&(kern_config){.backend = "tpu"}, &backend),
                  STATUS_UNSUPPORTED);
    EXPECT_STATUS(kern_backend_open(&(kern_config){.backend = "cpu", .isa = "mmx"}, &backend),
                  STATUS_UNSUPPORTED);
    EXPECT(backend == NULL);
}

static const char *numerics_of(const char *name, const char *isa)
{
    static char id[64];
    kern_backend *backend;
    const kern_config config = {.backend = name, .threads = 1, .isa = isa};
    if (kern_backend_open(&config, &backend) != STATUS_OK) return NULL;
    EXPECT(strstr(kern_backend_describe(backend), isa != NULL ? isa : name) != NULL);
    snprintf(id, sizeof id, "%s", kern_numerics_id(backend));
    kern_backend_close(backend);
    return id;
}

TEST(every_level_has_the_same_numerics_and_the_reference_its_own)
{
    char best[64];
    snprintf(best, sizeof best, "%s", numerics_of("cpu", NULL));
    EXPECT_EQ_STR(numerics_of("cpu", "generic"), best);
    const char *const levels[] = {"avx2", "avx512"}; /* where the processor has them */
    for (int i = 0; i < 2; i++) {
        const char *id = numerics_of("cpu", levels[i]);
        if (id != NULL) EXPECT_EQ_STR(id, best);
    }
    const char *ref = numerics_of("ref", NULL);
    EXPECT(ref != NULL && strcmp(ref, best) != 0);
}

TEST(memory_is_zeroed_and_aligned_at_every_size)
{
    kern_backend *backend;
    EXPECT_OK(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend));
    const uint64_t sizes[] = {0, 1, 63, 4096, 5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *memory;
        EXPECT_OK(kern_alloc(backend, sizes[i], &memory));
        EXPECT((uintptr_t)memory % 64 == 0);
        for (uint64_t j = 0; j < sizes[i]; j++)
            EXPECT(((const char *)memory)[j] == 0);
        kern_free(backend, memory);
    }
    void *memory = NULL;
    EXPECT_STATUS(kern_alloc(backend, UINT64_MAX - 5, &memory), STATUS_NO_MEMORY);
    kern_backend_close(backend);
}

TEST(host_backends_run_inline_and_copy_at_once)
{
    kern_backend *backend;
    kern_stream *stream;
    EXPECT_OK(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend));
    EXPECT_OK(kern_stream_create(backend, &stream));
    EXPECT(kern_runs_inline(backend));
    void *shared = NULL;
    EXPECT_OK(kern_alloc_shared(backend, 64, &shared));
    const char text[8] = "abcdefg";
    EXPECT_OK(kern_fill(stream, shared, 0x7f, 64));
    EXPECT_OK(kern_copy(stream, shared, text, sizeof text));
    EXPECT(memcmp(shared, text, sizeof text) == 0 && ((char *)shared)[8] == 0x7f);
    EXPECT_OK(kern_copy(stream, shared, shared, 64)); /* nothing to do */
    EXPECT_OK(kern_copy(stream, NULL, NULL, 0));
    EXPECT_OK(kern_stream_poll(stream));
    EXPECT_OK(kern_stream_sync(stream));
    kern_free_shared(backend, shared);
    kern_free_shared(backend, NULL);
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

TEST(only_cuda_devices_have_numbers)
{
    kern_backend *backend = NULL;
    EXPECT_STATUS(kern_backend_open(&(kern_config){.backend = "cpu:1"}, &backend),
                  STATUS_UNSUPPORTED);
    EXPECT_STATUS(kern_backend_open(&(kern_config){.backend = "cud"}, &backend),
                  STATUS_UNSUPPORTED);
    EXPECT(backend == NULL);
}

TEST_MAIN()
