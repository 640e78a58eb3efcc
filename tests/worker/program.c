/* tests/worker/program.c - run shoal-worker as a user does. */
#include "tests/worker/program.h"

#include "worker/json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

const char *program_path(const char *name)
{
    static char path[8][512];
    static int next;
    char *p = path[next++ % 8];
    int count = snprintf(p, sizeof path[0], "%s/%s", test_dir(), name);
    EXPECT(count > 0 && (size_t)count < sizeof path[0]);
    return p;
}

void program_write(const char *name, const char *text)
{
    FILE *f = fopen(program_path(name), "wb");
    EXPECT(f != NULL);
    EXPECT(fputs(text, f) >= 0);
    EXPECT(fclose(f) == 0);
}

char *program_read(arena *memory, const char *name)
{
    struct stat info;
    const char *path = program_path(name);
    char *text;
    size_t count;
    if (stat(path, &info) != 0) return NULL;
    EXPECT_OK(json_file_read(path, 1u << 28, memory, &text, &count));
    return text;
}

pid_t program_start_of(const char *program, const char *const *argv)
{
    const char *child[PROGRAM_ARGS_MAX] = {program};
    char expanded[PROGRAM_ARGS_MAX][512];
    int count = 1;
    for (; *argv != NULL; argv++, count++) {
        EXPECT(count + 1 < PROGRAM_ARGS_MAX);
        snprintf(expanded[count], sizeof expanded[0], "%s",
                 (*argv)[0] == '@' ? program_path(*argv + 1) : *argv);
        child[count] = expanded[count];
    }
    /* Empty before anybody looks into them for what this run says. */
    int out = open(program_path("stdout"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int err = open(program_path("stderr"), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    EXPECT(out >= 0 && err >= 0);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        if (dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(126);
        execv(program, (char *const *)(uintptr_t)child);
        _exit(127);
    }
    close(out);
    close(err);
    return pid;
}

pid_t program_start(const char *const *argv)
{
    return program_start_of(PROGRAM, argv);
}

static void read_into(const char *name, char *to)
{
    FILE *f = fopen(program_path(name), "rb");
    EXPECT(f != NULL);
    size_t count = fread(to, 1, PROGRAM_TEXT_MAX - 1, f);
    to[count] = '\0';
    fclose(f);
}

void program_wait(pid_t pid, program_run *out_run)
{
    int how = 0;
    EXPECT(waitpid(pid, &how, 0) == pid);
    out_run->exit_code = WIFEXITED(how) ? WEXITSTATUS(how) : -1;
    read_into("stdout", out_run->out);
    read_into("stderr", out_run->err);
}

void program_call(const char *const *argv, program_run *out_run)
{
    program_wait(program_start(argv), out_run);
}
