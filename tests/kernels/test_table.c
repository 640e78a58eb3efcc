/* tests/kernels/test_table.c - the block table during a step: plan, wait, gather, install,
 * candidates, seal, with blocks that fail, flip, come late or do not fit. */
#include "kernels/kernels.h"
#include "tests/test.h"

enum {
    SEQS = 2,
    KV = 2,
    BLOCKS = 64,
    ENTRIES = 12,
    MOST = 16,
    BYTES = 4 * KERN_BLOCK * 32,
    CAPACITY = 256
};

/* A table of two sequences, an exchange, a pool, and rows of up to MOST entries. */
typedef struct bench {
    kern_backend *backend;
    kern_stream *stream;
    int32_t entry_of[SEQS * KV * BLOCKS], block_of[SEQS * KV * ENTRIES],
        slot_of[SEQS * KV * ENTRIES];
    uint32_t used_step[SEQS * KV * ENTRIES];
    int32_t entries[SEQS];
    kern_table table;
    kern_miss miss[CAPACITY];
    kern_arrival arrival[CAPACITY];
    kern_exchange exchange;
    _Alignas(64) uint8_t pool[SEQS * KV * ENTRIES * BYTES];
    _Alignas(64) uint8_t source[CAPACITY][BYTES];
    int32_t block[4 * KV * MOST], slot[4 * KV * MOST], count[4 * KV], settled[4 * KV];
    float importance[4 * KV * BLOCKS];
    int32_t row_seq[4], row_pos[4], row_status[4];
    uint32_t hits[4], misses[4];
    uint8_t late[4 * KV]; /* MOST entries have one byte */
    kern_homes homes;
} bench;

static bench *bench_open(void)
{
    static bench b;
    memset(&b, 0, sizeof b);
    const kern_config config = {.backend = "cpu", .threads = 2};
    EXPECT(kern_backend_open(&config, &b.backend) == STATUS_OK);
    EXPECT(kern_stream_create(b.backend, &b.stream) == STATUS_OK);
    for (int i = 0; i < SEQS * KV * BLOCKS; i++)
        b.entry_of[i] = -1;
    for (int i = 0; i < SEQS * KV * ENTRIES; i++) {
        b.block_of[i] = -1;
        b.slot_of[i] = SEQS * KV * ENTRIES - 1 - i;
    }
    for (int i = 0; i < SEQS; i++)
        b.entries[i] = ENTRIES;
    b.table = (kern_table){b.entry_of, b.block_of, b.slot_of, b.used_step, b.entries,
                           SEQS,       KV,         BLOCKS,    ENTRIES};
    b.exchange.miss = b.miss;
    b.exchange.arrival = b.arrival;
    b.exchange.capacity = CAPACITY;
    return &b;
}

static void bench_close(bench *b)
{
    kern_stream_destroy(b->stream);
    kern_backend_close(b->backend);
}

/* Row r selects `count` blocks on every head; the first `settled` are not query picks. */
static void row_selects(bench *b, uint32_t r, int32_t seq, int32_t pos, const int32_t *blocks,
                        int32_t count, int32_t settled)
{
    b->row_seq[r] = seq;
    b->row_pos[r] = pos;
    b->row_status[r] = STATUS_OK;
    for (uint32_t h = 0; h < KV; h++) {
        b->count[r * KV + h] = count;
        b->settled[r * KV + h] = settled;
        for (int32_t e = 0; e < count; e++)
            b->block[(r * KV + h) * MOST + (uint32_t)e] = blocks[e];
    }
}

static status plan(bench *b, uint32_t rows, uint32_t step)
{
    const kern_plan_args a = {.block = b->block,
                              .count = b->count,
                              .settled = b->settled,
                              .importance = b->importance,
                              .row_seq = b->row_seq,
                              .row_pos = b->row_pos,
                              .table = b->table,
                              .slot = b->slot,
                              .late = b->late,
                              .homes = b->homes,
                              .exchange = &b->exchange,
                              .row_status = b->row_status,
                              .row_hits = b->hits,
                              .row_misses = b->misses,
                              .rows = rows,
                              .max_select = MOST,
                              .max_select_blocks = BLOCKS,
                              .select_block = 64,
                              .step = step};
    return kern_plan(b->stream, &a);
}

/* Every entry's block points back at it, and no block has two entries. */
static void expect_table_sound(const bench *b)
{
    for (int place = 0; place < SEQS * KV; place++) {
        int mapped = 0;
        for (int block = 0; block < BLOCKS; block++) {
            const int32_t e = b->entry_of[place * BLOCKS + block];
            if (e < 0) continue;
            mapped++;
            EXPECT(b->block_of[place * ENTRIES + e] == block);
        }
        for (int e = 0; e < ENTRIES; e++)
            mapped -= b->block_of[place * ENTRIES + e] >= 0;
        EXPECT(mapped == 0);
    }
}

