/* worker/chat_expr.c - expressions of a chat template, evaluated as they are read.
 *
 * Recursive descent over the characters: templates are short and each expression is evaluated a few
 * times, so there is no tree. A branch that is not taken is read with `skip` set: it gives
 * undefined and fails only over its form. Precedence is Jinja's: if-else, or, and, not,
 * comparisons, + - ~,
 * %, then filters, subscripts and attributes. */
#include "worker/chat_impl.h"

#include "worker/json.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const chat_value undefined = {.kind = CHAT_UNDEFINED};

void chat_fail(chat_run *r, const char *format, ...)
{
    char sentence[300];
    if (r->failed) return;
    r->failed = true;
    va_list list;
    va_start(list, format);
    (void)vsnprintf(sentence, sizeof sentence, format, list);
    va_end(list);
    LOG(ERROR, "%s: %s", r->file, sentence);
}

static chat_value of_bool(bool b)
{
    return (chat_value){.kind = CHAT_BOOL, .number = b};
}

static chat_value of_number(int64_t n)
{
    return (chat_value){.kind = CHAT_NUMBER, .number = n};
}

static chat_value of_string(const char *bytes, size_t count)
{
    return (chat_value){.kind = CHAT_STRING, .bytes = bytes, .count = count};
}

bool chat_truth(const chat_value *v)
{
    switch (v->kind) {
    case CHAT_UNDEFINED:
    case CHAT_NONE:
        return false;
    case CHAT_BOOL:
    case CHAT_NUMBER:
        return v->number != 0;
    case CHAT_STRING:
    case CHAT_LIST:
        return v->count > 0;
    case CHAT_MESSAGE:
    case CHAT_LOOP:
    case CHAT_SPACE:
        return true;
    }
    return false;
}

/* ---- words ----------------------------------------------------------------------------------- */

void chat_skip_space(chat_run *r)
{
    while (r->at < r->end && strchr(" \t\r\n", *r->at) != NULL)
        r->at++;
}

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

bool chat_take_word(chat_run *r, const char *word)
{
    size_t count = strlen(word);
    chat_skip_space(r);
    if ((size_t)(r->end - r->at) < count || memcmp(r->at, word, count) != 0) return false;
    if (is_name(word[count - 1]) && r->at + count < r->end && is_name(r->at[count])) return false;
    r->at += count;
    return true;
}

bool chat_take_name(chat_run *r, char out_name[CHAT_WORD_MAX])
{
    size_t count = 0;
    chat_skip_space(r);
    if (r->at < r->end && isdigit((unsigned char)*r->at)) return false;
    while (r->at + count < r->end && is_name(r->at[count]))
        count++;
    if (count == 0 || count >= CHAT_WORD_MAX) return false;
    memcpy(out_name, r->at, count);
    out_name[count] = '\0';
    r->at += count;
    return true;
}

static void expect(chat_run *r, const char *word)
{
    if (!chat_take_word(r, word))
        chat_fail(r, "\"%s\" is missing before \"%.*s\"", word,
                  (int)(r->end - r->at < 20 ? r->end - r->at : 20), r->at);
}

void chat_set(chat_run *r, const char *name, const char *member, chat_value value)
{
    char whole[2 * CHAT_WORD_MAX];
    (void)snprintf(whole, sizeof whole, "%s%s%s", name, member != NULL ? "." : "",
                   member != NULL ? member : "");
    for (uint32_t i = r->variables; member != NULL && i > 0; i--) {
        if (strcmp(r->variable[i - 1].name, whole) != 0) continue;
        r->variable[i - 1].value = value; /* members are shared with outer scopes */
        return;
    }
    if (r->variables == CHAT_VARIABLES_MAX) {
        chat_fail(r, "more than %d variables", CHAT_VARIABLES_MAX);
        return;
    }
    chat_variable *v = &r->variable[r->variables++];
    (void)snprintf(v->name, sizeof v->name, "%s", whole);
    v->value = value;
}

static chat_value look_up(const chat_run *r, const char *name, const char *member)
{
    char whole[2 * CHAT_WORD_MAX];
    (void)snprintf(whole, sizeof whole, "%s%s%s", name, member != NULL ? "." : "",
                   member != NULL ? member : "");
    for (uint32_t i = r->variables; i > 0; i--)
        if (strcmp(r->variable[i - 1].name, whole) == 0) return r->variable[i - 1].value;
    return undefined;
}

