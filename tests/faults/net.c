#include "tests/faults/net.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/test.h"

static int space[NET_NODES]; /* descriptors of the nodes' network namespaces */

static bool shell(const char *format, ...) __attribute__((format(printf, 1, 2)));

static bool shell(const char *format, ...)
{
    char command[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(command, sizeof command, format, list);
    va_end(list);
    return system(command) == 0;
}

/* UCX lists the devices of /sys, which shows the namespace that mounted it. */
static bool own_sys(void)
{
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("sysfs", "/sys", "sysfs", 0, NULL) == 0;
}

/* A process that does nothing lends the new namespace its pid until it is held by a descriptor. */
static bool add_node(uint32_t i)
{
    int ready[2];
    char byte, path[64];
    if (pipe2(ready, O_CLOEXEC) != 0) return false;
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        byte = unshare(CLONE_NEWNET) == 0;
        if (write(ready[1], &byte, 1) == 1) pause();
        _exit(0);
    }
    bool ok = pid > 0 && read(ready[0], &byte, 1) == 1 && byte == 1;
    snprintf(path, sizeof path, "/proc/%d/ns/net", (int)pid);
    space[i] = ok ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ok = space[i] >= 0 && shell("ip link add vh%u type veth peer name eth0 netns %d && "
                                "ip link set vh%u master br0 up && "
                                "nsenter -n -t %d sh -c 'ip link set lo up && "
                                "ip addr add 10.77.0.%u/24 dev eth0 && ip link set eth0 up'",
                                i, (int)pid, i, (int)pid, i + 1);
    if (pid > 0) kill(pid, SIGKILL);
    if (pid > 0) waitpid(pid, NULL, 0);
    close(ready[0]);
    close(ready[1]);
    return ok;
}

void net_open(void)
{
    static enum { NEVER, OPEN, REFUSED } state;
    static char why[128];
    if (state == NEVER) {
        state = REFUSED;
        if (geteuid() != 0)
            snprintf(why, sizeof why, "not root");
        else if (!shell("command -v ip nft nsenter >/dev/null"))
            snprintf(why, sizeof why, "ip, nft or nsenter is missing");
        else if (unshare(CLONE_NEWNET) != 0 || !own_sys())
            snprintf(why, sizeof why, "no namespace: %s", strerror(errno));
        else if (!shell("exec 2>/dev/null; ip link set lo up && ip link add br0 type bridge && "
                        "ip addr add 10.77.0.254/24 dev br0 && ip link set br0 up && "
                        "nft add table ip shoal"))
            snprintf(why, sizeof why, "this kernel gives no bridge or no nft table");
        else
            state = OPEN;
        for (uint32_t i = 0; i < NET_NODES && state == OPEN; i++)
            EXPECT_MSG(add_node(i), "node %u gets no namespace", i);
    }
    if (state == REFUSED) SKIP("network namespaces cannot be made here: %s", why);
}

void net_enter(uint32_t node)
{
    if (setns(space[node], CLONE_NEWNET) != 0 || !own_sys()) _exit(126);
}

void net_link(uint32_t node, bool up)
{
    EXPECT(shell("ip link set vh%u %s", node, up ? "up" : "down"));
}

void net_drop(uint32_t node, net_way way)
{
    EXPECT(shell("nft 'add chain ip shoal to { type filter hook output priority 0; }; "
                 "add chain ip shoal from { type filter hook input priority 0; }'"));
    if (way & NET_TO) EXPECT(shell("nft add rule ip shoal to ip daddr 10.77.0.%u drop", node + 1));
    if (way & NET_FROM)
        EXPECT(shell("nft add rule ip shoal from ip saddr 10.77.0.%u drop", node + 1));
}

/* Connections that it opens go through as well: UCX's data connection is one of them. */
void net_proxy(uint32_t node)
{
    EXPECT(shell("nft 'add chain ip shoal out { type nat hook output priority -100; }; "
                 "add chain ip shoal in { type nat hook prerouting priority -100; }; "
                 "add rule ip shoal out ip daddr 10.77.0.%u ip protocol tcp meta mark != %d "
                 "redirect to :%d; "
                 "add rule ip shoal in ip saddr 10.77.0.%u ip protocol tcp redirect to :%d'",
                 node + 1, NET_PROXY_MARK, NET_PROXY_PORT, node + 1, NET_PROXY_PORT));
}

void net_heal(void)
{
    EXPECT(shell("nft 'delete table ip shoal; add table ip shoal'"));
}
