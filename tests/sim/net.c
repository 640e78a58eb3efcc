/* tests/sim/net.c - connections, records in flight, and the weather. See net.h. */
#include "tests/sim/net.h"

#include <string.h>

static const kv_transport_ops net_ops;

net *net_create(arena *a, rng *random, const uint64_t *now_ns)
{
    net *n = ARENA_NEW(a, net, 1);
    n->random = random;
    n->now_ns = now_ns;
    n->copies = arena_alloc(a, (size_t)NET_COPIES * NET_BODY_MAX, 64);
    for (uint32_t i = 0; i < NET_CONNS; i++)
        for (uint32_t e = 0; e < 2; e++)
            n->conn[i].lane[e].record = ARENA_NEW(a, net_record, NET_RECORDS);
    net_reset(n);
    return n;
}

void net_reset(net *n)
{
    n->weather = (net_weather){.latency_ns = 1000, .window = NET_RECORDS};
    n->serial = 0;
    n->flips = n->messages = 0;
    n->copies_free = 0;
    for (uint32_t i = 0; i < NET_COPIES; i++)
        n->copy_free[n->copies_free++] = NET_COPIES - 1 - i;
    for (uint32_t i = 0; i < NET_CONNS; i++)
        n->conn[i].serial = 0;
    for (uint32_t p = 0; p < NET_PORTS; p++)
        n->port[p] = (net_port){.owner = n, .number = p};
    memset(n->blocked_ns, 0, sizeof n->blocked_ns);
    memset(n->bad_ns, 0, sizeof n->bad_ns);
    memset(n->events, 0, sizeof n->events);
}

kv_transport *net_open(net *n, uint32_t port)
{
    CHECK(port < NET_PORTS && !n->port[port].open);
    n->port[port] = (net_port){.base.ops = &net_ops, .owner = n, .number = port, .open = true};
    return &n->port[port].base;
}

/* ---- records --------------------------------------------------------------------------------- */

static net_record *record_at(net_lane *l, uint64_t i)
{
    return &l->record[i % NET_RECORDS];
}

static void copy_free(net *n, net_record *r)
{
    if (r->copy == NULL) return;
    n->copy_free[n->copies_free++] = (uint32_t)((r->copy - n->copies) / NET_BODY_MAX);
    r->copy = NULL;
}

static uint32_t kind_of(const net_record *r)
{
    return r->head[0];
}

static bool may_flip(uint32_t kind)
{
    return kind == WIRE_GET || kind == WIRE_BLOCK || kind == WIRE_PUT;
}

/* The network takes the body out of its sender's memory. */
static void record_read(net *n, const net_conn *c, uint32_t end, net_record *r)
{
    if (r->body_bytes == 0 || r->lost) return;
    CHECK(n->copies_free > 0 && r->body_bytes <= NET_BODY_MAX);
    r->copy = n->copies + (size_t)n->copy_free[--n->copies_free] * NET_BODY_MAX;
    memcpy(r->copy, r->body, r->body_bytes);
    if (n->tap.body_changed != NULL && r->flips == n->flips &&
        bytes_digest(r->copy, r->body_bytes, NET_BODY_DIGEST_SEED) != r->digest)
        n->tap.body_changed(n->tap.self, c->end[end].port, kind_of(r));
    if (!r->flip) return;
    uint64_t bit = rng_below(n->random, (uint64_t)r->body_bytes * 8);
    r->copy[bit / 8] ^= (uint8_t)(1u << bit % 8);
}

void net_advance(net *n)
{
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        net_conn *c = &n->conn[i];
        for (uint32_t e = 0; e < 2 && c->serial != 0; e++) {
            net_lane *l = &c->lane[e];
            while (!c->end[e].over && l->read < l->sent &&
                   record_at(l, l->read)->read_ns <= *n->now_ns)
                record_read(n, c, e, record_at(l, l->read++));
        }
    }
}

static void lane_drop(net *n, net_lane *l)
{
    for (uint64_t i = l->delivered; i < l->sent; i++)
        copy_free(n, record_at(l, i));
    l->delivered = l->read = l->sent;
}

/* ---- connections ----------------------------------------------------------------------------- */

static kv_peer handle(const net *n, const net_conn *c, uint32_t end)
{
    return c->serial << 8 | (uint64_t)(c - n->conn) * 2 | end;
}

