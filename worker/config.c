/* config.json -> model_config.
 *
 * The order of a reader: family, dimensions, scales, rope, selector, ids. What is refused is what
 * would compute something else silently: biases, other activations, quantised weights, another
 * architecture, partial rotary embeddings.
 *
 * RoPE follows transformers' modeling_rope_utils (linear: arXiv 2306.15595; llama3: the Llama 3.1
 * release; LongRoPE: arXiv 2402.13753), in double. */
#include "worker/config.h"

#include "worker/json.h"

#include <math.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 4 << 20, ID_MAX = 1 << 24 };

static const uint32_t zero = 0;
static const bool no = false;

static status check_family(json_in in, model_config *c)
{
    const cJSON *list = json_get(in.object, "architectures");
    const cJSON *first = cJSON_IsArray(list) ? cJSON_GetArrayItem(list, 0) : NULL;
    const char *type = NULL;
    TRY(json_string(in, "model_type", "", &type));
    if (!first && type[0] == '\0')
        return FAIL(INVALID, "%s: the key \"architectures\" is missing", in.file);
    const char *name = first && cJSON_IsString(first) ? first->valuestring : "";
    if (first && !cJSON_IsString(first))
        return FAIL(INVALID, "%s: \"architectures\" must be a list of strings", in.file);
    bool llama = first ? strcmp(name, "LlamaForCausalLM") == 0 : strcmp(type, "llama") == 0;
    llama = llama || strcmp(type, "llama-nsa") == 0; /* SSA's: a Llama with g_proj */
    bool minicpm = first ? strcmp(name, "MiniCPMForCausalLM") == 0 : strcmp(type, "minicpm") == 0;
    if (!llama && !minicpm)
        return FAIL(UNSUPPORTED,
                    "%s: \"architectures\" names %.60s; LlamaForCausalLM and MiniCPMForCausalLM "
                    "are supported",
                    in.file, first ? name : type);
    memcpy(c->family, llama ? "llama" : "minicpm", llama ? 6 : 8);
    return STATUS_OK;
}

static status check_refused(json_in in)
{
    if (json_get(in.object, "quantization_config"))
        return FAIL(UNSUPPORTED, "%s: \"quantization_config\": quantised weights are not supported",
                    in.file);
    const char *act = NULL;
    TRY(json_string(in, "hidden_act", "silu", &act));
    if (strcmp(act, "silu") != 0)
        return FAIL(UNSUPPORTED, "%s: \"hidden_act\" is \"%.40s\"; only \"silu\" is supported",
                    in.file, act);
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    for (size_t i = 0; i < 2; i++) {
        bool bias;
        TRY(json_bool(in, biases[i], &no, &bias));
        if (bias)
            return FAIL(UNSUPPORTED,
                        "%s: \"%s\" is true; projections with a bias are not supported", in.file,
                        biases[i]);
    }
    double rotary, whole = 1;
    TRY(json_f64(in, "partial_rotary_factor", 0, 1, &whole, &rotary));
    if (rotary != 1)
        return FAIL(UNSUPPORTED, "%s: \"partial_rotary_factor\" is %g; only 1 is supported",
                    in.file, rotary);
    uint32_t experts;
    TRY(json_u32(in, "num_experts", 0, UINT32_MAX, &zero, &experts));
    if (experts > 0)
        return FAIL(UNSUPPORTED, "%s: \"num_experts\": mixtures of experts are not supported",
                    in.file);
    return STATUS_OK;
}

