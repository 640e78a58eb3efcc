/* Golden values: the empty string's is published with the XXH3 specification; the others were
 * computed with the Python package xxhash 3 on the same bytes. */
#include "tests/test.h"

#include "proto/proto.h"

static unsigned char block[32768];

static void fill(void)
{
    for (size_t i = 0; i < sizeof block; i++)
        block[i] = (unsigned char)(i * 131 + 7);
}

static const block_id sample = {
    .context = {.hi = 0x0123456789abcdefu, .lo = 0xfedcba9876543210u},
    .layout = 0xa1b2c3d4u,
    .tenant = 7,
    .block = 513,
    .layer = 31,
    .kv_head = 3,
};

TEST(plain_digests_are_xxh3_64)
{
    unsigned char bytes[256];
    for (int i = 0; i < 256; i++)
        bytes[i] = (unsigned char)i;
    fill();
    EXPECT_EQ_X64(bytes_digest(NULL, 0, 0), 0x2d06800538d394c2u);
    EXPECT_EQ_X64(bytes_digest(bytes, 256, 0), 0x9408a4433b952d71u);
    EXPECT_EQ_X64(bytes_digest(bytes, 256, 42), 0xc1a55ca180b3fd0au);
    EXPECT_EQ_X64(bytes_digest(block, sizeof block, 0), 0x6b73bb1bc918757eu);
}

TEST(a_block_digest_is_seeded_by_the_hash_of_its_id)
{
    fill();
    EXPECT_EQ_X64(block_digest(&sample, block, sizeof block), 0xe59cee3e3f6acb55u);
}

TEST(a_flipped_bit_a_torn_end_and_a_foreign_id_all_change_the_digest)
{
    fill();
    const uint64_t whole = block_digest(&sample, block, sizeof block);
    rng r;
    rng_seed(&r, test_seed() + 8);
    for (int i = 0; i < 2000; i++) {
        const uint64_t bit = rng_below(&r, 8 * sizeof block);
        block[bit / 8] ^= (unsigned char)(1u << (bit % 8));
        EXPECT(block_digest(&sample, block, sizeof block) != whole);
        block[bit / 8] ^= (unsigned char)(1u << (bit % 8));
    }
    EXPECT(block_digest(&sample, block, sizeof block - 64) != whole);
    for (size_t i = 0; i < sizeof sample; i++) {
        block_id foreign = sample;
        ((unsigned char *)&foreign)[i] ^= 1;
        EXPECT(block_digest(&foreign, block, sizeof block) != whole);
    }
    EXPECT_EQ_X64(block_digest(&sample, block, sizeof block), whole);
}

TEST_MAIN()
