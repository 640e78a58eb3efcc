/* Real processes, a real network, real faults: three store nodes, each in a network namespace of
 * its own, and `shoal-worker decode` with the shipped model as the verifying load. Its device pool
 * holds a fraction of the KV and there is no host tier, so what it misses comes from the nodes.
 *
 * A row breaks something once blocks are being read, mends it while the worker goes on, and then
 * compares the answers byte for byte, and the digest over all logits, with those of a run without
 * store and faults. Judged: nothing lost (no prompt failed, and nothing was computed again unless
 * R memories were lost), nothing wrong (bytes), no completion late beyond what a busy machine's
 * scheduler excuses. Reported only: how long a step waited at most, and how long after the end of
 * the fault the node was at work again.
 *
 * Partitions last longer than what notices a silent peer (keepalives of 3 s): 8 s, under a load
 * that is long enough, which the speed of the run without faults tells.
 *
 * --json FILE appends a line a row, {"schema":"shoal.faults/1",...}; --partition SECONDS runs the
 * partitions alone, of another length; --tcp takes plain TCP for the data plane. */
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/e2e/nodes.h"
#include "tests/faults/net.h"
#include "tests/faults/proxy.h"
#include "tests/faults/record.h"
#include "tests/test.h"
#include "tests/worker/program.h"

enum {
    PROMPTS = 4,
    PROMPTS_MAX = 400,
    NEW_TOKENS = 400,
    HOLD_MS = 1500,
    PATIENCE_MS = 15000,
    VICTIM = 1,
    CONTROL_PORT = 7201,
};
static uint64_t partition_ms = 8000;
static bool partitions_only, tcp;
static const double late_ms_max = 50;  /* P4 says 1 ms plus scheduling: two cores, five processes */
static const double late_canaries = 3; /* and so many times what a canary was late at most */
static const char *json_path;
static bool in_turns; /* of the load that is started next */

typedef enum fault {
    NONE,
    KILLED,
    KILLED_TURNS, /* the worker guesses, and halves of its batch take turns */
    STOPPED,
    LINK_DOWN,
    DROP_TO,
    DROP_FROM,
    DROP_BOTH,
    SLOW,
    FLIPS,
    RESTARTS,
    PART_TO,
    PART_FROM,
    PART_BOTH,
    FAULTS
} fault;

static const char *const fault_name[FAULTS] = {"none",
                                               "SIGKILL",
                                               "SIGKILL, two batches",
                                               "SIGSTOP, SIGCONT",
                                               "link down, up",
                                               "drop to node",
                                               "drop from node",
                                               "drop both ways",
                                               "slow link (proxy)",
                                               "flips in node memory",
                                               "restart each, empty",
                                               "partition to node",
                                               "partition from node",
                                               "partition both ways"};

typedef struct outcome {
    double fault_s; /* how long it lasted; 0: until the end */
    double back_ms; /* after its end, until the node did something for the worker; < 0: not seen */
    double stall_ms, late_ms, canary_ms, wall_s;
    uint64_t failed, recomputes, remote, corrupt, failed_over, hedged, void_rows, reconnects;
    proxy_counts proxy;
    bool same;
} outcome;

/* Input, and the output without store and faults. */
typedef struct expected {
    arena *memory;
    char *prompts, *answers, digest[32];
    double wall_s;
} expected;
static expected want_short, want_long;

static bool is_partition(fault f)
{
    return f == PART_TO || f == PART_FROM || f == PART_BOTH;
}

static bool is_kill(fault f)
{
    return f == KILLED || f == KILLED_TURNS;
}

static uint64_t now_ms(void)
{
    return clock_now(&clock_monotonic) / 1000000;
}

/* Data connections of a node that its process has open, as its namespace's kernel tells: it can be
 * asked when nothing reaches the node. A line: slot, local and remote address, state, queues,
 * timer, retransmits, user, timeout, inode; a socket that no process has any more has inode 0. */
