#include "cluster/cluster.h"
#include "cluster/knobs.h"
#include "tests/test.h"

#define NODES                                                                                      \
    "nodes:\n"                                                                                     \
    "- {name: n1, data: 127.0.0.1:7101, control: 127.0.0.1:7201, domain: a, weight: 1}\n"          \
    "- {name: n2, data: 127.0.0.1:7102, control: 127.0.0.1:7202, domain: b}\n"

static const char *file_of(const char *text, size_t n)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/c.yaml", test_dir());
    FILE *f = fopen(path, "w");
    EXPECT(f != NULL && fwrite(text, 1, n, f) == n);
    fclose(f);
    return path;
}

TEST(a_file_of_nodes_alone_has_the_defaults)
{
    cluster_config got, standard;
    cluster_config_default(&standard);
    const char *path = file_of(NODES, sizeof NODES - 1);
    EXPECT_OK(cluster_config_load(path, &got));
    EXPECT_EQ_U64(got.map.epoch, 1);
    EXPECT_EQ_U64(got.map.node_count, 2);
    EXPECT_EQ_STR(got.map.node[0].name, "n1");
    EXPECT_EQ_STR(got.map.node[1].control, "127.0.0.1:7202");
    EXPECT(got.map.node[1].alive && got.map.node[1].weight == 1);
    for (size_t i = 0; i < KNOB_COUNT; i++)
        if (knobs[i].kind != UNIT_TEXT)
            EXPECT_EQ_U64(knob_get(&knobs[i], &got), knob_get(&knobs[i], &standard));
    char want[512];
    snprintf(want, sizeof want, "%s/shoal-state", test_dir());
    EXPECT_EQ_STR(got.state_dir, want);
    EXPECT_EQ_U64(got.victim_margin_percent, 25);
}

TEST(every_knob_reaches_its_member)
{
    cluster_config got;
    static const char text[] =
        "replicas: 2\ntenant: 7\nstate_dir: /tmp/x\n"
        "network: {device: eth7, plain_data: true, tcp: true}\n"
        "tls: {authority: /a.pem, certificate: /b.pem, key: k.pem}\n"
        "node: {memory: 1GiB, lease_grace: 31s, connections: 65}\n"
        "client:\n  fetch_deadline: 201ms\n  hedge_after: 21ms\n  put_deadline: 6s\n"
        "  connect_deadline: 3s\n  suspect: 1100ms\n  lease: 11s\n  landing: 33MiB\n"
        "  inflight_demand: 1\n  inflight_write_back: 2\n  inflight_prefetch: 3\n"
        "  inflight_repair: 4\n"
        "worker: {device_pool: 65MiB, host_tier: 1MiB, max_num_seqs: 9,\n"
        "  max_num_batched_tokens: 513, max_model_len: 10, park_quantum: 66, victim_margin: 26%,\n"
        "  threads: 3, spin: true}\n" NODES;
    EXPECT_OK(cluster_config_load(file_of(text, sizeof text - 1), &got));
    EXPECT(got.map.replicas == 2 && got.tenant == 7);
    EXPECT_EQ_STR(got.state_dir, "/tmp/x");
    EXPECT_EQ_STR(got.device, "eth7");
    EXPECT(got.plain_data && got.tcp);
    EXPECT_EQ_STR(got.tls_authority, "/a.pem");
    EXPECT_EQ_STR(got.tls_certificate, "/b.pem");
    char want[512];
    snprintf(want, sizeof want, "%s/k.pem", test_dir());
    EXPECT_EQ_STR(got.tls_key, want);
    EXPECT_EQ_U64(got.node_memory_bytes, 1ull << 30);
    EXPECT_EQ_U64(got.lease_grace_ns, 31000000000ull);
    EXPECT_EQ_U64(got.node_connections_max, 65);
    EXPECT_EQ_U64(got.fetch_deadline_ns, 201000000);
    EXPECT_EQ_U64(got.hedge_after_ns, 21000000);
    EXPECT_EQ_U64(got.put_deadline_ns, 6000000000ull);
    EXPECT_EQ_U64(got.connect_deadline_ns, 3000000000ull);
    EXPECT_EQ_U64(got.suspect_ns, 1100000000);
    EXPECT_EQ_U64(got.lease_ns, 11000000000ull);
    EXPECT_EQ_U64(got.landing_bytes, 33ull << 20);
    for (uint32_t i = 0; i < 4; i++)
        EXPECT_EQ_U64(got.inflight_max[i], i + 1);
    EXPECT_EQ_U64(got.device_pool_bytes, 65ull << 20);
    EXPECT_EQ_U64(got.host_tier_bytes, 1ull << 20);
    EXPECT(got.max_num_seqs == 9 && got.max_num_batched_tokens == 513 && got.max_model_len == 10);
    EXPECT(got.park_quantum_steps == 66 && got.victim_margin_percent == 26);
    EXPECT(got.threads == 3 && got.spin);
}

