// What a processor does between the matrix products of a transformer, each piece in one pass over memory: normalisation,
// attention with rotary positions over rows and trees, attention beside a cache, the gated activation, log-probabilities,
// and the draw of a token. Called from __init__.py, which says what each is for; tests compare each with torch.
//
// Arithmetic is in fp32 (sums that choose a token in fp64); T is what lies in memory, float or bf16. Compiled for the
// machine at hand by build.py. Threads are OpenMP's, the ones that torch uses.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vec __attribute__((vector_size(W * 4)));
typedef int32_t ivec __attribute__((vector_size(W * 4)));
typedef uint32_t uvec __attribute__((vector_size(W * 4)));
typedef uint16_t hvec __attribute__((vector_size(W * 2)));
struct bf16 { uint16_t bits; };
using i64 = int64_t;

// ---- numbers -------------------------------------------------------------------------------------------------------

static inline vec all(float x) { return x - vec{}; }
static inline vec load(const float* p) { vec x; memcpy(&x, p, sizeof x); return x; }
static inline vec load(const bf16* p) {
    hvec h; memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}
static inline void store(float* p, vec x) { memcpy(p, &x, sizeof x); }
static inline void store(bf16* p, vec x) {  // to the nearest, ties to even
    uvec u = (uvec)x;
    hvec h = __builtin_convertvector((u + 0x7FFF + ((u >> 16) & 1)) >> 16, hvec);
    memcpy(p, &h, sizeof h);
}
static inline float get(float x) { return x; }
static inline float get(bf16 x) { uint32_t u = (uint32_t)x.bits << 16; float f; memcpy(&f, &u, 4); return f; }
static inline void put(float& to, float x) { to = x; }
static inline void put(bf16& to, float x) {
    uint32_t u; memcpy(&u, &x, 4);
    to.bits = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
}
static inline float sum(vec x) { float s = 0; for (int i = 0; i < W; i++) s += x[i]; return s; }
static inline vec larger(vec a, vec b) { return a > b ? a : b; }

// e^x to two units in the last place, exactly 0 below -87; NaN stays NaN. x = n ln 2 + r, and 2^n goes into the exponent.
static inline vec exponential(vec x) {
    vec c = x < -87.0f ? all(-87.0f) : x;
    c = c > 88.0f ? all(88.0f) : c;
    const vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, held in the low bits
    vec t = c * 1.44269504f + magic, n = t - magic;
    vec r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vec y = (vec)((ivec)p + ((ivec)t << 23));
    return x < -87.0f ? vec{} : y;
}
static inline float exponential(float x) { return exponential(all(x))[0]; }

static inline i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// ---- normalisation: y = x / sqrt(mean x² + eps) * w, (n, d) ------------------------------------------------------------

template <class X, class Y>
static void rms_norm(const X* x, const float* w, i64 n, i64 d, float eps, Y* y, float* scale) {
    #pragma omp parallel for if (n * d > 8192)
    for (i64 i = 0; i < n; i++) {
        const X* a = x + i * d;
        vec squares = {};
        float s = 0;
        i64 j = 0;
        for (; j + W <= d; j += W) { vec v = load(a + j); squares += v * v; }
        for (; j < d; j++) s += get(a[j]) * get(a[j]);
        float r = 1 / std::sqrt((s + sum(squares)) / d + eps);
        if (scale) scale[i] = r;
        for (j = 0; j + W <= d; j += W) store(y + i * d + j, load(a + j) * r * load(w + j));
        for (; j < d; j++) put(y[i * d + j], get(a[j]) * r * w[j]);
    }
}

// dx = r (w dy - x r² mean(x w dy)); dw = Σ dy x r, summed for each block of rows into (blocks, d).
template <class X, class Y>
static void rms_norm_backward(const X* x, const float* w, const float* scale, const Y* dy, i64 n, i64 d, X* dx,
                              float* dw, i64 blocks) {
    #pragma omp parallel for
    for (i64 b = 0; b < blocks; b++)
        for (i64 i = n * b / blocks; i < n * (b + 1) / blocks; i++) {
            const X* a = x + i * d;
            const Y* g = dy + i * d;
            float r = scale[i], s = 0, *part = dw + b * d;
            vec dots = {};
            i64 j = 0;
            for (; j + W <= d; j += W) dots += load(a + j) * load(w + j) * load(g + j);
            for (; j < d; j++) s += get(a[j]) * w[j] * get(g[j]);
            float c = r * r * r * (s + sum(dots)) / d;
            for (j = 0; j + W <= d; j += W) {
                vec v = load(a + j), u = load(g + j);
                store(dx + i * d + j, u * load(w + j) * r - v * c);
                store(part + j, load(part + j) + u * v * r);
            }
            for (; j < d; j++) {
                put(dx[i * d + j], get(g[j]) * w[j] * r - get(a[j]) * c);
                part[j] += get(g[j]) * get(a[j]) * r;
            }
        }
}

