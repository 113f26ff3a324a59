// The product of a step on the tensor cores: rows of an operand that all blocks share by the
// columns that this block owns, which stay in its registers and shared memory from step to step.
//
// k is cut into groups of kGroup: rows are whole groups, and columns lie group by group, so that a warp
// reads them in one piece. Of a group, the four lanes of a row or a column take 16 bytes each, and
// those are what they multiply, in two instructions: which k an instruction thinks they are does not
// matter, as rows and columns agree on it.
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
// below; column_of(tile): of its column there, read when it is needed.
template <int kTiles, class ColumnOf>
RNNFAST_DEVICE void add_group(float (&sums)[kTiles][4], const Quad& low, const Quad& high,
                              const ColumnOf& column_of, Bfloat16 type) {
    RNNFAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
        const Quad column = column_of(tile);
        RNNFAST_UNROLL
        for (int half = 0; half < 4; half += 2) {
            const uint32_t a[4] = {low.word[half], high.word[half], low.word[half + 1],
                                   high.word[half + 1]};
            mma(sums[tile], a, column.word + half, type);
        }
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
template <int kTiles, class ColumnOf>
RNNFAST_DEVICE void add_group(float (&sums)[kTiles][4], const Quad& low, const Quad& high,
                              const ColumnOf& column_of, float type) {
    uint32_t large[8], small[8];
    RNNFAST_UNROLL
    for (int i = 0; i < 8; ++i) {
        const Parts in = parts((i % 2 ? high : low).word[i / 2]);
        large[i] = in.large, small[i] = in.small;
    }
    RNNFAST_UNROLL
    for (int tile = 0; tile < kTiles; ++tile) {
        const Quad column = column_of(tile);
        RNNFAST_UNROLL
        for (int half = 0; half < 4; half += 2) {
            const Parts b0 = parts(made_here(column.word[half]));
            const Parts b1 = parts(made_here(column.word[half + 1]));
            const uint32_t b_large[2] = {b0.large, b1.large}, b_small[2] = {b0.small, b1.small};
            float fresh[4] = {};
            mma(fresh, small + 2 * half, b_large, type);
            mma(fresh, large + 2 * half, b_small, type);
            mma(fresh, large + 2 * half, b_large, type);
            RNNFAST_UNROLL
            for (int i = 0; i < 4; ++i) sums[tile][i] += fresh[i];
        }
    }
}

// Of so many tiles, those of a grid's block, into how many parts the warps cut them: a warp has
// registers for the sums and the columns of 8.
RNNFAST_INLINE constexpr int grid_apart(int tiles) { return tiles > 8 ? 2 : 1; }

// How many groups of its columns a warp keeps from step to step, in registers and then in shared
// memory; the others it reads in each step.
struct Kept {
    int registers, shared;
};
// Bytes of shared memory that so many groups of each warp take.
RNNFAST_INLINE constexpr int shared_columns(int groups, int tiles) {
    return groups * tiles * kThreads * int(sizeof(Quad));
}

// The columns of a block: kTiles times kUnits, of which a warp has a part, kColumns of each kUnits.
// The warps of one part split k: each has every kSplits-th group, and keeps at most kGroups of them in
// registers. Those that are in shared memory a thread reads as it put them there, and nobody else.
template <class T, int kTiles, int kParts, int kGroups>
class Columns {
public:
    static constexpr int kSplits = kWarps / kParts, kUnits = kParts * kColumns;

    // packed: (depth / kGroup, kTiles * kUnits, kGroup); shared: shared_columns().
    RNNFAST_DEVICE Columns(const T* packed, int depth, const Kept& kept, float* shared)
        : groups_(depth / kGroup<T>),
          own_(whole(groups_ - split(), kSplits)),
          in_registers_(least(kept.registers, own_)),
          on_chip_(least(kept.registers + kept.shared, own_)) {
        quads_ = reinterpret_cast<const Quad*>(packed) + (part() * kColumns + lane_row()) * 4 +
                 lane_quad();
        shared_ = reinterpret_cast<Quad*>(shared) + thread();
        RNNFAST_UNROLL
        for (int i = 0; i < kGroups; ++i)
            for (int tile = 0; tile < kTiles; ++tile)
                if (i < in_registers_) kept_[i][tile] = *in_memory(i, tile);
        RNNFAST_ROLLED
        for (int i = in_registers_; i < on_chip_; ++i)
            for (int tile = 0; tile < kTiles; ++tile) *in_shared(i, tile) = *in_memory(i, tile);
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
            if constexpr (Exchange::kNear) {
                // The next group is under way while one is multiplied, and no more: the compiler
                // would read all at once, into registers that are not there.
                Quad low_quad = low_of(in_rows(0)), high_quad = high_of(in_rows(0));
                RNNFAST_UNROLL
                for (int i = 0; i < kGroups; ++i) {
                    if (i >= in_registers_) continue;
                    const int next = in_rows(i + 1);
                    const Quad low_next = low_of(next), high_next = high_of(next);
                    add_group(
                        sums, low_quad, high_quad, [&](int tile) { return kept_[i][tile]; }, T{});
                    low_quad = low_next, high_quad = high_next;
                }
            } else {
                // kAtOnce groups are under way at a time, for the same reason.
                const auto add_some = [&](int from, int end, const auto& column_of) {
                    Quad low_quads[kAtOnce], high_quads[kAtOnce];
                    RNNFAST_UNROLL
                    for (int i = 0; i < kAtOnce; ++i)
                        if (from + i < end) {
                            low_quads[i] = low_of(group(from + i));
                            high_quads[i] = high_of(group(from + i));
                        }
                    RNNFAST_UNROLL
                    for (int i = 0; i < kAtOnce; ++i)
                        if (from + i < end)
                            add_group(
                                sums, low_quads[i], high_quads[i],
                                [&](int tile) { return column_of(from + i, tile); }, T{});
                    stay_in_order();
                };
                RNNFAST_UNROLL
                for (int i = 0; i < kGroups; i += kAtOnce)
                    if (i < in_registers_)
                        add_some(i, in_registers_,
                                 [&](int at, int tile) { return kept_[at % kGroups][tile]; });
                RNNFAST_ROLLED
                for (int i = in_registers_; i < on_chip_; i += kAtOnce)
                    add_some(i, on_chip_, [&](int at, int tile) { return *in_shared(at, tile); });
                RNNFAST_ROLLED
                for (int i = on_chip_; i < own_; i += kAtOnce)
                    add_some(i, own_, [&](int at, int tile) { return *in_memory(at, tile); });
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
    // Groups of rows under way, each 8 registers, beside those of columns and sums; of floats their two
    // parts take twice that, and so do those of a column.
    static constexpr bool kFull = (kGroups + 1) * kTiles * 4 > 80;
    static constexpr int kAtOnce = sizeof(T) == 4 && kTiles > 4 ? 1
                                   : kFull                      ? 2
                                   : kTiles > 1                 ? 4
                                                                : 8;

    RNNFAST_DEVICE static int part() { return warp() % kParts; }
    RNNFAST_DEVICE static int split() { return warp() / kParts; }
    RNNFAST_DEVICE static int least(int a, int b) { return a < b ? a : b; }
    RNNFAST_DEVICE static int group(int i) { return split() + i * kSplits; }  // i-th of this warp's
    RNNFAST_DEVICE int in_rows(int i) const { return least(group(i), groups_ - 1); }

    // The i-th group of this thread's column in a tile.
    RNNFAST_DEVICE const Quad* in_memory(int i, int tile) const {
        return quads_ + (group(i) * kTiles + tile) * (4 * kUnits);
    }
    RNNFAST_DEVICE Quad* in_shared(int i, int tile) const {
        return shared_ + ((i - in_registers_) * kTiles + tile) * kThreads;
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

    int groups_, own_, in_registers_, on_chip_;  // groups: of a column, of those this warp's
    const Quad* quads_;
    Quad* shared_;
    Quad kept_[kGroups][kTiles];
};

}  // namespace cuda
}  // namespace rnnfast
