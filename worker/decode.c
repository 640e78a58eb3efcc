/* worker/decode.c - a batch file through the engine, answers in the order they are finished.
 *
 * Lines are read as the engine has room, so memory does not grow with the file. Each line ends as
 * exactly one output line, unless the run ends first (interrupted, disk full, store gone): then
 * nothing is said about it, and --resume takes it up again. With --deterministic lines wait for
 * those before them, in a window.
 *
 * The file is read twice: first for the selections that lines ask for, which size the engine. */
#include "worker/verbs.h"

#include "worker/answer.h"
#include "worker/engine.h"
#include "worker/json.h"
#include "worker/profile.h"
#include "worker/report.h"

#include <ctype.h>
#include <string.h>

enum {
    LIVE_MIN = 16,
    LIVE_MAX = 1024, /* requests given to the engine and not finished */
    WINDOW = 4096,   /* lines that may wait for an earlier one to be written */
};

typedef struct live {
    bool used;
    uint64_t id;      /* the engine's name for it */
    uint64_t ordinal; /* among the lines of this run */
    uint64_t line;
    arena *memory;
    batch_request request;
    const selection *way;
    answer answer;
    const int32_t *ids;
    uint32_t id_count;
} live;

typedef struct held {
    arena *memory; /* NULL: not finished */
    text line;
} held;

typedef struct decode {
    const args *args;
    arena *memory;
    session session;
    batch_reader *reader;
    batch_writer *writer;
    batch_names *seen, *done;
    live *live;
    uint32_t live_max, live_count;
    live *waiting; /* refused with BUSY: goes in next */
    bool read_all;
    held *held; /* [WINDOW] by ordinal, --deterministic only */
    uint64_t ordinal_next, ordinal_written;
    text digests; /* uint64_t a line, by ordinal */
    text key;
    char where[128]; /* "in.jsonl line 3" */
    uint64_t lines;  /* in the file */
    report_decode run;
    profile profile;
    report report;
} decode;

/* ---- lines out ------------------------------------------------------------------------------- */

static void keep_digest(decode *d, uint64_t ordinal, const text *line)
{
    size_t need = (size_t)(ordinal + 1) * sizeof(uint64_t);
    if (need > d->digests.count) {
        char *to = text_reserve(&d->digests, need - d->digests.count);
        memset(to, 0, need - d->digests.count);
        d->digests.count = need;
    }
    uint64_t digest = bytes_digest(line->bytes, line->count, 0);
    memcpy(d->digests.bytes + ordinal * sizeof digest, &digest, sizeof digest);
}

/* The line of `ordinal`, in `memory`, which goes with it. */
static status emit(decode *d, uint64_t ordinal, arena *memory, const text *line)
{
    if (!d->args->deterministic) {
        status s = batch_writer_line(d->writer, line->bytes, line->count);
        arena_destroy(memory);
        return s;
    }
    held *place = &d->held[ordinal % WINDOW];
    CHECK(place->memory == NULL);
    *place = (held){memory, *line};
    for (;;) {
        place = &d->held[d->ordinal_written % WINDOW];
        if (place->memory == NULL) return STATUS_OK;
        status s = batch_writer_line(d->writer, place->line.bytes, place->line.count);
        arena_destroy(place->memory);
        place->memory = NULL;
        TRY(s);
        d->ordinal_written++;
    }
}

static status emit_error(decode *d, live *l, const batch_error *error)
{
    text line;
    text_start(&line, l->memory);
    batch_write_error(&line, l->line, l->request.custom_id, error);
    keep_digest(d, l->ordinal, &line);
    d->run.failed++;
    /* Some causes were logged where they were found. */
    if (strcmp(log_last_error(), error->message) != 0) LOG(WARN, "%s", error->message);
    return emit(d, l->ordinal, l->memory, &line);
}

