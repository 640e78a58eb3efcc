/* config.json: what is understood, and one sentence for everything that would compute something
 * else. Selector rows from what a user says. */
#include "tests/worker/support.h"
#include "worker/config.h"

/* A small configuration with `extra` members at its end; extra begins with a comma. Later members
 * do not override earlier ones: a key that is tested is left out of `base`. */
#define DIMS                                                                                       \
    "\"num_hidden_layers\":4,\"hidden_size\":512,\"intermediate_size\":704,"                       \
    "\"num_attention_heads\":8,\"num_key_value_heads\":2,\"vocab_size\":4096,"                     \
    "\"max_position_embeddings\":16384"
#define LLAMA   "{\"architectures\":[\"LlamaForCausalLM\"]," DIMS
#define MINICPM "{\"architectures\":[\"MiniCPMForCausalLM\"]," DIMS

static status parse(const char *text, model_config *out)
{
    return config_parse("config.json", text, strlen(text), out);
}

static model_config good(const char *text)
{
    model_config c;
    EXPECT_OK(parse(text, &c));
    return c;
}

/* clang-format off */
static const struct { const char *text; status want; const char *sentence; } refused[] = {
    {"", STATUS_INVALID, "not valid JSON"},
    {"[]", STATUS_INVALID, "must hold a JSON object"},
    {"{", STATUS_INVALID, "not valid JSON"},
    {"{}", STATUS_INVALID, "\"architectures\" is missing"},
    {"{\"architectures\":[7]}", STATUS_INVALID, "list of strings"},
    {"{\"architectures\":[\"Qwen2ForCausalLM\"]," DIMS "}", STATUS_UNSUPPORTED, "names Qwen2ForCausalLM"},
    {"{\"model_type\":\"mamba\"," DIMS "}", STATUS_UNSUPPORTED, "names mamba"},
    {"{\"architectures\":[\"LlamaForCausalLM\"]}", STATUS_INVALID, "\"num_hidden_layers\" is missing"},
    {LLAMA ",\"hidden_size\":256}", STATUS_INVALID, "\"hidden_size\" appears twice"},
    {LLAMA ",\"hidden_act\":\"gelu\"}", STATUS_UNSUPPORTED, "\"hidden_act\" is \"gelu\""},
    {LLAMA ",\"hidden_act\":1}", STATUS_INVALID, "\"hidden_act\" must be a string"},
    {LLAMA ",\"attention_bias\":true}", STATUS_UNSUPPORTED, "\"attention_bias\" is true"},
    {LLAMA ",\"mlp_bias\":true}", STATUS_UNSUPPORTED, "\"mlp_bias\" is true"},
    {LLAMA ",\"mlp_bias\":\"no\"}", STATUS_INVALID, "\"mlp_bias\" must be true or false"},
    {LLAMA ",\"quantization_config\":{}}", STATUS_UNSUPPORTED, "\"quantization_config\""},
    {LLAMA ",\"partial_rotary_factor\":0.5}", STATUS_UNSUPPORTED, "\"partial_rotary_factor\" is 0.5"},
    {LLAMA ",\"num_experts\":8}", STATUS_UNSUPPORTED, "\"num_experts\""},
    {LLAMA ",\"head_dim\":96}", STATUS_UNSUPPORTED, "\"head_dim\" is 96"},
    {LLAMA ",\"head_dim\":0}", STATUS_INVALID, "\"head_dim\" must be a whole number from 1"},
    {LLAMA ",\"rms_norm_eps\":-1}", STATUS_INVALID, "\"rms_norm_eps\" must be a number"},
    {LLAMA ",\"rms_norm_eps\":1e999}", STATUS_INVALID, "\"rms_norm_eps\" must be a number"},
    {LLAMA ",\"rms_norm_eps\":NaN}", STATUS_INVALID, "not valid JSON"},
    {LLAMA ",\"tie_word_embeddings\":1}", STATUS_INVALID, "\"tie_word_embeddings\" must be true or false"},
    {LLAMA ",\"eos_token_id\":4096}", STATUS_INVALID, "\"eos_token_id\""},
    {LLAMA ",\"eos_token_id\":[1,-2]}", STATUS_INVALID, "\"eos_token_id\""},
    {LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", STATUS_UNSUPPORTED, "lists more than 8"},
    {LLAMA ",\"rope_theta\":0}", STATUS_INVALID, "\"rope_theta\""},
    {LLAMA ",\"rope_scaling\":4}", STATUS_INVALID, "\"rope_scaling\" must be an object"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"yarn\"}}", STATUS_UNSUPPORTED, "type \"yarn\""},
    {LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}}", STATUS_UNSUPPORTED, "type \"dynamic\""},
    {LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", STATUS_INVALID, "\"factor\" is missing"},
    {LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1}}", STATUS_INVALID, "\"high_freq_factor\" is missing"},
    {LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}", STATUS_INVALID, "must exceed"},
    {LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1],\"long_factor\":[1]}}", STATUS_INVALID, "\"short_factor\" must be a list of 32 numbers"},
    {MINICPM ",\"mup_denominator\":32}", STATUS_UNSUPPORTED, "\"mup_denominator\" 32 differs"},
    {MINICPM ",\"scale_emb\":\"12\"}", STATUS_INVALID, "\"scale_emb\" must be a number"},
    {MINICPM ",\"dim_model_base\":0}", STATUS_INVALID, "\"dim_model_base\""},
    /* sparse_config */
    {LLAMA ",\"sparse_config\":7}", STATUS_INVALID, "\"sparse_config\" must be an object"},
    {LLAMA ",\"sparse_config\":{\"gate\":1}}", STATUS_INVALID, "unknown key \"gate\""},
    {LLAMA ",\"sparse_config\":{\"Topk\":1}}", STATUS_INVALID, "unknown key \"Topk\""},
    {LLAMA ",\"sparse_config\":{\"type\":\"quest\"}}", STATUS_UNSUPPORTED, "\"type\" is \"quest\""},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\"}}", STATUS_INVALID, "\"window_size\" is missing"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":0}}", STATUS_INVALID, "\"window_size\" must be a whole number from 1"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"compression\":\"mlp\"}}", STATUS_UNSUPPORTED, "\"compression\" is \"mlp\"; only \"mean\""},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"local_blocks\":16}}", STATUS_INVALID, "16 blocks is below the 17 forced"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"init_blocks\":1,\"select_variant\":\"chunked_half\"}}", STATUS_INVALID, "chunked_half forces none but the current block"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"budgets\":{}}}", STATUS_INVALID, "\"budgets\" has no meaning for type nsa"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"window_size\":512}}", STATUS_INVALID, "\"window_size\" has no meaning for type ssa"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"compression\":\"mean\"}}", STATUS_INVALID, "\"compression\" has a meaning for type nsa only"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"kernel_size\":32}}", STATUS_INVALID, "not exceed \"kernel_size\" 32"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"block_size\":32,\"kernel_size\":16}}", STATUS_INVALID, "means of whole blocks"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"init_blocks\":1}}", STATUS_INVALID, "\"init_blocks\" has no meaning"},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"select_variant\":\"half\"}}", STATUS_INVALID, "\"select_variant\" is \"half\""},
    {LLAMA ",\"sparse_config\":{\"type\":\"ssa\",\"select_variant\":\"chunked_half\",\"topk\":17}}", STATUS_INVALID, "chunked_half keeps at most"},
    {LLAMA ",\"sparse_config\":{\"type\":\"moba\",\"block_size\":192}}", STATUS_UNSUPPORTED, "\"block_size\" is 192"},
    {"{\"model_type\":\"llama-nsa\"," DIMS ",\"window_size\":128,\"inference_mode\":\"full\"}", STATUS_UNSUPPORTED, "\"window_size\" of 128: a model of three branches (NSA) is always sparse"},
    {"{\"model_type\":\"llama-nsa\"," DIMS ",\"inference_mode\":\"half\"}", STATUS_INVALID, "\"inference_mode\" is \"half\""},
    {LLAMA ",\"sparse_config\":{\"use_nope\":true}}", STATUS_UNSUPPORTED, "\"use_nope\""},
    {LLAMA ",\"sparse_config\":{\"block_size\":48}}", STATUS_UNSUPPORTED, "\"block_size\" is 48"},
    {LLAMA ",\"sparse_config\":{\"kernel_size\":256}}", STATUS_INVALID, "\"kernel_size\" must be a whole number from 1 to 128"},
    {LLAMA ",\"sparse_config\":{\"kernel_stride\":24}}", STATUS_INVALID, "\"kernel_stride\" 24"},
    {LLAMA ",\"sparse_config\":{\"kernel_size\":8}}", STATUS_INVALID, "not exceed \"kernel_size\" 8"},
    {LLAMA ",\"sparse_config\":{\"window_size\":1000}}", STATUS_INVALID, "\"window_size\" 1000 is not a multiple"},
    {LLAMA ",\"sparse_config\":{\"topk\":17}}", STATUS_INVALID, "17 blocks is below the 18 forced"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nosa\",\"query_blocks\":65}}", STATUS_INVALID, "65 query picks exceed the total"},
    {LLAMA ",\"sparse_config\":{\"type\":\"nosa\",\"query_blocks\":17}}", STATUS_INVALID, "17 query picks are below the 18 forced"},
    {LLAMA ",\"sparse_config\":{\"type\":\"infllmv2\",\"query_blocks\":33}}", STATUS_INVALID, "InfLLM-V2 picks everything by query"},
    {LLAMA ",\"sparse_config\":{\"budgets\":[]}}", STATUS_INVALID, "\"budgets\" must be an object"},
    {LLAMA ",\"sparse_config\":{\"budgets\":{\"8\":[1,1,5]}}}", STATUS_INVALID, "must be four whole numbers"},
    {LLAMA ",\"sparse_config\":{\"budgets\":{\"8\":[1,1,5,9]}}}", STATUS_INVALID, "equal to its name"},
    {LLAMA ",\"sparse_config\":{\"budgets\":{\"small\":[1,1,5,8]}}}", STATUS_INVALID, "equal to its name"},
    {LLAMA ",\"sparse_config\":{\"budgets\":{\"8\":[1,8,0,8]}}}", STATUS_INVALID, "8 blocks is below the 10 forced"},
    {LLAMA ",\"sparse_config\":{\"budgets\":{\"64\":[1,4,33,64]}}}", STATUS_INVALID, "differs from the default row"},
};
/* clang-format on */

