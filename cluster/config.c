/* cluster/config.c - one YAML file, read strictly.
 *
 * libcyaml loads the document into text fields only; unknown keys, keys given twice and values of
 * the wrong shape are its findings. Every number is then read by the row of its knob, so the value,
 * its range and the words of the refusal stand in one table, which `shoal config show` prints too.
 * A file is taken as a whole or not at all, and the first fault found is the one reported. */
#include "cluster/knobs.h"

#include <arpa/inet.h>
#include <cyaml/cyaml.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MEMBER(member) sizeof(((cluster_config *)0)->member), offsetof(cluster_config, member)
#define SECOND         1000000000ull
#define MIB            (1ull << 20)

/* clang-format off */
const knob knobs[KNOB_COUNT] = {
    {"", "replicas", UNIT_COUNT, MEMBER(map.replicas), 1, CLUSTER_REPLICAS_MAX,
     "copies of a block, each in a failure domain of its own"},
    {"", "tenant", UNIT_COUNT, MEMBER(tenant), 0, UINT32_MAX, "number of the tenant whose blocks these are"},
    {"", "state_dir", UNIT_TEXT, 1, offsetof(cluster_config, state_dir), 1, 255,
     "folder of pids, logs and the map file; relative to the file"},
    {"network", "device", UNIT_TEXT, 0, offsetof(cluster_config, device), 1, 63,
     "network device of the data plane, or several with commas; none: those of its addresses"},
    {"network", "plain_data", UNIT_BOOL, MEMBER(plain_data), 0, 1,
     "the data plane may leave loopback unencrypted, on private addresses"},
    {"network", "tcp", UNIT_BOOL, MEMBER(tcp), 0, 1, "plain TCP carries the data plane, not UCX; all nodes and clients alike"},
    {"tls", "authority", UNIT_TEXT, 1, offsetof(cluster_config, tls_authority), 1, 255,
     "PEM file of who signs; the control plane beyond loopback needs all three"},
    {"tls", "certificate", UNIT_TEXT, 1, offsetof(cluster_config, tls_certificate), 1, 255,
     "PEM file of this host's certificate, for the addresses of its nodes"},
    {"tls", "key", UNIT_TEXT, 1, offsetof(cluster_config, tls_key), 1, 255, "PEM file of its key"},
    {"node", "memory", UNIT_BYTES, MEMBER(node_memory_bytes), MIB, 1ull << 46, "DRAM for blocks, a node"},
    {"node", "lease_grace", UNIT_TIME, MEMBER(lease_grace_ns), 0, 86400 * SECOND,
     "after a worker's lease ended, before its contexts go"},
    {"node", "connections", UNIT_COUNT, MEMBER(node_connections_max), 1, 4096, "clients at a time, a node"},
    {"client", "fetch_deadline", UNIT_TIME, MEMBER(fetch_deadline_ns), 1000000, 60 * SECOND,
     "end of every read of blocks"},
    {"client", "hedge_after", UNIT_TIME, MEMBER(hedge_after_ns), 100000, 60 * SECOND,
     "a replica this late has the next one asked too"},
    {"client", "put_deadline", UNIT_TIME, MEMBER(put_deadline_ns), 1000000, 600 * SECOND,
     "end of every write of a block"},
    {"client", "connect_deadline", UNIT_TIME, MEMBER(connect_deadline_ns), 1000000, 60 * SECOND,
     "end of every attempt to connect"},
    {"client", "suspect", UNIT_TIME, MEMBER(suspect_ns), 1000000, 600 * SECOND,
     "a failed node is passed over this long"},
    {"client", "lease", UNIT_TIME, MEMBER(lease_ns), SECOND, 3600 * SECOND,
     "contexts of a worker that says nothing end after it"},
    {"client", "landing", UNIT_BYTES, MEMBER(landing_bytes), MIB, 1ull << 40, "memory that replies land in"},
    {"client", "inflight_demand", UNIT_COUNT, MEMBER(inflight_max[0]), 1, 1u << 20,
     "blocks in flight: a step waits for them"},
    {"client", "inflight_write_back", UNIT_COUNT, MEMBER(inflight_max[1]), 1, 1u << 20,
     "blocks in flight: sealed, on their way to the nodes"},
    {"client", "inflight_prefetch", UNIT_COUNT, MEMBER(inflight_max[2]), 1, 1u << 20,
     "blocks in flight: fetched ahead of their step"},
    {"client", "inflight_repair", UNIT_COUNT, MEMBER(inflight_max[3]), 1, 1u << 20,
     "blocks in flight: copies made good"},
    {"worker", "device_pool", UNIT_BYTES, MEMBER(device_pool_bytes), MIB, 1ull << 46,
     "device memory for blocks"},
    {"worker", "host_tier", UNIT_BYTES, MEMBER(host_tier_bytes), 0, 1ull << 46,
     "host memory for blocks that left the device; 0B: none"},
    {"worker", "max_num_seqs", UNIT_COUNT, MEMBER(max_num_seqs), 1, 4096, "sequences in a step"},
    {"worker", "max_num_batched_tokens", UNIT_COUNT, MEMBER(max_num_batched_tokens), 1, 1u << 20,
     "tokens in a step, prefill and decode together"},
    {"worker", "max_model_len", UNIT_COUNT, MEMBER(max_model_len), 0, 1u << 28,
     "tokens in a sequence; 0: what the model allows"},
    {"worker", "park_quantum", UNIT_COUNT, MEMBER(park_quantum_steps), 1, 1u << 20,
     "steps a sequence runs before another may take its place"},
    {"worker", "victim_margin", UNIT_PERCENT, MEMBER(victim_margin_percent), 0, 1000,
     "device slots beyond the selection"},
    {"worker", "threads", UNIT_COUNT, MEMBER(threads), 0, 1024, "compute threads; 0: one a core"},
    {"worker", "spin", UNIT_BOOL, MEMBER(spin), 0, 1, "I/O threads spin: for reserved cores only"},
};
/* clang-format on */