static net_conn *resolve(net_port *p, kv_peer peer, uint32_t *out_end)
{
    net_conn *c = &p->owner->conn[(peer & 0xff) / 2];
    *out_end = peer & 1;
    bool ours = peer != 0 && c->serial == peer >> 8 && c->end[*out_end].port == p->number;
    return ours && !c->end[*out_end].over ? c : NULL;
}

static void end_over(net *n, net_conn *c, uint32_t end)
{
    c->end[end].over = true;
    lane_drop(n, &c->lane[!end]); /* nobody is there to get it */
    lane_drop(n, &c->lane[end]);  /* nor its sender's memory */
    if (c->end[0].over && c->end[1].over) c->serial = 0;
}

static void closes_by(net_end *e, uint64_t at)
{
    if (at < e->closes_ns) e->closes_ns = at;
}

static status port_listen(kv_transport *t, const char *address, char out_bound[CLUSTER_ADDRESS_MAX])
{
    net_port *p = (net_port *)t;
    CHECK(p->address[0] == 0);
    snprintf(p->address, sizeof p->address, "%s", address);
    snprintf(out_bound, CLUSTER_ADDRESS_MAX, "%s", address);
    return STATUS_OK;
}

static uint64_t latency(net *n, const net_conn *c)
{
    const net_weather *w = &n->weather;
    uint64_t ns = w->latency_ns + c->extra_ns;
    return w->jitter_ns == 0 ? ns : ns + rng_below(n->random, w->jitter_ns);
}

static status port_dial(kv_transport *t, const char *address, kv_peer *out_peer)
{
    net_port *p = (net_port *)t;
    net *n = p->owner;
    uint32_t to = NET_PORTS, free = NET_CONNS;
    for (uint32_t i = 0; i < NET_PORTS; i++)
        if (strcmp(n->port[i].address, address) == 0) to = i;
    for (uint32_t i = NET_CONNS; i-- > 0;)
        if (n->conn[i].serial == 0) free = i;
    if (to == NET_PORTS) return STATUS_UNREACHABLE;
    if (free == NET_CONNS) return STATUS_BUSY;
    net_conn *c = &n->conn[free];
    c->serial = ++n->serial;
    c->extra_ns = n->weather.reorder_ns == 0 ? 0 : rng_below(n->random, n->weather.reorder_ns);
    n->events[NET_REORDERED] += c->extra_ns != 0;
    for (uint32_t e = 0; e < 2; e++) {
        net_record *kept = c->lane[e].record;
        c->lane[e] = (net_lane){.record = kept};
        c->end[e] = (net_end){
            .port = e == 0 ? p->number : to, .open_ns = net_never, .closes_ns = net_never};
    }
    c->end[1].open_ns = *n->now_ns + latency(n, c);
    if (!n->port[to].open) { /* the process is gone: refused, or no answer at all */
        c->end[1].over = true;
        if (rng_below(n->random, 2) == 0) c->end[0].closes_ns = *n->now_ns + latency(n, c);
    }
    *out_peer = handle(n, c, 0);
    return STATUS_OK;
}

static void port_hang_up(kv_transport *t, kv_peer peer)
{
    uint32_t end;
    net_port *p = (net_port *)t;
    net_conn *c = resolve(p, peer, &end);
    if (c == NULL) return;
    c->end[end].hung_up = true;
    closes_by(&c->end[end], *p->owner->now_ns);
    closes_by(&c->end[!end], *p->owner->now_ns + latency(p->owner, c));
}

void net_kill(net *n, uint32_t port, uint64_t notice_ns)
{
    n->port[port].open = false;
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        net_conn *c = &n->conn[i];
        for (uint32_t e = 0; e < 2 && c->serial != 0; e++) {
            if (c->end[e].port != port || c->end[e].over) continue;
            closes_by(&c->end[!e], *n->now_ns + notice_ns);
            end_over(n, c, e);
        }
    }
}

static void port_close(kv_transport *t)
{
    net_port *p = (net_port *)t;
    if (p->open) net_kill(p->owner, p->number, 0);
}

static void bad_until(net *n, uint32_t from, uint32_t to, uint64_t until_ns)
{
    if (until_ns > n->bad_ns[from][to]) n->bad_ns[from][to] = until_ns;
}

