/* worker/answer.c - the tokens of one request as text, up to its stop string.
 *
 * Digests are chains, so that equal digests mean equal tokens and equal logits at every step, in
 * order, up to the one that completed the stop string. */
#include "worker/answer.h"

#include "worker/json.h"

#include <string.h>

void answer_start(answer *a, const tokenizer *words, const batch_request *request, arena *memory)
{
    CHECK(a != NULL && words != NULL && request != NULL);
    *a = (answer){.tokenizer = words, .request = request, .memory = memory};
    detokenizer_start(words, true, &a->state);
    text_start(&a->content, memory);
}

static uint64_t chain(uint64_t before, uint64_t value)
{
    uint64_t pair[2] = {before, value};
    return bytes_digest(pair, sizeof pair, 0);
}

/* Cut the text at the first stop string, if it holds one. */
static void search_stop(answer *a)
{
    size_t best = SIZE_MAX, longest = 0;
    for (uint32_t i = 0; i < a->request->stop_count; i++) {
        const char *stop = a->request->stop[i];
        size_t bytes = strlen(stop), rest = a->content.count - a->searched;
        if (bytes > longest) longest = bytes;
        const char *from = rest == 0 ? NULL : a->content.bytes + a->searched;
        const char *found = from == NULL ? NULL : memmem(from, rest, stop, bytes);
        if (found != NULL && (size_t)(found - a->content.bytes) < best)
            best = (size_t)(found - a->content.bytes);
    }
    if (best != SIZE_MAX) {
        a->content.count = best;
        a->content.bytes[best] = '\0';
        a->stopped = true;
    } else if (longest > 0 && a->content.count >= a->searched + longest) {
        a->searched = a->content.count - longest + 1;
    }
}

static void keep(answer *a, const kern_sampled *sampled)
{
    if (a->tokens == a->kept_room) {
        uint32_t room = a->kept_room == 0 ? 64 : 2 * a->kept_room;
        answer_token *kept = ARENA_NEW(a->memory, answer_token, room);
        if (a->tokens > 0) memcpy(kept, a->kept, a->tokens * sizeof *kept);
        a->kept = kept;
        a->kept_room = room;
    }
    a->kept[a->tokens] = (answer_token){.offset = a->content.count, .sampled = *sampled};
}

bool answer_add(answer *a, const kern_sampled *sampled, uint64_t logits_digest)
{
    CHECK(sampled != NULL);
    if (a->stopped) return false;
    if (a->request->logprobs) keep(a, sampled);
    a->tokens++;
    a->logits_digest = chain(a->logits_digest, logits_digest);
    a->token_digest = chain(a->token_digest, (uint64_t)sampled->token);
    char *to = text_reserve(&a->content, detokenizer_bytes_max(a->tokenizer));
    a->content.count += detokenizer_push(&a->state, sampled->token, to);
    search_stop(a);
    return a->stopped;
}

void answer_finish(answer *a)
{
    if (a->stopped) return;
    char *to = text_reserve(&a->content, detokenizer_bytes_max(a->tokenizer));
    a->content.count += detokenizer_finish(&a->state, to);
    search_stop(a);
}

/* A token as a JSON string: its text, or "bytes:\xe2\x80" when it is part of a character. */
static void add_token(text *out, const tokenizer *t, int32_t id)
{
    uint32_t count = 0;
    const char *bytes = tokenizer_token_bytes(t, id, &count);
    if (json_utf8_check(bytes == NULL ? "" : bytes, count) == count) {
        text_quote(out, bytes == NULL ? "" : bytes, count);
        return;
    }
    text_add_string(out, "\"bytes:");
    for (uint32_t i = 0; bytes != NULL && i < count; i++)
        text_format(out, "\\\\x%02x", (unsigned)(unsigned char)bytes[i]);
    text_add_string(out, "\"");
}

/* Tokens whose text the stop string cut off entirely are left out. */
static uint32_t tokens_shown(const answer *a)
{
    uint32_t count = a->tokens;
    while (a->stopped && count > 0 && a->kept[count - 1].offset >= a->content.count)
        count--;
    return count;
}

static void add_top(text *out, const answer *a, const kern_sampled *s)
{
    text_add_string(out, "{");
    for (uint32_t i = 0; i < a->request->top_logprobs && s->top_token[i] >= 0; i++) {
        if (i > 0) text_add_string(out, ",");
        add_token(out, a->tokenizer, s->top_token[i]);
        text_format(out, ":%.9g", (double)s->top_logprob[i]);
    }
    text_add_string(out, "}");
}

static uint64_t characters(const char *bytes, size_t count)
{
    uint64_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += ((unsigned char)bytes[i] & 0xc0) != 0x80;
    return n;
}

static void add_completion(text *out, const answer *a, uint32_t count)
{
    text_add_string(out, "{\"tokens\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) text_add_string(out, ",");
        add_token(out, a->tokenizer, a->kept[i].sampled.token);
    }
    text_add_string(out, "],\"token_logprobs\":[");
    for (uint32_t i = 0; i < count; i++)
        text_format(out, "%s%.9g", i > 0 ? "," : "", (double)a->kept[i].sampled.logprob);
    text_add_string(out, "],\"top_logprobs\":[");
    for (uint32_t i = 0; i < count; i++) {
        if (i > 0) text_add_string(out, ",");
        add_top(out, a, &a->kept[i].sampled);
    }
    text_add_string(out, "],\"text_offset\":[");
    uint64_t offset = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t from = i == 0 ? 0 : a->kept[i - 1].offset;
        if (a->kept[i].offset > from)
            offset += characters(a->content.bytes + from, a->kept[i].offset - from);
        text_format(out, "%s%llu", i > 0 ? "," : "", (unsigned long long)offset);
    }
    text_add_string(out, "]}");
}

static void add_chat_token(text *out, const answer *a, int32_t id, float logprob)
{
    uint32_t count = 0;
    const char *bytes = tokenizer_token_bytes(a->tokenizer, id, &count);
    text_add_string(out, "{\"token\":");
    add_token(out, a->tokenizer, id);
    text_format(out, ",\"logprob\":%.9g,\"bytes\":[", (double)logprob);
    for (uint32_t i = 0; i < count; i++)
        text_format(out, "%s%u", i > 0 ? "," : "", (unsigned)(unsigned char)bytes[i]);
    text_add_string(out, "]");
}

static void add_chat(text *out, const answer *a, uint32_t count)
{
    text_add_string(out, "{\"content\":[");
    for (uint32_t i = 0; i < count; i++) {
        const kern_sampled *s = &a->kept[i].sampled;
        if (i > 0) text_add_string(out, ",");
        add_chat_token(out, a, s->token, s->logprob);
        text_add_string(out, ",\"top_logprobs\":[");
        for (uint32_t j = 0; j < a->request->top_logprobs && s->top_token[j] >= 0; j++) {
            if (j > 0) text_add_string(out, ",");
            add_chat_token(out, a, s->top_token[j], s->top_logprob[j]);
            text_add_string(out, "}");
        }
        text_add_string(out, "]}");
    }
    text_add_string(out, "]}");
}

const char *answer_logprobs(const answer *a)
{
    if (!a->request->logprobs) return NULL;
    text out;
    text_start(&out, a->memory);
    if (a->request->chat) {
        add_chat(&out, a, tokens_shown(a));
    } else {
        add_completion(&out, a, tokens_shown(a));
    }
    return out.bytes;
}
