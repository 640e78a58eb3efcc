/* tests/faults/record.h - what a row of tests/bench/results says of where and when it was made. */
#ifndef TESTS_FAULTS_RECORD_H
#define TESTS_FAULTS_RECORD_H

#include <stddef.h>

/* "load":…,"machine":"…","commit":"…","date":"…" of now, without braces. A tree that is not what
 * was committed says so: commit "1234abcd+". */
void record_stamp(char *out, size_t bytes);

#endif
