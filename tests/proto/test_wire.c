/* Frames of the data plane: golden bytes, round trips, hostile bytes. */
#include "proto/wire.h"
#include "tests/test.h"

static const char *hex(const void *bytes, size_t n)
{
    static char text[4096];
    for (size_t i = 0; i < n; i++)
        snprintf(text + 2 * i, sizeof text - 2 * i, "%02x", ((const uint8_t *)bytes)[i]);
    return text;
}

static wire_hello hello_of(void)
{
    wire_hello h = {.owner = 0x1122334455667788,
                    .epoch = 3,
                    .lease_ns = 10000000000,
                    .layout = 0xdeadbeef,
                    .tenant = 7,
                    .block_bytes = 32768};
    wire_head_set(&h.head, WIRE_HELLO, 0, 0);
    return h;
}

static wire_get_list list_of(void)
{
    wire_get_list list = {.count = 5};
    static const struct {
        uint32_t block;
        uint16_t layer, head;
    } want[5] = {{10, 1, 0}, {12, 1, 0}, {73, 1, 0}, {74, 1, 0}, {9, 2, 1}};
    for (uint32_t i = 0; i < 5; i++) {
        list.id[i] =
            (block_id){{0xa1, 0xb2}, 0x01020304, 7, want[i].block, want[i].layer, want[i].head};
        list.slot[i] = 100 + i;
    }
    return list;
}

TEST(frames_have_these_bytes)
{
    wire_hello h = hello_of();
    EXPECT_EQ_STR(hex(&h, sizeof h),
                  "0101380000000000000000000000000088776655443322110300000000000000"
                  "00e40b5402000000efbeadde070000000080000000000000");
    wire_get g = {.epoch = 3, .remaining_ns = 5000000, .class = 2};
    wire_get_list list = list_of();
    uint8_t body[WIRE_GET_BODY_MAX];
    uint32_t bytes = wire_encode_get(&list, &g, body);
    wire_head_set(&g.head, WIRE_GET, 0xfeed, bytes);
    EXPECT_EQ_STR(hex(&g, sizeof g),
                  "0301280074000000edfe0000000000000300000000000000404b4c000000000005000300"
                  "02000000");
    EXPECT_EQ_STR(hex(body, bytes),
                  "a100000000000000b20000000000000005000000000000800a00000001000000"
                  "a100000000000000b20000000000000001000000000000004a00000001000000"
                  "a100000000000000b20000000000000001000000000000000900000002000100"
                  "6400000065000000660000006700000068000000");
    wire_block b = {.epoch = 3, .slot = 102, .ordinal = 2};
    wire_head_set(&b.head, WIRE_BLOCK, 0xfeed, 32768);
    EXPECT_EQ_STR(hex(&b, sizeof b),
                  "0401200000800000edfe000000000000030000000000000066000000020000"
                  "00");
    wire_put p = {.epoch = 3, .id = list.id[0], .digest = 0x8877665544332211, .class = 1};
    wire_head_set(&p.head, WIRE_PUT, 0xbeef, 32768);
    EXPECT_EQ_STR(hex(&p, sizeof p),
                  "0601480000800000efbe0000000000000300000000000000a100000000000000"
                  "b20000000000000004030201070000000a0000000100000011223344556677880100000000"
                  "000000");
    wire_result r = {.epoch = 3, .hint_ns = 1000, .status = STATUS_BUSY};
    wire_head_set(&r.head, WIRE_BUSY, 0xbeef, 0);
    EXPECT_EQ_STR(hex(&r, sizeof r),
                  "0c01280000000000efbe0000000000000300000000000000e803000000000000fcffffff"
                  "00000000");
}