TEST(what_would_compute_something_else_is_refused_by_name)
{
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        model_config c;
        status s = parse(refused[i].text, &c);
        EXPECT_MSG(s == refused[i].want, "case %zu (%s): %s (%s)", i, refused[i].text,
                   status_name(s), log_last_error());
        EXPECT_HAS_STR(log_last_error(), refused[i].sentence);
        EXPECT_HAS_STR(log_last_error(), "config.json");
    }
}

TEST(required_keys_are_named_when_missing_and_dimensions_must_divide)
{
    model_config c;
    EXPECT_STATUS(parse("{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":130,"
                        "\"intermediate_size\":1,\"num_attention_heads\":4,\"vocab_size\":9,"
                        "\"max_position_embeddings\":8}",
                        &c),
                  STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "\"hidden_size\" 130 is not a multiple");
    EXPECT_STATUS(parse("{\"model_type\":\"llama\",\"num_hidden_layers\":1,\"hidden_size\":256,"
                        "\"intermediate_size\":1,\"num_attention_heads\":4,"
                        "\"num_key_value_heads\":3,\"vocab_size\":9,"
                        "\"max_position_embeddings\":8}",
                        &c),
                  STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "not a multiple of \"num_key_value_heads\" 3");
}

TEST(defaults_are_the_family_s_and_unknown_keys_are_ignored)
{
    model_config c = good(LLAMA ",\"flux_capacitor\":{\"a\":[1,2]},\"bos_token_id\":null}");
    EXPECT(c.head_dim == 64 && c.kv_heads == 2 && !c.tied && c.bos == -1 && c.eos_count == 0);
    EXPECT(c.norm_eps == 1e-6 && c.rope.theta == 10000 && c.rope.kind == ROPE_DEFAULT);
    EXPECT(c.embed_scale == 1 && c.residual_scale == 1 && c.logit_scale == 1);
    EXPECT(c.sparse.kind == SELECTOR_FULL && !c.has_importance);
    c = good(MINICPM "}");
    EXPECT(c.tied && c.embed_scale == 1 && c.residual_scale == 1 && c.logit_scale == 1);
    c = good("{\"model_type\":\"llama\"," DIMS ",\"eos_token_id\":[3,5],\"bos_token_id\":1}");
    EXPECT(c.bos == 1 && c.eos_count == 2 && c.eos[0] == 3 && c.eos[1] == 5);
}

