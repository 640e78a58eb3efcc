/* worker/answer.h - the tokens of one request as text, up to its stop string.
 *
 * Flow:    WORKER_TOKEN events -> [answer_add] -> text, digests, logprobs -> batch_write_answer.
 * Threads: one owner.
 * Memory:  the caller's arena.
 *
 * A stop string may begin inside one token and end inside a later one: the text is searched as it
 * grows, and cut at the earliest beginning. Nothing is handed out before the request has ended. */
#ifndef WORKER_ANSWER_H
#define WORKER_ANSWER_H

#include "kernels/kernels.h"
#include "worker/batch.h"
#include "worker/tokenizer.h"

typedef struct answer_token {
    size_t offset; /* bytes of text before it */
    kern_sampled sampled;
} answer_token;

typedef struct answer {
    const tokenizer *tokenizer;
    const batch_request *request;
    arena *memory;
    detokenizer state;
    text content;           /* [0, content.count), cut at the stop string once `stopped` */
    size_t searched;        /* no stop string begins before this byte */
    bool stopped;           /* a stop string is complete: tokens that follow are ignored */
    uint32_t tokens;        /* new tokens taken */
    uint64_t logits_digest; /* XXH3-64 chain over the steps' digests */
    uint64_t token_digest;  /* the same over the ids */
    answer_token *kept;     /* [tokens] when logprobs are asked for */
    uint32_t kept_room;
} answer;

void answer_start(answer *a, const tokenizer *words, const batch_request *request, arena *memory);
/* Take one token. True: it completed a stop string; the request can be canceled. */
bool answer_add(answer *a, const kern_sampled *sampled, uint64_t logits_digest);
/* The last characters that were held back. */
void answer_finish(answer *a);
/* The "logprobs" of a choice as JSON; NULL when none were asked for. */
const char *answer_logprobs(const answer *a);

#endif
