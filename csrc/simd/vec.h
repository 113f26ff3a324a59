// Vectors of float and double, as the compiler's own vector types: + - * / and comparisons are the
// language's. RNNFAST_VECTOR_BYTES, which the build sets for each ISA, is their width.
//
// Contraction is off in the whole build. A product and a sum are fused only where the code says
// `fma`, so that every instantiation of a template rounds in the same way.
#pragma once

#include "core/args.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(RNNFAST_NEON)
#include <arm_neon.h>
#endif

namespace rnnfast {
namespace {

constexpr int kVectorBytes = RNNFAST_VECTOR_BYTES;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
typedef double Doubles __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
typedef int32_t Ints32 __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
typedef int64_t Ints64 __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
    using V = Floats;
    using I = Ints32;
};
template <>
struct VecOf<double> {
    using V = Doubles;
    using I = Ints64;
};
template <class T>
using Vec = typename VecOf<T>::V;

template <class T>
constexpr ptrdiff_t kLanes = kVectorBytes / ptrdiff_t(sizeof(T));

// The number of vectors that hold n elements.
template <class T>
constexpr ptrdiff_t vectors(ptrdiff_t n) {
    return (n + kLanes<T> - 1) / kLanes<T>;
}

typedef float FloatsAnywhere
    __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(4), may_alias));
typedef double DoublesAnywhere
    __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(8), may_alias));

RNNFAST_INLINE Floats load(const float* p) { return *reinterpret_cast<const FloatsAnywhere*>(p); }
RNNFAST_INLINE Doubles load(const double* p) {
    return *reinterpret_cast<const DoublesAnywhere*>(p);
}
RNNFAST_INLINE void store(float* p, Floats v) { *reinterpret_cast<FloatsAnywhere*>(p) = v; }
RNNFAST_INLINE void store(double* p, Doubles v) { *reinterpret_cast<DoublesAnywhere*>(p) = v; }

template <class T>
RNNFAST_INLINE Vec<T> zero() {
    return Vec<T>{};
}
// This subtracts 0 because adding 0 would turn -0 into 0.
RNNFAST_INLINE Floats broadcast(float x) { return x - Floats{}; }
RNNFAST_INLINE Doubles broadcast(double x) { return x - Doubles{}; }

