/* The engine over an in-process store: the same bits from everywhere, and clear ends when the store
 * cannot do its part. The fault matrix with real processes is tests/e2e. */
#include "tests/test.h"
#include "tests/worker/run.h"

#include <stdlib.h>

enum { PROMPT = 1700, NEW = 90 };
enum { LONG = 340 }; /* new tokens that last until puts have been given up, on a fast device too */

/* Tokens that look like text to the model: a walk through its vocabulary with repeats. */
static const int32_t *prompt(void)
{
    static int32_t tokens[PROMPT];
    rng r;
    rng_seed(&r, 11);
    for (uint32_t i = 0; i < PROMPT; i++)
        tokens[i] = i > 100 && rng_below(&r, 3) > 0 ? tokens[i - 1 - rng_below(&r, 90)]
                                                    : (int32_t)(1 + rng_below(&r, 4000));
    return tokens;
}

static run_setup setup_of(uint32_t nodes, uint32_t replicas)
{
    return (run_setup){.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .selector = {.name = "nosa", .budget = "16"},
                       .max_len = 2048,
                       .seqs = 2,
                       .batched = 128,
                       .threads = 1,
                       .pool_bytes = 8 << 20,
                       .hub_nodes = nodes,
                       .hub_replicas = replicas};
}

/* No deadline passes on a machine that stands still for a while: a row it makes void is one that
 * nothing flipped. */
static run_setup patient_setup(cluster_config *cluster, uint32_t nodes, uint32_t replicas)
{
    run_setup setup = setup_of(nodes, replicas);
    cluster_config_default(cluster);
    cluster->fetch_deadline_ns = cluster->put_deadline_ns = 30000000000u;
    setup.cluster = cluster;
    return setup;
}

static bool ran_inline; /* the last run's ops had run when their calls returned */

static uint64_t digest_of(const run_setup *setup, worker_event *final, worker_stats *stats)
{
    run *r = run_open(setup);
    ran_inline = run_engine(r)->inline_ops;
    uint64_t digest;
    EXPECT_MSG(run_decode(r, prompt(), PROMPT, NEW, &digest, final) == STATUS_OK, "%s",
               log_last_error());
    worker_stats_read(run_engine(r), stats);
    run_close(r);
    return digest;
}

static uint64_t memory_digest(void)
{
    static uint64_t known;
    worker_event final;
    worker_stats stats;
    run_setup setup = setup_of(0, 0);
    if (known == 0) known = digest_of(&setup, &final, &stats);
    return known;
}

TEST(remote_blocks_give_the_bits_of_local_ones)
{
    worker_event final;
    worker_stats stats;
    run_setup setup = setup_of(3, 2);
    EXPECT_EQ_X64(digest_of(&setup, &final, &stats), memory_digest());
    EXPECT(stats.blocks.remote > 0);
    EXPECT_EQ_U64(stats.stored.blocks, (PROMPT + NEW - 1) / 64 * 16);
}

/* What a guess found of what the layers behind the first one missed; `by` what it has used without.
 */
static double guess_finds(uint32_t percent, uint64_t by, worker_stats *stats)
{
    worker_event final;
    cluster_config cluster;
    run_setup setup = patient_setup(&cluster, 3, 2);
    uint64_t misses = 0;
    setup.guess = percent;
    EXPECT_EQ_X64(digest_of(&setup, &final, stats), memory_digest());
    for (uint32_t l = 1; l < 8; l++)
        misses += stats->misses_by_layer[l];
    return (double)(stats->prefetch.used + stats->prefetch.late - by) / (double)misses;
}

/* On real text it is half of them with as many candidates as the query picks, and three quarters
 * with twice as many. A device may have the next plan before it is asked for what was guessed. */
TEST(an_early_guess_finds_most_misses_and_changes_no_bit)
{
    worker_stats stats;
    (void)guess_finds(0, 0, &stats);
    const uint64_t by = stats.prefetch.used;
    const double once = guess_finds(100, by, &stats), twice = guess_finds(200, by, &stats);
    EXPECT_MSG(!ran_inline || (once > 0.35 && twice > once + 0.1), "once %.3f, twice %.3f", once,
               twice);
    EXPECT(stats.prefetch.wasted + stats.prefetch.used + stats.prefetch.late <=
           stats.prefetch.issued);
}

