/* cluster/map.c - the cluster map in a file: the embedded map store.
 *
 * The file is text, one node a line, and ends with the XXH3-64 of everything before that line, so a
 * torn or edited file is told from a valid one. A save writes a new file beside it, syncs it,
 * renames it over the old one and syncs the directory: a reader sees the old map or the new one,
 * whenever the machine stops. The directory is locked while the epoch rule (exactly one newer) is
 * checked and the rename done, so two writers cannot both win.
 *
 * It has one writer, `shoal cluster`; it declares nobody dead. */
#include "cluster/cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAP_PATH_MAX = 512, MAP_FILE_BYTES_MAX = 65536 };
static const char map_head[] = "shoal-map 1\n";

typedef struct file_store {
    char path[MAP_PATH_MAX];
    char directory[MAP_PATH_MAX];
} file_store;

/* ---- text ------------------------------------------------------------------------------------ */

static size_t map_write(const cluster_map *map, char *out, size_t max)
{
    size_t at = 0;
    int n = snprintf(out, max, "%sepoch %" PRIu64 "\nreplicas %" PRIu32 "\n", map_head, map->epoch,
                     map->replicas);
    at += (size_t)n;
    for (uint32_t i = 0; i < map->node_count; i++) {
        const cluster_node *node = &map->node[i];
        n = snprintf(out + at, max - at, "node %s %s %s %s %" PRIu32 " %s\n", node->name,
                     node->data, node->control, node->domain, node->weight,
                     node->alive ? "in" : "out");
        at += (size_t)n;
        CHECK(at < max);
    }
    n = snprintf(out + at, max - at, "digest %016" PRIx64 "\n", bytes_digest(out, at, 0));
    CHECK(at + (size_t)n < max);
    return at + (size_t)n;
}

static bool node_scan(const char *line, cluster_node *out_node)
{
    char state[4] = "";
    int end = -1;
    int got =
        sscanf(line, "node %63s %95s %95s %63s %" SCNu32 " %3s%n", out_node->name, out_node->data,
               out_node->control, out_node->domain, &out_node->weight, state, &end);
    out_node->alive = strcmp(state, "in") == 0;
    return got == 6 && line[end] == '\n' && (out_node->alive || strcmp(state, "out") == 0) &&
           out_node->weight >= 1 && out_node->weight <= CLUSTER_WEIGHT_MAX;
}

static status map_scan(const char *path, char *text, size_t bytes, cluster_map *out_map)
{
    cluster_map map = {0};
    char *last = text + bytes - 1;
    while (last > text && last[-1] != '\n')
        last--;
    uint64_t digest = 0;
    int end = -1;
    if (bytes == 0 || sscanf(last, "digest %16" SCNx64 "%n", &digest, &end) != 1 ||
        strcmp(last + end, "\n") != 0 || digest != bytes_digest(text, (size_t)(last - text), 0))
        return FAIL(CORRUPT,
                    "%s: the map's last line is not the digest of the lines before it; "
                    "remove the file once its nodes are down",
                    path);
    *last = '\0';
    end = -1;
    if (strncmp(text, map_head, sizeof map_head - 1) != 0 ||
        sscanf(text + sizeof map_head - 1, "epoch %" SCNu64 "\nreplicas %" SCNu32 "%n", &map.epoch,
               &map.replicas, &end) != 2 ||
        map.epoch < 1 || map.replicas < 1 || map.replicas > CLUSTER_REPLICAS_MAX)
        return FAIL(INVALID, "%s: not a map of version 1", path);
    char *line = text + sizeof map_head - 1 + end;
    for (line += *line == '\n'; *line; line = strchr(line, '\n') + 1) {
        if (map.node_count == CLUSTER_NODES_MAX || !node_scan(line, &map.node[map.node_count]))
            return FAIL(INVALID, "%s: node %" PRIu32 " cannot be read", path, map.node_count + 1);
        map.node_count++;
    }
    *out_map = map;
    return STATUS_OK;
}

/* ---- file ------------------------------------------------------------------------------------ */

