/* shoal-worker doctor: measure what this host gives, say what our code reaches of it, and name what
 * is misconfigured, each with one sentence that says what to do. Needs no model and no store, and
 * changes nothing but a file of its own in --dir while it is measured.
 *
 * Exit: 0 nothing is misconfigured, 1 something is, 2 usage. */
#include "worker/doctor.h"

#include "worker/flags.h"
#include "worker/session.h"
#include "worker/text.h"
#include "worker/verbs.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#define AT(member) offsetof(doctor, member)
/* clang-format off */
static const flag_row rows[] = {
    {"--device", "auto|cpu|cuda", "compute device to measure (default auto: cpu, and cuda where there is one)", AT(device), FLAG_TYPE_WORD, 0, 0},
    {"--dir", "FOLDER", "measure the disk under it, with a file of 256 MiB that is removed (default: none)", AT(folder), FLAG_TYPE_TEXT, 0, 0},
    {"--no-network", NULL, "leave out the loopback network", AT(no_network), FLAG_TYPE_ON, 0, 0},
    {"--quick", NULL, "only look, measure nothing", AT(quick), FLAG_TYPE_ON, 0, 0},
    {"--threads", "N", "threads to measure memory with (default: one a core)", AT(threads), FLAG_TYPE_WHOLE, 1, 1024},
    {"--format", "text|json", "of the result on standard output (default text)", AT(format), FLAG_TYPE_WORD, 0, 0},
    {"-o", "text|json", "the same as --format", AT(format), FLAG_TYPE_WORD, 0, 0},
};
/* clang-format on */

static const char head[] = "shoal-worker doctor - measure this host and say what is misconfigured\n"
                           "\n"
                           "usage: shoal-worker doctor [flags]\n"
                           "\n"
                           "flags:\n";
static const char tail[] = "\n"
                           "examples:\n"
                           "  shoal-worker doctor --quick\n"
                           "  shoal-worker doctor --dir . --device cpu -o json\n"
                           "\n"
                           "exit: 0 nothing is misconfigured, 1 something is, 2 usage\n";

/* ---- findings -------------------------------------------------------------------------------- */

doctor_finding *doctor_add(doctor *d, doctor_state state, const char *check, const char *format,
                           ...)
{
    CHECK(d->count < DOCTOR_FINDINGS_MAX);
    doctor_finding *f = &d->finding[d->count++];
    *f = (doctor_finding){.state = state, .value = NAN, .ours = NAN, .unit = ""};
    (void)snprintf(f->check, sizeof f->check, "%s", check);
    va_list list;
    va_start(list, format);
    (void)vsnprintf(f->words, sizeof f->words, format, list);
    va_end(list);
    return f;
}

void doctor_advise(doctor_finding *f, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    (void)vsnprintf(f->advice, sizeof f->advice, format, list);
    va_end(list);
}

bool doctor_read_line(const char *path, char *out, size_t room)
{
    FILE *f = fopen(path, "re");
    if (f == NULL) return false;
    bool good = fgets(out, (int)room, f) != NULL;
    (void)fclose(f);
    if (good) out[strcspn(out, "\n")] = '\0';
    return good;
}

/* ---- out ------------------------------------------------------------------------------------- */

static const char *state_name(doctor_state s)
{
    return s == DOCTOR_OK ? "ok" : s == DOCTOR_NOTE ? "note" : "bad";
}

static void print_text(const doctor *d, text *out)
{
    uint32_t bad = 0;
    for (uint32_t i = 0; i < d->count; i++) {
        const doctor_finding *f = &d->finding[i];
        bad += f->state == DOCTOR_BAD;
        text_format(out, "%-5s %-18s ", f->state == DOCTOR_BAD ? "BAD" : state_name(f->state),
                    f->check);
        if (!isnan(f->value)) text_format(out, "%.4g %s", f->value, f->unit);
        if (!isnan(f->value) && f->words[0] != '\0') text_add_string(out, ", ");
        text_add_string(out, f->words);
        if (!isnan(f->ours))
            text_format(out, "; ours %.4g, %.0f %%", f->ours, 100 * f->ours / f->value);
        text_add_string(out, "\n");
        if (f->advice[0] != '\0') text_format(out, "%-24s %s\n", "", f->advice);
    }
    text_format(out, "%u checks, %u misconfigured\n", d->count, bad);
}

static void print_json(const doctor *d, text *out)
{
    for (uint32_t i = 0; i < d->count; i++) {
        const doctor_finding *f = &d->finding[i];
        text_add_string(out, "{\"schema\":\"shoal.doctor/1\"");
        text_key(out, "check");
        text_quote_string(out, f->check);
        text_key(out, "state");
        text_quote_string(out, state_name(f->state));
        if (!isnan(f->value)) {
            text_key(out, "value");
            text_number(out, f->value);
            text_key(out, "unit");
            text_quote_string(out, f->unit);
        }
        if (!isnan(f->ours)) {
            text_key(out, "ours");
            text_number(out, f->ours);
            text_key(out, "fraction");
            text_number(out, f->ours / f->value);
        }
        text_key(out, "words");
        text_quote_string(out, f->words);
        if (f->advice[0] != '\0') {
            text_key(out, "advice");
            text_quote_string(out, f->advice);
        }
        text_add_string(out, "}\n");
    }
}

/* ---- the verb -------------------------------------------------------------------------------- */

static status examine(doctor *d)
{
    doctor_host(d);
    doctor_devices(d);
    if (!session_interrupted()) doctor_disk(d);
    if (!session_interrupted()) doctor_network(d);
    return session_interrupted() ? STATUS_CANCELED : STATUS_OK;
}

int worker_doctor(int argc, char **argv)
{
    arena *memory = arena_create("doctor");
    doctor *d = ARENA_NEW(memory, doctor, 1);
    *d = (doctor){.device = "auto", .format = "text"};
    flag_set set = {.row = rows, .count = sizeof rows / sizeof *rows};
    status s = flags_parse(&set, argc, argv, d);
    if (s == STATUS_OK && d->quick && d->folder != NULL)
        s = FAIL(INVALID, "--quick measures nothing, so --dir has no meaning");
    if (s == STATUS_OK && set.help) {
        (void)fputs(head, stdout);
        flags_help(&set, stdout);
        (void)fputs(tail, stdout);
    } else if (s == STATUS_OK) {
        session_catch_signals();
        s = examine(d);
        text out;
        text_start(&out, memory);
        if (strcmp(d->format, "json") == 0)
            print_json(d, &out);
        else
            print_text(d, &out);
        if (s == STATUS_OK && (fputs(out.bytes, stdout) < 0 || fflush(stdout) != 0))
            s = FAIL(IO, "the findings cannot be written");
        for (uint32_t i = 0; i < d->count && s == STATUS_OK; i++)
            if (d->finding[i].state == DOCTOR_BAD) s = STATUS_NOT_FOUND; /* exit code 1 */
    }
    arena_destroy(memory);
    return status_exit_code(s);
}