// ---- gated activation: h = g σ(g) u, n numbers ----------------------------------------------------------------------

template <class T>
static void swiglu(const T* g, const T* u, i64 n, T* h) {
    #pragma omp parallel for if (n > 8192)
    for (i64 i = 0; i < n / W; i++) {
        vec a = load(g + i * W);
        store(h + i * W, a / (1 + exponential(-a)) * load(u + i * W));
    }
    for (i64 i = n / W * W; i < n; i++) put(h[i], get(g[i]) / (1 + exponential(-get(g[i]))) * get(u[i]));
}

template <class T>
static void swiglu_backward(const T* g, const T* u, const T* dh, i64 n, T* dg, T* du) {
    #pragma omp parallel for if (n > 8192)
    for (i64 i = 0; i < n / W; i++) {
        vec a = load(g + i * W), b = load(u + i * W), d = load(dh + i * W), s = 1 / (1 + exponential(-a));
        store(dg + i * W, d * b * s * (1 + a * (1 - s)));
        store(du + i * W, d * a * s);
    }
    for (i64 i = n / W * W; i < n; i++) {
        float a = get(g[i]), s = 1 / (1 + exponential(-a)), d = get(dh[i]);
        put(dg[i], d * get(u[i]) * s * (1 + a * (1 - s)));
        put(du[i], d * a * s);
    }
}

// ---- small matrix products, from and to the cores' own caches ---------------------------------------------------------

constexpr int ROWS = 6, COLUMNS = 2 * W;  // of C at once: 12 registers of sums, of 16

template <int R>
static inline void product_tile(i64 k, const float* a, i64 rs, i64 cs, const float* b, i64 ldb, float* c, i64 ldc, bool add) {
    vec s[R][2];
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) s[r][h] = add ? load(c + r * ldc + h * W) : vec{};
    for (i64 l = 0; l < k; l++) {
        vec b0 = load(b + l * ldb), b1 = load(b + l * ldb + W);
        #pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            float x = a[r * rs + l * cs];
            s[r][0] += x * b0;
            s[r][1] += x * b1;
        }
    }
    for (int r = 0; r < R; r++)
        for (int h = 0; h < 2; h++) store(c + r * ldc + h * W, s[r][h]);
}

// C (m, n) = A (m, k) B (k, n), or C += A B; A[i, l] = a[i rs + l cs]; n is rounded up to COLUMNS, for which there is room.
static void product(i64 m, i64 n, i64 k, const float* a, i64 rs, i64 cs, const float* b, i64 ldb, float* c, i64 ldc, bool add) {
    for (i64 j = 0; j < n; j += COLUMNS) {
        i64 i = 0;
        for (; i + ROWS <= m; i += ROWS) product_tile<ROWS>(k, a + i * rs, rs, cs, b + j, ldb, c + i * ldc + j, ldc, add);
        if (i + 3 <= m) { product_tile<3>(k, a + i * rs, rs, cs, b + j, ldb, c + i * ldc + j, ldc, add); i += 3; }
        for (; i < m; i++) product_tile<1>(k, a + i * rs, rs, cs, b + j, ldb, c + i * ldc + j, ldc, add);
    }
}

// ---- rotary positions: pairs (x_j, x_{j + d/2}) turned by the angle of the token's position -----------------------------

// to = rotated x times scale, in fp32; without angles x itself.
template <class T>
static inline void rotate(const T* x, const float* cos, const float* sin, i64 d, float scale, float* to) {
    i64 half = d / 2, j = 0;
    if (!cos) {
        for (; j + W <= d; j += W) store(to + j, load(x + j) * scale);
        for (; j < d; j++) to[j] = get(x[j]) * scale;
        return;
    }
    for (; j + W <= half; j += W) {
        vec a = load(x + j), b = load(x + half + j);
        store(to + j, (a * load(cos + j) - b * load(sin + j)) * scale);
        store(to + half + j, (b * load(cos + half + j) + a * load(sin + half + j)) * scale);
    }
    for (; j < half; j++) {
        float a = get(x[j]), b = get(x[half + j]);
        to[j] = (a * cos[j] - b * sin[j]) * scale;
        to[half + j] = (b * cos[half + j] + a * sin[half + j]) * scale;
    }
}

