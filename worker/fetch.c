/* Blocks on their way into the pool: a layer's misses, prefetch groups and installs between steps,
 * and the accounting of where every block came from. */
#include "worker/fetch.h"

#include <stdlib.h>
#include <string.h>

enum {
    WAIT_SECONDS = 30, /* beyond every deadline: only a dead io side lets a wait end by it */
    AHEAD_STEPS = 64,  /* what prefetch brought and so many steps did not use was in vain */
};

/* ---- a layer's misses ------------------------------------------------------------------------
 *
 * A plan publishes a layer's misses into memory that the host sees too. Where ops run inline they
 * are there when kern_plan returns. A device works behind its stream: the step thread hands it the
 * whole step and meanwhile passes on what has been published (fetch_pump); kern_wait holds the
 * stream until the io side has answered. That a later plan is over tells that an earlier gather is,
 * so the io side gets its landing slots back while the step still runs. */

/* The stream's queue is finite (a device takes about a thousand launches), and who waits for room
 * in it cannot pump. */
static uint32_t layers_ahead(const worker_engine *e)
{
    uint32_t tiles = (e->prefill_rows.count + ENGINE_PREFILL_TILE - 1) / ENGINE_PREFILL_TILE;
    uint32_t a_part = 44 + ahead_launches(e) + guess_launches(e);
    uint32_t a_layer = e->parts * a_part + 12 * tiles;
    return ENGINE_LAUNCHES_AHEAD / a_layer;
}

static uint32_t demand_of(const worker_engine *e, uint32_t plan)
{
    return engine_demand(e, plan / e->parts, plan % e->parts);
}

void fetch_begin(worker_engine *e)
{
    guess_begin(e);
    e->run_ahead = layers_ahead(e);
    for (uint32_t g = 0; g < e->demands; g++)
        atomic_store_explicit(&e->exchange[g].published, ENGINE_NOT_PLANNED, memory_order_release);
    e->planned = e->gathered = e->counted = e->decode_rows > 0 ? 0 : engine_plans(e);
    e->asked = e->inline_ops || e->source_rows[SOURCE_STEP].count == 0 ? e->layers : 0;
    *e->wait_ns = 0;
}

/* A block's digest is compared where it is gathered into the pool, so the client need not do it
 * before. But only the client passes a bad replica over: once a gather found other bytes than were
 * sealed, it does the comparing too for a while. */
static bool in_doubt(const worker_engine *e)
{
    return e->step_number < e->doubt_until;
}

static void fetch_start(worker_engine *e, uint32_t demand)
{
    e->fetching[demand] = true;
    io_command command = {.op = IO_FETCH,
                          .group = (int32_t)demand,
                          .class = KV_DEMAND,
                          .verify = in_doubt(e),
                          .step = e->step_number,
                          .deadline_ns =
                              clock_now(&e->config.clock) + e->cluster.fetch_deadline_ns};
    io_send(e->io, &command);
}

/* A prefetch had brought it: to a plan the landing zone is host memory. */
static bool had_landed(const worker_engine *e, const kern_arrival *arrival)
{
    return arrival->source_kind == IO_SOURCE_HOST && io_is_landed(e->io, arrival->source);
}

/* False: the block did not get into the pool. */
static bool count_source(worker_engine *e, const kern_exchange *x, uint32_t i)
{
    if (atomic_load(&x->arrival[i].state) != STATUS_OK) return false;
    worker_blocks *of = &e->seq[x->miss[i].seq].final.blocks;
    bool landed = had_landed(e, &x->arrival[i]);
    if (x->arrival[i].source_kind == IO_SOURCE_HOST && !landed)
        of->host++, e->stats.blocks.host++;
    else
        of->remote++, e->stats.blocks.remote++;
    e->landed_used += landed;
    e->landed_open += landed;
    return true;
}

/* A prefetched block whose group is over and that was not installed. */
static void count_left(worker_engine *e, const kern_arrival *arrival)
{
    if (arrival->source_kind == IO_SOURCE_TAKEN) return;
    if (e->landed_open > 0)
        e->landed_open--;
    else
        e->stats.prefetch.wasted++;
}

