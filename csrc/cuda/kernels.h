// The kernels of each cell and dtype, and which of them a plan takes.
#pragma once

#include "cuda/backward.h"
#include "cuda/forward.h"
#include "cuda/plan.h"

namespace rnnfast {
namespace cuda {

template <class Cell, class T, int kParts, int kGroups>
RNNFAST_KERNEL(kThreads)
run_grid(const Forward<T> args, int first, int last) {
    run_forward<Cell, T, kParts, kGroups, ThroughMemory<T>>(args, first, last);
}
template <class Cell, class T, int kParts, int kGroups>
RNNFAST_KERNEL(kThreads)
run_grid(const Backward<T> args, int first, int last) {
    run_backward<Cell, T, kParts, kGroups, ThroughMemory<T>>(args, first, last);
}

template <class Cell, class T, int kParts>
RNNFAST_KERNEL(kThreads)
run_cluster(const Forward<T> args, int first, int last) {
#if RNNFAST_HAS_CLUSTERS
    constexpr int kGroups = cluster_groups<T>(kParts, Cell::kGates, false);
    using Exchange = ThroughCluster<T, kParts * kColumns, 1>;
    run_forward<Cell, T, kParts, kGroups, Exchange>(args, first, last);
#else
    fail();
#endif
}
template <class Cell, class T, int kParts>
RNNFAST_KERNEL(kThreads)
run_cluster(const Backward<T> args, int first, int last) {
#if RNNFAST_HAS_CLUSTERS
    constexpr int kGroups = cluster_groups<T>(kParts, Cell::kGates, true);
    using Exchange = ThroughCluster<T, kParts * kColumns, Cell::kGates>;
    run_backward<Cell, T, kParts, kGroups, Exchange>(args, first, last);
#else
    fail();
#endif
}

template <class Args>
using Kernel = void (*)(const Args, int, int);

// The kernel for a grid's blocks of so many units, whose warps keep so many groups in registers, from
// choice `at` of units and `wanted` of groups on.
template <class Cell, class Args, class T, size_t at = 0, int wanted = 1>
Kernel<Args> grid_kernel(int units, int groups) {
    constexpr int kParts = kPartChoices[at];
    constexpr int kWide = kParts * (Args::kBackward ? 1 : Cell::kGates);
    constexpr int kTiles = kWide / grid_apart(kWide);
    constexpr int kGroups = grid_groups<T>(kParts, kTiles, wanted);
    if constexpr (at + 1 < sizeof kPartChoices / sizeof(int))
        if (units > kParts * kColumns) return grid_kernel<Cell, Args, T, at + 1>(units, groups);
    if constexpr (kGroups < most_groups<T>(kParts, kTiles))
        if (groups > kGroups) return grid_kernel<Cell, Args, T, at, kGroups + 1>(units, groups);
    return run_grid<Cell, T, kParts, kGroups>;
}

// The kernel for clusters whose blocks have so many units, from choice `at` on; null: none.
template <class Cell, class Args, class T, size_t at = 0>
Kernel<Args> cluster_kernel(int units) {
    if constexpr (at < sizeof kPartChoices / sizeof(int)) {
        constexpr int kParts = kPartChoices[at];
        if constexpr (keeps_columns<T>(kParts, Cell::kGates, Args::kBackward))
            if (units == kParts * kColumns) return run_cluster<Cell, T, kParts>;
        return cluster_kernel<Cell, Args, T, at + 1>(units);
    }
    return nullptr;
}

}  // namespace cuda
}  // namespace rnnfast
