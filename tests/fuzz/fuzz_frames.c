/* Frames of the data plane: every decoder on the bytes, then a node that gets them from a peer.
 *
 * Input: [1] bytes of head n (up to 128), head, body; for the node the first byte of the head picks
 * what comes, as on the wire. The node keeps its state from input to input, as a daemon does. */
#include "kvstore/server.h"
#include "tests/fuzz/fuzz.h"

enum { PEER = 5, SENDS = 256 };

/* A transport with one peer: what the node sends is taken and given back at the next poll. */
typedef struct sink {
    kv_transport base;
    uint64_t cookie[SENDS];
    uint32_t count;
    bool open, closing;
} sink;

static status sink_listen(kv_transport *t, const char *address, char bound[CLUSTER_ADDRESS_MAX])
{
    (void)t;
    snprintf(bound, CLUSTER_ADDRESS_MAX, "%s", address);
    return STATUS_OK;
}

static status sink_dial(kv_transport *t, const char *address, kv_peer *out_peer)
{
    (void)t, (void)address, (void)out_peer;
    return STATUS_UNREACHABLE;
}

static status sink_send(kv_transport *t, kv_peer peer, const kv_message *m)
{
    sink *s = (sink *)t;
    CHECK(peer == PEER && m->head_bytes <= WIRE_HEAD_MAX);
    if (s->closing) return STATUS_PEER_LOST;
    if (s->count == SENDS) return STATUS_BUSY;
    if (m->body_bytes != 0) s->cookie[s->count++] = m->cookie;
    return STATUS_OK;
}

static void sink_hang_up(kv_transport *t, kv_peer peer)
{
    CHECK(peer == PEER);
    ((sink *)t)->closing = true;
}

static bool sink_poll(kv_transport *t)
{
    sink *s = (sink *)t;
    while (s->count > 0)
        s->base.events->sent(s->base.owner, PEER, s->cookie[--s->count]);
    if (s->closing) {
        s->closing = s->open = false;
        s->base.events->closed(s->base.owner, PEER, STATUS_OK);
    }
    if (!s->open) {
        s->open = true;
        s->base.events->opened(s->base.owner, PEER);
    }
    return false;
}

static void sink_wait(kv_transport *t, int wake_fd, uint64_t ns)
{
    (void)t, (void)wake_fd, (void)ns;
}

static void sink_close(kv_transport *t)
{
    (void)t;
}

static const kv_transport_ops sink_ops = {.listen = sink_listen,
                                          .dial = sink_dial,
                                          .send = sink_send,
                                          .hang_up = sink_hang_up,
                                          .poll = sink_poll,
                                          .wait = sink_wait,
                                          .close = sink_close};

static uint64_t now_ns = 1000;

static uint64_t fuzz_now(void *self)
{
    (void)self;
    return now_ns += 50 * 1000;
}

static sink peer = {.base.ops = &sink_ops};
static kv_server *node;

static void node_start(void)
{
    static arena *memory;
    memory = arena_create("fuzz node");
    kv_server_config config = {
        .memory = memory,
        .transport = &peer.base,
        .clock = {fuzz_now, NULL},
        .seed = 1,
        .name = "n0",
        .listen = "fuzz:0",
        .memory_bytes = 64 * 8192,
        .lease_grace_ns = 1000 * 1000,
        .connections_max = 2,
        .epoch = 3,
    };
    CHECK(kv_server_create(&config, &node) == STATUS_OK);
}

static void decode_all(const uint8_t *head, size_t n, const uint8_t *body, size_t body_n)
{
    static wire_node rows[WIRE_NODES_MAX];
    static wire_get_list list;
    wire_head h;
    wire_hello hello;
    wire_welcome welcome;
    wire_block block;
    wire_done done;
    wire_put put;
    wire_result result;
    wire_drop drop;
    wire_lease lease;
    wire_bye bye;
    wire_get get;
    wire_map map;
    (void)wire_decode_head(head, n, body_n, &h);
    (void)wire_decode_hello(head, n, &hello);
    if (wire_decode_welcome(head, n, &welcome) == STATUS_OK)
        CHECK(strnlen(welcome.name, sizeof welcome.name) < sizeof welcome.name);
    (void)wire_decode_block(head, n, body_n, &block);
    (void)wire_decode_done(head, n, &done);
    (void)wire_decode_put(head, n, body_n, &put);
    (void)wire_decode_result(head, n, WIRE_PUT_DONE, &result);
    (void)wire_decode_result(head, n, WIRE_DROP_DONE, &result);
    (void)wire_decode_result(head, n, WIRE_BUSY, &result);
    (void)wire_decode_drop(head, n, &drop);
    (void)wire_decode_lease(head, n, &lease);
    (void)wire_decode_bye(head, n, &bye);
    if (wire_decode_get(head, n, body, body_n, &get) == STATUS_OK) {
        wire_expand_get(&get, body, 1, 2, &list);
        CHECK(list.count == get.count && list.count <= WIRE_GET_MAX);
    }
    if (wire_decode_map(head, n, body, body_n, &map, rows) == STATUS_OK)
        CHECK(map.node_count <= WIRE_NODES_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) return 0;
    size_t n = data[0] < size - 1 ? data[0] : size - 1;
    if (n > WIRE_HEAD_MAX) n = WIRE_HEAD_MAX;
    /* Copies of exact size and wire alignment, so that a read past the end is seen. */
    size_t body_n = size - 1 - n;
    uint8_t *head = malloc(n > 0 ? n : 1), *body = malloc(body_n > 0 ? body_n : 1);
    CHECK(head != NULL && body != NULL);
    memcpy(head, data + 1, n);
    memcpy(body, data + 1 + n, body_n);
    decode_all(head, n, body, body_n);
    if (node == NULL) node_start();
    kv_server_poll(node);
    kv_message m = {.head = head,
                    .head_bytes = (uint32_t)n,
                    .body = body_n > 0 ? body : NULL,
                    .body_bytes = (uint32_t)body_n};
    if (peer.open && !peer.closing) peer.base.events->message(peer.base.owner, PEER, &m);
    kv_server_poll(node);
    kv_server_stats stats;
    kv_server_stats_read(node, &stats);
    CHECK(stats.slots_free + stats.slots_used + stats.slots_reserved == stats.slots);
    free(head);
    free(body);
    return 0;
}
