/* The promise, end to end: eight prompts (2K-5K tokens, one of 16K), 200 new tokens each, decoded
 * by the production engine and real store processes. Tokens and the digest of every step's logits
 * must be the same bytes wherever the blocks were, however the batch was cut and whatever broke.
 *
 * Each row prints where blocks came from, by the client's and by the nodes' count, and its longest
 * stall; what a row is there for must have happened (a kill row fails over, a flip row sees corrupt
 * blocks). The last row turns verification off and flips bits: there the digests must differ, or
 * none of the other rows would prove anything. */
#include <signal.h>
#include <stdlib.h>

#include <cjson/cJSON.h>

#include "tests/e2e/nodes.h"
#include "tests/test.h"
#include "tests/worker/run.h"
#include "worker/tokenizer.h"

enum { PROMPTS = 8, NEW_TOKENS = 200, PROMPT_MAX = 16100 };
static const uint32_t prompt_length[PROMPTS] = {2000, 2500, 3000, 3501, 4000, 4520, 5000, 16000};

typedef enum action { NOTHING, KILL, PAUSE, RESTART_EMPTY } action;

typedef struct row {
    uint32_t nodes, replicas; /* 0 nodes: everything in this process' memory */
    uint32_t pool_divisor;    /* device pool = KV of all prompts / this */
    uint32_t batch, chunk, threads;
    uint64_t host_tier_bytes, prompt_stage_bytes;
    const char *faults;
    action act;
    uint32_t guess; /* percent */
    bool ragged;    /* requests arrive while others decode */
    bool two_batch, no_verify, no_prefetch;
    const char *source; /* selection source; its own reference */
    enum {
        ANY,
        WANT_REMOTE = 1,
        WANT_FAILOVER = 2,
        WANT_CORRUPT = 4,
        WANT_RECOMPUTE = 8,
        WANT_PARKS = 16
    } wants;
} row;

typedef struct outcome {
    uint64_t digest[PROMPTS];
    worker_stats stats;
    node_counts nodes;
    uint32_t failed;
} outcome;

/* ---- prompts --------------------------------------------------------------------------------- */

static int32_t prompt[PROMPTS][PROMPT_MAX];

static void load_prompts(void)
{
    static bool loaded;
    if (loaded) return;
    char command[1024], path[512];
    snprintf(command, sizeof command, "tar -C '%s' -xJf '%s/worker/small-model/cases.tar.xz'",
             test_dir(), TEST_SOURCE_DIR);
    EXPECT(system(command) == 0);
    snprintf(path, sizeof path, "%s/cases/text-16k.jsonl", test_dir());
    FILE *f = fopen(path, "r");
    EXPECT(f != NULL);
    tokenizer *t;
    EXPECT(tokenizer_load(TEST_SOURCE_DIR "/worker/small-model", &t) == STATUS_OK);
    char *line = NULL;
    size_t room = 0;
    for (uint32_t i = 0; i < PROMPTS; i++) {
        EXPECT(getline(&line, &room, f) > 0);
        cJSON *json = cJSON_Parse(line);
        const char *text = cJSON_GetObjectItem(json, "text")->valuestring;
        arena *a = arena_create("prompt");
        int32_t *ids;
        uint32_t count;
        EXPECT(tokenizer_encode(t, (span){text, strlen(text)}, false, a, &ids, &count) ==
               STATUS_OK);
        EXPECT(count >= prompt_length[i]);
        memcpy(prompt[i], ids, prompt_length[i] * sizeof(int32_t));
        arena_destroy(a);
        cJSON_Delete(json);
    }
    free(line);
    fclose(f);
    tokenizer_destroy(t);
    loaded = true;
}

static uint64_t kv_bytes(void)
{
    uint64_t blocks = 0;
    for (uint32_t i = 0; i < PROMPTS; i++)
        blocks += (prompt_length[i] + NEW_TOKENS + 63) / 64;
    return blocks * 8 * 2 * 16384; /* 8 layers, 2 KV heads, 16 KiB a block */
}

/* ---- one row --------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    return clock_now(&clock_monotonic);
}

/* Something happens to node 1 after so many tokens, while the later prompts are still being
 * computed; a paused node goes on after 2 s. */
