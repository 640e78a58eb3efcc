/* worker/chat.h - messages of a chat into a prompt, as the model's chat template says.
 *
 * Flow:    chat_template.jinja or tokenizer_config.json -> [chat_load]
 *          batch_request.messages -> [chat_render] -> text -> tokenizer_encode.
 * Threads: a loaded template is read-only.
 * Memory:  a template owns its text; prompts come from the caller's arena.
 *
 * The part of Jinja that chat templates are made of: text, {{ }}, for, if, set, namespace, strings,
 * numbers, lists of messages, comparisons, + ~ % and or not in is, slices, and the filters and
 * methods that trim. Blocks are trimmed as the transformers package does (trim_blocks,
 * lstrip_blocks). What is not known is refused by name when a chat needs it, never approximated. */
#ifndef WORKER_CHAT_H
#define WORKER_CHAT_H

#include "worker/batch.h"

typedef struct chat_template chat_template;

/* DIR/chat_template.jinja, else "chat_template" of DIR/tokenizer_config.json (of several, the one
 * named "default"). NULL, with OK, when the folder has none. INVALID, UNSUPPORTED, IO. */
status chat_load(const char *directory, chat_template **out_template);
/* The same from text. bos and eos may be NULL. `file` begins sentences. INVALID, UNSUPPORTED. */
status chat_parse(const char *file, const char *source, size_t bytes, const char *const bos_eos[2],
                  chat_template **out_template);
void chat_free(chat_template *t); /* NULL is fine */
/* The prompt up to where the assistant's answer begins. INVALID: the template refuses these
 * messages, or cannot be followed; the sentence says why. */
status chat_render(const chat_template *t, const batch_message *messages, uint32_t count,
                   text *out_prompt);

#endif
