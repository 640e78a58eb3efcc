/* tests/fuzz/fuzz.c - see fuzz.h. Log lines are composed, so their formats are tested, and go
 * nowhere. */
#include "tests/fuzz/fuzz.h"

#include <fcntl.h>

static char directory[64], path[192];

static void clean_up(void)
{
    if (path[0] != 0) (void)unlink(path);
    (void)rmdir(directory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    static log_config nowhere = {.level = LOG_DEBUG, .program = "fuzz"};
    nowhere.file = fopen("/dev/null", "w");
    CHECK(nowhere.file != NULL);
    log_setup(&nowhere);
    return 0;
}

const char *fuzz_directory(void)
{
    if (directory[0] != 0) return directory;
    snprintf(directory, sizeof directory, "%s/shoal-fuzz-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    CHECK(mkdtemp(directory) != NULL);
    atexit(clean_up);
    return directory;
}

const char *fuzz_file(const char *name, const uint8_t *data, size_t size)
{
    snprintf(path, sizeof path, "%s/%s", fuzz_directory(), name);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    CHECK(write(fd, data, size) == (ssize_t)size);
    close(fd);
    return path;
}