TEST(without_prefetch_nothing_is_asked_for_ahead_not_even_on_resuming)
{
    worker_event final;
    worker_stats stats;
    run_setup setup = setup_of(3, 2);
    setup.no_prefetch = true;
    EXPECT_EQ_X64(digest_of(&setup, &final, &stats), memory_digest());
    EXPECT(stats.resumes > 0 && stats.blocks.remote > 0);
    EXPECT_EQ_U64(stats.prefetch.issued + stats.prefetch.used + stats.prefetch.late, 0);
    EXPECT_EQ_U64(stats.client.class[KV_PREFETCH].submitted, 0);
    EXPECT_EQ_U64(stats.agnostic_ahead, 0);
}

/* A share of the blocks that nodes send has a bit flipped: the bits of memory, and no recompute. */
static worker_stats flipped(double share, uint32_t card_threads, uint32_t guess)
{
    worker_event final;
    worker_stats stats;
    cluster_config cluster;
    run_setup setup = patient_setup(&cluster, 3, 2);
    setup.guess = guess;
    setup.hub_card_threads = card_threads;
    setup.hub_faults = (kv_faults){.seed = 5, .flip_wire = share};
    EXPECT_EQ_X64(digest_of(&setup, &final, &stats), memory_digest());
    EXPECT(stats.corrupt > 0);
    EXPECT_EQ_U64(stats.recomputes, 0);
    return stats;
}

TEST(flipped_replies_fail_over_and_change_nothing)
{
    EXPECT(flipped(0.05, 0, 0).client.corrupt > 0);
}

TEST(nor_do_those_that_an_early_guess_brings)
{
    EXPECT(flipped(0.02, 0, 200).client.corrupt > 0);
}

/* What has no room in the landing zone ahead of its step is fetched in it. */
TEST(lookahead_step_goes_on_where_the_landing_zone_is_small_and_says_so)
{
    uint64_t digest[2], refused[2];
    for (int i = 0; i < 2; i++) {
        worker_event final;
        worker_stats stats;
        cluster_config cluster;
        run_setup setup = patient_setup(&cluster, 3, 2);
        setup.selector.source = "step";
        if (i == 0) cluster.landing_bytes = 1 << 20;
        digest[i] = digest_of(&setup, &final, &stats);
        refused[i] = stats.prefetch.refused;
    }
    EXPECT_EQ_X64(digest[0], digest[1]);
    EXPECT(refused[0] > 0);
    EXPECT_EQ_U64(refused[1], 0);
}

/* So few that a step meets one at most; where the client compares, two replies for one block. */
TEST(one_flip_is_one_repeated_step)
{
    worker_stats stats = flipped(0.002, 0, 0);
    const uint64_t refused = stats.client.corrupt / 2;
    EXPECT_MSG(stats.void_rows <= stats.corrupt + refused, "void %llu, corrupt %llu, client's %llu",
               (unsigned long long)stats.void_rows, (unsigned long long)stats.corrupt,
               (unsigned long long)stats.client.corrupt);
}

/* There is no copy of an open block: of each sequence that decodes it is in the pool, in every
 * layer and KV head. Its first token brings it there. */
static bool open_blocks_are_resident(worker_engine *e)
{
    static int32_t entry[1024];
    for (uint32_t seq = 0; seq < e->seqs; seq++) {
        uint32_t block = e->seq[seq].done / KERN_BLOCK;
        if (e->seq[seq].state != SEQ_ACTIVE || e->seq[seq].done % KERN_BLOCK == 0) continue;
        for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
            kern_table t = engine_table(e, i / e->kv_heads);
            const int32_t *row =
                t.entry_of + ((size_t)seq * t.kv_heads + i % e->kv_heads) * t.max_blocks;
            EXPECT(t.max_blocks <= 1024);
            EXPECT(kern_copy(e->stream, entry, row, t.max_blocks * sizeof *row) == STATUS_OK);
            EXPECT(kern_stream_sync(e->stream) == STATUS_OK);
            if (entry[block] < 0) return false;
        }
    }
    return true;
}

/* A void row used nothing in the layers after the one that made it void, and what prefetch brings
 * next goes in for what was not used. No entry of the pool is to spare, and voids are many: both
 * replicas of a block flip. */
