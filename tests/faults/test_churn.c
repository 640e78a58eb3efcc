/* Clients that come and go: after thousands that were killed or torn down in the middle of their
 * traffic, a node has the descriptors, threads, connections, contexts and slots that it had, its
 * memory grew by no more than a tolerance, and it serves.
 *
 * A cycle is a client that dials, greets, puts and asks, and ends wherever it happens to be. Most
 * are cheap: in this process, torn down. Some are dear: a process of its own that ends by SIGKILL,
 * half of them between two turns of its loop, half wherever a timer of the kernel finds them, UCX's
 * own steps included; a few of those run at the same time. Where a cycle ends is drawn from the
 * seed.
 *
 * --cycles N (default 1000), --killed-each N (each N-th is a killed process; default 20, 1: all),
 * --parallel N (processes at a time, default 4), --json FILE. The long one, a few minutes:
 * test_churn --cycles 10000 --killed-each 1 */
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/rpc.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/faults/record.h"
#include "tests/kvstore/process.h"

enum {
    WARM = 50,   /* cycles before the first look: pools and caches are filled then */
    BLOCKS = 16, /* a client's */
    FILLS = 64,  /* as many are the slots of the node */
    TURNS_MAX = 60,
    LIFE_US_MAX = 30000, /* from the start of its process: UCX's takes about a third */
    PATIENCE_MS = 20000,
    MEMORY_KIB_MAX = 2048, /* growth of the node's resident memory, all cycles together */
};
static uint64_t cycles = 1000, killed_each = 20, parallel = 4;
static const char *json_path;

typedef struct look {
    uint64_t fds, threads, resident_kib; /* of /proc */
    uint64_t connections, contexts, slots_free, slots_used, slots_reserved, slots_quarantined;
    uint64_t connections_total;
} look;

/* ---- looking at a node ----------------------------------------------------------------------- */

static uint64_t entries(const char *format, pid_t pid)
{
    char path[64];
    uint64_t count = 0;
    snprintf(path, sizeof path, format, (int)pid);
    DIR *d = opendir(path);
    EXPECT(d != NULL);
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d))
        count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

static uint64_t resident_kib(pid_t pid)
{
    char path[64], line[128];
    unsigned long long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    EXPECT(f != NULL);
    while (fgets(line, sizeof line, f) != NULL)
        (void)sscanf(line, "VmRSS: %llu", &kib);
    fclose(f);
    EXPECT(kib > 0);
    return kib;
}

static struct ProtobufCMessage *ask(rpc_client *client, const char *method,
                                    const struct ProtobufCMessage *request,
                                    const struct ProtobufCMessageDescriptor *reply_type)
{
    struct ProtobufCMessage *reply;
    EXPECT_OK(rpc_client_call(client, method, request, reply_type, 5000, &reply));
    return reply;
}

static look look_at(const node_process *n, rpc_client *client)
{
    Shoal__V1__NodeStatusRequest want_status = SHOAL__V1__NODE_STATUS_REQUEST__INIT;
    Shoal__V1__NodeStatsRequest want_stats = SHOAL__V1__NODE_STATS_REQUEST__INIT;
    Shoal__V1__NodeStatus *now = (Shoal__V1__NodeStatus *)ask(
        client, "/shoal.v1.Node/Status", &want_status.base, &shoal__v1__node_status__descriptor);
    Shoal__V1__NodeStats *stats = (Shoal__V1__NodeStats *)ask(
        client, "/shoal.v1.Node/Stats", &want_stats.base, &shoal__v1__node_stats__descriptor);
    look l = {
        .fds = entries("/proc/%d/fd", n->pid),
        .threads = entries("/proc/%d/task", n->pid),
        .resident_kib = resident_kib(n->pid),
        .connections = stats->connections,
        .connections_total = stats->connections_total,
        .contexts = stats->contexts,
        .slots_free = now->capacity->slots_free,
        .slots_used = now->capacity->slots_used,
        .slots_reserved = now->capacity->slots_reserved,
        .slots_quarantined = now->capacity->slots_quarantined,
    };
    protobuf_c_message_free_unpacked(&now->base, NULL);
    protobuf_c_message_free_unpacked(&stats->base, NULL);
    return l;
}

