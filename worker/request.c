/* Requests on their way in: what is refused at once, the selectors that ops must know, the queue.
 */
#include "worker/fetch.h"

#include <string.h>

/* By members: the bytes between them are whatever was there. */
bool engine_selectors_equal(const kern_selector *a, const kern_selector *b)
{
    return a->window == b->window && a->stride == b->stride && a->block == b->block &&
           a->init == b->init && a->local == b->local && a->query == b->query &&
           a->total == b->total && a->fill_by_importance == b->fill_by_importance &&
           a->bias == b->bias && a->source == b->source && a->chunk == b->chunk &&
           a->raw == b->raw && a->near == b->near;
}

static status selector_register(worker_engine *e, const kern_selector *s)
{
    for (uint32_t i = 0; i < e->selector_count; i++) {
        if (engine_selectors_equal(&e->selectors[i], s)) return STATUS_OK;
    }
    TRY(kern_selector_check(e->backend, s));
    if (e->selector_count == KERN_SELECTORS_MAX)
        return FAIL(UNSUPPORTED, "more than %d different selectors in one run", KERN_SELECTORS_MAX);
    const kern_selector guess = guess_selector(s, e->config.guess);
    TRY(kern_selector_check(e->backend, &guess));
    e->selectors[e->selector_count] = *s;
    e->selectors[KERN_SELECTORS_MAX + e->selector_count++] = guess;
    return kern_copy(e->stream, e->dev_selectors, e->selectors, sizeof e->selectors);
}

static status check_request(const worker_engine *e, const worker_request *r)
{
    uint32_t limit = e->cluster.max_model_len != 0 ? e->cluster.max_model_len
                                                   : e->config.model->config.positions_max;
    if (r->prompt_count == 0 || r->step_count >= r->prompt_count)
        return FAIL(INVALID, "the prompt has no tokens");
    if (r->prompt_count > limit || r->max_new > limit - r->prompt_count)
        return FAIL(INVALID, "%u prompt tokens and %u new ones do not fit the model's %u positions",
                    r->prompt_count, r->max_new, limit);
    if (r->max_new == 0 && r->score == NULL) return FAIL(INVALID, "max_tokens must be at least 1");
    for (uint32_t i = 0; i < r->prompt_count; i++) {
        if (r->prompt[i] < 0 || (uint32_t)r->prompt[i] >= e->vocab)
            return FAIL(INVALID, "token id %d is outside the vocabulary of %u", r->prompt[i],
                        e->vocab);
    }
    if (r->eos_count > 8) return FAIL(INVALID, "more than 8 end-of-sequence tokens");
    if (selector_entries(e, &r->selector) > e->max_select)
        return FAIL(INVALID, "the request's budget is larger than the engine was created for");
    uint32_t blocks = (r->prompt_count + r->max_new + KERN_BLOCK - 1) / KERN_BLOCK;
    uint64_t need =
        (uint64_t)e->layers * e->kv_heads * sched_entries_needed(e, &r->selector, blocks);
    if (need > e->pool_slots)
        return FAIL(NO_MEMORY, "the request needs %llu blocks of the device pool, which has %u",
                    (unsigned long long)need, e->pool_slots);
    return STATUS_OK;
}

status worker_submit(worker_engine *e, const worker_request *request)
{
    if (e->queue_count == ENGINE_QUEUE) return STATUS_BUSY;
    TRY(check_request(e, request));
    TRY(selector_register(e, &request->selector));
    engine_request *to = &e->queue[(e->queue_head + e->queue_count) % ENGINE_QUEUE];
    to->request = *request;
    to->submitted_ns = clock_now(&e->config.clock);
    to->cancel = false;
    memcpy(to->prompt, request->prompt, request->prompt_count * sizeof(int32_t));
    to->request.prompt = to->prompt;
    if (request->eos_count > 0) memcpy(to->eos, request->eos, request->eos_count * sizeof(int32_t));
    to->request.eos = to->eos;
    e->queue_count++;
    return STATUS_OK;
}

void worker_cancel(worker_engine *e, uint64_t id)
{
    for (uint32_t i = 0; i < e->queue_count; i++) {
        engine_request *r = &e->queue[(e->queue_head + i) % ENGINE_QUEUE];
        if (r->request.id == id) r->cancel = true;
    }
    for (uint32_t i = 0; i < e->seqs; i++) {
        sequence *s = &e->seq[i];
        if (s->state != SEQ_FREE && s->state != SEQ_CLOSING && s->request.id == id)
            s->cancel = true;
    }
}
