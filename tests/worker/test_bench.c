/* shoal-worker bench decode: the walk that drives churn, what the engine sees of it, refusals,
 * faults, the timeline, interruption. */
#include "tests/worker/program.h"

#include "worker/bench.h"
#include "worker/json.h"

#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TINY TEST_SOURCE_DIR "/tests/bench/geometry/tiny"

static program_run run;

static kern_selector nosa(void)
{
    return (kern_selector){.window = 32,
                           .stride = 16,
                           .block = 64,
                           .init = 1,
                           .local = 16,
                           .query = 33,
                           .total = 64,
                           .fill_by_importance = true,
                           .bias = true};
}

static void expect_near(double got, double want, double part, const char *what)
{
    EXPECT_MSG(fabs(got - want) <= part * want, "%s: %g, not %g within %g %%", what, got, want,
               100 * part);
}

TEST(the_walk_repeats_what_pools_of_63_80_and_128_slots_were_measured_to_miss)
{
    kern_selector selector = nosa();
    for (uint32_t dims = 20; dims <= 40; dims += 20) {
        walk_shape shape = walk_shape_of(&selector, 16128, dims);
        EXPECT_EQ_U64(shape.hot, WALK_HOT);
        EXPECT_EQ_U64(shape.picks, 15);
        EXPECT_EQ_U64(shape.fill, 31);
        walk w;
        EXPECT(walk_calibrate(&shape, 3.58, &w) == STATUS_OK);
        uint64_t seed = test_seed() + 5;
        expect_near(walk_misses(&shape, &w, WALK_EXACT, 1000, seed), 3.58, 0.06, "63 slots");
        expect_near(walk_misses(&shape, &w, 80, 1000, seed), 1.20, 0.15, "80 slots");
        expect_near(walk_misses(&shape, &w, 128, 1000, seed), 0.71, 0.15, "128 slots");
    }
}

TEST(other_churns_are_met_and_impossible_ones_refused)
{
    kern_selector selector = nosa();
    walk_shape shape = walk_shape_of(&selector, 131072, 40);
    static const double churns[] = {0.5, 1.2, 6};
    for (int i = 0; i < 3; i++) {
        walk w;
        EXPECT(walk_calibrate(&shape, churns[i], &w) == STATUS_OK);
        expect_near(walk_misses(&shape, &w, WALK_EXACT, 1000, 9), churns[i], 0.2, "churn");
    }
    walk w;
    EXPECT(walk_calibrate(&shape, 16, &w) == STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "15 picks of 234 candidates at most");
    walk_shape short_one = walk_shape_of(&selector, 1024, 40);
    EXPECT_EQ_U64(short_one.hot, 0);
    EXPECT(walk_calibrate(&short_one, 1, &w) == STATUS_INVALID);
}

/* The row called `name` of the JSON lines in run.out; the caller frees it. */
static cJSON *row_of(const char *name)
{
    char *copy = strdup(run.out), *rest = NULL;
    cJSON *found = NULL;
    for (char *line = strtok_r(copy, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        cJSON *row = cJSON_Parse(line);
        EXPECT_MSG(row != NULL, "%s", line);
        EXPECT_EQ_STR(json_get(row, "schema")->valuestring, "shoal.bench/1");
        if (found == NULL && strcmp(json_get(row, "bench")->valuestring, name) == 0)
            found = row;
        else
            cJSON_Delete(row);
    }
    free(copy);
    EXPECT_MSG(found != NULL, "no row %s in %s%s", name, run.out, run.err);
    return found;
}

static double number_of(const cJSON *row, const char *key)
{
    EXPECT_MSG(cJSON_IsNumber(json_get(row, key)), "%s", key);
    return json_get(row, key)->valuedouble;
}

TEST(the_engine_misses_what_the_walk_was_set_to)
{
    static const struct {
        const char *margin;
        double misses;
    } pools[] = {{"0", 3.58}, {"27", 1.20}, {"100", 0.71}};
    for (int i = 0; i < 3; i++) {
        PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "16K", "--batch", "2",
                     "--churn", "3.58", "--no-prefetch", "--runs", "3", "--victim-margin",
                     pools[i].margin, "--quiet", "-o", "json");
        EXPECT_MSG(run.exit_code == 0, "%s", run.err);
        cJSON *row = row_of("decode");
        EXPECT(number_of(row, "tokens_off_the_walk") == 0);
        EXPECT(number_of(row, "steps") == 192);
        expect_near(number_of(row, "misses_a_head_and_step"), pools[i].misses, 0.25, "misses");
        EXPECT(cJSON_IsFalse(json_get(row, "simulated")));
        EXPECT_EQ_I64(cJSON_GetArraySize(json_get(row, "runs")), 3);
        cJSON_Delete(row);
        cJSON_Delete(row_of("step_bound"));
        cJSON_Delete(row_of("exposed"));
    }
}

