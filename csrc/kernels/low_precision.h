// Products of operands in a format of few bits, and how these lie in memory.
//
// A format keeps some k together in a word of 32 bits: a row of the left operand is words in order, and
// a panel of the right one [panel][word][vector][lane], so that one broadcast word meets a vector of
// words. The number of k is padded to whole words with zeros of the right operand.
#pragma once

#include "kernels/pack.h"

namespace rnnfast {
namespace {

typedef uint32_t Words __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));

RNNFAST_INLINE Words load_words(const unsigned char* p) {
    Words words;
    __builtin_memcpy(&words, p, sizeof words);
    return words;
}
RNNFAST_INLINE Words broadcast_word(const unsigned char* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word - Words{};
}

constexpr ptrdiff_t kWordBytes = 4;

// The left operand: rows of words, `ld` bytes apart, and what one in the words of a row stands for.
struct LowRows {
    const unsigned char* base;
    ptrdiff_t ld;
    const float* scales;  // unused where the format has none
};

// The right operand, packed.
struct LowPanels {
    const unsigned char* base;
    ptrdiff_t words;         // of a column
    ptrdiff_t begin, end;    // in vectors: all of it
    const float* scales;     // of the columns; null where the format has none
    const uint32_t* starts;  // of the columns: what their sums start from; likewise
};

// Where an operand is encoded.
struct LowRoom {
    unsigned char* rows;
    ptrdiff_t ld;  // in bytes
    float* scales;
};

// A format as a value: the passes are compiled once for all formats.
struct FormatFunctions {
    ptrdiff_t of_word;  // elements that a word has
    bool scaled;        // whether rows and columns have units of their own
    void (*pack)(const Matrix<float>& from, float* out);
    // C += A B, from A (rows, n), `ld` apart, and panels of `width` vectors, 3 or 4.
    void (*multiply)(int width, ptrdiff_t rows, const float* a, ptrdiff_t ld, ptrdiff_t n,
                     const LowRoom& room, const LowPanels& b, const StoreRows<float, true>& c);
};

// Where the parts of a packed matrix lie, in elements of 4 bytes from its start.
struct LowLayout {
    ptrdiff_t words, columns, scales, starts, size;
    bool scaled;

    LowLayout(const Matrix<float>& matrix, ptrdiff_t of_word, bool has_scales)
        : words((matrix.ks + of_word - 1) / of_word),
          columns(matrix.blocks() * matrix.gates * kLanes<float>),
          scales(words * columns),
          starts(scales + (has_scales ? columns : 0)),
          size(starts + (has_scales ? columns : 0)),
          scaled(has_scales) {}

    LowPanels panels(const float* packed) const {
        return {reinterpret_cast<const unsigned char*>(packed),
                words,
                0,
                columns / kLanes<float>,
                scaled ? packed + scales : nullptr,
                scaled ? reinterpret_cast<const uint32_t*>(packed + starts) : nullptr};
    }
};

// One column, from its row in torch's layout: into words `step` elements apart.
template <class Format>
void pack_column(const float* row, ptrdiff_t ks, ptrdiff_t step, unsigned char* to, float* scale,
                 uint32_t* start) {
    constexpr ptrdiff_t kPiece = 256;  // elements that are encoded at a time
    unsigned char piece[kPiece * kWordBytes / Format::kOfWord];
    const float unit = Format::scale(row, ks);
    uint32_t sum = 0;
    for (ptrdiff_t k = 0; k < ks; k += kPiece) {
        const ptrdiff_t n = smaller(kPiece, ks - k);
        Format::encode(row + k, n, unit, piece);
        for (ptrdiff_t i = 0; i < n; i += Format::kOfWord, to += step * kWordBytes) {
            uint32_t word;
            __builtin_memcpy(&word, piece + i / Format::kOfWord * kWordBytes, sizeof word);
            word = Format::right(word, smaller(Format::kOfWord, n - i));
            sum += Format::start(word);
            __builtin_memcpy(to, &word, sizeof word);
        }
    }
    if (Format::kScaled) *scale = unit, *start = sum;
}

// A matrix into panels whose columns are [block][gate of this product][lane].
template <class Format>
void pack_low(const Matrix<float>& from, float* out) {
    constexpr ptrdiff_t L = kLanes<float>;
    const LowLayout at(from, Format::kOfWord, Format::kScaled);
    const Panels<float> panels{panel_width(from.gates), at.columns, at.words};
    for (ptrdiff_t i = 0; i < at.size; ++i) out[i] = 0;  // for the lanes past the units
    for (ptrdiff_t b = 0; b < from.blocks(); ++b)
        for (int g = 0; g < from.gates; ++g)
            for (ptrdiff_t l = 0; l < from.lanes(b); ++l) {
                const ptrdiff_t column = (b * from.gates + g) * L + l;
                pack_column<Format>(from.rows_of(g, b) + l * from.ks, from.ks, panels.step(column),
                                    reinterpret_cast<unsigned char*>(out + panels.index(0, column)),
                                    out + at.scales + column,
                                    reinterpret_cast<uint32_t*>(out + at.starts) + column);
            }
}

template <int kMost, int W, class Format>
RNNFAST_OUTLINE void low_tile_column(ptrdiff_t rows, ptrdiff_t column, const LowRows& a,
                                     const LowPanels& b, const StoreRows<float, true>& c) {
    cut_rows<kMost>(rows, [&](ptrdiff_t first, auto m) {
        Floats acc[decltype(m)::value][W];
        c.start(first, column, acc);
        Format::multiply(a, first, b, column, acc);
        c.finish(first, column, acc);
    });
}

// FormatFunctions::multiply. The cells read the sums from C: with their equations inlined, five cells
// in two formats took 600 KB of code instead of 100.
template <class Format>
void multiply_low(int width, ptrdiff_t rows, const float* a, ptrdiff_t ld, ptrdiff_t n,
                  const LowRoom& room, const LowPanels& b, const StoreRows<float, true>& c) {
    for (ptrdiff_t r = 0; r < rows; ++r) {
        room.scales[r] = Format::scale(a + r * ld, n);
        Format::encode(a + r * ld, n, room.scales[r], room.rows + r * room.ld);
    }
    const LowRows left{room.rows, room.ld, room.scales};
    const auto tiles = [&](ptrdiff_t column, auto w) {
        low_tile_column<tile_rows(4), decltype(w)::value, Format>(rows, column, left, b, c);
    };
    if (width == 3)
        cut_columns<3, 3>(b, tiles);
    else
        cut_columns<4, 1>(b, tiles);
}

template <class Format>
constexpr FormatFunctions kFormat = {Format::kOfWord, Format::kScaled, pack_low<Format>,
                                     multiply_low<Format>};

}  // namespace
}  // namespace rnnfast
