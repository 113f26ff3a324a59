"""Tiles of a product with panels of weights, generated as vector code for LLVM.

A tile consists of the sums of a few rows in a few registers of columns. LLVM keeps these sums in
registers for the whole depth of a panel. The sums of a loop in Python it writes to memory again
and again: that reaches 65 GFLOP/s at H = 128 and 8 rows, the tiles here 98, of a peak of 113.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

V = 32  # units in a block, and columns in a panel of weights: two AVX-512 vectors of float32

# The additions to one sum wait for one another. A tile of fewer rows than this therefore has
# several sums for each row, and adds them up at the end. Four sums of two registers each hide the
# latency of a multiply-add.
_SUMS = 4


def tile_shape(triple: str, features: str, itemsize: int) -> tuple[int, tuple[int, ...]]:
    """The columns of a tile on a CPU, which fill two registers, and the rows that it may have.

    With 6 rows, the sums, the weights and a factor take 15 of 16 registers.
    """
    few, many = (6, 4, 2, 1), (8, 4, 2, 1)
    if "+avx512f" in features:
        return 2 * 64 // itemsize, many
    if "+avx2" in features:
        return 2 * 32 // itemsize, few
    return 2 * 16 // itemsize, many if triple.startswith(("aarch64", "arm64")) else few


@intrinsic
def multiply(typingctx, a, i, p, n, depth, panels, w, out, k, q):
    """out[k + m, q : q + V] += a[i + m, p : p + depth] @ weights, for the first rows m < n.

    Returns the number of rows that it computed, at least 1. The weights are the matrix (depth, V)
    that begins at panels[w]; depth is a multiple of V. A sum adds in the order of depth; in a tile
    of few rows it has up to four parts.
    """
    for array in (a, panels, out):
        if not isinstance(array, types.Array) or array.layout != "C":
            raise TypingError(f"multiply: expected contiguous arrays, got {array}")
    place = types.intp
    arguments = (a, place, place, place, place, panels, place, out, place, place)
    return place(*arguments), _multiply


def _multiply(context, builder, signature, arguments) -> ir.Value:
    """Branches to the highest tile for which there are enough rows."""
    a, i, p, n, depth, panels, w, out, k, q = arguments
    a, panels, out = (
        context.make_array(kind)(context, builder, array)
        for kind, array in zip(signature.args, arguments, strict=True)
        if isinstance(kind, types.Array)
    )
    itemsize = context.get_abi_sizeof(context.get_data_type(signature.args[0].dtype))
    triple, _, features = context.codegen().magic_tuple()
    columns, heights = tile_shape(triple, features, itemsize)
    index = n.type
    done = cgutils.alloca_once_value(builder, index(0))
    for rows in heights:
        none = builder.icmp_signed("==", builder.load(done), index(0))
        enough = builder.icmp_signed(">=", n, index(rows))
        pieces = cgutils.for_range_slice(builder, index(0), index(V), index(columns), index)
        with builder.if_then(builder.and_(none, enough)), pieces as (column, _):
            sources = [_at(builder, a, i, m, p) for m in range(rows)]
            targets = [_at(builder, out, k, m, builder.add(q, column)) for m in range(rows)]
            panel = builder.gep(panels.data, [builder.add(w, column)])
            _tile(builder, sources, depth, panel, targets, columns, itemsize)
            builder.store(index(rows), done)
    return builder.load(done)


def _tile(builder, sources, depth, panel, targets, columns, align) -> None:
    """Adds source[:depth] @ panel to each target; sources, targets and panel are addresses."""
    index, vector = depth.type, ir.VectorType(sources[0].type.pointee, columns)
    targets = [builder.bitcast(target, vector.as_pointer()) for target in targets]
    zeros = [ir.Constant(vector, None)] * len(targets)
    starts = [[builder.load(target, align=align) for target in targets]]
    starts += [zeros] * (_SUMS // len(sources) - 1)
    sums = [[cgutils.alloca_once_value(builder, start) for start in part] for part in starts]
    steps = cgutils.for_range_slice(builder, index(0), depth, index(len(sums)), index)
    with steps as (first, _):
        for more, part in enumerate(sums):
            d = builder.add(first, index(more))
            weights = builder.gep(panel, [builder.mul(d, index(V))])
            weights = builder.load(builder.bitcast(weights, vector.as_pointer()), align=align)
            for total, source in zip(part, sources, strict=True):
                factor = _splat(builder, builder.load(builder.gep(source, [d])), columns)
                term = builder.fmul(factor, weights, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), term, flags=("contract",)), total)
    for target, *own in zip(targets, *sums, strict=True):
        result, *others = (builder.load(total) for total in own)
        for other in others:
            result = builder.fadd(result, other)
        builder.store(result, target, align=align)


def _at(builder, array, row, more: int, column) -> ir.Value:
    """The address of array[row + more, column]."""
    width = builder.extract_value(array.shape, 1)
    row = builder.add(row, row.type(more))
    return builder.gep(array.data, [builder.add(builder.mul(row, width), column)])


def _splat(builder, number, count) -> ir.Value:
    """A vector with `number` in each of its `count` lanes."""
    lane, undefined = ir.IntType(32), ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    single = builder.insert_element(undefined, number, lane(0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(lane, count), None))
