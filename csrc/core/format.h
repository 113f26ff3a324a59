// Formats of few bits for the operands of products in passes of float32. Each ISA has a table of functions
// for each format, so that a pass is compiled once for all formats.
//
// A format keeps several consecutive k in a word of 32 bits. A row of the left operand consists of words in
// order. A panel of the right operand is [word][vector][lane], so that one broadcast word is multiplied by a
// vector of words. The number of k is padded to whole words, for which the right operand has zeros.
#pragma once

#include "core/args.h"

namespace rnnfast {

// A sum of this many products of 8-bit numbers fits in 32 bits.
constexpr ptrdiff_t kMostOfInt8 = 131072;

// The most rows whose sums a product in a format keeps in L1 at a time.
constexpr ptrdiff_t kMostLowRows = 32;

// The state of a thread's tile registers in one pass, for formats that must configure them: the number of
// rows for which they are configured. It is 0 at the start of the pass, when they are not.
struct Prepared {
    ptrdiff_t rows;
};

// A row of floats: `runs` runs of `run` elements, which begin `stride` elements apart. If there are several,
// each is a whole number of vectors.
struct LowSource {
    const float* base;
    ptrdiff_t run;
    ptrdiff_t runs;
    ptrdiff_t stride;
};

// The left operand: rows of words, `ld` bytes apart; the unit of each row, that is, the value of an integer
// 1 in it; and the state of the thread's registers.
struct LowRows {
    unsigned char* base;
    ptrdiff_t ld;
    float* units;
    Prepared* prepared;

    RNNFAST_INLINE LowRows from(ptrdiff_t row) const {
        return {base + row * ld, ld, units ? units + row : nullptr, prepared};
    }
};

// Consecutive panels of the right operand, of `width` vectors each. `panels` is 1; in a product of one row it
// may be 2.
struct LowPanel {
    int width, panels;
    ptrdiff_t words;  // in a column
    const unsigned char* base;
    const float* units;      // of the columns; null if the format has none
    const uint32_t* starts;  // the initial values of the columns' sums; null likewise
};

// Rows of sums, as wide as the panels, and their initial values, which may lie in the same memory.
struct LowSums {
    const float* from;
    ptrdiff_t from_ld;
    float* to;
    ptrdiff_t to_ld;
};

struct Format {
    ptrdiff_t of_word;  // the number of elements in a word
    bool has_units;     // whether rows and columns have units of their own
    float speed;        // the rate of products, relative to float32's on the same ISA
    float row_speed;    // the same for products of one row
    ptrdiff_t rows;     // the number that a product takes at a time, at most kMostLowRows
    ptrdiff_t waits;    // cycles between one product of a sum and the next
    // Packs a vector of columns into vectors of words that lie `step` elements apart. The first `lanes`
    // columns come from rows of n elements in torch's layout; the others are zeros. `of_zeros`, if not null,
    // gets the product of a row of zeros with these columns.
    void (*pack_columns)(const float* rows, ptrdiff_t lanes, ptrdiff_t n, ptrdiff_t step, float* to,
                         float* units, uint32_t* starts, float* of_zeros);
    // Encodes a row of the left operand, padded to whole vectors of elements. Returns the row's unit.
    float (*encode)(const LowSource& row, unsigned char* to);
    // Computes to = from + A B.
    void (*multiply)(ptrdiff_t rows, const LowRows& a, const LowPanel& b, const LowSums& sums);
    // Multiplies data in registers `rounds` times, and returns the number of operations. `sums` takes a
    // result, so that the compiler cannot leave the work out.
    ptrdiff_t (*probe)(ptrdiff_t rounds, uint32_t* sums);
    // Called at the end of a thread's pass; null: the format prepares no registers.
    void (*leave)() = nullptr;
    // Whether the format has a backward pass. If not, the functions below are null.
    bool trains = false;
    // Joins `rows` consecutive rows of a vector into rows of words; `of_word` rows make one row of words.
    void (*join_rows)(const float* from, ptrdiff_t rows, float* to) = nullptr;
    // Computes C (lanes, n) += A^T B, or C = A^T B if `assign`. A and B are rows of words: A has one vector,
    // and B those of n elements, `b_stride` apart.
    void (*outer)(ptrdiff_t lanes, ptrdiff_t rows, const float* a, const float* b,
                  ptrdiff_t b_stride, float* c, ptrdiff_t ldc, ptrdiff_t n, bool assign,
                  Prepared* prepared) = nullptr;
};

}  // namespace rnnfast
