/* tests/kernels/oracle.c - run the selection pipeline of every backend over case files
 * (kernels/README.md), so that the float64 oracle can judge selections and attention.
 *
 * A file that is cut short or names impossible shapes is refused; it comes from our own scripts, so
 * the refusal is one sentence and exit 1. */
#include "tests/kernels/ops.h"

#include <math.h>
#include <string.h>

enum { HEADER_WORDS = 21, FLAG_COMPRESS = 1, FLAG_NO_ATTEND = 2 };

typedef struct oracle_case {
    uint32_t rows, heads, kv_heads, dim, tokens, windows;
    kern_selector selector;
    uint32_t max_select, flags;
    uint32_t select_blocks, blocks; /* selection blocks and storage blocks of all tokens */
    int32_t *pos;
    float *q;
    uint16_t *kc, *uc, *u, *k, *v;
} oracle_case;

static bool read_array(FILE *f, arena *a, void **out, uint64_t count, size_t size)
{
    *out = arena_alloc(a, count * size + 64, 64);
    return fread(*out, size, count, f) == count;
}

/* 1: a case was read, 0: the end, -1: not a case. */
static int read_case(FILE *f, arena *a, oracle_case *c)
{
    char magic[8];
    uint32_t w[HEADER_WORDS];
    const size_t got = fread(magic, 1, sizeof magic, f);
    if (got == 0) return 0;
    if (got != sizeof magic || memcmp(magic, "SHOALOC1", 8) != 0) return -1;
    if (fread(w, sizeof w[0], HEADER_WORDS, f) != HEADER_WORDS) return -1;
    memset(c, 0, sizeof *c);
    c->rows = w[0], c->heads = w[1], c->kv_heads = w[2], c->dim = w[3], c->tokens = w[4];
    c->windows = w[5];
    c->selector = (kern_selector){.window = w[6],
                                  .stride = w[7],
                                  .block = w[8],
                                  .init = w[9],
                                  .local = w[10],
                                  .query = w[11],
                                  .total = w[12],
                                  .fill_by_importance = w[13] != 0,
                                  .bias = w[14] != 0,
                                  .source = (kern_source)w[15],
                                  .chunk = w[18],
                                  .raw = w[19] != 0,
                                  .near = w[20]};
    c->max_select = w[16], c->flags = w[17];
    if (c->rows == 0 || c->rows > 1u << 20 || c->heads > 4096 || c->kv_heads == 0 ||
        c->kv_heads > 256 || c->dim == 0 || c->dim > 1024 || c->tokens == 0 ||
        c->tokens > 1u << 20 || c->windows > c->tokens || c->selector.block == 0)
        return -1;
    c->select_blocks = (c->tokens - 1) / c->selector.block + 1;
    c->blocks = (c->tokens - 1) / KERN_BLOCK + 1;
    if (c->max_select == 0) c->max_select = c->blocks;
    const uint64_t heads = c->kv_heads, keys = heads * c->tokens * c->dim;
    bool ok = read_array(f, a, (void **)&c->pos, c->rows, 4) &&
              read_array(f, a, (void **)&c->q, (uint64_t)c->rows * c->heads * c->dim, 4);
    if ((c->flags & FLAG_COMPRESS) == 0)
        ok = ok && read_array(f, a, (void **)&c->kc, heads * c->windows * c->dim, 2) &&
             read_array(f, a, (void **)&c->uc, heads * c->windows, 2);
    ok = ok && read_array(f, a, (void **)&c->u, heads * c->tokens, 2) &&
         read_array(f, a, (void **)&c->k, keys, 2) && read_array(f, a, (void **)&c->v, keys, 2);
    return ok ? 1 : -1;
}

/* Everything of one backend's run. */
typedef struct oracle_run {
    kern_stream *stream;
    kern_summary summary;
    float *scores, *query, *importance, *out;
    int32_t *row_seq, *row_selector, *block, *slot, *count, *settled;
    uint8_t *mask, *pool;
} oracle_run;

static status make_windows(const oracle_case *c, arena *a, oracle_run *r)
{
    const uint64_t heads = c->kv_heads, dim = c->dim;
    float *k = ARENA_NEW(a, float, c->tokens *heads *dim);
    uint16_t *u = ARENA_NEW(a, uint16_t, c->tokens * heads);
    int32_t *seq = ARENA_NEW(a, int32_t, c->tokens), *pos = ARENA_NEW(a, int32_t, c->tokens);
    for (uint64_t t = 0; t < c->tokens; t++) {
        pos[t] = (int32_t)t;
        for (uint64_t h = 0; h < heads; h++) {
            u[t * heads + h] = c->u[h * c->tokens + t];
            for (uint64_t d = 0; d < dim; d++)
                k[(t * heads + h) * dim + d] =
                    kern_bf16_to_f32(c->k[(h * c->tokens + t) * dim + d]);
        }
    }
    const kern_compress_args args = {.k = k,
                                     .u = u,
                                     .row_seq = seq,
                                     .row_pos = pos,
                                     .summary = r->summary,
                                     .row_stride = heads * dim,
                                     .rows = c->tokens};
    return kern_compress(r->stream, &args);
}

