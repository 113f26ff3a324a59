// The product of a step on the tensor cores: rows of an operand that all blocks share by the
// columns that this block owns, which stay in its registers from step to step.
//
// Both lie with k in order, rows of whole groups of kGroup. Of a group, the four lanes of a row
// take 16 bytes each, and those are what they multiply, in two instructions: which k an instruction
// thinks they are does not matter, as rows and columns agree on it.
#pragma once

#include "cuda/device.h"

namespace rnnfast {
namespace cuda {

constexpr int kRows = 16;    // of a tile
constexpr int kColumns = 8;  // of a tile: units of one gate

// Floats between rows of the sums: a warp that reads four of them finds them in different banks.
RNNFAST_INLINE constexpr int pitch(int columns) {
    return columns + (columns % 16 == 0 ? kColumns : 0);
}
// Floats of shared memory that a product takes: the sums of each split of k.
RNNFAST_INLINE constexpr int shared_floats_for(int rows, int columns, int splits) {
    return splits * ((rows + kRows - 1) / kRows * kRows) * pitch(columns);
}

RNNFAST_DEVICE int lane_row() { return thread() % 32 / 4; }  // or column
RNNFAST_DEVICE int lane_quad() { return thread() % 4; }
RNNFAST_DEVICE int lane() { return thread() % 32; }
RNNFAST_DEVICE int warp() { return thread() / 32; }

// sums += rows by columns, over one group of k. `low`, `high`: of this lane's row, and of the row 8
// below; `columns`: of its column, in each tile.
template <int kTiles>
RNNFAST_DEVICE void add_group(float (&sums)[kTiles][4], const Quad& low, const Quad& high,
                              const Quad* columns, Bfloat16 type) {
    RNNFAST_UNROLL
    for (int half = 0; half < 4; half += 2) {
        const uint32_t a[4] = {low.word[half], high.word[half], low.word[half + 1],
                               high.word[half + 1]};
        RNNFAST_UNROLL
        for (int tile = 0; tile < kTiles; ++tile)
            mma(sums[tile], a, columns[tile].word + half, type);
    }
}

// The 19 bits of a float that the tensor cores read, rounded to the nearest, and those of the rest;
// of what is not finite, all in the first. NaN is one that `quiet` or arithmetic made.
struct Parts {
    uint32_t large, small;
};
RNNFAST_DEVICE Parts parts(uint32_t bits) {
    constexpr uint32_t kRead = 0xffffe000u, kExponent = 0x7f800000u;
    const uint32_t rounded = (bits + 0x1000u) & kRead;
    if ((rounded & kExponent) == kExponent) return {bits & kRead, 0};
    return {rounded, bits_of(float_of(bits) - float_of(rounded)) & kRead};
}

// Three products for each, small ones first, which lose at most 2^-21 of a term. The tensor cores
// round what they add towards zero, so that a long chain of them drifts there: each eight k have sums
// of their own, which are added to the others as floats are.
template <int kTiles>
RNNFAST_DEVICE void add_group(float (&sums)[kTiles][4], const Quad& low, const Quad& high,
                              const Quad* columns, float type) {
    RNNFAST_UNROLL
    for (int half = 0; half < 4; half += 2) {
        const Parts in[4] = {parts(low.word[half]), parts(high.word[half]),
                             parts(low.word[half + 1]), parts(high.word[half + 1])};
        const uint32_t large[4] = {in[0].large, in[1].large, in[2].large, in[3].large};
        const uint32_t small[4] = {in[0].small, in[1].small, in[2].small, in[3].small};
        RNNFAST_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            const Parts b0 = parts(made_here(columns[tile].word[half]));
            const Parts b1 = parts(made_here(columns[tile].word[half + 1]));
            const uint32_t b_large[2] = {b0.large, b1.large}, b_small[2] = {b0.small, b1.small};
            float fresh[4] = {};
            mma(fresh, small, b_large, type);
            mma(fresh, large, b_small, type);
            mma(fresh, large, b_large, type);
            RNNFAST_UNROLL
            for (int i = 0; i < 4; ++i) sums[tile][i] += fresh[i];
        }
    }
}

// The columns of a block: kTiles times kUnits, of which a warp has a part, kColumns of each kUnits.
// The warps of one part split k: each multiplies every kSplits-th group; it keeps kGroups of them, or
// with kGroups = 0 reads them in each step.
template <class T, int kTiles, int kParts, int kGroups>
class Columns {
public:
    static constexpr int kSplits = kWarps / kParts, kUnits = kParts * kColumns;

