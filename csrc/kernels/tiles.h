// Products in AMX's tile registers: 16 rows of the left operand by 16 columns of the right one, 16
// words of each at a time. Rows and panels have the same layout as in other products of a format.
//
// TDPBF16PS adds up the even k of 16 words in one sum and the odd k in another, each from zero by
// fused multiply-adds, and then adds both together to the sum that was there; denormals are zero. A
// single row would leave most of a tile empty, so vectors compute it, in the same order and to the
// same bits. TDPBUSD is exact.
#pragma once

#include "kernels/format_functions.h"

namespace rnnfast {
namespace {

constexpr ptrdiff_t kTileRows = 16, kTileWords = 16, kTileBytes = kTileWords * kWordBytes;
constexpr ptrdiff_t kBlockRows = 2 * kTileRows;  // the rows that a product takes at a time
static_assert(kBlockRows <= kMostLowRows, "more rows than their sums have room for");

// The use of the eight registers. A product of one tile of rows has sums in 0 to 3, rows in 4, and
// columns in 5 to 7. One of two tiles of rows has sums in 0 and 1 for the first and in 2 and 3 for
// the second, rows in 4 and 5, and columns in 6 and 7.
constexpr int kLeftTile = 4;
template <int R>
constexpr int kRightTile = kLeftTile + R;
template <int R>
constexpr int kMostVectors = R == 1 ? 4 : 2;  // vectors of sums for R tiles of rows

template <int kTile>
RNNFAST_INLINE void load_tile(const void* rows, ptrdiff_t ld) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(ld), "i"(kTile) : "memory");
}
template <int kTile>
RNNFAST_INLINE void store_tile(void* rows, ptrdiff_t ld) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(rows), "r"(ld), "i"(kTile)
                     : "memory");
}
template <int kTile>
RNNFAST_INLINE void clear_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <class F, int kSums, int kLeft, int kRight>
RNNFAST_INLINE void add_tiles() {
    if constexpr (F::kOfWord == 2)
        __asm__ volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2"
                         :
                         : "i"(kRight), "i"(kLeft), "i"(kSums));
    else
        __asm__ volatile("tdpbusd %%tmm%c0, %%tmm%c1, %%tmm%c2"
                         :
                         : "i"(kRight), "i"(kLeft), "i"(kSums));
}

// The layout that LDTILECFG reads.
struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

static_assert(sizeof(TileConfiguration) == 64 && kVectorBytes == kTileBytes, "as LDTILECFG has it");

// Configures the registers for products of `rows` rows, 1 to kBlockRows. This takes 100 ns, so
// callers change the number of rows seldom.
RNNFAST_INLINE void configure(ptrdiff_t rows, Prepared* prepared) {
    if (rows == prepared->rows) return;
    const bool two = rows > kTileRows;
    const auto first = uint8_t(two ? kTileRows : rows),
               last = uint8_t(rows - (two ? kTileRows : 0));
    TileConfiguration all;
    for (int i = 0; i < 8; ++i) all.row_bytes[i] = kTileBytes, all.rows[i] = kTileRows;
    all.rows[0] = all.rows[1] = all.rows[kLeftTile] = first;
    all.rows[2] = all.rows[3] = last;
    if (two) all.rows[kLeftTile + 1] = last;
    __asm__ volatile("ldtilecfg %0" : : "m"(all));
    prepared->rows = rows;
}

// Frees the registers: the operating system then has no tiles to save for the thread.
void release_tiles() { __asm__ volatile("tilerelease"); }

// Calls body(Count<kFirst>()) to body(Count<kEnd - 1>()), as a loop would; the count may be 0.
template <int kFirst, int kEnd, class Body>
RNNFAST_INLINE void for_each(const Body& body) {
    if constexpr (kFirst < kEnd) {
        body(Count<kFirst>());
        for_each<kFirst + 1, kEnd>(body);
    }
}

// Rows of 16 words each, `ld` bytes apart.
struct TileRows {
    const unsigned char* base;
    ptrdiff_t ld;

    RNNFAST_INLINE const unsigned char* row(ptrdiff_t r) const { return base + r * ld; }
};

