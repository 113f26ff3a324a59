// librnnfast_cuda with an emulator in place of the device, for tests of what calls it: pointers are
// the host's. Built by tests/test_torch_cuda.py.
#include "tests/cuda_emulator.h"

#include "cuda/rnnfast_cuda.cu"
