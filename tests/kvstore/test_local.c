/* The network inside this process: order of events, pacing by a clock that the test turns, ends of
 * connections, sleep. */
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "kvstore/transport.h"
#include "tests/test.h"

enum { MS = 1000 * 1000, ENDS = 2 };

typedef struct end {
    kv_transport *transport;
    kv_peer peer;
    uint32_t opened, messages, sent, closed;
    uint64_t last_cookie;
    uint8_t last[8];
    status why;
} end;

static uint64_t now_ns;
static arena *memory;
static kv_hub *hub;
static end ends[ENDS];

static uint64_t test_now(void *self)
{
    (void)self;
    return now_ns;
}

static void on_opened(void *owner, kv_peer peer)
{
    end *e = owner;
    e->peer = peer;
    e->opened++;
}

static void on_message(void *owner, kv_peer peer, const kv_message *m)
{
    end *e = owner;
    (void)peer;
    e->messages++;
    memcpy(e->last, m->head, m->head_bytes < 8 ? m->head_bytes : 8);
}

static void on_sent(void *owner, kv_peer peer, uint64_t cookie)
{
    end *e = owner;
    (void)peer;
    e->sent++;
    e->last_cookie = cookie;
}

static void on_closed(void *owner, kv_peer peer, status why)
{
    end *e = owner;
    (void)peer;
    e->closed++;
    e->why = why;
}

static const kv_events test_events = {on_opened, on_message, on_sent, on_closed, NULL};

static void net_open(clock_ops clock, uint64_t rtt_ns, uint64_t bytes_per_s)
{
    char bound[CLUSTER_ADDRESS_MAX];
    now_ns = UINT64_C(1000000000);
    memory = arena_create("test");
    hub = kv_hub_create(memory, clock, rtt_ns, bytes_per_s);
    for (uint32_t i = 0; i < ENDS; i++) {
        ends[i] = (end){.peer = 0};
        EXPECT(kv_transport_local_open(memory, hub, &ends[i].transport) == STATUS_OK);
        kv_transport_bind(ends[i].transport, &test_events, &ends[i]);
    }
    kv_transport *listener = ends[1].transport;
    EXPECT(listener->ops->listen(listener, "local:1", bound) == STATUS_OK);
}

static const clock_ops turned = {test_now, NULL};

static bool poll_of(uint32_t i)
{
    return ends[i].transport->ops->poll(ends[i].transport);
}

static void both(void)
{
    for (uint32_t n = 0; n < 4; n++)
        for (uint32_t i = 0; i < ENDS; i++)
            (void)poll_of(i);
}

static void dial(void)
{
    kv_transport *t = ends[0].transport;
    EXPECT(t->ops->dial(t, "local:1", &ends[0].peer) == STATUS_OK);
}

static void net_close(void)
{
    for (uint32_t i = 0; i < ENDS; i++)
        kv_transport_close(ends[i].transport);
    arena_destroy(memory);
}

static status send_bytes(uint32_t i, uint8_t word, uint32_t body_bytes, uint64_t cookie)
{
    static uint8_t body[65536];
    kv_message m = {&word, 1, body_bytes > 0 ? body : NULL, body_bytes, cookie};
    return ends[i].transport->ops->send(ends[i].transport, ends[i].peer, &m);
}

TEST(a_message_comes_once_in_order_and_its_body_is_given_back)
{
    net_open(turned, 0, 0);
    dial();
    both();
    EXPECT(ends[0].opened == 1 && ends[1].opened == 1);
    EXPECT(send_bytes(0, 1, 100, 71) == STATUS_OK);
    EXPECT(send_bytes(0, 2, 0, 72) == STATUS_OK);
    EXPECT(poll_of(1));
    EXPECT(ends[1].messages == 2 && ends[1].last[0] == 2);
    EXPECT(poll_of(0));
    EXPECT(ends[0].sent == 1 && ends[0].last_cookie == 71); /* one had no body */
    both();
    EXPECT(!poll_of(0) && !poll_of(1));
    EXPECT(ends[1].messages == 2);
    net_close();
}

TEST(a_window_of_128_messages_is_full_until_some_were_taken)
{
    net_open(turned, 0, 0);
    dial();
    both();
    for (uint32_t i = 0; i < 128; i++)
        EXPECT(send_bytes(0, (uint8_t)i, 8, i) == STATUS_OK);
    EXPECT(send_bytes(0, 1, 8, 1) == STATUS_BUSY);
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 64); /* others get their turn */
    EXPECT(send_bytes(0, 1, 8, 1) == STATUS_BUSY);
    (void)poll_of(0);
    EXPECT(send_bytes(0, 1, 8, 1) == STATUS_OK);
    net_close();
}

