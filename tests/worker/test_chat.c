/* Chat templates: what Jinja2 made of them (tests/oracle/make_chat.py), and what is refused. */
#include "tests/test.h"

#include "worker/chat.h"
#include "worker/json.h"

#include <sys/stat.h>

static const char *const tokens[2] = {"<s>", "</s>"};

TEST(prompts_are_those_of_jinja)
{
    arena *memory = arena_create("test");
    char *bytes;
    size_t count;
    cJSON *tree;
    int rows = 0;
    EXPECT_OK(
        json_file_read(TEST_SOURCE_DIR "/tests/golden/chat.json", 1 << 20, memory, &bytes, &count));
    EXPECT_OK(json_parse("chat.json", bytes, count, &tree));
    for (const cJSON *row = tree->child; row != NULL; row = row->next, rows++) {
        const char *name = json_get(row, "name")->valuestring;
        const char *source = json_get(row, "template")->valuestring;
        batch_message messages[8];
        uint32_t n = 0;
        for (const cJSON *m = json_get(row, "messages")->child; m != NULL; m = m->next)
            messages[n++] = (batch_message){json_get(m, "role")->valuestring,
                                            json_get(m, "content")->valuestring};
        chat_template *t;
        text out;
        text_start(&out, memory);
        EXPECT_OK(chat_parse("chat.json", source, strlen(source), tokens, &t));
        status s = chat_render(t, messages, n, &out);
        const cJSON *want = json_get(row, "want"), *error = json_get(row, "error");
        if (error != NULL) {
            EXPECT_MSG(s == STATUS_INVALID, "%s: not refused", name);
            EXPECT_HAS_STR(log_last_error(), error->valuestring);
        } else {
            EXPECT_MSG(s == STATUS_OK, "%s: %s", name, log_last_error());
            EXPECT_MSG(strcmp(out.bytes, want->valuestring) == 0, "%s:\n[%s]\nexpected\n[%s]", name,
                       out.bytes, want->valuestring);
        }
        chat_free(t);
    }
    EXPECT(rows >= 35);
    json_free(tree);
    arena_destroy(memory);
}

typedef struct refused {
    const char *source, *sentence;
    bool at_once; /* when parsed, not when rendered */
} refused;

static const refused refusals[] = {
    {"{{ 'a'", "{{ is not closed", true},
    {"{% if", "{% is not closed", true},
    {"{% %}", "without a name", true},
    {"{% raw %}{{{% endraw %}", "raw", true},
    {"{{ strftime_now('%d') }}", "strftime_now", false},
    {"{{ messages | tojson }}", "the filter tojson", false},
    {"{{ messages[0].content.upper() }}", "the method upper", false},
    {"{{ {'a': 1} }}", "is not supported", false},
    {"{{ 1 + 'a' }}", "\"+\" needs", false},
    {"{{ nothing.at.all }}", "\"at\"", false},
    {"{{ messages }}", "only strings and numbers", false},
    {"{{ 'a' 'b' }}", "is not supported", false},
    {"{{ (1 }}", "\")\" is missing", false},
    {"{{ 'a }}", "is not closed", true},
    {"{{ '\\q' }}", "escape", false},
    {"{% include 'x' %}", "include", false},
    {"{% for m in 'abc' %}{% endfor %}", "for needs a list", false},
    {"{% for m in messages %}{% else %}{% endfor %}", "this form of for", false},
    {"{% set x %}a{% endset %}", "set", false},
    {"{% if messages is sameas 3 %}{% endif %}", "is sameas", false},
    {"{{ ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1", "not closed",
     true},
    {"{{ ((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((((1 }}", "deeper",
     false},
};

TEST(what_is_not_known_is_refused_by_name)
{
    const batch_message message = {"user", "x"};
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        arena *memory = arena_create("test");
        chat_template *t = NULL;
        text out;
        text_start(&out, memory);
        const refused *r = &refusals[i];
        status s = chat_parse("t", r->source, strlen(r->source), tokens, &t);
        EXPECT_MSG((s != STATUS_OK) == r->at_once, "%s: %s", r->source, status_name(s));
        if (s == STATUS_OK) {
            EXPECT_MSG(chat_render(t, &message, 1, &out) == STATUS_INVALID, "%s", r->source);
            EXPECT_EQ_U64(out.count, 0);
        }
        EXPECT_MSG(strstr(log_last_error(), r->sentence) != NULL, "%s: %s", r->source,
                   log_last_error());
        chat_free(t);
        arena_destroy(memory);
    }
}

