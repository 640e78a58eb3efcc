/* kvstore/transport_local.c - a network inside this process, for tests, embedding and what-if runs.
 *
 * A hub holds a fixed number of links. A link has two ends and, each way, an array of records that
 * the sender fills and the receiver empties: `sent` and `delivered` are the only words they share,
 * so the data path has no lock. Dialling, accepting and freeing a link take the hub's mutex (a leaf
 * in the lock order). Bodies are lent, not copied: the receiver reads the sender's memory inside
 * its poll and then counts the record as delivered, whereupon the sender's poll raises `sent`. A
 * body reused too early is therefore seen as corruption, which is what tests want.
 *
 * Card: a hub may have threads that write bodies into the memory that the receiver's owner names
 * (kv_events.land), as soon as the receiver has seen the record; it is delivered when it is due and
 * written. `posted` counts the records whose owner was asked, `claimed` those that a thread of the
 * card took up and `finished` those that it is done with; a record's `copy` says who may write its
 * body. Only for who dialled: a node lands one body at a time. Peers are trusted to answer once.
 *
 * Pacing: a record leaves when the sender's line is free, takes bytes / rate on it, travels rtt / 2
 * and takes the receiver's line for the same time. Both lines are one a transport, so many nodes
 * answering one worker share its line, as with one network card.
 *
 * It does not reorder, lose or delay beyond that: faults are the server's and the simulator's. */
#include "kvstore/transport.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    CABLES_MAX = 256,    /* connections of one hub */
    LISTENERS_MAX = 128, /* transports that listen */
    RECORDS = 128,       /* messages in flight one way on one cable; a power of two */
    DELIVER_MAX = 64,    /* a link and poll: others get their turn */
};

typedef enum copy_state {
    COPY_NONE,    /* the body is read where it lies */
    COPY_POSTED,  /* may be written to `into` */
    COPY_WRITING, /* by a thread of the card */
    COPY_WRITTEN,
} copy_state;

typedef struct record {
    uint64_t arrive_ns; /* when it has crossed sender's line and wire; 0: no pacing */
    uint64_t cookie;
    const void *body;
    uint32_t head_bytes, body_bytes;
    void *into; /* the receiver's, as the next */
    _Atomic copy_state copy;
    alignas(8) uint8_t head[WIRE_HEAD_MAX];
} record;

typedef struct lane {
    alignas(64) _Atomic uint64_t sent;      /* written by the sender */
    alignas(64) _Atomic uint64_t delivered; /* written by the receiver */
    alignas(64) uint64_t acked;             /* the sender's: `sent` raised up to here */
    record *records;                        /* [RECORDS] */
    alignas(64) _Atomic uint64_t posted;    /* written by the receiver */
    alignas(64) _Atomic uint64_t claimed;   /* by the card, as the next */
    _Atomic uint64_t finished;
} lane;

typedef struct local local;

typedef struct link_end {
    local *owner;
    atomic_bool closed; /* hung up, or its transport closed */
    atomic_int busy;    /* > 0: touching the other end's memory just now */
    bool opened_told;   /* the owner's thread only */
    atomic_bool gone;   /* `closed` was told (or nobody is left to tell): the end is finished */
} link_end;

typedef struct cable {
    _Atomic uint32_t generation; /* of the link's present use; 0: free */
    atomic_bool accepted;
    link_end end[2]; /* 0: who dialled, 1: who listens */
    lane lane[2];    /* [i]: from end i to the other */
} cable;

typedef struct listener {
    char address[CLUSTER_ADDRESS_MAX];
    local *owner; /* NULL: free */
} listener;

struct kv_hub {
    pthread_mutex_t lock;
    clock_ops clock;
    _Atomic uint64_t rtt_ns, bytes_per_s;
    uint32_t generation, port;
    _Atomic uint32_t cables_used; /* links [0, cables_used) were ever used */
    uint32_t card_threads;        /* 0: no card */
    pthread_t card[KV_CARD_THREADS_MAX];
    atomic_bool card_stop;
    cable cable[CABLES_MAX];
    listener listener[LISTENERS_MAX];
};