void net_break(net *n, uint32_t a, uint32_t b, uint64_t limit_ns)
{
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        net_conn *c = &n->conn[i];
        bool between = (c->end[0].port == a && c->end[1].port == b) ||
                       (c->end[0].port == b && c->end[1].port == a);
        if (c->serial == 0 || !between) continue;
        for (uint32_t e = 0; e < 2; e++) {
            closes_by(&c->end[e], *n->now_ns + rng_below(n->random, limit_ns + 1));
            lane_drop(n, &c->lane[e]);
        }
    }
    bad_until(n, a, b, *n->now_ns + limit_ns);
    bad_until(n, b, a, *n->now_ns + limit_ns);
}

void net_block(net *n, uint32_t from, uint32_t to, uint64_t until_ns)
{
    if (until_ns > n->blocked_ns[from][to]) n->blocked_ns[from][to] = until_ns;
    bad_until(n, from, to, until_ns);
}

void net_calm(net *n)
{
    net_weather old = n->weather;
    n->weather = (net_weather){.latency_ns = old.latency_ns, .window = NET_RECORDS};
    memset(n->blocked_ns, 0, sizeof n->blocked_ns);
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        net_conn *c = &n->conn[i];
        c->extra_ns = 0;
        for (uint32_t e = 0; e < 2; e++)
            if (c->serial != 0 && (c->end[!e].over || c->end[e].closes_ns != net_never ||
                                   c->end[!e].closes_ns != net_never))
                c->end[e].closes_ns = *n->now_ns;
    }
}

/* ---- sending --------------------------------------------------------------------------------- */

static bool drawn(net *n, double share)
{
    return share > 0 && rng_unit(n->random) < share;
}

static void weather_apply(net *n, const net_conn *c, uint32_t end, net_record *r)
{
    const net_weather *w = &n->weather;
    uint32_t from = c->end[end].port, to = c->end[!end].port;
    r->lost = drawn(n, w->drop);
    r->copies = drawn(n, w->duplicate) ? 2 : 1;
    r->flip = r->body_bytes != 0 && may_flip(kind_of(r)) && drawn(n, w->flip);
    bool spiked = drawn(n, w->spike);
    if (spiked) r->arrive_ns += rng_below(n->random, w->spike_ns);
    n->events[NET_DROPPED] += r->lost;
    n->events[NET_DUPLICATED] += r->copies == 2 && !r->lost;
    n->events[NET_FLIPPED] += r->flip && !r->lost;
    n->events[NET_SPIKED] += spiked;
    if (r->lost || r->flip || spiked) bad_until(n, from, to, r->arrive_ns);
}

static status port_send(kv_transport *t, kv_peer peer, const kv_message *m)
{
    net_port *p = (net_port *)t;
    net *n = p->owner;
    uint32_t end;
    net_conn *c = resolve(p, peer, &end);
    CHECK(m->head_bytes <= WIRE_HEAD_MAX && (m->body_bytes == 0) == (m->body == NULL));
    if (c == NULL || c->end[end].hung_up || c->end[end].closes_ns <= *n->now_ns)
        return STATUS_PEER_LOST;
    CHECK(c->end[end].opened);
    net_lane *l = &c->lane[end];
    uint64_t done = l->told < l->delivered ? l->told : l->delivered;
    if (l->sent - done >= n->weather.window || n->copies_free < NET_RECORDS) return STATUS_BUSY;
    net_record *r = record_at(l, l->sent);
    *r = (net_record){.body = m->body,
                      .cookie = m->cookie,
                      .flips = n->flips,
                      .head_bytes = m->head_bytes,
                      .body_bytes = m->body_bytes};
    memcpy(r->head, m->head, m->head_bytes);
    uint64_t line = n->weather.bytes_per_s == 0
                        ? 0
                        : (uint64_t)m->body_bytes * 1000000000 / n->weather.bytes_per_s;
    uint64_t flight = latency(n, c);
    r->arrive_ns = *n->now_ns + flight + line;
    if (r->arrive_ns < l->last_arrive_ns + line) r->arrive_ns = l->last_arrive_ns + line;
    weather_apply(n, c, end, r);
    l->last_arrive_ns = r->arrive_ns;
    r->read_ns = *n->now_ns + rng_below(n->random, r->arrive_ns - *n->now_ns + 1);
    r->told_ns = r->read_ns + rng_below(n->random, 2 * flight + 1);
    if (r->body_bytes != 0) r->digest = bytes_digest(r->body, r->body_bytes, NET_BODY_DIGEST_SEED);
    l->sent++;
    if (c->end[!end].over) { /* nobody is there; the sender will hear of it or give up */
        lane_drop(n, l);
    }
    n->messages++;
    if (n->tap.sent != NULL) n->tap.sent(n->tap.self, p->number, c->end[!end].port, m);
    return STATUS_OK;
}

