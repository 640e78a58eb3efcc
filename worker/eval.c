/* worker/eval.c - how well a model does with a selector.
 *
 * text: bits a byte over targets 1.. of the last `tokens` tokens of each text's first 16384, bytes
 *       by the length of each target; prefill rows only.
 * keys: whether the answer's tokens come out when its prompt is decoded greedily; prefill, then the
 *       decode path with everything it has.
 * The same definitions as tests/oracle/small-model/evaluate.py, so that numbers can be compared. */
#include "worker/verbs.h"

#include "worker/batch.h"
#include "worker/json.h"
#include "worker/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LIVE_MAX = 64, GROUPS_MAX = 32, FILES_MAX = 3, TEXT_TOKENS = 16384, ANSWER_MAX = 64 };

typedef struct group {
    char name[48];
    uint64_t right, cases;
} group;

typedef struct case_file {
    char path[512];
    const char *name; /* within path */
    bool seen_text, seen_keys;
    uint64_t lines, cases, failed;
    double nats, bytes;
    uint64_t right;
    group group[GROUPS_MAX];
    uint32_t group_count;
} case_file;

typedef struct live {
    bool used;
    uint64_t id;
    arena *memory;
    uint32_t file;
    char where[96];
    bool is_text;
    int32_t *ids; /* text: scored; keys: prompt, then the answer */
    uint32_t id_count, answer_count;
    float *score;
    uint32_t taken; /* keys: tokens that came */
    bool wrong;
    char kind[24];
    uint32_t distractors, depth; /* depth in quarters */
} live;

typedef struct eval {
    const args *args;
    arena *memory;
    session session;
    case_file file[FILES_MAX];
    uint32_t file_count, file_at;
    batch_reader *reader; /* of file_at */
    live live[LIVE_MAX];
    uint32_t live_max, live_count;
    live *waiting;
    uint64_t next_id, taken, total, ended, prompt_tokens;
    report report;
} eval;

/* ---- cases ----------------------------------------------------------------------------------- */

static bool case_text(eval *e, live *l, const cJSON *tree, batch_error *error)
{
    const cJSON *words = json_get(tree, "text");
    span whole = json_text(words->valuestring, l->memory);
    if (tokenizer_encode(e->session.words, whole, true, l->memory, &l->ids, &l->id_count) !=
        STATUS_OK) {
        batch_error_set(error, "invalid", "%s: %s", l->where, log_last_error());
        return false;
    }
    uint32_t first = l->id_count < TEXT_TOKENS ? l->id_count : TEXT_TOKENS;
    uint32_t tokens = e->args->tokens < first ? e->args->tokens : first;
    if (tokens < 2 || tokens > e->session.cluster.max_model_len) {
        batch_error_set(error, "invalid", "%s: %u tokens do not fit --max-model-len %u", l->where,
                        tokens, e->session.cluster.max_model_len);
        return false;
    }
    l->is_text = true;
    l->ids += first - tokens;
    l->id_count = tokens;
    l->score = ARENA_NEW(l->memory, float, tokens);
    return true;
}

/* The answer's tokens are those that follow the prompt's in prompt and answer together. */
static bool case_tokens(eval *e, live *l, span prompt, span answer, batch_error *error)
{
    int32_t *alone = NULL;
    uint32_t count = 0;
    char *joined = ARENA_NEW(l->memory, char, prompt.bytes + answer.bytes + 1);
    memcpy(joined, prompt.text, prompt.bytes);
    memcpy(joined + prompt.bytes, answer.text, answer.bytes);
    span both = {joined, prompt.bytes + answer.bytes};
    tokenizer *t = e->session.words;
    if (tokenizer_encode(t, prompt, true, l->memory, &alone, &count) ||
        tokenizer_encode(t, both, true, l->memory, &l->ids, &l->id_count)) {
        batch_error_set(error, "invalid", "%s: %s", l->where, log_last_error());
        return false;
    }
    if (count == 0 || l->id_count <= count || l->id_count - count > ANSWER_MAX ||
        memcmp(alone, l->ids, count * sizeof *alone) != 0) {
        batch_error_set(error, "invalid", "%s: the answer's tokens do not continue the prompt's",
                        l->where);
        return false;
    }
    l->answer_count = l->id_count - count;
    l->id_count = count;
    return true;
}