TEST(minicpm_scales_follow_its_paper_and_llama_ignores_them)
{
    const char *scales = ",\"scale_emb\":12,\"scale_depth\":1.4,\"dim_model_base\":256,"
                         "\"mup_denominator\":4}";
    char text[1024];
    snprintf(text, sizeof text, "%s%s", MINICPM, scales);
    model_config c = good(text);
    EXPECT_NEAR(c.embed_scale, 12, 0);
    EXPECT_NEAR(c.residual_scale, 0.7, 1e-15);
    EXPECT_NEAR(c.logit_scale, 0.5, 0);
    snprintf(text, sizeof text, "%s%s", LLAMA, scales);
    c = good(text);
    EXPECT(c.embed_scale == 1 && c.residual_scale == 1 && c.logit_scale == 1);
}

/* ---- rope ------------------------------------------------------------------------------------ */

TEST(rope_frequencies_follow_their_definitions)
{
    double f[CONFIG_ROPE_PAIRS_MAX];
    model_config c = good(LLAMA ",\"rope_theta\":100000}");
    config_rope_frequencies(&c, 100, f);
    for (int i = 0; i < 32; i++)
        EXPECT_NEAR(f[i], exp(-log(100000.0) * i / 32), 1e-15);
    c = good(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}");
    config_rope_frequencies(&c, 100, f);
    EXPECT_NEAR(f[0], 0.25, 0);
    EXPECT_NEAR(f[16], 0.0025, 1e-17);
    c = good(LLAMA
             ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":81}}");
    config_rope_frequencies(&c, 100, f);
    EXPECT_NEAR(f[8], 1 / 3.0 / 2, 1e-15);
}