struct local {
    kv_transport base;
    kv_hub *hub;
    int wake_fd;
    atomic_bool asleep;
    uint64_t tx_free_ns, rx_free_ns;
};

static const kv_transport_ops local_ops;

kv_hub *kv_hub_create(arena *a, clock_ops clock, uint64_t rtt_ns, uint64_t bytes_per_s)
{
    kv_hub *hub = ARENA_NEW(a, kv_hub, 1);
    hub->clock = clock;
    hub->rtt_ns = rtt_ns;
    hub->bytes_per_s = bytes_per_s;
    CHECK(pthread_mutex_init(&hub->lock, NULL) == 0);
    for (uint32_t i = 0; i < CABLES_MAX; i++)
        for (uint32_t e = 0; e < 2; e++)
            hub->cable[i].lane[e].records = ARENA_NEW(a, record, RECORDS);
    return hub;
}

void kv_hub_pace(kv_hub *hub, uint64_t rtt_ns, uint64_t bytes_per_s)
{
    CHECK(hub != NULL);
    atomic_store(&hub->rtt_ns, rtt_ns);
    atomic_store(&hub->bytes_per_s, bytes_per_s);
}

status kv_transport_local_open(arena *a, kv_hub *hub, kv_transport **out_transport)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) return FAIL(IO, "no eventfd for the in-process network: %s", strerror(errno));
    local *t = ARENA_NEW(a, local, 1);
    t->base.ops = &local_ops;
    t->hub = hub;
    t->wake_fd = fd;
    *out_transport = &t->base;
    return STATUS_OK;
}

/* ---- handles --------------------------------------------------------------------------------- */

static kv_peer handle(const kv_hub *hub, const cable *l, uint32_t end)
{
    uint64_t index = (uint64_t)(l - hub->cable) * 2 + end;
    return (uint64_t)l->generation << 16 | (index + 1);
}

/* The link and end a handle names; NULL when that connection is over. */
static cable *resolve(local *t, kv_peer peer, uint32_t *out_end)
{
    uint64_t index = (peer & 0xffff) - 1;
    CHECK(peer != 0 && index < UINT64_C(2) * CABLES_MAX);
    cable *l = &t->hub->cable[index / 2];
    *out_end = index % 2;
    if (l->generation != (uint32_t)(peer >> 16)) return NULL;
    if (l->end[*out_end].owner != t || l->end[*out_end].gone) return NULL;
    return l;
}

static void wake(local *t)
{
    if (!atomic_load(&t->asleep)) return;
    uint64_t one = 1;
    ssize_t n = write(t->wake_fd, &one, sizeof one);
    CHECK(n == sizeof one || errno == EAGAIN); /* EAGAIN: it is awake by then */
}

/* ---- control: listen, dial, hang up, close --------------------------------------------------- */

static status local_listen(kv_transport *base, const char *address,
                           char out_bound[CLUSTER_ADDRESS_MAX])
{
    local *t = (local *)base;
    kv_hub *hub = t->hub;
    listener *place = NULL;
    bool taken = false;
    char bound[CLUSTER_ADDRESS_MAX];
    size_t length = strlen(address);
    CHECK(length < sizeof bound);
    pthread_mutex_lock(&hub->lock);
    if (length >= 2 && strcmp(address + length - 2, ":0") == 0)
        snprintf(bound, sizeof bound, "%.*s:%u", (int)(length - 2), address, 40000 + hub->port++);
    else
        snprintf(bound, sizeof bound, "%s", address);
    for (uint32_t i = 0; i < LISTENERS_MAX; i++) {
        listener *l = &hub->listener[i];
        if (l->owner == NULL && place == NULL) place = l;
        if (l->owner != NULL && strcmp(l->address, bound) == 0) taken = true;
    }
    if (!taken && place != NULL) {
        memcpy(place->address, bound, sizeof bound);
        place->owner = t;
    }
    pthread_mutex_unlock(&hub->lock);
    if (taken) return FAIL(IO, "cannot listen on %s: the address is in use", bound);
    if (place == NULL) return FAIL(BUSY, "the in-process network has no more listeners");
    memcpy(out_bound, bound, sizeof bound);
    return STATUS_OK;
}

