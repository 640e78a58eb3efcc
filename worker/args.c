/* worker/args.c - one table of flags, from which parsing and help both follow. */
#include "worker/args.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef enum flag_kind {
    FLAG_STRING,
    FLAG_BYTES,
    FLAG_WHOLE,
    FLAG_PERCENT,
    FLAG_SWITCH,
    FLAG_SEED,
    FLAG_FORMAT
} flag_kind;
enum { BOTH = ARGS_DECODE | ARGS_EVAL };

typedef struct flag {
    const char *name, *value; /* value: its name in the help, or the words it takes: a|b|c */
    const char *help;
    size_t offset;
    uint32_t min, max; /* FLAG_WHOLE, FLAG_PERCENT */
    flag_kind kind;
    int verbs;
    bool words; /* FLAG_STRING: only what `value` lists */
} flag;

#define AT(member) offsetof(args, member)
/* clang-format off */
static const flag flags[] = {
    {"--output", "FILE", "where answers go, a line each as it is finished; - is standard output", AT(output), 0, 0, FLAG_STRING, ARGS_DECODE, false},
    {"--model", "DIR", "Hugging Face folder: config.json, tokenizer.json, safetensors", AT(model), 0, 0, FLAG_STRING, BOTH, false},
    {"--cluster", "FILE", "store that keeps the KV cache (default: none, all in this process)", AT(cluster), 0, 0, FLAG_STRING, BOTH, false},
    {"--task", "text|keys", "bits a byte of texts, or planted keys (default: by the cases)", AT(task), 0, 0, FLAG_STRING, ARGS_EVAL, true},
    {"--tokens", "N", "score the last N of each text's first 16384 tokens (default 16384)", AT(tokens), 2, 1u << 20, FLAG_WHOLE, ARGS_EVAL, false},
    {"--limit", "N", "only the first N cases (default: all)", AT(limit), 1, UINT32_MAX - 1, FLAG_WHOLE, ARGS_EVAL, false},
    {"--decode-from", "N", "texts: tokens from N on go one a step, which shows the pool's misses (default: all at once)", AT(decode_from), 1, UINT32_MAX - 1, FLAG_WHOLE, ARGS_EVAL, false},
    {"--kind", "trained|unseen", "only keys of this kind (default: all)", AT(kind), 0, 0, FLAG_STRING, ARGS_EVAL, true},
    {"--selector", "nosa|infllmv2|full|ssa|ssa-chunked|moba|moba-group", "how blocks are chosen (default: the model's)", AT(selector), 0, 0, FLAG_STRING, BOTH, true},
    {"--budget", "N|A,B,C,D", "blocks a step: a listed total, or first, before the current, query, total (default: the model's)", AT(budget), 0, 0, FLAG_STRING, BOTH, false},
    {"--lookahead", "own|mid|input|step", "whose query selects (default own)", AT(lookahead), 0, 0, FLAG_STRING, BOTH, true},
    {"--device-pool", "SIZE", "device memory for KV blocks, as 64MiB (default: the cluster file's)", AT(device_pool_bytes), 0, 0, FLAG_BYTES, BOTH, false},
    {"--hbm", "SIZE", "all device memory, as 40GiB: weights, workspaces, summaries; the pool is the rest unless given", AT(hbm_bytes), 0, 0, FLAG_BYTES, BOTH, false},
    {"--host-tier", "SIZE", "host memory for blocks beyond the pool, as 1GiB (default: the cluster file's)", AT(host_tier_bytes), 0, 0, FLAG_BYTES, BOTH, false},
    {"--max-num-seqs", "N", "sequences that decode in one step", AT(max_num_seqs), 1, 4096, FLAG_WHOLE, BOTH, false},
    {"--max-model-len", "N", "longest prompt with its answer, in tokens (default: the model's)", AT(max_model_len), 1, 1u << 24, FLAG_WHOLE, BOTH, false},
    {"--max-num-batched-tokens", "N", "rows of one step, prompt chunks included", AT(max_num_batched_tokens), 1, 1u << 20, FLAG_WHOLE, BOTH, false},
    {"--park-quantum", "N", "steps a sequence decodes before another may take its place", AT(park_quantum), 1, 1u << 20, FLAG_WHOLE, BOTH, false},
    {"--victim-margin", "N%", "pool slots beyond the selection", AT(victim_margin), 0, 1000, FLAG_PERCENT, BOTH, false},
    {"--threads", "N", "compute threads (default: one a core)", AT(threads), 1, 1024, FLAG_WHOLE, BOTH, false},
    {"--backend", "NAME", "cpu, ref (simple and slow), cuda or cuda:N for the Nth GPU (default cpu)", AT(backend), 0, 0, FLAG_STRING, BOTH, false},
    {"--seed", "N", "of request ids and retry jitter, never of tokens (default: random)", AT(seed), 0, 0, FLAG_SEED, BOTH, false},
    {"--no-prefetch", NULL, "fetch blocks only when a step asks for them", AT(no_prefetch), 0, 0, FLAG_SWITCH, BOTH, false},
    {"--no-verify", NULL, "do not check digests: only to show that tests notice", AT(no_verify), 0, 0, FLAG_SWITCH, BOTH, false},
    {"--overwrite", NULL, "replace an output file that exists", AT(overwrite), 0, 0, FLAG_SWITCH, ARGS_DECODE, false},
    {"--resume", NULL, "go on behind the lines an output file has", AT(resume), 0, 0, FLAG_SWITCH, ARGS_DECODE, false},
    {"--deterministic", NULL, "lines in input order, without times and counters: cmp compares runs", AT(deterministic), 0, 0, FLAG_SWITCH, ARGS_DECODE, false},
    {"--profile", NULL, "also say where the time of steps went, op by op", AT(profile), 0, 0, FLAG_SWITCH, ARGS_DECODE, false},
    {"--format", "text|json", "of the summary on standard output (default text)", AT(format), 0, 0, FLAG_FORMAT, BOTH, false},
    {"--quiet", NULL, "no progress bar", AT(quiet), 0, 0, FLAG_SWITCH, BOTH, false},
    {"--log-level", "error|warn|info|debug", "of the log on standard error (default warn)", AT(log_level), 0, 0, FLAG_STRING, BOTH, true},
};
/* clang-format on */
enum { FLAG_COUNT = sizeof flags / sizeof flags[0] };

