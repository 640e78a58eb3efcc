/* Batch files: lines in, requests, lines out. */
#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker/batch.h"
#include "worker/json.h"

static const char *path_in(arena *memory, const char *name)
{
    text t;
    text_start(&t, memory);
    text_format(&t, "%s/%s", test_dir(), name);
    return t.bytes;
}

static void write_file(const char *path, const void *bytes, size_t count)
{
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL);
    EXPECT(fwrite(bytes, 1, count, f) == count);
    EXPECT(fclose(f) == 0);
}

static const char *read_back(arena *memory, const char *path)
{
    char *bytes;
    size_t count;
    EXPECT_OK(json_file_read(path, 1u << 24, memory, &bytes, &count));
    return bytes;
}

/* ---- requests -------------------------------------------------------------------------------- */

static bool parse(arena *memory, const char *line, batch_request *r, batch_error *e)
{
    batch_line l = {.bytes = line, .count = strlen(line), .number = 1, .whole = true};
    return batch_parse("in line 1", &l, memory, r, e);
}

#define LINE(body)                                                                                 \
    "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":" body "}"
#define CHAT(body)                                                                                 \
    "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":" body "}"

TEST(a_full_request_is_read_field_by_field)
{
    arena *memory = arena_create("test");
    batch_request r;
    batch_error e;
    EXPECT_MSG(
        parse(memory,
              LINE("{\"model\":\"m\",\"prompt\":\"h\\u00e9\",\"max_tokens\":7,"
                   "\"temperature\":0.5,\"top_p\":0.25,\"top_k\":3,\"seed\":9007199254740992,"
                   "\"stop\":[\"x\",\"yz\"],\"logprobs\":2,\"ignore_eos\":true,\"user\":\"u\","
                   "\"n\":1,\"echo\":false,\"stream\":null,\"shoal\":{\"selector\":\"nosa\","
                   "\"budget\":24,\"lookahead\":\"mid\"}}"),
              &r, &e),
        "%s", e.message);
    EXPECT_EQ_STR(r.custom_id, "a");
    EXPECT_EQ_STR(r.model, "m");
    EXPECT_EQ_STR(r.prompt, "h\xc3\xa9");
    EXPECT_EQ_U64(r.prompt_bytes, 3);
    EXPECT_EQ_U64(r.max_tokens, 7);
    EXPECT_NEAR(r.temperature, 0.5, 0);
    EXPECT_NEAR(r.top_p, 0.25, 0);
    EXPECT_EQ_U64(r.top_k, 3);
    EXPECT_EQ_U64(r.seed, 1ull << 53);
    EXPECT_EQ_U64(r.stop_count, 2);
    EXPECT_EQ_STR(r.stop[1], "yz");
    EXPECT(r.logprobs && r.ignore_eos && !r.chat);
    EXPECT_EQ_U64(r.top_logprobs, 2);
    EXPECT_EQ_STR(r.selector, "nosa");
    EXPECT_EQ_STR(r.budget, "24");
    EXPECT_EQ_STR(r.lookahead, "mid");
    arena_destroy(memory);
}

TEST(defaults_are_those_of_openai_and_the_seed_follows_from_the_custom_id)
{
    arena *memory = arena_create("test");
    batch_request r, same, other;
    batch_error e;
    EXPECT(parse(memory, LINE("{\"prompt\":[1,2,3]}"), &r, &e));
    EXPECT(parse(memory, LINE("{\"prompt\":[4]}"), &same, &e));
    const char *b = "{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/completions\","
                    "\"body\":{\"prompt\":[1]}}";
    EXPECT(parse(memory, b, &other, &e));
    EXPECT_EQ_U64(r.max_tokens, 16);
    EXPECT_NEAR(r.temperature, 1, 0);
    EXPECT_NEAR(r.top_p, 1, 0);
    EXPECT_EQ_U64(r.id_count, 3);
    EXPECT_EQ_I64(r.ids[2], 3);
    EXPECT(r.prompt == NULL && !r.logprobs && r.stop_count == 0);
    EXPECT_EQ_U64(r.seed, same.seed);
    EXPECT_NE_U64(r.seed, other.seed);
    arena_destroy(memory);
}

