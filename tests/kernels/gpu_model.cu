/* tests/kernels/gpu_model.cu - the ops around attention on the device against `ref`: embed,
 * rmsnorm, rope, swiglu, gate, linear, importance, append, compress, sample. */
#include "tests/kernels/gpu_checks.cuh"

#include <algorithm>

namespace
{

template <class A, class F>
void both(gpu_bench &b, const A &host, const A &gpu, F op, const char *name)
{
    expect_ok(op(b.ref, &host), name);
    expect_ok(op(b.gpu, &gpu), name);
    b.sync();
}

/* An op that left its rows in bf16: the float32 ones it leaves otherwise, rounded. */
void check_rounded(const char *what, const mirror<uint16_t> &got, const std::vector<float> &whole)
{
    std::vector<uint16_t> want(whole.size());
    for (size_t i = 0; i < want.size(); i++)
        want[i] = kern_f32_to_bf16(whole[i]);
    check_same(what, got.down(), want);
}

void embed_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t hidden)
{
    const uint32_t vocab = 300;
    mirror<uint16_t> table((size_t)vocab * hidden);
    mirror<int32_t> ids(rows);
    mirror<float> out((size_t)rows * hidden);
    fill_bf16(r, table.host, 1.0f);
    for (int32_t &id : ids.host)
        id = (int32_t)r.below(vocab);
    table.up(), ids.up(), out.poison();
    kern_embed_args h = {
        table.host.data(), ids.host.data(), out.host.data(), rows, hidden, vocab, 1.5f};
    kern_embed_args d = {table.device, ids.device, out.device, rows, hidden, vocab, 1.5f};
    both(b, h, d, kern_embed, "embed");
    check_same("embed", out.down(), out.host);
}

void rmsnorm_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t hidden)
{
    mirror<float> x((size_t)rows * hidden), out(x.host.size());
    mirror<uint16_t> weight(hidden);
    fill_normal(r, x.host, 3.0f);
    fill_bf16(r, weight.host, 1.0f);
    x.up(), weight.up(), out.poison();
    kern_rmsnorm_args h = {x.host.data(), weight.host.data(), out.host.data(), rows, hidden, 1e-6f,
                           nullptr};
    kern_rmsnorm_args d = {x.device, weight.device, out.device, rows, hidden, 1e-6f, nullptr};
    both(b, h, d, kern_rmsnorm, "rmsnorm");
    const std::vector<float> whole = out.down();
    check_close("rmsnorm", whole, out.host, 1e-6);
    mirror<uint16_t> narrow(whole.size());
    narrow.poison();
    d.out = nullptr, d.out_bf16 = narrow.device;
    expect_ok(kern_rmsnorm(b.gpu, &d), "rmsnorm");
    b.sync();
    check_rounded("rmsnorm in bf16", narrow, whole);
}

void rope_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t heads, uint32_t dim)
{
    const uint32_t tokens = 500;
    const uint64_t stride = (uint64_t)heads * dim + 32;
    mirror<float> x(rows * stride), cosine((size_t)tokens * dim / 2), sine(cosine.host.size());
    mirror<int32_t> pos(rows);
    fill_normal(r, x.host, 1.0f), fill_normal(r, cosine.host, 1.0f),
        fill_normal(r, sine.host, 1.0f);
    for (int32_t &p : pos.host)
        p = (int32_t)r.below(tokens);
    x.up(), cosine.up(), sine.up(), pos.up();
    kern_rope_args h = {
        x.host.data(), pos.host.data(), cosine.host.data(), sine.host.data(), rows, heads, dim,
        tokens,        stride};
    kern_rope_args d = {x.device, pos.device, cosine.device, sine.device, rows,
                        heads,    dim,        tokens,        stride};
    both(b, h, d, kern_rope, "rope");
    check_close("rope", x.down(), x.host, 1e-6);
}

