/* Every CHECK of kvstore that a caller or a broken invariant can reach stops the program: each case
 * breaks one thing inside of a living client, node or table, in a child process, and looks for the
 * abort. Without its CHECK a case would go on, or end in another way. */
#include <stdlib.h>

#include "kvstore/client.h"
#include "kvstore/contexts.h"
#include "kvstore/node.h"
#include "kvstore/server.h"
#include "tests/kvstore/rig.h"

typedef struct check_case {
    const char *name;
    void (*run)(rig *r);
} check_case;

static void run_case(void *arg)
{
    const check_case *c = arg;
    log_config quiet = {.level = LOG_ERROR, .program = "test"};
    log_setup(&quiet);
    c->run(rig_create(&(rig_options){.nodes = 2, .replicas = 1}));
}

static void all_abort(const check_case *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        check_case one = list[i];
        EXPECT_MSG(test_aborts(run_case, &one), "%s did not abort", one.name);
    }
}
#define ALL_ABORT(list) all_abort(list, sizeof list / sizeof list[0])

static void nothing(rig *r)
{
    EXPECT(rig_ready(r));
}

TEST(a_case_that_breaks_nothing_does_not_abort)
{
    check_case one = {"nothing", nothing};
    EXPECT(!test_aborts(run_case, &one));
}

/* ---- client ---------------------------------------------------------------------------------- */

static kv_client_config client_config(rig *r)
{
    kv_client_config config = r->client->config;
    config.memory = arena_create("check");
    (void)kv_transport_local_open(config.memory, r->hub, &config.transport);
    config.config = &r->config;
    return config;
}

static void client_without_memory(rig *r)
{
    kv_client_config config = client_config(r);
    kv_client *c;
    config.transport = NULL;
    (void)kv_client_create(&config, &c);
}

static void client_with_a_crooked_zone(rig *r)
{
    kv_client_config config = client_config(r);
    kv_client *c;
    config.landing += 8;
    (void)kv_client_create(&config, &c);
}

static void client_with_a_million_requests(rig *r)
{
    kv_client_config config = client_config(r);
    kv_client *c;
    r->config.inflight_max[KV_DEMAND] = UINT16_MAX * 16u;
    (void)kv_client_create(&config, &c);
}

static status get_submit(rig *r, kv_ticket *out)
{
    block_id id = rig_id(r, 1, 0);
    uint64_t digest = 5;
    kv_get get = {&id, &digest, 1, KV_DEMAND, r->now_ns + 100 * RIG_MS, false};
    return kv_get_submit(r->client, &get, out);
}

static void submit_without_a_free_request(rig *r)
{
    kv_ticket ticket;
    r->client->request_free = CLIENT_NONE;
    (void)get_submit(r, &ticket);
}

static void submit_without_a_free_block(rig *r)
{
    kv_ticket ticket;
    r->client->block_free = CLIENT_NONE;
    (void)get_submit(r, &ticket);
}

static void get_without_ids(rig *r)
{
    uint64_t digest = 5;
    kv_get get = {NULL, &digest, 1, KV_DEMAND, r->now_ns, false};
    kv_ticket ticket;
    (void)kv_get_submit(r->client, &get, &ticket);
}

static void put_without_bytes(rig *r)
{
    kv_put put = {.id = rig_id(r, 1, 0), .class = KV_WRITE_BACK};
    kv_ticket ticket;
    (void)kv_put_submit(r->client, &put, &ticket);
}

static void complete_twice(rig *r)
{
    kv_ticket ticket;
    (void)get_submit(r, &ticket);
    uint32_t i = (uint32_t)ticket - 1;
    client_complete(r->client, i, STATUS_CANCELED);
    r->client->requests[i].prev = r->client->requests[i].next = CLIENT_NONE;
    client_complete(r->client, i, STATUS_CANCELED);
}

static void ask_in_a_place_that_is_lent(rig *r)
{
    kv_client *c = r->client;
    kv_ticket ticket;
    (void)get_submit(r, &ticket);
    c->ask_next = 1;
    c->asks[1].lent = true;
    (void)client_ask_new(c, KV_KIND_GET, 0, (uint32_t)ticket - 1);
}