TEST(a_profile_counts_every_op_and_no_more_time_than_the_steps_took)
{
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "2K", "--batch", "2",
                 "--budget", "1,4,10,16", "--runs", "2", "--steps", "8", "--quiet", "--profile",
                 "-o", "json");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    cJSON *step = row_of("step_bound");
    double whole[2], ops[2] = {0};
    for (int i = 0; i < 2; i++)
        whole[i] = cJSON_GetArrayItem(json_get(step, "runs"), i)->valuedouble;
    char *rest = NULL;
    double products = 0;
    for (char *line = strtok_r(run.out, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        cJSON *row = cJSON_Parse(line);
        if (strcmp(json_get(row, "bench")->valuestring, "op") == 0) {
            for (int i = 0; i < 2; i++)
                ops[i] += cJSON_GetArrayItem(json_get(row, "runs"), i)->valuedouble;
            if (strcmp(json_get(row, "op")->valuestring, "linear") == 0)
                products = number_of(row, "calls_a_step");
        }
        cJSON_Delete(row);
    }
    EXPECT(products == 2 * 4 + 1); /* layers x (q k v, o, gate and up, down), and the head */
    for (int i = 0; i < 2; i++)
        EXPECT_MSG(ops[i] > 0 && ops[i] <= whole[i], "run %d: %g of %g ms", i, ops[i], whole[i]);
    cJSON_Delete(step);
}

TEST(a_simulated_store_is_labelled_and_its_round_trip_shows)
{
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "2K,3000", "--batch", "3",
                 "--budget", "1,4,10,16", "--rtt-us", "3000", "--gbit", "10", "--no-prefetch",
                 "--victim-margin", "0", "--runs", "2", "--steps", "8", "--warm", "4", "--quiet",
                 "-o", "json");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    cJSON *row = row_of("decode"), *exposed = row_of("exposed");
    EXPECT(cJSON_IsTrue(json_get(row, "simulated")));
    EXPECT(number_of(row, "remote_bytes_a_step") > 0);
    EXPECT(number_of(row, "host_bytes_a_step") == 0);
    EXPECT(number_of(exposed, "value") >= 3); /* two layers, at least one of which waits */
    cJSON_Delete(row);
    cJSON_Delete(exposed);
}

TEST(faults_change_counters_and_lose_nothing)
{
    static const char *const faults[] = {"kill", "flip", "pause"};
    /* The node that flips is asked first for one in three pairs of a context and a layer: all of 32
     * pass it by once in 400,000 runs. */
    for (int i = 0; i < 3; i++) {
        bool flips = strcmp(faults[i], "flip") == 0;
        PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "2K", "--batch",
                     flips ? "16" : "2", "--budget", "1,4,10,16", "--victim-margin", "0", "--fault",
                     faults[i], "--runs", "3", "--steps", "70", "--quiet", "--log-level", "error",
                     "-o", "json");
        EXPECT_MSG(run.exit_code == 0, "%s: %s", faults[i], run.err);
        cJSON *row = row_of("decode");
        EXPECT(number_of(row, "tokens_off_the_walk") == 0);
        if (flips) EXPECT_MSG(number_of(row, "corrupt") > 0, "no reply was flipped: %s", run.out);
        cJSON_Delete(row);
    }
}