void swiglu_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t ffn)
{
    const uint64_t stride = 2 * (uint64_t)ffn + 8;
    mirror<float> in(rows * stride), out((size_t)rows * ffn);
    fill_normal(r, in.host, 4.0f);
    in.up(), out.poison();
    kern_swiglu_args h = {in.host.data(), in.host.data() + ffn, out.host.data(), stride, rows, ffn,
                          nullptr};
    kern_swiglu_args d = {in.device, in.device + ffn, out.device, stride, rows, ffn, nullptr};
    both(b, h, d, kern_swiglu, "swiglu");
    const std::vector<float> whole = out.down();
    check_close("swiglu", whole, out.host, 1e-6);
    mirror<uint16_t> narrow(whole.size());
    narrow.poison();
    d.out = nullptr, d.out_bf16 = narrow.device;
    expect_ok(kern_swiglu(b.gpu, &d), "swiglu");
    b.sync();
    check_rounded("swiglu in bf16", narrow, whole);
}

/* A third of a model's gates, each row's after another's, with and without something to add to. */
void gate_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t heads, uint32_t dim)
{
    const uint64_t stride = 3 * (uint64_t)heads;
    mirror<float> x((size_t)rows * heads * dim), gate(rows * stride), add(x.host.size());
    fill_normal(r, x.host, 1.0f), fill_normal(r, gate.host, 3.0f), fill_normal(r, add.host, 1.0f);
    x.up(), gate.up(), add.up();
    kern_gate_args h = {x.host.data(), gate.host.data() + heads, stride, rows, heads, dim, nullptr,
                        nullptr};
    kern_gate_args d = {x.device, gate.device + heads, stride, rows, heads, dim, nullptr, nullptr};
    both(b, h, d, kern_gate, "gate");
    check_close("gate", x.down(), x.host, 1e-6);
    const std::vector<float> before = x.host;
    mirror<uint16_t> narrow(x.host.size());
    x.up(), narrow.poison();
    h.add = add.host.data(), d.add = add.device;
    kern_gate_args rounded = d;
    rounded.out_bf16 = narrow.device;
    expect_ok(kern_gate(b.gpu, &rounded), "gate");
    b.sync();
    check_same("gate in bf16 leaves x alone", x.down(), before);
    both(b, h, d, kern_gate, "gate");
    check_close("gate, added to what is there", x.down(), x.host, 1e-6);
    check_rounded("gate in bf16", narrow, x.down());
    check_same("gate: what it adds to is left alone", add.down(), add.host);
}

/* Bits of u may differ by one rounding where a sum falls near a tie. */
void importance_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t kv_heads, uint32_t dim)
{
    const uint32_t width = kv_heads * dim;
    mirror<float> v((size_t)rows * width);
    mirror<uint16_t> a(kv_heads), delta((size_t)kv_heads * width), out((size_t)rows * kv_heads);
    fill_normal(r, v.host, 1.0f);
    fill_bf16(r, a.host, 1.0f), fill_bf16(r, delta.host, 0.3f);
    v.up(), a.up(), delta.up(), out.poison();
    kern_importance_args h = {v.host.data(), a.host.data(), delta.host.data(), out.host.data(),
                              width,         rows,          kv_heads,          dim};
    kern_importance_args d = {v.device, a.device, delta.device, out.device,
                              width,    rows,     kv_heads,     dim};
    both(b, h, d, kern_importance, "importance");
    const std::vector<uint16_t> got = out.down();
    bool near = true;
    size_t differ = 0;
    for (size_t i = 0; i < got.size(); i++) {
        near &= abs((int)got[i] - (int)out.host[i]) <= 1;
        differ += got[i] != out.host[i];
    }
    check_that(near && differ * 50 <= got.size(), "importance: %zu of %zu are one rounding off",
               differ, got.size());
    h.a = d.a = nullptr;
    both(b, h, d, kern_importance, "importance");
    check_same("importance without A is 0", out.down(), out.host);
}

