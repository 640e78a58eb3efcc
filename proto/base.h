/* proto/base.h - the words every other folder is written in: status, CHECK, log, arena, ring,
 * clock, random numbers, histogram.
 *
 * Threads: stated at each type. Lock order: there are no locks except the log's, which is a leaf.
 * Memory:  what a create function returns belongs to the caller, who gives it to destroy. */
#ifndef PROTO_BASE_H
#define PROTO_BASE_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- status ---------------------------------------------------------------------------------- */

enum status_row {
#define X(name, scope, retry, exit_code, sentence) STATUS_ROW_##name,
#include "proto/status.def"
#undef X
    STATUS_ROW_COUNT
};

/* The result of everything that can fail. Functions write out_ arguments only on STATUS_OK. */
typedef enum status {
    STATUS_OK = 0,
    STATUS_PENDING = 1,
#define X(name, scope, retry, exit_code, sentence) STATUS_##name = -1 - STATUS_ROW_##name,
#include "proto/status.def"
#undef X
} status;

typedef enum status_scope { SCOPE_OPERATION, SCOPE_PEER, SCOPE_NODE, SCOPE_REQUEST } status_scope;
typedef enum status_retry { RETRY_NEVER, RETRY_LATER, RETRY_OTHER } status_retry;

const char *status_name(status s);      /* "NOT_FOUND"; "UNKNOWN" for a value outside the table */
const char *status_sentence(status s);  /* one sentence, no full stop */
status_scope status_scope_of(status s); /* STATUS_OK and unknown: SCOPE_OPERATION */
status_retry status_retry_of(status s);
int status_exit_code(status s);                           /* 0 for STATUS_OK */
bool status_from_wire(int32_t value, status *out_status); /* false: value is not in the table */

/* Return early with whatever failed; the function that knew the cause has logged it. */
#define TRY(expr)                                                                                  \
    do {                                                                                           \
        status try_status_ = (expr);                                                               \
        if (try_status_ != STATUS_OK) return try_status_;                                          \
    } while (0)

/* An invariant of this program, on in every build; never for bytes from outside. */
#define CHECK(cond) ((cond) ? (void)0 : check_failed(#cond, __FILE__, __LINE__))
_Noreturn void check_failed(const char *cond, const char *file, int line);

/* ---- log ------------------------------------------------------------------------------------- */

typedef enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG } log_level;
typedef struct log_config {
    log_level level;
    bool json;           /* one JSON object a line instead of text */
    const char *program; /* static string put on each line */
    FILE *file;          /* NULL: stderr */
} log_config;

/* Threads: log_setup once before other threads start; log_write from any thread. */
void log_setup(const log_config *config);
bool log_level_from_name(const char *name, log_level *out_level); /* error warn info debug */
void log_write(log_level level, const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The last LOG_ERROR sentence written by this thread ("" if none), for one-line CLI errors and
 * gRPC details. Valid until this thread's next LOG_ERROR. */
const char *log_last_error(void);

#define LOG(level, ...) log_write(LOG_##level, __FILE__, __LINE__, __VA_ARGS__)
/* Log the cause once, where it is known, and be the status: `return FAIL(INVALID, "...")`. */
#define FAIL(name, ...) (log_write(LOG_ERROR, __FILE__, __LINE__, __VA_ARGS__), STATUS_##name)

/* ---- arena ----------------------------------------------------------------------------------- */

/* All memory of an object, taken while it is created. After arena_seal every allocation is a failed
 * CHECK. Threads: one owner. */
typedef struct arena arena;
arena *arena_create(const char *name);
void arena_destroy(arena *a); /* frees all that came from it; NULL is fine */
/* Zeroed; aborts when the system has none. */
void *arena_alloc(arena *a, size_t bytes, size_t align);
char *arena_string(arena *a, const char *text);
void arena_seal(arena *a);
size_t arena_bytes(const arena *a); /* taken from the system */
#define ARENA_NEW(a, type, count)                                                                  \
    ((type *)arena_alloc((a), sizeof(type) * (size_t)(count),                                      \
                         alignof(type) > 64 ? alignof(type) : 64))

/* ---- ring: bounded, one producer, one consumer ----------------------------------------------- */

/* Threads: exactly one thread pushes and one pops. A full ring refuses; nothing blocks. */
typedef struct ring ring;
ring *ring_create(arena *a, uint32_t capacity, uint32_t item_bytes); /* capacity: power of two */
bool ring_push(ring *r, const void *item);                           /* false: full */
bool ring_pop(ring *r, void *out_item);                              /* false: empty */
uint32_t ring_count(const ring *r);                                  /* a snapshot */

/* ---- clock ----------------------------------------------------------------------------------- */

typedef struct clock_ops {
    uint64_t (*now_ns)(void *self); /* monotonic */
    void *self;
} clock_ops;
extern const clock_ops clock_monotonic;
static inline uint64_t clock_now(const clock_ops *c)
{
    return c->now_ns(c->self);
}
uint64_t clock_wall_ms(void); /* since 1970, for messages to people only */

/* ---- random numbers (xoshiro256**, Blackman and Vigna 2018, seeded by splitmix64) ------------ */

typedef struct rng {
    uint64_t s[4];
} rng;
void rng_seed(rng *r, uint64_t seed);
uint64_t rng_next(rng *r);
uint64_t rng_below(rng *r, uint64_t bound); /* uniform in [0, bound), bound >= 1 */
double rng_unit(rng *r);                    /* uniform in [0, 1) */
status rng_system(void *out, size_t bytes); /* from the kernel */

/* ---- histogram: log-linear, 1/64 relative error ---------------------------------------------- */

/* Threads: one writer; readers see a slightly torn snapshot. */
enum { HIST_BUCKETS = 64 * 59 };
typedef struct hist {
    uint64_t count, sum, min, max;
    uint64_t bucket[HIST_BUCKETS];
} hist;
void hist_reset(hist *h);
void hist_add(hist *h, uint64_t value);
void hist_merge(hist *into, const hist *from);
/* q in [0, 1]; the upper edge of the bucket where it falls, 0 when empty. */
uint64_t hist_quantile(const hist *h, double q);

#endif
