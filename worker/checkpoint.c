/* Safetensors, validated before use.
 *
 * A file is: header length (u64, little endian), a JSON object of that length, data. The object
 * maps names to dtype, shape and data_offsets [begin, end) within the data. Sorted by offset,
 * tensors must tile the data exactly: that one pass rules out overlaps, holes and ranges beyond the
 * file.
 *
 * Not done: writing, and dtypes narrower than a byte. */
#include "worker/checkpoint.h"

#include "kernels/kernels.h"
#include "worker/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEADER_BYTES_MAX = 100 * 1000 * 1000, /* the format's own limit */
    INDEX_BYTES_MAX = 64 << 20,
    TENSORS_MAX = 1 << 20,
    SAMPLES = 64,
    SAMPLE_BYTES = 64,
};

typedef struct shard_file {
    const char *path; /* named in sentences */
    const uint8_t *map;
    void *mapping; /* the same, for munmap */
    uint64_t bytes, header_bytes;
    cJSON *header;
    uint32_t count;
} shard_file;

struct checkpoint {
    arena *arena;
    shard_file *shards;
    uint32_t shard_count;
    tensor *tensors; /* by name */
    uint32_t count;
};

static const struct dtype {
    const char *name;
    uint32_t bytes;
} dtypes[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4},     {"F64", 8},     {"I64", 8},    {"I32", 4},
              {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},     {"U16", 2},    {"U8", 1},
              {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};

static const struct dtype *dtype_find(const char *name)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, name) == 0) return &dtypes[i];
    return NULL;
}

/* ---- one tensor ------------------------------------------------------------------------------ */

static status read_shape(const char *path, const cJSON *item, tensor *t, uint64_t *out_elements)
{
    const cJSON *list = json_get(item, "shape");
    if (!cJSON_IsArray(list) || cJSON_GetArraySize(list) > CHECKPOINT_RANK_MAX)
        return FAIL(INVALID, "%s: tensor %.120s: \"shape\" must be a list of at most %d numbers",
                    path, item->string, CHECKPOINT_RANK_MAX);
    uint64_t elements = 1;
    const cJSON *each;
    cJSON_ArrayForEach(each, list)
    {
        uint64_t n;
        if (!json_whole(each, &n))
            return FAIL(INVALID,
                        "%s: tensor %.120s: \"shape\" holds something else than whole numbers",
                        path, item->string);
        t->shape[t->rank++] = n;
        if (__builtin_mul_overflow(elements, n, &elements))
            return FAIL(INVALID, "%s: tensor %.120s: \"shape\" has more elements than 2^64", path,
                        item->string);
    }
    *out_elements = elements;
    return STATUS_OK;
}

static status read_tensor(const shard_file *s, const cJSON *item, tensor *out)
{
    tensor t = {.name = item->string};
    uint64_t elements = 0, begin = 0, end = 0, bytes = 0;
    if (item->string[0] == '\0') return FAIL(INVALID, "%s: a tensor has no name", s->path);
    if (!cJSON_IsObject(item))
        return FAIL(INVALID, "%s: tensor %.120s: must be an object", s->path, item->string);
    const cJSON *dtype = json_get(item, "dtype");
    if (!cJSON_IsString(dtype))
        return FAIL(INVALID, "%s: tensor %.120s: \"dtype\" must be a string", s->path,
                    item->string);
    const struct dtype *d = dtype_find(dtype->valuestring);
    if (!d)
        return FAIL(UNSUPPORTED, "%s: tensor %.120s: unknown dtype \"%.40s\"", s->path,
                    item->string, dtype->valuestring);
    t.dtype = d->name;
    TRY(read_shape(s->path, item, &t, &elements));
    const cJSON *range = json_get(item, "data_offsets");
    if (!cJSON_IsArray(range) || cJSON_GetArraySize(range) != 2 ||
        !json_whole(range->child, &begin) || !json_whole(range->child->next, &end) || end < begin)
        return FAIL(INVALID,
                    "%s: tensor %.120s: \"data_offsets\" must be two ascending whole numbers",
                    s->path, item->string);
    uint64_t data = s->bytes - 8 - s->header_bytes;
    if (end > data)
        return FAIL(
            INVALID,
            "%s: tensor %.120s ends at byte %llu of the data, but the file holds %llu: truncated?",
            s->path, item->string, (unsigned long long)end, (unsigned long long)data);
    if (__builtin_mul_overflow(elements, (uint64_t)d->bytes, &bytes) || bytes != end - begin)
        return FAIL(INVALID,
                    "%s: tensor %.120s: its shape and dtype do not make the %llu bytes it has",
                    s->path, item->string, (unsigned long long)(end - begin));
    t.data = s->map + 8 + s->header_bytes + begin;
    t.bytes = bytes;
    *out = t;
    return STATUS_OK;
}

