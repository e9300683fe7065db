// Vectors of the processor's own width, bf16, e^x, and small matrix products.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
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
static inline void store(bf16* p, vec x) {  // to the nearest, ties to even; NaN stays one
    uvec u = (uvec)x, rounded = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
    hvec h = __builtin_convertvector(x == x ? rounded : (u >> 16) | 0x40, hvec);
    memcpy(p, &h, sizeof h);
}
static inline float get(float x) { return x; }
static inline float get(bf16 x) { uint32_t u = (uint32_t)x.bits << 16; float f; memcpy(&f, &u, 4); return f; }
static inline void put(float& to, float x) { to = x; }
static inline void put(bf16& to, float x) {
    uint32_t u; memcpy(&u, &x, 4);
    to.bits = x == x ? (u + 0x7FFF + ((u >> 16) & 1)) >> 16 : (u >> 16) | 0x40;
}
static inline vec larger(vec a, vec b) { return a > b ? a : b; }
static inline float sum(vec x) {
    float a[W]; store(a, x);
    for (int w = W / 2; w; w /= 2) for (int i = 0; i < w; i++) a[i] += a[i + w];
    return a[0];
}
static inline float largest(vec x) {
    float a[W]; store(a, x);
    for (int w = W / 2; w; w /= 2) for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
    return a[0];
}

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
    y = x < -87.0f ? vec{} : y;
    return x == x ? y : x;
}
static inline float exponential(float x) { return exponential(all(x))[0]; }

// Of two rows of blocks of S numbers: the first row's odd blocks change places with the second's even ones.
template <int S, int... l>
static inline void exchange(vec& a, vec& b, std::integer_sequence<int, l...>) {
#ifdef __clang__
    vec low = __builtin_shufflevector(a, b, (l & S ? W + l - S : l)...);
    vec high = __builtin_shufflevector(a, b, (l & S ? W + l : l + S)...);
#else
    vec low = __builtin_shuffle(a, b, ivec{(l & S ? W + l - S : l)...});
    vec high = __builtin_shuffle(a, b, ivec{(l & S ? W + l : l + S)...});
#endif
    a = low, b = high;
}

// W rows of W numbers to columns: blocks beside the diagonal change places, from the widest on.
template <int S = W / 2>
static inline void transpose(vec* x) {
    for (int i = 0; i < W; i++) if (!(i & S)) exchange<S>(x[i], x[i + S], std::make_integer_sequence<int, W>());
    if constexpr (S > 1) transpose<S / 2>(x);
}

static inline i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

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

// What of a product counts, by the diagonal of a square that is given: C up to it, A up to it, Aᵀ up to it, so that tiles
// wholly beyond it are left out, or all.
enum Part { WHOLE, LOWER_C, LOWER_A, UPPER_A };

// C (m, n) = A (m, k) B (k, n), or C += A B; A[i, l] = a[i rs + l cs]; n is rounded up to COLUMNS, for which there is room.
// Row i of a lower triangle ends with column `diagonal` + i; row i of an upper one begins with column i - `diagonal`.
// A tile across the diagonal is worked on whole: A must hold 0 beyond it, up to ROWS - 1 away, and what C gets there means nothing.
template <Part part = WHOLE>
static void product(i64 m, i64 n, i64 k, const float* a, i64 rs, i64 cs, const float* b, i64 ldb, float* c, i64 ldc, bool add,
                    i64 diagonal = 0) {
    for (i64 j = 0; j < n; j += COLUMNS)
        for (i64 i = 0, rows; i < m; i += rows) {
            rows = m - i >= ROWS ? ROWS : m - i >= 3 ? 3 : 1;
            if (part == LOWER_C && j >= diagonal + i + rows) continue;
            const i64 from = part == UPPER_A ? std::max(i64(0), i - diagonal) : 0;
            const i64 depth = (part == LOWER_A ? std::min(k, diagonal + i + rows) : k) - from;
            const float *x = a + i * rs + from * cs, *y = b + from * ldb + j;
            float* z = c + i * ldc + j;
            if (rows == ROWS) product_tile<ROWS>(depth, x, rs, cs, y, ldb, z, ldc, add);
            else if (rows == 3) product_tile<3>(depth, x, rs, cs, y, ldb, z, ldc, add);
            else product_tile<1>(depth, x, rs, cs, y, ldb, z, ldc, add);
        }
}
