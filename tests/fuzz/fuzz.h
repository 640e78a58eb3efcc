/* tests/fuzz/fuzz.h - what the fuzz targets share: silence, an arena an input, a file an input.
 *
 * A target reads any bytes and must neither crash, leak, hang nor trip a sanitizer. What it accepts
 * it also uses, so that a value that slipped through validation has a chance to do harm. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/base.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A directory of this process that is removed at exit by name of its one file. */
const char *fuzz_directory(void);
/* data as DIR/name; the path is valid until the next call. */
const char *fuzz_file(const char *name, const uint8_t *data, size_t size);

#endif
