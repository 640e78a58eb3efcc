/* worker/doctor.h - private: what `shoal doctor` looks at.
 *
 *   doctor.c         the verb: options, findings out
 *   doctor_host.c    processor, memory, huge pages, limits, NUMA, load
 *   doctor_paths.c   a folder's disk, the loopback network
 *   doctor_device.c  compute devices: ceilings, and what our ops reach of them
 *
 * Threads: one. Memory: findings hold their words by value. */
#ifndef WORKER_DOCTOR_H
#define WORKER_DOCTOR_H

#include "kernels/kernels.h"
#include "kvstore/kvstore.h"

typedef enum doctor_state {
    DOCTOR_OK,
    DOCTOR_NOTE, /* worth knowing; nothing to mend */
    DOCTOR_BAD   /* misconfigured: `advice` says what to do */
} doctor_state;

typedef struct doctor_finding {
    doctor_state state;
    char check[24];   /* "huge_pages" */
    char words[160];  /* what was seen */
    char advice[240]; /* one sentence; BAD has one */
    double value;     /* with a unit; NAN: none */
    const char *unit; /* static */
    double ours;      /* what our code reaches in the same unit; NAN: not applicable */
} doctor_finding;

enum { DOCTOR_FINDINGS_MAX = 64 };

typedef struct doctor {
    const char *folder, *device, *format; /* folder NULL: no disk is measured */
    bool no_network, quick, help;
    uint32_t threads;
    doctor_finding finding[DOCTOR_FINDINGS_MAX];
    uint32_t count;
} doctor;

/* A new finding with `check` and words filled in; value and ours are NAN. */
doctor_finding *doctor_add(doctor *d, doctor_state state, const char *check, const char *format,
                           ...) __attribute__((format(printf, 4, 5)));
void doctor_advise(doctor_finding *f, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* The first line of a file without its end; false: it cannot be read. */
bool doctor_read_line(const char *path, char *out, size_t room);

/* Rules over what was read, apart so that tests can bring hosts we do not have. */
void doctor_judge_huge_pages(doctor *d, const char *enabled); /* "always [madvise] never" */
void doctor_judge_memlock(doctor *d, uint64_t limit, bool has_gpu);
void doctor_judge_files(doctor *d, uint64_t limit);
void doctor_judge_overcommit(doctor *d, const char *mode);
void doctor_judge_load(doctor *d, double load, uint32_t cores);
void doctor_judge_governor(doctor *d, const char *governor);
void doctor_judge_numa(doctor *d, uint32_t nodes, const char *balancing);
/* Values of kern_probe; NAN: not told. */
typedef struct doctor_card {
    double ecc, clock, clock_max, throttle, gen, gen_max, width, width_max, free, memory;
} doctor_card;
void doctor_judge_card(doctor *d, const doctor_card *card);

void doctor_host(doctor *d);
void doctor_disk(doctor *d);
void doctor_network(doctor *d);
void doctor_devices(doctor *d);

#endif
