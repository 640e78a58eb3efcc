/* What both ends of the control plane need: gRPC's start and log, messages to bytes and back, PEM
 * files, addresses, and the two status tables laid side by side.
 *
 * A status travels three times: as a gRPC code for every foreign client, by name in the trailer
 * "shoal-status" so that ours loses nothing, and as a sentence in the details. */
#include "proto/rpc_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include <grpc/grpc_security_constants.h>
#include <grpc/slice.h>
#include <grpc/status.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>

enum { PEM_BYTES_MAX = 1 << 20 };

/* What gRPC calls an error is a detail of what we report ourselves, except a failed handshake: only
 * this line tells a node's operator that somebody with the wrong certificate called. */
static void log_from_grpc(gpr_log_func_args *args)
{
    const bool handshake = strstr(args->message, "andshake") != NULL;
    log_write(handshake ? LOG_INFO : LOG_DEBUG, args->file, args->line, "grpc: %s", args->message);
}

void rpc_begin(void)
{
    gpr_set_log_function(log_from_grpc);
    grpc_init();
}

void rpc_end(void)
{
    grpc_shutdown_blocking();
}

grpc_byte_buffer *rpc_pack(const ProtobufCMessage *message)
{
    CHECK(message != NULL);
    grpc_slice slice = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return buffer;
}

ProtobufCMessage *rpc_unpack(const ProtobufCMessageDescriptor *type, grpc_byte_buffer *buffer)
{
    CHECK(type != NULL && buffer != NULL);
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) return NULL;
    grpc_slice slice = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    ProtobufCMessage *message = protobuf_c_message_unpack(type, NULL, GRPC_SLICE_LENGTH(slice),
                                                          GRPC_SLICE_START_PTR(slice));
    grpc_slice_unref(slice);
    return message;
}

static status pem_read(arena *a, const char *path, const char *mark, char **out_text)
{
    if (path == NULL)
        return FAIL(INVALID, "TLS needs authority, certificate and key: one is missing");
    FILE *file = fopen(path, "re");
    if (file == NULL) return FAIL(IO, "cannot open %s (errno %d)", path, errno);
    struct stat info;
    if (fstat(fileno(file), &info) != 0 || info.st_size > PEM_BYTES_MAX) {
        fclose(file);
        return FAIL(INVALID, "%s is too large for a PEM file", path);
    }
    const size_t bytes = (size_t)info.st_size;
    char *text = arena_alloc(a, bytes + 1, 1);
    const size_t got = fread(text, 1, bytes, file);
    fclose(file);
    text[got] = 0;
    if (strstr(text, mark) == NULL) return FAIL(INVALID, "%s holds no PEM block %s", path, mark);
    *out_text = text;
    return STATUS_OK;
}

status rpc_pem_read(arena *a, const rpc_tls *tls, rpc_pem *out_pem)
{
    rpc_pem pem = {0};
    TRY(pem_read(a, tls->authority, "-----BEGIN CERTIFICATE-----", &pem.authority));
    TRY(pem_read(a, tls->certificate, "-----BEGIN CERTIFICATE-----", &pem.certificate));
    TRY(pem_read(a, tls->key, "PRIVATE KEY-----", &pem.key));
    *out_pem = pem;
    return STATUS_OK;
}

static bool port_from_text(const char *text, uint16_t *out_port)
{
    uint32_t port = 0;
    if (*text == 0) return false;
    for (const char *p = text; *p != 0; p++) {
        if (*p < '0' || *p > '9') return false;
        port = port * 10 + (uint32_t)(*p - '0');
        if (port > UINT16_MAX) return false;
    }
    *out_port = (uint16_t)port;
    return true;
}

