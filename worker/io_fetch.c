/* Fetch groups: the blocks that one layer of a step misses (DEMAND), or that somebody wants ahead
 * of time (PREFETCH), answered from host memory or from the store.
 *
 * A demand for a block that a prefetch is already bringing waits for that one instead of asking
 * twice; should it fail, the demand asks itself, and so does one that must not bring bytes whose
 * digest nobody has compared. Prefetches may fill half of the landing zone: what
 * does not fit waits here, and a demand waits for nothing that has not been asked for. Sources stay
 * valid until IO_GATHERED. */
#include <string.h>

#include "worker/io_impl.h"

static uint64_t flight_hash(const worker_io *io, const kern_miss *m, uint32_t layer)
{
    return 1 + (uint64_t)(io_home(io, m->seq, (int32_t)layer, m->kv_head, m->block) -
                          io->config.shared.home);
}

static uint32_t flight_place(const worker_io *io, uint64_t key)
{
    uint32_t at = (uint32_t)((key * 0x9e3779b97f4a7c15u) >> 32) & io->flight_mask;
    while (io->flight_key[at] != 0 && io->flight_key[at] != key)
        at = (at + 1) & io->flight_mask;
    return at;
}

static bool is_demand(const worker_io *io, int32_t g)
{
    return (uint32_t)g < io->config.demands;
}

/* The layer of a group's blocks: demand groups are numbered by layer, prefetch groups carry it. */
static uint32_t group_layer(const worker_io *io, int32_t g)
{
    const kern_miss *m = io->config.exchange[g].miss;
    uint32_t a_layer = io->config.demands / io->config.layers;
    return is_demand(io, g) ? (uint32_t)g / a_layer : m[0].place;
}

static void flight_remove(worker_io *io, int32_t g, uint32_t i)
{
    uint64_t key = flight_hash(io, &io->config.exchange[g].miss[i], group_layer(io, g));
    uint32_t hole = flight_place(io, key);
    if (io->flight_key[hole] != key) return;
    io->flight_key[hole] = 0;
    for (uint32_t at = (hole + 1) & io->flight_mask; io->flight_key[at] != 0;
         at = (at + 1) & io->flight_mask) { /* re-seat what the hole would hide */
        uint64_t moved = io->flight_key[at];
        io->flight_key[at] = 0;
        uint32_t to = flight_place(io, moved);
        io->flight_key[to] = moved;
        if (to == at) continue;
        io->flight_group[to] = io->flight_group[at];
        io->flight_index[to] = io->flight_index[at];
    }
}

static void answer(worker_io *io, int32_t g, uint32_t i, status result)
{
    fetch_group *group = &io->group[g];
    fetch_block *b = &group->block[i];
    kern_arrival *a = &io->config.exchange[g].arrival[i];
    if (result == STATUS_OK) {
        bool host = b->state == FETCH_HOST;
        uint32_t slot = (uint32_t)b->slot + (host ? 0 : io->config.slots);
        a->source = io->memory + (size_t)slot * io->config.block_bytes;
        a->source_kind = host ? IO_SOURCE_HOST : b->taken ? IO_SOURCE_TAKEN : IO_SOURCE_REMOTE;
    } else {
        b->state = FETCH_FAILED;
        a->source = NULL;
    }
    atomic_store_explicit(&a->state, result, memory_order_release);
    CHECK(group->open > 0);
    group->open--;
    if (group->open == 0) {
        bool remote = false;
        for (uint32_t k = 0; k < group->count; k++)
            remote |= group->block[k].state == FETCH_LANDED;
        if (remote) io->stats.fetch_ns += clock_now(&io->clock) - group->started_ns;
        if (is_demand(io, g))
            atomic_store_explicit(&io->config.exchange[g].answered, group->step,
                                  memory_order_release);
        else
            io_emit(io, IO_GROUP_DONE, io->config.exchange[g].miss[0].seq, g, STATUS_OK);
    }
    io_answered(io);
}

static void share_landed(worker_io *io, int32_t g, uint32_t i, int32_t slot)
{
    fetch_block *b = &io->group[g].block[i];
    b->state = FETCH_LANDED;
    b->slot = slot;
    io->landing_refs[slot]++;
    answer(io, g, i, STATUS_OK);
}

/* A prefetch is about to bring the block. A demand takes over what has not been asked for. */
static void join_flight(worker_io *io, int32_t g, uint32_t i, int32_t ahead_group,
                        uint32_t ahead_index)
{
    fetch_group *group = &io->group[g];
    fetch_block *ahead = &io->group[ahead_group].block[ahead_index];
    if (!is_demand(io, g)) {
        answer(io, g, i, STATUS_STALE);
    } else if (ahead->state == FETCH_PENDING) {
        flight_remove(io, ahead_group, ahead_index);
        answer(io, ahead_group, ahead_index, STATUS_STALE);
    } else if (ahead->wait_group == IO_NONE &&
               io->group[ahead_group].deadline_ns <= group->deadline_ns &&
               (io->group[ahead_group].verify || !group->verify)) {
        group->block[i].state = FETCH_ATTACHED;
        ahead->wait_group = g;
        ahead->wait_index = (int32_t)i;
        io->stats.late++;
    }
}

