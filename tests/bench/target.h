/* tests/bench/target.h - something that keeps blocks, driven by a window of requests: our store and
 * its peers, so that one loop measures them all.
 *
 *   store.c      the loop, and our store
 *   sockets.c    a process that answers over plain TCP with writev
 *   redis.c      Redis: MGET and MSET over TCP
 *
 * A request is `count` blocks of one size, read or written. Requests complete in order. */
#ifndef TESTS_BENCH_TARGET_H
#define TESTS_BENCH_TARGET_H

#include "proto/proto.h"

#include <sys/types.h>
#include <sys/uio.h>

enum { TARGET_BLOCKS = 1024, TARGET_BATCH_MAX = 64, TARGET_WINDOW_MAX = 8 };

typedef struct target {
    const char *name;
    uint32_t block_bytes;
    pid_t server; /* whose processor time counts */
    /* Where reads of peers end: a batch each for as many requests as are open, as our client must
     * have it, and the batch of the oldest. */
    uint8_t *landings, *landing;
    /* Send one request for these blocks, each < TARGET_BLOCKS. */
    bool (*submit)(struct target *t, bool write, const uint32_t *block, uint32_t count);
    /* Wait for the oldest request, of `count` blocks; how many of them are good. */
    uint32_t (*finish)(struct target *t, bool write, uint32_t count);
    void (*settle)(struct target *t); /* between runs; NULL: nothing to do */
    void *self;
} target;

/* The bytes that peers write, block by block. */
const uint8_t *target_source(uint32_t block_bytes, uint32_t block);

void sockets_open(target *out, uint32_t block_bytes);
void sockets_close(target *t);
/* A server that runs on this port, as process `server`. False: it does not answer. */
bool redis_open(target *out, uint32_t block_bytes, uint16_t port, pid_t server);
void redis_close(target *t);

/* Everything of iov, which is used up. False: the peer is gone. */
bool io_send(int fd, struct iovec *iov, int count);
bool io_receive(int fd, struct iovec *iov, int count);
int io_connect(uint16_t port); /* loopback, without Nagle's delay; -1: nobody there */

#endif