static int32_t entry(const bench *b, int seq, int head, int block)
{
    return b->entry_of[(seq * KV + head) * BLOCKS + block];
}

static block_id id_of(const kern_miss *m)
{
    block_id id;
    memset(&id, 0, sizeof id);
    id.block = (uint32_t)m->block;
    id.kv_head = (uint16_t)m->kv_head;
    return id;
}

/* Answer miss i with bytes of its own and their digest. */
static void answer(bench *b, uint32_t i)
{
    const block_id id = id_of(&b->miss[i]);
    for (uint32_t j = 0; j < BYTES; j++)
        b->source[i][j] = (uint8_t)(i * 7 + j * 13 + j / 256);
    b->arrival[i].source = b->source[i];
    b->arrival[i].seed = block_id_hash(&id);
    b->arrival[i].digest = block_digest(&id, b->source[i], BYTES);
    atomic_store_explicit(&b->arrival[i].state, STATUS_OK, memory_order_release);
}

static void gather(bench *b, bool verify)
{
    const kern_gather_args a = {.exchange = &b->exchange,
                                .table = b->table,
                                .pool = b->pool,
                                .row_status = b->row_status,
                                .block_bytes = BYTES,
                                .verify = verify};
    EXPECT(kern_gather(b->stream, &a) == STATUS_OK);
}

/* ---- plan ------------------------------------------------------------------------------------ */

TEST(a_first_plan_lists_every_block_but_the_one_it_starts)
{
    bench *b = bench_open();
    row_selects(b, 0, 1, 5 * 64, (const int32_t[]){0, 4, 5, 2}, 4, 3);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    EXPECT(b->row_status[0] == STATUS_OK && b->exchange.published == 3 * KV);
    EXPECT(b->hits[0] == 0 && b->misses[0] == 3 * KV);
    for (uint32_t i = 0; i < 3 * KV; i++) {
        const kern_miss *m = &b->miss[i];
        EXPECT(m->row == 0 && m->seq == 1 && m->kv_head == (int32_t)(i / 3) && m->block != 5);
        EXPECT(m->agnostic == (m->block != 2));
        EXPECT(m->entry == entry(b, 1, m->kv_head, m->block));
        EXPECT(m->slot == b->slot_of[(KV + m->kv_head) * ENTRIES + m->entry]);
        EXPECT(b->arrival[i].state == STATUS_PENDING);
    }
    EXPECT(entry(b, 1, 0, 5) >= 0 && entry(b, 0, 0, 0) < 0);
    expect_table_sound(b);
    bench_close(b);
}

TEST(a_current_block_that_is_absent_in_its_middle_is_a_miss)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 5 * 64 + 1, (const int32_t[]){5}, 1, 1);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    EXPECT(b->exchange.published == KV && b->misses[0] == KV);
    bench_close(b);
}

/* The current block (6 here) is looked for, not counted. */
TEST(a_second_plan_of_the_same_selection_has_only_hits)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    EXPECT(plan(b, 1, 2) == STATUS_OK);
    EXPECT(b->exchange.published == 0 && b->hits[0] == 2 * KV && b->misses[0] == 3 * KV);
    EXPECT(b->exchange.answered == 2); /* nothing was PENDING */
    for (uint32_t e = 0; e < 3; e++) {
        const int32_t block = b->block[e];
        EXPECT(b->slot[e] == b->slot_of[entry(b, 0, 0, block)]);
    }
    bench_close(b);
}

