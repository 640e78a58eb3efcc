/* Tokenizer files that are refused, and what the golden cases do not reach: streaming, limits,
 * special tokens, cost. */
#include "tests/worker/support.h"
#include "worker/tokenizer.h"

#define BYTES_DECODER         "\"decoder\":{\"type\":\"ByteLevel\"}"
#define VOCAB                 "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]"
#define MODEL                 "\"model\":{\"type\":\"BPE\"," VOCAB "}"
#define WITH(extra)           "{" extra "," MODEL "," BYTES_DECODER "}"
#define WITH_MODEL(model)     "{\"model\":" model "," BYTES_DECODER "}"
#define WITH_DECODER(decoder) "{" MODEL ",\"decoder\":" decoder "}"
#define PRE(type)             WITH("\"pre_tokenizer\":{\"type\":" type "}")
#define SPLIT(regex)                                                                               \
    PRE("\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"" regex "\"}")

static status parse(const char *text, tokenizer **out)
{
    return tokenizer_parse("tokenizer.json", text, strlen(text), out);
}

static tokenizer *good(const char *text)
{
    tokenizer *t = NULL;
    EXPECT_OK(parse(text, &t));
    return t;
}

static tokenizer *small_model(void)
{
    tokenizer *t = NULL;
    EXPECT_OK(tokenizer_load(TEST_SOURCE_DIR "/worker/small-model", &t));
    return t;
}