TEST(a_template_that_loops_for_ever_is_stopped)
{
    arena *memory = arena_create("test");
    chat_template *t;
    text source, out;
    text_start(&source, memory);
    text_start(&out, memory);
    for (int i = 0; i < 12; i++)
        text_format(&source, "{%% for m%d in messages %%}", i);
    text_add_string(&source, "x");
    for (int i = 0; i < 12; i++)
        text_add_string(&source, "{% endfor %}");
    batch_message many[10];
    for (int i = 0; i < 10; i++)
        many[i] = (batch_message){"user", "x"};
    EXPECT_OK(chat_parse("t", source.bytes, source.count, tokens, &t));
    EXPECT_STATUS(chat_render(t, many, 10, &out), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "too long");
    chat_free(t);
    arena_destroy(memory);
}

/* Whatever the bytes: an answer or a sentence, never a crash. */
TEST(damaged_templates_end_with_a_status)
{
    static const char good[] =
        "{%- set ns = namespace(a=1) %}{% for m in messages[1:] %}{% if m.role == 'user' and not "
        "loop.last %}{{ '<' ~ m['content'] | trim + \"\\n\" }}{% elif m.content is defined %}{{ "
        "ns.a - 2 }}{% else %}{# no #}{% endif %}{% endfor %}{{ 'x' if messages | length > 2 }}";
    static const char signs[] = "{}%#-'\"()[]|.:=~+ \\nain0";
    const batch_message chat[3] = {{"system", "s"}, {"user", " u "}, {"assistant", "a"}};
    rng random;
    rng_seed(&random, test_seed());
    int ok = 0;
    for (int i = 0; i < 20000; i++) {
        char bytes[sizeof good];
        memcpy(bytes, good, sizeof good);
        size_t count = sizeof good - 1;
        for (uint64_t n = rng_below(&random, 4); n > 0; n--)
            bytes[rng_below(&random, count)] = signs[rng_below(&random, sizeof signs - 1)];
        if (rng_below(&random, 4) == 0) count = rng_below(&random, count);
        arena *memory = arena_create("test");
        text out;
        text_start(&out, memory);
        chat_template *t = NULL;
        if (chat_parse("t", bytes, count, tokens, &t) == STATUS_OK) {
            ok += chat_render(t, chat, 3, &out) == STATUS_OK;
            chat_free(t);
        }
        arena_destroy(memory);
    }
    EXPECT(ok > 1000 && ok < 20000);
}

static void write_file(const char *name, const char *bytes)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", test_dir(), name);
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL);
    EXPECT(fputs(bytes, f) >= 0);
    EXPECT(fclose(f) == 0);
}

TEST(a_folder_may_bring_its_template_in_three_ways_or_not_at_all)
{
    const batch_message message = {"user", "x"};
    arena *memory = arena_create("test");
    chat_template *t;
    text out;
    text_start(&out, memory);
    EXPECT_OK(chat_load(test_dir(), &t));
    EXPECT(t == NULL);
    write_file("tokenizer_config.json", "{\"bos_token\":\"<b>\"}");
    EXPECT_OK(chat_load(test_dir(), &t));
    EXPECT(t == NULL);
    write_file("tokenizer_config.json",
               "{\"bos_token\":{\"content\":\"<b>\"},\"chat_template\":\"1{{ bos_token }}\"}");
    EXPECT_OK(chat_load(test_dir(), &t));
    EXPECT_OK(chat_render(t, &message, 1, &out));
    EXPECT_EQ_STR(out.bytes, "1<b>");
    chat_free(t);
    write_file("tokenizer_config.json",
               "{\"chat_template\":[{\"name\":\"tool_use\",\"template\":\"no\"},"
               "{\"name\":\"default\",\"template\":\"2{{ bos_token }}\"}]}");
    EXPECT_OK(chat_load(test_dir(), &t));
    out.count = 0;
    EXPECT_OK(chat_render(t, &message, 1, &out));
    EXPECT_EQ_STR(out.bytes, "2");
    chat_free(t);
    write_file("chat_template.jinja", "3\n");
    EXPECT_OK(chat_load(test_dir(), &t));
    out.count = 0;
    EXPECT_OK(chat_render(t, &message, 1, &out));
    EXPECT_EQ_STR(out.bytes, "3");
    chat_free(t);
    arena_destroy(memory);
}

TEST_MAIN()