TEST(groups_with_a_miss_are_late_and_the_block_that_a_row_starts_is_none)
{
    bench *b = bench_open();
    memset(b->late, 0xee, sizeof b->late);
    row_selects(b, 0, 0, 20 * 64 + 1, (const int32_t[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 20}, 10, 9);
    EXPECT(plan(b, 1, 1) == STATUS_OK && b->late[0] == 3 && b->late[1] == 3 && b->late[KV] == 0xee);
    EXPECT(plan(b, 1, 2) == STATUS_OK && b->late[0] == 0 && b->late[1] == 0);
    row_selects(b, 0, 0, 21 * 64, (const int32_t[]){0, 20, 21}, 3, 3);
    EXPECT(plan(b, 1, 3) == STATUS_OK && b->late[0] == 0);
    bench_close(b);
}

TEST(victims_are_least_recently_used_then_least_important_then_lowest)
{
    bench *b = bench_open();
    for (int32_t i = 0; i < ENTRIES; i += 4) { /* blocks 0-3 at step 1, 4-7 at step 2, 8-11 at 3 */
        row_selects(b, 0, 0, 3000, (const int32_t[]){i, i + 1, i + 2, i + 3}, 4, 4);
        EXPECT(plan(b, 1, 1 + (uint32_t)i / 4) == STATUS_OK);
    }
    for (uint32_t h = 0; h < KV; h++) {
        const float values[4] = {2.0f, 1.0f, 3.0f, 1.0f};
        memcpy(b->importance + h * BLOCKS, values, sizeof values);
    }
    row_selects(b, 0, 0, 3000, (const int32_t[]){20, 21, 22}, 3, 3);
    EXPECT(plan(b, 1, 4) == STATUS_OK);
    EXPECT(entry(b, 0, 0, 1) < 0 && entry(b, 0, 0, 3) < 0 && entry(b, 0, 0, 0) < 0);
    EXPECT(entry(b, 0, 0, 2) >= 0 && entry(b, 0, 0, 4) >= 0);
    EXPECT(entry(b, 0, 0, 20) == 1 && entry(b, 0, 0, 21) == 3 && entry(b, 0, 0, 22) == 0);
    expect_table_sound(b);
    bench_close(b);
}

TEST(blocks_are_located_by_the_table_or_by_a_list_of_homes)
{
    bench *b = bench_open();
    const int32_t blocks[] = {3, 5, 9};
    row_selects(b, 0, 1, 9 * KERN_BLOCK + 7, blocks, 3, 3);
    for (int h = 0; h < KV; h++) { /* block 5 has no entry */
        b->entry_of[(KV + h) * BLOCKS + 3] = h;
        b->entry_of[(KV + h) * BLOCKS + 9] = h + 2;
    }
    kern_locate_args a = {.block = b->block,
                          .count = b->count,
                          .row_seq = b->row_seq,
                          .row_pos = b->row_pos,
                          .table = b->table,
                          .slot = b->slot,
                          .rows = 1,
                          .max_select = MOST};
    EXPECT(kern_locate(b->stream, &a) == STATUS_OK);
    for (int h = 0; h < KV; h++) {
        const int32_t *of = b->slot_of + (KV + h) * ENTRIES;
        EXPECT_EQ_I64(b->slot[h * MOST], of[h]);
        EXPECT_EQ_I64(b->slot[h * MOST + 1], -1);
        EXPECT_EQ_I64(b->slot[h * MOST + 2], of[h + 2]);
    }
    a.block = a.count = NULL; /* the open block of the row */
    a.max_select = 1;
    EXPECT(kern_locate(b->stream, &a) == STATUS_OK);
    EXPECT_EQ_I64(b->slot[1], b->slot_of[(KV + 1) * ENTRIES + 3]);
    int32_t home[KV * BLOCKS];
    for (int i = 0; i < KV * BLOCKS; i++)
        home[i] = 1000 + i;
    a.home = home;
    EXPECT(kern_locate(b->stream, &a) == STATUS_OK);
    EXPECT_EQ_I64(b->slot[1], 1000 + BLOCKS + 9);
    a.max_select = 2; /* without blocks there is one a row */
    EXPECT(kern_locate(b->stream, &a) == STATUS_INVALID);
    bench_close(b);
}
TEST(a_block_of_the_selection_is_never_a_victim)
{
    bench *b = bench_open();
    int32_t all[ENTRIES];
    for (int32_t i = 0; i < ENTRIES; i++)
        all[i] = i;
    row_selects(b, 0, 0, 3000, all, ENTRIES, ENTRIES);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    for (int32_t i = 0; i < ENTRIES; i++)
        all[i] = i + 1; /* all but one stay */
    row_selects(b, 0, 0, 3000, all, ENTRIES, ENTRIES);
    EXPECT(plan(b, 1, 2) == STATUS_OK);
    EXPECT(b->exchange.published == KV && entry(b, 0, 0, 0) < 0);
    for (int32_t i = 1; i <= ENTRIES; i++)
        EXPECT(entry(b, 0, 1, i) >= 0);
    bench_close(b);
}

TEST(a_row_that_does_not_fit_is_void_and_publishes_nothing_for_that_head)
{
    bench *b = bench_open();
    int32_t all[ENTRIES + 1];
    for (int32_t i = 0; i <= ENTRIES; i++)
        all[i] = i;
    row_selects(b, 0, 0, 3000, all, ENTRIES + 1, 1);
    row_selects(b, 1, 1, 3000, all, ENTRIES, 1);
    EXPECT(plan(b, 2, 1) == STATUS_OK);
    EXPECT(b->row_status[0] == STATUS_NO_MEMORY && b->row_status[1] == STATUS_OK);
    EXPECT(b->exchange.published == ENTRIES * KV);
    for (uint32_t i = 0; i < MOST * KV; i++)
        EXPECT(b->slot[i] == -1);
    expect_table_sound(b);
    bench_close(b);
}

TEST(two_rows_of_one_sequence_do_not_evict_each_other)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 3000, (const int32_t[]){0, 1, 2, 3, 4, 5, 6}, 7, 7);
    row_selects(b, 1, 0, 3001, (const int32_t[]){0, 1, 12, 13, 14, 15, 16}, 7, 7);
    EXPECT(plan(b, 2, 9) == STATUS_OK);
    EXPECT(b->row_status[0] == STATUS_OK && b->row_status[1] == STATUS_OK);
    for (int32_t i = 0; i < 7; i++)
        EXPECT(entry(b, 0, 0, i) >= 0);
    EXPECT(b->hits[1] == 2 * KV && b->misses[1] == 5 * KV);
    row_selects(b, 1, 0, 3001, (const int32_t[]){20, 21, 22, 23, 24, 25}, 6, 6);
    EXPECT(plan(b, 2, 10) == STATUS_OK);
    EXPECT(b->row_status[0] == STATUS_OK && b->row_status[1] == STATUS_NO_MEMORY);
    bench_close(b);
}

