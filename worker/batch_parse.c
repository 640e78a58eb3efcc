/* worker/batch_parse.c - what a line of a batch asks for.
 *
 * Written so that a request is either understood whole or refused with the name of what was not
 * understood: a sampling option that is quietly dropped gives an answer nobody asked for. Fields of
 * other servers are accepted where their value says "off". */
#include "worker/batch.h"

#include "worker/json.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

typedef struct parse {
    const char *where;
    arena *memory;
    batch_request *request;
    batch_error *error;
} parse;

/* Cut at a character's border, so that the sentence stays UTF-8. */
static void cut_utf8(char *sentence)
{
    size_t count = strlen(sentence);
    size_t good = json_utf8_check(sentence, count);
    if (good < count) sentence[good] = '\0';
}

void batch_error_set(batch_error *error, const char *code, const char *format, ...)
{
    CHECK(strlen(code) < sizeof error->code);
    (void)snprintf(error->code, sizeof error->code, "%s", code);
    va_list list;
    va_start(list, format);
    (void)vsnprintf(error->message, sizeof error->message, format, list);
    va_end(list);
    cut_utf8(error->message);
}

#define REFUSE(p, code, format, ...)                                                               \
    (batch_error_set((p)->error, code, "%s: " format, (p)->where, ##__VA_ARGS__), false)

/* A string without \\u0000 (C0 80 in the tree). Only a prompt may hold that. */
static bool is_plain(const cJSON *item)
{
    return cJSON_IsString(item) && strchr(item->valuestring, 0xc0) == NULL;
}

/* ---- fields that may only say "off" ---------------------------------------------------------- */

typedef enum off_value { OFF_ANY, OFF_FALSE, OFF_TRUE, OFF_ZERO, OFF_ONE, OFF_EMPTY } off_value;

typedef struct off_field {
    const char *name;
    off_value value;
} off_field;

static const off_field off_fields[] = {
    {"user", OFF_ANY},
    {"metadata", OFF_ANY},
    {"store", OFF_ANY},
    {"service_tier", OFF_ANY},
    {"safety_identifier", OFF_ANY},
    {"prompt_cache_key", OFF_ANY},
    {"stream", OFF_FALSE},
    {"echo", OFF_FALSE},
    {"use_beam_search", OFF_FALSE},
    {"include_stop_str_in_output", OFF_FALSE},
    {"skip_special_tokens", OFF_TRUE},
    {"add_special_tokens", OFF_TRUE},
    {"presence_penalty", OFF_ZERO},
    {"frequency_penalty", OFF_ZERO},
    {"min_p", OFF_ZERO},
    {"min_tokens", OFF_ZERO},
    {"n", OFF_ONE},
    {"best_of", OFF_ONE},
    {"repetition_penalty", OFF_ONE},
    {"length_penalty", OFF_ONE},
    {"suffix", OFF_EMPTY},
    {"logit_bias", OFF_EMPTY},
    {"stop_token_ids", OFF_EMPTY},
    {"tools", OFF_EMPTY},
};

static bool is_off(const cJSON *item, off_value value)
{
    switch (value) {
    case OFF_ANY:
        return true;
    case OFF_FALSE:
        return cJSON_IsFalse(item);
    case OFF_TRUE:
        return cJSON_IsTrue(item);
    case OFF_ZERO:
        return cJSON_IsNumber(item) && item->valuedouble == 0;
    case OFF_ONE:
        return cJSON_IsNumber(item) && item->valuedouble == 1;
    case OFF_EMPTY:
        if (cJSON_IsString(item)) return item->valuestring[0] == '\0';
        return (cJSON_IsArray(item) || cJSON_IsObject(item)) && item->child == NULL;
    }
    return false;
}

static const char *const body_fields[] = {
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p",
    "top_k", "seed",   "stop",     "logprobs",   "top_logprobs",          "ignore_eos",  "shoal",
};

static bool check_fields(const parse *p, const cJSON *body)
{
    static const char *const off_says[] = {"", "false", "true", "0", "1", "empty"};
    for (const cJSON *item = body->child; item != NULL; item = item->next) {
        bool known = cJSON_IsNull(item);
        for (size_t i = 0; !known && i < sizeof body_fields / sizeof body_fields[0]; i++)
            known = strcmp(item->string, body_fields[i]) == 0;
        for (size_t i = 0; !known && i < sizeof off_fields / sizeof off_fields[0]; i++) {
            const off_field *f = &off_fields[i];
            if (strcmp(item->string, f->name) != 0) continue;
            if (!is_off(item, f->value))
                return REFUSE(p, "unsupported", "body.%s may only be %s here", f->name,
                              off_says[f->value]);
            known = true;
        }
        if (!known) return REFUSE(p, "unsupported", "body.%.64s is not supported", item->string);
    }
    return true;
}

/* ---- single values --------------------------------------------------------------------------- */

static bool get_f32(const parse *p, const cJSON *body, const char *key, const double range[2],
                    float *in_out)
{
    const cJSON *item = json_get(body, key);
    if (item == NULL) return true;
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= range[0] && item->valuedouble <= range[1]))
        return REFUSE(p, "invalid_request", "body.%s must be a number from %g to %g", key, range[0],
                      range[1]);
    *in_out = (float)item->valuedouble;
    return true;
}