static void end_an_ask_that_is_none(rig *r)
{
    client_ask none = {.request = CLIENT_NONE};
    client_ask_end(r->client, &none);
}

static status send_nothing(kv_transport *t, kv_peer peer, const kv_message *m)
{
    (void)t, (void)peer, (void)m;
    return STATUS_OK;
}
static const kv_transport_ops deaf = {.send = send_nothing};

static void send_without_a_connection(rig *r)
{
    kv_message m = {.head = "", .head_bytes = 1};
    r->client->transport->ops = &deaf;
    (void)client_send(r->client, 9, &m);
}

static void take_a_slot_of_none(rig *r)
{
    client_block b = {.slot = -1};
    r->client->slots_free = 0;
    client_slot_take(r->client, &b, KV_DEMAND);
}

static void take_a_slot_for_a_block_that_has_one(rig *r)
{
    client_block b = {.slot = 3};
    client_slot_take(r->client, &b, KV_DEMAND);
}

static void take_a_slot_that_is_taken(rig *r)
{
    kv_client *c = r->client;
    client_block b = {.slot = -1};
    c->slot_use[c->slot_free[c->slots_free - 1]] = SLOT_FILLED;
    client_slot_take(c, &b, KV_DEMAND);
}

static void drop_a_slot_that_is_free(rig *r)
{
    client_block b = {.slot = 3};
    client_slot_drop(r->client, &b);
}

static void look_at_a_slot_beyond_the_zone(rig *r)
{
    (void)kv_slot_bytes(r->client, (int32_t)r->client->config.landing_slots);
}

static void release_a_slot_beyond_the_zone(rig *r)
{
    kv_client *c = r->client;
    c->config.landing_slots = 10; /* what lies behind it could be released */
    c->slot_use[10] = SLOT_FILLED;
    kv_slot_release(c, 10);
}

static void release_a_slot_twice(rig *r)
{
    kv_slot_release(r->client, 0);
}

static void hand_out_fewer_blocks_than_asked_for(rig *r)
{
    kv_ticket ticket;
    kv_done done;
    (void)get_submit(r, &ticket);
    kv_cancel(r->client, ticket);
    r->client->requests[(uint32_t)ticket - 1].count = 2;
    (void)kv_client_next(r->client, &done);
}

static client_ask *asked(rig *r)
{
    kv_ticket ticket;
    (void)get_submit(r, &ticket);
    kv_client_poll(r->client);
    uint32_t ask = r->client->requests[(uint32_t)ticket - 1].first_ask;
    if (ask == CLIENT_NONE) _Exit(3);
    return &r->client->asks[ask];
}

static void a_block_fails_that_nobody_asked_for(rig *r)
{
    client_ask *ask = asked(r);
    r->client->blocks[ask->block[0]].state = BLOCK_WAIT_TIME;
    client_get_failed(r->client, ask, STATUS_BUSY);
}

static void a_reply_fills_a_slot_that_is_not_posted(rig *r)
{
    kv_client *c = r->client;
    client_ask *ask = asked(r);
    static uint8_t bytes[65536];
    client_block *b = &c->blocks[ask->block[0]];
    b->digest = block_digest(&b->id, bytes, c->block_bytes);
    c->slot_use[b->slot] = SLOT_FREE;
    wire_block w = {.slot = (uint32_t)b->slot};
    wire_head_set(&w.head, WIRE_BLOCK, ask->id, c->block_bytes);
    kv_message m = {&w, sizeof w, bytes, c->block_bytes, 0};
    client_on_block(c, ask->node, &m);
}

static void a_body_comes_back_that_was_not_lent(rig *r)
{
    client_events.sent(r->client, 1, 5);
}

static void a_stage_comes_back_that_was_not_lent(rig *r)
{
    client_ask *ask = &r->client->asks[5];
    ask->lent = true;
    ask->kind = KV_KIND_PUT;
    ask->request = CLIENT_NONE;
    ask->id = 5;
    ask->block[0] = 0;
    client_events.sent(r->client, 1, 5);
}

