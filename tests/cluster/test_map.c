#include <sys/stat.h>
#include <unistd.h>

#include "cluster/cluster.h"
#include "tests/test.h"

static cluster_map map_of(uint64_t epoch)
{
    cluster_map map = {.epoch = epoch, .replicas = 2, .node_count = 3};
    for (uint32_t i = 0; i < 3; i++) {
        cluster_node *n = &map.node[i];
        snprintf(n->name, sizeof n->name, "n%u", i);
        snprintf(n->data, sizeof n->data, "127.0.0.1:71%02u", i);
        snprintf(n->control, sizeof n->control, "127.0.0.1:72%02u", i);
        snprintf(n->domain, sizeof n->domain, "d%u", i);
        n->weight = i + 1;
        n->alive = i != 1;
    }
    return map;
}

static const char *path_of(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    return path;
}

static size_t read_file(const char *path, char *out, size_t max)
{
    FILE *f = fopen(path, "r");
    EXPECT(f != NULL);
    size_t n = fread(out, 1, max, f);
    fclose(f);
    return n;
}

static void write_file(const char *path, const char *text, size_t n)
{
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL && fwrite(text, 1, n, f) == n);
    fclose(f);
}

TEST(a_saved_map_is_loaded_as_it_was)
{
    arena *a = arena_create("test");
    map_store_ops store;
    EXPECT_OK(cluster_map_store_file(a, path_of("map"), &store));
    cluster_map map = map_of(1), got;
    EXPECT_STATUS(store.load(store.self, &got), STATUS_NOT_FOUND);
    EXPECT_OK(store.save(store.self, &map));
    EXPECT_OK(store.load(store.self, &got));
    EXPECT_EQ_U64(got.epoch, 1);
    EXPECT_EQ_U64(got.replicas, 2);
    EXPECT_EQ_U64(got.node_count, 3);
    for (uint32_t i = 0; i < 3; i++) {
        EXPECT_EQ_STR(got.node[i].name, map.node[i].name);
        EXPECT_EQ_STR(got.node[i].data, map.node[i].data);
        EXPECT_EQ_STR(got.node[i].control, map.node[i].control);
        EXPECT_EQ_STR(got.node[i].domain, map.node[i].domain);
        EXPECT_EQ_U64(got.node[i].weight, map.node[i].weight);
        EXPECT(got.node[i].alive == map.node[i].alive);
    }
    EXPECT(access(path_of("map.new"), F_OK) != 0);
    arena_destroy(a);
}

TEST(only_the_next_epoch_is_saved)
{
    arena *a = arena_create("test");
    map_store_ops store;
    EXPECT_OK(cluster_map_store_file(a, path_of("map"), &store));
    cluster_map map = map_of(2), got;
    EXPECT_STATUS(store.save(store.self, &map), STATUS_FENCED);
    map.epoch = 1;
    EXPECT_OK(store.save(store.self, &map));
    EXPECT_STATUS(store.save(store.self, &map), STATUS_FENCED);
    map.epoch = 3;
    EXPECT_STATUS(store.save(store.self, &map), STATUS_FENCED);
    map.epoch = 2;
    map.replicas = 1;
    EXPECT_OK(store.save(store.self, &map));
    EXPECT_OK(store.load(store.self, &got));
    EXPECT(got.epoch == 2 && got.replicas == 1);
    arena_destroy(a);
}

TEST(any_changed_or_missing_byte_is_corrupt)
{
    arena *a = arena_create("test");
    map_store_ops store;
    EXPECT_OK(cluster_map_store_file(a, path_of("map"), &store));
    cluster_map map = map_of(1), got = {.epoch = 99};
    EXPECT_OK(store.save(store.self, &map));
    char text[4096], bad[4096];
    size_t n = read_file(path_of("map"), text, sizeof text);
    log_setup(&(log_config){.level = LOG_ERROR, .file = fopen("/dev/null", "w")});
    for (size_t i = 0; i < n; i++) {
        memcpy(bad, text, n);
        bad[i] ^= 1;
        write_file(path_of("map"), bad, n);
        /* a digit of the digest in the other case is still that digit */
        EXPECT_MSG(store.load(store.self, &got) == STATUS_CORRUPT, "byte %zu", i);
        write_file(path_of("map"), text, i);
        EXPECT_MSG(store.load(store.self, &got) == STATUS_CORRUPT, "cut at %zu", i);
        EXPECT_STATUS(store.save(store.self, &map), STATUS_CORRUPT);
    }
    EXPECT_EQ_U64(got.epoch, 99);
    write_file(path_of("map"), text, n);
    EXPECT_OK(store.load(store.self, &got));
    arena_destroy(a);
}

TEST(a_full_map_of_the_longest_names_fits)
{
    arena *a = arena_create("test");
    map_store_ops store;
    EXPECT_OK(cluster_map_store_file(a, path_of("map"), &store));
    cluster_map map = map_of(1), got;
    map.node_count = CLUSTER_NODES_MAX;
    for (uint32_t i = 0; i < CLUSTER_NODES_MAX; i++) {
        cluster_node *n = &map.node[i];
        snprintf(n->name, sizeof n->name, "%063u", i);
        snprintf(n->domain, sizeof n->domain, "%063u", i);
        snprintf(n->data, sizeof n->data, "%095u", i);
        snprintf(n->control, sizeof n->control, "%095u", i);
        n->weight = CLUSTER_WEIGHT_MAX;
        n->alive = true;
    }
    EXPECT_OK(store.save(store.self, &map));
    EXPECT_OK(store.load(store.self, &got));
    EXPECT_EQ_U64(got.node_count, CLUSTER_NODES_MAX);
    EXPECT_EQ_STR(got.node[63].control, map.node[63].control);
    arena_destroy(a);
}

TEST(a_folder_that_is_missing_is_an_io_error)
{
    arena *a = arena_create("test");
    map_store_ops store;
    EXPECT_OK(cluster_map_store_file(a, path_of("no/such/map"), &store));
    cluster_map map = map_of(1);
    EXPECT_STATUS(store.save(store.self, &map), STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "no/such");
    EXPECT_STATUS(cluster_map_store_file(a, "", &store), STATUS_INVALID);
    arena_destroy(a);
}

TEST_MAIN()