// The way back, which is the gradient's.
template <class T>
static inline void rotate_back(const float* y, const float* cos, const float* sin, i64 d, float scale, T* to) {
    i64 half = d / 2, j = 0;
    if (!cos) {
        for (; j + W <= d; j += W) store(to + j, load(y + j) * scale);
        for (; j < d; j++) put(to[j], y[j] * scale);
        return;
    }
    for (; j + W <= half; j += W) {
        vec a = load(y + j), b = load(y + half + j);
        store(to + j, (a * load(cos + j) + b * load(sin + j)) * scale);
        store(to + half + j, (b * load(cos + half + j) - a * load(sin + half + j)) * scale);
    }
    for (; j < half; j++) {
        put(to[j], (y[j] * cos[j] + y[half + j] * sin[j]) * scale);
        put(to[half + j], (y[half + j] * cos[half + j] - y[j] * sin[half + j]) * scale);
    }
}

// ---- attention over rows and trees -----------------------------------------------------------------------------------
//
// Tokens lie after each other: q (n, heads, d), k and v (n, kv_heads, d), cos and sin (n, d). A tree is a stretch of
// tokens cut into parts at bounds[first[t]], …, bounds[first[t + 1] - 1]: its first part is what the others go on from.
// A token sees itself and what is before it in its part, and all of the first part. A row is a tree of one part.
// Work goes by tree and key head; scores are held for a few queries at a time, and made again in the backward pass.

constexpr i64 QUERIES = 48;

struct Sight {  // what some queries of a part see: `shared` keys from 0, then own keys from `start`
    i64 shared, start, own, padded_shared;
    i64 width() const { return padded_shared + up(own, COLUMNS); }
};

static inline Sight sight(i64 shared, i64 part, i64 end) { return {shared, part, end - part, up(shared, COLUMNS)}; }

// S (m, width) = A (m, d) times columns of B (d, ldb) at the keys that are seen, as shared and own ones beside each other.
static void against_keys(const Sight& s, i64 m, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* out, i64 ldo) {
    product(m, s.shared, d, a, lda, 1, b, ldb, out, ldo, false);
    product(m, s.own, d, a, lda, 1, b + s.start, ldb, out + s.padded_shared, ldo, false);
}

// C (m, d) = S (m, width) times rows of B (keys, ldb).
static void over_keys(const Sight& s, i64 m, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc) {
    product(m, d, s.shared, a, lda, 1, b, ldb, c, ldc, false);
    product(m, d, s.own, a + s.padded_shared, lda, 1, b + s.start * ldb, ldb, c, ldc, true);
}

// Rows of C (keys, ldc) += Sᵀ times A (m, d).
static void back_to_keys(const Sight& s, i64 m, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc) {
    product(s.shared, d, m, a, 1, lda, b, ldb, c, ldc, true);
    product(s.own, d, m, a + s.padded_shared, 1, lda, b, ldb, c + s.start * ldc, ldc, true);
}

// -inf where query i of m, the last of which sees all own keys, does not look, and in the padding.
static void hide(const Sight& s, i64 m, float* scores, i64 ld) {
    for (i64 i = 0; i < m; i++) {
        for (i64 j = s.shared; j < s.padded_shared; j++) scores[i * ld + j] = -INFINITY;
        for (i64 j = s.padded_shared + s.own - m + 1 + i; j < s.width(); j++) scores[i * ld + j] = -INFINITY;
    }
}

struct Scratch {  // memory of a thread, kept from task to task; what it holds is from the one before
    std::vector<float> held;
    float* of(i64 n) { if ((i64)held.size() < n) held.resize(n); return held.data(); }
};

// The keys and values of one head: (n, pd) rows and (d, ld) columns, as wanted.
template <class T>
static void gather(const T* x, i64 stride, const float* cos, const float* sin, i64 n, i64 d, float* rows, i64 pd,
                   float* columns, i64 ld, float* one) {
    for (i64 i = 0; i < n; i++) {
        float* to = rows ? rows + i * pd : one;
        rotate(x + i * stride, cos ? cos + i * d : nullptr, sin ? sin + i * d : nullptr, d, 1, to);
        if (columns) for (i64 j = 0; j < d; j++) columns[j * ld + i] = to[j];
    }
    if (columns) for (i64 j = 0; j < d; j++) std::fill(columns + j * ld + n, columns + (j + 1) * ld, 0.0f);
}

