/* The rules, each a function over one file's text.
 *
 * A file is held twice: as it is, and as `code` with comments and the insides of strings blanked
 * out (newlines kept), so that a word in a comment or a message is not mistaken for its use. There
 * is no parser: the formatter fixes the layout, so a function's body is what stands between a "{"
 * and a "}" alone in column 0, and a declaration is what ends in ";" outside all braces.
 *
 * What it does not do: macros are not expanded, and words are matched as words, whatever they name.
 */
#include "tests/tidy.h"

#include <dirent.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

enum {
    SOURCE_LINES_MAX = 800,
    HEADER_LINES_MAX = 400,
    FUNCTION_LINES_MAX = 70,
    COLUMNS_MAX = 100,
    LAUNCH_ARGUMENTS = 4,
    FILES_MAX = 4096,
    FILE_BYTES_MAX = 8 << 20,
};

typedef struct file {
    char path[TIDY_PATH_BYTES];
    char folder[32]; /* first part of the path; "" at the root */
    const char *ending;
    char *text, *code; /* both end in 0 */
    bool is_c, is_header, is_cuda;
} file;

typedef struct tree {
    arena *memory;
    const char *root;
    file *files;
    uint32_t count;
    tidy_report *report;
} tree;

/* ---- findings -------------------------------------------------------------------------------- */

static void __attribute__((format(printf, 5, 6)))
found(tree *t, const file *f, uint32_t line, const char *rule, const char *format, ...)
{
    tidy_report *r = t->report;
    if (r->count++ >= TIDY_FINDINGS_MAX) return;
    tidy_finding *at = &r->finding[r->count - 1];
    snprintf(at->file, sizeof at->file, "%s", f->path);
    at->line = line;
    at->rule = rule;
    va_list args;
    va_start(args, format);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): started on the line above */
    vsnprintf(at->text, sizeof at->text, format, args);
    va_end(args);
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* The next place where `word` stands alone; NULL: none. */
static const char *find_word(const char *text, const char *from, const char *word)
{
    const size_t length = strlen(word);
    for (const char *p = strstr(from, word); p != NULL; p = strstr(p + 1, word)) {
        if ((p == text || !is_word(p[-1])) && !is_word(p[length])) return p;
    }
    return NULL;
}

static uint32_t line_of(const char *text, const char *at)
{
    uint32_t line = 1;
    for (const char *p = text; p < at; p++)
        line += *p == '\n';
    return line;
}

static bool starts_with(const char *text, const char *start)
{
    return strncmp(text, start, strlen(start)) == 0;
}

static bool one_of(const char *text, const char *const *list)
{
    for (; *list != NULL; list++) {
        if (strcmp(text, *list) == 0) return true;
    }
    return false;
}

/* ---- reading the tree ------------------------------------------------------------------------ */

static char *blank_comments_and_strings(arena *a, const char *text)
{
    char *code = arena_string(a, text);
    enum { CODE, LINE, BLOCK, STRING, CHARACTER } state = CODE;
    for (char *p = code; *p != 0; p++) {
        const char c = *p, next = p[1];
        if (state == CODE) {
            if (c == '/' && next == '/') state = LINE;
            if (c == '/' && next == '*') state = BLOCK;
            if (state != CODE) p[0] = p[1] = ' ', p++;
            if (c == '"') state = STRING;
            if (c == '\'' && (p == code || !is_word(p[-1]))) state = CHARACTER;
        } else if (state == LINE) {
            if (c == '\n')
                state = CODE;
            else
                *p = ' ';
        } else if (state == BLOCK) {
            if (c == '*' && next == '/')
                p[0] = p[1] = ' ', p++, state = CODE;
            else if (c != '\n')
                *p = ' ';
        } else {
            if (c == (state == STRING ? '"' : '\'') || c == '\n')
                state = CODE;
            else if (c == '\\' && next != '\n' && next != 0)
                p[0] = p[1] = ' ', p++;
            else if (c != '\\')
                *p = ' ';
        }
    }
    return code;
}

