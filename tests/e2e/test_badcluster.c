/* What may be wrong with a store gets one clear sentence and the right exit code, and loses
 * nothing: real nodes, the real `shoal`. Each row spoils the store in one way, decodes two prompts
 * over it
 * (`short` has nothing to store, `long` does) and knows what must be said and which lines must have
 * been answered. Then nothing is lost: what is left is decoded by --resume without the store, and
 * every answer has the bytes of a run that never saw one. */
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvstore/transport.h"
#include "tests/kvstore/process.h"
#include "tests/worker/program.h"

#define KVSTORE TEST_BINARY_DIR "/bin/shoal-kvstore"

enum { NODES_MAX = 3, LINE_MAX_BYTES = 4096 };

static program_run run;

/* ---- a store, spoiled ------------------------------------------------------------------------ */

typedef enum spoil {
    SOUND,         /* two nodes, two copies */
    NONE_RUNS,     /* nobody listens */
    ONE_IS_DOWN,   /* two copies, one of two nodes runs */
    FULL,          /* room for 64 blocks */
    OTHER_LAYOUT,  /* holds blocks of another geometry */
    OTHER_VERSION, /* answers in another version of the protocol */
    OTHER_NAME,    /* is another node than the file says */
} spoil;

typedef struct scene {
    node_process node[NODES_MAX]; /* pid 0: not running */
    uint32_t nodes, replicas;
    store other; /* OTHER_LAYOUT: who was there first */
} scene;

static int held_port(int *out_fd)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(fd >= 0);
    EXPECT(bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, 1) == 0);
    EXPECT(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    *out_fd = fd;
    return ntohs(address.sin_port);
}

/* An address where nobody answers. */
static void absent(node_process *n, const char *name)
{
    int fd;
    *n = (node_process){.pid = 0};
    (void)snprintf(n->name, sizeof n->name, "%s", name);
    (void)snprintf(n->data, sizeof n->data, "127.0.0.1:%d", held_port(&fd));
    EXPECT(close(fd) == 0);
    (void)snprintf(n->control, sizeof n->control, "127.0.0.1:%d", held_port(&fd));
    EXPECT(close(fd) == 0);
}

static kv_transport *foreign_transport;

static void foreign_event(void *owner, kv_peer peer)
{
    (void)owner, (void)peer;
}

static void foreign_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    (void)owner, (void)peer, (void)cookie;
}

static void foreign_closed(void *owner, kv_peer peer, status why)
{
    (void)owner, (void)peer, (void)why;
}

/* Whatever is said: a WELCOME of the version after ours. */
static void foreign_message(void *owner, kv_peer peer, const kv_message *m)
{
    (void)owner, (void)m;
    wire_welcome w = {.incarnation = 1, .epoch = 1, .status = STATUS_REFUSED, .name = "n1"};
    wire_head_set(&w.head, WIRE_WELCOME, 0, 0);
    w.head.version = PROTO_VERSION + 1;
    kv_message answer = {.head = &w, .head_bytes = sizeof w};
    (void)foreign_transport->ops->send(foreign_transport, peer, &answer);
}

/* A node of another version, as a process: it serves until it is killed. */
static void foreign_spawn(node_process *n, const char *name)
{
    static const kv_events events = {foreign_event, foreign_message, foreign_sent, foreign_closed,
                                     NULL};
    int told[2];
    EXPECT(pipe(told) == 0);
    absent(n, name);
    n->pid = fork();
    EXPECT(n->pid >= 0);
    if (n->pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        arena *memory = arena_create("foreign");
        char bound[CLUSTER_ADDRESS_MAX] = "";
        if (kv_transport_ucx_open(memory, false, &foreign_transport) != STATUS_OK) _exit(1);
        kv_transport_bind(foreign_transport, &events, NULL);
        if (foreign_transport->ops->listen(foreign_transport, "127.0.0.1:0", bound) != STATUS_OK ||
            write(told[1], bound, sizeof bound) != (ssize_t)sizeof bound)
            _exit(1);
        for (;;) {
            (void)foreign_transport->ops->poll(foreign_transport);
            foreign_transport->ops->wait(foreign_transport, -1, 10000000);
        }
    }
    EXPECT(read(told[0], n->data, sizeof n->data) == (ssize_t)sizeof n->data);
    EXPECT(close(told[0]) == 0 && close(told[1]) == 0);
}

