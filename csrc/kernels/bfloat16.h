// bfloat16: operands rounded to nearest even, sums in float32. VDPBF16PS adds the odd one of each pair
// of products, then the even one, each by a fused multiply-add, with denormals as zero (all of 6
// million random cases on Zen 4); others do the same in two instructions, to the same bits, but for tile
// registers: kernels/tiles.h.
#pragma once

#include "kernels/format_functions.h"

namespace rnnfast {
namespace {

struct Bfloat16 {
    static constexpr ptrdiff_t kOfWord = 2;
    static constexpr bool kHasUnits = false;
    static constexpr bool kTrains = true;
    // Whether this ISA does it otherwise than the one whose kernels of float32 it has.
#if defined(RNNFAST_SHARES_FLOATS) && !defined(__AVX512BF16__)
    static constexpr bool kOwn = false;
#else
    static constexpr bool kOwn = true;
#endif
    // Without VDPBF16PS whole layers, LSTM 20 32 256 256, take these parts of float32's speed.
#if defined(__AVX512BF16__)
    static constexpr float kSpeed = 2;
#elif defined(__AVX512F__)
    static constexpr float kSpeed = 1;
#else
    static constexpr float kSpeed = 0.7f;
#endif

    static constexpr ptrdiff_t kWaits = 6;  // VDPBF16PS; two `fma`s 8, which makes no difference
    static constexpr float kTileSpeed = 4;  // LSTM 100 32 256 256: 3.7; 25 64 1024 1024: 4.4

    static float unit(const float*, ptrdiff_t) { return 1; }
    RNNFAST_INLINE static Words right(Words words) { return words; }
    RNNFAST_INLINE static Words start(Words) { return Words{}; }
    // Of what was rounded: 3.4e38 became infinity.
    RNNFAST_INLINE static Floats times_0(Words words, Floats sum) {
        return sum + (Floats)(words & 0xffff0000) * 0 + (Floats)(words << 16) * 0;
    }

    // n elements from `row`, to whole vectors of them with zeros at the end.
    static void encode(const float* row, ptrdiff_t n, float, unsigned char* to) {
        typedef uint16_t Halves __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 2)));
        constexpr ptrdiff_t L = kLanes<float>;
        ptrdiff_t k = 0;
#if defined(__AVX512BF16__)
        for (; k + 2 * L <= n; k += 2 * L, to += kVectorBytes) {
            const auto both = _mm512_cvtne2ps_pbh((__m512)load(row + k + L), (__m512)load(row + k));
            __builtin_memcpy(to, &both, sizeof both);
        }
#endif
        for (; k < n; k += L, to += sizeof(Halves)) {
            const Floats value = load_edge(row + k, n - k);
#if defined(__AVX512BF16__)
            const Halves halves = (Halves)_mm512_cvtneps_pbh((__m512)value);
#else
            const Halves halves = __builtin_convertvector(round(value), Halves);
#endif
            __builtin_memcpy(to, &halves, sizeof halves);
        }
    }

    template <int M, int W, int P>
    RNNFAST_INLINE static void multiply(const LowRows& a, ptrdiff_t first, const LowPanel& b,
                                        const LowSums& c) {
        constexpr int kVectors = W * P;
        const unsigned char* left = a.base + first * a.ld;
        PanelWords<W, P> panel(b);
        Floats acc[M][kVectors];
        load_sums(c, first, acc);
        for (ptrdiff_t i = 0; i < b.words; ++i, left += kWordBytes, panel.next()) {
            Words right[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) right[v] = load_words(panel.at(v));
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Words pair = broadcast_word(left + m * a.ld);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    acc[m][v] = add((Floats)pair, (Floats)right[v], acc[m][v]);
            }
        }
        store_sums(c, first, acc);
    }

    static void join_rows(const float* from, ptrdiff_t rows, float* to) {
        constexpr ptrdiff_t L = kLanes<float>;
        for (; rows > 0; rows -= 2, from += 2 * L, to += L) {
            store(to, (Floats)joined(load(from), rows > 1 ? load(from + L) : zero<float>()));
        }
    }

    // Of two k, which are the halves of words.
    RNNFAST_INLINE static Floats add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512BF16__)
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
#else
        const Words odd = 0xffff0000 - Words{};
        const Words left = (Words)a, right = (Words)b;
        const Floats first = fma((Floats)(left & odd), (Floats)(right & odd), sum);
        return fma((Floats)(left << 16), (Floats)(right << 16), first);
#endif
    }

    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        return (Words)add((Floats)a, (Floats)b, (Floats)sum);
    }

private:
    // Words of even ones and odd ones.
    RNNFAST_INLINE static Words joined(Floats even, Floats odd) {
#if defined(__AVX512BF16__)
        typedef uint16_t Halves __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
        Halves in_turn{};
#pragma GCC unroll 32
        for (int l = 0; l < 32; ++l) in_turn[l] = uint16_t(l / 2 + l % 2 * 16);
        const auto halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
        return (Words)_mm512_permutexvar_epi16((__m512i)in_turn, halves);
#else
        return round(even) | round(odd) << 16;
#endif
    }

#if !defined(__AVX512BF16__)
    // In the lower half, as the instruction does it: denormals are zeros.
    RNNFAST_INLINE static Words round(Floats value) {
        const Words bits = (Words)value;
        const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        // A NaN stays one: the carry might make it zero, and the lower half may be all of it.
        const Words nan = bits >> 16 | 0x40, zero = bits >> 16 & 0x8000;
        const Words size = bits & 0x7fffffff;
        return size > 0x7f800000 ? nan : size < 0x00800000 ? zero : rounded;
    }
#endif
};

}  // namespace
}  // namespace rnnfast