/* ---- values ---------------------------------------------------------------------------------- */

static bool is_word(const char *words, const char *value)
{
    size_t count = strlen(value);
    for (const char *at = words; count > 0 && at != NULL; at = strchr(at, '|')) {
        if (*at == '|') at++;
        if (strncmp(at, value, count) == 0 && (at[count] == '|' || at[count] == '\0')) return true;
    }
    return false;
}

static bool whole_number(const char *value, const char *suffix, uint64_t *out)
{
    if (value[0] < '0' || value[0] > '9') return false;
    char *end = NULL;
    errno = 0;
    unsigned long long number = strtoull(value, &end, 10);
    if (errno != 0 || strcmp(end, suffix) != 0) return false;
    *out = number;
    return true;
}

static bool is_format(const char *value, args_format *out)
{
    if (strcmp(value, "json") == 0) {
        *out = FORMAT_JSON;
    } else if (strcmp(value, "text") == 0 || strcmp(value, "table") == 0) {
        *out = FORMAT_TEXT;
    } else {
        return false;
    }
    return true;
}

static status set_whole(const flag *f, const char *value, args *a)
{
    uint64_t number;
    const char *suffix = f->kind == FLAG_PERCENT ? "%" : "";
    if (!whole_number(value, suffix, &number) || number < f->min || number > f->max)
        return FAIL(INVALID, "%s %s: must be a whole number%s from %u%s to %u%s", f->name, value,
                    f->kind == FLAG_PERCENT ? " with %" : "", f->min, suffix, f->max, suffix);
    *(uint32_t *)((char *)a + f->offset) = (uint32_t)number;
    return STATUS_OK;
}

static status set_value(const flag *f, const char *value, args *a)
{
    void *to = (char *)a + f->offset;
    switch (f->kind) {
    case FLAG_SWITCH:
        *(bool *)to = true;
        return STATUS_OK;
    case FLAG_WHOLE:
    case FLAG_PERCENT:
        return set_whole(f, value, a);
    case FLAG_BYTES:
        if (value[0] < '0' || value[0] > '9' || !strchr("B0", value[strlen(value) - 1]))
            return FAIL(INVALID, "%s %s: must be a size with its unit, as 64MiB", f->name, value);
        return cluster_parse_bytes(value, (uint64_t *)to);
    case FLAG_SEED:
        if (!whole_number(value, "", (uint64_t *)to))
            return FAIL(INVALID, "%s %s: must be a whole number", f->name, value);
        return STATUS_OK;
    case FLAG_FORMAT:
        if (!is_format(value, (args_format *)to))
            return FAIL(INVALID, "%s %s: must be one of %s", f->name, value, f->value);
        return STATUS_OK;
    case FLAG_STRING:
        if (value[0] == '\0') return FAIL(INVALID, "%s: the value is empty", f->name);
        if (f->words && !is_word(f->value, value))
            return FAIL(INVALID, "%s %s: must be one of %s", f->name, value, f->value);
        *(const char **)to = value;
        return STATUS_OK;
    }
    return STATUS_INTERNAL;
}