/* A gather or an install found other bytes than were sealed. Where a prefetch had brought them they
 * must not be found again. A block that the client refused has no source. */
static void count_corrupt(worker_engine *e, const kern_exchange *x, uint32_t layer, uint32_t i)
{
    const kern_arrival *arrival = &x->arrival[i];
    if (atomic_load(&arrival->state) != STATUS_CORRUPT || arrival->source == NULL) return;
    io_disown(e->io, layer, &x->miss[i], arrival);
    e->doubt_until = e->step_number + ENGINE_DOUBT_STEPS;
    e->stats.corrupt++;
}

/* The next plan's blocks are in the pool, or their rows void: sources may be reused. */
static void fetch_gathered(worker_engine *e)
{
    uint32_t demand = demand_of(e, e->gathered++), layer = demand / e->halves;
    const kern_exchange *x = &e->exchange[demand];
    uint32_t count = atomic_load(&x->published);
    for (uint32_t i = 0; i < count; i++) {
        if (!count_source(e, x, i)) count_corrupt(e, x, layer, i);
    }
    if (!e->fetching[demand]) return;
    e->fetching[demand] = false;
    io_command command = {.op = IO_GATHERED, .group = (int32_t)demand};
    io_send(e->io, &command);
}

/* The misses of a plan. What prefetch had brought there has gone again, unused. */
static void count_misses(worker_engine *e, uint32_t plan)
{
    uint32_t layer = plan / e->parts;
    const kern_exchange *x = &e->exchange[demand_of(e, plan)];
    const int32_t *pos = e->row.pos + e->part[plan % e->parts].decode.first;
    uint32_t count = atomic_load(&x->published);
    for (uint32_t i = 0; i < count; i++) {
        const kern_miss *m = &x->miss[i];
        if (m->block == pos[m->row] / KERN_BLOCK) continue;
        e->stats.misses_by_layer[layer < 64 ? layer : 63]++;
        e->stats.agnostic_fetched += m->agnostic != 0;
        e->stats.agnostic_ahead += m->agnostic != 0 && had_landed(e, &x->arrival[i]);
        sequence *s = &e->seq[m->seq];
        if (s->ahead_set == 0) continue;
        uint8_t *ahead = &e->ahead_bit[engine_home(e, (uint32_t)m->seq, layer, (uint32_t)m->kv_head,
                                                   (uint32_t)m->block)];
        s->ahead_set -= *ahead;
        e->stats.prefetch.wasted += *ahead;
        *ahead = 0;
    }
}

/* An io side without a thread of its own works once a layer, and while we wait for the stream. */
static void answer_here(worker_engine *e)
{
    if (!io_is_threaded(e->io)) io_pause(e->io, clock_now(&e->config.clock));
}

void fetch_pump(worker_engine *e)
{
    answer_here(e);
    guess_ask(e);
    for (; e->planned < engine_plans(e); e->planned++) {
        uint32_t demand = demand_of(e, e->planned);
        const kern_exchange *x = &e->exchange[demand];
        uint32_t n = atomic_load_explicit(&x->published, memory_order_acquire);
        if (n == ENGINE_NOT_PLANNED) break;
        if (atomic_load(&x->unanswered) > 0) fetch_start(e, demand);
    }
    if (e->inline_ops) return;
    while (e->asked + 2 < e->planned) /* plan m comes after the picks of layer m - 2 for later */
        ahead_ask(e, e->asked++);
    uint32_t lag = e->early == SOURCE_OWN && e->parts == 1 ? 1 : 2; /* plan m comes after gather
                                                                     * m - lag */
    while (e->gathered + lag < e->planned)
        fetch_gathered(e);
    while (e->counted < e->planned && e->uncounted_count == 0)
        count_misses(e, e->counted++);
}

