// librnnfast_cuda with an emulator in place of the device, for tests of what calls it: pointers are
// the host's. Built by tests/test_torch_cuda.py.
#include "tests/cuda_emulator.h"

#include "cuda/rnnfast_cuda.cu"

using namespace rnnfast::cuda;

// Another device, with or without code for it.
extern "C" void rnnfast_cuda_emulate(int processors, int cluster_blocks, int has_code) {
    emulator::use(processors, cluster_blocks);
    emulator::has_code = has_code != 0;
}

// Whether the caller captures the streams.
extern "C" void rnnfast_cuda_emulate_capture(int captures) { emulator::captures = captures != 0; }

// Launches since the last call: in all, of clusters, and of graphs, which the first does not count.
extern "C" void rnnfast_cuda_emulated(int32_t* counts) {
    counts[0] = emulator::launches, counts[1] = emulator::cluster_launches;
    counts[2] = emulator::graph_launches;
    emulator::launches = emulator::cluster_launches = emulator::graph_launches = 0;
}