static status emit_answer(decode *d, live *l, const worker_event *event)
{
    answer_finish(&l->answer);
    const worker_blocks *b = &event->blocks;
    batch_answer a = {
        .line = l->line,
        .custom_id = l->request.custom_id,
        .model = l->request.model != NULL ? l->request.model : d->session.model_name,
        .chat = l->request.chat,
        .content = l->answer.content.bytes != NULL ? l->answer.content.bytes : "",
        .content_bytes = l->answer.content.count,
        .stopped = l->answer.stopped || event->reason == REASON_EOS,
        .prompt_tokens = l->id_count,
        .completion_tokens = l->answer.tokens,
        .selector = l->way->name,
        .lookahead = l->way->lookahead,
        .logits_digest = l->answer.logits_digest,
        .token_digest = l->answer.token_digest,
        .blocks = {b->resident, b->host, b->remote, b->recomputed},
        .total_ms = (double)(event->finished_ns - event->submitted_ns) / 1e6,
        .void_rows = event->void_rows,
        .recomputes = event->recomputes,
        .parks = event->parks,
        .created_s = clock_wall_ms() / 1000,
    };
    if (event->first_token_ns != 0)
        a.ttft_ms = (double)(event->first_token_ns - event->submitted_ns) / 1e6;
    (void)snprintf(a.budget, sizeof a.budget, "%s", l->way->budget);
    const char *logprobs = answer_logprobs(&l->answer);
    text line;
    text_start(&line, l->memory);
    batch_write_answer(&line, &a, logprobs, true);
    keep_digest(d, l->ordinal, &line);
    if (!d->args->deterministic) {
        line.count = 0;
        batch_write_answer(&line, &a, logprobs, false);
    }
    d->run.prompt_tokens += l->id_count;
    d->run.kv_tokens += l->id_count + l->answer.tokens;
    return emit(d, l->ordinal, l->memory, &line);
}

/* ---- lines in -------------------------------------------------------------------------------- */

static void error_of(batch_error *error, const decode *d, status s)
{
    char code[BATCH_CODE_MAX];
    size_t i = 0;
    for (const char *name = status_name(s); name[i] != '\0' && i + 1 < sizeof code; i++)
        code[i] = (char)tolower((unsigned char)name[i]);
    code[i] = '\0';
    batch_error_set(error, code, "%s: %s", d->where, log_last_error());
}

static selector_choice choice_of(const batch_request *r)
{
    return (selector_choice){r->selector, r->budget, r->lookahead};
}

/* Prompt, selection and length of a line that was understood. False: error says why. */
static bool prepare(decode *d, live *l, batch_error *error)
{
    session *s = &d->session;
    batch_request *r = &l->request;
    selector_choice choice = choice_of(r);
    bool own = choice.name != NULL || choice.budget != NULL || choice.source != NULL;
    l->way = own ? session_select(s, &choice) : &s->selection[0];
    if (l->way == NULL || l->way->result != STATUS_OK) {
        batch_error_set(error, "invalid_request", "%s: %s", d->where,
                        l->way != NULL ? l->way->sentence
                                       : "the batch asks for too many selections");
        return false;
    }
    text chat;
    text_start(&chat, l->memory);
    char sentence[BATCH_MESSAGE_MAX];
    if (r->chat && !session_chat(s, r, &chat, sentence, sizeof sentence)) {
        batch_error_set(error, "unsupported", "%s: %s", d->where, sentence);
        return false;
    }
    int32_t *ids = NULL;
    l->ids = r->ids;
    l->id_count = r->id_count;
    status done = STATUS_OK;
    span prompt = r->chat ? (span){chat.bytes, chat.count} : (span){r->prompt, r->prompt_bytes};
    if (prompt.bytes > 0) /* a chat template writes its own special tokens */
        done = tokenizer_encode(s->words, prompt, !r->chat, l->memory, &ids, &l->id_count);
    if (ids != NULL) l->ids = ids;
    if (done != STATUS_OK) return error_of(error, d, done), false;
    uint64_t need = (uint64_t)l->id_count + r->max_tokens;
    if (l->id_count > 0 && need <= s->cluster.max_model_len) return true;
    if (l->id_count == 0) {
        batch_error_set(error, "invalid_request", "%s: the prompt has no tokens", d->where);
    } else {
        batch_error_set(error, "context_length_exceeded",
                        "%s: too long: %u prompt tokens and %u new ones are more than the %u that"
                        " fit",
                        d->where, l->id_count, r->max_tokens, s->cluster.max_model_len);
    }
    return false;
}