TEST(rows_that_are_off_or_void_are_left_alone)
{
    bench *b = bench_open();
    const uint8_t on[2] = {0, 1};
    row_selects(b, 0, 0, 100, (const int32_t[]){0, 1}, 2, 2);
    row_selects(b, 1, 1, 100, (const int32_t[]){0, 1}, 2, 2);
    b->row_status[1] = STATUS_CORRUPT;
    b->slot[0] = 77;
    kern_plan_args a = {.block = b->block,
                        .count = b->count,
                        .settled = b->settled,
                        .importance = b->importance,
                        .row_seq = b->row_seq,
                        .row_pos = b->row_pos,
                        .row_on = on,
                        .table = b->table,
                        .slot = b->slot,
                        .exchange = &b->exchange,
                        .row_status = b->row_status,
                        .row_hits = b->hits,
                        .row_misses = b->misses,
                        .rows = 2,
                        .max_select = MOST,
                        .max_select_blocks = BLOCKS,
                        .select_block = 64,
                        .step = 1};
    EXPECT(kern_plan(b->stream, &a) == STATUS_OK);
    EXPECT(b->exchange.published == 0 && b->slot[0] == 77 && b->slot[KV * MOST] == -1);
    EXPECT(b->row_status[1] == STATUS_CORRUPT);
    b->exchange.capacity = 2 * KV * MOST - 1;
    EXPECT(kern_plan(b->stream, &a) == STATUS_INVALID);
    bench_close(b);
}

TEST(a_miss_that_lies_in_host_memory_has_arrived_and_others_are_pending)
{
    bench *b = bench_open();
    static kern_home home[2 * SEQS * KV * BLOCKS]; /* of two layers; ours is the second */
    static uint8_t memory[4 * BYTES];
    for (uint32_t i = 0; i < 2 * SEQS * KV * BLOCKS; i++)
        home[i] = (kern_home){.slot = -1};
    memset(memory, 0x5a, sizeof memory);
    kern_home *there = &home[(3 * KV + 1) * BLOCKS + 3]; /* sequence 1, layer 1, head 1, block 3 */
    *there = (kern_home){5, bytes_digest(memory, BYTES, 5), 2, 0};
    kern_home *flipped = &home[KV * BLOCKS + 6]; /* sequence 0, layer 1, head 0, block 6 */
    *flipped = (kern_home){6, bytes_digest(memory, BYTES, 6), 3, 0};
    memory[3 * BYTES + 9] ^= 1;
    b->homes = (kern_homes){home + KV * BLOCKS, memory, 2 * KV * BLOCKS, BYTES};
    row_selects(b, 0, 1, 400, (const int32_t[]){0, 3}, 2, 2);
    row_selects(b, 1, 0, 400, (const int32_t[]){0, 6}, 2, 2);
    EXPECT(plan(b, 2, 1) == STATUS_OK);
    EXPECT(b->exchange.published == 4 * KV && b->exchange.unanswered == 4 * KV - 2);
    EXPECT(b->exchange.answered == 0);
    for (uint32_t i = 0; i < b->exchange.published; i++) {
        const kern_home *at = b->miss[i].row == 0 ? there : flipped;
        const bool found = b->miss[i].block == (at == there ? 3 : 6) &&
                           b->miss[i].kv_head == (at == there ? 1 : 0);
        EXPECT(b->arrival[i].state == (found ? STATUS_OK : STATUS_PENDING));
        if (!found)
            answer(b, i);
        else
            EXPECT(b->arrival[i].source == memory + (uint64_t)at->slot * BYTES &&
                   b->arrival[i].seed == at->seed && b->arrival[i].source_kind == KERN_FROM_HOME);
    }
    gather(b, true);
    EXPECT(b->row_status[0] == STATUS_OK && b->row_status[1] == STATUS_CORRUPT);
    b->homes.home = NULL;
    row_selects(b, 0, 1, 400, (const int32_t[]){0, 3, 5}, 3, 3);
    EXPECT(plan(b, 1, 2) == STATUS_OK);
    EXPECT(b->exchange.published == KV && b->exchange.unanswered == KV);
    bench_close(b);
}

