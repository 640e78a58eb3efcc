/* The cluster's YAML file. */
#include "cluster/cluster.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cluster_config config;
    if (cluster_config_load(fuzz_file("shoal.yaml", data, size), &config) != STATUS_OK) return 0;
    CHECK(config.map.node_count <= CLUSTER_NODES_MAX && config.map.replicas >= 1);
    context_id id = {1, size};
    uint32_t rank[CLUSTER_NODES_MAX];
    CHECK(cluster_place(&config.map, id, 3, 8, rank, CLUSTER_NODES_MAX) <= config.map.node_count);
    return 0;
}
