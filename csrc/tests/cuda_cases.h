// What tests/cuda_test.cpp runs: sizes, options, and the device that it runs on.
#pragma once

#include <vector>

namespace rnnfast {
namespace cuda {

struct Case {
    int T, B, H;
    bool reverse = false, initial = true, bias = true, lengths = false, resets = false;
    bool persistent = true;  // one launch for all steps
    int waves = 1;           // of shards that run at the same time
    int in_registers = -1;   // groups of columns that there is room for; -1: as much as there is
    int in_shared = -1;      // the same of shared memory
    int parts = 1;           // tiles of units that a grid's block has
    int cluster = 0;         // blocks that a cluster may have; 0: no clusters
    int at_once = 0;         // clusters
    bool taken = false;      // whether the pass goes in clusters
    bool exact = false;      // held to an error of 1e-6 of all of an array

    // The same on a device with clusters.
    Case in_clusters(int of, int so_many = 2, bool are_taken = true) const {
        Case c = *this;
        c.cluster = of, c.at_once = so_many, c.taken = are_taken;
        return c;
    }
    // The same in blocks of 8 * `so_many` units, those of a shard at a time.
    Case in_blocks(int so_many, int so_many_waves = 1) const {
        Case c = *this;
        c.parts = so_many, c.waves = so_many_waves;
        return c;
    }
    // With room for so many groups of columns in registers and in shared memory.
    Case keeping(int registers, int shared) const {
        Case c = *this;
        c.in_registers = registers, c.in_shared = shared;
        return c;
    }
    // With what `bits` say of the rest.
    Case with(int bits) const {
        Case c = *this;
        c.reverse = bits & 1, c.initial = bits & 2, c.lengths = bits & 4, c.resets = bits & 8;
        return c;
    }
};

inline const Case kCases[] = {
    {1, 1, 8},
    {5, 3, 9},
    {4, 2, 5, true},
    {4, 2, 7, false, false, false},
    {6, 17, 12, false, true, true, true},
    {6, 5, 12, true, true, true, true},
    {5, 4, 11, false, true, true, false, true},
    {5, 4, 11, true, true, true, true, true},
    {3, 3, 40, false, true, true, true, false, false},
    {3, 2, 40, true, true, true, false, true, false},
    {32, 2, 9, false, true, true, false, false, false},
    {70, 3, 20, true, true, true, true, true, false},
    {2, 2, 130},
    {2, 35, 16},
    {2, 130, 3, true, true, true, true, true, true, 2},
};

// Columns in registers, shared memory and memory; blocks of 16 and 32 units, whose shards wait for
// each other's end.
inline std::vector<Case> grid_cases() {
    std::vector<Case> cases{Case{4, 3, 17}.with(6).keeping(0, 0), Case{2, 2, 65}.keeping(1, 0),
                            Case{3, 2, 65}.with(15).keeping(0, 1)};
    for (int parts : {2, 4}) {
        for (int bits = 0; bits < 16; bits += 3)
            cases.push_back(Case{4, 3, parts * 20 - bits % 4}.with(bits).in_blocks(parts));
        cases.push_back(Case{2, 35, parts * 10}.with(15).in_blocks(parts, parts == 2 ? 2 : 3));
        for (int i = 0; i < 3; ++i)
            cases.push_back(Case{3, 2, 135}.with(5 * i).in_blocks(parts).keeping(i % 2, i > 0));
    }
    cases.push_back(Case{2, 2, 264}.with(14).in_blocks(4).keeping(1, 1));
    return cases;
}

// Clusters of 1 to 16 blocks, of 8, 16 and 32 units each, with all else in every combination, of 16 and
// 32 units in half of them each.
inline std::vector<Case> cluster_cases() {
    std::vector<Case> cases;
    for (int blocks = 1; blocks <= 16; ++blocks)
        cases.push_back(Case{5, 3, 8 * blocks - blocks % 3}.with(blocks - 1).in_clusters(16));
    for (int bits = 0; bits < 16; ++bits) {
        const int blocks = 1 + bits % 3;
        const bool odd = (bits ^ bits >> 1 ^ bits >> 2 ^ bits >> 3) & 1;  // of options that are on
        const Case wide{5, 3, 32 * blocks - bits % 9}, narrow{5, 2, 16 * blocks - bits % 5};
        cases.push_back((odd ? wide : narrow).with(bits).in_clusters(blocks));
    }
    // Shards, and more of them than run at the same time.
    cases.push_back(Case{4, 35, 20}.with(15).in_clusters(16));
    cases.push_back(Case{3, 35, 20}.with(14).in_clusters(2));
    cases.push_back(Case{3, 40, 40}.with(13).in_clusters(2, 3));
    Case many{2, 130, 3};
    many.waves = 2;
    cases.push_back(many.with(15).in_clusters(16, 2));
    cases.push_back(many.with(12).in_clusters(16, 1, false));  // which would be three waves
    cases.push_back(Case{2, 3, 20}.with(11).in_clusters(16, 0, false));
    Case small{3, 3, 40};
    small.persistent = false;
    cases.push_back(small.with(9).in_clusters(16));
    return cases;
}

// The largest H of blocks of 16 and of 32 units.
inline const Case kLargest[] = {Case{3, 2, 250}.with(6).in_clusters(16),
                                Case{3, 2, 510}.with(15).in_clusters(16)};

// Long products, in the grid and in a cluster.
inline std::vector<Case> exact_cases() {
    Case grid = Case{2, 2, 400}.in_blocks(2), cluster = Case{2, 2, 256}.in_clusters(16);
    grid.exact = cluster.exact = true;
    return {grid, cluster};
}

}  // namespace cuda
}  // namespace rnnfast