/* clang-format off */
static const struct bad { const char *text, *words; } bad[] = {
    {"", "is empty"},
    {"# nothing\n", "is empty"},
    {"hello", "Expecting MAPPING"},
    {"[1]", "Expecting MAPPING"},
    {"replicas: [2]\n", "line 1: Expecting STRING"},
    {"node: 5\n", "Expecting MAPPING"},
    {"nodes: 5\n", "Expecting SEQUENCE"},
    {"replicas: 1: 2\n", "not YAML"},
    {"replicas: \"a\n", "not YAML"},
    {"replicas: \"\xff\xfe\"\n", "not YAML"},
    {"\treplicas: 1\n", "not YAML"},
    {"replica: 2\n", "unknown key \"replica\""},
    {"client:\n  fetch_dedline: 3ms\n", "line 2: unknown key \"fetch_dedline\""},
    {"nodes:\n- {name: a, port: 3}\n", "unknown key \"port\""},
    {"replicas: 1\nreplicas: 2\n", "key \"replicas\" is given twice"},
    {"node: {memory: 1GiB}\nnode: {memory: 1GiB}\n", "key \"node\" is given twice"},
    {"node: {memory: 256}\n", "node.memory: \"256\" has no unit"},
    {"node: {memory: 256MB}\n", "node.memory: \"256MB\" has an unknown unit"},
    {"node: {memory: 1B}\n", "node.memory: 1B is out of range; write 1MiB to 64TiB"},
    {"node: {memory: }\n", "node.memory: \"\" is not a whole number"},
    {"client: {hedge_after: 20}\n", "client.hedge_after: \"20\" has no unit"},
    {"client: {hedge_after: 2h}\n", "client.hedge_after: \"2h\" has an unknown unit"},
    {"client: {hedge_after: 300ms}\n", "client.hedge_after is not below client.fetch_deadline"},
    {"client: {inflight_demand: 0}\n", "client.inflight_demand: 0 is out of range; write 1 to 1048576"},
    {"client: {inflight_demand: -1}\n", "not a whole number"},
    {"worker: {victim_margin: 25}\n", "worker.victim_margin: \"25\" is not a percentage"},
    {"worker: {spin: maybe}\n", "worker.spin: \"maybe\" is neither true nor false"},
    {"worker: {max_num_seqs: 4294967297}\n", "worker.max_num_seqs: 4294967297 is out of range"},
    {"replicas: 0\n", "replicas: 0 is out of range; write 1 to 4"},
    {"replicas: 5\n", "replicas: 5 is out of range"},
    {"tenant: 4294967296\n", "tenant: 4294967296 is out of range"},
    {"state_dir: \"\"\n", "state_dir is empty"},
    {"network: {device: \"\"}\n", "network.device is empty"},
    {"network: {plain_data: 2}\n", "network.plain_data: \"2\" is neither true nor false"},
    {"network: {device: a123456789a123456789a123456789a123456789a123456789a123456789a123456789}\n",
     "network.device: longer than 63 bytes"},
    {"tls: {key: a.pem}\n", "tls: authority, certificate and key go together"},
    {"tls: {ca: a.pem}\n", "unknown key \"ca\""},
    {"replicas: 3\n" NODES, "3 copies need as many failure domains and the nodes have 2"},
    {NODES "- {name: n1, data: 127.0.0.1:1, control: 127.0.0.1:2}\n", "two nodes are named n1"},
    {NODES "- {name: n3, data: 127.0.0.1:7101, control: 127.0.0.1:2}\n", "n1 and n3 share an address"},
    {NODES "- {name: n3, data: 127.0.0.1:7201, control: 127.0.0.1:2}\n", "n1 and n3 share an address"},
    {NODES "- {name: n3, data: 127.0.0.1:2, control: 127.0.0.1:2}\n", "data and control are both"},
    {NODES "- {name: N3, data: 127.0.0.1:1, control: 127.0.0.1:2}\n", "\"N3\" is no name"},
    {NODES "- {name: n3, data: 127.0.0.1:1, control: 127.0.0.1:2, domain: a b}\n", "domain: \"a b\" is no name"},
    {NODES "- {name: n3, data: 127.0.0.1, control: 127.0.0.1:2}\n", "data: \"127.0.0.1\" is no address"},
    {NODES "- {name: n3, data: 127.0.0.1:0, control: 127.0.0.1:2}\n", "is no address"},
    {NODES "- {name: n3, data: 127.0.0.1:65536, control: 127.0.0.1:2}\n", "is no address"},
    {NODES "- {name: n3, data: '::1:80', control: 127.0.0.1:2}\n", "is no address"},
    {NODES "- {name: n3, data: '[::1]:80', control: 127.0.0.1:2}\n",
     "node n3: data: [::1]:80 is an IPv6 address, and UCX carries IPv4 only; set network.tcp: true"},
    {"network: {tcp: false}\n" NODES "- {name: n3, data: '[fd00::1]:80', control: 127.0.0.1:2}\n", "set network.tcp: true"},
    {NODES "- {name: n3, control: 127.0.0.1:2}\n", "nodes[2] has no data"},
    {NODES "- {data: 127.0.0.1:1, control: 127.0.0.1:2}\n", "nodes[2] has no name"},
    {NODES "- {name: n3, data: 127.0.0.1:1, control: 127.0.0.1:2, weight: 0}\n", "weight: \"0\" is no weight"},
    {NODES "- {name: n3, data: 127.0.0.1:1, control: 127.0.0.1:2, weight: 1048577}\n", "is no weight"},
};
/* clang-format on */