TEST(a_message_travels_half_a_round_trip_when_there_is_a_distance)
{
    net_open(turned, 10 * MS, 0);
    dial();
    both();
    EXPECT(send_bytes(0, 1, 100, 1) == STATUS_OK);
    now_ns += 5 * MS - 1;
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 0);
    now_ns += 1;
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 1);
    kv_hub_pace(hub, 0, 0);
    EXPECT(send_bytes(0, 1, 100, 1) == STATUS_OK);
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 2);
    net_close();
}

TEST(a_rate_spaces_messages_on_the_line_of_sender_and_receiver)
{
    enum { BODY = 10000 - 1 }; /* and a head of one byte: 10 ms at a megabyte a second */
    net_open(turned, 0, 1000 * 1000);
    dial();
    both();
    for (uint32_t i = 0; i < 3; i++)
        EXPECT(send_bytes(0, (uint8_t)i, BODY, i) == STATUS_OK);
    static const uint32_t at_ms[] = {10, 20, 30};
    uint64_t start = now_ns;
    for (uint32_t i = 0; i < 3; i++) {
        now_ns = start + at_ms[i] * (uint64_t)MS - 1;
        (void)poll_of(1);
        EXPECT_EQ_U64(ends[1].messages, i);
        now_ns += 1;
        (void)poll_of(1);
        EXPECT_EQ_U64(ends[1].messages, i + 1);
    }
    /* Two that come on different lines at the same time take the receiver's in turn. */
    net_close();
}

TEST(two_senders_share_the_line_of_who_receives)
{
    enum { BODY = 10000 - 1 };
    net_open(turned, 0, 1000 * 1000);
    end third = {.peer = 0};
    EXPECT(kv_transport_local_open(memory, hub, &third.transport) == STATUS_OK);
    kv_transport_bind(third.transport, &test_events, &third);
    dial();
    EXPECT(third.transport->ops->dial(third.transport, "local:1", &third.peer) == STATUS_OK);
    both();
    (void)third.transport->ops->poll(third.transport);
    EXPECT(third.opened == 1);
    static uint8_t body[BODY];
    kv_message m = {"x", 1, body, BODY, 0};
    EXPECT(send_bytes(0, 1, BODY, 1) == STATUS_OK);
    EXPECT(third.transport->ops->send(third.transport, third.peer, &m) == STATUS_OK);
    uint64_t start = now_ns;
    now_ns = start + 10 * MS;
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 1);
    now_ns = start + 20 * MS - 1;
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 1);
    now_ns += 1;
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].messages, 2);
    kv_transport_close(third.transport);
    net_close();
}

TEST(both_ends_hear_once_that_a_connection_is_over_and_who_hung_up_knows_why)
{
    net_open(turned, 0, 0);
    dial();
    both();
    EXPECT(send_bytes(1, 9, 50, 5) == STATUS_OK);
    ends[0].transport->ops->hang_up(ends[0].transport, ends[0].peer);
    EXPECT(send_bytes(0, 1, 0, 0) == STATUS_PEER_LOST);
    both();
    EXPECT(ends[0].closed == 1 && ends[0].why == STATUS_OK);
    EXPECT(ends[1].closed == 1 && ends[1].why == STATUS_PEER_LOST);
    EXPECT(ends[0].messages == 0 && ends[1].sent == 1); /* lost, and its body is back */
    EXPECT(send_bytes(1, 1, 0, 0) == STATUS_PEER_LOST);
    net_close();
}

TEST(a_dial_that_was_never_heard_of_ends_for_who_dialled)
{
    net_open(turned, 0, 0);
    dial();
    ends[0].transport->ops->hang_up(ends[0].transport, ends[0].peer);
    both();
    EXPECT(ends[0].closed == 1 && ends[0].opened == 0);
    EXPECT(ends[1].closed == 0 && ends[1].opened == 0);
    dial();
    kv_transport_close(ends[1].transport);
    (void)poll_of(0);
    (void)poll_of(0);
    EXPECT(ends[0].closed == 2 && ends[0].why == STATUS_PEER_LOST);
    kv_peer peer;
    EXPECT(ends[0].transport->ops->dial(ends[0].transport, "local:1", &peer) == STATUS_UNREACHABLE);
    kv_transport_close(ends[0].transport);
    arena_destroy(memory);
}

