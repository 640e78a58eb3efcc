/* cluster/cli/config.c - `shoal config`, `shoal version`. */
#include "cluster/cli/cli.h"
#include "cluster/knobs.h"

#include <inttypes.h>
#include <unistd.h>

static status load(const cli_call *call, const char **out_path, cluster_config *out_config)
{
    *out_path = call->operand_count > 0 ? call->operand[0] : call->config;
    return cluster_config_load(*out_path, out_config);
}

status cli_config_check(const cli_call *call)
{
    cluster_config config;
    const char *path = NULL;
    TRY(load(call, &path, &config));
    if (call->json) {
        printf("{\"schema\":\"shoal.config_check/1\",\"file\":");
        cli_json_string(stdout, path);
        printf(",\"sound\":true,\"nodes\":%" PRIu32 ",\"replicas\":%" PRIu32 "}\n",
               config.map.node_count, config.map.replicas);
    } else {
        printf("%s is sound: %" PRIu32 " nodes, %" PRIu32 " copies of each block\n", path,
               config.map.node_count, config.map.replicas);
    }
    return STATUS_OK;
}

static void show_knob(const knob *k, const cluster_config *config, bool json)
{
    cluster_config standard;
    cluster_config_default(&standard);
    char value[256], initial[256], name[64];
    snprintf(name, sizeof name, "%s%s%s", k->section, k->section[0] ? "." : "", k->key);
    knob_print(k, config, value);
    knob_print(k, &standard, initial);
    if (!json) {
        printf("%-30s %-14s %-12s %s\n", name, value, initial, k->meaning);
        return;
    }
    printf("{\"schema\":\"shoal.knob/1\",\"knob\":\"%s\",\"value\":", name);
    cli_json_string(stdout, value);
    printf(",\"default\":");
    cli_json_string(stdout, initial);
    printf(",\"meaning\":");
    cli_json_string(stdout, k->meaning);
    printf("}\n");
}

status cli_config_show(const cli_call *call)
{
    cluster_config config;
    const char *path = NULL;
    if (call->operand_count == 0 && !call->config_named && access(call->config, F_OK) != 0) {
        cluster_config_default(&config);
        if (!call->json) printf("No %s here: what holds without one.\n\n", call->config);
    } else {
        TRY(load(call, &path, &config));
    }
    if (!call->json) printf("%-30s %-14s %-12s %s\n", "KNOB", "VALUE", "DEFAULT", "MEANING");
    for (size_t i = 0; i < KNOB_COUNT; i++)
        show_knob(&knobs[i], &config, call->json);
    if (!call->json && config.map.node_count > 0)
        printf("\n%-12s %-22s %-22s %-12s %s\n", "NODE", "DATA", "CONTROL", "DOMAIN", "WEIGHT");
    for (uint32_t i = 0; i < config.map.node_count; i++) {
        const cluster_node *n = &config.map.node[i];
        if (!call->json) {
            printf("%-12s %-22s %-22s %-12s %" PRIu32 "\n", n->name, n->data, n->control, n->domain,
                   n->weight);
            continue;
        }
        printf("{\"schema\":\"shoal.config_node/1\",\"name\":\"%s\",\"data\":", n->name);
        cli_json_string(stdout, n->data);
        printf(",\"control\":");
        cli_json_string(stdout, n->control);
        printf(",\"domain\":\"%s\",\"weight\":%" PRIu32 "}\n", n->domain, n->weight);
    }
    return STATUS_OK;
}

status cli_version(const cli_call *call)
{
    if (call->json)
        printf("{\"schema\":\"shoal.version/1\",\"version\":\"%s\",\"protocol\":%d}\n",
               SHOAL_VERSION, PROTO_VERSION);
    else
        printf("shoal %s, protocol %d\n", SHOAL_VERSION, PROTO_VERSION);
    return STATUS_OK;
}
