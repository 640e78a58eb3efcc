/* worker/session.c - open what a run needs, cheapest first, and close it in reverse.
 *
 * Flags were checked before; here the files are. A run's selections are collected before the engine
 * exists, since they size its buffers. */
#include "worker/session.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* ---- signals --------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

void session_catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    struct sigaction ignore = {.sa_handler = SIG_IGN}; /* a closed pipe is a failed write */
    (void)sigaction(SIGPIPE, &ignore, NULL);
}

bool session_interrupted(void)
{
    return interrupted != 0;
}

/* ---- selections ------------------------------------------------------------------------------ */

static bool same_word(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static const char *copy_word(session *s, const char *word)
{
    return word == NULL ? NULL : arena_string(s->memory, word);
}

static void describe(const model_config *config, const selector_choice *choice, selection *way)
{
    static const char *const sources[] = {"own", "mid", "input", "step"};
    const kern_selector *k = &way->selector;
    bool full = k->total == UINT32_MAX;
    way->name = model_selector_name(config, choice);
    way->lookahead = sources[k->source];
    if (full) {
        (void)snprintf(way->budget, sizeof way->budget, "null");
    } else {
        (void)snprintf(way->budget, sizeof way->budget, "[%u,%u,%u,%u]", k->init, k->local,
                       k->query, k->total);
    }
}

const selection *session_select(session *s, const selector_choice *asked)
{
    for (uint32_t i = 0; i < s->selection_count; i++) {
        const selector_choice *known = &s->selection[i].asked;
        if (same_word(known->name, asked->name) && same_word(known->budget, asked->budget) &&
            same_word(known->source, asked->source))
            return &s->selection[i];
    }
    if (s->selection_count == KERN_SELECTORS_MAX) return NULL;
    selection *way = &s->selection[s->selection_count++];
    way->asked = (selector_choice){copy_word(s, asked->name), copy_word(s, asked->budget),
                                   copy_word(s, asked->source)};
    /* Another selector than the run's does not inherit the run's budget. */
    const selector_choice *run = &s->selection[0].asked;
    selector_choice choice = {
        .name = asked->name != NULL ? asked->name : run->name,
        .budget = asked->budget != NULL || asked->name != NULL ? asked->budget : run->budget,
        .source = asked->source != NULL ? asked->source : run->source,
    };
    way->result = model_selector(&s->model->config, &choice, &way->selector);
    if (way->result == STATUS_OK) way->result = kern_selector_check(s->backend, &way->selector);
    if (way->result == STATUS_OK) {
        describe(&s->model->config, &choice, way);
    } else {
        (void)snprintf(way->sentence, sizeof way->sentence, "%s", log_last_error());
    }
    return way;
}

static void load_chat(session *s)
{
    s->chat_tried = true;
    status loaded = chat_load(s->args->model, &s->chat);
    (void)snprintf(s->chat_sentence, sizeof s->chat_sentence, "/v1/chat/completions: %s",
                   loaded != STATUS_OK ? log_last_error()
                                       : "this model's tokenizer has no chat template; send a "
                                         "prompt to /v1/completions");
}

bool session_chat(session *s, const batch_request *request, text *out_prompt, char *out_sentence,
                  size_t room)
{
    if (!s->chat_tried) load_chat(s);
    if (s->chat == NULL) {
        (void)snprintf(out_sentence, room, "%s", s->chat_sentence);
        return false;
    }
    if (chat_render(s->chat, request->messages, request->message_count, out_prompt) == STATUS_OK)
        return true;
    (void)snprintf(out_sentence, room, "/v1/chat/completions: %s", log_last_error());
    return false;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* The smallest selector that none of the run's exceeds in any number. */
static kern_selector widest_of(const session *s)
{
    kern_selector widest = s->selection[0].selector;
    for (uint32_t i = 1; i < s->selection_count; i++) {
        const kern_selector *k = &s->selection[i].selector;
        if (s->selection[i].result != STATUS_OK) continue;
        widest.init = larger(widest.init, k->init);
        widest.local = larger(widest.local, k->local);
        widest.query = larger(widest.query, k->query);
        widest.total = larger(widest.total, k->total);
        widest.near = larger(widest.near, k->near);
        widest.fill_by_importance |= k->fill_by_importance;
        widest.bias |= k->bias;
        if (k->source > widest.source) widest.source = k->source;
    }
    return widest;
}

/* ---- open, start, close ---------------------------------------------------------------------- */

static const char *last_part(arena *memory, const char *path)
{
    char *name = arena_string(memory, path);
    size_t count = strlen(name);
    while (count > 1 && name[count - 1] == '/')
        name[--count] = '\0';
    const char *slash = strrchr(name, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : name;
}

/* `shoal cluster up` keeps the epoch of the running nodes, and which are drained, in
 * state_dir/cluster.map. It is believed where it speaks of the same nodes as the file. */
static status open_map(session *s)
{
    char path[sizeof s->cluster.state_dir + 16];
    (void)snprintf(path, sizeof path, "%s/cluster.map", s->cluster.state_dir);
    if (access(path, F_OK) != 0) return STATUS_OK;
    map_store_ops store;
    cluster_map *running = ARENA_NEW(s->memory, cluster_map, 1);
    TRY(cluster_map_store_file(s->memory, path, &store));
    TRY(store.load(store.self, running));
    bool same = running->node_count == s->cluster.map.node_count;
    for (uint32_t i = 0; same && i < running->node_count; i++) {
        const cluster_node *a = &running->node[i], *b = &s->cluster.map.node[i];
        same = strcmp(a->name, b->name) == 0 && strcmp(a->data, b->data) == 0;
    }
    if (same) {
        s->cluster.map = *running;
    } else {
        LOG(WARN, "%s is of other nodes than %s, which is followed", path, s->args->cluster);
    }
    return STATUS_OK;
}

static status open_limits(session *s)
{
    cluster_config_default(&s->cluster);
    if (s->args->cluster != NULL) TRY(cluster_config_load(s->args->cluster, &s->cluster));
    s->with_store = s->args->cluster != NULL;
    if (s->with_store && s->cluster.map.node_count == 0)
        return FAIL(INVALID, "%s: names no node, so there is no store", s->args->cluster);
    if (s->with_store) TRY(open_map(s));
    args_apply(s->args, &s->cluster);
    return STATUS_OK;
}

static status open_model(session *s)
{
    kern_config kernels = {.backend = s->args->backend, .threads = s->cluster.threads};
    TRY(kern_backend_open(&kernels, &s->backend));
    TRY(tokenizer_load(s->args->model, &s->words));
    TRY(model_load(s->backend, s->args->model, s->cluster.max_model_len, NULL, NULL, &s->model));
    const model_config *config = &s->model->config;
    if (s->cluster.max_model_len > config->positions_max)
        return FAIL(INVALID, "--max-model-len %u is more than the model's %u positions",
                    s->cluster.max_model_len, config->positions_max);
    if (s->cluster.max_model_len == 0) s->cluster.max_model_len = config->positions_max;
    if (tokenizer_vocab(s->words) > config->vocab)
        return FAIL(INVALID, "%s: tokenizer.json has %u ids, config.json's vocab_size is %u",
                    s->args->model, tokenizer_vocab(s->words), config->vocab);
    selector_choice choice = {s->args->selector, s->args->budget, s->args->lookahead};
    return session_select(s, &choice)->result;
}

status session_open(const args *a, session *out_session)
{
    CHECK(a != NULL && out_session != NULL);
    session s = {.args = a};
    s.memory = arena_create("session");
    s.model_name = last_part(s.memory, a->model);
    s.stats = ARENA_NEW(s.memory, worker_stats, 1);
    status result = open_limits(&s);
    if (result == STATUS_OK) result = open_model(&s);
    if (result != STATUS_OK) {
        session_close(&s);
        return result;
    }
    *out_session = s;
    return STATUS_OK;
}

status session_start(session *s, FILE *plan)
{
    CHECK(s->engine == NULL && s->selection_count > 0);
    uint64_t seed = s->args->seed;
    if (seed == UINT64_MAX) TRY(rng_system(&seed, sizeof seed));
    worker_config config = {
        .model = s->model,
        .cluster = &s->cluster,
        .with_store = s->with_store,
        .clock = clock_monotonic,
        .seed = seed,
        .prefetch = !s->args->no_prefetch,
        .guess = s->args->guess,
        .two_batch = s->args->two_batch,
        .overlap = !s->args->no_overlap,
        .late_merge = !s->args->no_late_merge,
        .tiles = true,
        .verify = !s->args->no_verify,
        .hbm_bytes = s->args->hbm_bytes != UINT64_MAX ? s->args->hbm_bytes : 0,
        .prompt_stage_bytes = s->args->prompt_stage_bytes,
        .widest = widest_of(s),
    };
    TRY(worker_create(&config, plan, &s->engine));
    s->cluster.device_pool_bytes = worker_pool_bytes(s->engine);
    return STATUS_OK;
}

bool session_store_failed(session *s, status result, const char *kept, status *out_run)
{
    bool store = result == STATUS_UNREACHABLE || result == STATUS_PEER_LOST ||
                 result == STATUS_FENCED || result == STATUS_DEGRADED;
    if (!store || !s->with_store) return false;
    const kv_client_stats *c = &session_stats(s)->client;
    const char *why = status_sentence(result);
    *out_run = result;
    if (c->nodes_connected == 0 && c->nodes_refused > 0) {
        *out_run = STATUS_REFUSED;
        why = "no node can be used: other block layout, protocol version, tenant or name";
    } else if (c->nodes_connected == 0) {
        *out_run = STATUS_UNREACHABLE;
        why = "no node can be reached";
    }
    LOG(ERROR, "%s: %s; %s", s->args->cluster, why, kept);
    return true;
}

/* What the last requests still had under way comes in, so that the counts are whole. */
void session_settle(session *s)
{
    uint64_t until = clock_now(&clock_monotonic) + s->cluster.put_deadline_ns;
    while (!worker_idle(s->engine) && clock_now(&clock_monotonic) < until) {
        status result = worker_step(s->engine);
        if (result != STATUS_OK && result != STATUS_PENDING) return;
    }
}

const worker_stats *session_stats(session *s)
{
    CHECK(s->engine != NULL);
    worker_stats_read(s->engine, s->stats);
    return s->stats;
}

void session_close(session *s)
{
    if (s->engine != NULL) worker_destroy(s->engine);
    model_free(s->model);
    tokenizer_destroy(s->words);
    chat_free(s->chat);
    if (s->backend != NULL) kern_backend_close(s->backend);
    arena_destroy(s->memory);
    *s = (session){.args = NULL};
}