/* clang-format off */
static const struct { const char *text; status want; const char *sentence; } refused[] = {
    {"{" MODEL "," BYTES_DECODER "}", STATUS_OK, ""},
    {"", STATUS_INVALID, "not valid JSON"},
    {"7", STATUS_INVALID, "must hold a JSON object"},
    {"{\"model\":{}", STATUS_INVALID, "not valid JSON"},
    {"{}", STATUS_INVALID, "\"model\" must be an object"},
    {"{" MODEL "}", STATUS_UNSUPPORTED, "without a \"decoder\""},
    /* kinds that are not implemented */
    {WITH_MODEL("{\"type\":\"Unigram\",\"vocab\":[]}"), STATUS_UNSUPPORTED, "the model type \"Unigram\" is not supported"},
    {WITH_MODEL("{\"type\":\"WordPiece\"}"), STATUS_UNSUPPORTED, "the model type \"WordPiece\""},
    {WITH("\"normalizer\":{\"type\":\"BertNormalizer\"}"), STATUS_UNSUPPORTED, "the normalizer type \"BertNormalizer\""},
    {WITH("\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Precompiled\"}]}"), STATUS_UNSUPPORTED, "the normalizer type \"Precompiled\""},
    {PRE("\"BertPreTokenizer\""), STATUS_UNSUPPORTED, "the pre_tokenizer type \"BertPreTokenizer\""},
    {WITH("\"post_processor\":{\"type\":\"RobertaProcessing\"}"), STATUS_UNSUPPORTED, "the post_processor type \"RobertaProcessing\""},
    {WITH_DECODER("{\"type\":\"WordPiece\"}"), STATUS_UNSUPPORTED, "the decoder type \"WordPiece\""},
    {WITH_DECODER("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}]}"), STATUS_UNSUPPORTED, "ByteFallback is not supported after other steps"},
    {WITH_DECODER("{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":0,\"stop\":1}]}"), STATUS_UNSUPPORTED, "\"stop\" after Fuse"},
    {WITH_MODEL("{\"dropout\":0.1," VOCAB "}"), STATUS_UNSUPPORTED, "\"dropout\""},
    {WITH_MODEL("{\"continuing_subword_prefix\":\"##\"," VOCAB "}"), STATUS_UNSUPPORTED, "\"continuing_subword_prefix\""},
    {WITH_MODEL("{\"end_of_word_suffix\":\"</w>\"," VOCAB "}"), STATUS_UNSUPPORTED, "\"end_of_word_suffix\""},
    {PRE("\"Split\",\"behavior\":\"Sideways\",\"pattern\":{\"String\":\"a\"}"), STATUS_UNSUPPORTED, "behavior \"Sideways\""},
    {PRE("\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\""), STATUS_UNSUPPORTED, "\"prepend_scheme\" \"last\""},
    {SPLIT("\\\\h+"), STATUS_UNSUPPORTED, "uses \\h"},
    {SPLIT("[a-z&&[^b]]"), STATUS_UNSUPPORTED, "uses &&"},
    {SPLIT("[a[b]]"), STATUS_UNSUPPORTED, "uses nested classes"},
    {SPLIT("[[:graph:]]"), STATUS_UNSUPPORTED, "bracket expression"},
    {SPLIT("[\\\\W]"), STATUS_UNSUPPORTED, "uses \\W"},
    {SPLIT("(?im:a.b)"), STATUS_UNSUPPORTED, "uses (?m"},
    /* malformed */
    {SPLIT("(a"), STATUS_INVALID, "is refused: missing closing parenthesis"},
    {SPLIT("["), STATUS_INVALID, "is refused: missing terminating ]"},
    {SPLIT("a{2,1}"), STATUS_INVALID, "is refused"},
    {SPLIT("\\\\"), STATUS_INVALID, "is refused"},
    {SPLIT("\\\\p{"), STATUS_INVALID, "is refused"},
    {SPLIT("\\\\p{Klingon}"), STATUS_INVALID, "is refused: unknown property"},
    {PRE("\"Split\",\"behavior\":\"Isolated\""), STATUS_INVALID, "\"pattern\" must hold"},
    {PRE("\"Metaspace\",\"replacement\":\"ab\""), STATUS_INVALID, "must be one character"},
    {PRE("\"Digits\",\"individual_digits\":1"), STATUS_INVALID, "\"individual_digits\" must be true or false"},
    {PRE("7"), STATUS_INVALID, "\"type\" must be a string"},
    {WITH("\"pre_tokenizer\":{}"), STATUS_INVALID, "\"type\" is missing"},
    {WITH("\"pre_tokenizer\":{\"type\":\"Sequence\"}"), STATUS_INVALID, "\"pretokenizers\" must be a list"},
    {WITH("\"normalizer\":{\"type\":\"Prepend\"}"), STATUS_INVALID, "\"prepend\" is missing"},
    {WITH_MODEL("[]"), STATUS_INVALID, "\"model\" must be an object"},
    {WITH_MODEL("{}"), STATUS_INVALID, "\"vocab\" must map tokens to ids"},
    {WITH_MODEL("{\"vocab\":{},\"merges\":[]}"), STATUS_INVALID, "the vocabulary is empty"},
    {WITH_MODEL("{\"vocab\":{\"a\":-1},\"merges\":[]}"), STATUS_INVALID, "the id of \"a\""},
    {WITH_MODEL("{\"vocab\":{\"a\":1.5},\"merges\":[]}"), STATUS_INVALID, "the id of \"a\""},
    {WITH_MODEL("{\"vocab\":{\"a\":16777216},\"merges\":[]}"), STATUS_INVALID, "the id of \"a\""},
    {WITH_MODEL("{\"vocab\":{\"a\":9999999},\"merges\":[]}"), STATUS_INVALID, "far beyond the 1 entries"},
    {WITH_MODEL("{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}"), STATUS_INVALID, "\"a\" and \"b\" have the same id"},
    {WITH_MODEL("{\"vocab\":{\"a\":0,\"a\":1},\"merges\":[]}"), STATUS_INVALID, "appears twice"},
    {WITH_MODEL("{\"vocab\":{\"a\":0}}"), STATUS_INVALID, "\"merges\" must be a list"},
    {WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}"), STATUS_INVALID, "merge 0 is not two tokens"},
    {WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"a\",\"a\"]]}"), STATUS_INVALID, "merge 0 is not two tokens"},
    {WITH_MODEL("{\"vocab\":{\"a\":0,\"aa\":1},\"merges\":[\"a a\",\"a a a\"]}"), STATUS_INVALID, "merge 1 is not two tokens"},
    {WITH_MODEL("{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}"), STATUS_INVALID, "merge 0 (aa) uses a token outside the vocabulary"},
    {WITH_MODEL("{\"unk_token\":\"u\"," VOCAB "}"), STATUS_INVALID, "\"unk_token\" \"u\" is not in the vocabulary"},
    {WITH("\"added_tokens\":{}"), STATUS_INVALID, "\"added_tokens\" must be a list"},
    {WITH("\"added_tokens\":[{\"id\":5}]"), STATUS_INVALID, "an added token has no \"content\""},
    {WITH("\"added_tokens\":[{\"id\":5,\"content\":\"\"}]"), STATUS_INVALID, "an added token has no \"content\""},
    {WITH("\"added_tokens\":[{\"content\":\"x\"}]"), STATUS_INVALID, "the id of the added token \"x\""},
    {WITH("\"added_tokens\":[{\"id\":1,\"content\":\"a\"}]"), STATUS_INVALID, "\"a\" has the id 1, but 0"},
    {WITH("\"added_tokens\":[{\"id\":1,\"content\":\"x\"}]"), STATUS_INVALID, "have the same id"},
    {WITH("\"added_tokens\":[{\"id\":5,\"content\":\"x\",\"special\":\"yes\"}]"), STATUS_INVALID, "\"special\" must be true or false"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\"}}],\"special_tokens\":{}}"), STATUS_INVALID, "\"<s>\" has no ids"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"s\"}}],\"special_tokens\":{\"s\":{\"ids\":[3]}}}"), STATUS_INVALID, "\"s\" has a wrong id"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\"}"), STATUS_INVALID, "\"single\" must be a list"},
};
/* clang-format on */

