"""Tiles of a product with panels of weights, written in LLVM's vectors.

LLVM keeps the sums of such a tile in registers for the whole of a panel. Those of a loop in Python
it writes to memory again and again: 65 GFLOP/s at H = 128 and 8 rows, where this has 101 of a peak
of 113.
"""

from __future__ import annotations

import platform

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

V = 32  # units in a block, and columns in a panel of weights: two AVX-512 vectors of float32

# The sums of a row take latency x width of FMA chains at least, or the units wait: 4 of V columns.
_CHAINS = 4


def _register_bytes() -> int:
    """All vector registers of this CPU together."""
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 32 * 64
    if features.get("avx2"):
        return 16 * 32
    return (32 if platform.machine().lower() in ("aarch64", "arm64") else 16) * 16


def _row_counts(row_bytes: int) -> list[int]:
    """The heights of tiles, the tallest first: its sums take half of the registers."""
    most = max(1, min(8, _register_bytes() // 2 // row_bytes))
    return [rows for rows in (8, 4, 2, 1) if rows <= most]


@intrinsic
def multiply(typingctx, a, i, p, n, depth, panels, w, out, k, q):
    """out[k + m, q : q + V] += a[i + m, p : p + depth] @ weights, for the first rows m < n.

    Returns how many rows it did, at least 1; weights are the (depth, V) from panels[w] on, depth a
    multiple of V. Sums are in the order of depth, in up to four parts where there are few rows.
    """
    for array in (a, panels, out):
        if not isinstance(array, types.Array) or array.layout != "C":
            raise TypingError(f"multiply: expected contiguous arrays, got {array}")
    index = types.intp
    signature = index(a, index, index, index, index, panels, index, out, index, index)

    def codegen(context, builder, signature, arguments):
        return _Tile(context, builder, signature, arguments).emit()

    return signature, codegen


class _Tile:
    """The code of one `multiply`."""

    def __init__(self, context, builder, signature, arguments) -> None:
        kinds = signature.args
        self.builder = builder
        a, self.i, self.p, self.n, self.depth, panels, self.w, out, self.k, self.q = arguments
        self.a, self.panels, self.out = (
            context.make_array(kind)(context, builder, array)
            for kind, array in ((kinds[0], a), (kinds[5], panels), (kinds[7], out))
        )
        self.number = context.get_data_type(kinds[0].dtype)
        self.vector = ir.VectorType(self.number, V)
        self.bytes = context.get_abi_sizeof(self.number)
        self.index = self.i.type

    def emit(self) -> ir.Value:
        """Branches to the tallest tile that there are rows for."""
        done = cgutils.alloca_once_value(self.builder, self.index(0))
        for rows in _row_counts(V * self.bytes):
            none = self.builder.icmp_signed("==", self.builder.load(done), self.index(0))
            enough = self.builder.icmp_signed(">=", self.n, self.index(rows))
            with self.builder.if_then(self.builder.and_(none, enough)):
                self._emit_rows(rows)
                self.builder.store(self.index(rows), done)
        return self.builder.load(done)

    def _emit_rows(self, rows: int) -> None:
        builder = self.builder
        targets = [self._at(self.out, self.k, m, self.q) for m in range(rows)]
        sources = [self._at(self.a, self.i, m, self.p) for m in range(rows)]
        parts = max(1, _CHAINS // rows)
        zero = ir.Constant(self.vector, None)
        sums = [
            [cgutils.alloca_once_value(builder, zero if part else self._load(target))
             for target in targets]
            for part in range(parts)
        ]  # fmt: skip
        panel = builder.gep(self.panels.data, [self.w])
        with cgutils.for_range_slice(
            builder, self.index(0), self.depth, self.index(parts), self.index
        ) as (d, _):
            for part in range(parts):
                place = builder.add(d, self.index(part))
                weights = self._load(builder.gep(panel, [builder.mul(place, self.index(V))]))
                for total, source in zip(sums[part], sources, strict=True):
                    number = builder.load(builder.gep(source, [place]))
                    term = builder.fmul(self._splat(number), weights, flags=("contract",))
                    builder.store(
                        builder.fadd(builder.load(total), term, flags=("contract",)), total
                    )
        for m, target in enumerate(targets):
            total = builder.load(sums[0][m])
            for part in sums[1:]:
                total = builder.fadd(total, builder.load(part[m]))
            builder.store(total, self._vector_pointer(target), align=self.bytes)

    def _at(self, array, first, more: int, column) -> ir.Value:
        """&array[first + more, column]."""
        width = self.builder.extract_value(array.shape, 1)
        row = self.builder.add(first, self.index(more))
        place = self.builder.add(self.builder.mul(row, width), column)
        return self.builder.gep(array.data, [place])

    def _vector_pointer(self, pointer) -> ir.Value:
        return self.builder.bitcast(pointer, self.vector.as_pointer())

    def _load(self, pointer) -> ir.Value:
        return self.builder.load(self._vector_pointer(pointer), align=self.bytes)

    def _splat(self, number) -> ir.Value:
        lane, undefined = ir.IntType(32), ir.Constant(self.vector, ir.Undefined)
        single = self.builder.insert_element(undefined, number, lane(0))
        return self.builder.shuffle_vector(
            single, undefined, ir.Constant(ir.VectorType(lane, V), None)
        )
