// A format of few bits for the operands of products, as the passes of float32 use it: each ISA has a
// table of functions for each format, so that the passes are compiled once for all of them.
//
// A format keeps some k together in a word of 32 bits. A row of the left operand is words in order,
// and a panel of the right one [word][vector][lane], so that one broadcast word meets a vector of
// words. The number of k is padded to whole words with zeros of the right operand.
#pragma once

#include "core/args.h"

namespace rnnfast {

// Sums of as many products of 8 bits fit in 32.
constexpr ptrdiff_t kMostOfInt8 = 131072;

// Rows whose sums a product in a format keeps in L1 at a time, at most.
constexpr ptrdiff_t kMostLowRows = 32;

// What the registers of a thread are prepared for, if a format's have to be: in one pass, at whose start
// they are for nothing.
struct Prepared {
    ptrdiff_t rows;
};

// A row of floats: `runs` runs of `run` elements, `stride` apart; several are whole vectors each.
struct LowSource {
    const float* base;
    ptrdiff_t run;
    ptrdiff_t runs;
    ptrdiff_t stride;
};

// The left operand: rows of words, `ld` bytes apart, and what one in the words of a row stands for; and
// the state of the thread's pass.
struct LowRows {
    unsigned char* base;
    ptrdiff_t ld;
    float* units;
    Prepared* prepared;

    RNNFAST_INLINE LowRows from(ptrdiff_t row) const {
        return {base + row * ld, ld, units ? units + row : nullptr, prepared};
    }
};

// Panels of the right operand that follow on one another, `panels` of `width` vectors each: 1, or for one
// row 2.
struct LowPanel {
    int width, panels;
    ptrdiff_t words;  // of a column
    const unsigned char* base;
    const float* units;      // of the columns; null where the format has none
    const uint32_t* starts;  // what the columns' sums start from; likewise
};

// Rows of sums, as wide as the panels, and what they start from; possibly the same memory.
struct LowSums {
    const float* from;
    ptrdiff_t from_ld;
    float* to;
    ptrdiff_t to_ld;
};

struct Format {
    ptrdiff_t of_word;  // elements that a word has
    bool has_units;     // whether rows and columns have units of their own
    float speed;        // products a time, beside float32's of the same ISA
    float row_speed;    // the same of one row
    ptrdiff_t rows;     // that a product takes at a time, at most kMostLowRows
    ptrdiff_t waits;    // cycles from one product of a sum to the next
    // A vector of columns, the first `lanes` of them from rows of n in torch's layout, the others
    // zeros, into vectors of words that lie `step` elements apart; and, if wanted, what a row of zeros
    // gives in them.
    void (*pack_columns)(const float* rows, ptrdiff_t lanes, ptrdiff_t n, ptrdiff_t step, float* to,
                         float* units, uint32_t* starts, float* of_zeros);
    // A row of the left operand, to whole vectors of elements; returns its unit.
    float (*encode)(const LowSource& row, unsigned char* to);
    // to = from + A B.
    void (*multiply)(ptrdiff_t rows, const LowRows& a, const LowPanel& b, const LowSums& sums);
    // Multiplies what is in registers, `rounds` times over; returns how many operations that were.
    // `sums` keeps the compiler from leaving it out.
    ptrdiff_t (*probe)(ptrdiff_t rounds, uint32_t* sums);
    // Called when a thread's pass is done; null: the format prepares nothing.
    void (*leave)() = nullptr;
    // Whether there is a backward pass; null where not:
    bool trains = false;
    // `rows` rows of a vector, one after the other, into rows of words, each of `of_word` of them.
    void (*join_rows)(const float* from, ptrdiff_t rows, float* to) = nullptr;
    // C (lanes, n) += A^T B, or = if `assign`, from rows of words: one vector of A, and those of B
    // that n elements take, `b_stride` apart.
    void (*outer)(ptrdiff_t lanes, ptrdiff_t rows, const float* a, const float* b,
                  ptrdiff_t b_stride, float* c, ptrdiff_t ldc, ptrdiff_t n, bool assign,
                  Prepared* prepared) = nullptr;
};

}  // namespace rnnfast
