/* Bodies of the control plane's calls: each message unpacked, packed again, unpacked again. */
#include "proto/health.pb-c.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/fuzz/fuzz.h"

static void try_one(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, size, data);
    if (m == NULL) return;
    size_t bytes = protobuf_c_message_get_packed_size(m);
    uint8_t *packed = malloc(bytes > 0 ? bytes : 1);
    CHECK(packed != NULL && protobuf_c_message_pack(m, packed) == bytes);
    protobuf_c_message_free_unpacked(m, NULL);
    m = protobuf_c_message_unpack(d, NULL, bytes, packed);
    CHECK(m != NULL);
    protobuf_c_message_free_unpacked(m, NULL);
    free(packed);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const list[] = {
        &shoal__v1__node_status_request__descriptor,
        &shoal__v1__node_status__descriptor,
        &shoal__v1__node_stats_request__descriptor,
        &shoal__v1__node_stats__descriptor,
        &shoal__v1__node_drain_request__descriptor,
        &shoal__v1__node_drain_reply__descriptor,
        &grpc__health__v1__health_check_request__descriptor,
        &grpc__health__v1__health_check_response__descriptor,
    };
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)
        try_one(list[i], data, size);
    return 0;
}
