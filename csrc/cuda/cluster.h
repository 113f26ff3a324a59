// What the blocks of a cluster ask of the device: stores to each other's shared memory, and barriers
// that count the bytes which these bring. Devices of compute capability 9.0 have clusters.
#pragma once

#include "cuda/device.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define RNNFAST_HAS_CLUSTERS 1
#else
#define RNNFAST_HAS_CLUSTERS 0
#endif

namespace rnnfast {
namespace cuda {

constexpr int kMostBlocks = 16;         // of a cluster; more than 8 where the device lets them
constexpr int kMostShared = 227 << 10;  // bytes of shared memory of a block

// In shared memory. A phase ends when `expect_bytes` has been called once, and as many bytes as it
// said have arrived, before that or after; then the next begins.
using ByteBarrier = uint64_t;

#if defined(__CUDACC__)
#if RNNFAST_HAS_CLUSTERS

RNNFAST_DEVICE uint32_t shared_address(const void* p) {
    return uint32_t(__cvta_generic_to_shared(p));
}
// Of what lies at the same place in a peer's shared memory.
RNNFAST_DEVICE uint32_t address_in(int peer, const void* p) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(shared_address(p)), "r"(uint32_t(peer)));
    return address;
}

// For others to see after the next `meet_cluster`.
RNNFAST_DEVICE void start_counting(ByteBarrier* barrier) {
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n"
        "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(barrier))
        : "memory");
}
RNNFAST_DEVICE void expect_bytes(ByteBarrier* barrier, size_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(uint32_t(bytes))
        : "memory");
}
// Whether the phase has ended that is even (parity 0) or odd: this one, or the one before.
RNNFAST_DEVICE bool has_arrived(const ByteBarrier* barrier, uint32_t parity) {
    uint32_t result;
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(result)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    return result != 0;
}
// Stores to where `to` is in a peer's shared memory, and then counts the bytes at its `barrier`.
RNNFAST_DEVICE void push(const Quad& quad, Quad* to, ByteBarrier* barrier, int peer) {
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
        "[%5];" ::"r"(address_in(peer, to)),
        "r"(quad.word[0]), "r"(quad.word[1]), "r"(quad.word[2]), "r"(quad.word[3]),
        "r"(address_in(peer, barrier))
        : "memory");
}
// All threads of a cluster wait for each other.
RNNFAST_DEVICE void meet_cluster() {
    asm volatile(
        "barrier.cluster.arrive.release;\n"
        "barrier.cluster.wait.acquire;" ::
            : "memory");
}

#endif
#else

void start_counting(ByteBarrier* barrier);
void expect_bytes(ByteBarrier* barrier, size_t bytes);
bool has_arrived(const ByteBarrier* barrier, uint32_t parity);
void push(const Quad& quad, Quad* to, ByteBarrier* barrier, int peer);
void meet_cluster();

#endif

}  // namespace cuda
}  // namespace rnnfast