static void a_reply_lands_in_a_slot_that_is_free(rig *r)
{
    kv_client *c = r->client;
    client_ask *ask = asked(r);
    client_block *b = &c->blocks[ask->block[0]];
    c->slot_use[b->slot] = SLOT_FREE;
    wire_block w = {.slot = (uint32_t)b->slot};
    wire_head_set(&w.head, WIRE_BLOCK, ask->id, c->block_bytes);
    kv_message m = {&w, sizeof w, NULL, c->block_bytes, 0};
    (void)client_get_land(c, ask->node, &m);
}

static void a_stage_that_is_used_is_taken(rig *r)
{
    block_id id = rig_id(r, 1, 0);
    if (!rig_ready(r)) _Exit(3);
    r->client->stages[r->client->stage_free].used = true;
    (void)rig_put(r, &id);
}

TEST(a_client_stops_at_what_must_never_be)
{
    static const check_case list[] = {
        {"a client without a transport", client_without_memory},
        {"a zone that is not aligned", client_with_a_crooked_zone},
        {"more requests than tickets", client_with_a_million_requests},
        {"no free request", submit_without_a_free_request},
        {"no free block", submit_without_a_free_block},
        {"a get without ids", get_without_ids},
        {"a put without bytes", put_without_bytes},
        {"a second completion", complete_twice},
        {"an ask in a place that is lent", ask_in_a_place_that_is_lent},
        {"the end of no ask", end_an_ask_that_is_none},
        {"a send without a connection", send_without_a_connection},
        {"a slot of none", take_a_slot_of_none},
        {"a second slot", take_a_slot_for_a_block_that_has_one},
        {"a slot that is taken", take_a_slot_that_is_taken},
        {"dropping a free slot", drop_a_slot_that_is_free},
        {"a slot beyond the zone", look_at_a_slot_beyond_the_zone},
        {"releasing a slot beyond the zone", release_a_slot_beyond_the_zone},
        {"releasing a slot twice", release_a_slot_twice},
        {"a completion of fewer blocks", hand_out_fewer_blocks_than_asked_for},
        {"a failure nobody asked for", a_block_fails_that_nobody_asked_for},
        {"a reply into a free slot", a_reply_fills_a_slot_that_is_not_posted},
        {"a body that was not lent", a_body_comes_back_that_was_not_lent},
        {"a landing in a free slot", a_reply_lands_in_a_slot_that_is_free},
        {"a stage that is used", a_stage_that_is_used_is_taken},
        {"a stage that was not lent", a_stage_comes_back_that_was_not_lent},
    };
    ALL_ABORT(list);
}

/* ---- node ------------------------------------------------------------------------------------ */

static kv_server *node_of(rig *r)
{
    return r->node[0].server;
}

static uint32_t conn_of(rig *r)
{
    kv_server *s = node_of(r);
    for (uint32_t i = 0; i < s->config.connections_max; i++)
        if (s->conn[i].ready) return i;
    _Exit(3);
}

static void a_node_without_a_transport(rig *r)
{
    kv_server_config config = node_of(r)->config;
    kv_server *s;
    config.memory = arena_create("check");
    config.transport = NULL;
    (void)kv_server_create(&config, &s);
}

static void an_answer_to_nobody(rig *r)
{
    kv_message m = {.head = "", .head_bytes = 1};
    node_of(r)->transport->ops = &deaf;
    (void)server_send(node_of(r), 7, &m);
}

static void a_connection_ends_with_jobs(rig *r)
{
    kv_server *s = node_of(r);
    uint32_t conn = conn_of(r);
    s->conn[conn].pending = 1;
    s->transport->events->closed(s, s->conn[conn].peer, STATUS_OK);
}

static void a_copy_comes_back_that_was_not_lent(rig *r)
{
    kv_server *s = node_of(r);
    s->transport->events->sent(s, s->conn[conn_of(r)].peer, UINT64_C(1) << SERVER_SCRATCH_BIT | 3);
}

static void a_job_of_no_queue(rig *r)
{
    kv_server *s = node_of(r);
    job *j = server_job_add(s, conn_of(r), JOB_RESULT, KV_DEMAND, 1);
    j->reply = WIRE_DROP_DONE;
    j->slot = KV_NO_SLOT;
    s->queue[KV_DEMAND].count = 0;
    (void)server_jobs_run(s, r->now_ns);
}

