/* worker/session.h - what a run of decode or eval stands on: limits, backend, model, tokenizer,
 * engine.
 *
 * Flow:    args -> [session_open] -> model_selector, tokenizer_encode -> [session_start] -> engine.
 * Threads: one owner, the thread that steps the engine.
 * Memory:  everything is taken by open and start and given back by close. */
#ifndef WORKER_SESSION_H
#define WORKER_SESSION_H

#include "worker/args.h"
#include "worker/chat.h"
#include "worker/text.h"
#include "worker/tokenizer.h"
#include "worker/worker.h"

/* One way of selecting that requests of this run ask for; what cannot be had keeps its sentence. */
typedef struct selection {
    selector_choice asked;
    kern_selector selector;
    const char *name, *lookahead;
    char budget[64]; /* JSON: [1,4,10,16], or null for full */
    status result;
    char sentence[400]; /* when result is not OK */
} selection;

typedef struct session {
    const args *args;
    arena *memory;
    cluster_config cluster;
    bool with_store;
    kern_backend *backend;
    model *model;
    tokenizer *words;
    chat_template *chat; /* loaded when the first chat comes; NULL: none */
    bool chat_tried;
    char chat_sentence[300]; /* why there is none */
    const char *model_name;  /* last part of the folder's path */
    worker_engine *engine;
    worker_stats *stats;                     /* room for worker_stats_read */
    selection selection[KERN_SELECTORS_MAX]; /* [0]: the run's own */
    uint32_t selection_count;
} session;

/* Everything but the engine. On failure nothing is left open. */
status session_open(const args *a, session *out_session);
/* What a request asks for over what the run does. NULL: more than KERN_SELECTORS_MAX ways in a run.
 */
const selection *session_select(session *s, const selector_choice *asked);
/* A chat as the text of a prompt. False: out_sentence, of `room` bytes, says why not. */
bool session_chat(session *s, const batch_request *request, text *out_prompt, char *out_sentence,
                  size_t room);
/* The engine, with buffers for every selection known by now. The memory plan goes to `plan`, or
 * nowhere when NULL. */
status session_start(session *s, FILE *plan);
/* Waiting is over for whoever asks: SIGINT or SIGTERM came. A second one kills. */
void session_catch_signals(void);
bool session_interrupted(void);
/* Whether a request's failure is the store's: then it is the whole run's, and what is not finished
 * is left for another run. Logs the sentence; `kept` ends it. */
bool session_store_failed(session *s, status result, const char *kept, status *out_run);
/* The engine's numbers so far. */
void session_settle(session *s); /* bounded by client.put_deadline */
const worker_stats *session_stats(session *s);
void session_close(session *s);

#endif
