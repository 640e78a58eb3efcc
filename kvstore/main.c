/* kvstore/main.c - shoal-kvstore: one node of the store.
 *
 * Flags, then everything is validated before anything opens. SIGTERM drains (no new puts, calls in
 * flight end) and exits 0, SIGINT exits 130. One line on stdout says that the node is ready. */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "kvstore/node.h"

enum { NAP_MS = 200, EXIT_USAGE = 2, EXIT_INTERRUPTED = 130 };

static const char help[] =
    "Usage: shoal-kvstore --name NAME --listen HOST:PORT --control HOST:PORT [flags]\n"
    "One node of the block store: keeps sealed KV blocks in memory and serves them by id.\n"
    "\n"
    "Identity and addresses\n"
    "  --name NAME            the node's name in the map, [a-z0-9-]\n"
    "  --listen HOST:PORT     data plane; port 0: any. Beyond loopback only as\n"
    "                         the cluster file's network.plain_data allows\n"
    "  --control HOST:PORT    control plane (gRPC: shoal.v1.Node, grpc.health.v1); port 0: any.\n"
    "                         Beyond loopback only with the cluster file's tls\n"
    "  --config FILE          cluster file: map, network, TLS, defaults for what is below; with\n"
    "                         --name its addresses need not be given\n"
    "Memory and clients\n"
    "  --memory SIZE          for blocks, mapped at start (default 256MiB)\n"
    "  --connections N        clients at once, 1 .. 1024 (default 64)\n"
    "  --lease-grace TIME     contexts outlive their owner's lease by this (default 30s)\n"
    "  --tcp                  plain TCP carries the data plane, not UCX: as network.tcp\n"
    "  --spin                 poll without sleeping: for a reserved core only\n"
    "Output\n"
    "  --log-level LEVEL      error, warn, info, debug (default info)\n"
    "  --log-json             one JSON object a line\n"
    "  --fault LIST           commit faults, for tests: flip-wire=SHARE, flip-memory=SHARE,\n"
    "                         drop=SHARE, delay=TIME, seed=N, separated by commas\n"
    "  --help, --version\n"
    "\n"
    "Examples\n"
    "  shoal-kvstore --name n0 --listen 127.0.0.1:7700 --control 127.0.0.1:7701 --memory 1GiB\n"
    "  shoal-kvstore --name n1 --config cluster.yaml --fault drop=0.01,delay=1ms,seed=7\n";

/* ---- flags ----------------------------------------------------------------------------------- */

typedef struct flags {
    const char *name, *listen, *control, *config, *memory, *connections, *grace, *level, *fault;
    bool spin, tcp, json;
} flags;

static status text_take(const char *flag, const char *text, char *out, size_t room)
{
    if (text == NULL) return STATUS_OK;
    size_t length = strlen(text);
    if (length == 0 || length >= room)
        return FAIL(INVALID, "--%s takes 1 to %zu characters", flag, room - 1);
    memcpy(out, text, length + 1);
    return STATUS_OK;
}

static status number_take(const char *flag, const char *text, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || *end != 0 || text[0] == '-' || value > max)
        return FAIL(INVALID, "%s is not a number up to %llu: \"%s\"", flag, (unsigned long long)max,
                    text);
    *out = value;
    return STATUS_OK;
}

static status share_take(const char *flag, const char *text, double *out)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != 0 || !(value >= 0 && value <= 1))
        return FAIL(INVALID, "--fault %s takes a share from 0 to 1, not \"%s\"", flag, text);
    *out = value;
    return STATUS_OK;
}

static status faults_take(const char *list, kv_faults *out)
{
    char copy[256];
    if (list == NULL) return STATUS_OK;
    if (strlen(list) >= sizeof copy) return FAIL(INVALID, "--fault is too long");
    memcpy(copy, list, strlen(list) + 1);
    char *rest = copy;
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(item, '=');
        if (value == NULL) return FAIL(INVALID, "--fault takes KEY=VALUE, not \"%s\"", item);
        *value++ = 0;
        if (strcmp(item, "flip-wire") == 0)
            TRY(share_take(item, value, &out->flip_wire));
        else if (strcmp(item, "flip-memory") == 0)
            TRY(share_take(item, value, &out->flip_memory));
        else if (strcmp(item, "drop") == 0)
            TRY(share_take(item, value, &out->drop_reply));
        else if (strcmp(item, "delay") == 0)
            TRY(cluster_parse_time(value, &out->delay_ns));
        else if (strcmp(item, "seed") == 0)
            TRY(number_take("--fault seed", value, UINT64_MAX, &out->seed));
        else
            return FAIL(INVALID,
                        "--fault knows flip-wire, flip-memory, drop, delay and seed, "
                        "not \"%s\"",
                        item);
    }
    return STATUS_OK;
}