static bool get_whole(const parse *p, const cJSON *body, const char *key, const uint64_t range[2],
                      uint64_t *in_out)
{
    const cJSON *item = json_get(body, key);
    if (item == NULL) return true;
    uint64_t value;
    if (!json_whole(item, &value) || value < range[0] || value > range[1])
        return REFUSE(p, "invalid_request", "body.%s must be a whole number from %llu to %llu", key,
                      (unsigned long long)range[0], (unsigned long long)range[1]);
    *in_out = value;
    return true;
}

static bool get_bool(const parse *p, const cJSON *body, const char *key, bool *in_out)
{
    const cJSON *item = json_get(body, key);
    if (item == NULL) return true;
    if (!cJSON_IsBool(item))
        return REFUSE(p, "invalid_request", "body.%s must be true or false", key);
    *in_out = cJSON_IsTrue(item);
    return true;
}

static bool get_string(const parse *p, const cJSON *object, const char *name[2],
                       const char **in_out)
{
    const cJSON *item = json_get(object, name[1]);
    if (item == NULL) return true;
    if (!is_plain(item))
        return REFUSE(p, "invalid_request", "%s%s must be a string", name[0], name[1]);
    *in_out = arena_string(p->memory, item->valuestring);
    return true;
}

/* ---- prompt, messages, stop ------------------------------------------------------------------ */

static bool get_ids(const parse *p, const cJSON *prompt)
{
    uint32_t count = 0;
    for (const cJSON *item = prompt->child; item != NULL; item = item->next)
        count++;
    int32_t *ids = ARENA_NEW(p->memory, int32_t, count);
    uint32_t at = 0;
    for (const cJSON *item = prompt->child; item != NULL; item = item->next) {
        uint64_t value;
        if (!json_whole(item, &value) || value > INT32_MAX)
            return REFUSE(p, "invalid_request", "body.prompt[%u] is no token id", at);
        ids[at++] = (int32_t)value;
    }
    p->request->ids = ids;
    p->request->id_count = count;
    return true;
}

static bool get_prompt(const parse *p, const cJSON *body)
{
    const cJSON *prompt = json_get(body, "prompt");
    if (prompt == NULL) return REFUSE(p, "invalid_request", "body.prompt is missing");
    if (json_get(body, "messages") != NULL)
        return REFUSE(p, "invalid_request", "body.messages belongs to /v1/chat/completions");
    if (cJSON_IsArray(prompt) && (cJSON_IsString(prompt->child) || cJSON_IsArray(prompt->child))) {
        if (prompt->child->next != NULL)
            return REFUSE(p, "unsupported", "body.prompt holds several prompts; one a line");
        prompt = prompt->child;
    }
    if (cJSON_IsString(prompt)) {
        if (prompt->valuestring[0] == '\0')
            return REFUSE(p, "invalid_request", "body.prompt is empty");
        span whole = json_text(prompt->valuestring, p->memory);
        char *copy = ARENA_NEW(p->memory, char, whole.bytes + 1);
        memcpy(copy, whole.text, whole.bytes);
        p->request->prompt = copy;
        p->request->prompt_bytes = whole.bytes;
        return true;
    }
    if (!cJSON_IsArray(prompt))
        return REFUSE(p, "invalid_request", "body.prompt must be a string or a list of token ids");
    if (prompt->child == NULL) return REFUSE(p, "invalid_request", "body.prompt is empty");
    return get_ids(p, prompt);
}

