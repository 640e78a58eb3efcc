/* What happens between steps: events of the io side, admission, pool entries, parking and resuming,
 * the end of sequences.
 *
 *   queue -> PREFILL -> READY <-> RESUMING -> ACTIVE -> CLOSING -> FREE
 *                ^        ^______ park _________|
 *                |________ recompute ___________|
 *
 * One sequence is in prefill at a time, oldest first. READY sequences get the pool in the order of
 * admission; when it is full and somebody waits, the one that ran longest beyond its quantum parks.
 */
#include "worker/fetch.h"

#include <string.h>

/* ---- pool entries ---------------------------------------------------------------------------- */

/* Entries a (layer, KV head): the selection, a victim margin, never more than there are blocks. */
uint32_t sched_entries_needed(const worker_engine *e, const kern_selector *s, uint32_t blocks)
{
    uint64_t select = selector_entries(e, s);
    uint64_t with_margin = select + (select * e->cluster.victim_margin_percent + 99) / 100;
    return with_margin < blocks ? (uint32_t)with_margin : blocks;
}

/* Fills and copies cannot fail but with the device, and then everything does: the engine ends. */
static void entries_give(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    uint32_t n = e->layers * e->kv_heads * (uint32_t)s->entries;
    fetch_forget_ahead(e, seq);
    for (uint32_t i = 0; i < n; i++)
        e->pool_stack[e->pool_free++] = s->pool_slot[i];
    CHECK(e->pool_free <= e->pool_slots);
    size_t blocks = (size_t)e->kv_heads * e->max_blocks,
           entries = (size_t)e->kv_heads * e->max_entries;
    status result = e->failed;
    for (uint32_t l = 0; l < e->layers && result == STATUS_OK; l++) {
        kern_table t = engine_table(e, l);
        void *absent[] = {t.entry_of + seq * blocks, t.block_of + seq * entries,
                          t.slot_of + seq * entries};
        for (uint32_t i = 0; i < 3 && result == STATUS_OK; i++)
            result = kern_fill(e->stream, absent[i], 0xff,
                               (i == 0 ? blocks : entries) * sizeof(int32_t));
        if (result == STATUS_OK)
            result =
                kern_fill(e->stream, t.used_step + seq * entries, 0, entries * sizeof(uint32_t));
    }
    s->entries = 0;
    if (result == STATUS_OK)
        result = kern_copy(e->stream, e->entries + seq, &s->entries, sizeof s->entries);
    engine_device_failed(e, result);
    s->generation++;
}

static bool entries_take(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    uint32_t entries = sched_entries_needed(e, &e->selectors[s->selector], s->blocks_max);
    uint32_t n = e->layers * e->kv_heads * entries;
    if (n > e->pool_free) return false;
    for (uint32_t i = 0; i < n; i++)
        s->pool_slot[i] = e->pool_stack[--e->pool_free];
    status result = STATUS_OK;
    for (uint32_t i = 0; i < e->layers * e->kv_heads && result == STATUS_OK; i++) {
        int32_t *slot_of = engine_table(e, i / e->kv_heads).slot_of +
                           ((size_t)seq * e->kv_heads + i % e->kv_heads) * e->max_entries;
        result = kern_copy(e->stream, slot_of, s->pool_slot + (size_t)i * entries,
                           entries * sizeof(int32_t));
    }
    s->entries = (int32_t)entries;
    if (result == STATUS_OK)
        result = kern_copy(e->stream, e->entries + seq, &s->entries, sizeof s->entries);
    engine_device_failed(e, result);
    s->generation++;
    return true;
}

/* ---- park and resume ------------------------------------------------------------------------- */

/* The open block moves to host slots; everything else is in the store or in host memory already. */
static bool park(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->done % KERN_BLOCK != 0 && seal_tail(e, seq) != STATUS_OK) return false;
    select_keep(e, seq);
    entries_give(e, seq);
    s->state = SEQ_READY;
    s->final.parks++;
    e->stats.parks++;
    return true;
}

static void tail_drop(worker_engine *e, sequence *s)
{
    for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
        if (s->tail_slot[i] >= 0) io_slot_give(e->io, s->tail_slot[i]);
        s->tail_slot[i] = -1;
    }
}

