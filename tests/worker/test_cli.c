/* shoal-worker as its users see it: help and version, answers that do not depend on how they were
 * computed, resuming, interruption. */
#include "tests/worker/program.h"

#include "worker/json.h"
#include "worker/text.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BODY(id, body)                                                                             \
    "{\"custom_id\":\"" id "\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":" body "}" \
    "\n"

static const char batch[] = BODY(
    "greedy",
    "{\"prompt\":\"Using the default config, and assuming\",\"max_tokens\":40,"
    "\"temperature\":0}") BODY("sampled",
                               "{\"prompt\":\"SQLite is a\",\"max_tokens\":30,\"temperature\":0.8,"
                               "\"top_p\":0.9,\"seed\":7,\"logprobs\":3}")
    BODY("stop", "{\"prompt\":\"The kernel\",\"max_tokens\":60,\"temperature\":0,"
                 "\"stop\":[\".\",\"\\n\"]}")
        BODY("ids",
             "{\"prompt\":[100,200,300,400],\"max_tokens\":9,\"temperature\":0,"
             "\"ignore_eos\":true}") "nonsense\n" BODY("full",
                                                       "{\"prompt\":\"If you "
                                                       "want\",\"max_tokens\":12,\"temperature\":0,"
                                                       "\"shoal\":{\"selector\":\"full\"}}")
            BODY("mid", "{\"prompt\":\"If you want\",\"max_tokens\":12,\"temperature\":0,"
                        "\"shoal\":{\"lookahead\":\"mid\",\"budget\":8}}");

static program_run run;

TEST(help_and_version_go_to_standard_output)
{
    PROGRAM_CALL(&run, "--help");
    EXPECT_EQ_I64(run.exit_code, 0);
    EXPECT_HAS_STR(run.out, "usage: shoal-worker VERB");
    PROGRAM_CALL(&run, "version");
    EXPECT_EQ_I64(run.exit_code, 0);
    EXPECT(strncmp(run.out, "shoal-worker ", 13) == 0);
    static const char *const verbs[] = {"decode", "eval"};
    for (int i = 0; i < 2; i++) {
        PROGRAM_CALL(&run, verbs[i], "--help");
        EXPECT_EQ_I64(run.exit_code, 0);
        EXPECT_EQ_STR(run.err, "");
        EXPECT_HAS_STR(run.out, "examples:");
        EXPECT_HAS_STR(run.out, "--device-pool");
        for (const char *line = run.out; line != NULL && *line != '\0';) {
            const char *end = strchr(line, '\n');
            EXPECT(end != NULL);
            line = end + 1;
        }
    }
}

TEST(a_wrong_verb_is_told_on_standard_error)
{
    PROGRAM_CALL(&run, "dekode");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_EQ_STR(run.out, "");
    EXPECT_HAS_STR(run.err, "unknown verb dekode");
    program_wait(program_start((const char *const[]){NULL}), &run);
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "a verb is missing");
}

/* Each line that begins with two spaces and the program's name, with its continuations. */
TEST(the_examples_of_the_help_run)
{
    arena *memory = arena_create("cli");
    char command[4096], here[512];
    program_write("in.jsonl", BODY("a", "{\"prompt\":\"SQLite is a\",\"max_tokens\":3}"));
    EXPECT(mkdir(program_path("cases"), 0700) == 0);
    EXPECT(mkdir(program_path("worker"), 0700) == 0);
    EXPECT(symlink(SMALL_MODEL, program_path("worker/small-model")) == 0);
    EXPECT(symlink(PROGRAM, program_path("shoal-worker")) == 0);
    program_write("cases/text-16k.jsonl", "{\"text\":\"one two three four five six seven\"}\n");
    program_write("cases/keys-4k.jsonl", "{\"prompt\":\"The code is 1234. The code is \","
                                         "\"answer\":\"1234\",\"kind\":\"trained\","
                                         "\"distractors\":0,\"depth\":0.3}\n");
    snprintf(here, sizeof here, "%s", test_dir());
    int examples = 0;
    static const char *const verbs[] = {"decode", "eval"};
    for (int i = 0; i < 2; i++) {
        PROGRAM_CALL(&run, verbs[i], "--help");
        char *at = strstr(run.out, "examples:\n");
        EXPECT(at != NULL);
        at += strlen("examples:\n");
        while (strncmp(at, "  shoal-worker ", 15) == 0) {
            char *end = strchr(at, '\n');
            while (end != NULL && end[-1] == '\\')
                end = strchr(end + 1, '\n');
            EXPECT(end != NULL);
            snprintf(command, sizeof command, "cd '%s' && ./%.*s >/dev/null 2>&1", here,
                     (int)(end - at - 2), at + 2);
            int how = system(command);
            EXPECT_MSG(how == 0, "%s ends with %d", command, how);
            examples++;
            at = end + 1;
        }
    }
    EXPECT_EQ_I64(examples, 4);
    arena_destroy(memory);
}

