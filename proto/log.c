/* Log lines as text or JSON, and the end of a failed CHECK.
 *
 * A line is composed on the stack and leaves in one fwrite, so lines of several threads never mix
 * (stdio's lock of the file is the only lock here, and a leaf). A message longer than LINE_BYTES is
 * cut and marked. Nothing here allocates. */
#include "proto/base.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MESSAGE_BYTES = 2048, LINE_BYTES = 2 * MESSAGE_BYTES + 512 };

static log_config setup = {.level = LOG_INFO, .program = "shoal"};
static _Thread_local char last_error[MESSAGE_BYTES];

static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_setup(const log_config *config)
{
    CHECK(config != NULL);
    setup = *config;
    if (setup.program == NULL) setup.program = "shoal";
}

bool log_level_from_name(const char *name, log_level *out_level)
{
    for (int i = 0; i <= LOG_DEBUG; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            *out_level = (log_level)i;
            return true;
        }
    }
    return false;
}

const char *log_last_error(void)
{
    return last_error;
}

/* Copy text into a JSON string body. Bytes above 0x7f pass through: messages are UTF-8 already. */
static size_t json_escape(char *out, size_t room, const char *text)
{
    size_t used = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p != 0 && used + 7 < room; p++) {
        if (*p == '"' || *p == '\\') {
            out[used++] = '\\';
            out[used++] = (char)*p;
        } else if (*p < 0x20) {
            used += (size_t)snprintf(out + used, room - used, "\\u%04x", *p);
        } else {
            out[used++] = (char)*p;
        }
    }
    out[used] = 0;
    return used;
}

static void time_text(char *out, size_t room)
{
    const uint64_t ms = clock_wall_ms();
    const time_t seconds = (time_t)(ms / 1000);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    const size_t used = strftime(out, room, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out + used, room - used, ".%03uZ", (unsigned)(ms % 1000));
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

void log_write(log_level level, const char *file, int line, const char *format, ...)
{
    const int saved_errno = errno;
    if (level > setup.level && level != LOG_ERROR) return;

    char message[MESSAGE_BYTES];
    va_list args;
    va_start(args, format);
    const int wanted = vsnprintf(message, sizeof message, format, args);
    va_end(args);
    if (wanted >= MESSAGE_BYTES) memcpy(message + MESSAGE_BYTES - 4, "...", 4);
    if (level == LOG_ERROR) memcpy(last_error, message, sizeof message);

    char when[40];
    time_text(when, sizeof when);
    char out[LINE_BYTES];
    int used;
    if (setup.json) {
        char escaped[2 * MESSAGE_BYTES];
        json_escape(escaped, sizeof escaped, message);
        used = snprintf(out, sizeof out,
                        "{\"time\":\"%s\",\"level\":\"%s\",\"program\":\"%s\",\"at\":\"%s:%d\","
                        "\"message\":\"%s\"}\n",
                        when, level_names[level], setup.program, base_name(file), line, escaped);
    } else {
        used = snprintf(out, sizeof out, "%s %-5s %s %s:%d: %s\n", when, level_names[level],
                        setup.program, base_name(file), line, message);
    }
    if (used >= LINE_BYTES) used = LINE_BYTES - 1;
    FILE *target = setup.file != NULL ? setup.file : stderr;
    fwrite(out, 1, (size_t)used, target);
    fflush(target);
    errno = saved_errno;
}

_Noreturn void check_failed(const char *cond, const char *file, int line)
{
    log_write(LOG_ERROR, file, line, "check failed: %s", cond);
    abort();
}