// a*b + c, rounded once if the ISA has such an instruction, else twice.
#if defined(__AVX512F__)
RNNFAST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
RNNFAST_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
RNNFAST_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
RNNFAST_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return _mm256_fmadd_pd(a, b, c); }
#elif defined(RNNFAST_NEON)
RNNFAST_INLINE Floats fma(Floats a, Floats b, Floats c) {
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
RNNFAST_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) {
    return (Doubles)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
#else
RNNFAST_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
RNNFAST_INLINE Doubles fma(Doubles a, Doubles b, Doubles c) { return a * b + c; }
#endif

// Return x, or the limit if x is less (at_least) or greater (at_most); NaN stays NaN. For 512 bits
// GCC 12 would make a comparison and a selection of the generic code, which take several times as
// long. It also warns that the plain intrinsics read an uninitialised value, so these are the
// masked ones.
#if defined(__AVX512F__)
RNNFAST_INLINE Floats at_least(Floats limit, Floats x) {
    return _mm512_maskz_max_ps(0xffff, limit, x);
}
RNNFAST_INLINE Doubles at_least(Doubles limit, Doubles x) {
    return _mm512_maskz_max_pd(0xff, limit, x);
}
RNNFAST_INLINE Floats at_most(Floats limit, Floats x) {
    return _mm512_maskz_min_ps(0xffff, limit, x);
}
RNNFAST_INLINE Doubles at_most(Doubles limit, Doubles x) {
    return _mm512_maskz_min_pd(0xff, limit, x);
}
#else
template <class V>
RNNFAST_INLINE V at_least(V limit, V x) {
    return x < limit ? limit : x;
}
template <class V>
RNNFAST_INLINE V at_most(V limit, V x) {
    return x > limit ? limit : x;
}
#endif

// Load or store the first n lanes, 0 < n <= lanes, at the edges of the caller's arrays. load_part
// fills the other lanes with zeros.
#if defined(__AVX512F__)
RNNFAST_INLINE Floats load_part(const float* p, ptrdiff_t n) {
    return _mm512_maskz_loadu_ps(__mmask16(0xffffu >> (16 - n)), p);
}
RNNFAST_INLINE Doubles load_part(const double* p, ptrdiff_t n) {
    return _mm512_maskz_loadu_pd(__mmask8(0xffu >> (8 - n)), p);
}
RNNFAST_INLINE void store_part(float* p, Floats v, ptrdiff_t n) {
    _mm512_mask_storeu_ps(p, __mmask16(0xffffu >> (16 - n)), v);
}
RNNFAST_INLINE void store_part(double* p, Doubles v, ptrdiff_t n) {
    _mm512_mask_storeu_pd(p, __mmask8(0xffu >> (8 - n)), v);
}
#elif defined(__AVX2__)
RNNFAST_INLINE Ints32 lanes_below(int32_t n) { return Ints32{0, 1, 2, 3, 4, 5, 6, 7} < n; }
RNNFAST_INLINE Ints64 lanes_below(int64_t n) { return Ints64{0, 1, 2, 3} < n; }
RNNFAST_INLINE Floats load_part(const float* p, ptrdiff_t n) {
    return _mm256_maskload_ps(p, (__m256i)lanes_below(int32_t(n)));
}
RNNFAST_INLINE Doubles load_part(const double* p, ptrdiff_t n) {
    return _mm256_maskload_pd(p, (__m256i)lanes_below(int64_t(n)));
}
RNNFAST_INLINE void store_part(float* p, Floats v, ptrdiff_t n) {
    _mm256_maskstore_ps(p, (__m256i)lanes_below(int32_t(n)), v);
}
RNNFAST_INLINE void store_part(double* p, Doubles v, ptrdiff_t n) {
    _mm256_maskstore_pd(p, (__m256i)lanes_below(int64_t(n)), v);
}
#else
template <class T>
RNNFAST_INLINE Vec<T> load_part(const T* p, ptrdiff_t n) {
    Vec<T> v{};
    for (ptrdiff_t l = 0; l < n; ++l) v[l] = p[l];
    return v;
}
template <class T>
RNNFAST_INLINE void store_part(T* p, Vec<T> v, ptrdiff_t n) {
    for (ptrdiff_t l = 0; l < n; ++l) p[l] = v[l];
}
#endif

// Returns v with zeros from lane n on.
template <class T>
RNNFAST_INLINE Vec<T> keep_first(Vec<T> v, ptrdiff_t n) {
    alignas(kVectorBytes) T lanes[kLanes<T>];
    store(lanes, v);
    return load_part(lanes, n);
}

// Load or store a vector of which `left` elements remain from p on: all of it, except at the edge.
template <class T>
RNNFAST_INLINE Vec<T> load_edge(const T* p, ptrdiff_t left) {
    return left >= kLanes<T> ? load(p) : load_part(p, left);
}
template <class T>
RNNFAST_INLINE void store_edge(T* p, Vec<T> v, ptrdiff_t left) {
    if (left >= kLanes<T>)
        store(p, v);
    else
        store_part(p, v, left);
}

// Lane l of the result is lane from[l] of a followed by b.
template <class T>
RNNFAST_INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, typename VecOf<T>::I from) {
#if defined(__clang__)
    Vec<T> v{};  // Clang makes one shuffle of this, as `from` is a constant
    for (ptrdiff_t l = 0; l < kLanes<T>; ++l)
        v[l] = from[l] < kLanes<T> ? a[from[l]] : b[from[l] - kLanes<T>];
    return v;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// In each group of kGroup lanes: the lower half of a's group, then that of b's; if kUpper, the
// upper halves.
template <class T, int kGroup, bool kUpper>
RNNFAST_INLINE Vec<T> halves(Vec<T> a, Vec<T> b) {
    typename VecOf<T>::I from{};
#pragma GCC unroll 16
    for (int l = 0; l < int(kLanes<T>); ++l) {
        const int at = l % kGroup;
        from[l] = l - at + at % (kGroup / 2) + (kUpper ? kGroup / 2 : 0) +
                  (at < kGroup / 2 ? 0 : int(kLanes<T>));
    }
    return shuffle<T>(a, b, from);
}

// In each group of four units of kUnit lanes: the even units of a's group, then those of b's; if
// kOdd, the odd units.
template <class T, int kUnit, bool kOdd>
RNNFAST_INLINE Vec<T> alternate(Vec<T> a, Vec<T> b) {
    typename VecOf<T>::I from{};
#pragma GCC unroll 16
    for (int l = 0; l < int(kLanes<T>); ++l) {
        const int at = l % (4 * kUnit), unit = at / kUnit;
        from[l] =
            l - at + (unit % 2 * 2 + kOdd) * kUnit + at % kUnit + (unit < 2 ? 0 : int(kLanes<T>));
    }
    return shuffle<T>(a, b, from);
}

// The lanes of the lower halves of a and b in turn, a's first; if kUpper, those of the upper
// halves.
template <class T, bool kUpper>
RNNFAST_INLINE Vec<T> in_turn(Vec<T> a, Vec<T> b) {
    typename VecOf<T>::I from{};
#pragma GCC unroll 16
    for (int l = 0; l < int(kLanes<T>); ++l)
        from[l] = l / 2 + (kUpper ? int(kLanes<T>) / 2 : 0) + l % 2 * int(kLanes<T>);
    return shuffle<T>(a, b, from);
}

// Loads half a vector from p and the other half from p + stride.
#if defined(__AVX512F__)
RNNFAST_INLINE Floats load_halves(const float* p, ptrdiff_t stride) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)),
                              _mm256_loadu_ps(p + stride), 1);
}
RNNFAST_INLINE Doubles load_halves(const double* p, ptrdiff_t stride) {
    // GCC 12 warns that the plain intrinsic reads an uninitialised value.
    return _mm512_maskz_insertf64x4(0xff, _mm512_castpd256_pd512(_mm256_loadu_pd(p)),
                                    _mm256_loadu_pd(p + stride), 1);
}
#elif defined(__AVX2__)
RNNFAST_INLINE Floats load_halves(const float* p, ptrdiff_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride),
                                1);
}
RNNFAST_INLINE Doubles load_halves(const double* p, ptrdiff_t stride) {
    return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + stride),
                                1);
}
#endif

