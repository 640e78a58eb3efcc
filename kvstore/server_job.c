/* kvstore/server_job.c - bounded queues of exchanges, answered in order of class.
 *
 * All classes share one pool of jobs. PREFETCH, REPAIR and WRITE_BACK may each hold a part of it
 * only, and when a DEMAND finds the pool full, the newest PREFETCH is answered BUSY in its place.
 * A job whose connection takes no more for now keeps its place and others go ahead; when it takes
 * nothing for long its jobs go unanswered, or they would fill the pool and starve the other clients
 * (whoever asked is used to answers that never come). A GET is answered block by block (the
 * slot pinned until the transport gives it back) and ends with one DONE. */
#include "kvstore/server.h"

#include <string.h>

enum {
    BLOCKS_PER_POLL = 128,
    STUCK_NS = 50 * 1000 * 1000, /* a connection that takes nothing: longer than a full window */
};

static const uint32_t class_share[KV_CLASSES] = {
    [KV_DEMAND] = SERVER_JOBS_MAX,
    [KV_WRITE_BACK] = SERVER_JOBS_MAX / 2,
    [KV_PREFETCH] = SERVER_JOBS_MAX / 2,
    [KV_REPAIR] = SERVER_JOBS_MAX / 4,
};
static const kv_class class_order[KV_CLASSES] = {KV_DEMAND, KV_WRITE_BACK, KV_PREFETCH, KV_REPAIR};

void server_jobs_init(kv_server *s)
{
    s->jobs = ARENA_NEW(s->config.memory, job, SERVER_JOBS_MAX);
    s->served = ARENA_NEW(s->config.memory, block_id, SERVER_SERVED);
    for (uint32_t i = 0; i < SERVER_JOBS_MAX; i++)
        s->jobs[i].next = i + 1 < SERVER_JOBS_MAX ? i + 1 : KV_NONE;
    for (uint32_t c = 0; c < KV_CLASSES; c++)
        s->queue[c] = (job_queue){.head = KV_NONE, .tail = KV_NONE};
}

/* Take job i, whose predecessor is `before` (KV_NONE: it is the head), out of its queue and free
 * it. */
static void job_remove(kv_server *s, uint32_t i, uint32_t before)
{
    job *j = &s->jobs[i];
    job_queue *q = &s->queue[j->class];
    CHECK(q->count > 0 && s->conn[j->conn].pending > 0);
    if (before == KV_NONE)
        q->head = j->next;
    else
        s->jobs[before].next = j->next;
    if (q->tail == i) q->tail = before;
    q->count--;
    s->conn[j->conn].pending--;
    j->next = s->job_free;
    s->job_free = i;
    s->jobs_used--;
}

static void answer_busy(kv_server *s, const job *j)
{
    wire_result busy = {
        .head.request = j->request,
        .status = STATUS_BUSY,
        .hint_ns = server_busy_hint(s, j->class),
    };
    (void)server_send_result(s, j->conn, WIRE_BUSY, &busy); /* unsent: the client's timer sees it */
}

/* Drop the newest PREFETCH that has not begun. */
static bool shed_prefetch(kv_server *s)
{
    uint32_t before = KV_NONE, victim = KV_NONE, victim_before = KV_NONE;
    for (uint32_t i = s->queue[KV_PREFETCH].head; i != KV_NONE; i = s->jobs[i].next) {
        if (s->jobs[i].ordinal == 0) {
            victim = i;
            victim_before = before;
        }
        before = i;
    }
    if (victim == KV_NONE) return false;
    answer_busy(s, &s->jobs[victim]);
    job_remove(s, victim, victim_before);
    s->stats.class[KV_PREFETCH].shed++;
    return true;
}

job *server_job_add(kv_server *s, uint32_t conn, job_kind kind, kv_class class, uint64_t request)
{
    CHECK(class < KV_CLASSES && s->conn[conn].peer != 0);
    if (s->queue[class].count >= class_share[class]) return NULL;
    if (s->job_free == KV_NONE && (class != KV_DEMAND || !shed_prefetch(s))) return NULL;
    uint32_t i = s->job_free;
    job *j = &s->jobs[i];
    s->job_free = j->next;
    s->jobs_used++;
    uint64_t delay = s->config.faults.delay_ns;
    j->next = KV_NONE;
    j->kind = kind;
    j->conn = conn;
    j->class = class;
    j->request = request;
    j->since_ns = clock_now(&s->config.clock);
    j->ready_ns = delay == 0 ? 0 : j->since_ns + delay;
    j->deadline_ns = UINT64_MAX;
    j->ordinal = 0;
    j->fated = j->corrupted = false;
    job_queue *q = &s->queue[class];
    if (q->tail == KV_NONE)
        q->head = i;
    else
        s->jobs[q->tail].next = i;
    q->tail = i;
    q->count++;
    s->conn[conn].pending++;
    return j;
}

