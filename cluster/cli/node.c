/* cluster/cli/node.c - `shoal node` and the table of `shoal cluster status`. Every node is asked,
 * whatever the others answered; the exit code is that of the cluster as a whole. */
#include <inttypes.h>
#include <string.h>

#include "cluster/cli/ask.h"
#include "cluster/cli/cli.h"
#include "cluster/cli/daemon.h"
#include "cluster/units.h"

typedef struct choice {
    cluster_config config;
    bool chosen[CLUSTER_NODES_MAX];
    uint32_t count;
} choice;

/* The nodes that the command line names; all of them when it names none. */
static status choose(const cli_call *call, choice *out_choice)
{
    choice c = {0};
    TRY(cluster_config_load(call->config, &c.config));
    const cluster_map *map = &c.config.map;
    if (map->node_count == 0)
        return FAIL(INVALID, "%s: names no nodes; add some under nodes:", call->config);
    for (uint32_t k = 0; k < call->operand_count; k++) {
        uint32_t i = 0;
        while (i < map->node_count && strcmp(map->node[i].name, call->operand[k]) != 0)
            i++;
        if (i < map->node_count) {
            c.count += !c.chosen[i];
            c.chosen[i] = true;
            continue;
        }
        const char *names[CLUSTER_NODES_MAX];
        for (i = 0; i < map->node_count; i++)
            names[i] = map->node[i].name;
        const char *near = cli_nearest(call->operand[k], names, map->node_count);
        return FAIL(INVALID, "%s: has no node \"%.40s\"; %s%s%s`shoal config show` lists them",
                    call->config, call->operand[k], near ? "did you mean \"" : "", near ? near : "",
                    near ? "\"? " : "");
    }
    for (uint32_t i = 0; call->operand_count == 0 && i < map->node_count; i++, c.count++)
        c.chosen[i] = true;
    *out_choice = c;
    return STATUS_OK;
}

static void print_text(const cluster_node *node, const ask_answer *a, pid_t pid)
{
    char used[UNIT_TEXT_BYTES] = "-", process[16] = "-";
    if (pid) snprintf(process, sizeof process, "%d", (int)pid);
    if (a->state == ASK_UNREACHABLE) {
        printf("%-12s %-12s %-22s %-8s %8s\n", node->name, ask_state_name(a->state), node->control,
               node->domain, process);
        return;
    }
    snprintf(used, sizeof used, "%.1fMiB", (double)a->used_bytes / 1048576);
    printf("%-12s %-12s %-22s %-8s %8s %10s %10" PRIu64 " %10" PRIu64 " %9" PRIu64 " %7" PRIu64
           "s\n",
           node->name, ask_state_name(a->state), node->control, node->domain, process, used,
           a->stored_blocks, a->served_blocks, a->contexts, a->uptime_ms / 1000);
}

static void print_json(const cluster_node *node, const ask_answer *a, pid_t pid)
{
    printf("{\"schema\":\"shoal.node/1\",\"name\":\"%s\",\"state\":\"%s\",\"control\":", node->name,
           ask_state_name(a->state));
    cli_json_string(stdout, node->control);
    printf(",\"data\":");
    cli_json_string(stdout, node->data);
    printf(",\"domain\":\"%s\",\"pid\":%d", node->domain, (int)pid);
    if (a->state != ASK_UNREACHABLE) {
        printf(",\"version\":");
        cli_json_string(stdout, a->version);
        printf(",\"incarnation\":\"%016" PRIx64 "\",\"epoch\":%" PRIu64 ",\"uptime_ms\":%" PRIu64
               ",\"contexts\":%" PRIu64 ",\"connections\":%" PRIu64,
               a->incarnation, a->epoch, a->uptime_ms, a->contexts, a->connections);
        printf(",\"slots\":%" PRIu64 ",\"slots_used\":%" PRIu64 ",\"slot_bytes\":%" PRIu64
               ",\"memory_bytes\":%" PRIu64 ",\"used_bytes\":%" PRIu64,
               a->slots, a->slots_used, a->slot_bytes, a->memory_bytes, a->used_bytes);
        printf(",\"served_blocks\":%" PRIu64 ",\"served_bytes\":%" PRIu64
               ",\"stored_blocks\":%" PRIu64 ",\"stored_bytes\":%" PRIu64,
               a->served_blocks, a->served_bytes, a->stored_blocks, a->stored_bytes);
        printf(",\"misses\":%" PRIu64 ",\"corrupt\":%" PRIu64 ",\"busy\":%" PRIu64
               ",\"dropped_blocks\":%" PRIu64,
               a->misses, a->corrupt, a->busy, a->dropped_blocks);
    }
    printf("}\n");
}

static status verdict(uint32_t asked, uint32_t reached)
{
    if (reached == 0) return FAIL(UNREACHABLE, "no node answers; `shoal cluster up` starts them");
    if (reached < asked)
        return FAIL(DEGRADED, "%" PRIu32 " of %" PRIu32 " nodes answer", reached, asked);
    return STATUS_OK;
}

status cli_node_status(const cli_call *call)
{
    choice c;
    TRY(choose(call, &c));
    uint32_t reached = 0;
    if (!call->json)
        printf("%-12s %-12s %-22s %-8s %8s %10s %10s %10s %9s %8s\n", "NODE", "STATE", "CONTROL",
               "DOMAIN", "PID", "USED", "STORED", "SERVED", "CONTEXTS", "UP");
    for (uint32_t i = 0; i < c.config.map.node_count; i++) {
        if (!c.chosen[i]) continue;
        const cluster_node *node = &c.config.map.node[i];
        ask_answer answer = {0};
        const ask_whom whom = {&c.config, node->control, (uint32_t)(call->timeout_ns / 1000000)};
        reached += ask_node(&whom, &answer) == STATUS_OK;
        pid_t pid = daemon_find(c.config.state_dir, node->name).pid;
        if (call->json)
            print_json(node, &answer, pid);
        else
            print_text(node, &answer, pid);
    }
    fflush(stdout);
    return verdict(c.count, reached);
}

status cli_cluster_status(const cli_call *call)
{
    return cli_node_status(call);
}

status cli_node_drain(const cli_call *call)
{
    choice c;
    TRY(choose(call, &c));
    uint32_t reached = 0;
    for (uint32_t i = 0; i < c.config.map.node_count; i++) {
        if (!c.chosen[i]) continue;
        const cluster_node *node = &c.config.map.node[i];
        const ask_whom whom = {&c.config, node->control, (uint32_t)(call->timeout_ns / 1000000)};
        bool ok = ask_drain(&whom) == STATUS_OK;
        reached += ok;
        if (call->json)
            printf("{\"schema\":\"shoal.drain/1\",\"name\":\"%s\",\"state\":\"%s\"}\n", node->name,
                   ok ? "draining" : "unreachable");
        else
            printf("%-12s %s\n", node->name, ok ? "draining" : "unreachable");
    }
    fflush(stdout);
    return verdict(c.count, reached);
}
