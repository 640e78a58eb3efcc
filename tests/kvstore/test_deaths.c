/* A peer that dies at the worst moment, whichever that is.
 *
 * libc's socket calls are replaced here, for UCX too, so that a test can let the other process die
 * right before the k-th call that this one makes on a socket, from the first word of a dial to
 * traffic both ways, or right after a connect(). UCX's two ends tell each other where they listen
 * for data, and either of them connects: the one of the lower address and port.
 *
 * UCX 1.13.1 with a connect() that blocks ends the process in the first test (tcp_ep.c:478). */
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

enum {
    NODES_MAX = 50,
    DIALS = 2,
    DEATHS = 6,
    CALLS_MAX = 160, /* of one end, until all was said when nobody dies */
    MESSAGES = 6,
    BODY_BYTES = 65536,
};

/* The victim is set before the transport's own thread can see it and only taken by one call. */
static struct {
    _Atomic pid_t victim;   /* > 0: dies when its time has come */
    atomic_uint calls_left; /* until it dies; 0: by connect() only */
    atomic_uint deaths;
    atomic_bool blocked; /* a connect() that might have held the thread */
} plan;

static void die(void)
{
    pid_t pid = atomic_exchange(&plan.victim, 0);
    if (pid <= 0) return;
    int saved = errno;
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    atomic_fetch_add(&plan.deaths, 1);
    errno = saved;
}

static void call(void)
{
    if (atomic_load(&plan.victim) <= 0 || atomic_load(&plan.calls_left) == 0) return;
    if (atomic_fetch_sub(&plan.calls_left, 1) == 1) die();
}

int connect(int fd, const struct sockaddr *to, socklen_t bytes)
{
    call();
    if (atomic_load(&plan.victim) <= 0) return (int)syscall(SYS_connect, fd, to, bytes);
    if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0) atomic_store(&plan.blocked, true);
    int result = (int)syscall(SYS_connect, fd, to, bytes), why = errno;
    if (atomic_load(&plan.calls_left) == 0) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        (void)poll(&wait, 1, 1000); /* connected, and no word said */
        die();
    }
    errno = why;
    return result;
}

int accept(int fd, struct sockaddr *from, socklen_t *bytes)
{
    call();
    return (int)syscall(SYS_accept, fd, from, bytes);
}

ssize_t send(int fd, const void *from, size_t bytes, int flags)
{
    call();
    return syscall(SYS_sendto, fd, from, bytes, flags, NULL, 0);
}

ssize_t recv(int fd, void *to, size_t bytes, int flags)
{
    call();
    return syscall(SYS_recvfrom, fd, to, bytes, flags, NULL, NULL);
}

/* ---- an end that answers each message with one, and a client that asks ------------------------
 */

typedef struct end {
    kv_transport *transport;
    kv_peer peer;
    uint32_t opened, closed, messages;
    bool answers;
} end;

static uint8_t body[BODY_BYTES];

static void questions(end *e)
{
    for (uint32_t i = 0; i < MESSAGES; i++) {
        kv_message m = {"question", 8, body, sizeof body, i};
        if (e->transport->ops->send(e->transport, e->peer, &m) != STATUS_OK) return;
    }
}

static void on_opened(void *owner, kv_peer peer)
{
    end *e = owner;
    e->opened++;
    e->peer = peer;
    if (!e->answers) questions(e);
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    end *e = owner;
    e->messages++;
    kv_message answer = {"answer", 6, body, m->body_bytes, 0};
    if (e->answers) (void)e->transport->ops->send(e->transport, peer, &answer);
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
    ((end *)owner)->closed++;
}

static const kv_events events = {on_opened, on_message, on_sent, on_closed, NULL};

static bool until(end *e, const uint32_t *counter, uint32_t want)
{
    uint64_t stop = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    while (*counter < want && clock_now(&clock_monotonic) < stop)
        if (!e->transport->ops->poll(e->transport))
            e->transport->ops->wait(e->transport, -1, 1000 * 1000);
    return *counter >= want;
}

/* Asks, gets its answers, and stays until it is killed. */
static int client_main(const char *address)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    end e = {.answers = false};
    kv_peer peer;
    if (kv_transport_ucx_open(arena_create("client"), false, &e.transport) != STATUS_OK) return 1;
    kv_transport_bind(e.transport, &events, &e);
    if (e.transport->ops->dial(e.transport, address, &peer) != STATUS_OK) return 1;
    (void)until(&e, &e.closed, 1);
    return 0;
}

static void node_open(arena *a, end *node, char address[CLUSTER_ADDRESS_MAX])
{
    *node = (end){.answers = true};
    EXPECT(kv_transport_ucx_open(a, false, &node->transport) == STATUS_OK);
    kv_transport_bind(node->transport, &events, node);
    EXPECT(node->transport->ops->listen(node->transport, "127.0.0.1:0", address) == STATUS_OK);
}

