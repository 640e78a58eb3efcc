/* The command line of `shoal-worker bench decode`: one table, then what makes no sense together. */
#include "worker/bench.h"

#include "worker/flags.h"

#include <stdlib.h>
#include <string.h>

#define AT(member) offsetof(bench_options, member)
/* clang-format off */
static const flag_row rows[] = {
    {"--model", "DIR", "folder with config.json; weights are made from --seed where it has none", AT(model), FLAG_TYPE_TEXT, 0, 0},
    {"--device", "NAME", "cpu (default), ref, cuda, cuda:N; several with commas: a worker on each, of --batch", AT(device), FLAG_TYPE_TEXT, 0, 0},
    {"--batch", "N|max", "sequences; max: as many as the memory holds (default 4)", AT(batch_text), FLAG_TYPE_TEXT, 0, 0},
    {"--contexts", "LIST", "tokens of each sequence, as 16K or 4K,16K,2000, repeated (default 4K)", AT(contexts_text), FLAG_TYPE_TEXT, 0, 0},
    {"--text", "FILE", "JSONL of {\"text\"}: real contexts by prefill, then forced on token by token", AT(text), FLAG_TYPE_TEXT, 0, 0},
    {"--selector", "NAME", "how blocks are chosen, as decode has it (default: the model's)", AT(selector), FLAG_TYPE_TEXT, 0, 0},
    {"--budget", "N|A,B,C,D", "blocks a step: a listed total, or first, before the current, query, total", AT(budget), FLAG_TYPE_TEXT, 0, 0},
    {"--lookahead", "own|mid|input|step", "whose query selects (default own)", AT(lookahead), FLAG_TYPE_WORD, 0, 0},
    {"--churn", "X", "misses a layer, KV head and step at an exact fit (default: as an 8B at 16K, 3.58 at its budget)", AT(churn), FLAG_TYPE_REAL, 0.01, 1000},
    {"--device-pool", "SIZE", "device memory for KV blocks (default: what the batch needs)", AT(device_pool), FLAG_TYPE_BYTES, 0, 0},
    {"--hbm", "SIZE", "all device memory: refuses weights, workspaces, summaries and pool beyond it", AT(hbm), FLAG_TYPE_BYTES, 0, 0},
    {"--kv-memory", "SIZE", "device memory for KV blocks and summaries together", AT(kv_memory), FLAG_TYPE_BYTES, 0, 0},
    {"--victim-margin", "N", "percent of pool slots beyond the selection (default 25; 0: exact fit)", AT(margin), FLAG_TYPE_WHOLE, 0, 1000},
    {"--resident", NULL, "all blocks stay in the pool: nothing is offloaded", AT(resident), FLAG_TYPE_ON, 0, 0},
    {"--nosi-like", NULL, "exact fit, no prefetch, no overlap: fetched when asked for; rows are named nosi_like", AT(nosi_like), FLAG_TYPE_ON, 0, 0},
    {"--guess", "N%", "of the query's picks, so many candidates are guessed a layer early and asked the store for (default 0%)", AT(guess), FLAG_TYPE_PERCENT, 0, 1000},
    {"--two-batch", NULL, "halves of the batch take turns in each layer: one computes while the other's blocks come", AT(two_batch), FLAG_TYPE_ON, 0, 0},
    {"--no-prefetch", NULL, "fetch blocks only when a step asks for them", AT(no_prefetch), FLAG_TYPE_ON, 0, 0},
    {"--no-overlap", NULL, "gather blocks before attention, not beside it (GPU)", AT(no_overlap), FLAG_TYPE_ON, 0, 0},
    {"--no-late-merge", NULL, "attend when all blocks of a layer are there, not first to those that are (GPU)", AT(no_late_merge), FLAG_TYPE_ON, 0, 0},
    {"--cluster", "FILE", "a running store below the pool (default: memory of this process)", AT(cluster), FLAG_TYPE_TEXT, 0, 0},
    {"--nodes", "N", "a simulated store of N nodes in this process", AT(nodes), FLAG_TYPE_WHOLE, 1, BENCH_NODES_MAX},
    {"--replicas", "N", "nodes that keep each block (default 1; 2 with --fault)", AT(replicas), FLAG_TYPE_WHOLE, 1, CLUSTER_REPLICAS_MAX},
    {"--rtt-us", "N", "round trip of the simulated network, microseconds", AT(rtt_us), FLAG_TYPE_REAL, 0, 1e7},
    {"--gbit", "N", "rate of the simulated network, Gb/s a node and for the worker", AT(gbit), FLAG_TYPE_REAL, 0.001, 1e5},
    {"--host-tier", "SIZE", "host memory for blocks beside a store (default 0B: misses are remote)", AT(host_tier), FLAG_TYPE_BYTES, 0, 0},
    {"--fault", "kill|flip|pause", "in the second run: a node dies (needs more nodes than replicas) or stops for 2 s; flip: replies lose bits", AT(fault_name), FLAG_TYPE_WORD, 0, 0},
    {"--park-quantum", "N", "steps before a sequence gives its place, when the pool is short (default 64)", AT(quantum), FLAG_TYPE_WHOLE, 1, 1 << 20},
    {"--runs", "N", "stretches that are measured one after the other (default 5)", AT(runs), FLAG_TYPE_WHOLE, 1, BENCH_RUNS_MAX},
    {"--steps", "N", "steps of a run (default 64: each sequence seals a block in each)", AT(steps), FLAG_TYPE_WHOLE, 1, 1 << 16},
    {"--warm", "N", "steps before the first run (default 32)", AT(warm), FLAG_TYPE_WHOLE, 0, 1 << 16},
    {"--threads", "N", "compute threads (default: one a core)", AT(threads), FLAG_TYPE_WHOLE, 1, 1024},
    {"--seed", "N", "of weights, contexts and request ids (default 1)", AT(seed), FLAG_TYPE_SEED, 0, 0},
    {"--profile", NULL, "also say where the time of a step goes, op by op", AT(profile), FLAG_TYPE_ON, 0, 0},
    {"--trace", "FILE", "timeline of the last run's first 8 steps, Chrome trace JSON", AT(trace), FLAG_TYPE_TEXT, 0, 0},
    {"--label", "TEXT", "put before the case's name in rows", AT(label), FLAG_TYPE_TEXT, 0, 0},
    {"--commit", "ID", "put into rows", AT(commit), FLAG_TYPE_TEXT, 0, 0},
    {"--format", "text|json", "of the result on standard output: a table, or shoal.bench/1 rows", AT(format), FLAG_TYPE_WORD, 0, 0},
    {"-o", "text|json", "the same as --format", AT(format), FLAG_TYPE_WORD, 0, 0},
    {"--quiet", NULL, "no memory plan and no progress on standard error", AT(quiet), FLAG_TYPE_ON, 0, 0},
    {"--log-level", "error|warn|info|debug", "of the log on standard error (default warn)", AT(log_level), FLAG_TYPE_WORD, 0, 0},
};
/* clang-format on */
enum { ROW_COUNT = sizeof rows / sizeof *rows };
_Static_assert((int)ROW_COUNT <= (int)FLAGS_MAX, "flags fit their set");