template <class T>
static void attention(const T* q, const T* k, const T* v, const float* cos, const float* sin, const i64* bounds,
                      const i64* first, i64 trees, i64 heads, i64 kv_heads, i64 d, float scale, T* out, float* lse) {
    #pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 t = 0; t < trees; t++)
        for (i64 g = 0; g < kv_heads; g++) {
            const i64 *cut = bounds + first[t], parts = first[t + 1] - first[t] - 1, from = cut[0], n = cut[parts] - from;
            const i64 pd = up(d, COLUMNS), ld = up(n, COLUMNS) + COLUMNS, wide = up(n, COLUMNS) + 2 * COLUMNS;
            const float *c = cos ? cos + from * d : nullptr, *s = sin ? sin + from * d : nullptr;
            static thread_local Scratch scratch;
            float* columns = scratch.of(d * ld + (n + 2 * QUERIES + 1) * pd + QUERIES * wide);
            float *values = columns + d * ld, *queries = values + n * pd, *sums = queries + QUERIES * pd;
            float *one = sums + QUERIES * pd, *scores = one + pd;
            if (d < pd) std::fill(values, scores, 0.0f);  // the padding of rows enters products
            gather(k + (from * kv_heads + g) * d, kv_heads * d, c, s, n, d, (float*)nullptr, pd, columns, ld, one);
            gather(v + (from * kv_heads + g) * d, kv_heads * d, nullptr, nullptr, n, d, values, pd, (float*)nullptr, ld, one);
            for (i64 p = 0; p < parts; p++)
                for (i64 h = g * (heads / kv_heads); h < (g + 1) * (heads / kv_heads); h++)
                    for (i64 b = cut[p] - from; b < cut[p + 1] - from; b += QUERIES) {
                        const i64 end = std::min(b + QUERIES, cut[p + 1] - from), m = end - b;
                        const Sight seen = sight(p ? cut[1] - from : 0, cut[p] - from, end);
                        for (i64 i = 0; i < m; i++)
                            rotate(q + ((from + b + i) * heads + h) * d, c ? c + (b + i) * d : nullptr,
                                   s ? s + (b + i) * d : nullptr, d, scale, queries + i * pd);
                        against_keys(seen, m, d, queries, pd, columns, ld, scores, wide);
                        hide(seen, m, scores, wide);
                        float total[QUERIES];
                        for (i64 i = 0; i < m; i++) {
                            float* row = scores + i * wide;
                            vec most = all(-INFINITY), added = {};
                            for (i64 j = 0; j < seen.width(); j += W) most = larger(load(row + j), most);
                            float top = most[0];
                            for (int j = 1; j < W; j++) top = most[j] > top ? most[j] : top;
                            for (i64 j = 0; j < seen.width(); j += W) {
                                vec e = exponential(load(row + j) - top);
                                store(row + j, e);
                                added += e;
                            }
                            total[i] = sum(added);
                            if (lse) lse[(from + b + i) * heads + h] = top + std::log(total[i]);
                        }
                        over_keys(seen, m, d, scores, wide, values, pd, sums, pd);
                        for (i64 i = 0; i < m; i++)
                            rotate_back(sums + i * pd, nullptr, nullptr, d, 1 / total[i], out + ((from + b + i) * heads + h) * d);
                    }
        }
}