/* Says its address on standard output, answers, and stays until it is killed. */
static int node_main(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    end node;
    char address[CLUSTER_ADDRESS_MAX];
    node_open(arena_create("node"), &node, address);
    printf("%s\n", address);
    (void)fflush(stdout);
    (void)until(&node, &node.closed, 1);
    return 0;
}

static pid_t client_start(const char *address)
{
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_deaths", "--client", address, (char *)NULL);
        _exit(127);
    }
    return pid;
}

static pid_t node_start(char address[CLUSTER_ADDRESS_MAX])
{
    int out[2];
    EXPECT(pipe2(out, O_CLOEXEC) == 0);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        dup2(out[1], STDOUT_FILENO);
        execl("/proc/self/exe", "test_deaths", "--node", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *f = fdopen(out[0], "r");
    EXPECT(f != NULL && fgets(address, CLUSTER_ADDRESS_MAX, f) != NULL);
    address[strcspn(address, "\n")] = 0;
    fclose(f);
    return pid;
}

/* Until all was said or the victim died; it dies then at the latest. */
static bool victim_lives(end *e, pid_t pid)
{
    uint32_t before = e->messages;
    uint64_t stop = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    while (atomic_load(&plan.victim) > 0 && e->messages < before + MESSAGES &&
           clock_now(&clock_monotonic) < stop)
        if (!e->transport->ops->poll(e->transport))
            e->transport->ops->wait(e->transport, -1, 1000 * 1000);
    bool lived = atomic_exchange(&plan.victim, 0) > 0;
    if (lived) EXPECT(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    return lived;
}

/* Nobody is left: polled for a while, since a dial may be on its way that nobody waits for. */
static void expect_empty(end *node)
{
    for (uint32_t i = 0; i < 20; i++) {
        while (node->transport->ops->poll(node->transport))
            continue;
        node->transport->ops->wait(node->transport, -1, 100 * 1000);
    }
    EXPECT(until(node, &node->closed, node->opened));
}

TEST(a_client_that_dies_while_it_is_called_back_is_a_closed_connection)
{
    arena *a = arena_create("deaths");
    atomic_store(&plan.deaths, 0);
    atomic_store(&plan.calls_left, 0);
    for (uint32_t i = 0; i < NODES_MAX && atomic_load(&plan.deaths) < DEATHS; i++) {
        end node; /* of another port each time */
        char address[CLUSTER_ADDRESS_MAX];
        node_open(a, &node, address);
        for (uint32_t k = 0; k < DIALS; k++) {
            pid_t pid = client_start(address);
            atomic_store(&plan.victim, pid);
            (void)victim_lives(&node, pid);
            expect_empty(&node);
        }
        kv_transport_close(node.transport);
    }
    EXPECT_GE_U64(atomic_load(&plan.deaths), DEATHS);
    EXPECT(!atomic_load(&plan.blocked)); /* the node's only thread waits for no client */
    arena_destroy(a);
}

TEST(a_client_may_die_before_any_call_of_the_node_on_a_socket)
{
    arena *a = arena_create("deaths");
    uint32_t longest = 0;
    for (uint32_t i = 0; i < 4; i++) {
        end node;
        char address[CLUSTER_ADDRESS_MAX];
        bool lived = false;
        node_open(a, &node, address);
        for (uint32_t k = 1; k <= CALLS_MAX && !lived; k++) {
            atomic_store(&plan.calls_left, k);
            pid_t pid = client_start(address);
            atomic_store(&plan.victim, pid);
            lived = victim_lives(&node, pid);
            expect_empty(&node);
            if (k > longest) longest = k;
        }
        EXPECT(lived); /* the whole exchange was covered */
        kv_transport_close(node.transport);
    }
    printf("calls covered: %u\n", longest);
    EXPECT_GE_U64(longest, 10);
    arena_destroy(a);
}

TEST(a_node_may_die_before_any_call_of_its_client_on_a_socket)
{
    arena *a = arena_create("deaths");
    uint32_t longest = 0;
    for (uint32_t i = 0; i < 4; i++) {
        end client = {.answers = false};
        bool lived = false;
        EXPECT(kv_transport_ucx_open(a, false, &client.transport) == STATUS_OK);
        kv_transport_bind(client.transport, &events, &client);
        for (uint32_t k = 1; k <= CALLS_MAX && !lived; k++) {
            char address[CLUSTER_ADDRESS_MAX];
            kv_peer peer;
            pid_t pid = node_start(address);
            atomic_store(&plan.calls_left, k);
            atomic_store(&plan.victim, pid);
            (void)client.transport->ops->dial(client.transport, address, &peer);
            lived = victim_lives(&client, pid);
            expect_empty(&client);
            if (k > longest) longest = k;
        }
        EXPECT(lived);
        kv_transport_close(client.transport);
    }
    printf("calls covered: %u\n", longest);
    EXPECT_GE_U64(longest, 10);
    arena_destroy(a);
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--client") == 0) return client_main(argv[2]);
    if (argc == 2 && strcmp(argv[1], "--node") == 0) return node_main();
    return test_main(argc, argv);
}
