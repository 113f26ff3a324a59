// A stream's pass as functions.
#pragma once

#include "kernels/kernel_table.h"

namespace rnnfast {
namespace {

template <class Pass, class T>
constexpr StreamKernels<T> kernels_of_pass(ptrdiff_t (*packed_size)(const Sizes&),
                                           void (*pack)(const Sizes&, const Weights<const T>&,
                                                        T* packed),
                                           ptrdiff_t (*scratch)(const ForwardArgs<T>& args,
                                                                const Plan& plan)) {
    return {
        packed_size,
        pack,
        scratch,
        sizeof(Pass),
        [](void* pass, const ForwardArgs<T>& args, const Plan& plan, T* scratch) {
            new (pass) Pass(args, plan, scratch);
        },
        [](void* pass) { static_cast<Pass*>(pass)->step(); },
        [](void* pass) { static_cast<Pass*>(pass)->set_state(); },
        [](void* pass) { static_cast<Pass*>(pass)->get_state(); },
        [](void* pass) { static_cast<Pass*>(pass)->reset(); },
    };
}

}  // namespace
}  // namespace rnnfast