/* The open block goes back into the pool. Not OK: the device failed, or the block's bytes are not
 * what they were, and only a recompute has them. */
static status tail_install(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->done % KERN_BLOCK == 0) return STATUS_OK;
    for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
        kern_exchange *x = engine_exchange(e, i / e->kv_heads);
        uint32_t h = i % e->kv_heads, block = s->done / KERN_BLOCK;
        block_id id = io_block_id(e->io, (int32_t)seq, (int32_t)(i / e->kv_heads), (int32_t)h,
                                  (int32_t)block);
        x->miss[h] = (kern_miss){.row = -1,
                                 .seq = (int32_t)seq,
                                 .kv_head = (int32_t)h,
                                 .block = (int32_t)block,
                                 .entry = -1,
                                 .slot = -1};
        x->arrival[h].source = io_slot_bytes(e->io, s->tail_slot[i]);
        x->arrival[h].seed = block_id_hash(&id);
        x->arrival[h].digest = s->tail_digest[i];
        atomic_store(&x->arrival[h].state, STATUS_OK);
        atomic_store(&x->published, e->kv_heads);
    }
    e->keep_step[seq] = e->step_number;
    status result = fetch_install_lists(e, true);
    for (uint32_t i = 0; i < e->layers * e->kv_heads && result == STATUS_OK; i++)
        result = (status)atomic_load(
            &engine_exchange(e, i / e->kv_heads)->arrival[i % e->kv_heads].state);
    if (result == STATUS_OK)
        tail_drop(e, s);
    else
        LOG(ERROR, "the open block of sequence %llu did not get back into the pool: %s",
            (unsigned long long)s->request.id, status_sentence(result));
    return result;
}

/* First the forced blocks and the best by importance, then what it attended to last. */
static void resume_fetch(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    uint32_t m = e->max_select;
    int32_t *list = e->resume_list;
    if (fetch_candidates_of(e, &seq, 1, true) != STATUS_OK) return;
    for (uint32_t l = 0; l < e->layers; l++) {
        const int32_t *more = e->candidate + (size_t)l * e->kv_heads * m;
        for (uint32_t h = 0; h < e->kv_heads; h++) {
            const int32_t *last = s->last_pick + ((size_t)l * e->kv_heads + h) * m;
            memcpy(list + (size_t)h * 2 * m, more + (size_t)h * m, m * sizeof(int32_t));
            memcpy(list + ((size_t)h * 2 + 1) * m, last, m * sizeof(int32_t));
        }
        fetch_wish wish = {
            .seq = seq, .layer = l, .per_head = 2 * m, .block = list, .resume = true};
        if (!fetch_ahead(e, &wish)) return;
    }
}

static bool resume(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (!entries_take(e, seq)) return false;
    s->whole_step = e->step_number;
    s->state = SEQ_RESUMING;
    s->ran = 0;
    s->void_status = e->failed != STATUS_OK ? e->failed : tail_install(e, seq);
    if (e->failed != STATUS_OK) return true; /* the engine ends */
    if (s->void_status != STATUS_OK) {
        sched_recompute(e, seq);
        return true;
    }
    resume_fetch(e, seq);
    io_command unhold = {.op = IO_UNHOLD, .seq = (int32_t)seq};
    io_send(e->io, &unhold);
    e->stats.resumes++;
    return true;
}

/* ---- the end of a sequence ------------------------------------------------------------------- */

static void stage_drop(worker_engine *e, sequence *s)
{
    uint32_t sealed = s->done / KERN_BLOCK; /* sealed blocks are the io side's */
    for (uint32_t i = 0; i < e->layers * e->kv_heads; i++) {
        int32_t *slot = s->stage_slot + (size_t)i * e->max_blocks;
        for (uint32_t b = 0; b < e->max_blocks; b++) {
            if (b >= sealed && slot[b] >= 0) io_slot_give(e->io, slot[b]);
            slot[b] = -1;
        }
    }
}

static void leave(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->state == SEQ_ACTIVE || s->state == SEQ_RESUMING) entries_give(e, seq);
    if (s->state == SEQ_PREFILL) stage_drop(e, s);
    tail_drop(e, s);
}

