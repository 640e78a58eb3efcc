/* Stop strings across token borders, digests, log probabilities. */
#include "tests/test.h"

#include "worker/answer.h"
#include "worker/json.h"

/* A vocabulary of eight byte-level tokens: "\u00e2\u0124\xac" spell the three bytes of the euro
 * sign. */
static const char vocabulary[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"<|end|>\":0,\"a\":1,\"b\":2,\"c\":3,\"\xc3\xa2\":4,"
    "\"\xc4\xa4\":5,\"\xc2\xac\":6,\"ab\":7},\"merges\":[\"a b\"]},"
    "\"added_tokens\":[{\"id\":0,\"content\":\"<|end|>\",\"special\":true,\"single_word\":false,"
    "\"lstrip\":false,\"rstrip\":false,\"normalized\":false}],"
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
    "\"trim_offsets\":true,\"use_regex\":true},\"post_processor\":null,"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,"
    "\"use_regex\":true}}";

static tokenizer *load(void)
{
    tokenizer *t = NULL;
    EXPECT_OK(tokenizer_parse("tokenizer.json", vocabulary, sizeof vocabulary - 1, &t));
    return t;
}

static bool add(answer *a, int32_t id)
{
    kern_sampled s = {.token = id, .logprob = -0.5f};
    for (int i = 0; i < KERN_TOP_LOGPROBS_MAX; i++) {
        s.top_token[i] = i < 3 ? i + 1 : -1;
        s.top_logprob[i] = -(float)i;
    }
    return answer_add(a, &s, 100 + (uint64_t)id);
}

TEST(a_stop_string_is_found_across_token_borders)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.stop = {"bcab", "zz"}, .stop_count = 2};
    answer a;
    answer_start(&a, t, &r, memory);
    EXPECT(!add(&a, 7)); /* ab */
    EXPECT(!add(&a, 3)); /* abc */
    EXPECT(!add(&a, 2)); /* abcb: begins, then does not go on */
    EXPECT(!add(&a, 3));
    EXPECT(!add(&a, 1));
    EXPECT(add(&a, 2)); /* abc|bcab */
    EXPECT(!add(&a, 1));
    answer_finish(&a);
    EXPECT(a.stopped);
    EXPECT_EQ_STR(a.content.bytes, "abc");
    EXPECT_EQ_U64(a.tokens, 6);
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST(of_two_stop_strings_the_one_that_begins_first_cuts)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.stop = {"b", "ab"}, .stop_count = 2};
    answer a;
    answer_start(&a, t, &r, memory);
    EXPECT(!add(&a, 3));
    EXPECT(add(&a, 7));
    EXPECT_EQ_STR(a.content.bytes, "c");
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST(a_character_of_three_tokens_comes_whole_and_a_torn_one_is_replaced)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.stop = {"\xe2\x82\xac"}, .stop_count = 1}, none = {.stop_count = 0};
    answer a;
    answer_start(&a, t, &r, memory);
    EXPECT(!add(&a, 1));
    EXPECT(!add(&a, 4));
    EXPECT_EQ_U64(a.content.count, 1);
    EXPECT(!add(&a, 5));
    EXPECT(add(&a, 6));
    EXPECT_EQ_STR(a.content.bytes, "a");
    answer_start(&a, t, &none, memory);
    (void)add(&a, 1);
    (void)add(&a, 4);
    answer_finish(&a);
    text_add(&a.content, "", 0);
    EXPECT_EQ_STR(a.content.bytes, "a\xef\xbf\xbd");
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST(digests_depend_on_order_and_end_at_the_stop_string)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.stop = {"c"}, .stop_count = 1};
    answer ab, ba, cut, longer;
    answer_start(&ab, t, &r, memory);
    answer_start(&ba, t, &r, memory);
    answer_start(&cut, t, &r, memory);
    answer_start(&longer, t, &r, memory);
    (void)add(&ab, 1), (void)add(&ab, 2);
    (void)add(&ba, 2), (void)add(&ba, 1);
    EXPECT_NE_U64(ab.token_digest, ba.token_digest);
    EXPECT_NE_U64(ab.logits_digest, ba.logits_digest);
    (void)add(&cut, 1), (void)add(&cut, 3);
    (void)add(&longer, 1), (void)add(&longer, 3), (void)add(&longer, 2);
    EXPECT_EQ_U64(cut.token_digest, longer.token_digest);
    EXPECT_EQ_U64(cut.logits_digest, longer.logits_digest);
    EXPECT_EQ_U64(longer.tokens, 2);
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST(logprobs_are_json_with_a_row_a_token_shown)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.logprobs = true, .top_logprobs = 2, .stop = {"bc"}, .stop_count = 1};
    answer a;
    answer_start(&a, t, &r, memory);
    (void)add(&a, 1), (void)add(&a, 4), (void)add(&a, 5), (void)add(&a, 6);
    (void)add(&a, 7), (void)add(&a, 3);
    answer_finish(&a);
    EXPECT_EQ_U64(a.content.count, 5); /* a, euro, a */
    const char *json = answer_logprobs(&a);
    cJSON *tree;
    EXPECT_OK(json_parse("logprobs", json, strlen(json), &tree));
    const cJSON *tokens = json_get(tree, "tokens"), *offset = json_get(tree, "text_offset");
    EXPECT_EQ_I64(cJSON_GetArraySize(tokens), 5); /* the c was cut off whole */
    EXPECT_EQ_STR(cJSON_GetArrayItem(tokens, 1)->valuestring, "bytes:\\xe2");
    EXPECT_EQ_STR(cJSON_GetArrayItem(tokens, 4)->valuestring, "ab");
    EXPECT_NEAR(cJSON_GetArrayItem(offset, 4)->valuedouble, 2, 0);
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(tree, "token_logprobs")), 5);
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(tree, "top_logprobs")->child), 2);
    json_free(tree);
    r.chat = true;
    json = answer_logprobs(&a);
    EXPECT_OK(json_parse("logprobs", json, strlen(json), &tree));
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(tree, "content")), 5);
    json_free(tree);
    r.logprobs = false;
    EXPECT(answer_logprobs(&a) == NULL);
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST(without_tokens_the_text_is_empty_and_has_no_stop)
{
    tokenizer *t = load();
    arena *memory = arena_create("test");
    batch_request r = {.logprobs = true, .stop = {"a"}, .stop_count = 1};
    answer a;
    answer_start(&a, t, &r, memory);
    answer_finish(&a);
    EXPECT(!a.stopped && a.content.count == 0);
    EXPECT_EQ_STR(answer_logprobs(&a),
                  "{\"tokens\":[],\"token_logprobs\":[],\"top_logprobs\":[],\"text_offset\":[]}");
    arena_destroy(memory);
    tokenizer_destroy(t);
}

TEST_MAIN()
