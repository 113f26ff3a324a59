// How a pass is cut into blocks and launches.
#pragma once

#include "cuda/exchange.h"
#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {

// Registers that columns take: each group 4 a tile.
constexpr int registers_for(int groups, int tiles) { return groups * tiles * 4; }

// How many groups of its columns the warps of a grid's kernel may keep in registers, of which a
// thread has room for so many beside what a step takes and reads ahead.
constexpr int kGroupChoices[] = {2, 4, 8, 16};
constexpr int kKeptRegisters = 64;

// Tiles of units that a cluster's block may have, fewest first: as many blocks as there can be.
constexpr int kPartChoices[] = {1, 2, 4};
// So that a step, which reads from shared memory alone, has the rest.
constexpr int kKeptRegistersOfClusters = 128;

// How many groups a warp has where a cluster's blocks are kMostBlocks.
template <class T>
constexpr int cluster_groups(int parts, int gates, bool backward) {
    const int in_gate = kMostBlocks * parts * kColumns / kGroup<T>;
    return backward ? whole(in_gate * gates, kWarps) : whole(in_gate, kWarps / parts);
}
template <class T>
constexpr bool keeps_columns(int parts, int gates, bool backward) {
    return registers_for(cluster_groups<T>(parts, gates, backward), backward ? parts : gates) <=
           kKeptRegistersOfClusters;
}

struct Plan {
    Meeting meeting;  // kNone: each step is a launch
    int units;        // of a block
    int depth;        // of the columns
    int blocks;       // of a shard
    int shards;       // of the batch
    int shard_rows;
    int groups;   // of the grid's kernel; 0: the columns are read in each step
    int at_once;  // shards in a launch
    int columns;  // of a block
    int shared;   // bytes

    size_t packed() const { return size_t(blocks) * columns * depth; }

    // As many shards as run at the same time, none smaller than a tile or larger than `most`.
    void cut(int batch, int fit, int most) {
        const int tiles = whole(batch, kRows), wanted = fit < 1 ? 1 : fit < tiles ? fit : tiles;
        shard_rows = round_up(whole(batch, wanted), kRows);
        if (shard_rows > most) shard_rows = most;
        shards = whole(batch, shard_rows);
    }
};

// Bytes of shared memory of a grid's block. Of most_rows(kColumns) rows: what its kernel may take.
constexpr int grid_shared(int rows, int columns) {
    return shared_floats_for(rows, columns, kWarps) * int(sizeof(float));
}

// Blocks of kColumns units. processors: streaming multiprocessors of the device, each with one
// block; kept: registers of columns.
template <class T>
Plan plan_grid(int batch, int hidden, int gates, bool backward, int processors, int kept) {
    Plan p{};
    const int tiles = backward ? 1 : gates;
    p.units = kColumns;
    p.columns = tiles * kColumns;
    p.depth = round_up(hidden, kGroup<T>) * (backward ? gates : 1);
    p.blocks = whole(hidden, kColumns);
    const int fit = processors / p.blocks;
    p.cut(batch, fit, most_rows(kColumns));
    p.shared = grid_shared(p.shard_rows, p.columns);
    const int groups = whole(p.depth / kGroup<T>, kWarps);
    p.meeting = fit >= 1 ? Meeting::kAll : Meeting::kNone;
    for (int choice : kGroupChoices)
        if (fit >= 1 && !p.groups && choice >= groups && registers_for(choice, tiles) <= kept)
            p.groups = choice;
    p.at_once = fit >= 1 && fit < p.shards ? fit : p.shards;
    return p;
}

// Blocks of `parts` tiles of units, those of a shard a cluster; no blocks: it does not fit into one.
// fit: clusters that run at the same time; the others wait for those to end.
template <class T>
Plan plan_cluster(int batch, int hidden, int gates, bool backward, int parts, int fit) {
    Plan p{};
    const int splits = backward ? kWarps : kWarps / parts;
    p.units = parts * kColumns;
    const int blocks = whole(hidden, p.units);
    if (blocks > kMostBlocks || !keeps_columns<T>(parts, gates, backward)) return p;
    p.meeting = Meeting::kCluster;
    p.columns = p.units * (backward ? 1 : gates);
    p.depth = round_up(round_up(hidden, p.units), kGroup<T>) * (backward ? gates : 1);
    const auto shared = [&](int rows) {
        return shared_floats_for(rows, p.columns, splits) * int(sizeof(float)) +
               exchange_bytes<T>(rows, p.depth);
    };
    int most = most_rows(p.units);
    while (most > 0 && shared(most) > kMostShared) most -= kRows;
    if (most < kRows) return p;
    p.blocks = blocks;
    p.cut(batch, fit, most);
    p.shared = shared(p.shard_rows);
    p.at_once = p.shards;
    return p;
}

// Where the parts of a workspace lie, in bytes, each at a multiple of 256.
struct Workspace {
    size_t columns, exchange, state, arrived, size;
};

inline Workspace workspace(const Plan& p, int batch, int hidden, size_t element) {
    const auto after = [](size_t from, size_t bytes) { return (from + bytes + 255) / 256 * 256; };
    Workspace w{};
    w.exchange = after(0, p.packed() * element);
    w.state = after(w.exchange, 2 * size_t(batch) * size_t(p.depth) * element);
    w.arrived = after(w.state, 2 * size_t(batch) * size_t(hidden) * sizeof(float));
    w.size = after(w.arrived, size_t(p.shards) * sizeof(uint32_t));
    return w;
}

}  // namespace cuda
}  // namespace rnnfast
