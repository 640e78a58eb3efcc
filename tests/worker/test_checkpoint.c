/* Safetensors: what is read, and one sentence for everything that is not. */
#include "kernels/kernels.h"
#include "tests/worker/support.h"
#include "worker/checkpoint.h"

#include <sys/stat.h>

/* A file in the test's directory: header length (its own unless given), header, data bytes. */
typedef struct file_case {
    const char *header;
    uint64_t data_bytes;
    uint64_t length; /* 0: strlen(header) */
    status want;
    const char *sentence;
} file_case;

static void write_file(const char *name, const file_case *f)
{
    char file[1024] = {0};
    size_t header = strlen(f->header);
    uint64_t length = f->length ? f->length : header;
    EXPECT(8 + header + f->data_bytes <= sizeof file);
    memcpy(file, &length, 8);
    memcpy(file + 8, f->header, header);
    for (uint64_t i = 0; i < f->data_bytes; i++)
        file[8 + header + i] = (char)i;
    support_write(name, file, 8 + header + f->data_bytes);
}

#define ONE(shape, offsets)                                                                        \
    "{\"a\":{\"dtype\":\"BF16\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second)                                                                         \
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" first                               \
    "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" second "}}"

/* clang-format off */
static const file_case cases[] = {
    /* good ones first, so that the table can fail */
    {ONE("[2,3]", "[0,12]"), 12, 0, STATUS_OK, ""},
    {ONE("[2,3]", "[0,12]") "      ", 12, 0, STATUS_OK, ""},
    {ONE("[]", "[0,2]"), 2, 0, STATUS_OK, ""},
    {ONE("[0,7]", "[0,0]"), 0, 0, STATUS_OK, ""},
    {TWO("[4,8]", "[0,4]"), 8, 0, STATUS_OK, ""},
    {"{\"__metadata__\":{\"format\":\"pt\"}}", 0, 0, STATUS_OK, ""},
    {"{}", 0, 0, STATUS_OK, ""},
    /* truncated */
    {ONE("[2,3]", "[0,12]"), 11, 0, STATUS_INVALID, "tensor a ends at byte 12 of the data, but the file holds 11"},
    {ONE("[2,3]", "[0,12]"), 0, 4000, STATUS_INVALID, "exceeds the file"},
    {ONE("[2,3]", "[0,12]"), 12, UINT64_MAX, STATUS_INVALID, "exceeds the format's 100 MB"},
    {ONE("[2,3]", "[0,12]"), 12, UINT64_MAX - 7, STATUS_INVALID, "exceeds the format's 100 MB"},
    {ONE("[2,3]", "[0,12]"), 12, (uint64_t)1 << 63, STATUS_INVALID, "exceeds the format's 100 MB"},
    {ONE("[2,3]", "[0,12]"), 12, 40, STATUS_INVALID, "not valid JSON"},
    /* overlaps, holes, ends */
    {TWO("[0,4]", "[3,7]"), 7, 0, STATUS_INVALID, "tensor b overlaps tensor a"},
    {TWO("[0,4]", "[0,4]"), 4, 0, STATUS_INVALID, "overlaps"},
    {TWO("[0,4]", "[5,9]"), 9, 0, STATUS_INVALID, "hole of 1 bytes before tensor b"},
    {TWO("[1,5]", "[5,9]"), 9, 0, STATUS_INVALID, "hole of 1 bytes before tensor a"},
    {TWO("[0,4]", "[4,8]"), 9, 0, STATUS_INVALID, "1 bytes after the last tensor"},
    {"{}", 1, 0, STATUS_INVALID, "1 bytes after the last tensor"},
    /* misshapen */
    {ONE("[2,4]", "[0,12]"), 12, 0, STATUS_INVALID, "tensor a: its shape and dtype do not make the 12 bytes"},
    {ONE("[2,3]", "[0,6]"), 6, 0, STATUS_INVALID, "do not make the 6 bytes"},
    {ONE("[4294967296,4294967296]", "[0,0]"), 0, 0, STATUS_INVALID, "more elements than 2^64"},
    {ONE("[4294967296,2147483648]", "[0,0]"), 0, 0, STATUS_INVALID, "do not make the 0 bytes"},
    {ONE("[2,-3]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,3.5]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,1e300]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,1e999]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,\"3\"]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,null]", "[0,12]"), 12, 0, STATUS_INVALID, "something else than whole numbers"},
    {ONE("[2,NaN]", "[0,12]"), 12, 0, STATUS_INVALID, "not valid JSON"},
    {ONE("[1,1,1,1,1,1,1,1,6]", "[0,12]"), 12, 0, STATUS_INVALID, "at most 8 numbers"},
    {ONE("6", "[0,12]"), 12, 0, STATUS_INVALID, "\"shape\" must be a list"},
    {ONE("{}", "[0,12]"), 12, 0, STATUS_INVALID, "\"shape\" must be a list"},
    {ONE("[2,3]", "[12,0]"), 12, 0, STATUS_INVALID, "two ascending whole numbers"},
    {ONE("[2,3]", "[0]"), 12, 0, STATUS_INVALID, "two ascending whole numbers"},
    {ONE("[2,3]", "[0,12,12]"), 12, 0, STATUS_INVALID, "two ascending whole numbers"},
    {ONE("[2,3]", "[-1,11]"), 12, 0, STATUS_INVALID, "two ascending whole numbers"},
    {ONE("[2,3]", "[0,18446744073709551615]"), 12, 0, STATUS_INVALID, "two ascending whole numbers"},
    {ONE("[2,3]", "[0,9007199254740992]"), 12, 0, STATUS_INVALID, "but the file holds 12"},
    /* names and types */
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, 0, STATUS_INVALID, "appears twice"},
    {"{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, STATUS_INVALID, "has no name"},
    {"{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, STATUS_UNSUPPORTED, "unknown dtype \"Q4\""},
    {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, STATUS_INVALID, "\"dtype\" must be a string"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0, STATUS_INVALID, "\"dtype\" must be a string"},
    {"{\"a\":[1]}", 1, 0, STATUS_INVALID, "tensor a: must be an object"},
    {"{\"__metadata__\":{\"x\":1}}", 0, 0, STATUS_INVALID, "__metadata__ \"x\" must be a string"},
    {"{\"__metadata__\":[]}", 0, 0, STATUS_INVALID, "__metadata__ must be an object"},
    /* not JSON at all */
    {"", 0, 0, STATUS_INVALID, "the header is not a JSON object"},
    {"[]", 0, 0, STATUS_INVALID, "the header is not a JSON object"},
    {" {}", 0, 0, STATUS_INVALID, "the header is not a JSON object"},
    {"{\"a\"", 0, 0, STATUS_INVALID, "not valid JSON"},
    {"{} x", 0, 0, STATUS_INVALID, "more text after the JSON value"},
    {"{\"\xff\":1}", 0, 0, STATUS_INVALID, "invalid UTF-8 at byte 2"},
    {"{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[", 0, 0, STATUS_INVALID, "nested deeper"},
};
/* clang-format on */