/* ---- single terms ---------------------------------------------------------------------------- */

static chat_value string_literal(chat_run *r)
{
    char quote = *r->at++;
    char *bytes = ARENA_NEW(r->memory, char, (size_t)(r->end - r->at) + 1);
    size_t count = 0;
    while (r->at < r->end && *r->at != quote) {
        char c = *r->at++;
        if (c == '\\' && r->at < r->end) {
            c = *r->at++;
            const char *known = strchr("n\nt\tr\r\\\\'\'\"\"", c);
            if (known == NULL) chat_fail(r, "the escape \\%c is not supported", c);
            if (known != NULL) c = known[1];
        }
        bytes[count++] = c;
    }
    if (r->at == r->end) {
        chat_fail(r, "a string does not end");
        return undefined;
    }
    r->at++;
    return of_string(bytes, count);
}

/* raise_exception('...') and namespace(a=1, b=2). */
static chat_value call(chat_run *r, const char *name)
{
    if (strcmp(name, "raise_exception") == 0) {
        chat_value v = chat_expression(r);
        expect(r, ")");
        if (r->skip == 0 && v.kind == CHAT_STRING)
            chat_fail(r, "the template refuses these messages: %.*s",
                      (int)(v.count < 200 ? v.count : 200), v.bytes);
        return undefined;
    }
    if (r->skip == 0) chat_fail(r, "the function %s is not supported", name);
    for (int open = 1; r->at < r->end && open > 0; r->at++)
        open += (*r->at == '(') - (*r->at == ')');
    return undefined;
}

static chat_value member_of(chat_run *r, chat_value v, const char *name)
{
    if (r->skip > 0) return undefined;
    if (v.kind == CHAT_MESSAGE) {
        const char *part = strcmp(name, "role") == 0      ? v.message->role
                           : strcmp(name, "content") == 0 ? v.message->content
                                                          : NULL;
        return part != NULL ? of_string(part, strlen(part)) : undefined;
    }
    if (v.kind == CHAT_SPACE) return look_up(r, v.bytes, name);
    if (v.kind == CHAT_LOOP) {
        int64_t last = (int64_t)v.count - 1;
        if (strcmp(name, "first") == 0) return of_bool(v.number == 0);
        if (strcmp(name, "last") == 0) return of_bool(v.number == last);
        if (strcmp(name, "index0") == 0) return of_number(v.number);
        if (strcmp(name, "index") == 0) return of_number(v.number + 1);
        if (strcmp(name, "length") == 0) return of_number((int64_t)v.count);
    }
    chat_fail(r, "\"%s\" is asked of something that has no such part", name);
    return undefined;
}

static chat_value trimmed(chat_value v, bool left, bool right)
{
    while (left && v.count > 0 && strchr(" \t\r\n\v\f", v.bytes[0]) != NULL)
        v.bytes++, v.count--;
    while (right && v.count > 0 && strchr(" \t\r\n\v\f", v.bytes[v.count - 1]) != NULL)
        v.count--;
    return v;
}

static chat_value method(chat_run *r, chat_value v, const char *name)
{
    chat_value argument = undefined;
    if (!chat_take_word(r, ")")) {
        argument = chat_expression(r);
        expect(r, ")");
    }
    if (r->skip > 0) return undefined;
    bool string = v.kind == CHAT_STRING, alone = argument.kind == CHAT_UNDEFINED;
    if (string && alone && strcmp(name, "strip") == 0) return trimmed(v, true, true);
    if (string && alone && strcmp(name, "lstrip") == 0) return trimmed(v, true, false);
    if (string && alone && strcmp(name, "rstrip") == 0) return trimmed(v, false, true);
    bool fits = string && argument.kind == CHAT_STRING;
    bool longer = fits && v.count >= argument.count;
    if (fits && strcmp(name, "startswith") == 0)
        return of_bool(longer && memcmp(v.bytes, argument.bytes, argument.count) == 0);
    if (fits && strcmp(name, "endswith") == 0)
        return of_bool(longer && memcmp(v.bytes + v.count - argument.count, argument.bytes,
                                        argument.count) == 0);
    if (v.kind == CHAT_MESSAGE && argument.kind == CHAT_STRING && strcmp(name, "get") == 0) {
        char key[CHAT_WORD_MAX];
        (void)snprintf(key, sizeof key, "%.*s", (int)argument.count, argument.bytes);
        chat_value got = member_of(r, v, key);
        return got.kind == CHAT_UNDEFINED ? (chat_value){.kind = CHAT_NONE} : got;
    }
    chat_fail(r, "the method %s is not supported", name);
    return undefined;
}