TEST(what_arrives_after_a_void_row_takes_no_open_block)
{
    run_setup setup = setup_of(3, 2);
    cluster_config cluster;
    cluster_config_default(&cluster);
    cluster.victim_margin_percent = 0;
    cluster.suspect_ns = 1000;
    setup.cluster = &cluster;
    setup.seqs = 4;
    setup.hub_faults = (kv_faults){.seed = 3, .flip_wire = 0.14};
    run *r = run_open(&setup);
    worker_engine *e = run_engine(r);
    worker_request request = {.prompt = prompt(),
                              .prompt_count = PROMPT,
                              .max_new = NEW,
                              .selector = *run_selector(r),
                              .sampling = {.top_p = 1.0f}};
    for (request.id = 1; request.id <= setup.seqs; request.id++)
        EXPECT(worker_submit(e, &request) == STATUS_OK);
    while (!worker_idle(e)) {
        status s = worker_step(e);
        EXPECT(s == STATUS_OK || s == STATUS_PENDING);
        EXPECT_MSG(open_blocks_are_resident(e), "not after step %u, %llu rows void", e->step_number,
                   (unsigned long long)e->stats.void_rows);
        worker_event event;
        while (worker_next_event(e, &event))
            EXPECT_MSG(event.result == STATUS_OK, "%s", log_last_error());
    }
    EXPECT(e->stats.void_rows > 0);
    run_close(r);
}

TEST(blocks_that_a_card_wrote_give_the_same_bits)
{
    (void)flipped(0.02, 2, 0);
}

/* 27 blocks in 16 lists, 16 KiB each; a byte less has no room for all of it. */
TEST(a_prompt_on_the_device_has_the_bits_of_one_in_host_memory)
{
    const uint64_t block = 16 * 16384, all = (PROMPT + 63) / 64 * block;
    worker_event final;
    worker_stats stats;
    for (uint32_t nodes = 0; nodes <= 3; nodes += 3) {
        run_setup setup = setup_of(nodes, nodes == 0 ? 0 : 2);
        setup.prompt_stage_bytes = all;
        EXPECT_EQ_X64(digest_of(&setup, &final, &stats), memory_digest());
        EXPECT(stats.staged_rows > 0 && stats.staged_rows == stats.prefill_rows);
        setup.prompt_stage_bytes = all - 1;
        EXPECT_EQ_X64(digest_of(&setup, &final, &stats), memory_digest());
        EXPECT_EQ_U64(stats.staged_rows, 0);
    }
}

static void lost_blocks(uint64_t prompt_stage_bytes)
{
    run_setup setup = setup_of(1, 1);
    setup.prompt_stage_bytes = prompt_stage_bytes;
    setup.hub_faults = (kv_faults){.seed = 5, .flip_memory = 0.02}; /* no other replica has it */
    worker_event final;
    worker_stats stats;
    run *r = run_open(&setup);
    uint64_t digest;
    status s = run_decode(r, prompt(), PROMPT, NEW, &digest, &final);
    worker_stats_read(run_engine(r), &stats);
    run_close(r);
    EXPECT(stats.recomputes > 0);
    if (s == STATUS_OK)
        EXPECT_EQ_X64(digest, memory_digest());
    else
        EXPECT_EQ_U64(final.recomputes, ENGINE_RECOMPUTE_MAX); /* gave up, said so */
}

TEST(lost_blocks_are_computed_again_with_the_same_bits)
{
    lost_blocks(0);
}

TEST(so_they_are_where_prompts_stand_on_the_device)
{
    lost_blocks(8 << 20);
}

TEST(a_full_store_fails_the_request_with_no_space)
{
    run_setup setup = setup_of(1, 1);
    setup.hub_memory_bytes = 1 << 20; /* 64 blocks */
    run *r = run_open(&setup);
    uint64_t digest;
    worker_event final;
    EXPECT_EQ_I64(run_decode(r, prompt(), PROMPT, LONG, &digest, &final), STATUS_NO_SPACE);
    run_close(r);
}

TEST(fewer_nodes_than_replicas_fails_the_request_as_degraded)
{
    run_setup setup = setup_of(2, 2);
    run *r = run_open(&setup);
    run_hub_kill(r, 1);
    uint64_t digest;
    worker_event final;
    EXPECT_EQ_I64(run_decode(r, prompt(), PROMPT, LONG, &digest, &final), STATUS_DEGRADED);
    run_close(r);
}

/* A node goes away, and comes back when some blocks could not be stored, or does not. */
static struct {
    bool away, back;
} node;