static bool case_keys(eval *e, live *l, const cJSON *tree, batch_error *error)
{
    const cJSON *prompt = json_get(tree, "prompt"), *answer = json_get(tree, "answer");
    const cJSON *kind = json_get(tree, "kind"), *others = json_get(tree, "distractors");
    const cJSON *depth = json_get(tree, "depth");
    uint64_t distractors = 0;
    bool good = cJSON_IsString(prompt) && cJSON_IsString(answer) &&
                (kind == NULL || cJSON_IsString(kind)) &&
                (others == NULL || json_whole(others, &distractors)) &&
                (depth == NULL || (depth->valuedouble >= 0 && depth->valuedouble <= 1));
    if (!good) {
        batch_error_set(error, "invalid",
                        "%s: a case needs text, or prompt and answer (kind, distractors, depth)",
                        l->where);
        return false;
    }
    (void)snprintf(l->kind, sizeof l->kind, "%s", kind != NULL ? kind->valuestring : "all");
    l->distractors = (uint32_t)distractors;
    l->depth = depth != NULL ? (uint32_t)(depth->valuedouble * 4) : 0;
    return case_tokens(e, l, json_text(prompt->valuestring, l->memory),
                       json_text(answer->valuestring, l->memory), error);
}

static bool unwanted(const eval *e, const cJSON *tree)
{
    bool is_text = cJSON_IsString(json_get(tree, "text"));
    const cJSON *kind = json_get(tree, "kind");
    if (e->args->task != NULL && is_text != (strcmp(e->args->task, "text") == 0)) return true;
    return e->args->kind != NULL && !is_text &&
           (!cJSON_IsString(kind) || strcmp(kind->valuestring, e->args->kind) != 0);
}

/* ---- into the engine ------------------------------------------------------------------------- */

static status fail_case(eval *e, live *l, const char *sentence)
{
    LOG(WARN, "%s", sentence);
    e->file[l->file].failed++;
    e->ended++;
    arena_destroy(l->memory);
    l->used = false;
    return STATUS_OK;
}

static status admit(eval *e, live *l)
{
    worker_request request = {
        .id = l->id,
        .prompt = l->ids,
        .prompt_count = l->id_count,
        .max_new = l->is_text ? 0 : l->answer_count,
        .selector = e->session.selection[0].selector,
        .sampling = {.temperature = 0, .top_p = 1},
        .score = l->score,
    };
    if (l->is_text && l->id_count > e->args->decode_from)
        request.step_count = l->id_count - e->args->decode_from;
    status s = worker_submit(e->session.engine, &request);
    e->waiting = s == STATUS_BUSY ? l : NULL;
    if (s == STATUS_BUSY) return STATUS_OK;
    if (s != STATUS_OK) return fail_case(e, l, log_last_error());
    e->live_count++;
    return STATUS_OK;
}

static status take_case(eval *e, live *l, const batch_line *line)
{
    case_file *file = &e->file[e->file_at];
    batch_error error = {.code = ""};
    cJSON *tree = NULL;
    *l = (live){.file = e->file_at, .memory = arena_create("case")};
    (void)snprintf(l->where, sizeof l->where, "%.60s line %llu", file->name,
                   (unsigned long long)line->number);
    bool good =
        !line->too_long && json_parse(l->where, line->bytes, line->count, &tree) == STATUS_OK;
    if (good && unwanted(e, tree)) {
        json_free(tree);
        arena_destroy(l->memory);
        return STATUS_OK;
    }
    e->taken++;
    file->cases++;
    bool is_text = good && cJSON_IsString(json_get(tree, "text"));
    if (!good) {
        batch_error_set(&error, "invalid", "%s: cannot be read as JSON", l->where);
    } else {
        good = is_text ? case_text(e, l, tree, &error) : case_keys(e, l, tree, &error);
    }
    json_free(tree);
    if (!good) return fail_case(e, l, error.message);
    if (is_text) file->seen_text = true;
    if (!is_text) file->seen_keys = true;
    l->used = true;
    l->id = e->next_id++ * LIVE_MAX + (uint64_t)(l - e->live);
    e->prompt_tokens += l->id_count;
    return admit(e, l);
}

/* The next line of the current file, or of the one after it. NOT_FOUND: no more. */
static status next_line(eval *e, batch_line *out_line)
{
    for (;;) {
        if (e->reader == NULL) {
            if (e->file_at == e->file_count) return STATUS_NOT_FOUND;
            TRY(batch_reader_open(e->file[e->file_at].path, 0, &e->reader));
        }
        status s = batch_reader_next(e->reader, out_line);
        bool enough = e->args->limit != UINT32_MAX && e->file[e->file_at].cases >= e->args->limit;
        if (s != STATUS_NOT_FOUND && !enough) return s;
        batch_reader_close(e->reader);
        e->reader = NULL;
        e->file_at++;
    }
}