TEST(a_prompt_may_hold_a_zero_byte)
{
    arena *memory = arena_create("test");
    batch_request r;
    batch_error e;
    EXPECT(parse(memory, LINE("{\"prompt\":\"a\\u0000b\"}"), &r, &e));
    EXPECT_EQ_U64(r.prompt_bytes, 3);
    EXPECT(memcmp(r.prompt, "a\0b", 3) == 0);
    arena_destroy(memory);
}

TEST(a_chat_line_is_read_with_its_messages)
{
    arena *memory = arena_create("test");
    batch_request r;
    batch_error e;
    EXPECT_MSG(parse(memory,
                     CHAT("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},"
                          "{\"role\":\"user\",\"content\":\"q\"}],\"max_completion_tokens\":3,"
                          "\"logprobs\":true,\"top_logprobs\":4}"),
                     &r, &e),
               "%s", e.message);
    EXPECT(r.chat && r.logprobs);
    EXPECT_EQ_U64(r.top_logprobs, 4);
    EXPECT_EQ_U64(r.max_tokens, 3);
    EXPECT_EQ_U64(r.message_count, 2);
    EXPECT_EQ_STR(r.messages[1].role, "user");
    EXPECT_EQ_STR(r.messages[1].content, "q");
    arena_destroy(memory);
}

typedef struct refused {
    const char *line, *code, *sentence;
} refused;