/* ---- the line -------------------------------------------------------------------------------- */

/* -o is the output file of decode and, as in all programs here, the format: where it is given
 * twice, the one that is a format's name is the format. */
static status set_short_output(args_verb verb, const char *value, args *a)
{
    args_format format;
    bool names_format = is_format(value, &format);
    if (verb == ARGS_EVAL) {
        if (!names_format) return FAIL(INVALID, "-o %s: must be text or json", value);
        a->format = format;
    } else if (a->output == NULL) {
        a->output = value;
    } else if (names_format) {
        a->format = format;
    } else if (is_format(a->output, &format)) {
        a->format = format;
        a->output = value;
    } else {
        return FAIL(INVALID, "-o names two output files, %s and %s", a->output, value);
    }
    return STATUS_OK;
}

static const flag *find_flag(args_verb verb, const char *name, size_t count)
{
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        if ((flags[i].verbs & (int)verb) && strlen(flags[i].name) == count &&
            strncmp(flags[i].name, name, count) == 0)
            return &flags[i];
    }
    return NULL;
}

static status parse_flag(args_verb verb, char **argv, int *at, args *a)
{
    const char *name = argv[*at];
    const char *equals = strchr(name, '=');
    size_t count = equals != NULL ? (size_t)(equals - name) : strlen(name);
    bool short_output = strcmp(name, "-o") == 0;
    const flag *f = short_output ? NULL : find_flag(verb, name, count);
    if (!short_output && f == NULL)
        return FAIL(INVALID, "unknown flag %.*s; --help lists the flags", (int)count, name);
    if (f != NULL && f->kind == FLAG_SWITCH) {
        if (equals != NULL) return FAIL(INVALID, "%s takes no value", f->name);
        return set_value(f, NULL, a);
    }
    const char *value = equals != NULL ? equals + 1 : argv[*at + 1];
    if (value == NULL) return FAIL(INVALID, "%s needs a value", name);
    if (equals == NULL) ++*at;
    return short_output ? set_short_output(verb, value, a) : set_value(f, value, a);
}

static status check_whole(args_verb verb, const args *a)
{
    const char *what = verb == ARGS_DECODE ? "decode" : "eval";
    if (a->input == NULL)
        return FAIL(INVALID, "%s needs %s; --help shows examples", what,
                    verb == ARGS_DECODE ? "an input file" : "a file or folder of cases");
    if (a->model == NULL) return FAIL(INVALID, "%s needs --model DIR", what);
    if (verb == ARGS_DECODE && a->output == NULL)
        return FAIL(INVALID, "decode needs -o FILE for its answers");
    if (a->hbm_bytes == 0) return FAIL(INVALID, "--hbm 0B: a worker needs device memory");
    if (a->overwrite && a->resume)
        return FAIL(INVALID, "--overwrite and --resume exclude each other");
    if (a->resume && strcmp(a->output, "-") == 0)
        return FAIL(INVALID, "--resume needs an output file, not standard output");
    if (a->max_model_len != UINT32_MAX && verb == ARGS_EVAL && a->max_model_len < a->tokens &&
        a->task != NULL && strcmp(a->task, "text") == 0)
        return FAIL(INVALID, "--max-model-len %u is less than --tokens %u", a->max_model_len,
                    a->tokens);
    return STATUS_OK;
}

status args_parse(args_verb verb, int argc, char **argv, args *out_args)
{
    CHECK(argc >= 1 && argv != NULL && out_args != NULL);
    args a = {
        .backend = "cpu",
        .log_level = "warn",
        .device_pool_bytes = UINT64_MAX,
        .host_tier_bytes = UINT64_MAX,
        .hbm_bytes = UINT64_MAX,
        .max_num_seqs = UINT32_MAX,
        .max_model_len = UINT32_MAX,
        .max_num_batched_tokens = UINT32_MAX,
        .park_quantum = UINT32_MAX,
        .victim_margin = UINT32_MAX,
        .threads = UINT32_MAX,
        .tokens = 16384,
        .limit = UINT32_MAX,
        .decode_from = UINT32_MAX,
        .seed = UINT64_MAX,
    };
    bool only_words = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!only_words && (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0)) {
            a.help = true;
            *out_args = a;
            return STATUS_OK;
        }
        if (!only_words && strcmp(word, "--") == 0) {
            only_words = true;
        } else if (!only_words && word[0] == '-' && word[1] != '\0') {
            TRY(parse_flag(verb, argv, &i, &a));
        } else if (a.input != NULL) {
            return FAIL(INVALID, "one input at a time: %s and %s are two", a.input, word);
        } else {
            a.input = word;
        }
    }
    TRY(check_whole(verb, &a));
    *out_args = a;
    return STATUS_OK;
}

