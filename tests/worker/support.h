/* tests/worker/support.h - files in the test's directory, and quiet logs.
 *
 * Tests of malformed input cause thousands of error sentences on purpose; what they say is compared
 * through log_last_error, so the lines themselves go nowhere. */
#ifndef TESTS_WORKER_SUPPORT_H
#define TESTS_WORKER_SUPPORT_H

#include "tests/test.h"

__attribute__((constructor)) static void support_quiet_log(void)
{
    static log_config config = {.level = LOG_ERROR, .program = "test"};
    config.file = fopen("/dev/null", "w");
    if (config.file) log_setup(&config);
}

static inline void support_write(const char *name, const void *bytes, size_t count)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    FILE *out = fopen(path, "wb");
    EXPECT(out != NULL);
    EXPECT(fwrite(bytes, 1, count, out) == count);
    EXPECT(fclose(out) == 0);
}

#endif
