/* worker/chat.c - a chat template as a list of nodes, and the statements among them.
 *
 * The text is cut once into nodes with their white space trimmed; running walks the list, and finds
 * the end of a branch that is not taken by counting openings. Variables are a stack: what a pass of
 * a loop sets is gone after it, members of a namespace stay. */
#include "worker/chat.h"

#include "worker/chat_impl.h"
#include "worker/json.h"

#include <string.h>
#include <sys/stat.h>

enum { FUEL = 1 << 22, TEMPLATE_BYTES_MAX = 1 << 20, PROMPT_BYTES_MAX = 1 << 28 };

typedef enum node_kind { NODE_TEXT, NODE_OUT, NODE_TAG } node_kind;

typedef struct node {
    node_kind kind;
    const char *bytes; /* what is inside of the braces, or the text */
    size_t count;
    char word[16]; /* NODE_TAG: its first word */
} node;

struct chat_template {
    arena *memory;
    const char *file, *bos, *eos;
    node *node;
    uint32_t nodes;
};

/* ---- cutting --------------------------------------------------------------------------------- */

static const char *find(const char *at, const char *end, const char *what)
{
    return at == end ? NULL : memmem(at, (size_t)(end - at), what, strlen(what));
}

static const char *next_open(const char *at, const char *end)
{
    for (; at + 1 < end; at++)
        if (at[0] == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#')) return at;
    return end;
}

/* The closing braces, not those inside of a string. */
static const char *find_close(const char *at, const char *end, const char *close)
{
    char quote = '\0';
    bool comment = close[0] == '#';
    for (; at + 1 < end; at++) {
        if (quote != '\0') {
            if (*at == '\\')
                at++;
            else if (*at == quote)
                quote = '\0';
        } else if (!comment && (*at == '\'' || *at == '"')) {
            quote = *at;
        } else if (at[0] == close[0] && at[1] == close[1]) {
            return at;
        }
    }
    return NULL;
}

/* Text between two tags, trimmed as they ask: '-' takes all white space; a block's own line break
 * and the blanks before it on its line go too. */
static void add_text(chat_template *t, const char *from, const char *to, const char *last_close)
{
    bool all_left = last_close != NULL && last_close[-1] == '-';
    bool break_left = last_close != NULL && last_close[0] != '}';
    if (all_left) {
        while (from < to && strchr(" \t\r\n", *from) != NULL)
            from++;
    } else if (break_left && from < to && *from == '\n') {
        from++;
    }
    const char *start = from;
    if (to[0] == '{' && to[1] != '\0' && to[2] == '-') {
        while (to > from && strchr(" \t\r\n", to[-1]) != NULL)
            to--;
    } else if (to[0] == '{' && to[1] != '{') {
        const char *line = to;
        while (line > start && (line[-1] == ' ' || line[-1] == '\t'))
            line--;
        bool whole_line = line == start ? last_close == NULL || (break_left && start[-1] == '\n')
                                        : line[-1] == '\n';
        if (whole_line && !(all_left && line == start)) to = line;
    }
    if (to > from) t->node[t->nodes++] = (node){NODE_TEXT, from, (size_t)(to - from), ""};
}

static status cut(chat_template *t, const char *source, size_t bytes)
{
    const char *at = source, *end = source + bytes, *last_close = NULL;
    if (bytes > 0 && end[-1] == '\n') end--; /* the file's own last line break */
    while (at < end) {
        const char *open = next_open(at, end);
        add_text(t, at, open, last_close);
        if (open == end) break;
        const char close[3] = {open[1] == '{' ? '}' : open[1], '}', '\0'};
        const char *inside = open + 2, *stop = find_close(inside, end, close);
        if (stop == NULL)
            return FAIL(INVALID, "%s: the chat template's %.2s is not closed", t->file, open);
        last_close = stop;
        at = stop + 2;
        if (open[1] == '#') continue;
        if (*inside == '-' || *inside == '+') inside++;
        const char *tail = stop > inside && (stop[-1] == '-' || stop[-1] == '+') ? stop - 1 : stop;
        node n = {open[1] == '{' ? NODE_OUT : NODE_TAG, inside, (size_t)(tail - inside), ""};
        chat_run words = {.at = inside, .end = tail};
        char name[CHAT_WORD_MAX];
        if (n.kind == NODE_TAG) {
            if (!chat_take_name(&words, name))
                return FAIL(INVALID, "%s: the chat template has a tag without a name", t->file);
            (void)snprintf(n.word, sizeof n.word, "%.15s", name);
            n.count = (size_t)(tail - words.at);
            n.bytes = words.at;
            if (strcmp(name, "raw") == 0)
                return FAIL(UNSUPPORTED, "%s: {%% raw %%} is not supported", t->file);
        }
        t->node[t->nodes++] = n;
    }
    return STATUS_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

static bool is_tag(const node *n, const char *word)
{
    return n->kind == NODE_TAG && strcmp(n->word, word) == 0;
}

static bool opens(const node *n)
{
    static const char *const words[] = {"for", "if", "macro", "call", "filter"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (is_tag(n, words[i])) return true;
    return is_tag(n, "set") && memchr(n->bytes, '=', n->count) == NULL;
}

static bool closes(const node *n)
{
    return n->kind == NODE_TAG && strncmp(n->word, "end", 3) == 0 &&
           strcmp(n->word, "endgeneration") != 0;
}

/* From behind an opening: its else, elif or end. */
static uint32_t find_branch(const chat_template *t, uint32_t at)
{
    uint32_t depth = 0;
    for (; at < t->nodes; at++) {
        const node *n = &t->node[at];
        bool branch = is_tag(n, "else") || is_tag(n, "elif");
        if (depth == 0 && (branch || closes(n))) return at;
        if (opens(n)) depth++;
        if (closes(n)) depth--;
    }
    return t->nodes;
}

static uint32_t find_end(const chat_template *t, uint32_t at)
{
    at = find_branch(t, at);
    while (at < t->nodes && !closes(&t->node[at]))
        at = find_branch(t, at + 1);
    return at;
}

static chat_value evaluate(chat_run *r, const char *from, const char *to)
{
    r->at = from;
    r->end = to;
    chat_value v = chat_expression(r);
    chat_skip_space(r);
    if (r->at != r->end)
        chat_fail(r, "\"%.*s\" is not supported", (int)(r->end - r->at < 30 ? r->end - r->at : 30),
                  r->at);
    return v;
}

static void run_out(chat_run *r, const node *n)
{
    chat_value v = evaluate(r, n->bytes, n->bytes + n->count);
    if (r->failed) return;
    if (v.kind == CHAT_STRING) {
        text_add(r->out, v.bytes, v.count);
    } else if (v.kind == CHAT_NUMBER) {
        text_format(r->out, "%lld", (long long)v.number);
    } else if (v.kind == CHAT_BOOL) {
        text_add_string(r->out, v.number != 0 ? "True" : "False");
    } else if (v.kind == CHAT_NONE) {
        text_add_string(r->out, "None");
    } else if (v.kind != CHAT_UNDEFINED) {
        chat_fail(r, "only strings and numbers can be written");
    }
}

static void run_namespace(chat_run *r, const char *name)
{
    char member[CHAT_WORD_MAX];
    char *copy = arena_string(r->memory, name);
    chat_set(r, name, NULL, (chat_value){.kind = CHAT_SPACE, .bytes = copy});
    while (!r->failed && !chat_take_word(r, ")")) {
        if (!chat_take_name(r, member) || !chat_take_word(r, "=")) {
            chat_fail(r, "namespace() takes name=value");
            return;
        }
        chat_set(r, name, member, chat_expression(r));
        (void)chat_take_word(r, ",");
    }
}

static void run_set(chat_run *r, const node *n)
{
    char name[CHAT_WORD_MAX], member[CHAT_WORD_MAX] = "";
    r->at = n->bytes;
    r->end = n->bytes + n->count;
    bool good = chat_take_name(r, name);
    if (good && chat_take_word(r, ".")) good = chat_take_name(r, member);
    if (!good || !chat_take_word(r, "=")) {
        chat_fail(r, "this form of set is not supported");
        return;
    }
    const char *value = r->at;
    if (member[0] == '\0' && chat_take_word(r, "namespace") && chat_take_word(r, "(")) {
        run_namespace(r, name);
        return;
    }
    chat_value v = evaluate(r, value, r->end);
    if (!r->failed) chat_set(r, name, member[0] != '\0' ? member : NULL, v);
}

static void run_nodes(const chat_template *t, chat_run *r, uint32_t from, uint32_t to);

/* Returns where the end tag is. */
static uint32_t run_if(const chat_template *t, chat_run *r, uint32_t at)
{
    bool done = false;
    uint32_t end = find_end(t, at + 1);
    while (at < end && !r->failed) {
        const node *n = &t->node[at];
        bool taken = !done;
        if (!done && !is_tag(n, "else")) {
            chat_value v = evaluate(r, n->bytes, n->bytes + n->count);
            taken = chat_truth(&v);
        }
        uint32_t next = find_branch(t, at + 1);
        if (taken && !r->failed) run_nodes(t, r, at + 1, next);
        done = done || taken;
        at = next;
    }
    return end;
}

static uint32_t run_for(const chat_template *t, chat_run *r, uint32_t at)
{
    const node *n = &t->node[at];
    char name[CHAT_WORD_MAX];
    uint32_t end = find_end(t, at + 1);
    r->at = n->bytes;
    r->end = n->bytes + n->count;
    if (!chat_take_name(r, name) || !chat_take_word(r, "in") || find_branch(t, at + 1) != end) {
        chat_fail(r, "this form of for is not supported");
        return end;
    }
    chat_value list = evaluate(r, r->at, r->end);
    if (!r->failed && list.kind != CHAT_LIST) chat_fail(r, "for needs a list of messages");
    uint32_t outer = r->variables;
    for (size_t i = 0; i < list.count && !r->failed; i++) {
        chat_set(r, name, NULL, (chat_value){.kind = CHAT_MESSAGE, .message = list.message + i});
        chat_set(r, "loop", NULL,
                 (chat_value){.kind = CHAT_LOOP, .number = (int64_t)i, .count = list.count});
        run_nodes(t, r, at + 1, end);
        r->variables = outer;
    }
    return end;
}

static uint32_t run_tag(const chat_template *t, chat_run *r, uint32_t at)
{
    const node *n = &t->node[at];
    if (is_tag(n, "if")) return run_if(t, r, at);
    if (is_tag(n, "for")) return run_for(t, r, at);
    if (is_tag(n, "macro")) return find_end(t, at + 1); /* refused when it is called */
    if (is_tag(n, "set") && !opens(n)) {
        run_set(r, n);
    } else if (!is_tag(n, "generation") && !is_tag(n, "endgeneration")) {
        chat_fail(r, "{%% %s %%} is not supported", n->word);
    }
    return at;
}

static void run_nodes(const chat_template *t, chat_run *r, uint32_t from, uint32_t to)
{
    if (++r->depth > CHAT_DEPTH_MAX) chat_fail(r, "nested deeper than %d", CHAT_DEPTH_MAX);
    for (uint32_t at = from; at < to && !r->failed; at++) {
        const node *n = &t->node[at];
        if (r->fuel == 0 || r->out->count > PROMPT_BYTES_MAX) {
            chat_fail(r, "runs for too long");
        } else if (n->kind == NODE_TEXT) {
            text_add(r->out, n->bytes, n->count);
        } else if (n->kind == NODE_OUT) {
            run_out(r, n);
        } else {
            at = run_tag(t, r, at);
        }
        if (r->fuel > 0) r->fuel--;
    }
    r->depth--;
}

static void set_string(chat_run *r, const char *name, const char *bytes)
{
    chat_value v = {.kind = CHAT_STRING, .bytes = bytes, .count = bytes ? strlen(bytes) : 0};
    if (bytes != NULL) chat_set(r, name, NULL, v);
}

status chat_render(const chat_template *t, const batch_message *messages, uint32_t count,
                   text *out_prompt)
{
    CHECK(t != NULL && messages != NULL && out_prompt != NULL);
    arena *memory = arena_create("chat");
    chat_run *r = ARENA_NEW(memory, chat_run, 1);
    size_t before = out_prompt->count;
    r->memory = memory;
    r->file = t->file;
    r->out = out_prompt;
    r->fuel = FUEL;
    chat_set(r, "messages", NULL,
             (chat_value){.kind = CHAT_LIST, .message = messages, .count = count});
    chat_set(r, "add_generation_prompt", NULL, (chat_value){.kind = CHAT_BOOL, .number = 1});
    set_string(r, "bos_token", t->bos);
    set_string(r, "eos_token", t->eos);
    run_nodes(t, r, 0, t->nodes);
    bool failed = r->failed;
    arena_destroy(memory);
    if (failed) out_prompt->count = before;
    return failed ? STATUS_INVALID : STATUS_OK;
}

/* ---- files ----------------------------------------------------------------------------------- */

status chat_parse(const char *file, const char *source, size_t bytes, const char *const bos_eos[2],
                  chat_template **out_template)
{
    CHECK(file != NULL && source != NULL && out_template != NULL);
    if (bytes > TEMPLATE_BYTES_MAX) return FAIL(INVALID, "%s: the chat template is too long", file);
    arena *memory = arena_create("chat_template");
    chat_template *t = ARENA_NEW(memory, chat_template, 1);
    char *copy = ARENA_NEW(memory, char, bytes + 4); /* NULs behind it: looking ahead is safe */
    memcpy(copy, source, bytes);
    t->memory = memory;
    t->file = arena_string(memory, file);
    t->bos = bos_eos[0] != NULL ? arena_string(memory, bos_eos[0]) : NULL;
    t->eos = bos_eos[1] != NULL ? arena_string(memory, bos_eos[1]) : NULL;
    uint32_t nodes = 2;
    for (const char *at = copy; (at = find(at, copy + bytes, "{")) != NULL; at++)
        nodes += 2;
    t->node = ARENA_NEW(memory, node, nodes);
    status s = cut(t, copy, bytes);
    if (s != STATUS_OK) {
        chat_free(t);
        return s;
    }
    *out_template = t;
    return STATUS_OK;
}

void chat_free(chat_template *t)
{
    if (t != NULL) arena_destroy(t->memory);
}

/* A token's text: a string, or an object with "content". */
static const char *token_text(const cJSON *tree, const char *key)
{
    const cJSON *item = json_get(tree, key);
    if (cJSON_IsObject(item)) item = json_get(item, "content");
    return cJSON_GetStringValue(item);
}

static const char *template_text(const cJSON *tree)
{
    const cJSON *item = json_get(tree, "chat_template");
    for (const cJSON *one = cJSON_IsArray(item) ? item->child : NULL; one != NULL;
         one = one->next) {
        const char *name = cJSON_GetStringValue(json_get(one, "name"));
        if (name != NULL && strcmp(name, "default") == 0)
            return cJSON_GetStringValue(json_get(one, "template"));
    }
    return cJSON_GetStringValue(item);
}

status chat_load(const char *directory, chat_template **out_template)
{
    char path[4096], config[4096];
    struct stat info;
    (void)snprintf(path, sizeof path, "%s/chat_template.jinja", directory);
    (void)snprintf(config, sizeof config, "%s/tokenizer_config.json", directory);
    cJSON *tree = NULL;
    char *source = NULL;
    size_t bytes = 0;
    status s = STATUS_OK;
    arena *memory = arena_create("chat_load");
    *out_template = NULL;
    if (stat(config, &info) == 0) s = json_file_parse(config, 16u << 20, &tree);
    bool own_file = stat(path, &info) == 0;
    if (s == STATUS_OK && own_file)
        s = json_file_read(path, TEMPLATE_BYTES_MAX, memory, &source, &bytes);
    const char *found = own_file ? source : template_text(tree);
    if (s == STATUS_OK && found != NULL) {
        const char *const tokens[2] = {token_text(tree, "bos_token"),
                                       token_text(tree, "eos_token")};
        s = chat_parse(own_file ? path : config, found, strlen(found), tokens, out_template);
    }
    json_free(tree);
    arena_destroy(memory);
    return s;
}