TEST(malformed_files_get_one_sentence_and_good_ones_open)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        checkpoint *c = NULL;
        write_file("model.safetensors", &cases[i]);
        status s = checkpoint_open(test_dir(), &c);
        EXPECT_MSG(s == cases[i].want, "case %zu (%s): %s (%s)", i, cases[i].header, status_name(s),
                   log_last_error());
        if (s == STATUS_OK) {
            checkpoint_close(c);
            continue;
        }
        EXPECT_MSG(strstr(log_last_error(), "model.safetensors") != NULL, "case %zu: %s", i,
                   log_last_error());
        EXPECT_HAS_STR(log_last_error(), cases[i].sentence);
    }
}

TEST(a_file_shorter_than_a_header_length_is_invalid)
{
    checkpoint *c = NULL;
    support_write("model.safetensors", "abc", 3);
    EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "3 bytes cannot hold");
    support_write("model.safetensors", "", 0);
    EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_INVALID);
}

TEST(a_directory_without_a_checkpoint_is_not_found)
{
    checkpoint *c = NULL;
    EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_NOT_FOUND);
    EXPECT_STATUS(checkpoint_open("/nonexistent/model", &c), STATUS_NOT_FOUND);
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", test_dir());
    EXPECT(mkdir(path, 0700) == 0);
    EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "not a regular file");
}

