/* cluster/units.h - sizes and times as people write them, in both directions, without logging.
 *
 * Threads: pure functions.
 * Memory:  text goes into a buffer of the caller. */
#ifndef CLUSTER_UNITS_H
#define CLUSTER_UNITS_H

#include "cluster/cluster.h"

typedef enum unit_kind {
    UNIT_COUNT,
    UNIT_BYTES,
    UNIT_TIME,
    UNIT_PERCENT,
    UNIT_BOOL,
    UNIT_TEXT
} unit_kind;
enum { UNIT_TEXT_BYTES = 32 };

/* Reads `text` as a value of `kind` (not UNIT_TEXT). NULL when it was read; else what is wrong with
 * it and what would do, as the end of a sentence ("has no unit; write 64MiB, ..."). */
const char *unit_scan(unit_kind kind, const char *text, uint64_t *out_value);
/* Writes the value with the largest unit that keeps it exact: 67108864 as "64MiB". Returns `out`.
 */
const char *unit_print(unit_kind kind, uint64_t value, char out[UNIT_TEXT_BYTES]);

#endif
