/* The io side's life: creation, its loop, rings and statistics. See io.h for the contract.
 *
 * One turn of the loop: commands, client, completions, puts and gets that wait for credit. When
 * nothing moved the thread sleeps in the client's wait (epoll over the transport and wake_fd),
 * unless it is to spin: to sleep and to be woken is tens of microseconds, as long as a round trip.
 */
#include "worker/io_impl.h"

#include <linux/futex.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "worker/model.h"

block_id io_block_id(const worker_io *io, int32_t seq, int32_t layer, int32_t kv_head,
                     int32_t block)
{
    const worker_config *w = io->config.worker;
    return (block_id){
        .context = io->config.shared.context[seq],
        .layout = io->layout,
        .tenant = w->cluster->tenant,
        .block = (uint32_t)block,
        .layer = (uint16_t)layer,
        .kv_head = (uint16_t)kv_head,
    };
}

/* Who waits has said so before the kernel compares: then it sees the new count or is woken. */
void io_answered(worker_io *io)
{
    atomic_fetch_add(&io->answered, 1);
    if (!io->threaded || !atomic_load(&io->awaited)) return;
    syscall(SYS_futex, &io->answered, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void io_emit(worker_io *io, io_event_kind kind, int32_t seq, int32_t group, status result)
{
    io_event event = {.kind = kind, .seq = seq, .group = group, .result = result};
    CHECK(ring_push(io->events, &event)); /* bounded by groups, sequences and slots */
    io_answered(io);
}

/* ---- one turn -------------------------------------------------------------------------------- */

static void run_command(worker_io *io, const io_command *command)
{
    switch (command->op) {
    case IO_FETCH:
        io_fetch_begin(io, command);
        break;
    case IO_GATHERED:
        io_fetch_gathered(io, command->group);
        break;
    case IO_SEALED:
        io_host_sealed(io, command);
        break;
    case IO_UNHOLD:
        io_host_unhold(io, command->seq);
        break;
    case IO_FORGET:
        io_host_forget(io, command->seq);
        break;
    }
}

static void put_or_drop_done(worker_io *io, const kv_done *done)
{
    if (done->kind == KV_KIND_DROP) {
        for (uint32_t s = 0; s < io->config.seqs; s++) {
            if (io->drop_ticket[s] != done->ticket) continue;
            io->drop_ticket[s] = 0;
            io->seq_busy[s]--;
            io_host_forgotten_check(io, (int32_t)s);
            return;
        }
        return;
    }
    for (int32_t s = io->putting.head; s != IO_NONE; s = io->slot[s].next) {
        if (io->slot[s].ticket != done->ticket) continue;
        io_host_put_done(io, s, done->result);
        return;
    }
}

static void make_snapshot(worker_io *io)
{
    uint32_t wanted = atomic_load(&io->snapshot_wanted);
    if (wanted == atomic_load(&io->snapshot_made)) return;
    io->stats.dirty_blocks = io->dirty.count;
    if (io->store) kv_client_stats_read(io->client, &io->stats.client);
    io->snapshot = io->stats;
    atomic_store_explicit(&io->snapshot_made, wanted, memory_order_release);
    io_answered(io);
}

/* True when something moved. */
static bool io_turn(worker_io *io)
{
    bool moved = false;
    io_command command;
    while (ring_pop(io->commands, &command)) {
        run_command(io, &command);
        atomic_fetch_add(&io->commands_done, 1);
        moved = true;
    }
    if (io->store) {
        io_fetch_submit(io);
        moved |= io_host_put_some(io);
        kv_client_poll(io->client);
        kv_done done;
        while (kv_client_next(io->client, &done)) {
            if (done.kind == KV_KIND_GET)
                io_fetch_get_done(io, &done);
            else
                put_or_drop_done(io, &done);
            moved = true;
        }
    }
    make_snapshot(io);
    return moved;
}

static void drain_wake(worker_io *io)
{
    uint64_t count;
    ssize_t got = read(io->wake_fd, &count, sizeof count);
    (void)got; /* EAGAIN: nobody rang */
}

static void *io_main(void *argument)
{
    worker_io *io = argument;
    while (!atomic_load(&io->stop)) {
        if (io_turn(io) || io->spin) continue;
        atomic_store(&io->asleep, true);
        if (ring_count(io->commands) == 0 && !atomic_load(&io->stop) &&
            atomic_load(&io->snapshot_wanted) == atomic_load(&io->snapshot_made)) {
            uint64_t until = clock_now(&io->clock) + 10000000u; /* 10 ms: retries and leases */
            if (io->store) {
                kv_client_wait(io->client, io->wake_fd, until);
            } else {
                struct pollfd p = {.fd = io->wake_fd, .events = POLLIN};
                poll(&p, 1, 10);
            }
        }
        atomic_store(&io->asleep, false);
        drain_wake(io);
    }
    return NULL;
}

/* ---- creation -------------------------------------------------------------------------------- */

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t n = 1;
    while (n < at_least)
        n *= 2;
    return n;
}

/* Memory that the device may read while the io side fills it. */
static status take_blocks(worker_io *io, uint32_t count, uint8_t **out_memory)
{
    size_t bytes = (size_t)count * io->config.block_bytes;
    if (io->config.backend == NULL) {
        *out_memory = arena_alloc(io->config.memory, bytes, 4096);
        return STATUS_OK;
    }
    void *memory = NULL;
    TRY(kern_alloc_shared(io->config.backend, bytes, &memory));
    *out_memory = memory;
    return STATUS_OK;
}

static void allocate(worker_io *io)
{
    const io_config *c = &io->config;
    arena *a = c->memory;
    size_t blocks = (size_t)c->seqs * c->layers * c->kv_heads * c->max_blocks;
    io->commands = ring_create(a, IO_RING, sizeof(io_command));
    io->events = ring_create(a, power_of_two(IO_EVENTS + c->slots + c->groups), sizeof(io_event));
    io->freed = ring_create(a, power_of_two(c->slots + 1), sizeof(int32_t));
    io->step.stack = ARENA_NEW(a, int32_t, c->slots);
    io->slot = ARENA_NEW(a, host_slot, c->slots);
    for (size_t i = 0; i < blocks; i++)
        atomic_store(&c->shared.home[i].slot, IO_NONE);
    for (uint32_t s = 0; s < c->slots; s++) {
        io->slot[s].prev = io->slot[s].next = IO_NONE;
        io->step.stack[s] = (int32_t)(c->slots - 1 - s);
    }
    io->step.count = c->slots;
    io->dirty = io->clean = io->held = io->putting = (slot_list){IO_NONE, IO_NONE, 0};
    io->of_seq = ARENA_NEW(a, int32_t, c->seqs);
    for (uint32_t s = 0; s < c->seqs; s++)
        io->of_seq[s] = IO_NONE;
    io->forgetting = ARENA_NEW(a, uint8_t, c->seqs);
    io->seq_busy = ARENA_NEW(a, uint32_t, c->seqs);
    io->drop_ticket = ARENA_NEW(a, kv_ticket, c->seqs);
    io->group = ARENA_NEW(a, fetch_group, c->groups);
    for (uint32_t g = 0; g < c->groups; g++)
        io->group[g].block = ARENA_NEW(a, fetch_block, c->exchange[g].capacity);
    io->todo = ARENA_NEW(a, int32_t, c->groups);
    io->get = ARENA_NEW(a, get_request, IO_GETS_MAX);
    uint32_t flights =
        power_of_two(2 * (c->groups - c->demands + 1) * c->exchange[c->groups - 1].capacity);
    io->flight_mask = flights - 1;
    io->flight_key = ARENA_NEW(a, uint64_t, flights);
    io->flight_group = ARENA_NEW(a, int32_t, flights);
    io->flight_index = ARENA_NEW(a, int32_t, flights);
}

static status connect_store(worker_io *io)
{
    const worker_config *w = io->config.worker;
    arena *a = io->config.memory;
    io->landing_refs = ARENA_NEW(a, uint16_t, io->landing_slots);
    io->landing_ahead = ARENA_NEW(a, uint8_t, io->landing_slots);
    io->landing_sure = ARENA_NEW(a, uint8_t, io->landing_slots);
    if (w->transport != NULL)
        io->transport = w->transport;
    else if (w->hub != NULL)
        TRY(kv_transport_local_open(a, w->hub, &io->transport));
    else
        TRY(kv_transport_open(a, w->cluster, NULL, w->cluster->spin, &io->transport));
    kv_client_config client = {
        .memory = a,
        .transport = io->transport,
        .clock = w->clock,
        .seed = w->seed,
        .layout = w->model->layout,
        .tenant = w->cluster->tenant,
        .config = w->cluster,
        .landing = io->memory + (size_t)io->config.slots * io->config.block_bytes,
        .landing_slots = io->landing_slots,
        .verify = w->verify,
    };
    return kv_client_create(&client, &io->client);
}

static status take_memory(worker_io *io)
{
    if (io->store) {
        const uint32_t bytes = io->config.block_bytes;
        io->landing_slots = (uint32_t)(io->config.worker->cluster->landing_bytes / bytes);
        if (io->landing_slots < 64)
            return FAIL(INVALID, "client.landing holds %u blocks of %u bytes; give it 64 or more",
                        io->landing_slots, bytes);
    }
    return take_blocks(io, io->config.slots + io->landing_slots, &io->memory);
}

status io_create(const io_config *config, worker_io **out_io)
{
    worker_io *io = ARENA_NEW(config->memory, worker_io, 1);
    io->config = *config;
    io->clock = config->worker->clock;
    io->store = config->worker->with_store;
    io->threaded = config->worker->transport == NULL &&
                   (config->worker->hub == NULL || config->worker->hub_thread);
    io->spin = config->worker->cluster->spin;
    io->put_deadline_ns = config->worker->cluster->put_deadline_ns;
    io->layout = layout_hash(&config->worker->model->layout);
    io->wake_fd = -1;
    CHECK(config->groups > config->demands && config->demands % config->layers == 0);
    CHECK(config->slots > 0);
    allocate(io);
    status result = take_memory(io);
    if (result == STATUS_OK && io->store) result = connect_store(io);
    if (result != STATUS_OK) {
        io_destroy(io);
        return result;
    }
    if (io->threaded) {
        io->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (io->wake_fd < 0 || pthread_create(&io->thread, NULL, io_main, io) != 0) {
            io->threaded = false;
            io_destroy(io);
            return FAIL(IO, "cannot start the io thread");
        }
    }
    *out_io = io;
    return STATUS_OK;
}

void io_destroy(worker_io *io)
{
    if (io == NULL) return;
    if (io->threaded) {
        atomic_store(&io->stop, true);
        uint64_t one = 1;
        ssize_t put = write(io->wake_fd, &one, sizeof one);
        (void)put;
        pthread_join(io->thread, NULL);
    }
    if (io->client != NULL) kv_client_destroy(io->client);
    if (io->transport != NULL) kv_transport_close(io->transport);
    if (io->wake_fd >= 0) close(io->wake_fd);
    if (io->config.backend != NULL) kern_free_shared(io->config.backend, io->memory);
}

/* ---- step side ------------------------------------------------------------------------------- */

static void wake(worker_io *io)
{
    if (!io->threaded || !atomic_load(&io->asleep)) return;
    uint64_t one = 1;
    ssize_t put = write(io->wake_fd, &one, sizeof one);
    (void)put; /* EAGAIN: it has been rung already */
}

void io_send(worker_io *io, const io_command *command)
{
    while (!ring_push(io->commands, command))
        io_pause(io, clock_now(&io->clock) + 100000);
    atomic_fetch_add(&io->commands_sent, 1);
    wake(io);
}

void io_disown(worker_io *io, uint32_t layer, const kern_miss *miss, const kern_arrival *arrival)
{
    if (!io_is_landed(io, arrival->source)) return;
    kern_home *home = io_home(io, miss->seq, (int32_t)layer, miss->kv_head, miss->block);
    int32_t slot =
        (int32_t)(((const uint8_t *)arrival->source - io->memory) / io->config.block_bytes);
    (void)atomic_compare_exchange_strong(&home->slot, &slot, IO_NONE);
}

/* The io side made these homes name the landing zone; it reads the command later, when the next
 * step may be under way, so they are taken back here. A block that was sealed again has another. */
void io_let_go(worker_io *io, int32_t group)
{
    const kern_exchange *x = &io->config.exchange[group];
    uint32_t count = atomic_load_explicit(&x->published, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++) {
        const kern_arrival *a = &x->arrival[i];
        if (atomic_load_explicit(&a->state, memory_order_acquire) != STATUS_OK) continue;
        io_disown(io, x->miss[0].place, &x->miss[i], a);
    }
    io_command command = {.op = IO_GATHERED, .group = group};
    io_send(io, &command);
}

bool io_receive(worker_io *io, io_event *out_event)
{
    return ring_pop(io->events, out_event);
}

void io_pause(worker_io *io, uint64_t until_ns)
{
    if (!io->threaded) {
        io_turn(io);
        const worker_config *w = io->config.worker;
        if (w->pump != NULL) w->pump(w->pump_self);
        io_turn(io);
        return;
    }
    uint32_t seen = atomic_load_explicit(&io->answered, memory_order_acquire);
    for (int spin = 0; spin < 200; spin++) {
        if (atomic_load_explicit(&io->answered, memory_order_acquire) != seen) return;
    }
    uint64_t now = clock_now(&io->clock);
    if (now >= until_ns) return;
    uint64_t ns =
        until_ns - now < 500000 ? until_ns - now : 500000; /* a missed wake costs 0.5 ms */
    struct timespec t = {.tv_sec = 0, .tv_nsec = (long)ns};
    atomic_store(&io->awaited, true);
    syscall(SYS_futex, &io->answered, FUTEX_WAIT_PRIVATE, seen, &t, NULL, 0);
    atomic_store(&io->awaited, false);
}

static void collect_freed(worker_io *io)
{
    int32_t s;
    while (ring_pop(io->freed, &s))
        io->step.stack[io->step.count++] = s;
}

int32_t io_slot_take(worker_io *io)
{
    if (io->step.count == 0) collect_freed(io);
    return io->step.count == 0 ? -1 : io->step.stack[--io->step.count];
}

void io_slot_give(worker_io *io, int32_t slot)
{
    CHECK(slot >= 0 && (uint32_t)slot < io->config.slots && io->step.count < io->config.slots);
    io->step.stack[io->step.count++] = slot;
}

uint32_t io_slots_free(worker_io *io)
{
    collect_freed(io);
    return io->step.count;
}

bool io_is_threaded(const worker_io *io)
{
    return io->threaded;
}

uint64_t io_shared_bytes(const worker_io *io)
{
    if (io->config.backend == NULL) return 0;
    return ((uint64_t)io->config.slots + io->landing_slots) * io->config.block_bytes;
}

uint8_t *io_slot_bytes(worker_io *io, int32_t slot)
{
    return io->memory + (size_t)slot * io->config.block_bytes;
}

uint32_t io_landing_slots(const worker_io *io)
{
    return io->landing_slots;
}

bool io_is_landed(const worker_io *io, const void *source)
{
    return (const uint8_t *)source >=
           io->memory + (size_t)io->config.slots * io->config.block_bytes;
}

void io_stats_read(worker_io *io, io_stats *out_stats)
{
    uint32_t want = atomic_fetch_add(&io->snapshot_wanted, 1) + 1;
    while (atomic_load_explicit(&io->snapshot_made, memory_order_acquire) != want) {
        wake(io);
        io_pause(io, clock_now(&io->clock) + 1000000);
    }
    *out_stats = io->snapshot;
}

bool io_quiet(worker_io *io)
{
    if (atomic_load(&io->commands_sent) != atomic_load(&io->commands_done)) return false;
    return atomic_load(&io->busy) == 0;
}
