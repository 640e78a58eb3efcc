/* The control plane of a real node, asked over gRPC: what it says about itself agrees with what a
 * client did to it; drain, health, flags and the cluster's file. */
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/health.pb-c.h"
#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/kvstore/process.h"

enum { TIMEOUT_MS = 20000, PUTS = 40 };

static rpc_client *client;

static ProtobufCMessage *call(const char *method, const ProtobufCMessage *request,
                              const ProtobufCMessageDescriptor *type)
{
    ProtobufCMessage *reply = NULL;
    EXPECT_OK(rpc_client_call(client, method, request, type, TIMEOUT_MS, &reply));
    return reply;
}

static Shoal__V1__NodeStatus *status_ask(void)
{
    Shoal__V1__NodeStatusRequest ask = SHOAL__V1__NODE_STATUS_REQUEST__INIT;
    return (Shoal__V1__NodeStatus *)call("/shoal.v1.Node/Status", &ask.base,
                                         &shoal__v1__node_status__descriptor);
}

static Shoal__V1__NodeStats *stats_ask(void)
{
    Shoal__V1__NodeStatsRequest ask = SHOAL__V1__NODE_STATS_REQUEST__INIT;
    return (Shoal__V1__NodeStats *)call("/shoal.v1.Node/Stats", &ask.base,
                                        &shoal__v1__node_stats__descriptor);
}

static int health_ask(const char *service)
{
    Grpc__Health__V1__HealthCheckRequest ask = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    ask.service = (char *)(uintptr_t)service;
    ProtobufCMessage *m = call("/grpc.health.v1.Health/Check", &ask.base,
                               &grpc__health__v1__health_check_response__descriptor);
    int state = (int)((Grpc__Health__V1__HealthCheckResponse *)m)->status;
    protobuf_c_message_free_unpacked(m, NULL);
    return state;
}

static void open_all(node_process *n, store *s)
{
    node_spawn(n, "n0", NULL, NULL);
    store_open(s, n, 1, 1, true);
    EXPECT_OK(rpc_client_create(n->control, NULL, &client));
}

static void close_all(node_process *n, store *s)
{
    rpc_client_destroy(client);
    store_close(s);
    node_signal(n, SIGTERM);
    EXPECT_EQ_I64(node_reap(n), 0);
}

TEST(a_new_node_is_empty_and_says_who_it_is)
{
    node_process n;
    node_spawn(&n, "n0", NULL, NULL);
    EXPECT_OK(rpc_client_create(n.control, NULL, &client));
    Shoal__V1__NodeStatus *m = status_ask();
    EXPECT_EQ_STR(m->name, "n0");
    EXPECT_EQ_STR(m->data_address, n.data);
    EXPECT(m->state == SHOAL__V1__NODE_STATE__NODE_STATE_SERVING && m->incarnation != 0);
    EXPECT(m->protocol == PROTO_VERSION && m->n_layout == 0 && m->capacity->slot_bytes == 0);
    EXPECT_EQ_U64(m->capacity->memory_bytes, UINT64_C(128) << 20);
    EXPECT(m->connections == 0 && m->contexts == 0 && m->uptime_ms < 60000);
    shoal__v1__node_status__free_unpacked(m, NULL);
    rpc_client_destroy(client);
    node_signal(&n, SIGTERM);
    EXPECT_EQ_I64(node_reap(&n), 0);
}