TEST(other_kinds_and_malformed_files_get_one_sentence)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        tokenizer *t = NULL;
        status s = parse(refused[i].text, &t);
        EXPECT_MSG(s == refused[i].want, "case %zu (%s): %s (%s)", i, refused[i].text,
                   status_name(s), log_last_error());
        tokenizer_destroy(t);
        if (s == STATUS_OK) continue;
        EXPECT_HAS_STR(log_last_error(), refused[i].sentence);
        EXPECT_HAS_STR(log_last_error(), "tokenizer.json: ");
    }
}

TEST(truncations_and_flips_of_a_file_never_crash)
{
    const char *file = "{\"added_tokens\":[{\"id\":3,\"content\":\"<s>\",\"special\":true}],"
                       "\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Split\","
                       "\"pattern\":{\"Regex\":\"\\\\s+|[\\\\w\\\\p{Han}]\"},\"behavior\":"
                       "\"MergedWithNext\"}," MODEL "," BYTES_DECODER "}";
    size_t bytes = strlen(file);
    arena *a = arena_create("test");
    rng r;
    rng_seed(&r, test_seed() ^ 0xbe);
    for (size_t round = 0; round < bytes + 3000; round++) {
        char text[1024];
        tokenizer *t = NULL;
        memcpy(text, file, bytes);
        if (round >= bytes) text[rng_below(&r, bytes)] ^= (char)(1 << rng_below(&r, 7));
        if (tokenizer_parse("t", text, round < bytes ? round : bytes, &t) != STATUS_OK) continue;
        EXPECT(round >= bytes);
        int32_t *ids;
        uint32_t count;
        (void)tokenizer_encode(t, (span){"ab a\xe4\xb8\x80<s>b", 11}, true, a, &ids, &count);
        tokenizer_destroy(t);
    }
    arena_destroy(a);
}

TEST(a_directory_without_a_tokenizer_is_not_found_and_chat_templates_are_noticed)
{
    tokenizer *t = NULL;
    const char *file = "{" MODEL "," BYTES_DECODER "}";
    EXPECT_STATUS(tokenizer_load(test_dir(), &t), STATUS_NOT_FOUND);
    support_write("tokenizer.json", file, strlen(file));
    EXPECT_OK(tokenizer_load(test_dir(), &t));
    EXPECT(!tokenizer_has_chat_template(t));
    tokenizer_destroy(t);
    support_write("tokenizer_config.json", "{\"chat_template\":\"{{x}}\"}", 25);
    EXPECT_OK(tokenizer_load(test_dir(), &t));
    EXPECT(tokenizer_has_chat_template(t));
    tokenizer_destroy(t);
    support_write("tokenizer_config.json", "{\"chat_template\":null}", 22);
    EXPECT_OK(tokenizer_load(test_dir(), &t));
    EXPECT(!tokenizer_has_chat_template(t));
    tokenizer_destroy(t);
    support_write("chat_template.jinja", "{{x}}", 5);
    EXPECT_OK(tokenizer_load(test_dir(), &t));
    EXPECT(tokenizer_has_chat_template(t));
    tokenizer_destroy(t);
    support_write("tokenizer_config.json", "{", 1);
    t = NULL;
    EXPECT_STATUS(tokenizer_load(test_dir(), &t), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "tokenizer_config.json");
}