void sched_finish(worker_engine *e, uint32_t seq, worker_reason reason, status result)
{
    sequence *s = &e->seq[seq];
    CHECK(s->state != SEQ_FREE && s->state != SEQ_CLOSING);
    leave(e, seq);
    s->state = SEQ_CLOSING;
    s->final.id = s->request.id;
    s->final.kind = WORKER_FINISHED;
    s->final.reason = reason;
    s->final.result = result;
    s->final.finished_ns = clock_now(&e->config.clock);
    engine_emit(e, &s->final);
    io_command forget = {.op = IO_FORGET, .seq = (int32_t)seq};
    io_send(e->io, &forget);
}

static void fail_one(worker_engine *e, worker_event *final, uint64_t id, status why)
{
    final->id = id;
    final->kind = WORKER_FINISHED;
    final->reason = REASON_FAILED;
    final->result = why;
    final->finished_ns = clock_now(&e->config.clock);
    engine_emit(e, final);
}

void sched_fail_all(worker_engine *e, status why)
{
    uint32_t live = 0;
    for (uint32_t i = 0; i < e->seqs; i++) {
        sequence *s = &e->seq[i];
        if (s->state != SEQ_FREE && s->state != SEQ_CLOSING) {
            fail_one(e, &s->final, s->request.id, why);
            live++;
        }
        s->state = SEQ_FREE;
    }
    for (; e->queue_count > 0; e->queue_count--, live++) {
        const engine_request *r = &e->queue[e->queue_head];
        worker_event final = {.submitted_ns = r->submitted_ns};
        fail_one(e, &final, r->request.id, why);
        e->queue_head = (e->queue_head + 1) % ENGINE_QUEUE;
    }
    LOG(ERROR,
        "the device stopped at step %u (%s): %u requests have failed, and this worker has to be "
        "started again",
        e->step_number, status_sentence(why), live);
}

/* Every replica of a block is gone: the prompt is computed again, generated tokens are replayed as
 * decode steps, blocks are put again under the digests they had. */
void sched_recompute(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    if (s->final.recomputes == ENGINE_RECOMPUTE_MAX) {
        sched_finish(e, seq, REASON_FAILED, s->void_status);
        return;
    }
    leave(e, seq);
    s->final.recomputes++;
    e->stats.recomputes++;
    s->done = 0;
    s->void_tries = 0;
    s->aside = false;
    s->state = SEQ_READY; /* done < prompt_count: waits for its turn in prefill */
}

/* ---- admission ------------------------------------------------------------------------------- */

static bool needs_prefill(const sequence *s)
{
    return s->state == SEQ_READY && s->done < s->prefill_count;
}

sequence *sched_prefilling(worker_engine *e, uint32_t *out_seq)
{
    for (uint32_t i = 0; i < e->seqs; i++) {
        if (e->seq[i].state != SEQ_PREFILL) continue;
        *out_seq = i;
        return &e->seq[i];
    }
    return NULL;
}

static int32_t oldest(const worker_engine *e, bool (*is)(const sequence *))
{
    int32_t best = -1;
    for (uint32_t i = 0; i < e->seqs; i++) {
        if (is(&e->seq[i]) && (best < 0 || e->seq[i].order < e->seq[best].order)) best = (int32_t)i;
    }
    return best;
}

static bool is_free(const sequence *s)
{
    return s->state == SEQ_FREE;
}

static bool can_resume(const sequence *s)
{
    return s->state == SEQ_READY && s->done >= s->prefill_count && s->groups_open == 0;
}

