/* A command line as a table of flags. */
#include "worker/flags.h"

#include "cluster/cluster.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static bool is_one_of(const char *words, const char *value)
{
    size_t count = strlen(value);
    for (const char *at = words; count > 0 && at != NULL; at = strchr(at, '|')) {
        if (*at == '|') at++;
        if (strncmp(at, value, count) == 0 && (at[count] == '|' || at[count] == '\0')) return true;
    }
    return false;
}

static status set_number(const flag_row *f, const char *value, void *to)
{
    bool whole = f->type != FLAG_TYPE_REAL;
    const char *unit = f->type == FLAG_TYPE_PERCENT ? "%" : "";
    char *end = NULL;
    errno = 0;
    double number = whole ? (double)strtoull(value, &end, 10) : strtod(value, &end);
    bool form = value[0] >= '0' && value[0] <= '9' && strcmp(end, unit) == 0 && errno == 0;
    if (f->type == FLAG_TYPE_SEED) {
        if (!form) return FAIL(INVALID, "%s %.40s: must be a whole number", f->name, value);
        *(uint64_t *)to = strtoull(value, NULL, 10);
        return STATUS_OK;
    }
    if (!form || !(number >= f->least && number <= f->most))
        return FAIL(INVALID, "%s %.40s: must be a %snumber%s from %.10g%s to %.10g%s", f->name,
                    value, whole ? "whole " : "", unit[0] != '\0' ? " with %" : "", f->least, unit,
                    f->most, unit);
    if (whole)
        *(uint32_t *)to = (uint32_t)number;
    else
        *(double *)to = number;
    return STATUS_OK;
}

static status set_value(const flag_row *f, const char *value, void *to)
{
    switch (f->type) {
    case FLAG_TYPE_ON:
        *(bool *)to = true;
        return STATUS_OK;
    case FLAG_TYPE_BYTES:
        if (value[0] < '0' || value[0] > '9' || !strchr("B0", value[strlen(value) - 1]))
            return FAIL(INVALID, "%s %.40s: must be a size with its unit, as 64MiB", f->name,
                        value);
        return cluster_parse_bytes(value, (uint64_t *)to);
    case FLAG_TYPE_WORD:
        if (!is_one_of(f->value, value))
            return FAIL(INVALID, "%s %.40s: must be one of %s", f->name, value, f->value);
        *(const char **)to = value;
        return STATUS_OK;
    case FLAG_TYPE_TEXT:
        if (value[0] == '\0') return FAIL(INVALID, "%s: the value is empty", f->name);
        *(const char **)to = value;
        return STATUS_OK;
    case FLAG_TYPE_WHOLE:
    case FLAG_TYPE_PERCENT:
    case FLAG_TYPE_SEED:
    case FLAG_TYPE_REAL:
        return set_number(f, value, to);
    }
    return STATUS_INTERNAL;
}

static uint32_t find(const flag_set *set, const char *name, size_t count)
{
    uint32_t i = 0;
    while (i < set->count &&
           (strlen(set->row[i].name) != count || strncmp(set->row[i].name, name, count) != 0))
        i++;
    return i;
}

status flags_take(flag_set *set, char **argv, int *at, void *into)
{
    CHECK(set != NULL && set->count <= FLAGS_MAX && argv[*at] != NULL);
    const char *name = argv[*at], *equals = strchr(name, '=');
    size_t count = equals != NULL ? (size_t)(equals - name) : strlen(name);
    if (name[0] != '-')
        return FAIL(INVALID, "\"%.40s\" is too much: only flags are known here; --help lists them",
                    name);
    uint32_t i = find(set, name, count);
    if (i == set->count)
        return FAIL(INVALID, "unknown flag %.*s; --help lists the flags",
                    (int)(count < 40 ? count : 40), name);
    const flag_row *f = &set->row[i];
    const char *value = NULL;
    if (f->type != FLAG_TYPE_ON) {
        value = equals != NULL ? equals + 1 : argv[*at + 1];
        if (value == NULL) return FAIL(INVALID, "%s needs a value", f->name);
        if (equals == NULL) ++*at;
    } else if (equals != NULL) {
        return FAIL(INVALID, "%s takes no value", f->name);
    }
    TRY(set_value(f, value, (char *)into + f->offset));
    set->given[i] = true;
    return STATUS_OK;
}

status flags_parse(flag_set *set, int argc, char **argv, void *into)
{
    CHECK(argc >= 1 && argv[argc] == NULL);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            set->help = true;
            return STATUS_OK;
        }
    }
    for (int i = 1; i < argc; i++)
        TRY(flags_take(set, argv, &i, into));
    return STATUS_OK;
}

bool flags_given(const flag_set *set, const char *name)
{
    uint32_t i = find(set, name, strlen(name));
    CHECK(i < set->count);
    return set->given[i];
}

void flags_help(const flag_set *set, FILE *to)
{
    for (uint32_t i = 0; i < set->count; i++) {
        const flag_row *f = &set->row[i];
        char name[96];
        (void)snprintf(name, sizeof name, "%s%s%s", f->name, f->value != NULL ? " " : "",
                       f->value != NULL ? f->value : "");
        (void)fprintf(to, "  %-31s  %s\n", name, f->help);
    }
}