status rpc_address_split(const char *address, char out_host[RPC_HOST_BYTES], uint16_t *out_port)
{
    CHECK(address != NULL);
    const char *colon = strrchr(address, ':');
    const char *host = address;
    const char *end = colon;
    if (colon != NULL && address[0] == '[' && colon > address && colon[-1] == ']') {
        host++;
        end--;
    } else if (colon != NULL && memchr(address, ':', (size_t)(colon - address)) != NULL) {
        colon = NULL; /* a bare IPv6 address: which colon ends the host is anyone's guess */
    }
    uint16_t port = 0;
    if (colon == NULL || end <= host || (size_t)(end - host) >= RPC_HOST_BYTES ||
        !port_from_text(colon + 1, &port))
        return FAIL(INVALID, "\"%s\" is not an address: host:port or [IPv6]:port", address);
    memcpy(out_host, host, (size_t)(end - host));
    out_host[end - host] = 0;
    *out_port = port;
    return STATUS_OK;
}

bool rpc_host_is_loopback(const char *host)
{
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, host, &four) == 1) return ntohl(four.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &six) == 1)
        return memcmp(&six, &in6addr_loopback, sizeof six) == 0;
    return strcmp(host, "localhost") == 0;
}

gpr_timespec rpc_deadline(uint64_t timeout_ms)
{
    if (timeout_ms == UINT64_MAX) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
    return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                        gpr_time_from_millis((int64_t)timeout_ms, GPR_TIMESPAN));
}

int rpc_code_from_status(status s)
{
    switch (s) {
    case STATUS_OK:
        return GRPC_STATUS_OK;
    case STATUS_NOT_FOUND:
        return GRPC_STATUS_NOT_FOUND;
    case STATUS_STALE:
    case STATUS_FENCED:
        return GRPC_STATUS_FAILED_PRECONDITION;
    case STATUS_CORRUPT:
        return GRPC_STATUS_DATA_LOSS;
    case STATUS_BUSY:
    case STATUS_NO_SPACE:
    case STATUS_NO_MEMORY:
        return GRPC_STATUS_RESOURCE_EXHAUSTED;
    case STATUS_DEADLINE:
        return GRPC_STATUS_DEADLINE_EXCEEDED;
    case STATUS_CANCELED:
        return GRPC_STATUS_CANCELLED;
    case STATUS_UNREACHABLE:
    case STATUS_PEER_LOST:
    case STATUS_DEGRADED:
        return GRPC_STATUS_UNAVAILABLE;
    case STATUS_REFUSED:
        return GRPC_STATUS_PERMISSION_DENIED;
    case STATUS_INVALID:
        return GRPC_STATUS_INVALID_ARGUMENT;
    case STATUS_UNSUPPORTED:
        return GRPC_STATUS_UNIMPLEMENTED;
    default:
        return GRPC_STATUS_INTERNAL;
    }
}

status rpc_status_from_code(int code)
{
    switch (code) {
    case GRPC_STATUS_OK:
        return STATUS_OK;
    case GRPC_STATUS_CANCELLED:
        return STATUS_CANCELED;
    case GRPC_STATUS_INVALID_ARGUMENT:
    case GRPC_STATUS_OUT_OF_RANGE:
        return STATUS_INVALID;
    case GRPC_STATUS_DEADLINE_EXCEEDED:
        return STATUS_DEADLINE;
    case GRPC_STATUS_NOT_FOUND:
        return STATUS_NOT_FOUND;
    case GRPC_STATUS_ALREADY_EXISTS:
    case GRPC_STATUS_ABORTED:
    case GRPC_STATUS_FAILED_PRECONDITION:
        return STATUS_STALE;
    case GRPC_STATUS_PERMISSION_DENIED:
    case GRPC_STATUS_UNAUTHENTICATED:
        return STATUS_REFUSED;
    case GRPC_STATUS_RESOURCE_EXHAUSTED:
        return STATUS_BUSY;
    case GRPC_STATUS_UNIMPLEMENTED:
        return STATUS_UNSUPPORTED;
    case GRPC_STATUS_UNAVAILABLE:
        return STATUS_UNREACHABLE;
    case GRPC_STATUS_DATA_LOSS:
        return STATUS_CORRUPT;
    default:
        return STATUS_INTERNAL;
    }
}
