/* Ids and text against the `tokenizers` package's, on file: tests/golden/README.md. */
#include "tests/test.h"
#include "worker/json.h"
#include "worker/tokenizer.h"

#define GOLDEN TEST_SOURCE_DIR "/tests/golden/tokenizer/"

enum { NAMES = 6, PARTIAL_BYTES = 200000 };
static const char *const names[NAMES] = {"small-model", "llama3",        "gpt2",
                                         "qwen2",       "sentencepiece", "metaspace"};

static void read_file(const char *path, arena *a, char **out_text, size_t *out_bytes)
{
    EXPECT_MSG(json_file_read(path, 64 << 20, a, out_text, out_bytes) == STATUS_OK, "%s", path);
}

static tokenizer *open_named(uint32_t index, arena *a)
{
    char path[512], *text = NULL;
    size_t bytes = 0;
    if (index == 0)
        snprintf(path, sizeof path, "%s/worker/small-model/tokenizer.json", TEST_SOURCE_DIR);
    else
        snprintf(path, sizeof path, "%s%s.json", GOLDEN, names[index]);
    read_file(path, a, &text, &bytes);
    tokenizer *t = NULL;
    EXPECT_MSG(tokenizer_parse(path, text, bytes, &t) == STATUS_OK, "%s", log_last_error());
    return t;
}

static void check_long(uint32_t index)
{
    arena *a = arena_create("test");
    char path[512], *text = NULL, *golden = NULL;
    size_t bytes = 0, golden_bytes = 0;
    read_file(GOLDEN "text.txt", a, &text, &bytes);
    snprintf(path, sizeof path, "%s%s.ids", GOLDEN, names[index]);
    read_file(path, a, &golden, &golden_bytes);
    if (index > 0) /* the others' ids cover the beginning, up to a whole character */
        for (bytes = PARTIAL_BYTES; ((uint8_t)text[bytes] & 0xc0) == 0x80;)
            bytes--;
    tokenizer *t = open_named(index, a);
    int32_t *ids = NULL;
    uint32_t count = 0;
    EXPECT(tokenizer_encode(t, (span){text, bytes}, false, a, &ids, &count) == STATUS_OK);
    EXPECT_MSG(count == golden_bytes / 2, "%s: %u ids, golden %zu", names[index], count,
               golden_bytes / 2);
    for (uint32_t i = 0; i < count; i++) {
        int32_t want = (uint8_t)golden[2 * i] | (uint8_t)golden[2 * i + 1] << 8;
        EXPECT_MSG(ids[i] == want, "%s: id %u is %d, golden %d", names[index], i, ids[i], want);
    }
    span back;
    EXPECT(tokenizer_decode(t, ids, count, false, a, &back) == STATUS_OK);
    EXPECT_MSG(back.bytes >= bytes - bytes / 50, "%s: %zu bytes back from %zu", names[index],
               back.bytes, bytes);
    if (index < 2)
        EXPECT_MSG(back.bytes == bytes && memcmp(back.text, text, bytes) == 0, "round trip");
    tokenizer_destroy(t);
    arena_destroy(a);
}

TEST(small_model_ids_equal_golden_on_one_megabyte_and_come_back)
{
    check_long(0);
}

TEST(llama3_ids_equal_golden_and_come_back)
{
    check_long(1);
}

TEST(gpt2_ids_equal_golden)
{
    check_long(2);
}

TEST(qwen2_ids_equal_golden)
{
    check_long(3);
}

TEST(sentencepiece_ids_equal_golden)
{
    check_long(4);
}

TEST(metaspace_ids_equal_golden)
{
    check_long(5);
}

static void expect_ids(const char *name, int line, const int32_t *ids, uint32_t count,
                       const cJSON *golden)
{
    EXPECT_MSG(count == (uint32_t)cJSON_GetArraySize(golden), "%s, case %d: %u ids, golden %d",
               name, line, count, cJSON_GetArraySize(golden));
    const cJSON *want = golden->child;
    for (uint32_t i = 0; i < count; i++, want = want->next)
        EXPECT_MSG(ids[i] == want->valueint, "%s, case %d: id %u is %d, golden %d", name, line, i,
                   ids[i], want->valueint);
}

static void expect_text(const char *name, int line, const tokenizer *t, const int32_t *ids,
                        uint32_t count, bool skip, span golden)
{
    arena *a = arena_create("text");
    span text;
    EXPECT(tokenizer_decode(t, ids, count, skip, a, &text) == STATUS_OK);
    EXPECT_MSG(text.bytes == golden.bytes && memcmp(text.text, golden.text, text.bytes) == 0,
               "%s, case %d: decoded to \"%s\", golden \"%s\"", name, line, text.text, golden.text);
    arena_destroy(a);
}

TEST(short_cases_equal_golden_with_and_without_special_tokens)
{
    arena *a = arena_create("test");
    char *json = NULL;
    size_t bytes = 0;
    cJSON *cases = NULL;
    read_file(GOLDEN "cases.json", a, &json, &bytes);
    EXPECT(json_parse("cases.json", json, bytes, &cases) == STATUS_OK);
    for (uint32_t n = 0; n < NAMES; n++) {
        tokenizer *t = open_named(n, a);
        int line = 0;
        const cJSON *each;
        cJSON_ArrayForEach(each, cases)
        {
            span text = json_text(json_get(each, "text")->valuestring, a);
            const cJSON *want = json_get(each, names[n]);
            int32_t *ids = NULL;
            uint32_t count = 0;
            line++;
            EXPECT(tokenizer_encode(t, text, false, a, &ids, &count) == STATUS_OK);
            expect_ids(names[n], line, ids, count, json_get(want, "ids"));
            EXPECT(tokenizer_encode(t, text, true, a, &ids, &count) == STATUS_OK);
            expect_ids(names[n], line, ids, count, json_get(want, "ids_special"));
            expect_text(names[n], line, t, ids, count, false,
                        json_text(json_get(want, "decoded")->valuestring, a));
            expect_text(names[n], line, t, ids, count, true,
                        json_text(json_get(want, "decoded_skip")->valuestring, a));
        }
        EXPECT_MSG(line > 100, "only %d cases", line);
        tokenizer_destroy(t);
    }
    json_free(cases);
    arena_destroy(a);
}

TEST_MAIN()
