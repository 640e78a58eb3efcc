/* worker/config.h - config.json of a Hugging Face directory, as numbers a worker needs.
 *
 * Flow:    DIR/config.json, DIR/generation_config.json (optional) -> [config] -> model, CLI.
 * Threads: none; plain data.
 * Memory:  model_config holds everything by value.
 *
 * Families: Llama (LlamaForCausalLM) and MiniCPM (MiniCPMForCausalLM, with its three scales). Keys
 * that change the mathematics and are not implemented are refused by name; harmless keys are
 * ignored. Inside sparse_config an unknown key is refused: a selector that half fits would answer
 * wrongly without anyone noticing. */
#ifndef WORKER_CONFIG_H
#define WORKER_CONFIG_H

#include "kernels/kernels.h"

enum {
    CONFIG_EOS_MAX = 8,
    CONFIG_BUDGETS_MAX = 32,
    CONFIG_ROPE_PAIRS_MAX = 64, /* D / 2 */
};

typedef enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3, ROPE_LONGROPE } rope_kind;

typedef struct rope_config {
    rope_kind kind;
    double theta;
    double factor;                  /* linear, llama3 */
    double low_factor, high_factor; /* llama3: low_freq_factor, high_freq_factor */
    double attention_factor;        /* longrope: multiplies cos and sin; 1 for the others */
    uint32_t original_positions;    /* llama3, longrope */
    double short_factor[CONFIG_ROPE_PAIRS_MAX], long_factor[CONFIG_ROPE_PAIRS_MAX]; /* longrope */
} rope_config;

typedef enum selector_kind {
    SELECTOR_FULL,
    SELECTOR_NOSA,
    SELECTOR_INFLLMV2,
    SELECTOR_SSA,  /* SSA, arXiv 2511.20102, and MoBA as that paper has it */
    SELECTOR_MOBA, /* MoBA, arXiv 2502.13189: for each query head, plain products */
    SELECTOR_NSA,  /* NSA, arXiv 2502.11089, as the SSA paper trains it: three gated branches */
} selector_kind;

/* Blocks: first, before the current one, query picks with the forced ones, total. */
typedef struct budget_row {
    uint32_t init, local, query, total;
} budget_row;

typedef struct sparse_config {
    selector_kind kind; /* what the checkpoint was trained for; FULL: no selector of its own */
    uint32_t window, stride, block;
    budget_row row; /* the default */
    struct {
        uint32_t name; /* the N of --budget N */
        budget_row row;
    } budgets[CONFIG_BUDGETS_MAX];
    uint32_t budget_count; /* at least 1: the default row under its total */
    bool chunked;          /* SSA, NSA: top-k as the released kernel searches */
    uint32_t near;         /* NSA: tokens of the sliding window */
    uint32_t dense_len;    /* InfLLM-V2: read, reported, not applied */
    bool typed;            /* sparse_config names its type */
} sparse_config;

typedef struct model_config {
    char family[16]; /* "llama", "minicpm" */
    uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, positions_max;
    double norm_eps;
    bool tied; /* lm_head is the embedding table */
    double embed_scale, residual_scale, logit_scale;
    rope_config rope;
    sparse_config sparse;
    bool has_importance; /* the checkpoint has self_attn.A and self_attn.delta: config_settle */
    bool has_gate; /* it has self_attn.g_proj, gates of SSA or NSA: set before config_settle */
    int32_t bos;   /* -1: none */
    int32_t eos[CONFIG_EOS_MAX];
    uint32_t eos_count;
    uint64_t digest; /* XXH3-64 of config.json's bytes */
} model_config;

/* NOT_FOUND, INVALID, UNSUPPORTED, IO; the sentence names file and key. */
status config_load(const char *directory, model_config *out_config);
/* The same from bytes; generation may be NULL. `file` is named in sentences. */
status config_parse(const char *file, const char *text, size_t bytes, model_config *out_config);

/* What only the checkpoint knows. Without a sparse_config, or with one that names no type, NOSA is
 * taken where the checkpoint has importance (constants of the released models). INVALID: the
 * configuration says "nosa" and the checkpoint has no importance, or "ssa" or "nsa" and it has no
 * gate. */
status config_settle(const char *file, bool has_importance, model_config *config);

/* Radians a position, in double: frequencies[0 .. head_dim / 2). LongRoPE takes its long factors
 * when positions_used exceeds the original positions: one choice for the life of a worker, since
 * stored keys are rotated. */
void config_rope_frequencies(const model_config *config, uint32_t positions_used,
                             double *out_frequencies);
/* Whether that choice was "long": part of the model revision. */
bool config_rope_is_long(const model_config *config, uint32_t positions_used);

/* INVALID: total below the forced blocks, query picks below them and not 0, or above the total.
 * `what` begins the sentence. */
status budget_row_check(const char *what, const budget_row *row);

/* What a user says about selection. NULL members mean the default. */
typedef struct selector_choice {
    const char *name;   /* "nosa", "infllmv2", "full", "ssa", "ssa-chunked", "moba", "moba-group",
                         * "nsa", "nsa-chunked"; default: the checkpoint's own */
    const char *budget; /* "16", or "1,4,10,16": first, before the current, query picks, total. SSA,
                         * MoBA and NSA take any number */
    const char *source; /* "own", "mid", "input", "step" */
} selector_choice;

/* INVALID with a sentence: unknown name or source, an unlisted budget (the listed ones are named),
 * a budget below its forced blocks, InfLLM-V2 with a total other than its query picks, NOSA without
 * importance in the checkpoint, SSA without its gate, blocks or heads that do not fit. UNSUPPORTED:
 * NSA without its sliding window, another selector on a model of NSA. */
status model_selector(const model_config *config, const selector_choice *choice,
                      kern_selector *out_selector);
/* What to call it: the choice's name, or the model's own. */
const char *model_selector_name(const model_config *config, const selector_choice *choice);

#endif
