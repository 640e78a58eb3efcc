/* kvstore/timer.h - the next thing that is due: a binary heap of timers embedded in their owners.
 *
 * Threads: one owner.
 * Memory:  the heap holds pointers to timers of the caller, at most `capacity`, taken at create.
 * Setting, moving and stopping a timer cost O(log n); no clock is read here. */
#ifndef KVSTORE_TIMER_H
#define KVSTORE_TIMER_H

#include "proto/base.h"

typedef struct kv_timer {
    uint64_t at_ns;
    uint32_t place; /* 1 + index in the heap; 0: not set */
    uint32_t kind;  /* the owner's word for what to do */
} kv_timer;

typedef struct kv_timers {
    kv_timer **heap;
    uint32_t count, capacity;
} kv_timers;

void kv_timers_init(kv_timers *timers, arena *a, uint32_t capacity);
void kv_timer_set(kv_timers *timers, kv_timer *timer, uint64_t at_ns); /* sets or moves */
void kv_timer_stop(kv_timers *timers, kv_timer *timer);                /* fine when not set */
/* Take the earliest timer that is due at `now_ns`; NULL when there is none. */
kv_timer *kv_timer_due(kv_timers *timers, uint64_t now_ns);
uint64_t kv_timer_next(const kv_timers *timers); /* UINT64_MAX: none */

#endif
