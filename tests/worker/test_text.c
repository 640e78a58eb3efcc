/* Text that grows, and JSON in it. */
#include "tests/test.h"

#include "worker/text.h"

TEST(quotes_escape_what_json_forbids_and_leave_utf8_alone)
{
    arena *memory = arena_create("test");
    text t;
    text_start(&t, memory);
    const char raw[] = "a\"b\\c\n\t\r\b\f\x01\x1f/\xe2\x82\xac";
    text_quote(&t, raw, sizeof raw - 1);
    EXPECT_EQ_STR(t.bytes, "\"a\\\"b\\\\c\\n\\t\\r\\b\\f\\u0001\\u001f/\xe2\x82\xac\"");
    arena_destroy(memory);
}

TEST(a_zero_byte_is_escaped_too)
{
    arena *memory = arena_create("test");
    text t;
    text_start(&t, memory);
    text_quote(&t, "a\0b", 3);
    EXPECT_EQ_STR(t.bytes, "\"a\\u0000b\"");
    arena_destroy(memory);
}

TEST(text_grows_through_many_small_and_one_large_piece)
{
    arena *memory = arena_create("test");
    text t;
    text_start(&t, memory);
    for (int i = 0; i < 10000; i++)
        text_format(&t, "%d,", i);
    size_t before = t.count;
    char large[3000];
    memset(large, 'x', sizeof large - 1);
    large[sizeof large - 1] = '\0';
    text_format(&t, "[%s]", large); /* beyond the buffer on the stack */
    EXPECT_EQ_U64(t.count, before + sizeof large - 1 + 2);
    EXPECT_EQ_U64(strlen(t.bytes), t.count);
    EXPECT(strncmp(t.bytes, "0,1,2,3,", 8) == 0);
    EXPECT(t.bytes[before] == '[' && t.bytes[t.count - 1] == ']');
    arena_destroy(memory);
}

TEST(numbers_that_are_none_become_null_and_keys_get_their_commas)
{
    arena *memory = arena_create("test");
    text t;
    text_start(&t, memory);
    text_add_string(&t, "{");
    text_key(&t, "a");
    text_number(&t, 0.5);
    text_key(&t, "b");
    text_number(&t, (double)NAN);
    text_key(&t, "c");
    text_quote_string(&t, NULL);
    text_add_string(&t, "}");
    EXPECT_EQ_STR(t.bytes, "{\"a\":0.5,\"b\":null,\"c\":null}");
    arena_destroy(memory);
}

TEST_MAIN()
