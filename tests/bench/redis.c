/* Redis as a keeper of blocks: MGET and MSET of a batch, requests in a pipeline. The client knows
 * how long an answer is and looks at its first byte only, so it costs less than any real one. */
#include "tests/bench/target.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HEAD_MAX = 64 };

typedef struct redis {
    int fd;
    uint8_t *answer;
    size_t room;
    char text[TARGET_BATCH_MAX + 1][HEAD_MAX];
} redis;

static bool redis_submit(target *t, bool write, const uint32_t *block, uint32_t count)
{
    redis *r = t->self;
    struct iovec iov[2 + 2 * TARGET_BATCH_MAX];
    int parts = 0;
    int size = snprintf(r->text[0], HEAD_MAX, "*%u\r\n$4\r\n%s\r\n", 1 + count * (write ? 2 : 1),
                        write ? "MSET" : "MGET");
    iov[parts++] = (struct iovec){r->text[0], (size_t)size};
    for (uint32_t i = 0; i < count; i++) {
        char *text = r->text[i + 1];
        if (write)
            size = snprintf(text, HEAD_MAX, "%s$4\r\n%04u\r\n$%u\r\n", i > 0 ? "\r\n" : "",
                            block[i], t->block_bytes);
        else
            size = snprintf(text, HEAD_MAX, "$4\r\n%04u\r\n", block[i]);
        iov[parts++] = (struct iovec){text, (size_t)size};
        if (write)
            iov[parts++] = (struct iovec){
                (void *)(uintptr_t)target_source(t->block_bytes, block[i]), t->block_bytes};
    }
    static char end[] = "\r\n";
    if (write) iov[parts++] = (struct iovec){end, 2};
    return io_send(r->fd, iov, parts);
}

static uint32_t redis_finish(target *t, bool write, uint32_t count)
{
    redis *r = t->self;
    char head[HEAD_MAX];
    size_t bytes = 5; /* +OK\r\n */
    if (!write) {
        size_t each = (size_t)snprintf(head, sizeof head, "$%u\r\n", t->block_bytes);
        bytes = (size_t)snprintf(head, sizeof head, "*%u\r\n", count);
        bytes += count * (each + t->block_bytes + 2);
    }
    CHECK(bytes <= r->room);
    struct iovec iov = {r->answer, bytes};
    if (!io_receive(r->fd, &iov, 1)) return 0;
    return r->answer[0] == (write ? '+' : '*') ? count : 0;
}

bool redis_open(target *out, uint32_t block_bytes, uint16_t port, pid_t server)
{
    static redis r;
    r.room = (size_t)TARGET_BATCH_MAX * (block_bytes + 32) + 64;
    r.answer = malloc(r.room);
    r.fd = io_connect(port);
    if (r.fd < 0 || r.answer == NULL) return false;
    *out = (target){.name = "redis",
                    .block_bytes = block_bytes,
                    .server = server,
                    .submit = redis_submit,
                    .finish = redis_finish,
                    .self = &r};
    for (uint32_t i = 0; i < TARGET_BLOCKS; i++)
        if (!redis_submit(out, true, &i, 1) || redis_finish(out, true, 1) != 1) return false;
    return true;
}

void redis_close(target *t)
{
    redis *r = t->self;
    close(r->fd);
    free(r->answer);
}
