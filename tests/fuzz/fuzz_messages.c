/* Bodies of the control plane's calls, each tried as every message: what unpacks must be whole, and
 * must pack into bytes that unpack into the same again.
 *
 * libprotobuf-c is not built for coverage, so the fuzzer is told by counters of our own which
 * fields it has reached. */
#include "proto/health.pb-c.h"
#include "proto/shoal_node.pb-c.h"
#include "tests/fuzz/fuzz.h"

enum { MESSAGES = 8, FIELDS = 32, PACKED_MAX = 65536 };

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t reached[MESSAGES][FIELDS];

/* How much of a field is there: 0 when it has its default. */
static size_t presence(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    const char *at = (const char *)m + f->offset;
    size_t count;
    memcpy(&count, (const char *)m + f->quantifier_offset, sizeof count);
    if (f->label == PROTOBUF_C_LABEL_REPEATED) return count;
    if (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE) {
        const char *value;
        memcpy(&value, at, sizeof value);
        if (value == NULL) return 0;
        return f->type == PROTOBUF_C_TYPE_MESSAGE ? 1 : strlen(value);
    }
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word == 0 ? 0 : (size_t)(33 - __builtin_clz(word)) / 4 + 1;
}

static void visit(const ProtobufCMessage *m, uint32_t number)
{
    CHECK(m->descriptor->n_fields < FIELDS);
    for (uint32_t i = 0; i < m->descriptor->n_fields; i++) {
        size_t much = presence(m, &m->descriptor->fields[i]);
        reached[number][i] = (uint8_t)(much > 255 ? 255 : much);
    }
    reached[number][FIELDS - 1] = (uint8_t)(m->n_unknown_fields + 1);
}

static void try_one(const ProtobufCMessageDescriptor *d, uint32_t number, const uint8_t *data,
                    size_t size)
{
    static uint8_t once[PACKED_MAX], twice[PACKED_MAX];
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, size, data);
    if (m == NULL) return;
    CHECK(protobuf_c_message_check(m));
    visit(m, number);
    size_t packed = protobuf_c_message_get_packed_size(m);
    CHECK(packed <= sizeof once && protobuf_c_message_pack(m, once) == packed);
    protobuf_c_message_free_unpacked(m, NULL);
    m = protobuf_c_message_unpack(d, NULL, packed, once);
    if (m == NULL) return; /* an unknown field of tag 0: taken in two bytes, refused in one */
    CHECK(protobuf_c_message_pack(m, twice) == packed && memcmp(once, twice, packed) == 0);
    protobuf_c_message_free_unpacked(m, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const ProtobufCMessageDescriptor *const list[MESSAGES] = {
        &shoal__v1__node_status_request__descriptor,
        &shoal__v1__node_status__descriptor,
        &shoal__v1__node_stats_request__descriptor,
        &shoal__v1__node_stats__descriptor,
        &shoal__v1__node_drain_request__descriptor,
        &shoal__v1__node_drain_reply__descriptor,
        &grpc__health__v1__health_check_request__descriptor,
        &grpc__health__v1__health_check_response__descriptor,
    };
    for (uint32_t i = 0; i < MESSAGES; i++)
        try_one(list[i], i, data, size);
    return 0;
}
