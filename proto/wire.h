/* proto/wire.h - frames of the data plane: what a client and a node say to each other.
 *
 * Flow:    kv_client -> encode -> transport -> decode -> kv_server, and back.
 * Threads: pure functions.
 * Memory:  encoders write into the caller's struct or buffer; decoders copy out, keep nothing.
 *
 * A message is a head of at most WIRE_HEAD_MAX bytes, which every transport copies, and an optional
 * body that it does not: the runs of a GET, the bytes of a BLOCK or PUT, the rows of a MAP. Fields
 * are little endian at fixed places without padding. Decoders take hostile bytes: a message is
 * INVALID unless its length is exact, every field is in range and every reserved byte is 0. They
 * never log: the caller knows the peer. Layout and tenant of a block do not travel with each GET;
 * they are agreed by HELLO and WELCOME and belong to the connection. */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include "proto/proto.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are written as they lie");

enum {
    WIRE_HEAD_MAX = 128,  /* bytes of the largest head */
    WIRE_GET_MAX = 64,    /* blocks in one GET */
    WIRE_NAME_BYTES = 64, /* node and domain names, ended by 0 */
    WIRE_ADDRESS_BYTES = 96,
    WIRE_NODES_MAX = 64,
    WIRE_CLASSES = 4, /* DEMAND, WRITE_BACK, PREFETCH, REPAIR */
    WIRE_BLOCK_BYTES_MAX = 1 << 20,
};

typedef enum wire_kind {
    WIRE_HELLO = 1, /* client: version, layout, tenant, owner, epoch */
    WIRE_WELCOME,   /* node: accepted or not, who it is, its epoch */
    WIRE_GET,       /* client: these blocks, into these slots, in this time */
    WIRE_BLOCK,     /* node: the bytes of one block */
    WIRE_DONE,      /* node: the status of each block of a GET */
    WIRE_PUT,       /* client: keep this block */
    WIRE_PUT_DONE,  /* node: verified and published, or why not */
    WIRE_DROP,      /* client: forget a context */
    WIRE_DROP_DONE, /* node: forgotten */
    WIRE_LEASE,     /* client: its contexts are alive for so long */
    WIRE_MAP,       /* either: the newer map */
    WIRE_BUSY,      /* node: a queue is full, come back after the hint */
    WIRE_BYE,       /* either: closing on purpose */
    WIRE_KINDS,
} wire_kind;

/* First 16 bytes of every head. */
typedef struct wire_head {
    uint8_t kind;     /* wire_kind */
    uint8_t version;  /* PROTO_VERSION */
    uint16_t bytes;   /* of the whole head */
    uint32_t body;    /* bytes of the body */
    uint64_t request; /* names the exchange; 0 where there is none */
} wire_head;

typedef struct wire_hello {
    wire_head head;
    uint64_t owner;    /* random id of the client: whose lease its contexts live by */
    uint64_t epoch;    /* of the client's map */
    uint64_t lease_ns; /* how long the owner is alive without another word, >= 1 */
    uint32_t layout;   /* layout_hash, never 0 */
    uint32_t tenant;
    uint32_t block_bytes; /* 1 .. WIRE_BLOCK_BYTES_MAX, a multiple of 64 */
    uint32_t reserved;
} wire_hello;

typedef struct wire_welcome {
    wire_head head;
    uint64_t incarnation; /* random at each start of the node: another one has none of the blocks */
    uint64_t epoch;       /* of the node's map */
    int32_t status;       /* OK; REFUSED: other layout, version or tenant; FENCED: a MAP follows */
    uint32_t reserved;
    char name[WIRE_NAME_BYTES];
} wire_welcome;

/* Body of a GET: runs[run_count], then slots[count]. */
typedef struct wire_get {
    wire_head head;
    uint64_t epoch;
    uint64_t remaining_ns; /* until the deadline, as the client saw it when it sent */
    uint16_t count;        /* blocks, 1 .. WIRE_GET_MAX */
    uint16_t run_count;    /* 1 .. count */
    uint32_t class;        /* 0 .. WIRE_CLASSES - 1 */
} wire_get;

/* Up to 64 blocks of one context, layer and KV head: block + i is wanted when bit i of `wanted` is
 * set. Bit 0 is always set. Ordinals count wanted blocks in the order of runs and bits. */
typedef struct wire_run {
    context_id context;
    uint64_t wanted;
    uint32_t block;
    uint16_t layer;
    uint16_t kv_head;
} wire_run;

typedef struct wire_block {
    wire_head head;
    uint64_t epoch;
    uint32_t slot;    /* landing slot, as asked */
    uint16_t ordinal; /* which block of the GET */
    uint16_t reserved;
} wire_block;

typedef struct wire_done {
    wire_head head;
    uint64_t epoch;
    uint16_t count;
    uint16_t reserved[3];
    int8_t block_status[WIRE_GET_MAX]; /* status values; 0 past count */
} wire_done;