void tokens_case(gpu_bench &b, random_source &r, uint32_t window, uint32_t stride_tokens,
                 bool values)
{
    const uint32_t kv_heads = 2, dim = 64, tokens = 700, seqs = 2, rows = 5;
    const uint64_t stride = kv_heads * dim;
    scene s;
    s.window = window, s.stride = stride_tokens, s.values = values;
    make_scene(s, r, seqs, 4, kv_heads, dim, tokens);
    mirror<float> k(400 * stride), v(400 * stride);
    mirror<uint16_t> u(400 * kv_heads), pool((size_t)6 * 2 * KERN_BLOCK * dim);
    mirror<int32_t> seq(400), pos(400), slot(400 * kv_heads);
    bool same = true;
    uint32_t at = 0;
    for (uint32_t count :
         {1u, 31u, 5u, 300u, 40u}) { /* chunks of sequence 1; the last one repeats */
        if (count == 40) at -= 40;
        fill_normal(r, k.host, 1.0f), fill_bf16(r, u.host, 1.0f), fill_normal(r, v.host, 1.0f);
        for (uint32_t i = 0; i < count; i++)
            seq.host[i] = 1, pos.host[i] = (int32_t)(at + i);
        at += count;
        k.up(), v.up(), u.up(), seq.up(), pos.up();
        kern_compress_args h = {k.host.data(), u.host.data(), seq.host.data(), pos.host.data(),
                                s.view(false), stride,        count,           v.host.data()};
        kern_compress_args d = {k.device,     u.device, seq.device, pos.device,
                                s.view(true), stride,   count,      v.device};
        both(b, h, d, kern_compress, "compress");
        same &= s.kc.down() == s.kc.host && s.uc.down() == s.uc.host && s.u.down() == s.u.host &&
                s.ring.down() == s.ring.host;
        same &= !values || (s.vc.down() == s.vc.host && s.value_ring.down() == s.value_ring.host);
    }
    check_that(same, "compress, windows of %u: ring, u, Kc, uc%s as ref, also a repeated chunk",
               window, values ? ", ring of values and Vc" : "");

    fill_normal(r, k.host, 1.0f), fill_normal(r, v.host, 1.0f);
    for (uint32_t i = 0; i < rows * kv_heads; i++)
        slot.host[i] = (int32_t)(i % 7) - 1;
    for (uint32_t i = 0; i < rows; i++)
        pos.host[i] = (int32_t)(60 + i);
    k.up(), v.up(), slot.up(), pos.up(), pool.up();
    kern_append_args h = {k.host.data(),
                          v.host.data(),
                          slot.host.data(),
                          pos.host.data(),
                          (uint8_t *)pool.host.data(),
                          stride,
                          rows,
                          kv_heads,
                          dim};
    kern_append_args d = {k.device, v.device, slot.device, pos.device, (uint8_t *)pool.device,
                          stride,   rows,     kv_heads,    dim};
    both(b, h, d, kern_append, "append");
    check_same("append", pool.down(), pool.host);
}

/* The product `a` of rows that are rounded already: `whole`, as of the same in float32. */
void linear_narrow(gpu_bench &b, kern_linear_args a, const std::vector<float> &x,
                   const std::vector<float> &whole)
{
    const uint32_t n = a.weight->n, k = a.weight->k, rows = a.rows;
    mirror<uint16_t> narrow(x.size());
    mirror<float> out(whole.size());
    for (size_t i = 0; i < x.size(); i++)
        narrow.host[i] = kern_f32_to_bf16(x[i]);
    narrow.up();
    a.out = out.device, a.x = nullptr, a.x_bf16 = narrow.device;
    bool same = true;
    for (uint32_t count = 1; count < 2 * rows; count *= 2) {
        out.poison();
        a.rows = std::min(count, rows);
        expect_ok(kern_linear(b.gpu, &a), "linear");
        b.sync();
        same &= memcmp(out.down().data(), whole.data(), (size_t)a.rows * n * 4) == 0;
    }
    check_that(same, "linear %u x %u: rows in bf16 have the bits of the same in float32", n, k);
    a.x_bf16++;
    check_that(kern_linear(b.gpu, &a) == STATUS_INVALID,
               "linear: rows in bf16 that begin anywhere are refused");
}