TEST(every_malformed_file_is_refused_in_one_sentence_with_file_and_key)
{
    char log[4096];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cluster_config got = {.tenant = 77};
        const char *path = file_of(bad[i].text, strlen(bad[i].text));
        FILE *file = fmemopen(log, sizeof log, "w");
        log_setup(&(log_config){.level = LOG_INFO, .program = "test", .file = file});
        status s = cluster_config_load(path, &got);
        log_setup(&(log_config){.level = LOG_INFO, .program = "test"});
        fclose(file);
        EXPECT_MSG(s == STATUS_INVALID, "row %zu gave %s", i, status_name(s));
        EXPECT_HAS_STR(log_last_error(), bad[i].words);
        EXPECT_HAS_STR(log_last_error(), "c.yaml: ");
        EXPECT_MSG(strchr(log, '\n') == strrchr(log, '\n'), "row %zu logs more than once: %s", i,
                   log);
        EXPECT_EQ_U64(got.tenant, 77);
    }
}

TEST(a_missing_file_is_an_io_error)
{
    cluster_config got;
    EXPECT_STATUS(cluster_config_load("/no/such/file.yaml", &got), STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "/no/such/file.yaml: cannot be opened");
}

TEST(too_many_nodes_are_refused)
{
    static char text[16384];
    size_t at = (size_t)snprintf(text, sizeof text, "nodes:\n");
    for (unsigned i = 0; i <= CLUSTER_NODES_MAX; i++)
        at += (size_t)snprintf(text + at, sizeof text - at,
                               "- {name: n%u, data: 127.0.0.1:%u, control: 127.0.0.1:%u}\n", i,
                               1000 + i, 2000 + i);
    cluster_config got;
    EXPECT_STATUS(cluster_config_load(file_of(text, at), &got), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "more than 64");
}

/* Whatever the bytes, the loader ends with a status and leaks nothing (run under AddressSanitizer).
 */
