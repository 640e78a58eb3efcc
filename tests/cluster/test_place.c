#include "cluster/cluster.h"
#include "tests/test.h"

static cluster_map map_of(uint32_t nodes, uint32_t domains)
{
    cluster_map map = {.epoch = 1, .replicas = 2, .node_count = nodes};
    for (uint32_t i = 0; i < nodes; i++) {
        cluster_node *n = &map.node[i];
        snprintf(n->name, sizeof n->name, "n%u", i + 1);
        snprintf(n->domain, sizeof n->domain, "d%u", i % domains);
        n->weight = 1;
        n->alive = true;
    }
    return map;
}

static context_id context_of(uint64_t seed)
{
    rng r;
    rng_seed(&r, seed);
    context_id id = {.hi = rng_next(&r), .lo = rng_next(&r)};
    return id;
}

static uint32_t first_of(const cluster_map *map, uint64_t i)
{
    uint32_t rank[1] = {0};
    EXPECT_EQ_U64(cluster_place(map, context_of(i / 4), (uint32_t)(i % 4), 4, rank, 1), 1);
    return rank[0];
}

TEST(each_node_gets_blocks_by_its_weight)
{
    static const uint32_t weights[][5] = {{1, 1, 1, 1, 1},
                                          {1, 2, 3, 4, 10},
                                          {100, 100, 100, 100, 1},
                                          {1u << 20, 1u << 20, 1, 1, 1u << 19}};
    enum { DRAWS = 40000 };
    for (size_t w = 0; w < sizeof weights / sizeof *weights; w++) {
        cluster_map map = map_of(5, 5);
        double count[5] = {0}, sum = 0, chi = 0;
        for (uint32_t i = 0; i < 5; i++)
            sum += map.node[i].weight = weights[w][i];
        for (uint64_t i = 0; i < DRAWS; i++)
            count[first_of(&map, test_seed() * DRAWS + i)]++;
        for (uint32_t i = 0; i < 5; i++) {
            double want = (double)DRAWS * weights[w][i] / sum;
            bool rare = want < 5; /* too rare for the approximation */
            EXPECT(!rare || count[i] < 20);
            chi += rare ? 0 : (count[i] - want) * (count[i] - want) / want;
        }
        /* chi-square, 4 degrees of freedom: beyond 23.5 once in 10^4 */
        EXPECT_MSG(chi < 23.5, "row %zu: chi-square %g", w, chi);
    }
}

TEST(a_node_that_leaves_moves_only_what_it_held)
{
    cluster_map map = map_of(7, 7);
    map.node[2].weight = 3;
    uint32_t moved = 0, held = 0;
    for (uint64_t i = 0; i < 4000; i++) {
        uint32_t before[2], after[2], gone = (uint32_t)(i % 7);
        context_id c = context_of(test_seed() * 4000 + i);
        map.node[gone].alive = true;
        EXPECT_EQ_U64(cluster_place(&map, c, 0, 1, before, 2), 2);
        map.node[gone].alive = false;
        EXPECT_EQ_U64(cluster_place(&map, c, 0, 1, after, 2), 2);
        map.node[gone].alive = true;
        bool had = before[0] == gone || before[1] == gone;
        uint32_t kept = before[0] == gone ? before[1] : before[0];
        held += had;
        if (had) {
            moved++;
            EXPECT(after[0] == kept || after[1] == kept);
        } else {
            EXPECT(before[0] == after[0] && before[1] == after[1]);
        }
        EXPECT(after[0] != gone && after[1] != gone);
    }
    EXPECT(held > 500 && moved == held);
}

TEST(no_domain_gets_a_second_copy_before_every_domain_has_one)
{
    cluster_map map = map_of(6, 3);
    for (uint64_t i = 0; i < 2000; i++) {
        uint32_t rank[6];
        EXPECT_EQ_U64(cluster_place(&map, context_of(test_seed() + i), 1, 8, rank, 6), 6);
        uint32_t seen = 0, nodes = 0;
        for (uint32_t k = 0; k < 3; k++)
            seen |= 1u << (rank[k] % 3);
        for (uint32_t k = 0; k < 6; k++)
            nodes |= 1u << rank[k];
        EXPECT_EQ_U64(seen, 7);
        EXPECT_EQ_U64(nodes, 63);
    }
}

TEST(order_in_the_map_and_addresses_do_not_matter)
{
    cluster_map map = map_of(5, 4), mirror = map;
    for (uint32_t i = 0; i < 5; i++) {
        mirror.node[i] = map.node[4 - i];
        snprintf(mirror.node[i].data, sizeof mirror.node[i].data, "10.0.0.%u:1", i);
    }
    for (uint64_t i = 0; i < 2000; i++) {
        uint32_t a[5], b[5];
        context_id c = context_of(test_seed() + i);
        EXPECT_EQ_U64(cluster_place(&map, c, 3, 8, a, 5), 5);
        EXPECT_EQ_U64(cluster_place(&mirror, c, 3, 8, b, 5), 5);
        for (uint32_t k = 0; k < 5; k++)
            EXPECT_EQ_U64(a[k], 4 - b[k]);
    }
}

TEST(layers_of_one_group_share_their_nodes_and_groups_do_not)
{
    cluster_map map = map_of(16, 16);
    uint32_t other = 0;
    for (uint64_t i = 0; i < 200; i++) {
        uint32_t a[2], b[2], c[2];
        context_id id = context_of(test_seed() + i);
        cluster_place(&map, id, 0, 32, a, 2);
        cluster_place(&map, id, 7, 32, b, 2);
        cluster_place(&map, id, 8, 32, c, 2);
        EXPECT(a[0] == b[0] && a[1] == b[1]);
        other += a[0] != c[0];
    }
    EXPECT(other > 150);
}

TEST(fewer_alive_nodes_give_fewer_ranks)
{
    cluster_map map = map_of(3, 3);
    uint32_t rank[4] = {9, 9, 9, 9};
    map.node[0].alive = map.node[2].alive = false;
    EXPECT_EQ_U64(cluster_place(&map, context_of(1), 0, 1, rank, 4), 1);
    EXPECT_EQ_U64(rank[0], 1);
    EXPECT_EQ_U64(rank[1], 9);
    map.node[1].alive = false;
    EXPECT_EQ_U64(cluster_place(&map, context_of(1), 0, 1, rank, 4), 0);
}

/* Every node and worker must agree, also with those of last year: these never change. */
TEST(placement_is_what_it_always_was)
{
    cluster_map map = map_of(5, 4);
    map.node[1].weight = 7;
    map.node[3].weight = 3;
    static const uint8_t golden[8][5] = {{1, 2, 3, 4, 0}, {4, 3, 1, 2, 0}, {1, 3, 4, 2, 0},
                                         {4, 1, 3, 2, 0}, {3, 1, 0, 2, 4}, {2, 1, 4, 3, 0},
                                         {1, 3, 2, 4, 0}, {4, 1, 3, 2, 0}};
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t rank[5];
        context_id id = {.hi = 0x0123456789abcdefull * (i + 1), .lo = i};
        EXPECT_EQ_U64(cluster_place(&map, id, i, 8, rank, 5), 5);
        for (uint32_t k = 0; k < 5; k++)
            EXPECT_MSG(rank[k] == golden[i][k], "row %u is {%u, %u, %u, %u, %u}", i, rank[0],
                       rank[1], rank[2], rank[3], rank[4]);
    }
}

TEST_MAIN()