TEST(all_kinds_of_selection_run_resident_and_parked)
{
    static const char *const ways[][6] = {
        {"--selector", "full"},
        {"--selector", "infllmv2", "--resident"},
        {"--resident"},
        {"--lookahead", "step", "--nodes", "1"},
        {"--guess", "200%", "--nodes", "1"},
        {"--two-batch", "--nodes", "1"},
        {"--nosi-like", "--device", "ref"},
        {"--device-pool", "9MiB", "--park-quantum", "4"},
        {"--kv-memory", "20MiB", "--batch", "max"},
    };
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *argv[PROGRAM_ARGS_MAX] = {
            "bench",   "decode", "--model", TINY, "--contexts", "5000", "--runs", "2",
            "--steps", "6",      "--warm",  "2",  "--quiet",    "-o",   "json"};
        int count = 15;
        for (int k = 0; k < 6 && ways[i][k] != NULL; k++)
            argv[count++] = ways[i][k];
        program_call(argv, &run);
        EXPECT_MSG(run.exit_code == 0, "%s: %s", ways[i][0], run.err);
        cJSON *row = row_of(strcmp(ways[i][0], "--nosi-like") == 0 ? "nosi_like" : "decode");
        EXPECT(number_of(row, "value") > 0);
        if (i == 1 || i == 2) EXPECT(number_of(row, "misses_a_head_and_step") == 0);
        bool parks = strcmp(ways[i][0], "--device-pool") == 0;
        if (parks) EXPECT(number_of(row, "parks") > 0);
        cJSON_Delete(row);
    }
}

TEST(several_workers_run_at_once_beside_one_of_them_alone)
{
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "2K", "--device",
                 "cpu,ref,cpu", "--batch", "2", "--budget", "1,4,10,16", "--threads", "1", "--runs",
                 "2", "--steps", "6", "--warm", "4", "--quiet", "-o", "json");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    cJSON *row = row_of("two_gpu");
    EXPECT(number_of(row, "workers") == 3);
    EXPECT(number_of(row, "steps_a_worker") == 12);
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(row, "runs")), 2);
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(row, "peer_runs")), 2);
    EXPECT_EQ_I64(cJSON_GetArraySize(json_get(row, "batches")), 3);
    EXPECT(number_of(row, "tokens_off_the_walk") == 0);
    EXPECT(number_of(row, "overlap") >= 0 && number_of(row, "overlap") <= 1); /* of short runs */
    double ratio = number_of(row, "value") / number_of(row, "peer_value");
    expect_near(number_of(row, "ratio"), ratio, 0.001, "ratio");
    EXPECT(strchr(run.out, '\n') == run.out + strlen(run.out) - 1);
    cJSON_Delete(row);
}

TEST(a_worker_that_cannot_start_ends_them_all_in_one_sentence)
{
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "2K", "--device",
                 "cpu,cuda:9999", "--runs", "1", "--quiet");
    EXPECT_MSG(run.exit_code != 0 && run.exit_code != -1, "%s", run.out);
    EXPECT_EQ_STR(run.out, "");
    EXPECT_MSG(strchr(run.err, '\n') == run.err + strlen(run.err) - 1, "more than a line: %s",
               run.err);
}

TEST(real_weights_decode_real_text)
{
    arena *memory = arena_create("bench");
    char *line = arena_alloc(memory, 1 << 18, 1);
    size_t count = (size_t)snprintf(line, 64, "{\"text\":\"");
    for (int i = 0; i < 1200; i++)
        count += (size_t)snprintf(line + count, 64, "word%d of %d. ", i, i * 7);
    snprintf(line + count, 8, "\"}\n");
    program_write("text.jsonl", line);
    PROGRAM_CALL(&run, "bench", "decode", "--model", SMALL_MODEL, "--text", "@text.jsonl",
                 "--batch", "1", "--contexts", "1500", "--budget", "8", "--runs", "2", "--steps",
                 "10", "--quiet", "-o", "json");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    cJSON *row = row_of("decode");
    EXPECT(number_of(row, "misses_a_head_and_step") > 0);
    cJSON_Delete(row);
    /* More contexts than host slots hold at once: each waits for the one before to be stored. */
    CHECK(count + 3 < 1 << 16);
    for (int i = 1; i < 4; i++)
        memcpy(line + (size_t)i * (count + 3), line, count + 3);
    line[4 * (count + 3)] = '\0';
    program_write("text.jsonl", line);
    PROGRAM_CALL(&run, "bench", "decode", "--model", SMALL_MODEL, "--text", "@text.jsonl",
                 "--batch", "4", "--contexts", "4000", "--budget", "8", "--runs", "2", "--steps",
                 "10", "--nodes", "2", "--quiet", "-o", "json");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    row = row_of("decode");
    EXPECT(number_of(row, "remote_bytes_a_step") > 0);
    cJSON_Delete(row);
    arena_destroy(memory);
}

