/* A checkpoint in the shape that kernels want it.
 *
 * Tensors are packed straight from the mapped file, one weight at a time; what needs conversion to
 * bf16 is copied for the length of that weight. Vectors and tables are written into the backend's
 * memory, which the host can reach on every backend there is.
 *
 * Names: Hugging Face's Llama, plus self_attn.A and self_attn.delta.weight of NOSA
 * (arXiv 2510.13602) and self_attn.g_proj.weight of SSA (arXiv 2511.20102). Every tensor that the
 * configuration implies must be there in its shape; tensors that nothing asks for are refused too,
 * since ignoring a bias or an expert computes something else. */
#include "worker/model.h"

#include "worker/checkpoint.h"

#include <math.h>
#include <string.h>

/* What is released with the model. */
typedef struct model_owner {
    arena *arena;
    void **memory; /* from kern_alloc */
    uint32_t memory_count, memory_capacity;
} model_owner;

/* Passed through everything that reads a tensor. */
typedef struct loading {
    model *m;
    model_owner *owner;
    kern_stream *stream; /* of the copies into the backend's memory */
    const model_source *source;
    const checkpoint *file; /* NULL: the source is not a checkpoint */
    uint64_t done, total;
    model_progress progress;
    void *progress_self;
} loading;

/* ---- memory and progress --------------------------------------------------------------------- */

static status take_memory(loading *l, uint64_t bytes, void **out_memory)
{
    void *memory = NULL;
    CHECK(l->owner->memory_count < l->owner->memory_capacity);
    TRY(kern_alloc(l->m->backend, bytes, &memory));
    l->owner->memory[l->owner->memory_count++] = memory;
    l->m->weight_bytes += bytes;
    *out_memory = memory;
    return STATUS_OK;
}

static void report(loading *l, uint64_t bytes)
{
    l->done += bytes;
    if (l->progress) l->progress(l->progress_self, l->done, l->total);
}

/* ---- one tensor ------------------------------------------------------------------------------ */

/* A matrix [rows, columns], or a vector when columns is 0. */
static status read_tensor(loading *l, const char *name, uint32_t rows, uint32_t columns, arena *a,
                          const uint16_t **out_data)
{
    TRY(l->source->read(l->source->self, name, rows, columns, a, out_data));
    if (l->file) report(l, checkpoint_find(l->file, name)->bytes);
    return STATUS_OK;
}

/* model_source.read of a checkpoint. */
static status read_file(void *self, const char *name, uint32_t rows, uint32_t columns, arena *a,
                        const uint16_t **out_data)
{
    uint64_t shape[2] = {rows, columns};
    return checkpoint_bf16(self, name, shape, columns ? 2 : 1, a, out_data);
}

/* Into memory of the backend. */
static status load_plain(loading *l, const char *name, uint32_t rows, uint32_t columns,
                         uint16_t **out_data)
{
    arena *a = arena_create("tensor");
    const uint16_t *data = NULL;
    void *memory = NULL;
    uint64_t bytes = 2 * (uint64_t)rows * (columns ? columns : 1);
    status s = read_tensor(l, name, rows, columns, a, &data);
    if (s == STATUS_OK) s = take_memory(l, bytes, &memory);
    if (s == STATUS_OK) s = kern_copy(l->stream, memory, data, bytes);
    arena_destroy(a);
    if (s == STATUS_OK) *out_data = memory;
    return s;
}

enum { STACK_MAX = 3 };

/* Matrices of the same width, one under the other. */
typedef struct stacked {
    const char *name;
    uint32_t rows;
} stacked;

static status load_packed(loading *l, const stacked *parts, uint32_t count, uint32_t columns,
                          kern_weight **out_weight)
{
    CHECK(count >= 1 && count <= STACK_MAX);
    arena *a = arena_create("tensor");
    kern_matrix matrix[STACK_MAX];
    kern_weight *weight = NULL;
    status s = STATUS_OK;
    for (uint32_t i = 0; i < count && s == STATUS_OK; i++) {
        matrix[i].n = parts[i].rows;
        s = read_tensor(l, parts[i].name, parts[i].rows, columns, a, &matrix[i].data);
    }
    if (s == STATUS_OK) s = kern_weight_pack(l->m->backend, matrix, count, columns, &weight);
    arena_destroy(a);
    if (s != STATUS_OK) return s;
    l->m->weight_bytes += kern_weight_bytes(weight);
    *out_weight = weight;
    return STATUS_OK;
}