/* clang-format off */
static const refused refusals[] = {
    {"", "invalid_json", "empty"},
    {"   ", "invalid_json", "empty"},
    {"{\"custom_id\":\"a\"", "invalid_json", "not valid JSON"},
    {"[1]", "invalid_json", "must be a JSON object"},
    {"{} {}", "invalid_json", "more text"},
    {"{\"a\":\"\xff\"}", "invalid_utf8", "invalid UTF-8 at byte 6"},
    {"{\"a\":\"\xc0\xaf\"}", "invalid_utf8", "byte 6"},
    {"{\"a\":\"\xed\xa0\x80\"}", "invalid_utf8", "byte 6"},
    {"{\"method\":\"POST\"}", "invalid_request", "custom_id"},
    {"{\"custom_id\":7,\"method\":\"POST\"}", "invalid_request", "custom_id"},
    {"{\"custom_id\":\"a\",\"method\":\"GET\"}", "invalid_request", "method"},
    {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{}}", "unsupported", "/v1/embeddings"},
    {"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\"}", "invalid_request", "body"},
    {LINE("{}"), "invalid_request", "body.prompt is missing"},
    {LINE("{\"prompt\":\"\"}"), "invalid_request", "body.prompt is empty"},
    {LINE("{\"prompt\":[]}"), "invalid_request", "body.prompt is empty"},
    {LINE("{\"prompt\":7}"), "invalid_request", "body.prompt must be"},
    {LINE("{\"prompt\":[1,-2]}"), "invalid_request", "body.prompt[1]"},
    {LINE("{\"prompt\":[1,1.5]}"), "invalid_request", "body.prompt[1]"},
    {LINE("{\"prompt\":[1,99999999999]}"), "invalid_request", "body.prompt[1]"},
    {LINE("{\"prompt\":[\"a\",\"b\"]}"), "unsupported", "several prompts"},
    {LINE("{\"prompt\":\"a\",\"max_tokens\":0}"), "invalid_request", "body.max_tokens"},
    {LINE("{\"prompt\":\"a\",\"max_tokens\":1.5}"), "invalid_request", "body.max_tokens"},
    {LINE("{\"prompt\":\"a\",\"max_tokens\":\"9\"}"), "invalid_request", "body.max_tokens"},
    {LINE("{\"prompt\":\"a\",\"temperature\":-1}"), "invalid_request", "body.temperature"},
    {LINE("{\"prompt\":\"a\",\"temperature\":2.1}"), "invalid_request", "body.temperature"},
    {LINE("{\"prompt\":\"a\",\"top_p\":0}"), "invalid_request", "body.top_p"},
    {LINE("{\"prompt\":\"a\",\"top_p\":1.1}"), "invalid_request", "body.top_p"},
    {LINE("{\"prompt\":\"a\",\"top_k\":-2}"), "invalid_request", "body.top_k"},
    {LINE("{\"prompt\":\"a\",\"seed\":-1}"), "invalid_request", "body.seed"},
    {LINE("{\"prompt\":\"a\",\"logprobs\":21}"), "invalid_request", "body.logprobs"},
    {LINE("{\"prompt\":\"a\",\"stop\":\"\"}"), "invalid_request", "body.stop"},
    {LINE("{\"prompt\":\"a\",\"stop\":[1]}"), "invalid_request", "body.stop"},
    {LINE("{\"prompt\":\"a\",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]}"), "invalid_request", "more than 4"},
    {LINE("{\"prompt\":\"a\",\"ignore_eos\":1}"), "invalid_request", "body.ignore_eos"},
    {LINE("{\"prompt\":\"a\",\"n\":2}"), "unsupported", "body.n"},
    {LINE("{\"prompt\":\"a\",\"best_of\":3}"), "unsupported", "body.best_of"},
    {LINE("{\"prompt\":\"a\",\"echo\":true}"), "unsupported", "body.echo"},
    {LINE("{\"prompt\":\"a\",\"stream\":true}"), "unsupported", "body.stream"},
    {LINE("{\"prompt\":\"a\",\"presence_penalty\":0.1}"), "unsupported", "body.presence_penalty"},
    {LINE("{\"prompt\":\"a\",\"logit_bias\":{\"5\":1}}"), "unsupported", "body.logit_bias"},
    {LINE("{\"prompt\":\"a\",\"suffix\":\"b\"}"), "unsupported", "body.suffix"},
    {LINE("{\"prompt\":\"a\",\"guided_json\":{}}"), "unsupported", "body.guided_json"},
    {LINE("{\"prompt\":\"a\",\"prompt\":\"b\"}"), "invalid_json", "twice"},
    {LINE("{\"prompt\":\"a\",\"messages\":[]}"), "invalid_request", "body.messages"},
    {LINE("{\"prompt\":\"a\",\"shoal\":1}"), "invalid_request", "body.shoal"},
    {LINE("{\"prompt\":\"a\",\"shoal\":{\"buget\":1}}"), "unsupported", "body.shoal.buget"},
    {LINE("{\"prompt\":\"a\",\"stop\":\"a\\u0000b\"}"), "invalid_request", "body.stop"},
    {CHAT("{\"messages\":\"a\"}"), "invalid_request", "body.messages"},
    {CHAT("{\"messages\":[{\"role\":\"user\"}]}"), "invalid_request", "body.messages[0]"},
    {CHAT("{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"top_logprobs\":2}"), "invalid_request", "body.logprobs"},
};
/* clang-format on */

TEST(what_is_not_understood_is_refused_by_name)
{
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        arena *memory = arena_create("test");
        batch_request r;
        batch_error e;
        const refused *want = &refusals[i];
        EXPECT_MSG(!parse(memory, want->line, &r, &e), "accepted: %s", want->line);
        EXPECT_MSG(strcmp(e.code, want->code) == 0, "%s: code %s", want->line, e.code);
        EXPECT_MSG(strstr(e.message, want->sentence) != NULL, "%s: %s", want->line, e.message);
        EXPECT_MSG(strstr(e.message, "in line 1") != NULL, "%s: %s", want->line, e.message);
        arena_destroy(memory);
    }
}

TEST(a_refused_line_keeps_its_custom_id_when_it_had_one)
{
    arena *memory = arena_create("test");
    batch_request r;
    batch_error e;
    EXPECT(!parse(memory, LINE("{\"prompt\":\"a\",\"n\":2}"), &r, &e));
    EXPECT_EQ_STR(r.custom_id, "a");
    EXPECT(!parse(memory, "{\"custom_id\":", &r, &e));
    EXPECT(r.custom_id == NULL);
    arena_destroy(memory);
}

