/* A node, a client and a worker under valgrind: no invalid access, nothing lost at the end.
 *
 * Memory still reachable at exit is UCX's and gRPC's own, kept for the life of a process; nothing
 * is suppressed. Programs of a sanitized build do not run under valgrind, so there it is skipped.
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kvstore/process.h"
#include "tests/worker/program.h"

#define VALGRIND "/usr/bin/valgrind"
#define TINY     TEST_SOURCE_DIR "/tests/bench/geometry/tiny"
#define KVSTORE  TEST_BINARY_DIR "/bin/shoal-kvstore"
#define CHECKED                                                                                    \
    "--quiet", "--fair-sched=yes", "--leak-check=full", "--show-leak-kinds=definite",              \
        "--errors-for-leak-kinds=definite", "--error-exitcode=99"

static program_run run;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) /* gcc */
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

static void needs_valgrind(void)
{
#ifdef SANITIZED
    SKIP("a sanitized build");
#endif
    if (access(VALGRIND, X_OK) != 0) SKIP("no " VALGRIND);
}

/* What valgrind found lies in `log` of the test's folder. */
static node_process node_under_valgrind(void)
{
    node_process n = {.name = "n0"};
    int out[2];
    char log[600], line[512] = "";
    snprintf(log, sizeof log, "--log-file=%s", program_path("log"));
    EXPECT(pipe(out) == 0);
    n.pid = fork();
    EXPECT(n.pid >= 0);
    if (n.pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execl(VALGRIND, "valgrind", CHECKED, log, KVSTORE, "--name", "n0", "--listen",
              "127.0.0.1:0", "--control", "127.0.0.1:0", "--memory", "64MiB", "--log-level",
              "error", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *f = fdopen(out[0], "r");
    EXPECT(f != NULL && fgets(line, sizeof line, f) != NULL);
    fclose(f);
    EXPECT_MSG(sscanf(line, "ready name=%*s data=%95s control=%95s", n.data, n.control) == 2,
               "the node said: %s", line);
    return n;
}

static void node_ends_clean(node_process *n)
{
    node_signal(n, SIGTERM);
    int code = node_reap(n);
    arena *a = arena_create("test");
    const char *log = program_read(a, "log");
    EXPECT_MSG(code == 0, "the node ended %d: %s", code, log != NULL ? log : "no log");
    arena_destroy(a);
}

static void cluster_write(const node_process *n)
{
    char text[1024];
    snprintf(text, sizeof text,
             "replicas: 1\nnodes:\n  - name: n0\n    data: %s\n    control: %s\n    domain: d0\n"
             "client:\n  hedge_after: 2s\n  fetch_deadline: 30s\n  put_deadline: 30s\n"
             "  connect_deadline: 20s\n",
             n->data, n->control);
    program_write("cluster.yaml", text);
}

TEST(a_node_and_a_worker_end_without_a_lost_byte)
{
    needs_valgrind();
    node_process n = node_under_valgrind();
    cluster_write(&n);
    static const char sentence[] = "The cat sat on the mat. ";
    char prompt[600] = "", line[800];
    for (size_t at = 0; at < 240; at += sizeof sentence - 1)
        memcpy(prompt + at, sentence, sizeof sentence);
    snprintf(line, sizeof line,
             "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":"
             "{\"prompt\":\"%s\",\"max_tokens\":4,\"temperature\":0}}\n",
             prompt);
    program_write("in.jsonl", line);
    static const char *const args[] = {
        CHECKED,   PROGRAM,         "decode",    "@in.jsonl",     "-o",        "@out",
        "--model", SMALL_MODEL,     "--cluster", "@cluster.yaml", "--threads", "1",
        "--quiet", "--device-pool", "8MiB",      "--format",      "json",      NULL};
    program_wait(program_start_of(VALGRIND, args), &run);
    EXPECT_MSG(run.exit_code == 0, "exit %d: %s", run.exit_code, run.err);
    EXPECT_HAS_STR(run.out, "\"failed\":0");
    /* Contexts that are in the store before the first step, and steps that miss. */
    static const char *const bench[] = {
        CHECKED,       PROGRAM,     "bench",     "decode",  "--model", TINY,        "--contexts",
        "4K",          "--budget",  "1,4,10,16", "--batch", "1",       "--cluster", "@cluster.yaml",
        "--host-tier", "0B",        "--runs",    "1",       "--steps", "4",         "--warm",
        "1",           "--threads", "1",         "--quiet", "-o",      "json",      NULL};
    program_wait(program_start_of(VALGRIND, bench), &run);
    EXPECT_MSG(run.exit_code == 0, "exit %d: %s", run.exit_code, run.err);
    EXPECT_HAS_STR(run.out, "\"remote_bytes_a_step\":");
    EXPECT_MSG(strstr(run.out, "\"remote_bytes_a_step\":0,") == NULL, "it fetched none: %s",
               run.out);
    node_ends_clean(&n);
}

TEST(a_client_that_puts_gets_and_drops_ends_without_a_lost_byte)
{
    needs_valgrind();
    static const char *const args[] = {CHECKED, TEST_BINARY_DIR "/bin/tests/test_process",
                                       "--single", "a_thousand_blocks_come_back_whole_over_ucx",
                                       NULL};
    program_wait(program_start_of(VALGRIND, args), &run);
    EXPECT_MSG(run.exit_code == 0, "exit %d: %s", run.exit_code, run.err);
}

TEST(valgrind_is_heard_when_something_is_wrong)
{
    needs_valgrind();
    static const char *const args[] = {CHECKED, "--errors-for-leak-kinds=all", KVSTORE, "--version",
                                       NULL};
    program_wait(program_start_of(VALGRIND, args), &run);
    EXPECT_EQ_I64(run.exit_code, 99); /* libraries keep something, which counts here */
}

TEST_MAIN()