static bool get_messages(const parse *p, const cJSON *body)
{
    const cJSON *list = json_get(body, "messages");
    if (!cJSON_IsArray(list) || list->child == NULL)
        return REFUSE(p, "invalid_request", "body.messages must be a list of messages");
    if (json_get(body, "prompt") != NULL)
        return REFUSE(p, "invalid_request", "body.prompt belongs to /v1/completions");
    uint32_t count = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next)
        count++;
    batch_message *messages = ARENA_NEW(p->memory, batch_message, count);
    uint32_t at = 0;
    for (const cJSON *item = list->child; item != NULL; item = item->next, at++) {
        const cJSON *role = json_get(item, "role"), *content = json_get(item, "content");
        if (!is_plain(role) || !is_plain(content))
            return REFUSE(p, "invalid_request",
                          "body.messages[%u] needs the strings role and content", at);
        messages[at].role = arena_string(p->memory, role->valuestring);
        messages[at].content = arena_string(p->memory, content->valuestring);
    }
    p->request->messages = messages;
    p->request->message_count = count;
    return true;
}

static bool get_stop(const parse *p, const cJSON *body)
{
    const cJSON *stop = json_get(body, "stop");
    if (stop == NULL) return true;
    bool many = cJSON_IsArray(stop);
    for (const cJSON *item = many ? stop->child : stop; item != NULL;
         item = many ? item->next : NULL) {
        if (!is_plain(item) || item->valuestring[0] == '\0' ||
            strlen(item->valuestring) > BATCH_STOP_BYTES_MAX)
            return REFUSE(p, "invalid_request",
                          "body.stop must be a string or a list of strings, each of 1 to %d bytes",
                          BATCH_STOP_BYTES_MAX);
        if (p->request->stop_count == BATCH_STOP_MAX)
            return REFUSE(p, "invalid_request", "body.stop holds more than %d strings",
                          BATCH_STOP_MAX);
        p->request->stop[p->request->stop_count++] = arena_string(p->memory, item->valuestring);
    }
    return true;
}

