/* Bad input gets one clear sentence, the right exit code, and loses nothing: a table drives the
 * real program. A case may spoil a copy of the model, write files, and give flags; it says how the
 * program must end, which words its sentence must hold, and how many lines must have been answered.
 */
#include "tests/worker/program.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define BODY(id, body)                                                                             \
    "{\"custom_id\":\"" id "\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":" body "}" \
    "\n"
#define GOOD(id) BODY(id, "{\"prompt\":\"SQLite is a\",\"max_tokens\":3,\"temperature\":0}")
enum { NO_OUTPUT = -1 }; /* the run never came to write: the output file must not exist */

typedef struct bad_case {
    const char *name;
    const char *file, *find, *replace; /* in a copy of the model; find NULL: cut to half */
    const char *input;                 /* NULL: one good line */
    const char *cluster;               /* written as cluster.yaml and given with --cluster */
    const char *flags[6];
    int exit_code, answered, refused;
    const char *sentence; /* on standard error, or in the refused line */
} bad_case;

/* clang-format off */
static const bad_case cases[] = {
    /* the control: the same run without a flaw */
    {"nothing wrong", NULL, NULL, NULL, NULL, NULL, {0}, 0, 1, 0, ""},
    {"an unspoiled copy", "config.json", "", "", NULL, NULL, {0}, 0, 1, 0, ""},
    /* safetensors */
    {"truncated weights", "model.safetensors", NULL, NULL, NULL, NULL, {0}, 2, NO_OUTPUT, 0, "model.safetensors"},
    {"overlapping weights", "model.safetensors", "[2097152,2097664]", "[2097150,2097662]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "overlaps"},
    {"misshapen weights", "model.safetensors", "\"shape\":[256,704]", "\"shape\":[704,256]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "model.layers.0.mlp.down_proj.weight"},
    {"weights of another size", "model.safetensors", "\"shape\":[256,704]", "\"shape\":[256,705]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "model.layers.0.mlp.down_proj.weight"},
    {"a tensor of another name", "model.safetensors", "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.dawn_proj.weight", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "model.layers.0.mlp.dawn_proj.weight"},
    {"a hole between weights", "model.safetensors", "[2097152,2097664]", "[2097154,2097666]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "a hole of 2 bytes before tensor"},
    {"weights of another type", "model.safetensors", "\"dtype\":\"BF16\"", "\"dtype\":\"BOOL\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "its shape and dtype do not make"},
    {"weights beyond the file", "model.safetensors", "[0,2097152]", "[0,9097152]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "do not make the 9097152 bytes"},
    {"a header that is no JSON", "model.safetensors", "{\"__metadata__\"", "[\"__metadata__\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "the header is not a JSON object"},
    {"no weights", "model.safetensors", "\"model.layers.7.self_attn.v_proj.weight\"", "\"model.layers.7.self_attn.v_proj.wight\" ", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "v_proj"},
    /* config.json */
    {"a missing key", "config.json", "\"hidden_size\": 256,", "", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "hidden_size"},
    {"an unknown sparse key", "config.json", "\"kernel_size\"", "\"kernal_size\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "kernal_size"},
    {"a key that changes the mathematics", "config.json", "\"attention_bias\": false", "\"attention_bias\": true", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "attention_bias"},
    {"another family", "config.json", "LlamaForCausalLM", "MambaForCausalLM", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "MambaForCausalLM"},
    {"broken JSON", "config.json", "\"vocab_size\"", "vocab_size", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "not valid JSON"},
    {"an unknown activation", "config.json", "\"silu\"", "\"relu6\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "relu6"},
    {"heads that do not divide", "config.json", "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "num_key_value_heads"},
    {"a number that is text", "config.json", "\"num_hidden_layers\": 8", "\"num_hidden_layers\": \"8\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "num_hidden_layers"},
    {"more layers than weights", "config.json", "\"num_hidden_layers\": 8", "\"num_hidden_layers\": 9", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "model.layers.8."},
    {"rope of another kind", "config.json", "\"rope_theta\": 100000.0", "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2.0}, \"rope_theta\": 100000.0", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "yarn"},
    {"a budget below the forced blocks in the model", "config.json", "\"16\": [1, 4, 10, 16]", "\"16\": [1, 4, 2, 16]", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "2 query picks are below the 6 forced blocks"},
    /* tokenizer.json */
    {"a tokenizer of another kind", "tokenizer.json", "\"type\": \"BPE\"", "\"type\": \"WordPiece\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "WordPiece"},
    {"a pre-tokenizer of another kind", "tokenizer.json", "\"type\": \"Digits\"", "\"type\": \"BertPreTokenizer\"", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "BertPreTokenizer"},
    {"fewer rows than the embedding has", "config.json", "\"vocab_size\": 4096", "\"vocab_size\": 4095", NULL, NULL, {0}, 2, NO_OUTPUT, 0, "[4096, 256], config.json asks for [4095, 256]"},
    {"half a tokenizer", "tokenizer.json", NULL, NULL, NULL, NULL, {0}, 2, NO_OUTPUT, 0, "tokenizer.json"},
    /* lines: the others are decoded */
    {"a broken line", NULL, NULL, NULL, GOOD("a") "{\"custom_id\":\n" GOOD("b"), NULL, {0}, 1, 2, 1, "not valid JSON"},
    {"an empty line", NULL, NULL, NULL, GOOD("a") "\n" GOOD("b"), NULL, {0}, 1, 2, 1, "line 2: the line is empty"},
    {"a duplicate custom_id", NULL, NULL, NULL, GOOD("a") GOOD("a") GOOD("b"), NULL, {0}, 1, 2, 1, "duplicate_custom_id"},
    {"invalid UTF-8", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"\xff\"}") GOOD("c"), NULL, {0}, 1, 2, 1, "invalid UTF-8 at byte"},
    {"an overlong UTF-8 form", NULL, NULL, NULL, BODY("b", "{\"prompt\":\"\xc0\xaf\"}") GOOD("c"), NULL, {0}, 1, 1, 1, "invalid_utf8"},
    {"too long for the model", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"x\",\"max_tokens\":16384}") GOOD("c"), NULL, {0}, 1, 2, 1, "context_length_exceeded"},
    {"too long for --max-model-len", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"x\",\"max_tokens\":100}"), NULL, {"--max-model-len", "64"}, 1, 1, 1, "more than the 64 that fit"},
    {"a token outside the vocabulary", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":[5,4096]}"), NULL, {0}, 1, 1, 1, "token id 4096"},
    {"a line that is no object", NULL, NULL, NULL, "[1,2]\n" GOOD("a"), NULL, {0}, 1, 1, 1, "the line must be a JSON object"},
    {"a line of another endpoint", NULL, NULL, NULL, "{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/embeddings\",\"body\":{\"prompt\":\"x\"}}\n" GOOD("a"), NULL, {0}, 1, 1, 1, "/v1/embeddings"},
    {"a line without its end", NULL, NULL, NULL, GOOD("a") "{\"custom_id\":\"b\",\"met", NULL, {0}, 1, 1, 1, "not valid JSON"},
    {"a prompt of nothing", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"\"}"), NULL, {0}, 1, 1, 1, "body.prompt is empty"},
    {"a field that is not supported", NULL, NULL, NULL, BODY("b", "{\"prompt\":\"x\",\"n\":2}") GOOD("a"), NULL, {0}, 1, 1, 1, "body.n may only be 1"},
    {"chat without a template", NULL, NULL, NULL, GOOD("a") "{\"custom_id\":\"b\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}}\n", NULL, {0}, 1, 1, 1, "no chat template"},
    {"a line's budget below the forced blocks", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"x\",\"shoal\":{\"budget\":\"1,4,6,5\"}}"), NULL, {0}, 1, 1, 1, "forced"},
    {"a line's unknown lookahead", NULL, NULL, NULL, GOOD("a") BODY("b", "{\"prompt\":\"x\",\"shoal\":{\"lookahead\":\"far\"}}"), NULL, {0}, 1, 1, 1, "far"},
    {"an input without lines", NULL, NULL, NULL, "", NULL, {0}, 0, 0, 0, ""},
    /* flags */
    {"a budget below the forced blocks", NULL, NULL, NULL, NULL, NULL, {"--budget", "1,4,6,5"}, 2, NO_OUTPUT, 0, "forced"},
    {"query picks below the forced blocks", NULL, NULL, NULL, NULL, NULL, {"--budget", "1,4,2,16"}, 2, NO_OUTPUT, 0, "forced"},
    {"a budget the model does not list", NULL, NULL, NULL, NULL, NULL, {"--budget", "17"}, 2, NO_OUTPUT, 0, "8, 12, 16, 24, 32"},
    {"a pool smaller than a step needs", NULL, NULL, NULL, NULL, NULL, {"--device-pool", "64KiB"}, 1, NO_OUTPUT, 0, "need --device-pool 5120KiB or more"},
    {"a device memory smaller than the weights", NULL, NULL, NULL, NULL, NULL, {"--hbm", "8MiB"}, 1, NO_OUTPUT, 0, "give --hbm"},
    {"a device memory for fewer sequences", NULL, NULL, NULL, NULL, NULL, {"--hbm", "100MiB", "--max-num-seqs", "64"}, 1, NO_OUTPUT, 0, "or --max-num-seqs "},
    {"a prompt stage that holds no block", NULL, NULL, NULL, NULL, NULL, {"--prompt-stage", "1KiB"}, 2, NO_OUTPUT, 0, "64 tokens of a prompt take"},
    {"a device memory of nothing", NULL, NULL, NULL, NULL, NULL, {"--hbm", "0B"}, 2, NO_OUTPUT, 0, "--hbm 0B"},
    {"a pool without a unit", NULL, NULL, NULL, NULL, NULL, {"--device-pool", "64"}, 2, NO_OUTPUT, 0, "unit"},
    {"a pool of no number", NULL, NULL, NULL, NULL, NULL, {"--device-pool", "MiB"}, 2, NO_OUTPUT, 0, "--device-pool MiB"},
    {"more positions than the model has", NULL, NULL, NULL, NULL, NULL, {"--max-model-len", "16385"}, 2, NO_OUTPUT, 0, "16384"},
    {"no sequences", NULL, NULL, NULL, NULL, NULL, {"--max-num-seqs", "0"}, 2, NO_OUTPUT, 0, "--max-num-seqs"},
    {"a margin without percent", NULL, NULL, NULL, NULL, NULL, {"--victim-margin", "25"}, 2, NO_OUTPUT, 0, "%"},
    {"a guess that nobody is asked for", NULL, NULL, NULL, NULL, NULL, {"--guess", "200%"}, 2, NO_OUTPUT, 0, "it needs --cluster"},
    {"a guess without prefetch", NULL, NULL, NULL, NULL, NULL, {"--guess", "200%", "--no-prefetch"}, 2, NO_OUTPUT, 0, "--no-prefetch says not to"},
    {"threads that are none", NULL, NULL, NULL, NULL, NULL, {"--threads", "two"}, 2, NO_OUTPUT, 0, "--threads two"},
    {"an unknown selector", NULL, NULL, NULL, NULL, NULL, {"--selector", "mamba"}, 2, NO_OUTPUT, 0, "nosa|infllmv2|full"},
    {"an unknown lookahead", NULL, NULL, NULL, NULL, NULL, {"--lookahead", "far"}, 2, NO_OUTPUT, 0, "own|mid|input|step"},
    {"an unknown backend", NULL, NULL, NULL, NULL, NULL, {"--backend", "tpu"}, 2, NO_OUTPUT, 0, "ref, cpu, cuda"},
    {"an unknown flag", NULL, NULL, NULL, NULL, NULL, {"--devise-pool", "64MiB"}, 2, NO_OUTPUT, 0, "unknown flag --devise-pool"},
    {"a flag without its value", NULL, NULL, NULL, NULL, NULL, {"--budget"}, 2, NO_OUTPUT, 0, "--budget needs a value"},
    {"a switch with a value", NULL, NULL, NULL, NULL, NULL, {"--no-prefetch=1"}, 2, NO_OUTPUT, 0, "takes no value"},
    {"two inputs", NULL, NULL, NULL, NULL, NULL, {"other.jsonl"}, 2, NO_OUTPUT, 0, "one input at a time"},
    {"overwrite and resume", NULL, NULL, NULL, NULL, NULL, {"--overwrite", "--resume"}, 2, NO_OUTPUT, 0, "exclude each other"},
    /* the cluster file */
    {"YAML with an unknown key", NULL, NULL, NULL, NULL, "replicas: 1\nnode_memery: 64MiB\n", {0}, 2, NO_OUTPUT, 0, "node_memery"},
    {"YAML without a unit", NULL, NULL, NULL, NULL, "worker:\n  device_pool: 64\n", {0}, 2, NO_OUTPUT, 0, "unit"},
    {"YAML with a time without a unit", NULL, NULL, NULL, NULL, "client:\n  hedge_after: 20\n", {0}, 2, NO_OUTPUT, 0, "client.hedge_after: \"20\" has no unit"},
    {"YAML that is none", NULL, NULL, NULL, NULL, "nodes: [\n", {0}, 2, NO_OUTPUT, 0, "cluster.yaml"},
    {"YAML with more copies than domains", NULL, NULL, NULL, NULL, "replicas: 2\nnodes:\n- {name: n1, data: 127.0.0.1:1, control: 127.0.0.1:2}\n", {0}, 2, NO_OUTPUT, 0, "lower replicas or add nodes"},
    {"YAML without nodes", NULL, NULL, NULL, NULL, "replicas: 1\n", {0}, 2, NO_OUTPUT, 0, "node"},
};
/* clang-format on */

static bool same_but_one(const bad_case *c)
{
    return c->file != NULL;
}

/* A folder with links to the model's files, one of them a spoiled copy. */
static void spoil_model(const bad_case *c, arena *memory)
{
    static const char *const files[] = {"config.json", "tokenizer.json", "model.safetensors"};
    EXPECT(mkdir(program_path("model"), 0700) == 0);
    for (int i = 0; i < 3; i++) {
        char from[512], to[512];
        snprintf(from, sizeof from, SMALL_MODEL "/%s", files[i]);
        snprintf(to, sizeof to, "%s/%s", program_path("model"), files[i]);
        if (strcmp(files[i], c->file) != 0) {
            EXPECT(symlink(from, to) == 0);
            continue;
        }
        FILE *in = fopen(from, "rb"), *out = fopen(to, "wb");
        EXPECT(in != NULL && out != NULL);
        EXPECT(fseek(in, 0, SEEK_END) == 0);
        size_t size = (size_t)ftell(in);
        rewind(in);
        char *bytes = ARENA_NEW(memory, char, size + 1);
        EXPECT(fread(bytes, 1, size, in) == size);
        if (c->find == NULL) {
            EXPECT(fwrite(bytes, 1, size / 2, out) == size / 2);
        } else {
            char *at = memmem(bytes, size, c->find, strlen(c->find));
            EXPECT_MSG(at != NULL, "%s: %s is not in %s", c->name, c->find, c->file);
            size_t before = (size_t)(at - bytes), after = before + strlen(c->find);
            EXPECT(fwrite(bytes, 1, before, out) == before);
            EXPECT(fputs(c->replace, out) >= 0);
            EXPECT(fwrite(bytes + after, 1, size - after, out) == size - after);
        }
        fclose(in);
        EXPECT(fclose(out) == 0);
    }
}

static int count_of(const char *text, const char *part)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)) != NULL; at += strlen(part))
        count++;
    return count;
}

static void run_case(const bad_case *c)
{
    static program_run run;
    arena *memory = arena_create("badinput");
    if (same_but_one(c)) spoil_model(c, memory);
    program_write("in.jsonl", c->input != NULL ? c->input : GOOD("a"));
    if (c->cluster != NULL) program_write("cluster.yaml", c->cluster);
    const char *argv[PROGRAM_ARGS_MAX] = {"decode", "@in.jsonl", "-o", "@out.jsonl", "--model"};
    int count = 5;
    argv[count++] = same_but_one(c) ? "@model" : SMALL_MODEL;
    if (c->cluster != NULL) {
        argv[count++] = "--cluster";
        argv[count++] = "@cluster.yaml";
    }
    for (int i = 0; i < 6 && c->flags[i] != NULL; i++)
        argv[count++] = c->flags[i];
    program_call(argv, &run);
    EXPECT_MSG(run.exit_code == c->exit_code, "%s: exit code %d, expected %d; it said: %s", c->name,
               run.exit_code, c->exit_code, run.err);
    const char *out = program_read(memory, "out.jsonl");
    if (c->answered == NO_OUTPUT) {
        EXPECT_MSG(out == NULL, "%s: an output file was made", c->name);
        EXPECT_MSG(run.out[0] == '\0', "%s: standard output holds %s", c->name, run.out);
        EXPECT_MSG(count_of(run.err, " error ") == 1, "%s: not one sentence: %s", c->name, run.err);
    } else {
        EXPECT_MSG(out != NULL, "%s: no output file", c->name);
        EXPECT_MSG(count_of(out, "\"error\":null") == c->answered, "%s: answered: %s", c->name,
                   out);
        EXPECT_MSG(count_of(out, "\"response\":null") == c->refused, "%s: refused: %s", c->name,
                   out);
    }
    bool said = strstr(run.err, c->sentence) != NULL || (out && strstr(out, c->sentence) != NULL);
    EXPECT_MSG(said, "%s: \"%s\" was not said: %s", c->name, c->sentence, run.err);
    arena_destroy(memory);
}

/* Ports that a listener of the test held a moment ago: nobody answers there. */
static int closed_port(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    EXPECT(fd >= 0);
    EXPECT(bind(fd, (struct sockaddr *)&address, size) == 0);
    EXPECT(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    EXPECT(close(fd) == 0);
    return ntohs(address.sin_port);
}

TEST(a_store_without_a_reachable_node_ends_the_run_and_leaves_its_lines_for_another)
{
    static program_run run;
    char yaml[512], line[4096];
    arena *memory = arena_create("badinput");
    snprintf(yaml, sizeof yaml,
             "replicas: 1\nnodes:\n  - name: n1\n    data: 127.0.0.1:%d\n"
             "    control: 127.0.0.1:%d\n    domain: a\n",
             closed_port(), closed_port());
    program_write("cluster.yaml", yaml);
    int used = snprintf(line, sizeof line, "%s", GOOD("short"));
    used += snprintf(
        line + used, sizeof line - (size_t)used, "%s",
        "{\"custom_id\":\"long\",\"method\":\"POST\",\"url\":\"/v1/completions\","
        "\"body\":{\"max_tokens\":3000,\"temperature\":0,\"ignore_eos\":true,\"prompt\":[1");
    for (int i = 0; i < 200; i++) /* more than a block, so that it has something to store */
        used += snprintf(line + used, sizeof line - (size_t)used, ",%d", 2 + i);
    snprintf(line + used, sizeof line - (size_t)used, "]}}\n");
    program_write("in.jsonl", line);
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--cluster", "@cluster.yaml", "--max-num-seqs", "1");
    EXPECT_MSG(run.exit_code == 3, "exit code %d: %s", run.exit_code, run.err);
    EXPECT_HAS_STR(run.err, "no node can be reached; finished lines are kept");
    const char *out = program_read(memory, "out.jsonl");
    EXPECT_HAS_STR(out, "\"custom_id\":\"short\"");
    EXPECT(strstr(out, "\"custom_id\":\"long\"") == NULL);
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--resume");
    EXPECT_EQ_I64(run.exit_code, 0);
    out = program_read(memory, "out.jsonl");
    EXPECT_EQ_I64(count_of(out, "\"error\":null"), 2);
    arena_destroy(memory);
}

/* Each case wants a fresh directory, and the runner gives one a test: so each is emptied after use.
 */
static void clear_directory(void)
{
    static const char *const files[] = {
        "in.jsonl", "out.jsonl",         "cluster.yaml",         "stdout",
        "stderr",   "model/config.json", "model/tokenizer.json", "model/model.safetensors",
        "model"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
        (void)remove(program_path(files[i]));
}

TEST(every_bad_input_of_the_table_ends_as_it_says)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        run_case(&cases[i]);
        clear_directory();
    }
    printf("%zu cases\n", sizeof cases / sizeof cases[0]);
}

TEST(eval_refuses_bad_input_in_one_sentence)
{
    static program_run run;
    program_write("no.jsonl", "{\"question\":1}\n");
    program_write("text.jsonl", "{\"text\":\"one two three four\"}\n{\"text\":\n");
    program_write("one.jsonl", "{\"text\":\"one two three four\"}\n");
    program_write("keys.jsonl", "{\"prompt\":\"a b\",\"answer\":\"\"}\n");
    PROGRAM_CALL(&run, "eval", "@missing", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "no such file or folder");
    PROGRAM_CALL(&run, "eval", test_dir(), "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "holds none of");
    PROGRAM_CALL(&run, "eval", "@no.jsonl", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "no.jsonl line 1: a case needs text, or prompt and answer");
    PROGRAM_CALL(&run, "eval", "@keys.jsonl", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "do not continue the prompt's");
    PROGRAM_CALL(&run, "eval", "@text.jsonl", "--model", SMALL_MODEL, "--format", "json");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "1 of 2 cases failed");
    EXPECT_HAS_STR(run.out, "\"schema\":\"shoal.eval/1\"");
    EXPECT_HAS_STR(run.out, "\"bits_per_byte\":");
    PROGRAM_CALL(&run, "eval", "@text.jsonl", "--model", SMALL_MODEL, "--task", "poems");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "must be one of text|keys");
    PROGRAM_CALL(&run, "eval", "@one.jsonl", "--model", SMALL_MODEL, "--task", "keys");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "holds no case that was asked for");
}