static status file_load(void *self, cluster_map *out_map)
{
    const file_store *store = self;
    char text[MAP_FILE_BYTES_MAX];
    FILE *file = fopen(store->path, "re");
    if (!file && errno == ENOENT) return STATUS_NOT_FOUND;
    if (!file) return FAIL(IO, "%s: cannot be opened: %s", store->path, strerror(errno));
    size_t bytes = fread(text, 1, sizeof text - 1, file);
    bool failed = ferror(file) != 0;
    fclose(file);
    if (failed) return FAIL(IO, "%s: cannot be read: %s", store->path, strerror(errno));
    text[bytes] = '\0';
    if (memchr(text, '\0', bytes)) return FAIL(CORRUPT, "%s: holds a zero byte", store->path);
    return map_scan(store->path, text, bytes, out_map);
}

static status write_all(const char *path, const char *text, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) return FAIL(IO, "%s: cannot be created: %s", path, strerror(errno));
    status result = STATUS_OK;
    for (size_t at = 0; at < bytes && result == STATUS_OK;) {
        ssize_t n = write(fd, text + at, bytes - at);
        if (n > 0)
            at += (size_t)n;
        else if (n < 0 && errno != EINTR)
            result = errno == ENOSPC ? FAIL(NO_SPACE, "%s: the disk is full", path)
                                     : FAIL(IO, "%s: cannot be written: %s", path, strerror(errno));
    }
    if (result == STATUS_OK && fsync(fd) != 0)
        result = FAIL(IO, "%s: cannot be synced: %s", path, strerror(errno));
    close(fd);
    return result;
}

/* With the directory locked: the epoch rule, then the new file in place of the old. */
static status save_locked(file_store *store, const cluster_map *map, int directory)
{
    cluster_map old = {0};
    status s = file_load(store, &old);
    if (s != STATUS_OK && s != STATUS_NOT_FOUND) return s;
    if (map->epoch != old.epoch + 1)
        return FAIL(FENCED, "%s: holds epoch %" PRIu64 ", so epoch %" PRIu64 " cannot follow it",
                    store->path, old.epoch, map->epoch);
    char text[MAP_FILE_BYTES_MAX];
    size_t bytes = map_write(map, text, sizeof text);
    char fresh[MAP_PATH_MAX + 8];
    snprintf(fresh, sizeof fresh, "%s.new", store->path);
    s = write_all(fresh, text, bytes);
    if (s == STATUS_OK && rename(fresh, store->path) != 0)
        s = FAIL(IO, "%s: cannot be put in place: %s", store->path, strerror(errno));
    if (s != STATUS_OK) {
        unlink(fresh);
        return s;
    }
    if (fsync(directory) != 0)
        return FAIL(IO, "%s: cannot be synced: %s", store->directory, strerror(errno));
    return STATUS_OK;
}

static status file_save(void *self, const cluster_map *map)
{
    file_store *store = self;
    CHECK(map->node_count <= CLUSTER_NODES_MAX);
    int directory = open(store->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return FAIL(IO, "%s: cannot be opened: %s", store->directory, strerror(errno));
    status s = STATUS_OK;
    while (flock(directory, LOCK_EX) != 0 && s == STATUS_OK)
        if (errno != EINTR)
            s = FAIL(IO, "%s: cannot be locked: %s", store->directory, strerror(errno));
    if (s == STATUS_OK) s = save_locked(store, map, directory);
    close(directory); /* unlocks */
    return s;
}

status cluster_map_store_file(arena *a, const char *path, map_store_ops *out_store)
{
    CHECK(a && path && out_store);
    if (strlen(path) >= MAP_PATH_MAX || *path == '\0')
        return FAIL(INVALID, "a map's path has 1 to %d bytes", MAP_PATH_MAX - 1);
    file_store *store = ARENA_NEW(a, file_store, 1);
    snprintf(store->path, sizeof store->path, "%s", path);
    snprintf(store->directory, sizeof store->directory, "%s", path);
    char *slash = strrchr(store->directory, '/');
    if (!slash)
        snprintf(store->directory, sizeof store->directory, ".");
    else
        slash[slash == store->directory] = '\0';
    *out_store = (map_store_ops){.load = file_load, .save = file_save, .self = store};
    return STATUS_OK;
}
