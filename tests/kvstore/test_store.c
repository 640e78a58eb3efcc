/* Client and nodes together, over the network in this process, on a clock that the tests turn. */
#include "tests/kvstore/rig.h"

static void put_all(rig *r, uint64_t context, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        block_id id = rig_id(r, context, i);
        status s = rig_put(r, &id);
        EXPECT_MSG(s == STATUS_OK, "put %u: %s", i, status_name(s));
    }
}

TEST(what_was_put_is_read_back)
{
    rig *r = rig_create(&(rig_options){.nodes = 1, .replicas = 1});
    put_all(r, 1, 100);
    block_id id[100];
    status st[100];
    for (uint32_t i = 0; i < 100; i++) id[i] = rig_id(r, 1, i);
    kv_done done = rig_get(r, id, 100, KV_DEMAND, st);
    EXPECT(done.result == STATUS_OK);
    rig_check(r);
    rig_destroy(r);
}

TEST_MAIN()
