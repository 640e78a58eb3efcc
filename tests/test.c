/* The runner behind tests/test.h: command line, cmocka's group, temporary directories, counts.
 *
 * cmocka prints one line a test and turns a signal into a failure; here only the things it lacks:
 * self-registration in source order, --single and --list, the seed, exit 77. */
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TESTS_MAX = 1024 };

/* What the sanitizers ask a program for at start. c-ares 1.18 loses the name of each look-up of
 * "localhost". */
const char *__lsan_default_suppressions(void);
const char *__ubsan_default_options(void);
const char *__lsan_default_suppressions(void)
{
    return "leak:libcares.so\n";
}
const char *__ubsan_default_options(void)
{
    return "halt_on_error=1:print_stacktrace=1";
}

static test_case *first;
static test_case **last = &first;
static uint64_t seed = 1;
static uint32_t skipped;
static char directory[256];

void test_register(test_case *t)
{
    *last = t;
    last = &t->next;
}

uint64_t test_seed(void)
{
    return seed;
}

void test_fail(const char *file, int line, const char *format, ...)
{
    char message[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    print_error("%s (seed %llu)\n", message, (unsigned long long)seed);
    _fail(file, line);
    abort();
}

void test_skip(const char *format, ...)
{
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    print_message("skipped: %s\n", message);
    skipped++;
    _skip(__FILE__, __LINE__);
    abort();
}

void test_expect_mem(const char *file, int line, const char *what, const void *got,
                     const void *want, size_t bytes)
{
    const unsigned char *g = got, *w = want;
    for (size_t i = 0; i < bytes; i++) {
        if (g[i] != w[i])
            test_fail(file, line, "%s differs at byte %zu of %zu: 0x%02x, expected 0x%02x", what, i,
                      bytes, g[i], w[i]);
    }
}

const char *test_dir(void)
{
    if (directory[0] != 0) return directory;
    snprintf(directory, sizeof directory, "%s/shoal-test-XXXXXX", P_tmpdir);
    if (mkdtemp(directory) == NULL)
        test_fail(__FILE__, __LINE__, "no temporary directory: errno %d", errno);
    return directory;
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *walk)
{
    (void)info;
    (void)kind;
    (void)walk;
    return remove(path);
}

static int remove_directory(void **state)
{
    (void)state;
    if (directory[0] != 0) nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    directory[0] = 0;
    return 0;
}

bool test_aborts(void (*f)(void *arg), void *arg)
{
    fflush(NULL);
    const pid_t child = fork();
    if (child < 0) test_fail(__FILE__, __LINE__, "fork failed: errno %d", errno);
    if (child == 0) {
        const int null = open("/dev/null", O_WRONLY);
        dup2(null, STDOUT_FILENO);
        dup2(null, STDERR_FILENO);
        (void)signal(SIGABRT, SIG_DFL);
        f(arg);
        _exit(0);
    }
    int how = 0;
    while (waitpid(child, &how, 0) < 0 && errno == EINTR) {
    }
    return WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT;
}

static void run_one(void **state)
{
    const test_case *t = *state;
    t->run();
}

static bool number_from_text(const char *text, uint64_t *out_value)
{
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 0);
    if (end == text || *end != 0 || errno != 0) return false;
    *out_value = value;
    return true;
}

static int usage(const char *program)
{
    fprintf(stderr, "usage: %s [--list] [--single NAME] [--seed N]\n", program);
    return 2;
}

static int list(void)
{
    for (const test_case *t = first; t != NULL; t = t->next)
        printf("%s\n", t->name);
    return 0;
}

static int run_all(const char *program, const char *single)
{
    static struct CMUnitTest units[TESTS_MAX];
    size_t count = 0;
    for (test_case *t = first; t != NULL; t = t->next) {
        if (single != NULL && strcmp(single, t->name) != 0) continue;
        if (count == TESTS_MAX) return fprintf(stderr, "more than %d tests\n", TESTS_MAX), 1;
        units[count++] = (struct CMUnitTest){t->name, run_one, NULL, remove_directory, t};
    }
    if (count == 0) {
        fprintf(stderr, "%s: no test named %s\n", program, single != NULL ? single : "at all");
        return 2;
    }
    printf("%s: seed %llu\n", program, (unsigned long long)seed);
    fflush(stdout);
    const int failed = _cmocka_run_group_tests(program, units, count, NULL, NULL);
    const uint32_t bad = failed > 0 ? (uint32_t)failed : 0;
    printf("%zu passed, %u failed", count - bad - skipped, bad);
    if (skipped != 0) printf(", %u skipped", skipped);
    printf("\n");
    if (failed != 0) return 1;
    return skipped == count ? 77 : 0;
}

int test_main(int argc, char **argv)
{
    const char *slash = strrchr(argv[0], '/');
    const char *program = slash != NULL ? slash + 1 : argv[0];
    const char *single = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--list") == 0) return list();
        if (i + 1 == argc) return usage(program);
        if (strcmp(argv[i], "--single") == 0) {
            single = argv[++i];
        } else if (strcmp(argv[i], "--seed") == 0) {
            if (!number_from_text(argv[++i], &seed)) return usage(program);
        } else {
            return usage(program);
        }
    }
    return run_all(program, single);
}
