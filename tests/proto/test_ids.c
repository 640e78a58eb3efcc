/* Golden values were computed from the specification with the Python package xxhash 3, from bytes
 * packed by struct, not by this code. */
#include "tests/test.h"

#include "proto/proto.h"

static const block_id sample = {
    .context = {.hi = 0x0123456789abcdefu, .lo = 0xfedcba9876543210u},
    .layout = 0xa1b2c3d4u,
    .tenant = 7,
    .block = 513,
    .layer = 31,
    .kv_head = 3,
};

TEST(a_block_id_travels_as_these_32_bytes)
{
    static const unsigned char golden[32] = {
        0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 0x10, 0x32, 0x54,
        0x76, 0x98, 0xba, 0xdc, 0xfe, 0xd4, 0xc3, 0xb2, 0xa1, 0x07, 0x00,
        0x00, 0x00, 0x01, 0x02, 0x00, 0x00, 0x1f, 0x00, 0x03, 0x00,
    };
    EXPECT_EQ_MEM(&sample, golden, sizeof golden);
    EXPECT_EQ_X64(block_id_hash(&sample), 0x6121b3b16d2af6d7u);
}

TEST(ids_are_equal_only_when_every_field_is)
{
    EXPECT(block_id_equal(&sample, &sample));
    for (size_t i = 0; i < sizeof sample; i++) {
        block_id other = sample;
        ((unsigned char *)&other)[i] ^= 0x40;
        EXPECT(!block_id_equal(&sample, &other));
        EXPECT(block_id_hash(&sample) != block_id_hash(&other));
    }
}

TEST(the_text_of_an_id_names_context_layer_head_and_block)
{
    char text[BLOCK_ID_TEXT];
    EXPECT_EQ_STR(block_id_text(&sample, text), "0123456789abcdeffedcba9876543210/31/3/513");
    const block_id widest = {.context = {UINT64_MAX, UINT64_MAX},
                             .block = UINT32_MAX,
                             .layer = UINT16_MAX,
                             .kv_head = UINT16_MAX};
    EXPECT_EQ_STR(block_id_text(&widest, text),
                  "ffffffffffffffffffffffffffffffff/65535/65535/4294967295");
}

TEST(random_context_ids_differ)
{
    context_id a, b;
    EXPECT_OK(context_id_random(&a));
    EXPECT_OK(context_id_random(&b));
    EXPECT(context_id_equal(a, a));
    EXPECT(!context_id_equal(a, b));
    EXPECT(!context_id_equal(a, (context_id){a.hi, ~a.lo}));
    EXPECT(!context_id_equal(a, (context_id){~a.hi, a.lo}));
}

TEST(a_layout_hash_is_golden_and_depends_on_every_field)
{
    const block_layout layout = {64, 128, 2, 32, 2, 0x1122334455667788u};
    /* XXH3-64 of the 28 packed bytes is 0x2f35949b95cab6d8; the halves are folded. */
    const uint32_t hash = layout_hash(&layout);
    EXPECT_EQ_X64(hash, 0x2f35949bu ^ 0x95cab6d8u);
    EXPECT_EQ_U64(block_layout_bytes(&layout), 32768);

    const block_layout others[] = {
        {32, 128, 2, 32, 2, 0x1122334455667788u}, {64, 64, 2, 32, 2, 0x1122334455667788u},
        {64, 128, 4, 32, 2, 0x1122334455667788u}, {64, 128, 2, 31, 2, 0x1122334455667788u},
        {64, 128, 2, 32, 8, 0x1122334455667788u}, {64, 128, 2, 32, 2, 0x1122334455667789u},
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        EXPECT(layout_hash(&others[i]) != hash);
        EXPECT(layout_hash(&others[i]) != 0);
    }
}

TEST_MAIN()