enum { TROUBLE_TOKENS = 100 };

typedef struct trouble {
    action act;
    uint32_t tokens;
    uint64_t paused_ns;
    bool over;
} trouble;

static void make_trouble(trouble *t)
{
    if (t->act == NOTHING || t->over) return;
    if (t->paused_ns != 0) {
        if (now_ns() - t->paused_ns < 2000000000u) return;
        nodes_signal(1, SIGCONT);
        t->over = true;
    } else if (t->tokens >= TROUBLE_TOKENS) {
        if (t->act == KILL) nodes_kill(1);
        if (t->act == RESTART_EMPTY) nodes_restart(1);
        if (t->act == PAUSE) nodes_signal(1, SIGSTOP);
        t->paused_ns = t->act == PAUSE ? now_ns() : 0;
        t->over = t->act != PAUSE;
    }
}

static void take_events(worker_engine *e, outcome *o, trouble *t, uint32_t *finished)
{
    worker_event event;
    while (worker_next_event(e, &event)) {
        if (event.kind == WORKER_TOKEN) {
            uint64_t step[3] = {o->digest[event.id], event.logits_digest,
                                (uint64_t)event.sampled.token};
            o->digest[event.id] = bytes_digest(step, sizeof step, 0);
            t->tokens++;
        } else {
            (*finished)++;
            o->failed += event.result != STATUS_OK;
        }
    }
}

static void decode_all(run *r, const row *of, outcome *o)
{
    worker_engine *e = run_engine(r);
    trouble t = {.act = of->act};
    uint32_t sent = 0, finished = 0;
    while (finished < PROMPTS) {
        bool due = !of->ragged || sent == 0 || t.tokens > 60 * sent || worker_idle(e);
        if (sent < PROMPTS && due) {
            worker_request request = {.id = sent,
                                      .prompt = prompt[sent],
                                      .prompt_count = prompt_length[sent],
                                      .max_new = NEW_TOKENS,
                                      .selector = *run_selector(r),
                                      .sampling = {.top_p = 1.0f}};
            EXPECT_MSG(worker_submit(e, &request) == STATUS_OK, "%s", log_last_error());
            sent++;
        }
        status s = worker_step(e);
        EXPECT_MSG(s == STATUS_OK || s == STATUS_PENDING, "step: %s", status_name(s));
        take_events(e, o, &t, &finished);
        make_trouble(&t);
    }
    EXPECT(t.over || of->act == NOTHING);
}

static void run_row(const char *name, const row *of, outcome *o)
{
    load_prompts();
    memset(o, 0, sizeof *o);
    cluster_config cluster;
    if (of->nodes > 0) nodes_start(of->nodes, of->replicas, "512MiB", of->faults, &cluster);
    run_setup setup = {.model_dir = TEST_SOURCE_DIR "/worker/small-model",
                       .selector = {.name = "nosa", .budget = "16", .source = of->source},
                       .max_len = 16384,
                       .seqs = of->batch,
                       .batched = of->chunk,
                       .threads = of->threads,
                       .pool_bytes = kv_bytes() / of->pool_divisor,
                       .host_tier_bytes = of->host_tier_bytes,
                       .prompt_stage_bytes = of->prompt_stage_bytes,
                       .park_quantum = 32,
                       .cluster = of->nodes > 0 ? &cluster : NULL,
                       .no_verify = of->no_verify,
                       .no_prefetch = of->no_prefetch,
                       .guess = of->guess,
                       .two_batch = of->two_batch};
    run *r = run_open(&setup);
    uint64_t started = now_ns();
    decode_all(r, of, o);
    double seconds = (double)(now_ns() - started) * 1e-9;
    worker_stats_read(run_engine(r), &o->stats);
    if (of->nodes > 0) nodes_counts(&o->nodes);
    run_close(r);
    if (of->nodes > 0) nodes_stop();
    const worker_stats *s = &o->stats;
    printf(
        "%-28s %5.1f s  resident %llu host %llu remote %llu recomputed %llu | client: served %llu "
        "stored %llu failed over %llu hedged %llu corrupt %llu | nodes: served %llu stored %llu "
        "corrupt %llu | parks %llu void %llu recomputes %llu stall %.1f ms\n",
        name, seconds, (unsigned long long)s->blocks.resident, (unsigned long long)s->blocks.host,
        (unsigned long long)s->blocks.remote, (unsigned long long)s->blocks.recomputed,
        (unsigned long long)s->served.blocks, (unsigned long long)s->stored.blocks,
        (unsigned long long)s->client.failed_over, (unsigned long long)s->client.hedged,
        (unsigned long long)(s->client.corrupt + s->corrupt), (unsigned long long)o->nodes.served,
        (unsigned long long)o->nodes.stored, (unsigned long long)o->nodes.corrupt,
        (unsigned long long)s->parks, (unsigned long long)s->void_rows,
        (unsigned long long)s->recomputes, (double)s->stall_ns_max * 1e-6);
    fflush(stdout);
}

