/* worker/tokenizer.h - text to token ids and back, as the model's tokenizer.json says.
 *
 * Flow: text -> special tokens -> normaliser -> pre-tokenizer -> BPE -> ids; ids -> decoder ->
 * text.
 *
 * Threads: an encoder keeps a cache of words, so one thread at a time encodes; everything else
 * only reads a loaded tokenizer.
 *
 * Memory: a tokenizer owns its tables; ids and text come from the caller's arena.
 *
 * Byte-level and byte-fallback BPE of Hugging Face's tokenizer.json. Ids are those of the
 * `tokenizers` package (golden ids in tests/golden). What is not implemented is refused by name
 * when the file is loaded, never approximated. `truncation` and `padding` in the file are ignored:
 * a request that is too long is refused, not cut. */
#ifndef WORKER_TOKENIZER_H
#define WORKER_TOKENIZER_H

#include "proto/base.h"
#include "worker/span.h"

typedef struct tokenizer tokenizer;

/* DIR/tokenizer.json, DIR/tokenizer_config.json if it exists. NOT_FOUND, INVALID, UNSUPPORTED, IO;
 * the sentence names file, key and type. */
status tokenizer_load(const char *directory, tokenizer **out_tokenizer);
/* The same from bytes; `file` is named in sentences. */
status tokenizer_parse(const char *file, const char *text, size_t bytes, tokenizer **out_tokenizer);
void tokenizer_destroy(tokenizer *t); /* NULL is fine */

uint32_t tokenizer_vocab(const tokenizer *t);               /* 1 + the largest id */
int32_t tokenizer_id(const tokenizer *t, const char *text); /* of an entry as written; -1: none */
bool tokenizer_is_special(const tokenizer *t, int32_t id);
/* Whether chat lines can be asked for: tokenizer_config.json or chat_template.jinja has a template.
 * Templates are not rendered here. */
bool tokenizer_has_chat_template(const tokenizer *t);

/* The bytes an id stands for in the text, whatever comes before it; out_bytes is their count (bits
 * a byte are counted with it). NULL and 0 for an id without an entry. */
const char *tokenizer_token_bytes(const tokenizer *t, int32_t id, uint32_t *out_bytes);

/* UTF-8 text -> ids. With `special` the post-processor's tokens (BOS, EOS) are added; special
 * tokens written out in the text become their ids either way. INVALID: not UTF-8 (says at which
 * byte), or longer than 1 GiB. */
status tokenizer_encode(tokenizer *t, span text, bool special, arena *a, int32_t **out_ids,
                        uint32_t *out_count);

/* ---- ids -> text, a token at a time ---------------------------------------------------------- */

/* The text given out so far is always well-formed UTF-8: bytes of a character that is not complete
 * yet are held back, and bytes that cannot become one turn into U+FFFD. All pieces together are the
 * text that decoding everything at once gives. Byte-fallback tokens (<0xE2>): `tokenizers` judges a
 * whole run, this a character, so only runs that are no UTF-8 differ. */
typedef struct detokenizer {
    const tokenizer *tokenizer;
    bool skip_special;
    bool started; /* a token was seen */
    uint8_t pending[4];
    uint32_t pending_bytes;
    uint32_t strip; /* leading characters still to be dropped, if they come */
} detokenizer;

void detokenizer_start(const tokenizer *t, bool skip_special, detokenizer *out_state);
uint32_t detokenizer_bytes_max(const tokenizer *t); /* room that one push or finish may need */
/* Bytes written to out, which has room for detokenizer_bytes_max. An id without an entry gives "".
 */
uint32_t detokenizer_push(detokenizer *d, int32_t id, char *out);
uint32_t detokenizer_finish(detokenizer *d, char *out);

/* Everything at once; a NUL follows the bytes. */
status tokenizer_decode(const tokenizer *t, const int32_t *ids, uint32_t count, bool skip_special,
                        arena *a, span *out_text);

#endif