/* Whether this line is to be served; an error is left in `error` when it is to be refused. */
static bool wanted(decode *d, const live *l, batch_error *error)
{
    const char *id = l->request.custom_id;
    bool again = id != NULL && !batch_names_add(d->seen, id, strlen(id));
    if (again)
        batch_error_set(error, "duplicate_custom_id", "%s: custom_id \"%.128s\" was seen before",
                        d->where, id);
    batch_done_key(id, again, l->line, &d->key);
    return !batch_names_has(d->done, d->key.bytes, d->key.count);
}

static void set_where(decode *d, uint64_t line)
{
    const char *path = batch_reader_path(d->reader), *slash = strrchr(path, '/');
    (void)snprintf(d->where, sizeof d->where, "%.90s line %llu", slash != NULL ? slash + 1 : path,
                   (unsigned long long)line);
}

static status submit(decode *d, live *l)
{
    const model_config *c = &d->session.model->config;
    const batch_request *r = &l->request;
    worker_request request = {
        .id = l->id,
        .prompt = l->ids,
        .prompt_count = l->id_count,
        .max_new = r->max_tokens,
        .selector = l->way->selector,
        .sampling = {.temperature = r->temperature,
                     .top_p = r->top_p,
                     .top_k = r->top_k,
                     .top_logprobs = r->top_logprobs,
                     .seed = r->seed},
        .eos = c->eos,
        .eos_count = r->ignore_eos ? 0 : c->eos_count,
    };
    return worker_submit(d->session.engine, &request);
}

/* A line into the engine, or into the output if it cannot be served. */
static status admit(decode *d, live *l)
{
    batch_error error = {.code = ""};
    set_where(d, l->line);
    status s = submit(d, l);
    if (s == STATUS_BUSY) {
        d->waiting = l;
        return STATUS_OK;
    }
    d->waiting = NULL;
    if (s == STATUS_OK) {
        d->live_count++;
        return STATUS_OK;
    }
    error_of(&error, d, s);
    l->used = false;
    return emit_error(d, l, &error);
}

/* One line of the input. NOT_FOUND: there is none left. */
static status take_line(decode *d, live *l)
{
    batch_line line;
    batch_error error = {.code = ""}, refusal = {.code = ""};
    TRY(batch_reader_next(d->reader, &line));
    set_where(d, line.number);
    *l = (live){.line = line.number, .memory = arena_create("request")};
    bool good = batch_parse(d->where, &line, l->memory, &l->request, &error);
    if (!wanted(d, l, &refusal)) {
        d->run.skipped++;
        arena_destroy(l->memory);
        return STATUS_OK;
    }
    l->ordinal = d->ordinal_next++;
    d->run.prompts++;
    if (refusal.code[0] != '\0') error = refusal;
    good = good && refusal.code[0] == '\0' && prepare(d, l, &error);
    if (!good) return emit_error(d, l, &error);
    l->used = true;
    l->id = line.number * LIVE_MAX + (uint64_t)(l - d->live);
    answer_start(&l->answer, d->session.words, &l->request, l->memory);
    return admit(d, l);
}

static live *free_place(decode *d)
{
    for (uint32_t i = 0; i < d->live_max; i++)
        if (!d->live[i].used) return &d->live[i];
    return NULL;
}

static status take_lines(decode *d)
{
    if (d->waiting != NULL) TRY(admit(d, d->waiting));
    while (d->waiting == NULL && !d->read_all) {
        live *l = free_place(d);
        bool room = !d->args->deterministic || d->ordinal_next - d->ordinal_written < WINDOW;
        if (l == NULL || !room) break;
        status s = take_line(d, l);
        if (s == STATUS_NOT_FOUND) {
            d->read_all = true;
        } else {
            TRY(s);
        }
    }
    return STATUS_OK;
}

/* ---- the run --------------------------------------------------------------------------------- */

static status take_event(decode *d, const worker_event *event)
{
    live *l = &d->live[event->id % LIVE_MAX];
    CHECK(l->used && l->id == event->id);
    if (event->kind == WORKER_TOKEN) {
        if (l->answer.stopped) return STATUS_OK;
        d->run.new_tokens++;
        if (answer_add(&l->answer, &event->sampled, event->logits_digest))
            worker_cancel(d->session.engine, l->id);
        return STATUS_OK;
    }
    status whole;
    if (event->reason == REASON_FAILED &&
        session_store_failed(&d->session, event->result,
                             "finished lines are kept, --resume goes on behind them", &whole))
        return whole;
    l->used = false;
    d->live_count--;
    if (event->reason == REASON_FAILED) {
        batch_error error;
        char code[BATCH_CODE_MAX];
        set_where(d, l->line);
        error_of(&error, d, event->result);
        (void)snprintf(code, sizeof code, "%s", error.code);
        batch_error_set(&error, code, "%s: %s", d->where, status_sentence(event->result));
        return emit_error(d, l, &error);
    }
    return emit_answer(d, l, event);
}

