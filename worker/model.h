/* worker/model.h - weights of a checkpoint, packed for a backend, with its rotary tables.
 *
 * Flow:    checkpoint + config, or a source of made weights -> [model] -> engine.
 * Threads: immutable after model_load; any thread may read it.
 * Memory:  owned by the model; weights in the backend's memory. Outlives every engine that uses it.
 */
#ifndef WORKER_MODEL_H
#define WORKER_MODEL_H

#include "kernels/kernels.h"
#include "worker/config.h"

typedef struct model_layer {
    uint16_t *input_norm, *post_norm; /* [hidden] bf16 */
    kern_weight *qkv;                 /* [(Hq + 2 * Hk) * D, hidden]: q, k, v */
    kern_weight *o;                   /* [hidden, Hq * D] */
    kern_weight *gate_up;             /* [2 * ffn, hidden]: gate then up */
    kern_weight *down;                /* [hidden, ffn] */
    kern_weight *out_gate; /* [Hq, hidden] SSA's output gate, [3 * Hq, hidden] NSA's three
                            * (compressed, selected, sliding); NULL without one */
    uint16_t *a, *delta;   /* [Hk], [Hk, Hk * D] bf16; NULL without importance */
} model_layer;

typedef struct model {
    model_config config;
    kern_backend *backend; /* borrowed */
    model_layer *layer;    /* [layers] */
    uint16_t *embed;       /* [vocab, hidden] bf16 */
    uint16_t *final_norm;  /* [hidden] */
    kern_weight *lm_head;  /* [vocab, hidden]; packed from embed when tied */
    float *cos, *sin;      /* [max_tokens, D / 2], attention_factor included */
    uint32_t max_tokens;
    uint64_t weight_bytes; /* device memory taken */
    block_layout layout;   /* layout.model: digest of config and weights' headers */
    void *owner;           /* private */
} model;

/* directory: a Hugging Face directory. max_tokens: positions to prepare, 0: the configuration's.
 * progress may be NULL; done and total are bytes. Every failure names file and tensor or key. */
typedef void (*model_progress)(void *self, uint64_t done, uint64_t total);
status model_load(kern_backend *backend, const char *directory, uint32_t max_tokens,
                  model_progress progress, void *progress_self, model **out_model);

/* Where weights come from that are not on disk (benchmarks): a tensor by its Hugging Face name, row
 * major bf16 [rows, columns] (a vector: columns 0), in memory of `a`. */
typedef struct model_source {
    status (*read)(void *self, const char *name, uint32_t rows, uint32_t columns, arena *a,
                   const uint16_t **out_data);
    void *self;
    uint64_t digest; /* of all it gives, as checkpoint_digest is of files */
} model_source;
/* config: settled. The same model as model_load makes, tensor by tensor. */
status model_make(kern_backend *backend, const model_config *config, uint32_t max_tokens,
                  const model_source *source, model **out_model);
void model_free(model *m); /* NULL is fine */

#endif