static void link_init(kv_hub *hub, cable *l, local *from, local *to)
{
    l->generation = ++hub->generation;
    atomic_store(&l->accepted, false);
    for (uint32_t e = 0; e < 2; e++) {
        link_end *end = &l->end[e];
        end->owner = e == 0 ? from : to;
        atomic_store(&end->closed, false);
        atomic_store(&end->busy, 0);
        end->opened_told = false;
        atomic_store(&end->gone, false);
        atomic_store(&l->lane[e].sent, 0);
        atomic_store(&l->lane[e].delivered, 0);
        l->lane[e].acked = 0;
        atomic_store(&l->lane[e].posted, 0); /* before `claimed`: card_write reads that first */
        atomic_store(&l->lane[e].claimed, 0);
        atomic_store(&l->lane[e].finished, 0);
    }
}

static status local_dial(kv_transport *base, const char *address, kv_peer *out_peer)
{
    local *t = (local *)base;
    kv_hub *hub = t->hub;
    local *to = NULL;
    cable *l = NULL;
    pthread_mutex_lock(&hub->lock);
    for (uint32_t i = 0; i < LISTENERS_MAX; i++)
        if (hub->listener[i].owner != NULL && strcmp(hub->listener[i].address, address) == 0)
            to = hub->listener[i].owner;
    for (uint32_t i = 0; i < CABLES_MAX && l == NULL; i++)
        if (hub->cable[i].generation == 0) l = &hub->cable[i];
    if (l != NULL && to != NULL) {
        link_init(hub, l, t, to);
        uint32_t index = (uint32_t)(l - hub->cable);
        if (index >= hub->cables_used) hub->cables_used = index + 1;
        *out_peer = handle(hub, l, 0);
    }
    pthread_mutex_unlock(&hub->lock);
    if (to == NULL) return STATUS_UNREACHABLE; /* nobody there: as a refused connection */
    if (l == NULL) return STATUS_BUSY;
    wake(to);
    return STATUS_OK;
}

static void local_hang_up(kv_transport *base, kv_peer peer)
{
    uint32_t end;
    cable *l = resolve((local *)base, peer, &end);
    if (l == NULL) return;
    kv_hub *hub = l->end[end].owner->hub;
    pthread_mutex_lock(&hub->lock);
    atomic_store(&l->end[end].closed, true);
    if (!l->end[!end].gone) wake(l->end[!end].owner);
    pthread_mutex_unlock(&hub->lock);
}

/* Both ends finished: the link can be used again. Under the lock. */
static void link_free_if_over(cable *l)
{
    if (l->generation != 0 && l->end[0].gone && l->end[1].gone) l->generation = 0;
}

/* Nothing is read from the sender's memory or written to the receiver's by the card. */
static bool card_rests(const cable *l)
{
    return atomic_load(&l->lane[0].finished) == atomic_load(&l->lane[0].posted) &&
           atomic_load(&l->lane[1].finished) == atomic_load(&l->lane[1].posted);
}

/* End one end of ours. Under the lock, but not while the other side or the card is at work between:
 * the other side may read our memory, in an event of its owner that hangs up and so wants the lock.
 * The link stays, since we are not gone yet. Once closed it posts nothing more. */
static void end_close(kv_hub *hub, cable *l, uint32_t end)
{
    link_end *me = &l->end[end], *other = &l->end[!end];
    atomic_store(&me->closed, true);
    pthread_mutex_unlock(&hub->lock);
    while (atomic_load(&other->busy) || !card_rests(l))
        sched_yield(); /* microseconds */
    pthread_mutex_lock(&hub->lock);
    atomic_store(&me->gone, true);
    if (!other->gone) wake(other->owner);
    link_free_if_over(l);
}