/* Pumps until `count` plans are over. The device may fail instead: then the stream says so. */
static status pump_until(worker_engine *e, uint32_t count)
{
    for (uint32_t turn = 1; e->planned < count; turn++) {
        fetch_pump(e);
        if (turn % 4096 != 0 || e->planned >= count) continue;
        status at = kern_stream_poll(e->stream);
        if (at == STATUS_PENDING) continue;
        TRY(at);
        fetch_pump(e);
        if (e->planned < count)
            return FAIL(INTERNAL, "the stream is at rest and layer %u has no plan",
                        e->planned / e->parts);
    }
    return STATUS_OK;
}

status fetch_room(worker_engine *e, uint32_t layer)
{
    fetch_pump(e);
    if (layer <= e->run_ahead) return STATUS_OK;
    return pump_until(e, (layer - e->run_ahead - 1) * e->parts);
}

status fetch_drain(worker_engine *e)
{
    fetch_settle(e, -1); /* the device has work, and we have time */
    TRY(pump_until(e, engine_plans(e)));
    if (e->inline_ops || io_is_threaded(e->io)) return STATUS_OK;
    status at = kern_stream_poll(e->stream);
    for (; at == STATUS_PENDING; at = kern_stream_poll(e->stream)) {
        answer_here(e);
    }
    return at;
}

/* ---- gathers ---------------------------------------------------------------------------------
 *
 * A device gathers on a stream of its own: a layer's misses are waited for and begin to arrive as
 * soon as the plan is over, under all that does not need them. Where the plan stands just before
 * attention that is attention itself, to the blocks that are there; those that were not are merged
 * late, with the same bits. A plan made one layer ahead has the whole MLP. */

/* Attention that could stand beside the gather. NSA's branches are calls that would come between.
 */
static bool may_stand_beside(const worker_engine *e)
{
    return e->side != e->stream && e->gates != 3;
}

bool fetch_merges_late(const worker_engine *e)
{
    return e->config.late_merge && may_stand_beside(e) && e->early == SOURCE_OWN;
}

/* A wait ends because the client completes every request by its deadline; rows whose blocks failed
 * are void. */
static kern_wait_args wait_args(worker_engine *e, uint32_t layer, uint64_t *waited_ns)
{
    uint64_t never = clock_now(&e->config.clock) + WAIT_SECONDS * UINT64_C(1000000000) +
                     e->layers * e->cluster.fetch_deadline_ns;
    return (kern_wait_args){.exchange = engine_exchange(e, layer),
                            .host = &e->host,
                            .deadline_ns = never,
                            .waited_ns = waited_ns,
                            .step = io_is_threaded(e->io) ? e->step_number : 0};
}

/* Where attention does not wait by itself, where a layer has been gathered is a place of its own:
 * with an early plan, or another part of the step, the side stream has by then been given the next
 * wait, for which this attention must not stand. */
static uint32_t place_of(const worker_engine *e, uint32_t layer)
{
    return (e->parts == 2 ? e->now : layer) % FETCH_PLACES;
}

status fetch_follows(kern_stream *stream, kern_stream *of, uint32_t place)
{
    if (stream == of) return STATUS_OK;
    TRY(kern_stream_place(of, place));
    return kern_stream_after(stream, of, place);
}

/* As one op the gather holds its places while it waits: only beside attention, which leaves them.
 */
static status gather_begin(worker_engine *e, uint32_t layer)
{
    uint64_t *waited_ns = e->side == e->stream ? e->wait_ns : NULL;
    kern_bring_args a = {.wait = wait_args(e, layer, waited_ns),
                         .gather = {.exchange = engine_exchange(e, layer),
                                    .table = engine_table(e, layer),
                                    .pool = e->pool,
                                    .row_status = e->dev.status + e->part[e->now].decode.first,
                                    .block_bytes = e->block_bytes,
                                    .ahead = e->early != SOURCE_OWN,
                                    .verify = e->config.verify}};
    if (e->selects == e->stream)
        TRY(fetch_follows(e->side, e->stream, 0));
    else
        TRY(kern_stream_after(e->side, e->selects, layer % PLAN_PLACES));
    if (fetch_merges_late(e)) {
        TRY(kern_bring(e->side, &a));
    } else {
        TRY(kern_wait(e->side, &a.wait));
        TRY(kern_gather(e->side, &a.gather));
    }
    return fetch_beside(e, layer) != NULL ? STATUS_OK
                                          : kern_stream_place(e->side, place_of(e, layer));
}