TEST(what_makes_no_sense_is_refused_in_one_sentence)
{
    static const struct {
        const char *flag[6];
        const char *words;
    } rows[] = {
        {{"--churn", "1", "--selector", "full"}, "--churn has no meaning here: full attention"},
        {{"--churn", "200"}, "at most"},
        {{"--churn", "no"}, "--churn no: must be a number from 0.01 to 1000"},
        {{"--replicas", "2"}, "--replicas has no meaning here: there is no store"},
        {{"--host-tier", "1GiB"}, "--host-tier has no meaning here"},
        {{"--guess", "100%"}, "--guess has no meaning here: there is no store to ask"},
        {{"--guess", "100"}, "%"},
        {{"--guess", "100%", "--nodes", "1", "--no-prefetch"}, "nothing is fetched ahead"},
        {{"--guess", "100%", "--nodes", "1", "--lookahead", "mid"}, "are known, not guessed"},
        {{"--guess", "1%", "--nodes", "1", "--selector", "full"}, "full attention selects nothing"},
        {{"--two-batch", "--lookahead", "mid"}, "rows that look ahead wait less"},
        {{"--two-batch", "--resident"}, "--two-batch has no meaning here: with --resident"},
        {{"--resident", "--rtt-us", "5"}, "--rtt-us has no meaning here: with --resident"},
        {{"--resident", "--churn", "5"}, "--churn has no meaning here: with --resident"},
        {{"--nosi-like", "--victim-margin", "5"}, "--nosi-like is an exact fit"},
        {{"--nodes", "1", "--fault", "kill"}, "--replicas 2: more than the 1 nodes"},
        {{"--nodes", "2", "--fault", "kill"}, "more --nodes than --replicas (2): with 1 left"},
        {{"--fault", "flip", "--replicas", "1"}, "--fault flip needs --replicas 2"},
        {{"--fault", "pause", "--runs", "2"}, "--fault needs --runs 3"},
        {{"--cluster", "no.yaml", "--rtt-us", "5"}, "the nodes of --cluster are real"},
        {{"--cluster", "no.yaml"}, "no.yaml"},
        {{"--device-pool", "1GiB", "--kv-memory", "1GiB"}, "exclude each other"},
        {{"--batch", "max"}, "--batch max needs --kv-memory or --device-pool"},
        {{"--batch", "0"}, "--batch 0: must be max or a whole number"},
        {{"--batch", "max", "--kv-memory", "100KiB"}, "not one context of 4096 tokens fits"},
        {{"--contexts", "4K,"}, "--contexts 4K,: lengths of 128 tokens and more"},
        {{"--contexts", "100K,16M"}, "--contexts"},
        {{"--contexts", "200000"}, "exceed the 131072 positions"},
        {{"--text", "some.jsonl"}, "has no weights"},
        {{"--device", "tpu"}, "must be one of cpu|ref|cuda"},
        {{"--device", "cpu,"}, "--device cpu,: must be one of"},
        {{"--device", "cuda:"}, "--device cuda:: must be one of"},
        {{"--device", "cuda:1x"}, "--device cuda:1x: must be one of"},
        {{"--device", "cpu,cuda:12345678901234"}, "must be one of"},
        {{"--device", "cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu,cpu"},
         "--device: at most 16 workers"},
        {{"--device", "cpu,cpu", "--rtt-us", "5"}, "--rtt-us has no meaning here: --device names"},
        {{"--device", "cpu,cpu", "--profile"}, "--profile has no meaning here: --device names"},
        {{"--selector", "best"}, "selector \"best\""},
        {{"--gbit"}, "--gbit needs a value"},
        {{"--frob"}, "unknown flag --frob"},
        {{"extra"}, "\"extra\" is too much"},
        {{"--device-pool", "64"}, "must be a size with its unit"},
        {{"--device-pool", "64KiB"}, "is too small for one step"},
        {{"--hbm", "1MiB"}, "give --hbm "},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *argv[PROGRAM_ARGS_MAX] = {"bench", "decode", "--model", TINY, "--quiet"};
        for (int k = 0; k < 6 && rows[i].flag[k] != NULL; k++)
            argv[5 + k] = rows[i].flag[k];
        program_call(argv, &run);
        EXPECT_MSG(run.exit_code != 0 && run.exit_code != -1, "%s", rows[i].words);
        EXPECT_EQ_STR(run.out, "");
        EXPECT_MSG(strstr(run.err, rows[i].words) != NULL, "no \"%s\" in %s", rows[i].words,
                   run.err);
        EXPECT_MSG(strchr(run.err, '\n') == run.err + strlen(run.err) - 1, "more than a line: %s",
                   run.err);
    }
    PROGRAM_CALL(&run, "bench", "decode", "--churn", "1");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "needs --model");
    PROGRAM_CALL(&run, "bench", "frob");
    EXPECT_EQ_I64(run.exit_code, 2);
    EXPECT_HAS_STR(run.err, "bench what?");
}

