/* cluster/place.c - which nodes hold a block: weighted rendezvous hashing over failure domains.
 *
 * Every node draws a number from (context, layer group, node name) and the highest draws win
 * (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998). Weights follow
 * the logarithmic method: with h uniform in (0, 1), weight / -ln(h) ranks a node first with
 * probability weight / sum of weights. A node that leaves takes only its own draws along, so
 * nothing else moves; an address is not part of the draw, so a node may change it and keep its
 * blocks.
 *
 * Every machine must rank alike, so no floating point is used: -log2(h) is computed in fixed point
 * by repeated squaring (integers only; the base of the logarithm cancels), and w1/l1 > w2/l2 is
 * decided as w1*l2 > w2*l1. With 32 fraction bits and weights below 2^20 the products fit 64 bits.
 *
 * It does not know which nodes answer: suspects are passed over by whoever walks the ranks. */
#include "cluster/cluster.h"

#include <string.h>

enum { FRACTION_BITS = 32 };

typedef struct draw {
    uint64_t cost;   /* -log2(h) * 2^32, >= 1 */
    uint64_t weight; /* 1 .. CLUSTER_WEIGHT_MAX */
    uint32_t node;   /* index in the map */
    uint32_t domain; /* index of the first node of the map in the same domain */
} draw;

/* -log2((hash + 1) / 2^64) with FRACTION_BITS fraction bits, rounded up, at least 1.
 * One fraction bit a squaring: x in [1, 2) is squared; a square >= 2 yields a one and is halved. */
static uint64_t log_cost(uint64_t hash)
{
    if (hash == UINT64_MAX) return 1;
    uint64_t value = hash + 1;
    uint32_t whole = 63u - (uint32_t)__builtin_clzll(value);
    uint64_t x = value << (63 - whole); /* [2^63, 2^64): x / 2^63 in [1, 2) */
    uint64_t fraction = 0;
    for (int i = 0; i < FRACTION_BITS; i++) {
        unsigned __int128 square = (unsigned __int128)x * x;
        uint64_t high = (uint64_t)(square >> 64); /* x^2 / 2^64: bit 63 set when >= 2 */
        uint64_t bit = high >> 63, twice = high << 1 | (uint64_t)square >> 63;
        x = twice ^
            ((twice ^ high) & (0 - bit)); /* bit is a coin: a branch would miss half the time */
        fraction = fraction << 1 | bit;
    }
    uint64_t log = (uint64_t)whole << FRACTION_BITS | fraction;
    return ((uint64_t)64 << FRACTION_BITS) - log;
}

static void store_le(uint8_t *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

/* True when a ranks before b. Equal scores, about once in 2^32 draws, fall to the lower cost, then
 * to the name, which is unique: the order never depends on where a node stands in the map. */
static bool draw_before(const cluster_map *map, const draw *a, const draw *b)
{
    uint64_t left = a->weight * b->cost, right = b->weight * a->cost;
    if (left != right) return left > right;
    if (a->cost != b->cost) return a->cost < b->cost;
    return strcmp(map->node[a->node].name, map->node[b->node].name) < 0;
}

static uint32_t draw_domain(const cluster_map *map, uint32_t node)
{
    uint32_t i = 0;
    while (i < node && strcmp(map->node[i].domain, map->node[node].domain) != 0)
        i++;
    return i;
}

/* Draws of the alive nodes, best first (insertion sort: at most CLUSTER_NODES_MAX, usually 3). */
static uint32_t draw_all(const cluster_map *map, const uint8_t *key, size_t key_bytes, draw *draws)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < map->node_count; i++) {
        const cluster_node *node = &map->node[i];
        if (!node->alive) continue;
        CHECK(node->weight >= 1 && node->weight <= CLUSTER_WEIGHT_MAX);
        uint64_t seed = bytes_digest(node->name, strlen(node->name), 0);
        draw d = {.cost = log_cost(bytes_digest(key, key_bytes, seed)),
                  .weight = node->weight,
                  .node = i,
                  .domain = draw_domain(map, i)};
        uint32_t at = count++;
        for (; at > 0 && draw_before(map, &d, &draws[at - 1]); at--)
            draws[at] = draws[at - 1];
        draws[at] = d;
    }
    return count;
}

uint32_t cluster_place(const cluster_map *map, context_id context, uint32_t layer, uint32_t layers,
                       uint32_t *out_rank, uint32_t max)
{
    CHECK(map->node_count <= CLUSTER_NODES_MAX);
    CHECK(layer < layers);
    uint8_t key[20];
    store_le(key, context.hi, 8);
    store_le(key + 8, context.lo, 8);
    store_le(key + 16, (uint64_t)layer * 4 / layers, 4);
    draw draws[CLUSTER_NODES_MAX];
    uint32_t count = draw_all(map, key, sizeof key, draws);

    uint64_t domains = 0, taken = 0; /* bit per domain index, bit per draw */
    uint32_t written = 0;
    for (uint32_t i = 0; i < count && written < max; i++) {
        if (domains >> draws[i].domain & 1) continue;
        domains |= 1ull << draws[i].domain;
        taken |= 1ull << i;
        out_rank[written++] = draws[i].node;
    }
    for (uint32_t i = 0; i < count && written < max; i++)
        if (!(taken >> i & 1)) out_rank[written++] = draws[i].node;
    return written;
}
