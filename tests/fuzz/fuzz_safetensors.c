/* A checkpoint's file, opened as a model loader would, every tensor looked at. */
#include "tests/fuzz/fuzz.h"
#include "worker/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    checkpoint *c;
    (void)fuzz_file("model.safetensors", data, size);
    if (checkpoint_open(fuzz_directory(), &c) != STATUS_OK) return 0;
    arena *a = arena_create("fuzz");
    uint64_t sum = checkpoint_digest(c, 1);
    for (uint32_t i = 0; i < checkpoint_count(c); i++) {
        const tensor *t = checkpoint_at(c, i);
        const uint16_t *values;
        CHECK(checkpoint_find(c, t->name) == t);
        for (uint64_t k = 0; k < t->bytes; k++)
            sum += t->data[k];
        (void)checkpoint_bf16(c, t->name, t->shape, t->rank, a, &values);
    }
    arena_destroy(a);
    checkpoint_close(c);
    return sum == 42 ? 0 : 0;
}