/* ---- gather ---------------------------------------------------------------------------------- */

TEST(a_gathered_block_is_what_was_sent)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    for (uint32_t i = 0; i < b->exchange.published; i++)
        answer(b, i);
    gather(b, true);
    EXPECT(b->row_status[0] == STATUS_OK);
    for (uint32_t i = 0; i < b->exchange.published; i++)
        EXPECT(memcmp(b->pool + (uint64_t)b->miss[i].slot * BYTES, b->source[i], BYTES) == 0);
    bench_close(b);
}

TEST(one_flipped_bit_voids_the_row_and_unmaps_the_entry)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    row_selects(b, 1, 1, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    EXPECT(plan(b, 2, 1) == STATUS_OK);
    for (uint32_t i = 0; i < b->exchange.published; i++)
        answer(b, i);
    b->source[1][BYTES - 1] ^= 0x10;
    gather(b, true);
    EXPECT(b->row_status[0] == STATUS_CORRUPT && b->row_status[1] == STATUS_OK);
    EXPECT(b->arrival[1].state == STATUS_CORRUPT && b->arrival[0].state == STATUS_OK);
    EXPECT(entry(b, 0, 0, b->miss[1].block) < 0 && entry(b, 0, 0, b->miss[0].block) >= 0);
    expect_table_sound(b);
    bench_close(b);
}

TEST(without_verification_a_flip_goes_unseen)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0}, 1, 1);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    for (uint32_t i = 0; i < b->exchange.published; i++)
        answer(b, i);
    b->source[0][0] ^= 1;
    gather(b, false);
    EXPECT(b->row_status[0] == STATUS_OK);
    bench_close(b);
}

TEST(the_bytes_of_another_block_do_not_pass)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3}, 2, 2);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    for (uint32_t i = 0; i < b->exchange.published; i++)
        answer(b, i);
    b->arrival[1].source = b->source[0];
    b->arrival[2].digest = b->arrival[0].digest; /* right bytes, digest of another id */
    gather(b, true);
    EXPECT(b->arrival[1].state == STATUS_CORRUPT && b->arrival[2].state == STATUS_CORRUPT);
    EXPECT(b->arrival[0].state == STATUS_OK && b->arrival[3].state == STATUS_OK);
    bench_close(b);
}

TEST(a_failed_arrival_gives_its_status_to_the_row)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3}, 2, 2);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    for (uint32_t i = 1; i < b->exchange.published; i++)
        answer(b, i);
    b->arrival[0].state = STATUS_NOT_FOUND;
    gather(b, true);
    EXPECT(b->row_status[0] == STATUS_NOT_FOUND && entry(b, 0, 0, b->miss[0].block) < 0);
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3}, 2, 2); /* the row is repeated */
    EXPECT(plan(b, 1, 2) == STATUS_OK);
    EXPECT(b->exchange.published == 1 && b->miss[0].block == 0);
    bench_close(b);
}

/* ---- wait ------------------------------------------------------------------------------------ */

typedef struct wait_host {
    bench *b;
    uint64_t now;
    uint32_t notified, paused, answers;
} wait_host;

static uint64_t host_now(void *self)
{
    return ((wait_host *)self)->now;
}
static void host_notify(void *self)
{
    ((wait_host *)self)->notified++;
}