static atomic_bool in_event;

/* Hangs up once it sees that the other side closes. */
static void on_message_hang_up(void *owner, kv_peer peer, const kv_message *m)
{
    end *e = owner;
    kv_transport *t = e->transport;
    e->messages++;
    atomic_store(&in_event, true);
    while (t->ops->send(t, peer, m) != STATUS_PEER_LOST)
        continue; /* BUSY once the window is full */
    t->ops->hang_up(t, peer);
}

static void *poll_until_message(void *owner)
{
    while (((end *)owner)->messages == 0)
        (void)poll_of(1);
    return NULL;
}

TEST(a_side_may_hang_up_in_an_event_while_the_other_closes)
{
    static const kv_events hangs_up = {on_opened, on_message_hang_up, on_sent, on_closed, NULL};
    net_open(turned, 0, 0);
    kv_transport_bind(ends[1].transport, NULL, NULL);
    kv_transport_bind(ends[1].transport, &hangs_up, &ends[1]);
    kv_transport *t = ends[0].transport;
    kv_peer peer;
    EXPECT_OK(t->ops->dial(t, "local:1", &peer));
    both();
    EXPECT_OK(t->ops->send(t, peer, &(kv_message){.head = "12345678", .head_bytes = 8}));
    pthread_t thread;
    EXPECT(pthread_create(&thread, NULL, poll_until_message, &ends[1]) == 0);
    while (!atomic_load(&in_event))
        continue;
    t->ops->close(t);
    EXPECT(pthread_join(thread, NULL) == 0);
    (void)poll_of(1);
    EXPECT_EQ_U64(ends[1].closed, 1);
    ends[1].transport->ops->close(ends[1].transport);
    arena_destroy(memory);
}

TEST(places_of_connections_that_are_over_are_used_again_and_old_names_reach_nobody)
{
    kv_message m = {.head = "late", .head_bytes = 4};
    kv_peer old = 0;
    net_open(turned, 0, 0);
    for (uint32_t n = 0; n < 600; n++) {
        dial();
        both();
        if (n == 0) old = ends[0].peer;
        if (n > 0)
            EXPECT(ends[0].transport->ops->send(ends[0].transport, old, &m) == STATUS_PEER_LOST);
        EXPECT_EQ_U64(ends[0].opened, n + 1);
        ends[n % 2].transport->ops->hang_up(ends[n % 2].transport, ends[n % 2].peer);
        both();
        EXPECT_EQ_U64(ends[0].closed, n + 1);
        EXPECT_EQ_U64(ends[1].closed, n + 1);
    }
    for (uint32_t n = 0; n < 256; n++)
        dial();
    kv_peer peer;
    EXPECT(ends[0].transport->ops->dial(ends[0].transport, "local:1", &peer) == STATUS_BUSY);
    net_close();
}

static uint64_t wait_of(uint32_t i, int fd, uint64_t ns_max)
{
    uint64_t start = clock_now(&clock_monotonic);
    ends[i].transport->ops->wait(ends[i].transport, fd, ns_max);
    return clock_now(&clock_monotonic) - start;
}

TEST(sleep_ends_when_something_is_due_and_not_before)
{
    const uint64_t long_ns = UINT64_C(20000) * MS;
    net_open(clock_monotonic, 0, 0);
    EXPECT(wait_of(0, -1, 20 * MS) >= 20 * MS); /* nothing is under way */
    dial();
    EXPECT(wait_of(1, -1, long_ns) < long_ns / 2); /* an `opened` is to be told */
    both();
    EXPECT(wait_of(1, -1, 20 * MS) >= 20 * MS);
    EXPECT(send_bytes(0, 1, 10, 1) == STATUS_OK);
    EXPECT(wait_of(0, -1, 20 * MS) >= 20 * MS);    /* the sender has nothing to do */
    EXPECT(wait_of(1, -1, long_ns) < long_ns / 2); /* who receives has */
    (void)poll_of(1);
    EXPECT(wait_of(0, -1, long_ns) < long_ns / 2); /* a body came back */
    both();
    kv_hub_pace(hub, 100 * MS, 0);
    EXPECT(send_bytes(0, 1, 10, 1) == STATUS_OK);
    uint64_t slept = wait_of(1, -1, long_ns);
    EXPECT_MSG(slept >= 40 * MS && slept < long_ns / 2, "%llu ns", (unsigned long long)slept);
    ends[0].transport->ops->hang_up(ends[0].transport, ends[0].peer);
    EXPECT(wait_of(1, -1, long_ns) < long_ns / 2); /* a `closed` is to be told */
    net_close();
}