template <class T>
static void attention_backward(const T* q, const T* k, const T* v, const float* cos, const float* sin, const i64* bounds,
                               const i64* first, i64 trees, i64 heads, i64 kv_heads, i64 d, float scale,
                               const float* lse, const T* dout, T* dq, T* dk, T* dv) {
    #pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 t = 0; t < trees; t++)
        for (i64 g = 0; g < kv_heads; g++) {
            const i64 *cut = bounds + first[t], parts = first[t + 1] - first[t] - 1, from = cut[0], n = cut[parts] - from;
            const i64 pd = up(d, COLUMNS), ld = up(n, COLUMNS) + COLUMNS, wide = up(n, COLUMNS) + 2 * COLUMNS;
            const float *c = cos ? cos + from * d : nullptr, *s = sin ? sin + from * d : nullptr;
            static thread_local Scratch scratch;
            float* keys = scratch.of(2 * d * ld + (4 * n + 3 * QUERIES) * pd + 2 * QUERIES * wide);
            float *values = keys + n * pd, *key_grads = values + n * pd, *value_grads = key_grads + n * pd;
            float *queries = value_grads + n * pd, *grads = queries + QUERIES * pd, *query_grads = grads + QUERIES * pd;
            float *key_columns = query_grads + QUERIES * pd, *value_columns = key_columns + d * ld;
            float *weights = value_columns + d * ld, *score_grads = weights + QUERIES * wide;
            std::fill(d < pd ? keys : key_grads, d < pd ? key_columns : queries, 0.0f);
            gather(k + (from * kv_heads + g) * d, kv_heads * d, c, s, n, d, keys, pd, key_columns, ld, (float*)nullptr);
            gather(v + (from * kv_heads + g) * d, kv_heads * d, nullptr, nullptr, n, d, values, pd, value_columns, ld, (float*)nullptr);
            for (i64 p = 0; p < parts; p++)
                for (i64 h = g * (heads / kv_heads); h < (g + 1) * (heads / kv_heads); h++)
                    for (i64 b = cut[p] - from; b < cut[p + 1] - from; b += QUERIES) {
                        const i64 end = std::min(b + QUERIES, cut[p + 1] - from), m = end - b;
                        const Sight seen = sight(p ? cut[1] - from : 0, cut[p] - from, end);
                        for (i64 i = 0; i < m; i++) {
                            const i64 at = ((from + b + i) * heads + h) * d;
                            rotate(q + at, c ? c + (b + i) * d : nullptr, s ? s + (b + i) * d : nullptr, d, scale, queries + i * pd);
                            rotate(dout + at, nullptr, nullptr, d, 1, grads + i * pd);
                        }
                        against_keys(seen, m, d, queries, pd, key_columns, ld, weights, wide);
                        hide(seen, m, weights, wide);
                        against_keys(seen, m, d, grads, pd, value_columns, ld, score_grads, wide);
                        for (i64 i = 0; i < m; i++) {  // p = softmax; ds = p (dp - Σ p dp)
                            float *w = weights + i * wide, *z = score_grads + i * wide, top = lse[(from + b + i) * heads + h];
                            vec dots = {};
                            for (i64 j = 0; j < seen.width(); j += W) {
                                vec e = exponential(load(w + j) - top);
                                store(w + j, e);
                                dots += e * load(z + j);
                            }
                            float dot = sum(dots);
                            for (i64 j = 0; j < seen.width(); j += W) store(z + j, load(w + j) * (load(z + j) - dot));
                        }
                        over_keys(seen, m, d, score_grads, wide, keys, pd, query_grads, pd);
                        back_to_keys(seen, m, d, score_grads, wide, queries, pd, key_grads, pd);
                        back_to_keys(seen, m, d, weights, wide, grads, pd, value_grads, pd);
                        for (i64 i = 0; i < m; i++)
                            rotate_back(query_grads + i * pd, c ? c + (b + i) * d : nullptr, s ? s + (b + i) * d : nullptr,
                                        d, scale, dq + ((from + b + i) * heads + h) * d);
                    }
            for (i64 i = 0; i < n; i++) {
                const i64 at = ((from + i) * kv_heads + g) * d;
                rotate_back(key_grads + i * pd, c ? c + i * d : nullptr, s ? s + i * d : nullptr, d, 1, dk + at);
                rotate_back(value_grads + i * pd, nullptr, nullptr, d, 1, dv + at);
            }
        }
}

// ---- attention of one new token a row, beside a cache -------------------------------------------------------------------
//
// Values lie as (places, kv_heads, slots, d), keys as (places, kv_heads, slots / LANES, d, LANES): so many keys' scores
// come from one sweep over memory. A token of a sequence has the slot of its position.

constexpr i64 LANES = 16;

// Token source[i] of k and v (·, kv_heads, d) into its place and slot.
template <class T>
static void remember(const T* k, const T* v, const float* cos, const float* sin, const i64* source, const i64* place,
                     const i64* slot, i64 n, i64 kv_heads, i64 d, i64 slots, T* keys, T* values) {
    #pragma omp parallel for if (n * kv_heads * d > 16384)
    for (i64 i = 0; i < n; i++) {
        std::vector<float> turned(d);
        for (i64 g = 0; g < kv_heads; g++) {
            const i64 from = (source[i] * kv_heads + g) * d, to = (place[i] * kv_heads + g) * slots * d;
            rotate(k + from, cos + source[i] * d, sin + source[i] * d, d, 1, turned.data());
            T* block = keys + to + slot[i] / LANES * LANES * d + slot[i] % LANES;
            for (i64 j = 0; j < d; j++) put(block[j * LANES], turned[j]);
            memcpy(values + to + slot[i] * d, v + from, d * sizeof(T));
        }
    }
}