const kern_exchange *fetch_beside(const worker_engine *e, uint32_t layer)
{
    bool beside = may_stand_beside(e) && kern_attends_beside(e->backend);
    return beside ? engine_exchange(e, layer) : NULL;
}

status fetch_planned(worker_engine *e, uint32_t layer)
{
    if (e->side == e->stream || e->run_ahead == 0) return STATUS_OK;
    return gather_begin(e, layer);
}

/* With no room to run ahead (a big step) the layer's misses are with the io side before a stream
 * may stop for them. What is counted is the layers standing still: beside them a wait costs
 * nothing. Attention that waits by itself counts that as well. */
static status fetch_first(worker_engine *e, uint32_t layer)
{
    bool beside = e->side != e->stream;
    if (!e->inline_ops && e->run_ahead == 0) {
        TRY(pump_until(e, layer * e->parts + e->now + 1));
        TRY(gather_begin(e, layer));
    } else if (!beside) {
        TRY(gather_begin(e, layer));
    }
    if (!beside || !e->config.with_store || fetch_beside(e, layer) != NULL) return STATUS_OK;
    kern_wait_args wait = wait_args(e, layer, e->wait_ns);
    return kern_wait(e->stream, &wait);
}

status fetch_finish(worker_engine *e, uint32_t layer)
{
    uint64_t before = e->inline_ops ? *e->wait_ns : 0; /* else the device's until the step ends */
    TRY(fetch_first(e, layer));
    if (fetch_beside(e, layer) == NULL)
        TRY(kern_stream_after(e->stream, e->side, place_of(e, layer)));
    if (!e->inline_ops) return STATUS_OK;
    uint64_t waited = *e->wait_ns - before;
    if (waited > e->stats.stall_ns_max) e->stats.stall_ns_max = waited;
    fetch_gathered(e);
    return STATUS_OK;
}

/* After a failed step: nothing waits for the io side any more. */
void fetch_abandon(worker_engine *e)
{
    for (uint32_t g = 0; g < e->groups; g++) {
        kern_exchange *x = &e->exchange[g];
        for (uint32_t i = 0; i < x->capacity; i++) {
            int32_t pending = STATUS_PENDING;
            (void)atomic_compare_exchange_strong(&x->arrival[i].state, &pending, STATUS_DEADLINE);
        }
        atomic_store(&x->answered, e->step_number);
    }
}

/* ---- where blocks came from ------------------------------------------------------------------
 *
 * Between two steps the device waits for us, so as little as can be is done there. Plan itself
 * counts what was resident. Misses are counted while the step runs, as their layers are planned.
 * What prefetch had brought is found by a look at every pick: only while there is such a block, and
 * once the next step's layers are with the device (fetch_drain), or when somebody asks for it.
 *
 * Until then blocks may be installed, since these are others than those that the row picked: all of
 * these are in the pool, and none used in the last step has to go for another. A void row may lack
 * some, so it is counted at once. */

bool fetch_wants_picks(const worker_engine *e)
{
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        if (e->seq[e->row.seq[r]].ahead_set > 0) return true;
    }
    return false;
}

static void count_row(worker_engine *e, const row_uncounted *row)
{
    sequence *s = &e->seq[row->seq];
    for (uint32_t i = 0; i < e->layers * e->kv_heads && s->ahead_set > 0; i++) {
        uint32_t l = i / e->kv_heads, h = i % e->kv_heads;
        size_t list = ((size_t)l * e->seqs + row->row) * e->kv_heads + h;
        const int32_t *block = e->seen.block + list * e->max_select;
        const int32_t *slot = e->seen.slot + list * e->max_select;
        uint8_t *ahead = e->ahead_bit + engine_home(e, (uint32_t)row->seq, l, h, 0);
        for (int32_t k = 0; k < e->seen.count[list]; k++) {
            if (ahead[block[k]] == 0 || block[k] == row->open) continue;
            if (row->is_void && slot[k] < 0) continue; /* void before this layer */
            ahead[block[k]] = 0;
            s->ahead_set--;
            e->stats.prefetch.used++;
            if (k >= e->seen.settled[list]) continue;
            e->stats.agnostic_fetched++;
            e->stats.agnostic_ahead++;
        }
    }
}