static void prepare(const oracle_case *c, arena *a, oracle_run *r)
{
    const uint64_t heads = c->kv_heads, dim = c->dim, lists = (uint64_t)c->rows * heads;
    r->summary = (kern_summary){.kc = ARENA_NEW(a, uint16_t, heads * c->windows * dim + 1),
                                .uc = ARENA_NEW(a, uint16_t, heads * c->windows + 1),
                                .u = ARENA_NEW(a, uint16_t, heads * c->tokens),
                                .key_ring = ARENA_NEW(a, uint16_t, heads * KERN_KEY_RING * dim),
                                .seqs = 1,
                                .kv_heads = c->kv_heads,
                                .head_dim = c->dim,
                                .max_windows = c->windows,
                                .max_tokens = c->tokens,
                                .window = c->selector.window,
                                .stride = c->selector.stride};
    memcpy(r->summary.u, c->u, heads * c->tokens * 2);
    if (c->kc != NULL) {
        memcpy(r->summary.kc, c->kc, heads * c->windows * dim * 2);
        memcpy(r->summary.uc, c->uc, heads * c->windows * 2);
    }
    r->scores = ARENA_NEW(a, float, lists * c->windows + 1);
    r->query = ARENA_NEW(a, float, lists * c->select_blocks);
    r->importance = ARENA_NEW(a, float, lists * c->select_blocks);
    r->out = ARENA_NEW(a, float, (uint64_t)c->rows * c->heads * dim);
    r->row_seq = ARENA_NEW(a, int32_t, c->rows);
    r->row_selector = ARENA_NEW(a, int32_t, c->rows);
    r->block = ARENA_NEW(a, int32_t, lists * c->max_select);
    r->slot = ARENA_NEW(a, int32_t, lists * c->max_select);
    r->mask = ARENA_NEW(a, uint8_t, lists * c->max_select);
    r->count = ARENA_NEW(a, int32_t, lists);
    r->settled = ARENA_NEW(a, int32_t, lists);
    const uint64_t block_values = 2 * KERN_BLOCK * dim;
    uint16_t *pool = ARENA_NEW(a, uint16_t, heads * c->blocks * block_values);
    for (uint64_t h = 0; h < heads; h++)
        for (uint64_t t = 0; t < c->tokens; t++) {
            uint16_t *k =
                pool + (h * c->blocks + t / KERN_BLOCK) * block_values + t % KERN_BLOCK * dim;
            memcpy(k, c->k + (h * c->tokens + t) * dim, dim * 2);
            memcpy(k + KERN_BLOCK * dim, c->v + (h * c->tokens + t) * dim, dim * 2);
        }
    r->pool = (uint8_t *)pool;
}

static status run_selection(const oracle_case *c, oracle_run *r)
{
    const kern_score_args score = {.q = c->q,
                                   .row_seq = r->row_seq,
                                   .row_pos = c->pos,
                                   .row_selector = r->row_selector,
                                   .selectors = &c->selector,
                                   .summary = r->summary,
                                   .out = r->scores,
                                   .row_stride = (uint64_t)c->heads * c->dim,
                                   .rows = c->rows,
                                   .heads = c->heads};
    TRY(kern_score(r->stream, &score));
    const kern_pool_args pool = {.scores = r->scores,
                                 .row_seq = r->row_seq,
                                 .row_pos = c->pos,
                                 .row_selector = r->row_selector,
                                 .selectors = &c->selector,
                                 .summary = r->summary,
                                 .query = r->query,
                                 .importance = r->importance,
                                 .rows = c->rows,
                                 .max_select_blocks = c->select_blocks};
    TRY(kern_pool(r->stream, &pool));
    const kern_select_args select = {.query = r->query,
                                     .importance = r->importance,
                                     .row_pos = c->pos,
                                     .row_selector = r->row_selector,
                                     .selectors = &c->selector,
                                     .block = r->block,
                                     .mask = r->mask,
                                     .count = r->count,
                                     .settled = r->settled,
                                     .rows = c->rows,
                                     .kv_heads = c->kv_heads,
                                     .max_select_blocks = c->select_blocks,
                                     .max_select = c->max_select};
    return kern_select(r->stream, &select);
}