static void a_job_of_nobody(rig *r)
{
    (void)server_job_add(node_of(r), 7, JOB_RESULT, KV_DEMAND, 1);
}

static status publish_stale(void *self, uint32_t slot)
{
    (void)self, (void)slot;
    return STATUS_STALE;
}

static void a_block_that_cannot_be_published(rig *r)
{
    kv_tier_ops ops = *node_of(r)->tier.ops;
    ops.publish = publish_stale;
    node_of(r)->tier.ops = r->node[1].server->tier.ops = &ops;
    block_id id = rig_id(r, 1, 0);
    (void)rig_put(r, &id);
}

static void a_put_without_its_bytes(rig *r)
{
    kv_server *s = node_of(r);
    wire_put put = {.epoch = r->config.map.epoch, .id = rig_id(r, 1, 0), .class = KV_WRITE_BACK};
    if (!rig_ready(r)) _Exit(3);
    wire_head_set(&put.head, WIRE_PUT, 1, r->block_bytes);
    kv_message m = {&put, sizeof put, NULL, r->block_bytes, 0};
    s->transport->events->message(s, s->conn[conn_of(r)].peer, &m);
    kv_server_poll(s);
}

static void a_map_of_too_many_nodes(rig *r)
{
    kv_server *s = node_of(r);
    cluster_map map = {.epoch = 1, .node_count = CLUSTER_NODES_MAX + 1};
    s->transport->ops = &deaf;
    kv_maps_send(&s->maps, s->transport, 1, &map);
}

static void a_map_comes_back_that_was_not_lent(rig *r)
{
    kv_maps_sent(&node_of(r)->maps, UINT64_C(1) << KV_MAP_COOKIE_BIT | 1);
}

TEST(a_node_stops_at_what_must_never_be)
{
    static const check_case list[] = {
        {"a put without its bytes", a_put_without_its_bytes},
        {"a node without a transport", a_node_without_a_transport},
        {"an answer to nobody", an_answer_to_nobody},
        {"a connection that ends with jobs", a_connection_ends_with_jobs},
        {"a copy that was not lent", a_copy_comes_back_that_was_not_lent},
        {"a job of no queue", a_job_of_no_queue},
        {"a job of nobody", a_job_of_nobody},
        {"a block that cannot be published", a_block_that_cannot_be_published},
        {"a map of too many nodes", a_map_of_too_many_nodes},
        {"a map that was not lent", a_map_comes_back_that_was_not_lent},
    };
    ALL_ABORT(list);
}

/* ---- tables ---------------------------------------------------------------------------------- */

enum { BLOCK = 8192 };

static kv_contexts *contexts_of_nobody(void)
{
    return kv_contexts_create(arena_create("check"), 4, 100);
}

static void contexts_without_owners(rig *r)
{
    (void)r;
    (void)kv_contexts_create(arena_create("check"), 0, 10);
}

static void a_context_of_an_owner_that_is_none(rig *r)
{
    block_id id = rig_id(r, 1, 0);
    (void)kv_context_attach(contexts_of_nobody(), 3, 0, &id);
}

static void an_owner_without_an_id(rig *r)
{
    (void)r;
    (void)kv_owner_find(contexts_of_nobody(), 0, 1, 0);
}

static void a_lease_of_an_owner_that_is_none(rig *r)
{
    (void)r;
    kv_owner_renew(contexts_of_nobody(), 3, 5);
}

static kv_tier tier_with(uint32_t *out_slot)
{
    kv_tier t;
    kv_slot_info info = {.digest = 1};
    if (kv_tier_dram_create(arena_create("check"), 16 * BLOCK, &t) != STATUS_OK) _Exit(3);
    if (t.ops->format(t.self, BLOCK) != STATUS_OK) _Exit(3);
    if (t.ops->reserve(t.self, &info, out_slot) != STATUS_OK) _Exit(3);
    return t;
}

static void a_full_tier_is_formatted(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    (void)t.ops->format(t.self, 2 * BLOCK);
}

