#include "tests/faults/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tests/test.h"

/* The first line that a command prints, "unknown" where there is none. */
static void first_line(const char *command, char *out, size_t bytes)
{
    FILE *f = popen(command, "r");
    if (f == NULL || fgets(out, (int)bytes, f) == NULL) out[0] = 0;
    if (f != NULL) (void)pclose(f);
    out[strcspn(out, "\n\"\\")] = 0;
    if (out[0] == 0) snprintf(out, bytes, "unknown");
}

void record_stamp(char *out, size_t bytes)
{
    char commit[64], processor[128], date[32];
    double load = 0;
    time_t t = time(NULL);
    struct tm utc;
    EXPECT(gmtime_r(&t, &utc) != NULL && strftime(date, sizeof date, "%FT%TZ", &utc) > 0);
    first_line("exec 2>/dev/null; cd '" TEST_SOURCE_DIR "' && printf '%s%s\\n' "
               "$(git rev-parse --short=8 HEAD) $(git diff --quiet HEAD || echo +)",
               commit, sizeof commit);
    first_line("sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo", processor, sizeof processor);
    (void)getloadavg(&load, 1);
    int length = snprintf(
        out, bytes, "\"load\":%.1f,\"machine\":\"%ld x %s\",\"commit\":\"%s\",\"date\":\"%s\"",
        load, sysconf(_SC_NPROCESSORS_ONLN), processor, commit, date);
    EXPECT(length > 0 && (size_t)length < bytes);
}
