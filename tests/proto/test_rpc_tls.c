/* Mutual TLS on loopback, with certificates that openssl makes here and now. */
#include "tests/test.h"

#include "proto/rpc.h"

#include <poll.h>
#include <proto/shoal_node.pb-c.h>
#include <stdlib.h>

enum { TIMEOUT_MS = 20000 };

static char paths[16][320];
static uint32_t path_count;

static const char *path_of(const char *name, const char *suffix)
{
    char *path = paths[path_count++ % 16];
    snprintf(path, sizeof paths[0], "%s/%s%s", test_dir(), name, suffix);
    return path;
}

static void make_authority(const char *name)
{
    char command[1400];
    snprintf(command, sizeof command,
             "cd '%s' && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
             "-days 2 -subj /CN=%s -keyout %s.key -out %s.pem 2>/dev/null",
             test_dir(), name, name, name);
    EXPECT_MSG(system(command) == 0, "failed: %s", command);
}

static void make_certificate(const char *name, const char *authority)
{
    char command[1400];
    snprintf(command, sizeof command,
             "cd '%s' && printf 'subjectAltName=IP:127.0.0.1,DNS:localhost' > san && "
             "openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=%s "
             "-keyout %s.key -out %s.csr 2>/dev/null && "
             "openssl x509 -req -in %s.csr -CA %s.pem -CAkey %s.key -CAcreateserial -days 2 "
             "-extfile san -out %s.pem 2>/dev/null",
             test_dir(), name, name, name, name, authority, authority, name);
    EXPECT_MSG(system(command) == 0, "failed: %s", command);
}

static rpc_tls tls_of(const char *authority, const char *name)
{
    return (rpc_tls){path_of(authority, ".pem"), path_of(name, ".pem"), path_of(name, ".key")};
}

static char peer_name[64];

static void on_status(rpc_call *call, const ProtobufCMessage *message, void *user)
{
    (void)message;
    (void)user;
    rpc_call_peer(call, peer_name, sizeof peer_name);
    Shoal__V1__NodeStatus reply = SHOAL__V1__NODE_STATUS__INIT;
    rpc_call_reply(call, &reply.base);
}

static status serve(const char *address, const rpc_tls *tls, rpc_server **out_server)
{
    const rpc_method method = {"/shoal.v1.Node/Status", &shoal__v1__node_status_request__descriptor,
                               on_status, NULL};
    const rpc_server_config config = {
        .address = {address}, .tls = tls, .methods = &method, .method_count = 1, .threaded = true};
    return rpc_server_create(&config, out_server);
}

static status ask(const rpc_server *server, const char *host, const rpc_tls *tls)
{
    char address[64];
    snprintf(address, sizeof address, "%s:%u", host, (unsigned)rpc_server_port(server, 0));
    rpc_client *client = NULL;
    EXPECT_OK(rpc_client_create(address, tls, &client));
    const Shoal__V1__NodeStatusRequest request = SHOAL__V1__NODE_STATUS_REQUEST__INIT;
    ProtobufCMessage *reply = NULL;
    const status s = rpc_client_call(client, "/shoal.v1.Node/Status", &request.base,
                                     &shoal__v1__node_status__descriptor, 5000, &reply);
    if (s == STATUS_OK) protobuf_c_message_free_unpacked(reply, NULL);
    rpc_client_destroy(client);
    return s;
}

TEST(a_client_of_the_same_authority_is_served_and_known_by_name)
{
    make_authority("ca");
    make_certificate("node", "ca");
    make_certificate("tenant-7", "ca");
    const rpc_tls node = tls_of("ca", "node"), tenant = tls_of("ca", "tenant-7");
    rpc_server *server = NULL;
    EXPECT_OK(serve("127.0.0.1:0", &node, &server));
    EXPECT_OK(ask(server, "127.0.0.1", &tenant));
    EXPECT_OK(ask(server, "localhost", &tenant));
    rpc_server_destroy(server);
    EXPECT_EQ_STR(peer_name, "tenant-7");
}