static uint32_t data_connections(uint32_t node)
{
    char path[64], line[256];
    uint32_t count = 0;
    snprintf(path, sizeof path, "/proc/%d/net/tcp", (int)nodes_pid(node));
    FILE *f = fopen(path, "r");
    EXPECT(f != NULL);
    while (fgets(line, sizeof line, f) != NULL) {
        unsigned port, state;
        unsigned long inode;
        if (sscanf(line, "%*u: %*x:%x %*x:%*x %x %*x:%*x %*x:%*x %*x %*u %*u %lu", &port, &state,
                   &inode) == 3)
            count += port != CONTROL_PORT && state == TCP_ESTABLISHED && inode != 0;
    }
    fclose(f);
    return count;
}

/* A thread that wants to run each millisecond: how late it was at most tells what the machine did
 * to everybody's threads meanwhile, this one's of the worker too. */
static struct {
    pthread_t thread;
    atomic_bool stop;
    uint64_t late_ns_max;
} canary;

static void *canary_main(void *unused)
{
    (void)unused;
    while (!atomic_load(&canary.stop)) {
        uint64_t due = clock_now(&clock_monotonic) + 1000000;
        (void)poll(NULL, 0, 1);
        uint64_t now = clock_now(&clock_monotonic);
        if (now > due + canary.late_ns_max) canary.late_ns_max = now - due;
    }
    return NULL;
}

static void canary_start(void)
{
    atomic_store(&canary.stop, false);
    canary.late_ns_max = 0;
    EXPECT(pthread_create(&canary.thread, NULL, canary_main, NULL) == 0);
}

static double canary_stop(void)
{
    atomic_store(&canary.stop, true);
    EXPECT(pthread_join(canary.thread, NULL) == 0);
    return (double)canary.late_ns_max * 1e-6;
}