static status take_cases(eval *e, bool *out_all)
{
    if (e->waiting != NULL) TRY(admit(e, e->waiting));
    while (e->waiting == NULL) {
        live *place = NULL;
        for (uint32_t i = 0; i < e->live_max && place == NULL; i++)
            if (!e->live[i].used) place = &e->live[i];
        if (place == NULL) break;
        batch_line line;
        status s = next_line(e, &line);
        *out_all = s == STATUS_NOT_FOUND;
        if (*out_all) break;
        TRY(s);
        TRY(take_case(e, place, &line));
    }
    return STATUS_OK;
}

/* ---- results --------------------------------------------------------------------------------- */

static void count_in(case_file *file, const char *name, bool right)
{
    uint32_t i = 0;
    while (i < file->group_count && strcmp(file->group[i].name, name) != 0)
        i++;
    if (i == GROUPS_MAX) return;
    if (i == file->group_count) {
        file->group_count++;
        (void)snprintf(file->group[i].name, sizeof file->group[i].name, "%s", name);
    }
    file->group[i].cases++;
    file->group[i].right += right;
}

static void finish_text(eval *e, const live *l)
{
    case_file *file = &e->file[l->file];
    for (uint32_t i = 1; i < l->id_count; i++) {
        uint32_t bytes = 0;
        (void)tokenizer_token_bytes(e->session.words, l->ids[i], &bytes);
        file->nats -= (double)l->score[i - 1];
        if (!tokenizer_is_special(e->session.words, l->ids[i])) file->bytes += bytes;
    }
}

static void finish_keys(eval *e, const live *l)
{
    case_file *file = &e->file[l->file];
    bool right = !l->wrong && l->taken == l->answer_count;
    char name[48];
    file->right += right;
    (void)snprintf(name, sizeof name, "%s, %u keys", l->kind, 1 + l->distractors);
    count_in(file, name, right);
    if (strcmp(l->kind, "trained") != 0) return;
    count_in(file, "trained", right);
    (void)snprintf(name, sizeof name, "depth %u/4", l->depth);
    count_in(file, name, right);
}

static status take_event(eval *e, const worker_event *event)
{
    live *l = &e->live[event->id % LIVE_MAX];
    CHECK(l->used && l->id == event->id);
    if (event->kind == WORKER_TOKEN) {
        uint32_t at = l->id_count + l->taken;
        if (l->taken >= l->answer_count || l->ids[at] != event->sampled.token) l->wrong = true;
        l->taken++;
        return STATUS_OK;
    }
    status whole;
    if (event->reason == REASON_FAILED &&
        session_store_failed(&e->session, event->result, "the evaluation ends here", &whole))
        return whole;
    e->live_count--;
    if (event->reason == REASON_FAILED) {
        char sentence[256];
        (void)snprintf(sentence, sizeof sentence, "%s: %s", l->where,
                       status_sentence(event->result));
        return fail_case(e, l, sentence);
    }
    if (l->is_text) {
        finish_text(e, l);
    } else {
        finish_keys(e, l);
    }
    e->ended++;
    arena_destroy(l->memory);
    l->used = false;
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const group *)a)->name, ((const group *)b)->name);
}