/* ---- the model ------------------------------------------------------------------------------- */

enum { NAME_BYTES = 96 };

static const char *layer_name(uint32_t layer, const char *name, char *out)
{
    (void)snprintf(out, NAME_BYTES, "model.layers.%u.%s", layer, name);
    return out;
}

/* g_proj has three rows a query head: of compression, selection and window (SSA's released models
 * share NSA's layout). Attention over a selection, full or sparse, uses the second; NSA all three,
 * which are packed branch after branch. */
static status load_gate(loading *l, uint32_t index)
{
    const model_config *c = &l->m->config;
    char name[NAME_BYTES];
    arena *a = arena_create("gate");
    const uint16_t *all = NULL;
    kern_weight *weight = NULL;
    status s = read_tensor(l, layer_name(index, "self_attn.g_proj.weight", name), 3 * c->heads,
                           c->hidden, a, &all);
    if (s == STATUS_OK) {
        bool nsa = c->sparse.kind == SELECTOR_NSA;
        uint32_t count = nsa ? 3 * c->heads : c->heads;
        uint16_t *rows = ARENA_NEW(a, uint16_t, (size_t)count * c->hidden);
        for (size_t i = 0; i < count; i++) {
            size_t branch = nsa ? i / c->heads : 1, h = i % c->heads;
            memcpy(rows + i * c->hidden, all + (3 * h + branch) * c->hidden,
                   c->hidden * sizeof *rows);
        }
        kern_matrix matrix = {rows, count};
        s = kern_weight_pack(l->m->backend, &matrix, 1, c->hidden, &weight);
    }
    arena_destroy(a);
    if (s != STATUS_OK) return s;
    l->m->weight_bytes += kern_weight_bytes(weight);
    l->m->layer[index].out_gate = weight;
    return STATUS_OK;
}

static status load_attention(loading *l, uint32_t index)
{
    const model_config *c = &l->m->config;
    model_layer *layer = &l->m->layer[index];
    char first[NAME_BYTES], second[NAME_BYTES], third[NAME_BYTES];
    uint32_t q_rows = c->heads * c->head_dim, kv_rows = c->kv_heads * c->head_dim;
    stacked qkv[3] = {{layer_name(index, "self_attn.q_proj.weight", first), q_rows},
                      {layer_name(index, "self_attn.k_proj.weight", second), kv_rows},
                      {layer_name(index, "self_attn.v_proj.weight", third), kv_rows}};
    TRY(load_packed(l, qkv, 3, c->hidden, &layer->qkv));
    stacked o = {layer_name(index, "self_attn.o_proj.weight", first), c->hidden};
    TRY(load_packed(l, &o, 1, q_rows, &layer->o));
    if (c->has_gate) TRY(load_gate(l, index));
    if (!c->has_importance) return STATUS_OK;
    TRY(load_plain(l, layer_name(index, "self_attn.A", first), c->kv_heads, 0, &layer->a));
    return load_plain(l, layer_name(index, "self_attn.delta.weight", first), c->kv_heads, kv_rows,
                      &layer->delta);
}

static status load_mlp(loading *l, uint32_t index)
{
    const model_config *c = &l->m->config;
    model_layer *layer = &l->m->layer[index];
    char first[NAME_BYTES], second[NAME_BYTES];
    stacked gate_up[2] = {{layer_name(index, "mlp.gate_proj.weight", first), c->ffn},
                          {layer_name(index, "mlp.up_proj.weight", second), c->ffn}};
    TRY(load_packed(l, gate_up, 2, c->hidden, &layer->gate_up));
    stacked down = {layer_name(index, "mlp.down_proj.weight", first), c->hidden};
    return load_packed(l, &down, 1, c->ffn, &layer->down);
}

static status load_layer(loading *l, uint32_t index)
{
    const model_config *c = &l->m->config;
    model_layer *layer = &l->m->layer[index];
    char name[NAME_BYTES];
    TRY(load_plain(l, layer_name(index, "input_layernorm.weight", name), c->hidden, 0,
                   &layer->input_norm));
    TRY(load_attention(l, index));
    TRY(load_plain(l, layer_name(index, "post_attention_layernorm.weight", name), c->hidden, 0,
                   &layer->post_norm));
    return load_mlp(l, index);
}