TEST(status_and_stats_agree_with_what_a_client_did)
{
    node_process n;
    store s;
    open_all(&n, &s);
    EXPECT_EQ_U64(store_put_all(&s, 1, PUTS), PUTS);
    EXPECT_EQ_U64(store_get_all(&s, 1, PUTS, 8, NULL), PUTS);
    EXPECT_EQ_U64(store_get_all(&s, 2, 8, 8, NULL), 0);
    Shoal__V1__NodeStatus *m = status_ask();
    EXPECT(m->n_layout == 1 && m->layout[0] == layout_hash(&s.layout));
    EXPECT(m->contexts == 1 && m->connections == 1);
    EXPECT_EQ_U64(m->capacity->slot_bytes, s.block_bytes);
    EXPECT_EQ_U64(m->capacity->slots_used, PUTS);
    EXPECT_EQ_U64(m->capacity->used_bytes, (uint64_t)PUTS * s.block_bytes);
    EXPECT_EQ_U64(m->capacity->slots_free + m->capacity->slots_used, m->capacity->slots);
    shoal__v1__node_status__free_unpacked(m, NULL);
    Shoal__V1__NodeStats *t = stats_ask();
    EXPECT(t->puts == PUTS && t->puts_stored == PUTS && t->hits == PUTS && t->misses == 8);
    EXPECT_EQ_U64(t->gets, PUTS + 8);
    EXPECT_EQ_U64(t->bytes_stored, (uint64_t)PUTS * s.block_bytes);
    EXPECT_EQ_U64(t->bytes_served, (uint64_t)PUTS * s.block_bytes);
    EXPECT_EQ_U64(t->n_classes, KV_CLASSES);
    EXPECT_EQ_U64(t->classes[KV_WRITE_BACK]->blocks_ok, PUTS);
    EXPECT_EQ_U64(t->classes[KV_DEMAND]->blocks_ok, PUTS);
    EXPECT_EQ_U64(t->classes[KV_DEMAND]->blocks_failed, 8);
    EXPECT(t->connections == 1 && t->connections_total == 1 && t->corrupt == 0);
    shoal__v1__node_stats__free_unpacked(t, NULL);
    close_all(&n, &s);
}

TEST(asking_does_not_drain_and_draining_refuses_puts_but_serves)
{
    node_process n;
    store s;
    open_all(&n, &s);
    EXPECT_EQ_U64(store_put_all(&s, 1, 4), 4);
    for (uint32_t i = 0; i < 3; i++) {
        shoal__v1__node_stats__free_unpacked(stats_ask(), NULL);
        Shoal__V1__NodeStatus *m = status_ask();
        EXPECT(m->state == SHOAL__V1__NODE_STATE__NODE_STATE_SERVING);
        shoal__v1__node_status__free_unpacked(m, NULL);
    }
    EXPECT_EQ_U64(store_put_all(&s, 2, 4), 4);
    EXPECT_EQ_I64(health_ask(""), 1);
    EXPECT_EQ_I64(health_ask("shoal.v1.Node"), 1);
    Shoal__V1__NodeDrainRequest drain = SHOAL__V1__NODE_DRAIN_REQUEST__INIT;
    drain.reason = (char *)(uintptr_t) "a test";
    ProtobufCMessage *m =
        call("/shoal.v1.Node/Drain", &drain.base, &shoal__v1__node_drain_reply__descriptor);
    EXPECT(((Shoal__V1__NodeDrainReply *)m)->state == SHOAL__V1__NODE_STATE__NODE_STATE_DRAINING);
    protobuf_c_message_free_unpacked(m, NULL);
    EXPECT_EQ_I64(health_ask(""), 2);
    EXPECT_EQ_I64(health_ask("shoal.v1.Node"), 2);
    EXPECT_EQ_U64(store_get_all(&s, 1, 4, 4, NULL), 4);
    EXPECT_EQ_U64(store_put_all(&s, 3, 1), 0);
    close_all(&n, &s);
}

TEST(a_terminated_node_answers_what_it_was_asked_before_it_ends)
{
    static uint8_t bytes[1 << 20];
    node_process n;
    store s;
    kv_done done;
    kv_ticket ticket;
    node_spawn(&n, "n0", NULL, "delay=400ms");
    store_open(&s, &n, 1, 1, true);
    EXPECT_OK(rpc_client_create(n.control, NULL, &client));
    uint64_t now = clock_now(&clock_monotonic), give_up = now + UINT64_C(5000000000), seen = 0;
    block_id id = store_id(&s, 1, 0);
    EXPECT(s.block_bytes <= sizeof bytes);
    kv_put put = {id, bytes, block_digest(&id, bytes, s.block_bytes), KV_WRITE_BACK, give_up};
    EXPECT_OK(kv_put_submit(s.client, &put, &ticket));
    bool ended = false; /* a busy machine may be late here: that shows nothing */
    while (!ended && seen == 0 && clock_now(&clock_monotonic) < give_up) {
        ended = store_next(&s, 0, &done);
        Shoal__V1__NodeStats *t = stats_ask();
        seen = t->classes[KV_WRITE_BACK]->requests;
        shoal__v1__node_stats__free_unpacked(t, NULL);
    }
    rpc_client_destroy(client); /* nobody holds the control plane open */
    node_signal(&n, SIGTERM);
    EXPECT(ended || (seen == 1 && store_next(&s, UINT64_C(5000000000), &done)));
    EXPECT_STATUS(done.result, STATUS_OK);
    EXPECT_EQ_I64(node_reap(&n), 0);
    store_close(&s);
}