TEST(sleep_waits_for_the_line_that_another_message_takes)
{
    enum { BODY = 60000 - 1 }; /* 300 ms each at 200,000 bytes a second */
    const uint64_t long_ns = UINT64_C(20000) * MS;
    static uint8_t body[BODY];
    net_open(clock_monotonic, 0, 0);
    end third = {.peer = 0};
    EXPECT(kv_transport_local_open(memory, hub, &third.transport) == STATUS_OK);
    kv_transport_bind(third.transport, &test_events, &third);
    dial();
    EXPECT(third.transport->ops->dial(third.transport, "local:1", &third.peer) == STATUS_OK);
    both();
    (void)third.transport->ops->poll(third.transport);
    kv_hub_pace(hub, 0, 200 * 1000);
    kv_message m = {"x", 1, body, BODY, 0};
    EXPECT(send_bytes(0, 1, BODY, 1) == STATUS_OK);
    EXPECT(third.transport->ops->send(third.transport, third.peer, &m) == STATUS_OK);
    while (ends[1].messages == 0) {
        (void)wait_of(1, -1, long_ns);
        (void)poll_of(1);
    }
    EXPECT_EQ_U64(ends[1].messages, 1);
    EXPECT(wait_of(1, -1, long_ns) >= 100 * MS);
    kv_transport_close(third.transport);
    net_close();
}

TEST(sleep_ends_when_the_descriptor_that_was_given_is_readable)
{
    const uint64_t long_ns = UINT64_C(20000) * MS;
    int pipes[2];
    net_open(clock_monotonic, 0, 0);
    EXPECT(pipe(pipes) == 0);
    EXPECT(wait_of(0, pipes[0], 20 * MS) >= 20 * MS);
    EXPECT(write(pipes[1], "x", 1) == 1);
    EXPECT(wait_of(0, pipes[0], long_ns) < long_ns / 2);
    close(pipes[0]);
    close(pipes[1]);
    net_close();
}

/* ---- a network card ---------------------------------------------------------------------------
 */

enum { PLACES = 200, PLACE = 16384 };
static uint8_t places[PLACES][PLACE];
static uint32_t landed, elsewhere;

/* Bodies go to the place that the head names; heads are an index in words of 8 bytes. */
static void *land(void *owner, kv_peer peer, const kv_message *m)
{
    uint64_t place;
    (void)owner, (void)peer;
    EXPECT(m->head_bytes == sizeof place && m->body == NULL && m->body_bytes == PLACE);
    memcpy(&place, m->head, sizeof place);
    return place < PLACES ? places[place] : NULL;
}

static void on_message_landed(void *owner, kv_peer peer, const kv_message *m)
{
    uint64_t place;
    memcpy(&place, m->head, sizeof place);
    EXPECT_EQ_U64(place, ((end *)owner)->messages); /* in order */
    on_message(owner, peer, m);
    if (m->body_bytes == 0) return;
    if (place < PLACES && m->body == places[place])
        landed++;
    else
        elsewhere++;
    for (uint32_t i = 0; i < PLACE; i++)
        EXPECT(((const uint8_t *)m->body)[i] == (uint8_t)(place + 1));
}

static const kv_events landing_events = {on_opened, on_message_landed, on_sent, on_closed, land};

static uint8_t bodies[PLACES][PLACE]; /* lent until `sent` */

static void card_open(uint64_t rtt_ns)
{
    char bound[CLUSTER_ADDRESS_MAX];
    landed = elsewhere = 0;
    memset(places, 0, sizeof places);
    for (uint32_t i = 0; i < PLACES; i++)
        memset(bodies[i], (int)i + 1, PLACE);
    now_ns = UINT64_C(1000000000);
    memory = arena_create("test");
    hub = kv_hub_create(memory, turned, rtt_ns, 0);
    EXPECT_OK(kv_hub_card_start(hub, 2));
    for (uint32_t i = 0; i < ENDS; i++) {
        ends[i] = (end){.peer = 0};
        EXPECT_OK(kv_transport_local_open(memory, hub, &ends[i].transport));
        kv_transport_bind(ends[i].transport, i == 0 ? &landing_events : &test_events, &ends[i]);
    }
    EXPECT_OK(ends[1].transport->ops->listen(ends[1].transport, "local:1", bound));
    dial();
    both();
}