void fetch_settle(worker_engine *e, int32_t seq)
{
    for (uint32_t i = 0; i < e->uncounted_count; i++) {
        row_uncounted *row = &e->uncounted[i];
        if (row->seq < 0 || (seq >= 0 && row->seq != seq)) continue;
        count_row(e, row);
        row->seq = -1;
    }
    if (seq < 0) e->uncounted_count = 0;
}

/* Which rows' picks are to be looked at, later where that makes no difference. */
static void leave_for_later(worker_engine *e)
{
    bool voids = false;
    CHECK(e->uncounted_count == 0);
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        row_uncounted row = {.seq = e->row.seq[r],
                             .row = r,
                             .open = e->row.pos[r] / KERN_BLOCK,
                             .is_void = e->row.status[r] != STATUS_OK};
        if (e->seq[row.seq].ahead_set == 0) continue;
        e->uncounted[e->uncounted_count++] = row;
        voids |= row.is_void;
    }
    if (voids && !e->inline_ops) {
        size_t lists = (size_t)e->layers * e->seqs * e->kv_heads * e->max_select;
        status result =
            kern_copy(e->stream, e->seen.slot, e->picks.slot, lists * sizeof *e->seen.slot);
        if (result == STATUS_OK) result = kern_stream_sync(e->stream);
        engine_device_failed(e, result);
    }
    if (voids || e->inline_ops) fetch_settle(e, -1);
}

void fetch_over(worker_engine *e)
{
    CHECK(e->planned == engine_plans(e));
    if (e->decode_rows == 0) return;
    while (e->gathered < engine_plans(e))
        fetch_gathered(e);
    while (e->counted < engine_plans(e))
        count_misses(e, e->counted++);
    while (e->asked < e->layers)
        ahead_ask(e, e->asked++);
    leave_for_later(e);
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        uint32_t seq = (uint32_t)e->row.seq[r];
        sequence *s = &e->seq[seq];
        s->row = r;
        s->row_step = e->step_number;
        s->final.blocks.resident += e->row.hits[r];
        e->stats.blocks.resident += e->row.hits[r];
        if (s->ahead_set > 0 && e->step_number - s->ahead_step > AHEAD_STEPS)
            fetch_forget_ahead(e, seq);
    }
    uint64_t stood = *e->seen_stood_ns - e->stood_before_ns, waited = *e->wait_ns + stood;
    e->stood_before_ns += stood;
    e->stats.waited_ns += waited;
    if (!e->inline_ops && waited > e->stats.stall_ns_max)
        e->stats.stall_ns_max = waited; /* of a step: layers are not told apart */
}

/* ---- ahead of time --------------------------------------------------------------------------- */

/* Those given last are the last to be free again. */
static int32_t group_take(worker_engine *e)
{
    uint32_t count = e->groups - e->demands;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t g = e->group_next;
        e->group_next = g + 1 < count ? g + 1 : 0;
        if (!e->prefetch[g].used) return (int32_t)(g + e->demands);
    }
    return -1;
}

/* Without a store all is as near as it can be. */
bool fetch_asks_ahead(const worker_engine *e)
{
    return e->config.prefetch && e->config.with_store;
}

/* What lies in host memory is as near as any prefetch could bring it, but to a sequence that waits
 * for its first blocks. */
static bool is_wanted(const worker_engine *e, const fetch_wish *wish, const kern_exchange *x,
                      uint32_t n, const kern_miss *miss)
{
    const sequence *s = &e->seq[miss->seq];
    if (miss->block < 0 || (uint32_t)miss->block >= s->done / KERN_BLOCK) return false;
    size_t entry = (size_t)miss->kv_head * e->max_blocks + (size_t)miss->block;
    if (wish->resident != NULL && wish->resident[entry] >= 0) return false;
    const kern_home *home = &e->shared.home[engine_home(
        e, (uint32_t)miss->seq, miss->place, (uint32_t)miss->kv_head, (uint32_t)miss->block)];
    if (!wish->resume && atomic_load(&home->slot) >= 0) return false;
    for (uint32_t i = 0; i < n; i++) {
        if (x->miss[i].kv_head == miss->kv_head && x->miss[i].block == miss->block) return false;
    }
    return !wish->guess || !guess_leaves_out(e, miss);
}

