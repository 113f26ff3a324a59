// int8: each row of either operand is rounded to nearest even, in units of its max|.| / 127. The
// sums of integers are exact. What they stand for is added in float32; on every ISA the products
// and the sum are each rounded.
//
// The left operand has 128 added, since VPDPBUSD multiplies bytes without a sign by bytes with one.
// So a column's sums start from -128 times the sum of its weights, or from 0 if the ISA multiplies
// bytes that both have signs. A sum over up to 131,072 k fits in 32 bits.
#pragma once

#include "kernels/format_functions.h"

namespace rnnfast {
namespace {

struct Int8 {
    static constexpr ptrdiff_t kOfWord = 4;
    static constexpr bool kHasUnits = true;
    static constexpr bool kTrains = false;
    static constexpr bool kOwn = true;
    // The speed of whole layers, LSTM 20 32 256 256, in units of float32's. That of AVX512_VNNI is
    // of Zen 4; that of NEON was estimated from the instructions.
#if defined(__AVX512VNNI__)
    static constexpr float kSpeed = 4;
#elif defined(__AVXVNNI__)
    static constexpr float kSpeed = 2.5f;
#elif defined(__AVX512BW__)
    static constexpr float kSpeed = 1.3f;
#elif defined(__AVX2__)
    static constexpr float kSpeed = 1.1f;
#elif defined(__SSE2__)
    static constexpr float kSpeed = 1.4f;
#elif defined(RNNFAST_NEON) && defined(__ARM_FEATURE_DOTPROD)
    static constexpr float kSpeed = 4;
#else
    static constexpr float kSpeed = 1;
#endif

    // If no single instruction multiplies and adds, a sum waits only for additions.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
    static constexpr ptrdiff_t kWaits = 4;
#else
    static constexpr ptrdiff_t kWaits = 2;
#endif

    static constexpr float kTileSpeed = 5;  // measured: LSTM 100 32 256 256 4, 25 64 1024 1024 6.9

    // Puts the largest of each group of kGroup lanes into the group's first lane.
    template <int kGroup>
    RNNFAST_INLINE static Words most_of(Words words) {
        const auto other = (Words)halves<float, kGroup, true>((Floats)words, (Floats)words);
        words = other > words ? other : words;
        if constexpr (kGroup > 2) words = most_of<kGroup / 2>(words);
        return words;
    }

    // Returns the unit of a row. If the row has a NaN or an infinity, the unit is NaN, which thus
    // reaches all sums with this row and no others. It is 0 if all of the row is so small that the
    // unit would be a denormal number.
    static float unit(const float* row, ptrdiff_t n) {
        constexpr float kLeast = 127 * 1.17549435e-38f;
        Words most{};
        for (ptrdiff_t k = 0; k < n; k += kLanes<float>) {
            const Words size = (Words)load_edge(row + k, n - k) & 0x7fffffff;
            most = size > most ? size : most;  // bits have the same order as the numbers
        }
        const float largest = ((Floats)most_of<kLanes<float>>(most))[0];
        if (!(largest <= 3.4028234e38f)) return __builtin_nanf("");
        return largest < kLeast ? 0 : largest / 127;
    }

