/* The status table: names, sentences and rules, all expanded from the rows of status.def. */
#include "proto/base.h"

typedef struct row {
    const char *name;
    status_scope scope;
    status_retry retry;
    int exit_code;
    const char *sentence;
} row;

static const row rows[STATUS_ROW_COUNT] = {
#define X(name, scope, retry, exit_code, sentence)                                                 \
    [STATUS_ROW_##name] = {#name, SCOPE_##scope, RETRY_##retry, exit_code, sentence},
#include "proto/status.def"
#undef X
};

static const row *row_of(status s)
{
    const int64_t index = -1 - (int64_t)s;
    return index >= 0 && index < STATUS_ROW_COUNT ? &rows[index] : NULL;
}

const char *status_name(status s)
{
    if (s == STATUS_OK) return "OK";
    if (s == STATUS_PENDING) return "PENDING";
    const row *r = row_of(s);
    return r != NULL ? r->name : "UNKNOWN";
}

const char *status_sentence(status s)
{
    if (s == STATUS_OK) return "done";
    if (s == STATUS_PENDING) return "not done yet";
    const row *r = row_of(s);
    return r != NULL ? r->sentence : "a status this version does not know";
}

status_scope status_scope_of(status s)
{
    const row *r = row_of(s);
    return r != NULL ? r->scope : SCOPE_OPERATION;
}

status_retry status_retry_of(status s)
{
    const row *r = row_of(s);
    return r != NULL ? r->retry : RETRY_NEVER;
}

int status_exit_code(status s)
{
    if (s == STATUS_OK) return 0;
    const row *r = row_of(s);
    return r != NULL ? r->exit_code : 1;
}

/* PENDING never travels: it is a word between a submit and its completion in one process. */
bool status_from_wire(int32_t value, status *out_status)
{
    if (value > 0 || value < -(int32_t)STATUS_ROW_COUNT) return false;
    *out_status = (status)value;
    return true;
}