static void draw(decode *d)
{
    if (!report_due(&d->report)) return;
    const worker_stats *w = session_stats(&d->session);
    uint64_t ended = d->run.prompts - d->live_count - (d->waiting != NULL) + d->run.skipped;
    double seconds = report_seconds(&d->report);
    char line[200];
    (void)snprintf(line, sizeof line,
                   "%llu/%llu prompts  %llu tokens  %.1f/s  blocks: pool %llu host %llu nodes %llu",
                   (unsigned long long)ended, (unsigned long long)d->lines,
                   (unsigned long long)d->run.new_tokens,
                   seconds > 0 ? (double)d->run.new_tokens / seconds : 0,
                   (unsigned long long)w->blocks.resident, (unsigned long long)w->blocks.host,
                   (unsigned long long)w->blocks.remote);
    report_draw(&d->report, line, d->lines > 0 ? (double)ended / (double)d->lines : 0);
}

static status run(decode *d)
{
    worker_event event;
    for (;;) {
        if (session_interrupted())
            return FAIL(CANCELED, "interrupted; %llu finished lines are in %s",
                        (unsigned long long)batch_writer_lines(d->writer), d->args->output);
        TRY(take_lines(d));
        if (d->read_all && d->live_count == 0 && d->waiting == NULL) break;
        if (d->live_count > 0 || d->waiting != NULL) {
            status s = worker_step(d->session.engine);
            if (s != STATUS_PENDING) TRY(s);
        }
        while (worker_next_event(d->session.engine, &event))
            TRY(take_event(d, &event));
        draw(d);
    }
    session_settle(&d->session);
    return STATUS_OK;
}

/* Selections that lines ask for, and how many lines there are. Only lines that may have a "shoal"
 * object are looked into; what is wrong with a line is said when it is served. */
static status look_ahead(decode *d)
{
    batch_line line;
    status s;
    while ((s = batch_reader_next(d->reader, &line)) == STATUS_OK) {
        d->lines++;
        if (line.too_long || memmem(line.bytes, line.count, "\"shoal\"", 7) == NULL) continue;
        cJSON *tree = cJSON_ParseWithLength(line.bytes, line.count);
        const cJSON *shoal = json_get(json_get(tree, "body"), "shoal");
        const cJSON *name = json_get(shoal, "selector"), *budget = json_get(shoal, "budget");
        const cJSON *source = json_get(shoal, "lookahead");
        char number[24];
        uint64_t blocks;
        selector_choice choice = {cJSON_GetStringValue(name), cJSON_GetStringValue(budget),
                                  cJSON_GetStringValue(source)};
        if (json_whole(budget, &blocks)) {
            (void)snprintf(number, sizeof number, "%llu", (unsigned long long)blocks);
            choice.budget = number;
        }
        if (choice.name != NULL || choice.budget != NULL || choice.source != NULL)
            (void)session_select(&d->session, &choice);
        json_free(tree);
    }
    if (s != STATUS_NOT_FOUND) return s;
    return batch_reader_rewind(d->reader);
}

static status open_files(decode *d)
{
    const args *a = d->args;
    TRY(batch_reader_open(a->input, 0, &d->reader));
    d->seen = batch_names_create(d->memory);
    d->done = batch_names_create(d->memory);
    if (a->resume) {
        uint64_t count;
        TRY(batch_done_read(a->output, d->done, &count));
    }
    return STATUS_OK;
}