void cluster_config_default(cluster_config *out_config)
{
    *out_config = (cluster_config){
        .map = {.epoch = 1, .replicas = 1},
        .state_dir = "shoal-state",
        .node_memory_bytes = 256 * MIB,
        .lease_grace_ns = 30 * SECOND,
        .node_connections_max = 64,
        .fetch_deadline_ns = SECOND / 5,
        .hedge_after_ns = SECOND / 50,
        .put_deadline_ns = 5 * SECOND,
        .connect_deadline_ns = 2 * SECOND,
        .suspect_ns = SECOND,
        .lease_ns = 10 * SECOND,
        .landing_bytes = 32 * MIB,
        .inflight_max = {4096, 1024, 2048, 256},
        .device_pool_bytes = 64 * MIB,
        .max_num_seqs = 8,
        .max_num_batched_tokens = 512,
        .park_quantum_steps = 64,
        .victim_margin_percent = 25,
    };
}

uint64_t knob_get(const knob *k, const cluster_config *config)
{
    CHECK(k->kind != UNIT_TEXT);
    const uint8_t *member = (const uint8_t *)config + k->offset;
    uint64_t wide = 0;
    uint32_t narrow = 0;
    if (k->bytes == sizeof wide)
        memcpy(&wide, member, sizeof wide);
    else if (k->bytes == sizeof narrow)
        memcpy(&narrow, member, sizeof narrow);
    else
        narrow = *member;
    return k->bytes == sizeof wide ? wide : narrow;
}

static void knob_set(const knob *k, cluster_config *config, uint64_t value)
{
    uint8_t *member = (uint8_t *)config + k->offset;
    uint32_t narrow = (uint32_t)value;
    if (k->bytes == sizeof value)
        memcpy(member, &value, sizeof value);
    else if (k->bytes == sizeof narrow)
        memcpy(member, &narrow, sizeof narrow);
    else
        *member = (uint8_t)value;
}

const char *knob_print(const knob *k, const cluster_config *config, char out[256])
{
    if (k->kind == UNIT_TEXT)
        snprintf(out, 256, "%s", (const char *)config + k->offset);
    else
        unit_print(k->kind, knob_get(k, config), out);
    return out;
}

/* ---- document: text only --------------------------------------------------------------------- */

typedef struct node_text {
    char *field[KNOB_NODE_COUNT]; /* name data control domain weight */
} node_text;