/* The embedding table, and the output matrix: the same again, packed, when tied. */
static status load_ends(loading *l)
{
    model *m = l->m;
    const model_config *c = &m->config;
    TRY(load_plain(l, "model.embed_tokens.weight", c->vocab, c->hidden, &m->embed));
    TRY(load_plain(l, "model.norm.weight", c->hidden, 0, &m->final_norm));
    if (!c->tied) {
        stacked head = {"lm_head.weight", c->vocab};
        return load_packed(l, &head, 1, c->hidden, &m->lm_head);
    }
    TRY(kern_stream_sync(l->stream)); /* the pack reads it where it is */
    kern_matrix table = {m->embed, c->vocab};
    TRY(kern_weight_pack(m->backend, &table, 1, c->hidden, &m->lm_head));
    m->weight_bytes += kern_weight_bytes(m->lm_head);
    return STATUS_OK;
}

static status make_rope(loading *l)
{
    model *m = l->m;
    uint32_t pairs = m->config.head_dim / 2;
    uint64_t bytes = (uint64_t)m->max_tokens * pairs * sizeof(float);
    double frequency[CONFIG_ROPE_PAIRS_MAX];
    void *cos_table = NULL, *sin_table = NULL;
    config_rope_frequencies(&m->config, m->max_tokens, frequency);
    TRY(take_memory(l, bytes, &cos_table));
    TRY(take_memory(l, bytes, &sin_table));
    m->cos = cos_table;
    m->sin = sin_table;
    double scale = m->config.rope.attention_factor;
    arena *a = arena_create("rope");
    float *cos_here = ARENA_NEW(a, float, (size_t)m->max_tokens *pairs);
    float *sin_here = ARENA_NEW(a, float, (size_t)m->max_tokens *pairs);
    for (uint64_t t = 0; t < m->max_tokens; t++) {
        for (uint32_t i = 0; i < pairs; i++) {
            double angle = (double)t * frequency[i];
            cos_here[t * pairs + i] = (float)(scale * cos(angle));
            sin_here[t * pairs + i] = (float)(scale * sin(angle));
        }
    }
    status s = kern_copy(l->stream, m->cos, cos_here, bytes);
    if (s == STATUS_OK) s = kern_copy(l->stream, m->sin, sin_here, bytes);
    arena_destroy(a);
    return s;
}

/* ---- what must not be there ------------------------------------------------------------------ */

/* Buffers that old checkpoints carry and nothing needs; the output matrix beside tied embeddings.
 */
static bool harmless(const model_config *c, const char *name)
{
    const char *last = strrchr(name, '.');
    if (c->tied && strcmp(name, "lm_head.weight") == 0) return true;
    return last && strcmp(last, ".inv_freq") == 0 && strstr(name, "rotary_emb");
}

static bool layer_tensor_known(const char *rest, bool importance, bool gate)
{
    if (gate && strcmp(rest, "self_attn.g_proj.weight") == 0) return true;
    static const char *const known[] = {
        "input_layernorm.weight",  "post_attention_layernorm.weight",
        "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight",
        "mlp.gate_proj.weight",    "mlp.up_proj.weight",
        "mlp.down_proj.weight",    "self_attn.A",
        "self_attn.delta.weight"};
    for (uint32_t i = 0; i < (importance ? 11u : 9u); i++)
        if (strcmp(rest, known[i]) == 0) return true;
    return false;
}

static bool tensor_known(const model_config *c, const char *name)
{
    if (strcmp(name, "model.embed_tokens.weight") == 0 || strcmp(name, "model.norm.weight") == 0 ||
        strcmp(name, "lm_head.weight") == 0 || harmless(c, name))
        return true;
    unsigned layer = 0;
    int end = 0;
    if (sscanf(name, "model.layers.%9u.%n", &layer, &end) != 1 || end == 0) return false;
    return layer < c->layers && layer_tensor_known(name + end, c->has_importance, c->has_gate);
}

static status check_unused(const loading *l)
{
    const model_config *c = &l->m->config;
    for (uint32_t i = 0; i < checkpoint_count(l->file); i++) {
        const tensor *t = checkpoint_at(l->file, i);
        if (!tensor_known(c, t->name))
            return FAIL(UNSUPPORTED, "%s: tensor %.120s is not part of a %s model of %u layers",
                        checkpoint_path(l->file, t->shard), t->name, c->family, c->layers);
    }
    return STATUS_OK;
}

/* ---- load and free --------------------------------------------------------------------------- */

static status load_tensors(loading *l)
{
    TRY(load_ends(l));
    for (uint32_t i = 0; i < l->m->config.layers; i++)
        TRY(load_layer(l, i));
    TRY(make_rope(l));
    return kern_stream_sync(l->stream);
}