/* What the cluster file says about this node; flags come after and win. */
static status config_take(const flags *f, node_options *out)
{
    cluster_config *config = &out->config;
    cluster_config_default(config);
    if (f->config != NULL) TRY(cluster_config_load(f->config, config));
    out->memory_bytes = config->node_memory_bytes;
    out->lease_grace_ns = config->lease_grace_ns;
    out->connections_max = config->node_connections_max;
    out->spin = config->spin && f->config != NULL;
    if (f->config == NULL) return STATUS_OK;
    out->has_map = true;
    for (uint32_t i = 0; i < config->map.node_count && f->name != NULL; i++) {
        const cluster_node *n = &config->map.node[i];
        if (strcmp(n->name, f->name) != 0) continue;
        memcpy(out->listen, n->data, sizeof out->listen);
        memcpy(out->control, n->control, sizeof out->control);
        return STATUS_OK;
    }
    return FAIL(INVALID, "%s has no node \"%s\"", f->config, f->name != NULL ? f->name : "");
}

static status options_check(const node_options *o)
{
    if (o->name[0] == 0) return FAIL(INVALID, "--name is missing");
    if (strspn(o->name, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(o->name))
        return FAIL(INVALID, "--name takes a-z, 0-9 and -, not \"%s\"", o->name);
    if (o->listen[0] == 0) return FAIL(INVALID, "--listen is missing");
    if (o->control[0] == 0) return FAIL(INVALID, "--control is missing");
    if (o->connections_max < 1 || o->connections_max > 1024)
        return FAIL(INVALID, "--connections takes 1 to 1024");
    return cluster_listen_check(&o->config, o->listen, o->control);
}

static status options_take(const flags *f, node_options *out)
{
    uint64_t connections;
    if (f->level != NULL && !log_level_from_name(f->level, &out->level))
        return FAIL(INVALID, "--log-level takes error, warn, info or debug, not \"%s\"", f->level);
    TRY(config_take(f, out));
    TRY(text_take("name", f->name, out->name, sizeof out->name));
    TRY(text_take("listen", f->listen, out->listen, sizeof out->listen));
    TRY(text_take("control", f->control, out->control, sizeof out->control));
    if (f->memory != NULL) TRY(cluster_parse_bytes(f->memory, &out->memory_bytes));
    if (f->grace != NULL) TRY(cluster_parse_time(f->grace, &out->lease_grace_ns));
    if (f->connections != NULL) {
        TRY(number_take("--connections", f->connections, 1024, &connections));
        out->connections_max = (uint32_t)connections;
    }
    TRY(faults_take(f->fault, &out->faults));
    out->spin |= f->spin;
    out->config.tcp |= f->tcp;
    return options_check(out);
}

enum { FLAG_SPIN = 256, FLAG_TCP, FLAG_JSON, FLAG_HELP, FLAG_VERSION };

/* False: the program is over with *out_exit. */
static bool flags_take(int argc, char **argv, flags *f, int *out_exit)
{
    static const struct option long_options[] = {
        {"name", required_argument, NULL, 'n'},
        {"listen", required_argument, NULL, 'l'},
        {"control", required_argument, NULL, 'c'},
        {"config", required_argument, NULL, 'f'},
        {"memory", required_argument, NULL, 'm'},
        {"connections", required_argument, NULL, 'k'},
        {"lease-grace", required_argument, NULL, 'g'},
        {"log-level", required_argument, NULL, 'v'},
        {"fault", required_argument, NULL, 'x'},
        {"spin", no_argument, NULL, FLAG_SPIN},
        {"tcp", no_argument, NULL, FLAG_TCP},
        {"log-json", no_argument, NULL, FLAG_JSON},
        {"help", no_argument, NULL, FLAG_HELP},
        {"version", no_argument, NULL, FLAG_VERSION},
        {NULL, 0, NULL, 0},
    };
    const char **place[128] = {
        ['n'] = &f->name,   ['l'] = &f->listen, ['c'] = &f->control,
        ['f'] = &f->config, ['m'] = &f->memory, ['k'] = &f->connections,
        ['g'] = &f->grace,  ['v'] = &f->level,  ['x'] = &f->fault,
    };
    int flag;
    *out_exit = 0;
    while ((flag = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (flag == FLAG_HELP) fputs(help, stdout);
        if (flag == FLAG_VERSION) puts("shoal-kvstore " SHOAL_VERSION);
        if (flag == FLAG_HELP || flag == FLAG_VERSION) return false;
        f->spin |= flag == FLAG_SPIN;
        f->tcp |= flag == FLAG_TCP;
        f->json |= flag == FLAG_JSON;
        if (flag < 128 && place[flag] != NULL) *place[flag] = optarg;
        if (flag == '?') *out_exit = EXIT_USAGE;
    }
    if (optind < argc) {
        fprintf(stderr, "shoal-kvstore: \"%s\" is not a flag\n", argv[optind]);
        *out_exit = EXIT_USAGE;
    }
    if (*out_exit != 0) fputs("Try 'shoal-kvstore --help'.\n", stderr);
    return *out_exit == 0;
}

/* ---- running --------------------------------------------------------------------------------- */

static void say_ready(const node_options *o, const node *n, const control *c)
{
    const char *data = kv_server_address(n->server), *address = control_address(c);
    if (o->json)
        printf("{\"event\":\"ready\",\"name\":\"%s\",\"data\":\"%s\",\"control\":\"%s\"}\n",
               o->name, data, address);
    else
        printf("ready name=%s data=%s control=%s\n", o->name, data, address);
    fflush(stdout);
}

static void sleep_until_event(node *n, control *c, int signal_fd)
{
    struct pollfd fds[] = {
        {.fd = signal_fd, .events = POLLIN},
        {.fd = n->answer_fd, .events = POLLIN},
        {.fd = control_fd(c), .events = POLLIN},
    };
    (void)poll(fds, 3, NAP_MS);
    uint64_t count;
    ssize_t got = read(n->answer_fd, &count, sizeof count); /* hush: answers are polled next */
    CHECK(got == sizeof count || errno == EAGAIN || errno == EINTR);
}

/* Serve until a signal; SIGTERM first lets what is in flight end. Returns the exit code. */
static int serve(node *n, control *c, int signal_fd)
{
    struct signalfd_siginfo info = {.ssi_signo = 0};
    bool draining = false;
    while (!(draining && control_drained(c)) && info.ssi_signo != SIGINT) {
        sleep_until_event(n, c, signal_fd);
        control_poll(c);
        struct signalfd_siginfo next;
        if (read(signal_fd, &next, sizeof next) != sizeof next) continue;
        info = next;
        if (info.ssi_signo != SIGTERM || draining) continue;
        LOG(INFO, "draining: no new puts");
        draining = true;
        (void)node_tell(n, NODE_STATS); /* wakes it; its drain comes with the stop */
        control_drain(c);
    }
    control_close(c);
    node_stop(n);
    return info.ssi_signo == SIGINT ? EXIT_INTERRUPTED : 0;
}

static int run(const node_options *o)
{
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    CHECK(pthread_sigmask(SIG_BLOCK, &signals, NULL) == 0); /* before any thread starts */
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    CHECK(signal_fd >= 0);
    node n;
    control *c;
    status s = node_start(&n, o);
    if (s != STATUS_OK) return status_exit_code(s);
    s = control_open(&n, &c);
    if (s != STATUS_OK) {
        node_stop(&n);
        return status_exit_code(s);
    }
    say_ready(o, &n, c);
    int code = serve(&n, c, signal_fd);
    close(signal_fd);
    return code;
}

int main(int argc, char **argv)
{
    static node_options options = {.level = LOG_INFO};
    flags f = {0};
    int code;
    if (!flags_take(argc, argv, &f, &code)) return code;
    options.json = f.json;
    log_setup(&(log_config){.level = LOG_INFO, .json = f.json, .program = "shoal-kvstore"});
    status s = options_take(&f, &options);
    if (s != STATUS_OK) return status_exit_code(s);
    log_setup(&(log_config){.level = options.level, .json = f.json, .program = "shoal-kvstore"});
    return run(&options);
}