// Adds to the sums in the registers, R tiles of rows by W vectors: rows of `left` times columns of
// `right`, 16 words of each.
template <class F, int R, int W>
RNNFAST_INLINE void add_words(const TileRows& left, const TileRows& right, ptrdiff_t vector_step) {
    for_each<0, R>([&](auto r) {
        load_tile<kLeftTile + decltype(r)::value>(left.row(decltype(r)::value * kTileRows),
                                                  left.ld);
    });
    for_each<0, W>([&](auto v) {
        constexpr int kV = decltype(v)::value, kRight = kRightTile<R> + kV % (R == 1 ? 3 : 2);
        load_tile<kRight>(right.base + kV * vector_step, right.ld);
        add_tiles<F, kV, kLeftTile, kRight>();
        if constexpr (R == 2) add_tiles<F, 2 + kV, kLeftTile + 1, kRight>();
    });
}

// Calls body(Count<number of the register>, its first row, its vector) for each register of sums.
template <int R, int W, class Body>
RNNFAST_INLINE void each_sum(const Body& body) {
    for_each<0, R>([&](auto r) {
        for_each<0, W>([&](auto v) {
            constexpr int kR = decltype(r)::value, kV = decltype(v)::value;
            body(Count<2 * kR + kV>(), kR * kTileRows, kV);
        });
    });
}

// The last words of the operands, if they do not fill a tile, with zeros in the rest of the tile. A
// product of some rows with a panel reads these after all whole tiles.
struct TileTails {
    ptrdiff_t words;  // fewer than 16
    alignas(64) unsigned char left[kBlockRows * kTileBytes];
    alignas(64) unsigned char right[kTileWords * 4 * kTileBytes];

    explicit TileTails(const LowPanel& b) : words(b.words % kTileWords) {
        if (!words) return;
        const ptrdiff_t row = b.width * kVectorBytes;
        const unsigned char* const from = b.base + (b.words - words) * row;
        for (ptrdiff_t i = 0; i < kTileWords * row; i += kVectorBytes)
            store(reinterpret_cast<float*>(right + i),
                  i < words * row ? (Floats)load_words(from + i) : Floats{});
    }
    void take(const LowRows& a, ptrdiff_t first, ptrdiff_t rows, ptrdiff_t whole) {
        for (ptrdiff_t r = 0; words && r < rows; ++r) {
            const unsigned char* const from = a.base + (first + r) * a.ld + whole * kWordBytes;
            store(reinterpret_cast<float*>(left + r * kTileBytes),
                  load_edge(reinterpret_cast<const float*>(from), words));
        }
    }
};

// Computes W vectors, from v on, of the sums of R tiles of rows. The sums start from `from` and go
// to `to`, whose rows lie `to_ld` bytes apart.
template <class F, int R, int W>
RNNFAST_OUTLINE void tile_block(const TileRows& a, const LowPanel& b, const TileTails& tails,
                                ptrdiff_t v, const TileRows& from, unsigned char* to,
                                ptrdiff_t to_ld) {
    const ptrdiff_t row = b.width * kVectorBytes, whole = b.words / kTileWords;
    each_sum<R, W>([&](auto sum, ptrdiff_t first, ptrdiff_t vector) {
        load_tile<decltype(sum)::value>(from.row(first) + (v + vector) * kVectorBytes, from.ld);
    });
    TileRows left = a, right{b.base + v * kVectorBytes, row};
    for (ptrdiff_t i = 0; i < whole; ++i) {
        add_words<F, R, W>(left, right, kVectorBytes);
        left.base += kTileBytes, right.base += kTileWords * row;
    }
    if (tails.words)
        add_words<F, R, W>({tails.left, kTileBytes}, {tails.right + v * kVectorBytes, row},
                           kVectorBytes);
    each_sum<R, W>([&](auto sum, ptrdiff_t first, ptrdiff_t vector) {
        store_tile<decltype(sum)::value>(to + first * to_ld + (v + vector) * kVectorBytes, to_ld);
    });
}

template <class F, int R>
RNNFAST_INLINE void tile_rows_of(const TileRows& a, const LowPanel& b, const TileTails& tails,
                                 const TileRows& from, unsigned char* to, ptrdiff_t to_ld) {
    for (ptrdiff_t v = 0; v < b.width; v += kMostVectors<R>)
        count_of<kMostVectors<R>>(smaller<ptrdiff_t>(kMostVectors<R>, b.width - v), [&](auto w) {
            tile_block<F, R, decltype(w)::value>(a, b, tails, v, from, to, to_ld);
        });
}

