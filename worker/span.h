/* worker/span.h - a stretch of bytes that somebody else owns; it may hold NULs. */
#ifndef WORKER_SPAN_H
#define WORKER_SPAN_H

#include <stddef.h>

typedef struct span {
    const char *text;
    size_t bytes;
} span;

#endif
