/* Lines of a batch, read from a file and parsed. */
#include "tests/fuzz/fuzz.h"
#include "worker/batch.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    batch_reader *reader;
    const char *path = fuzz_file("in.jsonl", data, size);
    if (batch_reader_open(path, 4096, &reader) != STATUS_OK) return 0;
    arena *a = arena_create("fuzz");
    batch_line line;
    while (batch_reader_next(reader, &line) == STATUS_OK) {
        batch_request request;
        batch_error error = {.code = ""};
        if (!batch_parse("fuzz line", &line, a, &request, &error)) {
            CHECK(error.code[0] != 0 && error.message[0] != 0);
            continue;
        }
        CHECK(request.custom_id != NULL && request.stop_count <= BATCH_STOP_MAX);
        CHECK((request.prompt != NULL) + (request.ids != NULL) + (request.messages != NULL) == 1);
    }
    batch_reader_close(reader);
    arena_destroy(a);
    return 0;
}
