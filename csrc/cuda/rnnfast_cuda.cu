// The functions of rnnfast_cuda.h: checks, and the kernels of each cell and dtype.

#define RNNFAST_CUDA_API extern "C" __attribute__((visibility("default")))
#include "include/rnnfast_cuda.h"

#include <cstdio>
#include <cstring>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/facts.h"
#include "cuda/kernels.h"
#include "cuda/pack.h"
#include "cuda/replay.h"

namespace rnnfast {
namespace cuda {
namespace {

thread_local char error_text[512];

template <class... Values>
int fail_with(const char* format, Values... values) {
    std::snprintf(error_text, sizeof error_text, format, values...);
    return 1;
}
int report(Error error) { return error == kFine ? 0 : fail_with("CUDA: %s", text_of(error)); }

template <class T>
const T* typed(const void* p) {
    return static_cast<const T*>(p);
}
template <class T>
T* typed(void* p) {
    return static_cast<T*>(p);
}

// One pass of a known cell and dtype.
template <class Cell, class T>
struct Pass {
    const rnnfast_cuda_pass& given;

    int workspace_bytes(bool backward, size_t* bytes) const {
        Plan own;
        if (const int failed = backward ? choose<Backward<T>>(&own) : choose<Forward<T>>(&own))
            return failed;
        *bytes = workspace(own, given.batch, given.hidden, sizeof(T)).size;
        return 0;
    }

    int forward(const rnnfast_cuda_outputs& out) const {
        if (!out.wx || !out.y || !out.hn || (Cell::kHasC && !out.cn))
            return fail_with("forward: expected wx, y, hn%s, got null", Cell::kHasC ? ", cn" : "");
        Forward<T> args{};
        args.wx = typed<T>(out.wx), args.bias = typed<T>(given.bias_hh);
        args.y = typed<T>(out.y), args.hn = typed<T>(out.hn), args.cn = typed<T>(out.cn);
        args.saved = typed<T>(out.saved);
        return run(args, given.h0, given.c0, given.steps);
    }

    int backward(const rnnfast_cuda_gradients& out) const {
        constexpr bool kHidden = kFirstHSlot<Cell> > 0;
        if (!out.saved || !out.da || (Cell::kDirect && !out.y) || (kHidden && !out.da_hidden))
            return fail_with("backward: expected saved, da%s%s, got null",
                             Cell::kDirect ? ", y" : "", kHidden ? ", da_hidden" : "");
        Backward<T> args{};
        args.saved = typed<T>(out.saved), args.y = typed<T>(out.y);
        args.h0 = typed<T>(given.h0), args.c0 = typed<T>(given.c0), args.dy = typed<T>(out.dy);
        args.da = typed<T>(out.da), args.da_hidden = typed<T>(out.da_hidden);
        args.dh0 = typed<T>(out.dh0), args.dc0 = typed<T>(out.dc0);
        const bool initial = args.dh0 || args.dc0;
        return run(args, out.dhn, out.dcn, given.steps + initial);
    }

private:
    // A cluster for each shard where the device has them and no more of these wait for others than
    // of the grid's.
    template <class Args>
    int choose(Plan* own) const {
        Room room{0, 0, most_kept(kKeptRegisters)};
        if (const int failed = report(count_processors(&room.processors))) return failed;
        if (const int failed = report(most_shared(&room.shared))) return failed;
        if (const int failed = choose_grid<Args>(room, own)) return failed;
        const int waves = whole(own->shards, own->at_once);
        for (int parts : kPartChoices) {
            const auto fitting = [&](int clusters) {
                return plan_cluster<T>(given.batch, given.hidden, Cell::kGates, Args::kBackward,
                                       parts, clusters);
            };
            Plan other = fitting(1);
            if (!other.blocks) continue;
            int clusters = 0;
            if (const int failed =
                    report(prepare_clusters(cluster_kernel<Cell, Args, T>(other.units),
                                            other.blocks, other.shared, &clusters)))
                return failed;
            if (clusters < 1) continue;
            other = fitting(clusters);
            if (own->meeting == Meeting::kNone || whole(other.shards, clusters) <= waves) {
                *own = other;
                return 0;
            }
        }
        return 0;
    }

    // The grid's plan, for which its kernel has been prepared: if the blocks of a launch cannot all run
    // at the same time, whatever the processors are, each step is a launch.
    template <class Args>
    int choose_grid(Room room, Plan* own) const {
        for (;; room.processors = 0) {
            *own = plan_grid<T>(given.batch, given.hidden, Cell::kGates, Args::kBackward, room);
            const auto kernel = grid_kernel<Cell, Args, T>(own->units, own->kept.registers);
            int on_each = 0;
            if (const int failed = report(prepare(kernel, own->shared, &on_each))) return failed;
            const bool fits = on_each * room.processors >= own->blocks * own->at_once;
            if (fits || own->meeting == Meeting::kNone) return 0;
        }
    }

