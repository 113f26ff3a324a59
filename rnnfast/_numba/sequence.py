"""The time loops, forward and backward, written once for every cell.

Layout. Units are in blocks of V. A row of pre-activations `a` has the columns [block][gate][V]
for the first `together` gates, then `apart` more groups [block][V]; each cell says in its file
what those are. Rows are those of `layout.Rows`: only steps that exist, the rows of a step one
after the other, so that the active rows of a step are the first n of the state.

A cell is functions of one scratch array of slots, V units each. Loops over j in V with constant
distances between the slots vectorise without a run-time check of overlaps.
"""

from __future__ import annotations

import numpy as np
from numpy import uint64 as at  # an unsigned index is not tested for wrapping: that hinders LLVM

from rnnfast._numba.compiling import called, inlined

V = 32  # units in a block, and columns in a panel of weights: two AVX-512 vectors of float32

# The slots. Forward: A.. and H_PREV, C_PREV in; H, C and SAVED.. out. Backward: H_PREV, SAVED..,
# DH and DC in; A.. (gradients), DH (the part that is no product) and DC out.
A, H_PREV, C_PREV, H, C, SAVED = 0, 4 * V, 5 * V, 6 * V, 7 * V, 8 * V
DH, DC = H, C
SLOTS = 14


@inlined
def _copy(source, i, p, target, k, q, count):
    """target[k, q : q + count] = source[i, p : p + count]."""
    for j in range(count):
        target[k, at(q + j)] = source[i, at(p + j)]


@inlined
def _load(source, i, p, slots, q, count):
    """slots[q : q + count] = source[i, p : p + count]."""
    for j in range(count):
        slots[at(q + j)] = source[i, at(p + j)]


@inlined
def _store(slots, q, target, i, p, count):
    """target[i, p : p + count] = slots[q : q + count]."""
    for j in range(count):
        target[i, at(p + j)] = slots[at(q + j)]


@inlined
def _clear(target, i):
    for j in range(target.shape[1]):
        target[i, at(j)] = 0


