/* Processor, memory, huge pages, limits, NUMA, load: read from /proc and /sys, judged by rules that
 * tests can feed with hosts we do not have. What a kernel or container hides is a note. */
#include "worker/doctor.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- rules ----------------------------------------------------------------------------------- */

void doctor_judge_huge_pages(doctor *d, const char *enabled)
{
    if (strstr(enabled, "[never]") != NULL) {
        doctor_finding *f =
            doctor_add(d, DOCTOR_BAD, "huge_pages",
                       "transparent huge pages are off: pools take more TLB misses");
        doctor_advise(f, "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        return;
    }
    const char *mode = strstr(enabled, "[always]") != NULL ? "always" : "madvise";
    doctor_add(d, DOCTOR_OK, "huge_pages", "transparent huge pages: %s", mode);
}

void doctor_judge_memlock(doctor *d, uint64_t limit, bool has_gpu)
{
    if (limit == UINT64_MAX) {
        doctor_add(d, DOCTOR_OK, "memlock", "no limit on locked memory");
        return;
    }
    double mib = (double)limit / 1048576;
    doctor_finding *f = doctor_add(d, has_gpu ? DOCTOR_BAD : DOCTOR_NOTE, "memlock",
                                   "at most %.4g MiB of memory may be locked", mib);
    doctor_advise(f, "Pinned host memory and RDMA need more: ulimit -l unlimited, or "
                     "LimitMEMLOCK=infinity in the service's unit.");
}

void doctor_judge_files(doctor *d, uint64_t limit)
{
    if (limit >= 4096) {
        doctor_add(d, DOCTOR_OK, "open_files", "%llu descriptors may be open",
                   (unsigned long long)limit);
        return;
    }
    doctor_finding *f = doctor_add(d, limit < 1024 ? DOCTOR_BAD : DOCTOR_NOTE, "open_files",
                                   "only %llu descriptors may be open", (unsigned long long)limit);
    doctor_advise(f, "A node with many clients needs more: ulimit -n 65536, or LimitNOFILE=65536 "
                     "in the service's unit.");
}

void doctor_judge_overcommit(doctor *d, const char *mode)
{
    if (strcmp(mode, "2") != 0) {
        doctor_add(d, DOCTOR_OK, "overcommit", "vm.overcommit_memory is %s", mode);
        return;
    }
    doctor_finding *f = doctor_add(d, DOCTOR_BAD, "overcommit",
                                   "vm.overcommit_memory is 2: slabs that are mapped at start and "
                                   "filled later may be refused");
    doctor_advise(f, "As root: sysctl vm.overcommit_memory=0");
}

void doctor_judge_load(doctor *d, double load, uint32_t cores)
{
    doctor_finding *f = doctor_add(d, load > 0.5 * cores ? DOCTOR_NOTE : DOCTOR_OK, "load",
                                   "load %.2f on %u cores", load, cores);
    if (f->state != DOCTOR_OK)
        doctor_advise(f, "Others use this machine: what is measured below is what they leave.");
}

void doctor_judge_governor(doctor *d, const char *governor)
{
    if (strcmp(governor, "performance") == 0) {
        doctor_add(d, DOCTOR_OK, "governor", "the processors' clocks are governed for performance");
        return;
    }
    doctor_finding *f =
        doctor_add(d, DOCTOR_BAD, "governor", "the processors' clocks follow \"%s\"", governor);
    doctor_advise(f, "As root: cpupower frequency-set -g performance");
}

void doctor_judge_numa(doctor *d, uint32_t nodes, const char *balancing)
{
    bool moves = nodes > 1 && strcmp(balancing, "0") != 0 && balancing[0] != '\0';
    doctor_finding *f =
        doctor_add(d, moves ? DOCTOR_BAD : DOCTOR_OK, "numa", "%u memory node%s%s", nodes,
                   nodes == 1 ? "" : "s", moves ? ", and the kernel moves pages between them" : "");
    if (moves)
        doctor_advise(f, "Stop it (as root: sysctl kernel.numa_balancing=0) and start each worker "
                         "and node under numactl --cpunodebind=N --membind=N.");
    else if (nodes > 1)
        doctor_advise(f, "Start each worker and node under numactl --cpunodebind=N --membind=N, N "
                         "being its card's or disk's node.");
}

/* ---- reading --------------------------------------------------------------------------------- */

/* The value after "name" and a colon of a /proc file. */
static bool read_field(const char *path, const char *name, char *out, size_t room)
{
    FILE *f = fopen(path, "re");
    char line[512];
    bool found = false;
    while (f != NULL && !found && fgets(line, sizeof line, f) != NULL) {
        char *colon = strchr(line, ':');
        if (colon == NULL || strncmp(line, name, strlen(name)) != 0) continue;
        colon += 1 + strspn(colon + 1, " \t");
        colon[strcspn(colon, "\n")] = '\0';
        (void)snprintf(out, room, "%s", colon);
        found = true;
    }
    if (f != NULL) (void)fclose(f);
    return found;
}

static const char *level_here(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
#endif
    return "generic";
}

static void look_at_processor(doctor *d, uint32_t cores)
{
    char model[96] = "processor";
    (void)read_field("/proc/cpuinfo", "model name", model, sizeof model);
    const char *level = level_here();
    bool slow = strcmp(level, "generic") == 0;
    doctor_finding *f = doctor_add(d, slow ? DOCTOR_NOTE : DOCTOR_OK, "processor",
                                   "%.80s, %u cores, %s", model, cores, level);
    if (slow) doctor_advise(f, "Without AVX2 the cpu backend runs plain C, several times slower.");
}

static void look_at_memory(doctor *d)
{
    char all[64], free_now[64];
    if (!read_field("/proc/meminfo", "MemTotal", all, sizeof all) ||
        !read_field("/proc/meminfo", "MemAvailable", free_now, sizeof free_now))
        return;
    double gib = strtod(all, NULL) / 1048576, left = strtod(free_now, NULL) / 1048576;
    doctor_finding *f = doctor_add(d, left < 0.1 * gib ? DOCTOR_NOTE : DOCTOR_OK, "memory",
                                   "%.1f GiB, %.1f of them free", gib, left);
    if (f->state != DOCTOR_OK)
        doctor_advise(f, "Less than a tenth is free: pools and slabs may not fit.");
}

static uint32_t count_nodes(void)
{
    uint32_t nodes = 0;
    char path[64];
    for (uint32_t i = 0; i < 64; i++) {
        (void)snprintf(path, sizeof path, "/sys/devices/system/node/node%u", i);
        nodes += access(path, F_OK) == 0;
    }
    return nodes > 0 ? nodes : 1;
}

static uint64_t limit_of(int resource)
{
    struct rlimit limit;
    if (getrlimit((__rlimit_resource_t)resource, &limit) != 0) return UINT64_MAX;
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

void doctor_host(doctor *d)
{
    char line[256];
    double load = 0;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    look_at_processor(d, cores > 0 ? (uint32_t)cores : 1);
    if (doctor_read_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", line,
                         sizeof line))
        doctor_judge_governor(d, line);
    if (getloadavg(&load, 1) == 1) doctor_judge_load(d, load, cores > 0 ? (uint32_t)cores : 1);
    look_at_memory(d);
    if (doctor_read_line("/sys/kernel/mm/transparent_hugepage/enabled", line, sizeof line))
        doctor_judge_huge_pages(d, line);
    else
        doctor_add(d, DOCTOR_NOTE, "huge_pages", "this kernel does not say");
    if (doctor_read_line("/proc/sys/vm/overcommit_memory", line, sizeof line))
        doctor_judge_overcommit(d, line);
    doctor_judge_memlock(d, limit_of(RLIMIT_MEMLOCK), access("/dev/nvidia0", F_OK) == 0);
    doctor_judge_files(d, limit_of(RLIMIT_NOFILE));
    if (!doctor_read_line("/proc/sys/kernel/numa_balancing", line, sizeof line)) line[0] = '\0';
    doctor_judge_numa(d, count_nodes(), line);
}
