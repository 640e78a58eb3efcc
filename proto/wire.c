/* proto/wire.c - encode and decode the frames of the data plane.
 *
 * Structs lie in memory as they travel (little endian, no padding: asserted in wire.h), so decoding
 * is: check the length, copy, check each field. Nothing here trusts a length or an enum that came
 * from a peer, and nothing logs; the fuzz target feeds these functions directly. */
#include "proto/wire.h"

#include <string.h>

/* Heads are fixed by kind; a body is allowed where this says so. */
static const struct kind_row {
    uint16_t head;
    bool body;
} kind_rows[WIRE_KINDS] = {
    [WIRE_HELLO] = {sizeof(wire_hello), false},      [WIRE_WELCOME] = {sizeof(wire_welcome), false},
    [WIRE_GET] = {sizeof(wire_get), true},           [WIRE_BLOCK] = {sizeof(wire_block), true},
    [WIRE_DONE] = {sizeof(wire_done), false},        [WIRE_PUT] = {sizeof(wire_put), true},
    [WIRE_PUT_DONE] = {sizeof(wire_result), false},  [WIRE_DROP] = {sizeof(wire_drop), false},
    [WIRE_DROP_DONE] = {sizeof(wire_result), false}, [WIRE_LEASE] = {sizeof(wire_lease), false},
    [WIRE_MAP] = {sizeof(wire_map), true},           [WIRE_BUSY] = {sizeof(wire_result), false},
    [WIRE_BYE] = {sizeof(wire_bye), false},
};

void wire_head_set(wire_head *head, wire_kind kind, uint64_t request, uint32_t body)
{
    CHECK(kind >= WIRE_HELLO && kind < WIRE_KINDS);
    CHECK(body == 0 || kind_rows[kind].body);
    *head = (wire_head){
        .kind = (uint8_t)kind,
        .version = PROTO_VERSION,
        .bytes = kind_rows[kind].head,
        .body = body,
        .request = request,
    };
}

status wire_decode_head(const void *bytes, size_t n, size_t body_n, wire_head *out_head)
{
    wire_head head;
    if (n < sizeof head) return STATUS_INVALID;
    memcpy(&head, bytes, sizeof head);
    if (head.version != PROTO_VERSION) return STATUS_INVALID;
    if (head.kind < WIRE_HELLO || head.kind >= WIRE_KINDS) return STATUS_INVALID;
    if (head.bytes != n || n != kind_rows[head.kind].head) return STATUS_INVALID;
    if (head.body != body_n) return STATUS_INVALID;
    if (body_n != 0 && !kind_rows[head.kind].body) return STATUS_INVALID;
    *out_head = head;
    return STATUS_OK;
}

/* The frame is sound and of this kind; copies it out on success only when the rest is, too. */
static status decode_frame(const void *bytes, size_t n, size_t body_n, wire_kind kind)
{
    wire_head head;
    TRY(wire_decode_head(bytes, n, body_n, &head));
    return head.kind == kind ? STATUS_OK : STATUS_INVALID;
}

/* A fixed text field: printable ASCII, ended by 0, zero to its end. */
static bool text_sane(const char *text, size_t size, bool may_be_empty)
{
    size_t length = 0;
    while (length < size && text[length] != 0) {
        if (text[length] < 0x21 || text[length] > 0x7e) return false;
        length++;
    }
    if (length == size || (length == 0 && !may_be_empty)) return false;
    for (size_t i = length; i < size; i++)
        if (text[i] != 0) return false;
    return true;
}

static bool status_sane(int32_t value)
{
    status s;
    return value == STATUS_OK || (value < 0 && status_from_wire(value, &s));
}

status wire_decode_hello(const void *bytes, size_t n, wire_hello *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_HELLO));
    wire_hello h;
    memcpy(&h, bytes, sizeof h);
    if (h.owner == 0 || h.lease_ns == 0 || h.layout == 0 || h.reserved != 0) return STATUS_INVALID;
    if (h.block_bytes == 0 || h.block_bytes > WIRE_BLOCK_BYTES_MAX) return STATUS_INVALID;
    if (h.block_bytes % 64 != 0) return STATUS_INVALID;
    *out = h;
    return STATUS_OK;
}

