// bfloat16: operands are rounded to nearest even and products are summed in float32. Of each pair
// of products VDPBF16PS adds the odd one first, then the even one, each by a fused multiply-add
// that takes denormals as zero (all of 6 million random cases on Zen 4). ISAs without it do the
// same in two instructions, to the same bits. Only tile registers sum in another order:
// kernels/tiles.h.
#pragma once

#include "kernels/format_functions.h"

namespace rnnfast {
namespace {

struct Bfloat16 {
    static constexpr ptrdiff_t kOfWord = 2;
    static constexpr bool kHasUnits = false;
    static constexpr bool kTrains = true;
    // Whether this ISA has code of its own for the format. If not, the code would be the same as
    // that of the ISA whose float32 kernels it shares, which is used instead.
#if defined(RNNFAST_SHARES_FLOATS) && !defined(__AVX512BF16__)
    static constexpr bool kOwn = false;
#else
    static constexpr bool kOwn = true;
#endif
    // The speed of products in units of float32's. Without VDPBF16PS it is that of whole layers,
    // LSTM 20 32 256 256.
#if defined(__AVX512BF16__)
    static constexpr float kSpeed = 2;
#elif defined(__AVX512F__)
    static constexpr float kSpeed = 1;
#else
    static constexpr float kSpeed = 0.7f;
#endif

    static constexpr ptrdiff_t kWaits = 6;  // VDPBF16PS; with 8, as two `fma`s take, no different
    // Measured: LSTM 100 32 256 256 3.7, 25 64 1024 1024 4.4.
    static constexpr float kTileSpeed = 4;

    static float unit(const float*, ptrdiff_t) { return 1; }
    RNNFAST_INLINE static Words right(Words words) { return words; }
    RNNFAST_INLINE static Words start(Words) { return Words{}; }
    // Adds the products with zero of the values as rounded: 3.4e38 has become infinity.
    RNNFAST_INLINE static Floats times_0(Words words, Floats sum) {
        return sum + (Floats)(words & 0xffff0000) * 0 + (Floats)(words << 16) * 0;
    }

    // Encodes n elements from `row`, padded with zeros to whole vectors.
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

    // Adds the products of two k, which are the halves of each word.
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
    // Returns words with `even` rounded in the lower halves and `odd` in the upper ones.
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
    // Rounds as the instruction does, with denormals as zeros; the result is in the lower half of
    // each word.
    RNNFAST_INLINE static Words round(Floats value) {
        const Words bits = (Words)value;
        const Words rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        // A NaN needs care: the carry might turn it into a zero, and the lower half, which is
        // dropped, may hold all of its mantissa.
        const Words nan = bits >> 16 | 0x40, zero = bits >> 16 & 0x8000;
        const Words size = bits & 0x7fffffff;
        return size > 0x7f800000 ? nan : size < 0x00800000 ? zero : rounded;
    }
#endif
};

}  // namespace
}  // namespace rnnfast
