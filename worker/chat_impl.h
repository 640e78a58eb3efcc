/* worker/chat_impl.h - private: values and expressions of a chat template.
 *
 * chat.c       files, nodes (text, {{ }}, {% %}) and their trimming, statements
 * chat_expr.c  expressions */
#ifndef WORKER_CHAT_IMPL_H
#define WORKER_CHAT_IMPL_H

#include "worker/chat.h"

enum { CHAT_VARIABLES_MAX = 128, CHAT_DEPTH_MAX = 64, CHAT_WORD_MAX = 64 };

typedef enum chat_kind {
    CHAT_UNDEFINED,
    CHAT_NONE,
    CHAT_BOOL,
    CHAT_NUMBER,
    CHAT_STRING,
    CHAT_LIST, /* of messages */
    CHAT_MESSAGE,
    CHAT_LOOP,
    CHAT_SPACE, /* a namespace: its members are variables "name.member" */
} chat_kind;

typedef struct chat_value {
    chat_kind kind;
    int64_t number;               /* BOOL, NUMBER; LOOP: index from 0 */
    const char *bytes;            /* STRING; SPACE: its name */
    size_t count;                 /* STRING: bytes; LIST: messages; LOOP: passes */
    const batch_message *message; /* LIST, MESSAGE */
} chat_value;

typedef struct chat_variable {
    char name[2 * CHAT_WORD_MAX];
    chat_value value;
} chat_variable;

typedef struct chat_run {
    arena *memory;
    const char *file;
    text *out;
    chat_variable variable[CHAT_VARIABLES_MAX]; /* the last of a name counts */
    uint32_t variables, depth;
    uint64_t fuel; /* nodes and terms left, so that no template runs for ever */
    bool failed;
    /* the expression under evaluation */
    const char *at, *end;
    uint32_t skip; /* > 0: read, not evaluated */
} chat_run;

/* Logs the sentence, once a run. */
void chat_fail(chat_run *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The expression at r->at; leaves r->at behind it. */
chat_value chat_expression(chat_run *r);
bool chat_truth(const chat_value *v);
bool chat_take_word(chat_run *r, const char *word); /* a whole word, or a sign such as "==" */
bool chat_take_name(chat_run *r, char out_name[CHAT_WORD_MAX]);
void chat_skip_space(chat_run *r);
void chat_set(chat_run *r, const char *name, const char *member, chat_value value);

#endif
