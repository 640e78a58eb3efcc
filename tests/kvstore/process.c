#include "tests/kvstore/process.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t now(void)
{
    return clock_now(&clock_monotonic);
}

static void spawn(node_process *n, const char *name, const char *data, const char *memory, bool tcp,
                  const char *const more[2])
{
    int out[2];
    CHECK(pipe(out) == 0);
    n->tcp = tcp;
    snprintf(n->name, sizeof n->name, "%s", name);
    n->pid = fork();
    CHECK(n->pid >= 0);
    if (n->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed test leaves nobody behind */
        dup2(out[1], STDOUT_FILENO);
        close(out[0]);
        close(out[1]);
        const char *argv[16] = {"shoal-kvstore",
                                "--name",
                                name,
                                "--listen",
                                data != NULL ? data : "127.0.0.1:0",
                                "--control",
                                "127.0.0.1:0",
                                "--memory",
                                memory,
                                "--log-level",
                                "error"};
        uint32_t argc = 11;
        if (tcp) argv[argc++] = "--tcp";
        for (uint32_t i = 0; i < 2 && more[i] != NULL; i++)
            argv[argc++] = more[i];
        execv(TEST_BINARY_DIR "/bin/shoal-kvstore", (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    close(out[1]);
    FILE *f = fdopen(out[0], "r");
    char line[512] = "";
    CHECK(f != NULL);
    if (fgets(line, sizeof line, f) == NULL) line[0] = 0;
    fclose(f);
    int got = sscanf(line, "ready name=%*s data=%95s control=%95s", n->data, n->control);
    if (got != 2) test_fail(__FILE__, __LINE__, "node %s did not start: \"%s\"", name, line);
}

void node_spawn(node_process *n, const char *name, const char *data, const char *faults)
{
    node_spawn_over(n, name, data, faults, false);
}

void node_spawn_over(node_process *n, const char *name, const char *data, const char *faults,
                     bool tcp)
{
    const char *more[2] = {faults != NULL ? "--fault" : NULL, faults};
    spawn(n, name, data, "128MiB", tcp, more);
}

void node_spawn_sized(node_process *n, const char *name, const char *memory, bool tcp)
{
    spawn(n, name, NULL, memory, tcp, (const char *[2]){NULL, NULL});
}

void node_spawn_grace(node_process *n, const char *name, const char *lease_grace, bool tcp)
{
    spawn(n, name, NULL, "32MiB", tcp, (const char *[2]){"--lease-grace", lease_grace});
}

void node_signal(node_process *n, int signal)
{
    CHECK(n->pid > 0 && kill(n->pid, signal) == 0);
    if (signal == SIGSTOP) CHECK(waitpid(n->pid, NULL, WUNTRACED) == n->pid); /* it has stopped */
}

int node_reap(node_process *n)
{
    int state = 0;
    CHECK(waitpid(n->pid, &state, 0) == n->pid);
    n->pid = 0;
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
}

void store_open(store *s, const node_process *node, uint32_t nodes, uint32_t replicas, bool ready)
{
    store_open_layout(s, node, nodes, replicas, ready, (block_layout){64, 128, 2, 4, 2, 99});
}

void store_open_layout(store *s, const node_process *node, uint32_t nodes, uint32_t replicas,
                       bool ready, block_layout layout)
{
    *s = (store){.memory = arena_create("store"), .layout = layout, .slots = 512};
    s->block_bytes = block_layout_bytes(&s->layout);
    cluster_config_default(&s->config);
    cluster_map *map = &s->config.map;
    *map = (cluster_map){.epoch = 1, .replicas = replicas, .node_count = nodes};
    for (uint32_t i = 0; i < nodes; i++) {
        cluster_node *n = &map->node[i];
        snprintf(n->name, sizeof n->name, "%s", node[i].name);
        snprintf(n->data, sizeof n->data, "%s", node[i].data);
        snprintf(n->domain, sizeof n->domain, "d%u", i);
        n->weight = 1;
        n->alive = true;
    }
    s->config.tcp = node->tcp;
    EXPECT(kv_transport_open(s->memory, &s->config, NULL, false, &s->transport) == STATUS_OK);
    kv_client_config config = {
        .memory = s->memory,
        .transport = s->transport,
        .clock = clock_monotonic,
        .seed = test_seed(),
        .layout = s->layout,
        .tenant = s->config.tenant,
        .config = &s->config,
        .landing = arena_alloc(s->memory, (size_t)s->slots * s->block_bytes, 4096),
        .landing_slots = s->slots,
        .verify = true,
    };
    EXPECT(kv_client_create(&config, &s->client) == STATUS_OK);
    arena_seal(s->memory);
    kv_client_stats stats = {.nodes_connected = 0};
    for (uint64_t end = now() + UINT64_C(5000000000); ready && now() < end;) {
        kv_client_poll(s->client);
        kv_client_stats_read(s->client, &stats);
        if (stats.nodes_connected == nodes) break;
        kv_client_wait(s->client, -1, now() + 10000000);
    }
    EXPECT(!ready || stats.nodes_connected == nodes);
}

void store_close(store *s)
{
    kv_client_destroy(s->client);
    kv_transport_close(s->transport);
    arena_destroy(s->memory);
}

block_id store_id(const store *s, uint64_t context, uint32_t block)
{
    return (block_id){
        .context = {context, context * 0x9e3779b97f4a7c15},
        .layout = layout_hash(&s->layout),
        .tenant = s->config.tenant,
        .block = block / 8,
        .layer = (uint16_t)(block % 4),
        .kv_head = (uint16_t)(block / 4 % 2),
    };
}

void store_fill(const store *s, const block_id *id, uint8_t *out_bytes)
{
    rng g;
    rng_seed(&g, block_id_hash(id));
    for (uint32_t i = 0; i < s->block_bytes; i += 8) {
        uint64_t word = rng_next(&g);
        memcpy(out_bytes + i, &word, 8);
    }
}

bool store_next(store *s, uint64_t ns, kv_done *out_done)
{
    if (kv_client_next(s->client, out_done)) return true; /* one poll may bring many */
    for (uint64_t end = now() + ns;;) {
        kv_client_poll(s->client);
        if (kv_client_next(s->client, out_done)) return true;
        if (now() >= end) return false;
        kv_client_wait(s->client, -1, end);
    }
}

uint32_t store_put_all(store *s, uint64_t context, uint32_t count)
{
    uint8_t *bytes = malloc(s->block_bytes);
    CHECK(bytes != NULL);
    uint32_t sent = 0, done_count = 0, ok = 0;
    kv_done done;
    while (done_count < count) {
        while (sent < count && sent - done_count < 64) {
            block_id id = store_id(s, context, sent);
            store_fill(s, &id, bytes);
            kv_put put = {id, bytes, block_digest(&id, bytes, s->block_bytes), KV_WRITE_BACK,
                          now() + UINT64_C(3000000000)};
            kv_ticket ticket;
            if (kv_put_submit(s->client, &put, &ticket) != STATUS_OK) break;
            sent++;
        }
        if (!store_next(s, UINT64_C(5000000000), &done)) break;
        done_count++;
        ok += done.result == STATUS_OK;
    }
    free(bytes);
    return ok;
}

uint32_t store_get_all(store *s, uint64_t context, uint32_t count, uint32_t batch,
                       uint64_t *out_late_ns)
{
    uint8_t *want = malloc(s->block_bytes);
    block_id id[64];
    uint64_t digest[64], late = 0;
    uint32_t ok = 0;
    CHECK(want != NULL && batch <= 64);
    for (uint32_t first = 0; first < count; first += batch) {
        uint32_t n = count - first < batch ? count - first : batch;
        for (uint32_t i = 0; i < n; i++) {
            id[i] = store_id(s, context, first + i);
            store_fill(s, &id[i], want);
            digest[i] = block_digest(&id[i], want, s->block_bytes);
        }
        uint64_t deadline = now() + s->config.fetch_deadline_ns;
        kv_get get = {id, digest, n, KV_DEMAND, deadline, false};
        kv_ticket ticket;
        kv_done done;
        if (kv_get_submit(s->client, &get, &ticket) != STATUS_OK) continue;
        EXPECT(store_next(s, UINT64_C(10000000000), &done));
        uint64_t end = now();
        if (end > deadline && end - deadline > late) late = end - deadline;
        for (uint32_t i = 0; i < n; i++) {
            if (done.slot[i] < 0) continue;
            store_fill(s, &id[i], want);
            EXPECT(memcmp(kv_slot_bytes(s->client, done.slot[i]), want, s->block_bytes) == 0);
            kv_slot_release(s->client, done.slot[i]);
            ok++;
        }
    }
    if (out_late_ns != NULL) *out_late_ns = late;
    free(want);
    return ok;
}