// Multiplies one row of bfloat16 by a panel, in vectors. There are enough independent sums, as
// those of even and odd k are separate.
template <int W>
RNNFAST_OUTLINE void multiply_row(const LowRows& a, const unsigned char* panel, ptrdiff_t words,
                                  const LowSums& c) {
    const Words odd = 0xffff0000 - Words{};
    const unsigned char* left = a.base;
    Floats acc[1][W];
    load_sums(c, 0, acc);
    for (ptrdiff_t first = 0; first < words; first += kTileWords) {
        Floats evens[W] = {}, odds[W] = {};
        for (ptrdiff_t i = first; i < smaller(words, first + kTileWords); ++i) {
            const Words pair = broadcast_word(left);
            const auto even_left = (Floats)(pair << 16), odd_left = (Floats)(pair & odd);
#pragma GCC unroll 4
            for (int v = 0; v < W; ++v) {
                const Words right = load_words(panel + v * kVectorBytes);
                evens[v] = fma(even_left, (Floats)(right << 16), evens[v]);
                odds[v] = fma(odd_left, (Floats)(right & odd), odds[v]);
            }
            left += kWordBytes, panel += W * kVectorBytes;
        }
#pragma GCC unroll 4
        for (int v = 0; v < W; ++v) acc[0][v] = acc[0][v] + (evens[v] + odds[v]);
    }
    store_sums(c, 0, acc);
}

// Format::multiply.
template <class F>
void multiply_by_tiles(ptrdiff_t rows, const LowRows& a, const LowPanel& b, const LowSums& sums) {
    if (rows == 1) {
        if constexpr (F::kHasUnits) return multiply<F>(rows, a, b, sums);
        return count_of<4>(b.width, [&](auto w) {
            constexpr int W = decltype(w)::value;
            for (int p = 0; p < b.panels; ++p) {
                const ptrdiff_t v = p * W;
                multiply_row<W>(a, b.base + v * b.words * kVectorBytes, b.words,
                                {sums.from + v * kLanes<float>, 0, sums.to + v * kLanes<float>, 0});
            }
        });
    }
    const auto* const from = reinterpret_cast<const unsigned char*>(sums.from);
    auto* const to = reinterpret_cast<unsigned char*>(sums.to);
    const ptrdiff_t from_ld = sums.from_ld * kWordBytes, to_ld = sums.to_ld * kWordBytes;
    alignas(64) unsigned char integers[F::kHasUnits ? kBlockRows * 4 * kTileBytes : 1];
    const ptrdiff_t row = b.width * kVectorBytes;
    TileTails tails(b);
    for (ptrdiff_t first = 0; first < rows; first += kBlockRows) {
        const ptrdiff_t n = smaller(kBlockRows, rows - first);
        configure(n, a.prepared);
        tails.take(a, first, n, b.words - tails.words);
        const TileRows left{a.base + first * a.ld, a.ld};
        const auto run = [&](const TileRows& start, unsigned char* end, ptrdiff_t end_ld) {
            if (n > kTileRows)
                tile_rows_of<F, 2>(left, b, tails, start, end, end_ld);
            else
                tile_rows_of<F, 1>(left, b, tails, start, end, end_ld);
        };
        if constexpr (F::kHasUnits) {
            run({reinterpret_cast<const unsigned char*>(b.starts), 0}, integers, row);
            for (ptrdiff_t r = 0; r < n; ++r)
                for (ptrdiff_t v = 0; v < b.width; ++v) {
                    const ptrdiff_t lane = v * kLanes<float>;
                    const Words sum = load_words(integers + r * row + v * kVectorBytes);
                    const Floats start = load(sums.from + (first + r) * sums.from_ld + lane);
                    store(sums.to + (first + r) * sums.to_ld + lane,
                          F::add_units(start, sum, load(b.units + lane), a.units[first + r]));
                }
        } else {
            run({from + first * from_ld, from_ld}, to + first * to_ld, to_ld);
        }
    }
}

// Format::probe.
template <class F>
ptrdiff_t probe_tiles(ptrdiff_t rounds, uint32_t* sums) {
    Prepared prepared{};
    configure(kBlockRows, &prepared);
    for_each<0, 8>([](auto tile) { clear_tile<decltype(tile)::value>(); });
    for (ptrdiff_t round = 0; round < rounds; ++round)
        each_sum<2, 2>([](auto sum, ptrdiff_t, ptrdiff_t) {
            add_tiles<F, decltype(sum)::value, kLeftTile, kRightTile<2>>();
        });
    alignas(64) uint32_t tile[kTileRows * kTileWords];
    store_tile<0>(tile, kTileBytes);
    *sums += tile[0];
    release_tiles();
    return rounds * 4 * kTileRows * kTileWords * kLanes<float> * F::kOfWord * 2;
}

}  // namespace
}  // namespace rnnfast
