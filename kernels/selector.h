/* kernels/selector.h - the integer rules of a selector row, shared by all backends: which windows a
 * row sees, which blocks are forced, which windows touch a block, when everything is selected.
 *
 * Source: NOSA, arXiv 2510.13602 (selection), InfLLM-V2 (windows and pooling), generalised to any
 * window, stride and block. Pure functions of small integers; usable from CUDA as they are. */
#ifndef KERNELS_SELECTOR_H
#define KERNELS_SELECTOR_H

#include "kernels/kernels.h"

#ifdef __CUDACC__
#define KERN_RULE static inline __host__ __device__
#else
#define KERN_RULE static inline
#endif

/* Windows complete at token `last` (-1: none). */
KERN_RULE uint32_t selector_windows_at(uint32_t window, uint32_t stride, int32_t last)
{
    const int64_t first_after = (int64_t)last + 1 - (int64_t)window;
    return first_after < 0 ? 0 : (uint32_t)(first_after / stride) + 1;
}

/* Windows that a row at `pos` sees. With another source than SOURCE_OWN the selection is made while
 * the row's own key is not there yet, so it sees what was complete one token before. */
KERN_RULE uint32_t selector_visible(const kern_selector *s, int32_t pos)
{
    return selector_windows_at(s->window, s->stride, s->source == SOURCE_OWN ? pos : pos - 1);
}

KERN_RULE uint32_t selector_current(const kern_selector *s, int32_t pos)
{
    return (uint32_t)pos / s->block;
}

KERN_RULE bool selector_forced(const kern_selector *s, uint32_t block, uint32_t current)
{
    return block < s->init || (block + s->local >= current && block <= current);
}

/* Blocks that a selection may hold at most; forced ones are never dropped to stay below it. */
KERN_RULE uint32_t selector_limit(const kern_selector *s)
{
    if (s->total == UINT32_MAX) return UINT32_MAX;
    if (!s->fill_by_importance) return s->query;
    return s->total > s->query ? s->total : s->query;
}

/* Of the unforced blocks, the best by importance that are selected whatever the query picks: what
 * it picks of them, and the fill. any: that may be selected. */
KERN_RULE uint32_t selector_fill(const kern_selector *s, uint32_t forced, bool any)
{
    const uint32_t taken = any || s->query < forced ? forced : s->query;
    return s->total > taken ? s->total - taken : 0;
}

KERN_RULE bool selector_takes_all(const kern_selector *s, int32_t pos)
{
    return selector_current(s, pos) < selector_limit(s);
}

/* Whether this row's query scores decide anything. */
KERN_RULE bool selector_needs_scores(const kern_selector *s, int32_t pos)
{
    return s->query > 0 && !selector_takes_all(s, pos);
}

/* Windows [lo, hi) of the first `visible` ones that share a token with `block`. */
KERN_RULE void selector_block_windows(const kern_selector *s, uint32_t block, uint32_t visible,
                                      uint32_t *lo, uint32_t *hi)
{
    const int64_t first = (int64_t)block * s->block, last = first + s->block - 1;
    const int64_t from = first - (int64_t)s->window + 1;
    *lo = from <= 0 ? 0 : (uint32_t)((from + s->stride - 1) / s->stride);
    *hi = (uint32_t)(last / s->stride) + 1;
    if (*hi > visible) *hi = visible;
    if (*lo > *hi) *lo = *hi;
}

/* First storage block of the sliding window's tokens; the current one plus 1 without a window. */
KERN_RULE uint32_t selector_near_first(const kern_selector *s, int32_t pos)
{
    const int64_t first = (int64_t)pos + 1 - (int64_t)s->near;
    if (s->near == 0) return (uint32_t)pos / KERN_BLOCK + 1;
    return first <= 0 ? 0 : (uint32_t)first / KERN_BLOCK;
}

/* Storage blocks that a row's selection may need at most. */
KERN_RULE uint32_t selector_storage_max(const kern_selector *s, int32_t pos)
{
    const uint32_t all = (uint32_t)pos / KERN_BLOCK + 1;
    const uint32_t forced = s->init + s->local + 1;
    uint32_t picks = selector_limit(s);
    if (picks < forced) picks = forced;
    const uint32_t blocks = selector_current(s, pos) + 1;
    if (picks > blocks) picks = blocks;
    uint64_t parts = s->block > KERN_BLOCK ? (uint64_t)picks * (s->block / KERN_BLOCK) : picks;
    parts += all - selector_near_first(s, pos);
    return parts < all ? (uint32_t)parts : all;
}

#endif