/* One arrival a pause, a microsecond each; nothing more once `answers` are given. */
static void host_pause(void *self, uint64_t until)
{
    wait_host *h = self;
    if (h->paused < h->answers) {
        answer(h->b, h->answers - 1 - h->paused); /* the last one first */
        h->now += 1000;
    } else {
        h->now = until;
    }
    h->paused++;
}

static void wait_all(bench *b, wait_host *h, uint64_t deadline, uint64_t *waited)
{
    const kern_host host = {host_notify, host_pause, h, {host_now, h}};
    const kern_wait_args a = {&b->exchange, &host, deadline, waited, 0};
    EXPECT(kern_wait(b->stream, &a) == STATUS_OK);
}

TEST(wait_ends_when_all_have_arrived)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    wait_host h = {.b = b, .now = 50, .answers = b->exchange.published};
    uint64_t waited = 5;
    wait_all(b, &h, 1000000, &waited);
    EXPECT(h.notified == 1 && h.paused == 6 && waited == 6005);
    for (uint32_t i = 0; i < 6; i++)
        EXPECT(b->arrival[i].state == STATUS_OK);
    bench_close(b);
}

TEST(what_has_not_arrived_by_the_deadline_is_late)
{
    bench *b = bench_open();
    row_selects(b, 0, 0, 400, (const int32_t[]){0, 3, 6}, 3, 3);
    EXPECT(plan(b, 1, 1) == STATUS_OK);
    wait_host h = {.b = b, .now = 0, .answers = 2};
    uint64_t waited = 0;
    wait_all(b, &h, 900000, &waited);
    EXPECT(waited == 900000);
    EXPECT(b->arrival[0].state == STATUS_OK && b->arrival[1].state == STATUS_OK);
    for (uint32_t i = 2; i < 6; i++)
        EXPECT(b->arrival[i].state == STATUS_DEADLINE);
    gather(b, true);
    EXPECT(b->row_status[0] == STATUS_DEADLINE);
    expect_table_sound(b);
    bench_close(b);
}

TEST(nothing_to_wait_for_wakes_nobody)
{
    bench *b = bench_open();
    wait_host h = {.b = b};
    uint64_t waited = 0;
    wait_all(b, &h, 1000, &waited);
    EXPECT(h.notified == 0 && h.paused == 0 && waited == 0);
    bench_close(b);
}

/* ---- install --------------------------------------------------------------------------------- */

static void offer_block(bench *b, uint32_t i, int32_t seq, int32_t head, int32_t block)
{
    b->miss[i] = (kern_miss){.row = -1, .seq = seq, .kv_head = head, .block = block};
    answer(b, i);
    b->exchange.published = i + 1;
}

static void install(bench *b, uint32_t step, uint32_t keep)
{
    const uint32_t keep_step[SEQS] = {keep, keep};
    const kern_install_args a = {.exchange = &b->exchange,
                                 .table = b->table,
                                 .pool = b->pool,
                                 .block_bytes = BYTES,
                                 .step = step,
                                 .keep_step = keep_step,
                                 .verify = true};
    EXPECT(kern_install(b->stream, &a) == STATUS_OK);
}

TEST(installed_blocks_take_free_entries_and_then_the_oldest)
{
    bench *b = bench_open();
    b->entries[0] = 3;
    for (uint32_t i = 0; i < 3; i++)
        offer_block(b, i, 0, 0, 10 + (int32_t)i);
    install(b, 5, 0);
    EXPECT(entry(b, 0, 0, 10) == 0 && entry(b, 0, 0, 11) == 1 && entry(b, 0, 0, 12) == 2);
    EXPECT(memcmp(b->pool + (uint64_t)b->miss[2].slot * BYTES, b->source[2], BYTES) == 0);
    b->used_step[0] = 7, b->used_step[1] = 6, b->used_step[2] = 8;
    offer_block(b, 0, 0, 0, 20);
    install(b, 9, 7);
    EXPECT(b->arrival[0].state == STATUS_OK && entry(b, 0, 0, 20) == 1 && entry(b, 0, 0, 11) < 0);
    offer_block(b, 0, 0, 0, 21);
    install(b, 9, 7);
    EXPECT(b->arrival[0].state == STATUS_BUSY && entry(b, 0, 0, 21) < 0);
    expect_table_sound(b);
    bench_close(b);
}

TEST(a_resident_or_corrupt_block_is_not_installed)
{
    bench *b = bench_open();
    offer_block(b, 0, 0, 1, 10);
    install(b, 1, 0);
    offer_block(b, 0, 0, 1, 10);
    offer_block(b, 1, 0, 1, 11);
    b->source[1][5] ^= 4;
    install(b, 2, 0);
    EXPECT(b->arrival[0].state == STATUS_STALE && b->arrival[1].state == STATUS_CORRUPT);
    EXPECT(entry(b, 0, 1, 10) == 0 && entry(b, 0, 1, 11) < 0);
    expect_table_sound(b);
    bench_close(b);
}