static status read_dimensions(json_in in, model_config *c)
{
    TRY(json_u32(in, "num_hidden_layers", 1, 1024, NULL, &c->layers));
    TRY(json_u32(in, "hidden_size", 1, 1 << 17, NULL, &c->hidden));
    TRY(json_u32(in, "intermediate_size", 1, 1 << 20, NULL, &c->ffn));
    TRY(json_u32(in, "num_attention_heads", 1, 1024, NULL, &c->heads));
    TRY(json_u32(in, "num_key_value_heads", 1, 1024, &c->heads, &c->kv_heads));
    TRY(json_u32(in, "vocab_size", 1, ID_MAX, NULL, &c->vocab));
    TRY(json_u32(in, "max_position_embeddings", 1, 1 << 24, NULL, &c->positions_max));
    if (c->heads % c->kv_heads != 0)
        return FAIL(
            INVALID,
            "%s: \"num_attention_heads\" %u is not a multiple of \"num_key_value_heads\" %u",
            in.file, c->heads, c->kv_heads);
    uint32_t share = c->hidden / c->heads;
    if (!json_get(in.object, "head_dim") && c->hidden % c->heads != 0)
        return FAIL(INVALID,
                    "%s: \"hidden_size\" %u is not a multiple of \"num_attention_heads\" %u",
                    in.file, c->hidden, c->heads);
    TRY(json_u32(in, "head_dim", 1, 1024, &share, &c->head_dim));
    if (c->head_dim != 64 && c->head_dim != 128)
        return FAIL(UNSUPPORTED, "%s: \"head_dim\" is %u; 64 and 128 are supported", in.file,
                    c->head_dim);
    double eps = 1e-6;
    TRY(json_f64(in, "rms_norm_eps", 0, 1, &eps, &c->norm_eps));
    bool tied = strcmp(c->family, "minicpm") == 0; /* the default of each family's class */
    return json_bool(in, "tie_word_embeddings", &tied, &c->tied);
}

/* MiniCPM (arXiv 2404.06395, §4): embeddings times scale_emb, each residual branch times
 * scale_depth / sqrt(layers), logits divided by hidden / dim_model_base. */
static status read_scales(json_in in, model_config *c)
{
    c->embed_scale = c->residual_scale = c->logit_scale = 1;
    if (strcmp(c->family, "minicpm") != 0) return STATUS_OK;
    double depth, none = 0, embed = 1;
    uint32_t base, mup;
    TRY(json_f64(in, "scale_emb", 1e-6, 1e6, &embed, &c->embed_scale));
    TRY(json_f64(in, "scale_depth", 0, 1e6, &none, &depth));
    if (depth > 0) c->residual_scale = depth / sqrt((double)c->layers);
    TRY(json_u32(in, "dim_model_base", 1, 1 << 17, &c->hidden, &base));
    c->logit_scale = (double)base / (double)c->hidden;
    TRY(json_u32(in, "mup_denominator", 1, 1024, &c->layers, &mup));
    if (mup != c->layers)
        return FAIL(
            UNSUPPORTED,
            "%s: \"mup_denominator\" %u differs from \"num_hidden_layers\" %u, as in a draft "
            "head; only whole models are supported",
            in.file, mup, c->layers);
    return STATUS_OK;
}

static status read_factors(json_in in, const char *key, uint32_t count, double *out)
{
    const cJSON *list = json_get(in.object, key);
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) != (int)count)
        return FAIL(INVALID, "%s: rope_scaling \"%s\" must be a list of %u numbers", in.file, key,
                    count);
    uint32_t i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, list)
    {
        if (!cJSON_IsNumber(item) || !(item->valuedouble > 0 && item->valuedouble < 1e9))
            return FAIL(INVALID,
                        "%s: rope_scaling \"%s\" holds something else than positive numbers",
                        in.file, key);
        out[i++] = item->valuedouble;
    }
    return STATUS_OK;
}

static status read_longrope(json_in in, json_in top, model_config *c)
{
    rope_config *r = &c->rope;
    TRY(read_factors(in, "short_factor", c->head_dim / 2, r->short_factor));
    TRY(read_factors(in, "long_factor", c->head_dim / 2, r->long_factor));
    uint32_t outer;
    TRY(json_u32(top, "original_max_position_embeddings", 1, 1 << 24, &c->positions_max, &outer));
    TRY(json_u32(in, "original_max_position_embeddings", 1, 1 << 24, &outer,
                 &r->original_positions));
    double stretch = (double)c->positions_max / (double)r->original_positions;
    TRY(json_f64(in, "factor", 1e-6, 1e6, &stretch, &stretch));
    double attention = 1;
    if (stretch > 1 && r->original_positions > 1)
        attention = sqrt(1 + log(stretch) / log((double)r->original_positions));
    return json_f64(in, "attention_factor", 1e-6, 1e6, &attention, &r->attention_factor);
}