TEST(plaintext_and_a_foreign_authority_are_turned_away)
{
    make_authority("ca");
    make_authority("other");
    make_certificate("node", "ca");
    make_certificate("stranger", "other");
    const rpc_tls node = tls_of("ca", "node");
    rpc_server *server = NULL;
    EXPECT_OK(serve("127.0.0.1:0", &node, &server));
    EXPECT_STATUS(ask(server, "127.0.0.1", NULL), STATUS_UNREACHABLE);
    /* Trusts the server's authority, but shows a certificate of another. */
    const rpc_tls forged = {node.authority, path_of("stranger", ".pem"),
                            path_of("stranger", ".key")};
    EXPECT_STATUS(ask(server, "127.0.0.1", &forged), STATUS_UNREACHABLE);
    /* Its own certificate is good, but it trusts another authority than the server's. */
    const rpc_tls wary = {path_of("other", ".pem"), node.certificate, node.key};
    EXPECT_STATUS(ask(server, "127.0.0.1", &wary), STATUS_UNREACHABLE);
    EXPECT_OK(ask(server, "127.0.0.1", &node));
    rpc_server_destroy(server);
}

static bool with_flags(const char *command, const char *flags)
{
    EXPECT_EQ_I64(setenv("FLAGS", flags, 1), 0);
    return system(command) == 0;
}

/* TLS 1.2, where the server's verdict is part of the handshake that openssl sees. */
TEST(a_client_without_a_certificate_is_turned_away)
{
    make_authority("ca");
    make_certificate("node", "ca");
    const rpc_tls node = tls_of("ca", "node");
    rpc_server *server = NULL;
    EXPECT_OK(serve("127.0.0.1:0", &node, &server));
    char command[1400];
    snprintf(command, sizeof command,
             "cd '%s' && timeout 10 openssl s_client -connect 127.0.0.1:%u -alpn h2 -tls1_2 "
             "-CAfile ca.pem $FLAGS </dev/null >seen.txt 2>&1",
             test_dir(), (unsigned)rpc_server_port(server, 0));
    EXPECT_MSG(with_flags(command, "-cert node.pem -key node.key"), "a good certificate failed");
    EXPECT_MSG(!with_flags(command, ""), "a client without certificate was accepted");
    rpc_server_destroy(server);
}

TEST(beyond_loopback_is_allowed_with_tls)
{
    make_authority("ca");
    make_certificate("node", "ca");
    const rpc_tls node = tls_of("ca", "node");
    rpc_server *server = NULL;
    EXPECT_OK(serve("0.0.0.0:0", &node, &server));
    EXPECT_OK(ask(server, "127.0.0.1", &node));
    rpc_server_destroy(server);
}

TEST(missing_and_malformed_pem_files_are_named)
{
    make_authority("ca");
    make_certificate("node", "ca");
    const rpc_tls good = tls_of("ca", "node");
    rpc_server *server = NULL;
    rpc_client *client = NULL;

    const rpc_tls absent = {good.authority, path_of("absent", ".pem"), good.key};
    EXPECT_STATUS(serve("127.0.0.1:0", &absent, &server), STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "absent.pem");
    EXPECT_STATUS(rpc_client_create("127.0.0.1:1", &absent, &client), STATUS_IO);

    const rpc_tls swapped = {good.authority, good.key, good.key};
    EXPECT_STATUS(serve("127.0.0.1:0", &swapped, &server), STATUS_INVALID);
    EXPECT_HAS_STR(log_last_error(), "node.key");
    EXPECT_STATUS(rpc_client_create("127.0.0.1:1", &swapped, &client), STATUS_INVALID);

    const rpc_tls half = {good.authority, good.certificate, NULL};
    EXPECT_STATUS(serve("127.0.0.1:0", &half, &server), STATUS_INVALID);
    EXPECT(server == NULL && client == NULL);
}

TEST(a_key_of_another_certificate_is_refused_at_start)
{
    make_authority("ca");
    make_certificate("node", "ca");
    make_certificate("second", "ca");
    const rpc_tls mixed = {path_of("ca", ".pem"), path_of("node", ".pem"),
                           path_of("second", ".key")};
    rpc_server *server = NULL;
    EXPECT_STATUS(serve("127.0.0.1:0", &mixed, &server), STATUS_IO);
    EXPECT_HAS_STR(log_last_error(), "the key may not belong to the certificate");
}

TEST_MAIN()