/* ---- values of our own ----------------------------------------------------------------------- */

static status parse_contexts(bench_options *o)
{
    const char *at = o->contexts_text;
    o->context_count = 0;
    for (;;) {
        char *end = NULL;
        unsigned long tokens = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : 0;
        if (end != NULL && *end == 'K' && tokens <= 1 << 14) tokens *= 1024, end++;
        if (end == NULL || (*end != ',' && *end != '\0') || tokens < 2ul * KERN_BLOCK ||
            tokens > 1 << 24)
            return FAIL(INVALID,
                        "--contexts %.60s: lengths of %d tokens and more with commas between, as "
                        "16K or 4K,16K,2000",
                        o->contexts_text, 2 * KERN_BLOCK);
        if (o->context_count == BENCH_CONTEXTS_MAX)
            return FAIL(INVALID, "--contexts: at most %d lengths", BENCH_CONTEXTS_MAX);
        o->context[o->context_count++] = (uint32_t)tokens;
        if (*end == '\0') return STATUS_OK;
        at = end + 1;
    }
}

static status parse_batch(bench_options *o)
{
    if (strcmp(o->batch_text, "max") == 0) {
        o->batch = 0;
        return STATUS_OK;
    }
    char *end = NULL;
    unsigned long n =
        o->batch_text[0] >= '0' && o->batch_text[0] <= '9' ? strtoul(o->batch_text, &end, 10) : 0;
    if (n < 1 || n > 512 || *end != '\0')
        return FAIL(INVALID, "--batch %.40s: must be max or a whole number from 1 to 512",
                    o->batch_text);
    o->batch = (uint32_t)n;
    return STATUS_OK;
}