/* ---- one file -------------------------------------------------------------------------------- */

static int by_offset(const void *a, const void *b)
{
    const tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones first */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static status check_tiling(const shard_file *s, tensor *tensors, uint32_t count)
{
    qsort(tensors, count, sizeof *tensors, by_offset);
    const uint8_t *at = s->map + 8 + s->header_bytes;
    for (uint32_t i = 0; i < count; i++) {
        if (tensors[i].data < at)
            return FAIL(INVALID, "%s: tensor %.120s overlaps tensor %.120s", s->path,
                        tensors[i].name, tensors[i - 1].name);
        if (tensors[i].data > at)
            return FAIL(INVALID, "%s: a hole of %llu bytes before tensor %.120s", s->path,
                        (unsigned long long)(tensors[i].data - at), tensors[i].name);
        at += tensors[i].bytes;
    }
    if (at != s->map + s->bytes)
        return FAIL(INVALID, "%s: %llu bytes after the last tensor", s->path,
                    (unsigned long long)(s->map + s->bytes - at));
    return STATUS_OK;
}

static status check_metadata(const shard_file *s, const cJSON *item)
{
    const cJSON *each;
    if (!cJSON_IsObject(item)) return FAIL(INVALID, "%s: __metadata__ must be an object", s->path);
    cJSON_ArrayForEach(each, item) if (!cJSON_IsString(each)) return FAIL(
        INVALID, "%s: __metadata__ \"%.60s\" must be a string", s->path, each->string);
    return STATUS_OK;
}

static status map_file(const char *path, shard_file *s)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return FAIL(NOT_FOUND, "%s: no such file", path);
    if (fd < 0) return FAIL(IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat st;
    status result = STATUS_OK;
    if (fstat(fd, &st) != 0)
        result = FAIL(IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        result = FAIL(INVALID, "%s: not a regular file", path);
    else if (st.st_size < 8)
        result = FAIL(INVALID, "%s: %lld bytes cannot hold a safetensors header", path,
                      (long long)st.st_size);
    if (result == STATUS_OK) {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            result = FAIL(IO, "%s: cannot map: %s", path, strerror(errno));
        else
            *s = (shard_file){
                .path = s->path, .map = map, .mapping = map, .bytes = (uint64_t)st.st_size};
    }
    close(fd);
    return result;
}

/* Map and parse; tensors are read by read_tensors once the total is known. */
static status shard_open(checkpoint *c, const char *path, shard_file *s)
{
    s->path = arena_string(c->arena, path);
    TRY(map_file(path, s));
    for (int i = 7; i >= 0; i--)
        s->header_bytes = s->header_bytes << 8 | s->map[i];
    if (s->header_bytes > HEADER_BYTES_MAX)
        return FAIL(INVALID, "%s: header length %llu exceeds the format's 100 MB: not safetensors?",
                    path, (unsigned long long)s->header_bytes);
    if (s->header_bytes > s->bytes - 8)
        return FAIL(INVALID, "%s: header length %llu exceeds the file: truncated?", path,
                    (unsigned long long)s->header_bytes);
    if (s->header_bytes == 0 || s->map[8] != '{')
        return FAIL(INVALID, "%s: the header is not a JSON object", path);
    TRY(json_parse(path, (const char *)s->map + 8, (size_t)s->header_bytes, &s->header));
    const cJSON *item;
    cJSON_ArrayForEach(item, s->header)
    {
        if (strcmp(item->string, "__metadata__") == 0)
            TRY(check_metadata(s, item));
        else
            s->count++;
    }
    return STATUS_OK;
}

static status read_tensors(const shard_file *s, uint32_t index, tensor *tensors)
{
    const cJSON *item;
    uint32_t n = 0;
    cJSON_ArrayForEach(item, s->header)
    {
        if (strcmp(item->string, "__metadata__") == 0) continue;
        TRY(read_tensor(s, item, &tensors[n]));
        tensors[n++].shard = index;
    }
    /* Equal names first: in one file they would also overlap, with a less helpful sentence. */
    qsort(tensors, n, sizeof *tensors, by_name);
    for (uint32_t i = 1; i < n; i++)
        if (strcmp(tensors[i].name, tensors[i - 1].name) == 0)
            return FAIL(INVALID, "%s: tensor %.120s appears twice", s->path, tensors[i].name);
    return check_tiling(s, tensors, n);
}

/* ---- the set of files ------------------------------------------------------------------------ */

static status join(const char *directory, const char *name, char *out, size_t out_bytes)
{
    int n = snprintf(out, out_bytes, "%s/%s", directory, name);
    if (n < 0 || (size_t)n >= out_bytes) return FAIL(INVALID, "%.80s...: path too long", directory);
    return STATUS_OK;
}

static status check_shard_name(const char *index, const char *name)
{
    size_t n = strlen(name);
    if (n < 13 || n > 255 || strchr(name, '/') || strcmp(name + n - 12, ".safetensors") != 0)
        return FAIL(INVALID,
                    "%s: \"%.120s\" is not the name of a safetensors file in this directory", index,
                    name);
    return STATUS_OK;
}

static uint32_t shard_index(const checkpoint *c, const char *name)
{
    for (uint32_t i = 0; i < c->shard_count; i++) {
        const char *slash = strrchr(c->shards[i].path, '/');
        if (strcmp(slash + 1, name) == 0) return i;
    }
    return UINT32_MAX;
}

static status open_shards(checkpoint *c, const char *directory, const char *index,
                          const cJSON *weight_map)
{
    c->shards = ARENA_NEW(c->arena, shard_file, CHECKPOINT_SHARDS_MAX);
    const cJSON *item;
    cJSON_ArrayForEach(item, weight_map)
    {
        if (!cJSON_IsString(item))
            return FAIL(INVALID, "%s: weight_map \"%.120s\" must name a file", index, item->string);
        TRY(check_shard_name(index, item->valuestring));
        if (shard_index(c, item->valuestring) != UINT32_MAX) continue;
        if (c->shard_count == CHECKPOINT_SHARDS_MAX)
            return FAIL(INVALID, "%s: more than %d files", index, CHECKPOINT_SHARDS_MAX);
        char path[4096];
        TRY(join(directory, item->valuestring, path, sizeof path));
        status s = shard_open(c, path, &c->shards[c->shard_count]);
        c->shard_count += c->shards[c->shard_count].map != NULL; /* so that close unmaps it */
        TRY(s);
    }
    if (c->shard_count == 0) return FAIL(INVALID, "%s: weight_map is empty", index);
    return STATUS_OK;
}

static status gather(checkpoint *c)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < c->shard_count; i++)
        total += c->shards[i].count;
    if (total > TENSORS_MAX)
        return FAIL(INVALID, "%s: %llu tensors, more than %d", c->shards[0].path,
                    (unsigned long long)total, TENSORS_MAX);
    c->tensors = ARENA_NEW(c->arena, tensor, total ? total : 1);
    for (uint32_t i = 0; i < c->shard_count; i++) {
        TRY(read_tensors(&c->shards[i], i, c->tensors + c->count));
        c->count += c->shards[i].count;
    }
    qsort(c->tensors, c->count, sizeof *c->tensors, by_name);
    for (uint32_t i = 1; i < c->count; i++)
        if (strcmp(c->tensors[i].name, c->tensors[i - 1].name) == 0)
            return FAIL(INVALID, "%s: tensor %.120s is also in %s",
                        c->shards[c->tensors[i].shard].path, c->tensors[i].name,
                        c->shards[c->tensors[i - 1].shard].path);
    return STATUS_OK;
}