status wire_decode_welcome(const void *bytes, size_t n, wire_welcome *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_WELCOME));
    wire_welcome w;
    memcpy(&w, bytes, sizeof w);
    if (w.incarnation == 0 || w.reserved != 0 || !status_sane(w.status)) return STATUS_INVALID;
    if (!text_sane(w.name, sizeof w.name, false)) return STATUS_INVALID;
    *out = w;
    return STATUS_OK;
}

status wire_decode_block(const void *bytes, size_t n, size_t body_n, wire_block *out)
{
    TRY(decode_frame(bytes, n, body_n, WIRE_BLOCK));
    wire_block b;
    memcpy(&b, bytes, sizeof b);
    if (body_n == 0 || body_n > WIRE_BLOCK_BYTES_MAX) return STATUS_INVALID;
    if (b.ordinal >= WIRE_GET_MAX || b.reserved != 0) return STATUS_INVALID;
    *out = b;
    return STATUS_OK;
}

status wire_decode_done(const void *bytes, size_t n, wire_done *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_DONE));
    wire_done d;
    memcpy(&d, bytes, sizeof d);
    if (d.count == 0 || d.count > WIRE_GET_MAX) return STATUS_INVALID;
    if (d.reserved[0] != 0 || d.reserved[1] != 0 || d.reserved[2] != 0) return STATUS_INVALID;
    for (uint32_t i = 0; i < WIRE_GET_MAX; i++) {
        if (i >= d.count && d.block_status[i] != 0) return STATUS_INVALID;
        if (!status_sane(d.block_status[i])) return STATUS_INVALID;
    }
    *out = d;
    return STATUS_OK;
}

status wire_decode_put(const void *bytes, size_t n, size_t body_n, wire_put *out)
{
    TRY(decode_frame(bytes, n, body_n, WIRE_PUT));
    wire_put p;
    memcpy(&p, bytes, sizeof p);
    if (body_n == 0 || body_n > WIRE_BLOCK_BYTES_MAX) return STATUS_INVALID;
    if (p.class >= WIRE_CLASSES || p.reserved != 0) return STATUS_INVALID;
    *out = p;
    return STATUS_OK;
}

status wire_decode_result(const void *bytes, size_t n, wire_kind kind, wire_result *out)
{
    CHECK(kind == WIRE_PUT_DONE || kind == WIRE_DROP_DONE || kind == WIRE_BUSY);
    TRY(decode_frame(bytes, n, 0, kind));
    wire_result r;
    memcpy(&r, bytes, sizeof r);
    if (!status_sane(r.status) || r.reserved != 0) return STATUS_INVALID;
    *out = r;
    return STATUS_OK;
}

status wire_decode_drop(const void *bytes, size_t n, wire_drop *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_DROP));
    memcpy(out, bytes, sizeof *out);
    return STATUS_OK;
}

status wire_decode_lease(const void *bytes, size_t n, wire_lease *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_LEASE));
    wire_lease l;
    memcpy(&l, bytes, sizeof l);
    if (l.lease_ns == 0) return STATUS_INVALID;
    *out = l;
    return STATUS_OK;
}

status wire_decode_bye(const void *bytes, size_t n, wire_bye *out)
{
    TRY(decode_frame(bytes, n, 0, WIRE_BYE));
    memcpy(out, bytes, sizeof *out);
    return STATUS_OK;
}

/* ---- GET ------------------------------------------------------------------------------------- */

/* Can `id` join `run` without changing the order of what is in it already? */
static bool run_takes(const wire_run *run, const block_id *id)
{
    if (!context_id_equal(run->context, id->context)) return false;
    if (run->layer != id->layer || run->kv_head != id->kv_head) return false;
    if (id->block <= run->block || id->block - run->block >= 64) return false;
    return (run->wanted >> (id->block - run->block)) == 0; /* it comes after all the others */
}

