// How a pass is cut into blocks and launches.
#pragma once

#include "cuda/exchange.h"
#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {

// Registers that columns take: each group 4 a tile.
constexpr int registers_for(int groups, int tiles) { return groups * tiles * 4; }

// Tiles of units that a block may have, fewest first: as many blocks as there can be.
constexpr int kPartChoices[] = {1, 2, 4};

// Registers that a thread of a cluster has for columns: a step, which reads from shared memory alone,
// takes the rest.
constexpr int kKeptRegisters = 128;

// Most groups of its columns that a warp of a grid's kernel has registers for, beside its sums. Blocks
// of 8 units keep fewer, and read further ahead instead.
template <class T>
constexpr int most_groups(int parts, int tiles) {
    const int registers = parts == 1 ? 80 : sizeof(T) == 2 ? 144 : 96;
    const int groups = registers / registers_for(1, tiles) - 1;
    return groups < 16 ? groups : 16;
}

// For how many it has registers where it is to keep `wanted`, or what it can of them. Blocks of 16 and
// 32 units have long columns, for which one kernel is enough.
template <class T>
constexpr int grid_groups(int parts, int tiles, int wanted) {
    const int most = most_groups<T>(parts, tiles);
    for (int choice = 2; parts == 1 && choice < most; choice *= 2)
        if (choice >= wanted) return choice;
    return most;
}

// How many groups a warp has where a cluster's blocks are kMostBlocks.
template <class T>
constexpr int cluster_groups(int parts, int gates, bool backward) {
    const int in_gate = kMostBlocks * parts * kColumns / kGroup<T>;
    return backward ? whole(in_gate * gates, kWarps) : whole(in_gate, kWarps / parts);
}
template <class T>
constexpr bool keeps_columns(int parts, int gates, bool backward) {
    return registers_for(cluster_groups<T>(parts, gates, backward), backward ? parts : gates) <=
           kKeptRegisters;
}

struct Plan {
    Meeting meeting;  // kNone: each step is a launch
    int units;        // of a block
    int depth;        // of the columns
    int blocks;       // of a shard
    int shards;       // of the batch
    int shard_rows;
    int at_once;  // shards in a launch
    int columns;  // of a block
    Kept kept;    // of these
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

// What a pass may take of a device.
struct Room {
    int processors;  // streaming multiprocessors, each with one block of a grid
    int shared;      // bytes of shared memory of a block
    int registers;   // of columns, of a thread
};

// Blocks of the fewest units with which those of a shard run at the same time. Where they do with
// none, each step is a launch, which keeps nothing in shared memory: it would be copied in each.
template <class T>
Plan plan_grid(int batch, int hidden, int gates, bool backward, const Room& room) {
    const auto fitting = [&](int parts) {
        return room.processors / whole(hidden, parts * kColumns);
    };
    int parts = 1;
    for (int choice : kPartChoices)
        if (!fitting(parts) && fitting(choice)) parts = choice;
    const int fit = fitting(parts), wide = parts * (backward ? 1 : gates), apart = grid_apart(wide);
    const int tiles = wide / apart, splits = kWarps / apart;
    Plan p{};
    p.meeting = fit ? Meeting::kAll : Meeting::kNone;
    p.units = parts * kColumns;
    p.columns = wide * kColumns;
    p.depth = round_up(hidden, kGroup<T>) * (backward ? gates : 1);
    p.blocks = whole(hidden, p.units);
    p.cut(batch, fit, most_rows(p.units));
    p.at_once = fit && fit < p.shards ? fit : p.shards;
    p.shared = shared_floats_for(p.shard_rows, p.columns, splits) * int(sizeof(float));
    const auto keep = [](int wanted, int room, int each) {
        return room < each ? 0 : wanted < room / each ? wanted : room / each;
    };
    const int groups = whole(p.depth / kGroup<T>, splits), most = most_groups<T>(parts, tiles);
    p.kept.registers = keep(groups < most ? groups : most, room.registers, registers_for(1, tiles));
    if (fit)
        p.kept.shared =
            keep(groups - p.kept.registers, room.shared - p.shared, shared_columns(1, tiles));
    p.shared += shared_columns(p.kept.shared, tiles);
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
    p.kept.registers = cluster_groups<T>(parts, gates, backward);
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