TEST(text_that_is_not_utf8_is_refused_with_the_byte)
{
    static const struct {
        const char *text;
        size_t bytes, at;
    } cases[] = {{"abc\xff", 4, 3},          {"\x80", 1, 0},
                 {"ab\xc3", 3, 2},           {"\xc0\x80", 2, 0},
                 {"x\xed\xa0\x80", 4, 1},    {"12345678\xf4\x90\x80\x80", 12, 8},
                 {"\xf0\x8f\xbf\xbf", 4, 0}, {"\xe4\xb8\x80\xe4\xb8", 5, 3}};
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int32_t *ids;
        uint32_t count;
        char sentence[64];
        snprintf(sentence, sizeof sentence, "invalid at byte %zu", cases[i].at);
        EXPECT_STATUS(
            tokenizer_encode(t, (span){cases[i].text, cases[i].bytes}, false, a, &ids, &count),
            STATUS_INVALID);
        EXPECT_HAS_STR(log_last_error(), sentence);
    }
    tokenizer_destroy(t);
    arena_destroy(a);
}

TEST(special_tokens_in_text_are_ids_and_can_be_left_out_of_text)
{
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    int32_t *ids;
    uint32_t count;
    span text;
    EXPECT_OK(tokenizer_encode(t, (span){"a<|endoftext|>b", 15}, false, a, &ids, &count));
    EXPECT(count == 3 && ids[1] == 0 && tokenizer_is_special(t, 0) && !tokenizer_is_special(t, 1));
    EXPECT_OK(tokenizer_decode(t, ids, count, true, a, &text));
    EXPECT_EQ_STR(text.text, "ab");
    EXPECT_OK(tokenizer_decode(t, ids, count, false, a, &text));
    EXPECT_EQ_STR(text.text, "a<|endoftext|>b");
    EXPECT(tokenizer_id(t, "<|endoftext|>") == 0 && tokenizer_id(t, "no such token") == -1);
    EXPECT(tokenizer_vocab(t) == 4096);
    ids[0] = 4096;
    EXPECT_STATUS(tokenizer_decode(t, ids, count, false, a, &text), STATUS_INVALID);
    tokenizer_destroy(t);
    arena_destroy(a);
}

/* "xy" is an added token that must stand alone: inside a word BPE must not make it either, though
 * ignore_merges takes whole words from the vocabulary. */
TEST(an_added_token_is_not_made_by_bpe)
{
    tokenizer *t = good("{\"added_tokens\":[{\"id\":4,\"content\":\"xy\",\"single_word\":true}],"
                        "\"pre_tokenizer\":{\"type\":\"Digits\",\"individual_digits\":true},"
                        "\"model\":{\"ignore_merges\":true,\"vocab\":{\"x\":0,\"y\":1,\"1\":2,"
                        "\"yx\":3},\"merges\":[]}," BYTES_DECODER "}");
    arena *a = arena_create("test");
    int32_t *ids;
    uint32_t count;
    static const int32_t want[] = {2, 0, 1, 2, 3};
    EXPECT_OK(tokenizer_encode(t, (span){"1xy1yx", 6}, false, a, &ids, &count));
    EXPECT(count == 5 && memcmp(ids, want, sizeof want) == 0);
    EXPECT_OK(tokenizer_encode(t, (span){"xy", 2}, false, a, &ids, &count));
    EXPECT(count == 1 && ids[0] == 4);
    tokenizer_destroy(t);
    arena_destroy(a);
}