static chat_value filter(chat_run *r, chat_value v)
{
    char name[CHAT_WORD_MAX];
    if (!chat_take_name(r, name)) {
        chat_fail(r, "a filter's name is missing");
        return undefined;
    }
    if (r->skip > 0) {
        if (chat_take_word(r, "(")) (void)call(r, name);
        return undefined;
    }
    if (strcmp(name, "trim") == 0 && v.kind == CHAT_STRING) return trimmed(v, true, true);
    if (strcmp(name, "string") == 0 && v.kind == CHAT_STRING) return v;
    if ((strcmp(name, "length") == 0 || strcmp(name, "count") == 0) && v.kind == CHAT_LIST)
        return of_number((int64_t)v.count);
    chat_fail(r, "the filter %s is not supported", name);
    return undefined;
}

static int64_t clamp(int64_t at, size_t count)
{
    if (at < 0) at += (int64_t)count;
    return at < 0 ? 0 : at > (int64_t)count ? (int64_t)count : at;
}

/* Behind "[": an index, a key, or a slice of messages. */
static chat_value subscript(chat_run *r, chat_value v)
{
    chat_value from = of_number(0), to = of_number(INT64_MAX);
    bool slice = chat_take_word(r, ":");
    if (!slice) {
        from = chat_expression(r);
        slice = chat_take_word(r, ":");
    }
    if (slice && !chat_take_word(r, "]")) {
        to = chat_expression(r);
        expect(r, "]");
    } else if (!slice) {
        expect(r, "]");
    }
    if (r->skip > 0 || r->failed) return undefined;
    if (slice && v.kind == CHAT_LIST && from.kind == CHAT_NUMBER && to.kind == CHAT_NUMBER) {
        int64_t first = clamp(from.number, v.count), last = clamp(to.number, v.count);
        v.message += first;
        v.count = last > first ? (size_t)(last - first) : 0;
        return v;
    }
    if (!slice && v.kind == CHAT_LIST && from.kind == CHAT_NUMBER) {
        int64_t index = from.number < 0 ? from.number + (int64_t)v.count : from.number;
        if (index < 0 || index >= (int64_t)v.count) return undefined;
        return (chat_value){.kind = CHAT_MESSAGE, .message = v.message + index};
    }
    if (!slice && v.kind == CHAT_MESSAGE && from.kind == CHAT_STRING) {
        char key[CHAT_WORD_MAX];
        (void)snprintf(key, sizeof key, "%.*s", (int)from.count, from.bytes);
        return member_of(r, v, key);
    }
    chat_fail(r, "this subscript is not supported");
    return undefined;
}

static chat_value primary(chat_run *r)
{
    char name[CHAT_WORD_MAX];
    chat_skip_space(r);
    if (r->at == r->end || r->fuel == 0 || r->failed) {
        chat_fail(r, r->fuel == 0 ? "runs for too long" : "an expression ends too early");
        return undefined;
    }
    r->fuel--;
    if (*r->at == '\'' || *r->at == '"') return string_literal(r);
    if (isdigit((unsigned char)*r->at)) {
        char *end = NULL;
        long long number = strtoll(r->at, &end, 10); /* a template's text ends in a NUL */
        r->at = end;
        return of_number(number);
    }
    if (chat_take_word(r, "(")) {
        chat_value v = chat_expression(r);
        expect(r, ")");
        return v;
    }
    if (!chat_take_name(r, name)) {
        chat_fail(r, "\"%.*s\" is not supported", (int)(r->end - r->at < 20 ? r->end - r->at : 20),
                  r->at);
        return undefined;
    }
    if (strcmp(name, "true") == 0 || strcmp(name, "True") == 0) return of_bool(true);
    if (strcmp(name, "false") == 0 || strcmp(name, "False") == 0) return of_bool(false);
    if (strcmp(name, "none") == 0 || strcmp(name, "None") == 0)
        return (chat_value){.kind = CHAT_NONE};
    if (chat_take_word(r, "(")) return call(r, name);
    return look_up(r, name, NULL);
}