/* Leases end, broken connections are noticed: until nobody is left. */
static look look_when_quiet(const node_process *n, rpc_client *client)
{
    look l = {.connections = 1};
    for (int waited = 0; waited < PATIENCE_MS; waited += 50) {
        l = look_at(n, client);
        if (l.connections + l.contexts + l.slots_used + l.slots_reserved + l.slots_quarantined == 0)
            break;
        (void)poll(NULL, 0, 50);
    }
    return l;
}

/* ---- a client that does not live long -------------------------------------------------------- */

typedef struct victim {
    arena *memory;
    cluster_config config;
    kv_transport *transport;
    kv_client *client;
    uint8_t bytes[32768];
} victim;

static const block_layout layout = {64, 128, 2, 4, 2, 99};

static victim *victim_open(const node_process *n, uint64_t seed)
{
    arena *a = arena_create("victim");
    victim *v = ARENA_NEW(a, victim, 1);
    v->memory = a;
    cluster_config_default(&v->config);
    v->config.lease_ns = 200000000;
    v->config.map = (cluster_map){.epoch = 1, .replicas = 1, .node_count = 1};
    cluster_node *to = &v->config.map.node[0];
    *to = (cluster_node){.weight = 1, .alive = true};
    snprintf(to->name, sizeof to->name, "%s", n->name);
    snprintf(to->data, sizeof to->data, "%s", n->data);
    snprintf(to->domain, sizeof to->domain, "d");
    EXPECT_EQ_U64(block_layout_bytes(&layout), sizeof v->bytes);
    v->config.tcp = n->tcp;
    EXPECT_OK(kv_transport_open(a, &v->config, NULL, false, &v->transport));
    kv_client_config config = {
        .memory = a,
        .transport = v->transport,
        .clock = clock_monotonic,
        .seed = seed,
        .layout = layout,
        .config = &v->config,
        .landing = arena_alloc(a, (size_t)BLOCKS * sizeof v->bytes, 4096),
        .landing_slots = BLOCKS,
        .verify = true,
    };
    v->config.inflight_max[KV_DEMAND] = v->config.inflight_max[KV_WRITE_BACK] = BLOCKS;
    EXPECT_OK(kv_client_create(&config, &v->client));
    return v;
}

static void victim_close(victim *v)
{
    kv_client_destroy(v->client);
    kv_transport_close(v->transport);
    arena_destroy(v->memory);
}

/* Put blocks and read them back for `turns` turns of its loop, or until all is done, which it says.
 * Who has all turns has all the time that a busy machine takes, too. */
static bool victim_live(victim *v, uint64_t seed, uint64_t turns)
{
    block_id id[BLOCKS];
    uint64_t digest[BLOCKS];
    uint32_t put = 0, stored = 0;
    uint64_t patience_ns = turns == UINT64_MAX ? 60000000000u : 200000000u;
    bool asked = false;
    memset(v->bytes, (int)seed, sizeof v->bytes);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        id[i] = (block_id){.context = {seed, ~seed}, .layout = layout_hash(&layout), .block = i};
        digest[i] = block_digest(&id[i], v->bytes, sizeof v->bytes);
    }
    for (uint64_t turn = 0; turn < turns; turn++) {
        uint64_t now = clock_now(&clock_monotonic);
        kv_ticket ticket;
        kv_done done;
        kv_client_poll(v->client);
        while (put < BLOCKS) {
            kv_put p = {id[put], v->bytes, digest[put], KV_WRITE_BACK, now + 10 * patience_ns};
            if (kv_put_submit(v->client, &p, &ticket) != STATUS_OK) break;
            put++;
        }
        while (kv_client_next(v->client, &done)) {
            stored += done.kind == KV_KIND_PUT && done.result == STATUS_OK;
            if (done.kind != KV_KIND_GET) continue;
            for (uint32_t i = 0; i < done.count; i++)
                if (done.slot[i] >= 0) kv_slot_release(v->client, done.slot[i]);
            return done.result == STATUS_OK;
        }
        kv_get g = {id, digest, BLOCKS, KV_DEMAND, now + patience_ns, false};
        if (stored == BLOCKS && !asked) asked = kv_get_submit(v->client, &g, &ticket) == STATUS_OK;
        kv_client_wait(v->client, -1, now + 1000000);
    }
    return false;
}