/* Every truncation of a real file is refused, and never read past. */
TEST(every_truncation_of_a_good_file_is_invalid)
{
    const char *header = TWO("[0,4]", "[4,8]");
    size_t bytes = 8 + strlen(header) + 8;
    char whole[512] = {0};
    whole[0] = (char)strlen(header);
    memcpy(whole + 8, header, strlen(header));
    checkpoint *c = NULL;
    for (size_t n = 0; n < bytes; n++) {
        support_write("model.safetensors", whole, n);
        EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_INVALID);
    }
    support_write("model.safetensors", whole, bytes);
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    checkpoint_close(c);
}

/* Flipped bits in the header never crash; what still opens still tiles the data. */
TEST(random_flips_in_the_header_are_refused_or_harmless)
{
    const char *header = TWO("[0,4]", "[4,8]");
    size_t bytes = 8 + strlen(header) + 8;
    rng r;
    rng_seed(&r, test_seed() ^ 0x5afe);
    for (int round = 0; round < 2000; round++) {
        char file[512] = {0};
        file[0] = (char)strlen(header);
        memcpy(file + 8, header, strlen(header));
        for (uint64_t k = 1 + rng_below(&r, 3); k > 0; k--)
            file[rng_below(&r, 8 + strlen(header))] ^= (char)(1 << rng_below(&r, 8));
        support_write("model.safetensors", file, bytes);
        checkpoint *c = NULL;
        if (checkpoint_open(test_dir(), &c) != STATUS_OK) continue;
        uint64_t sum = 0;
        for (uint32_t i = 0; i < checkpoint_count(c); i++)
            sum += checkpoint_at(c, i)->bytes;
        EXPECT(sum == 8);
        checkpoint_close(c);
    }
}

/* ---- shards ---------------------------------------------------------------------------------- */

#define SHARD(name) "{\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}"

/* clang-format off */
static const struct { const char *index; status want; const char *sentence; } indexes[] = {
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}", STATUS_OK, ""},
    {"{\"metadata\":{\"total_size\":8},\"weight_map\":{\"b\":\"2.safetensors\",\"a\":\"1.safetensors\"}}", STATUS_OK, ""},
    {"{\"weight_map\":{\"a\":\"1.safetensors\"}}", STATUS_OK, ""},
    {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"2.safetensors\"}}", STATUS_INVALID, "tensor a is not in 2.safetensors"},
    {"{\"weight_map\":{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}}", STATUS_INVALID, "tensor a is not in 2.safetensors"},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\",\"c\":\"2.safetensors\"}}", STATUS_INVALID, "tensor c is not in 2.safetensors"},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}}", STATUS_INVALID, "appears twice"},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"x\":\"3.safetensors\"}}", STATUS_NOT_FOUND, "3.safetensors"},
    {"{\"weight_map\":{\"a\":\"../1.safetensors\"}}", STATUS_INVALID, "is not the name of a safetensors file"},
    {"{\"weight_map\":{\"a\":\"1.bin\"}}", STATUS_INVALID, "is not the name of a safetensors file"},
    {"{\"weight_map\":{\"a\":7}}", STATUS_INVALID, "must name a file"},
    {"{\"weight_map\":{}}", STATUS_INVALID, "weight_map is empty"},
    {"{\"weight_map\":[]}", STATUS_INVALID, "must be an object"},
    {"{}", STATUS_INVALID, "must be an object"},
    {"[]", STATUS_INVALID, "must hold a JSON object"},
    {"{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"4.safetensors\"}}", STATUS_INVALID, "is also in"},
    {"{\"weight_map\":{\"b\":\"4.safetensors\"}}", STATUS_INVALID, "not listed"},
};
/* clang-format on */