/* Links of other transports come and go meanwhile; what is ours changes only under our hands,
 * except that a dial to us may appear: the lock orders it. */
static bool is_ours(local *t, cable *l, uint32_t end)
{
    return l->generation != 0 && l->end[end].owner == t && !l->end[end].gone;
}

static void local_close(kv_transport *base)
{
    local *t = (local *)base;
    kv_hub *hub = t->hub;
    pthread_mutex_lock(&hub->lock);
    for (uint32_t i = 0; i < LISTENERS_MAX; i++)
        if (hub->listener[i].owner == t) hub->listener[i].owner = NULL;
    for (uint32_t i = 0; i < hub->cables_used; i++)
        for (uint32_t e = 0; e < 2; e++)
            if (is_ours(t, &hub->cable[i], e)) end_close(hub, &hub->cable[i], e);
    pthread_mutex_unlock(&hub->lock);
    close(t->wake_fd);
}

/* ---- data ------------------------------------------------------------------------------------ */

static uint64_t line_ns(const kv_hub *hub, uint64_t bytes)
{
    uint64_t rate = atomic_load_explicit(&hub->bytes_per_s, memory_order_relaxed);
    return rate == 0 ? 0 : bytes * 1000000000 / rate;
}

/* When a message sent now has arrived; moves the sender's line on. 0: no pacing. */
static uint64_t arrival(local *t, uint64_t bytes)
{
    const kv_hub *hub = t->hub;
    if (hub->rtt_ns == 0 && hub->bytes_per_s == 0) return 0;
    uint64_t now = clock_now(&hub->clock);
    if (t->tx_free_ns < now) t->tx_free_ns = now;
    t->tx_free_ns += line_ns(hub, bytes);
    return t->tx_free_ns + hub->rtt_ns / 2;
}

static status push(local *t, cable *l, uint32_t end, const kv_message *message)
{
    lane *out = &l->lane[end];
    uint64_t sent = atomic_load_explicit(&out->sent, memory_order_relaxed);
    if (l->end[end].closed || l->end[!end].closed) return STATUS_PEER_LOST;
    if (sent - out->acked == RECORDS) return STATUS_BUSY;
    record *r = &out->records[sent % RECORDS];
    r->arrive_ns = arrival(t, message->head_bytes + message->body_bytes);
    r->cookie = message->cookie;
    r->body = message->body;
    r->body_bytes = message->body_bytes;
    r->head_bytes = message->head_bytes;
    memcpy(r->head, message->head, message->head_bytes);
    atomic_store_explicit(&out->sent, sent + 1, memory_order_seq_cst);
    wake(l->end[!end].owner);
    return STATUS_OK;
}

static status local_send(kv_transport *base, kv_peer peer, const kv_message *message)
{
    uint32_t end;
    cable *l = resolve((local *)base, peer, &end);
    CHECK(message->head_bytes <= WIRE_HEAD_MAX);
    if (l == NULL) return STATUS_PEER_LOST;
    atomic_fetch_add(&l->end[end].busy, 1); /* the other end stays until this is done */
    status result = push((local *)base, l, end, message);
    atomic_fetch_sub(&l->end[end].busy, 1);
    return result;
}

/* When a record may be delivered: it has arrived and our line has taken it. 0: no pacing. */
static uint64_t due_at(const local *t, const record *r)
{
    uint64_t due = r->arrive_ns;
    if (due == 0 || t->hub->bytes_per_s == 0) return due;
    uint64_t taken = t->rx_free_ns + line_ns(t->hub, r->head_bytes + r->body_bytes);
    return taken > due ? taken : due;
}