void server_jobs_forget(kv_server *s, uint32_t conn)
{
    for (uint32_t c = 0; c < KV_CLASSES; c++) {
        uint32_t before = KV_NONE;
        for (uint32_t i = s->queue[c].head; i != KV_NONE;) {
            uint32_t next = s->jobs[i].next;
            if (s->jobs[i].conn != conn) {
                before = i;
            } else {
                if (s->jobs[i].kind == JOB_PUT && s->jobs[i].slot != KV_NO_SLOT)
                    s->tier.ops->discard(s->tier.self, s->jobs[i].slot);
                job_remove(s, i, before);
            }
            i = next;
        }
    }
}

uint64_t server_jobs_next(const kv_server *s)
{
    uint64_t next = UINT64_MAX;
    if (s->config.faults.delay_ns == 0) return next; /* nothing waits for time */
    for (uint32_t c = 0; c < KV_CLASSES; c++) {
        uint32_t head = s->queue[c].head; /* the delay is one for all: the head is the first */
        if (head != KV_NONE && s->jobs[head].ready_ns < next) next = s->jobs[head].ready_ns;
    }
    return next;
}

/* ---- GET ------------------------------------------------------------------------------------- */

void server_get(kv_server *s, uint32_t conn, const kv_message *m)
{
    wire_get get;
    if (wire_decode_get(m->head, m->head_bytes, m->body, m->body_bytes, &get) != STATUS_OK) {
        server_malformed(s, conn, "GET");
        return;
    }
    kv_class class = get.class;
    s->stats.class[class].submitted++;
    job *j = server_job_add(s, conn, JOB_GET, class, get.head.request);
    if (j == NULL) {
        s->stats.class[class].refused_busy++;
        answer_busy(s, &(job){.conn = conn, .class = class, .request = get.head.request});
        return;
    }
    uint64_t now = clock_now(&s->config.clock);
    if (get.remaining_ns < UINT64_MAX - now) j->deadline_ns = now + get.remaining_ns;
    memset(j->block_status, 0, sizeof j->block_status);
    wire_expand_get(&get, m->body, s->layout, s->conn[conn].tenant, &j->list);
    if (!server_epoch_old(s, conn, get.epoch)) return;
    memset(j->block_status, STATUS_FENCED, get.count);
    j->ordinal = get.count;
}

/* The slot to answer with, or why there is none. */
static status look_up(kv_server *s, const job *j, uint32_t *out_slot)
{
    uint32_t slot = s->tier.ops->find(s->tier.self, &j->list.id[j->ordinal]);
    if (slot == KV_NO_SLOT || !kv_context_alive(s->contexts, slot)) {
        s->stats.not_found++;
        return STATUS_NOT_FOUND;
    }
    *out_slot = slot;
    return STATUS_OK;
}

/* A node that is never idle forgets some: who asked compares anyway. */
static void served(kv_server *s, const block_id *id)
{
    if (s->served_count == SERVER_SERVED) return;
    s->served[(s->served_first + s->served_count++) % SERVER_SERVED] = *id;
}

bool server_look_behind(kv_server *s)
{
    if (s->served_count == 0) return false;
    uint32_t slot = s->tier.ops->find(s->tier.self, &s->served[s->served_first]);
    s->served_first = (s->served_first + 1) % SERVER_SERVED;
    s->served_count--;
    if (slot != KV_NO_SLOT) (void)server_still_right(s, slot); /* else dropped since */
    return true;
}

/* faults.flip_wire: the block in a copy of its own with one bit changed. False: no copy is free. */
static bool flipped_copy(kv_server *s, kv_message *m)
{
    uint32_t i = (uint32_t)__builtin_ctz(~s->scratch_lent | 1u << SERVER_SCRATCH);
    if (i >= SERVER_SCRATCH) return false;
    uint64_t bit = rng_below(&s->fault_random, (uint64_t)m->body_bytes * 8);
    memcpy(s->scratch[i], m->body, m->body_bytes);
    s->scratch[i][bit / 8] ^= (uint8_t)(1u << bit % 8);
    m->body = s->scratch[i];
    m->cookie = UINT64_C(1) << SERVER_SCRATCH_BIT | i;
    return true;
}

static bool drawn(kv_server *s, double share)
{
    return share > 0 && rng_unit(&s->fault_random) < share;
}