/* Everything that qkv writes. */
struct qkv_bits {
    std::vector<float> x;
    std::vector<uint16_t> out, kc, uc, u, ring, vc, value_ring;
    bool operator==(const qkv_bits &o) const
    {
        return memcmp(x.data(), o.x.data(), x.size() * sizeof(float)) == 0 && out == o.out &&
               kc == o.kc && uc == o.uc && u == o.u && ring == o.ring && vc == o.vc &&
               value_ring == o.value_ring;
    }
};

/* rope, importance and compress in one op and one after the other. `summarised` rows are
 * compressed; every third row completes a window, where its position allows one. */
void qkv_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t summarised, uint32_t heads,
              uint32_t kv_heads, uint32_t dim, uint32_t window, uint32_t step, bool values)
{
    const uint32_t tokens = 700, all = heads + kv_heads;
    const uint64_t stride = (uint64_t)(all + kv_heads) * dim;
    scene s;
    s.window = window, s.stride = step, s.values = values;
    make_scene(s, r, rows, heads, kv_heads, dim, tokens);
    mirror<float> x(rows * stride), cosine((size_t)tokens * dim / 2), sine(cosine.host.size());
    mirror<uint16_t> a(kv_heads), delta((size_t)kv_heads * kv_heads * dim), u(rows * kv_heads);
    for (uint32_t i = 0; i < rows; i++)
        s.row_pos.host[i] =
            (int32_t)(i % 3 == 0 ? window - 1 + step * r.below(4) : r.below(tokens));
    fill_normal(r, x.host, 1.0f), fill_normal(r, cosine.host, 1.0f);
    fill_normal(r, sine.host, 1.0f), fill_bf16(r, a.host, 1.0f), fill_bf16(r, delta.host, 0.3f);
    s.row_pos.up(), cosine.up(), sine.up(), a.up(), delta.up();
    kern_qkv_args q = {};
    q.rope = {x.device, s.row_pos.device, cosine.device, sine.device, rows, all,
              dim,      tokens,           stride};
    q.importance = {
        x.device + all * dim, a.device, delta.device, u.device, stride, rows, kv_heads, dim};
    q.compress = {x.device + heads * dim, u.device, s.row_seq.device, s.row_pos.device,
                  s.view(true),           stride,   summarised,       x.device + all * dim};
    auto run = [&](bool joined) {
        x.up(), s.kc.up(), s.uc.up(), s.u.up(), s.ring.up(), u.poison();
        if (values) s.vc.up(), s.value_ring.up();
        if (joined) {
            expect_ok(kern_qkv(b.gpu, &q), "qkv");
        } else {
            expect_ok(kern_rope(b.gpu, &q.rope), "rope");
            expect_ok(kern_importance(b.gpu, &q.importance), "importance");
            if (summarised > 0) expect_ok(kern_compress(b.gpu, &q.compress), "compress");
        }
        b.sync();
        qkv_bits bits = {x.down(),   u.down(),      s.kc.down(), s.uc.down(),
                         s.u.down(), s.ring.down(), {},          {}};
        if (values) bits.vc = s.vc.down(), bits.value_ring = s.value_ring.down();
        return bits;
    };
    check_that(run(true) == run(false),
               "qkv of %u rows, %u of them summarised, windows of %u%s: "
               "bits as of its parts",
               rows, summarised, window, values ? ", with values" : "");
    q.importance.a = nullptr;
    check_that(run(true) == run(false), "qkv without A: bits as of its parts");
    q.compress.k += dim;
    check_that(summarised == 0 || kern_qkv(b.gpu, &q) == STATUS_INVALID,
               "qkv of rows that do not belong together is refused");
}

