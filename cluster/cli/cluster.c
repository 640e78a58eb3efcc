/* cluster/cli/cluster.c - `shoal cluster up` and `down`: the nodes of this host as one thing.
 *
 * `up` is idempotent: nodes that run stay, missing ones are started, and it returns when each says
 * SERVING. If one does not, those that this call started are stopped again. Two calls at a time
 * exclude each other by a lock on the configuration file. What cluster_listen_check refuses is
 * refused here, before a node is started. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cluster/cli/ask.h"
#include "cluster/cli/cli.h"
#include "cluster/cli/daemon.h"

static const char map_name[] = "cluster"; /* state_dir/cluster.map */

static status open_locked(const char *path, int *out_fd)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return FAIL(IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return FAIL(BUSY, "%s: another `shoal cluster up` or `down` is at work on it; wait for it",
                    path);
    }
    *out_fd = fd;
    return STATUS_OK;
}

static status make_folders(const char *path)
{
    char part[512];
    size_t length = strlen(path);
    CHECK(length < sizeof part);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        snprintf(part, sizeof part, "%.*s", (int)i, path);
        if (mkdir(part, 0755) != 0 && errno != EEXIST)
            return FAIL(IO, "%s: cannot be created: %s; set state_dir to a folder of yours", part,
                        strerror(errno));
    }
    if (access(path, W_OK | X_OK) != 0)
        return FAIL(IO, "%s: cannot be written: %s; set state_dir to a folder of yours", path,
                    strerror(errno));
    return STATUS_OK;
}

static bool maps_agree(const cluster_map *a, const cluster_map *b)
{
    if (a->replicas != b->replicas || a->node_count != b->node_count) return false;
    for (uint32_t i = 0; i < a->node_count; i++) {
        const cluster_node *x = &a->node[i], *y = &b->node[i];
        if (strcmp(x->name, y->name) != 0 || strcmp(x->data, y->data) != 0 ||
            strcmp(x->control, y->control) != 0 || strcmp(x->domain, y->domain) != 0 ||
            x->weight != y->weight || x->alive != y->alive)
            return false;
    }
    return true;
}

/* The map file follows the configuration file: the same nodes keep the epoch, others raise it. */
static status publish_map(const cluster_config *config, uint64_t *out_epoch)
{
    char path[512];
    daemon_path(config->state_dir, map_name, "map", path);
    cluster_map map = config->map, old;
    map_store_ops store;
    arena *memory = arena_create("map store");
    status s = cluster_map_store_file(memory, path, &store);
    if (s == STATUS_OK) s = store.load(store.self, &old);
    if (s == STATUS_OK && maps_agree(&old, &map)) {
        map.epoch = old.epoch;
    } else if (s == STATUS_OK || s == STATUS_NOT_FOUND) {
        map.epoch = s == STATUS_OK ? old.epoch + 1 : 1;
        s = store.save(store.self, &map);
    }
    arena_destroy(memory);
    if (s == STATUS_OK) *out_epoch = map.epoch;
    return s;
}

static status check_addresses(const cluster_config *config, const char *path)
{
    if (config->map.node_count == 0)
        return FAIL(INVALID, "%s: names no nodes; add some under nodes:", path);
    for (uint32_t i = 0; i < config->map.node_count; i++) {
        const cluster_node *node = &config->map.node[i];
        TRY(cluster_listen_check(config, node->data, node->control));
    }
    return STATUS_OK;
}

typedef struct launch {
    const char *file; /* that config is from */
    const cluster_config *config;
    daemon_process process[CLUSTER_NODES_MAX];
    bool ours[CLUSTER_NODES_MAX]; /* started by this call */
    bool serving[CLUSTER_NODES_MAX];
    uint32_t started, serving_count;
} launch;

static void roll_back(launch *l)
{
    for (uint32_t i = 0; i < l->config->map.node_count; i++) {
        bool killed = false;
        if (l->ours[i])
            (void)daemon_stop(l->config->state_dir, l->config->map.node[i].name, 2000000000,
                              &killed);
    }
}

static status start_missing(launch *l)
{
    const cluster_map *map = &l->config->map;
    for (uint32_t i = 0; i < map->node_count; i++) {
        l->process[i] = daemon_find(l->config->state_dir, map->node[i].name);
        if (l->process[i].pid) continue;
        TRY(daemon_address_free(&map->node[i], "data", map->node[i].data));
        TRY(daemon_address_free(&map->node[i], "control", map->node[i].control));
    }
    for (uint32_t i = 0; i < map->node_count; i++) {
        if (l->process[i].pid) continue;
        if (cli_interrupted())
            return FAIL(CANCELED, "interrupted; what was started is stopped again");
        TRY(daemon_start(l->file, l->config, &map->node[i], &l->process[i]));
        l->ours[i] = true;
        l->started++;
    }
    return STATUS_OK;
}