static status run_attention(const oracle_case *c, oracle_run *r)
{
    for (uint64_t i = 0; i < (uint64_t)c->rows * c->kv_heads; i++)
        for (int32_t e = 0; e < r->count[i]; e++) {
            const uint64_t at = i * c->max_select + (uint64_t)e;
            r->slot[at] = (int32_t)(i % c->kv_heads * c->blocks) + r->block[at];
        }
    const kern_attend_args attend = {.q = c->q,
                                     .block = r->block,
                                     .slot = r->slot,
                                     .count = r->count,
                                     .mask = r->mask,
                                     .row_seq = r->row_seq,
                                     .row_pos = c->pos,
                                     .row_selector = r->row_selector,
                                     .selectors = &c->selector,
                                     .pool = r->pool,
                                     .summary = r->summary,
                                     .out = r->out,
                                     .row_stride = (uint64_t)c->heads * c->dim,
                                     .rows = c->rows,
                                     .heads = c->heads,
                                     .max_select = c->max_select,
                                     .block_bytes = 4 * KERN_BLOCK * c->dim};
    return kern_attend(r->stream, &attend);
}

static bool write_array(FILE *f, const void *data, uint64_t count, size_t size)
{
    return fwrite(data, size, count, f) == count;
}

static bool write_result(FILE *f, const oracle_case *c, const oracle_run *r, const char *name)
{
    const uint64_t lists = (uint64_t)c->rows * c->kv_heads;
    char label[16] = {0};
    (void)snprintf(label, sizeof label, "%s", name);
    bool ok = write_array(f, label, sizeof label, 1);
    if ((c->flags & FLAG_COMPRESS) != 0)
        ok = ok && write_array(f, r->summary.kc, (uint64_t)c->kv_heads * c->windows * c->dim, 2) &&
             write_array(f, r->summary.uc, (uint64_t)c->kv_heads * c->windows, 2);
    ok = ok && write_array(f, r->query, lists * c->select_blocks, 4) &&
         write_array(f, r->importance, lists * c->select_blocks, 4) &&
         write_array(f, r->count, lists, 4) && write_array(f, r->settled, lists, 4) &&
         write_array(f, r->block, lists * c->max_select, 4) &&
         write_array(f, r->mask, lists * c->max_select, 1);
    if ((c->flags & FLAG_NO_ATTEND) == 0)
        ok = ok && write_array(f, r->out, (uint64_t)c->rows * c->heads * c->dim, 4);
    return ok;
}

static status run_backend(FILE *results, const oracle_case *c, const ops_backend *b)
{
    kern_backend *backend;
    TRY(kern_backend_open(&b->config, &backend));
    arena *a = arena_create("oracle run");
    oracle_run r = {0};
    prepare(c, a, &r);
    status s = kern_stream_create(backend, &r.stream);
    if (s == STATUS_OK && (c->flags & FLAG_COMPRESS) != 0) s = make_windows(c, a, &r);
    if (s == STATUS_OK) s = run_selection(c, &r);
    if (s == STATUS_OK && (c->flags & FLAG_NO_ATTEND) == 0) s = run_attention(c, &r);
    if (s == STATUS_OK && !write_result(results, c, &r, b->name))
        s = FAIL(IO, "cannot write the results");
    kern_stream_destroy(r.stream);
    kern_backend_close(backend);
    arena_destroy(a);
    return s;
}

static status run_case(FILE *results, const oracle_case *c)
{
    ops_backend backends[OPS_BACKENDS_MAX];
    const uint32_t count = ops_backends(backends, 0);
    const uint32_t head[10] = {c->rows,       c->heads,   c->kv_heads, c->dim,   c->select_blocks,
                               c->max_select, c->windows, count,       c->flags, 0};
    if (!write_array(results, "SHOALOR1", 8, 1) || !write_array(results, head, 10, 4))
        return FAIL(IO, "cannot write the results");
    for (uint32_t i = 0; i < count; i++)
        TRY(run_backend(results, c, &backends[i]));
    return STATUS_OK;
}

int oracle_main(const char *cases_path, const char *results_path)
{
    FILE *cases = fopen(cases_path, "rb"), *results = fopen(results_path, "wb");
    status s = cases == NULL || results == NULL
                   ? FAIL(IO, "cannot open %s or %s", cases_path, results_path)
                   : STATUS_OK;
    for (int more = 1; s == STATUS_OK && more == 1;) {
        arena *a = arena_create("oracle case");
        oracle_case c;
        more = read_case(cases, a, &c);
        if (more == 1) s = run_case(results, &c);
        if (more < 0) s = FAIL(INVALID, "%s is not a file of cases", cases_path);
        arena_destroy(a);
    }
    if (cases != NULL) (void)fclose(cases);
    if (results != NULL && fclose(results) != 0 && s == STATUS_OK)
        s = FAIL(IO, "cannot write %s", results_path);
    return s == STATUS_OK ? 0 : 1;
}
