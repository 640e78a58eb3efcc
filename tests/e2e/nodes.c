#include "tests/e2e/nodes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/test.h"

static struct {
    uint32_t count;
    pid_t pid[NODES_MAX];
    cluster_node node[NODES_MAX];
    char memory[32], faults[128];
    nodes_site site; /* config_path NULL: loopback */
    cluster_config config;
} all;

/* Below the ports that the kernel gives to outgoing connections (from 32768 on), so that none of
 * those can take it before the node has it. */
static uint16_t free_port(void)
{
    enum { FIRST = 12000, PORTS = 20000 };
    static uint32_t tried;
    for (uint32_t i = 0; i < PORTS; i++) {
        uint16_t port = (uint16_t)(FIRST + ((uint32_t)getpid() * 37 + tried++) % PORTS);
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in a = {.sin_family = AF_INET,
                                .sin_port = htons(port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        EXPECT(fd >= 0);
        bool free = bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
        close(fd);
        if (free) return port;
    }
    EXPECT_MSG(false, "%s", "no port is free");
    return 0;
}

static void run_node(uint32_t i, int out)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no node outlives a crashed test */
    dup2(out, STDOUT_FILENO);
    char path[512];
    snprintf(path, sizeof path, "%s/bin/shoal-kvstore", TEST_BINARY_DIR);
    const cluster_node *n = &all.node[i];
    const char *argv[] = {path,        "--name",   n->name,    "--listen", n->data,
                          "--control", n->control, "--memory", all.memory, "--log-level",
                          "error",     NULL,       NULL,       NULL};
    const char *there[] = {path,          "--name", n->name, "--config", all.site.config_path,
                           "--log-level", "error",  NULL,    NULL,       NULL};
    bool away = all.site.config_path != NULL;
    if (all.faults[0] != 0 && (!away || (all.site.faulty >> i & 1) != 0)) {
        *(away ? &there[7] : &argv[11]) = "--fault";
        *(away ? &there[8] : &argv[12]) = all.faults;
    }
    if (away) all.site.enter(i);
    execv(path, (char *const *)(away ? there : argv));
    _exit(127);
}

/* Start and wait for the line that says it serves. */
static void start(uint32_t i)
{
    int pipe_fd[2];
    EXPECT(pipe2(pipe_fd, O_CLOEXEC) == 0);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) run_node(i, pipe_fd[1]);
    close(pipe_fd[1]);
    all.pid[i] = pid;
    char line[512] = "";
    size_t have = 0;
    while (strstr(line, "ready") == NULL || strchr(line, '\n') == NULL) {
        struct pollfd p = {.fd = pipe_fd[0], .events = POLLIN};
        EXPECT_MSG(poll(&p, 1, 20000) == 1, "node %u is not ready after 20 s", i);
        ssize_t got = read(pipe_fd[0], line + have, sizeof line - 1 - have);
        EXPECT_MSG(got > 0, "node %u ended before it was ready", i);
        have += (size_t)got;
        line[have] = 0;
    }
    close(pipe_fd[0]);
}

void nodes_start(uint32_t count, uint32_t replicas, const char *memory, const char *faults,
                 cluster_config *out_config)
{
    EXPECT(count <= NODES_MAX);
    memset(&all, 0, sizeof all);
    all.count = count;
    snprintf(all.memory, sizeof all.memory, "%s", memory);
    snprintf(all.faults, sizeof all.faults, "%s", faults == NULL ? "" : faults);
    cluster_config_default(out_config);
    out_config->map.replicas = replicas;
    out_config->map.epoch = 1;
    out_config->map.node_count = count;
    for (uint32_t i = 0; i < count; i++) {
        cluster_node *n = &all.node[i];
        *n = (cluster_node){.weight = 1, .alive = true};
        snprintf(n->name, sizeof n->name, "n%u", i);
        snprintf(n->domain, sizeof n->domain, "d%u", i);
        snprintf(n->data, sizeof n->data, "127.0.0.1:%u", free_port());
        snprintf(n->control, sizeof n->control, "127.0.0.1:%u", free_port());
        out_config->map.node[i] = *n;
        start(i);
    }
}