TEST(a_get_comes_back_as_it_was_whatever_its_order)
{
    rng g;
    rng_seed(&g, test_seed());
    for (uint32_t n = 0; n < 2000; n++) {
        wire_get_list list = {.count = 1 + (uint32_t)rng_below(&g, WIRE_GET_MAX)}, back;
        uint32_t block = (uint32_t)rng_below(&g, 100);
        for (uint32_t i = 0; i < list.count; i++) {
            block += rng_below(&g, 4) == 0 ? (uint32_t)rng_below(&g, 1u << 30) - block
                                           : 1 + (uint32_t)rng_below(&g, 20);
            list.id[i] =
                (block_id){{rng_below(&g, 2), 1},     5, 6, block, (uint16_t)rng_below(&g, 2),
                           (uint16_t)rng_below(&g, 2)};
            list.slot[i] = (uint32_t)rng_next(&g);
        }
        wire_get get = {.epoch = 1, .class = 0}, got;
        uint8_t body[WIRE_GET_BODY_MAX];
        uint32_t bytes = wire_encode_get(&list, &get, body);
        wire_head_set(&get.head, WIRE_GET, n + 1, bytes);
        EXPECT(wire_decode_get(&get, sizeof get, body, bytes, &got) == STATUS_OK);
        wire_expand_get(&got, body, 5, 6, &back);
        EXPECT_EQ_U64(back.count, list.count);
        EXPECT_EQ_MEM(back.id, list.id, list.count * sizeof list.id[0]);
        EXPECT_EQ_MEM(back.slot, list.slot, list.count * sizeof list.slot[0]);
    }
}

TEST(wrong_lengths_versions_kinds_and_reserved_bytes_are_invalid)
{
    wire_hello h = hello_of(), out;
    EXPECT(wire_decode_hello(&h, sizeof h, &out) == STATUS_OK);
    for (size_t n = 0; n < sizeof h; n++)
        EXPECT(wire_decode_hello(&h, n, &out) != STATUS_OK);
    wire_hello bad = h;
    bad.head.version = PROTO_VERSION + 1;
    EXPECT(wire_decode_hello(&bad, sizeof bad, &out) == STATUS_INVALID);
    bad = h;
    bad.head.kind = WIRE_LEASE;
    EXPECT(wire_decode_hello(&bad, sizeof bad, &out) == STATUS_INVALID);
    bad = h;
    bad.reserved = 1;
    EXPECT(wire_decode_hello(&bad, sizeof bad, &out) == STATUS_INVALID);
    bad = h;
    bad.block_bytes = 100;
    EXPECT(wire_decode_hello(&bad, sizeof bad, &out) == STATUS_INVALID);
    bad = h;
    bad.layout = 0;
    EXPECT(wire_decode_hello(&bad, sizeof bad, &out) == STATUS_INVALID);
    wire_head head;
    EXPECT(wire_decode_head(&h, sizeof h, 1, &head) == STATUS_INVALID); /* it has no body */
}

TEST(statuses_that_no_table_knows_are_invalid)
{
    wire_done d = {.epoch = 1, .count = 2}, out;
    wire_head_set(&d.head, WIRE_DONE, 1, 0);
    EXPECT(wire_decode_done(&d, sizeof d, &out) == STATUS_OK);
    d.block_status[1] = STATUS_NOT_FOUND;
    EXPECT(wire_decode_done(&d, sizeof d, &out) == STATUS_OK);
    d.block_status[1] = 1;
    EXPECT(wire_decode_done(&d, sizeof d, &out) == STATUS_INVALID);
    d.block_status[1] = -100;
    EXPECT(wire_decode_done(&d, sizeof d, &out) == STATUS_INVALID);
    d.block_status[1] = 0;
    d.block_status[2] = STATUS_CORRUPT; /* past the count */
    EXPECT(wire_decode_done(&d, sizeof d, &out) == STATUS_INVALID);
}

TEST(a_get_whose_runs_and_count_disagree_is_invalid)
{
    wire_get get = {.epoch = 1}, out;
    wire_get_list list = list_of();
    uint8_t body[WIRE_GET_BODY_MAX];
    uint32_t bytes = wire_encode_get(&list, &get, body);
    wire_head_set(&get.head, WIRE_GET, 1, bytes);
    EXPECT(wire_decode_get(&get, sizeof get, body, bytes, &out) == STATUS_OK);
    body[16] |= 2; /* one more wanted than counted */
    EXPECT(wire_decode_get(&get, sizeof get, body, bytes, &out) == STATUS_INVALID);
    body[16] &= (uint8_t)~3; /* bit 0 missing */
    EXPECT(wire_decode_get(&get, sizeof get, body, bytes, &out) == STATUS_INVALID);
    get.class = 4;
    EXPECT(wire_decode_get(&get, sizeof get, body, bytes, &out) == STATUS_INVALID);
}