static status read_rope(json_in top, model_config *c)
{
    rope_config *r = &c->rope;
    double theta = 10000;
    r->kind = ROPE_DEFAULT;
    r->attention_factor = r->factor = 1;
    TRY(json_f64(top, "rope_theta", 1, 1e12, &theta, &r->theta));
    const cJSON *object = json_get(top.object, "rope_scaling");
    if (!object) object = json_get(top.object, "rope_parameters"); /* transformers 5 */
    if (!object) return STATUS_OK;
    if (!cJSON_IsObject(object))
        return FAIL(INVALID, "%s: \"rope_scaling\" must be an object or null", top.file);
    json_in in = {.file = top.file, .object = object};
    const char *old = NULL, *name = NULL;
    TRY(json_string(in, "type", "default", &old));
    TRY(json_string(in, "rope_type", old, &name));
    TRY(json_f64(in, "rope_theta", 1, 1e12, &r->theta, &r->theta));
    if (strcmp(name, "default") == 0) return STATUS_OK;
    if (strcmp(name, "linear") == 0) {
        r->kind = ROPE_LINEAR;
        return json_f64(in, "factor", 1e-6, 1e6, NULL, &r->factor);
    }
    if (strcmp(name, "llama3") == 0) {
        r->kind = ROPE_LLAMA3;
        TRY(json_f64(in, "factor", 1e-6, 1e6, NULL, &r->factor));
        TRY(json_f64(in, "low_freq_factor", 1e-6, 1e6, NULL, &r->low_factor));
        TRY(json_f64(in, "high_freq_factor", 1e-6, 1e6, NULL, &r->high_factor));
        if (!(r->high_factor > r->low_factor))
            return FAIL(INVALID,
                        "%s: rope_scaling \"high_freq_factor\" must exceed "
                        "\"low_freq_factor\"",
                        in.file);
        return json_u32(in, "original_max_position_embeddings", 1, 1 << 24, NULL,
                        &r->original_positions);
    }
    if (strcmp(name, "longrope") == 0) {
        r->kind = ROPE_LONGROPE;
        return read_longrope(in, top, c);
    }
    return FAIL(
        UNSUPPORTED,
        "%s: rope_scaling type \"%.40s\"; default, linear, llama3 and longrope are supported",
        in.file, name);
}

bool config_rope_is_long(const model_config *config, uint32_t positions_used)
{
    return config->rope.kind == ROPE_LONGROPE && positions_used > config->rope.original_positions;
}

/* Llama 3.1: long wavelengths are divided by the factor, short ones kept, the band between blended.
 */
static double llama3_frequency(const rope_config *r, double f)
{
    double turns = (double)r->original_positions * f / (2 * M_PI);
    if (turns > r->high_factor) return f;
    if (turns < r->low_factor) return f / r->factor;
    double smooth = (turns - r->low_factor) / (r->high_factor - r->low_factor);
    return (1 - smooth) * f / r->factor + smooth * f;
}

void config_rope_frequencies(const model_config *config, uint32_t positions_used,
                             double *out_frequencies)
{
    const rope_config *r = &config->rope;
    uint32_t pairs = config->head_dim / 2;
    CHECK(pairs > 0 && pairs <= CONFIG_ROPE_PAIRS_MAX);
    const double *stretch =
        config_rope_is_long(config, positions_used) ? r->long_factor : r->short_factor;
    for (uint32_t i = 0; i < pairs; i++) {
        double f = pow(r->theta, -2.0 * i / config->head_dim);
        if (r->kind == ROPE_LINEAR) f /= r->factor;
        if (r->kind == ROPE_LLAMA3) f = llama3_frequency(r, f);
        if (r->kind == ROPE_LONGROPE) f /= stretch[i];
        out_frequencies[i] = f;
    }
}

