/* A client that dies at the worst moment: it dialled a node, and the node opens its data connection
 * back to it.
 *
 * UCX's two ends tell each other where they listen for data, and one of them connects. Where that
 * is the node, the client may die between connect() and the first word on the connection. libc's
 * connect() is replaced here, for UCX too: it kills the client there, so that the moment is always
 * hit. UCX 1.13.1 with a connect() that blocks ends the process then (tcp_ep.c:478). */
#include "kvstore/transport.h"
#include "tests/test.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NODES_MAX = 50, DIALS = 2, DEATHS = 6 };

static struct {
    pid_t victim; /* > 0: dies as soon as we are connected to it */
    uint32_t deaths;
    bool blocked; /* a connect() that might have held the thread */
} callback;

int connect(int fd, const struct sockaddr *to, socklen_t bytes)
{
    if (callback.victim > 0) callback.blocked |= (fcntl(fd, F_GETFL) & O_NONBLOCK) == 0;
    int result = (int)syscall(SYS_connect, fd, to, bytes), why = errno;
    if (callback.victim > 0) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        (void)poll(&wait, 1, 1000);
        (void)kill(callback.victim, SIGKILL);
        (void)waitpid(callback.victim, NULL, 0);
        callback.victim = 0;
        callback.deaths++;
    }
    errno = why;
    return result;
}

typedef struct counts {
    uint32_t opened, closed;
} counts;

static void on_opened(void *owner, kv_peer peer)
{
    (void)peer;
    ((counts *)owner)->opened++;
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    (void)owner;
    (void)peer;
    (void)m;
}

static void on_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)owner;
    (void)peer;
    (void)cookie;
}

static void on_closed(void *owner, kv_peer peer, status why)
{
    (void)peer;
    (void)why;
    ((counts *)owner)->closed++;
}

static const kv_events events = {on_opened, on_message, on_sent, on_closed};

static bool until(kv_transport *t, const uint32_t *counter, uint32_t want)
{
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    while (*counter < want && clock_now(&clock_monotonic) < end)
        if (!t->ops->poll(t)) t->ops->wait(t, -1, 1000 * 1000);
    return *counter >= want;
}

static int victim_main(const char *address)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena *a = arena_create("victim");
    kv_transport *client;
    counts seen = {0};
    kv_peer peer;
    if (kv_transport_ucx_open(a, false, &client) != STATUS_OK) return 1;
    kv_transport_bind(client, &events, &seen);
    if (client->ops->dial(client, address, &peer) != STATUS_OK) return 1;
    (void)until(client, &seen.closed, 1);
    return 0;
}

static void dial_and_die(kv_transport *server, const char *address, counts *seen)
{
    uint32_t before = seen->opened;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_callback", "--victim", address, (char *)NULL);
        _exit(127);
    }
    callback.victim = pid;
    EXPECT(until(server, &seen->opened, before + 1));
    if (callback.victim > 0) { /* it was the client that connected */
        callback.victim = 0;
        EXPECT(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    }
    EXPECT(until(server, &seen->closed, seen->opened));
}

/* Which end connects depends on their ports, so a node of another port each time. */
TEST(a_client_that_dies_while_it_is_called_back_is_a_closed_connection)
{
    arena *a = arena_create("callback test");
    for (uint32_t i = 0; i < NODES_MAX && callback.deaths < DEATHS; i++) {
        kv_transport *server;
        counts seen = {0};
        char address[CLUSTER_ADDRESS_MAX];
        EXPECT(kv_transport_ucx_open(a, false, &server) == STATUS_OK);
        kv_transport_bind(server, &events, &seen);
        EXPECT(server->ops->listen(server, "127.0.0.1:0", address) == STATUS_OK);
        for (uint32_t k = 0; k < DIALS; k++)
            dial_and_die(server, address, &seen);
        kv_transport_close(server);
    }
    EXPECT_GE_U64(callback.deaths, DEATHS);
    EXPECT(!callback.blocked); /* the node's only thread waits for no client */
    arena_destroy(a);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--victim") == 0) return victim_main(argv[2]);
    return test_main(argc, argv);
}