/* Of transformers 5 for the same numbers: _compute_llama3_parameters is a pure function of these.
 */
TEST(llama3_rope_keeps_short_waves_divides_long_ones_and_blends_between)
{
    double f[CONFIG_ROPE_PAIRS_MAX];
    model_config c = good(LLAMA ",\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"llama3\","
                                "\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,"
                                "\"original_max_position_embeddings\":8192}}");
    config_rope_frequencies(&c, 100, f);
    int kept = 0, divided = 0, blended = 0;
    for (int i = 0; i < 32; i++) {
        double plain = exp(-log(500000.0) * i / 32), turns = 8192 * plain / (2 * M_PI);
        if (turns > 4) kept += fabs(f[i] - plain) < 1e-15;
        if (turns < 1) divided += fabs(f[i] - plain / 8) < 1e-15;
        if (turns >= 1 && turns <= 4) blended += f[i] > plain / 8 && f[i] < plain;
    }
    EXPECT_MSG(kept + divided + blended == 32 && kept > 4 && divided > 4 && blended > 1,
               "%d kept, %d divided, %d blended", kept, divided, blended);
}

TEST(longrope_takes_its_long_factors_beyond_the_original_positions)
{
    char text[4096], list[512] = "";
    for (int i = 0; i < 32; i++)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", i ? "," : "", i + 1);
    snprintf(text, sizeof text,
             "%s,\"original_max_position_embeddings\":1024,\"rope_scaling\":{\"type\":\"longrope\","
             "\"short_factor\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"
             "\"long_factor\":[%s]}}",
             LLAMA, list);
    model_config c = good(text);
    double s[CONFIG_ROPE_PAIRS_MAX], l[CONFIG_ROPE_PAIRS_MAX];
    EXPECT(!config_rope_is_long(&c, 1024) && config_rope_is_long(&c, 1025));
    config_rope_frequencies(&c, 1024, s);
    config_rope_frequencies(&c, 16384, l);
    for (int i = 0; i < 32; i++)
        EXPECT_NEAR(s[i], l[i] * (i + 1), 1e-15);
    EXPECT_NEAR(c.rope.attention_factor, sqrt(1 + log(16.0) / log(1024.0)), 1e-15);
}

