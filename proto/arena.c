/* Memory of one object: taken from the system in chunks, handed out in order, given back at once.
 *
 * Chunks come from calloc, which gives large ones as untouched zero pages; so a slab of gigabytes
 * costs nothing until it is written, and a leak checker still follows pointers kept in an arena.
 * Under AddressSanitizer what is not handed out is poisoned, with a gap after every allocation, so
 * running over the end of one is caught as it would be with malloc. There is no free of a single
 * allocation: an object's memory is all taken in its create. */
#include "proto/base.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ASAN 1
#endif
#endif
#ifdef ARENA_ASAN
#include <sanitizer/asan_interface.h>
enum { GAP_BYTES = 32 };
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
enum { GAP_BYTES = 0 };
#endif

enum { CHUNK_BYTES_MIN = 64 * 1024, CHUNK_BYTES_MAX = 4 * 1024 * 1024 };

typedef struct chunk {
    struct chunk *next;
    size_t bytes; /* of data */
    size_t used;
    unsigned char data[];
} chunk;

struct arena {
    const char *name;
    chunk *chunks; /* newest first */
    size_t bytes;  /* taken from the system */
    size_t chunk_bytes_next;
    bool sealed;
};

static _Noreturn void out_of_memory(const arena *a, size_t bytes)
{
    log_write(LOG_ERROR, __FILE__, __LINE__, "out of memory: %s asks the system for %zu bytes more",
              a->name, bytes);
    abort();
}

arena *arena_create(const char *name)
{
    CHECK(name != NULL);
    arena *a = calloc(1, sizeof *a);
    if (a == NULL) {
        const arena nobody = {.name = name};
        out_of_memory(&nobody, sizeof *a);
    }
    a->name = name;
    a->chunk_bytes_next = CHUNK_BYTES_MIN;
    return a;
}

void arena_destroy(arena *a)
{
    if (a == NULL) return;
    for (chunk *c = a->chunks; c != NULL;) {
        chunk *next = c->next;
        free(c);
        c = next;
    }
    free(a);
}

/* Place bytes in a chunk; NULL when they do not fit. */
static void *chunk_take(chunk *c, size_t bytes, size_t align)
{
    const uintptr_t base = (uintptr_t)c->data;
    const uintptr_t at = (base + c->used + align - 1) & ~(uintptr_t)(align - 1);
    const size_t start = (size_t)(at - base);
    if (start > c->bytes || bytes > c->bytes - start) return NULL;
    c->used = start + bytes;
    if (c->used + GAP_BYTES <= c->bytes) c->used += GAP_BYTES;
    ASAN_UNPOISON_MEMORY_REGION(c->data + start, bytes);
    return c->data + start;
}

static chunk *chunk_add(arena *a, size_t bytes)
{
    chunk *c = calloc(1, sizeof *c + bytes);
    if (c == NULL) out_of_memory(a, sizeof *c + bytes);
    c->bytes = bytes;
    ASAN_POISON_MEMORY_REGION(c->data, bytes);
    a->bytes += sizeof *c + bytes;
    return c;
}

void *arena_alloc(arena *a, size_t bytes, size_t align)
{
    CHECK(!a->sealed);
    CHECK(align != 0 && (align & (align - 1)) == 0);
    CHECK(bytes < SIZE_MAX / 4 && align < SIZE_MAX / 4);
    if (a->chunks != NULL) {
        void *here = chunk_take(a->chunks, bytes, align);
        if (here != NULL) return here;
    }
    const size_t need = bytes + align + GAP_BYTES;
    if (a->chunks != NULL && need > a->chunk_bytes_next / 4) {
        /* A large one gets a chunk of its own behind the newest, whose rest stays in use. */
        chunk *own = chunk_add(a, need);
        own->next = a->chunks->next;
        a->chunks->next = own;
        return chunk_take(own, bytes, align);
    }
    chunk *c = chunk_add(a, need > a->chunk_bytes_next ? need : a->chunk_bytes_next);
    c->next = a->chunks;
    a->chunks = c;
    if (a->chunk_bytes_next < CHUNK_BYTES_MAX) a->chunk_bytes_next *= 2;
    return chunk_take(c, bytes, align);
}

char *arena_string(arena *a, const char *text)
{
    CHECK(text != NULL);
    const size_t bytes = strlen(text) + 1;
    char *copy = arena_alloc(a, bytes, 1);
    memcpy(copy, text, bytes);
    return copy;
}

void arena_seal(arena *a)
{
    a->sealed = true;
}

size_t arena_bytes(const arena *a)
{
    return a->bytes;
}