@called
def _product(a, i, p, n, depth, panels, out, k, q, width, tile):
    """out[k : k + n, q : q + width] += a[i : i + n, p : p + depth] @ weights.

    panels : (width / V, depth, V) flat; depth is a multiple of 8, width of V.
    tile : 4 V numbers of scratch.

    Four rows by four k, or one row by eight: each number loaded serves 4 products, and `tile`
    stays in L1. At H = 128 float32 that is 65 GFLOP/s with 8 rows, on a core with a peak of 113.
    """
    for panel in range(width // V):
        column, weights = q + panel * V, panel * depth * V
        row = 0
        while row + 4 <= n:
            for m in range(4):
                _load(out, k + row + m, column, tile, m * V, V)
            i0 = i + row
            i1, i2, i3 = i0 + 1, i0 + 2, i0 + 3
            for d in range(0, depth, 4):
                d0, d1, d2, d3 = at(p + d), at(p + d + 1), at(p + d + 2), at(p + d + 3)
                a00, a01, a02, a03 = a[i0, d0], a[i0, d1], a[i0, d2], a[i0, d3]
                a10, a11, a12, a13 = a[i1, d0], a[i1, d1], a[i1, d2], a[i1, d3]
                a20, a21, a22, a23 = a[i2, d0], a[i2, d1], a[i2, d2], a[i2, d3]
                a30, a31, a32, a33 = a[i3, d0], a[i3, d1], a[i3, d2], a[i3, d3]
                w = weights + d * V
                for j in range(V):
                    w0, w1 = panels[at(w + j)], panels[at(w + V + j)]
                    w2, w3 = panels[at(w + 2 * V + j)], panels[at(w + 3 * V + j)]
                    j0, j1, j2, j3 = at(j), at(V + j), at(2 * V + j), at(3 * V + j)
                    tile[j0] = tile[j0] + a00 * w0 + a01 * w1 + a02 * w2 + a03 * w3
                    tile[j1] = tile[j1] + a10 * w0 + a11 * w1 + a12 * w2 + a13 * w3
                    tile[j2] = tile[j2] + a20 * w0 + a21 * w1 + a22 * w2 + a23 * w3
                    tile[j3] = tile[j3] + a30 * w0 + a31 * w1 + a32 * w2 + a33 * w3
            for m in range(4):
                _store(tile, m * V, out, k + row + m, column, V)
            row += 4
        while row < n:
            _load(out, k + row, column, tile, 0, V)
            i0 = i + row
            for d in range(0, depth, 8):
                d0, d1, d2, d3 = at(p + d), at(p + d + 1), at(p + d + 2), at(p + d + 3)
                d4, d5, d6, d7 = at(p + d + 4), at(p + d + 5), at(p + d + 6), at(p + d + 7)
                a0, a1, a2, a3 = a[i0, d0], a[i0, d1], a[i0, d2], a[i0, d3]
                a4, a5, a6, a7 = a[i0, d4], a[i0, d5], a[i0, d6], a[i0, d7]
                w = weights + d * V
                for j in range(V):
                    s0 = a0 * panels[at(w + j)] + a1 * panels[at(w + V + j)]
                    s1 = a2 * panels[at(w + 2 * V + j)] + a3 * panels[at(w + 3 * V + j)]
                    s2 = a4 * panels[at(w + 4 * V + j)] + a5 * panels[at(w + 5 * V + j)]
                    s3 = a6 * panels[at(w + 6 * V + j)] + a7 * panels[at(w + 7 * V + j)]
                    tile[at(j)] += (s0 + s1) + (s2 + s3)
            _store(tile, 0, out, k + row, column, V)
            row += 1


@inlined
def _load_gates(a, i, block, blocks, together, apart, slots):
    _load(a, i, block * together * V, slots, A, together * V)
    for group in range(together, together + apart):
        _load(a, i, (blocks * group + block) * V, slots, A + group * V, V)


@inlined
def _store_gates(slots, a, i, block, blocks, first, together, apart, count):
    """Stores `count` units of the gates from `first` on; the padding beyond them stays."""
    for gate in range(first, together):
        _store(slots, A + gate * V, a, i, (block * together + gate) * V, count)
    for group in range(together, together + apart):
        _store(slots, A + group * V, a, i, (blocks * group + block) * V, count)


@inlined
def forward(cell, first, together, apart, saves, args):
    """The steps from `begin` to `end`, whose rows are those of the arrays (rows, ...).

    cell, first : the cell's functions; first: what comes before the candidate's own product of a
        GRU that resets before it, else None.
    together, apart, saves : the groups of columns of `a`, and the slots saved for backward.
    args : a tuple of what Python gives, as below.

    offsets : (T + 1,), the rows before each step.
    recurrent, candidate, projection : panels of weights; empty where the layer has none.
    reset : (rows,); a : (rows, columns) in/out, x W + b on entry.
    h, u, c : (B, ...) in/out, the states, padded with zeros; u: h before the projection, or h.
    y : (rows, W) out; h_saved : (rows, W padded), saved : (rows, blocks * saves * V), out.
    """
    (
        offsets, begin, end, reverse, hidden, training,
        recurrent, candidate, projection,
        reset, a, h, u, c, y, h_saved, saved,
    ) = args  # fmt: skip
    slots, tile = np.zeros(SLOTS * V, a.dtype), np.empty(4 * V, a.dtype)
    blocks = (hidden + V - 1) // V
    units, depth = blocks * V, h.shape[1]
    width = recurrent.size // depth
    for step in range(end - begin):
        t = end - 1 - step if reverse else begin + step
        row = offsets[t] - offsets[begin]
        n = offsets[t + 1] - offsets[t]
        for b in range(n):
            if reset[row + b]:
                _clear(h, b)
                _clear(c, b)
            if training:
                _copy(h, b, 0, h_saved, row + b, 0, depth)
        _product(h, 0, 0, n, depth, recurrent, a, row, 0, width, tile)
        if first is not None:
            for b in range(n):
                for block in range(blocks):
                    count = min(V, hidden - block * V)
                    _load_gates(a, row + b, block, blocks, together, apart, slots)
                    _load(h, b, block * V, slots, H_PREV, V)
                    first(slots)
                    _store_gates(slots, a, row + b, block, blocks, 0, together, 0, count)
                    _store(slots, H, u, b, block * V, count)
            _product(u, 0, 0, n, units, candidate, a, row, width, units, tile)
        for b in range(n):
            for block in range(blocks):
                count = min(V, hidden - block * V)
                _load_gates(a, row + b, block, blocks, together, apart, slots)
                if not projection.size:
                    _load(h, b, block * V, slots, H_PREV, V)
                _load(c, b, block * V, slots, C_PREV, V)
                cell(slots)
                if first is None:
                    _store(slots, H, u, b, block * V, count)
                else:
                    _store(slots, H, h, b, block * V, count)
                _store(slots, C, c, b, block * V, count)
                if training:
                    _store(slots, SAVED, saved, row + b, block * saves * V, saves * V)
        if projection.size:
            for b in range(n):
                _clear(h, b)
            _product(u, 0, 0, n, units, projection, h, 0, 0, depth, tile)
        for b in range(n):
            _copy(h, b, 0, y, row + b, 0, y.shape[1])


@inlined
def backward(cell, last, together, apart, saves, args):
    """The steps of `forward` in the opposite order.

    Its arguments, and:

    last : what comes after the gradient of the candidate's own product, or None.
    recurrent, candidate, projection : panels of the transposed weights.
    dy : (rows, W), or empty.
    dh, dc : (B, ...) in/out, gradients of the states; du : (B, ...), scratch of H's width.
    dh_rows : (rows, W) out, the gradient of h at each row, for the projection's; else empty.
    da : (rows, columns) out; its padding must be zero on entry.
    """
    (
        offsets, begin, end, reverse, hidden,
        recurrent, candidate, projection,
        reset, dy, h_saved, saved, dh, du, dc, dh_rows, da,
    ) = args  # fmt: skip
    slots, tile = np.zeros(SLOTS * V, da.dtype), np.empty(4 * V, da.dtype)
    blocks = (hidden + V - 1) // V
    units, depth = blocks * V, dh.shape[1]
    width = recurrent.size // depth
    for step in range(end - begin):
        t = begin + step if reverse else end - 1 - step
        row = offsets[t] - offsets[begin]
        n = offsets[t + 1] - offsets[t]
        if dy.size:
            for b in range(n):
                for j in range(dy.shape[1]):
                    dh[b, at(j)] += dy[row + b, at(j)]
        if projection.size:
            for b in range(n):
                _copy(dh, b, 0, dh_rows, row + b, 0, dh_rows.shape[1])
                _clear(du, b)
            _product(dh, 0, 0, n, depth, projection, du, 0, 0, units, tile)
        for b in range(n):
            for block in range(blocks):
                count = min(V, hidden - block * V)
                if projection.size:
                    _load(du, b, block * V, slots, DH, V)
                else:
                    _load(dh, b, block * V, slots, DH, V)
                    _load(h_saved, row + b, block * V, slots, H_PREV, V)
                _load(dc, b, block * V, slots, DC, V)
                _load(saved, row + b, block * saves * V, slots, SAVED, saves * V)
                cell(slots)
                _store_gates(slots, da, row + b, block, blocks, 0, together, apart, count)
                _store(slots, DC, dc, b, block * V, count)
                if not projection.size:
                    _store(slots, DH, dh, b, block * V, count)
        if projection.size:
            for b in range(n):
                _clear(dh, b)
        if last is not None:
            for b in range(n):
                _clear(du, b)
            _product(da, row, width, n, units, candidate, du, 0, 0, units, tile)
            for b in range(n):
                for block in range(blocks):
                    count = min(V, hidden - block * V)
                    _load(dh, b, block * V, slots, DH, V)
                    _load(du, b, block * V, slots, DC, V)
                    _load(h_saved, row + b, block * V, slots, H_PREV, V)
                    _load(saved, row + b, block * saves * V, slots, SAVED, saves * V)
                    last(slots)
                    _store(slots, A, da, row + b, block * together * V, count)
                    _store(slots, DH, dh, b, block * V, count)
        _product(da, row, 0, n, width, recurrent, dh, 0, 0, depth, tile)
        for b in range(n):
            if reset[row + b]:
                _clear(dh, b)
                _clear(dc, b)