static void card_close(void)
{
    for (uint32_t i = 0; i < ENDS; i++)
        kv_transport_close(ends[i].transport);
    kv_hub_card_stop(hub);
    arena_destroy(memory);
}

static status send_place(uint64_t place)
{
    kv_message m = {&place, sizeof place, bodies[place], PLACE, place};
    return ends[1].transport->ops->send(ends[1].transport, ends[1].peer, &m);
}

TEST(a_card_writes_bodies_where_they_are_wanted_and_they_come_in_order_when_they_are_due)
{
    card_open(10 * MS);
    uint32_t sent = 0;
    while (ends[0].messages < PLACES) {
        while (sent < PLACES && send_place(sent) == STATUS_OK)
            sent++;
        (void)poll_of(0); /* posts them */
        uint32_t before = ends[0].messages;
        (void)poll_of(0);
        EXPECT_EQ_U64(ends[0].messages, before); /* not yet due */
        now_ns += 5 * MS;
        while (ends[0].messages < sent)
            (void)poll_of(0);
        (void)poll_of(1);
    }
    EXPECT(landed == PLACES && elsewhere == 0 && ends[1].sent == PLACES);
    card_close();
}

/* From the last on, while the card writes from the first on. */
static void recall_half(void)
{
    card_open(10 * MS);
    for (uint32_t i = 0; i < 100; i++)
        EXPECT_OK(send_place(i));
    (void)poll_of(0);
    for (uint32_t i = 99; i < 100; i -= 2) {
        ends[0].transport->ops->recall(ends[0].transport, places[i]);
        memset(places[i], 0xee, PLACE); /* somebody else's now */
    }
    ends[0].transport->ops->recall(ends[0].transport, places[150]); /* of which it knows nothing */
    now_ns += 5 * MS;
    while (ends[0].messages < 100)
        (void)poll_of(0);
    EXPECT(landed == 50 && elsewhere == 50);
    for (uint32_t i = 1; i < 100; i += 2)
        for (uint32_t k = 0; k < PLACE; k++)
            CHECK(places[i][k] == 0xee);
    card_close();
}

TEST(what_was_recalled_from_a_card_is_not_written_any_more)
{
    for (uint32_t round = 0; round < 30; round++)
        recall_half();
}

TEST(a_card_is_at_rest_once_a_connection_is_over_whoever_ends_it)
{
    for (uint32_t n = 0; n < 60; n++) {
        card_open(10 * MS);
        for (uint32_t i = 0; i < 100; i++)
            EXPECT_OK(send_place(i));
        (void)poll_of(0);
        if (n % 3 == 2) { /* the memory of who closes */
            kv_transport_close(ends[n / 3 % 2].transport);
        } else {
            ends[n % 3].transport->ops->hang_up(ends[n % 3].transport, ends[n % 3].peer);
            while (ends[n % 3].closed == 0)
                (void)poll_of(n % 3);
        }
        memset(places, 0xee, sizeof places);
        memset(bodies, 0xdd, sizeof bodies);
        if (n % 3 != 2)
            while (ends[1 - n % 3].closed == 0)
                (void)poll_of(1 - n % 3);
        for (uint32_t i = 0; i < 100; i++)
            EXPECT(places[i][0] == 0xee && places[i][PLACE - 1] == 0xee);
        EXPECT_EQ_U64(ends[0].messages, 0);
        if (n % 3 == 2) {
            kv_transport_close(ends[1 - n / 3 % 2].transport);
            kv_hub_card_stop(hub);
            arena_destroy(memory);
        } else {
            card_close();
        }
    }
}

TEST(an_address_has_one_listener_at_a_time)
{
    char bound[CLUSTER_ADDRESS_MAX];
    net_open(turned, 0, 0);
    EXPECT(ends[0].transport->ops->listen(ends[0].transport, "local:1", bound) == STATUS_IO);
    kv_transport_close(ends[1].transport);
    EXPECT(ends[0].transport->ops->listen(ends[0].transport, "local:1", bound) == STATUS_OK);
    EXPECT_EQ_STR(bound, "local:1");
    kv_transport_close(ends[0].transport);
    arena_destroy(memory);
}

TEST_MAIN()
