/* The memory plan: what a configuration must hold to, and the line that says where memory goes. */
#include "worker/engine_plan.h"

uint64_t engine_stage_bytes(const worker_engine *e)
{
    return (uint64_t)e->layers * e->kv_heads * e->stage_blocks * e->block_bytes;
}

status engine_check_pool(const worker_engine *e)
{
    uint64_t need = (uint64_t)e->layers * e->kv_heads * e->max_entries;
    if (e->pool_slots >= need) return STATUS_OK;
    return FAIL(
        NO_MEMORY,
        "a device pool of %llu bytes is too small for one step of one sequence: %u layers x "
        "%u KV heads x %u blocks of %u bytes need --device-pool %lluKiB or more",
        (unsigned long long)e->cluster.device_pool_bytes, e->layers, e->kv_heads, e->max_entries,
        e->block_bytes, (unsigned long long)((need * e->block_bytes + 1023) / 1024));
}

status engine_check_config(const worker_config *config)
{
    const cluster_config *c = config->cluster;
    const model_config *m = &config->model->config;
    if (c->max_num_seqs == 0 || c->max_num_seqs > 512)
        return FAIL(INVALID, "--max-num-seqs %u: between 1 and 512", c->max_num_seqs);
    if (c->max_num_batched_tokens == 0)
        return FAIL(INVALID, "--max-num-batched-tokens 0: at least 1");
    if (c->max_model_len > m->positions_max || config->model->max_tokens < c->max_model_len)
        return FAIL(INVALID, "--max-model-len %u: the model has %u positions", c->max_model_len,
                    m->positions_max);
    if (config->with_store && c->map.node_count == 0)
        return FAIL(INVALID, "a store needs nodes: the cluster file names none");
    uint64_t block = (uint64_t)m->layers * m->kv_heads * block_layout_bytes(&config->model->layout);
    if (config->prompt_stage_bytes > 0 && config->prompt_stage_bytes < block)
        return FAIL(
            INVALID, "--prompt-stage %llu bytes: %d tokens of a prompt take %llu, in all layers",
            (unsigned long long)config->prompt_stage_bytes, KERN_BLOCK, (unsigned long long)block);
    return STATUS_OK;
}

uint64_t worker_pool_bytes(const worker_engine *e)
{
    return (uint64_t)e->pool_slots * e->block_bytes;
}

void engine_print_plan(const worker_engine *e, FILE *plan)
{
    if (plan == NULL) return;
    const double mib = 1.0 / 1048576.0;
    uint64_t pool = worker_pool_bytes(e), weights = e->config.model->weight_bytes;
    uint64_t stage = engine_stage_bytes(e);
    uint64_t works = e->device_bytes - pool - stage - e->summary_bytes + e->stream_bytes;
    uint64_t landing = e->config.with_store ? e->cluster.landing_bytes : 0;
    fprintf(plan,
            "memory plan: weights %.1f MiB, workspaces and tables %.1f MiB, summaries %.1f MiB, "
            "pool %.1f MiB (%u blocks of %u KiB)",
            (double)weights * mib, (double)works * mib, (double)e->summary_bytes * mib,
            (double)pool * mib, e->pool_slots, e->block_bytes / 1024);
    if (stage > 0)
        fprintf(plan, ", prompts up to %u tokens %.1f MiB", e->stage_blocks * KERN_BLOCK,
                (double)stage * mib);
    fprintf(plan, ": %.1f MiB of device memory",
            (double)(weights + works + e->summary_bytes + pool + stage) * mib);
    if (e->config.hbm_bytes != 0)
        fprintf(plan, " of the %.1f MiB allowed", (double)e->config.hbm_bytes * mib);
    fprintf(plan, "; host %.1f MiB, of it landing zone %.1f MiB\n",
            (double)(arena_bytes(e->memory) + e->shared_bytes + io_shared_bytes(e->io)) * mib,
            (double)landing * mib);
}