typedef struct document {
    char *value[KNOB_COUNT]; /* NULL: not given. In the order of `knobs` */
    node_text *nodes;
    uint32_t nodes_count;
} document;

static const char *const node_keys[KNOB_NODE_COUNT] = {"name", "data", "control", "domain",
                                                       "weight"};

enum { SECTIONS = 5 };
static const char *const section_names[SECTIONS] = {"network", "tls", "node", "client", "worker"};

typedef struct schema {
    cyaml_schema_field_t node[KNOB_NODE_COUNT + 1];
    cyaml_schema_field_t section[SECTIONS][KNOB_COUNT + 1];
    cyaml_schema_field_t top[KNOB_COUNT + SECTIONS + 2];
    cyaml_schema_value_t entry, root;
} schema;

static cyaml_schema_field_t text_field(const char *key, size_t offset)
{
    cyaml_schema_field_t field = {
        .key = key,
        .data_offset = (uint32_t)offset,
        .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0, 255)}};
    return field;
}

/* The schema follows from the knobs, so a knob is written down once. */
static void schema_fill(schema *s)
{
    *s = (schema){0};
    for (size_t i = 0; i < KNOB_NODE_COUNT; i++)
        s->node[i] = text_field(node_keys[i], offsetof(node_text, field) + i * sizeof(char *));
    s->entry = (cyaml_schema_value_t){CYAML_VALUE_MAPPING(CYAML_FLAG_DEFAULT, node_text, s->node)};
    size_t top = 0, count[SECTIONS] = {0};
    for (size_t i = 0; i < KNOB_COUNT; i++) {
        cyaml_schema_field_t field =
            text_field(knobs[i].key, offsetof(document, value) + i * sizeof(char *));
        size_t section = 0;
        while (section < SECTIONS && strcmp(section_names[section], knobs[i].section) != 0)
            section++;
        if (section == SECTIONS)
            s->top[top++] = field;
        else
            s->section[section][count[section]++] = field;
    }
    for (size_t i = 0; i < SECTIONS; i++)
        s->top[top++] = (cyaml_schema_field_t){
            .key = section_names[i],
            .value = {CYAML_VALUE_MAPPING(CYAML_FLAG_OPTIONAL, document, s->section[i])}};
    cyaml_schema_field_t nodes =
        CYAML_FIELD_SEQUENCE("nodes", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, document, nodes,
                             &s->entry, 0, CLUSTER_NODES_MAX);
    s->top[top] = nodes;
    s->root = (cyaml_schema_value_t){CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, document, s->top)};
}

/* What libcyaml says, gathered into one sentence: its first line is the cause, the first line of
 * the backtrace with a position is where. */
typedef struct finding {
    char cause[128];
    char place[64];
} finding;

static void take_finding(cyaml_log_t level, void *context, const char *format, va_list args)
{
    finding *f = context;
    char line[256];
    if (level < CYAML_LOG_ERROR) return;
    vsnprintf(line, sizeof line, format, args);
    line[strcspn(line, "\n")] = '\0';
    const char *position = strstr(line, "(line: ");
    uint32_t row = 0, column = 0;
    if (f->cause[0] == '\0') {
        const char *text = strncmp(line, "Load: ", 6) == 0 ? line + 6 : line;
        if (strncmp(text, "libyaml: ", 9) == 0) text += 9;
        snprintf(f->cause, sizeof f->cause, "%.127s", text);
    } else if (position && f->place[0] == '\0' &&
               sscanf(position, "(line: %" SCNu32 ", column: %" SCNu32, &row, &column) == 2) {
        snprintf(f->place, sizeof f->place, "line %" PRIu32 ": ", row);
    }
}