static status load_all(loading *l)
{
    model *m = l->m;
    const model_config *c = &m->config;
    TRY(kern_stream_create(m->backend, &l->stream));
    status s = load_tensors(l);
    kern_stream_destroy(l->stream);
    if (s != STATUS_OK) return s;
    uint8_t stretched = config_rope_is_long(c, m->max_tokens); /* rotates stored keys differently */
    m->layout = (block_layout){.block_tokens = KERN_BLOCK,
                               .head_dim = c->head_dim,
                               .dtype_bytes = 2,
                               .layers = c->layers,
                               .kv_heads = c->kv_heads,
                               .model = bytes_digest(&stretched, 1, l->source->digest)};
    return STATUS_OK;
}

static model *model_new(kern_backend *backend, const model_config *config, uint32_t max_tokens)
{
    arena *a = arena_create("model");
    model *m = ARENA_NEW(a, model, 1);
    model_owner *owner = ARENA_NEW(a, model_owner, 1);
    owner->arena = a;
    owner->memory_capacity = 4 * config->layers + 8;
    owner->memory = ARENA_NEW(a, void *, owner->memory_capacity);
    m->config = *config;
    m->backend = backend;
    m->max_tokens = max_tokens;
    m->layer = ARENA_NEW(a, model_layer, config->layers);
    m->owner = owner;
    arena_seal(a);
    return m;
}

static uint64_t tensor_bytes(const checkpoint *file)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < checkpoint_count(file); i++)
        total += checkpoint_at(file, i)->bytes;
    return total;
}

static status check_tokens(const char *directory, const model_config *c, uint32_t max_tokens)
{
    if (max_tokens <= c->positions_max) return STATUS_OK;
    return FAIL(INVALID, "%s: %u tokens asked for, but \"max_position_embeddings\" is %u",
                directory, max_tokens, c->positions_max);
}

status model_load(kern_backend *backend, const char *directory, uint32_t max_tokens,
                  model_progress progress, void *progress_self, model **out_model)
{
    CHECK(backend && directory && out_model);
    model_config config;
    checkpoint *file = NULL;
    TRY(config_load(directory, &config));
    TRY(check_tokens(directory, &config, max_tokens));
    TRY(checkpoint_open(directory, &file));
    model *m = NULL;
    bool importance = checkpoint_find(file, "model.layers.0.self_attn.A") != NULL;
    config.has_gate = checkpoint_find(file, "model.layers.0.self_attn.g_proj.weight") != NULL;
    status s = config_settle(directory, importance, &config);
    if (s == STATUS_OK) {
        m = model_new(backend, &config, max_tokens ? max_tokens : config.positions_max);
        model_source source = {read_file, file, checkpoint_digest(file, config.digest)};
        loading l = {.m = m,
                     .owner = m->owner,
                     .source = &source,
                     .file = file,
                     .total = tensor_bytes(file),
                     .progress = progress,
                     .progress_self = progress_self};
        s = check_unused(&l);
        if (s == STATUS_OK) s = load_all(&l);
    }
    checkpoint_close(file);
    if (s != STATUS_OK) {
        model_free(m);
        return s;
    }
    *out_model = m;
    return STATUS_OK;
}

status model_make(kern_backend *backend, const model_config *config, uint32_t max_tokens,
                  const model_source *source, model **out_model)
{
    CHECK(backend && config && source && out_model);
    TRY(check_tokens("the model", config, max_tokens));
    model *m = model_new(backend, config, max_tokens ? max_tokens : config->positions_max);
    loading l = {.m = m, .owner = m->owner, .source = source};
    status s = load_all(&l);
    if (s != STATUS_OK) {
        model_free(m);
        return s;
    }
    *out_model = m;
    return STATUS_OK;
}

static void free_weight(kern_weight *weight)
{
    if (weight) kern_weight_free(weight);
}

void model_free(model *m)
{
    if (!m) return;
    model_owner *owner = m->owner;
    for (uint32_t i = 0; i < m->config.layers; i++) {
        free_weight(m->layer[i].qkv);
        free_weight(m->layer[i].o);
        free_weight(m->layer[i].out_gate);
        free_weight(m->layer[i].gate_up);
        free_weight(m->layer[i].down);
    }
    free_weight(m->lm_head);
    for (uint32_t i = 0; i < owner->memory_count; i++)
        kern_free(m->backend, owner->memory[i]);
    arena_destroy(owner->arena);
}