static void scene_write(const scene *s)
{
    char yaml[2048];
    int used = snprintf(yaml, sizeof yaml, "replicas: %u\nstate_dir: %s\nnodes:\n", s->replicas,
                        program_path("state"));
    for (uint32_t i = 0; i < s->nodes; i++)
        used += snprintf(yaml + used, sizeof yaml - (size_t)used,
                         "- {name: n%u, data: %s, control: %s, domain: d%u}\n", i + 1,
                         s->node[i].data, s->node[i].control, i);
    program_write("cluster.yaml", yaml);
}

static void scene_open(scene *s, spoil how)
{
    static const block_layout other = {64, 128, 2, 4, 2, 99};
    *s = (scene){.nodes = 1, .replicas = 1};
    switch (how) {
    case SOUND:
    case ONE_IS_DOWN:
        s->nodes = s->replicas = 2;
        node_spawn(&s->node[0], "n1", NULL, NULL);
        if (how == SOUND)
            node_spawn(&s->node[1], "n2", NULL, NULL);
        else
            absent(&s->node[1], "n2");
        break;
    case NONE_RUNS:
        absent(&s->node[0], "n1");
        break;
    case FULL:
        node_spawn_sized(&s->node[0], "n1", "1MiB", false);
        break;
    case OTHER_LAYOUT:
        node_spawn(&s->node[0], "n1", NULL, NULL);
        store_open_layout(&s->other, s->node, 1, 1, true, other);
        EXPECT_EQ_U64(store_put_all(&s->other, 1, 8), 8);
        break;
    case OTHER_VERSION:
        foreign_spawn(&s->node[0], "n1");
        break;
    case OTHER_NAME:
        node_spawn(&s->node[0], "stranger", NULL, NULL);
        break;
    }
    scene_write(s);
}

static void scene_close(scene *s)
{
    if (s->other.client != NULL) store_close(&s->other);
    for (uint32_t i = 0; i < s->nodes; i++) {
        if (s->node[i].pid == 0) continue;
        node_signal(&s->node[i], SIGKILL);
        EXPECT_EQ_I64(node_reap(&s->node[i]), 128 + SIGKILL);
    }
}

/* ---- prompts and answers --------------------------------------------------------------------- */

/* max: new tokens of `long`. */
static void write_input(int max)
{
    char lines[LINE_MAX_BYTES];
    int used =
        snprintf(lines, sizeof lines,
                 "{\"custom_id\":\"short\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                 "\"body\":{\"prompt\":\"SQLite is a\",\"max_tokens\":3,\"temperature\":0}}\n"
                 "{\"custom_id\":\"long\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                 "\"body\":{\"max_tokens\":%d,\"temperature\":0,\"ignore_eos\":true,"
                 "\"prompt\":[1",
                 max);
    for (int i = 0; i < 200; i++) /* more than a block, so that it has something to store */
        used += snprintf(lines + used, sizeof lines - (size_t)used, ",%d", 2 + i);
    (void)snprintf(lines + used, sizeof lines - (size_t)used, "]}}\n");
    program_write("in.jsonl", lines);
}

/* The line of this custom_id, without its newline; "" when there is none. */
static const char *line_of(arena *memory, const char *name, const char *id)
{
    char key[64];
    char *text = program_read(memory, name);
    (void)snprintf(key, sizeof key, "\"custom_id\":\"%s\"", id);
    char *at = text != NULL ? strstr(text, key) : NULL;
    if (at == NULL) return "";
    while (at > text && at[-1] != '\n')
        at--;
    char *end = strchr(at, '\n');
    EXPECT(end != NULL); /* lines are whole */
    *end = '\0';
    return at;
}

static bool answered(const char *line)
{
    return strstr(line, "\"error\":null") != NULL;
}

static int errors_logged(const char *text)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, " error ")) != NULL; at++)
        count++;
    return count;
}

typedef struct bad_store {
    const char *name;
    spoil how;
    int exit_code;
    const char *sentence;        /* on standard error */
    const char *detail;          /* also there: which node, and why */
    bool long_answered;          /* by the run itself */
    const char *long_error_code; /* its line carries this error; NULL: no line, --resume does it */
} bad_store;

/* clang-format off */
static const bad_store rows[] = {
    {"nothing wrong", SOUND, 0, "", "", true, NULL},
    {"no node reachable", NONE_RUNS, 3, "no node can be reached; finished lines are kept", "", false, NULL},
    {"fewer nodes alive than copies", ONE_IS_DOWN, 4, "fewer nodes are alive than the replicas asked for; finished lines are kept", "", false, NULL},
    {"a full store", FULL, 1, "no free space in the store", "1 of 2 lines failed", false, "no_space"},
    {"a node of another layout", OTHER_LAYOUT, 1, "no node can be used: other block layout, protocol version, tenant or name; finished lines are kept", "node n1 refused us: it serves another block layout", false, NULL},
    {"a node of another version", OTHER_VERSION, 1, "no node can be used", "node n1 speaks version 2 of the protocol, this program 1", false, NULL},
    {"a node of another name", OTHER_NAME, 1, "no node can be used", "is node stranger, not n1 as the map says", false, NULL},
};
/* clang-format on */

