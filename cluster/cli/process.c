/* cluster/cli/process.c - what the verbs need of the system: programs, signals, a terminal line. */
#include "cluster/cli/cli.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t interrupted;
static bool line_drawn;

static void on_signal(int number)
{
    interrupted = number;
}

void cli_catch_signals(void)
{
    struct sigaction act = {.sa_handler = on_signal};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    sigaction(SIGHUP, &act, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

void cli_pause(void)
{
    poll(NULL, 0, 20);
}

void cli_find_program(const char *program, char *out, size_t room)
{
    char self[512];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n < 0 ? 0 : n] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) {
        slash[1] = '\0';
        int length = snprintf(out, room, "%s%s", self, program);
        if (length > 0 && (size_t)length < room && access(out, X_OK) == 0) return;
    }
    snprintf(out, room, "%s", program);
}

status cli_exec(const char *program, char **argv)
{
    char path[640];
    cli_find_program(program, path, sizeof path);
    fflush(stdout);
    execvp(path, argv);
    if (errno == ENOENT) return STATUS_NOT_FOUND;
    return FAIL(IO, "%s cannot be run: %s", path, strerror(errno));
}

void cli_progress(const char *format, ...)
{
    if (!isatty(STDERR_FILENO)) return;
    va_list args;
    va_start(args, format);
    fputs("\r\033[K", stderr);
    vfprintf(stderr, format, args);
    va_end(args);
    fflush(stderr);
    line_drawn = true;
}

void cli_progress_end(void)
{
    if (line_drawn) fputs("\r\033[K", stderr);
    line_drawn = false;
}

void cli_json_string(FILE *to, const char *text)
{
    fputc('"', to);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(to, "\\%c", *c);
        else if (*c < 0x20 || *c > 0x7e)
            fprintf(to, "\\u%04x", *c);
        else
            fputc(*c, to);
    }
    fputc('"', to);
}