static status open_sequence(worker_engine *e, uint32_t seq, const worker_request *request)
{
    sequence *s = &e->seq[seq];
    size_t homes = (size_t)e->layers * e->kv_heads * e->max_blocks;
    TRY(context_id_random(&e->shared.context[seq]));
    kern_home *home = e->shared.home + engine_home(e, seq, 0, 0, 0);
    for (size_t i = 0; i < homes; i++)
        home[i].digest = 0; /* not known; the slots are the io side's */
    uint32_t generation = s->generation + 1;
    int32_t *keep[] = {s->token, s->pool_slot, s->tail_slot, s->stage_slot, s->last_pick};
    *s = (sequence){.generation = generation,
                    .token = keep[0],
                    .pool_slot = keep[1],
                    .tail_slot = keep[2],
                    .tail_digest = s->tail_digest,
                    .stage_slot = keep[3],
                    .last_pick = keep[4]};
    memset(s->last_pick, 0xff, (size_t)e->layers * e->kv_heads * e->max_select * sizeof(int32_t));
    s->request = *request;
    memcpy(s->token, request->prompt, request->prompt_count * sizeof(int32_t));
    if (request->eos_count > 0) memcpy(s->eos, request->eos, request->eos_count * sizeof(int32_t));
    s->count = request->prompt_count;
    s->prefill_count = request->prompt_count - request->step_count;
    s->blocks_max = (request->prompt_count + request->max_new + KERN_BLOCK - 1) / KERN_BLOCK;
    for (uint32_t i = 0; i < e->selector_count; i++) {
        if (engine_selectors_equal(&e->selectors[i], &request->selector)) s->selector = (int32_t)i;
    }
    s->order = e->admitted++;
    s->state = SEQ_PREFILL;
    return STATUS_OK;
}

static void admit(worker_engine *e)
{
    uint32_t seq;
    if (sched_prefilling(e, &seq) != NULL) return;
    int32_t again = oldest(e, needs_prefill);
    if (again >= 0) {
        if (e->seq[again].groups_open == 0) e->seq[again].state = SEQ_PREFILL;
        return;
    }
    int32_t slot = oldest(e, is_free);
    if (slot < 0 || e->queue_count == 0) return;
    engine_request *request = &e->queue[e->queue_head];
    e->queue_head = (e->queue_head + 1) % ENGINE_QUEUE;
    e->queue_count--;
    status result = open_sequence(e, (uint32_t)slot, &request->request);
    e->seq[slot].final.submitted_ns = request->submitted_ns;
    e->seq[slot].cancel = request->cancel;
    if (result != STATUS_OK) {
        e->seq[slot].state = SEQ_PREFILL;
        sched_finish(e, (uint32_t)slot, REASON_FAILED, result);
    }
}

/* The pool for READY sequences; a full pool rotates after the quantum. */
static void rotate(worker_engine *e)
{
    int32_t ready = oldest(e, can_resume);
    if (ready < 0 || resume(e, (uint32_t)ready)) return;
    int32_t longest = -1;
    for (uint32_t i = 0; i < e->seqs; i++) {
        sequence *s = &e->seq[i];
        if (s->state == SEQ_ACTIVE && s->groups_open == s->groups_stay &&
            s->ran >= e->cluster.park_quantum_steps &&
            (longest < 0 || s->ran > e->seq[longest].ran))
            longest = (int32_t)i;
    }
    if (longest < 0 || !park(e, (uint32_t)longest)) return;
    e->seq[longest].order = e->admitted++; /* behind everybody who waits */
    resume(e, (uint32_t)ready);
}

static void take_event(worker_engine *e, const io_event *event)
{
    sequence *s = &e->seq[event->seq];
    switch (event->kind) {
    case IO_GROUP_DONE:
        fetch_arrived(e, event->group);
        break;
    case IO_PUT_FAILED:
        if (s->put_status == STATUS_OK) s->put_status = event->result;
        break;
    case IO_FORGOTTEN:
        CHECK(s->state == SEQ_CLOSING);
        s->forgotten = true;
        break;
    }
}

void sched_turn(worker_engine *e)
{
    io_event event;
    while (io_receive(e->io, &event))
        take_event(e, &event);
    fetch_let_go(e);
    fetch_install(e);
    for (uint32_t i = 0; i < e->seqs; i++) {
        sequence *s = &e->seq[i];
        if (s->state == SEQ_CLOSING && s->forgotten && s->groups_open == 0) s->state = SEQ_FREE;
        if (s->state == SEQ_FREE || s->state == SEQ_CLOSING) continue;
        if (s->cancel)
            sched_finish(e, i, REASON_CANCELED, STATUS_OK);
        else if (s->put_status != STATUS_OK)
            sched_finish(e, i, REASON_FAILED, s->put_status);
        else if (s->state == SEQ_RESUMING && s->groups_open == 0)
            s->state = SEQ_ACTIVE;
    }
    admit(e);
    rotate(e);
}
