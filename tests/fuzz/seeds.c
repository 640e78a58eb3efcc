/* Writes the first inputs of the targets that read binary formats: fuzz_seeds BINARY CALLS (two
 * directories). Each frame kind once, with sane fields; a small safetensors file; packed messages;
 * steps of the control plane. */
#include <stdio.h>
#include <string.h>

#include "proto/shoal_node.pb-c.h"
#include "proto/wire.h"

static int failed;

static void save(const char *directory, const char *name, const void *bytes, size_t count)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    failed |= f == NULL || fwrite(bytes, 1, count, f) != count;
    if (f != NULL) fclose(f);
}

static void frame(const char *directory, const char *name, wire_kind kind, void *head, size_t n,
                  const void *body, size_t body_n)
{
    static uint8_t out[1 + WIRE_HEAD_MAX + 65536];
    wire_head_set(head, kind, 7, (uint32_t)body_n);
    out[0] = (uint8_t)n;
    memcpy(out + 1, head, n);
    if (body_n != 0) memcpy(out + 1 + n, body, body_n);
    save(directory, name, out, 1 + n + body_n);
}

static void frames(const char *directory)
{
    static uint8_t bytes[16384];
    wire_hello hello = {
        .owner = 5, .epoch = 3, .lease_ns = 1000000, .layout = 9, .tenant = 7, .block_bytes = 8192};
    frame(directory, "frame-hello", WIRE_HELLO, &hello, sizeof hello, NULL, 0);
    wire_get_list list = {.count = 2};
    for (uint32_t i = 0; i < 2; i++) {
        list.id[i] = (block_id){.context = {1, 2}, .layout = 9, .tenant = 7, .block = i};
        list.slot[i] = i;
    }
    wire_get get = {.epoch = 3, .remaining_ns = 1000000, .class = 0};
    uint32_t n = wire_encode_get(&list, &get, bytes);
    frame(directory, "frame-get", WIRE_GET, &get, sizeof get, bytes, n);
    memset(bytes, 3, sizeof bytes);
    wire_put put = {.epoch = 3, .id = list.id[0], .class = 1};
    put.digest = block_digest(&put.id, bytes, 8192);
    frame(directory, "frame-put", WIRE_PUT, &put, sizeof put, bytes, 8192);
    wire_drop drop = {.epoch = 3, .context = {1, 2}};
    frame(directory, "frame-drop", WIRE_DROP, &drop, sizeof drop, NULL, 0);
    wire_lease lease = {.epoch = 3, .lease_ns = 1000};
    frame(directory, "frame-lease", WIRE_LEASE, &lease, sizeof lease, NULL, 0);
    wire_welcome welcome = {.incarnation = 1, .epoch = 3, .name = "n0"};
    frame(directory, "frame-welcome", WIRE_WELCOME, &welcome, sizeof welcome, NULL, 0);
    wire_done done = {.epoch = 3, .count = 2};
    frame(directory, "frame-done", WIRE_DONE, &done, sizeof done, NULL, 0);
    wire_result result = {.epoch = 3};
    frame(directory, "frame-result", WIRE_PUT_DONE, &result, sizeof result, NULL, 0);
    wire_block block = {.epoch = 3};
    frame(directory, "frame-block", WIRE_BLOCK, &block, sizeof block, bytes, 8192);
    wire_node row = {
        .name = "n0", .data = "a:1", .control = "a:2", .domain = "d", .weight = 1, .alive = 1};
    wire_map map = {.epoch = 4, .replicas = 1, .node_count = 1};
    frame(directory, "frame-map", WIRE_MAP, &map, sizeof map, &row, sizeof row);
}

static void tensors(const char *directory)
{
    static const char header[] =
        "{\"a\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]},"
        "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]},"
        "\"__metadata__\":{\"format\":\"pt\"}}";
    uint8_t file[8 + sizeof header - 1 + 12] = {0};
    uint64_t n = sizeof header - 1;
    memcpy(file, &n, 8);
    memcpy(file + 8, header, n);
    save(directory, "tensors", file, sizeof file);
}

static void messages(const char *directory)
{
    uint8_t bytes[1024];
    Shoal__V1__NodeStatus m = SHOAL__V1__NODE_STATUS__INIT;
    Shoal__V1__NodeCapacity capacity = SHOAL__V1__NODE_CAPACITY__INIT;
    uint32_t layout = 9;
    m.name = (char *)(uintptr_t) "n0";
    m.version = (char *)(uintptr_t) "0.1.0";
    m.n_layout = 1;
    m.layout = &layout;
    capacity.slots = 100;
    m.capacity = &capacity;
    save(directory, "status", bytes, shoal__v1__node_status__pack(&m, bytes));
}

/* Steps of fuzz_control.c: every method with a body, a poll, a watcher that reads and leaves. */
static void calls(const char *directory)
{
    static const uint8_t each[] = {0,   0,   1,   0,   5,    3,   2,   10,  0,   4,   15,
                                   10,  13,  's', 'h', 'o',  'a', 'l', '.', 'v', '1', '.',
                                   'N', 'o', 'd', 'e', 2,    3,   10,  1,   'x', 5,   7,
                                   4,   6,   4,   7,   0xff, 0,   0,   5};
    static const uint8_t text[] = {3, 4, 10, 2, 'n', '0', 5, 6, 0, 4, 0, 7, 1, 6, 1};
    save(directory, "each", each, sizeof each);
    save(directory, "text", text, sizeof text);
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    calls(argv[2]);
    frames(argv[1]);
    tensors(argv[1]);
    messages(argv[1]);
    return failed;
}