static double part(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static double bits_a_byte(const case_file *f)
{
    return part(f->nats / log(2.0), f->bytes);
}

static void add_file_json(text *out, const case_file *f)
{
    text_add_string(out, "{");
    text_key(out, "file");
    text_quote_string(out, f->name);
    text_format(out, ",\"cases\":%llu,\"failed\":%llu", (unsigned long long)f->cases,
                (unsigned long long)f->failed);
    if (f->seen_text)
        text_format(out, ",\"bits_per_byte\":%.6f,\"nats\":%.6f,\"bytes\":%.0f", bits_a_byte(f),
                    f->nats, f->bytes);
    if (f->seen_keys) {
        text_format(out, ",\"right\":%llu,\"groups\":{", (unsigned long long)f->right);
        for (uint32_t i = 0; i < f->group_count; i++) {
            const group *g = &f->group[i];
            text_key(out, g->name);
            text_format(out, "{\"share\":%.3f,\"right\":%llu,\"cases\":%llu}",
                        part((double)g->right, (double)g->cases), (unsigned long long)g->right,
                        (unsigned long long)g->cases);
        }
        text_add_string(out, "}");
    }
    text_add_string(out, "}");
}

/* Misses a layer, KV head and decoded token. */
static void add_misses(text *out, session *s)
{
    const worker_stats *w = session_stats(s);
    const model_config *c = &s->model->config;
    double rows = (double)w->decode_rows * c->kv_heads, sum = 0;
    uint32_t layers = c->layers < 64 ? c->layers : 64;
    text_add_string(out, "\"misses\":{\"by_layer\":[");
    for (uint32_t i = 0; i < layers; i++) {
        double value = part((double)w->misses_by_layer[i], rows);
        sum += value;
        text_format(out, "%s%.4f", i > 0 ? "," : "", value);
    }
    text_format(out, "],\"mean\":%.4f,\"tokens\":%llu}", part(sum, layers),
                (unsigned long long)w->decode_rows);
}

static void add_json(text *out, eval *e)
{
    session *s = &e->session;
    const selection *way = &s->selection[0];
    text_format(out, "{\"schema\":\"shoal.eval/1\",\"model\":");
    text_quote_string(out, s->model_name);
    text_format(out, ",\"selector\":\"%s\",\"budget\":%s,\"lookahead\":\"%s\",\"tokens\":%u",
                way->name, way->budget, way->lookahead, e->args->tokens);
    text_add_string(out, ",\"files\":[");
    for (uint32_t i = 0; i < e->file_count; i++) {
        if (i > 0) text_add_string(out, ",");
        add_file_json(out, &e->file[i]);
    }
    text_add_string(out, "],");
    add_misses(out, s);
    text_format(out, ",\"pool_bytes\":%llu,\"prompt_tokens\":%llu,\"wall_s\":%.3f,\"numerics\":",
                (unsigned long long)s->cluster.device_pool_bytes,
                (unsigned long long)e->prompt_tokens, report_seconds(&e->report));
    text_quote_string(out, kern_numerics_id(s->backend));
    text_add_string(out, "}\n");
}

static void add_text(text *out, eval *e)
{
    const selection *way = &e->session.selection[0];
    text_format(out, "%s %s, lookahead %s\n", way->name, way->budget, way->lookahead);
    for (uint32_t i = 0; i < e->file_count; i++) {
        const case_file *f = &e->file[i];
        if (f->cases == 0) continue;
        text_format(out, "%-24s %llu cases, %llu failed\n", f->name, (unsigned long long)f->cases,
                    (unsigned long long)f->failed);
        if (f->seen_text)
            text_format(out, "  %-22s %.4f over %.0f bytes\n", "bits a byte", bits_a_byte(f),
                        f->bytes);
        for (uint32_t j = 0; j < f->group_count; j++) {
            const group *g = &f->group[j];
            text_format(out, "  %-22s %.3f (%llu of %llu)\n", g->name,
                        part((double)g->right, (double)g->cases), (unsigned long long)g->right,
                        (unsigned long long)g->cases);
        }
    }
    if (session_stats(&e->session)->decode_rows > 0) {
        text_add_string(out, "a layer, KV head and token: ");
        add_misses(out, &e->session);
        text_add_string(out, "\n");
    }
}

/* ---- the run --------------------------------------------------------------------------------- */

static void draw(eval *e)
{
    if (!report_due(&e->report)) return;
    char line[160];
    const worker_stats *w = session_stats(&e->session);
    (void)snprintf(line, sizeof line, "%llu/%llu cases  %llu prompt rows  %llu decoded",
                   (unsigned long long)e->ended, (unsigned long long)e->total,
                   (unsigned long long)w->prefill_rows, (unsigned long long)w->decode_rows);
    report_draw(&e->report, line, part((double)e->ended, (double)e->total));
}

static status run(eval *e)
{
    worker_event event;
    bool all = false;
    for (;;) {
        if (session_interrupted()) return FAIL(CANCELED, "interrupted");
        if (!all || e->waiting != NULL) TRY(take_cases(e, &all));
        if (all && e->live_count == 0 && e->waiting == NULL) return STATUS_OK;
        if (e->live_count > 0 || e->waiting != NULL) {
            status s = worker_step(e->session.engine);
            if (s != STATUS_PENDING) TRY(s);
        }
        while (worker_next_event(e->session.engine, &event))
            TRY(take_event(e, &event));
        draw(e);
    }
}

static status add_file(eval *e, const char *folder, const char *name)
{
    case_file *f = &e->file[e->file_count];
    int count = snprintf(f->path, sizeof f->path, "%s%s%s", folder, folder[0] ? "/" : "", name);
    if (count < 0 || (size_t)count >= sizeof f->path) return FAIL(INVALID, "%s: too long", name);
    const char *slash = strrchr(f->path, '/');
    f->name = slash != NULL ? slash + 1 : f->path;
    e->file_count++;
    return STATUS_OK;
}

static status find_files(eval *e)
{
    static const char *const names[FILES_MAX] = {"text-16k.jsonl", "keys-16k.jsonl",
                                                 "keys-4k.jsonl"};
    struct stat info;
    const char *input = e->args->input;
    if (stat(input, &info) != 0) return FAIL(NOT_FOUND, "%s: no such file or folder", input);
    if (!S_ISDIR(info.st_mode)) return add_file(e, "", input);
    for (int i = 0; i < FILES_MAX; i++) {
        char path[512];
        (void)snprintf(path, sizeof path, "%s/%s", input, names[i]);
        bool is_text = strncmp(names[i], "text", 4) == 0;
        bool wanted = e->args->task == NULL || is_text == (strcmp(e->args->task, "text") == 0);
        if (wanted && stat(path, &info) == 0) TRY(add_file(e, input, names[i]));
    }
    if (e->file_count == 0)
        return FAIL(NOT_FOUND, "%s: holds none of text-16k.jsonl, keys-16k.jsonl, keys-4k.jsonl",
                    input);
    return STATUS_OK;
}

/* How many cases there are, for the time left. */
static status count_cases(eval *e)
{
    for (uint32_t i = 0; i < e->file_count; i++) {
        batch_reader *reader = NULL;
        batch_line line;
        status s;
        uint64_t lines = 0;
        TRY(batch_reader_open(e->file[i].path, 0, &reader));
        while ((s = batch_reader_next(reader, &line)) == STATUS_OK)
            lines++;
        batch_reader_close(reader);
        if (s != STATUS_NOT_FOUND) return s;
        e->total += e->args->limit < lines ? e->args->limit : lines;
    }
    return STATUS_OK;
}

static status open_all(eval *e)
{
    TRY(find_files(e));
    TRY(count_cases(e));
    TRY(session_open(e->args, &e->session));
    TRY(session_start(&e->session, NULL));
    uint32_t want = e->session.cluster.max_num_seqs + 2;
    e->live_max = want < LIVE_MAX ? want : LIVE_MAX;
    return STATUS_OK;
}

static status finish(eval *e)
{
    uint64_t failed = 0;
    text out;
    text_start(&out, e->memory);
    for (uint32_t i = 0; i < e->file_count; i++) {
        qsort(e->file[i].group, e->file[i].group_count, sizeof e->file[i].group[0], by_name);
        failed += e->file[i].failed;
    }
    if (e->taken == 0) return FAIL(INVALID, "%s: holds no case that was asked for", e->args->input);
    if (e->args->json) {
        add_json(&out, e);
    } else {
        add_text(&out, e);
    }
    if (fputs(out.bytes, stdout) < 0 || fflush(stdout) != 0)
        return FAIL(IO, "the result cannot be written");
    if (failed == 0) return STATUS_OK;
    (void)fprintf(stderr, "shoal-worker: %llu of %llu cases failed\n", (unsigned long long)failed,
                  (unsigned long long)e->taken);
    return STATUS_NOT_FOUND; /* exit code 1 */
}

static void close_all(eval *e)
{
    if (e->session.memory != NULL) session_close(&e->session); /* first: score belongs to a case */
    for (uint32_t i = 0; i < e->live_max; i++)
        if (e->live[i].used) arena_destroy(e->live[i].memory);
    batch_reader_close(e->reader);
    arena_destroy(e->memory);
}

int worker_eval(int argc, char **argv)
{
    args a;
    status s = args_parse(ARGS_EVAL, argc, argv, &a);
    if (s != STATUS_OK) return status_exit_code(s);
    if (a.help) {
        args_help(ARGS_EVAL, stdout);
        return 0;
    }
    log_config log = {.level = LOG_WARN, .program = "shoal-worker"};
    (void)log_level_from_name(a.log_level, &log.level);
    log_setup(&log);
    session_catch_signals();
    arena *memory = arena_create("eval");
    eval *e = ARENA_NEW(memory, eval, 1);
    e->args = &a;
    e->memory = memory;
    s = open_all(e);
    if (s == STATUS_OK) {
        report_begin(&e->report, a.quiet);
        s = run(e);
        report_end(&e->report);
        if (s == STATUS_OK) s = finish(e);
    }
    close_all(e);
    return status_exit_code(s);
}