TEST(shards_must_match_their_index)
{
    write_file("1.safetensors", &(file_case){.header = SHARD("a"), .data_bytes = 4});
    write_file("2.safetensors", &(file_case){.header = SHARD("b"), .data_bytes = 4});
    write_file("4.safetensors", &(file_case){.header = TWO("[0,4]", "[4,8]"), .data_bytes = 8});
    for (size_t i = 0; i < sizeof indexes / sizeof indexes[0]; i++) {
        checkpoint *c = NULL;
        support_write("model.safetensors.index.json", indexes[i].index, strlen(indexes[i].index));
        status s = checkpoint_open(test_dir(), &c);
        EXPECT_MSG(s == indexes[i].want, "case %zu: %s (%s)", i, status_name(s), log_last_error());
        if (s == STATUS_OK)
            checkpoint_close(c);
        else
            EXPECT_HAS_STR(log_last_error(), indexes[i].sentence);
    }
}

TEST(an_open_fault_in_one_shard_names_that_shard)
{
    checkpoint *c = NULL;
    const char *index = "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}";
    write_file("1.safetensors", &(file_case){.header = SHARD("a"), .data_bytes = 4});
    write_file("2.safetensors", &(file_case){.header = SHARD("b"), .data_bytes = 3});
    support_write("model.safetensors.index.json", index, strlen(index));
    EXPECT_STATUS(checkpoint_open(test_dir(), &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "2.safetensors: tensor b ends at byte 4");
}

/* ---- values ---------------------------------------------------------------------------------- */

TEST(tensors_are_found_by_name_and_checked_for_shape)
{
    checkpoint *c = NULL;
    arena *a = arena_create("test");
    const uint16_t *data = NULL;
    write_file("model.safetensors",
               &(file_case){.header = ONE("[2,3]", "[0,12]"), .data_bytes = 12});
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    EXPECT(checkpoint_find(c, "b") == NULL);
    EXPECT(checkpoint_find(c, "a") == checkpoint_at(c, 0));
    EXPECT_OK(checkpoint_bf16(c, "a", (uint64_t[]){2, 3}, 2, a, &data));
    EXPECT(data[0] == 0x0100 && data[5] == 0x0b0a);
    EXPECT_STATUS(checkpoint_bf16(c, "a", (uint64_t[]){3, 2}, 2, a, &data), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "tensor a has the shape [2, 3], config.json asks for [3, 2]");
    EXPECT_STATUS(checkpoint_bf16(c, "a", (uint64_t[]){6}, 1, a, &data), STATUS_INVALID);
    EXPECT_STATUS(checkpoint_bf16(c, "b", (uint64_t[]){6}, 1, a, &data), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "tensor b is missing");
    checkpoint_close(c);
    arena_destroy(a);
}

TEST(an_unaligned_bf16_tensor_is_copied)
{
    const char *header = "{\"o\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                         "\"p\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[1,5]},"
                         "\"q\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[5,7]}}";
    checkpoint *c = NULL;
    arena *a = arena_create("test");
    const uint16_t *data = NULL;
    write_file("model.safetensors", &(file_case){.header = header, .data_bytes = 7});
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    EXPECT_OK(checkpoint_bf16(c, "p", (uint64_t[]){2}, 1, a, &data));
    EXPECT((uintptr_t)data % 2 == 0 && data[0] == 0x0201 && data[1] == 0x0403);
    EXPECT_STATUS(checkpoint_bf16(c, "o", (uint64_t[]){1}, 1, a, &data), STATUS_UNSUPPORTED);
    EXPECT_HAS_STR(log_last_error(), "tensor o is U8; BF16, F16 and F32 are read");
    checkpoint_close(c);
    arena_destroy(a);
}

TEST(f16_and_f32_are_rounded_to_bf16)
{
    /* 1, -2, the smallest f16 subnormal, 65504, infinity, 1 + 2^-10, -0 */
    static const uint16_t half[7] = {0x3c00, 0xc000, 0x0001, 0x7bff, 0x7c00, 0x3c01, 0x8000};
    static const float same[7] = {1, -2, 0x1p-24f, 65504, INFINITY, 1 + 0x1p-10f, -0.0f};
    char file[256] = {0};
    const char *header = "{\"h\":{\"dtype\":\"F16\",\"shape\":[7],\"data_offsets\":[0,14]},"
                         "\"s\":{\"dtype\":\"F32\",\"shape\":[7],\"data_offsets\":[14,42]}}";
    size_t n = strlen(header);
    file[0] = (char)n;
    memcpy(file + 8, header, n);
    memcpy(file + 8 + n, half, 14);
    memcpy(file + 8 + n + 14, same, 28);
    support_write("model.safetensors", file, 8 + n + 42);
    checkpoint *c = NULL;
    arena *a = arena_create("test");
    const uint16_t *h = NULL, *s = NULL;
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    EXPECT_OK(checkpoint_bf16(c, "h", (uint64_t[]){7}, 1, a, &h));
    EXPECT_OK(checkpoint_bf16(c, "s", (uint64_t[]){7}, 1, a, &s));
    for (int i = 0; i < 7; i++)
        EXPECT_MSG(h[i] == s[i] && s[i] == kern_f32_to_bf16(same[i]), "value %d", i);
    checkpoint_close(c);
    arena_destroy(a);
}

TEST(the_digest_changes_with_header_and_data)
{
    checkpoint *c = NULL;
    write_file("model.safetensors",
               &(file_case){.header = ONE("[2,3]", "[0,12]"), .data_bytes = 12});
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    uint64_t first = checkpoint_digest(c, 1), other_seed = checkpoint_digest(c, 2);
    EXPECT(first == checkpoint_digest(c, 1) && first != other_seed);
    checkpoint_close(c);
    write_file("model.safetensors",
               &(file_case){.header = ONE("[3,2]", "[0,12]"), .data_bytes = 12});
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    EXPECT(first != checkpoint_digest(c, 1));
    checkpoint_close(c);
    char file[256] = {0};
    const char *header = ONE("[2,3]", "[0,12]");
    file[0] = (char)strlen(header);
    memcpy(file + 8, header, strlen(header));
    support_write("model.safetensors", file, 8 + strlen(header) + 12);
    EXPECT_OK(checkpoint_open(test_dir(), &c));
    EXPECT(first != checkpoint_digest(c, 1));
    checkpoint_close(c);
}

TEST(the_shipped_checkpoint_has_its_tensors)
{
    checkpoint *c = NULL;
    arena *a = arena_create("test");
    const uint16_t *data = NULL;
    EXPECT_OK(checkpoint_open(TEST_SOURCE_DIR "/worker/small-model", &c));
    EXPECT(checkpoint_count(c) == 90);
    EXPECT_OK(
        checkpoint_bf16(c, "model.embed_tokens.weight", (uint64_t[]){4096, 256}, 2, a, &data));
    EXPECT_OK(checkpoint_bf16(c, "model.layers.7.self_attn.A", (uint64_t[]){2}, 1, a, &data));
    checkpoint_close(c);
    EXPECT_OK(checkpoint_open(TEST_SOURCE_DIR "/tests/golden/llama/untied", &c));
    EXPECT(strstr(checkpoint_path(c, 3), ".safetensors") != NULL);
    checkpoint_close(c);
    arena_destroy(a);
}

TEST_MAIN()
