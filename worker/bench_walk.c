/* How fast a random walk of queries must go to see a given churn.
 *
 * Measured on a NOSA model of 8B at 16K of book text (exact fit 3.58 misses a layer, KV head and
 * step; 1.20 with 80 slots, 0.71 with 128), misses have two parts: picks near the border that come
 * and go, which a few more slots catch, and picks that wander off, which no small pool catches. A
 * query that is a slow walk plus a little noise of its own every step has both: `keep` sets the
 * second, `jitter` the first, and KEEP and JITTER below reproduce all three numbers within a tenth
 * (tests/worker/test_bench.c). Another churn is the same walk, faster or slower.
 *
 * The simulation knows blocks only: candidates are random directions, scores are inner products
 * with the query, importance a random order; victims are the least recently used. The engine's own
 * count is what a benchmark reports. */
#include "worker/bench.h"

#include <math.h>
#include <string.h>

static const double KEEP = 0.975, JITTER = 0.155;

enum { CALIBRATE_STEPS = 400, CALIBRATE_ROUNDS = 9, HEADS = 8, DIMS_MAX = 128 };

walk walk_faster(double factor)
{
    double keep = 1.0 - (1.0 - KEEP) * factor, jitter = JITTER * sqrt(factor);
    return (walk){.keep = keep > 0 ? keep : 0, .jitter = jitter < 0.95 ? jitter : 0.95};
}

walk_shape walk_shape_of(const kern_selector *s, uint32_t context, uint32_t dims)
{
    uint32_t forced = selector_always(s);
    uint32_t blocks = context / s->block, rest = blocks > forced ? blocks - forced : 0;
    uint32_t picks = s->query > forced ? s->query - forced : 0;
    uint32_t counted = s->query > forced ? s->query : forced;
    bool fills = s->fill_by_importance && s->total > counted;
    return (walk_shape){.hot = rest < WALK_HOT ? rest : WALK_HOT,
                        .dims = dims < DIMS_MAX ? dims : DIMS_MAX,
                        .picks = picks,
                        .fill = fills ? s->total - counted : 0,
                        .forced = forced};
}

/* ---- one head -------------------------------------------------------------------------------- */

typedef struct head {
    float *key;      /* [hot, dims] */
    uint32_t *order; /* [hot] by importance, best first */
    float *score;    /* [hot] */
    uint64_t *used;  /* [hot] last step of a block in the pool; 0: not in it */
    uint8_t *picked; /* [hot] */
    float slow[DIMS_MAX], query[DIMS_MAX];
    uint32_t resident;
} head;

static float normal(rng *r)
{
    double u = 1.0 - rng_unit(r), v = rng_unit(r);
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

static void head_start(head *h, const walk_shape *shape, rng *r)
{
    for (size_t i = 0; i < (size_t)shape->hot * shape->dims; i++)
        h->key[i] = normal(r);
    for (uint32_t i = 0; i < shape->hot; i++) {
        uint32_t other = (uint32_t)rng_below(r, i + 1);
        h->order[i] = h->order[other];
        h->order[other] = i;
    }
    memset(h->used, 0, shape->hot * sizeof *h->used);
    for (uint32_t d = 0; d < shape->dims; d++)
        h->slow[d] = normal(r);
    h->resident = 0;
}

static void head_walk(head *h, const walk_shape *shape, const walk *w, rng *r)
{
    float keep = (float)w->keep, renew = (float)sqrt(1 - w->keep * w->keep);
    float jitter = (float)w->jitter, rest = (float)sqrt(1 - w->jitter * w->jitter);
    for (uint32_t d = 0; d < shape->dims; d++) {
        h->slow[d] = keep * h->slow[d] + renew * normal(r);
        h->query[d] = rest * h->slow[d] + jitter * normal(r);
    }
    for (uint32_t b = 0; b < shape->hot; b++) {
        float sum = 0;
        for (uint32_t d = 0; d < shape->dims; d++)
            sum += h->key[(size_t)b * shape->dims + d] * h->query[d];
        h->score[b] = sum;
    }
}

/* The block goes into the pool; 1 when it was not there. */
static uint32_t head_use(head *h, uint32_t block, uint64_t step)
{
    uint32_t missed = h->used[block] == 0;
    h->used[block] = step;
    h->resident += missed;
    return missed;
}

static uint32_t head_step(head *h, const walk_shape *shape, uint32_t room, uint64_t step)
{
    uint32_t missed = 0, filled = 0;
    memset(h->picked, 0, shape->hot);
    for (uint32_t k = 0; k < shape->picks && k < shape->hot; k++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t b = 0; b < shape->hot; b++) {
            if (!h->picked[b] && (best == UINT32_MAX || h->score[b] > h->score[best])) best = b;
        }
        h->picked[best] = 1;
        missed += head_use(h, best, step);
    }
    for (uint32_t i = 0; i < shape->hot && filled < shape->fill; i++) {
        if (h->picked[h->order[i]]) continue;
        missed += head_use(h, h->order[i], step);
        filled++;
    }
    while (h->resident > room) {
        uint32_t oldest = UINT32_MAX;
        for (uint32_t b = 0; b < shape->hot; b++) {
            if (h->used[b] != 0 && (oldest == UINT32_MAX || h->used[b] < h->used[oldest]))
                oldest = b;
        }
        h->used[oldest] = 0;
        h->resident--;
    }
    return missed;
}