static void a_slot_is_published_twice(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    (void)t.ops->publish(t.self, slot);
    (void)t.ops->publish(t.self, slot);
}

static void a_slot_is_discarded_twice(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    t.ops->discard(t.self, slot);
    t.ops->discard(t.self, slot);
}

static void a_slot_beyond_the_tier_is_discarded(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    t.ops->discard(t.self, UINT32_MAX / 2);
}

static void bytes_of_a_free_slot(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    (void)t.ops->bytes(t.self, slot + 1, NULL);
}

static void a_slot_is_pinned_by_two(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    (void)t.ops->publish(t.self, slot);
    t.ops->pin(t.self, slot, 1);
    t.ops->pin(t.self, slot, 2);
}

static void a_pin_that_was_never_set_is_taken(rig *r)
{
    (void)r;
    uint32_t slot;
    kv_tier t = tier_with(&slot);
    (void)t.ops->publish(t.self, slot);
    t.ops->pin(t.self, slot, -1);
}

static void a_timer_that_is_in_no_heap_is_moved(rig *r)
{
    (void)r;
    kv_timers timers;
    kv_timer one = {0}, two = {0}, stray = {.place = 1};
    kv_timers_init(&timers, arena_create("check"), 4);
    kv_timer_set(&timers, &one, 5);
    kv_timer_set(&timers, &two, 6);
    kv_timer_set(&timers, &stray, 7);
}

static void a_timer_that_is_in_no_heap_is_stopped(rig *r)
{
    (void)r;
    kv_timers timers;
    kv_timer one = {0}, two = {0}, stray = {.place = 1};
    kv_timers_init(&timers, arena_create("check"), 4);
    kv_timer_set(&timers, &one, 5);
    kv_timer_set(&timers, &two, 6);
    kv_timer_stop(&timers, &stray);
}

static void more_timers_than_places(rig *r)
{
    (void)r;
    kv_timers timers;
    kv_timer one = {0}, two = {0};
    kv_timers_init(&timers, arena_create("check"), 1);
    kv_timer_set(&timers, &one, 5);
    kv_timer_set(&timers, &two, 6);
}

TEST(tables_stop_at_what_must_never_be)
{
    static const check_case list[] = {
        {"contexts without owners", contexts_without_owners},
        {"a context of no owner", a_context_of_an_owner_that_is_none},
        {"an owner without an id", an_owner_without_an_id},
        {"a lease of no owner", a_lease_of_an_owner_that_is_none},
        {"formatting a full tier", a_full_tier_is_formatted},
        {"publishing a slot twice", a_slot_is_published_twice},
        {"discarding a slot twice", a_slot_is_discarded_twice},
        {"discarding a slot beyond the tier", a_slot_beyond_the_tier_is_discarded},
        {"bytes of a free slot", bytes_of_a_free_slot},
        {"two pins at once", a_slot_is_pinned_by_two},
        {"a pin that was never set", a_pin_that_was_never_set_is_taken},
        {"moving a stray timer", a_timer_that_is_in_no_heap_is_moved},
        {"stopping a stray timer", a_timer_that_is_in_no_heap_is_stopped},
        {"more timers than places", more_timers_than_places},
    };
    ALL_ABORT(list);
}

/* ---- program --------------------------------------------------------------------------------- */

static void a_node_whose_answers_nobody_takes(rig *r)
{
    (void)r;
    static node_options options = {
        .name = "n0", .listen = "127.0.0.1:0", .memory_bytes = 16 * BLOCK, .connections_max = 1};
    static node n;
    if (node_start(&n, &options) != STATUS_OK) _Exit(3);
    /* One more than there are places; the data thread aborts the process. */
    for (uint64_t end = clock_now(&clock_monotonic) + UINT64_C(5000) * RIG_MS;
         clock_now(&clock_monotonic) < end;)
        (void)node_tell(&n, NODE_STATS);
}

TEST(a_program_stops_at_what_must_never_be)
{
    static const check_case list[] = {
        {"answers that nobody takes", a_node_whose_answers_nobody_takes},
    };
    ALL_ABORT(list);
}

/* ---- transports ------------------------------------------------------------------------------ */

