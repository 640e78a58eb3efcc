/* worker/args.c - one table of flags, from which parsing and help both follow. */
#include "worker/args.h"
#include "worker/flags.h"

#include <string.h>

enum { BOTH = ARGS_DECODE | ARGS_EVAL };

typedef struct verb_flag {
    int verbs;
    flag_row row;
} verb_flag;

#define AT(member) offsetof(args, member)
/* clang-format off */
static const verb_flag flags[] = {
    {ARGS_DECODE, {"--output", "FILE", "where answers go, a line each as it is finished; - is standard output", AT(output), FLAG_TYPE_TEXT, 0, 0}},
    {BOTH, {"--model", "DIR", "Hugging Face folder: config.json, tokenizer.json, safetensors", AT(model), FLAG_TYPE_TEXT, 0, 0}},
    {BOTH, {"--cluster", "FILE", "store that keeps the KV cache (default: none, all in this process)", AT(cluster), FLAG_TYPE_TEXT, 0, 0}},
    {ARGS_EVAL, {"--task", "text|keys", "bits a byte of texts, or planted keys (default: by the cases)", AT(task), FLAG_TYPE_WORD, 0, 0}},
    {ARGS_EVAL, {"--tokens", "N", "score the last N of each text's first 16384 tokens (default 16384)", AT(tokens), FLAG_TYPE_WHOLE, 2, 1u << 20}},
    {ARGS_EVAL, {"--limit", "N", "only the first N cases (default: all)", AT(limit), FLAG_TYPE_WHOLE, 1, UINT32_MAX - 1}},
    {ARGS_EVAL, {"--decode-from", "N", "texts: tokens from N on go one a step, which shows the pool's misses (default: all at once)", AT(decode_from), FLAG_TYPE_WHOLE, 1, UINT32_MAX - 1}},
    {ARGS_EVAL, {"--kind", "trained|unseen", "only keys of this kind (default: all)", AT(kind), FLAG_TYPE_WORD, 0, 0}},
    {BOTH, {"--selector", "nosa|infllmv2|full|ssa|ssa-chunked|moba|moba-group|nsa|nsa-chunked", "how blocks are chosen (default: the model's)", AT(selector), FLAG_TYPE_WORD, 0, 0}},
    {BOTH, {"--budget", "N|A,B,C,D", "blocks a step: a listed total, or first, before the current, query, total (default: the model's)", AT(budget), FLAG_TYPE_TEXT, 0, 0}},
    {BOTH, {"--lookahead", "own|mid|input|step", "whose query selects (default own)", AT(lookahead), FLAG_TYPE_WORD, 0, 0}},
    {BOTH, {"--device-pool", "SIZE", "device memory for KV blocks, as 64MiB (default: the cluster file's)", AT(device_pool_bytes), FLAG_TYPE_BYTES, 0, 0}},
    {BOTH, {"--hbm", "SIZE", "all device memory, as 40GiB: weights, workspaces, summaries; the pool is the rest unless given", AT(hbm_bytes), FLAG_TYPE_BYTES, 0, 0}},
    {BOTH, {"--prompt-stage", "SIZE", "device memory for blocks of the prompt being computed, as 4GiB; a longer prompt's stand in host memory (default 0B)", AT(prompt_stage_bytes), FLAG_TYPE_BYTES, 0, 0}},
    {BOTH, {"--host-tier", "SIZE", "host memory for blocks beyond the pool, as 1GiB (default: the cluster file's)", AT(host_tier_bytes), FLAG_TYPE_BYTES, 0, 0}},
    {BOTH, {"--max-num-seqs", "N", "sequences that decode in one step", AT(max_num_seqs), FLAG_TYPE_WHOLE, 1, 4096}},
    {BOTH, {"--max-model-len", "N", "longest prompt with its answer, in tokens (default: the model's)", AT(max_model_len), FLAG_TYPE_WHOLE, 1, 1u << 24}},
    {BOTH, {"--max-num-batched-tokens", "N", "rows of one step, prompt chunks included", AT(max_num_batched_tokens), FLAG_TYPE_WHOLE, 1, 1u << 20}},
    {BOTH, {"--park-quantum", "N", "steps a sequence decodes before another may take its place", AT(park_quantum), FLAG_TYPE_WHOLE, 1, 1u << 20}},
    {BOTH, {"--victim-margin", "N%", "pool slots beyond the selection", AT(victim_margin), FLAG_TYPE_PERCENT, 0, 1000}},
    {BOTH, {"--threads", "N", "compute threads (default: one a core)", AT(threads), FLAG_TYPE_WHOLE, 1, 1024}},
    {BOTH, {"--backend", "NAME", "cpu, ref (simple and slow), cuda or cuda:N for the Nth GPU (default cpu)", AT(backend), FLAG_TYPE_TEXT, 0, 0}},
    {BOTH, {"--seed", "N", "of request ids and retry jitter, never of tokens (default: random)", AT(seed), FLAG_TYPE_SEED, 0, 0}},
    {BOTH, {"--guess", "N%", "of the query's picks, so many candidates are guessed a layer early and asked the store for (default 0%)", AT(guess), FLAG_TYPE_PERCENT, 0, 1000}},
    {BOTH, {"--two-batch", NULL, "halves of the batch take turns in each layer: one computes while the other's blocks come", AT(two_batch), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--no-prefetch", NULL, "fetch blocks only when a step asks for them", AT(no_prefetch), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--no-overlap", NULL, "gather blocks before attention, not beside it (GPU)", AT(no_overlap), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--no-late-merge", NULL, "attend when all blocks of a layer are there, not first to those that are (GPU)", AT(no_late_merge), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--no-verify", NULL, "do not check digests: only to show that tests notice", AT(no_verify), FLAG_TYPE_ON, 0, 0}},
    {ARGS_DECODE, {"--overwrite", NULL, "replace an output file that exists", AT(overwrite), FLAG_TYPE_ON, 0, 0}},
    {ARGS_DECODE, {"--resume", NULL, "go on behind the lines an output file has", AT(resume), FLAG_TYPE_ON, 0, 0}},
    {ARGS_DECODE, {"--deterministic", NULL, "lines in input order, without times and counters: cmp compares runs", AT(deterministic), FLAG_TYPE_ON, 0, 0}},
    {ARGS_DECODE, {"--profile", NULL, "also say where the time of steps went, op by op", AT(profile), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--format", "text|json", "of the summary on standard output (default text)", AT(format), FLAG_TYPE_WORD, 0, 0}},
    {BOTH, {"--quiet", NULL, "no progress bar", AT(quiet), FLAG_TYPE_ON, 0, 0}},
    {BOTH, {"--log-level", "error|warn|info|debug", "of the log on standard error (default warn)", AT(log_level), FLAG_TYPE_WORD, 0, 0}},
};
/* clang-format on */
enum { FLAG_COUNT = sizeof flags / sizeof flags[0] };

/* The rows of a verb. */
static flag_set flags_of(args_verb verb, flag_row row[FLAGS_MAX])
{
    flag_set set = {.row = row};
    for (size_t i = 0; i < FLAG_COUNT; i++)
        if (flags[i].verbs & (int)verb) row[set.count++] = flags[i].row;
    return set;
}

/* ---- the line -------------------------------------------------------------------------------- */

static bool is_format(const char *value)
{
    return strcmp(value, "json") == 0 || strcmp(value, "text") == 0 || strcmp(value, "table") == 0;
}

/* -o is the output file of decode and, as in all programs here, the format: where it is given
 * twice, the one that is a format's name is the format. */
static status take_output(args_verb verb, const char *value, args *a)
{
    if (verb == ARGS_EVAL) {
        if (!is_format(value)) return FAIL(INVALID, "-o %s: must be text or json", value);
        a->format = value;
    } else if (a->output == NULL) {
        a->output = value;
    } else if (is_format(value)) {
        a->format = value;
    } else if (is_format(a->output)) {
        a->format = a->output;
        a->output = value;
    } else {
        return FAIL(INVALID, "-o names two output files, %s and %s", a->output, value);
    }
    return STATUS_OK;
}

static status take_flag(args_verb verb, flag_set *set, char **argv, int *at, args *a)
{
    if (strcmp(argv[*at], "-o") != 0) return flags_take(set, argv, at, a);
    if (argv[*at + 1] == NULL) return FAIL(INVALID, "-o needs a value");
    return take_output(verb, argv[++*at], a);
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
    if (a->guess > 0 && a->no_prefetch)
        return FAIL(INVALID, "--guess %u%% fetches ahead, and --no-prefetch says not to", a->guess);
    if (a->guess > 0 && a->cluster == NULL)
        return FAIL(INVALID, "--guess %u%% has nobody to ask: it needs --cluster", a->guess);
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
    flag_row row[FLAGS_MAX];
    flag_set set = flags_of(verb, row);
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
            TRY(take_flag(verb, &set, argv, &i, &a));
        } else if (a.input != NULL) {
            return FAIL(INVALID, "one input at a time: %s and %s are two", a.input, word);
        } else {
            a.input = word;
        }
    }
    a.json = a.format != NULL && strcmp(a.format, "json") == 0;
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
    flag_row row[FLAGS_MAX];
    flag_set set = flags_of(verb, row);
    (void)fputs(verb == ARGS_DECODE ? decode_head : eval_head, to);
    flags_help(&set, to);
    (void)fputs(verb == ARGS_DECODE ? decode_tail : eval_tail, to);
}