TEST(the_timeline_names_ops_layers_and_steps)
{
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--contexts", "4K", "--runs", "2",
                 "--steps", "4", "--trace", "@trace.json", "--quiet");
    EXPECT_MSG(run.exit_code == 0, "%s", run.err);
    arena *memory = arena_create("trace");
    cJSON *tree = cJSON_Parse(program_read(memory, "trace.json"));
    EXPECT(tree != NULL);
    const cJSON *events = json_get(tree, "traceEvents"), *at;
    int steps = 0, attends[2] = {0};
    cJSON_ArrayForEach(at, events)
    {
        const char *name = json_get(at, "name")->valuestring;
        steps += strcmp(name, "step") == 0;
        if (strcmp(name, "attend") != 0) continue;
        double layer = number_of(json_get(at, "args"), "layer");
        EXPECT(layer == 0 || layer == 1);
        attends[(int)layer]++;
    }
    EXPECT_EQ_I64(attends[0], 4); /* the last run's steps */
    EXPECT_EQ_I64(attends[1], 4);
    EXPECT_EQ_I64(steps, 8);
    cJSON_Delete(tree);
    arena_destroy(memory);
    PROGRAM_CALL(&run, "bench", "decode", "--model", TINY, "--runs", "1", "--steps", "2", "--trace",
                 "/nowhere/trace.json", "--quiet");
    EXPECT_EQ_I64(run.exit_code, 1);
    EXPECT_HAS_STR(run.err, "/nowhere/trace.json: cannot be written");
}

static void interrupt_at_work(const char *const *argv)
{
    pid_t pid = program_start(argv);
    for (int i = 0; i < 200; i++) { /* the plan is printed when the engine stands */
        arena *memory = arena_create("err");
        char *err = program_read(memory, "stderr");
        bool planned = err != NULL && strstr(err, "memory plan") != NULL;
        arena_destroy(memory);
        if (planned) break;
        poll(NULL, 0, 20);
    }
    EXPECT(kill(pid, SIGINT) == 0);
    program_wait(pid, &run);
    EXPECT_EQ_I64(run.exit_code, 130);
    EXPECT_EQ_STR(run.out, "");
    EXPECT_HAS_STR(run.err, "interrupted");
}

TEST(an_interrupt_ends_it_at_once_and_leaves_nothing)
{
    interrupt_at_work((const char *const[]){"bench", "decode", "--model", TINY, "--contexts", "4K",
                                            "--nodes", "2", "--steps", "60000", "--runs", "1",
                                            NULL});
    interrupt_at_work((const char *const[]){"bench", "decode", "--model", TINY, "--contexts", "4K",
                                            "--device", "cpu,cpu", "--steps", "30000", "--runs",
                                            "1", NULL});
}

/* From the root of the sources, as a reader would. */
TEST(the_examples_of_the_help_run)
{
    char command[4096];
    int examples = 0;
    PROGRAM_CALL(&run, "bench", "decode", "--help");
    EXPECT_EQ_I64(run.exit_code, 0);
    EXPECT_EQ_STR(run.err, "");
    char *at = strstr(run.out, "examples:\n");
    EXPECT(at != NULL);
    for (at += strlen("examples:\n"); strncmp(at, "  shoal-worker ", 15) == 0; examples++) {
        char *end = strchr(at, '\n');
        while (end != NULL && end[-1] == '\\')
            end = strchr(end + 1, '\n');
        EXPECT(end != NULL);
        snprintf(command, sizeof command, "cd '%s' && '%s/bin/'%.*s >/dev/null 2>&1",
                 TEST_SOURCE_DIR, TEST_BINARY_DIR, (int)(end - at - 2), at + 2);
        int how = system(command);
        EXPECT_MSG(how == 0, "%s ends with %d", command, how);
        at = end + 1;
    }
    EXPECT_EQ_I64(examples, 2);
}

TEST_MAIN()