/* Send one block. BUSY: the connection takes no more now. */
static status send_block(kv_server *s, job *j, uint32_t slot)
{
    if (!j->fated) j->corrupted = drawn(s, s->config.faults.flip_wire);
    if (!j->fated && drawn(s, s->config.faults.drop_reply)) return STATUS_OK;
    j->fated = true;
    wire_block block = {
        .epoch = s->map.epoch,
        .slot = j->list.slot[j->ordinal],
        .ordinal = (uint16_t)j->ordinal,
    };
    wire_head_set(&block.head, WIRE_BLOCK, j->request, s->block_bytes);
    kv_message m = {
        .head = &block,
        .head_bytes = sizeof block,
        .body = s->tier.ops->bytes(s->tier.self, slot, NULL),
        .body_bytes = s->block_bytes,
        .cookie = slot,
    };
    if (j->corrupted && !flipped_copy(s, &m)) return STATUS_BUSY;
    TRY(server_send(s, j->conn, &m));
    if (m.cookie == slot)
        s->tier.ops->pin(s->tier.self, slot, 1);
    else
        s->scratch_lent |= 1u << (m.cookie & (SERVER_SCRATCH - 1));
    served(s, &j->list.id[j->ordinal]);
    return STATUS_OK;
}

static status send_done(kv_server *s, job *j)
{
    if (!j->fated && drawn(s, s->config.faults.drop_reply)) return STATUS_OK;
    j->fated = true;
    wire_done done = {.epoch = s->map.epoch, .count = (uint16_t)j->list.count};
    memcpy(done.block_status, j->block_status, sizeof done.block_status);
    wire_head_set(&done.head, WIRE_DONE, j->request, 0);
    kv_message m = {.head = &done, .head_bytes = sizeof done};
    return server_send(s, j->conn, &m);
}

/* Go on with a GET. OK: finished; BUSY: stopped, go on later. */
static status run_get(kv_server *s, job *j, uint64_t now, uint32_t *budget)
{
    kv_class_stats *stats = &s->stats.class[j->class];
    while (j->ordinal < j->list.count) {
        if (*budget == 0) return STATUS_BUSY;
        uint32_t slot = KV_NO_SLOT;
        status found = now < j->deadline_ns ? look_up(s, j, &slot) : STATUS_DEADLINE;
        if (found == STATUS_OK) {
            TRY(send_block(s, j, slot));
            (*budget)--;
            stats->blocks_ok++;
            stats->bytes += s->block_bytes;
        } else {
            stats->blocks_failed++;
        }
        j->block_status[j->ordinal++] = (int8_t)found;
        j->fated = false;
    }
    TRY(send_done(s, j));
    stats->done_ok++;
    return STATUS_OK;
}

static status run_put(kv_server *s, job *j, uint64_t now)
{
    if (j->slot != KV_NO_SLOT) server_put_verify(s, j, now);
    if (!j->fated && drawn(s, s->config.faults.drop_reply)) return STATUS_OK;
    j->fated = true;
    wire_result result = {
        .head.request = j->request,
        .status = j->result,
        .hint_ns = j->hint_ns,
    };
    TRY(server_send_result(s, j->conn, j->reply, &result));
    kv_class_stats *stats = &s->stats.class[j->class];
    if (j->kind == JOB_PUT && j->result == STATUS_OK) stats->done_ok++;
    if (j->kind == JOB_PUT && j->result != STATUS_OK) stats->done_failed++;
    return STATUS_OK;
}

/* `now` is the poll's and may be older than a send of this poll that was refused. */
static bool is_stuck(const server_conn *c, uint64_t now)
{
    return c->full_since_ns != 0 && now >= c->full_since_ns + STUCK_NS;
}

bool server_jobs_run(kv_server *s, uint64_t now)
{
    uint32_t budget = BLOCKS_PER_POLL;
    bool moved = false;
    for (uint32_t o = 0; o < KV_CLASSES; o++) {
        uint32_t before = KV_NONE;
        for (uint32_t i = s->queue[class_order[o]].head; i != KV_NONE && budget > 0;) {
            job *j = &s->jobs[i];
            uint32_t next = j->next, ordinal = j->ordinal;
            status ran = STATUS_BUSY;
            bool due = now >= j->ready_ns;
            if (due) ran = j->kind == JOB_GET ? run_get(s, j, now, &budget) : run_put(s, j, now);
            moved |= ran != STATUS_BUSY || j->ordinal != ordinal;
            if (ran == STATUS_BUSY && !(due && is_stuck(&s->conn[j->conn], now)))
                before = i;
            else
                job_remove(s, i, before); /* answered, given up, or lost: `closed` follows */
            i = next;
        }
        if (budget == 0) return true;
    }
    return moved;
}