static chat_value postfix(chat_run *r)
{
    char name[CHAT_WORD_MAX];
    bool minus = chat_take_word(r, "-");
    chat_value v = primary(r);
    while (!r->failed) {
        if (chat_take_word(r, ".")) {
            if (!chat_take_name(r, name)) chat_fail(r, "a name is missing behind \".\"");
            v = chat_take_word(r, "(") ? method(r, v, name) : member_of(r, v, name);
        } else if (chat_take_word(r, "[")) {
            v = subscript(r, v);
        } else if (chat_take_word(r, "|")) {
            v = filter(r, v);
        } else {
            break;
        }
    }
    if (minus && r->skip == 0 && v.kind != CHAT_NUMBER) chat_fail(r, "\"-\" needs a number");
    if (minus) v.number = -v.number;
    return v;
}

/* ---- operators ------------------------------------------------------------------------------- */

static chat_value joined(chat_run *r, chat_value a, chat_value b)
{
    if (a.kind == CHAT_NUMBER && b.kind == CHAT_NUMBER) return of_number(a.number + b.number);
    if (a.kind != CHAT_STRING || b.kind != CHAT_STRING) {
        chat_fail(r, "\"+\" needs two strings or two numbers");
        return undefined;
    }
    char *bytes = ARENA_NEW(r->memory, char, a.count + b.count + 1);
    memcpy(bytes, a.bytes, a.count);
    memcpy(bytes + a.count, b.bytes, b.count);
    return of_string(bytes, a.count + b.count);
}

static chat_value product(chat_run *r)
{
    chat_value v = postfix(r);
    while (!r->failed && chat_take_word(r, "%")) {
        chat_value by = postfix(r);
        if (r->skip > 0) continue;
        if (v.kind != CHAT_NUMBER || by.kind != CHAT_NUMBER || by.number <= 0 || v.number < 0) {
            chat_fail(r, "\"%%\" needs two numbers");
        } else {
            v.number %= by.number;
        }
    }
    return v;
}

static chat_value sum(chat_run *r)
{
    chat_value v = product(r);
    while (!r->failed) {
        bool plus = chat_take_word(r, "+") || chat_take_word(r, "~");
        bool minus = !plus && chat_take_word(r, "-");
        if (!plus && !minus) break;
        chat_value other = product(r);
        if (r->skip > 0 || r->failed) continue;
        if (plus) {
            v = joined(r, v, other);
        } else if (v.kind == CHAT_NUMBER && other.kind == CHAT_NUMBER) {
            v.number -= other.number;
        } else {
            chat_fail(r, "\"-\" needs two numbers");
        }
    }
    return v;
}

static bool equal(const chat_value *a, const chat_value *b)
{
    bool numbers = (a->kind == CHAT_NUMBER || a->kind == CHAT_BOOL) &&
                   (b->kind == CHAT_NUMBER || b->kind == CHAT_BOOL);
    if (numbers) return a->number == b->number;
    if (a->kind != b->kind) return false;
    if (a->kind == CHAT_STRING)
        return a->count == b->count && memcmp(a->bytes, b->bytes, a->count) == 0;
    return a->kind == CHAT_NONE || a->kind == CHAT_UNDEFINED || a->message == b->message;
}

static chat_value test(chat_run *r, const chat_value *v)
{
    char name[CHAT_WORD_MAX];
    bool negated = chat_take_word(r, "not"), is = false;
    if (!chat_take_name(r, name)) chat_fail(r, "a test's name is missing behind \"is\"");
    if (r->failed) return undefined;
    if (strcmp(name, "defined") == 0) {
        is = v->kind != CHAT_UNDEFINED;
    } else if (strcmp(name, "undefined") == 0) {
        is = v->kind == CHAT_UNDEFINED;
    } else if (strcmp(name, "none") == 0) {
        is = v->kind == CHAT_NONE;
    } else if (strcmp(name, "string") == 0) {
        is = v->kind == CHAT_STRING;
    } else if (strcmp(name, "mapping") == 0) {
        is = v->kind == CHAT_MESSAGE;
    } else if (strcmp(name, "iterable") == 0) {
        is = v->kind == CHAT_STRING || v->kind == CHAT_LIST || v->kind == CHAT_MESSAGE;
    } else if (r->skip == 0) {
        chat_fail(r, "the test \"is %s\" is not supported", name);
    }
    return of_bool(is != negated);
}