/* Against products of the rounded activations in double; then the bits of rows elsewhere. */
void linear_case(gpu_bench &b, random_source &r, uint32_t n0, uint32_t n1, uint32_t k,
                 uint32_t rows)
{
    const uint32_t n = n0 + n1;
    mirror<uint16_t> w((size_t)n * k);
    mirror<float> x((size_t)rows * k), residual((size_t)rows * n), out(residual.host.size());
    mirror<float> other(out.host.size());
    fill_bf16(r, w.host, 0.05f);
    fill_normal(r, x.host, 1.0f), fill_normal(r, residual.host, 1.0f);
    w.up(), x.up(), residual.up(), out.poison();
    const kern_matrix parts[2] = {{w.host.data(), n0}, {w.host.data() + (size_t)n0 * k, n1}};
    kern_weight *packed = nullptr;
    expect_ok(kern_weight_pack(b.gpu_backend, parts, n1 ? 2 : 1, k, &packed), "pack");
    kern_linear_args a = {};
    a.weight = packed, a.x = x.device, a.residual = residual.device, a.out = out.device;
    a.x_stride = k, a.out_stride = n, a.rows = rows, a.scale = 0.5f;
    expect_ok(kern_linear(b.gpu, &a), "linear");
    b.sync();
    const std::vector<float> got = out.down();
    const uint32_t step = rows > 8 ? rows / 8 : 1; /* a few rows, all columns */
    std::vector<float> some, ref;
    for (uint32_t i = 0; i < rows; i += step)
        for (uint32_t c = 0; c < n; c++) {
            double sum = 0.0;
            for (uint32_t j = 0; j < k; j++)
                sum += (double)kern_bf16_to_f32(kern_f32_to_bf16(x.host[(size_t)i * k + j])) *
                       (double)kern_bf16_to_f32(w.host[(size_t)c * k + j]);
            ref.push_back((float)((double)residual.host[(size_t)i * n + c] + 0.5 * sum));
            some.push_back(got[(size_t)i * n + c]);
        }
    char text[120];
    snprintf(text, sizeof text, "linear %u x %u, %u rows", n, k, rows);
    check_close(text, some, ref, 5e-6);

    bool same = true; /* in batches of other sizes, at other places */
    for (uint32_t count : {1u, 2u, 3u, 7u, 16u, 17u, 33u, 64u, 65u, 128u, 200u}) {
        if (count > rows) break;
        const uint32_t first = r.below(rows - count + 1);
        other.poison();
        kern_linear_args part = a;
        part.x += (size_t)first * k, part.residual += (size_t)first * n;
        part.out = other.device, part.rows = count;
        expect_ok(kern_linear(b.gpu, &part), "linear");
        b.sync();
        const std::vector<float> now = other.down();
        const bool alike = memcmp(now.data(), &got[(size_t)first * n], (size_t)count * n * 4) == 0;
        if (!alike) printf("        %u rows from %u differ\n", count, first);
        same &= alike;
    }
    check_that(same, "linear %u x %u: bits do not depend on the batch", n, k);
    other.poison();
    kern_linear_args part = a;
    part.out = other.device, part.columns = n0;
    expect_ok(kern_linear(b.gpu, &part), "linear");
    b.sync();
    const std::vector<float> now = other.down();
    same = true;
    for (uint32_t i = 0; i < rows; i++)
        same &= memcmp(&now[(size_t)i * n], &got[(size_t)i * n], n0 * sizeof(float)) == 0;
    check_that(same, "linear %u x %u: its first %u columns alone have the same bits", n, k, n0);
    linear_narrow(b, a, x.host, got);
    kern_weight_free(packed);
}

