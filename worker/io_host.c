/* Host slots: staging of prefill, copies of sealed blocks until R nodes have them, host tier.
 *
 * A slot's life: FREE (or the step thread's) -> DIRTY -> PUT -> CLEAN -> FREE. It is freed only
 * when nothing reads it (pins), prefill has let go (hold) and, for dirty ones, the context was
 * forgotten. Without a store a sealed slot is CLEAN at once and stays until the context is
 * forgotten. */
#include <string.h>

#include "worker/io_impl.h"

kern_home *io_home(const worker_io *io, int32_t seq, int32_t layer, int32_t kv_head, int32_t block)
{
    const io_config *c = &io->config;
    return &c->shared
                .home[(((size_t)seq * c->layers + (size_t)layer) * c->kv_heads + (size_t)kv_head) *
                          c->max_blocks +
                      (size_t)block];
}

static kern_home *home_of(const worker_io *io, const host_slot *slot)
{
    return io_home(io, slot->seq, slot->layer, slot->kv_head, slot->block);
}

static void list_push(worker_io *io, slot_list *list, int32_t s)
{
    host_slot *slot = &io->slot[s];
    slot->prev = list->tail;
    slot->next = IO_NONE;
    if (list->tail != IO_NONE)
        io->slot[list->tail].next = s;
    else
        list->head = s;
    list->tail = s;
    list->count++;
}

static void list_remove(worker_io *io, slot_list *list, int32_t s)
{
    host_slot *slot = &io->slot[s];
    if (slot->prev != IO_NONE)
        io->slot[slot->prev].next = slot->next;
    else
        list->head = slot->next;
    if (slot->next != IO_NONE)
        io->slot[slot->next].prev = slot->prev;
    else
        list->tail = slot->prev;
    slot->prev = slot->next = IO_NONE;
    CHECK(list->count > 0);
    list->count--;
}

static slot_list *list_of(worker_io *io, const host_slot *slot)
{
    if (slot->state == SLOT_DIRTY) return &io->dirty;
    if (slot->state == SLOT_PUT) return &io->putting;
    return slot->hold ? &io->held : &io->clean;
}

static void slot_move(worker_io *io, int32_t s, slot_state state, bool hold)
{
    host_slot *slot = &io->slot[s];
    list_remove(io, list_of(io, slot), s);
    slot->state = state;
    slot->hold = hold;
    list_push(io, list_of(io, slot), s);
}

/* Prefill reads it no more. */
static void slot_unhold(worker_io *io, int32_t s)
{
    if (io->slot[s].hold) slot_move(io, s, io->slot[s].state, false);
}

static void seq_push(worker_io *io, int32_t s)
{
    host_slot *slot = &io->slot[s];
    int32_t *first = &io->of_seq[slot->seq];
    slot->seq_prev = IO_NONE;
    slot->seq_next = *first;
    if (*first != IO_NONE) io->slot[*first].seq_prev = s;
    *first = s;
}

static void seq_remove(worker_io *io, int32_t s)
{
    const host_slot *slot = &io->slot[s];
    if (slot->seq_next != IO_NONE) io->slot[slot->seq_next].seq_prev = slot->seq_prev;
    *(slot->seq_prev != IO_NONE ? &io->slot[slot->seq_prev].seq_next : &io->of_seq[slot->seq]) =
        slot->seq_next;
}

/* The slot leaves the io side; nothing may refer to it any more. */
static void slot_free(worker_io *io, int32_t s)
{
    host_slot *slot = &io->slot[s];
    CHECK(slot->pins == 0 && slot->state != SLOT_PUT && slot->state != SLOT_FREE);
    list_remove(io, list_of(io, slot), s);
    seq_remove(io, s);
    kern_home *home = home_of(io, slot);
    if (atomic_load(&home->slot) == s) atomic_store(&home->slot, IO_NONE);
    memset(slot, 0, sizeof *slot);
    slot->prev = slot->next = IO_NONE;
    CHECK(ring_push(io->freed, &s)); /* as large as all slots */
    io_answered(io);
}

/* The coldest clean copies beyond the tier's size. */
static void tier_settle(worker_io *io)
{
    int32_t at = io->clean.head;
    while (at != IO_NONE && io->clean.count > io->config.tier_slots) {
        int32_t next = io->slot[at].next;
        if (io->slot[at].pins == 0) slot_free(io, at);
        at = next;
    }
}

/* Free it, if it is an orphan that became idle. */
static void slot_settle(worker_io *io, int32_t s)
{
    host_slot *slot = &io->slot[s];
    if (slot->orphan && slot->pins == 0 && slot->state != SLOT_PUT) {
        int32_t seq = slot->seq;
        slot_free(io, s);
        io_host_forgotten_check(io, seq);
        return;
    }
    tier_settle(io);
}

void io_host_sealed(worker_io *io, const io_command *command)
{
    int32_t s = command->slot;
    host_slot *slot = &io->slot[s];
    CHECK(slot->state == SLOT_FREE && slot->pins == 0);
    kern_home *home = io_home(io, command->seq, command->layer, command->kv_head, command->block);
    int32_t old = atomic_load(&home->slot);
    if (old >= (int32_t)io->config.slots) old = IO_NONE; /* in the landing zone, for its group */
    if (old != IO_NONE) { /* sealed again by a recompute: the newer copy serves from now on */
        io->slot[old].orphan = true;
        slot_unhold(io, old);
    }
    *slot = (host_slot){.seq = command->seq,
                        .layer = command->layer,
                        .kv_head = command->kv_head,
                        .block = command->block,
                        .hold = command->hold,
                        .state = io->store ? SLOT_DIRTY : SLOT_CLEAN};
    list_push(io, list_of(io, slot), s);
    seq_push(io, s);
    atomic_store_explicit(&home->slot, s, memory_order_release);
    if (old != IO_NONE) slot_settle(io, old);
}