TEST(a_sentence_cut_to_its_room_stays_utf8)
{
    batch_error e;
    char many[3 * BATCH_MESSAGE_MAX + 1];
    for (size_t i = 0; i + 3 < sizeof many; i += 3)
        memcpy(many + i, "\xe2\x82\xac", 3);
    many[sizeof many - 1] = '\0';
    for (int shift = 0; shift < 3; shift++) {
        batch_error_set(&e, "x", "%.*s%s", shift, "ab", many);
        EXPECT_EQ_U64(json_utf8_check(e.message, strlen(e.message)), strlen(e.message));
        EXPECT_GE_U64(strlen(e.message), BATCH_MESSAGE_MAX - 4);
    }
}

/* ---- reader ---------------------------------------------------------------------------------- */

TEST(lines_come_whole_whatever_their_length_and_endings)
{
    arena *memory = arena_create("test");
    const char *path = path_in(memory, "in");
    char *big = ARENA_NEW(memory, char, 400000);
    memset(big, 'b', 300000);
    size_t n = 300000;
    memcpy(big + n, "\r\n\nlast", 7);
    write_file(path, big, n + 7);
    batch_reader *reader;
    batch_line line;
    EXPECT_OK(batch_reader_open(path, 0, &reader));
    for (int pass = 0; pass < 2; pass++) {
        EXPECT_OK(batch_reader_next(reader, &line));
        EXPECT_EQ_U64(line.count, 300000);
        EXPECT(line.whole && !line.too_long);
        EXPECT_OK(batch_reader_next(reader, &line));
        EXPECT_EQ_U64(line.count, 0);
        EXPECT_EQ_U64(line.number, 2);
        EXPECT_OK(batch_reader_next(reader, &line));
        EXPECT_EQ_U64(line.count, 4);
        EXPECT(!line.whole && memcmp(line.bytes, "last", 4) == 0);
        EXPECT_EQ_U64(batch_reader_offset(reader), batch_reader_bytes(reader));
        EXPECT_STATUS(batch_reader_next(reader, &line), STATUS_NOT_FOUND);
        EXPECT_OK(batch_reader_rewind(reader));
    }
    batch_reader_close(reader);
    arena_destroy(memory);
}

TEST(a_line_beyond_the_limit_is_reported_and_the_next_is_served)
{
    arena *memory = arena_create("test");
    const char *path = path_in(memory, "in");
    char *bytes = ARENA_NEW(memory, char, 300000);
    memset(bytes, 'x', 200000);
    memcpy(bytes + 200000, "\nok\n", 4);
    memset(bytes + 200004, 'y', 1001);
    write_file(path, bytes, 200004 + 1001);
    batch_reader *reader;
    batch_line line;
    EXPECT_OK(batch_reader_open(path, 1000, &reader));
    EXPECT_OK(batch_reader_next(reader, &line));
    EXPECT(line.too_long);
    EXPECT_EQ_U64(line.number, 1);
    EXPECT_OK(batch_reader_next(reader, &line));
    EXPECT(!line.too_long && line.count == 2);
    EXPECT_EQ_U64(line.number, 2);
    EXPECT_OK(batch_reader_next(reader, &line));
    EXPECT(line.too_long && !line.whole);
    EXPECT_STATUS(batch_reader_next(reader, &line), STATUS_NOT_FOUND);
    batch_reader_close(reader);
    arena_destroy(memory);
}

TEST(a_file_that_is_missing_or_no_file_is_refused)
{
    batch_reader *reader;
    EXPECT_STATUS(batch_reader_open("/nonexistent/in", 0, &reader), STATUS_NOT_FOUND);
    EXPECT_STATUS(batch_reader_open(test_dir(), 0, &reader), STATUS_INVALID);
}