/* An id or a list of ids. */
static status read_ids(json_in in, const char *key, uint32_t vocab, int32_t *out_ids,
                       uint32_t *out_count)
{
    const cJSON *item = json_get(in.object, key);
    if (!item) return STATUS_OK;
    bool list = cJSON_IsArray(item);
    int count = list ? cJSON_GetArraySize(item) : 1;
    if (count > CONFIG_EOS_MAX)
        return FAIL(UNSUPPORTED, "%s: \"%s\" lists more than %d ids", in.file, key, CONFIG_EOS_MAX);
    const cJSON *each = list ? item->child : item;
    for (int i = 0; i < count; i++, each = each->next) {
        uint64_t id;
        if (!json_whole(each, &id) || id >= vocab)
            return FAIL(INVALID, "%s: \"%s\" must be an id below \"vocab_size\" or a list of them",
                        in.file, key);
        out_ids[i] = (int32_t)id;
    }
    *out_count = (uint32_t)count;
    return STATUS_OK;
}

static status read_special(json_in in, model_config *c)
{
    int32_t bos[CONFIG_EOS_MAX] = {0};
    uint32_t count = 0;
    TRY(read_ids(in, "bos_token_id", c->vocab, bos, &count));
    if (count > 0) c->bos = bos[0];
    return read_ids(in, "eos_token_id", c->vocab, c->eos, &c->eos_count);
}

/* ---- sparse_config --------------------------------------------------------------------------- */

/* Constants of the released NOSA models (nosa class of thunlp/NOSA, arXiv 2510.13602): 1 first, 16
 * before the current one, 16 query picks beyond those, 64 in all. */
enum { NOSA_INIT = 1, NOSA_LOCAL = 16, NOSA_EXTRA = 16, NOSA_TOTAL = 64 };

static status check_sparse_keys(json_in in)
{
    static const char *const known[] = {
        "type",         "kernel_size",  "kernel_stride",  "block_size", "init_blocks",
        "local_blocks", "query_blocks", "topk",           "budgets",    "window_size",
        "use_nope",     "dense_len",    "select_variant", "compression"};
    const cJSON *item;
    cJSON_ArrayForEach(item, in.object)
    {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            found = found || strcmp(item->string, known[i]) == 0;
        if (!found)
            return FAIL(INVALID, "%s: sparse_config has the unknown key \"%.60s\"", in.file,
                        item->string);
    }
    bool nope;
    TRY(json_bool(in, "use_nope", &no, &nope));
    if (nope)
        return FAIL(UNSUPPORTED, "%s: sparse_config \"use_nope\" is true; only false is supported",
                    in.file);
    return STATUS_OK;
}

static status read_sparse_kind(json_in in, sparse_config *s)
{
    const char *type = NULL;
    TRY(json_string(in, "type", "", &type));
    s->typed = type[0] != '\0';
    bool nosa_keys = json_get(in.object, "local_blocks") || json_get(in.object, "query_blocks");
    if (strcmp(type, "nosa") == 0 || (!s->typed && nosa_keys))
        s->kind = SELECTOR_NOSA;
    else if (strcmp(type, "infllmv2") == 0 || !s->typed)
        s->kind = SELECTOR_INFLLMV2;
    else if (strcmp(type, "full") == 0)
        s->kind = SELECTOR_FULL;
    else if (strcmp(type, "ssa") == 0)
        s->kind = SELECTOR_SSA;
    else if (strcmp(type, "moba") == 0)
        s->kind = SELECTOR_MOBA;
    else if (strcmp(type, "nsa") == 0)
        s->kind = SELECTOR_NSA;
    else
        return FAIL(UNSUPPORTED,
                    "%s: sparse_config \"type\" is \"%.40s\"; nosa, infllmv2, ssa, moba, nsa and "
                    "full are supported",
                    in.file, type);
    if (s->kind != SELECTOR_NSA && json_get(in.object, "compression"))
        return FAIL(INVALID, "%s: sparse_config \"compression\" has a meaning for type nsa only",
                    in.file);
    return STATUS_OK;
}

