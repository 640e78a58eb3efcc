/* Bodies of the control plane's calls: each message unpacked and checked, as a handler gets it. */
#include "proto/health.pb-c.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/fuzz/fuzz.h"

static void try_one(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t size)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, size, data);
    if (m == NULL) return;
    CHECK(protobuf_c_message_check(m));
    protobuf_c_message_free_unpacked(m, NULL);
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
