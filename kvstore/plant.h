/* kvstore/plant.h - bugs planted for the simulator, to see that it finds them.
 *
 * PLANT(NAME) is the constant 0 in everything that runs. The targets sim_NAME of tests/sim compile
 * the sources again with one of them 1; tests/sim/plant counts the seeds until each is found. */
#ifndef KVSTORE_PLANT_H
#define KVSTORE_PLANT_H

enum plant {
    PLANT_NONE,
    PLANT_ACK_UNVERIFIED,     /* a put is acknowledged whatever its digest says */
    PLANT_COMPLETION_LOST,    /* a put with an acknowledgement misses its deadline */
    PLANT_COMPLETION_TWICE,   /* a hedged request completes again */
    PLANT_CREDIT_LEAK,        /* a canceled get keeps a credit */
    PLANT_DIGEST_IGNORED,     /* replies are not compared with the digest asked for */
    PLANT_DROP_LIVE,          /* DROP takes another context of the same owner */
    PLANT_EPOCH_UNCHECKED,    /* frames of older epochs are obeyed */
    PLANT_FAILURE_HIDDEN,     /* a get that failed over is OK whatever it got */
    PLANT_HEDGE_TWICE,        /* a hedged ask counts as a copy of its own */
    PLANT_LATE_WRITE,         /* a late reply lands in the slot it was meant for */
    PLANT_LEASE_FORGOTTEN,    /* one heartbeat, then none */
    PLANT_OUT_COUNTED,        /* acknowledgements of nodes that left the map count */
    PLANT_REPLICA_UNVERIFIED, /* a block that is here is not verified before it counts again */
    PLANT_RESTART_IGNORED,    /* copies of a restarted node count */
    PLANT_SLOT_REUSED,        /* a slot is freed while a reply still reads it */
    PLANT_STAGE_EARLY,        /* a staging buffer is taken while a send still reads it */
};

#ifndef SHOAL_PLANT
#define SHOAL_PLANT PLANT_NONE
#endif
#define PLANT(NAME) (PLANT_##NAME == SHOAL_PLANT)

#endif