// Scores of a query (d,) against keys of one head, from the block of slot `from` up to slot `to`; what stands at `to` and
// after in its block is left as it was.
template <class T>
static void score_keys(const float* query, const T* keys, i64 d, i64 from, i64 to, float* scores) {
    constexpr int V = LANES / W;
    for (i64 s = from / LANES * LANES; s < to; s += LANES) {
        const T* block = keys + s * d;
        vec dots[V] = {}, more[V] = {};  // two sums each, as one alone would wait for itself
        i64 j = 0;
        for (; j + 1 < d; j += 2)
            for (int r = 0; r < V; r++) {
                dots[r] += query[j] * load(block + j * LANES + r * W);
                more[r] += query[j + 1] * load(block + (j + 1) * LANES + r * W);
            }
        for (; j < d; j++) for (int r = 0; r < V; r++) dots[r] += query[j] * load(block + j * LANES + r * W);
        float found[LANES];
        for (int r = 0; r < V; r++) store(found + r * W, dots[r] + more[r]);
        memcpy(scores + s, found, std::min(LANES, to - s) * sizeof(float));
    }
}

// sums (d,) += Σ score · value over slots from..to of one head.
template <class T>
static void add_values(const float* scores, const T* values, i64 d, i64 from, i64 to, float* sums) {
    constexpr int N = 4;
    i64 j = 0;
    for (; j + N * W <= d; j += N * W) {
        vec even[N], odd[N] = {};
        for (int r = 0; r < N; r++) even[r] = load(sums + j + r * W);
        i64 s = from;
        for (; s + 1 < to; s += 2)
            for (int r = 0; r < N; r++) {
                even[r] += scores[s] * load(values + s * d + j + r * W);
                odd[r] += scores[s + 1] * load(values + (s + 1) * d + j + r * W);
            }
        for (; s < to; s++) for (int r = 0; r < N; r++) even[r] += scores[s] * load(values + s * d + j + r * W);
        for (int r = 0; r < N; r++) store(sums + j + r * W, even[r] + odd[r]);
    }
    for (i64 s = from; s < to; s++) for (i64 i = j; i < d; i++) sums[i] += scores[s] * get(values[s * d + i]);
}

// out (b, heads, d) of queries (b, heads, d). Row i sees length[i] slots: the first shared[i] in the place home[i], which
// other rows may share, and those after them in its own place.
template <class T>
static void recall(const T* q, const float* cos, const float* sin, const i64* home, const i64* shared, const i64* place,
                   const i64* length, const T* keys, const T* values, i64 b, i64 heads, i64 kv_heads, i64 d, i64 slots,
                   float scale, T* out) {
    #pragma omp parallel for collapse(2) schedule(dynamic, 8)
    for (i64 i = 0; i < b; i++)
        for (i64 h = 0; h < heads; h++) {
            const i64 n = length[i], split = shared[i], pd = up(d, W), g = h / (heads / kv_heads);
            const i64 at_home = (home[i] * kv_heads + g) * slots * d, at_own = (place[i] * kv_heads + g) * slots * d;
            static thread_local Scratch scratch;
            float *query = scratch.of(2 * pd + up(n, LANES)), *sums = query + pd, *scores = sums + pd;
            rotate(q + (i * heads + h) * d, cos + i * d, sin + i * d, d, scale, query);
            std::fill(sums, sums + pd, 0.0f);
            vec most = all(-INFINITY);
            score_keys(query, keys + at_own, d, split, n, scores);
            score_keys(query, keys + at_home, d, 0, split, scores);
            for (i64 j = n; j < up(n, LANES); j++) scores[j] = -INFINITY;
            for (i64 s = 0; s < n; s += W) most = larger(load(scores + s), most);
            float top = most[0];
            for (int j = 1; j < W; j++) top = most[j] > top ? most[j] : top;
            vec added = {};
            for (i64 s = 0; s < n; s += W) {
                vec e = exponential(load(scores + s) - top);
                store(scores + s, e);
                added += e;
            }
            add_values(scores, values + at_home, d, 0, split, sums);
            add_values(scores, values + at_own, d, split, n, sums);
            const float whole = sum(added);
            for (i64 j = 0; j < d; j++) put(out[(i * heads + h) * d + j], sums[j] / whole);
        }
}

// ---- log-probabilities of tokens, logits (n, v) over a temperature ------------------------------------------------------

template <class T>
static inline vec logit(const T* z, const float* bias, i64 j, float inverse) {
    return (bias ? load(z + j) + load(bias + j) : load(z + j)) * inverse;
}
template <class T>
static inline float one_logit(const T* z, const float* bias, i64 j, float inverse) {
    return (get(z[j]) + (bias ? bias[j] : 0)) * inverse;
}

