/* Nodes as processes, over UCX on loopback, and where it may matter over plain TCP too: killed,
 * stopped, refused, drained. */
#include <signal.h>
#include <stdlib.h>

#include "tests/kvstore/process.h"

enum { BLOCKS = 1000 };

static void spawn_over(node_process *n, uint32_t count, const char *faults, bool tcp)
{
    static const char *names[] = {"n0", "n1", "n2"};
    for (uint32_t i = 0; i < count; i++)
        node_spawn_over(&n[i], names[i], NULL, faults, tcp);
}

static void spawn_all(node_process *n, uint32_t count, const char *faults)
{
    spawn_over(n, count, faults, false);
}

static void end_all(node_process *n, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (n[i].pid == 0) continue;
        node_signal(&n[i], SIGTERM);
        EXPECT_EQ_I64(node_reap(&n[i]), 0);
    }
}

static void a_thousand_blocks(bool tcp)
{
    node_process n[2];
    store s;
    spawn_over(n, 2, NULL, tcp);
    store_open(&s, n, 2, 2, true);
    s.config.fetch_deadline_ns = s.config.put_deadline_ns =
        10000000000u; /* however busy it is here */
    EXPECT_EQ_U64(store_put_all(&s, 1, BLOCKS), BLOCKS);
    EXPECT_EQ_U64(store_get_all(&s, 1, BLOCKS, 64, NULL), BLOCKS);
    EXPECT_EQ_U64(store_get_all(&s, 1, 100, 1, NULL), 100);
    store_close(&s);
    end_all(n, 2);
}

TEST(a_thousand_blocks_come_back_whole_over_ucx)
{
    a_thousand_blocks(false);
}

TEST(a_thousand_blocks_come_back_whole_over_tcp)
{
    a_thousand_blocks(true);
}

static void a_node_killed(bool tcp)
{
    node_process n[3];
    store s;
    uint64_t late = 0;
    spawn_over(n, 3, NULL, tcp);
    store_open(&s, n, 3, 2, true);
    s.config.fetch_deadline_ns = s.config.put_deadline_ns =
        10000000000u; /* however busy it is here */
    EXPECT_EQ_U64(store_put_all(&s, 1, BLOCKS), BLOCKS);
    EXPECT_EQ_U64(store_get_all(&s, 1, 200, 32, NULL), 200);
    node_signal(&n[1], SIGKILL); /* not reaped yet: reads begin while the connection breaks */
    EXPECT_EQ_U64(store_get_all(&s, 1, BLOCKS, 32, &late), BLOCKS);
    EXPECT_EQ_I64(node_reap(&n[1]), 128 + SIGKILL);
    /* Restarted empty on its old address, it is found again and holds new blocks. */
    char address[CLUSTER_ADDRESS_MAX];
    snprintf(address, sizeof address, "%s", n[1].data);
    node_spawn_over(&n[1], "n1", address, NULL, tcp);
    kv_client_stats stats = {.reconnects = 0};
    for (uint64_t end = clock_now(&clock_monotonic) + UINT64_C(10000000000);
         stats.reconnects == 0 && clock_now(&clock_monotonic) < end;
         kv_client_stats_read(s.client, &stats))
        EXPECT_EQ_U64(store_get_all(&s, 1, 100, 32, NULL), 100);
    EXPECT_EQ_U64(stats.reconnects, 1);
    EXPECT_EQ_U64(store_put_all(&s, 2, BLOCKS), BLOCKS);
    EXPECT_EQ_U64(store_get_all(&s, 1, BLOCKS, 32, NULL), BLOCKS);
    EXPECT_EQ_U64(store_get_all(&s, 2, BLOCKS, 32, NULL), BLOCKS);
    printf("latest end past a deadline: %.3f ms\n", (double)late / 1e6);
    store_close(&s);
    end_all(n, 3);
}

TEST(a_node_killed_in_the_middle_loses_nothing_that_was_acknowledged)
{
    a_node_killed(false);
}

TEST(a_node_killed_in_the_middle_loses_nothing_over_tcp_either)
{
    a_node_killed(true);
}

TEST(a_stopped_node_costs_a_hedge_and_no_deadline)
{
    node_process n[2];
    store s;
    uint64_t late = 0;
    spawn_all(n, 2, NULL);
    store_open(&s, n, 2, 2, true);
    EXPECT_EQ_U64(store_put_all(&s, 1, 256), 256);
    s.config.fetch_deadline_ns = 5000000000u; /* however busy it is here */
    node_signal(&n[0], SIGSTOP);
    uint64_t end = clock_now(&clock_monotonic) + UINT64_C(1000000000);
    while (clock_now(&clock_monotonic) < end)
        EXPECT_EQ_U64(store_get_all(&s, 1, 256, 32, &late), 256);
    kv_client_stats stats;
    kv_client_stats_read(s.client, &stats);
    EXPECT(stats.hedged > 0);
    node_signal(&n[0], SIGCONT);
    EXPECT_EQ_U64(store_get_all(&s, 1, 256, 32, NULL), 256);
    printf("latest end past a deadline: %.3f ms\n", (double)late / 1e6);
    store_close(&s);
    end_all(n, 2);
}