void sample_case(gpu_bench &b, random_source &r, uint32_t vocab)
{
    const uint32_t rows = 24;
    mirror<float> logits((size_t)rows * vocab);
    mirror<kern_sampling> how(rows);
    mirror<int32_t> pos(rows);
    mirror<kern_sampled> out(rows);
    fill_normal(r, logits.host, 3.0f);
    for (float &x : logits.host)
        x = std::round(x * 16.0f) / 16.0f; /* equal values at the top */
    for (uint32_t i = 0; i < rows; i++) {
        kern_sampling one = {0.0f, 1.0f, 0, i % 21, r.next()};
        if (i % 4 != 0) one.temperature = 0.5f + 0.1f * (float)(i % 7);
        if (i % 4 == 2) one.top_k = 1 + r.below(60);
        if (i % 4 == 3) one.top_p = 0.6f, one.top_k = i % 8 == 3 ? 40 : 0, one.temperature = 0.6f;
        how.host[i] = one;
        pos.host[i] = (int32_t)r.below(100000);
    }
    logits.up(), how.up(), pos.up(), out.poison();
    kern_sample_args h = {
        logits.host.data(), how.host.data(), pos.host.data(), out.host.data(), rows, vocab};
    kern_sample_args d = {logits.device, how.device, pos.device, out.device, rows, vocab};
    both(b, h, d, kern_sample, "sample");
    const std::vector<kern_sampled> got = out.down();
    bool tokens = true, tops = true;
    double worst = 0.0;
    for (uint32_t i = 0; i < rows; i++) {
        const kern_sampled &g = got[i], &e = out.host[i];
        tokens &= g.token == e.token;
        worst = std::max(worst, (double)fabsf(g.logprob - e.logprob));
        for (uint32_t t = 0; t < how.host[i].top_logprobs && t < vocab; t++) {
            tops &= g.top_token[t] == e.top_token[t];
            worst = std::max(worst, (double)fabsf(g.top_logprob[t] - e.top_logprob[t]));
        }
    }
    check_that(tokens && tops && worst < 2e-5,
               "sample, vocabulary %u: tokens as ref, log-probabilities within %.2g", vocab, worst);
}

/* Small ops that each need all of the one before: a kernel that did not wait for that one, or wrote
 * over what it still read, shows in the bits. in_bf16: so the product's rows come to it. */
std::vector<float> run_chain(gpu_bench &b, random_source r, uint32_t rows, uint32_t rounds,
                             bool alone, bool in_bf16)
{
    const uint32_t hidden = 512, heads = 8, dim = hidden / heads, ffn = hidden / 2, tokens = 500;
    mirror<float> x((size_t)rows * hidden), norm(x.host.size()), mid((size_t)rows * ffn);
    mirror<float> cosine((size_t)tokens * dim / 2), sine(cosine.host.size());
    mirror<uint16_t> weight(hidden), w((size_t)hidden * ffn);
    mirror<uint16_t> narrow(mid.host.size());
    mirror<int32_t> pos(rows);
    fill_normal(r, x.host, 1.0f), fill_normal(r, cosine.host, 1.0f);
    fill_normal(r, sine.host, 1.0f);
    fill_bf16(r, weight.host, 1.0f), fill_bf16(r, w.host, 0.1f);
    for (int32_t &p : pos.host)
        p = (int32_t)r.below(tokens);
    x.up(), cosine.up(), sine.up(), weight.up(), pos.up(), norm.poison(), mid.poison(),
        narrow.poison();
    const kern_matrix matrix = {w.host.data(), hidden};
    kern_linear_args out = {};
    kern_weight *packed = nullptr;
    expect_ok(kern_weight_pack(b.gpu_backend, &matrix, 1, ffn, &packed), "pack");
    out.weight = packed, out.x = mid.device, out.out = x.device;
    out.x_stride = ffn, out.out_stride = hidden, out.rows = rows, out.scale = 1.0f;
    const kern_rmsnorm_args first = {x.device, weight.device, norm.device, rows,
                                     hidden,   1e-6f,         nullptr};
    const kern_rope_args turn = {norm.device, pos.device, cosine.device, sine.device, rows,
                                 heads,       dim,        tokens,        hidden};
    const kern_swiglu_args both = {norm.device, norm.device + ffn, mid.device, hidden, rows, ffn,
                                   nullptr};
    kern_gate_args gate = {mid.device, norm.device, hidden, rows, ffn / dim, dim, nullptr, nullptr};
    if (in_bf16) gate.out_bf16 = narrow.device, out.x_bf16 = narrow.device;
    for (uint32_t i = 0; i < rounds; i++) {
        for (uint32_t op = 0; op < 5; op++) {
            status done = op == 0   ? kern_rmsnorm(b.gpu, &first)
                          : op == 1 ? kern_rope(b.gpu, &turn)
                          : op == 2 ? kern_swiglu(b.gpu, &both)
                          : op == 3 ? kern_gate(b.gpu, &gate)
                                    : kern_linear(b.gpu, &out);
            expect_ok(done, "chain");
            if (alone) b.sync();
        }
    }
    b.sync();
    kern_weight_free(packed);
    return x.down();
}