static bool is_device(const char *name)
{
    if (strcmp(name, "cpu") == 0 || strcmp(name, "ref") == 0 || strcmp(name, "cuda") == 0)
        return true;
    char *end = NULL;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9') return false;
    (void)strtoul(name + 5, &end, 10);
    return *end == '\0';
}

static status parse_devices(bench_options *o)
{
    o->workers = 0;
    for (const char *at = o->device, *end; at != NULL; at = end != NULL ? end + 1 : NULL) {
        end = strchr(at, ',');
        size_t count = end != NULL ? (size_t)(end - at) : strlen(at);
        if (o->workers == BENCH_WORKERS_MAX)
            return FAIL(INVALID, "--device: at most %d workers", BENCH_WORKERS_MAX);
        char *to = o->devices[o->workers++];
        if (count < BENCH_DEVICE_MAX) memcpy(to, at, count); /* the rest is zero */
        if (!is_device(to))
            return FAIL(INVALID,
                        "--device %.60s: must be one of cpu|ref|cuda|cuda:N, or several with "
                        "commas between",
                        o->device);
    }
    return STATUS_OK;
}

/* ---- what makes no sense together ------------------------------------------------------------ */

static status refuse(const flag_set *set, const char *flag, const char *why)
{
    if (!flags_given(set, flag)) return STATUS_OK;
    return FAIL(INVALID, "%s has no meaning here: %s", flag, why);
}

static status check_store(const flag_set *set, const bench_options *o)
{
    bool simulated = o->nodes > 0, store = simulated || o->cluster != NULL;
    static const char *const of_network[] = {"--rtt-us", "--gbit", "--nodes", "--replicas",
                                             "--fault"};
    for (size_t i = 0; o->cluster != NULL && i < sizeof of_network / sizeof *of_network; i++)
        TRY(refuse(set, of_network[i], "the nodes of --cluster are real"));
    if (!simulated) TRY(refuse(set, "--replicas", "there is no store; give --nodes"));
    if (!store) TRY(refuse(set, "--host-tier", "without a store host memory keeps every block"));
    if (!store) TRY(refuse(set, "--guess", "there is no store to ask; give --nodes or --cluster"));
    if (o->no_prefetch) TRY(refuse(set, "--guess", "nothing is fetched ahead"));
    if (o->lookahead != NULL && strcmp(o->lookahead, "own") != 0) {
        TRY(refuse(set, "--guess", "with --lookahead the next picks are known, not guessed"));
        TRY(refuse(set, "--two-batch", "rows that look ahead wait less, and take no turns"));
    }
    if (o->workers > 1) {
        static const char *const of_one[] = {"--nodes", "--rtt-us", "--gbit",
                                             "--fault", "--trace",  "--profile"};
        for (size_t i = 0; i < sizeof of_one / sizeof *of_one; i++)
            TRY(refuse(set, of_one[i], "--device names several, each worker a process of its own"));
    }
    if (o->resident) {
        static const char *const of_misses[] = {
            "--churn",      "--victim-margin", "--no-prefetch", "--rtt-us",
            "--gbit",       "--fault",         "--nosi-like",   "--lookahead",
            "--no-overlap", "--no-late-merge", "--two-batch",   "--guess"};
        for (size_t i = 0; i < sizeof of_misses / sizeof *of_misses; i++)
            TRY(refuse(set, of_misses[i], "with --resident nothing is fetched"));
    }
    if (o->nosi_like) {
        TRY(refuse(set, "--victim-margin", "--nosi-like is an exact fit"));
        TRY(refuse(set, "--lookahead", "--nosi-like fetches when a step asks"));
        TRY(refuse(set, "--guess", "--nosi-like fetches when a step asks"));
        TRY(refuse(set, "--two-batch", "--nosi-like stands still while it fetches"));
    }
    if (simulated && o->replicas > o->nodes)
        return FAIL(INVALID, "--replicas %u: more than the %u nodes", o->replicas, o->nodes);
    if ((o->fault == FAULT_KILL || o->fault == FAULT_FLIP) && o->replicas < 2)
        return FAIL(INVALID,
                    "--fault %s needs --replicas 2: contexts that were made up cannot be "
                    "computed again",
                    o->fault_name);
    if (o->fault == FAULT_KILL && o->nodes <= o->replicas)
        return FAIL(
            INVALID,
            "--fault kill needs more --nodes than --replicas (%u): with %u left no new block "
            "can be stored, and its sequence ends",
            o->replicas, o->nodes - 1);
    return STATUS_OK;
}