TEST(places_that_cannot_be_written_are_told_and_keep_what_they_have)
{
    static program_run run;
    arena *memory = arena_create("badinput");
    program_write("in.jsonl", GOOD("a") GOOD("b"));
    program_write("out.jsonl", "precious\n");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "--overwrite replaces it");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--resume");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "is no answer of this program");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@out.jsonl", "--model", SMALL_MODEL,
                 "--overwrite", "--device-pool", "64KiB");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_EQ_STR(program_read(memory, "out.jsonl"), "precious\n");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@in.jsonl", "--model", SMALL_MODEL,
                 "--overwrite");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "both input and output");
    EXPECT_EQ_STR(program_read(memory, "in.jsonl"), GOOD("a") GOOD("b"));
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@nowhere/out.jsonl", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "its folder does not exist");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", test_dir(), "--model", SMALL_MODEL,
                 "--overwrite");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "cannot be written: Is a directory");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "/dev/full", "--model", SMALL_MODEL,
                 "--overwrite");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "the disk is full; the 0 lines finished so far are kept");
    PROGRAM_CALL(&run, "decode", "@missing.jsonl", "-o", "@x.jsonl", "--model", SMALL_MODEL);
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "missing.jsonl: no such file");
    PROGRAM_CALL(&run, "decode", "@in.jsonl", "-o", "@x.jsonl", "--model", "@nomodel");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "no such file");
    arena_destroy(memory);
}

TEST_MAIN()
