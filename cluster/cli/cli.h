/* cluster/cli/cli.h - the command line of `shoal`: a table of verbs, a file a noun.
 *
 * Flow:    argv -> [cli_main: parse, check] -> verb -> result on stdout, one sentence on stderr.
 * Threads: one.
 * Memory:  strings are argv's own. */
#ifndef CLUSTER_CLI_CLI_H
#define CLUSTER_CLI_CLI_H

#include "cluster/cluster.h"

enum { CLI_OPERANDS_MAX = CLUSTER_NODES_MAX };

/* A command line after everything in it was checked. */
typedef struct cli_call {
    const char *config; /* path */
    bool config_named;  /* --config was given */
    bool json;          /* -o json */
    bool all;           /* --all */
    bool help;
    uint64_t timeout_ns; /* --timeout */
    const char *operand[CLI_OPERANDS_MAX];
    uint32_t operand_count;
} cli_call;

typedef enum cli_flag { CLI_CONFIG = 1, CLI_FORMAT = 2, CLI_ALL = 4, CLI_TIMEOUT = 8 } cli_flag;

typedef struct cli_verb {
    const char *noun, *verb; /* verb "": the noun stands alone */
    const char *purpose;     /* a line */
    const char *operands;    /* as in the usage line; "" none */
    uint32_t operand_min, operand_max;
    uint32_t flags;         /* of cli_flag */
    const char *timeout;    /* default of --timeout, with its unit; NULL where CLI_TIMEOUT is not */
    const char *example[2]; /* run as they stand, in a folder with a cluster.yaml */
    status (*run)(const cli_call *call);
} cli_verb;

/* Everything but the exit: its value is the exit code. */
int cli_main(int argc, char **argv);
/* Reads argv[0..] into out_call. INVALID: one sentence was logged. */
status cli_parse(const cli_verb *verb, int argc, char **argv, cli_call *out_call);
void cli_help_verb(const cli_verb *verb, FILE *to);
/* The candidate a mistyped word is nearest to (at most 2 edits, Levenshtein 1966), or NULL. */
const char *cli_nearest(const char *word, const char *const *candidates, size_t count);

/* Replace this process by `program`, found beside this one or in PATH. Returns only on failure. */
status cli_exec(const char *program, char **argv);
/* Path of `program` beside this binary, else the name itself for a search in PATH. */
void cli_find_program(const char *program, char *out, size_t room);

/* SIGINT or SIGTERM came: stop, undo what is half done, return STATUS_CANCELED. */
bool cli_interrupted(void);
void cli_catch_signals(void);
/* Wait a moment between two looks at something that other processes change. */
void cli_pause(void);
/* A line on standard error that is drawn over itself; nothing unless that is a terminal. */
void cli_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_progress_end(void);
/* Text between quotes, escaped as JSON demands; bytes beyond ASCII become \u00XX. */
void cli_json_string(FILE *to, const char *text);

status cli_cluster_up(const cli_call *call);
status cli_cluster_down(const cli_call *call);
status cli_cluster_status(const cli_call *call);
status cli_node_status(const cli_call *call);
status cli_node_drain(const cli_call *call);
status cli_config_check(const cli_call *call);
status cli_config_show(const cli_call *call);
status cli_version(const cli_call *call);

#endif