void nodes_start_at(const nodes_site *site, const char *faults)
{
    memset(&all, 0, sizeof all);
    all.site = *site;
    snprintf(all.faults, sizeof all.faults, "%s", faults == NULL ? "" : faults);
    EXPECT_OK(cluster_config_load(site->config_path, &all.config));
    all.count = all.config.map.node_count;
    EXPECT(all.count <= NODES_MAX);
    memcpy(all.node, all.config.map.node, all.count * sizeof all.node[0]);
    for (uint32_t i = 0; i < all.count; i++)
        start(i);
}

pid_t nodes_pid(uint32_t i)
{
    return all.pid[i];
}

void nodes_signal(uint32_t i, int signal)
{
    EXPECT(i < all.count && all.pid[i] > 0 && kill(all.pid[i], signal) == 0);
}

void nodes_kill(uint32_t i)
{
    nodes_signal(i, SIGKILL);
    EXPECT(waitpid(all.pid[i], NULL, 0) == all.pid[i]);
    all.pid[i] = 0;
}

void nodes_restart(uint32_t i)
{
    if (all.pid[i] > 0) nodes_kill(i);
    start(i);
}

status nodes_count_one(uint32_t i, uint32_t timeout_ms, node_counts *out_counts)
{
    const cluster_config *c = &all.config;
    const rpc_tls tls = {c->tls_authority, c->tls_certificate, c->tls_key};
    rpc_client *client;
    TRY(rpc_client_create(all.node[i].control, c->tls_key[0] != 0 ? &tls : NULL, &client));
    Shoal__V1__NodeStatsRequest request = SHOAL__V1__NODE_STATS_REQUEST__INIT;
    struct ProtobufCMessage *reply;
    status s = rpc_client_call(client, "/shoal.v1.Node/Stats", (struct ProtobufCMessage *)&request,
                               &shoal__v1__node_stats__descriptor, timeout_ms, &reply);
    rpc_client_destroy(client);
    if (s != STATUS_OK) return s;
    const Shoal__V1__NodeStats *stats = (const Shoal__V1__NodeStats *)reply;
    node_counts counts = {.corrupt = stats->corrupt,
                          .misses = stats->misses,
                          .connections = stats->connections,
                          .contexts = stats->contexts};
    for (size_t k = 0; k < stats->n_classes; k++) {
        const Shoal__V1__NodeClassStats *class = stats->classes[k];
        bool write = class->traffic_class == SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_WRITE_BACK ||
                     class->traffic_class == SHOAL__V1__TRAFFIC_CLASS__TRAFFIC_REPAIR;
        *(write ? &counts.stored : &counts.served) += class->blocks_ok;
    }
    protobuf_c_message_free_unpacked(reply, NULL);
    *out_counts = counts;
    return STATUS_OK;
}

void nodes_counts(node_counts *out_sum)
{
    *out_sum = (node_counts){0};
    for (uint32_t i = 0; i < all.count; i++) {
        node_counts one;
        if (all.pid[i] == 0) continue;
        EXPECT_MSG(nodes_count_one(i, 5000, &one) == STATUS_OK, "node %u does not answer: %s", i,
                   log_last_error());
        out_sum->served += one.served;
        out_sum->stored += one.stored;
        out_sum->corrupt += one.corrupt;
        out_sum->misses += one.misses;
        out_sum->connections += one.connections;
        out_sum->contexts += one.contexts;
    }
}

void nodes_stop(void)
{
    for (uint32_t i = 0; i < all.count; i++) {
        if (all.pid[i] == 0) continue;
        kill(all.pid[i], SIGCONT);
        kill(all.pid[i], SIGTERM);
        int how = 0;
        EXPECT(waitpid(all.pid[i], &how, 0) == all.pid[i]);
        EXPECT_MSG(WIFEXITED(how) && WEXITSTATUS(how) == 0, "node %u ended with status 0x%x", i,
                   how);
        all.pid[i] = 0;
    }
}