static status check_rest(const flag_set *set, const bench_options *o)
{
    if (o->model == NULL) return FAIL(INVALID, "bench decode needs --model DIR");
    if (flags_given(set, "--device-pool") && flags_given(set, "--kv-memory"))
        return FAIL(INVALID, "--device-pool and --kv-memory exclude each other");
    if (o->batch == 0 && !flags_given(set, "--device-pool") && !flags_given(set, "--kv-memory"))
        return FAIL(INVALID, "--batch max needs --kv-memory or --device-pool");
    bool full = o->selector != NULL && strcmp(o->selector, "full") == 0;
    if (full) {
        TRY(refuse(set, "--churn", "full attention selects nothing"));
        TRY(refuse(set, "--lookahead", "full attention selects nothing"));
        TRY(refuse(set, "--guess", "full attention selects nothing"));
    }
    if (o->text != NULL) {
        TRY(refuse(set, "--churn", "real text has its own"));
        TRY(refuse(set, "--fault", "faults are for contexts that were made up; e2e has them"));
    }
    if (o->profile) TRY(refuse(set, "--trace", "a step is watched by --profile"));
    if (o->fault != FAULT_NONE && o->runs < 3)
        return FAIL(INVALID, "--fault needs --runs 3 or more: before, in and after the trouble");
    return STATUS_OK;
}

static void settle(const flag_set *set, bench_options *o)
{
    static const char *const faults[] = {"kill", "flip", "pause"};
    for (int i = 0; o->fault_name != NULL && i < 3; i++) {
        if (strcmp(o->fault_name, faults[i]) == 0) o->fault = (bench_fault)(FAULT_KILL + i);
    }
    o->paced = flags_given(set, "--rtt-us") || flags_given(set, "--gbit");
    bool needs_nodes = o->paced || o->fault != FAULT_NONE;
    if (o->nodes == 0 && needs_nodes && o->cluster == NULL) o->nodes = 3;
    if (o->replicas == 0) o->replicas = o->fault != FAULT_NONE ? 2 : 1;
    if (o->nosi_like) o->margin = 0, o->no_prefetch = o->no_overlap = true;
    if (o->resident) o->margin = 1u << 24;
    o->json = strcmp(o->format, "json") == 0;
}

status bench_options_parse(int argc, char **argv, bench_options *out_options)
{
    bench_options o = {.device = "cpu",
                       .batch_text = "4",
                       .contexts_text = "4K",
                       .format = "text",
                       .log_level = "warn",
                       .margin = 25,
                       .quantum = 64,
                       .runs = 5,
                       .steps = 64,
                       .warm = 32,
                       .seed = 1};
    flag_set set = {.row = rows, .count = ROW_COUNT};
    TRY(flags_parse(&set, argc, argv, &o));
    o.help = set.help;
    if (!o.help) {
        settle(&set, &o);
        TRY(parse_batch(&o));
        TRY(parse_contexts(&o));
        TRY(parse_devices(&o));
        TRY(check_rest(&set, &o));
        TRY(check_store(&set, &o));
    }
    *out_options = o;
    return STATUS_OK;
}

void bench_help(FILE *to)
{
    (void)fputs(
        "shoal-worker bench decode - how fast a batch decodes on this device, and what bounds it\n"
        "\n"
        "usage: shoal-worker bench decode --model DIR [flags]\n"
        "\n"
        "The production engine decodes contexts that nobody computed: blocks of random bytes, "
        "distinct\n"
        "for every sequence, sealed and stored as any. Where DIR has no weights they are made, "
        "so that\n"
        "greedy decoding is a random walk that misses --churn blocks. A store in this process "
        "stands\n"
        "for a network; everything measured over it is labelled simulated.\n"
        "\n"
        "flags:\n",
        to);
    flag_set set = {.row = rows, .count = ROW_COUNT};
    flags_help(&set, to);
    (void)fputs(
        "\n"
        "examples:\n"
        "  shoal-worker bench decode --model tests/bench/geometry/tiny --batch 2 --contexts 2K "
        "\\\n"
        "      --budget 1,4,10,16 --runs 2 --steps 8 --quiet\n"
        "  shoal-worker bench decode --model tests/bench/geometry/tiny --contexts 2K,4K --rtt-us "
        "50 \\\n"
        "      --gbit 10 --lookahead mid --budget 1,4,10,16 --runs 2 --steps 8 --churn 1.2 -o "
        "json\n"
        "\n"
        "exit: 0 measured, 1 failed, 2 usage, 3 store unreachable, 130 interrupted\n",
        to);
}