/* ---- directories ----------------------------------------------------------------------------- */

TEST(generation_config_names_the_ids_and_may_be_absent)
{
    model_config c;
    const char *config = LLAMA ",\"eos_token_id\":2,\"bos_token_id\":1}";
    EXPECT_STATUS(config_load(test_dir(), &c), STATUS_NOT_FOUND);
    EXPECT_HAS_STR(log_last_error(), "config.json: no such file");
    support_write("config.json", config, strlen(config));
    EXPECT_OK(config_load(test_dir(), &c));
    EXPECT(c.eos_count == 1 && c.eos[0] == 2);
    support_write("generation_config.json", "{\"eos_token_id\":[7,8]}", 22);
    EXPECT_OK(config_load(test_dir(), &c));
    EXPECT(c.eos_count == 2 && c.eos[0] == 7 && c.bos == 1);
    support_write("generation_config.json", "{\"temperature\":0.5}", 19);
    EXPECT_OK(config_load(test_dir(), &c));
    EXPECT(c.eos_count == 1 && c.eos[0] == 2);
    support_write("generation_config.json", "{\"eos_token_id\":5000}", 21);
    EXPECT_STATUS(config_load(test_dir(), &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "generation_config.json: \"eos_token_id\"");
}

TEST(the_digest_is_of_the_bytes)
{
    EXPECT(good(LLAMA "}").digest == good(LLAMA "}").digest);
    EXPECT(good(LLAMA "}").digest != good(LLAMA " }").digest);
}

/* ---- selectors ------------------------------------------------------------------------------- */

static model_config small_model(void)
{
    model_config c;
    EXPECT_OK(config_load(TEST_SOURCE_DIR "/worker/small-model", &c));
    EXPECT_OK(config_settle("config.json", true, &c));
    return c;
}

/* clang-format off */
static const struct { const char *name, *budget, *source; uint32_t row[4]; bool fill; kern_source from; } rows[] = {
    {NULL, NULL, NULL, {1, 4, 10, 16}, true, SOURCE_OWN},
    {"nosa", "16", "own", {1, 4, 10, 16}, true, SOURCE_OWN},
    {"nosa", "8", "mid", {1, 1, 5, 8}, true, SOURCE_MID},
    {"nosa", "12", "input", {1, 3, 8, 12}, true, SOURCE_INPUT},
    {"nosa", "24", "step", {1, 7, 15, 24}, true, SOURCE_STEP},
    {"nosa", "32", NULL, {1, 9, 19, 32}, true, SOURCE_OWN},
    {"nosa", "1,4,10,16", NULL, {1, 4, 10, 16}, true, SOURCE_OWN},
    {"nosa", "1,14,0,16", NULL, {1, 14, 0, 16}, true, SOURCE_OWN},
    {"nosa", "1,4,16,16", NULL, {1, 4, 16, 16}, true, SOURCE_OWN},
    {"nosa", "1,4,6,16", NULL, {1, 4, 6, 16}, true, SOURCE_OWN},
    {"nosa", "0,0,1,1", NULL, {0, 0, 1, 1}, true, SOURCE_OWN},
    {"infllmv2", "16", NULL, {1, 4, 16, 16}, false, SOURCE_OWN},
    {"infllmv2", "1,4,20,20", "mid", {1, 4, 20, 20}, false, SOURCE_MID},
};
static const struct { const char *name, *budget, *source, *sentence; } wrong[] = {
    {"mamba", NULL, NULL, "selector \"mamba\": nosa, infllmv2, full, ssa, ssa-chunked, moba, moba-group, nsa and nsa-chunked are known"},
    {"ssa", NULL, NULL, "selector ssa takes means of whole blocks, and this model's are of 32 keys every 16"},
    {"moba", NULL, NULL, "selector moba takes means of whole blocks"},
    {"", NULL, NULL, "selector \"\""},
    {"nosa", NULL, "tomorrow", "own, mid, input and step are known"},
    {"nosa", "20", NULL, "budget 20 is not listed by this model (listed: 8, 12, 16, 24, 32)"},
    {"nosa", "", NULL, "one number or four with commas"},
    {"nosa", "sixteen", NULL, "one number or four with commas"},
    {"nosa", "1,4,10", NULL, "one number or four with commas"},
    {"nosa", "1,4,10,16,3", NULL, "one number or four with commas"},
    {"nosa", "1,4,10,", NULL, "one number or four with commas"},
    {"nosa", "-1,4,10,16", NULL, "one number or four with commas"},
    {"nosa", " 16", NULL, "one number or four with commas"},
    {"nosa", "16 ", NULL, "one number or four with commas"},
    {"nosa", "99999999999999999999", NULL, "one number or four with commas"},
    {"nosa", "1,4,10,5", NULL, "total of 5 blocks is below the 6 forced ones"},
    {"nosa", "1,14,15,16", NULL, "15 query picks are below the 16 forced"},
    {"nosa", "1,4,17,16", NULL, "17 query picks exceed the total of 16"},
    {"infllmv2", "1,4,10,16", NULL, "the third number, 10, must equal the fourth, 16"},
    {"full", "16", NULL, "full takes no budget"},
};
/* clang-format on */

TEST(what_a_user_says_becomes_a_selector_row)
{
    model_config c = small_model();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        kern_selector s;
        selector_choice choice = {rows[i].name, rows[i].budget, rows[i].source};
        EXPECT_OK(model_selector(&c, &choice, &s));
        EXPECT_MSG(s.init == rows[i].row[0] && s.local == rows[i].row[1] &&
                       s.query == rows[i].row[2] && s.total == rows[i].row[3],
                   "row %zu: %u,%u,%u,%u", i, s.init, s.local, s.query, s.total);
        EXPECT(s.fill_by_importance == rows[i].fill && s.bias == rows[i].fill);
        EXPECT(s.source == rows[i].from);
        EXPECT(s.window == 32 && s.stride == 16 && s.block == 64);
    }
}

