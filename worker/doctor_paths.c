/* The disk under a folder, and the loopback network. */
#include "worker/doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_BYTES = 256 << 20, PIECE_BYTES = 1 << 20, READS = 2000, READ_BYTES = 64 << 10 };

/* ---- disk ------------------------------------------------------------------------------------ */

typedef struct disk {
    double write_gbs, read_gbs, random_gbs;
} disk;

static double seconds_since(uint64_t from_ns)
{
    return (double)(clock_now(&clock_monotonic) - from_ns) * 1e-9;
}

/* Around the page cache: writes with a sync at the end, reads in order, reads of 64 KiB anywhere.
 */
static bool measure_file(int fd, uint8_t *buffer, disk *out)
{
    rng r;
    rng_seed(&r, 1);
    for (size_t i = 0; i < PIECE_BYTES; i += 8) {
        uint64_t word = rng_next(&r); /* nothing that compresses */
        memcpy(buffer + i, &word, sizeof word);
    }
    uint64_t from = clock_now(&clock_monotonic);
    for (off_t at = 0; at < FILE_BYTES; at += PIECE_BYTES)
        if (pwrite(fd, buffer, PIECE_BYTES, at) != PIECE_BYTES) return false;
    if (fdatasync(fd) != 0) return false;
    out->write_gbs = FILE_BYTES * 1e-9 / seconds_since(from);
    from = clock_now(&clock_monotonic);
    for (off_t at = 0; at < FILE_BYTES; at += PIECE_BYTES)
        if (pread(fd, buffer, PIECE_BYTES, at) != PIECE_BYTES) return false;
    out->read_gbs = FILE_BYTES * 1e-9 / seconds_since(from);
    from = clock_now(&clock_monotonic);
    for (int i = 0; i < READS; i++) {
        off_t at = (off_t)rng_below(&r, FILE_BYTES / READ_BYTES) * READ_BYTES;
        if (pread(fd, buffer, READ_BYTES, at) != READ_BYTES) return false;
    }
    out->random_gbs = (double)READS * READ_BYTES * 1e-9 / seconds_since(from);
    return true;
}

static void add_rate(doctor *d, const char *check, double gbs, const char *words)
{
    doctor_finding *f = doctor_add(d, DOCTOR_OK, check, "%s", words);
    f->value = gbs;
    f->unit = "GB/s";
}

void doctor_disk(doctor *d)
{
    if (d->folder == NULL) return;
    char path[4096];
    (void)snprintf(path, sizeof path, "%s/.shoal-doctor-XXXXXX", d->folder);
    int fd = mkstemp(path);
    if (fd < 0) {
        doctor_finding *f =
            doctor_add(d, DOCTOR_BAD, "disk", "%.100s: %s", d->folder, strerror(errno));
        doctor_advise(f, "Give --dir a folder that exists and can be written.");
        return;
    }
    (void)unlink(path); /* gone with the descriptor, whatever happens */
    bool direct = fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_DIRECT) == 0;
    arena *a = arena_create("disk");
    disk seen = {0};
    if (!measure_file(fd, arena_alloc(a, PIECE_BYTES, 4096), &seen)) {
        doctor_finding *f =
            doctor_add(d, DOCTOR_BAD, "disk", "%.100s: %s", d->folder, strerror(errno));
        doctor_advise(f, "256 MiB must fit and the file system must take reads and writes.");
    } else {
        const char *how = direct ? "around the page cache" : "through the page cache";
        add_rate(d, "disk_write", seen.write_gbs, how);
        add_rate(d, "disk_read", seen.read_gbs, how);
        add_rate(d, "disk_random_read", seen.random_gbs, "64 KiB each, one at a time");
    }
    if (!direct) {
        doctor_finding *f = doctor_add(d, DOCTOR_NOTE, "disk_direct",
                                       "%.100s: the file system refuses O_DIRECT", d->folder);
        doctor_advise(f, "A tier on disk wants a local file system that has it (ext4, xfs).");
    }
    (void)close(fd);
    arena_destroy(a);
}

/* ---- network --------------------------------------------------------------------------------- */

void doctor_network(doctor *d)
{
    if (d->no_network || d->quick) return;
    kv_loopback seen;
    if (kv_loopback_measure(&seen) != STATUS_OK) {
        doctor_finding *f = doctor_add(d, DOCTOR_BAD, "loopback", "%.150s", log_last_error());
        doctor_advise(f,
                      "Bring the loopback interface up (ip link set lo up) and let it carry TCP.");
        return;
    }
    doctor_finding *f = doctor_add(d, DOCTOR_OK, "loopback", "plain TCP; through our transport");
    f->value = seen.tcp_gbs > seen.transport_gbs ? seen.tcp_gbs : seen.transport_gbs;
    f->ours = seen.transport_gbs;
    f->unit = "GB/s";
    f = doctor_add(d, DOCTOR_OK, "loopback_rtt", "a head there and back");
    f->value = seen.transport_rtt_us;
    f->unit = "us";
}
