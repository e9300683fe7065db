// Attention with rotary positions, over rows and trees and beside a cache.

#pragma once

#include "numbers.h"

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
//
// Products read and write buffers of the thread, in fp32, whose rows have room for whole tiles: pd for the channels of a
// token, ld for the keys of a channel, wide for the scores of a query, shared keys first and then those of its own part.

constexpr i64 QUERIES = 48;

struct Sight {  // what m queries of a part see: `shared` keys from 0, then own keys from `start`, the last query all `own`
    i64 m, shared, start, own, padded_shared;
    i64 before() const { return own - m; }  // own keys that all of them see
    i64 seen(i64 i) const { return padded_shared + before() + i + 1; }  // where what query i sees ends
    // Where its scores end: a tile of ROWS queries or keys that holds one that is seen is worked on as a whole.
    i64 width(i64 i) const { return padded_shared + up(std::min(own, before() + i + ROWS), COLUMNS); }
};

static inline Sight sight(i64 m, i64 shared, i64 part, i64 end) {
    return {m, shared, part, end - part, up(shared, COLUMNS)};
}

// S (m, width) = A (m, d) times columns of B (d, ldb) at the keys that are seen, as shared and own ones beside each other.
static void against_keys(const Sight& s, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* out, i64 ldo) {
    product(s.m, s.shared, d, a, lda, 1, b, ldb, out, ldo, false);
    product<LOWER_C>(s.m, s.own, d, a, lda, 1, b + s.start, ldb, out + s.padded_shared, ldo, false, s.before());
}

// C (m, d) = S (m, width) times rows of B (keys, ldb).
static void over_keys(const Sight& s, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc) {
    if (s.shared) product(s.m, d, s.shared, a, lda, 1, b, ldb, c, ldc, false);
    product<LOWER_A>(s.m, d, s.own, a + s.padded_shared, lda, 1, b + s.start * ldb, ldb, c, ldc, s.shared > 0, s.before());
}

// Rows of C (keys, ldc) += Sᵀ times A (m, d).
static void back_to_keys(const Sight& s, i64 d, const float* a, i64 lda, const float* b, i64 ldb, float* c, i64 ldc) {
    product(s.shared, d, s.m, a, 1, lda, b, ldb, c, ldc, true);
    product<UPPER_A>(s.own, d, s.m, a + s.padded_shared, 1, lda, b, ldb, c + s.start * ldc, ldc, true, s.before());
}

// A value where a query does not look, as far as its scores go.
static void hide(const Sight& s, float value, float* scores, i64 ld) {
    for (i64 i = 0; i < s.m; i++) {
        for (i64 j = s.shared; j < s.padded_shared; j++) scores[i * ld + j] = value;
        for (i64 j = s.seen(i); j < s.width(i); j++) scores[i * ld + j] = value;
    }
}

struct Scratch {  // memory of a thread, kept from task to task; what it holds is from the one before
    std::vector<float> held;
    float* of(i64 n) { if ((i64)held.size() < n) held.resize(n); return held.data(); }
};

// Ask for a row that is worked on soon: those of a head lie too far apart for the processor to see it coming.
template <class T>
static inline void fetch(const T* row, i64 d) {
    for (i64 j = 0; j < d; j += 64 / (i64)sizeof(T)) __builtin_prefetch(row + j);
}
template <class T>
static inline void fetch_to_write(T* row, i64 d) {
    for (i64 j = 0; j < d; j += 64 / (i64)sizeof(T)) __builtin_prefetch(row + j, 1);
}
constexpr i64 AHEAD = 12;  // rows