static status check_geometry(const char *file, const sparse_config *s)
{
    bool large = s->kind == SELECTOR_MOBA && s->block % 128 == 0;
    if (s->block != 16 && s->block != 32 && s->block != 64 && s->block != 128 && !large)
        return FAIL(UNSUPPORTED,
                    "%s: sparse_config \"block_size\" is %u; 16, 32, 64 and 128 are "
                    "supported",
                    file, s->block);
    if (s->stride > s->window || s->block % s->stride != 0)
        return FAIL(INVALID,
                    "%s: sparse_config \"kernel_stride\" %u must divide \"block_size\" %u and not "
                    "exceed \"kernel_size\" %u",
                    file, s->stride, s->block, s->window);
    return STATUS_OK;
}

/* The default row under its total, unless the file lists that total itself: then it must agree. */
static status list_default(const char *file, sparse_config *s)
{
    for (uint32_t i = 0; i < s->budget_count; i++) {
        if (s->budgets[i].name != s->row.total) continue;
        if (memcmp(&s->budgets[i].row, &s->row, sizeof s->row) == 0) return STATUS_OK;
        return FAIL(INVALID, "%s: sparse_config budget \"%u\" differs from the default row", file,
                    s->row.total);
    }
    if (s->budget_count == CONFIG_BUDGETS_MAX)
        return FAIL(INVALID, "%s: sparse_config \"budgets\" lists too many rows", file);
    s->budgets[s->budget_count].name = s->row.total;
    s->budgets[s->budget_count++].row = s->row;
    return STATUS_OK;
}

/* What NSA adds to SSA: a sliding window, which has no default, blocks that are always selected,
 * and windows that may overlap. Its paper's learned compression has no weights in any checkpoint
 * that is known, so there is nothing to read it from. */
static status read_branches(json_in in, sparse_config *s)
{
    const char *compression = NULL;
    TRY(json_u32(in, "init_blocks", 0, 1 << 16, &zero, &s->row.init));
    TRY(json_u32(in, "local_blocks", 0, 1 << 16, &zero, &s->row.local));
    TRY(json_u32(in, "window_size", 1, 1 << 24, NULL, &s->near));
    TRY(json_string(in, "compression", "mean", &compression));
    if (strcmp(compression, "mean") != 0)
        return FAIL(UNSUPPORTED,
                    "%s: sparse_config \"compression\" is \"%.40s\"; only \"mean\", plain means of "
                    "keys and values, is supported",
                    in.file, compression);
    return STATUS_OK;
}

/* SSA, MoBA and NSA: means of whole blocks, nothing forced but the current block, all picks by
 * query. Defaults: 16 blocks of 16 tokens, MoBA 3 blocks of 512. */