static const char *ending_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(slash != NULL ? slash : path, '.');
    return dot != NULL ? dot : "";
}

static bool is_text_file(const char *name)
{
    static const char *const endings[] = {".c",  ".h",     ".cu",  ".cuh",  ".md",    ".py", ".txt",
                                          ".sh", ".proto", ".def", ".yaml", ".cmake", NULL};
    static const char *const names[] = {"run", "quickstart", "packages", NULL};
    return one_of(ending_of(name), endings) || one_of(name, names);
}

static bool is_skipped_folder(const char *name)
{
    static const char *const data[] = {"__pycache__", "golden",  "small-model",
                                       "corpus",      "results", NULL};
    return (name[0] == '.' && strcmp(name, ".ci") != 0) || starts_with(name, "build") ||
           one_of(name, data);
}

static status read_text(arena *a, const char *path, char **out_text)
{
    FILE *in = fopen(path, "re");
    struct stat info;
    if (in == NULL || fstat(fileno(in), &info) != 0 || info.st_size > FILE_BYTES_MAX) {
        if (in != NULL) fclose(in);
        return FAIL(IO, "cannot read %s (errno %d)", path, errno);
    }
    char *text = arena_alloc(a, (size_t)info.st_size + 1, 1);
    const size_t got = fread(text, 1, (size_t)info.st_size, in);
    fclose(in);
    text[got] = 0;
    *out_text = text;
    return STATUS_OK;
}

static status add_file(tree *t, const char *path)
{
    CHECK(t->count < FILES_MAX);
    file *f = &t->files[t->count];
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", t->root, path);
    TRY(read_text(t->memory, full, &f->text));
    snprintf(f->path, sizeof f->path, "%s", path);
    const char *slash = strchr(path, '/');
    if (slash != NULL) snprintf(f->folder, sizeof f->folder, "%.*s", (int)(slash - path), path);
    f->ending = ending_of(f->path);
    f->is_cuda = strcmp(f->ending, ".cu") == 0 || strcmp(f->ending, ".cuh") == 0;
    f->is_header = strcmp(f->ending, ".h") == 0 || strcmp(f->ending, ".cuh") == 0;
    f->is_c = strcmp(f->ending, ".c") == 0 || f->is_header || f->is_cuda;
    f->code = f->is_c ? blank_comments_and_strings(t->memory, f->text) : f->text;
    t->count++;
    return STATUS_OK;
}

static status read_folder(tree *t, const char *folder)
{
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", t->root, folder);
    DIR *dir = opendir(full);
    if (dir == NULL) return FAIL(IO, "cannot list %s (errno %d)", full, errno);
    status result = STATUS_OK;
    for (struct dirent *e = readdir(dir); e != NULL && result == STATUS_OK; e = readdir(dir)) {
        char path[TIDY_PATH_BYTES], below[1024];
        const int used =
            snprintf(path, sizeof path, "%s%s%s", folder, folder[0] != 0 ? "/" : "", e->d_name);
        if (used < 0 || used >= TIDY_PATH_BYTES) continue; /* no path of ours is so long */
        snprintf(below, sizeof below, "%s/%s", t->root, path);
        struct stat info;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (lstat(below, &info) != 0) continue; /* gone since it was listed */
        if (S_ISDIR(info.st_mode) && !is_skipped_folder(e->d_name)) result = read_folder(t, path);
        if (S_ISREG(info.st_mode) && is_text_file(e->d_name)) result = add_file(t, path);
    }
    closedir(dir);
    return result;
}

/* ---- includes -------------------------------------------------------------------------------- */