static const char *decode_to(arena *memory, const char *name, const char *const flags[8])
{
    const char *argv[PROGRAM_ARGS_MAX] = {"decode",    "@in.jsonl",      "-o", name, "--model",
                                          SMALL_MODEL, "--deterministic"};
    int count = 7;
    for (int i = 0; i < 8 && flags[i] != NULL; i++)
        argv[count++] = flags[i];
    program_call(argv, &run);
    return program_read(memory, name + 1);
}

TEST(answers_do_not_depend_on_batch_chunk_threads_or_pool)
{
    arena *memory = arena_create("cli");
    program_write("in.jsonl", batch);
    static const char *const ways[][8] = {
        {NULL},
        {"--max-num-seqs", "1"},
        {"--max-num-seqs", "3", "--max-num-batched-tokens", "5"},
        {"--threads", "1"},
        {"--no-prefetch", "--victim-margin", "0%"},
    };
    const char *want = decode_to(memory, "@0.jsonl", ways[0]);
    EXPECT_EQ_I64(run.exit_code, 1); /* the nonsense line */
    EXPECT(want != NULL);
    EXPECT_HAS_STR(want, "\"custom_id\":\"mid\"");
    static const char *const names[] = {"@0.jsonl", "@1.jsonl", "@2.jsonl", "@3.jsonl", "@4.jsonl"};
    for (int i = 1; i < 5; i++) {
        const char *got = decode_to(memory, names[i], ways[i]);
        EXPECT_EQ_I64(run.exit_code, 1);
        EXPECT_EQ_STR(got, want);
    }
    arena_destroy(memory);
}

static const cJSON *body_of(cJSON *line)
{
    return json_get(json_get(line, "response"), "body");
}

TEST(lines_are_in_input_order_and_say_what_was_asked)
{
    static const char *const order[] = {"greedy", "sampled", "stop", "ids", NULL, "full", "mid"};
    arena *memory = arena_create("cli");
    program_write("in.jsonl", batch);
    const char *at = decode_to(memory, "@o.jsonl", (const char *const[8]){"--quiet"});
    for (int i = 0; i < 7; i++) {
        const char *end = strchr(at, '\n');
        cJSON *line = NULL;
        EXPECT(end != NULL);
        EXPECT_OK(json_parse("out", at, (size_t)(end - at), &line));
        const cJSON *id = json_get(line, "custom_id");
        if (order[i] == NULL) {
            EXPECT(id == NULL);
            EXPECT(json_get(line, "error") != NULL);
        } else {
            EXPECT_EQ_STR(id->valuestring, order[i]);
            const cJSON *choice = json_get(body_of(line), "choices")->child;
            const cJSON *shoal = json_get(body_of(line), "shoal");
            const char *words = json_get(choice, "text")->valuestring;
            if (i == 2) EXPECT(strchr(words, '.') == NULL && strchr(words, '\n') == NULL);
            if (i == 1) EXPECT(json_get(choice, "logprobs") != NULL);
            if (i == 3)
                EXPECT_NEAR(json_get(json_get(body_of(line), "usage"), "total_tokens")->valuedouble,
                            13, 0);
            if (i == 5) EXPECT_EQ_STR(json_get(shoal, "selector")->valuestring, "full");
            if (i == 6) EXPECT_EQ_STR(json_get(shoal, "lookahead")->valuestring, "mid");
        }
        json_free(line);
        at = end + 1;
    }
    EXPECT_EQ_STR(at, "");
    arena_destroy(memory);
}

