/* Addresses, the network devices that carry them, and what the loopback network gives. */
#include "kvstore/transport.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

/* How many descriptors are open, of those that a test may have. */
static int fds_open(void)
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) != -1;
    return count;
}

TEST(an_address_is_a_number_of_either_family_or_localhost_and_a_port)
{
    static const struct {
        const char *text, *host; /* host NULL: refused */
        uint16_t port;
    } rows[] = {
        {"127.0.0.1:7101", "127.0.0.1", 7101},
        {"10.1.2.3:1", "10.1.2.3", 1},
        {"localhost:80", "127.0.0.1", 80},
        {"[::1]:7101", "::1", 7101},
        {"[2001:db8::7]:65535", "2001:db8::7", 65535},
        {"127.0.0.1", NULL, 0},
        {"127.0.0.1:", NULL, 0},
        {":7101", NULL, 0},
        {"", NULL, 0},
        {"example.org:7101", NULL, 0},
        {"127.0.0.1:http", NULL, 0},
        {"[::1:7101", NULL, 0},
    };
    for (uint32_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct sockaddr_storage at;
        socklen_t size = 0;
        char host[INET6_ADDRSTRLEN] = "";
        status s = kv_address_parse(rows[i].text, &at, &size);
        EXPECT_MSG((s == STATUS_OK) == (rows[i].host != NULL), "\"%s\"", rows[i].text);
        if (s != STATUS_OK) continue;
        const struct sockaddr_in *v4 = (const void *)&at;
        const struct sockaddr_in6 *v6 = (const void *)&at;
        bool four = at.ss_family == AF_INET;
        EXPECT(size == (four ? sizeof *v4 : sizeof *v6));
        inet_ntop(at.ss_family, four ? (const void *)&v4->sin_addr : (const void *)&v6->sin6_addr,
                  host, sizeof host);
        EXPECT_EQ_STR(host, rows[i].host);
        EXPECT_EQ_U64(ntohs(four ? v4->sin_port : v6->sin6_port), rows[i].port);
    }
    char longest[CLUSTER_ADDRESS_MAX + 8];
    struct sockaddr_storage at;
    socklen_t size;
    memset(longest, '1', sizeof longest);
    memcpy(longest + sizeof longest - 3, ":1", 3);
    EXPECT_STATUS(kv_address_parse(longest, &at, &size), STATUS_INVALID);
}

TEST(devices_are_those_asked_for_or_those_of_the_addresses)
{
    cluster_config c;
    char devices[KV_DEVICES_MAX];
    cluster_config_default(&c);
    EXPECT_OK(kv_devices_find(&c, "127.0.0.1:0", devices));
    EXPECT_EQ_STR(devices, "lo");
    EXPECT_OK(kv_devices_find(&c, "127.3.2.1:0", devices)); /* carried, though not listed */
    EXPECT_EQ_STR(devices, "lo");
    EXPECT_OK(kv_devices_find(&c, NULL, devices)); /* no nodes: loopback */
    EXPECT_EQ_STR(devices, "lo");
    c.map.node_count = 2; /* both on one device: named once */
    snprintf(c.map.node[0].data, sizeof c.map.node[0].data, "127.0.0.1:7101");
    snprintf(c.map.node[1].data, sizeof c.map.node[1].data, "127.3.2.1:7102");
    EXPECT_OK(kv_devices_find(&c, NULL, devices));
    EXPECT_EQ_STR(devices, "lo");
    EXPECT_STATUS(kv_devices_find(&c, "192.0.2.77:7101", devices), STATUS_INVALID); /* TEST-NET-1 */
    EXPECT_HAS_STR(log_last_error(), "no network device here carries 192.0.2.77");
    snprintf(c.device, sizeof c.device, "eth8,eth9");
    EXPECT_OK(kv_devices_find(&c, "192.0.2.77:7101", devices));
    EXPECT_EQ_STR(devices, "eth8,eth9");
}

TEST(a_transport_on_a_device_that_is_not_there_is_refused)
{
    kv_transport *t = NULL;
    arena *a = arena_create("ucx");
    EXPECT(kv_transport_ucx_open_on(a, "nodevice7", false, &t) != STATUS_OK ||
           t->ops->listen(t, "127.0.0.1:0", (char[CLUSTER_ADDRESS_MAX]){0}) != STATUS_OK);
    kv_transport_close(t);
    arena_destroy(a);
}