/* Host memory, a prefetch on its way, or the store. */
static void start_block(worker_io *io, int32_t g, uint32_t i)
{
    fetch_group *group = &io->group[g];
    fetch_block *b = &group->block[i];
    const kern_miss *m = &io->config.exchange[g].miss[i];
    uint32_t layer = group_layer(io, g);
    const kern_home *home = io_home(io, m->seq, (int32_t)layer, m->kv_head, m->block);
    kern_arrival *a = &io->config.exchange[g].arrival[i];
    a->seed = home->seed;
    a->digest = home->digest;
    *b = (fetch_block){.slot = IO_NONE, .wait_group = IO_NONE, .wait_index = IO_NONE};
    int32_t there = atomic_load(&home->slot);
    int32_t landed = there - (int32_t)io->config.slots;
    if (landed >= 0 && (io->landing_sure[landed] != 0 || !group->verify)) {
        share_landed(io, g, i, landed);
        return;
    }
    if (there != IO_NONE && landed < 0) {
        b->state = FETCH_HOST;
        b->slot = there;
        io->slot[b->slot].pins++;
        answer(io, g, i, STATUS_OK);
        return;
    }
    if (!io->store) {
        answer(io, g, i, STATUS_NOT_FOUND);
        return;
    }
    uint64_t key = flight_hash(io, m, layer);
    uint32_t at = flight_place(io, key);
    b->state = FETCH_PENDING;
    if (io->flight_key[at] == key) {
        join_flight(io, g, i, io->flight_group[at], (uint32_t)io->flight_index[at]);
    } else if (!is_demand(io, g)) {
        io->flight_key[at] = key;
        io->flight_group[at] = g;
        io->flight_index[at] = (int32_t)i;
    }
}

/* Others were in host memory when the plan looked. */
static bool is_pending(const kern_arrival *a)
{
    return atomic_load_explicit(&a->state, memory_order_acquire) == STATUS_PENDING;
}

void io_fetch_begin(worker_io *io, const io_command *command)
{
    int32_t g = command->group;
    fetch_group *group = &io->group[g];
    kern_exchange *x = &io->config.exchange[g];
    uint32_t count = atomic_load_explicit(&x->published, memory_order_acquire);
    CHECK(!group->active && count <= x->capacity && count > 0);
    group->count = count;
    group->open = 0;
    for (uint32_t i = 0; i < count; i++) {
        group->block[i].state = FETCH_IDLE;
        group->open += is_pending(&x->arrival[i]);
    }
    if (group->open == 0) return; /* the step has failed since (fetch_abandon) */
    group->active = true;
    group->cursor = 0;
    group->class = command->class;
    group->verify = command->verify;
    group->step = command->step;
    group->started_ns = clock_now(&io->clock);
    group->deadline_ns = command->deadline_ns;
    atomic_fetch_add(&io->busy, 1);
    for (uint32_t i = 0; i < count; i++) {
        if (is_pending(&x->arrival[i])) start_block(io, g, i);
    }
    if (is_demand(io, g) || group->queued) return;
    group->queued = true;
    io->todo[io->todo_count++] = g;
}

/* The last who needed it. */
static void landing_release(worker_io *io, int32_t slot)
{
    CHECK(io->landing_refs[slot] > 0);
    if (--io->landing_refs[slot] > 0) return;
    io->ahead_out -= io->landing_ahead[slot];
    io->landing_ahead[slot] = 0;
    kv_slot_release(io->client, slot);
}

void io_fetch_gathered(worker_io *io, int32_t g)
{
    fetch_group *group = &io->group[g];
    CHECK(group->active && group->open == 0);
    for (uint32_t i = 0; i < group->count; i++) {
        fetch_block *b = &group->block[i];
        if (b->state == FETCH_HOST) {
            io_host_unpin(io, b->slot);
        } else if (b->state == FETCH_LANDED) {
            landing_release(io, b->slot);
        }
        b->state = FETCH_IDLE;
    }
    group->active = false;
    atomic_fetch_sub(&io->busy, 1);
}

/* Pass a prefetched block's fate on to the demand that waits for it. */
static void wake_attached(worker_io *io, fetch_block *from, status result)
{
    if (from->wait_group == IO_NONE) return;
    int32_t g = from->wait_group;
    uint32_t i = (uint32_t)from->wait_index;
    from->wait_group = IO_NONE;
    fetch_block *b = &io->group[g].block[i];
    CHECK(b->state == FETCH_ATTACHED);
    if (result == STATUS_OK) {
        from->taken = true;
        share_landed(io, g, i, from->slot);
    } else {
        b->state = FETCH_PENDING;
        if (i < io->group[g].cursor) io->group[g].cursor = i;
    }
}

