/* tests/test.h - what every test program is written with.
 *
 *     #include "tests/test.h"
 *     TEST(an_empty_ring_gives_nothing) { EXPECT(!ring_pop(r, &item)); }
 *     TEST_MAIN()
 *
 * A TEST registers itself; its name is a sentence that is true. cmocka runs them and catches a
 * crash of one, so that the others still run. Options of each program: --list, --single NAME,
 * --seed N. The last line printed is "N passed, N failed" (", N skipped" when there are any); exit
 * 0 when nothing failed, 1 when something did, 77 when every test was skipped.
 *
 * Threads: EXPECT only on the test's own thread (a failed one jumps out); other threads record what
 * they saw and the test compares after the join. */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "proto/base.h"

typedef struct test_case {
    const char *name;
    const char *file;
    int line;
    void (*run)(void);
    struct test_case *next;
} test_case;

void test_register(test_case *t);
int test_main(int argc, char **argv);

/* The run's seed: 1 unless --seed says otherwise, so that a green run stays green. Mix it with a
 * constant of the test when several tests draw. */
uint64_t test_seed(void);

/* A fresh directory under $TMPDIR or /tmp that the runner removes after the test. Valid until then.
 */
const char *test_dir(void);

/* Run f in a child process: true when it ended by abort(), as a failed CHECK does. The child's
 * output is thrown away. Not for programs with other threads running. */
bool test_aborts(void (*f)(void *arg), void *arg);

/* Fail (or skip) the running test with a sentence; neither returns. */
_Noreturn void test_fail(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void test_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define TEST(sentence)                                                                             \
    static void test_body_##sentence(void);                                                        \
    __attribute__((constructor)) static void test_register_##sentence(void)                        \
    {                                                                                              \
        static test_case self = {#sentence, __FILE__, __LINE__, test_body_##sentence, NULL};       \
        test_register(&self);                                                                      \
    }                                                                                              \
    static void test_body_##sentence(void)

#define TEST_MAIN()                                                                                \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        return test_main(argc, argv);                                                              \
    }

#define SKIP(...) test_skip(__VA_ARGS__)

#define EXPECT(cond)                                                                               \
    do {                                                                                           \
        if (!(cond)) test_fail(__FILE__, __LINE__, "%s is false", #cond);                          \
    } while (0)

/* As EXPECT, with a sentence of the test's own (printf) about the values. */
#define EXPECT_MSG(cond, ...)                                                                      \
    do {                                                                                           \
        if (!(cond)) test_fail(__FILE__, __LINE__, __VA_ARGS__);                                   \
    } while (0)

#define EXPECT_COMPARE_(type, format, got, op, want)                                               \
    do {                                                                                           \
        const type got_ = (got), want_ = (want);                                                   \
        if (!(got_ op want_))                                                                      \
            test_fail(__FILE__, __LINE__, "%s is " format ", expected %s %s = " format, #got,      \
                      got_, #op, #want, want_);                                                    \
    } while (0)

#define EXPECT_EQ_U64(got, want) EXPECT_COMPARE_(unsigned long long, "%llu", got, ==, want)
#define EXPECT_NE_U64(got, want) EXPECT_COMPARE_(unsigned long long, "%llu", got, !=, want)
#define EXPECT_LE_U64(got, want) EXPECT_COMPARE_(unsigned long long, "%llu", got, <=, want)
#define EXPECT_GE_U64(got, want) EXPECT_COMPARE_(unsigned long long, "%llu", got, >=, want)
#define EXPECT_EQ_X64(got, want) EXPECT_COMPARE_(unsigned long long, "0x%016llx", got, ==, want)
#define EXPECT_EQ_I64(got, want) EXPECT_COMPARE_(long long, "%lld", got, ==, want)
#define EXPECT_LE_F64(got, want) EXPECT_COMPARE_(double, "%.17g", got, <=, want)
#define EXPECT_GE_F64(got, want) EXPECT_COMPARE_(double, "%.17g", got, >=, want)

/* NaN is near nothing. */
#define EXPECT_NEAR(got, want, tolerance)                                                          \
    do {                                                                                           \
        const double got_ = (got), want_ = (want), tol_ = (tolerance);                             \
        if (!(fabs(got_ - want_) <= tol_))                                                         \
            test_fail(__FILE__, __LINE__, "%s is %.17g, expected %s = %.17g within %g", #got,      \
                      got_, #want, want_, tol_);                                                   \
    } while (0)

#define EXPECT_EQ_STR(got, want)                                                                   \
    do {                                                                                           \
        const char *got_ = (got), *want_ = (want);                                                 \
        if (got_ == NULL || want_ == NULL || strcmp(got_, want_) != 0)                             \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #got,                   \
                      got_ != NULL ? got_ : "(null)", want_ != NULL ? want_ : "(null)");           \
    } while (0)

#define EXPECT_HAS_STR(text, part)                                                                 \
    do {                                                                                           \
        const char *text_ = (text), *part_ = (part);                                               \
        if (text_ == NULL || strstr(text_, part_) == NULL)                                         \
            test_fail(__FILE__, __LINE__, "%s is \"%s\", expected it to contain \"%s\"", #text,    \
                      text_ != NULL ? text_ : "(null)", part_);                                    \
    } while (0)

/* Compare bytes; says where the first difference is. */
#define EXPECT_EQ_MEM(got, want, bytes) test_expect_mem(__FILE__, __LINE__, #got, got, want, bytes)
void test_expect_mem(const char *file, int line, const char *what, const void *got,
                     const void *want, size_t bytes);

#define EXPECT_STATUS(expr, want)                                                                  \
    do {                                                                                           \
        const status got_ = (expr), want_ = (want);                                                \
        if (got_ != want_)                                                                         \
            test_fail(__FILE__, __LINE__, "%s gave %s (%s), expected %s", #expr,                   \
                      status_name(got_), log_last_error(), status_name(want_));                    \
    } while (0)
#define EXPECT_OK(expr) EXPECT_STATUS(expr, STATUS_OK)

#endif