/* The device of an address, as the kernel's list has it. */
static void device_of(int family, bool loopback)
{
    struct ifaddrs *all;
    cluster_config c;
    char devices[KV_DEVICES_MAX], host[INET6_ADDRSTRLEN], address[CLUSTER_ADDRESS_MAX];
    cluster_config_default(&c);
    EXPECT(getifaddrs(&all) == 0);
    for (const struct ifaddrs *i = all; i != NULL; i = i->ifa_next) {
        if (i->ifa_addr == NULL || i->ifa_addr->sa_family != family) continue;
        if (((i->ifa_flags & IFF_LOOPBACK) != 0) != loopback) continue;
        const struct sockaddr_in *v4 = (const void *)i->ifa_addr;
        const struct sockaddr_in6 *v6 = (const void *)i->ifa_addr;
        bool four = family == AF_INET;
        if (!four && IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr)) continue;
        inet_ntop(family, four ? (const void *)&v4->sin_addr : (const void *)&v6->sin6_addr, host,
                  sizeof host);
        snprintf(address, sizeof address, four ? "%s:0" : "[%s]:0", host);
        EXPECT_OK(kv_devices_find(&c, address, devices));
        EXPECT_EQ_STR(devices, i->ifa_name);
        snprintf(c.map.node[0].data, sizeof c.map.node[0].data, four ? "%s:7101" : "[%s]:7101",
                 host);
        c.map.node_count = 1; /* who dials its own address leaves by the device that carries it */
        EXPECT_OK(kv_devices_find(&c, NULL, devices));
        EXPECT_EQ_STR(devices, i->ifa_name);
    }
    freeifaddrs(all);
}

TEST(an_address_is_carried_by_the_device_that_the_kernel_lists_it_under)
{
    device_of(AF_INET, true);
    device_of(AF_INET, false);
    device_of(AF_INET6, true);
    device_of(AF_INET6, false);
}

TEST(devices_are_listed_once_and_names_that_are_no_number_are_refused)
{
    cluster_config c;
    char devices[KV_DEVICES_MAX] = "before";
    cluster_config_default(&c);
    c.map.node_count = 1;
    snprintf(c.map.node[0].data, sizeof c.map.node[0].data, "store.example.org:7101");
    EXPECT_STATUS(kv_devices_find(&c, NULL, devices), STATUS_INVALID);
    EXPECT_STATUS(kv_devices_find(&c, "store.example.org:7101", devices), STATUS_INVALID);
    EXPECT_EQ_STR(devices, "before");
    /* No way there: nothing is known of it, the other is. */
    c.map.node_count = 2;
    snprintf(c.map.node[0].data, sizeof c.map.node[0].data, "[2001:db8::7]:7101");
    snprintf(c.map.node[1].data, sizeof c.map.node[1].data, "127.0.0.1:7101");
    EXPECT_OK(kv_devices_find(&c, NULL, devices));
    EXPECT_HAS_STR(devices, "lo");
    int open_before = fds_open();
    EXPECT_OK(kv_devices_find(&c, NULL, devices));
    EXPECT_EQ_I64(fds_open(), open_before);
}

TEST(the_loopback_network_is_measured)
{
    kv_loopback seen = {0};
    kv_transport *first; /* UCX keeps some descriptors for good from its first use on */
    arena *a = arena_create("network test");
    EXPECT_OK(kv_transport_ucx_open(a, false, &first));
    kv_transport_close(first);
    arena_destroy(a);
    int open_before = fds_open();
    EXPECT(kv_loopback_measure(&seen) == STATUS_OK);
    EXPECT_EQ_I64(fds_open(), open_before);
    EXPECT(seen.tcp_gbs < 1000 && seen.transport_gbs < 1000 && seen.transport_rtt_us < 1e5);
    EXPECT(seen.tcp_gbs > 0.01 && seen.transport_gbs > 0.01 && seen.transport_rtt_us > 0.5);
    printf("loopback: sockets %.2f GB/s, transport %.2f GB/s, round trip %.1f us\n", seen.tcp_gbs,
           seen.transport_gbs, seen.transport_rtt_us);
}

TEST_MAIN()