TEST(mangled_files_end_with_a_status)
{
    static const char whole[] = "replicas: 2\nclient: {hedge_after: 20ms}\n" NODES;
    rng r;
    rng_seed(&r, test_seed());
    log_setup(&(log_config){.level = LOG_ERROR, .file = fopen("/dev/null", "w")});
    uint32_t refused = 0;
    for (int i = 0; i < 3000; i++) {
        char text[sizeof whole];
        memcpy(text, whole, sizeof whole);
        for (uint64_t k = 1 + rng_below(&r, 3); k > 0; k--)
            text[rng_below(&r, sizeof whole - 1)] = (char)rng_below(&r, 256);
        cluster_config got;
        refused += cluster_config_load(file_of(text, sizeof whole - 1), &got) != STATUS_OK;
    }
    EXPECT(refused > 1500);
}

TEST(knobs_print_as_they_are_written)
{
    cluster_config config;
    char text[256];
    cluster_config_default(&config);
    EXPECT_EQ_STR(knob_print(&knobs[0], &config, text), "1");
    EXPECT_EQ_STR(knob_print(&knobs[9], &config, text), "256MiB");
    EXPECT_EQ_STR(knob_print(&knobs[12], &config, text), "200ms");
    for (size_t i = 0; i < KNOB_COUNT; i++) {
        if (knobs[i].kind == UNIT_TEXT) continue;
        uint64_t value = knob_get(&knobs[i], &config);
        EXPECT_MSG(value >= knobs[i].least && value <= knobs[i].most, "%s", knobs[i].key);
    }
}

TEST(beyond_loopback_control_needs_tls_and_plain_data_must_be_allowed)
{
    static const char near[] = "127.0.0.1:1", far[] = "10.1.2.3:1", wide[] = "8.8.8.8:1";
    cluster_config c;
    cluster_config_default(&c);
    EXPECT_OK(cluster_listen_check(&c, near, "[::1]:2"));
    EXPECT_STATUS(cluster_listen_check(&c, near, far), STATUS_REFUSED);
    EXPECT_HAS_STR(log_last_error(), "refused without TLS");
    EXPECT_STATUS(cluster_listen_check(&c, far, near), STATUS_REFUSED);
    EXPECT_HAS_STR(log_last_error(), "refused without network.plain_data");
    snprintf(c.tls_key, sizeof c.tls_key, "/k.pem");
    EXPECT_OK(cluster_listen_check(&c, near, wide));
    EXPECT_STATUS(cluster_listen_check(&c, far, far), STATUS_REFUSED);
    c.plain_data = true;
    EXPECT_OK(cluster_listen_check(&c, far, far));
    EXPECT_STATUS(cluster_listen_check(&c, wide, far), STATUS_REFUSED);
    EXPECT_HAS_STR(log_last_error(), "on no private network");
}

TEST(ipv6_data_addresses_go_with_plain_tcp_and_control_addresses_with_either)
{
    static const char *const good[] = {
        "network: {tcp: true}\n" NODES "- {name: n3, data: '[::1]:80', control: '[::1]:81'}\n",
        NODES "- {name: n3, data: 127.0.0.1:80, control: '[::1]:81'}\n"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        cluster_config got;
        EXPECT_OK(cluster_config_load(file_of(good[i], strlen(good[i])), &got));
        EXPECT_EQ_STR(got.map.node[2].control, "[::1]:81");
    }
}

TEST(private_addresses_are_told_from_public_ones)
{
    static const char *const inside[] = {"127.0.0.1:1",   "10.0.0.1:1",     "172.16.0.1:1",
                                         "172.31.9.9",    "192.168.1.1:80", "169.254.1.1:1",
                                         "[fd00::1]:700", "[fe80::1]:7",    "[::1]:1"};
    static const char *const outside[] = {
        "0.0.0.0:1",   "11.0.0.1:1", "172.32.0.1:1", "172.15.0.1", "192.169.1.1:80", "[2001::1]:1",
        "example.org", "",           "[::]:1"};
    for (size_t i = 0; i < sizeof inside / sizeof *inside; i++)
        EXPECT_MSG(cluster_address_is_private(inside[i]), "%s", inside[i]);
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        EXPECT_MSG(!cluster_address_is_private(outside[i]), "%s", outside[i]);
}

TEST_MAIN()
