/* worker/batch.c - lines of a batch file, one at a time, and the set of names seen.
 *
 * The reader fills one buffer that holds the longest line allowed, with the file's own pace: memory
 * does not grow with the file. A line beyond the limit is skipped to its newline and reported, so
 * that what follows it is still served. What a line means is batch_parse.c's, what is written is
 * batch_write.c's. */
#include "worker/batch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM_FIRST = 64 << 10, NAMES_FIRST = 256 };

struct batch_reader {
    arena *memory;
    char *path;
    int fd;
    text held; /* bytes [start, held.count) are read and not given out */
    size_t start;
    size_t line_max;
    uint64_t bytes, offset, number;
    bool at_end;
};

status batch_reader_open(const char *path, size_t line_max, batch_reader **out_reader)
{
    CHECK(path != NULL && out_reader != NULL);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return FAIL(NOT_FOUND, "%s: no such file", path);
    if (fd < 0) return FAIL(IO, "%s: cannot be read: %s", path, strerror(errno));
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
        (void)close(fd);
        return FAIL(INVALID, "%s: is not a regular file; it is read twice, so a pipe will not do",
                    path);
    }
    arena *memory = arena_create("batch_reader");
    batch_reader *r = ARENA_NEW(memory, batch_reader, 1);
    r->memory = memory;
    r->path = arena_string(memory, path);
    r->fd = fd;
    r->line_max = line_max == 0 ? BATCH_LINE_MAX : line_max;
    r->bytes = (uint64_t)info.st_size;
    text_start(&r->held, memory);
    *out_reader = r;
    return STATUS_OK;
}

void batch_reader_close(batch_reader *reader)
{
    if (reader == NULL) return;
    (void)close(reader->fd);
    arena_destroy(reader->memory);
}

uint64_t batch_reader_bytes(const batch_reader *reader)
{
    return reader->bytes;
}

uint64_t batch_reader_offset(const batch_reader *reader)
{
    return reader->offset - (reader->held.count - reader->start);
}

const char *batch_reader_path(const batch_reader *reader)
{
    return reader->path;
}

status batch_reader_rewind(batch_reader *reader)
{
    if (lseek(reader->fd, 0, SEEK_SET) != 0)
        return FAIL(IO, "%s: cannot go back to the start: %s", reader->path, strerror(errno));
    reader->held.count = reader->start = 0;
    reader->offset = reader->number = 0;
    reader->at_end = false;
    return STATUS_OK;
}

/* More bytes behind held.count. */
static status reader_fill(batch_reader *r)
{
    if (r->start > 0) {
        CHECK(r->held.bytes != NULL); /* it starts behind bytes that were read */
        size_t rest = r->held.count - r->start;
        memmove(r->held.bytes, r->held.bytes + r->start, rest);
        r->held.count = rest;
        r->start = 0;
    }
    char *to = text_reserve(&r->held, ROOM_FIRST);
    ssize_t got;
    do {
        got = read(r->fd, to, r->held.room - r->held.count - 1);
    } while (got < 0 && errno == EINTR);
    if (got < 0) return FAIL(IO, "%s: cannot be read: %s", r->path, strerror(errno));
    r->at_end = got == 0;
    r->held.count += (size_t)got;
    r->offset += (uint64_t)got;
    return STATUS_OK;
}

/* Drop bytes up to the next newline; the line was too long. */
static status reader_skip(batch_reader *r, bool *out_whole)
{
    for (;;) {
        size_t rest = r->held.count - r->start;
        const char *from = r->held.bytes + r->start;
        const char *newline = from == NULL || rest == 0 ? NULL : memchr(from, '\n', rest);
        if (newline != NULL) {
            r->start += (size_t)(newline - from) + 1;
            *out_whole = true;
            return STATUS_OK;
        }
        r->start = r->held.count;
        if (r->at_end) {
            *out_whole = false;
            return STATUS_OK;
        }
        TRY(reader_fill(r));
    }
}

static status line_too_long(batch_reader *r, batch_line *out_line)
{
    batch_line line = {.bytes = "", .number = ++r->number, .too_long = true};
    TRY(reader_skip(r, &line.whole));
    *out_line = line;
    return STATUS_OK;
}

status batch_reader_next(batch_reader *reader, batch_line *out_line)
{
    CHECK(reader != NULL && out_line != NULL);
    size_t looked = 0;
    for (;;) {
        size_t rest = reader->held.count - reader->start;
        const char *from = rest == 0 ? NULL : reader->held.bytes + reader->start;
        const char *newline =
            from == NULL || rest == looked ? NULL : memchr(from + looked, '\n', rest - looked);
        size_t count = newline != NULL ? (size_t)(newline - from) : rest;
        if (count > reader->line_max) return line_too_long(reader, out_line);
        if (newline != NULL || reader->at_end) {
            if (newline == NULL && rest == 0) return STATUS_NOT_FOUND;
            reader->start += newline != NULL ? count + 1 : count;
            if (count > 0 && from[count - 1] == '\r') count--;
            *out_line = (batch_line){.bytes = from,
                                     .count = count,
                                     .number = ++reader->number,
                                     .whole = newline != NULL};
            return STATUS_OK;
        }
        looked = rest;
        TRY(reader_fill(reader));
    }
}

/* ---- names ----------------------------------------------------------------------------------- */

typedef struct name_key {
    uint64_t a, b; /* both 0: empty place */
} name_key;

struct batch_names {
    arena *memory;
    name_key *place; /* open addressing, at most half full */
    uint64_t places, count;
};

static name_key key_of(const char *bytes, size_t count)
{
    name_key key = {bytes_digest(bytes, count, 1), bytes_digest(bytes, count, 2)};
    if (key.a == 0 && key.b == 0) key.b = 1;
    return key;
}

static name_key *place_of(const batch_names *names, name_key key)
{
    uint64_t at = key.a & (names->places - 1);
    for (;;) {
        name_key *p = &names->place[at];
        if ((p->a == 0 && p->b == 0) || (p->a == key.a && p->b == key.b)) return p;
        at = (at + 1) & (names->places - 1);
    }
}

batch_names *batch_names_create(arena *memory)
{
    batch_names *names = ARENA_NEW(memory, batch_names, 1);
    names->memory = memory;
    names->places = NAMES_FIRST;
    names->place = ARENA_NEW(memory, name_key, NAMES_FIRST);
    return names;
}

bool batch_names_has(const batch_names *names, const char *bytes, size_t count)
{
    name_key *p = place_of(names, key_of(bytes, count));
    return p->a != 0 || p->b != 0;
}

bool batch_names_add(batch_names *names, const char *bytes, size_t count)
{
    if (2 * (names->count + 1) > names->places) {
        batch_names larger = {.memory = names->memory, .places = 2 * names->places};
        larger.place = ARENA_NEW(names->memory, name_key, larger.places);
        for (uint64_t i = 0; i < names->places; i++) {
            name_key key = names->place[i];
            if (key.a != 0 || key.b != 0) *place_of(&larger, key) = key;
        }
        names->place = larger.place;
        names->places = larger.places;
    }
    name_key key = key_of(bytes, count);
    name_key *p = place_of(names, key);
    if (p->a != 0 || p->b != 0) return false;
    *p = key;
    names->count++;
    return true;
}
