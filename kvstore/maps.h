/* kvstore/maps.h - cluster maps as frames: whoever has the newer one sends it.
 *
 * Threads: one owner. Memory: a few encoded maps, lent to the transport until sent. */
#ifndef KVSTORE_MAPS_H
#define KVSTORE_MAPS_H

#include "kvstore/transport.h"

enum { KV_MAP_BUFFERS = 4, KV_MAP_COOKIE_BIT = 63 }; /* cookies of map bodies have this bit set */

typedef struct kv_maps {
    wire_node *rows[KV_MAP_BUFFERS]; /* [WIRE_NODES_MAX] each */
    bool lent[KV_MAP_BUFFERS];
} kv_maps;

void kv_maps_init(kv_maps *maps, arena *a);
/* Best effort: with all buffers lent out nothing is sent; the peer asks again by being refused. */
void kv_maps_send(kv_maps *maps, kv_transport *t, kv_peer peer, const cluster_map *map);
void kv_maps_sent(kv_maps *maps, uint64_t cookie); /* a cookie with the bit set came back */
/* INVALID when the frame is malformed; scratch holds WIRE_NODES_MAX rows. */
status kv_map_decode(const kv_message *m, wire_node *scratch, cluster_map *out_map);

#endif