static status read_blocks(json_in in, sparse_config *s)
{
    bool moba = s->kind == SELECTOR_MOBA, nsa = s->kind == SELECTOR_NSA;
    const char *type = moba ? "moba" : nsa ? "nsa" : "ssa";
    const uint32_t block = moba ? 512 : 16, total = moba ? 3 : 16;
    TRY(json_u32(in, "block_size", 1, 4096, &block, &s->block));
    const uint32_t window = s->block < KERN_KEY_RING ? s->block : KERN_KEY_RING;
    TRY(json_u32(in, "kernel_size", 1, KERN_KEY_RING, &window, &s->window));
    TRY(json_u32(in, "kernel_stride", 1, KERN_KEY_RING, &s->window, &s->stride));
    TRY(check_geometry(in.file, s));
    if (!nsa && (s->stride != s->window || (!moba && s->window != s->block)))
        return FAIL(
            INVALID,
            "%s: sparse_config of type %s takes means of whole blocks: \"kernel_size\" %u and "
            "\"kernel_stride\" %u do not fit \"block_size\" %u",
            in.file, type, s->window, s->stride, s->block);
    static const char *const none[] = {"budgets", "init_blocks", "local_blocks", "window_size"};
    for (size_t i = 0; i < (nsa ? 1u : 4u); i++)
        if (json_get(in.object, none[i]))
            return FAIL(INVALID, "%s: sparse_config \"%s\" has no meaning for type %s", in.file,
                        none[i], type);
    if (nsa) TRY(read_branches(in, s));
    TRY(json_u32(in, "topk", 1, 1 << 16, &total, &s->row.total));
    s->row.query = s->row.total;
    const char *variant = NULL;
    TRY(json_string(in, "select_variant", "exact", &variant));
    s->chunked = strcmp(variant, "chunked_half") == 0;
    if ((!s->chunked && strcmp(variant, "exact") != 0) || (s->chunked && moba))
        return FAIL(INVALID,
                    "%s: sparse_config \"select_variant\" is \"%.40s\": exact, or chunked_half for "
                    "ssa and nsa",
                    in.file, variant);
    if (s->chunked && s->row.init + s->row.local > 0)
        return FAIL(INVALID,
                    "%s: sparse_config \"init_blocks\" %u and \"local_blocks\" %u: chunked_half "
                    "forces none but the current block",
                    in.file, s->row.init, s->row.local);
    char what[512];
    (void)snprintf(what, sizeof what, "%.400s: sparse_config", in.file);
    TRY(budget_row_check(what, &s->row));
    if (s->chunked && s->row.total > s->block)
        return FAIL(INVALID,
                    "%s: sparse_config \"topk\" %u: chunked_half keeps at most \"block_size\" %u "
                    "blocks",
                    in.file, s->row.total, s->block);
    return STATUS_OK;
}

/* The keys of the SSA paper's models, which have no sparse_config (model_type llama-nsa):
 * block_size, block_counts, window_size, inference_mode. A window makes it NSA, which is always
 * sparse: made full, it computes nothing that it was trained for. */
static status read_llama_nsa(json_in top, sparse_config *s)
{
    const uint32_t sixteen = 16;
    const char *mode = NULL;
    TRY(json_u32(top, "block_size", 1, 4096, &sixteen, &s->block));
    TRY(json_u32(top, "block_counts", 1, 1 << 16, &sixteen, &s->row.total));
    TRY(json_u32(top, "window_size", 0, 1 << 24, &zero, &s->near));
    TRY(json_string(top, "inference_mode", "sparse", &mode));
    bool full = strcmp(mode, "full") == 0;
    if (!full && strcmp(mode, "sparse") != 0)
        return FAIL(INVALID, "%s: \"inference_mode\" is \"%.40s\": sparse or full", top.file, mode);
    if (full && s->near != 0)
        return FAIL(
            UNSUPPORTED,
            "%s: \"inference_mode\" is full beside a \"window_size\" of %u: a model of three "
            "branches (NSA) is always sparse",
            top.file, s->near);
    s->window = s->stride = s->block;
    TRY(check_geometry(top.file, s));
    s->kind = full ? SELECTOR_FULL : s->near != 0 ? SELECTOR_NSA : SELECTOR_SSA;
    s->row.query = s->row.total;
    s->typed = true;
    return list_default(top.file, s);
}