/* Every entry of the index is where it says, and nothing else is there. */
static status check_index(const checkpoint *c, const char *index, const cJSON *weight_map)
{
    const cJSON *item;
    uint32_t listed = 0;
    cJSON_ArrayForEach(item, weight_map)
    {
        const tensor *t = checkpoint_find(c, item->string);
        if (!t || t->shard != shard_index(c, item->valuestring))
            return FAIL(INVALID, "%s: tensor %.120s is not in %.120s", index, item->string,
                        item->valuestring);
        listed++;
    }
    if (listed == c->count) return STATUS_OK;
    for (uint32_t i = 0; i < c->count; i++)
        if (!json_get(weight_map, c->tensors[i].name))
            return FAIL(INVALID, "%s: tensor %.120s of %s is not listed", index, c->tensors[i].name,
                        c->shards[c->tensors[i].shard].path);
    return FAIL(INVALID, "%s: weight_map lists a tensor twice", index);
}

static status open_sharded(checkpoint *c, const char *directory, const char *index)
{
    cJSON *tree = NULL;
    TRY(json_file_parse(index, INDEX_BYTES_MAX, &tree));
    const cJSON *weight_map = json_get(tree, "weight_map");
    status s = STATUS_OK;
    if (!cJSON_IsObject(weight_map))
        s = FAIL(INVALID, "%s: \"weight_map\" must be an object", index);
    if (s == STATUS_OK) s = open_shards(c, directory, index, weight_map);
    if (s == STATUS_OK) s = gather(c);
    if (s == STATUS_OK) s = check_index(c, index, weight_map);
    json_free(tree);
    return s;
}

