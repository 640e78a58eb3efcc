/* cluster/cli/main.c - nouns and verbs: the table, the help made from it, and the way to other
 * programs. A noun that is not in the table is run as `shoal-NOUN`, as git does with its commands.
 */
#include "cluster/cli/cli.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* clang-format off */
static const cli_verb verbs[] = {
    {"cluster", "up", "start the nodes of the file that live on this host", "", 0, 0,
     CLI_CONFIG | CLI_FORMAT | CLI_TIMEOUT, "30s",
     {"shoal cluster up --config cluster.yaml", "shoal cluster up --timeout 10s -o json"}, cli_cluster_up},
    {"cluster", "down", "stop the nodes that `up` started and remove their state", "", 0, 0,
     CLI_CONFIG | CLI_FORMAT | CLI_TIMEOUT, "15s",
     {"shoal cluster down --config cluster.yaml", "shoal cluster down --timeout 5s -o json"}, cli_cluster_down},
    {"cluster", "status", "show each node: serving, draining or unreachable", "", 0, 0,
     CLI_CONFIG | CLI_FORMAT | CLI_TIMEOUT, "2s",
     {"shoal cluster status --config cluster.yaml", "shoal cluster status -o json"}, cli_cluster_status},
    {"node", "status", "show what nodes hold and have served", "[NAME...]", 0, CLI_OPERANDS_MAX,
     CLI_CONFIG | CLI_FORMAT | CLI_TIMEOUT, "2s",
     {"shoal node status --config cluster.yaml", "shoal node status n1 -o json"}, cli_node_status},
    {"node", "drain", "have nodes refuse new blocks and go on serving what they hold", "NAME... | --all", 0, CLI_OPERANDS_MAX,
     CLI_CONFIG | CLI_FORMAT | CLI_ALL | CLI_TIMEOUT, "2s",
     {"shoal node drain n3 --config cluster.yaml", "shoal node drain --all -o json"}, cli_node_drain},
    {"config", "check", "say whether a configuration file is sound", "[FILE]", 0, 1, CLI_CONFIG | CLI_FORMAT, NULL,
     {"shoal config check cluster.yaml", "shoal config check cluster.yaml -o json"}, cli_config_check},
    {"config", "show", "print every knob with its value and default", "[FILE]", 0, 1, CLI_CONFIG | CLI_FORMAT, NULL,
     {"shoal config show", "shoal config show cluster.yaml -o json"}, cli_config_show},
    {"version", "", "print the version of this program and of its protocol", "", 0, 0, CLI_FORMAT, NULL,
     {"shoal version", "shoal version -o json"}, cli_version},
};
/* clang-format on */
enum { VERB_COUNT = sizeof verbs / sizeof *verbs };

/* Nouns that the worker program serves: their help and flags are its own. */
static const char *const worker_nouns[] = {"decode", "eval", "bench", "doctor"};
static const char *const noun_names[] = {"cluster", "node",  "config", "version", "decode",
                                         "eval",    "bench", "doctor", "help"};
enum { NOUN_COUNT = sizeof noun_names / sizeof *noun_names };

static void help_all(FILE *to)
{
    fprintf(to, "shoal - decode long contexts whose KV cache lives in a replicated store\n\n"
                "usage: shoal NOUN [VERB] [ARGS] [--flags]\n\nwork:\n"
                "  decode            answer a file of prompts (run by shoal-worker)\n"
                "  eval              measure a model on cases with known answers\n"
                "  bench decode      measure how fast a batch decodes, beside what bounds it\n"
                "  doctor            measure this host and say what is misconfigured\n"
                "\nstore:\n");
    for (size_t i = 0; i < VERB_COUNT; i++) {
        char name[32];
        snprintf(name, sizeof name, "%s %s", verbs[i].noun, verbs[i].verb);
        fprintf(to, "  %-16s  %s\n", name, verbs[i].purpose);
    }
    fprintf(
        to,
        "\n`shoal NOUN VERB --help` tells flags and defaults. A noun that is not listed is run as\n"
        "the program shoal-NOUN, found beside this one or in PATH.\n\nexamples:\n"
        "  shoal config check cluster.yaml\n  shoal version\n\n"
        "exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 degraded, 5 data wrong, "
        "130 interrupted\n");
}

static status help_noun(const char *noun, FILE *to)
{
    fprintf(to, "usage: shoal %s VERB [ARGS] [--flags]\n\nverbs:\n", noun);
    for (size_t i = 0; i < VERB_COUNT; i++)
        if (strcmp(verbs[i].noun, noun) == 0)
            fprintf(to, "  %-8s  %s\n", verbs[i].verb, verbs[i].purpose);
    fprintf(to, "\nexamples:\n");
    for (size_t i = 0; i < VERB_COUNT; i++)
        if (strcmp(verbs[i].noun, noun) == 0) fprintf(to, "  %s\n", verbs[i].example[0]);
    return STATUS_OK;
}