/* ---- polling --------------------------------------------------------------------------------- */

static void tell_closed(net *n, net_port *p, net_conn *c, uint32_t end)
{
    kv_peer peer = handle(n, c, end);
    net_lane *out = &c->lane[end];
    status why = c->end[end].hung_up ? STATUS_OK : STATUS_PEER_LOST;
    bool told = c->end[end].opened || end == 0;
    closes_by(&c->end[!end], *n->now_ns + latency(n, c));
    uint64_t from = out->told, to = out->sent;
    end_over(n, c, end);
    for (; from < to; from++) { /* the cookies of records stay readable: nothing is sent any more */
        const net_record *r = record_at(out, from);
        if (r->body_bytes != 0) p->base.events->sent(p->base.owner, peer, r->cookie);
    }
    if (told) p->base.events->closed(p->base.owner, peer, why);
}

static bool tell_sent(net *n, net_port *p, net_conn *c, uint32_t end)
{
    net_lane *out = &c->lane[end];
    bool moved = false;
    while (out->told < out->read && record_at(out, out->told)->told_ns <= *n->now_ns) {
        const net_record *r = record_at(out, out->told++);
        moved = true;
        if (r->body_bytes == 0) continue;
        p->base.events->sent(p->base.owner, handle(n, c, end), r->cookie);
    }
    return moved;
}

static bool arrived(const net *n, const net_conn *c, uint32_t end)
{
    const net_lane *in = &c->lane[!end];
    uint32_t from = c->end[!end].port, to = c->end[end].port;
    return in->delivered < in->read && *n->now_ns >= n->blocked_ns[from][to] &&
           in->record[in->delivered % NET_RECORDS].arrive_ns <= *n->now_ns;
}

static void *land(net *n, net_port *p, net_conn *c, uint32_t end, const net_record *r)
{
    kv_message m = {.head = r->head, .head_bytes = r->head_bytes, .body_bytes = r->body_bytes};
    return p->base.events->land(p->base.owner, handle(n, c, end), &m);
}

static void land_part(net *n, net_port *p, net_record *r, uint32_t from, uint32_t to)
{
    memcpy(r->land + from, r->copy + from, to - from);
    if (n->tap.landed != NULL) n->tap.landed(n->tap.self, p->number, r->land);
}

/* The first half of a body is here before the whole message is: it goes where the owner says. */
static void land_half(net *n, net_port *p, net_conn *c, uint32_t end)
{
    net_lane *in = &c->lane[!end];
    if (in->delivered == in->read || p->base.events->land == NULL) return;
    net_record *r = record_at(in, in->delivered);
    if (r->land_asked || r->lost || r->copies != 1 || r->body_bytes < NET_LAND_MIN) return;
    if (*n->now_ns < n->blocked_ns[c->end[!end].port][c->end[end].port]) return;
    r->land_asked = true;
    r->land = land(n, p, c, end, r);
    if (r->land != NULL) land_part(n, p, r, 0, r->body_bytes / 2);
}

/* The other half, unless the owner wants it there no more; where the whole body is. */
static const void *land_rest(net *n, net_port *p, net_conn *c, uint32_t end, net_record *r)
{
    if (r->land == NULL) return r->copy;
    if (land(n, p, c, end, r) != r->land) return NULL;
    land_part(n, p, r, r->body_bytes / 2, r->body_bytes);
    return r->land;
}

static void deliver(net *n, net_port *p, net_conn *c, uint32_t end)
{
    net_lane *in = &c->lane[!end];
    net_record *r = record_at(in, in->delivered);
    kv_message m = {
        .head = r->head, .head_bytes = r->head_bytes, .body = r->copy, .body_bytes = r->body_bytes};
    if (!r->lost) m.body = land_rest(n, p, c, end, r);
    uint64_t serial = c->serial, at = in->delivered;
    for (uint32_t i = 0; i < r->copies && !r->lost; i++) {
        if (c->serial != serial || c->end[end].over || c->end[end].hung_up) return;
        if (n->tap.delivered != NULL)
            n->tap.delivered(n->tap.self, c->end[!end].port, p->number, &m);
        p->base.events->message(p->base.owner, handle(n, c, end), &m);
    }
    if (c->serial != serial || in->delivered != at) return;
    copy_free(n, r);
    in->delivered++;
}