static void node_leaves(run *r)
{
    io_stats io;
    io_stats_read(run_engine(r)->io, &io);
    if (!node.away && io.stored_blocks > 100) run_hub_kill(r, 1), node.away = true;
    if (node.back && io.put_retries > 5) run_hub_restart(r, 1), node.back = false;
}

static status node_away(uint64_t put_deadline_ns, bool back, uint32_t new_tokens,
                        uint64_t *out_digest, worker_stats *stats)
{
    run_setup setup = setup_of(2, 2);
    cluster_config cluster;
    cluster_config_default(&cluster);
    cluster.put_deadline_ns = put_deadline_ns;
    setup.cluster = &cluster;
    run *r = run_open(&setup);
    worker_event final;
    node.away = false;
    node.back = back;
    const status result =
        run_decode_stepped(r, prompt(), PROMPT, new_tokens, node_leaves, out_digest, &final);
    EXPECT(node.away && !node.back);
    worker_stats_read(run_engine(r), stats);
    run_close(r);
    return result;
}

/* Meanwhile blocks that it should have stay in host memory. */
TEST(a_node_that_comes_back_before_the_deadline_costs_no_request)
{
    uint64_t digest;
    worker_stats stats;
    const status result = node_away(20000000000u, true, NEW, &digest, &stats);
    EXPECT_MSG(result == STATUS_OK, "%s", status_sentence(result));
    EXPECT_EQ_X64(digest, memory_digest());
    EXPECT_EQ_U64(stats.stored.blocks, (PROMPT + NEW - 1) / 64 * 16);
}

TEST(a_node_that_stays_away_beyond_the_deadline_fails_the_request)
{
    uint64_t digest;
    worker_stats stats;
    EXPECT_EQ_I64(node_away(50000000, false, LONG, &digest, &stats), STATUS_DEGRADED);
}

TEST(a_pool_smaller_than_one_step_is_refused_with_what_it_needs)
{
    run_setup setup = setup_of(0, 0);
    setup.pool_bytes = 1 << 20;
    kern_backend *backend;
    model *m;
    kern_config kern = {.backend = "cpu", .threads = 1};
    EXPECT(kern_backend_open(&kern, &backend) == STATUS_OK);
    EXPECT(model_load(backend, setup.model_dir, 2048, NULL, NULL, &m) == STATUS_OK);
    cluster_config cluster;
    cluster_config_default(&cluster);
    cluster.device_pool_bytes = setup.pool_bytes;
    cluster.max_model_len = 2048;
    worker_config config = {.model = m, .cluster = &cluster, .clock = clock_monotonic};
    EXPECT(model_selector(&m->config, &setup.selector, &config.widest) == STATUS_OK);
    worker_engine *e;
    EXPECT_EQ_I64(worker_create(&config, NULL, &e), STATUS_NO_MEMORY);
    EXPECT(strstr(log_last_error(), "--device-pool 5120KiB") != NULL);
    model_free(m);
    kern_backend_close(backend);
}

/* The engine that a limit of device memory gives, its numbers out of the printed plan; NULL: none.
 */
static worker_engine *limited_staged(const model *m, uint64_t hbm, uint64_t pool, uint64_t stage,
                                     double *out_total)
{
    static cluster_config cluster;
    char *plan = NULL;
    size_t bytes = 0;
    cluster_config_default(&cluster);
    cluster.device_pool_bytes = pool;
    cluster.max_num_seqs = 2;
    cluster.max_model_len = 2048;
    worker_config config = {.model = m,
                            .cluster = &cluster,
                            .clock = clock_monotonic,
                            .hbm_bytes = hbm,
                            .prompt_stage_bytes = stage};
    const selector_choice choice = {.name = "nosa", .budget = "16"};
    EXPECT(model_selector(&m->config, &choice, &config.widest) == STATUS_OK);
    FILE *to = open_memstream(&plan, &bytes);
    worker_engine *e = NULL;
    status made = worker_create(&config, to, &e);
    EXPECT(made == STATUS_OK || made == STATUS_NO_MEMORY);
    fclose(to);
    const char *total = plan != NULL ? strstr(plan, " MiB of device memory") : NULL;
    while (total != NULL && total[-1] != ' ')
        total--;
    if (total != NULL) *out_total = atof(total);
    EXPECT(made != STATUS_OK ||
           (strstr(plan, ", prompts up to 1024 tokens 4.0 MiB: ") != NULL) == (stage > 0));
    free(plan);
    return made == STATUS_OK ? e : NULL;
}