/* Completions: logprobs is a number. Chat: logprobs is a switch and top_logprobs the number. */
static bool get_logprobs(const parse *p, const cJSON *body)
{
    batch_request *r = p->request;
    const char *key = r->chat ? "top_logprobs" : "logprobs";
    if (!r->chat && json_get(body, "top_logprobs") != NULL)
        return REFUSE(p, "invalid_request", "body.top_logprobs belongs to /v1/chat/completions");
    if (r->chat && !get_bool(p, body, "logprobs", &r->logprobs)) return false;
    if (!r->chat && cJSON_IsFalse(json_get(body, key))) return true;
    uint64_t top = UINT64_MAX;
    if (!get_whole(p, body, key, (uint64_t[2]){0, BATCH_LOGPROBS_MAX}, &top)) return false;
    if (top == UINT64_MAX) return true;
    if (r->chat && !r->logprobs)
        return REFUSE(p, "invalid_request", "body.top_logprobs needs body.logprobs");
    r->logprobs = true;
    r->top_logprobs = (uint32_t)top;
    return true;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static bool get_sampling(const parse *p, const cJSON *body)
{
    batch_request *r = p->request;
    uint64_t max_tokens = 16, top_k = 0; /* 16: what OpenAI's completions do without it */
    const char *max_key =
        json_get(body, "max_completion_tokens") != NULL ? "max_completion_tokens" : "max_tokens";
    if (!get_whole(p, body, max_key, (uint64_t[2]){1, 1u << 24}, &max_tokens)) return false;
    if (!get_f32(p, body, "temperature", (double[2]){0, 2}, &r->temperature)) return false;
    if (!get_f32(p, body, "top_p", (double[2]){0, 1}, &r->top_p)) return false;
    if (r->top_p == 0)
        return REFUSE(p, "invalid_request", "body.top_p must be above 0; temperature 0 is greedy");
    const cJSON *k = json_get(body, "top_k");
    bool all = cJSON_IsNumber(k) && k->valuedouble == -1; /* other servers' word for "off" */
    if (!all && !get_whole(p, body, "top_k", (uint64_t[2]){0, UINT32_MAX}, &top_k)) return false;
    if (!get_whole(p, body, "seed", (uint64_t[2]){0, 1ull << 53}, &r->seed)) return false;
    r->max_tokens = (uint32_t)max_tokens;
    r->top_k = (uint32_t)top_k;
    return get_bool(p, body, "ignore_eos", &r->ignore_eos) && get_stop(p, body) &&
           get_logprobs(p, body);
}

static bool get_shoal(const parse *p, const cJSON *body)
{
    const cJSON *shoal = json_get(body, "shoal");
    if (shoal == NULL) return true;
    if (!cJSON_IsObject(shoal)) return REFUSE(p, "invalid_request", "body.shoal must be an object");
    for (const cJSON *item = shoal->child; item != NULL; item = item->next) {
        if (strcmp(item->string, "selector") != 0 && strcmp(item->string, "budget") != 0 &&
            strcmp(item->string, "lookahead") != 0)
            return REFUSE(p, "unsupported", "body.shoal.%.64s is not supported", item->string);
    }
    batch_request *r = p->request;
    const cJSON *budget = json_get(shoal, "budget");
    uint64_t blocks;
    if (cJSON_IsNumber(budget)) { /* 16 as well as "16" */
        if (!json_whole(budget, &blocks) || blocks > UINT32_MAX)
            return REFUSE(p, "invalid_request", "body.shoal.budget must be a whole number");
        char name[24];
        (void)snprintf(name, sizeof name, "%llu", (unsigned long long)blocks);
        r->budget = arena_string(p->memory, name);
    } else if (!get_string(p, shoal, (const char *[2]){"body.shoal.", "budget"}, &r->budget)) {
        return false;
    }
    return get_string(p, shoal, (const char *[2]){"body.shoal.", "selector"}, &r->selector) &&
           get_string(p, shoal, (const char *[2]){"body.shoal.", "lookahead"}, &r->lookahead);
}

static bool get_envelope(const parse *p, const cJSON *line, const cJSON **out_body)
{
    batch_request *r = p->request;
    const cJSON *id = json_get(line, "custom_id"), *url = json_get(line, "url");
    const cJSON *method = json_get(line, "method"), *body = json_get(line, "body");
    if (!is_plain(id) || id->valuestring[0] == '\0' || strlen(id->valuestring) > BATCH_ID_MAX)
        return REFUSE(p, "invalid_request", "custom_id must be a string of 1 to %d bytes",
                      BATCH_ID_MAX);
    r->custom_id = arena_string(p->memory, id->valuestring);
    if (!cJSON_IsString(method) || strcmp(method->valuestring, "POST") != 0)
        return REFUSE(p, "invalid_request", "method must be \"POST\"");
    if (!cJSON_IsString(url)) return REFUSE(p, "invalid_request", "url must be a string");
    r->chat = strcmp(url->valuestring, "/v1/chat/completions") == 0;
    if (!r->chat && strcmp(url->valuestring, "/v1/completions") != 0)
        return REFUSE(p, "unsupported",
                      "url %.64s is not served; /v1/completions and /v1/chat/completions are",
                      url->valuestring);
    if (!cJSON_IsObject(body)) return REFUSE(p, "invalid_request", "body must be an object");
    *out_body = body;
    return true;
}

static bool parse_tree(const parse *p, const cJSON *line)
{
    const cJSON *body = NULL;
    if (!cJSON_IsObject(line)) return REFUSE(p, "invalid_json", "the line must be a JSON object");
    if (!get_envelope(p, line, &body)) return false;
    p->request->seed = bytes_digest(p->request->custom_id, strlen(p->request->custom_id), 0) >> 11;
    return check_fields(p, body) &&
           get_string(p, body, (const char *[2]){"body.", "model"}, &p->request->model) &&
           (p->request->chat ? get_messages(p, body) : get_prompt(p, body)) &&
           get_sampling(p, body) && get_shoal(p, body);
}

bool batch_parse(const char *where, const batch_line *line, arena *memory,
                 batch_request *out_request, batch_error *out_error)
{
    CHECK(where != NULL && line != NULL && memory != NULL);
    CHECK(out_request != NULL && out_error != NULL);
    *out_request = (batch_request){.temperature = 1, .top_p = 1};
    *out_error = (batch_error){.code = ""};
    parse p = {where, memory, out_request, out_error};
    if (line->too_long)
        return REFUSE(&p, "line_too_long", "the line is longer than this reader takes");
    size_t blank = 0;
    while (blank < line->count && strchr(" \t", line->bytes[blank]) != NULL)
        blank++;
    if (blank == line->count) return REFUSE(&p, "invalid_json", "the line is empty");
    size_t good = json_utf8_check(line->bytes, line->count);
    if (good != line->count) return REFUSE(&p, "invalid_utf8", "invalid UTF-8 at byte %zu", good);
    cJSON *tree = NULL;
    if (json_parse(where, line->bytes, line->count, &tree) != STATUS_OK) {
        batch_error_set(out_error, "invalid_json", "%s", log_last_error());
        return false;
    }
    bool ok = parse_tree(&p, tree);
    json_free(tree);
    return ok;
}