static void check_rest(const bad_store *row, arena *memory)
{
    const char *line = line_of(memory, "out.jsonl", "long");
    EXPECT_MSG(answered(line) == row->long_answered, "%s: %s", row->name, line);
    if (row->long_error_code != NULL) {
        char code[64];
        (void)snprintf(code, sizeof code, "\"error\":{\"code\":\"%s\"", row->long_error_code);
        EXPECT_MSG(strstr(line, code) != NULL, "%s: %s", row->name, line);
        return;
    }
    if (!row->long_answered) EXPECT_EQ_STR(line, "");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--deterministic", "--resume");
    EXPECT_MSG(run.exit_code == 0, "%s: resumed: %d: %s", row->name, run.exit_code, run.err);
    EXPECT_EQ_STR(line_of(memory, "out.jsonl", "long"), line_of(memory, "want.jsonl", "long"));
}

static void run_row(const bad_store *row)
{
    static scene s;
    arena *memory = arena_create("badcluster");
    scene_open(&s, row->how);
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--cluster", "@cluster.yaml", "--deterministic", "--max-num-seqs", "1");
    scene_close(&s);
    EXPECT_MSG(run.exit_code == row->exit_code, "%s: exit code %d, expected %d: %s", row->name,
               run.exit_code, row->exit_code, run.err);
    EXPECT_MSG(strstr(run.err, row->sentence) != NULL, "%s: \"%s\" was not said: %s", row->name,
               row->sentence, run.err);
    EXPECT_MSG(strstr(run.err, row->detail) != NULL, "%s: \"%s\" was not said: %s", row->name,
               row->detail, run.err);
    EXPECT_MSG(errors_logged(run.err) == (row->exit_code > 0 && row->long_error_code == NULL),
               "%s: not one sentence: %s", row->name, run.err);
    EXPECT_EQ_STR(line_of(memory, "out.jsonl", "short"), line_of(memory, "want.jsonl", "short"));
    check_rest(row, memory);
    EXPECT(remove(program_path("out.jsonl")) == 0);
    arena_destroy(memory);
}

TEST(every_way_a_store_can_be_wrong_is_told_and_no_line_is_lost)
{
    write_input(900); /* lasts until puts have been given up */
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@want.jsonl", "--model", SMALL_MODEL,
                 "--deterministic");
    EXPECT_EQ_I64(run.exit_code, 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        run_row(&rows[i]);
    printf("%zu stores\n", sizeof rows / sizeof rows[0]);
}

/* ---- nodes that cannot start ----------------------------------------------------------------- */

TEST(a_node_that_cannot_start_says_why_and_ends)
{
    static const struct {
        const char *name, *listen, *control, *memory; /* @: the port that is taken */
        int exit_code;
        const char *sentence;
    } starts[] = {
        {"data port in use", "@", "127.0.0.1:0", "32MiB", 1, "the address is in use"},
        {"control port in use", "127.0.0.1:0", "@", "32MiB", 1, "the port is in use"},
        {"data beyond loopback", "0.0.0.0:0", "127.0.0.1:0", "32MiB", 1, "beyond loopback"},
        {"control beyond loopback", "127.0.0.1:0", "0.0.0.0:0", "32MiB", 1, "beyond loopback"},
        {"data on IPv6 over UCX", "[::1]:0", "127.0.0.1:0", "32MiB", 2, "network.tcp: true"},
        {"memory without a unit", "127.0.0.1:0", "127.0.0.1:0", "32", 2, "unit"},
        {"more memory than there is", "127.0.0.1:0", "127.0.0.1:0", "900TiB", 2, "is outside"},
    };
    int fd;
    char taken[64];
    (void)snprintf(taken, sizeof taken, "127.0.0.1:%d", held_port(&fd));
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        const char *listen_to = starts[i].listen[0] == '@' ? taken : starts[i].listen;
        const char *control = starts[i].control[0] == '@' ? taken : starts[i].control;
        const char *argv[] = {"--name", "n1",       "--listen",       listen_to, "--control",
                              control,  "--memory", starts[i].memory, NULL};
        program_wait(program_start_of(KVSTORE, argv), &run);
        EXPECT_MSG(run.exit_code == starts[i].exit_code, "%s: exit code %d: %s", starts[i].name,
                   run.exit_code, run.err);
        EXPECT_MSG(strstr(run.err, starts[i].sentence) != NULL, "%s: \"%s\" was not said: %s",
                   starts[i].name, starts[i].sentence, run.err);
        EXPECT_MSG(errors_logged(run.err) == 1, "%s: not one sentence: %s", starts[i].name,
                   run.err);
        EXPECT_MSG(run.out[0] == '\0', "%s: it said that it is ready: %s", starts[i].name, run.out);
    }
    EXPECT(close(fd) == 0);
}

