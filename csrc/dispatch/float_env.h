// The state of a thread's registers while it runs kernels.
#pragma once

#include <cstdint>

#include "core/format.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace rnnfast {

// While it lives, the thread rounds to nearest, traps no exception and takes denormal numbers as zero.
// With denormal numbers, decaying gates would run 20 times slower. At the end, the caller's environment
// is restored, including its flags.
class FloatEnv {
#if defined(__x86_64__) || defined(_M_X64)
    static constexpr unsigned kMasked = 0x1f80, kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    const unsigned saved_ = _mm_getcsr();

public:
    FloatEnv() { _mm_setcsr(kMasked | kFlushToZero | kDenormalsAreZero); }
    ~FloatEnv() { _mm_setcsr(saved_); }
#elif defined(__aarch64__)
    static constexpr uint64_t kFlushToZero = uint64_t(1) << 24;
    uint64_t control_, status_;

public:
    FloatEnv() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(control_));
        __asm__ volatile("mrs %0, fpsr" : "=r"(status_));
        __asm__ volatile("msr fpcr, %0" : : "r"(kFlushToZero));
    }
    ~FloatEnv() {
        __asm__ volatile("msr fpcr, %0" : : "r"(control_));
        __asm__ volatile("msr fpsr, %0" : : "r"(status_));
    }
#else
public:
    FloatEnv() {}
#endif
    FloatEnv(const FloatEnv&) = delete;
    FloatEnv& operator=(const FloatEnv&) = delete;
};

// Lives as long as a thread multiplies in a format, and then releases the registers that the format has
// prepared. `format` may be null.
class FormatScope {
    const Format* const format_;

public:
    explicit FormatScope(const Format* format) : format_(format) {}
    ~FormatScope() {
        if (format_ && format_->leave) format_->leave();
    }
    FormatScope(const FormatScope&) = delete;
    FormatScope& operator=(const FormatScope&) = delete;
};

}  // namespace rnnfast