/* Bits a byte are counted with these lengths. */
TEST(bytes_of_tokens_add_up_to_the_text)
{
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    const char *text = "caf\xc3\xa9 \xe4\xb8\x80\xf0\x9f\x98\x80 2026-11-24\r\n\t x";
    int32_t *ids;
    uint32_t count;
    size_t sum = 0;
    EXPECT_OK(tokenizer_encode(t, (span){text, strlen(text)}, false, a, &ids, &count));
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n;
        const char *bytes = tokenizer_token_bytes(t, ids[i], &n);
        EXPECT(bytes != NULL && memcmp(bytes, text + sum, n) == 0);
        sum += n;
    }
    EXPECT_EQ_U64(sum, strlen(text));
    uint32_t n = 7;
    EXPECT(tokenizer_token_bytes(t, -1, &n) == NULL && n == 0);
    EXPECT(tokenizer_token_bytes(t, 4096, &n) == NULL && n == 0);
    tokenizer_destroy(t);
    arena_destroy(a);
}

/* ---- streaming ------------------------------------------------------------------------------- */

/* The id of a single byte of a byte-level vocabulary. */
static int32_t id_of_byte(const tokenizer *t, uint8_t byte)
{
    for (int32_t id = 0; id < 1000; id++) {
        uint32_t n;
        const char *bytes = tokenizer_token_bytes(t, id, &n);
        if (n == 1 && (uint8_t)bytes[0] == byte) return id;
    }
    return -1;
}

TEST(bytes_of_an_incomplete_character_are_held_back)
{
    tokenizer *t = small_model();
    detokenizer d;
    char out[512];
    EXPECT(detokenizer_bytes_max(t) <= sizeof out);
    detokenizer_start(t, false, &d);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0xf0), out) == 0);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0x9f), out) == 0);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0x98), out) == 0);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0x80), out) == 4);
    EXPECT_EQ_MEM(out, "\xf0\x9f\x98\x80", 4);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0xe4), out) == 0);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 'a'), out) == 4); /* U+FFFD, a */
    EXPECT_EQ_MEM(out,
                  "\xef\xbf\xbd"
                  "a",
                  4);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0x80), out) == 3);
    EXPECT(detokenizer_push(&d, id_of_byte(t, 0xc3), out) == 0);
    EXPECT(detokenizer_finish(&d, out) == 3 && detokenizer_finish(&d, out) == 0);
    EXPECT(detokenizer_push(&d, -1, out) == 0 && detokenizer_push(&d, 1 << 20, out) == 0);
    tokenizer_destroy(t);
}

/* Any ids at all: each piece is well-formed, and together they are the text of all at once. */
TEST(pieces_of_random_ids_are_whole_characters_and_make_the_whole)
{
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    rng r;
    rng_seed(&r, test_seed() ^ 0xde70);
    for (int round = 0; round < 200; round++) {
        int32_t ids[64];
        char pieces[8192];
        span whole;
        uint32_t used = 0;
        detokenizer d;
        detokenizer_start(t, false, &d);
        for (int i = 0; i < 64; i++) {
            ids[i] = (int32_t)rng_below(&r, round % 2 ? 4096 : 257);
            uint32_t n = detokenizer_push(&d, ids[i], pieces + used);
            EXPECT(n == 0 || (pieces[used] & 0xc0) != 0x80);
            used += n;
        }
        used += detokenizer_finish(&d, pieces + used);
        EXPECT_OK(tokenizer_decode(t, ids, 64, false, a, &whole));
        EXPECT(whole.bytes == used && memcmp(whole.text, pieces, used) == 0);
        int32_t *again;
        uint32_t count; /* what came out is UTF-8 */
        EXPECT_OK(tokenizer_encode(t, whole, false, a, &again, &count));
    }
    tokenizer_destroy(t);
    arena_destroy(a);
}

