/* worker/tokenizer_impl.h - inside of a tokenizer, shared by the files that make it.
 *
 *   tokenizer.c    loading, special tokens in the text, the public calls
 *   normalize.c    text -> text                          steps, in order
 *   pretokenize.c  text -> words                         stages, in order
 *   bpe.c          word -> ids                           vocabulary, merges, cache
 *   detokenize.c   ids -> text
 *   pattern.c      regular expressions and literals, one kind of thing to search for
 *
 * Threads, Memory: as tokenizer.h says. */
#ifndef WORKER_TOKENIZER_IMPL_H
#define WORKER_TOKENIZER_IMPL_H

#include "proto/proto.h"
#include "worker/json.h"
#include "worker/tokenizer.h"

enum {
    TOKENIZER_STEPS_MAX = 16,
    TOKENIZER_ID_MAX = 1 << 24,
    TEMPLATE_IDS_MAX = 8,
    CACHE_SLOTS = 1 << 14,
    CACHE_KEY_MAX = 46,
    CACHE_IDS_MAX = 18,
    CHAR_TABLE = 0x800, /* code points of one or two bytes have a direct table */
};

/* ---- text in pieces -------------------------------------------------------------------------- */

/* Memory that grows and is used again; the old contents are lost when it grows. */
typedef struct buffer {
    char *data;
    size_t bytes, capacity;
} buffer;
void buffer_reserve(buffer *b, arena *a, size_t capacity);
span span_copy(arena *a, span text);                           /* a NUL follows the bytes */
void buffer_append(buffer *b, const char *text, size_t bytes); /* room was reserved */

/* One code point of well-formed UTF-8 at p; returns its bytes. */
uint32_t utf8_next(const char *p, int32_t *out_code);
bool unicode_space(const char *p);          /* whether the character at p is White_Space */
uint32_t utf8_put(int32_t code, char *out); /* 1..4 bytes */

/* ---- pattern --------------------------------------------------------------------------------- */

typedef struct pattern pattern;
/* Members of a class: word characters by Unicode's annex C of UTS 18, the joiners included. */
#define UNICODE_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}"
/* {"String": "..."} or {"Regex": "..."}: Oniguruma's syntax as far as it means the same in PCRE2.
 * INVALID, UNSUPPORTED. */
status pattern_create(arena *a, const char *file, const cJSON *item, pattern **out_pattern);
status pattern_create_regex(arena *a, const char *file, const char *text, pattern **out_pattern);
status pattern_create_literal(arena *a, span text, pattern **out_pattern);
void pattern_release(pattern *p); /* what PCRE2 holds; NULL is fine */
/* The first match at or after `from`. false: none. */
status pattern_find(pattern *p, span in, size_t from, bool *out_found, size_t *out_begin,
                    size_t *out_end);

/* ---- normalize ------------------------------------------------------------------------------- */

typedef enum step_kind {
    STEP_NFC,
    STEP_NFD,
    STEP_NFKC,
    STEP_NFKD,
    STEP_LOWERCASE,
    STEP_PREPEND,
    STEP_REPLACE,
    STEP_STRIP,
} step_kind;

typedef struct normal_step {
    step_kind kind;
    pattern *find;    /* REPLACE */
    const char *text; /* PREPEND, REPLACE: what is put in */
    bool left, right; /* STRIP */
} normal_step;

typedef struct normalizer {
    normal_step steps[TOKENIZER_STEPS_MAX];
    uint32_t count;
} normalizer;

status normalizer_parse(arena *a, const char *file, const cJSON *item, normalizer *n);
void normalizer_release(normalizer *n);
/* in -> out; out is `in` itself when nothing is done, else memory of `a`. */
status normalizer_run(const normalizer *n, span in, arena *a, span *out);

/* ---- pretokenize ----------------------------------------------------------------------------- */

typedef enum stage_kind {
    STAGE_SPLIT,     /* by a pattern */
    STAGE_CLASS,     /* by a class of characters */
    STAGE_PREFIX,    /* a space in front, unless there is one */
    STAGE_BYTES,     /* every byte becomes the character that byte-level vocabularies write it as */
    STAGE_METASPACE, /* spaces become another character, perhaps with one in front */
} stage_kind;

typedef enum split_behavior {
    SPLIT_REMOVED,
    SPLIT_ISOLATED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS,
} split_behavior;

typedef enum char_class { CLASS_NUMERIC, CLASS_PUNCTUATION, CLASS_SPACE } char_class;
typedef enum prefix_scheme { PREFIX_NEVER, PREFIX_FIRST, PREFIX_ALWAYS } prefix_scheme;

typedef struct stage {
    stage_kind kind;
    pattern *pattern;
    bool invert;
    split_behavior behavior;
    char_class class;
    prefix_scheme scheme;
    const char *replacement;
} stage;