/* A guess that finds no room keeps less; lookahead is what somebody asked for. */
static void no_room(worker_engine *e, const fetch_wish *wish, uint32_t blocks, uint32_t stay_most)
{
    if (!wish->guess && e->stats.prefetch.refused == 0)
        LOG(WARN,
            "client.landing (%u MiB) is too small for lookahead step: a quarter of it, %u blocks, "
            "is "
            "to hold the misses of two steps; those that find no room are fetched late",
            (uint32_t)(e->cluster.landing_bytes >> 20), stay_most);
    e->stats.prefetch.refused += wish->guess ? 0 : blocks;
}

/* Ask for them, at most what the entries hold. False: no group or no room is free, nothing asked.
 */
bool fetch_ahead(worker_engine *e, const fetch_wish *wish)
{
    if (!e->config.prefetch) return true; /* a resumed sequence's first step asks for itself */
    int32_t g = group_take(e);
    if (g < 0) return false;
    kern_exchange *x = &e->exchange[g];
    sequence *s = &e->seq[wish->seq];
    uint32_t stay_most = io_landing_slots(e->io) / 4; /* half of what prefetches may have */
    uint32_t n = 0, room = (uint32_t)s->entries > 1 ? (uint32_t)s->entries - 1 : 1;
    for (uint32_t h = 0; h < e->kv_heads; h++) {
        uint32_t taken = 0, count = wish->count != NULL ? (uint32_t)wish->count[h] : wish->per_head;
        for (uint32_t i = 0; i < count && taken < room && n < x->capacity; i++) {
            size_t at = (size_t)h * wish->per_head + i;
            if (wish->slot != NULL && wish->slot[at] >= 0) continue;
            kern_miss miss = {.row = -1,
                              .seq = (int32_t)wish->seq,
                              .kv_head = (int32_t)h,
                              .block = wish->block[at],
                              .entry = -1,
                              .slot = -1,
                              .place = wish->layer};
            if (!is_wanted(e, wish, x, n, &miss)) continue;
            x->miss[n] = miss;
            atomic_store(&x->arrival[n].state, STATUS_PENDING);
            n++;
            taken++;
        }
    }
    if (n == 0) return true;
    if (wish->stay && e->stay_blocks + n > stay_most) {
        no_room(e, wish, n, stay_most);
        return false;
    }
    e->prefetch[g - (int32_t)e->demands] = (prefetch_group){.used = true,
                                                            .seq = (int32_t)wish->seq,
                                                            .layer = (int32_t)wish->layer,
                                                            .generation = s->generation,
                                                            .step = e->step_number,
                                                            .guess = wish->guess,
                                                            .resume = wish->resume,
                                                            .stay = wish->stay};
    s->groups_open++;
    s->groups_stay += wish->stay;
    e->stay_blocks += wish->stay ? n : 0;
    e->stats.prefetch.issued += n;
    atomic_store_explicit(&x->published, n, memory_order_release);
    io_command command = {.op = IO_FETCH,
                          .group = g,
                          .class = KV_PREFETCH,
                          .verify = in_doubt(e),
                          .deadline_ns =
                              clock_now(&e->config.clock) + e->cluster.fetch_deadline_ns};
    io_send(e->io, &command);
    return true;
}

/* ---- installs --------------------------------------------------------------------------------
 *
 * Groups that arrived since the last turn go into the pool together, a layer at a time, and the
 * stream is waited for once. Their lists stand in the exchanges of the layers, which between steps
 * nobody uses. */

