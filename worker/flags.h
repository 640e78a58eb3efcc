/* worker/flags.h - a command line as a table of flags, from which parsing and help both follow.
 *
 * Flow:    argv -> [flags_parse] -> a struct of the caller's, and which flags were given.
 * Threads: none; plain data.
 * Memory:  strings are argv's own.
 *
 * Values are checked for their form and range here; whether flags make sense together is the
 * caller's affair. */
#ifndef WORKER_FLAGS_H
#define WORKER_FLAGS_H

#include "proto/base.h"

typedef enum flag_type {
    FLAG_TYPE_TEXT,    /* const char * */
    FLAG_TYPE_WORD,    /* const char *, one of those that `value` lists: a|b|c */
    FLAG_TYPE_BYTES,   /* uint64_t, with a unit: 64MiB */
    FLAG_TYPE_WHOLE,   /* uint32_t */
    FLAG_TYPE_PERCENT, /* uint32_t: 25% */
    FLAG_TYPE_SEED,    /* uint64_t */
    FLAG_TYPE_REAL,    /* double */
    FLAG_TYPE_ON,      /* bool, takes no value */
} flag_type;

typedef struct flag_row {
    const char *name;  /* "--batch"; "-o" and "--format" may be two rows of one member */
    const char *value; /* its name in the help, or the words it takes; NULL: takes none */
    const char *help;
    size_t offset; /* of the member */
    flag_type type;
    double least, most; /* WHOLE, PERCENT, REAL */
} flag_row;

enum { FLAGS_MAX = 64 };

typedef struct flag_set {
    const flag_row *row;
    uint32_t count;
    bool given[FLAGS_MAX];
    bool help; /* --help or -h stood in the line; the rest was not looked at */
} flag_set;

/* The flag at argv[*at], and its value, which may be the next word: *at is moved over it. INVALID,
 * with one sentence. */
status flags_take(flag_set *set, char **argv, int *at, void *into);
/* All of them; argv[0] is the verb. No operands are known: a word that is no flag is refused. */
status flags_parse(flag_set *set, int argc, char **argv, void *into);
bool flags_given(const flag_set *set, const char *name);
void flags_help(const flag_set *set, FILE *to);

#endif