// Loads a square and transposes it: lane l of columns[i] is p[l * stride + i]. First it brings
// pieces of 16 bytes to their places, half of the way while loading them; then it moves lanes
// within the pieces. Each step is one instruction that either stays within pieces or moves whole
// ones, which is 1.15 times as fast as with any other instructions.
template <class T>
RNNFAST_INLINE void load_transposed(const T* p, ptrdiff_t stride, Vec<T> (&columns)[kLanes<T>]) {
    constexpr int L = int(kLanes<T>), P = 16 / int(sizeof(T)), pieces = L / P;
#pragma GCC unroll 4
    for (int i = 0; i < P; ++i, p += stride) {
        if constexpr (pieces == 1) {
            columns[i] = load(p);
        } else if constexpr (pieces == 2) {
            columns[i] = load_halves(p, P * stride);
            columns[P + i] = load_halves(p + P, P * stride);
        } else {
#pragma GCC unroll 2
            for (int half = 0; half < L; half += L / 2) {
                const Vec<T> a = load_halves(p + half, P * stride);
                const Vec<T> b = load_halves(p + half + 2 * P * stride, P * stride);
                columns[half + i] = alternate<T, P, false>(a, b);
                columns[half + P + i] = alternate<T, P, true>(a, b);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < L; i += P) {
        const Vec<T> a = halves<T, P, false>(columns[i], columns[i + 1]);
        const Vec<T> b = halves<T, P, true>(columns[i], columns[i + 1]);
        if constexpr (P == 2) {
            columns[i] = a, columns[i + 1] = b;
        } else {
            const Vec<T> c = halves<T, P, false>(columns[i + 2], columns[i + 3]);
            const Vec<T> d = halves<T, P, true>(columns[i + 2], columns[i + 3]);
            columns[i] = alternate<T, 1, false>(a, c);
            columns[i + 1] = alternate<T, 1, true>(a, c);
            columns[i + 2] = alternate<T, 1, false>(b, d);
            columns[i + 3] = alternate<T, 1, true>(b, d);
        }
    }
}

}  // namespace
}  // namespace rnnfast