void fetch_arrived(worker_engine *e, int32_t group)
{
    prefetch_group *p = &e->prefetch[group - (int32_t)e->demands];
    CHECK(e->arrived_count < e->groups && p->used);
    p->arrived = true;
    if (!p->stay) e->arrived[e->arrived_count++] = group;
}

static void group_over(worker_engine *e, int32_t group)
{
    prefetch_group *p = &e->prefetch[group - (int32_t)e->demands];
    sequence *s = &e->seq[p->seq];
    CHECK(s->groups_open > 0);
    s->groups_open--;
    p->used = false;
    io_let_go(e->io, group);
}

void fetch_let_go(worker_engine *e)
{
    for (uint32_t i = 0; e->stay_blocks > 0 && i < e->groups - e->demands; i++) {
        prefetch_group *p = &e->prefetch[i];
        sequence *s = &e->seq[p->seq];
        if (!p->used || !p->stay || !p->arrived) continue;
        uint32_t steps = p->guess ? e->guess_keep : 1;
        if (e->step_number < p->step + steps && s->state == SEQ_ACTIVE) continue;
        const kern_exchange *x = &e->exchange[e->demands + i];
        uint32_t count = atomic_load(&x->published);
        for (uint32_t k = 0; k < count; k++) {
            if (atomic_load(&x->arrival[k].state) == STATUS_OK) count_left(e, &x->arrival[k]);
        }
        e->stay_blocks -= count;
        s->groups_stay--;
        group_over(e, (int32_t)(e->demands + i));
    }
}

/* Its sequence still has the entries that the group was meant for. */
static bool is_awaited(const worker_engine *e, const prefetch_group *p)
{
    const sequence *s = &e->seq[p->seq];
    return p->generation == s->generation && (s->state == SEQ_ACTIVE || s->state == SEQ_RESUMING);
}

/* What the group brought, to the list of its layer. False: the list is full for now. It may not go
 * in for what the row used last. A void row used nothing in the layers after the one that made it
 * void, the open block neither, of which there is no copy: so what the row before it used counts.
 */
static bool list_add(worker_engine *e, const prefetch_group *p, const kern_exchange *from)
{
    kern_exchange *to = engine_exchange(e, (uint32_t)p->layer);
    const sequence *s = &e->seq[p->seq];
    uint32_t count = atomic_load(&from->published), n = atomic_load(&to->published);
    bool awaited = is_awaited(e, p);
    if (awaited && n + count > to->capacity) return false;
    for (uint32_t i = 0; i < count; i++) {
        const kern_arrival *arrival = &from->arrival[i];
        if (atomic_load_explicit(&arrival->state, memory_order_acquire) != STATUS_OK) continue;
        if (!awaited) {
            count_left(e, arrival);
            continue;
        }
        to->miss[n] = from->miss[i];
        to->arrival[n].source = arrival->source;
        to->arrival[n].seed = arrival->seed;
        to->arrival[n].digest = arrival->digest;
        to->arrival[n].source_kind = arrival->source_kind;
        atomic_store(&to->arrival[n].state, STATUS_OK);
        n++;
    }
    e->keep_step[p->seq] = s->whole_step;
    atomic_store(&to->published, n);
    return true;
}

status fetch_install_lists(worker_engine *e, bool verify)
{
    status result = e->failed;
    for (uint32_t l = 0; l < e->layers && result == STATUS_OK; l++) {
        kern_exchange *x = engine_exchange(e, l);
        kern_install_args install = {.exchange = x,
                                     .table = engine_table(e, l),
                                     .pool = e->pool,
                                     .keep_step = e->keep_step,
                                     .block_bytes = e->block_bytes,
                                     .step = e->step_number,
                                     .verify = verify};
        if (atomic_load(&x->published) > 0) result = kern_install(e->stream, &install);
    }
    if (result == STATUS_OK) result = kern_stream_sync(e->stream);
    engine_device_failed(e, result);
    return result;
}