TEST(byte_fallback_puts_characters_together_and_strips_one_leading_space)
{
    const char *file =
        "{\"model\":{\"byte_fallback\":true,\"vocab\":{\"\xe2\x96\x81\":0,\"a\":1,\"<0xC3>\":2,"
        "\"<0xA9>\":3,\"\xe2\x96\x81"
        "a\":4},\"merges\":[[\"\xe2\x96\x81\",\"a\"]]},"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
        "\"\xe2\x96\x81\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":"
        "\"\xe2\x96\x81\"}]},\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":"
        "\"Replace\",\"pattern\":{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":"
        "\"ByteFallback\"},{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,"
        "\"stop\":0}]}}";
    tokenizer *t = good(file);
    arena *a = arena_create("test");
    int32_t *ids;
    uint32_t count;
    span text;
    EXPECT_OK(tokenizer_encode(t, (span){"a \xc3\xa9z a", 7}, false, a, &ids, &count));
    static const int32_t want[] = {4, 0, 2, 3, 4}; /* z is in no vocabulary and has no bytes */
    EXPECT(count == 5 && memcmp(ids, want, sizeof want) == 0);
    EXPECT_OK(tokenizer_decode(t, ids, count, false, a, &text));
    EXPECT_EQ_STR(text.text, "a \xc3\xa9 a");
    detokenizer d;
    char out[64];
    detokenizer_start(t, false, &d);
    EXPECT(detokenizer_push(&d, 0, out) == 0); /* the leading space */
    EXPECT(detokenizer_push(&d, 2, out) == 0);
    EXPECT(detokenizer_push(&d, 0, out) == 4); /* U+FFFD, space */
    EXPECT_EQ_MEM(out, "\xef\xbf\xbd ", 4);
    tokenizer_destroy(t);
    arena_destroy(a);
}

/* ---- cost and limits ------------------------------------------------------------------------- */

static double seconds(void)
{
    return (double)clock_now(&clock_monotonic) / 1e9;
}

/* One word of a million bytes: n log n takes well under a second, n^2 would take hours. */
TEST(one_word_of_a_megabyte_is_encoded_in_order_n_log_n)
{
    enum { BYTES = 1 << 20 };
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    char *text = arena_alloc(a, BYTES, 1);
    span back;
    int32_t *ids;
    uint32_t count;
    rng r;
    rng_seed(&r, test_seed());
    for (int i = 0; i < BYTES; i++)
        text[i] = (char)('a' + rng_below(&r, 26));
    double start = seconds();
    EXPECT_OK(tokenizer_encode(t, (span){text, BYTES}, false, a, &ids, &count));
    EXPECT_LE_F64(seconds() - start, 60);
    EXPECT_OK(tokenizer_decode(t, ids, count, false, a, &back));
    EXPECT(back.bytes == BYTES && memcmp(back.text, text, BYTES) == 0);
    tokenizer_destroy(t);
    arena_destroy(a);
}

TEST(long_runs_of_combining_marks_are_refused)
{
    tokenizer *t = good(WITH("\"normalizer\":{\"type\":\"NFC\"}"));
    arena *a = arena_create("test");
    char text[4096];
    int32_t *ids;
    uint32_t count;
    for (int i = 0; i < 2048; i++)
        memcpy(text + 2 * i, "\xcc\x81", 2);
    EXPECT_OK(tokenizer_encode(t, (span){text, 2048}, false, a, &ids, &count));
    EXPECT_STATUS(tokenizer_encode(t, (span){text, 4096}, false, a, &ids, &count), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "combining marks in a row");
    tokenizer_destroy(t);
    arena_destroy(a);
}

/* The cache of words must not change what comes out. */
TEST(encoding_twice_gives_the_same_ids)
{
    tokenizer *t = small_model();
    arena *a = arena_create("test");
    const char *text = "the same words, the same words, and the same again";
    int32_t *first, *second;
    uint32_t first_count, second_count;
    EXPECT_OK(tokenizer_encode(t, (span){text, strlen(text)}, false, a, &first, &first_count));
    EXPECT_OK(tokenizer_encode(t, (span){text, strlen(text)}, false, a, &second, &second_count));
    EXPECT(first_count == second_count);
    EXPECT_EQ_MEM(first, second, first_count * sizeof *first);
    EXPECT_OK(tokenizer_encode(t, (span){"", 0}, true, a, &first, &first_count));
    EXPECT(first_count == 0);
    tokenizer_destroy(t);
    arena_destroy(a);
}

TEST_MAIN()