static status read_budgets(json_in in, sparse_config *s)
{
    const cJSON *map = json_get(in.object, "budgets");
    if (map && !cJSON_IsObject(map))
        return FAIL(INVALID, "%s: sparse_config \"budgets\" must be an object", in.file);
    const cJSON *item;
    cJSON_ArrayForEach(item, map)
    {
        char what[512];
        (void)snprintf(what, sizeof what, "%.400s: sparse_config budget \"%.12s\"", in.file,
                       item->string);
        uint64_t v[4] = {0};
        bool good = cJSON_IsArray(item) && cJSON_GetArraySize(item) == 4;
        const cJSON *number = good ? item->child : NULL;
        for (int i = 0; i < 4 && good; i++, number = number->next)
            good = json_whole(number, &v[i]) && v[i] <= 1 << 20;
        char name[16] = "";
        if (good) (void)snprintf(name, sizeof name, "%llu", (unsigned long long)v[3]);
        if (!good || strcmp(name, item->string) != 0)
            return FAIL(
                INVALID,
                "%s: %s must be four whole numbers: first, before the current, query picks, "
                "and a total equal to its name",
                in.file, what);
        if (s->budget_count == CONFIG_BUDGETS_MAX)
            return FAIL(INVALID, "%s: sparse_config \"budgets\" lists more than %d rows", in.file,
                        CONFIG_BUDGETS_MAX);
        budget_row row = {(uint32_t)v[0], (uint32_t)v[1], (uint32_t)v[2], (uint32_t)v[3]};
        TRY(budget_row_check(what, &row));
        s->budgets[s->budget_count].name = row.total;
        s->budgets[s->budget_count++].row = row;
    }
    return STATUS_OK;
}

static status read_sparse(json_in top, sparse_config *s)
{
    static const cJSON nothing = {.type = cJSON_Object};
    const cJSON *object = json_get(top.object, "sparse_config");
    if (object && !cJSON_IsObject(object))
        return FAIL(INVALID, "%s: \"sparse_config\" must be an object", top.file);
    json_in in = {.file = top.file, .object = object ? object : &nothing};
    const char *type = NULL;
    TRY(json_string(top, "model_type", "", &type));
    if (!object && strcmp(type, "llama-nsa") == 0) return read_llama_nsa(top, s);
    TRY(check_sparse_keys(in));
    TRY(read_sparse_kind(in, s));
    if (!object) s->kind = SELECTOR_FULL;
    if (s->kind == SELECTOR_SSA || s->kind == SELECTOR_MOBA || s->kind == SELECTOR_NSA) {
        TRY(read_blocks(in, s));
        return list_default(in.file, s);
    }
    const uint32_t window = 32, stride = 16, block = 64, init = NOSA_INIT, total = NOSA_TOTAL;
    TRY(json_u32(in, "kernel_size", 1, KERN_KEY_RING, &window, &s->window));
    TRY(json_u32(in, "kernel_stride", 1, KERN_KEY_RING, &stride, &s->stride));
    TRY(json_u32(in, "block_size", 1, 4096, &block, &s->block));
    TRY(check_geometry(in.file, s));
    TRY(json_u32(in, "init_blocks", 0, 1 << 16, &init, &s->row.init));
    TRY(json_u32(in, "topk", 1, 1 << 20, &total, &s->row.total));
    TRY(json_u32(in, "dense_len", 0, 1 << 30, &zero, &s->dense_len));
    uint32_t tokens = NOSA_LOCAL * s->block;
    TRY(json_u32(in, "window_size", 0, 1 << 24, &tokens, &tokens));
    if (tokens % s->block != 0)
        return FAIL(INVALID,
                    "%s: sparse_config \"window_size\" %u is not a multiple of \"block_size\"",
                    in.file, tokens);
    uint32_t local = tokens / s->block;
    TRY(json_u32(in, "local_blocks", 0, 1 << 16, &local, &s->row.local));
    uint32_t query =
        s->kind == SELECTOR_INFLLMV2 ? s->row.total : s->row.init + s->row.local + NOSA_EXTRA;
    if (query > s->row.total) query = s->row.total;
    TRY(json_u32(in, "query_blocks", 0, 1 << 20, &query, &s->row.query));
    if (s->kind == SELECTOR_INFLLMV2 && s->row.query != s->row.total)
        return FAIL(
            INVALID,
            "%s: sparse_config \"query_blocks\" %u differs from \"topk\" %u: InfLLM-V2 picks "
            "everything by query",
            in.file, s->row.query, s->row.total);
    char what[512];
    (void)snprintf(what, sizeof what, "%.400s: sparse_config", in.file);
    TRY(budget_row_check(what, &s->row));
    TRY(read_budgets(in, s));
    return list_default(in.file, s);
}

