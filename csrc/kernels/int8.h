// int8: rows of both operands in units of max|.| / 127, to nearest even. Their sums are integers,
// hence exact; what they stand for is added in float32, product and sum rounded each on every ISA.
//
// The left operand has 128 added, since VPDPBUSD multiplies bytes without and with a sign; the sums of
// a column start from -128 times the sum of its weights, or from 0 where both have signs. A sum over up
// to 131,072 k fits in 32 bits.
#pragma once

#include "kernels/format_functions.h"

namespace rnnfast {
namespace {

struct Int8 {
    static constexpr ptrdiff_t kOfWord = 4;
    static constexpr bool kHasUnits = true;
    static constexpr bool kTrains = false;
    static constexpr bool kOwn = true;
    // Times float32's speed in whole layers, LSTM 20 32 256 256: of AVX512_VNNI on Zen 4, of NEON
    // reckoned from the instructions.
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

    // Without an instruction for all of it, sums wait for additions alone.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
    static constexpr ptrdiff_t kWaits = 4;
#else
    static constexpr ptrdiff_t kWaits = 2;
#endif

    static constexpr float kTileSpeed = 5;  // LSTM 100 32 256 256: 4; 25 64 1024 1024: 6.9

    // Into the first lane of each group of kGroup the most of them.
    template <int kGroup>
    RNNFAST_INLINE static Words most_of(Words words) {
        const auto other = (Words)halves<float, kGroup, true>((Floats)words, (Floats)words);
        words = other > words ? other : words;
        if constexpr (kGroup > 2) words = most_of<kGroup / 2>(words);
        return words;
    }

    // The unit of a row. NaN where it has a NaN or an infinity, which thus reaches all sums with the
    // row and no others; 0 where all of it is less than what leaves the unit a normal number.
    static float unit(const float* row, ptrdiff_t n) {
        constexpr float kLeast = 127 * 1.17549435e-38f;
        Words most{};
        for (ptrdiff_t k = 0; k < n; k += kLanes<float>) {
            const Words size = (Words)load_edge(row + k, n - k) & 0x7fffffff;
            most = size > most ? size : most;  // the order of the bits is that of the numbers
        }
        const float largest = ((Floats)most_of<kLanes<float>>(most))[0];
        if (!(largest <= 3.4028234e38f)) return __builtin_nanf("");
        return largest < kLeast ? 0 : largest / 127;
    }

    // n elements from `row` in its unit, to whole vectors of them with zeros at the end.
    static void encode(const float* row, ptrdiff_t n, float unit, unsigned char* to) {
        typedef uint8_t Bytes __attribute__((vector_size(RNNFAST_VECTOR_BYTES / 4)));
        constexpr float kRound = 12582912;  // 1.5 * 2^23: the sum's last bits are the integer
        const float inverse = unit > 0 ? 1 / unit : 0;
        for (ptrdiff_t k = 0; k < n; k += kLanes<float>, to += sizeof(Bytes)) {
            const Floats sum = load_edge(row + k, n - k) * inverse + kRound;
            const Bytes bytes = __builtin_convertvector(((Words)sum + 128) & 255, Bytes);
            __builtin_memcpy(to, &bytes, sizeof bytes);
        }
    }

    // Words of the right operand, whose bytes have signs, from those of the left.
    RNNFAST_INLINE static Words right(Words words) { return words ^ 0x80808080; }
    // What words of the right operand add to what the columns' sums start from.
    RNNFAST_INLINE static Words start(Words words) {
        Ints32 sum{};
#pragma GCC unroll 4
        for (int i = 0; i < kOfWord; ++i) sum += (Ints32)(words << (24 - 8 * i)) >> 24;
        return (Words)(sum * -128);
    }

    // Only a unit may not be finite.
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
        Floats acc[M][kVectors];  // loaded only now: registers are full of sums before
        load_sums(c, first, acc);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v)
                acc[m][v] = add_units(acc[m][v], sums[m][v], load(b.units + v * kLanes<float>),
                                      a.units[first + m]);
        store_sums(c, first, acc);
    }

    // Sums with what the integers stand for.
    RNNFAST_INLINE static Floats add_units(Floats sums, Words integers, Floats units, float unit) {
        return sums + units * __builtin_convertvector((Ints32)integers, Floats) * unit;
    }

    // Of four k: those of a, which have 128 added, and those of b. `kBothSigned`: what is added are the
    // products without the 128.
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
        // GCC 12 copies every sum in each iteration, half of them to memory, around the intrinsic.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
#elif defined(__AVXVNNI__)
    RNNFAST_INLINE static Words add_words(Words a, Words b, Words sum) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
        return sum;
    }
    // A tile's sums leave no registers for them.
    RNNFAST_INLINE static Words add_words_at(Words a, const unsigned char* b, Words sum) {
        typedef Words Anywhere __attribute__((aligned(1)));
        __asm__("%{vex%} vpdpbusd %2, %1, %0"
                : "+x"(sum)
                : "x"(a), "m"(*reinterpret_cast<const Anywhere*>(b)));
        return sum;
    }
#elif defined(__SSE2__)
    // Pairs of 16 bits: of bytes, as VPMADDUBSW takes them, the sum of two might not fit.
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