void args_apply(const args *a, cluster_config *config)
{
    if (a->hbm_bytes != UINT64_MAX ||
        a->device_pool_bytes != UINT64_MAX) /* UINT64_MAX: the rest of --hbm */
        config->device_pool_bytes = a->device_pool_bytes;
    if (a->host_tier_bytes != UINT64_MAX) config->host_tier_bytes = a->host_tier_bytes;
    if (a->max_num_seqs != UINT32_MAX) config->max_num_seqs = a->max_num_seqs;
    if (a->max_model_len != UINT32_MAX) config->max_model_len = a->max_model_len;
    if (a->max_num_batched_tokens != UINT32_MAX)
        config->max_num_batched_tokens = a->max_num_batched_tokens;
    if (a->park_quantum != UINT32_MAX) config->park_quantum_steps = a->park_quantum;
    if (a->victim_margin != UINT32_MAX) config->victim_margin_percent = a->victim_margin;
    if (a->threads != UINT32_MAX) config->threads = a->threads;
}

/* ---- help ------------------------------------------------------------------------------------ */

static const char decode_head[] =
    "shoal-worker decode - answer a batch of prompts, with the KV cache in a store\n"
    "\n"
    "usage: shoal-worker decode IN.jsonl -o OUT.jsonl --model DIR [flags]\n"
    "\n"
    "IN.jsonl and OUT.jsonl are OpenAI batch files. A line that cannot be served gets a line in "
    "OUT\n"
    "that says why; the others are decoded. A body's \"shoal\" object may set selector, budget "
    "and\n"
    "lookahead of one request.\n"
    "\n"
    "flags:\n"
    "  -o FILE                          the same as --output; a second -o json is --format json\n";

static const char decode_tail[] =
    "\n"
    "examples:\n"
    "  shoal-worker decode in.jsonl -o out.jsonl --model worker/small-model\n"
    "  shoal-worker decode in.jsonl -o out.jsonl --model worker/small-model --device-pool 32MiB "
    "\\\n"
    "      --budget 24 --lookahead mid --format json --overwrite\n"
    "\n"
    "exit: 0 all answered, 1 some lines failed or the run did, 2 usage, 3 store unreachable,\n"
    "4 too few nodes, 5 data wrong, 130 interrupted (finished lines are kept)\n";

static const char eval_head[] =
    "shoal-worker eval - how well a model does with a selector: bits a byte, planted keys\n"
    "\n"
    "usage: shoal-worker eval CASES --model DIR [flags]\n"
    "\n"
    "CASES is a JSONL file, or a folder with text-16k.jsonl, keys-16k.jsonl and keys-4k.jsonl. A "
    "case\n"
    "is {\"text\"} or {\"prompt\",\"answer\",\"kind\",\"distractors\",\"depth\"}.\n"
    "\n"
    "flags:\n"
    "  -o FORMAT                        the same as --format\n";

static const char eval_tail[] =
    "\n"
    "examples:\n"
    "  shoal-worker eval cases/keys-4k.jsonl --model worker/small-model --limit 10\n"
    "  shoal-worker eval cases/text-16k.jsonl --model worker/small-model --selector full \\\n"
    "      --tokens 4096 --limit 2 --format json\n"
    "\n"
    "exit: 0 done, 1 a case failed, 2 usage, 3 store unreachable, 4 too few nodes, 130 "
    "interrupted\n";

void args_help(args_verb verb, FILE *to)
{
    (void)fputs(verb == ARGS_DECODE ? decode_head : eval_head, to);
    for (size_t i = 0; i < FLAG_COUNT; i++) {
        const flag *f = &flags[i];
        if (!(f->verbs & (int)verb)) continue;
        char name[64];
        (void)snprintf(name, sizeof name, "%s%s%s", f->name, f->value ? " " : "",
                       f->value ? f->value : "");
        (void)fprintf(to, "  %-32s %s\n", name, f->help);
    }
    (void)fputs(verb == ARGS_DECODE ? decode_tail : eval_tail, to);
}
