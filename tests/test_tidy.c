/* Every rule of tests/tidy.c against a violation planted for it. */
#include "tests/test.h"

#include "tests/tidy.h"

#include <stdlib.h>
#include <sys/stat.h>

static tidy_report report;

static void plant(const char *path, const char *text)
{
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", test_dir(), path);
    for (char *slash = full + strlen(test_dir()) + 1; (slash = strchr(slash, '/')) != NULL;
         slash++) {
        *slash = 0;
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *out = fopen(full, "we");
    EXPECT_MSG(out != NULL, "cannot write %s", full);
    fputs(text, out);
    fclose(out);
}

static void check(void)
{
    arena *a = arena_create("tidy");
    EXPECT_OK(tidy_tree(a, test_dir(), &report));
    arena_destroy(a);
}

/* Exactly one finding, of this rule, at this line. */
static void expect_found(const char *path, const char *text, const char *rule, uint32_t line)
{
    plant(path, text);
    check();
    for (uint32_t i = 0; i < report.count; i++)
        print_message("%s:%u: %s: %s\n", report.finding[i].file, report.finding[i].line,
                      report.finding[i].rule, report.finding[i].text);
    EXPECT_MSG(report.count == 1, "%u findings for %s, expected one of rule %s", report.count, path,
               rule);
    EXPECT_EQ_STR(report.finding[0].rule, rule);
    EXPECT_EQ_STR(report.finding[0].file, path);
    EXPECT_EQ_U64(report.finding[0].line, line);
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", test_dir(), path);
    EXPECT_EQ_I64(remove(full), 0);
}

static void expect_clean(const char *path, const char *text)
{
    plant(path, text);
    check();
    if (report.count > 0)
        test_fail(__FILE__, __LINE__, "%s:%u: %s: %s", report.finding[0].file,
                  report.finding[0].line, report.finding[0].rule, report.finding[0].text);
}

TEST(includes_point_down_and_leave_a_folder_by_its_public_header)
{
    expect_clean("kvstore/good.c",
                 "#include \"kvstore/private.h\"\n#include \"cluster/cluster.h\"\n"
                 "#include \"proto/base.h\"\n#include \"proto/rpc.h\"\nint a;\n");
    expect_clean("tests/kvstore/test_good.c", "#include \"kvstore/private.h\"\nint a;\n");
    expect_found("proto/up.c", "int a;\n#include \"cluster/cluster.h\"\n", "include", 2);
    expect_found("cluster/side.c", "#include \"kernels/kernels.h\"\nint a;\n", "include", 1);
    expect_found("kvstore/model.c", "#include \"worker/worker.h\"\nint a;\n", "include", 1);
    expect_found("kvstore/side.c", "#include \"kernels/kernels.h\"\nint a;\n", "include", 1);
    expect_found("worker/peek.c", "#include \"kvstore/index.h\"\nint a;\n", "include", 1);
    expect_found("worker/look.c", "#include \"proto/rpc_internal.h\"\nint a;\n", "include", 1);
    expect_found("worker/bare.c", "#include \"step.h\"\nint a;\n", "include", 1);
}

TEST(cuda_ucx_and_grpc_stay_in_their_places)
{
    expect_clean("kernels/attend.cu", "#include <cuda_runtime.h>\nint a;\n");
    expect_clean("kvstore/transport_ucx.c", "#include <ucp/api/ucp.h>\nint a;\n");
    expect_clean("proto/rpc.c", "#include <grpc/grpc.h>\nint a;\n");
    expect_found("worker/gpu.c", "#include <cuda_runtime.h>\nint a;\n", "include", 1);
    expect_found("kvstore/server.c", "#include <ucp/api/ucp.h>\nint a;\n", "include", 1);
    expect_found("cluster/api.c", "#include <grpc/grpc.h>\nint a;\n", "include", 1);
}

static char *lines(uint32_t count, const char *before, const char *line, const char *after)
{
    char *text = malloc(count * strlen(line) + strlen(before) + strlen(after) + 1);
    char *at = text + snprintf(text, strlen(before) + 1, "%s", before);
    for (uint32_t i = 0; i < count; i++)
        at += snprintf(at, strlen(line) + 1, "%s", line);
    snprintf(at, strlen(after) + 1, "%s", after);
    return text;
}

TEST(files_functions_and_lines_have_a_longest_length)
{
    struct {
        uint32_t count;
        const char *path, *before, *line, *after, *rule;
        uint32_t at;
    } rows[] = {
        {800, "worker/a.c", "", "int a;\n", "", NULL, 0},
        {801, "worker/a.c", "", "int a;\n", "", "length", 0},
        {400, "worker/a.h", "", "int a;\n", "", NULL, 0},
        {401, "worker/a.h", "", "int a;\n", "", "length", 0},
        {70, "worker/a.c", "int f(void)\n{\n", "    g();\n", "}\n", NULL, 0},
        {71, "worker/a.c", "int f(void)\n{\n", "    g();\n", "}\n", "function", 2},
        {93, "worker/a.c", "int a; ", "x", "\n", NULL, 0},
        {94, "worker/a.c", "int a; ", "x", "\n", "columns", 1},
        {94, "worker/a.c", "// clang-format off\nint a; ", "x", "\n// clang-format on\n", NULL, 0},
        {94, "worker/a.c", "// clang-format off\n// clang-format on\nint a; ", "x", "\n", "columns",
         3},
        {90, "worker/a.c", "int a; /* ", "\xc3\xa9", "\n*/\n", NULL, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *text = lines(rows[i].count, rows[i].before, rows[i].line, rows[i].after);
        if (rows[i].rule != NULL)
            expect_found(rows[i].path, text, rows[i].rule, rows[i].at);
        else
            expect_clean(rows[i].path, text);
        plant(rows[i].path, "int a;\n");
        free(text);
    }
}

TEST(banned_words_are_found_as_calls_and_not_in_comments_strings_or_names)
{
    expect_clean(
        "worker/good.c",
        "/* malloc(1), exit(1) */\nconst char *a = \"sprintf(\\\"\";\n"
        "int b = arena_free(c); // strcpy(a, b)\nint d = s.free(1) + p->free(2) + my_exit(3);\n"
        "char e = '\"';\nint free_count;\n");
    expect_clean("worker/main.c", "int main(void)\n{\n    exit(1);\n}\n");
    expect_clean("proto/arena.c", "int a(void)\n{\n    free(calloc(1, 2));\n}\n");
    expect_clean("tests/test_a.c", "int a(void)\n{\n    free(malloc(1));\n}\n");
    const char *const words[] = {"malloc",    "calloc", "realloc", "free",  "strdup",
                                 "sprintf",   "strcpy", "strcat",  "sleep", "usleep",
                                 "nanosleep", "getenv", "strtok",  "rand",  "localtime",
                                 "gmtime",    "ctime",  "exit",    NULL};
    for (size_t i = 0; words[i] != NULL; i++) {
        char text[80];
        snprintf(text, sizeof text, "int a(void)\n{\n    b = %s(c);\n}\n", words[i]);
        expect_found("worker/bad.c", text, "banned", 3);
        if (i > 5) expect_found("tests/bad.c", text, "banned", 3);
    }
    expect_found("proto/arena.c", "int a(void)\n{\n    realloc(p, 3);\n}\n", "banned", 3);
}

TEST(a_kernel_launch_names_its_stream)
{
    expect_clean("kernels/a.cu",
                 "void f(void)\n{\n    k<<<dim3(a, b), c, 0, stream>>>(x, y);\n}\n");
    expect_found("kernels/b.cu", "void f(void)\n{\n    k<<<dim3(a, b), c, 0>>>(x, y);\n}\n",
                 "launch", 3);
    expect_found("kernels/b.cu", "void f(void)\n{\n    k<<<a, f(b, c, d)>>>(x);\n}\n", "launch", 3);
}

TEST(a_kernel_that_may_overlap_the_one_before_it_waits_first)
{
    expect_clean("kernels/a.cu", "__global__ void k(const float *x)\n{\n    cuda_begin();\n}\n\n"
                                 "void f(void)\n{\n    cuda_launch(s, {1, 2}, k, x);\n}\n");
    expect_found(
        "kernels/b.cu",
        "__global__ void k(const float *x)\n{\n    float y = x[0];\n    cuda_begin();\n}\n\n"
        "void f(void)\n{\n    cuda_launch(s, {1, 2}, k, x);\n}\n",
        "launch", 3);
}

TEST(a_marker_carries_the_number_of_an_issue)
{
    expect_clean("worker/a.c", "/* TO"
                               "DO(#12): faster. TO"
                               "DO #3 */\nint a;\n");
    expect_found("worker/b.c",
                 "int a;\n/* TO"
                 "DO: faster */\n",
                 "marker", 2);
    expect_found("worker/README.md",
                 "A page about the worker, long enough.\n\nFIX"
                 "ME\n",
                 "marker", 3);
}

TEST(no_file_names_a_machine_or_holds_nothing)
{
    expect_clean("worker/a.c", "/* see net/wo"
                               "rk/x and $HOME/wo"
                               "rk/ */\nint a;\n");
    expect_found("worker/b.c",
                 "int a; /* /wo"
                 "rk/x */\n",
                 "machine-path", 1);
    expect_found("worker/run",
                 "#!/bin/sh\ncat \"/ro"
                 "ot/x\" # and so on and on\n",
                 "machine-path", 2);
    expect_found("worker/b.c", "/* later */\n\n// more\n", "placeholder", 0);
    expect_found("worker/CMakeLists.txt", "# filled later\n", "placeholder", 0);
    expect_found("worker/README.md", "# Worker\n", "placeholder", 0);
}

TEST(a_public_function_has_a_comment_and_a_test)
{
    plant("tests/worker/test_a.c",
          "int t(void)\n{\n    worker_one(); worker_two(); worker_inline();\n}\n");
    expect_clean(
        "worker/worker.h",
        "/* Two of a kind. */\nint worker_one(int a,\n               int b);\n"
        "int worker_two(void);\n\n#define WORKER_MACRO(x) \\\n    f(x)\n\n"
        "typedef int (*worker_call)(int);\nstruct s {\n    int (*f)(int);\n};\n"
        "_Static_assert(sizeof(int) == 4, \"\");\n\n"
        "/* By macro. */\nint worker_hidden(void);\n#define HIDDEN(a) \\\n    worker_hidden(a)\n\n"
        "/* Inline. */\nstatic inline int worker_inline(int a)\n{\n    return f(a);\n}\n");
    plant("worker/worker.h", "int a;\n");
    expect_found("worker/worker.h", "/* A head. */\n\nint worker_one(void);\n", "comment", 3);
    expect_found("worker/worker.h", "/* Here. */\nint worker_three(void);\n", "untested", 2);
    expect_clean("worker/private.h", "int worker_hidden(void);\n");
}

TEST_MAIN()
