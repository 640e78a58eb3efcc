#include "tests/kvstore/peer.h"

static status peer_listen(kv_transport *t, const char *address, char bound[CLUSTER_ADDRESS_MAX])
{
    (void)t;
    snprintf(bound, CLUSTER_ADDRESS_MAX, "%s", address);
    return STATUS_OK;
}

static status peer_dial(kv_transport *t, const char *address, kv_peer *out_peer)
{
    peer *p = (peer *)t;
    if (p->dials == PEER_CONNS) return STATUS_BUSY;
    snprintf(p->address[p->dials++], CLUSTER_ADDRESS_MAX, "%s", address);
    *out_peer = p->dialled = p->dials;
    return STATUS_OK;
}

static status peer_send(kv_transport *t, kv_peer who, const kv_message *m)
{
    peer *p = (peer *)t;
    if (p->full || who == p->full_to) return STATUS_BUSY;
    CHECK(p->count < PEER_SENT_MAX && m->head_bytes <= WIRE_HEAD_MAX);
    peer_sent *s = &p->sent[p->count++];
    *s = (peer_sent){.to = who, .cookie = m->cookie, .body_bytes = m->body_bytes};
    memcpy(s->head, m->head, m->head_bytes);
    s->kind = (wire_kind)s->head[0];
    return STATUS_OK;
}

static void peer_hang_up(kv_transport *t, kv_peer who)
{
    peer *p = (peer *)t;
    p->hung_up = who;
    p->hang_ups++;
}

static bool peer_poll(kv_transport *t)
{
    peer *p = (peer *)t;
    for (; p->told < p->count && !p->hold; p->told++)
        if (p->sent[p->told].body_bytes != 0)
            t->events->sent(t->owner, p->sent[p->told].to, p->sent[p->told].cookie);
    return false;
}

static void peer_wait(kv_transport *t, int wake_fd, uint64_t ns)
{
    (void)wake_fd;
    ((peer *)t)->waited_ns = ns;
}

static void peer_close(kv_transport *t)
{
    (void)t;
}

static void peer_recall(kv_transport *t, const void *memory)
{
    ((peer *)t)->recalled = memory;
    ((peer *)t)->recalls++;
}

static const kv_transport_ops peer_ops = {.listen = peer_listen,
                                          .dial = peer_dial,
                                          .send = peer_send,
                                          .hang_up = peer_hang_up,
                                          .poll = peer_poll,
                                          .wait = peer_wait,
                                          .close = peer_close,
                                          .recall = peer_recall};

static uint64_t peer_now(void *self)
{
    peer *p = self;
    return p->now_ns += p->tick_ns;
}

void peer_init(peer *p)
{
    memset(p, 0, sizeof *p);
    p->base.ops = &peer_ops;
    p->now_ns = UINT64_C(1000000000);
    p->clock = (clock_ops){peer_now, p};
}

void peer_opened(peer *p, kv_peer who)
{
    p->base.events->opened(p->base.owner, who);
}

void peer_closed(peer *p, kv_peer who)
{
    p->base.events->closed(p->base.owner, who, STATUS_PEER_LOST);
}

void peer_says(peer *p, kv_peer who, wire_kind kind, void *head, uint32_t head_bytes,
               uint64_t request, const void *body, uint32_t body_bytes)
{
    wire_head_set(head, kind, request, body_bytes);
    kv_message m = {head, head_bytes, body, body_bytes, 0};
    p->base.events->message(p->base.owner, who, &m);
}

void *peer_land(peer *p, kv_peer who, wire_kind kind, void *head, uint32_t head_bytes,
                uint64_t request, uint32_t body_bytes)
{
    wire_head_set(head, kind, request, body_bytes);
    kv_message m = {head, head_bytes, NULL, body_bytes, 0};
    return p->base.events->land(p->base.owner, who, &m);
}

const peer_sent *peer_last(const peer *p, kv_peer who, wire_kind kind, uint32_t from)
{
    for (uint32_t i = p->count; i > from; i--)
        if (p->sent[i - 1].kind == kind && (who == 0 || p->sent[i - 1].to == who))
            return &p->sent[i - 1];
    return NULL;
}

uint32_t peer_count(const peer *p, kv_peer who, wire_kind kind, uint32_t from)
{
    uint32_t count = 0;
    for (uint32_t i = from; i < p->count; i++)
        count += p->sent[i].kind == kind && (who == 0 || p->sent[i].to == who);
    return count;
}
