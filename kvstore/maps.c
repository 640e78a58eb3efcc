/* kvstore/maps.c - a cluster map to and from the rows of a MAP frame. */
#include "kvstore/maps.h"

#include <string.h>

_Static_assert((int)CLUSTER_NAME_MAX == (int)WIRE_NAME_BYTES, "names fit as they are");
_Static_assert((int)CLUSTER_ADDRESS_MAX == (int)WIRE_ADDRESS_BYTES, "addresses fit as they are");
_Static_assert((int)CLUSTER_NODES_MAX == (int)WIRE_NODES_MAX, "every map fits");

void kv_maps_init(kv_maps *maps, arena *a)
{
    for (uint32_t i = 0; i < KV_MAP_BUFFERS; i++)
        maps->rows[i] = ARENA_NEW(a, wire_node, WIRE_NODES_MAX);
}

/* Text up to its end, zeros behind it: bytes past the end of a string never travel. */
static void text_copy(char *out, const char *text, size_t size)
{
    size_t length = strnlen(text, size - 1);
    memset(out, 0, size);
    memcpy(out, text, length);
}

static void rows_encode(const cluster_map *map, wire_node *rows)
{
    for (uint32_t i = 0; i < map->node_count; i++) {
        const cluster_node *n = &map->node[i];
        text_copy(rows[i].name, n->name, sizeof rows[i].name);
        text_copy(rows[i].data, n->data, sizeof rows[i].data);
        text_copy(rows[i].control, n->control, sizeof rows[i].control);
        text_copy(rows[i].domain, n->domain, sizeof rows[i].domain);
        rows[i].weight = n->weight;
        rows[i].alive = n->alive;
    }
}

void kv_maps_send(kv_maps *maps, kv_transport *t, kv_peer peer, const cluster_map *map)
{
    CHECK(map->node_count <= CLUSTER_NODES_MAX);
    for (uint32_t i = 0; i < KV_MAP_BUFFERS; i++) {
        if (maps->lent[i]) continue;
        rows_encode(map, maps->rows[i]);
        uint32_t bytes = map->node_count * (uint32_t)sizeof(wire_node);
        wire_map head = {
            .epoch = map->epoch,
            .replicas = map->replicas,
            .node_count = map->node_count,
        };
        wire_head_set(&head.head, WIRE_MAP, 0, bytes);
        kv_message m = {
            .head = &head,
            .head_bytes = sizeof head,
            .body = bytes == 0 ? NULL : maps->rows[i],
            .body_bytes = bytes,
            .cookie = UINT64_C(1) << KV_MAP_COOKIE_BIT | i,
        };
        if (t->ops->send(t, peer, &m) == STATUS_OK && bytes != 0) maps->lent[i] = true;
        return;
    }
}

void kv_maps_sent(kv_maps *maps, uint64_t cookie)
{
    uint64_t i = cookie & ~(UINT64_C(1) << KV_MAP_COOKIE_BIT);
    CHECK(i < KV_MAP_BUFFERS && maps->lent[i]);
    maps->lent[i] = false;
}

status kv_map_decode(const kv_message *m, wire_node *scratch, cluster_map *out_map)
{
    wire_map head;
    TRY(wire_decode_map(m->head, m->head_bytes, m->body, m->body_bytes, &head, scratch));
    *out_map = (cluster_map){
        .epoch = head.epoch,
        .replicas = head.replicas,
        .node_count = head.node_count,
    };
    for (uint32_t i = 0; i < head.node_count; i++) {
        cluster_node *n = &out_map->node[i];
        memcpy(n->name, scratch[i].name, sizeof n->name);
        memcpy(n->data, scratch[i].data, sizeof n->data);
        memcpy(n->control, scratch[i].control, sizeof n->control);
        memcpy(n->domain, scratch[i].domain, sizeof n->domain);
        n->weight = scratch[i].weight;
        n->alive = scratch[i].alive != 0;
    }
    return STATUS_OK;
}