void io_host_unhold(worker_io *io, int32_t seq)
{
    for (int32_t s = io->of_seq[seq]; s != IO_NONE; s = io->slot[s].seq_next)
        slot_unhold(io, s);
    tier_settle(io);
}

void io_host_unpin(worker_io *io, int32_t s)
{
    CHECK(io->slot[s].pins > 0);
    io->slot[s].pins--;
    slot_settle(io, s);
}

/* Hand dirty slots to the client while it has credit, some at a time. */
bool io_host_put_some(worker_io *io)
{
    uint64_t now = clock_now(&io->clock);
    if (!io->store || now < io->retry_ns) return false;
    for (uint32_t puts = 0; io->dirty.head != IO_NONE; puts++) {
        if (puts == IO_PUTS_A_TURN) return true;
        int32_t s = io->dirty.head;
        host_slot *slot = &io->slot[s];
        if (slot->orphan && slot->pins == 0) {
            slot_settle(io, s);
            continue;
        }
        kv_put put = {
            .id = io_block_id(io, slot->seq, slot->layer, slot->kv_head, slot->block),
            .bytes = io->memory + (size_t)s * io->config.block_bytes,
            .digest = home_of(io, slot)->digest,
            .class = KV_WRITE_BACK,
            .deadline_ns = now + io->put_deadline_ns,
        };
        status result = kv_put_submit(io->client, &put, &slot->ticket);
        if (result == STATUS_BUSY) return false;
        if (slot->tries == 0) slot->tried_ns = now;
        slot_move(io, s, SLOT_PUT, slot->hold);
        io->seq_busy[slot->seq]++;
        if (result != STATUS_OK) io_host_put_done(io, s, result);
        if (clock_now(&io->clock) < io->retry_ns) return false;
    }
    return false;
}

/* Nodes may come back. */
static bool may_pass(status s)
{
    return s == STATUS_DEGRADED || s == STATUS_UNREACHABLE || s == STATUS_PEER_LOST ||
           s == STATUS_FENCED || s == STATUS_BUSY || s == STATUS_DEADLINE;
}

/* Its block stays in host memory, and its sequence goes on until that is full or put_deadline over.
 * Where waiting does not help, or the store has never taken a block, it is told at once. */
static void put_failed(worker_io *io, int32_t s, status result)
{
    host_slot *slot = &io->slot[s];
    uint64_t now = clock_now(&io->clock);
    bool told = slot->tries > IO_PUT_TRIES;
    bool waits = may_pass(result) && io->stats.stored_blocks > 0;
    io->stats.put_retries++;
    io->retry_ns = now + 20000000u; /* let the store breathe: 20 ms */
    if (waits && (io->trouble_ns == 0 || now - io->trouble_ns > 10 * io->put_deadline_ns)) {
        LOG(WARN, "a block cannot be stored now: %s; tried again for %.1f s (client.put_deadline)",
            status_sentence(result), (double)io->put_deadline_ns * 1e-9);
        io->trouble_ns = now;
    }
    if (slot->tries < IO_PUT_TRIES) slot->tries++;
    if (told || slot->tries < IO_PUT_TRIES) return;
    if (waits && now - slot->tried_ns < io->put_deadline_ns) return;
    slot->tries = IO_PUT_TRIES + 1;
    if (!slot->orphan) io_emit(io, IO_PUT_FAILED, slot->seq, IO_NONE, result);
}

void io_host_put_done(worker_io *io, int32_t s, status result)
{
    host_slot *slot = &io->slot[s];
    CHECK(slot->state == SLOT_PUT);
    slot->ticket = 0;
    slot_move(io, s, result == STATUS_OK ? SLOT_CLEAN : SLOT_DIRTY, slot->hold);
    int32_t seq = slot->seq;
    CHECK(io->seq_busy[seq] > 0);
    io->seq_busy[seq]--;
    if (result == STATUS_OK) {
        io->stats.stored_blocks++;
        io->stats.stored_bytes += io->config.block_bytes;
    } else {
        put_failed(io, s, result);
    }
    slot_settle(io, s);
    io_host_forgotten_check(io, seq);
}

void io_host_forget(worker_io *io, int32_t seq)
{
    io->forgetting[seq] = 1;
    for (int32_t s = io->of_seq[seq], next; s != IO_NONE; s = next) {
        host_slot *slot = &io->slot[s];
        next = slot->seq_next;
        slot->orphan = true;
        slot_unhold(io, s);
        if (slot->state == SLOT_PUT)
            kv_cancel(io->client, slot->ticket);
        else if (slot->pins == 0)
            slot_free(io, s);
    }
    io_host_forgotten_check(io, seq);
}

/* A forgotten context ends with a DROP on every node, once no put of it is under way. */
void io_host_forgotten_check(worker_io *io, int32_t seq)
{
    if (io->forgetting[seq] == 0 || io->seq_busy[seq] > 0) return;
    if (io->store && io->forgetting[seq] == 1) {
        io->forgetting[seq] = 2;
        status result =
            kv_drop_submit(io->client, io->config.shared.context[seq],
                           clock_now(&io->clock) + io->put_deadline_ns, &io->drop_ticket[seq]);
        if (result == STATUS_OK) {
            io->seq_busy[seq]++;
            return;
        }
        io->drop_ticket[seq] = 0; /* nobody to tell: leases end on the nodes by themselves */
    }
    if (io->of_seq[seq] != IO_NONE) return; /* pinned by a fetch still being gathered */
    io->forgetting[seq] = 0;
    io_emit(io, IO_FORGOTTEN, seq, IO_NONE, STATUS_OK);
}
