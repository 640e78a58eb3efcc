/* tests/faults/proxy.h - a slow link: a TCP proxy that delays bytes and lets only so many through.
 *
 * Connections reach it by an nft redirect, and it asks the kernel where they were going. So it also
 * stands in UCX's data connections, whose addresses the two ends tell each other. Its own
 * connections carry a mark that the redirect leaves alone.
 *
 * Threads: none: a process of its own, one poll loop. */
#ifndef TESTS_FAULTS_PROXY_H
#define TESTS_FAULTS_PROXY_H

#include <stdint.h>
#include <sys/types.h>

typedef struct proxy_counts {
    uint64_t connections, bytes; /* of both ways */
} proxy_counts;

/* Each way is delayed by delay_ns and passes bytes_per_s. Returns its pid; it listens already. */
pid_t proxy_start(uint16_t port, int mark, uint64_t delay_ns, uint64_t bytes_per_s);
void proxy_stop(pid_t pid, proxy_counts *out_counts); /* connections break */

#endif
