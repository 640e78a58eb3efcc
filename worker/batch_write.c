/* worker/batch_write.c - answers as lines of a file that survives whatever ends the run.
 *
 * A line is one write; when the disk fills half way through it, the file is cut back to the last
 * whole line, so that what was finished can be used and a later run can resume behind it. */
#include "worker/batch.h"

#include "worker/json.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct batch_writer {
    arena *memory;
    char *path;
    int fd;
    bool regular; /* can be cut back and synced */
    uint64_t bytes, lines;
};

static status fail_write(const batch_writer *w, const char *what)
{
    int cause = errno;
    if (cause == ENOSPC || cause == EDQUOT)
        return FAIL(NO_SPACE, "%s: the disk is full; the %llu lines finished so far are kept",
                    w->path, (unsigned long long)w->lines);
    return FAIL(IO, "%s: cannot be %s: %s; the %llu lines finished so far are kept", w->path, what,
                strerror(cause), (unsigned long long)w->lines);
}

static status fail_open(const char *path, batch_mode mode)
{
    int cause = errno;
    if (cause == EEXIST)
        return FAIL(INVALID, "%s exists; --overwrite replaces it, --resume goes on behind it",
                    path);
    if (cause == ENOENT && mode != BATCH_RESUME)
        return FAIL(NOT_FOUND, "%s: its folder does not exist", path);
    if (cause == ENOSPC) return FAIL(NO_SPACE, "%s: the disk is full", path);
    return FAIL(IO, "%s: cannot be written: %s", path, strerror(cause));
}

/* Find the end of the last whole line, from the back. */
static status find_whole_end(int fd, off_t size, off_t *out_end)
{
    char part[4096];
    off_t end = size;
    while (end > 0) {
        size_t count = end > (off_t)sizeof part ? sizeof part : (size_t)end;
        ssize_t got = pread(fd, part, count, end - (off_t)count);
        if (got != (ssize_t)count) return STATUS_IO;
        const char *newline = memrchr(part, '\n', count);
        if (newline != NULL) {
            *out_end = end - (off_t)count + (newline - part) + 1;
            return STATUS_OK;
        }
        end -= (off_t)count;
    }
    *out_end = 0;
    return STATUS_OK;
}

