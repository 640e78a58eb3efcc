/* kvstore/devices.c - the network devices of the data plane.
 *
 * UCX is told by name where it may listen and from where it may dial. A node's device is the one
 * that carries its listen address. A client's are those from which the kernel would send to the
 * nodes of its map: a UDP socket that is connected, and never sends, learns its own address.
 *
 * Not here: a node that joins a running client's map and lies behind another device is not reached
 * until the client is opened again, or network.device names that device from the start. */
#include "kvstore/transport.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

status kv_address_parse(const char *address, struct sockaddr_storage *out, socklen_t *out_bytes)
{
    char host[CLUSTER_ADDRESS_MAX];
    const char *colon = strrchr(address, ':');
    size_t length = colon == NULL ? 0 : (size_t)(colon - address);
    if (length == 0 || length >= sizeof host || colon[1] == 0)
        return FAIL(INVALID, "\"%s\" is not HOST:PORT", address);
    memcpy(host, address, length);
    host[length] = 0;
    const char *name = host;
    if (host[0] == '[' && host[length - 1] == ']') {
        host[length - 1] = 0;
        name++;
    }
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = SOCK_STREAM,
        .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
    };
    struct addrinfo *found;
    if (strcmp(name, "localhost") == 0) name = "127.0.0.1";
    if (getaddrinfo(name, colon + 1, &hints, &found) != 0)
        return FAIL(INVALID, "\"%s\" is not a numeric HOST:PORT", address);
    memcpy(out, found->ai_addr, found->ai_addrlen);
    *out_bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return STATUS_OK;
}

/* Where a packet to that address would leave from. False: no way there now. */
static bool route(const struct sockaddr_storage *to, socklen_t to_bytes,
                  struct sockaddr_storage *out)
{
    socklen_t bytes = sizeof *out;
    int fd = socket(to->ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    bool known = connect(fd, (const struct sockaddr *)to, to_bytes) == 0 &&
                 getsockname(fd, (struct sockaddr *)out, &bytes) == 0;
    close(fd);
    return known;
}

static bool same_host(const struct sockaddr *a, const struct sockaddr_storage *b)
{
    if (a == NULL || a->sa_family != b->ss_family) return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

/* All of 127.0.0.0/8 is loopback's, though it carries 127.0.0.1 only. */
static const char *carrier(const struct ifaddrs *all, const struct sockaddr_storage *host)
{
    if (host->ss_family == AF_INET &&
        ntohl(((const struct sockaddr_in *)host)->sin_addr.s_addr) >> 24 == 127)
        return "lo";
    for (const struct ifaddrs *i = all; i != NULL; i = i->ifa_next)
        if (same_host(i->ifa_addr, host)) return i->ifa_name;
    return NULL;
}

/* Once each, with commas. */
static void add(char list[KV_DEVICES_MAX], const char *name)
{
    size_t have = strlen(list), more = strlen(name);
    if (more == 0) return;
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += more)
        if ((at == list || at[-1] == ',') && (at[more] == ',' || at[more] == 0)) return;
    if (have + more + 2 > KV_DEVICES_MAX) return; /* more networks than anyone has */
    snprintf(list + have, KV_DEVICES_MAX - have, "%s%s", have > 0 ? "," : "", name);
}

static status find(const cluster_config *config, const char *listen, const struct ifaddrs *all,
                   char out[KV_DEVICES_MAX])
{
    struct sockaddr_storage to = {0}, from = {0};
    socklen_t bytes;
    if (listen != NULL) {
        TRY(kv_address_parse(listen, &to, &bytes));
        const char *name = carrier(all, &to);
        if (name == NULL) return FAIL(INVALID, "no network device here carries %s", listen);
        add(out, name);
        return STATUS_OK;
    }
    for (uint32_t i = 0; i < config->map.node_count; i++) {
        TRY(kv_address_parse(config->map.node[i].data, &to, &bytes));
        const char *name = route(&to, bytes, &from) ? carrier(all, &from) : NULL;
        if (name != NULL) add(out, name);
    }
    if (out[0] == 0) add(out, "lo"); /* nobody is reached; each dial will say so */
    return STATUS_OK;
}

status kv_devices_find(const cluster_config *config, const char *listen,
                       char out_devices[KV_DEVICES_MAX])
{
    char found[KV_DEVICES_MAX] = "";
    struct ifaddrs *all;
    add(found, config->device);
    if (config->device[0] == 0) {
        if (getifaddrs(&all) != 0) return FAIL(IO, "the network devices cannot be listed");
        status s = find(config, listen, all, found);
        freeifaddrs(all);
        if (s != STATUS_OK) return s;
    }
    memcpy(out_devices, found, sizeof found);
    return STATUS_OK;
}
