/* cluster/knobs.h - every knob of the configuration file, as rows: what loads it also shows it.
 *
 * Threads: constant data.
 * Memory:  none. */
#ifndef CLUSTER_KNOBS_H
#define CLUSTER_KNOBS_H

#include "cluster/units.h"

typedef struct knob {
    const char *section; /* "" for the top level */
    const char *key;
    unit_kind kind;
    uint8_t bytes; /* of the member in cluster_config: 1 bool, 4 or 8; UNIT_TEXT: 1 a path, 0 as it
                      stands */
    uint32_t offset;      /* of the member */
    uint64_t least, most; /* UNIT_TEXT: characters */
    const char *meaning;
} knob;

enum { KNOB_STATE_DIR = 2, KNOB_COUNT = 32, KNOB_NODE_COUNT = 5, KNOB_LIMIT = 40 };
_Static_assert(KNOB_COUNT + KNOB_NODE_COUNT <= KNOB_LIMIT, "a person can still read all knobs");

extern const knob knobs[KNOB_COUNT];
/* The number a knob has in `config`. Not for UNIT_TEXT. */
uint64_t knob_get(const knob *k, const cluster_config *config);
/* The value as a person would write it. Returns `out`. */
const char *knob_print(const knob *k, const cluster_config *config, char out[256]);

#endif
