#include "tests/test.h"

static const status all[] = {
#define X(name, scope, retry, exit_code, sentence) STATUS_##name,
#include "proto/status.def"
#undef X
};

TEST(every_status_survives_the_wire)
{
    EXPECT_EQ_U64(sizeof all / sizeof all[0], STATUS_ROW_COUNT);
    for (int i = 0; i < STATUS_ROW_COUNT; i++) {
        status back = STATUS_OK;
        EXPECT(status_from_wire((int32_t)all[i], &back));
        EXPECT_EQ_I64(back, all[i]);
        EXPECT_EQ_I64(all[i], -1 - i);
    }
    status back = STATUS_INTERNAL;
    EXPECT(status_from_wire(0, &back));
    EXPECT_EQ_I64(back, STATUS_OK);
}

TEST(values_outside_the_table_are_refused_and_write_nothing)
{
    const int32_t bad[] = {1, 2, INT32_MAX, -1 - STATUS_ROW_COUNT, INT32_MIN};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        status back = STATUS_GPU;
        EXPECT(!status_from_wire(bad[i], &back));
        EXPECT_EQ_I64(back, STATUS_GPU);
        if (bad[i] == 1) continue; /* PENDING has a name, and never travels */
        EXPECT_EQ_STR(status_name((status)bad[i]), "UNKNOWN");
        EXPECT_EQ_I64(status_scope_of((status)bad[i]), SCOPE_OPERATION);
        EXPECT_EQ_I64(status_exit_code((status)bad[i]), 1);
    }
}

TEST(wire_values_never_move)
{
    EXPECT_EQ_I64(STATUS_NOT_FOUND, -1);
    EXPECT_EQ_I64(STATUS_CORRUPT, -3);
    EXPECT_EQ_I64(STATUS_FENCED, -9);
    EXPECT_EQ_I64(STATUS_INTERNAL, -18);
}

TEST(rows_carry_name_scope_retry_exit_code_and_sentence)
{
    EXPECT_EQ_STR(status_name(STATUS_OK), "OK");
    EXPECT_EQ_STR(status_name(STATUS_PEER_LOST), "PEER_LOST");
    EXPECT_EQ_I64(status_scope_of(STATUS_PEER_LOST), SCOPE_PEER);
    EXPECT_EQ_I64(status_retry_of(STATUS_PEER_LOST), RETRY_OTHER);
    EXPECT_EQ_I64(status_retry_of(STATUS_BUSY), RETRY_LATER);
    EXPECT_EQ_I64(status_exit_code(STATUS_OK), 0);
    EXPECT_EQ_I64(status_exit_code(STATUS_CANCELED), 130);
    EXPECT_EQ_I64(status_exit_code(STATUS_UNREACHABLE), 3);
    for (int i = 0; i < STATUS_ROW_COUNT; i++) {
        const char *sentence = status_sentence(all[i]);
        EXPECT_GE_U64(strlen(sentence), 10);
        EXPECT(sentence[strlen(sentence) - 1] != '.');
        EXPECT(status_exit_code(all[i]) > 0);
    }
}

static status pass_on(status s, int *out_reached)
{
    TRY(s);
    *out_reached = 1;
    return STATUS_OK;
}

TEST(try_returns_what_failed_and_goes_on_otherwise)
{
    int reached = 0;
    EXPECT_STATUS(pass_on(STATUS_BUSY, &reached), STATUS_BUSY);
    EXPECT_EQ_I64(reached, 0);
    EXPECT_OK(pass_on(STATUS_OK, &reached));
    EXPECT_EQ_I64(reached, 1);
}

TEST_MAIN()