/* Who may look at whom: arrows point down only. tests may look anywhere. */
static bool may_include(const char *from, const char *to)
{
    static const struct {
        const char *from, *to[6];
    } rows[] = {
        {"proto", {"proto"}},
        {"kernels", {"kernels", "proto"}},
        {"cluster", {"cluster", "proto"}},
        {"kvstore", {"kvstore", "cluster", "proto"}},
        {"worker", {"worker", "kvstore", "cluster", "kernels", "proto"}},
        {"tests", {"tests", "worker", "kvstore", "cluster", "kernels", "proto"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (strcmp(rows[i].from, from) != 0) continue;
        for (size_t k = 0; k < 6 && rows[i].to[k] != NULL; k++) {
            if (strcmp(rows[i].to[k], to) == 0) return true;
        }
        return false;
    }
    return true; /* not one of ours */
}

static bool is_public_header(const char *path)
{
    static const char *const leaves[] = {"proto/base.h", "proto/proto.h", "proto/rpc.h",
                                         "proto/wire.h", NULL};
    const char *slash = strchr(path, '/');
    if (slash == NULL || one_of(path, leaves)) return slash != NULL;
    if (starts_with(path, "proto/") && strstr(path, ".pb-c.h") != NULL) return true;
    const size_t length = (size_t)(slash - path);
    return strncmp(slash + 1, path, length) == 0 && strcmp(slash + 1 + length, ".h") == 0;
}

static void check_quoted_include(tree *t, const file *f, uint32_t line, const char *path)
{
    const char *slash = strchr(path, '/');
    if (slash == NULL) {
        found(t, f, line, "include", "\"%s\" is not rooted: write folder/%s", path, path);
        return;
    }
    char to[32];
    snprintf(to, sizeof to, "%.*s", (int)(slash - path), path);
    if (!may_include(f->folder, to))
        found(t, f, line, "include", "%s/ may not look at %s/: \"%s\"", f->folder, to, path);
    else if (strcmp(f->folder, to) != 0 && strcmp(f->folder, "tests") != 0 &&
             !is_public_header(path))
        found(t, f, line, "include", "\"%s\" is private to %s/", path, to);
}

static void check_system_include(tree *t, const file *f, uint32_t line, const char *path)
{
    static const struct {
        const char *start, *where, *what;
    } rows[] = {
        {"cuda", "kernels/", "CUDA"},
        {"cublas", "kernels/", "CUDA"},
        {"nccl", "worker/train/", "NCCL"},
        {"ucp/", "kvstore/transport_ucx.c", "UCX"},
        {"ucs/", "kvstore/transport_ucx.c", "UCX"},
        {"uct/", "kvstore/transport_ucx.c", "UCX"},
        {"grpc/", "proto/", "gRPC"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (starts_with(path, rows[i].start) && !starts_with(f->path, rows[i].where) &&
            strcmp(f->folder, "tests") != 0)
            found(t, f, line, "include", "<%s>: %s belongs in %s only", path, rows[i].what,
                  rows[i].where);
    }
}

static void check_includes(tree *t, const file *f)
{
    /* The path is a string and blanked in code; the directive is not. */
    for (const char *p = strstr(f->code, "#include"); p != NULL; p = strstr(p + 1, "#include")) {
        const char *raw = f->text + (p - f->code) + strlen("#include");
        raw += strspn(raw, " \t");
        const char close = *raw == '"' ? '"' : '>';
        char path[TIDY_PATH_BYTES];
        const size_t length = strcspn(raw + 1, "\">\n");
        if ((*raw != '"' && *raw != '<') || length >= sizeof path) continue;
        memcpy(path, raw + 1, length);
        path[length] = 0;
        const uint32_t line = line_of(f->text, raw);
        if (close == '"')
            check_quoted_include(t, f, line, path);
        else
            check_system_include(t, f, line, path);
    }
}

/* ---- lengths --------------------------------------------------------------------------------- */

static uint32_t columns_of(const char *line, size_t bytes)
{
    uint32_t columns = 0;
    for (size_t i = 0; i < bytes; i++)
        columns += ((unsigned char)line[i] & 0xc0) != 0x80;
    return columns;
}

static void check_lengths(tree *t, const file *f)
{
    const uint32_t limit = f->is_header ? HEADER_LINES_MAX : SOURCE_LINES_MAX;
    uint32_t line = 0, opened = 0;
    bool table = false; /* a table of cases, which may turn the formatter off around itself */
    for (const char *p = f->text; *p != 0;) {
        const size_t length = strcspn(p, "\n");
        const char *code = f->code + (p - f->text);
        line++;
        if (memmem(p, length, "clang-format off", 16) != NULL) table = true;
        if (memmem(p, length, "clang-format on", 15) != NULL) table = false;
        if (columns_of(p, length) > COLUMNS_MAX && !table)
            found(t, f, line, "columns", "%u columns, at most %d", columns_of(p, length),
                  COLUMNS_MAX);
        if (code[0] == '{') opened = line;
        if (code[0] == '}' && opened != 0) {
            if (line - opened - 1 > FUNCTION_LINES_MAX)
                found(t, f, opened, "function", "a body of %u lines, at most %d", line - opened - 1,
                      FUNCTION_LINES_MAX);
            opened = 0;
        }
        p += length + (p[length] == '\n');
    }
    if (line > limit) found(t, f, 0, "length", "%u lines, at most %u", line, limit);
}

/* ---- words ----------------------------------------------------------------------------------- */

typedef struct banned {
    const char *word;
    bool in_tests; /* banned there too */
    const char *instead;
} banned;

static const banned banned_words[] = {
    {"malloc", false, "take it from an arena"},
    {"calloc", false, "take it from an arena"},
    {"aligned_alloc", false, "take it from an arena"},
    {"posix_memalign", false, "take it from an arena"},
    {"realloc", false, "take it from an arena"},
    {"free", false, "what came from an arena goes with it"},
    {"strdup", false, "use arena_string"},
    {"sprintf", true, "use snprintf"},
    {"vsprintf", true, "use vsnprintf"},
    {"strcpy", true, "use snprintf"},
    {"strcat", true, "use snprintf"},
    {"sleep", true, "wait for what you wait for"},
    {"usleep", true, "wait for what you wait for"},
    {"nanosleep", true, "wait for what you wait for"},
    {"getenv", true, "the configuration file decides, not the environment"},
    {"strtok", true, "it keeps state for all threads: use strtok_r"},
    {"rand", true, "use rng_next, with a seed that was given"},
    {"localtime", true, "it shares its result between threads: use gmtime_r"},
    {"gmtime", true, "it shares its result between threads: use gmtime_r"},
    {"ctime", true, "it shares its result between threads"},
    {"exit", true, "return a status; only main.c exits"},
};

/* Where a banned word is right. Each row says why. */
static const struct {
    const char *file, *word, *why;
} allowed[] = {
    {"proto/arena.c", "calloc", "the one place that asks the system"},
    {"proto/arena.c", "free", "the one place that gives back"},
    {"kernels/backend.c", "aligned_alloc", "kern_alloc: the CPU backend's device memory"},
    {"kernels/backend.c", "free", "kern_free"},
};

static bool is_allowed(const file *f, const char *word)
{
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++) {
        if (strcmp(f->path, allowed[i].file) == 0 && strcmp(word, allowed[i].word) == 0)
            return true;
    }
    const char *name = strrchr(f->path, '/');
    return strcmp(word, "exit") == 0 && name != NULL && strcmp(name, "/main.c") == 0;
}

/* Only calls of the function: `s.free(x)` and `p->free(x)` are members that have the name. */
static void check_banned(tree *t, const file *f)
{
    const bool is_test = strcmp(f->folder, "tests") == 0;
    for (size_t i = 0; i < sizeof banned_words / sizeof banned_words[0]; i++) {
        const banned *b = &banned_words[i];
        if ((is_test && !b->in_tests) || is_allowed(f, b->word)) continue;
        for (const char *p = find_word(f->code, f->code, b->word); p != NULL;
             p = find_word(f->code, p + 1, b->word)) {
            const char *after = p + strlen(b->word);
            const bool member = p > f->code && (p[-1] == '.' || (p[-1] == '>' && p[-2] == '-'));
            if (*after == '(' && !member)
                found(t, f, line_of(f->code, p), "banned", "%s: %s", b->word, b->instead);
        }
    }
}

static void check_launches(tree *t, const file *f)
{
    for (const char *p = strstr(f->code, "<<<"); p != NULL; p = strstr(p + 1, "<<<")) {
        const char *end = strstr(p, ">>>");
        if (end == NULL) return;
        uint32_t arguments = 1;
        int depth = 0;
        for (const char *c = p + 3; c < end; c++) {
            depth += (*c == '(') - (*c == ')');
            arguments += *c == ',' && depth == 0;
        }
        if (arguments < LAUNCH_ARGUMENTS)
            found(t, f, line_of(f->code, p), "launch",
                  "a launch names grid, block, shared bytes and stream");
    }
}

/* A launch that may overlap the one before it, of a kernel that does not wait for it, is a race. */
static void check_begins(tree *t, const file *f)
{
    if (find_word(f->code, f->code, "cuda_launch") == NULL) return;
    for (const char *p = find_word(f->code, f->code, "__global__"); p != NULL;
         p = find_word(f->code, p + 1, "__global__")) {
        const char *body = strchr(p, '{');
        if (body == NULL) return;
        body += 1 + strspn(body + 1, " \n");
        if (strncmp(body, "cuda_begin", strlen("cuda_begin")) != 0)
            found(t, f, line_of(f->code, body), "launch",
                  "a kernel that cuda_launch starts begins with cuda_begin");
    }
}

static void check_markers(tree *t, const file *f)
{
    static const char *const words[] = {"TO"
                                        "DO",
                                        "FIX"
                                        "ME",
                                        "X"
                                        "XX",
                                        NULL};
    for (size_t i = 0; words[i] != NULL; i++) {
        for (const char *p = find_word(f->text, f->text, words[i]); p != NULL;
             p = find_word(f->text, p + 1, words[i])) {
            const char *after = p + strlen(words[i]);
            after += strspn(after, " (:");
            if (*after != '#' || after[1] < '0' || after[1] > '9')
                found(t, f, line_of(f->text, p), "marker", "%s without the number of an issue",
                      words[i]);
        }
    }
}

static void check_machine_paths(tree *t, const file *f)
{
    static const char *const paths[] = {"/wo"
                                        "rk/",
                                        "/ro"
                                        "ot/",
                                        "/ho"
                                        "me/",
                                        NULL};
    for (size_t i = 0; paths[i] != NULL; i++) {
        for (const char *p = strstr(f->text, paths[i]); p != NULL; p = strstr(p + 1, paths[i])) {
            if (p > f->text && (is_word(p[-1]) || strchr(".-}$*", p[-1]) != NULL)) continue;
            found(t, f, line_of(f->text, p), "machine-path", "%s names one machine", paths[i]);
        }
    }
}

/* A file whose every line is blank or a comment has nothing to be there for. */
static void check_placeholder(tree *t, const file *f)
{
    const bool hashes = strcmp(f->ending, ".txt") == 0 || strcmp(f->ending, ".py") == 0 ||
                        strcmp(f->ending, ".sh") == 0 || strcmp(f->ending, ".cmake") == 0;
    if (!f->is_c && !hashes) {
        if (strlen(f->text) < 40) found(t, f, 0, "placeholder", "next to nothing is in it");
        return;
    }
    for (const char *p = f->code; *p != 0; p += strcspn(p, "\n"), p += *p == '\n') {
        const char *first = p + strspn(p, " \t");
        if (*first != '\n' && *first != 0 && !(hashes && *first == '#')) return;
    }
    found(t, f, 0, "placeholder", "it holds comments only");
}

/* ---- public functions ------------------------------------------------------------------------ */

/* The run of lines without a blank one around `at`: does it hold a comment? */
static bool block_has_comment(const file *f, size_t at)
{
    const char *begin = f->text + at, *end = f->text + at;
    while (begin > f->text && !(begin[-1] == '\n' && *begin == '\n'))
        begin--;
    while (*end != 0 && !(end[0] == '\n' && end[1] == '\n'))
        end++;
    for (const char *p = begin; p + 1 < end; p++) {
        if (p[0] == '/' && (p[1] == '*' || p[1] == '/')) return true;
    }
    return false;
}

static bool named_by_a_test(const tree *t, const char *name)
{
    for (uint32_t i = 0; i < t->count; i++) {
        const file *f = &t->files[i];
        if (f->is_c && strcmp(f->folder, "tests") == 0 && find_word(f->code, f->code, name) != NULL)
            return true;
    }
    return false;
}

/* CHECK calls check_failed: who uses the macro has used the function. */
static bool named_by_a_macro(const file *f, const char *name)
{
    for (const char *p = find_word(f->text, f->text, name); p != NULL;
         p = find_word(f->text, p + 1, name)) {
        const char *line = p;
        while (line > f->text && !(line[-1] == '\n' && (line - 1 == f->text || line[-2] != '\\')))
            line--;
        if (starts_with(line, "#define")) return true;
    }
    return false;
}

static void check_declaration(tree *t, const file *f, size_t begin, size_t end)
{
    const char *code = f->code;
    while (begin < end && strchr(" \t\n", code[begin]) != NULL)
        begin++;
    if (starts_with(code + begin, "typedef") || starts_with(code + begin, "_Static_assert") ||
        memchr(code + begin, '=', end - begin) != NULL)
        return;
    const char *paren = memchr(code + begin, '(', end - begin);
    if (paren == NULL) return;
    const char *last = paren;
    while (last > code + begin && is_word(last[-1]))
        last--;
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)(paren - last), last);
    if (name[0] == 0 || starts_with(name, "__")) return;
    if (name[strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] == 0) return; /* a macro */
    const uint32_t line = line_of(code, last);
    if (!block_has_comment(f, begin)) found(t, f, line, "comment", "%s has no comment", name);
    if (!named_by_a_test(t, name) && !named_by_a_macro(f, name))
        found(t, f, line, "untested", "no test names %s", name);
}