static status await_serving(launch *l, uint64_t timeout_ns)
{
    const cluster_map *map = &l->config->map;
    uint64_t until = clock_now(&clock_monotonic) + timeout_ns;
    for (uint32_t i = 0; i < map->node_count;) {
        cli_progress("nodes serving: %" PRIu32 " of %" PRIu32 ", waiting for %s", l->serving_count,
                     map->node_count, map->node[i].name);
        const ask_whom whom = {l->config, map->node[i].control, 250};
        if (ask_health(&whom)) {
            l->serving[i++] = true;
            l->serving_count++;
            continue;
        }
        /* One that ran before may have been told to drain: it stays as it is. */
        ask_answer answer;
        if (!l->ours[i] && ask_node(&whom, &answer) == STATUS_OK && answer.state == ASK_DRAINING) {
            i++;
            continue;
        }
        if (cli_interrupted())
            return FAIL(CANCELED, "interrupted; what was started is stopped again");
        if (!daemon_alive(l->process[i])) {
            char words[420];
            daemon_last_words(l->config->state_dir, map->node[i].name, words, sizeof words);
            return FAIL(IO, "node %s ended at its start; the last line of %s/%s.log: %s",
                        map->node[i].name, l->config->state_dir, map->node[i].name, words);
        }
        if (clock_now(&clock_monotonic) >= until)
            return FAIL(DEADLINE,
                        "node %s runs but does not serve; see %s/%s.log, or raise --timeout",
                        map->node[i].name, l->config->state_dir, map->node[i].name);
        cli_pause();
    }
    cli_progress_end();
    return STATUS_OK;
}

static void print_up(const cli_call *call, const launch *l, uint64_t epoch)
{
    const cluster_map *map = &l->config->map;
    if (!call->json) {
        if (l->serving_count < map->node_count)
            printf("%" PRIu32
                   " nodes drain and take no new blocks; `down` and `up` start them afresh\n",
                   map->node_count - l->serving_count);
        printf("%" PRIu32 " nodes serve, %" PRIu32 " of them started now; %" PRIu32
               " copies of each block, map epoch %" PRIu64 "\n",
               l->serving_count, l->started, map->replicas, epoch);
        return;
    }
    printf("{\"schema\":\"shoal.cluster_up/1\",\"nodes\":%" PRIu32 ",\"serving\":%" PRIu32
           ",\"started\":%" PRIu32 ",\"replicas\":%" PRIu32 ",\"epoch\":%" PRIu64 ",\"pids\":[",
           map->node_count, l->serving_count, l->started, map->replicas, epoch);
    for (uint32_t i = 0; i < map->node_count; i++)
        printf("%s%d", i ? "," : "", (int)l->process[i].pid);
    printf("]}\n");
}

status cli_cluster_up(const cli_call *call)
{
    cluster_config config;
    TRY(cluster_config_load(call->config, &config));
    TRY(check_addresses(&config, call->config));
    int lock = -1;
    TRY(open_locked(call->config, &lock));
    cli_catch_signals();
    launch l = {.file = call->config, .config = &config};
    uint64_t epoch = 0;
    status s = make_folders(config.state_dir);
    if (s == STATUS_OK) s = start_missing(&l);
    if (s == STATUS_OK) s = publish_map(&config, &epoch);
    if (s == STATUS_OK) s = await_serving(&l, call->timeout_ns);
    if (s == STATUS_OK)
        print_up(call, &l, epoch);
    else
        roll_back(&l);
    close(lock);
    return s;
}

status cli_cluster_down(const cli_call *call)
{
    cluster_config config;
    TRY(cluster_config_load(call->config, &config));
    int lock = -1;
    TRY(open_locked(call->config, &lock));
    cli_catch_signals();
    uint32_t stopped = 0, killed_count = 0;
    status result = STATUS_OK;
    char path[512];
    for (uint32_t i = 0; i < config.map.node_count; i++) {
        const char *name = config.map.node[i].name;
        bool running = daemon_find(config.state_dir, name).pid != 0, killed = false;
        cli_progress("stopping %s", name);
        status s = daemon_stop(config.state_dir, name, call->timeout_ns, &killed);
        if (s != STATUS_OK && result == STATUS_OK) result = s;
        stopped += running && s == STATUS_OK;
        killed_count += killed;
        daemon_path(config.state_dir, name, "log", path);
        if (!killed && s == STATUS_OK) unlink(path); /* the log of a killed one may tell why */
    }
    cli_progress_end();
    if (result == STATUS_OK) {
        daemon_path(config.state_dir, map_name, "map", path);
        unlink(path);
        rmdir(config.state_dir); /* stays when it holds a log, or anything that is not ours */
    }
    close(lock);
    if (call->json)
        printf("{\"schema\":\"shoal.cluster_down/1\",\"stopped\":%" PRIu32 ",\"killed\":%" PRIu32
               "}\n",
               stopped, killed_count);
    else
        printf("%" PRIu32 " nodes stopped, %" PRIu32 " of them killed\n", stopped, killed_count);
    if (result == STATUS_OK && cli_interrupted())
        return FAIL(CANCELED, "interrupted; every node is stopped");
    return result;
}
