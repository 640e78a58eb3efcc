/* What the kernel's TCP gives without a store: a process with an array of blocks, one writev a
 * request, no lookup, no digest, no copy beyond the sockets' own. */
#include "tests/bench/target.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct request {
    uint32_t write, count;
    uint32_t block[TARGET_BATCH_MAX];
} request;

typedef struct block_head {
    uint32_t block, bytes;
    uint64_t unused;
} block_head;

typedef struct sockets {
    int fd;
    block_head head[TARGET_BATCH_MAX];
} sockets;

/* ---- sockets --------------------------------------------------------------------------------- */

static bool io_all(int fd, struct iovec *iov, int count, bool send)
{
    while (count > 0) {
        ssize_t moved = send ? writev(fd, iov, count) : readv(fd, iov, count);
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) return false;
        for (; count > 0 && (size_t)moved >= iov->iov_len; count--)
            moved -= (ssize_t)iov++->iov_len;
        if (count == 0) break;
        iov->iov_base = (char *)iov->iov_base + moved;
        iov->iov_len -= (size_t)moved;
    }
    return true;
}

bool io_send(int fd, struct iovec *iov, int count)
{
    return io_all(fd, iov, count, true);
}

bool io_receive(int fd, struct iovec *iov, int count)
{
    return io_all(fd, iov, count, false);
}

static void no_delay(int fd)
{
    int one = 1;
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
}

int io_connect(uint16_t port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    if (connect(fd, (const struct sockaddr *)&at, sizeof at) != 0) {
        close(fd);
        return -1;
    }
    no_delay(fd);
    return fd;
}

/* ---- the server ------------------------------------------------------------------------------ */

static int blocks_iov(struct iovec *iov, block_head *head, uint8_t *const *at, uint32_t count,
                      uint32_t bytes)
{
    for (uint32_t i = 0; i < count; i++) {
        iov[2 * i] = (struct iovec){&head[i], sizeof head[i]};
        iov[2 * i + 1] = (struct iovec){at[i], bytes};
    }
    return (int)(2 * count);
}

static void serve(int fd, uint8_t *memory, uint32_t bytes)
{
    static request r;
    static block_head head[TARGET_BATCH_MAX];
    struct iovec iov[2 * TARGET_BATCH_MAX];
    uint8_t *at[TARGET_BATCH_MAX];
    for (;;) {
        struct iovec front = {&r, sizeof r};
        if (!io_receive(fd, &front, 1)) return;
        for (uint32_t i = 0; i < r.count; i++) {
            at[i] = memory + (size_t)r.block[i] * bytes;
            head[i] = (block_head){r.block[i], bytes, 0};
        }
        int parts = blocks_iov(iov, head, at, r.count, bytes);
        if (r.write) {
            struct iovec done = {&r, sizeof(block_head)};
            if (!io_receive(fd, iov, parts) || !io_send(fd, &done, 1)) return;
        } else if (!io_send(fd, iov, parts)) {
            return;
        }
    }
}

static _Noreturn void server_main(int listener, uint32_t bytes)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    uint8_t *memory = malloc((size_t)TARGET_BLOCKS * bytes);
    int fd = accept(listener, NULL, NULL);
    if (memory == NULL || fd < 0) _exit(1);
    for (uint32_t i = 0; i < TARGET_BLOCKS; i++)
        memcpy(memory + (size_t)i * bytes, target_source(bytes, i), bytes);
    no_delay(fd);
    serve(fd, memory, bytes);
    _exit(0);
}

/* ---- the client ------------------------------------------------------------------------------ */

static bool sockets_submit(target *t, bool write, const uint32_t *block, uint32_t count)
{
    static request r;
    sockets *s = t->self;
    struct iovec iov[1 + 2 * TARGET_BATCH_MAX] = {{&r, sizeof r}};
    uint8_t *at[TARGET_BATCH_MAX];
    r = (request){.write = write, .count = count};
    memcpy(r.block, block, count * sizeof *block);
    if (!write) return io_send(s->fd, iov, 1);
    for (uint32_t i = 0; i < count; i++) {
        at[i] = (uint8_t *)(uintptr_t)target_source(t->block_bytes, block[i]);
        s->head[i] = (block_head){block[i], t->block_bytes, 0};
    }
    return io_send(s->fd, iov, 1 + blocks_iov(iov + 1, s->head, at, count, t->block_bytes));
}

static uint32_t sockets_finish(target *t, bool write, uint32_t count)
{
    sockets *s = t->self;
    struct iovec iov[2 * TARGET_BATCH_MAX];
    if (write) {
        iov[0] = (struct iovec){&s->head[0], sizeof s->head[0]};
        return io_receive(s->fd, iov, 1) ? count : 0;
    }
    uint8_t *at[TARGET_BATCH_MAX];
    for (uint32_t i = 0; i < count; i++)
        at[i] = t->landing + (size_t)i * t->block_bytes;
    return io_receive(s->fd, iov, blocks_iov(iov, s->head, at, count, t->block_bytes)) ? count : 0;
}

void sockets_open(target *out, uint32_t block_bytes)
{
    static sockets s;
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0 && bind(listener, (const struct sockaddr *)&at, sizeof at) == 0);
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&at, &size) == 0);
    (void)target_source(block_bytes, 0); /* made before the fork, for both */
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) server_main(listener, block_bytes);
    s.fd = io_connect(ntohs(at.sin_port));
    CHECK(s.fd >= 0);
    close(listener);
    *out = (target){.name = "sockets",
                    .block_bytes = block_bytes,
                    .server = pid,
                    .submit = sockets_submit,
                    .finish = sockets_finish,
                    .self = &s};
}

void sockets_close(target *t)
{
    close(((sockets *)t->self)->fd);
    (void)waitpid(t->server, NULL, 0);
}