TEST(each_sequence_of_an_install_keeps_what_it_used_since_its_own_step)
{
    bench *b = bench_open();
    b->entries[0] = b->entries[1] = 2;
    for (int32_t seq = 0; seq < 2; seq++) {
        offer_block(b, 0, seq, 0, 10);
        offer_block(b, 1, seq, 0, 11);
        install(b, 5, 0);
    }
    offer_block(b, 0, 1, 0, 20);
    offer_block(b, 1, 0, 0, 20);
    offer_block(b, 2, 1, 0, 21);
    const kern_install_args a = {.exchange = &b->exchange,
                                 .table = b->table,
                                 .pool = b->pool,
                                 .block_bytes = BYTES,
                                 .keep_step = (const uint32_t[SEQS]){5, 6},
                                 .step = 6,
                                 .verify = true};
    EXPECT(kern_install(b->stream, &a) == STATUS_OK);
    EXPECT(b->arrival[0].state == STATUS_OK && b->arrival[1].state == STATUS_BUSY &&
           b->arrival[2].state == STATUS_OK);
    EXPECT(entry(b, 1, 0, 20) == 0 && entry(b, 1, 0, 21) == 1 && entry(b, 0, 0, 11) == 1);
    expect_table_sound(b);
    bench_close(b);
}

TEST(an_installed_block_that_the_step_does_not_want_gives_way)
{
    bench *b = bench_open();
    b->entries[0] = 3;
    for (uint32_t i = 0; i < 3; i++)
        offer_block(b, i, 0, 0, 10 + (int32_t)i);
    install(b, 5, 0);
    row_selects(b, 0, 0, 3000, (const int32_t[]){1, 2, 3}, 3, 3);
    EXPECT(plan(b, 1, 5) == STATUS_OK); /* the same step number that install wrote */
    EXPECT(b->row_status[0] == STATUS_OK && entry(b, 0, 0, 3) >= 0 && entry(b, 0, 0, 10) < 0);
    bench_close(b);
}

TEST(a_miss_outside_the_table_is_refused_before_anything_is_written)
{
    bench *b = bench_open();
    offer_block(b, 0, 0, 0, 10);
    offer_block(b, 1, 0, 0, BLOCKS);
    const kern_install_args a = {.exchange = &b->exchange,
                                 .table = b->table,
                                 .pool = b->pool,
                                 .block_bytes = BYTES,
                                 .keep_step = (const uint32_t[SEQS]){0, 0},
                                 .step = 1,
                                 .verify = true};
    EXPECT(kern_install(b->stream, &a) == STATUS_INVALID && entry(b, 0, 0, 10) < 0);
    bench_close(b);
}

/* ---- candidates ------------------------------------------------------------------------------ */

enum { WINDOWS = BLOCKS * 4 };

/* importance of block 10 + i is highest of all at window 4 (10 + i) + 1, falling with i. */
static void candidates(bench *b, const kern_selector *selector, int32_t next, bool forced,
                       int32_t *out, uint32_t most)
{
    static uint16_t uc[SEQS * KV * WINDOWS];
    for (int place = 0; place < SEQS * KV; place++)
        for (int j = 0; j < WINDOWS; j++) {
            const int block = j / 4;
            const float u =
                j % 4 == 1 && block >= 10 ? 5.0f - 0.0625f * (float)(block - 10) : -1.0f;
            uc[place * WINDOWS + j] = kern_f32_to_bf16(u);
        }
    const int32_t seq = 1, which = 0;
    const kern_candidates_args a = {.seq = &seq,
                                    .next_pos = &next,
                                    .selector = &which,
                                    .selectors = selector,
                                    .summary = {.uc = uc,
                                                .seqs = SEQS,
                                                .kv_heads = KV,
                                                .head_dim = 64,
                                                .max_windows = WINDOWS,
                                                .max_tokens = BLOCKS * 64,
                                                .window = 32,
                                                .stride = 16},
                                    .table = b->table,
                                    .block = out,
                                    .n = 1,
                                    .max_candidates = most,
                                    .forced = forced};
    EXPECT(kern_candidates(b->stream, &a) == STATUS_OK);
}