static void expect_wanted(const row *of, const outcome *o)
{
    const worker_stats *s = &o->stats;
    EXPECT_EQ_U64(o->failed, 0);
    if (of->wants & WANT_REMOTE) {
        EXPECT(s->blocks.remote > 0 && s->served.blocks > 0);
        if (of->act == NOTHING) EXPECT_GE_U64(o->nodes.served, s->served.blocks);
        if (of->act == NOTHING && of->faults == NULL)
            EXPECT_GE_U64(o->nodes.stored, s->stored.blocks * of->replicas);
    }
    bool gone = of->act == KILL && s->client.nodes_connected < of->nodes; /* at a quiet moment */
    if (of->wants & WANT_FAILOVER) EXPECT(gone || s->client.failed_over + s->client.hedged > 0);
    if (of->wants & WANT_CORRUPT) EXPECT(s->client.corrupt + s->corrupt + o->nodes.corrupt > 0);
    if (of->wants & WANT_RECOMPUTE) EXPECT(s->recomputes > 0 && s->blocks.recomputed > 0);
    if (of->wants & WANT_PARKS) EXPECT(s->parks > 0);
    if (of->no_prefetch) EXPECT_EQ_U64(s->prefetch.issued, 0);
    EXPECT((s->staged_rows > 0) == (of->prompt_stage_bytes > 0));
}

/* The all-in-memory run of a source that every row of that source is compared with. */
static const outcome *reference(const char *source)
{
    static outcome known[4];
    static bool have[4];
    static const char *const name[] = {"own", "mid", "input", "step"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(name[i], source) != 0) continue;
        row base = {.pool_divisor = 1, .batch = 8, .chunk = 512, .threads = 2, .source = source};
        char title[64];
        snprintf(title, sizeof title, "all in memory (%s)", source);
        if (!have[i]) run_row(title, &base, &known[i]);
        have[i] = true;
        EXPECT_EQ_U64(known[i].failed, 0);
        return &known[i];
    }
    test_fail(__FILE__, __LINE__, "no such source %s", source);
}

static void same(const char *name, row of)
{
    if (of.source == NULL) of.source = "own";
    if (of.pool_divisor == 0) of.pool_divisor = 8;
    if (of.batch == 0) of.batch = 8;
    if (of.chunk == 0) of.chunk = 512;
    if (of.threads == 0) of.threads = 2;
    const outcome *want = reference(of.source);
    static outcome got;
    run_row(name, &of, &got);
    expect_wanted(&of, &got);
    for (uint32_t i = 0; i < PROMPTS; i++)
        EXPECT_EQ_X64(got.digest[i], want->digest[i]);
}