// The keys or values of one head, as (n, pd) rows and, if wanted, (d, ld) columns.
template <class T>
static void gather(const T* x, i64 stride, const float* cos, const float* sin, i64 n, i64 d, float* rows, i64 pd,
                   float* columns, i64 ld) {
    for (i64 i = 0; i < n; i++) {
        fetch(x + (i + AHEAD) * stride, d);
        rotate(x + i * stride, cos ? cos + i * d : nullptr, sin ? sin + i * d : nullptr, d, 1, rows + i * pd);
    }
    if (!columns) return;
    const i64 whole = n / W * W;
    for (i64 j = 0; j < d; j++) {
        if (j % W == 0 && j + W <= d)
            for (i64 i = 0; i < whole; i += W) {
                vec square[W];
                for (int r = 0; r < W; r++) square[r] = load(rows + (i + r) * pd + j);
                transpose(square);
                for (int r = 0; r < W; r++) store(columns + (j + r) * ld + i, square[r]);
            }
        for (i64 i = j < d / W * W ? whole : 0; i < n; i++) columns[j * ld + i] = rows[i * pd + j];
        std::fill(columns + j * ld + n, columns + (j + 1) * ld, 0.0f);
    }
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
            float* key_columns = scratch.of(d * ld + (2 * n + 2 * QUERIES) * pd + QUERIES * wide);  // (d, ld) Kᵀ, rotated
            float* key_rows = key_columns + d * ld;  // (n, pd) K: gather makes key_columns from it
            float* value_rows = key_rows + n * pd;   // (n, pd) V
            float* queries = value_rows + n * pd;    // (QUERIES, pd) those at hand, rotated and scaled
            float* sums = queries + QUERIES * pd;    // (QUERIES, pd) Σ e^(score - top) value of each
            float* scores = sums + QUERIES * pd;     // (QUERIES, wide) of each with the keys it sees, then e^(score - top)
            if (d < pd) std::fill(value_rows, scores, 0.0f);  // the padding of rows enters products
            gather(k + (from * kv_heads + g) * d, kv_heads * d, c, s, n, d, key_rows, pd, key_columns, ld);
            gather(v + (from * kv_heads + g) * d, kv_heads * d, nullptr, nullptr, n, d, value_rows, pd, nullptr, ld);
            for (i64 p = 0; p < parts; p++)
                for (i64 h = g * (heads / kv_heads); h < (g + 1) * (heads / kv_heads); h++)
                    for (i64 b = cut[p] - from; b < cut[p + 1] - from; b += QUERIES) {
                        const i64 end = std::min(b + QUERIES, cut[p + 1] - from), m = end - b;
                        const Sight seen = sight(m, p ? cut[1] - from : 0, cut[p] - from, end);
                        for (i64 i = 0; i < m; i++) {
                            fetch(q + ((from + b + i + AHEAD) * heads + h) * d, d);
                            fetch_to_write(out + ((from + b + i) * heads + h) * d, d);
                            rotate(q + ((from + b + i) * heads + h) * d, c ? c + (b + i) * d : nullptr,
                                   s ? s + (b + i) * d : nullptr, d, scale, queries + i * pd);
                        }
                        against_keys(seen, d, queries, pd, key_columns, ld, scores, wide);
                        hide(seen, -INFINITY, scores, wide);
                        float total[QUERIES];
                        for (i64 i = 0; i < m; i++) {
                            float* row = scores + i * wide;
                            const i64 width = seen.width(i);
                            vec most = all(-INFINITY), added = {};
                            for (i64 j = 0; j < width; j += W) most = larger(load(row + j), most);
                            const float top = largest(most);
                            for (i64 j = 0; j < width; j += W) {
                                vec e = exponential(load(row + j) - top);
                                store(row + j, e);
                                added += e;
                            }
                            total[i] = sum(added);
                            lse[(from + b + i) * heads + h] = top + std::log(total[i]);
                        }
                        over_keys(seen, d, scores, wide, value_rows, pd, sums, pd);
                        for (i64 i = 0; i < m; i++)
                            rotate_back(sums + i * pd, nullptr, nullptr, d, 1 / total[i], out + ((from + b + i) * heads + h) * d);
                    }
        }
}