static uint32_t ours(local *t, uint16_t list[2 * CABLES_MAX])
{
    uint32_t count = 0;
    pthread_mutex_lock(&t->hub->lock);
    for (uint32_t i = 0; i < t->hub->cables_used; i++)
        for (uint32_t e = 0; e < 2; e++)
            if (is_ours(t, &t->hub->cable[i], e)) list[count++] = (uint16_t)(i * 2 + e);
    pthread_mutex_unlock(&t->hub->lock);
    return count;
}

/* ---- the card -------------------------------------------------------------------------------- */

static bool lands(const local *t, uint32_t end)
{
    return t->hub->card_threads > 0 && end == 0 && t->base.events->land != NULL;
}

/* Ask the owner where the bodies of new records shall go. */
static void post(local *t, cable *l, uint32_t end)
{
    lane *in = &l->lane[!end];
    link_end *me = &l->end[end];
    uint64_t posted = atomic_load_explicit(&in->posted, memory_order_relaxed);
    uint64_t sent = atomic_load_explicit(&in->sent, memory_order_seq_cst);
    if (posted == sent) return;
    atomic_fetch_add(&me->busy, 1);
    bool open = !atomic_load(&l->end[!end].closed) && !atomic_load(&me->closed);
    for (; open && posted != sent; posted++) {
        record *r = &in->records[posted % RECORDS];
        kv_message m = {.head = r->head, .head_bytes = r->head_bytes, .body_bytes = r->body_bytes};
        r->into = NULL;
        if (r->body_bytes != 0)
            r->into = t->base.events->land(t->base.owner, handle(t->hub, l, end), &m);
        copy_state copy = r->into != NULL ? COPY_POSTED : COPY_NONE;
        atomic_store_explicit(&r->copy, copy, memory_order_release);
    }
    atomic_store_explicit(&in->posted, posted, memory_order_seq_cst);
    atomic_fetch_sub(&me->busy, 1);
}

/* Write the next body of a lane. A record that was claimed late may have been taken back, delivered
 * and filled again meanwhile: whatever is posted there may be written. */
static bool card_write(lane *in)
{
    uint64_t claimed = atomic_load_explicit(&in->claimed, memory_order_acquire);
    if (claimed >= atomic_load_explicit(&in->posted, memory_order_acquire)) return false;
    if (!atomic_compare_exchange_strong(&in->claimed, &claimed, claimed + 1)) return true;
    record *r = &in->records[claimed % RECORDS];
    copy_state posted = COPY_POSTED;
    if (atomic_compare_exchange_strong(&r->copy, &posted, COPY_WRITING)) {
        memcpy(r->into, r->body, r->body_bytes);
        atomic_store_explicit(&r->copy, COPY_WRITTEN, memory_order_release);
    }
    atomic_fetch_add(&in->finished, 1);
    return true;
}

static void *card_main(void *argument)
{
    kv_hub *hub = argument;
    while (!atomic_load_explicit(&hub->card_stop, memory_order_relaxed)) {
        bool wrote = false;
        uint32_t cables = atomic_load_explicit(&hub->cables_used, memory_order_relaxed);
        for (uint32_t i = 0; i < cables; i++)
            wrote |= card_write(&hub->cable[i].lane[1]);
        if (!wrote) sched_yield();
    }
    return NULL;
}

status kv_hub_card_start(kv_hub *hub, uint32_t threads)
{
    CHECK(hub->card_threads == 0 && hub->cables_used == 0);
    CHECK(threads > 0 && threads <= KV_CARD_THREADS_MAX);
    atomic_store(&hub->card_stop, false);
    for (; hub->card_threads < threads; hub->card_threads++) {
        if (pthread_create(&hub->card[hub->card_threads], NULL, card_main, hub) == 0) continue;
        kv_hub_card_stop(hub);
        return FAIL(NO_MEMORY, "no thread for the network card of the in-process network");
    }
    return STATUS_OK;
}

void kv_hub_card_stop(kv_hub *hub)
{
    for (uint32_t i = 0; i < hub->cables_used; i++)
        CHECK(hub->cable[i].generation == 0);
    atomic_store(&hub->card_stop, true);
    while (hub->card_threads > 0)
        (void)pthread_join(hub->card[--hub->card_threads], NULL);
}

