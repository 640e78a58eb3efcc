/* tests/tidy.h - the house rules that no compiler and no clang-tidy knows, checked over a tree.
 *
 * Threads: one. Memory: file contents and findings are the arena's. */
#ifndef TESTS_TIDY_H
#define TESTS_TIDY_H

#include "proto/base.h"

enum { TIDY_FINDINGS_MAX = 2000, TIDY_PATH_BYTES = 256, TIDY_TEXT_BYTES = 160 };

typedef struct tidy_finding {
    char file[TIDY_PATH_BYTES]; /* relative to the root */
    uint32_t line;              /* from 1; 0: the file as a whole */
    const char *rule;           /* include length function columns banned launch marker ... */
    char text[TIDY_TEXT_BYTES];
} tidy_finding;

typedef struct tidy_report {
    uint32_t count; /* of all; the first TIDY_FINDINGS_MAX are kept */
    uint32_t files;
    tidy_finding finding[TIDY_FINDINGS_MAX];
} tidy_report;

/* Check every source and text file below root, except hidden and build folders, and data. */
status tidy_tree(arena *a, const char *root, tidy_report *out_report);

#endif