static int watch_read(rpc_stream *stream)
{
    ProtobufCMessage *m = NULL;
    EXPECT_OK(rpc_stream_read(stream, &m));
    int state = (int)((Grpc__Health__V1__HealthCheckResponse *)m)->status;
    protobuf_c_message_free_unpacked(m, NULL);
    return state;
}

static void watch_the_end(void)
{
    node_process n;
    rpc_stream *stream;
    ProtobufCMessage *m = NULL;
    Grpc__Health__V1__HealthCheckRequest ask = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    node_spawn(&n, "n0", NULL, NULL);
    EXPECT_OK(rpc_client_create(n.control, NULL, &client));
    EXPECT_OK(rpc_stream_open(client, "/grpc.health.v1.Health/Watch", &ask.base,
                              &grpc__health__v1__health_check_response__descriptor, TIMEOUT_MS,
                              &stream));
    EXPECT_EQ_I64(watch_read(stream), 1);
    node_signal(&n, SIGTERM);
    EXPECT_EQ_I64(watch_read(stream), 2);
    EXPECT_STATUS(rpc_stream_read(stream, &m), STATUS_UNREACHABLE);
    rpc_stream_close(stream);
    rpc_client_destroy(client);
    EXPECT_EQ_I64(node_reap(&n), 0);
}

TEST(who_watches_a_node_hears_that_it_ends_before_it_does)
{
    for (uint32_t i = 0; i < 5; i++) /* a node that does not wait is often fast enough */
        watch_the_end();
}

/* What the program says there, in `text`; its exit code. */
static int said(const char *flags, const char *redirect, char text[4096])
{
    char command[256];
    snprintf(command, sizeof command, "timeout 20 %s/bin/shoal-kvstore %s %s", TEST_BINARY_DIR,
             flags, redirect);
    FILE *f = popen(command, "r");
    EXPECT(f != NULL);
    text[fread(text, 1, 4095, f)] = 0;
    int code = pclose(f);
    EXPECT(WIFEXITED(code));
    return WEXITSTATUS(code);
}

TEST(a_wrong_flag_is_told_where_help_is_and_a_wrong_value_what_it_is)
{
    char text[4096];
    EXPECT_EQ_I64(said("--frobnicate", "2>&1 >/dev/null", text), 2);
    EXPECT_HAS_STR(text, "--help");
    EXPECT_EQ_I64(said("--name a --connections 0", "2>&1 >/dev/null", text), 2);
    EXPECT(strstr(text, "--help") == NULL);
}

TEST(help_and_version_are_said_on_stdout_and_end_well)
{
    static const struct {
        const char *flags, *said;
    } rows[] = {
        {"--help", "Usage: shoal-kvstore"},
        {"--version", "shoal-kvstore "},
    };
    for (uint32_t i = 0; i < 2; i++) {
        char text[4096];
        EXPECT_EQ_I64(said(rows[i].flags, "", text), 0);
        EXPECT_HAS_STR(text, rows[i].said);
    }
}