status config_settle(const char *file, bool has_importance, model_config *config)
{
    sparse_config *s = &config->sparse;
    config->has_importance = has_importance;
    if (s->kind == SELECTOR_NOSA && !has_importance)
        return FAIL(INVALID,
                    "%s: sparse_config is of type nosa, but the checkpoint has no "
                    "model.layers.0.self_attn.A",
                    file);
    if ((s->kind == SELECTOR_SSA || s->kind == SELECTOR_NSA) && !config->has_gate)
        return FAIL(INVALID,
                    "%s: sparse_config is of type %s, but the checkpoint has no "
                    "model.layers.0.self_attn.g_proj.weight",
                    file, s->kind == SELECTOR_SSA ? "ssa" : "nsa");
    if (!has_importance || s->typed || s->kind == SELECTOR_NOSA) return STATUS_OK;
    s->kind = SELECTOR_NOSA;
    uint32_t old = s->row.query;
    s->row.query = s->row.init + s->row.local + NOSA_EXTRA;
    if (s->row.query > s->row.total) s->row.query = s->row.total;
    for (uint32_t i = 0; i < s->budget_count; i++)
        if (s->budgets[i].name == s->row.total && s->budgets[i].row.query == old)
            s->budgets[i].row.query = s->row.query;
    return STATUS_OK;
}

/* ---- whole files ----------------------------------------------------------------------------- */

static status read_top(json_in in, model_config *c)
{
    TRY(check_family(in, c));
    TRY(check_refused(in));
    TRY(read_dimensions(in, c));
    TRY(read_scales(in, c));
    TRY(read_rope(in, c));
    TRY(read_sparse(in, &c->sparse));
    c->bos = -1;
    return read_special(in, c);
}

status config_parse(const char *file, const char *text, size_t bytes, model_config *out_config)
{
    CHECK(file && text && out_config);
    cJSON *tree = NULL;
    TRY(json_parse(file, text, bytes, &tree));
    model_config c = {.digest = bytes_digest(text, bytes, 0)};
    status s = STATUS_OK;
    if (!cJSON_IsObject(tree)) s = FAIL(INVALID, "%s: must hold a JSON object", file);
    if (s == STATUS_OK) s = read_top((json_in){.file = file, .object = tree}, &c);
    json_free(tree);
    if (s == STATUS_OK) *out_config = c;
    return s;
}

/* generation_config.json wins over config.json where it names ids, as in transformers. */
static status read_generation(const char *path, model_config *c)
{
    cJSON *tree = NULL;
    TRY(json_file_parse(path, CONFIG_BYTES_MAX, &tree));
    status s = read_special((json_in){.file = path, .object = tree}, c);
    json_free(tree);
    return s;
}

static status join(const char *directory, const char *name, char *out, size_t out_bytes)
{
    int n = snprintf(out, out_bytes, "%s/%s", directory, name);
    if (n < 0 || (size_t)n >= out_bytes) return FAIL(INVALID, "%.80s...: path too long", directory);
    return STATUS_OK;
}

static bool file_exists(const char *path)
{
    FILE *f = fopen(path, "rbe");
    if (f) (void)fclose(f);
    return f != NULL;
}

status config_load(const char *directory, model_config *out_config)
{
    CHECK(directory && out_config);
    char path[4096];
    TRY(join(directory, "config.json", path, sizeof path));
    arena *a = arena_create("config");
    char *text = NULL;
    size_t bytes = 0;
    model_config c;
    status s = json_file_read(path, CONFIG_BYTES_MAX, a, &text, &bytes);
    if (s == STATUS_OK) s = config_parse(path, text, bytes, &c);
    arena_destroy(a);
    if (s == STATUS_OK) s = join(directory, "generation_config.json", path, sizeof path);
    if (s == STATUS_OK && file_exists(path)) s = read_generation(path, &c);
    if (s == STATUS_OK) *out_config = c;
    return s;
}