TEST(candidates_are_the_best_by_importance_that_the_table_lacks)
{
    bench *b = bench_open();
    const kern_selector nosa = {32, 16, 64, 1, 4, 10, 16, true, true, SOURCE_OWN, 0, false, 0};
    b->entry_of[(KV + 0) * BLOCKS + 11] = 0; /* resident on head 0 only */
    int32_t got[KV * 12];
    candidates(b, &nosa, 40 * 64, false, got, 12);
    const int32_t head0[12] = {10, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1}; /* 16 - 10 */
    const int32_t head1[12] = {10, 11, 12, 13, 14, 15, -1, -1, -1, -1, -1, -1};
    EXPECT(memcmp(got, head0, sizeof head0) == 0 && memcmp(got + 12, head1, sizeof head1) == 0);
    candidates(b, &nosa, 40 * 64, true, got, 12); /* none that the query may leave is left out */
    const int32_t any[12] = {0, 36, 37, 38, 39, 10, 12, 13, 14, 15, 16, 17};
    EXPECT(memcmp(got, any, sizeof any) == 0);
    bench_close(b);
}

TEST(forced_candidates_come_first_and_the_open_block_never)
{
    bench *b = bench_open();
    const kern_selector nosa = {32, 16, 64, 1, 2, 4, 6, true, true, SOURCE_OWN, 0, false, 0};
    int32_t got[KV * 8];
    candidates(b, &nosa, 40 * 64 + 3, true, got, 8);
    const int32_t want[8] = {0, 38, 39, 10, 11, -1, -1, -1};
    EXPECT(memcmp(got, want, sizeof want) == 0);
    bench_close(b);
}

TEST(full_attention_wants_every_block_and_infllm_only_forced_ones)
{
    bench *b = bench_open();
    const kern_selector full = {32,    16,   64,         0, 0,     0, UINT32_MAX,
                                false, true, SOURCE_OWN, 0, false, 0};
    const kern_selector infllm = {32, 16, 64, 1, 2, 6, 6, false, false, SOURCE_OWN, 0, false, 0};
    int32_t got[KV * BLOCKS];
    candidates(b, &full, 20 * 64 + 1, true, got, BLOCKS);
    uint32_t count = 0;
    for (; count < BLOCKS && got[count] >= 0; count++)
        EXPECT(got[count] < 20);
    EXPECT(count == 20 && got[0] == 10);
    candidates(b, &infllm, 40 * 64 + 1, true, got, BLOCKS);
    EXPECT(got[0] == 0 && got[1] == 38 && got[2] == 39 && got[3] == -1);
    candidates(b, &infllm, 40 * 64 + 1, false, got, BLOCKS);
    EXPECT(got[0] == -1);
    bench_close(b);
}

/* ---- seal ------------------------------------------------------------------------------------ */

TEST(a_sealed_block_has_the_digest_that_gather_expects)
{
    bench *b = bench_open();
    static uint8_t copy[BYTES];
    for (uint32_t i = 0; i < sizeof b->pool; i++)
        b->pool[i] = (uint8_t)(i * 31 + i / 255);
    const kern_miss m = {.block = 9, .kv_head = 1};
    const block_id id = id_of(&m);
    const int32_t slot[2] = {5, 7};
    const uint64_t seed[2] = {block_id_hash(&id), 1};
    uint8_t *const copies[2] = {copy, NULL};
    uint64_t digest[2];
    const kern_seal_args a = {.pool = b->pool,
                              .slot = slot,
                              .seed = seed,
                              .copy = copies,
                              .digest = digest,
                              .n = 2,
                              .block_bytes = BYTES};
    EXPECT(kern_seal(b->stream, &a) == STATUS_OK);
    EXPECT(memcmp(copy, b->pool + 5 * BYTES, BYTES) == 0);
    EXPECT(digest[0] == block_digest(&id, copy, BYTES));
    EXPECT(digest[1] == bytes_digest(b->pool + 7 * BYTES, BYTES, 1));
    bench_close(b);
}

TEST(a_row_of_floats_has_the_digest_of_its_bytes)
{
    bench *b = bench_open();
    enum { COUNT = 70000 };
    static float x[3 * COUNT];
    uint64_t digest[3];
    for (uint32_t i = 0; i < 3 * COUNT; i++)
        x[i] = (float)i * 0.37f;
    const kern_digest_args a = {.x = x, .digest = digest, .rows = 3, .count = COUNT};
    EXPECT(kern_digest(b->stream, &a) == STATUS_OK);
    for (uint32_t r = 0; r < 3; r++)
        EXPECT(digest[r] == bytes_digest(x + r * COUNT, COUNT * sizeof *x, 0));
    bench_close(b);
}

TEST_MAIN()