typedef struct pretokenizer {
    stage stages[TOKENIZER_STEPS_MAX];
    uint32_t count;
} pretokenizer;

/* Who gets the words. */
typedef struct word_sink {
    status (*word)(void *self, span word);
    void *self;
    arena *scratch;
    buffer stage_text[TOKENIZER_STEPS_MAX]; /* zero at first; each stage's own */
} word_sink;

status pretokenizer_parse(arena *a, const char *file, const cJSON *item, pretokenizer *p);
void pretokenizer_release(pretokenizer *p);
/* first: this text stands at the beginning of the whole. */
status pretokenizer_run(const pretokenizer *p, span text, bool first, word_sink *sink);
/* The character (code point) that stands for a byte in byte-level vocabularies, and back (-1). */
int32_t byte_to_char(uint8_t byte);
int32_t char_to_byte(int32_t code);

/* ---- bpe ------------------------------------------------------------------------------------- */

typedef struct merge_slot {
    uint64_t pair; /* left << 32 | right; UINT64_MAX: empty */
    uint32_t rank;
    int32_t id;
} merge_slot;

typedef struct cache_slot {
    uint64_t hash;
    uint8_t key_bytes, count; /* key_bytes 0: empty */
    char key[CACHE_KEY_MAX];
    int32_t ids[CACHE_IDS_MAX];
} cache_slot;
_Static_assert(sizeof(cache_slot) == 128, "two cache lines");

typedef struct bpe {
    const char **text; /* [vocab] as written in the file, NULL: no such id */
    uint32_t *bytes;   /* [vocab] */
    bool *added;       /* [vocab] stands among the added tokens only: BPE never makes it */
    uint32_t vocab;
    uint32_t *slots; /* id + 1 by text, 0: empty */
    uint32_t slot_mask;
    merge_slot *merges;
    uint32_t merge_mask;
    int32_t char_id[CHAR_TABLE]; /* -1: none */
    int32_t byte_id[256];        /* byte_fallback */
    int32_t unk;                 /* -1: none */
    bool byte_fallback, fuse_unk, ignore_merges;
    cache_slot *cache; /* [CACHE_SLOTS] */
} bpe;

/* Ids being written, and what merging a word needs. */
typedef struct id_list {
    arena *arena;
    int32_t *ids;
    uint32_t count, capacity;
    buffer symbols, heap;
} id_list;
void id_list_add(id_list *l, int32_t id);

/* `added` is the file's list of added tokens: some ids stand only there. */
status bpe_parse(arena *a, const char *file, const cJSON *model, const cJSON *added, bpe *b);
int32_t bpe_find(const bpe *b, span text); /* added tokens too; -1: none */
status bpe_word(bpe *b, span word, id_list *out);

/* ---- detokenize ------------------------------------------------------------------------------ */

typedef struct decoder {
    bool lossy;        /* ByteLevel: bytes, then UTF-8 with replacement */
    bool byte_tokens;  /* ByteFallback */
    bool drop_first;   /* Metaspace: the first token loses its marks */
    const char *mark;  /* Metaspace's character, NULL: none */
    const char *strip; /* one character, NULL: none */
    uint32_t strip_count;
    span *text;    /* [vocab] what an id adds to the text */
    int16_t *byte; /* [vocab] ByteFallback: its byte, -1: none; NULL if not byte_tokens */
    uint32_t bytes_max;
} decoder;

status decoder_parse(arena *a, const char *file, const cJSON *item, const bpe *b, decoder *d);

/* ---- the whole ------------------------------------------------------------------------------- */

typedef struct added_token {
    const char *text; /* normalised where that is asked for */
    uint32_t bytes;
    int32_t id;
    bool lstrip, rstrip, single_word;
} added_token;

/* Searched leftmost, longest first. by_byte[b] .. by_byte[b + 1]: tokens that begin with byte b,
 * longest first. */
typedef struct added_set {
    added_token *tokens;
    uint32_t count;
    uint32_t by_byte[257];
} added_set;

struct tokenizer {
    arena *arena;
    bpe bpe;
    normalizer normalizer;
    pretokenizer pretokenizer;
    decoder decoder;
    added_set raw, normalized; /* found before and after the normaliser */
    pattern *word_at_start, *word_at_end;
    bool *special;                                             /* [vocab] */
    int32_t before[TEMPLATE_IDS_MAX], after[TEMPLATE_IDS_MAX]; /* post-processor */
    uint32_t before_count, after_count;
    bool has_chat_template;
};

/* "file: the KIND of type "X" is not supported", for every kind of thing a file names by type. */
status unsupported_type(const char *file, const char *kind, const char *type);

#endif