static status open_single(checkpoint *c, const char *path)
{
    c->shards = ARENA_NEW(c->arena, shard_file, 1);
    status s = shard_open(c, path, &c->shards[0]);
    c->shard_count = c->shards[0].map != NULL;
    TRY(s);
    return gather(c);
}

status checkpoint_open(const char *directory, checkpoint **out_checkpoint)
{
    CHECK(directory && out_checkpoint);
    char single[4096], index[4096];
    TRY(join(directory, "model.safetensors", single, sizeof single));
    TRY(join(directory, "model.safetensors.index.json", index, sizeof index));
    bool one_file = access(single, F_OK) == 0;
    if (!one_file && access(index, F_OK) != 0)
        return FAIL(NOT_FOUND,
                    "%s: neither model.safetensors nor model.safetensors.index.json here",
                    directory);
    arena *a = arena_create("checkpoint");
    checkpoint *c = ARENA_NEW(a, checkpoint, 1);
    c->arena = a;
    status s = one_file ? open_single(c, single) : open_sharded(c, directory, index);
    if (s != STATUS_OK) {
        checkpoint_close(c);
        return s;
    }
    *out_checkpoint = c;
    return STATUS_OK;
}

void checkpoint_close(checkpoint *c)
{
    if (!c) return;
    for (uint32_t i = 0; i < c->shard_count; i++) {
        json_free(c->shards[i].header);
        munmap(c->shards[i].mapping, (size_t)c->shards[i].bytes);
    }
    arena_destroy(c->arena);
}

/* ---- looking --------------------------------------------------------------------------------- */

uint32_t checkpoint_count(const checkpoint *c)
{
    return c->count;
}

const tensor *checkpoint_at(const checkpoint *c, uint32_t index)
{
    CHECK(index < c->count);
    return &c->tensors[index];
}

const tensor *checkpoint_find(const checkpoint *c, const char *name)
{
    tensor key = {.name = name};
    if (c->count == 0) return NULL;
    return bsearch(&key, c->tensors, c->count, sizeof key, by_name);
}