/* In processes of their own, which end by SIGKILL with everything open. */
static uint64_t running;

static void victim_await(const node_process *n)
{
    int how;
    pid_t pid = waitpid(-1, &how, 0);
    EXPECT_MSG(pid != n->pid, "the node ended with 0x%x", how);
    EXPECT_MSG(pid > 0 && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL, "a victim ended with 0x%x",
               how);
    running--;
}

/* life_us 0: it kills itself after so many turns. */
static void victim_start(const node_process *n, uint64_t seed, uint64_t turns, uint64_t life_us)
{
    char seed_text[24], turns_text[24], life_text[24];
    snprintf(seed_text, sizeof seed_text, "%llu", (unsigned long long)seed);
    snprintf(turns_text, sizeof turns_text, "%llu", (unsigned long long)turns);
    snprintf(life_text, sizeof life_text, "%llu", (unsigned long long)life_us);
    if (running >= parallel) victim_await(n);
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/proc/self/exe", "test_churn", "--victim", n->name, n->data, seed_text, turns_text,
              life_text, (char *)NULL);
        _exit(127);
    }
    running++;
}

static int victim_main(char **argv)
{
    node_process n = {.pid = 0};
    snprintf(n.name, sizeof n.name, "%s", argv[2]);
    snprintf(n.data, sizeof n.data, "%s", argv[3]);
    uint64_t seed = strtoull(argv[4], NULL, 10), life_us = strtoull(argv[6], NULL, 10);
    struct sigevent kill_me = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec when = {.it_value = {.tv_nsec = (long)life_us * 1000}};
    timer_t timer;
    CHECK(life_us <= LIFE_US_MAX && timer_create(CLOCK_MONOTONIC, &kill_me, &timer) == 0);
    CHECK(timer_settime(timer, 0, &when, NULL) == 0);
    victim *v = victim_open(&n, seed);
    (void)victim_live(v, seed, life_us > 0 ? UINT64_MAX : strtoull(argv[5], NULL, 10));
    if (life_us == 0) return raise(SIGKILL);
    for (;;) /* all is done: it stays connected until the timer kills it */
        kv_client_poll(v->client);
}

/* ---- the test -------------------------------------------------------------------------------- */

static void report(const look *before, const look *after, uint64_t killed, double seconds)
{
    printf("%llu cycles, %llu of them killed processes, %.0f s: fds %llu -> %llu, threads %llu -> "
           "%llu, RSS %llu -> %llu KiB, connections %llu -> %llu (%llu in all), slots free %llu -> "
           "%llu\n",
           (unsigned long long)cycles, (unsigned long long)killed, seconds,
           (unsigned long long)before->fds, (unsigned long long)after->fds,
           (unsigned long long)before->threads, (unsigned long long)after->threads,
           (unsigned long long)before->resident_kib, (unsigned long long)after->resident_kib,
           (unsigned long long)before->connections, (unsigned long long)after->connections,
           (unsigned long long)after->connections_total, (unsigned long long)before->slots_free,
           (unsigned long long)after->slots_free);
    FILE *file = json_path != NULL ? fopen(json_path, "a") : NULL;
    if (file == NULL) return;
    char stamp[512];
    record_stamp(stamp, sizeof stamp);
    fprintf(file,
            "{\"schema\":\"shoal.churn/1\",\"cycles\":%llu,\"killed\":%llu,\"parallel\":%llu,"
            "\"seconds\":%.1f,"
            "\"fds\":[%llu,%llu],\"threads\":[%llu,%llu],\"rss_kib\":[%llu,%llu],"
            "\"connections\":[%llu,%llu],\"connections_total\":%llu,\"contexts\":[%llu,%llu],"
            "\"slots_free\":[%llu,%llu],\"seed\":%llu,%s}\n",
            (unsigned long long)cycles, (unsigned long long)killed, (unsigned long long)parallel,
            seconds, (unsigned long long)before->fds, (unsigned long long)after->fds,
            (unsigned long long)before->threads, (unsigned long long)after->threads,
            (unsigned long long)before->resident_kib, (unsigned long long)after->resident_kib,
            (unsigned long long)before->connections, (unsigned long long)after->connections,
            (unsigned long long)after->connections_total, (unsigned long long)before->contexts,
            (unsigned long long)after->contexts, (unsigned long long)before->slots_free,
            (unsigned long long)after->slots_free, (unsigned long long)test_seed(), stamp);
    EXPECT(fclose(file) == 0);
}