TEST(a_resumed_run_answers_what_is_missing_and_nothing_twice)
{
    arena *memory = arena_create("cli");
    program_write("in.jsonl", batch);
    char *whole = ARENA_NEW(memory, char, 1 << 16);
    snprintf(whole, 1 << 16, "%s", decode_to(memory, "@o.jsonl", (const char *const[8]){NULL}));
    for (int lines = 0; lines <= 7; lines++) { /* cut behind each line, and a little beyond */
        char *part = ARENA_NEW(memory, char, 1 << 16);
        snprintf(part, 1 << 16, "%s", whole);
        char *cut = part;
        for (int i = 0; i < lines; i++)
            cut = strchr(cut, '\n') + 1;
        size_t left = strlen(cut);
        cut[left < 40 ? left : 40] = '\0';
        program_write("o.jsonl", part);
        const char *got = decode_to(memory, "@o.jsonl", (const char *const[8]){"--resume"});
        EXPECT_EQ_STR(got, whole);
    }
    arena_destroy(memory);
}

TEST(the_summary_is_one_line_of_json_and_its_digest_does_not_depend_on_the_batch)
{
    arena *memory = arena_create("cli");
    char digest[2][64] = {"", ""};
    program_write("in.jsonl", batch);
    for (int i = 0; i < 2; i++) {
        PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", i == 0 ? "@a.jsonl" : "@b.jsonl", "-o",
                     "json", "--model", SMALL_MODEL, "--max-num-seqs", i == 0 ? "8" : "2");
        EXPECT_EQ_I64(run.exit_code, 1);
        cJSON *tree = NULL;
        EXPECT(strchr(run.out, '\n') == run.out + strlen(run.out) - 1);
        EXPECT_OK(json_parse("summary", run.out, strlen(run.out), &tree));
        EXPECT_EQ_STR(json_get(tree, "schema")->valuestring, "shoal.decode/1");
        EXPECT_NEAR(json_get(tree, "prompts")->valuedouble, 7, 0);
        EXPECT_NEAR(json_get(tree, "failed")->valuedouble, 1, 0);
        static const char *const keys[] = {
            "prompt_tokens", "new_tokens", "selector",      "budget",      "lookahead",
            "blocks",        "prefetch",   "agnostic",      "stored",      "served",
            "pool_bytes",    "kv_bytes",   "pool_fraction", "ttft_ms_p50", "ttft_ms_p99",
            "itl_ms_p50",    "itl_ms_p99", "tokens_per_s",  "wall_s",      "fetch_exposed_fraction",
            "stall_ms_max",  "steps",      "parks",         "resumes",     "void_rows",
            "recomputes",    "numerics"};
        for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++)
            EXPECT_MSG(json_get(tree, keys[k]) != NULL, "no %s in %s", keys[k], run.out);
        snprintf(digest[i], sizeof digest[i], "%s", json_get(tree, "output_digest")->valuestring);
        json_free(tree);
    }
    EXPECT_EQ_STR(digest[0], digest[1]);
    arena_destroy(memory);
}

enum { REQUESTS = 16 };

static int whole_lines(const char *out)
{
    int lines = 0;
    for (const char *at = out; *at != '\0'; lines++) {
        cJSON *tree = NULL;
        const char *end = strchr(at, '\n');
        EXPECT(end != NULL);
        EXPECT_OK(json_parse("out", at, (size_t)(end - at), &tree));
        json_free(tree);
        at = end + 1;
    }
    return lines;
}

