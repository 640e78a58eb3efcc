/* worker/batch.h - batches of requests in OpenAI's JSONL format, in and out.
 *
 * Flow:    IN.jsonl -> [batch_reader] -> line -> [batch_parse] -> batch_request -> decode
 *          decode -> [batch_write_*] -> text -> [batch_writer] -> OUT.jsonl
 * Threads: one owner each.
 * Memory:  a reader holds one line at a time; a parsed request lives in the arena it was given.
 *
 * A line that cannot be served is not an error of the batch: it becomes an output line that says
 * why, and the others are decoded. Fields of a body that would change the answer and are not
 * implemented are refused by name; those that cannot change it are ignored. */
#ifndef WORKER_BATCH_H
#define WORKER_BATCH_H

#include "worker/text.h"

enum {
    BATCH_LINE_MAX = 64 << 20, /* bytes of one input line */
    BATCH_ID_MAX = 512,        /* bytes of a custom_id */
    BATCH_STOP_MAX = 4,        /* stop strings a request */
    BATCH_STOP_BYTES_MAX = 1024,
    BATCH_LOGPROBS_MAX = 20,
    BATCH_CODE_MAX = 40,
    BATCH_MESSAGE_MAX = 400,
};

/* ---- reading lines --------------------------------------------------------------------------- */

typedef struct batch_reader batch_reader;

/* NOT_FOUND, INVALID (not a regular file), IO. line_max 0: BATCH_LINE_MAX. */
status batch_reader_open(const char *path, size_t line_max, batch_reader **out_reader);
void batch_reader_close(batch_reader *reader);            /* NULL is fine */
uint64_t batch_reader_bytes(const batch_reader *reader);  /* size of the file */
uint64_t batch_reader_offset(const batch_reader *reader); /* bytes read so far */
const char *batch_reader_path(const batch_reader *reader);
/* Start again from the first line. */
status batch_reader_rewind(batch_reader *reader);

typedef struct batch_line {
    const char *bytes; /* without the newline; valid until the next call */
    size_t count;
    uint64_t number; /* from 1 */
    bool too_long;   /* longer than line_max: bytes holds what fitted, the rest was skipped */
    bool whole;      /* a newline ended it */
} batch_line;

/* NOT_FOUND: no more lines. IO. An empty last line is no line; other empty lines are lines. */
status batch_reader_next(batch_reader *reader, batch_line *out_line);

/* ---- a set of names, to find duplicates ------------------------------------------------------ */

typedef struct batch_names batch_names;
batch_names *batch_names_create(arena *memory);
/* True: it was not there. Two different names are taken for one with probability 2^-128 a pair. */
bool batch_names_add(batch_names *names, const char *bytes, size_t count);
bool batch_names_has(const batch_names *names, const char *bytes, size_t count);

/* ---- one request ----------------------------------------------------------------------------- */

typedef struct batch_error {
    char code[BATCH_CODE_MAX];       /* "" : no error */
    char message[BATCH_MESSAGE_MAX]; /* a sentence, UTF-8 */
} batch_error;

void batch_error_set(batch_error *error, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

typedef struct batch_message {
    const char *role, *content;
} batch_message;

typedef struct batch_request {
    const char *custom_id; /* NULL when the line has none that can be used */
    const char *model;     /* as the body names it; NULL: not named */
    bool chat;             /* url is /v1/chat/completions */
    const char *prompt;    /* text, or NULL */
    size_t prompt_bytes;
    const int32_t *ids; /* the prompt as token ids, or NULL */
    uint32_t id_count;
    const batch_message *messages; /* chat */
    uint32_t message_count;
    uint32_t max_tokens;
    float temperature, top_p;
    uint32_t top_k; /* 0: off */
    uint64_t seed;  /* when the body has none: of the custom_id */
    const char *stop[BATCH_STOP_MAX];
    uint32_t stop_count;
    bool logprobs;
    uint32_t top_logprobs;
    bool ignore_eos;
    const char *selector, *budget, *lookahead; /* body.shoal; NULL: the run's */
} batch_request;

/* One line into a request. False: out_error says why, and out_request->custom_id is set if the line
 * had a usable one. `where` ("in.jsonl line 3") begins the sentence. */
bool batch_parse(const char *where, const batch_line *line, arena *memory,
                 batch_request *out_request, batch_error *out_error);

/* ---- writing lines --------------------------------------------------------------------------- */

typedef enum batch_mode {
    BATCH_NEW, /* the file must not exist */
    BATCH_OVERWRITE,
    BATCH_RESUME, /* keep its whole lines, drop a torn last one, append */
} batch_mode;

typedef struct batch_writer batch_writer;
/* "-": standard output. INVALID (exists, or is `input`), NOT_FOUND (no such folder), IO, NO_SPACE.
 */
status batch_writer_open(const char *path, const char *input, batch_mode mode,
                         batch_writer **out_writer);
/* A whole line with its newline, by the time it returns in the kernel's hands. NO_SPACE, IO: the
 * file was cut back to the last whole line. */
status batch_writer_line(batch_writer *writer, const char *bytes, size_t count);
uint64_t batch_writer_lines(const batch_writer *writer);
/* What is written is on the disk. NO_SPACE, IO. */
status batch_writer_sync(batch_writer *writer);
void batch_writer_close(batch_writer *writer); /* NULL is fine */

/* Names of the requests an output file already answers, for BATCH_RESUME: see batch_done_key. A
 * file that does not exist has none. */
status batch_done_read(const char *path, batch_names *names, uint64_t *out_count);
/* The name under which an answer counts as done: the custom_id, a second one's refusal, or, without
 * a custom_id, the line's number. */
void batch_done_key(const char *custom_id, bool duplicate, uint64_t line, text *out_key);

/* ---- the words of an answer ------------------------------------------------------------------ */

typedef struct batch_blocks {
    uint64_t resident, host, remote, recomputed;
} batch_blocks;

typedef struct batch_answer {
    uint64_t line; /* of the input */
    const char *custom_id;
    const char *model;
    bool chat;
    const char *content; /* text, UTF-8 */
    size_t content_bytes;
    bool stopped; /* finish_reason "stop", else "length" */
    uint32_t prompt_tokens, completion_tokens;
    const char *selector, *lookahead;
    char budget[64];
    uint64_t logits_digest, token_digest;
    /* left out of deterministic lines */
    batch_blocks blocks;
    double ttft_ms, total_ms;
    uint32_t void_rows, recomputes, parks;
    uint64_t created_s;
} batch_answer;

/* {"id":…,"custom_id":…,"response":{…},"error":null} and a newline. `logprobs` is JSON or NULL. */
void batch_write_answer(text *out, const batch_answer *answer, const char *logprobs,
                        bool deterministic);
void batch_write_error(text *out, uint64_t line, const char *custom_id, const batch_error *error);

#endif