static void nap(void)
{
    (void)poll(NULL, 0, 10);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void make_prompts(uint32_t count)
{
    char command[1024], *line = NULL;
    size_t room = 0;
    snprintf(command, sizeof command, "tar -C '%s' -xJf '%s/worker/small-model/cases.tar.xz'",
             test_dir(), TEST_SOURCE_DIR);
    EXPECT(system(command) == 0);
    FILE *in = fopen(program_path("cases/text-16k.jsonl"), "r");
    FILE *out = fopen(program_path("in.jsonl"), "w");
    EXPECT(in != NULL && out != NULL);
    for (uint32_t i = 0; i < count; i++) {
        if (getline(&line, &room, in) <= 0) {
            rewind(in);
            EXPECT(getline(&line, &room, in) > 0);
        }
        cJSON *json = cJSON_Parse(line);
        char *text = cJSON_GetObjectItem(json, "text")->valuestring;
        text[9000 + 1500 * (i % PROMPTS)] = 0; /* about 2.5 characters a token */
        char *quoted = cJSON_PrintUnformatted(cJSON_GetObjectItem(json, "text"));
        /* Many of them end at different times. */
        uint32_t tokens = NEW_TOKENS;
        if (count > PROMPTS) tokens = NEW_TOKENS / 2 + NEW_TOKENS * (i % 5) / 4;
        fprintf(out,
                "{\"custom_id\":\"p%u\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":"
                "{\"model\":\"small-model\",\"max_tokens\":%u,\"temperature\":0,\"ignore_eos\":"
                "true,\"prompt\":%s}}\n",
                i, tokens, quoted);
        cJSON_free(quoted);
        cJSON_Delete(json);
    }
    free(line);
    fclose(in);
    EXPECT(fclose(out) == 0);
}

static void make_site(const char *leases)
{
    char command[2048], site[1024];
    snprintf(site, sizeof site,
             "replicas: 2\n"
             "network: {plain_data: true, tcp: %s}\n"
             "tls: {authority: ca.pem, certificate: node.pem, key: node.key}\n"
             "nodes:\n"
             "- {name: n1, data: 10.77.0.1:7101, control: 10.77.0.1:7201}\n"
             "- {name: n2, data: 10.77.0.2:7101, control: 10.77.0.2:7201}\n"
             "- {name: n3, data: 10.77.0.3:7101, control: 10.77.0.3:7201}\n"
             "worker: {device_pool: 16MiB, host_tier: 0B, threads: 2}\n%s",
             tcp ? "true" : "false", leases);
    program_write("cluster.yaml", site);
    snprintf(command, sizeof command,
             "exec 2>/dev/null; cd '%s' && K='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1' && "
             "openssl req -x509 $K -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem && "
             "printf 'subjectAltName=IP:10.77.0.1,IP:10.77.0.2,IP:10.77.0.3' >san && "
             "openssl req $K -nodes -subj /CN=node -keyout node.key -out node.csr && "
             "openssl x509 -req -in node.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
             "-extfile san -out node.pem",
             test_dir());
    EXPECT_MSG(system(command) == 0, "openssl makes no certificates");
}

static double number_at(const cJSON *json, const char *key)
{
    const cJSON *item = cJSON_GetObjectItem(json, key);
    EXPECT_MSG(cJSON_IsNumber(item), "the summary has no %s", key);
    return item->valuedouble;
}

/* ---- the load -------------------------------------------------------------------------------- */

static pid_t load_start_mode(bool with_store, const char *mode)
{
    const char *argv[28] = {"decode",          "@in.jsonl", "-o",      "@out.jsonl",  "--model",
                            SMALL_MODEL,       "--budget",  "16",      "--seed",      "1",
                            "--format",        "json",      "--quiet", "--log-level", "error",
                            "--deterministic", mode};
    if (with_store) argv[17] = "--cluster", argv[18] = "@cluster.yaml";
    if (in_turns) argv[19] = "--two-batch", argv[20] = "--guess", argv[21] = "200%";
    return program_start(argv);
}

static pid_t load_start(bool with_store)
{
    return load_start_mode(with_store, "--overwrite");
}

static void read_summary(const program_run *run, outcome *o, char digest[32])
{
    EXPECT_MSG(run->exit_code == 0, "decode ended with %d: %.300s", run->exit_code, run->err);
    cJSON *json = cJSON_Parse(run->out);
    EXPECT_MSG(json != NULL, "no summary: %.200s", run->out);
    const cJSON *client = cJSON_GetObjectItem(json, "client");
    o->failed = (uint64_t)number_at(json, "failed");
    o->recomputes = (uint64_t)number_at(json, "recomputes");
    o->void_rows = (uint64_t)number_at(json, "void_rows");
    o->stall_ms = number_at(json, "stall_ms_max");
    o->wall_s = number_at(json, "wall_s");
    const cJSON *blocks = cJSON_GetObjectItem(json, "blocks");
    o->remote = (uint64_t)number_at(blocks, "remote");
    o->corrupt = (uint64_t)(number_at(client, "corrupt") + number_at(blocks, "corrupt"));
    o->hedged = (uint64_t)number_at(client, "hedged");
    o->failed_over = (uint64_t)number_at(client, "failed_over");
    o->reconnects = (uint64_t)number_at(client, "reconnects");
    o->late_ms = number_at(client, "late_ms_max");
    snprintf(digest, 32, "%s", cJSON_GetObjectItem(json, "output_digest")->valuestring);
    cJSON_Delete(json);
}

static void reference(expected *want, uint32_t prompts)
{
    static program_run run;
    outcome o;
    if (want->answers == NULL) {
        want->memory = arena_create("reference");
        make_prompts(prompts);
        program_wait(load_start(false), &run);
        read_summary(&run, &o, want->digest);
        EXPECT_EQ_U64(o.failed, 0);
        want->wall_s = o.wall_s;
        want->prompts = program_read(want->memory, "in.jsonl");
        want->answers = program_read(want->memory, "out.jsonl");
    } else {
        program_write("in.jsonl", want->prompts);
    }
    EXPECT(want->prompts != NULL && want->answers != NULL);
}

/* As many prompts as last until some seconds after a partition. */
static const expected *reference_for(fault f)
{
    reference(&want_short, PROMPTS);
    if (!is_partition(f)) return &want_short;
    /* At least as many as a quiet 2-core machine takes: the reference may have had a busy one. */
    double wall_s = want_short.wall_s < 4 ? want_short.wall_s : 4;
    double prompts = PROMPTS * ((double)partition_ms / 1000 + 7) / wall_s;
    reference(&want_long, prompts > PROMPTS_MAX ? PROMPTS_MAX : (uint32_t)prompts + 1);
    return &want_long;
}

static bool ended(pid_t pid)
{
    siginfo_t info = {.si_pid = 0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid;
}

/* Blocks that this node gave and took for the worker; 0 when it does not say. */
static uint64_t worked(uint32_t node)
{
    node_counts c;
    if (nodes_pid(node) == 0 || nodes_count_one(node, 300, &c) != STATUS_OK) return 0;
    return c.served + c.stored;
}

static void await_reads(pid_t load, uint64_t blocks)
{
    node_counts sum = {0};
    uint64_t until = now_ms() + 120000;
    while (sum.served < blocks) {
        EXPECT_MSG(!ended(load) && now_ms() < until, "the worker reads no blocks");
        nap();
        nodes_counts(&sum);
    }
}

static void pass(pid_t load, uint64_t ms)
{
    for (uint64_t until = now_ms() + ms; now_ms() < until && !ended(load);)
        nap();
}

/* ---- faults ---------------------------------------------------------------------------------- */

static void begin(fault f)
{
    if (is_kill(f)) nodes_kill(VICTIM);
    if (f == STOPPED) nodes_signal(VICTIM, SIGSTOP);
    if (f == LINK_DOWN) net_link(VICTIM, false);
    if (f == DROP_TO || f == PART_TO) net_drop(VICTIM, NET_TO);
    if (f == DROP_FROM || f == PART_FROM) net_drop(VICTIM, NET_FROM);
    if (f == DROP_BOTH || f == PART_BOTH) net_drop(VICTIM, NET_BOTH);
}

static bool finish(fault f)
{
    if (is_kill(f)) nodes_restart(VICTIM);
    if (f == STOPPED) nodes_signal(VICTIM, SIGCONT);
    if (f == LINK_DOWN) net_link(VICTIM, true);
    if (f == DROP_TO || f == DROP_FROM || f == DROP_BOTH || is_partition(f)) net_heal();
    return f != SLOW && f != FLIPS && f != NONE;
}

/* Until the node has done something for the worker again. */
static double await_back(pid_t load, uint64_t since_ms, uint64_t before)
{
    for (uint64_t until = since_ms + PATIENCE_MS; now_ms() < until && !ended(load);) {
        uint64_t now = worked(VICTIM);
        if (now > before) return (double)(now_ms() - since_ms);
        nap();
    }
    return -1;
}

static void trouble(fault f, pid_t load, outcome *o)
{
    await_reads(load, 50);
    if (f == RESTARTS) {
        for (uint32_t i = 0; i < NET_NODES; i++) {
            nodes_restart(i);
            uint64_t since = now_ms();
            if (i == VICTIM) o->back_ms = await_back(load, since, 0);
            pass(load, HOLD_MS / 2);
        }
        return;
    }
    uint64_t before = is_kill(f) ? 0 : worked(VICTIM), started = now_ms();
    begin(f);
    EXPECT_MSG(!ended(load), "the worker was done before the fault began");
    pass(load, is_partition(f) ? partition_ms : HOLD_MS);
    if (!finish(f)) return;
    EXPECT_MSG(!ended(load), "the worker was done before the fault ended");
    uint64_t healed = now_ms();
    o->fault_s = (double)(healed - started) / 1000;
    o->back_ms = await_back(load, healed, before);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void show(fault f, const outcome *o)
{
    static bool headed;
    if (!headed)
        printf("%-22s %6s %8s %8s %8s %5s %6s %6s %6s %7s %7s %7s %6s %6s\n", "FAULT", "WALL s",
               "LASTED s", "BACK ms", "STALL ms", "LOST", "WRONG", "LATEms", "CANARY", "REMOTE",
               "HEDGED", "FAILOV.", "CORR.", "VOID");
    headed = true;
    printf("%-22s %6.1f %8.2f %8.0f %8.1f %5llu %6s %6.1f %6.1f %7llu %7llu %7llu %6llu %6llu\n",
           fault_name[f], o->wall_s, o->fault_s, o->back_ms, o->stall_ms,
           (unsigned long long)(o->failed + (f == RESTARTS ? 0 : o->recomputes)),
           o->same ? "0" : "yes", o->late_ms, o->canary_ms, (unsigned long long)o->remote,
           (unsigned long long)o->hedged, (unsigned long long)o->failed_over,
           (unsigned long long)o->corrupt, (unsigned long long)o->void_rows);
    fflush(stdout);
}

static void write_json(fault f, const outcome *o)
{
    FILE *file = json_path != NULL ? fopen(json_path, "a") : NULL;
    if (file == NULL) return;
    char stamp[512];
    record_stamp(stamp, sizeof stamp);
    fprintf(file,
            "{\"schema\":\"shoal.faults/1\",\"fault\":\"%s\",\"lost\":%llu,\"wrong\":%d,"
            "\"late_ms_max\":%.3f,\"canary_ms_max\":%.3f,\"fault_s\":%.2f,\"back_ms\":%.0f,\"stall_"
            "ms_max\":%.2f,"
            "\"wall_s\":%.2f,\"remote\":%llu,\"hedged\":%llu,\"failed_over\":%llu,\"corrupt\":%llu,"
            "\"void_rows\":%llu,\"recomputes\":%llu,\"reconnects\":%llu,\"proxy_bytes\":%llu,"
            "%s}\n",
            fault_name[f], (unsigned long long)(o->failed + (f == RESTARTS ? 0 : o->recomputes)),
            !o->same, o->late_ms, o->canary_ms, o->fault_s, o->back_ms, o->stall_ms, o->wall_s,
            (unsigned long long)o->remote, (unsigned long long)o->hedged,
            (unsigned long long)o->failed_over, (unsigned long long)o->corrupt,
            (unsigned long long)o->void_rows, (unsigned long long)o->recomputes,
            (unsigned long long)o->reconnects, (unsigned long long)o->proxy.bytes, stamp);
    EXPECT(fclose(file) == 0);
}

static void judge(fault f, const outcome *o)
{
    EXPECT_EQ_U64(o->failed, 0);
    EXPECT_MSG(o->same, "the answers differ from those of the run without faults");
    EXPECT_LE_F64(o->late_ms, late_ms_max + late_canaries * o->canary_ms);
    EXPECT_GE_U64(o->remote, 200);
    if (f != RESTARTS) EXPECT_EQ_U64(o->recomputes, 0); /* one memory was lost at most */
    if (f == FLIPS) EXPECT(o->corrupt > 0);
    if (f == SLOW) EXPECT(o->proxy.connections > 0 && o->proxy.bytes > 1 << 20);
    if (f != NONE && f != FLIPS) EXPECT(o->failed_over + o->hedged > 0);
}

static void row(fault f)
{
    static program_run run;
    outcome o = {.back_ms = -1};
    pid_t proxy = 0;
    char digest[32];
    if (partitions_only && !is_partition(f)) SKIP("--partition: nothing else runs");
    net_open();
    const expected *want = reference_for(f);
    make_site("client: {lease: 20s}\n");
    nodes_site site = {
        .config_path = program_path("cluster.yaml"), .enter = net_enter, .faulty = 1 << VICTIM};
    nodes_start_at(&site, f == FLIPS ? "flip-memory=0.05,seed=7" : NULL);
    if (f == SLOW) { /* a tenth of a gigabit and a round trip of 10 ms */
        proxy = proxy_start(NET_PROXY_PORT, NET_PROXY_MARK, 5000000, 12500000);
        net_proxy(VICTIM);
    }
    in_turns = f == KILLED_TURNS;
    pid_t load = load_start(true);
    in_turns = false;
    canary_start();
    trouble(f, load, &o);
    program_wait(load, &run);
    o.canary_ms = canary_stop();
    if (proxy != 0) proxy_stop(proxy, &o.proxy);
    net_heal();
    node_counts nodes;
    nodes_counts(&nodes);
    nodes_stop();
    read_summary(&run, &o, digest);
    arena *a = arena_create("answers");
    const char *answers = program_read(a, "out.jsonl");
    o.same =
        answers != NULL && strcmp(answers, want->answers) == 0 && strcmp(digest, want->digest) == 0;
    arena_destroy(a);
    o.corrupt += nodes.corrupt;
    show(f, &o);
    write_json(f, &o);
    judge(f, &o);
}

TEST(three_nodes_in_namespaces_without_a_fault)
{
    row(NONE);
}
TEST(a_node_killed_and_started_again)
{
    row(KILLED);
}
TEST(a_node_killed_and_started_again_while_halves_take_turns)
{
    row(KILLED_TURNS);
}
TEST(a_node_stopped_and_continued)
{
    row(STOPPED);
}
TEST(a_node_whose_link_goes_down_and_up)
{
    row(LINK_DOWN);
}
TEST(packets_to_a_node_vanish)
{
    row(DROP_TO);
}
TEST(packets_from_a_node_vanish)
{
    row(DROP_FROM);
}
TEST(packets_to_and_from_a_node_vanish)
{
    row(DROP_BOTH);
}
TEST(a_node_behind_a_slow_link)
{
    row(SLOW);
}
TEST(bits_that_flip_in_the_memory_of_nodes)
{
    row(FLIPS);
}
TEST(each_node_in_turn_restarted_empty)
{
    row(RESTARTS);
}
TEST(packets_to_a_node_vanish_for_longer_than_keepalives)
{
    row(PART_TO);
}
TEST(packets_from_a_node_vanish_for_longer_than_keepalives)
{
    row(PART_FROM);
}
TEST(packets_to_and_from_a_node_vanish_for_longer_than_keepalives)
{
    row(PART_BOTH);
}

static uint32_t lines_of(const char *text)
{
    uint32_t lines = 0;
    for (; text != NULL && *text != 0; text++)
        lines += *text == '\n';
    return lines;
}

static uint32_t answered(void)
{
    arena *a = arena_create("answers");
    uint32_t lines = lines_of(program_read(a, "out.jsonl"));
    arena_destroy(a);
    return lines;
}

/* Every expected line is there, in whatever order, and no other. */
static void expect_lines(const expected *want)
{
    arena *a = arena_create("answers");
    const char *got = program_read(a, "out.jsonl");
    EXPECT(got != NULL);
    EXPECT_EQ_U64(lines_of(got), lines_of(want->answers));
    for (const char *line = want->answers, *end; *line != 0; line = end + 1) {
        end = strchr(line, '\n');
        size_t bytes = (size_t)(end - line) + 1;
        const char *at = got;
        while (at != NULL && strncmp(at, line, bytes) != 0)
            at = (at = strchr(at, '\n')) != NULL && at[1] != 0 ? at + 1 : NULL;
        EXPECT_MSG(at != NULL, "not answered as without faults: %.60s", line);
    }
    arena_destroy(a);
}

TEST(a_worker_killed_and_resumed_answers_each_prompt_once_and_with_the_same_bytes)
{
    static program_run run;
    if (partitions_only) SKIP("--partition: nothing else runs");
    net_open();
    const expected *want = reference_for(PART_BOTH); /* some are done before others begin */
    make_site("client: {lease: 20s}\n");
    nodes_site site = {.config_path = program_path("cluster.yaml"), .enter = net_enter};
    nodes_start_at(&site, NULL);
    (void)remove(program_path("out.jsonl")); /* the reference's, when it was made here */
    pid_t load = load_start(true);
    uint64_t until = now_ms() + 120000;
    while (answered() == 0 && !ended(load) && now_ms() < until)
        nap();
    EXPECT(!ended(load) && kill(load, SIGKILL) == 0);
    program_wait(load, &run);
    uint32_t before = answered(), all = lines_of(want->answers);
    EXPECT_MSG(before > 0 && before < all, "%u of %u", before, all);
    program_wait(load_start_mode(true, "--resume"), &run);
    EXPECT_MSG(run.exit_code == 0, "resumed: %d: %.300s", run.exit_code, run.err);
    expect_lines(want);
    nodes_stop();
    printf("a worker that was killed: %u of %u answered before, the others after\n", before, all);
}

/* Its last words are lost, and the node has bytes under way to it: TCP would repeat them for a
 * quarter of an hour. The node gives all up when lease and grace are over. */
TEST(a_worker_that_vanishes_behind_a_partition_is_forgotten_by_its_node)
{
    enum { FORGOTTEN_MS_MAX = 20000 };
    static program_run run;
    node_counts seen;
    if (partitions_only) SKIP("--partition: nothing else runs");
    net_open();
    reference(&want_short, PROMPTS);
    make_site("client: {lease: 2s}\nnode: {lease_grace: 3s}\n");
    nodes_site site = {.config_path = program_path("cluster.yaml"), .enter = net_enter};
    nodes_start_at(&site, NULL);
    pid_t load = load_start(true);
    await_reads(load, 50);
    EXPECT_OK(nodes_count_one(VICTIM, 5000, &seen));
    EXPECT(seen.connections > 0 && seen.contexts > 0);
    net_drop(VICTIM, NET_FROM); /* asks go on to reach it: answers are on their way for good */
    pass(load, 500);
    net_drop(VICTIM, NET_TO);
    uint64_t began = now_ms();
    EXPECT(kill(load, SIGKILL) == 0);
    program_wait(load, &run);
    EXPECT(data_connections(VICTIM) > 0);
    while (data_connections(VICTIM) > 0 && now_ms() < began + FORGOTTEN_MS_MAX)
        nap();
    uint64_t forgotten_ms = now_ms() - began;
    EXPECT_EQ_U64(data_connections(VICTIM), 0);
    net_heal();
    do /* its lease ends about when the connection does, not in the same moment */
        EXPECT_OK(nodes_count_one(VICTIM, 5000, &seen));
    while (seen.connections + seen.contexts > 0 && now_ms() < began + FORGOTTEN_MS_MAX);
    EXPECT_EQ_U64(seen.connections + seen.contexts, 0);
    printf("a worker that vanished: forgotten after %llu ms; lease 2 s, grace 3 s\n",
           (unsigned long long)forgotten_ms);
    nodes_stop();
}

int main(int argc, char **argv)
{
    int kept = 1;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            json_path = argv[++i];
        else if (strcmp(argv[i], "--tcp") == 0)
            tcp = true;
        else if (strcmp(argv[i], "--partition") == 0 && i + 1 < argc)
            partition_ms = strtoull(argv[++i], NULL, 10) * 1000, partitions_only = true;
        else
            argv[kept++] = argv[i];
    }
    argv[kept] = NULL;
    return test_main(kept, argv);
}