static void count_installed(worker_engine *e, uint32_t layer)
{
    const kern_exchange *x = engine_exchange(e, layer);
    uint32_t count = atomic_load(&x->published);
    for (uint32_t i = 0; i < count; i++) {
        const kern_miss *m = &x->miss[i];
        bool in = count_source(e, x, i);
        if (!in) {
            count_corrupt(e, x, layer, i);
            count_left(e, &x->arrival[i]);
            continue;
        }
        uint32_t seq = (uint32_t)m->seq;
        uint8_t *ahead =
            &e->ahead_bit[engine_home(e, seq, layer, (uint32_t)m->kv_head, (uint32_t)m->block)];
        e->seq[seq].ahead_set += !*ahead;
        e->seq[seq].ahead_step = e->step_number;
        *ahead = 1;
    }
}

void fetch_install(worker_engine *e)
{
    if (e->arrived_count == 0) return;
    for (uint32_t l = 0; l < e->layers; l++)
        atomic_store(&engine_exchange(e, l)->published, 0);
    uint32_t taken = 0;
    for (; taken < e->arrived_count; taken++) {
        const kern_exchange *from = &e->exchange[e->arrived[taken]];
        const prefetch_group *p = &e->prefetch[e->arrived[taken] - (int32_t)e->demands];
        if (!list_add(e, p, from)) break;
    }
    status result = fetch_install_lists(e, e->config.verify);
    for (uint32_t l = 0; l < e->layers && result == STATUS_OK; l++)
        count_installed(e, l);
    for (uint32_t i = 0; i < taken; i++)
        group_over(e, e->arrived[i]);
    e->arrived_count -= taken;
    memmove(e->arrived, e->arrived + taken, e->arrived_count * sizeof *e->arrived);
}

/* Blocks that the next step of each sequence may select and the pool lacks. */
status fetch_candidates_of(worker_engine *e, const uint32_t *seq, uint32_t n, bool forced)
{
    for (uint32_t i = 0; i < n; i++) {
        e->candidate_seq[i] = (int32_t)seq[i];
        e->candidate_pos[i] = (int32_t)e->seq[seq[i]].done;
        e->candidate_selector[i] = e->seq[seq[i]].selector;
    }
    for (uint32_t l = 0; l < e->layers; l++) {
        kern_candidates_args args = {.seq = e->candidate_seq,
                                     .next_pos = e->candidate_pos,
                                     .selector = e->candidate_selector,
                                     .selectors = e->dev_selectors,
                                     .summary = engine_summary(e, l),
                                     .table = engine_table(e, l),
                                     .block =
                                         e->candidate + (size_t)l * n * e->kv_heads * e->max_select,
                                     .n = n,
                                     .max_candidates = e->max_select,
                                     .forced = forced};
        status result = kern_candidates(e->stream, &args);
        engine_device_failed(e, result);
        TRY(result);
    }
    status result = kern_stream_sync(e->stream);
    engine_device_failed(e, result);
    return result;
}

/* Locality blocks that the next step may select and the pool lacks (NOSA: known before it starts).
 */
void fetch_candidates(worker_engine *e, const uint32_t *seq, uint32_t n)
{
    uint32_t wants[512], count = 0;
    for (uint32_t i = 0; i < n && fetch_asks_ahead(e); i++) {
        if (e->selectors[e->seq[seq[i]].selector].fill_by_importance) wants[count++] = seq[i];
    }
    if (count == 0 || fetch_candidates_of(e, wants, count, false) != STATUS_OK) return;
    size_t lists = (size_t)e->kv_heads * e->max_select;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t l = 0; l < e->layers; l++) {
            fetch_wish wish = {.seq = wants[i],
                               .layer = l,
                               .per_head = e->max_select,
                               .block = e->candidate + ((size_t)l * count + i) * lists};
            if (!fetch_ahead(e, &wish)) break;
        }
    }
}

/* The sequence leaves the pool: what prefetch brought and nobody used was in vain. */
void fetch_forget_ahead(worker_engine *e, uint32_t seq)
{
    fetch_settle(e, (int32_t)seq);
    e->stats.prefetch.wasted += e->seq[seq].ahead_set;
    e->seq[seq].ahead_set = 0;
    memset(e->ahead_bit + engine_home(e, seq, 0, 0, 0), 0,
           (size_t)e->layers * e->kv_heads * e->max_blocks);
}