TEST(ssa_and_moba_take_any_number_of_blocks_where_the_model_has_what_they_need)
{
    model_config c = good("{\"model_type\":\"llama-nsa\"," DIMS ",\"block_size\":16,"
                          "\"block_counts\":8,\"window_size\":0,\"inference_mode\":\"sparse\"}");
    kern_selector s;
    EXPECT_STATUS(config_settle("config.json", false, &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "no model.layers.0.self_attn.g_proj.weight");
    EXPECT_STATUS(model_selector(&c, &(selector_choice){0}, &s), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "selector ssa needs the output gate");
    c.has_gate = true;
    EXPECT_OK(config_settle("config.json", false, &c));
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.window == 16 && s.stride == 16 && s.block == 16 && s.init == 0 && s.local == 0);
    EXPECT(s.query == 8 && s.total == 8 && s.chunk == 0 && !s.bias && !s.fill_by_importance);
    EXPECT_OK(model_selector(&c, &(selector_choice){.name = "ssa", .budget = "37"}, &s));
    EXPECT(s.query == 37 && s.total == 37 && !s.raw);
    EXPECT_OK(model_selector(&c, &(selector_choice){.name = "ssa-chunked", .budget = "16"}, &s));
    EXPECT(s.query == 16 && s.chunk == 16);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "ssa-chunked", .budget = "17"}, &s),
                  STATUS_INVALID);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "ssa", .budget = "0"}, &s),
                  STATUS_INVALID);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "ssa", .budget = "1,0,8,8"}, &s),
                  STATUS_INVALID);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "moba"}, &s), STATUS_UNSUPPORTED);
    EXPECT_HAS_STR(log_last_error(), "for each query head");
    c = good("{\"model_type\":\"llama-nsa\"," DIMS ",\"inference_mode\":\"full\"}");
    EXPECT(c.sparse.kind == SELECTOR_FULL && c.sparse.block == 16 && c.sparse.row.total == 16);
    c = good(LLAMA ",\"sparse_config\":{\"type\":\"moba\"}}");
    EXPECT(c.sparse.block == 512 && c.sparse.window == 128 && c.sparse.row.total == 3);
    c.kv_heads = c.heads;
    EXPECT_OK(model_selector(&c, &(selector_choice){.name = NULL, .budget = "12"}, &s));
    EXPECT(s.raw && s.block == 512 && s.total == 12);
}