TEST(a_single_stopped_node_ends_requests_at_their_deadline)
{
    node_process n[1];
    store s;
    spawn_all(n, 1, NULL);
    store_open(&s, n, 1, 1, true);
    EXPECT_EQ_U64(store_put_all(&s, 1, 64), 64);
    node_signal(&n[0], SIGSTOP);
    uint64_t late = 0;
    EXPECT_EQ_U64(store_get_all(&s, 1, 64, 32, &late), 0);
    EXPECT(late < UINT64_C(1000000000)); /* judged loosely: the machine is shared */
    printf("latest end past a deadline: %.3f ms\n", (double)late / 1e6);
    kv_client_stats stats;
    kv_client_stats_read(s.client, &stats);
    EXPECT_EQ_U64(stats.slots_free, s.slots);
    node_signal(&n[0], SIGCONT);
    store_close(&s);
    end_all(n, 1);
}

TEST(flipped_and_dropped_replies_over_ucx_hand_out_no_wrong_byte)
{
    node_process n[2];
    store s;
    spawn_all(n, 2, "flip-wire=0.05,flip-memory=0.02,drop=0.02,seed=7");
    store_open(&s, n, 2, 2, true);
    uint32_t stored = store_put_all(&s, 1, 500);
    EXPECT(stored >= 490);
    EXPECT(store_get_all(&s, 1, 500, 32, NULL) >= 480); /* both copies of a few may be flipped */
    kv_client_stats stats;
    kv_client_stats_read(s.client, &stats);
    EXPECT(stats.corrupt > 0 && stats.failed_over > 0);
    store_close(&s);
    end_all(n, 2);
}

TEST(a_client_of_another_layout_is_refused)
{
    node_process n[1];
    store s, other;
    spawn_all(n, 1, NULL);
    store_open(&s, n, 1, 1, true);
    EXPECT_EQ_U64(store_put_all(&s, 1, 8), 8);
    /* Same node, blocks of half the size. */
    store_open_layout(&other, n, 1, 1, false, (block_layout){64, 64, 2, 4, 2, 99});
    kv_done done;
    EXPECT(!store_next(&other, 300 * 1000 * 1000, &done));
    kv_client_stats stats;
    kv_client_stats_read(other.client, &stats);
    EXPECT_EQ_U64(stats.nodes_connected, 0);
    EXPECT_EQ_U64(stats.nodes_refused, 1);
    store_close(&other);
    EXPECT_EQ_U64(store_get_all(&s, 1, 8, 8, NULL), 8);
    store_close(&s);
    end_all(n, 1);
}

TEST(a_bad_flag_or_a_taken_port_ends_with_one_sentence_and_its_code)
{
    static const struct {
        const char *flags;
        int code;
    } rows[] = {
        {"--name a --listen 0.0.0.0:0 --control 127.0.0.1:0", 1},
        {"--name a --listen 127.0.0.1:0 --control 0.0.0.0:0", 1},
        {"--name A --listen 127.0.0.1:0 --control 127.0.0.1:0", 2},
        {"--listen 127.0.0.1:0 --control 127.0.0.1:0", 2},
        {"--name a --control 127.0.0.1:0", 2},
        {"--name a --listen nonsense --control 127.0.0.1:0", 1},
        {"--name a --listen 127.0.0.1:0 --control 127.0.0.1:0 --memory 12", 2},
        {"--name a --listen 127.0.0.1:0 --control 127.0.0.1:0 --fault drop=2", 2},
        {"--name a --listen 127.0.0.1:0 --control 127.0.0.1:0 --fault nothing=1", 2},
        {"--name a --listen 127.0.0.1:0 --control 127.0.0.1:0 --connections 0", 2},
        {"--name a --listen 127.0.0.1:0 --control 127.0.0.1:0 --log-level loud", 2},
        {"--frobnicate", 2},
        {"extra", 2},
        {"--help", 0},
        {"--version", 0},
    };
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char command[512];
        snprintf(command, sizeof command, TEST_BINARY_DIR "/bin/shoal-kvstore %s >/dev/null 2>&1",
                 rows[i].flags);
        int code = system(command);
        EXPECT_MSG(WEXITSTATUS(code) == rows[i].code, "%s: exit %d, not %d", rows[i].flags,
                   WEXITSTATUS(code), rows[i].code);
    }
    node_process n[1];
    spawn_all(n, 1, NULL);
    char command[512];
    snprintf(command, sizeof command,
             TEST_BINARY_DIR "/bin/shoal-kvstore --name b --listen %s --control 127.0.0.1:0 "
                             ">/dev/null 2>&1",
             n[0].data);
    EXPECT_EQ_I64(WEXITSTATUS(system(command)), 1);
    end_all(n, 1);
}

TEST(an_interrupted_node_exits_130)
{
    node_process n[1];
    spawn_all(n, 1, NULL);
    node_signal(&n[0], SIGINT);
    EXPECT_EQ_I64(node_reap(&n[0]), 130);
}

TEST_MAIN()