/* libcyaml's words to ours, with what would do. */
static status refuse_document(const char *path, cyaml_err_t error, const finding *f)
{
    static const char unexpected[] = "Unexpected key: ", seen[] = "Mapping field already seen: ";
    if (error == CYAML_ERR_FILE_OPEN)
        return FAIL(IO, "%s: cannot be opened; is the path right and the file readable?", path);
    if (error == CYAML_ERR_INVALID_KEY && strncmp(f->cause, unexpected, sizeof unexpected - 1) == 0)
        return FAIL(INVALID, "%s: %sunknown key \"%s\"; `shoal config show` lists the known ones",
                    path, f->place, f->cause + sizeof unexpected - 1);
    if (strncmp(f->cause, seen, sizeof seen - 1) == 0)
        return FAIL(INVALID, "%s: %skey \"%s\" is given twice; keep one", path, f->place,
                    f->cause + sizeof seen - 1);
    if (error == CYAML_ERR_LIBYAML_PARSER || error == CYAML_ERR_LIBYAML_PARSER_INIT)
        return FAIL(INVALID, "%s: %snot YAML: %s", path, f->place, f->cause);
    if (error == CYAML_ERR_SEQUENCE_ENTRIES_MAX)
        return FAIL(INVALID, "%s: %snodes: more than %d; split the cluster", path, f->place,
                    CLUSTER_NODES_MAX);
    return FAIL(INVALID, "%s: %s%s; the README of cluster/ shows the shape of the file", path,
                f->place, f->cause[0] ? f->cause : cyaml_strerror(error));
}

/* ---- values ---------------------------------------------------------------------------------- */

/* A relative path is taken from the folder of the file, so that every command finds the same. */
static status apply_text(const char *path, const knob *k, const char *text, cluster_config *config)
{
    const char *slash = strrchr(path, '/'), *dot = k->section[0] ? "." : "";
    bool is_path = k->bytes == 1;
    int folder = is_path && slash && text[0] != '/' ? (int)(slash - path + 1) : 0;
    char joined[512];
    if (text[0] == '\0')
        return FAIL(INVALID, "%s: %s%s%s is empty; name one, or leave it out", path, k->section,
                    dot, k->key);
    int n = snprintf(joined, sizeof joined, "%.*s%s", folder, path, text);
    if (n < 0 || (uint64_t)n > k->most)
        return FAIL(INVALID, "%s: %s%s%s: longer than %" PRIu64 " bytes%s", path, k->section, dot,
                    k->key, k->most, is_path ? " with the file's folder" : "");
    memcpy((char *)config + k->offset, joined, (size_t)n + 1);
    return STATUS_OK;
}

static status apply_knob(const char *path, const knob *k, const char *text, cluster_config *config)
{
    const char *dot = k->section[0] ? "." : "";
    if (k->kind == UNIT_TEXT) return apply_text(path, k, text, config);
    uint64_t value = 0;
    const char *wrong = unit_scan(k->kind, text, &value);
    if (wrong)
        return FAIL(INVALID, "%s: %s%s%s: \"%.40s\" %s", path, k->section, dot, k->key, text,
                    wrong);
    if (value < k->least || value > k->most) {
        char least[UNIT_TEXT_BYTES], most[UNIT_TEXT_BYTES];
        return FAIL(INVALID, "%s: %s%s%s: %.40s is out of range; write %s to %s", path, k->section,
                    dot, k->key, text, unit_print(k->kind, k->least, least),
                    unit_print(k->kind, k->most, most));
    }
    knob_set(k, config, value);
    return STATUS_OK;
}

static bool is_name(const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789-");
    return n > 0 && n < CLUSTER_NAME_MAX && text[n] == '\0';
}

/* host:port with a port of 1 to 65535; an IPv6 host in brackets. */
static bool is_address(const char *text)
{
    const char *colon = strrchr(text, ':');
    if (!colon || colon == text || strlen(text) >= CLUSTER_ADDRESS_MAX) return false;
    if (text[0] != '[' && memchr(text, ':', (size_t)(colon - text))) return false;
    if (text[0] == '[' && colon[-1] != ']') return false;
    if (strcspn(text, " \t\n") != strlen(text)) return false;
    uint64_t port = 0;
    return unit_scan(UNIT_COUNT, colon + 1, &port) == NULL && port >= 1 && port <= 65535;
}