/* shoal-kvstore with these flags, up to its ready line. */
static void spawn_with(node_process *n, const char *name, const char *file)
{
    int out[2];
    char line[512] = "";
    EXPECT(pipe(out) == 0);
    n->pid = fork();
    EXPECT(n->pid >= 0);
    if (n->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        execl(TEST_BINARY_DIR "/bin/shoal-kvstore", "shoal-kvstore", "--name", name, "--config",
              file, "--memory", "16MiB", "--log-level", "error", (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    FILE *f = fdopen(out[0], "r");
    EXPECT(f != NULL);
    if (fgets(line, sizeof line, f) == NULL) line[0] = 0;
    fclose(f);
    if (sscanf(line, "ready name=%*s data=%95s control=%95s", n->data, n->control) != 2)
        n->data[0] = 0;
}

TEST(the_file_of_the_cluster_names_a_nodes_addresses)
{
    char path[600];
    node_process taken, spare, mine = {.pid = 0};
    node_spawn(&taken, "n0", NULL, NULL); /* its port is for the row of another name */
    node_spawn(&spare, "n1", NULL, NULL); /* its ports are free again */
    node_signal(&spare, SIGTERM);
    EXPECT_EQ_I64(node_reap(&spare), 0);
    snprintf(path, sizeof path, "%s/cluster.yaml", test_dir());
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL);
    fprintf(f,
            "replicas: 1\nnodes:\n  - name: other\n    data: %s\n    control: %s\n"
            "    domain: d0\n  - name: mine\n    data: %s\n    control: %s\n    domain: d1\n",
            taken.data, taken.control, spare.data, spare.control);
    fclose(f);
    spawn_with(&mine, "mine", path);
    EXPECT_MSG(mine.data[0] != 0, "it did not start");
    EXPECT_OK(rpc_client_create(mine.control, NULL, &client));
    Shoal__V1__NodeStatus *m = status_ask();
    EXPECT_EQ_STR(m->name, "mine");
    EXPECT_EQ_U64(m->capacity->memory_bytes, 16 << 20);
    EXPECT(m->epoch > 0);
    shoal__v1__node_status__free_unpacked(m, NULL);
    rpc_client_destroy(client);
    node_signal(&mine, SIGTERM);
    EXPECT_EQ_I64(node_reap(&mine), 0);
    spawn_with(&mine, "nobody", path);
    EXPECT_EQ_I64(node_reap(&mine), 2);
    node_signal(&taken, SIGTERM);
    EXPECT_EQ_I64(node_reap(&taken), 0);
}

/* Whether each thread of the process was seen asleep in this look. */
static bool all_asleep(pid_t pid)
{
    char path[128], line[256] = "";
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *tasks = opendir(path);
    bool asleep = tasks != NULL;
    for (struct dirent *d; asleep && (d = readdir(tasks)) != NULL;) {
        if (d->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.16s/stat", (int)pid, d->d_name);
        FILE *f = fopen(path, "r");
        if (f == NULL) continue; /* it has ended */
        if (fgets(line, sizeof line, f) == NULL) line[0] = 0;
        fclose(f);
        const char *behind = strrchr(line, ')');
        asleep = behind != NULL && behind[1] == ' ' && behind[2] == 'S';
    }
    if (tasks != NULL) closedir(tasks);
    return asleep;
}

/* It sleeps at some moment within five seconds: three looks in a row say so, since who spins may
 * wait for a lock for an instant. */
static bool sleeps(const node_process *n, uint32_t looks)
{
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(5000000000);
    uint32_t row = 0;
    for (uint32_t i = 0; row < 3 && i < looks && clock_now(&clock_monotonic) < end; i++)
        row = all_asleep(n->pid) ? row + 1 : 0;
    return row == 3;
}

TEST(a_node_sleeps_while_nobody_asks_it_unless_the_file_says_that_it_spins)
{
    char path[600];
    node_process still, spins = {.pid = 0};
    node_spawn(&still, "n0", NULL, NULL);
    EXPECT(sleeps(&still, UINT32_MAX));
    node_signal(&still, SIGTERM);
    EXPECT_EQ_I64(node_reap(&still), 0);
    snprintf(path, sizeof path, "%s/cluster.yaml", test_dir());
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL);
    fprintf(f,
            "replicas: 1\nworker:\n  spin: true\nnodes:\n  - name: n0\n    data: %s\n"
            "    control: %s\n    domain: d0\n",
            still.data, still.control);
    fclose(f);
    spawn_with(&spins, "n0", path);
    EXPECT_MSG(spins.data[0] != 0, "it did not start");
    EXPECT(!sleeps(&spins, 2000));
    node_signal(&spins, SIGTERM);
    EXPECT_EQ_I64(node_reap(&spins), 0);
}

TEST_MAIN()
