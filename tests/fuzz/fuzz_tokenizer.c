/* tokenizer.json; one that is accepted encodes and decodes a few texts. */
#include "tests/fuzz/fuzz.h"
#include "worker/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "Hello,  world! it's 2026\n\xc3\xa9\xe4\xb8\xad\xf0\x9f\x90\x9f <s>";
    tokenizer *t;
    char *copy = malloc(size + 1); /* texts from files are followed by a NUL */
    CHECK(copy != NULL);
    memcpy(copy, data, size);
    copy[size] = 0;
    if (tokenizer_parse("fuzz.json", copy, size, &t) == STATUS_OK) {
        arena *a = arena_create("fuzz");
        int32_t *ids;
        uint32_t count, bytes;
        span s = {text, sizeof text - 1};
        if (tokenizer_encode(t, s, true, a, &ids, &count) == STATUS_OK)
            for (uint32_t i = 0; i < count; i++)
                (void)tokenizer_token_bytes(t, ids[i], &bytes);
        arena_destroy(a);
        tokenizer_destroy(t);
    }
    free(copy);
    return 0;
}