TEST(a_cluster_whose_port_is_taken_does_not_come_up_and_leaves_nothing)
{
    static scene s;
    int fd;
    s = (scene){.nodes = 2, .replicas = 2};
    for (uint32_t which = 0; which < 2; which++) { /* the second node's data port, then control */
        absent(&s.node[0], "n1");
        absent(&s.node[1], "n2");
        char *taken = which == 0 ? s.node[1].data : s.node[1].control;
        (void)snprintf(taken, CLUSTER_ADDRESS_MAX, "127.0.0.1:%d", held_port(&fd));
        scene_write(&s);
        PROGRAM_CALL(&run, "cluster", "up", "--config", "@cluster.yaml");
        EXPECT_MSG(run.exit_code == 1, "exit code %d: %s", run.exit_code, run.err);
        EXPECT_HAS_STR(run.err, taken);
        EXPECT_HAS_STR(run.err, "is in use");
        PROGRAM_CALL(&run, "cluster", "status", "--config", "@cluster.yaml", "--timeout", "500ms");
        EXPECT_MSG(run.exit_code == 3, "exit code %d: %s%s", run.exit_code, run.out, run.err);
        EXPECT(close(fd) == 0);
    }
}

/* ---- Ctrl-C ---------------------------------------------------------------------------------- */

static bool has_children(pid_t pid)
{
    char path[64], text[64] = "";
    (void)snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)pid, (int)pid);
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    size_t count = fread(text, 1, sizeof text - 1, f);
    (void)fclose(f);
    return count > 0;
}

/* Over both nodes, as `shoal node status` tells it. */
static uint64_t slots_used(void)
{
    static const char key[] = "\"slots_used\":";
    char command[1024], line[4096];
    uint64_t sum = 0;
    int nodes = 0;
    (void)snprintf(command, sizeof command, "'%s' node status -o json --config '%s'", PROGRAM,
                   program_path("cluster.yaml"));
    FILE *f = popen(command, "r");
    EXPECT(f != NULL);
    for (; fgets(line, sizeof line, f) != NULL; nodes++) {
        const char *at = strstr(line, key);
        EXPECT_MSG(at != NULL, "no slots_used in %s", line);
        sum += strtoull(at + strlen(key), NULL, 10);
    }
    EXPECT(pclose(f) == 0);
    EXPECT_EQ_I64(nodes, 2);
    return sum;
}

TEST(an_interrupted_run_over_a_store_keeps_its_lines_and_leaves_nothing_on_the_nodes)
{
    static scene s;
    arena *memory = arena_create("badcluster");
    struct stat info = {.st_size = 0};
    write_input(9000);
    scene_open(&s, SOUND);
    pid_t pid = program_start((const char *const[]){"decode", "@in.jsonl", "-o", "@out.jsonl",
                                                    "--model", SMALL_MODEL, "--cluster",
                                                    "@cluster.yaml", "--max-num-seqs", "1", NULL});
    const char *path = program_path("out.jsonl");
    for (int i = 0; i < 30000 && info.st_size == 0; i++) {
        (void)poll(NULL, 0, 1);
        if (stat(path, &info) != 0) info.st_size = 0;
    }
    EXPECT(info.st_size > 0);
    for (int i = 0; i < 500 && slots_used() == 0; i++)
        (void)poll(NULL, 0, 1);
    EXPECT(slots_used() > 0);
    EXPECT(!has_children(pid));
    EXPECT(kill(pid, SIGINT) == 0);
    program_wait(pid, &run);
    EXPECT_MSG(run.exit_code == 130, "exit code %d: %s", run.exit_code, run.err);
    EXPECT_HAS_STR(run.err, "interrupted; 1 finished lines are in ");
    EXPECT(answered(line_of(memory, "out.jsonl", "short")));
    EXPECT_EQ_STR(line_of(memory, "out.jsonl", "long"), "");
    EXPECT_EQ_U64(slots_used(), 0); /* its contexts were dropped */
    scene_close(&s);
    arena_destroy(memory);
}

TEST_MAIN()
