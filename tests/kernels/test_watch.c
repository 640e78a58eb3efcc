/* Looking at a backend from outside: a watch sees every op in order, probes give plausible rates.
 */
#include "kernels/kernels.h"
#include "tests/test.h"

typedef struct seen {
    uint32_t begun, ended, op;
    const void *args;
} seen;

static void on_begin(void *self, uint32_t op, const void *args)
{
    seen *s = self;
    EXPECT_EQ_U64(s->begun, s->ended);
    s->begun++;
    s->op = op;
    s->args = args;
}

static void on_end(void *self, uint32_t op, const void *args)
{
    seen *s = self;
    s->ended++;
    EXPECT_EQ_U64(op, s->op);
    EXPECT(args == s->args);
}

/* What has no op of its own here is its parts, which have to belong together. */
TEST(a_watch_is_told_of_the_parts_of_a_joined_op)
{
    kern_backend *backend;
    kern_stream *stream;
    EXPECT(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend) ==
           STATUS_OK);
    EXPECT(kern_stream_create(backend, &stream) == STATUS_OK);
    static uint16_t pool[2 * KERN_BLOCK * 32];
    float row[64] = {[0] = 1.0f, [32] = 2.0f};
    const int32_t seq = 0, pos = 3, home = 0;
    int32_t slot = -1;
    kern_enter_args a = {.locate = {.row_seq = &seq,
                                    .row_pos = &pos,
                                    .home = &home,
                                    .table = {.kv_heads = 1, .max_blocks = 1},
                                    .slot = &slot,
                                    .rows = 1,
                                    .max_select = 1},
                         .append = {.k = row,
                                    .v = row + 32,
                                    .slot = &slot,
                                    .row_pos = &pos,
                                    .pool = (uint8_t *)pool,
                                    .row_stride = 64,
                                    .rows = 1,
                                    .kv_heads = 1,
                                    .head_dim = 32}};
    seen s = {0};
    kern_watch watch = {.begin = on_begin, .end = on_end, .self = &s};
    kern_stream_watch(stream, &watch);
    EXPECT(kern_enter(stream, &a) == STATUS_OK);
    EXPECT_EQ_U64(s.begun, 2);
    EXPECT_EQ_U64(s.ended, 2);
    EXPECT_EQ_STR(kern_op_name(s.op), "append");
    EXPECT(slot == 0 && pool[3 * 32] == 0x3f80 && pool[(KERN_BLOCK + 3) * 32] == 0x4000);
    a.append.rows = 2;
    EXPECT(kern_enter(stream, &a) == STATUS_INVALID);
    EXPECT_EQ_U64(s.begun, 2);
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

TEST(a_watch_is_told_of_every_op_until_it_is_taken_away)
{
    kern_backend *backend;
    kern_stream *stream;
    EXPECT(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend) ==
           STATUS_OK);
    EXPECT(kern_stream_create(backend, &stream) == STATUS_OK);
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[4];
    kern_swiglu_args args = {
        .gate = x, .up = x + 4, .out = out, .in_stride = 8, .rows = 1, .ffn = 4};
    seen s = {0};
    kern_watch watch = {.begin = on_begin, .end = on_end, .self = &s};
    EXPECT(kern_swiglu(stream, &args) == STATUS_OK);
    kern_stream_watch(stream, &watch);
    EXPECT(kern_swiglu(stream, &args) == STATUS_OK);
    EXPECT(kern_swiglu(stream, &args) == STATUS_OK);
    kern_stream_watch(stream, NULL);
    EXPECT(kern_swiglu(stream, &args) == STATUS_OK);
    EXPECT_EQ_U64(s.begun, 2);
    EXPECT_EQ_U64(s.ended, 2);
    EXPECT_EQ_STR(kern_op_name(s.op), "swiglu");
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

TEST(probes_of_host_memory_are_plausible_and_unknown_ones_unsupported)
{
    kern_backend *backend;
    EXPECT(kern_backend_open(&(kern_config){.backend = "cpu", .threads = 1}, &backend) ==
           STATUS_OK);
    static const char *const known[] = {"read", "copy", "gather", "host_gather"};
    for (int i = 0; i < 4; i++) {
        double value = 0;
        EXPECT(kern_probe(backend, known[i], &value) == STATUS_OK);
        EXPECT_MSG(value > 0.05 && value < 5000, "%s %g GB/s", known[i], value);
    }
    double kept = 7;
    EXPECT(kern_probe(backend, "h2d", &kept) == STATUS_UNSUPPORTED);
    EXPECT(kern_probe(backend, "nonsense", &kept) == STATUS_UNSUPPORTED);
    EXPECT(kept == 7);
    kern_backend_close(backend);
}

TEST_MAIN()