static status open_all(decode *d)
{
    const args *a = d->args;
    TRY(open_files(d));
    TRY(session_open(a, &d->session));
    TRY(look_ahead(d));
    TRY(session_start(&d->session, !a->json && !a->quiet ? stderr : NULL));
    /* Last: a run that cannot start leaves the file as it was. */
    batch_mode mode = a->overwrite ? BATCH_OVERWRITE : a->resume ? BATCH_RESUME : BATCH_NEW;
    TRY(batch_writer_open(a->output, a->input, mode, &d->writer));
    uint32_t want = 2 * d->session.cluster.max_num_seqs;
    d->live_max = want < LIVE_MIN ? LIVE_MIN : want > LIVE_MAX ? LIVE_MAX : want;
    d->live = ARENA_NEW(d->memory, live, d->live_max);
    d->held = ARENA_NEW(d->memory, held, WINDOW);
    text_start(&d->digests, d->memory);
    text_start(&d->key, d->memory);
    return STATUS_OK;
}

/* Counts from the engine's first op to its last. */
static void add_profile(decode *d, text *out)
{
    const worker_stats *w = session_stats(&d->session);
    if (d->args->json) {
        profile_json(out, &d->profile, w->steps);
    } else {
        text_add_string(out, "\n");
        profile_text(out, &d->profile, w->steps);
    }
}

static status summarize(decode *d)
{
    d->run.wall_s = report_seconds(&d->report);
    d->run.output_digest = bytes_digest(d->digests.bytes, d->digests.count, 0);
    text out;
    text_start(&out, d->memory);
    if (d->args->json) {
        report_decode_json(&out, &d->run, &d->session);
    } else {
        report_decode_text(&out, &d->run, &d->session);
    }
    if (d->args->profile) add_profile(d, &out);
    FILE *to = strcmp(d->args->output, "-") == 0 ? stderr : stdout;
    if (fputs(out.bytes, to) < 0 || fflush(to) != 0)
        return FAIL(IO, "the summary cannot be written");
    return STATUS_OK;
}

static status finish(decode *d)
{
    TRY(batch_writer_sync(d->writer));
    TRY(summarize(d));
    if (d->run.failed == 0) return STATUS_OK;
    (void)fprintf(stderr, "shoal-worker: %llu of %llu lines failed; their lines in %s say why\n",
                  (unsigned long long)d->run.failed, (unsigned long long)d->run.prompts,
                  d->args->output);
    return STATUS_NOT_FOUND; /* exit code 1: part of what was asked for is not there */
}

/* Finished lines that waited for one that will not come now: kept, though out of order. */
static void keep_held(decode *d)
{
    for (uint64_t i = d->ordinal_written; d->held != NULL && i < d->ordinal_next; i++) {
        held *place = &d->held[i % WINDOW];
        if (place->memory == NULL) continue;
        bool good = batch_writer_line(d->writer, place->line.bytes, place->line.count) == STATUS_OK;
        arena_destroy(place->memory);
        place->memory = NULL;
        if (!good) return;
    }
}

static void close_all(decode *d)
{
    batch_writer_close(d->writer); /* first: what is finished is safe, whatever follows */
    for (uint32_t i = 0; i < d->live_max; i++)
        if (d->live[i].used) arena_destroy(d->live[i].memory);
    for (uint32_t i = 0; d->held != NULL && i < WINDOW; i++)
        arena_destroy(d->held[i].memory);
    if (d->session.memory != NULL) session_close(&d->session);
    batch_reader_close(d->reader);
    arena_destroy(d->memory);
}

int worker_decode(int argc, char **argv)
{
    args a;
    status s = args_parse(ARGS_DECODE, argc, argv, &a);
    if (s != STATUS_OK) return status_exit_code(s);
    if (a.help) {
        args_help(ARGS_DECODE, stdout);
        return 0;
    }
    log_config log = {.level = LOG_WARN, .program = "shoal-worker"};
    (void)log_level_from_name(a.log_level, &log.level);
    log_setup(&log);
    session_catch_signals();
    arena *memory = arena_create("decode");
    decode *d = ARENA_NEW(memory, decode, 1);
    d->args = &a;
    d->memory = memory;
    s = open_all(d);
    if (s == STATUS_OK) {
        report_begin(&d->report, a.quiet);
        kern_stream *streams[ENGINE_STREAMS];
        uint32_t count = engine_streams(d->session.engine, streams);
        if (a.profile) profile_start(&d->profile, streams, count, d->session.engine->inline_ops);
        s = run(d);
        if (a.profile) profile_stop(&d->profile);
        report_end(&d->report);
        if (s != STATUS_OK) keep_held(d);
        if (s == STATUS_OK) s = finish(d);
    }
    close_all(d);
    return status_exit_code(s);
}