TEST(names_are_found_again_among_ten_thousand)
{
    arena *memory = arena_create("test");
    batch_names *names = batch_names_create(memory);
    char name[32];
    for (int i = 0; i < 10000; i++) {
        int n = snprintf(name, sizeof name, "request-%d", i);
        EXPECT(!batch_names_has(names, name, (size_t)n));
        EXPECT(batch_names_add(names, name, (size_t)n));
    }
    for (int i = 0; i < 10000; i++) {
        int n = snprintf(name, sizeof name, "request-%d", i);
        EXPECT(batch_names_has(names, name, (size_t)n));
        EXPECT(!batch_names_add(names, name, (size_t)n));
    }
    EXPECT(!batch_names_has(names, "request-", 8));
    arena_destroy(memory);
}

/* ---- writer ---------------------------------------------------------------------------------- */

TEST(an_existing_output_is_kept_unless_asked_otherwise)
{
    arena *memory = arena_create("test");
    const char *in = path_in(memory, "in"), *out = path_in(memory, "out");
    write_file(in, "i\n", 2);
    write_file(out, "old\n", 4);
    batch_writer *w;
    EXPECT_STATUS(batch_writer_open(out, in, BATCH_NEW, &w), STATUS_INVALID);
    EXPECT_EQ_STR(read_back(memory, out), "old\n");
    EXPECT_STATUS(batch_writer_open(in, in, BATCH_OVERWRITE, &w), STATUS_INVALID);
    EXPECT_EQ_STR(read_back(memory, in), "i\n");
    EXPECT_OK(batch_writer_open(out, in, BATCH_OVERWRITE, &w));
    EXPECT_OK(batch_writer_line(w, "new\n", 4));
    EXPECT_OK(batch_writer_sync(w));
    batch_writer_close(w);
    EXPECT_EQ_STR(read_back(memory, out), "new\n");
    EXPECT_STATUS(batch_writer_open("/nonexistent/out", in, BATCH_NEW, &w), STATUS_NOT_FOUND);
    arena_destroy(memory);
}

TEST(resume_drops_a_torn_last_line_and_appends)
{
    arena *memory = arena_create("test");
    const char *in = path_in(memory, "in"), *out = path_in(memory, "out");
    write_file(in, "i\n", 2);
    char *torn = ARENA_NEW(memory, char, 10000);
    memcpy(torn, "one\n", 4);
    memset(torn + 4, 'x', 9000); /* longer than one look from the back */
    write_file(out, torn, 9004);
    batch_writer *w;
    EXPECT_OK(batch_writer_open(out, in, BATCH_RESUME, &w));
    EXPECT_OK(batch_writer_line(w, "two\n", 4));
    batch_writer_close(w);
    EXPECT_EQ_STR(read_back(memory, out), "one\ntwo\n");
    arena_destroy(memory);
}

TEST(a_full_disk_is_a_status_and_a_sentence)
{
    batch_writer *w;
    EXPECT_OK(batch_writer_open("/dev/full", "/dev/null", BATCH_OVERWRITE, &w));
    EXPECT_STATUS(batch_writer_line(w, "x\n", 2), STATUS_NO_SPACE);
    EXPECT_HAS_STR(log_last_error(), "disk is full");
    EXPECT_EQ_U64(batch_writer_lines(w), 0);
    batch_writer_close(w);
}

static batch_answer some_answer(void)
{
    return (batch_answer){.line = 3,
                          .custom_id = "a\"b",
                          .model = "m",
                          .content = "x\ny",
                          .content_bytes = 3,
                          .stopped = true,
                          .prompt_tokens = 5,
                          .completion_tokens = 2,
                          .selector = "nosa",
                          .lookahead = "own",
                          .budget = "[1,4,10,16]",
                          .logits_digest = 0xabc,
                          .token_digest = 0xdef,
                          .blocks = {1, 2, 3, 4},
                          .ttft_ms = 1.5,
                          .total_ms = 2.5,
                          .created_s = 1234};
}

