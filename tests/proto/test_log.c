#include "tests/test.h"

#include <stdlib.h>

static char *text;
static size_t text_bytes;
static FILE *sink;

static void open_log(log_level level, bool json)
{
    sink = open_memstream(&text, &text_bytes);
    EXPECT(sink != NULL);
    const log_config config = {.level = level, .json = json, .program = "tester", .file = sink};
    log_setup(&config);
}

static void close_log(void)
{
    const log_config config = {.level = LOG_INFO};
    log_setup(&config);
    fclose(sink);
}

static uint32_t lines(void)
{
    uint32_t count = 0;
    for (size_t i = 0; i < text_bytes; i++)
        count += text[i] == '\n';
    return count;
}

TEST(a_text_line_has_level_program_place_and_sentence)
{
    open_log(LOG_INFO, false);
    LOG(WARN, "disk %d is %s", 3, "slow");
    LOG(DEBUG, "not shown at this level");
    close_log();
    EXPECT_EQ_U64(lines(), 1);
    EXPECT_HAS_STR(text, " warn  tester test_log.c:");
    EXPECT_HAS_STR(text, ": disk 3 is slow\n");
    free(text);
}

TEST(a_json_line_escapes_quotes_newlines_and_controls)
{
    open_log(LOG_DEBUG, true);
    LOG(DEBUG, "said \"no\"\n\\\x01 caf\xc3\xa9");
    close_log();
    EXPECT_EQ_U64(lines(), 1);
    EXPECT_HAS_STR(text, "\"level\":\"debug\",\"program\":\"tester\",\"at\":\"test_log.c:");
    EXPECT_HAS_STR(text, "\"message\":\"said \\\"no\\\"\\u000a\\\\\\u0001 caf\xc3\xa9\"}\n");
    free(text);
}

static status refuse(int port)
{
    return FAIL(REFUSED, "port %d needs TLS", port);
}

TEST(fail_logs_once_and_is_the_status)
{
    open_log(LOG_ERROR, false);
    const status s = refuse(70);
    close_log();
    EXPECT_EQ_I64(s, STATUS_REFUSED);
    EXPECT_EQ_U64(lines(), 1);
    EXPECT_EQ_STR(log_last_error(), "port 70 needs TLS");
    free(text);
}

TEST(a_message_too_long_is_cut_and_still_one_line)
{
    char *wide = malloc(9000);
    memset(wide, '"', 8999);
    wide[8999] = 0;
    for (int json = 0; json < 2; json++) {
        open_log(LOG_ERROR, json == 1);
        LOG(ERROR, "%s", wide);
        close_log();
        EXPECT_EQ_U64(lines(), 1);
        EXPECT_LE_U64(text_bytes, 5000);
        if (json == 1) EXPECT_HAS_STR(text, "\"}\n");
        EXPECT_LE_U64(strlen(log_last_error()), 2047);
        EXPECT_HAS_STR(log_last_error(), "...");
        free(text);
    }
    free(wide);
}

TEST(level_names_are_read_and_others_refused)
{
    log_level level = LOG_ERROR;
    EXPECT(log_level_from_name("debug", &level));
    EXPECT_EQ_I64(level, LOG_DEBUG);
    EXPECT(log_level_from_name("warn", &level));
    EXPECT_EQ_I64(level, LOG_WARN);
    EXPECT(!log_level_from_name("verbose", &level));
    EXPECT(!log_level_from_name("", &level));
    EXPECT_EQ_I64(level, LOG_WARN);
}

static void break_a_check(void *arg)
{
    CHECK(arg != NULL);
}

TEST(a_failed_check_aborts_and_one_that_holds_does_not)
{
    int something = 0;
    EXPECT(test_aborts(break_a_check, NULL));
    EXPECT(!test_aborts(break_a_check, &something));
}

TEST_MAIN()