static worker_engine *limited(const model *m, uint64_t hbm, uint64_t pool, double *out_total)
{
    return limited_staged(m, hbm, pool, 0, out_total);
}

TEST(a_limit_of_device_memory_leaves_the_pool_the_rest_or_says_what_would_do)
{
    kern_backend *backend;
    kern_config kern = {.backend = "cpu", .threads = 1};
    model *m;
    EXPECT(kern_backend_open(&kern, &backend) == STATUS_OK);
    EXPECT(model_load(backend, TEST_SOURCE_DIR "/worker/small-model", 2048, NULL, NULL, &m) ==
           STATUS_OK);
    double total = 0;
    uint64_t least = 5 << 20, most = 2 * least; /* 20 entries of 16 KiB in 16 lists: a sequence */
    EXPECT(limited(m, 1 << 20, WORKER_POOL_REST, &total) == NULL);
    const char *give = strstr(log_last_error(), "give --hbm ");
    EXPECT(give != NULL && strstr(log_last_error(), "the smallest pool of 5.0") != NULL);
    uint64_t enough = (uint64_t)atol(give + 11) << 20;
    worker_engine *e = limited(m, enough, WORKER_POOL_REST, &total);
    EXPECT(e != NULL && worker_pool_bytes(e) >= least && worker_pool_bytes(e) < least + (1 << 20));
    EXPECT(total * 1048576 <= (double)enough + 60000 && total * 1048576 > (double)enough - 2e6);
    worker_destroy(e);
    EXPECT(limited(m, enough - (1 << 20), WORKER_POOL_REST, &total) == NULL);
    e = limited(m, enough + (3 << 20), WORKER_POOL_REST, &total);
    EXPECT(e != NULL && worker_pool_bytes(e) >= least + (3 << 20));
    worker_destroy(e);
    EXPECT(limited_staged(m, enough + (3 << 20), WORKER_POOL_REST, 4 << 20, &total) == NULL);
    EXPECT(strstr(log_last_error(), ", or a smaller --prompt-stage") != NULL);
    e = limited_staged(m, enough + (4 << 20), WORKER_POOL_REST, 4 << 20, &total);
    EXPECT(e != NULL && worker_pool_bytes(e) < least + (1 << 20));
    EXPECT(total * 1048576 <= (double)enough + 4194304 + 60000);
    worker_destroy(e);
    e = limited(m, enough + (300 << 20), WORKER_POOL_REST, &total);
    EXPECT(e != NULL && worker_pool_bytes(e) == most); /* more would serve nobody */
    worker_destroy(e);
    EXPECT(limited(m, enough, 8 << 20, &total) == NULL); /* a given pool is not made smaller */
    EXPECT(strstr(log_last_error(), "a pool of 8.0") != NULL);
    model_free(m);
    kern_backend_close(backend);
}

/* ---- SSA, MoBA and NSA, on the small random checkpoints of tests/golden/selectors -------------
 */

enum { SHORT_PROMPT = 790, SHORT_NEW = 60 };

static uint64_t selector_digest(run_setup setup, const char *folder, const char *name,
                                const char *budget, worker_stats *stats)
{
    static int32_t tokens[SHORT_PROMPT];
    char path[512];
    rng random;
    rng_seed(&random, 12);
    for (uint32_t i = 0; i < SHORT_PROMPT; i++)
        tokens[i] = (int32_t)rng_below(&random, 48);
    snprintf(path, sizeof path, "%s/tests/golden/selectors/%s", TEST_SOURCE_DIR, folder);
    setup.model_dir = path;
    setup.selector = (selector_choice){.name = name, .budget = budget};
    setup.max_len = 896;
    run *r = run_open(&setup);
    uint64_t digest;
    worker_event final;
    EXPECT_MSG(run_decode(r, tokens, SHORT_PROMPT, SHORT_NEW, &digest, &final) == STATUS_OK, "%s",
               log_last_error());
    if (stats != NULL) worker_stats_read(run_engine(r), stats);
    run_close(r);
    return digest;
}