double walk_misses(const walk_shape *shape, const walk *w, uint32_t slots, uint32_t steps,
                   uint64_t seed)
{
    CHECK(shape->dims > 0 && shape->dims <= DIMS_MAX && steps > 0);
    arena *a = arena_create("walk");
    uint32_t hot = shape->hot > 0 ? shape->hot : 1;
    head h = {.key = ARENA_NEW(a, float, (size_t)hot * shape->dims),
              .order = ARENA_NEW(a, uint32_t, hot),
              .score = ARENA_NEW(a, float, hot),
              .used = ARENA_NEW(a, uint64_t, hot),
              .picked = ARENA_NEW(a, uint8_t, hot)};
    uint32_t held = shape->forced - 1; /* the open block has its slot apart */
    uint32_t wanted = shape->picks + shape->fill, room = slots > held ? slots - held : 0;
    if (room < wanted) room = wanted;
    rng r;
    rng_seed(&r, seed);
    uint64_t missed = 0;
    for (uint32_t k = 0; k < HEADS; k++) {
        head_start(&h, shape, &r);
        for (uint32_t t = 1; t <= 2 * steps; t++) {
            head_walk(&h, shape, w, &r);
            uint32_t n = head_step(&h, shape, room, t);
            if (t > steps) missed += n;
        }
    }
    arena_destroy(a);
    return (double)missed / (HEADS * (double)steps);
}

/* ---- calibration ----------------------------------------------------------------------------- */

status walk_calibrate(const walk_shape *shape, double churn, walk *out_walk)
{
    uint32_t exact = shape->forced - 1 + shape->picks + shape->fill;
    double low = 0, high = 1.0 / (1.0 - KEEP);
    walk fastest = walk_faster(high);
    if (shape->hot == 0 || shape->picks == 0)
        return FAIL(INVALID, "--churn %g: this selector and context leave nothing to pick by query",
                    churn);
    double most = walk_misses(shape, &fastest, exact, CALIBRATE_STEPS, 1);
    if (churn > most)
        return FAIL(INVALID,
                    "--churn %g: with %u picks of %u candidates at most %.3g blocks a step change",
                    churn, shape->picks, shape->hot, most);
    walk found = fastest;
    double factor = 1.0;
    for (uint32_t i = 0; i < CALIBRATE_ROUNDS; i++) {
        found = walk_faster(factor);
        found.misses = walk_misses(shape, &found, exact, CALIBRATE_STEPS, 1);
        if (fabs(found.misses - churn) < 0.01 * churn) break;
        *(found.misses < churn ? &low : &high) = factor;
        double next = found.misses > 0 ? factor * pow(churn / found.misses, 1.3) : 2 * factor;
        factor = next > low && next < high ? next : 0.5 * (low + high);
    }
    *out_walk = found;
    return STATUS_OK;
}