TEST(nsa_is_what_a_window_makes_of_ssa_and_nothing_else_runs_on_its_models)
{
    static const char *const others[] = {"full", "ssa", "ssa-chunked", "moba-group", "infllmv2"};
    model_config c = good("{\"model_type\":\"llama-nsa\"," DIMS ",\"block_size\":16,"
                          "\"block_counts\":8,\"window_size\":100,\"inference_mode\":\"sparse\"}");
    kern_selector s;
    EXPECT_STATUS(config_settle("config.json", false, &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "of type nsa, but the checkpoint has no");
    c.has_gate = true;
    EXPECT_OK(config_settle("config.json", false, &c));
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.near == 100 && s.query == 8 && s.total == 8 && s.block == 16 && s.window == 16);
    EXPECT(s.init == 0 && s.local == 0 && s.chunk == 0 && !s.bias && !s.fill_by_importance);
    EXPECT_EQ_STR(model_selector_name(&c, &(selector_choice){0}), "nsa");
    EXPECT_OK(model_selector(&c, &(selector_choice){"nsa", "37", "mid"}, &s));
    EXPECT(s.near == 100 && s.total == 37 && s.source == SOURCE_MID);
    EXPECT_OK(model_selector(&c, &(selector_choice){"nsa-chunked", "16", NULL}, &s));
    EXPECT(s.near == 100 && s.chunk == 16);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){"nsa-chunked", "17", NULL}, &s),
                  STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "selector nsa-chunked keeps at most");
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = others[i]}, &s),
                      STATUS_UNSUPPORTED);
        EXPECT_HAS_STR(log_last_error(), "trained with three gated branches");
        EXPECT_HAS_STR(log_last_error(), others[i]);
    }
    c = good(LLAMA ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"block_size\":32,"
                   "\"compression\":\"mean\",\"select_variant\":\"chunked_half\"}}");
    c.has_gate = true;
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.near == 512 && s.block == 32 && s.window == 32 && s.total == 16 && s.chunk == 32);
    EXPECT_EQ_STR(model_selector_name(&c, &(selector_choice){0}), "nsa-chunked");
    c = good(LLAMA
             ",\"sparse_config\":{\"type\":\"nsa\",\"window_size\":512,\"block_size\":64,"
             "\"kernel_size\":32,\"kernel_stride\":16,\"init_blocks\":1,\"local_blocks\":1}}");
    c.has_gate = true;
    EXPECT_OK(model_selector(&c, &(selector_choice){.name = "nsa", .budget = "9"}, &s));
    EXPECT(s.window == 32 && s.stride == 16 && s.block == 64 && s.init == 1 && s.local == 1);
    EXPECT(s.query == 9 && s.total == 9);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "nsa", .budget = "2"}, &s),
                  STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "must be a number from 3 to 65536");
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "nsa-chunked"}, &s),
                  STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "this model's other 2 too");
    c = good("{\"model_type\":\"llama-nsa\"," DIMS "}");
    c.has_gate = true;
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "nsa"}, &s), STATUS_UNSUPPORTED);
    EXPECT_HAS_STR(log_last_error(),
                   "selector nsa needs a model trained with three gated branches");
}

