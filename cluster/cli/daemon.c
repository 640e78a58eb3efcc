/* cluster/cli/daemon.c - see daemon.h. Signals go through a pidfd that is opened before the start
 * time is compared, so the process that is signalled is the one that was looked at. */
#include "cluster/cli/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cluster/cli/cli.h"

void daemon_path(const char *state_dir, const char *name, const char *suffix, char out[512])
{
    int n = snprintf(out, 512, "%s/%s.%s", state_dir, name, suffix);
    CHECK(n > 0 && n < 512);
}

/* Field 22 of /proc/PID/stat; 0 when there is no such process or it is a zombie. */
static uint64_t start_time(pid_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = '\0';
    const char *at = strrchr(text, ')'); /* the name before it may hold anything */
    if (!at || at[1] != ' ' || at[2] == 'Z' || at[2] == 'X') return 0;
    for (int field = 2; field < 22 && at; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

bool daemon_alive(daemon_process process)
{
    if (process.pid <= 0 || process.started == 0) return false; /* ended before we looked */
    waitpid(process.pid, NULL, WNOHANG);                        /* reaps it if it was ours */
    return start_time(process.pid) == process.started;
}

daemon_process daemon_find(const char *state_dir, const char *name)
{
    char path[512];
    daemon_path(state_dir, name, "pid", path);
    daemon_process process = {0};
    int pid = 0;
    FILE *file = fopen(path, "re");
    if (!file) return process;
    if (fscanf(file, "%d %" SCNu64, &pid, &process.started) == 2 && pid > 0 && process.started > 0)
        process.pid = pid;
    fclose(file);
    if (!daemon_alive(process)) process.pid = 0;
    return process;
}

static status write_pid(const char *state_dir, const char *name, daemon_process process)
{
    char path[512];
    daemon_path(state_dir, name, "pid", path);
    FILE *file = fopen(path, "we");
    if (!file) return FAIL(IO, "%s: cannot be created: %s", path, strerror(errno));
    bool bad = fprintf(file, "%d %" PRIu64 "\n", (int)process.pid, process.started) < 0;
    bad |= fclose(file) != 0;
    if (bad) return FAIL(IO, "%s: cannot be written: %s", path, strerror(errno));
    return STATUS_OK;
}

/* The child: a session of its own, no signal blocked or ignored, output appended to its log. */
static int spawn(const char *program, char **argv, const char *log, pid_t *out_pid)
{
    posix_spawnattr_t attr;
    posix_spawn_file_actions_t files;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_setflags(&attr,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &all);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&files, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    int error = posix_spawnp(out_pid, program, &files, &attr, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    return error;
}

status daemon_start(const char *file, const cluster_config *config, const cluster_node *node,
                    daemon_process *out_process)
{
    char program[640], log[512];
    cli_find_program("shoal-kvstore", program, sizeof program);
    daemon_path(config->state_dir, node->name, "log", log);
    const char *words[] = {"shoal-kvstore", "--name", node->name, "--config", file, NULL};
    char *argv[sizeof words / sizeof *words];
    memcpy(argv, words, sizeof words); /* posix_spawn does not write them */
    unlink(log);
    pid_t pid = 0;
    int error = spawn(program, argv, log, &pid);
    if (error == ENOENT)
        return FAIL(IO, "shoal-kvstore is neither beside this program nor in PATH; build it or "
                        "install it there");
    if (error != 0) return FAIL(IO, "%s cannot be started: %s", program, strerror(error));
    daemon_process process = {.pid = pid, .started = start_time(pid)};
    status s = write_pid(config->state_dir, node->name, process);
    if (s != STATUS_OK) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return s;
    }
    *out_process = process;
    return STATUS_OK;
}

/* Until the process ends, at most `grace_ns`. True: it ended. */
static bool await_end(int pidfd, uint64_t grace_ns, bool heed_interrupt)
{
    uint64_t until = clock_now(&clock_monotonic) + grace_ns;
    struct pollfd one = {.fd = pidfd, .events = POLLIN};
    for (;;) {
        if (poll(&one, 1, 50) > 0) return true;
        if (clock_now(&clock_monotonic) >= until) return false;
        if (heed_interrupt && cli_interrupted()) return false;
    }
}

status daemon_stop(const char *state_dir, const char *name, uint64_t grace_ns, bool *out_killed)
{
    char path[512];
    daemon_path(state_dir, name, "pid", path);
    daemon_process process = daemon_find(state_dir, name);
    int pidfd = process.pid ? pidfd_open(process.pid, 0) : -1;
    bool killed = false;
    if (pidfd >= 0 && daemon_alive(process)) {
        pidfd_send_signal(pidfd, SIGTERM, NULL, 0);
        if (!await_end(pidfd, grace_ns, true)) {
            killed = true;
            pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
            if (!await_end(pidfd, 5000000000ull, false)) {
                close(pidfd);
                return FAIL(INTERNAL, "node %s (pid %d) does not end even when killed", name,
                            (int)process.pid);
            }
        }
        waitpid(process.pid, NULL, WNOHANG);
    }
    if (pidfd >= 0) close(pidfd);
    if (unlink(path) != 0 && errno != ENOENT)
        return FAIL(IO, "%s: cannot be removed: %s", path, strerror(errno));
    *out_killed = killed;
    return STATUS_OK;
}

void daemon_last_words(const char *state_dir, const char *name, char *out, size_t room)
{
    char path[512], line[512];
    daemon_path(state_dir, name, "log", path);
    out[0] = '\0';
    FILE *file = fopen(path, "re");
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0]) snprintf(out, room, "%.400s", line);
    }
    fclose(file);
}

status daemon_address_free(const cluster_node *node, const char *key, const char *address)
{
    char host[CLUSTER_ADDRESS_MAX];
    const char *colon = strrchr(address, ':');
    CHECK(colon != NULL);
    snprintf(host, sizeof host, "%.*s", (int)(colon - address), address);
    if (host[0] == '[')
        snprintf(host, sizeof host, "%.*s", (int)(colon - address - 2), address + 1);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    int error = getaddrinfo(host, colon + 1, &hints, &found);
    if (error != 0)
        return FAIL(INVALID, "node %s: %s: %s: %s", node->name, key, address, gai_strerror(error));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* listen too: with SO_REUSEADDR a bind alone may pass beside a bound, silent socket */
    bool bad = fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, 1) != 0;
    int why = errno;
    if (fd >= 0) close(fd);
    freeaddrinfo(found);
    if (bad && why == EADDRINUSE)
        return FAIL(IO,
                    "node %s: %s: %s is in use by another program; stop that, or choose another "
                    "port",
                    node->name, key, address);
    if (bad)
        return FAIL(IO, "node %s: %s: %s cannot be listened to: %s", node->name, key, address,
                    strerror(why));
    return STATUS_OK;
}