template <class T>
static void logprobs(const T* logits, const float* bias, const i64* targets, i64 n, i64 v, float temperature,
                     float* found, float* lse, float* entropy) {
    const float inverse = 1 / temperature;
    #pragma omp parallel for
    for (i64 i = 0; i < n; i++) {
        const T* z = logits + i * v;
        vec most = all(-INFINITY), added = {}, weighted = {};
        float top = -INFINITY, one = 0, one_weighted = 0;
        i64 j = 0;
        for (; j + W <= v; j += W) most = larger(logit(z, bias, j, inverse), most);
        for (; j < v; j++) top = std::max(top, one_logit(z, bias, j, inverse));
        for (int l = 0; l < W; l++) top = most[l] > top ? most[l] : top;
        for (j = 0; j + W <= v; j += W) {
            vec x = logit(z, bias, j, inverse) - top, e = exponential(x);
            added += e;
            if (entropy) weighted += e * larger(x, all(-88.0f));  // 0 times -inf is meant to be 0
        }
        for (; j < v; j++) {
            float x = one_logit(z, bias, j, inverse) - top, e = exponential(x);
            one += e;
            one_weighted += e * std::max(x, -88.0f);
        }
        const float total = one + sum(added);
        lse[i] = top + std::log(total);
        found[i] = one_logit(z, bias, targets[i], inverse) - lse[i];
        if (entropy) entropy[i] = std::log(total) - (one_weighted + sum(weighted)) / total;
    }
}

// In place: the gradient of the logits, (onehot(target) - p) grad / temperature; where there is a bias it is that of z + bias.
template <class T>
static void logprobs_backward(T* logits, const float* bias, const i64* targets, i64 n, i64 v, float temperature,
                              const float* lse, const float* grad) {
    const float inverse = 1 / temperature;
    #pragma omp parallel for
    for (i64 i = 0; i < n; i++) {
        T* z = logits + i * v;
        const float g = grad[i] * inverse;
        const float of_target = g * (1 - exponential(one_logit(z, bias, targets[i], inverse) - lse[i]));
        i64 j = 0;
        for (; j + W <= v; j += W) store(z + j, exponential(logit(z, bias, j, inverse) - lse[i]) * -g);
        for (; j < v; j++) put(z[j], exponential(one_logit(z, bias, j, inverse) - lse[i]) * -g);
        put(z[targets[i]], of_target);
    }
}

// ---- the draw of a token (sampling/local.py, `choose`) --------------------------------------------------------------------

// The step-th output of SplitMix64 (Steele et al. 2014) started at a seed, in [0, 1).
static double uniform(i64 seed, i64 step) {
    uint64_t z = (uint64_t)seed + (uint64_t)(step + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) / (double)(1ull << 53);
}

// The first of k weights at which their running sum passes point, and whether point is within `near` of its ends.
template <class X>
static i64 pick(const X* weights, i64 k, double point, double near, bool& close) {
    double before = 0;
    i64 i = 0;
    for (; i < k - 1 && before + weights[i] <= point; i++) before += weights[i];
    close |= before + weights[i] - point < near || (i > 0 && point - before < near);
    return i;
}

// temperature (b,), 0 is the likeliest token; near_tie is of probability, near_logit between the two best logits.
template <class T>
static void draw(const T* logits, const float* temperature, const i64* seeds, const i64* steps, i64 b, i64 v,
                 double near_tie, float near_logit, i64* chosen, float* logprob, bool* near) {
    const i64 side = (i64)std::ceil(std::sqrt((double)v)), padded = up(side * side, W) + W;
    #pragma omp parallel for if (b * v > 4096)
    for (i64 i = 0; i < b; i++) {
        static thread_local Scratch scratch;
        float* p = scratch.of(padded);
        const T* z = logits + i * v;
        const float inverse = temperature[i] == 0 ? 1 : 1 / temperature[i];
        i64 best = 0, j;
        for (j = 0; j + W <= v; j += W) store(p + j, load(z + j) * inverse);
        for (; j < v; j++) p[j] = get(z[j]) * inverse;
        vec most = all(-INFINITY);
        float top = -INFINITY, second = -INFINITY;
        for (j = 0; j + W <= v; j += W) most = larger(load(p + j), most);
        for (; j < v; j++) top = std::max(top, p[j]);
        for (int l = 0; l < W; l++) top = std::max(top, most[l]);
        if (temperature[i] == 0) {
            for (best = 0; p[best] != top && best < v - 1; best++) {}
            for (j = 0; j < v; j++) if (j != best) second = std::max(second, p[j]);
        }
        for (j = 0; j < v; j += W) store(p + j, exponential(load(p + j) - top));
        for (j = v; j < padded; j++) p[j] = 0;
        std::vector<double> blocks(side);
        double total = 0;
        for (i64 s = 0; s < side; s++) {
            double added = 0;
            for (j = s * side; j < (s + 1) * side; j++) added += p[j];
            total += blocks[s] = added;
        }
        near[i] = false;
        if (temperature[i] == 0) {
            chosen[i] = best;
            near[i] = top - second < near_logit;
        } else {
            i64 s = pick(blocks.data(), side, uniform(seeds[i], 2 * steps[i]) * total, near_tie * total, near[i]);
            double inside = uniform(seeds[i], 2 * steps[i] + 1) * blocks[s];
            chosen[i] = std::min(s * side + pick(p + s * side, side, inside, near_tie * blocks[s], near[i]), v - 1);
        }
        logprob[i] = get(z[chosen[i]]) * inverse - top - (float)std::log(total);
    }
}