static bool asks_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

/* shoal-NOUN, else a sentence with the noun that was perhaps meant. */
static status run_external(int argc, char **argv)
{
    (void)argc;
    const char *noun = argv[1];
    char program[80];
    size_t plain = strspn(noun, "abcdefghijklmnopqrstuvwxyz0123456789-");
    if (noun[plain] == '\0' && noun[0] != '-' && plain < 64) {
        snprintf(program, sizeof program, "shoal-%s", noun);
        status s = cli_exec(program, argv + 1);
        if (s != STATUS_NOT_FOUND) return s;
    }
    const char *near = cli_nearest(noun, noun_names, NOUN_COUNT);
    if (near)
        return FAIL(INVALID,
                    "unknown noun \"%.40s\"; did you mean \"%s\"? `shoal --help` lists them", noun,
                    near);
    return FAIL(INVALID, "unknown noun \"%.40s\"; `shoal --help` lists the known ones", noun);
}

/* argv[1] stays the verb. */
static status run_worker(char **argv)
{
    status s = cli_exec("shoal-worker", argv);
    if (s == STATUS_NOT_FOUND)
        return FAIL(IO,
                    "shoal-worker is neither beside this program nor in PATH; build it or install "
                    "it there");
    return s;
}

static status run_verb(const cli_verb *verb, int argc, char **argv)
{
    cli_call call;
    TRY(cli_parse(verb, argc, argv, &call));
    if (call.help) {
        cli_help_verb(verb, stdout);
        return STATUS_OK;
    }
    return verb->run(&call);
}

static status dispatch_noun(const char *noun, int argc, char **argv)
{
    const char *names[VERB_COUNT];
    size_t count = 0;
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (strcmp(verbs[i].noun, noun) != 0) continue;
        if (verbs[i].verb[0] == '\0') return run_verb(&verbs[i], argc - 1, argv + 1);
        if (argc > 2 && strcmp(verbs[i].verb, argv[2]) == 0)
            return run_verb(&verbs[i], argc - 2, argv + 2);
        names[count++] = verbs[i].verb;
    }
    if (count == 0) return run_external(argc, argv);
    if (argc > 2 && asks_help(argv[2])) return help_noun(noun, stdout);
    if (argc < 3) return FAIL(INVALID, "%s what? `shoal %s --help` lists its verbs", noun, noun);
    const char *near = cli_nearest(argv[2], names, count);
    return FAIL(INVALID, "%s has no verb \"%.40s\"; %s%s%s`shoal %s --help` lists them", noun,
                argv[2], near ? "did you mean \"" : "", near ? near : "", near ? "\"? " : "", noun);
}

static status dispatch(int argc, char **argv)
{
    if (argc < 2) return FAIL(INVALID, "what is to be done? `shoal --help` lists nouns and verbs");
    if (asks_help(argv[1]) && argc == 2) {
        help_all(stdout);
        return STATUS_OK;
    }
    if (strcmp(argv[1], "--version") == 0) return cli_version(&(cli_call){0});
    if (strcmp(argv[1], "help") == 0) { /* help NOUN [VERB] is NOUN [VERB] --help */
        char *swapped[5] = {argv[0]};
        int count = 1;
        for (int i = 2; i < argc && i < 4; i++)
            swapped[count++] = argv[i];
        swapped[count++] = "--help";
        return dispatch(count, swapped);
    }
    for (size_t i = 0; i < sizeof worker_nouns / sizeof *worker_nouns; i++)
        if (strcmp(argv[1], worker_nouns[i]) == 0) return run_worker(argv);
    return dispatch_noun(argv[1], argc, argv);
}

int cli_main(int argc, char **argv)
{
    /* The log is for daemons; a person gets the one sentence, below. */
    FILE *nowhere = fopen("/dev/null", "we");
    log_setup(&(log_config){.level = LOG_ERROR, .program = "shoal", .file = nowhere});
    status s = dispatch(argc, argv);
    cli_progress_end();
    if (s == STATUS_OK && (fflush(stdout) != 0 || ferror(stdout)))
        s = FAIL(IO, "standard output cannot be written: %s", strerror(errno));
    const char *sentence = log_last_error();
    if (s != STATUS_OK) fprintf(stderr, "shoal: %s\n", *sentence ? sentence : status_sentence(s));
    log_setup(&(log_config){.level = LOG_ERROR, .program = "shoal"});
    if (nowhere) fclose(nowhere);
    return status_exit_code(s);
}
