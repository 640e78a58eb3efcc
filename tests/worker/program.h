/* tests/worker/program.h - run shoal-worker, or another program, as a user does; read what it left.
 *
 * Paths are taken from the build; every file lies in the test's own directory. */
#ifndef TESTS_WORKER_PROGRAM_H
#define TESTS_WORKER_PROGRAM_H

#include "tests/test.h"

#include <sys/types.h>

#ifndef PROGRAM
#define PROGRAM TEST_BINARY_DIR "/bin/shoal-worker"
#endif
#define SMALL_MODEL TEST_SOURCE_DIR "/worker/small-model"
enum { PROGRAM_ARGS_MAX = 48, PROGRAM_TEXT_MAX = 1 << 16 };

typedef struct program_run {
    int exit_code; /* -1: ended by a signal */
    char out[PROGRAM_TEXT_MAX], err[PROGRAM_TEXT_MAX];
} program_run;

/* "name" in the test's directory; one of eight buffers used in turn. */
const char *program_path(const char *name);
void program_write(const char *name, const char *text);
/* Bytes of a file in the test's directory, NUL-terminated, from `memory`; NULL: no such file. */
char *program_read(arena *memory, const char *name);
/* argv without the program, NULL-terminated. @name stands for program_path(name). */
pid_t program_start(const char *const *argv);
pid_t program_start_of(const char *program, const char *const *argv); /* its path */
void program_wait(pid_t pid, program_run *out_run);
void program_call(const char *const *argv, program_run *out_run);
#define PROGRAM_CALL(run, ...) program_call((const char *const[]){__VA_ARGS__, NULL}, run)

#endif
