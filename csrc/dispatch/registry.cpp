#include "dispatch/registry.h"

#include <cstdlib>
#include <stdexcept>

#include "dispatch/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace rnnfast {
namespace {

#if defined(__x86_64__) || defined(_M_X64)

// Reads CPUID directly: __builtin_cpu_supports needs a runtime library that clang-cl does not link.
struct X86 {
    bool avx2 = false, avx2vnni = false, avx512 = false, avx512vnni = false, avx512bf16 = false,
         tiles = false;

    X86() {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool fma = c >> 12 & 1, osxsave = c >> 27 & 1;
        if (!osxsave || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        // XCR0 tells which registers the operating system saves. Bits 6: XMM and YMM; e0: AVX-512's.
        unsigned low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        avx2 = fma && (b >> 5 & 1) && (low & 0x6) == 0x6;
        const bool f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1;
        avx512 = avx2 && f && dq && bw && vl && (low & 0xe6) == 0xe6;
        avx512vnni = avx512 && (c >> 11 & 1);
        // Bits 60000 of XCR0: the tile registers. Bits of EDX: tile registers, bfloat16, int8.
        tiles = (d >> 24 & 1) && (d >> 22 & 1) && (d >> 25 & 1) && (low & 0x60000) == 0x60000;
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
        avx2vnni = avx2 && (a >> 4 & 1);
        avx512bf16 = avx512vnni && (a >> 5 & 1);
    }
};

const X86& cpu() {
    static const X86 found;
    return found;
}

bool cpu_has(const std::string& isa) {
    const X86& cpu = rnnfast::cpu();
    return isa == "generic" || (isa == "avx2" && cpu.avx2) || (isa == "avx2vnni" && cpu.avx2vnni) ||
           (isa == "avx512" && cpu.avx512) || (isa == "avx512vnni" && cpu.avx512vnni) ||
           (isa == "avx512bf16" && cpu.avx512bf16);
}

// Whether the process may use tile registers. On Linux, a process must ask for them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kRequest = 0x1023, kTileData = 18;  // arguments of arch_prctl
    return cpu().tiles && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

#else

// Whether the CPU has SDOT. Every AArch64 CPU has NEON.
bool has_dot() {
#if defined(__linux__)
    constexpr unsigned long kDot = 1ul << 20;  // HWCAP_ASIMDDP
    return getauxval(AT_HWCAP) & kDot;
#elif defined(__ARM_FEATURE_DOTPROD)
    return true;  // as on every Mac
#else
    return false;
#endif
}

bool cpu_has(const std::string& isa) { return isa != "neondot" || has_dot(); }
bool may_use_tiles() { return false; }

#endif

const std::vector<CompiledIsa>& compiled() {
    static const std::vector<CompiledIsa> isas = [] {
        std::vector<CompiledIsa> found;
        for (const CompiledIsa* isa = librnnfast_kernels(); isa->name; ++isa)
            if (isa->kernels) found.push_back(*isa);
        return found;
    }();
    return isas;
}

std::string join(const std::vector<std::string>& names) {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    return all;
}

// Whether the environment variable RNNFAST_AMX allows tile registers. Throws std::runtime_error if its
// value is not known.
bool wants_tiles() {
    const char* const given = std::getenv("RNNFAST_AMX");
    const std::string value = given ? given : "";
    if (!value.empty() && value != "0" && value != "1")
        throw std::runtime_error("RNNFAST_AMX: expected 0 or 1, got '" + value + "'");
    return value != "0";
}

struct Active {
    const bool wants_tiles = rnnfast::wants_tiles();
    std::string name;
    const KernelTable* kernels = nullptr;
    const LowPrecisionTable* low_precision = nullptr;
    const LowPrecisionTable* shared = nullptr;
    const LowPrecisionTable* with_tiles = nullptr;

    Active() {
        const char* forced = std::getenv("RNNFAST_ISA");
        const std::string want = forced ? forced : "";
        for (const CompiledIsa& isa : compiled()) {
            if (!cpu_has(isa.name)) continue;
            if (want.empty() || want == isa.name) {
                name = isa.name;
                kernels = isa.kernels;
                low_precision = isa.low_precision;
                shared = isa.shared;
                if (isa.with_tiles != isa.low_precision) with_tiles = isa.with_tiles;
                return;
            }
        }
        bool known = false;
        for (const std::string& isa : compiled_isas()) known |= isa == want;
        throw std::runtime_error(
            "RNNFAST_ISA=" + want + ": " +
            (known ? "this CPU does not support it (it has: " + join(supported_isas()) + ")"
                   : "not compiled in (compiled in: " + join(compiled_isas()) + ")"));
    }
};

const Active& active() {
    static const Active chosen;
    return chosen;
}

}  // namespace

std::vector<std::string> compiled_isas() {
    std::vector<std::string> names;
    for (const CompiledIsa& isa : compiled()) names.push_back(isa.name);
    return names;
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const std::string& name : compiled_isas())
        if (cpu_has(name)) names.push_back(name);
    return names;
}

const std::string& active_isa() { return active().name; }

// The system is asked only when a format is first used, since permission for tile registers makes Linux
// require larger signal stacks of the process.
bool active_amx() {
    static const bool used = active().wants_tiles && active().with_tiles && may_use_tiles();
    return used;
}

const KernelTable& active_kernels() { return *active().kernels; }

const Format& active_format(FormatId format) {
    const Active& chosen = active();
    const LowPrecisionTable* const table = active_amx() ? chosen.with_tiles : chosen.low_precision;
    return (table->has[int(format)] ? table : chosen.shared)->formats[int(format)];
}

#define DTYPE(name, type)                                  \
    template <>                                            \
    const DtypeKernels<type>& active_kernels_for<type>() { \
        return active_kernels().name;                      \
    }
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