TEST(an_answer_is_one_line_of_openai_json)
{
    arena *memory = arena_create("test");
    text out;
    text_start(&out, memory);
    batch_answer a = some_answer();
    batch_write_answer(&out, &a, NULL, false);
    EXPECT(strchr(out.bytes, '\n') == out.bytes + out.count - 1);
    cJSON *tree;
    EXPECT_OK(json_parse("out", out.bytes, out.count - 1, &tree));
    EXPECT_EQ_STR(json_get(tree, "custom_id")->valuestring, "a\"b");
    EXPECT(cJSON_IsNull(cJSON_GetObjectItem(tree, "error")));
    const cJSON *body = json_get(json_get(tree, "response"), "body");
    EXPECT_EQ_STR(json_get(body, "object")->valuestring, "text_completion");
    const cJSON *choice = json_get(body, "choices")->child;
    EXPECT_EQ_STR(json_get(choice, "text")->valuestring, "x\ny");
    EXPECT_EQ_STR(json_get(choice, "finish_reason")->valuestring, "stop");
    EXPECT(cJSON_IsNull(cJSON_GetObjectItem(choice, "logprobs")));
    EXPECT_NEAR(json_get(json_get(body, "usage"), "total_tokens")->valuedouble, 7, 0);
    const cJSON *shoal = json_get(body, "shoal");
    EXPECT_EQ_STR(json_get(shoal, "logits_digest")->valuestring, "0000000000000abc");
    EXPECT_NEAR(json_get(json_get(shoal, "blocks"), "remote")->valuedouble, 3, 0);
    json_free(tree);
    arena_destroy(memory);
}

TEST(deterministic_lines_do_not_know_time_or_tier)
{
    arena *memory = arena_create("test");
    text one, two;
    text_start(&one, memory);
    text_start(&two, memory);
    batch_answer a = some_answer();
    batch_write_answer(&one, &a, NULL, true);
    a.blocks = (batch_blocks){9, 9, 9, 9};
    a.ttft_ms = a.total_ms = 99;
    a.created_s = 99;
    a.parks = a.recomputes = a.void_rows = 9;
    batch_write_answer(&two, &a, NULL, true);
    EXPECT_EQ_STR(one.bytes, two.bytes);
    a.logits_digest++;
    two.count = 0;
    batch_write_answer(&two, &a, NULL, true);
    EXPECT(strcmp(one.bytes, two.bytes) != 0);
    arena_destroy(memory);
}

TEST(what_was_written_is_known_to_a_resumed_run)
{
    arena *memory = arena_create("test");
    const char *path = path_in(memory, "out");
    text out, key;
    text_start(&out, memory);
    text_start(&key, memory);
    batch_answer a = some_answer();
    batch_error e;
    batch_write_answer(&out, &a, NULL, false);
    batch_error_set(&e, "duplicate_custom_id", "again");
    batch_write_error(&out, 4, "b", &e);
    batch_error_set(&e, "invalid_json", "broken");
    batch_write_error(&out, 7, NULL, &e);
    text_add_string(&out, "{\"id\":\"batch_req_9\",\"cus"); /* torn */
    write_file(path, out.bytes, out.count);
    batch_names *names = batch_names_create(memory);
    uint64_t count;
    EXPECT_OK(batch_done_read(path, names, &count));
    EXPECT_EQ_U64(count, 3);
    batch_done_key("a\"b", false, 0, &key);
    EXPECT(batch_names_has(names, key.bytes, key.count));
    batch_done_key("b", false, 0, &key); /* only its repetition was refused */
    EXPECT(!batch_names_has(names, key.bytes, key.count));
    batch_done_key("b", true, 0, &key);
    EXPECT(batch_names_has(names, key.bytes, key.count));
    batch_done_key(NULL, false, 7, &key);
    EXPECT(batch_names_has(names, key.bytes, key.count));
    batch_done_key(NULL, false, 8, &key);
    EXPECT(!batch_names_has(names, key.bytes, key.count));
    arena_destroy(memory);
}

TEST(a_foreign_file_is_not_resumed)
{
    arena *memory = arena_create("test");
    const char *path = path_in(memory, "out");
    write_file(path, "{\"text\":1}\n", 11);
    uint64_t count;
    EXPECT_STATUS(batch_done_read(path, batch_names_create(memory), &count), STATUS_INVALID);
    arena_destroy(memory);
}

TEST_MAIN()