static status apply_node(const char *path, const node_text *text, cluster_map *map)
{
    uint32_t index = map->node_count;
    cluster_node *node = &map->node[index];
    const char *name = text->field[0] ? text->field[0] : "";
    *node = (cluster_node){.weight = 1, .alive = true};
    for (size_t i = 0; i < 3; i++)
        if (!text->field[i])
            return FAIL(INVALID,
                        "%s: nodes[%" PRIu32 "] has no %s; each node needs name, data and "
                        "control",
                        path, index, node_keys[i]);
    if (!is_name(name))
        return FAIL(INVALID,
                    "%s: nodes[%" PRIu32 "].name: \"%.40s\" is no name; use 1 to %d of a-z, "
                    "0-9 and -",
                    path, index, name, CLUSTER_NAME_MAX - 1);
    for (size_t i = 1; i < 3; i++)
        if (!is_address(text->field[i]))
            return FAIL(INVALID,
                        "%s: node %s: %s: \"%.40s\" is no address; write HOST:PORT, for "
                        "example 127.0.0.1:7101",
                        path, name, node_keys[i], text->field[i]);
    const char *domain = text->field[3] ? text->field[3] : name;
    if (!is_name(domain))
        return FAIL(INVALID,
                    "%s: node %s: domain: \"%.40s\" is no name; use 1 to %d of a-z, 0-9 and -",
                    path, name, domain, CLUSTER_NAME_MAX - 1);
    uint64_t weight = 1;
    const char *wrong = text->field[4] ? unit_scan(UNIT_COUNT, text->field[4], &weight) : NULL;
    if (wrong || weight < 1 || weight > CLUSTER_WEIGHT_MAX)
        return FAIL(INVALID, "%s: node %s: weight: \"%.40s\" is no weight; write 1 to %d", path,
                    name, text->field[4], CLUSTER_WEIGHT_MAX);
    node->weight = (uint32_t)weight;
    snprintf(node->name, sizeof node->name, "%s", name);
    snprintf(node->data, sizeof node->data, "%s", text->field[1]);
    snprintf(node->control, sizeof node->control, "%s", text->field[2]);
    snprintf(node->domain, sizeof node->domain, "%s", domain);
    map->node_count++;
    return STATUS_OK;
}

/* What one node's addresses must be, beside well formed. */
static status check_addresses(const char *path, const cluster_node *node, bool tcp)
{
    if (strcmp(node->data, node->control) == 0)
        return FAIL(INVALID, "%s: node %s: data and control are both %s; give each its own port",
                    path, node->name, node->data);
    if (node->data[0] == '[' && !tcp)
        return FAIL(INVALID,
                    "%s: node %s: data: %s is an IPv6 address, and UCX carries IPv4 only; set "
                    "network.tcp: true, or use an IPv4 address",
                    path, node->name, node->data);
    return STATUS_OK;
}

static status check_nodes(const char *path, const cluster_map *map, bool tcp)
{
    uint32_t domains = 0;
    for (uint32_t i = 0; i < map->node_count; i++) {
        const cluster_node *a = &map->node[i];
        bool fresh = true;
        TRY(check_addresses(path, a, tcp));
        for (uint32_t j = 0; j < i; j++) {
            const cluster_node *b = &map->node[j];
            if (strcmp(a->name, b->name) == 0)
                return FAIL(INVALID, "%s: two nodes are named %s; names are unique", path, a->name);
            if (!strcmp(a->data, b->data) || !strcmp(a->data, b->control) ||
                !strcmp(a->control, b->data) || !strcmp(a->control, b->control))
                return FAIL(INVALID, "%s: nodes %s and %s share an address; give each its own port",
                            path, b->name, a->name);
            if (strcmp(a->domain, b->domain) == 0) fresh = false;
        }
        domains += fresh;
    }
    if (map->node_count > 0 && map->replicas > domains)
        return FAIL(INVALID,
                    "%s: replicas: %" PRIu32 " copies need as many failure domains and the "
                    "nodes have %" PRIu32 "; lower replicas or add nodes in other domains",
                    path, map->replicas, domains);
    return STATUS_OK;
}

static status apply_document(const char *path, const document *text, cluster_config *config)
{
    for (size_t i = 0; i < KNOB_COUNT; i++) {
        if (!text->value[i]) continue;
        TRY(apply_knob(path, &knobs[i], text->value[i], config));
    }
    for (uint32_t i = 0; i < text->nodes_count; i++)
        TRY(apply_node(path, &text->nodes[i], &config->map));
    if (config->hedge_after_ns >= config->fetch_deadline_ns)
        return FAIL(INVALID,
                    "%s: client.hedge_after is not below client.fetch_deadline, so no replica "
                    "would be asked in time; lower the one or raise the other",
                    path);
    int pems = (config->tls_authority[0] != 0) + (config->tls_certificate[0] != 0) +
               (config->tls_key[0] != 0);
    if (pems != 0 && pems != 3)
        return FAIL(INVALID, "%s: tls: authority, certificate and key go together; one is missing",
                    path);
    return check_nodes(path, &config->map, config->tcp);
}