static const kv_message long_head = {.head = "", .head_bytes = WIRE_HEAD_MAX + 1};

static void a_transport_with_two_owners(rig *r)
{
    kv_transport_bind(r->transport, &client_events, &r);
}

static void a_network_that_is_none_changes_pace(rig *r)
{
    (void)r;
    kv_hub_pace(NULL, 1, 1);
}

static void a_message_to_nobody(rig *r)
{
    kv_message m = {.head = "", .head_bytes = 1};
    (void)r->transport->ops->send(r->transport, 0, &m);
}

static void a_head_that_is_too_long(rig *r)
{
    uint8_t head[WIRE_HEAD_MAX + 1] = {0};
    kv_message m = {.head = head, .head_bytes = sizeof head};
    (void)r->transport->ops->send(r->transport, r->client->node[0].peer, &m);
}

static void an_address_that_is_too_long(rig *r)
{
    char address[CLUSTER_ADDRESS_MAX + 8], bound[CLUSTER_ADDRESS_MAX];
    memset(address, 'a', sizeof address - 1);
    address[sizeof address - 1] = 0;
    (void)r->transport->ops->listen(r->transport, address, bound);
}

static kv_transport *ucx_open(void)
{
    kv_transport *t;
    if (kv_transport_ucx_open(arena_create("check"), false, &t) != STATUS_OK) _Exit(3);
    return t;
}

static void ucx_listens_twice(rig *r)
{
    (void)r;
    char bound[CLUSTER_ADDRESS_MAX];
    kv_transport *t = ucx_open();
    if (t->ops->listen(t, "127.0.0.1:0", bound) != STATUS_OK) _Exit(3);
    (void)t->ops->listen(t, "127.0.0.1:0", bound);
}

static void ucx_sends_to_nobody(rig *r)
{
    (void)r;
    kv_message m = {.head = "", .head_bytes = 1};
    kv_transport *t = ucx_open();
    (void)t->ops->send(t, 0, &m);
}

static void ucx_sends_a_head_that_is_too_long(rig *r)
{
    (void)r;
    kv_transport *t = ucx_open();
    (void)t->ops->send(t, 1, &long_head);
}

static kv_transport *tcp_open(void)
{
    kv_transport *t;
    if (kv_transport_tcp_open(arena_create("check"), false, &t) != STATUS_OK) _Exit(3);
    return t;
}

static void tcp_listens_twice(rig *r)
{
    (void)r;
    char bound[CLUSTER_ADDRESS_MAX];
    kv_transport *t = tcp_open();
    if (t->ops->listen(t, "127.0.0.1:0", bound) != STATUS_OK) _Exit(3);
    (void)t->ops->listen(t, "127.0.0.1:0", bound);
}

static void tcp_sends_to_nobody(rig *r)
{
    (void)r;
    kv_message m = {.head = "", .head_bytes = 1};
    kv_transport *t = tcp_open();
    (void)t->ops->send(t, 0, &m);
}

static void tcp_sends_a_head_that_is_too_long(rig *r)
{
    (void)r;
    kv_transport *t = tcp_open();
    (void)t->ops->send(t, 1, &long_head);
}

static void a_measurement_for_nobody(rig *r)
{
    (void)r;
    (void)kv_loopback_measure(NULL);
}

TEST(transports_stop_at_what_must_never_be)
{
    static const check_case list[] = {
        {"two owners", a_transport_with_two_owners},
        {"the pace of no network", a_network_that_is_none_changes_pace},
        {"a message to nobody", a_message_to_nobody},
        {"a head that is too long", a_head_that_is_too_long},
        {"an address that is too long", an_address_that_is_too_long},
        {"UCX listening twice", ucx_listens_twice},
        {"UCX sending to nobody", ucx_sends_to_nobody},
        {"UCX sending a head that is too long", ucx_sends_a_head_that_is_too_long},
        {"TCP listening twice", tcp_listens_twice},
        {"TCP sending to nobody", tcp_sends_to_nobody},
        {"TCP sending a head that is too long", tcp_sends_a_head_that_is_too_long},
        {"a measurement for nobody", a_measurement_for_nobody},
    };
    ALL_ABORT(list);
}

TEST_MAIN()