    // Encodes n elements from `row` in its unit, padded with zeros to whole vectors.
    static void encode(const float* row, ptrdiff_t n, float unit, unsigned char* to) {
        typedef uint8_t Bytes __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 4)));
        constexpr float kRound = 12582912;  // 1.5 * 2^23: the last bits of the sum are the integer
        const float inverse = unit > 0 ? 1 / unit : 0;
        for (ptrdiff_t k = 0; k < n; k += kLanes<float>, to += sizeof(Bytes)) {
            const Floats sum = load_edge(row + k, n - k) * inverse + kRound;
            const Bytes bytes = __builtin_convertvector(((Words)sum + 128) & 255, Bytes);
            __builtin_memcpy(to, &bytes, sizeof bytes);
        }
    }

    // Makes words of the right operand, whose bytes have signs, from words of the left one.
    RNNFAST_INLINE static Words right(Words words) { return words ^ 0x80808080; }
    // Returns what words of the right operand add to the start of their columns' sums.
    RNNFAST_INLINE static Words start(Words words) {
        Ints32 sum{};
#pragma GCC unroll 4
        for (int i = 0; i < kOfWord; ++i) sum += (Ints32)(words << (24 - 8 * i)) >> 24;
        return (Words)(sum * -128);
    }

    // Integers add nothing here: only a unit can be other than finite.
    RNNFAST_INLINE static Floats times_0(Words, Floats sum) { return sum; }

    template <int M, int W, int P>
    RNNFAST_INLINE static void multiply(const LowRows& a, ptrdiff_t first, const LowPanel& b,
                                        const LowSums& c) {
        constexpr int kVectors = W * P;
        const unsigned char* left = a.base + first * a.ld;
        PanelWords<W, P> panel(b);
        const auto* const starts = reinterpret_cast<const unsigned char*>(b.starts);
        Words sums[M][kVectors];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                sums[m][v] = kBothSigned ? Words{} : load_words(starts + v * kVectorBytes);
        for (ptrdiff_t i = 0; i < b.words; ++i, left += kWordBytes, panel.next()) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Words four = broadcast_word(left + m * a.ld);
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v)
                    sums[m][v] = add_words_at(four, panel.at(v), sums[m][v]);
            }
        }
        Floats acc[M][kVectors];  // loaded only now: until here sums fill the registers
        load_sums(c, first, acc);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                acc[m][v] = add_units(acc[m][v], sums[m][v], load(b.units + v * kLanes<float>),
                                      a.units[first + m]);
        store_sums(c, first, acc);
    }

    // Adds what the integers stand for to the sums.
    RNNFAST_INLINE static Floats add_units(Floats sums, Words integers, Floats units, float unit) {
        return sums + units * __builtin_convertvector((Ints32)integers, Floats) * unit;
    }

    // add_words adds the products of four k, the bytes of each word: those of a, which have 128
    // added, and those of b. `kBothSigned`: it takes the 128 off before it multiplies.
#if defined(RNNFAST_NEON)
    static constexpr bool kBothSigned = true;

    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        const auto left = (int8x16_t)(a ^ 0x80808080), right = (int8x16_t)b;
#if defined(__ARM_FEATURE_DOTPROD)
        return (Words)vdotq_s32((int32x4_t)sum, left, right);
#else
        // Two products of 8 bits fit in 16.
        const int16x8_t low = vmull_s8(vget_low_s8(left), vget_low_s8(right));
        const int16x8_t high = vmull_high_s8(left, right);
        return (Words)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
#endif
    }
#else
    static constexpr bool kBothSigned = false;
#endif

#if defined(__AVX512VNNI__)
    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        // Around the intrinsic GCC 12 copies every sum in each iteration, half of them to memory.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
#elif defined(__AVXVNNI__)
    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
        return sum;
    }
    // `b` stays in memory, since a tile's sums leave no registers for it.
    RNNFAST_INLINE static Words add_words_at(Words a, const unsigned char* b, Words sum) {
        typedef Words Anywhere __attribute__((aligned(1)));
        __asm__("%{vex%} vpdpbusd %2, %1, %0"
                : "+x"(sum)
                : "x"(a), "m"(*reinterpret_cast<const Anywhere*>(b)));
        return sum;
    }
#elif defined(__SSE2__)
    // This multiplies pairs of 16 bits. VPMADDUBSW multiplies pairs of bytes, but the sum of two
    // such products might not fit in its 16 bits.
    typedef int16_t Shorts __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));

    RNNFAST_INLINE static Words add_pairs(Shorts a, Shorts b) {
#if defined(__AVX512BW__)
        return (Words)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
        return (Words)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
        return (Words)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
    }
    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        const Words low = 0x00ff00ff - Words{};
        const Words even = add_pairs((Shorts)(a & low), (Shorts)b << 8 >> 8);
        return sum + even + add_pairs((Shorts)(a >> 8 & low), (Shorts)b >> 8);
    }
#elif !defined(RNNFAST_NEON)
    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
#pragma GCC unroll 4
        for (int i = 0; i < kOfWord; ++i)
            sum += (a >> 8 * i & 255) * (Words)((Ints32)(b << (24 - 8 * i)) >> 24);
        return sum;
    }
#endif

#if !defined(__AVXVNNI__)
    RNNFAST_INLINE static Words add_words_at(Words a, const unsigned char* b, Words sum) {
        return add_words(a, load_words(b), sum);
    }
#endif
};

}  // namespace
}  // namespace rnnfast