static bool poll_open(net *n, net_port *p, net_conn *c, uint32_t end)
{
    net_end *e = &c->end[end];
    if (e->opened) return false;
    if (*n->now_ns < e->open_ns || *n->now_ns < n->blocked_ns[c->end[!end].port][p->number])
        return false;
    e->opened = true;
    if (end == 1) c->end[0].open_ns = *n->now_ns + latency(n, c);
    p->base.events->opened(p->base.owner, handle(n, c, end));
    return true;
}

static bool poll_end(net *n, net_port *p, net_conn *c, uint32_t end)
{
    if (c->end[end].closes_ns <= *n->now_ns) {
        tell_closed(n, p, c, end);
        return true;
    }
    uint64_t serial = c->serial;
    bool moved = poll_open(n, p, c, end);
    moved |= tell_sent(n, p, c, end);
    for (uint32_t i = 0; i < 16; i++) {
        if (c->serial != serial || !c->end[end].opened || c->end[end].hung_up) break;
        land_half(n, p, c, end);
        if (!arrived(n, c, end)) break;
        deliver(n, p, c, end);
        moved = true;
    }
    return moved;
}

static bool port_poll(kv_transport *t)
{
    net_port *p = (net_port *)t;
    net *n = p->owner;
    bool moved = false;
    uint32_t first = (uint32_t)rng_below(n->random, NET_CONNS);
    for (uint32_t k = 0; k < NET_CONNS; k++) {
        net_conn *c = &n->conn[(first + k) % NET_CONNS];
        for (uint32_t e = 0; e < 2; e++)
            if (c->serial != 0 && c->end[e].port == p->number && !c->end[e].over)
                moved |= poll_end(n, p, c, e);
    }
    return moved;
}

static void port_wait(kv_transport *t, int wake_fd, uint64_t ns_max)
{
    (void)t, (void)wake_fd, (void)ns_max; /* time passes in the simulator's loop only */
}

static uint64_t lane_next(const net *n, const net_conn *c, uint32_t end)
{
    const net_lane *l = &c->lane[end];
    uint64_t next = net_never;
    if (l->read < l->sent) next = l->record[l->read % NET_RECORDS].read_ns;
    if (l->told < l->read && l->record[l->told % NET_RECORDS].told_ns < next)
        next = l->record[l->told % NET_RECORDS].told_ns;
    if (l->delivered < l->read) {
        uint64_t at = l->record[l->delivered % NET_RECORDS].arrive_ns;
        uint64_t free = n->blocked_ns[c->end[end].port][c->end[!end].port];
        if (at < free) at = free;
        if (at < next) next = at;
    }
    return next;
}

uint64_t net_next(const net *n)
{
    uint64_t next = net_never;
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        const net_conn *c = &n->conn[i];
        for (uint32_t e = 0; e < 2 && c->serial != 0; e++) {
            const net_end *end = &c->end[e];
            uint64_t at = lane_next(n, c, e);
            if (!end->over && end->closes_ns < at) at = end->closes_ns;
            if (!end->over && !end->opened && end->open_ns < at) at = end->open_ns;
            if (at < next) next = at;
        }
    }
    return next;
}

uint32_t net_lent(const net *n, uint32_t port)
{
    uint32_t lent = 0;
    for (uint32_t i = 0; i < NET_CONNS; i++) {
        const net_conn *c = &n->conn[i];
        for (uint32_t e = 0; e < 2 && c->serial != 0; e++) {
            const net_lane *l = &c->lane[e];
            if (c->end[e].port != port || c->end[e].over) continue;
            for (uint64_t k = l->told; k < l->sent; k++)
                lent += l->record[k % NET_RECORDS].body_bytes != 0;
        }
    }
    return lent;
}

uint32_t net_conns(const net *n, uint32_t port, bool heard_of)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < NET_CONNS; i++)
        for (uint32_t e = 0; e < 2 && n->conn[i].serial != 0; e++)
            count += n->conn[i].end[e].port == port && !n->conn[i].end[e].over &&
                     (n->conn[i].end[e].opened || !heard_of);
    return count;
}

static const kv_transport_ops net_ops = {
    .listen = port_listen,
    .dial = port_dial,
    .send = port_send,
    .hang_up = port_hang_up,
    .poll = port_poll,
    .wait = port_wait,
    .close = port_close,
};
