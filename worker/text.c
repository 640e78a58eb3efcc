/* worker/text.c - a growing piece of text, and JSON written into it.
 *
 * Lines are built whole in memory and handed to one write, so that a reader of the file never sees
 * half an object. JSON is written by hand rather than through a tree: an answer has thousands of
 * tokens, and counters are 64-bit integers which a tree of doubles would round. */
#include "worker/text.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { ROOM_FIRST = 256 };

void text_start(text *t, arena *memory)
{
    CHECK(t != NULL && memory != NULL);
    *t = (text){.memory = memory};
}

char *text_reserve(text *t, size_t count)
{
    CHECK(t->memory != NULL);
    if (t->count + count + 1 > t->room) {
        size_t room = t->room == 0 ? ROOM_FIRST : t->room;
        while (room < t->count + count + 1)
            room *= 2;
        char *bytes = ARENA_NEW(t->memory, char, room);
        if (t->count > 0) memcpy(bytes, t->bytes, t->count);
        t->bytes = bytes;
        t->room = room;
    }
    return t->bytes + t->count;
}

void text_add(text *t, const char *bytes, size_t count)
{
    char *to = text_reserve(t, count);
    if (count > 0) memcpy(to, bytes, count);
    to[count] = '\0';
    t->count += count;
}

void text_add_string(text *t, const char *string)
{
    text_add(t, string, strlen(string));
}

void text_format(text *t, const char *format, ...)
{
    char small[512];
    va_list list;
    va_start(list, format);
    int count = vsnprintf(small, sizeof small, format, list);
    va_end(list);
    CHECK(count >= 0);
    if ((size_t)count < sizeof small) {
        text_add(t, small, (size_t)count);
        return;
    }
    char *to = text_reserve(t, (size_t)count);
    va_start(list, format);
    (void)vsnprintf(to, (size_t)count + 1, format, list);
    va_end(list);
    t->count += (size_t)count;
}

void text_quote(text *t, const char *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    char *to = text_reserve(t, 6 * count + 2);
    char *at = to;
    *at++ = '"';
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)bytes[i];
        const char *place = c == 0 ? NULL : strchr("\"\"\\\\\bb\ff\nn\rr\tt", c);
        if (c == '"' || c == '\\') {
            *at++ = '\\';
            *at++ = (char)c;
        } else if (c < 0x20 && place != NULL) {
            *at++ = '\\';
            *at++ = place[1];
        } else if (c < 0x20) {
            memcpy(at, "\\u00", 4);
            at[4] = digits[c >> 4];
            at[5] = digits[c & 15];
            at += 6;
        } else {
            *at++ = (char)c;
        }
    }
    *at++ = '"';
    *at = '\0';
    t->count += (size_t)(at - to);
}

void text_quote_string(text *t, const char *string)
{
    if (string == NULL) {
        text_add_string(t, "null");
    } else {
        text_quote(t, string, strlen(string));
    }
}

void text_number(text *t, double value)
{
    if (isfinite(value)) {
        text_format(t, "%.6g", value);
    } else {
        text_add_string(t, "null");
    }
}

void text_key(text *t, const char *name)
{
    char last = t->count == 0 ? '{' : t->bytes[t->count - 1];
    if (last != '{' && last != '[') text_add(t, ",", 1);
    text_quote_string(t, name);
    text_add(t, ":", 1);
}