static status check_same_file(const char *path, const char *input)
{
    struct stat a, b;
    if (stat(path, &a) == 0 && stat(input, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino)
        return FAIL(INVALID, "%s is both input and output", path);
    return STATUS_OK;
}

static status open_place(const char *path, batch_mode mode, int *out_fd)
{
    if (strcmp(path, "-") == 0) {
        int fd = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
        if (fd < 0) return fail_open("standard output", mode);
        *out_fd = fd;
        return STATUS_OK;
    }
    int flags = O_CREAT | O_CLOEXEC | (mode == BATCH_RESUME ? O_RDWR : O_WRONLY);
    if (mode == BATCH_NEW) flags |= O_EXCL;
    if (mode == BATCH_OVERWRITE) flags |= O_TRUNC;
    int fd = open(path, flags, 0644);
    if (fd < 0) return fail_open(path, mode);
    *out_fd = fd;
    return STATUS_OK;
}

static status go_to_end(batch_writer *w, off_t size)
{
    off_t end = 0;
    if (find_whole_end(w->fd, size, &end) != STATUS_OK)
        return FAIL(IO, "%s: cannot be read: %s", w->path, strerror(errno));
    if (ftruncate(w->fd, end) != 0 || lseek(w->fd, end, SEEK_SET) != end)
        return fail_write(w, "cut");
    w->bytes = (uint64_t)end;
    return STATUS_OK;
}

status batch_writer_open(const char *path, const char *input, batch_mode mode,
                         batch_writer **out_writer)
{
    CHECK(path != NULL && input != NULL && out_writer != NULL);
    TRY(check_same_file(path, input));
    int fd = -1;
    TRY(open_place(path, mode, &fd));
    arena *memory = arena_create("batch_writer");
    batch_writer *w = ARENA_NEW(memory, batch_writer, 1);
    w->memory = memory;
    w->path = arena_string(memory, strcmp(path, "-") == 0 ? "standard output" : path);
    w->fd = fd;
    struct stat info;
    w->regular = fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && strcmp(path, "-") != 0;
    status s = w->regular && mode == BATCH_RESUME ? go_to_end(w, info.st_size) : STATUS_OK;
    if (s != STATUS_OK) {
        batch_writer_close(w);
        return s;
    }
    *out_writer = w;
    return STATUS_OK;
}

status batch_writer_line(batch_writer *writer, const char *bytes, size_t count)
{
    CHECK(count > 0 && bytes[count - 1] == '\n');
    size_t done = 0;
    while (done < count) {
        ssize_t wrote = write(writer->fd, bytes + done, count - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) {
            status s = fail_write(writer, "written");
            if (writer->regular && ftruncate(writer->fd, (off_t)writer->bytes) != 0)
                LOG(WARN, "%s: a torn last line could not be cut off", writer->path);
            return s;
        }
        done += (size_t)wrote;
    }
    writer->bytes += count;
    writer->lines++;
    return STATUS_OK;
}

uint64_t batch_writer_lines(const batch_writer *writer)
{
    return writer->lines;
}

status batch_writer_sync(batch_writer *writer)
{
    if (writer->regular && fsync(writer->fd) != 0) return fail_write(writer, "synced");
    return STATUS_OK;
}

void batch_writer_close(batch_writer *writer)
{
    if (writer == NULL) return;
    (void)close(writer->fd);
    arena_destroy(writer->memory);
}

/* ---- what an output file already has --------------------------------------------------------- */

void batch_done_key(const char *custom_id, bool duplicate, uint64_t line, text *out_key)
{
    out_key->count = 0;
    if (custom_id == NULL) {
        text_format(out_key, "line %llu", (unsigned long long)line);
    } else {
        text_format(out_key, "%s %s", duplicate ? "again" : "id", custom_id);
    }
}

static bool read_line_number(const cJSON *tree, uint64_t *out_line)
{
    const cJSON *id = json_get(tree, "id");
    unsigned long long line = 0;
    if (!cJSON_IsString(id) || sscanf(id->valuestring, "batch_req_%llu", &line) != 1) return false;
    *out_line = line;
    return true;
}

static bool read_done(const char *where, const batch_line *line, text *key)
{
    cJSON *tree = NULL;
    if (json_parse(where, line->bytes, line->count, &tree) != STATUS_OK) return false;
    uint64_t number = 0;
    bool ok = read_line_number(tree, &number);
    if (ok) {
        const cJSON *id = json_get(tree, "custom_id");
        const cJSON *code = json_get(json_get(tree, "error"), "code");
        bool again = cJSON_IsString(code) && strcmp(code->valuestring, "duplicate_custom_id") == 0;
        batch_done_key(cJSON_IsString(id) ? id->valuestring : NULL, again, number, key);
    }
    json_free(tree);
    return ok;
}

status batch_done_read(const char *path, batch_names *names, uint64_t *out_count)
{
    struct stat info;
    *out_count = 0;
    if (stat(path, &info) != 0 && errno == ENOENT) return STATUS_OK;
    batch_reader *reader = NULL;
    TRY(batch_reader_open(path, 0, &reader));
    arena *memory = arena_create("batch_done");
    text key;
    text_start(&key, memory);
    status s;
    batch_line line;
    while ((s = batch_reader_next(reader, &line)) == STATUS_OK && line.whole) {
        char where[64];
        (void)snprintf(where, sizeof where, "line %llu", (unsigned long long)line.number);
        if (line.too_long || !read_done(where, &line, &key)) {
            s = FAIL(INVALID, "%s %s is no answer of this program; nothing was changed", path,
                     where);
            break;
        }
        (void)batch_names_add(names, key.bytes, key.count);
        ++*out_count;
    }
    arena_destroy(memory);
    batch_reader_close(reader);
    return s == STATUS_NOT_FOUND ? STATUS_OK : s;
}

/* ---- words of an answer ---------------------------------------------------------------------- */

static void add_head(text *out, uint64_t line, const char *custom_id)
{
    text_format(out, "{\"id\":\"batch_req_%llu\",\"custom_id\":", (unsigned long long)line);
    text_quote_string(out, custom_id);
}

static void add_shoal(text *out, const batch_answer *a, bool deterministic)
{
    text_add_string(out, "{\"selector\":");
    text_quote_string(out, a->selector);
    text_format(out, ",\"budget\":%s,\"lookahead\":", a->budget);
    text_quote_string(out, a->lookahead);
    text_format(out, ",\"logits_digest\":\"%016llx\",\"token_digest\":\"%016llx\"",
                (unsigned long long)a->logits_digest, (unsigned long long)a->token_digest);
    if (!deterministic) {
        const batch_blocks *b = &a->blocks;
        text_format(out,
                    ",\"blocks\":{\"resident\":%llu,\"host\":%llu,\"remote\":%llu,"
                    "\"recomputed\":%llu}",
                    (unsigned long long)b->resident, (unsigned long long)b->host,
                    (unsigned long long)b->remote, (unsigned long long)b->recomputed);
        text_format(out, ",\"void_rows\":%u,\"recomputes\":%u,\"parks\":%u", a->void_rows,
                    a->recomputes, a->parks);
        text_format(out, ",\"ttft_ms\":%.3f,\"total_ms\":%.3f", a->ttft_ms, a->total_ms);
    }
    text_add_string(out, "}");
}

static void add_choice(text *out, const batch_answer *a, const char *logprobs)
{
    text_add_string(out, "{\"index\":0,");
    text_add_string(out,
                    a->chat ? "\"message\":{\"role\":\"assistant\",\"content\":" : "\"text\":");
    text_quote(out, a->content, a->content_bytes);
    if (a->chat) text_add_string(out, "}");
    text_format(out, ",\"finish_reason\":\"%s\",\"logprobs\":", a->stopped ? "stop" : "length");
    text_add_string(out, logprobs == NULL ? "null" : logprobs);
    text_add_string(out, "}");
}

void batch_write_answer(text *out, const batch_answer *answer, const char *logprobs,
                        bool deterministic)
{
    CHECK(answer->custom_id != NULL && answer->selector != NULL);
    /* Names of requests and answers follow from line and custom_id, so that runs can be compared.
     */
    uint64_t name = bytes_digest(answer->custom_id, strlen(answer->custom_id), answer->line);
    add_head(out, answer->line, answer->custom_id);
    text_format(out, ",\"response\":{\"status_code\":200,\"request_id\":\"req_%016llx\",\"body\":",
                (unsigned long long)name);
    text_format(out, "{\"id\":\"%s-%016llx\",\"object\":\"%s\",\"created\":%llu,\"model\":",
                answer->chat ? "chatcmpl" : "cmpl", (unsigned long long)name,
                answer->chat ? "chat.completion" : "text_completion",
                deterministic ? 0ull : (unsigned long long)answer->created_s);
    text_quote_string(out, answer->model);
    text_add_string(out, ",\"choices\":[");
    add_choice(out, answer, logprobs);
    text_format(out,
                "],\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,"
                "\"total_tokens\":%u},\"shoal\":",
                answer->prompt_tokens, answer->completion_tokens,
                answer->prompt_tokens + answer->completion_tokens);
    add_shoal(out, answer, deterministic);
    text_add_string(out, "}},\"error\":null}\n");
}

void batch_write_error(text *out, uint64_t line, const char *custom_id, const batch_error *error)
{
    CHECK(error->code[0] != '\0');
    add_head(out, line, custom_id);
    text_add_string(out, ",\"response\":null,\"error\":{\"code\":");
    text_quote_string(out, error->code);
    text_add_string(out, ",\"message\":");
    text_quote_string(out, error->message);
    text_add_string(out, "}}\n");
}