static bool selector_there(run_setup setup, const char *folder, const char *name,
                           const char *budget)
{
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/selectors/%s", TEST_SOURCE_DIR, folder);
    setup.model_dir = path;
    setup.selector = (selector_choice){.name = name, .budget = budget};
    setup.max_len = 896;
    return run_can(&setup);
}

TEST(ssa_moba_and_nsa_give_one_result_whatever_chunk_threads_and_tier)
{
    static const char *const ways[][3] = {
        {"ssa", "ssa", "6"}, {"ssa", "ssa-chunked", "16"}, {"moba", "moba", "2"},
        {"nsa", "nsa", "6"}, {"nsa", "nsa-chunked", "16"}, {"nsa-overlap", "nsa", "4"}};
    run_setup near = setup_of(0, 0), far = setup_of(3, 2);
    far.batched = 77;
    far.threads = 2;
    far.pool_bytes = 2 << 20;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        worker_stats stats;
        if (!selector_there(near, ways[i][0], ways[i][1], ways[i][2])) continue;
        uint64_t want = selector_digest(near, ways[i][0], ways[i][1], ways[i][2], NULL);
        EXPECT_EQ_X64(selector_digest(far, ways[i][0], ways[i][1], ways[i][2], &stats), want);
        EXPECT(stats.blocks.remote > 0);
    }
}

enum { MANY = 3, STEPPED = 350 };

/* log p of every token of three prompts, all but their last `steps` tokens by prefill. */
static void nsa_scores(run_setup setup, uint32_t steps, float score[MANY][SHORT_PROMPT],
                       worker_stats *stats)
{
    int32_t tokens[SHORT_PROMPT];
    uint32_t finished = 0;
    setup.model_dir = TEST_SOURCE_DIR "/tests/golden/selectors/nsa";
    setup.selector = (selector_choice){.name = "nsa", .budget = "6"};
    setup.max_len = 896;
    run *r = run_open(&setup);
    for (uint32_t i = 0; i < MANY; i++) {
        rng random;
        rng_seed(&random, 20 + i);
        for (uint32_t t = 0; t < SHORT_PROMPT; t++)
            tokens[t] = (int32_t)rng_below(&random, 48);
        worker_request request = {.id = i,
                                  .prompt = tokens,
                                  .prompt_count = SHORT_PROMPT - 60 * i,
                                  .step_count = steps,
                                  .score = score[i],
                                  .selector = *run_selector(r),
                                  .sampling = {.top_p = 1.0f}};
        EXPECT_OK(worker_submit(run_engine(r), &request));
    }
    while (finished < MANY || !worker_idle(run_engine(r))) {
        status s = worker_step(run_engine(r));
        EXPECT(s == STATUS_OK || s == STATUS_PENDING);
        worker_event event;
        while (worker_next_event(run_engine(r), &event)) {
            EXPECT_OK(event.result);
            finished += event.kind == WORKER_FINISHED;
        }
    }
    worker_stats_read(run_engine(r), stats);
    run_close(r);
}

TEST(nsa_one_token_a_step_in_a_batch_that_parks_gives_the_bits_of_prefill)
{
    static float whole[MANY][SHORT_PROMPT], stepped[MANY][SHORT_PROMPT];
    run_setup alone = setup_of(0, 0), batch = setup_of(3, 2);
    worker_stats stats;
    alone.seqs = 1;
    batch.seqs = MANY;
    batch.pool_bytes = 3 << 19;
    batch.park_quantum = 8;
    batch.batched = 90;
    if (!selector_there(alone, "nsa", "nsa", "6")) return;
    nsa_scores(alone, 0, whole, &stats);
    EXPECT_EQ_U64(stats.decode_rows, 0);
    nsa_scores(batch, STEPPED, stepped, &stats);
    EXPECT(stats.parks > 0 && stats.blocks.remote > 0);
    EXPECT_EQ_U64(stats.decode_rows, MANY * STEPPED);
    EXPECT_EQ_MEM(stepped, whole, sizeof whole);
}

TEST(a_budget_of_ssa_that_holds_the_context_is_full_attention_bit_for_bit)
{
    run_setup setup = setup_of(0, 0);
    uint64_t full = selector_digest(setup, "ssa", "full", NULL, NULL);
    EXPECT_EQ_X64(selector_digest(setup, "ssa", "ssa", "54", NULL), full);
    EXPECT(selector_digest(setup, "ssa", "ssa", "6", NULL) != full);
}

TEST_MAIN()
