/* The rules of tests/tidy.c over the tree that this was built from. */
#include "tests/test.h"

#include "tests/tidy.h"

static tidy_report report;

TEST(the_tree_keeps_every_rule)
{
    arena *a = arena_create("tidy");
    EXPECT_OK(tidy_tree(a, TEST_SOURCE_DIR, &report));
    arena_destroy(a);
    for (uint32_t i = 0; i < report.count && i < TIDY_FINDINGS_MAX; i++) {
        const tidy_finding *f = &report.finding[i];
        print_error("%s:%u: %s: %s\n", f->file, f->line, f->rule, f->text);
    }
    EXPECT_GE_U64(report.files, 50);
    EXPECT_EQ_U64(report.count, 0);
}

TEST_MAIN()