    // packed: (kTiles * kUnits, depth); depth: a multiple of kGroup.
    RNNFAST_DEVICE Columns(const T* packed, int depth) : groups_(depth / kGroup<T>) {
        quads_ = reinterpret_cast<const Quad*>(packed) +
                 size_t(part() * kColumns + lane_row()) * quads_in_row() + lane_quad();
        RNNFAST_UNROLL
        for (int i = 0; i < kGroups; ++i) {
            const int group = split() + i * kSplits;
            if (group < groups_) read(kept_[i], group);
        }
    }

    // Of shared memory: rows of sums.
    RNNFAST_INLINE static constexpr int floats(int rows) {
        return shared_floats_for(rows, kTiles * kUnits, kSplits);
    }

    // Rows that lie where `Exchange` has them, `between` apart, by the columns; each warp's part of
    // the sums goes to shared memory.
    template <class Exchange>
    RNNFAST_DEVICE void multiply(const T* operand, int between, int rows, const Exchange&) const {
        const Quad* quads = reinterpret_cast<const Quad*>(operand) + lane_quad();
        const size_t quads_between = size_t(between) / kPerQuad<T>;
        for (int first = 0; first < rows; first += kRows) {
            float sums[kTiles][4] = {};
            // Sums of rows past the last are never read.
            const int last = rows - 1, wanted = first + lane_row();
            const int low = wanted < last ? wanted : last;
            const int high = wanted + kRows / 2 < last ? wanted + kRows / 2 : last;
            const Quad* const from_low = quads + low * quads_between;
            const Quad* const from_high = quads + high * quads_between;
            const auto low_of = [&](int group) { return Exchange::load(from_low + 4 * group); };
            const auto high_of = [&](int group) { return Exchange::load(from_high + 4 * group); };
            if constexpr (kGroups > 0 && Exchange::kNear) {
                // The next group is under way while one is multiplied, and no more: the compiler
                // would read all at once, into registers that are not there.
                Quad low_quad = low_of(in_rows(split())), high_quad = high_of(in_rows(split()));
                RNNFAST_UNROLL
                for (int i = 0; i < kGroups; ++i) {
                    const int group = split() + i * kSplits;
                    if (group >= groups_) continue;
                    const int next = in_rows(group + kSplits);
                    const Quad low_next = low_of(next), high_next = high_of(next);
                    add_group(sums, low_quad, high_quad, kept_[i], T{});
                    low_quad = low_next, high_quad = high_next;
                }
            } else if constexpr (kGroups > 0) {
                RNNFAST_UNROLL
                for (int i = 0; i < kGroups; ++i) {
                    const int group = split() + i * kSplits;
                    if (group < groups_)
                        add_group(sums, low_of(group), high_of(group), kept_[i], T{});
                }
            } else {
                for (int group = split(); group < groups_; group += kSplits) {
                    Quad columns[kTiles];
                    read(columns, group);
                    add_group(sums, low_of(group), high_of(group), columns, T{});
                }
            }
            store(sums, first, rows);
        }
    }

    // The product of a row and a column, over all k. Only after all threads have met.
    RNNFAST_DEVICE static float sum(int row, int column, int rows) {
        const float* from = shared_floats() + row * kPitch + column;
        float total = 0;
        RNNFAST_UNROLL
        for (int i = 0; i < kSplits; ++i) total += from[size_t(i) * round_up(rows, kRows) * kPitch];
        return total;
    }

private:
    static constexpr int kPitch = pitch(kTiles * kUnits);

    RNNFAST_DEVICE static int part() { return warp() % kParts; }
    RNNFAST_DEVICE static int split() { return warp() / kParts; }
    RNNFAST_DEVICE int quads_in_row() const { return groups_ * 4; }
    // A group, or the last.
    RNNFAST_DEVICE int in_rows(int group) const { return group < groups_ ? group : groups_ - 1; }

    RNNFAST_DEVICE void read(Quad* columns, int group) const {
        RNNFAST_UNROLL
        for (int tile = 0; tile < kTiles; ++tile)
            columns[tile] = quads_[size_t(tile) * kUnits * quads_in_row() + 4 * group];
    }

    RNNFAST_DEVICE static void store(const float (&sums)[kTiles][4], int first, int rows) {
        float* const start = shared_floats() + size_t(split()) * round_up(rows, kRows) * kPitch +
                             (first + lane_row()) * kPitch + part() * kColumns + 2 * lane_quad();
        RNNFAST_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            float* const to = start + tile * kUnits;
            to[0] = sums[tile][0], to[1] = sums[tile][1];
            to[kRows / 2 * kPitch] = sums[tile][2], to[kRows / 2 * kPitch + 1] = sums[tile][3];
        }
    }

    int groups_;
    const Quad* quads_;
    Quad kept_[kGroups > 0 ? kGroups : 1][kTiles];
};

}  // namespace cuda
}  // namespace rnnfast
