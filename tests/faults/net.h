/* tests/faults/net.h - a network of namespaces that belong to this process alone.
 *
 *   this process, 10.77.0.254  br0 ── veth ── eth0  10.77.0.1  node 0
 *                                  ── veth ── eth0  10.77.0.2  node 1 ...
 *
 * The namespaces have no names: they end with the processes in them, however the test ends. */
#ifndef TESTS_FAULTS_NET_H
#define TESTS_FAULTS_NET_H

#include <stdbool.h>
#include <stdint.h>

enum { NET_NODES = 3, NET_PROXY_PORT = 7900, NET_PROXY_MARK = 77 };

/* Once a program, before any thread. Skips the test where namespaces cannot be made. */
void net_open(void);
void net_enter(uint32_t node); /* this process goes there; _exit(126) when it cannot */
void net_link(uint32_t node, bool up);
typedef enum net_way { NET_TO = 1, NET_FROM = 2, NET_BOTH = 3 } net_way; /* the node */
void net_drop(uint32_t node, net_way way);                               /* packets vanish */
void net_proxy(uint32_t node); /* its TCP connections go through NET_PROXY_PORT */
void net_heal(void);           /* no drops and no proxy any more; links stay */

#endif