TEST(a_chat_is_answered_where_the_model_has_a_template)
{
    static const char *const files[] = {"config.json", "tokenizer.json", "model.safetensors"};
    arena *memory = arena_create("cli");
    char from[512], to[512];
    EXPECT(mkdir(program_path("model"), 0700) == 0);
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, SMALL_MODEL "/%s", files[i]);
        snprintf(to, sizeof to, "%s/%s", program_path("model"), files[i]);
        EXPECT(symlink(from, to) == 0);
    }
    program_write("model/chat_template.jinja",
                  "{% for m in messages %}{{ m.role }} says: {{ m.content }}\n{% endfor %}");
    program_write(
        "in.jsonl",
        "{\"custom_id\":\"chat\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\","
        "\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"SQLite\"}],"
        "\"max_tokens\":8,\"temperature\":0,\"logprobs\":true,\"top_logprobs\":1}}\n" BODY(
            "same", "{\"prompt\":\"user says: SQLite\\n\",\"max_tokens\":8,"
                    "\"temperature\":0}"));
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@o.jsonl", "--model", "@model",
                 "--deterministic");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    const char *at = program_read(memory, "o.jsonl");
    const char *words[2];
    cJSON *line[2];
    for (int i = 0; i < 2; i++) {
        const char *end = strchr(at, '\n');
        EXPECT_OK(json_parse("out", at, (size_t)(end - at), &line[i]));
        const cJSON *choice = json_get(body_of(line[i]), "choices")->child;
        const cJSON *message = i == 0 ? json_get(choice, "message") : choice;
        words[i] = json_get(message, i == 0 ? "content" : "text")->valuestring;
        at = end + 1;
    }
    EXPECT_EQ_STR(words[0], words[1]);
    EXPECT_EQ_STR(json_get(body_of(line[0]), "object")->valuestring, "chat.completion");
    const cJSON *choice = json_get(body_of(line[0]), "choices")->child;
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(json_get(choice, "logprobs"), "content")), 8);
    json_free(line[0]);
    json_free(line[1]);
    arena_destroy(memory);
}

/* Ctrl-C once the first line is there: it is kept whole, and the exit code says so. */
TEST(an_interrupted_run_keeps_its_finished_lines_and_can_be_resumed)
{
    arena *memory = arena_create("cli");
    text many;
    text_start(&many, memory);
    for (int i = 0; i < REQUESTS; i++)
        text_format(&many,
                    BODY("r%d", "{\"prompt\":\"The kernel\",\"max_tokens\":%d,"
                                "\"temperature\":0,\"ignore_eos\":true}"),
                    i, i == 0 ? 2 : 200);
    program_write("in.jsonl", many.bytes);
    static const char *const argv[] = {"decode",    "@in.jsonl",      "-o", "@o.jsonl", "--model",
                                       SMALL_MODEL, "--max-num-seqs", "4",  NULL};
    pid_t pid = program_start(argv);
    struct stat info = {.st_size = 0};
    const char *path = program_path("o.jsonl");
    for (int i = 0; i < 30000 && info.st_size == 0; i++) {
        (void)poll(NULL, 0, 1);
        if (stat(path, &info) != 0) info.st_size = 0;
    }
    EXPECT(info.st_size > 0);
    EXPECT(kill(pid, SIGINT) == 0);
    program_wait(pid, &run);
    EXPECT_MSG(run.exit_code == 130, "exit code %d: %s", run.exit_code, run.err);
    EXPECT_HAS_STR(run.err, "interrupted; ");
    const char *out = program_read(memory, "o.jsonl");
    int lines = whole_lines(out);
    EXPECT(lines >= 1 && lines < REQUESTS);
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@o.jsonl", "--model", SMALL_MODEL, "--resume");
    EXPECT_EQ_I64(run.exit_code, 0);
    out = program_read(memory, "o.jsonl");
    EXPECT_EQ_I64(whole_lines(out), REQUESTS);
    for (int i = 0; i < REQUESTS; i++) {
        char name[32];
        snprintf(name, sizeof name, "\"custom_id\":\"r%d\"", i);
        const char *first = strstr(out, name);
        EXPECT(first != NULL);
        EXPECT(strstr(first + 1, name) == NULL);
    }
    arena_destroy(memory);
}

TEST_MAIN()
