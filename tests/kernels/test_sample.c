/* tests/kernels/test_sample.c - the distribution that sampling draws from, and that it depends on
 * seed and position alone. */
#include "kernels/kernels.h"
#include "tests/test.h"

enum { VOCAB = 10, DRAWS = 20000 };

static kern_backend *backend;
static kern_stream *stream;

static void open_backend(const char *isa)
{
    const kern_config config = {.backend = "cpu", .threads = 1, .isa = isa};
    EXPECT_OK(kern_backend_open(&config, &backend));
    EXPECT_OK(kern_stream_create(backend, &stream));
}

static void close_backend(void)
{
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

static kern_sampled sample(const float *logits, const kern_sampling *how, int32_t pos)
{
    kern_sampled out;
    const kern_sample_args a = {logits, how, &pos, &out, 1, VOCAB};
    EXPECT_OK(kern_sample(stream, &a));
    EXPECT_OK(kern_stream_sync(stream));
    return out;
}

/* Shares of DRAWS draws at ascending positions. */
static void shares(const float *logits, kern_sampling how, double *out)
{
    int count[VOCAB] = {0};
    how.seed = test_seed() + 77;
    for (int i = 0; i < DRAWS; i++)
        count[sample(logits, &how, i).token]++;
    for (int i = 0; i < VOCAB; i++)
        out[i] = (double)count[i] / DRAWS;
}

static const float logits[VOCAB] = {0.0f, 2.0f, 1.0f, -1.0f, 2.0f, 0.5f, -3.0f, 1.5f, 0.0f, -0.5f};

TEST(greedy_takes_the_smallest_id_among_equals_and_its_logprob)
{
    open_backend(NULL);
    const kern_sampling how = {.temperature = 0.0f, .top_p = 1.0f, .top_logprobs = 4};
    const kern_sampled s = sample(logits, &how, 3);
    double sum = 0.0;
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i]);
    EXPECT_EQ_I64(s.token, 1);
    EXPECT_NEAR((double)s.logprob, 2.0 - log(sum), 1e-6);
    const int32_t order[4] = {1, 4, 7, 2};
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ_I64(s.top_token[i], order[i]);
        EXPECT_NEAR((double)s.top_logprob[i], (double)logits[order[i]] - log(sum), 1e-6);
    }
    close_backend();
}

TEST(draws_follow_the_softmax_at_the_temperature)
{
    open_backend(NULL);
    double got[VOCAB], sum = 0.0;
    shares(logits, (kern_sampling){.temperature = 0.7f, .top_p = 1.0f}, got);
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i] / 0.7);
    for (int i = 0; i < VOCAB; i++)
        EXPECT_NEAR(got[i], exp((double)logits[i] / 0.7) / sum, 0.015);
    close_backend();
}

TEST(top_k_keeps_the_best_k)
{
    open_backend(NULL);
    double got[VOCAB];
    shares(logits, (kern_sampling){.temperature = 1.0f, .top_p = 1.0f, .top_k = 3}, got);
    const double sum = 2 * exp(2.0) + exp(1.5);
    EXPECT_NEAR(got[1], exp(2.0) / sum, 0.015);
    EXPECT_NEAR(got[4], exp(2.0) / sum, 0.015);
    EXPECT_NEAR(got[7], exp(1.5) / sum, 0.015);
    EXPECT_NEAR(got[1] + got[4] + got[7], 1.0, 1e-9);
    close_backend();
}

TEST(top_p_keeps_the_fewest_that_reach_it)
{
    open_backend(NULL);
    double got[VOCAB], sum = 0.0;
    for (int i = 0; i < VOCAB; i++)
        sum += exp((double)logits[i]);
    const double two = 2 * exp(2.0) / sum; /* the best two; a little more asks for a third */
    shares(logits, (kern_sampling){.temperature = 1.0f, .top_p = (float)two - 0.01f}, got);
    EXPECT_NEAR(got[1] + got[4], 1.0, 1e-9);
    shares(logits, (kern_sampling){.temperature = 1.0f, .top_p = (float)two + 0.01f}, got);
    EXPECT(got[7] > 0.1);
    EXPECT_NEAR(got[1] + got[4] + got[7], 1.0, 1e-9);
    shares(logits, (kern_sampling){.temperature = 1.0f, .top_p = 1e-6f}, got);
    EXPECT_NEAR(got[1], 1.0, 1e-9);
    close_backend();
}

TEST(a_draw_depends_on_seed_and_position_alone)
{
    open_backend(NULL);
    kern_sampling how = {.temperature = 1.0f, .top_p = 1.0f, .seed = 5};
    int differ_seed = 0, differ_position = 0;
    for (int32_t pos = 0; pos < 200; pos++) {
        const int32_t token = sample(logits, &how, pos).token;
        EXPECT_EQ_I64(sample(logits, &how, pos).token, token);
        how.seed = 6;
        differ_seed += sample(logits, &how, pos).token != token;
        how.seed = 5;
        differ_position += sample(logits, &how, pos + 1).token != token;
    }
    EXPECT(differ_seed > 50 && differ_position > 50);
    close_backend();
}

TEST(hostile_logits_still_give_a_token_of_the_vocabulary)
{
    open_backend(NULL);
    float odd[VOCAB];
    const kern_sampling how[4] = {{.temperature = 0.0f, .top_p = 1.0f},
                                  {.temperature = 1.0f, .top_p = 1.0f},
                                  {.temperature = 1e-30f, .top_p = 0.5f},
                                  {.temperature = 1.0f, .top_p = 0.9f, .top_k = 3}};
    const float values[3] = {NAN, -INFINITY, 3e38f};
    for (int v = 0; v < 3; v++)
        for (int h = 0; h < 4; h++) {
            for (int i = 0; i < VOCAB; i++)
                odd[i] = values[v];
            const kern_sampled all = sample(odd, &how[h], 9);
            EXPECT(all.token >= 0 && all.token < VOCAB);
            odd[4] = 1.0f;
            const kern_sampled one = sample(odd, &how[h], 9);
            EXPECT(one.token >= 0 && one.token < VOCAB);
            if (v < 2) EXPECT_EQ_I64(one.token, 4);
        }
    close_backend();
}

TEST_MAIN()