/* A prefetched block has landed, and its home says so, or it could not be had. */
static void ahead_over(worker_io *io, int32_t g, uint32_t i, status result)
{
    fetch_block *b = &io->group[g].block[i];
    const kern_miss *m = &io->config.exchange[g].miss[i];
    flight_remove(io, g, i);
    if (result == STATUS_OK) {
        io->landing_ahead[b->slot] = 1;
        kern_home *home = io_home(io, m->seq, (int32_t)group_layer(io, g), m->kv_head, m->block);
        int32_t none = IO_NONE, slot = (int32_t)io->config.slots + b->slot;
        (void)atomic_compare_exchange_strong(&home->slot, &none, slot);
    } else {
        io->ahead_out--;
    }
    wake_attached(io, b, result);
}

/* The store's last word on a block that was asked for, or refused to be. */
static void block_over(worker_io *io, int32_t g, uint32_t i, status result)
{
    if (!is_demand(io, g)) ahead_over(io, g, i, result);
    answer(io, g, i, result);
}

static get_request *get_take(worker_io *io)
{
    for (uint32_t i = 0; i < IO_GETS_MAX; i++) {
        if (!io->get[i].used) return &io->get[i];
    }
    return NULL;
}

/* One kv_get for as many pending blocks of the group as fit. False: no credit or no room now. */
static bool submit_group(worker_io *io, int32_t g)
{
    fetch_group *group = &io->group[g];
    get_request *request = get_take(io);
    bool ahead = !is_demand(io, g);
    uint32_t most = KV_BATCH_MAX, room = io->landing_slots / 2 - io->ahead_out;
    if (ahead && room < most) most = room;
    if (request == NULL || most == 0) return false;
    block_id id[KV_BATCH_MAX];
    uint64_t digest[KV_BATCH_MAX];
    uint32_t layer = group_layer(io, g), n = 0;
    const kern_exchange *x = &io->config.exchange[g];
    uint32_t i = group->cursor;
    for (; i < group->count && n < most; i++) {
        if (group->block[i].state != FETCH_PENDING) continue;
        const kern_miss *m = &x->miss[i];
        id[n] = io_block_id(io, m->seq, (int32_t)layer, m->kv_head, m->block);
        digest[n] = x->arrival[i].digest;
        request->index[n++] = i;
    }
    if (n == 0) {
        group->cursor = i;
        return true;
    }
    kv_get get = {.id = id,
                  .digest = digest,
                  .count = n,
                  .class = group->class,
                  .deadline_ns = group->deadline_ns,
                  .unchecked = !group->verify};
    status result = kv_get_submit(io->client, &get, &request->ticket);
    if (result == STATUS_BUSY && clock_now(&io->clock) < group->deadline_ns) return false;
    if (ahead) io->ahead_out += n;
    if (result != STATUS_OK) {
        for (uint32_t k = 0; k < n; k++)
            block_over(io, g, request->index[k], result);
    } else {
        request->used = true;
        request->group = g;
        request->count = n;
        for (uint32_t k = 0; k < n; k++)
            group->block[request->index[k]].state = FETCH_ASKED;
    }
    group->cursor = i;
    return true;
}

/* True: nothing of the group is left to be asked for. */
static bool submit_all(worker_io *io, int32_t g)
{
    fetch_group *group = &io->group[g];
    while (group->active && group->open > 0 && group->cursor < group->count) {
        if (!submit_group(io, g)) return false;
    }
    return true;
}

/* Demands before prefetches, and those in the order in which they were wanted. */
void io_fetch_submit(worker_io *io)
{
    if (!io->store) return;
    for (int32_t g = 0; g < (int32_t)io->config.demands; g++)
        (void)submit_all(io, g);
    uint32_t gone = 0;
    while (gone < io->todo_count && submit_all(io, io->todo[gone]))
        io->group[io->todo[gone++]].queued = false;
    io->todo_count -= gone;
    memmove(io->todo, io->todo + gone, io->todo_count * sizeof *io->todo);
}

void io_fetch_get_done(worker_io *io, const kv_done *done)
{
    get_request *request = NULL;
    for (uint32_t i = 0; i < IO_GETS_MAX && request == NULL; i++) {
        if (io->get[i].used && io->get[i].ticket == done->ticket) request = &io->get[i];
    }
    CHECK(request != NULL && request->count == done->count);
    int32_t g = request->group;
    request->used = false;
    for (uint32_t k = 0; k < done->count; k++) {
        uint32_t i = request->index[k];
        fetch_block *b = &io->group[g].block[i];
        status result = done->block_status[k];
        CHECK(b->state == FETCH_ASKED);
        if (result == STATUS_OK) {
            b->state = FETCH_LANDED;
            b->slot = done->slot[k];
            io->landing_refs[b->slot] = 1;
            io->landing_sure[b->slot] = io->group[g].verify;
        }
        block_over(io, g, i, result);
    }
}
