/* kvstore/timer.c - a binary heap keyed by time; each timer knows its place, so it can be moved. */
#include "kvstore/timer.h"

void kv_timers_init(kv_timers *timers, arena *a, uint32_t capacity)
{
    *timers = (kv_timers){.heap = ARENA_NEW(a, kv_timer *, capacity), .capacity = capacity};
}

static void put_at(kv_timers *timers, uint32_t i, kv_timer *timer)
{
    timers->heap[i] = timer;
    timer->place = i + 1;
}

static void sift_up(kv_timers *timers, uint32_t i)
{
    kv_timer *timer = timers->heap[i];
    while (i > 0 && timers->heap[(i - 1) / 2]->at_ns > timer->at_ns) {
        put_at(timers, i, timers->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    put_at(timers, i, timer);
}

static void sift_down(kv_timers *timers, uint32_t i)
{
    kv_timer *timer = timers->heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= timers->count) break;
        if (child + 1 < timers->count &&
            timers->heap[child + 1]->at_ns < timers->heap[child]->at_ns)
            child++;
        if (timers->heap[child]->at_ns >= timer->at_ns) break;
        put_at(timers, i, timers->heap[child]);
        i = child;
    }
    put_at(timers, i, timer);
}

void kv_timer_set(kv_timers *timers, kv_timer *timer, uint64_t at_ns)
{
    if (timer->place != 0) {
        CHECK(timers->heap[timer->place - 1] == timer);
        timer->at_ns = at_ns;
        sift_up(timers, timer->place - 1);
        sift_down(timers, timer->place - 1);
        return;
    }
    CHECK(timers->count < timers->capacity);
    timer->at_ns = at_ns;
    put_at(timers, timers->count++, timer);
    sift_up(timers, timer->place - 1);
}

void kv_timer_stop(kv_timers *timers, kv_timer *timer)
{
    if (timer->place == 0) return;
    uint32_t hole = timer->place - 1;
    CHECK(hole < timers->count && timers->heap[hole] == timer);
    timer->place = 0;
    kv_timer *last = timers->heap[--timers->count];
    if (last == timer) return;
    put_at(timers, hole, last);
    sift_up(timers, last->place - 1);
    sift_down(timers, last->place - 1);
}

kv_timer *kv_timer_due(kv_timers *timers, uint64_t now_ns)
{
    if (timers->count == 0 || timers->heap[0]->at_ns > now_ns) return NULL;
    kv_timer *timer = timers->heap[0];
    kv_timer_stop(timers, timer);
    return timer;
}

uint64_t kv_timer_next(const kv_timers *timers)
{
    return timers->count == 0 ? UINT64_MAX : timers->heap[0]->at_ns;
}