status cluster_config_load(const char *path, cluster_config *out_config)
{
    CHECK(path && out_config);
    schema s;
    schema_fill(&s);
    finding f = {0};
    const cyaml_config_t cyaml = {.log_fn = take_finding,
                                  .log_ctx = &f,
                                  .mem_fn = cyaml_mem,
                                  .log_level = CYAML_LOG_ERROR,
                                  .flags = CYAML_CFG_DEFAULT};
    document *text = NULL;
    cyaml_err_t error =
        cyaml_load_file(path, &cyaml, &s.root, (cyaml_data_t **)(void *)&text, NULL);
    if (error != CYAML_OK) return refuse_document(path, error, &f);
    if (!text) return FAIL(INVALID, "%s: is empty; a file names at least its nodes", path);
    cluster_config config;
    cluster_config_default(&config);
    status result = apply_text(path, &knobs[KNOB_STATE_DIR], "shoal-state", &config);
    if (result == STATUS_OK) result = apply_document(path, text, &config);
    cyaml_free(&cyaml, &s.root, text, 0);
    if (result == STATUS_OK) *out_config = config;
    return result;
}

/* The host of "host:port", "[v6]:port" or of a bare host. */
static bool host_of(const char *address, char host[CLUSTER_ADDRESS_MAX])
{
    const char *colon = strrchr(address, ':');
    bool has_port = colon && (address[0] == '[' ? colon[-1] == ']' : strchr(address, ':') == colon);
    size_t length = has_port ? (size_t)(colon - address) : strlen(address);
    if (length == 0 || length >= CLUSTER_ADDRESS_MAX) return false;
    memcpy(host, address, length);
    host[length] = '\0';
    if (host[0] == '[' && host[length - 1] == ']') {
        host[length - 1] = '\0';
        memmove(host, host + 1, length - 1);
    }
    return true;
}

bool cluster_address_is_loopback(const char *address)
{
    char host[CLUSTER_ADDRESS_MAX];
    struct in_addr v4;
    struct in6_addr v6;
    if (!host_of(address, host)) return false;
    if (inet_pton(AF_INET, host, &v4) == 1) return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
    return strcmp(host, "localhost") == 0;
}

bool cluster_address_is_private(const char *address)
{
    char host[CLUSTER_ADDRESS_MAX];
    struct in_addr v4;
    struct in6_addr v6;
    if (cluster_address_is_loopback(address)) return true;
    if (!host_of(address, host)) return false;
    if (inet_pton(AF_INET, host, &v4) == 1) {
        uint32_t a = ntohl(v4.s_addr);
        return a >> 24 == 10 || a >> 20 == 0xac1 || a >> 16 == 0xc0a8 || a >> 16 == 0xa9fe;
    }
    if (inet_pton(AF_INET6, host, &v6) != 1) return false;
    return (v6.s6_addr[0] & 0xfe) == 0xfc || IN6_IS_ADDR_LINKLOCAL(&v6);
}

status cluster_listen_check(const cluster_config *config, const char *data, const char *control)
{
    if (!cluster_address_is_loopback(control) && config->tls_key[0] == 0)
        return FAIL(REFUSED,
                    "control %s is beyond loopback: refused without TLS; give tls.authority, "
                    "certificate and key, or an address in 127.0.0.0/8",
                    control);
    if (cluster_address_is_loopback(data)) return STATUS_OK;
    if (!config->plain_data)
        return FAIL(REFUSED,
                    "data %s is beyond loopback, and the data plane does not encrypt: refused "
                    "without network.plain_data; use an address in 127.0.0.0/8",
                    data);
    if (!cluster_address_is_private(data))
        return FAIL(
            REFUSED,
            "data %s is on no private network, and the data plane does not encrypt: "
            "network.plain_data allows 10/8, 172.16/12, 192.168/16, 169.254/16 and fc00::/7",
            data);
    return STATUS_OK;
}
