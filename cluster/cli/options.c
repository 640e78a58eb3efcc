/* cluster/cli/options.c - flags of the verbs, read by getopt_long from one table that the help also
 * prints. Flags may stand before or after operands; sizes and times need units. */
#include "cluster/cli/cli.h"
#include "cluster/units.h"

#include <getopt.h>
#include <string.h>

typedef struct option_row {
    cli_flag flag;
    const char *name;
    char letter;
    const char *value; /* NULL: takes none */
    const char *help;
    const char *standard; /* default as typed; NULL: none or the verb's own */
} option_row;

static const option_row rows[] = {
    {CLI_CONFIG, "config", 'c', "FILE", "configuration file", "cluster.yaml"},
    {CLI_FORMAT, "format", 'o', "text|json", "of the result on standard output", "text"},
    {CLI_ALL, "all", 'a', NULL, "every node of the file", NULL},
    {CLI_TIMEOUT, "timeout", 't', "TIME", "end of waiting, with its unit, as 500ms or 10s", NULL},
};
enum { ROW_COUNT = sizeof rows / sizeof *rows };

static void print_name(const cli_verb *verb, FILE *to)
{
    fprintf(to, "shoal %s%s%s", verb->noun, verb->verb[0] ? " " : "", verb->verb);
}

void cli_help_verb(const cli_verb *verb, FILE *to)
{
    print_name(verb, to);
    fprintf(to, " - %s\n\nusage: ", verb->purpose);
    print_name(verb, to);
    fprintf(to, "%s%s [--flags]\n\nflags:\n", verb->operands[0] ? " " : "", verb->operands);
    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (!(verb->flags & rows[i].flag)) continue;
        char left[40];
        snprintf(left, sizeof left, "-%c, --%s %s", rows[i].letter, rows[i].name,
                 rows[i].value ? rows[i].value : "");
        const char *standard = rows[i].flag == CLI_TIMEOUT ? verb->timeout : rows[i].standard;
        fprintf(to, "  %-24s %s%s%s%s\n", left, rows[i].help, standard ? " (default " : "",
                standard ? standard : "", standard ? ")" : "");
    }
    fprintf(to, "  %-24s this text\n\nexamples:\n", "-h, --help");
    for (size_t i = 0; i < 2; i++)
        fprintf(to, "  %s\n", verb->example[i]);
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

const char *cli_nearest(const char *word, const char *const *candidates, size_t count)
{
    enum { WORD_MAX = 32 };
    size_t length = strlen(word), best = 3;
    const char *near = NULL;
    if (length == 0 || length >= WORD_MAX) return NULL;
    for (size_t c = 0; c < count; c++) {
        size_t row[WORD_MAX + 1];
        for (size_t j = 0; j <= length; j++)
            row[j] = j;
        for (size_t i = 1; candidates[c][i - 1]; i++) {
            size_t corner = row[0];
            row[0] = i;
            for (size_t j = 1; j <= length; j++) {
                size_t change = corner + (word[j - 1] != candidates[c][i - 1]);
                corner = row[j];
                row[j] = least(change, least(row[j], row[j - 1]) + 1);
            }
        }
        if (row[length] < best && row[length] < length) {
            best = row[length];
            near = candidates[c];
        }
    }
    return near;
}

static status refuse_flag(const cli_verb *verb, const char *word)
{
    const char *names[ROW_COUNT + 1] = {"help"};
    size_t count = 1;
    for (size_t i = 0; i < ROW_COUNT; i++)
        if (verb->flags & rows[i].flag) names[count++] = rows[i].name;
    char bare[32];
    snprintf(bare, sizeof bare, "%.*s", (int)strcspn(word + strspn(word, "-"), "="),
             word + strspn(word, "-"));
    const char *near = cli_nearest(bare, names, count);
    return FAIL(INVALID, "unknown flag \"%.40s\"; %s%s%s`shoal %s%s%s --help` lists them", word,
                near ? "did you mean --" : "", near ? near : "", near ? "? " : "", verb->noun,
                verb->verb[0] ? " " : "", verb->verb);
}

static status take_value(int letter, const char *text, cli_call *call)
{
    const char *wrong = NULL;
    switch (letter) {
    case 'h':
        call->help = true;
        break;
    case 'a':
        call->all = true;
        break;
    case 'c':
        if (*text == '\0') return FAIL(INVALID, "--config is empty; name a file");
        call->config = text;
        call->config_named = true;
        break;
    case 'o':
        if (strcmp(text, "json") != 0 && strcmp(text, "text") != 0)
            return FAIL(INVALID, "--format: \"%.40s\" is no format; write text or json", text);
        call->json = text[0] == 'j';
        break;
    default:
        wrong = unit_scan(UNIT_TIME, text, &call->timeout_ns);
        if (wrong) return FAIL(INVALID, "--timeout: \"%.40s\" %s", text, wrong);
        if (call->timeout_ns < 1000000 || call->timeout_ns > 3600ull * 1000000000)
            return FAIL(INVALID, "--timeout: %.40s is out of range; write 1ms to 3600s", text);
    }
    return STATUS_OK;
}

/* Fills what getopt_long reads: "+" is not given, so flags may follow operands; ":" tells a missing
 * value from an unknown flag. */
static void getopt_tables(const cli_verb *verb, struct option *longs, char *shorts)
{
    size_t n = 0;
    *shorts++ = ':';
    *shorts++ = 'h';
    longs[n++] = (struct option){"help", no_argument, NULL, 'h'};
    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (!(verb->flags & rows[i].flag)) continue;
        longs[n++] = (struct option){rows[i].name, rows[i].value ? required_argument : no_argument,
                                     NULL, rows[i].letter};
        *shorts++ = rows[i].letter;
        if (rows[i].value) *shorts++ = ':';
    }
    *shorts = '\0';
    longs[n] = (struct option){0};
}

static status check_operands(const cli_verb *verb, const cli_call *call)
{
    if (call->operand_count > verb->operand_max)
        return FAIL(INVALID, "\"%.40s\" is too much; usage: shoal %s %s %s",
                    call->operand[verb->operand_max], verb->noun, verb->verb, verb->operands);
    if ((verb->flags & CLI_ALL) && call->all == (call->operand_count > 0))
        return FAIL(INVALID, "name nodes, or give --all, but not both");
    return STATUS_OK;
}

status cli_parse(const cli_verb *verb, int argc, char **argv, cli_call *out_call)
{
    CHECK(argc >= 1 && argv[argc] == NULL);
    cli_call call = {.config = "cluster.yaml"};
    if (verb->timeout) TRY(cluster_parse_time(verb->timeout, &call.timeout_ns));
    struct option longs[ROW_COUNT + 2];
    char shorts[2 * ROW_COUNT + 4];
    getopt_tables(verb, longs, shorts);
    opterr = 0;
    optind = 0; /* glibc: start over */
    for (int letter; (letter = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (letter == ':')
            return FAIL(INVALID, "%.40s needs a value; `shoal %s%s%s --help` shows which",
                        argv[optind - 1], verb->noun, verb->verb[0] ? " " : "", verb->verb);
        if (letter == '?') return refuse_flag(verb, argv[optind - 1]);
        TRY(take_value(letter, optarg, &call));
    }
    if (argc - optind > CLI_OPERANDS_MAX) return FAIL(INVALID, "too many operands");
    for (int i = optind; i < argc; i++)
        call.operand[call.operand_count++] = argv[i];
    if (!call.help) TRY(check_operands(verb, &call));
    *out_call = call;
    return STATUS_OK;
}
