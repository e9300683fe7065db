// What a processor does between the matrix products of a transformer, each piece in one pass over memory: normalisation,
// attention with rotary positions over rows and trees, attention beside a cache, the gated activation, log-probabilities,
// and the draw of a token. Called from kernels.py, which says what each is for; tests compare each with torch.
//
// Attention is in attention.h. Arithmetic is in fp32 (sums that choose a token in fp64); T is what lies in memory, float
// or bf16. Compiled for the machine at hand by build.py. Threads are OpenMP's, the ones that torch uses.

#include "attention.h"

// ---- normalisation: t = x + more, y = t / sqrt(mean t² + eps) * w, (n, d) ------------------------------------------------

// Without `more` t is x, and `total` is not written.
template <class X, class Y>
static void rms_norm(const X* x, const X* more, const float* w, i64 n, i64 d, float eps, X* total, Y* y, float* scale) {
    #pragma omp parallel for if (n * d > 8192)
    for (i64 i = 0; i < n; i++) {
        const X* a = x + i * d;
        vec squares = {};
        float s = 0;
        i64 j = 0;
        if (more) {
            for (; j + W <= d; j += W) store(total + i * d + j, load(a + j) + load(more + i * d + j));
            for (; j < d; j++) put(total[i * d + j], get(a[j]) + get(more[i * d + j]));
            a = total + i * d;
        }
        for (j = 0; j + W <= d; j += W) { vec v = load(a + j); squares += v * v; }
        for (; j < d; j++) s += get(a[j]) * get(a[j]);
        float r = 1 / std::sqrt((s + sum(squares)) / d + eps);
        scale[i] = r;
        for (j = 0; j + W <= d; j += W) store(y + i * d + j, load(a + j) * r * load(w + j));
        for (; j < d; j++) put(y[i * d + j], get(a[j]) * r * w[j]);
    }
}

// dx = r (w dy - t r² mean(t w dy)), and dt more where t has a gradient of its own; dw = Σ dy t r, summed for each block
// of rows into (blocks, d).
template <class X, class Y>
static void rms_norm_backward(const X* t, const float* w, const float* scale, const X* dt, const Y* dy, i64 n, i64 d, X* dx,
                              float* dw, i64 blocks) {
    #pragma omp parallel for
    for (i64 b = 0; b < blocks; b++)
        for (i64 i = n * b / blocks; i < n * (b + 1) / blocks; i++) {
            const X *a = t + i * d, *own = dt ? dt + i * d : nullptr;
            const Y* g = dy + i * d;
            float r = scale[i], s = 0, *part = dw + b * d;
            vec dots = {};
            i64 j = 0;
            for (; j + W <= d; j += W) dots += load(a + j) * load(w + j) * load(g + j);
            for (; j < d; j++) s += get(a[j]) * w[j] * get(g[j]);
            float c = r * r * r * (s + sum(dots)) / d;
            for (j = 0; j + W <= d; j += W) {
                vec v = load(a + j), u = load(g + j), z = u * load(w + j) * r - v * c;
                store(dx + i * d + j, own ? z + load(own + j) : z);
                store(part + j, load(part + j) + u * v * r);
            }
            for (; j < d; j++) {
                put(dx[i * d + j], get(g[j]) * w[j] * r - get(a[j]) * c + (own ? get(own[j]) : 0));
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
        top = std::max(top, largest(most));
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
        top = std::max(top, largest(most));
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

// ---- what Python calls: pointers, by name and dtypes; build.py reads the parameters where each function is defined ---------

#define POINTER(NAME, SUFFIX, ...) extern "C" { void* NAME##_##SUFFIX = (void*)NAME<__VA_ARGS__>; }
#define EXPORT(NAME) POINTER(NAME, f32, float) POINTER(NAME, bf16, bf16)
#define EXPORT_OF_TWO(NAME) \
    POINTER(NAME, f32_f32, float, float) POINTER(NAME, f32_bf16, float, bf16) POINTER(NAME, bf16_bf16, bf16, bf16)
EXPORT_OF_TWO(rms_norm)
EXPORT_OF_TWO(rms_norm_backward)
EXPORT(swiglu)
EXPORT(swiglu_backward)
EXPORT(attention)
EXPORT(attention_backward)
EXPORT(remember)
EXPORT(recall)
EXPORT(logprobs)
EXPORT(logprobs_backward)
EXPORT(draw)