uint32_t wire_encode_get(const wire_get_list *list, wire_get *get, void *body)
{
    CHECK(list->count >= 1 && list->count <= WIRE_GET_MAX);
    wire_run run[WIRE_GET_MAX];
    uint32_t runs = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        const block_id *id = &list->id[i];
        CHECK(id->layout == list->id[0].layout && id->tenant == list->id[0].tenant);
        if (runs > 0 && run_takes(&run[runs - 1], id)) {
            run[runs - 1].wanted |= UINT64_C(1) << (id->block - run[runs - 1].block);
            continue;
        }
        run[runs++] = (wire_run){
            .context = id->context,
            .wanted = 1,
            .block = id->block,
            .layer = id->layer,
            .kv_head = id->kv_head,
        };
    }
    get->count = (uint16_t)list->count;
    get->run_count = (uint16_t)runs;
    memcpy(body, run, runs * sizeof run[0]);
    memcpy((uint8_t *)body + runs * sizeof run[0], list->slot, list->count * sizeof list->slot[0]);
    return (uint32_t)(runs * sizeof run[0] + list->count * sizeof list->slot[0]);
}

status wire_decode_get(const void *bytes, size_t n, const void *body, size_t body_n, wire_get *out)
{
    TRY(decode_frame(bytes, n, body_n, WIRE_GET));
    wire_get g;
    memcpy(&g, bytes, sizeof g);
    if (g.count == 0 || g.count > WIRE_GET_MAX || g.class >= WIRE_CLASSES) return STATUS_INVALID;
    if (g.run_count == 0 || g.run_count > g.count) return STATUS_INVALID;
    if (body_n != g.run_count * sizeof(wire_run) + g.count * sizeof(uint32_t))
        return STATUS_INVALID;
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < g.run_count; i++) {
        wire_run run;
        memcpy(&run, (const uint8_t *)body + i * sizeof run, sizeof run);
        if ((run.wanted & 1) == 0) return STATUS_INVALID;
        uint32_t last = 63 - (uint32_t)__builtin_clzll(run.wanted);
        if (run.block > UINT32_MAX - last) return STATUS_INVALID;
        wanted += (uint32_t)__builtin_popcountll(run.wanted);
    }
    if (wanted != g.count) return STATUS_INVALID;
    *out = g;
    return STATUS_OK;
}

void wire_expand_get(const wire_get *get, const void *body, uint32_t layout, uint32_t tenant,
                     wire_get_list *out_list)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < get->run_count; i++) {
        wire_run run;
        memcpy(&run, (const uint8_t *)body + i * sizeof run, sizeof run);
        for (uint64_t left = run.wanted; left != 0; left &= left - 1) {
            CHECK(count < get->count);
            out_list->id[count++] = (block_id){
                .context = run.context,
                .layout = layout,
                .tenant = tenant,
                .block = run.block + (uint32_t)__builtin_ctzll(left),
                .layer = run.layer,
                .kv_head = run.kv_head,
            };
        }
    }
    CHECK(count == get->count);
    out_list->count = count;
    memcpy(out_list->slot, (const uint8_t *)body + get->run_count * sizeof(wire_run),
           count * sizeof(uint32_t));
}

/* ---- MAP ------------------------------------------------------------------------------------- */

status wire_decode_map(const void *bytes, size_t n, const void *body, size_t body_n,
                       wire_map *out_map, wire_node *out_rows)
{
    TRY(decode_frame(bytes, n, body_n, WIRE_MAP));
    wire_map m;
    memcpy(&m, bytes, sizeof m);
    if (m.epoch == 0 || m.replicas < 1 || m.replicas > 4) return STATUS_INVALID;
    if (m.node_count > WIRE_NODES_MAX) return STATUS_INVALID;
    if (body_n != m.node_count * sizeof(wire_node)) return STATUS_INVALID;
    for (uint32_t i = 0; i < m.node_count; i++) {
        wire_node row;
        memcpy(&row, (const uint8_t *)body + i * sizeof row, sizeof row);
        if (!text_sane(row.name, sizeof row.name, false)) return STATUS_INVALID;
        if (!text_sane(row.data, sizeof row.data, false)) return STATUS_INVALID;
        if (!text_sane(row.control, sizeof row.control, true)) return STATUS_INVALID;
        if (!text_sane(row.domain, sizeof row.domain, false)) return STATUS_INVALID;
        if (row.weight == 0 || row.alive > 1) return STATUS_INVALID;
    }
    if (body_n != 0) memcpy(out_rows, body, body_n);
    *out_map = m;
    return STATUS_OK;
}
