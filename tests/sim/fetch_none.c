/* tests/sim/fetch_none.c - in place of fetch.c where the worker is not built. */
#include "tests/sim/sim.h"

void fetch_start(sim *s)
{
    CHECK(!s->profile.worker);
    s->fetch = NULL;
}

void fetch_step(sim *s)
{
    CHECK(s->fetch == NULL);
}

bool fetch_finish(sim *s)
{
    return s->fetch == NULL;
}

void fetch_end(sim *s)
{
    CHECK(s->fetch == NULL);
}
