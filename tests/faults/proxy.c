#include "tests/faults/proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter_ipv4.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/test.h"

enum { PAIRS = 64, BUFFER = 1 << 20, CHUNKS = 256, READ_MAX = 16 << 10 };

/* What was read in one go, and when it may leave. */
typedef struct chunk {
    uint64_t due_ns;
    uint32_t bytes;
} chunk;

typedef struct way {
    int from, to;
    bool ended; /* `from` sends no more */
    uint8_t *buffer;
    uint64_t in, out; /* bytes ever read and written */
    chunk chunks[CHUNKS];
    uint32_t first, count;
    uint64_t free_at_ns; /* the line is busy until then */
} way;

typedef struct pair {
    bool used;
    way way[2];
} pair;

static struct {
    int listener, mark;
    uint64_t delay_ns, bytes_per_s;
    pair pairs[PAIRS];
    proxy_counts *counts; /* shared with the test */
} proxy;

static proxy_counts *shared;

static uint64_t now_ns(void)
{
    return clock_now(&clock_monotonic);
}

static void take(void)
{
    struct sockaddr_in where;
    socklen_t bytes = sizeof where;
    int one = 1, in = accept4(proxy.listener, NULL, NULL, SOCK_NONBLOCK);
    if (in < 0) return;
    int out = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    pair *p = NULL;
    for (int i = 0; i < PAIRS && p == NULL; i++)
        if (!proxy.pairs[i].used) p = &proxy.pairs[i];
    if (p == NULL || out < 0 || getsockopt(in, SOL_IP, SO_ORIGINAL_DST, &where, &bytes) != 0 ||
        setsockopt(out, SOL_SOCKET, SO_MARK, &proxy.mark, sizeof proxy.mark) != 0 ||
        (connect(out, (struct sockaddr *)&where, sizeof where) != 0 && errno != EINPROGRESS)) {
        close(in);
        if (out >= 0) close(out);
        return;
    }
    (void)setsockopt(in, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(out, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    uint8_t *buffer[2] = {p->way[0].buffer, p->way[1].buffer};
    *p = (pair){.used = true, .way = {{.from = in, .to = out}, {.from = out, .to = in}}};
    for (int k = 0; k < 2; k++) {
        p->way[k].buffer = buffer[k] != NULL ? buffer[k] : malloc(BUFFER);
        if (p->way[k].buffer == NULL) _exit(3);
    }
    proxy.counts->connections++;
}

static bool has_room(const way *w)
{
    return !w->ended && w->count < CHUNKS && w->in - w->out + READ_MAX <= BUFFER;
}

/* False: the connection is over. */
static bool read_some(way *w)
{
    uint64_t at = w->in % BUFFER, room = BUFFER - at;
    ssize_t got = read(w->from, w->buffer + at, room < READ_MAX ? room : READ_MAX);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) w->ended = true;
    if (got == 0) return true;
    uint64_t now = now_ns(), start = w->free_at_ns > now ? w->free_at_ns : now;
    w->free_at_ns = start + (uint64_t)got * 1000000000u / proxy.bytes_per_s;
    w->chunks[(w->first + w->count++) % CHUNKS] =
        (chunk){w->free_at_ns + proxy.delay_ns, (uint32_t)got};
    w->in += (uint64_t)got;
    return true;
}

static bool write_due(way *w, uint64_t *next_ns)
{
    while (w->count > 0) {
        chunk *c = &w->chunks[w->first];
        uint64_t now = now_ns(), at = w->out % BUFFER;
        if (c->due_ns > now) {
            if (c->due_ns < *next_ns) *next_ns = c->due_ns;
            return true;
        }
        uint64_t bytes = c->bytes < BUFFER - at ? c->bytes : BUFFER - at;
        ssize_t sent = send(w->to, w->buffer + at, bytes, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR || errno == ENOTCONN)) {
            if (now + 1000000 < *next_ns) *next_ns = now + 1000000;
            return true;
        }
        if (sent < 0) return false;
        w->out += (uint64_t)sent;
        proxy.counts->bytes += (uint64_t)sent;
        c->bytes -= (uint32_t)sent;
        if (c->bytes > 0) continue;
        w->first = (w->first + 1) % CHUNKS;
        w->count--;
    }
    return !w->ended || shutdown(w->to, SHUT_WR) == 0;
}

static void pair_close(pair *p)
{
    close(p->way[0].from);
    close(p->way[1].from);
    p->used = false;
}

static void serve(void)
{
    for (;;) {
        struct pollfd fds[1 + 2 * PAIRS] = {{.fd = proxy.listener, .events = POLLIN}};
        way *of[1 + 2 * PAIRS];
        nfds_t count = 1;
        uint64_t now = now_ns(), next = now + 100000000;
        for (int i = 0; i < PAIRS; i++) {
            pair *p = &proxy.pairs[i];
            if (!p->used) continue;
            bool ok = write_due(&p->way[0], &next) && write_due(&p->way[1], &next);
            if (!ok || (p->way[0].ended && p->way[1].ended)) {
                pair_close(p);
                continue;
            }
            for (int k = 0; k < 2; k++) {
                if (!has_room(&p->way[k])) continue;
                of[count] = &p->way[k];
                fds[count++] = (struct pollfd){.fd = p->way[k].from, .events = POLLIN};
            }
        }
        now = now_ns();
        struct timespec wait = {0, next > now ? (long)(next - now) : 0};
        if (ppoll(fds, count, &wait, NULL) <= 0) continue;
        if (fds[0].revents != 0) take();
        for (nfds_t i = 1; i < count; i++)
            if (fds[i].revents != 0 && !read_some(of[i])) of[i]->ended = true;
    }
}

pid_t proxy_start(uint16_t port, int mark, uint64_t delay_ns, uint64_t bytes_per_s)
{
    int one = 1;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    proxy.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    EXPECT(proxy.listener >= 0);
    EXPECT(setsockopt(proxy.listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    EXPECT(bind(proxy.listener, (struct sockaddr *)&any, sizeof any) == 0);
    EXPECT(listen(proxy.listener, 16) == 0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT(shared != MAP_FAILED);
    proxy.counts = shared;
    proxy.mark = mark;
    proxy.delay_ns = delay_ns;
    proxy.bytes_per_s = bytes_per_s;
    pid_t pid = fork();
    EXPECT(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        serve();
    }
    close(proxy.listener);
    return pid;
}

void proxy_stop(pid_t pid, proxy_counts *out_counts)
{
    EXPECT(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    *out_counts = *shared;
    munmap(shared, sizeof *shared);
}