    // h, c: the states that it starts from. steps: with that for the initial states, backward.
    template <class Args>
    int run(Args args, const void* h, const void* c, int steps) const {
        constexpr bool backward = Args::kBackward;
        Plan own;
        if (const int failed = choose<Args>(&own)) return failed;
        const Workspace at = workspace(own, given.batch, given.hidden, sizeof(T));
        char* const memory = typed<char>(given.workspace);
        if (!memory || !given.weight_hh)
            return fail_with("expected weight_hh and a workspace, got null");
        T* const columns = reinterpret_cast<T*>(memory + at.columns);
        args.layer = {given.steps,        given.batch,   given.hidden,
                      given.reverse != 0, given.lengths, given.resets};
        args.work = {columns,
                     reinterpret_cast<T*>(memory + at.exchange),
                     own.depth,
                     reinterpret_cast<float*>(memory + at.state),
                     reinterpret_cast<uint32_t*>(memory + at.arrived),
                     own.shard_rows,
                     0,
                     own.kept};
        const auto stream = static_cast<Stream>(given.stream);
        const Packing<T> packing{typed<T>(given.weight_hh),
                                 given.hidden,
                                 Cell::kGates,
                                 own.units,
                                 own.depth,
                                 backward,
                                 columns};
        const Starting<T> starting{args.layer,  args.work,
                                   typed<T>(h), Cell::kHasC ? typed<T>(c) : nullptr,
                                   !backward,   own.shards};
        if (const int failed = report(launch_each(packing, stream))) return failed;
        if (const int failed = report(launch_each(starting, stream))) return failed;
        if (own.meeting != Meeting::kCluster) return launches(args, own, steps, stream);
        const Grid grid{own.blocks, own.shards, own.shared};
        return report(launch(cluster_kernel<Cell, Args, T>(own.units), args, 0, steps, grid,
                             own.meeting, stream));
    }

    // One launch for all steps, whose blocks wait for each other, or one for each step, most of these
    // in graphs.
    template <class Args>
    int launches(Args args, const Plan& own, int steps, Stream stream) const {
        const auto kernel = grid_kernel<Cell, Args, T>(own.units, own.kept.registers);
        const int stride = own.meeting == Meeting::kAll ? steps : 1;
        int& shard = args.work.first_shard;
        for (shard = 0; shard < own.shards; shard += own.at_once) {
            const int left = own.shards - shard;
            const Grid grid{own.blocks, left < own.at_once ? left : own.at_once, own.shared};
            int first = 0;
            if (own.meeting == Meeting::kNone)
                if (const int failed =
                        report(replay<Cell, Args, T>(args, grid, steps, stream, &first)))
                    return failed;
            for (; first < steps; first += stride)
                if (const int failed = report(
                        launch(kernel, args, first, first + stride, grid, own.meeting, stream)))
                    return failed;
        }
        return 0;
    }
};

// Calls `what(Pass)` of the pass's cell and dtype.
template <class What>
int dispatch(const rnnfast_cuda_pass* pass, const What& what) {
    if (!pass || !pass->cell || !pass->dtype) return fail_with("pass: expected one, got null");
    if (pass->steps < 1 || pass->batch < 1 || pass->hidden < 1)
        return fail_with("steps, batch, hidden: expected at least 1, got %d, %d, %d", pass->steps,
                         pass->batch, pass->hidden);
    const bool narrow = !std::strcmp(pass->dtype, "bfloat16");
    if (!narrow && std::strcmp(pass->dtype, "float32"))
        return fail_with("dtype: expected float32 or bfloat16, got %s", pass->dtype);
#define CELL(name, type)                     \
    if constexpr (!type::kTwoProducts)       \
        if (!std::strcmp(pass->cell, #name)) \
            return narrow ? what(Pass<type, Bfloat16>{*pass}) : what(Pass<type, float>{*pass});
#include "core/cells.inc"
#undef CELL
    return fail_with("cell: expected one that runs on CUDA, got %s", pass->cell);
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfast

using namespace rnnfast;
using namespace rnnfast::cuda;

const char* rnnfast_cuda_error(void) { return error_text; }

const char* rnnfast_cuda_version(void) { return RNNFAST_VERSION; }

int rnnfast_cuda_devices(void) {
    int count = 0;
    return report(count_devices(&count)) ? -1 : count;
}

int rnnfast_cuda_runs(void) { return report(find_code(begin_steps<Forward<float>>)); }

int32_t rnnfast_cuda_saved(const char* cell) {
#define CELL(name, type)               \
    if constexpr (!type::kTwoProducts) \
        if (cell && !std::strcmp(cell, #name)) return int32_t(type::kSaved);
#include "core/cells.inc"
#undef CELL
    return 0;
}

int rnnfast_cuda_workspace(const rnnfast_cuda_pass* pass, int backward, size_t* bytes) {
    return dispatch(pass,
                    [&](const auto& own) { return own.workspace_bytes(backward != 0, bytes); });
}

int rnnfast_cuda_forward(const rnnfast_cuda_pass* pass, const rnnfast_cuda_outputs* outputs) {
    if (!outputs) return fail_with("outputs: expected some, got null");
    return dispatch(pass, [&](const auto& own) { return own.forward(*outputs); });
}

int rnnfast_cuda_backward(const rnnfast_cuda_pass* pass, const rnnfast_cuda_gradients* gradients) {
    if (!gradients) return fail_with("gradients: expected some, got null");
    return dispatch(pass, [&](const auto& own) { return own.backward(*gradients); });
}
