// How a pass is cut into blocks and launches.
#pragma once

#include "cuda/layer.h"

namespace rnnfast {
namespace cuda {

// How many groups of its columns the warps of a kernel may keep in registers, each 4 registers a
// tile, of which a thread has room for so many beside what a step takes and reads ahead.
constexpr int kGroupChoices[] = {2, 4, 8, 16};
constexpr int kKeptRegisters = 64;
constexpr int registers_for(int groups, int tiles) { return groups * tiles * 4; }

struct Plan {
    int depth;   // of the columns
    int blocks;  // of a shard
    int shards;  // of the batch
    int shard_rows;
    int groups;  // of kGroupChoices; 0: the columns are read in each step
    bool
        together;  // one launch for all steps, whose blocks run at the same time; else one for each
    int at_once;   // shards in a launch
    int tiles;     // of a block's columns
    int shared;    // bytes

    size_t columns() const { return size_t(blocks) * kColumns * tiles * depth; }
};

// processors: streaming multiprocessors of the device, each with one block; kept: registers of
// columns.
template <class T>
Plan plan(int batch, int hidden, int gates, bool backward, int processors, int kept) {
    Plan p{};
    p.tiles = backward ? 1 : gates;
    p.depth = round_up(hidden, kGroup<T>) * (backward ? gates : 1);
    p.blocks = whole(hidden, kColumns);
    // As many shards as run at the same time, none smaller than a tile or larger than a block
    // takes.
    const int fit = processors / p.blocks;
    const int tiles_of_rows = whole(batch, kRows);
    const int wanted = fit < 1 ? 1 : fit < tiles_of_rows ? fit : tiles_of_rows;
    p.shard_rows = round_up(whole(batch, wanted), kRows);
    if (p.shard_rows > kMostRows) p.shard_rows = kMostRows;
    p.shards = whole(batch, p.shard_rows);
    p.shared = shared_floats_for(p.shard_rows, p.tiles) * int(sizeof(float));
    const int groups = whole(p.depth / kGroup<T>, kWarps);
    p.together = fit >= 1;
    for (int choice : kGroupChoices)
        if (p.together && !p.groups && choice >= groups && registers_for(choice, p.tiles) <= kept)
            p.groups = choice;
    p.at_once = p.together && fit < p.shards ? fit : p.shards;
    return p;
}

// Where the parts of a workspace lie, in bytes, each at a multiple of 256.
struct Workspace {
    size_t columns, exchange, state, arrived, size;
};

inline Workspace workspace(const Plan& p, int batch, int hidden, size_t element) {
    const auto after = [](size_t from, size_t bytes) { return (from + bytes + 255) / 256 * 256; };
    Workspace w{};
    w.exchange = after(0, p.columns() * element);
    w.state = after(w.exchange, 2 * size_t(batch) * size_t(p.depth) * element);
    w.arrived = after(w.state, 2 * size_t(batch) * size_t(hidden) * sizeof(float));
    w.size = after(w.arrived, size_t(p.shards) * sizeof(uint32_t));
    return w;
}

}  // namespace cuda
}  // namespace rnnfast