// ---- names that Python calls ----------------------------------------------------------------------------------------------

#define FOR(T, SUFFIX) \
    extern "C" void swiglu_##SUFFIX(const T* g, const T* u, i64 n, T* h) { swiglu(g, u, n, h); } \
    extern "C" void swiglu_backward_##SUFFIX(const T* g, const T* u, const T* dh, i64 n, T* dg, T* du) { \
        swiglu_backward(g, u, dh, n, dg, du); } \
    extern "C" void attention_##SUFFIX(const T* q, const T* k, const T* v, const float* cos, const float* sin, \
        const i64* bounds, const i64* first, i64 trees, i64 heads, i64 kv_heads, i64 d, float scale, T* out, float* lse) { \
        attention(q, k, v, cos, sin, bounds, first, trees, heads, kv_heads, d, scale, out, lse); } \
    extern "C" void attention_backward_##SUFFIX(const T* q, const T* k, const T* v, const float* cos, const float* sin, \
        const i64* bounds, const i64* first, i64 trees, i64 heads, i64 kv_heads, i64 d, float scale, const float* lse, \
        const T* dout, T* dq, T* dk, T* dv) { \
        attention_backward(q, k, v, cos, sin, bounds, first, trees, heads, kv_heads, d, scale, lse, dout, dq, dk, dv); } \
    extern "C" void remember_##SUFFIX(const T* k, const T* v, const float* cos, const float* sin, const i64* source, \
        const i64* place, const i64* slot, i64 n, i64 kv_heads, i64 d, i64 slots, T* keys, T* values) { \
        remember(k, v, cos, sin, source, place, slot, n, kv_heads, d, slots, keys, values); } \
    extern "C" void recall_##SUFFIX(const T* q, const float* cos, const float* sin, const i64* home, const i64* shared, \
        const i64* place, const i64* length, const T* keys, const T* values, i64 b, i64 heads, i64 kv_heads, i64 d, \
        i64 slots, float scale, T* out) { \
        recall(q, cos, sin, home, shared, place, length, keys, values, b, heads, kv_heads, d, slots, scale, out); } \
    extern "C" void logprobs_##SUFFIX(const T* logits, const float* bias, const i64* targets, i64 n, i64 v, \
        float temperature, float* found, float* lse, float* entropy) { \
        logprobs(logits, bias, targets, n, v, temperature, found, lse, entropy); } \
    extern "C" void logprobs_backward_##SUFFIX(T* logits, const float* bias, const i64* targets, i64 n, i64 v, \
        float temperature, const float* lse, const float* grad) { \
        logprobs_backward(logits, bias, targets, n, v, temperature, lse, grad); } \
    extern "C" void draw_##SUFFIX(const T* logits, const float* temperature, const i64* seeds, const i64* steps, i64 b, \
        i64 v, double near_tie, float near_logit, i64* chosen, float* logprob, bool* near) { \
        draw(logits, temperature, seeds, steps, b, v, near_tie, near_logit, chosen, logprob, near); }
FOR(float, f32)
FOR(bf16, bf16)
#define NORM(X, Y, SUFFIX) \
    extern "C" void rms_norm_##SUFFIX(const X* x, const float* w, i64 n, i64 d, float eps, Y* y, float* scale) { \
        rms_norm(x, w, n, d, eps, y, scale); } \
    extern "C" void rms_norm_backward_##SUFFIX(const X* x, const float* w, const float* scale, const Y* dy, i64 n, i64 d, \
        X* dx, float* dw, i64 blocks) { rms_norm_backward(x, w, scale, dy, n, d, dx, dw, blocks); }
NORM(float, float, f32_f32)
NORM(float, bf16, f32_bf16)
NORM(bf16, bf16, bf16_bf16)