static uint64_t churn(const node_process *n, rng *random, uint64_t count)
{
    uint64_t killed = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t seed = rng_next(random) | 1, turns = rng_below(random, TURNS_MAX);
        uint64_t life_us = rng_below(random, 2) * (1 + rng_below(random, LIFE_US_MAX));
        if (i % killed_each == 0) {
            victim_start(n, seed, turns, life_us);
            killed++;
            continue;
        }
        victim *v = victim_open(n, seed);
        (void)victim_live(v, seed, turns);
        victim_close(v);
    }
    while (running > 0)
        victim_await(n);
    return killed;
}

/* Every slot is used once, so that its pages count from the beginning. */
static void fill(const node_process *n, rng *random)
{
    victim *v = victim_open(n, rng_next(random) | 1);
    for (int i = 0; i < FILLS; i++)
        EXPECT(victim_live(v, rng_next(random) | 1, UINT64_MAX));
    victim_close(v);
}

static void expect_same(const look *before, const look *after)
{
    EXPECT_EQ_U64(after->connections, 0);
    EXPECT_EQ_U64(after->contexts, 0);
    EXPECT_EQ_U64(after->slots_reserved + after->slots_quarantined + after->slots_used, 0);
    EXPECT_EQ_U64(after->slots_free, before->slots_free);
    EXPECT_EQ_U64(after->fds, before->fds);
    EXPECT_EQ_U64(after->threads, before->threads);
    EXPECT_LE_U64(after->resident_kib, before->resident_kib + MEMORY_KIB_MAX);
}

TEST(clients_that_come_and_go_leave_nothing_behind_in_a_node)
{
    node_process n;
    rpc_client *client;
    rng random;
    rng_seed(&random, test_seed());
    node_spawn_grace(&n, "n0", "50ms", false);
    EXPECT_OK(rpc_client_create(n.control, NULL, &client));
    fill(&n, &random);
    (void)churn(&n, &random, WARM);
    const look before = look_when_quiet(&n, client);
    uint64_t started = clock_now(&clock_monotonic);
    uint64_t own_fds = entries("/proc/%d/fd", getpid());
    uint64_t killed = churn(&n, &random, cycles);
    const look after = look_when_quiet(&n, client);
    report(&before, &after, killed, (double)(clock_now(&clock_monotonic) - started) * 1e-9);
    EXPECT_EQ_U64(entries("/proc/%d/fd", getpid()), own_fds); /* nor in the clients' process */
    EXPECT_GE_U64(after.connections_total, before.connections_total + cycles / 4);
    expect_same(&before, &after);
    fill(&n, &random);
    rpc_client_destroy(client);
    node_signal(&n, SIGTERM);
    EXPECT_EQ_I64(node_reap(&n), 0);
}

static bool number_flag(const char *flag, char **argv, uint64_t *out_value)
{
    if (strcmp(argv[0], flag) != 0 || argv[1] == NULL) return false;
    *out_value = strtoull(argv[1], NULL, 10);
    return true;
}

int main(int argc, char **argv)
{
    if (argc == 7 && strcmp(argv[1], "--victim") == 0) return victim_main(argv);
    int kept = 1;
    for (int i = 1; i < argc; i++) {
        if (number_flag("--cycles", argv + i, &cycles) ||
            number_flag("--killed-each", argv + i, &killed_each) ||
            number_flag("--parallel", argv + i, &parallel))
            i++;
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            json_path = argv[++i];
        else
            argv[kept++] = argv[i];
    }
    argv[kept] = NULL;
    CHECK(killed_each > 0 && parallel > 0);
    return test_main(kept, argv);
}