/* Blank preprocessor lines, with their continuations: macros are not declarations. */
static void blank_directives(char *code)
{
    bool directive = false;
    for (char *p = code; *p != 0; p++) {
        const bool first = p == code || p[-1] == '\n';
        if (first && !directive) directive = *p == '#';
        if (*p == '\n') {
            directive = directive && p > code && p[-1] == '\\';
        } else if (directive && p[1] != '\n') {
            *p = ' ';
        }
    }
}

static void check_public_functions(tree *t, const file *header)
{
    file f = *header;
    f.code = arena_string(t->memory, header->code);
    blank_directives(f.code);
    size_t begin = 0;
    int depth = 0;
    for (size_t i = 0; f.code[i] != 0; i++) {
        const char c = f.code[i];
        if ((c == ';' || c == '{') && depth == 0) check_declaration(t, &f, begin, i);
        depth += (c == '{') - (c == '}');
        if (c == ';' || c == '{' || c == '}') begin = i + 1;
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void check_file(tree *t, const file *f)
{
    check_markers(t, f);
    check_machine_paths(t, f);
    check_placeholder(t, f);
    if (!f->is_c) return;
    check_includes(t, f);
    check_lengths(t, f);
    check_banned(t, f);
    if (f->is_cuda) check_launches(t, f);
    if (f->is_cuda) check_begins(t, f);
    if (f->is_header && is_public_header(f->path) && strcmp(f->folder, "tests") != 0)
        check_public_functions(t, f);
}

status tidy_tree(arena *a, const char *root, tidy_report *out_report)
{
    tree t = {.memory = a, .root = root, .report = out_report};
    t.files = ARENA_NEW(a, file, FILES_MAX);
    memset(out_report, 0, sizeof *out_report);
    TRY(read_folder(&t, ""));
    for (uint32_t i = 0; i < t.count; i++)
        check_file(&t, &t.files[i]);
    out_report->files = t.count;
    return STATUS_OK;
}