// ---- the gradient of attention ---------------------------------------------------------------------------------------
//
// Q is rotated and scaled, S = Q Kᵀ, P = softmax(S), O = P V. From dO, the gradient of the output, follow
//     dP = dO Vᵀ    dS = P (dP - Σ P dP)    dQ = dS K    dK = Σ dSᵀ Q    dV = Σ Pᵀ dO.
// Σ P dP is over the keys of a query. dK and dV are sums over all queries that see the key: those of every part of the tree
// if the key is in its first part, and those of every head that uses the key head. So a thread takes a whole tree and key
// head, and no other thread adds to the same dK and dV. It works on up to QUERIES queries of one part and head at a time:
//   1. Rotate and scale Q, and widen dO to fp32.
//   2. Compute S again, since to store it would take memory for every pair of tokens. Then P = e^(S - lse) replaces it;
//      lse = log Σ e^S, one number per query, is what the forward pass stores instead.
//   3. Compute dP. Then dS replaces it.
//   4. Compute dQ, which no other queries change, rotate it back and write it. Add to dK and dV.
// After the last queries it rotates dK back, and writes dK and dV.
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
            // Of the tree, (n, pd), a token per row:
            float* key_rows = scratch.of(2 * d * ld + (4 * n + 3 * QUERIES) * pd + 2 * QUERIES * wide);  // K, rotated: for dQ
            float* value_rows = key_rows + n * pd;    // V: gather makes value_columns from it
            float* key_grads = value_rows + n * pd;   // sum of dK so far, before it is rotated back
            float* value_grads = key_grads + n * pd;  // sum of dV so far
            // Of the queries at hand, (QUERIES, pd), a query per row:
            float* queries = value_grads + n * pd;          // Q, rotated and scaled: for S and dK
            float* out_grads = queries + QUERIES * pd;      // dO: for dP and dV
            float* query_grads = out_grads + QUERIES * pd;  // dQ, before it is rotated back
            // Of the tree, (d, ld), a channel per row, since a product runs down the rows of its right factor:
            float* key_columns = query_grads + QUERIES * pd;  // Kᵀ, rotated: for S
            float* value_columns = key_columns + d * ld;      // Vᵀ: for dP
            // Of the queries at hand with the keys they see, (QUERIES, wide), a query per row:
            float* weights = value_columns + d * ld;        // S, then P: for dV
            float* score_grads = weights + QUERIES * wide;  // dP, then dS: for dQ and dK
            // Sums start at 0. If rows are padded, products read the padding too, so it must hold numbers.
            std::fill(d < pd ? key_rows : key_grads, d < pd ? key_columns : queries, 0.0f);
            gather(k + (from * kv_heads + g) * d, kv_heads * d, c, s, n, d, key_rows, pd, key_columns, ld);
            gather(v + (from * kv_heads + g) * d, kv_heads * d, nullptr, nullptr, n, d, value_rows, pd, value_columns, ld);
            for (i64 p = 0; p < parts; p++)
                for (i64 h = g * (heads / kv_heads); h < (g + 1) * (heads / kv_heads); h++)
                    for (i64 b = cut[p] - from; b < cut[p + 1] - from; b += QUERIES) {
                        const i64 end = std::min(b + QUERIES, cut[p + 1] - from), m = end - b;
                        const Sight seen = sight(m, p ? cut[1] - from : 0, cut[p] - from, end);
                        for (i64 i = 0; i < m; i++) {
                            const i64 at = ((from + b + i) * heads + h) * d;
                            fetch(q + at + AHEAD * heads * d, d);
                            fetch(dout + at + AHEAD * heads * d, d);
                            fetch_to_write(dq + at, d);
                            rotate(q + at, c ? c + (b + i) * d : nullptr, s ? s + (b + i) * d : nullptr, d, scale, queries + i * pd);
                            rotate(dout + at, nullptr, nullptr, d, 1, out_grads + i * pd);
                        }
                        against_keys(seen, d, queries, pd, key_columns, ld, weights, wide);
                        hide(seen, -INFINITY, weights, wide);
                        against_keys(seen, d, out_grads, pd, value_columns, ld, score_grads, wide);
                        hide(seen, 0, score_grads, wide);  // left-out tiles hold what was there before, and 0 times NaN is NaN
                        for (i64 i = 0; i < m; i++) {
                            const i64 width = seen.width(i);
                            const float log_sum = lse[(from + b + i) * heads + h];
                            float *weight = weights + i * wide, *grad = score_grads + i * wide;
                            vec dots = {};
                            for (i64 j = 0; j < width; j += W) {
                                vec e = exponential(load(weight + j) - log_sum);
                                store(weight + j, e);
                                dots += e * load(grad + j);
                            }
                            const float dot = sum(dots);
                            for (i64 j = 0; j < width; j += W) store(grad + j, load(weight + j) * (load(grad + j) - dot));
                        }
                        over_keys(seen, d, score_grads, wide, key_rows, pd, query_grads, pd);
                        back_to_keys(seen, d, score_grads, wide, queries, pd, key_grads, pd);
                        back_to_keys(seen, d, weights, wide, out_grads, pd, value_grads, pd);
                        for (i64 i = 0; i < m; i++)
                            rotate_back(query_grads + i * pd, c ? c + (b + i) * d : nullptr, s ? s + (b + i) * d : nullptr,
                                        d, scale, dq + ((from + b + i) * heads + h) * d);
                    }
            for (i64 i = 0; i < n; i++) {
                const i64 at = ((from + i) * kv_heads + g) * d;
                fetch_to_write(dk + at + AHEAD * kv_heads * d, d);
                fetch_to_write(dv + at + AHEAD * kv_heads * d, d);
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
    constexpr int N = 2;
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
            const float top = largest(most);
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
