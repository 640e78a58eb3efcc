/* cluster/units.c - one scanner for every number in a config file or on a command line.
 *
 * A size or a time without a unit is refused, since "64" is a different mistake for everyone who
 * reads it; only 0 is the same in every unit. Units are the exact ones (KiB, not KB), values are
 * whole numbers: 1536MiB, not 1.5GiB, so that what is shown is what was meant and no rounding has
 * to be explained. */
#include "cluster/units.h"

#include <inttypes.h>
#include <string.h>

typedef struct unit_row {
    const char *suffix;
    uint64_t scale;
} unit_row;

/* Largest first: unit_print takes the first that divides the value. */
static const unit_row byte_rows[] = {
    {"TiB", 1ull << 40}, {"GiB", 1ull << 30}, {"MiB", 1ull << 20}, {"KiB", 1ull << 10}, {"B", 1}};
static const unit_row time_rows[] = {{"s", 1000000000}, {"ms", 1000000}, {"us", 1000}, {"ns", 1}};

static bool scan_digits(const char **text, uint64_t *out_value)
{
    const char *at = *text;
    uint64_t value = 0;
    if (*at < '0' || *at > '9') return false;
    for (; *at >= '0' && *at <= '9'; at++) {
        uint64_t digit = (uint64_t)(*at - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *text = at;
    *out_value = value;
    return true;
}

static const char *scan_scaled(const unit_row *rows, size_t count, const char *text,
                               uint64_t *out_value)
{
    uint64_t value = 0;
    bool bytes = rows == byte_rows;
    if (!scan_digits(&text, &value))
        return bytes ? "is not a whole number with a unit; write for example 64MiB"
                     : "is not a whole number with a unit; write for example 200ms";
    if (*text == '\0' && value == 0) {
        *out_value = 0;
        return NULL;
    }
    if (*text == '\0')
        return bytes ? "has no unit; write it with B, KiB, MiB, GiB or TiB, for example 64MiB"
                     : "has no unit; write it with ns, us, ms or s, for example 200ms";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, rows[i].suffix) != 0) continue;
        if (value > UINT64_MAX / rows[i].scale) return "does not fit into 64 bits";
        *out_value = value * rows[i].scale;
        return NULL;
    }
    return bytes ? "has an unknown unit; B, KiB, MiB, GiB and TiB are known, for example 64MiB"
                 : "has an unknown unit; ns, us, ms and s are known, for example 200ms";
}

const char *unit_scan(unit_kind kind, const char *text, uint64_t *out_value)
{
    CHECK(text && out_value);
    uint64_t value = 0;
    switch (kind) {
    case UNIT_BYTES:
        return scan_scaled(byte_rows, sizeof byte_rows / sizeof *byte_rows, text, out_value);
    case UNIT_TIME:
        return scan_scaled(time_rows, sizeof time_rows / sizeof *time_rows, text, out_value);
    case UNIT_PERCENT:
        if (!scan_digits(&text, &value) || strcmp(text, "%") != 0)
            return "is not a percentage; write for example 25%";
        break;
    case UNIT_BOOL:
        if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
            return "is neither true nor false";
        value = text[0] == 't';
        break;
    default:
        if (!scan_digits(&text, &value) || *text != '\0') return "is not a whole number";
    }
    *out_value = value;
    return NULL;
}

const char *unit_print(unit_kind kind, uint64_t value, char out[UNIT_TEXT_BYTES])
{
    const unit_row *rows = kind == UNIT_TIME ? time_rows : byte_rows;
    if (kind == UNIT_BYTES || kind == UNIT_TIME) {
        size_t last = kind == UNIT_TIME ? 3 : 4;
        size_t i = value == 0 ? last : 0;
        while (i < last && value % rows[i].scale != 0)
            i++;
        /* zero in the smallest byte unit, but 0s in time: nobody writes 0ns */
        if (value == 0 && kind == UNIT_TIME) i = 0;
        snprintf(out, UNIT_TEXT_BYTES, "%" PRIu64 "%s", value / rows[i].scale, rows[i].suffix);
    } else if (kind == UNIT_BOOL) {
        snprintf(out, UNIT_TEXT_BYTES, "%s", value ? "true" : "false");
    } else {
        snprintf(out, UNIT_TEXT_BYTES, "%" PRIu64 "%s", value, kind == UNIT_PERCENT ? "%" : "");
    }
    return out;
}

static status parse(unit_kind kind, const char *text, uint64_t *out_value)
{
    const char *wrong = unit_scan(kind, text, out_value);
    if (wrong) return FAIL(INVALID, "\"%.40s\" %s", text, wrong);
    return STATUS_OK;
}

status cluster_parse_bytes(const char *text, uint64_t *out_bytes)
{
    return parse(UNIT_BYTES, text, out_bytes);
}

status cluster_parse_time(const char *text, uint64_t *out_ns)
{
    return parse(UNIT_TIME, text, out_ns);
}