TEST(what_does_not_fit_is_refused_with_one_sentence)
{
    model_config c = small_model();
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        kern_selector s;
        selector_choice choice = {wrong[i].name, wrong[i].budget, wrong[i].source};
        EXPECT_STATUS(model_selector(&c, &choice, &s), STATUS_INVALID);
        EXPECT_HAS_STR(log_last_error(), wrong[i].sentence);
    }
}

TEST(full_attends_to_everything_with_the_bias_where_there_is_one)
{
    kern_selector s;
    selector_choice full = {.name = "full", .source = "mid"};
    model_config c = small_model();
    EXPECT_OK(model_selector(&c, &full, &s));
    EXPECT(s.total == UINT32_MAX && s.query == 0 && s.bias && s.source == SOURCE_OWN);
    c = good(LLAMA "}");
    EXPECT_OK(config_settle("config.json", false, &c));
    EXPECT_OK(model_selector(&c, &full, &s));
    EXPECT(s.total == UINT32_MAX && !s.bias);
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.total == UINT32_MAX);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.name = "nosa"}, &s), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "no model.layers.0.self_attn.A");
    EXPECT_OK(model_selector(&c, &(selector_choice){.name = "infllmv2"}, &s));
    EXPECT(s.init == 1 && s.local == 16 && s.query == 64 && s.total == 64);
}

TEST(without_a_sparse_config_nosa_s_constants_hold)
{
    kern_selector s;
    model_config c = good(LLAMA "}");
    EXPECT_OK(config_settle("config.json", true, &c));
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.init == 1 && s.local == 16 && s.query == 33 && s.total == 64 && s.bias);
    EXPECT_OK(model_selector(&c, &(selector_choice){.budget = "64"}, &s));
    EXPECT(s.query == 33);
    EXPECT_STATUS(model_selector(&c, &(selector_choice){.budget = "16"}, &s), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "(listed: 64)");
}

/* The dictionary of the InfLLM-V2 models, and the same in a checkpoint that has importance. */
TEST(infllmv2_s_keys_give_its_row_and_nosa_s_when_there_is_importance)
{
    const char *text = MINICPM ",\"sparse_config\":{\"kernel_size\":32,\"kernel_stride\":16,"
                               "\"init_blocks\":1,\"block_size\":64,\"window_size\":2048,"
                               "\"topk\":64,\"use_nope\":false,\"dense_len\":8192}}";
    kern_selector s;
    model_config c = good(text);
    EXPECT_OK(config_settle("config.json", false, &c));
    EXPECT(c.sparse.kind == SELECTOR_INFLLMV2 && c.sparse.dense_len == 8192);
    EXPECT_OK(model_selector(&c, &(selector_choice){0}, &s));
    EXPECT(s.local == 32 && s.query == 64 && s.total == 64 && !s.fill_by_importance && !s.bias);
    c = good(text);
    EXPECT_OK(config_settle("config.json", true, &c));
    EXPECT_OK(model_selector(&c, &(selector_choice){.budget = "64"}, &s));
    EXPECT(s.local == 32 && s.query == 49 && s.total == 64 && s.fill_by_importance && s.bias);
}

TEST(a_nosa_configuration_without_importance_in_the_checkpoint_is_invalid)
{
    model_config c;
    EXPECT_OK(config_load(TEST_SOURCE_DIR "/worker/small-model", &c));
    EXPECT_STATUS(config_settle("DIR", false, &c), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "the checkpoint has no model.layers.0.self_attn.A");
}

TEST_MAIN()