/* `needle` in a string, or a key in a message. */
static bool contains(chat_run *r, const chat_value *needle, const chat_value *v)
{
    if (needle->kind == CHAT_STRING && v->kind == CHAT_STRING)
        return needle->count == 0 || memmem(v->bytes, v->count, needle->bytes, needle->count);
    if (needle->kind == CHAT_STRING && v->kind == CHAT_MESSAGE) {
        return (needle->count == 4 && memcmp(needle->bytes, "role", 4) == 0) ||
               (needle->count == 7 && memcmp(needle->bytes, "content", 7) == 0);
    }
    if (r->skip == 0) chat_fail(r, "\"in\" is supported for strings and messages");
    return false;
}

static chat_value order(chat_run *r, chat_value v, int sign, bool also_equal)
{
    chat_value other = sum(r);
    if (r->skip > 0) return undefined;
    if (v.kind != CHAT_NUMBER || other.kind != CHAT_NUMBER)
        chat_fail(r, "\"<\" and \">\" need numbers");
    int compared = (v.number > other.number) - (v.number < other.number);
    return of_bool(compared == sign || (also_equal && compared == 0));
}

static chat_value comparison(chat_run *r)
{
    chat_value v = sum(r);
    while (!r->failed) {
        const char *before = r->at;
        if (chat_take_word(r, "==") || chat_take_word(r, "!=")) {
            bool negated = r->at[-2] == '!';
            chat_value other = sum(r);
            v = of_bool(equal(&v, &other) != negated);
        } else if (chat_take_word(r, "<=") || chat_take_word(r, ">=")) {
            v = order(r, v, r->at[-2] == '<' ? -1 : 1, true);
        } else if (chat_take_word(r, "<") || chat_take_word(r, ">")) {
            v = order(r, v, r->at[-1] == '<' ? -1 : 1, false);
        } else if (chat_take_word(r, "is")) {
            v = test(r, &v);
        } else if (chat_take_word(r, "in")) {
            chat_value other = sum(r);
            v = of_bool(contains(r, &v, &other));
        } else if (chat_take_word(r, "not") && chat_take_word(r, "in")) {
            chat_value other = sum(r);
            v = of_bool(!contains(r, &v, &other));
        } else {
            r->at = before;
            break;
        }
    }
    return v;
}

static chat_value negation(chat_run *r)
{
    bool negated = false;
    while (chat_take_word(r, "not"))
        negated = !negated;
    chat_value v = comparison(r);
    return negated ? of_bool(!chat_truth(&v)) : v;
}

/* `and` and `or` give the operand that decided, as Python's do. */
static chat_value both(chat_run *r)
{
    chat_value v = negation(r);
    while (!r->failed && chat_take_word(r, "and")) {
        bool decided = !chat_truth(&v);
        r->skip += decided;
        chat_value other = negation(r);
        r->skip -= decided;
        if (!decided) v = other;
    }
    return v;
}

static chat_value either(chat_run *r)
{
    chat_value v = both(r);
    while (!r->failed && chat_take_word(r, "or")) {
        bool decided = chat_truth(&v);
        r->skip += decided;
        chat_value other = both(r);
        r->skip -= decided;
        if (!decided) v = other;
    }
    return v;
}

static chat_value skipped(chat_run *r)
{
    (void)either(r);
    if (!r->failed && chat_take_word(r, "if")) {
        (void)either(r);
        if (!r->failed && chat_take_word(r, "else")) (void)chat_expression(r);
    }
    r->depth--;
    return undefined;
}

/* What comes before "if" is read before its condition is known: it is read again if it holds. */
chat_value chat_expression(chat_run *r)
{
    if (r->failed || ++r->depth > CHAT_DEPTH_MAX) {
        chat_fail(r, "nested deeper than %d", CHAT_DEPTH_MAX);
        return undefined;
    }
    if (r->skip > 0) return skipped(r);
    const char *first = r->at;
    r->skip++;
    (void)either(r);
    r->skip--;
    const char *behind = r->at;
    bool chosen = true, conditional = !r->failed && chat_take_word(r, "if");
    chat_value v = undefined;
    if (conditional) {
        chat_value condition = either(r);
        chosen = chat_truth(&condition);
        behind = r->at;
    }
    if (chosen && !r->failed) {
        r->at = first;
        v = either(r);
        r->at = behind;
    }
    if (conditional && !r->failed && chat_take_word(r, "else")) {
        r->skip += chosen;
        chat_value other = chat_expression(r);
        r->skip -= chosen;
        if (!chosen) v = other;
    }
    r->depth--;
    return v;
}
