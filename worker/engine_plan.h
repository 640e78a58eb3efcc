/* worker/engine_plan.h - private to the engine's creation: is there room, and who has it. */
#ifndef WORKER_ENGINE_PLAN_H
#define WORKER_ENGINE_PLAN_H

#include "worker/engine.h"

/* INVALID names the flag and its bounds. Before anything of the engine exists. */
status engine_check_config(const worker_config *config);
/* NO_MEMORY when the pool, whose size is known, does not hold one step of one sequence. */
status engine_check_pool(const worker_engine *e);
/* Device bytes for the blocks of a prompt. */
uint64_t engine_stage_bytes(const worker_engine *e);
/* One line to `plan`, or nothing when that is NULL. */
void engine_print_plan(const worker_engine *e, FILE *plan);

#endif