TEST(memory_alone_with_an_eighth_of_the_pool)
{
    same("pool 1/8", (row){.wants = WANT_PARKS});
}
TEST(one_node)
{
    same("one node", (row){.nodes = 1, .replicas = 1, .wants = WANT_REMOTE});
}
TEST(three_nodes_two_replicas)
{
    same("three nodes, R=2", (row){.nodes = 3, .replicas = 2, .wants = WANT_REMOTE | WANT_PARKS});
}
TEST(host_tier_above_the_store)
{
    same("host tier 64 MiB",
         (row){.nodes = 3, .replicas = 2, .host_tier_bytes = 64 << 20, .wants = WANT_REMOTE});
}
TEST(one_sequence_at_a_time_in_one_thread)
{
    same("batch 1, 1 thread", (row){.nodes = 1,
                                    .replicas = 1,
                                    .batch = 1,
                                    .threads = 1,
                                    .chunk = 64,
                                    .pool_divisor = 16,
                                    .wants = WANT_REMOTE});
}
TEST(three_sequences_and_whole_prompts)
{
    same("batch 3, whole prompts", (row){.nodes = 3,
                                         .replicas = 2,
                                         .batch = 3,
                                         .chunk = 16384,
                                         .pool_divisor = 12,
                                         .wants = WANT_REMOTE});
}
TEST(requests_that_arrive_while_others_decode)
{
    same("ragged admission",
         (row){.nodes = 3, .replicas = 2, .ragged = true, .chunk = 64, .wants = WANT_REMOTE});
}
TEST(no_prefetch)
{
    same("no prefetch",
         (row){.nodes = 3, .replicas = 2, .no_prefetch = true, .wants = WANT_REMOTE});
}
TEST(prompts_that_stand_on_the_device)
{
    same("prompts on the device, killed",
         (row){.nodes = 3,
               .replicas = 2,
               .prompt_stage_bytes = 32 << 20, /* 8K tokens: one has more */
               .act = KILL,
               .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(a_node_killed_while_decoding)
{
    same("SIGKILL of a node",
         (row){.nodes = 3, .replicas = 2, .act = KILL, .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(a_node_paused_for_two_seconds)
{
    same("SIGSTOP for 2 s",
         (row){.nodes = 3, .replicas = 2, .act = PAUSE, .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(bits_flipped_in_node_memory)
{
    same("flips in memory", (row){.nodes = 3,
                                  .replicas = 2,
                                  .faults = "flip-memory=0.01,seed=7",
                                  .wants = WANT_REMOTE | WANT_CORRUPT});
}
TEST(bits_flipped_on_the_wire)
{
    same("flips on the wire", (row){.nodes = 3,
                                    .replicas = 2,
                                    .faults = "flip-wire=0.02,seed=7",
                                    .wants = WANT_REMOTE | WANT_CORRUPT});
}
TEST(a_node_restarted_empty)
{
    same("restarted empty", (row){.nodes = 3,
                                  .replicas = 2,
                                  .act = RESTART_EMPTY,
                                  .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(the_only_replica_killed_and_blocks_computed_again)
{
    same("R=1, node killed",
         (row){.nodes = 3, .replicas = 1, .act = KILL, .wants = WANT_REMOTE | WANT_RECOMPUTE});
}
TEST(an_early_guess_while_a_node_is_killed)
{
    same("early guess, node killed", (row){.nodes = 3,
                                           .replicas = 2,
                                           .guess = 200,
                                           .act = KILL,
                                           .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(halves_that_take_turns_while_a_node_is_killed)
{
    same("two batches, node killed", (row){.nodes = 3,
                                           .replicas = 2,
                                           .two_batch = true,
                                           .act = KILL,
                                           .wants = WANT_REMOTE | WANT_FAILOVER});
}
TEST(lookahead_mid)
{
    same("lookahead mid", (row){.nodes = 3, .replicas = 2, .source = "mid", .wants = WANT_REMOTE});
}
TEST(lookahead_input)
{
    same("lookahead input",
         (row){.nodes = 3, .replicas = 2, .source = "input", .wants = WANT_REMOTE});
}
TEST(lookahead_step)
{
    same("lookahead step",
         (row){.nodes = 3, .replicas = 2, .source = "step", .wants = WANT_REMOTE});
}

TEST(without_verification_a_flip_changes_the_digests)
{
    const outcome *want = reference("own");
    static outcome got;
    row control = {.nodes = 1,
                   .replicas = 1,
                   .pool_divisor = 8,
                   .batch = 8,
                   .chunk = 512,
                   .threads = 2,
                   .source = "own",
                   .faults = "flip-wire=0.2,seed=7",
                   .no_verify = true};
    run_row("control: flips, unverified", &control, &got);
    uint32_t differ = 0;
    for (uint32_t i = 0; i < PROMPTS; i++)
        differ += got.digest[i] != want->digest[i];
    EXPECT_MSG(differ > 0, "flipped bits went unnoticed: this test proves nothing");
}

TEST_MAIN()