typedef struct wire_put {
    wire_head head;
    uint64_t epoch;
    block_id id;
    uint64_t digest;
    uint32_t class;
    uint32_t reserved;
} wire_put;

/* PUT_DONE, DROP_DONE and BUSY: how an exchange ended. */
typedef struct wire_result {
    wire_head head;
    uint64_t epoch;
    uint64_t hint_ns; /* BUSY and NO_SPACE: not before this time has passed; else 0 */
    int32_t status;
    uint32_t reserved;
} wire_result;

typedef struct wire_drop {
    wire_head head;
    uint64_t epoch;
    context_id context;
} wire_drop;

typedef struct wire_lease {
    wire_head head;
    uint64_t epoch;
    uint64_t lease_ns;
} wire_lease;

/* Body of a MAP: wire_node rows[node_count]. */
typedef struct wire_map {
    wire_head head;
    uint64_t epoch;      /* >= 1 */
    uint32_t replicas;   /* 1 .. 4 */
    uint32_t node_count; /* 0 .. WIRE_NODES_MAX */
} wire_map;

typedef struct wire_node {
    char name[WIRE_NAME_BYTES];
    char data[WIRE_ADDRESS_BYTES];
    char control[WIRE_ADDRESS_BYTES];
    char domain[WIRE_NAME_BYTES];
    uint32_t weight; /* >= 1 */
    uint32_t alive;  /* 0 or 1 */
} wire_node;

typedef struct wire_bye {
    wire_head head;
} wire_bye;

_Static_assert(sizeof(wire_head) == 16, "head");
_Static_assert(sizeof(wire_hello) == 56, "HELLO");
_Static_assert(sizeof(wire_welcome) == 104, "WELCOME");
_Static_assert(sizeof(wire_get) == 40, "GET");
_Static_assert(sizeof(wire_run) == 32, "run");
_Static_assert(sizeof(wire_block) == 32, "BLOCK");
_Static_assert(sizeof(wire_done) == 96, "DONE");
_Static_assert(sizeof(wire_put) == 72, "PUT");
_Static_assert(sizeof(wire_result) == 40, "PUT_DONE, DROP_DONE, BUSY");
_Static_assert(sizeof(wire_drop) == 40, "DROP");
_Static_assert(sizeof(wire_lease) == 32, "LEASE");
_Static_assert(sizeof(wire_map) == 32, "MAP");
_Static_assert(sizeof(wire_node) == 328, "a row of MAP");
_Static_assert(sizeof(wire_welcome) <= WIRE_HEAD_MAX, "every head fits");

/* Bytes of the largest body of a GET. */
enum { WIRE_GET_BODY_MAX = WIRE_GET_MAX * ((int)sizeof(wire_run) + 4) };

/* Fill in kind, version, sizes and request id; the other fields are the caller's. */
void wire_head_set(wire_head *head, wire_kind kind, uint64_t request, uint32_t body);

/* Kind and request of any message whose head has a sane frame: version, length, body length. */
status wire_decode_head(const void *bytes, size_t n, size_t body_n, wire_head *out_head);

/* Heads of the kinds: INVALID unless kind, sizes and every field are within their bounds. n bytes
 * of head, body_n of what follows it; `out` is written only on success. */
status wire_decode_hello(const void *bytes, size_t n, wire_hello *out);
status wire_decode_welcome(const void *bytes, size_t n, wire_welcome *out);
status wire_decode_block(const void *bytes, size_t n, size_t body_n, wire_block *out);
status wire_decode_done(const void *bytes, size_t n, wire_done *out);
status wire_decode_put(const void *bytes, size_t n, size_t body_n, wire_put *out);
status wire_decode_result(const void *bytes, size_t n, wire_kind kind, wire_result *out);
status wire_decode_drop(const void *bytes, size_t n, wire_drop *out);
status wire_decode_lease(const void *bytes, size_t n, wire_lease *out);
status wire_decode_bye(const void *bytes, size_t n, wire_bye *out);

/* A GET with its body. Encoding merges neighbours into runs as long as that keeps the caller's
 * order, writes the body and returns its bytes; ids must share one layout and tenant. Decoding
 * expands the runs: ids get the layout and tenant given. */
typedef struct wire_get_list {
    uint32_t count;
    block_id id[WIRE_GET_MAX];
    uint32_t slot[WIRE_GET_MAX];
} wire_get_list;
uint32_t wire_encode_get(const wire_get_list *list, wire_get *get, void *body);
status wire_decode_get(const void *bytes, size_t n, const void *body, size_t body_n, wire_get *out);
/* The list of a GET that wire_decode_get accepted. */
void wire_expand_get(const wire_get *get, const void *body, uint32_t layout, uint32_t tenant,
                     wire_get_list *out_list);

/* A map with its rows; out_rows holds WIRE_NODES_MAX of them. */
status wire_decode_map(const void *bytes, size_t n, const void *body, size_t body_n,
                       wire_map *out_map, wire_node *out_rows);

#endif