/* The body is read where it lies, when it is delivered. */
static void take_back(record *r)
{
    copy_state posted = COPY_POSTED;
    if (!atomic_compare_exchange_strong(&r->copy, &posted, COPY_NONE)) {
        while (atomic_load_explicit(&r->copy, memory_order_acquire) == COPY_WRITING)
            sched_yield(); /* a copy's time */
        atomic_store_explicit(&r->copy, COPY_NONE, memory_order_relaxed);
    }
    r->into = NULL;
}

static void local_recall(kv_transport *base, const void *memory)
{
    local *t = (local *)base;
    if (!lands(t, 0)) return;
    uint16_t list[2 * CABLES_MAX];
    uint32_t count = ours(t, list);
    for (uint32_t i = 0; i < count; i++) {
        lane *in = &t->hub->cable[list[i] / 2].lane[1];
        uint64_t posted = list[i] % 2 == 0 ? atomic_load(&in->posted) : 0;
        for (uint64_t n = atomic_load(&in->delivered); n < posted; n++) {
            record *r = &in->records[n % RECORDS];
            if (r->into == memory) take_back(r);
        }
    }
}

/* ---- delivery -------------------------------------------------------------------------------- */

/* Deliver the next record if one has arrived. */
static bool deliver_one(local *t, cable *l, uint32_t end, uint64_t now)
{
    lane *in = &l->lane[!end];
    link_end *me = &l->end[end];
    uint64_t next = atomic_load_explicit(&in->delivered, memory_order_relaxed);
    if (next == atomic_load_explicit(&in->sent, memory_order_seq_cst)) return false;
    if (lands(t, end) && next == atomic_load_explicit(&in->posted, memory_order_relaxed))
        return false;
    record *r = &in->records[next % RECORDS];
    copy_state copy = atomic_load_explicit(&r->copy, memory_order_acquire);
    uint64_t due = due_at(t, r);
    if (now < due || copy == COPY_POSTED || copy == COPY_WRITING) return false;
    if (due != 0) t->rx_free_ns = due;
    atomic_fetch_add(&me->busy, 1);
    bool open = !atomic_load(&l->end[!end].closed) && !atomic_load(&me->closed);
    if (open) {
        kv_message m = {
            .head = r->head,
            .head_bytes = r->head_bytes,
            .body = copy == COPY_WRITTEN ? r->into : r->body,
            .body_bytes = r->body_bytes,
        };
        t->base.events->message(t->base.owner, handle(t->hub, l, end), &m);
        if (copy == COPY_WRITTEN) take_back(r);
        atomic_store_explicit(&in->delivered, next + 1, memory_order_seq_cst);
    }
    if (open) wake(l->end[!end].owner);
    atomic_fetch_sub(&me->busy, 1);
    return open;
}

/* Tell `closed` once nobody reads our memory any more; then the end is finished. */
static bool finish_end(local *t, cable *l, uint32_t end)
{
    link_end *me = &l->end[end], *other = &l->end[!end];
    if (!atomic_load(&me->closed) && !atomic_load(&other->closed)) return false;
    status why = atomic_load(&me->closed) ? STATUS_OK : STATUS_PEER_LOST;
    atomic_store(&me->closed, true);
    if (atomic_load(&other->busy) || !card_rests(l)) return true; /* next poll */
    kv_peer peer = handle(t->hub, l, end);
    bool told =
        me->opened_told || end == 0; /* a dial that was never heard of ends in `closed` too */
    atomic_store(&me->gone, true);
    lane *out = &l->lane[end];
    for (; out->acked != out->sent; out->acked++) {
        const record *r = &out->records[out->acked % RECORDS];
        if (r->body_bytes != 0) t->base.events->sent(t->base.owner, peer, r->cookie);
    }
    if (told) t->base.events->closed(t->base.owner, peer, why);
    pthread_mutex_lock(&t->hub->lock);
    if (!other->gone) wake(other->owner);
    link_free_if_over(l);
    pthread_mutex_unlock(&t->hub->lock);
    return true;
}