TEST(map_rows_must_be_printable_ended_and_padded_with_zeros)
{
    wire_map m = {.epoch = 1, .replicas = 2, .node_count = 1}, out;
    wire_node row = {.name = "n0", .data = "127.0.0.1:1", .domain = "d0", .weight = 1, .alive = 1};
    static wire_node rows[WIRE_NODES_MAX];
    wire_head_set(&m.head, WIRE_MAP, 0, sizeof row);
    EXPECT(wire_decode_map(&m, sizeof m, &row, sizeof row, &out, rows) == STATUS_OK);
    wire_node bad = row;
    bad.name[5] = 'x';
    EXPECT(wire_decode_map(&m, sizeof m, &bad, sizeof bad, &out, rows) == STATUS_INVALID);
    bad = row;
    memset(bad.data, 'a', sizeof bad.data);
    EXPECT(wire_decode_map(&m, sizeof m, &bad, sizeof bad, &out, rows) == STATUS_INVALID);
    bad = row;
    bad.domain[0] = '\n';
    EXPECT(wire_decode_map(&m, sizeof m, &bad, sizeof bad, &out, rows) == STATUS_INVALID);
    bad = row;
    bad.alive = 2;
    EXPECT(wire_decode_map(&m, sizeof m, &bad, sizeof bad, &out, rows) == STATUS_INVALID);
    m.node_count = 2;
    EXPECT(wire_decode_map(&m, sizeof m, &row, sizeof row, &out, rows) == STATUS_INVALID);
}

/* Any bytes at all: no crash, and what is accepted encodes back to the same bytes. */
TEST(random_and_mutated_bytes_never_crash_a_decoder)
{
    rng g;
    rng_seed(&g, test_seed() + 1);
    static uint8_t body[WIRE_NODES_MAX * sizeof(wire_node)];
    static wire_node rows[WIRE_NODES_MAX];
    wire_hello h = hello_of();
    uint32_t accepted = 0;
    for (uint32_t n = 0; n < 200000; n++) {
        uint8_t head[WIRE_HEAD_MAX];
        for (size_t i = 0; i < sizeof head; i += 8) {
            uint64_t word = rng_next(&g); /* bits set once in eight: small numbers and zeros */
            word &= rng_next(&g);
            word &= rng_next(&g);
            memcpy(head + i, &word, 8);
        }
        size_t sizes[] = {16, 32, 40, 56, 72, 96, 104, 128};
        size_t size = sizes[rng_below(&g, 8)], body_size = rng_below(&g, 3) * 164;
        head[0] = (uint8_t)(1 + rng_below(&g, WIRE_KINDS));
        head[1] = PROTO_VERSION;
        head[2] = (uint8_t)size;
        head[3] = 0;
        uint32_t body_bytes = (uint32_t)body_size;
        memcpy(head + 4, &body_bytes, 4);
        if (rng_below(&g, 4) == 0) {
            memcpy(head, &h, sizeof h);
            head[rng_below(&g, sizeof h)] ^= (uint8_t)(1u << rng_below(&g, 8));
            size = sizeof h;
            body_size = 0;
        }
        union {
            wire_hello hello;
            wire_welcome welcome;
            wire_get get;
            wire_block block;
            wire_done done;
            wire_put put;
            wire_result result;
            wire_drop drop;
            wire_lease lease;
            wire_map map;
            wire_bye bye;
        } out;
        wire_head frame;
        accepted += wire_decode_head(head, size, body_size, &frame) == STATUS_OK;
        accepted += wire_decode_hello(head, size, &out.hello) == STATUS_OK;
        accepted += wire_decode_welcome(head, size, &out.welcome) == STATUS_OK;
        accepted += wire_decode_block(head, size, body_size, &out.block) == STATUS_OK;
        accepted += wire_decode_done(head, size, &out.done) == STATUS_OK;
        accepted += wire_decode_put(head, size, body_size, &out.put) == STATUS_OK;
        accepted += wire_decode_result(head, size, WIRE_BUSY, &out.result) == STATUS_OK;
        accepted += wire_decode_drop(head, size, &out.drop) == STATUS_OK;
        accepted += wire_decode_lease(head, size, &out.lease) == STATUS_OK;
        accepted += wire_decode_bye(head, size, &out.bye) == STATUS_OK;
        accepted += wire_decode_map(head, size, body, body_size, &out.map, rows) == STATUS_OK;
        if (wire_decode_get(head, size, body, body_size, &out.get) == STATUS_OK) {
            wire_get_list list;
            wire_expand_get(&out.get, body, 1, 1, &list);
            accepted++;
        }
    }
    EXPECT(accepted > 1000);
}

TEST_MAIN()
