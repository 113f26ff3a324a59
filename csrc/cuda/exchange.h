// How the blocks of a shard give each other what they publish in a step: through L2, or on devices
// that have clusters each to the shared memory of all others.
//
// Both have the rows of the shard twice, for even and for odd steps, as `Starting` left them: those
// of `step`, which were published for it, while those for the next are written. A block that has
// published has read all rows of the step before, so that what others publish next may replace them.
#pragma once

#include "cuda/cluster.h"
#include "cuda/layer.h"

namespace rnnfast {
namespace cuda {

constexpr uint64_t kPatience = 10'000'000'000;  // ns; then a block has died, and waiting ends
constexpr int kLooks = 1024;                    // at what is waited for, between two at the clock

template <class Ready>
RNNFAST_DEVICE void wait_until(const Ready& ready) {
    uint64_t start = 0;
    for (int looks = 1; !ready(); ++looks) {
        if (looks % kLooks) continue;
        const uint64_t now = clock_ns();
        if (!start) start = now;
        if (now - start > kPatience) fail();
    }
}

// Through L2, and a counter for each shard: how many times a block has published.
template <class T>
class ThroughMemory {
public:
    static constexpr bool kNear = false;  // whether `load` takes few cycles

    template <class Own>
    RNNFAST_DEVICE ThroughMemory(const Own& own, const Layer& layer, const Work<T>& work, int first,
                                 float*)
        : rows_(work.exchange + size_t(own.first) * work.depth),
          size_(size_t(layer.batch) * work.depth),
          between_(work.depth),
          first_(first),
          arrived_(work.arrived + own.index) {}

    RNNFAST_DEVICE T* rows(int step) const { return rows_ + (step & 1) * size_; }
    RNNFAST_DEVICE int between() const { return between_; }
    RNNFAST_DEVICE static Quad load(const Quad* p) { return load_fresh(p); }

    // All of the block's rows for `step` are there for whoever waits for them.
    RNNFAST_DEVICE void publish(int) const {
        meet();
        if (thread() == 0) add_released(arrived_);
    }
    // Returns once all blocks of the shard have published for `step`.
    RNNFAST_DEVICE void await(int step) const {
        if (thread() == 0) {
            const uint32_t wanted = uint32_t(step - first_) * uint32_t(blocks_x());
            wait_until([&] { return int32_t(load_acquired(arrived_) - wanted) >= 0; });
        }
        meet();
    }
    RNNFAST_DEVICE void leave() const {}

private:
    T* rows_;
    size_t size_;
    int between_, first_;
    uint32_t* arrived_;
};

// Elements between rows in shared memory: an odd number of groups, so that rows that a warp reads at
// the same time lie in different banks.
template <class T>
constexpr int exchange_pitch(int depth) {
    return depth + (depth / kGroup<T> % 2 == 0 ? kGroup<T> : 0);
}
// Bytes of shared memory: both buffers, and the barrier of each.
template <class T>
constexpr int exchange_bytes(int rows, int depth) {
    return 2 * (rows * exchange_pitch<T>(depth) * int(sizeof(T)) + int(sizeof(ByteBarrier)));
}

#if RNNFAST_HAS_CLUSTERS

// The blocks of a shard are a cluster, and first..last-1 all steps. A block writes its units of each
// of kSlices parts of a row to its own buffer, from where they are pushed to the others'.
template <class T, int kUnits, int kSlices>
class ThroughCluster {
public:
    static constexpr bool kNear = true;

    template <class Own>
    RNNFAST_DEVICE ThroughCluster(const Own& own, const Layer& layer, const Work<T>& work, int,
                                  float* memory)
        : buffers_(reinterpret_cast<Quad*>(memory)),
          rows_(own.rows),
          quads_in_row_(work.depth / kPerQuad<T>),
          quads_between_(exchange_pitch<T>(work.depth) / kPerQuad<T>),
          size_(work.shard_rows * quads_between_) {
        for (int buffer = 0; buffer < 2; ++buffer) {
            const Quad* const from = reinterpret_cast<const Quad*>(work.exchange) +
                                     (size_t(buffer) * layer.batch + own.first) * quads_in_row_;
            for (int row = warp(); row < rows_; row += kWarps)
                for (int quad = lane(); quad < quads_in_row_; quad += 32)
                    buffers_[buffer * size_ + row * quads_between_ + quad] =
                        from[size_t(row) * quads_in_row_ + quad];
        }
        if (thread() < 2) start_counting(barrier(thread()));
        meet_cluster();  // before anybody pushes
    }

    RNNFAST_DEVICE T* rows(int step) const {
        return reinterpret_cast<T*>(buffers_ + (step & 1) * size_);
    }
    RNNFAST_DEVICE int between() const { return quads_between_ * kPerQuad<T>; }
    RNNFAST_DEVICE static Quad load(const Quad* p) { return *p; }

    RNNFAST_DEVICE void publish(int step) const {
        meet();
        if (thread() == 0) expect_bytes(barrier(step), (blocks_x() - 1) * quads() * sizeof(Quad));
        // Each warp has its peers, and each block begins with another.
        for (int i = 1 + warp(); i < blocks_x(); i += kWarps) {
            const int after = block_x() + i, peer = after < blocks_x() ? after : after - blocks_x();
            for (int item = lane(); item < quads(); item += 32) {
                const int slice = item / kQuads % kSlices, row = item / kQuads / kSlices;
                Quad* const quad = buffers_ + (step & 1) * size_ + row * quads_between_ +
                                   slice * (quads_in_row_ / kSlices) + block_x() * kQuads +
                                   item % kQuads;
                push(*quad, quad, barrier(step), peer);
            }
        }
    }
    // Of each barrier's phases this is the (step - 1) / 2 nd.
    RNNFAST_DEVICE void await(int step) const {
        const uint32_t parity = uint32_t(step - 1) / 2 % 2;
        wait_until([&] { return has_arrived(barrier(step), parity); });
        meet_warp();
    }
    // Until then others may wait for what this block has pushed.
    RNNFAST_DEVICE void leave() const { meet_cluster(); }

private:
    static constexpr int kQuads = kUnits / kPerQuad<T>;  // of a slice

    RNNFAST_DEVICE int quads() const { return rows_ * kSlices * kQuads; }  // that a block pushes
    RNNFAST_DEVICE ByteBarrier* barrier(int step) const {
        return reinterpret_cast<ByteBarrier*>(buffers_ + 2 * size_) + (step & 1);
    }

    Quad* buffers_;
    int rows_, quads_in_row_, quads_between_, size_;
};

#endif

}  // namespace cuda
}  // namespace rnnfast
