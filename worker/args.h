/* worker/args.h - what the command line of shoal-worker says.
 *
 * Flow:    argv -> [args_parse] -> args -> decode, eval.
 * Threads: none; plain data.
 * Memory:  strings are argv's own.
 *
 * Every value is checked here, before anything is opened; sizes need units. */
#ifndef WORKER_ARGS_H
#define WORKER_ARGS_H

#include "cluster/cluster.h"
#include "worker/config.h"

typedef enum args_verb { ARGS_DECODE = 1, ARGS_EVAL = 2 } args_verb;

typedef struct args {
    const char *input, *output;                /* output: decode only */
    const char *model, *cluster;               /* cluster NULL: all KV stays in this process */
    const char *selector, *budget, *lookahead; /* NULL: the checkpoint's default */
    const char *backend, *log_level;
    const char *task, *kind; /* eval: "text" or "keys"; "trained", "unseen" or NULL */
    const char *format;      /* as it was given; NULL: text */
    uint64_t device_pool_bytes, host_tier_bytes, hbm_bytes; /* UINT64_MAX: not given */
    uint64_t prompt_stage_bytes;
    uint32_t max_num_seqs, max_model_len, max_num_batched_tokens, park_quantum, victim_margin,
        threads;                         /* UINT32_MAX: not given */
    uint32_t guess;                      /* 0: none */
    uint32_t tokens, limit, decode_from; /* eval; UINT32_MAX: all */
    uint64_t seed;                       /* of request ids and jitter, never of tokens */
    bool json;                           /* what format comes to */
    bool two_batch, no_prefetch, no_overlap, no_late_merge, no_verify;
    bool overwrite, resume, deterministic, profile, quiet;
    bool help;
} args;

/* INVALID: one sentence has been logged. argv[0] is the verb. */
status args_parse(args_verb verb, int argc, char **argv, args *out_args);
void args_help(args_verb verb, FILE *to);
/* The flags that were given, over what the cluster file or its defaults say. */
void args_apply(const args *a, cluster_config *config);

#endif