static bool poll_end(local *t, cable *l, uint32_t end, uint64_t now)
{
    link_end *me = &l->end[end];
    if (finish_end(t, l, end)) return true;
    bool moved = false;
    if (!me->opened_told && (end == 1 || atomic_load(&l->accepted))) {
        me->opened_told = moved = true;
        if (end == 1) {
            atomic_store(&l->accepted, true);
            pthread_mutex_lock(&t->hub->lock);
            if (!l->end[0].gone) wake(l->end[0].owner);
            pthread_mutex_unlock(&t->hub->lock);
        }
        t->base.events->opened(t->base.owner, handle(t->hub, l, end));
    }
    lane *out = &l->lane[end];
    while (out->acked != atomic_load(&out->delivered)) {
        const record *r = &out->records[out->acked % RECORDS];
        uint64_t cookie = r->cookie;
        bool body = r->body_bytes != 0;
        out->acked++; /* the record may be filled again by a send from within the event */
        if (body) t->base.events->sent(t->base.owner, handle(t->hub, l, end), cookie);
        moved = true;
    }
    if (lands(t, end) && me->opened_told) post(t, l, end);
    for (uint32_t i = 0; i < DELIVER_MAX && me->opened_told; i++) {
        if (!deliver_one(t, l, end, now)) break;
        moved = true;
    }
    return moved;
}

static bool local_poll(kv_transport *base)
{
    local *t = (local *)base;
    uint16_t list[2 * CABLES_MAX];
    uint32_t count = ours(t, list);
    uint64_t now = clock_now(&t->hub->clock); /* also unpaced: what was paced may be under way */
    bool moved = false;
    for (uint32_t i = 0; i < count; i++) {
        cable *l = &t->hub->cable[list[i] / 2];
        if (is_ours(t, l, list[i] % 2)) moved |= poll_end(t, l, list[i] % 2, now);
    }
    return moved;
}

/* Nanoseconds until poll finds something; 0: now. */
static uint64_t due_in(local *t, uint64_t now)
{
    uint16_t list[2 * CABLES_MAX];
    uint32_t count = ours(t, list);
    uint64_t soonest = UINT64_MAX;
    for (uint32_t i = 0; i < count; i++) {
        cable *l = &t->hub->cable[list[i] / 2];
        uint32_t end = list[i] % 2;
        lane *in = &l->lane[!end], *out = &l->lane[end];
        if (l->end[0].closed || l->end[1].closed) return 0;
        if (!l->end[end].opened_told && (end == 1 || l->accepted)) return 0;
        if (out->acked != out->delivered) return 0;
        if (in->delivered == in->sent) continue;
        if (lands(t, end) && in->posted != in->sent) return 0;
        uint64_t due = due_at(t, &in->records[in->delivered % RECORDS]);
        if (due <= now) return 0;
        if (due - now < soonest) soonest = due - now;
    }
    return soonest;
}

static void local_wait(kv_transport *base, int wake_fd, uint64_t ns_max)
{
    local *t = (local *)base;
    atomic_store(&t->asleep, true);
    uint64_t ns = due_in(t, clock_now(&t->hub->clock));
    if (ns > ns_max) ns = ns_max;
    if (ns != 0) kv_sleep(t->wake_fd, wake_fd, ns);
    atomic_store(&t->asleep, false);
    uint64_t drained;
    ssize_t n = read(t->wake_fd, &drained, sizeof drained);
    CHECK(n == sizeof drained || errno == EAGAIN || errno == EINTR);
}

static const kv_transport_ops local_ops = {
    .listen = local_listen,
    .dial = local_dial,
    .send = local_send,
    .hang_up = local_hang_up,
    .poll = local_poll,
    .wait = local_wait,
    .close = local_close,
    .recall = local_recall,
};