const char *checkpoint_path(const checkpoint *c, uint32_t shard)
{
    CHECK(shard < c->shard_count);
    return c->shards[shard].path;
}

static float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    union {
        uint32_t u;
        float f;
    } x;
    if (exponent == 0) {
        x.f = (float)fraction * 0x1p-24f; /* exact */
        x.u |= sign;
    } else {
        x.u = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    }
    return x.f;
}

static void convert(const tensor *t, uint16_t *out)
{
    uint64_t count = t->bytes / (t->dtype[0] == 'F' && t->dtype[1] == '3' ? 4 : 2);
    for (uint64_t i = 0; i < count; i++) {
        uint16_t half;
        float single;
        if (strcmp(t->dtype, "F32") == 0) {
            memcpy(&single, t->data + 4 * i, 4);
            out[i] = kern_f32_to_bf16(single);
            continue;
        }
        memcpy(&half, t->data + 2 * i, 2);
        out[i] = t->dtype[0] == 'B' ? half : kern_f32_to_bf16(f16_to_f32(half));
    }
}

static void shape_text(const uint64_t *shape, uint32_t rank, char *out, size_t bytes)
{
    size_t used = (size_t)snprintf(out, bytes, "[");
    for (uint32_t i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(out + used, bytes - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)shape[i]);
    if (used < bytes) (void)snprintf(out + used, bytes - used, "]");
}

status checkpoint_bf16(const checkpoint *c, const char *name, const uint64_t *shape, uint32_t rank,
                       arena *a, const uint16_t **out_data)
{
    CHECK(c && name && shape && out_data);
    CHECK(rank <= CHECKPOINT_RANK_MAX);
    const tensor *t = checkpoint_find(c, name);
    const char *path = t ? c->shards[t->shard].path : c->shards[0].path;
    if (!t)
        return FAIL(INVALID, "%s: tensor %s is missing%s", path, name,
                    c->shard_count > 1 ? " (and in the other files)" : "");
    if (t->rank != rank || memcmp(t->shape, shape, rank * sizeof *shape) != 0) {
        char have[192], want[192];
        shape_text(t->shape, t->rank, have, sizeof have);
        shape_text(shape, rank, want, sizeof want);
        return FAIL(INVALID, "%s: tensor %s has the shape %s, config.json asks for %s", path, name,
                    have, want);
    }
    bool bf16 = strcmp(t->dtype, "BF16") == 0;
    if (!bf16 && strcmp(t->dtype, "F16") != 0 && strcmp(t->dtype, "F32") != 0)
        return FAIL(UNSUPPORTED, "%s: tensor %s is %s; BF16, F16 and F32 are read", path, name,
                    t->dtype);
    if (bf16 && (uintptr_t)t->data % 2 == 0) {
        *out_data = (const uint16_t *)(const void *)t->data;
        return STATUS_OK;
    }
    uint64_t count = 1;
    for (uint32_t i = 0; i < rank; i++)
        count *= shape[i];
    uint16_t *copy = arena_alloc(a, count ? count * 2 : 2, 64);
    convert(t, copy);
    *out_data = copy;
    return STATUS_OK;
}

uint64_t checkpoint_digest(const checkpoint *c, uint64_t seed)
{
    uint64_t digest = seed;
    for (uint32_t i = 0; i < c->shard_count; i++)
        digest = bytes_digest(c->shards[i].map + 8, (size_t)c->shards[i].header_bytes, digest);
    for (uint32_t i = 0; i < c->count; i++) {
        const tensor *t = &c->tensors[i];
        if (t->bytes <= (uint64_t)SAMPLES * SAMPLE_BYTES) {
            digest = bytes_digest(t->data, (size_t)t->bytes, digest);
            continue;
        }
        uint64_t step = (t->bytes - SAMPLE_BYTES) / (SAMPLES - 1);
        for (uint64_t k = 0; k < SAMPLES; k++)
            digest = bytes_digest(t->data + k * step, SAMPLE_BYTES, digest);
    }
    return digest;
}