void chain_case(gpu_bench &b, random_source &r, uint32_t rows, uint32_t rounds)
{
    const std::vector<float> alone = run_chain(b, r, rows, rounds, true, false);
    bool finite = true, same = true;
    for (float v : alone)
        finite &= std::isfinite(v);
    for (int i = 0; i < 6; i++)
        same &= memcmp(run_chain(b, r, rows, rounds, false, i % 2).data(), alone.data(),
                       alone.size() * 4) == 0;
    check_that(finite && same, "%u ops of %u rows back to back: bits as one at a time", 5 * rounds,
               rows);
}

} // namespace

void check_model(gpu_bench &b, random_source &r, bool small)
{
    embed_case(b, r, 3, 100);
    rmsnorm_case(b, r, 3, 1000);
    rope_case(b, r, 3, 5, 64);
    swiglu_case(b, r, 3, 333);
    importance_case(b, r, 40, 2, 64);
    gate_case(b, r, 5, 6, 64);
    tokens_case(b, r, 32, 16, false);
    tokens_case(b, r, 128, 128, false);
    tokens_case(b, r, 16, 16, true);
    tokens_case(b, r, 32, 16, true);
    sample_case(b, r, 1000);
    linear_case(b, r, 96, 32, 128, 5);
    chain_case(b, r, 3, 10);
    qkv_case(b, r, 3, 2, 4, 2, 64, 32, 16, false);
    qkv_case(b, r, 5, 5, 6, 3, 128, 16, 16, true);
    if (small) return;
    qkv_case(b, r, 45, 45, 32, 2, 128, 32, 16, false);
    qkv_case(b, r, 300, 64, 8, 8, 64, 128, 128, false);
    qkv_case(b, r, 130, 130, 16, 1, 128, 32, 16, true);
    qkv_case(b, r, 33, 0, 12, 4, 256, 64, 64, true);
    chain_case(b, r, 64, 200);
    chain_case(b, r, 2000, 200);
    rmsnorm_case(b, r, 64, 4096);
    rope_case(b, r, 64, 34, 128);
    swiglu_case(b, r, 64, 16384);
    gate_case(b, r, 64, 32, 128);
    gate_case(b, r, 40000, 1, 64);
    importance_case(b, r, 500, 2, 128);
    sample_case(b, r, 73448);
    linear_case(b, r, 4096, 512, 4096, 200);
    linear_case(b, r, 4096, 0, 4096, 200);
    linear_case(b, r, 512, 512, 4096, 200);
    linear_case(b, r, 704, 704, 256, 200);
    linear_case(b, r, 256, 0, 704, 200);
}
