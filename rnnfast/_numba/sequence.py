"""The time loops, forward and backward, written once for every cell.

Units are in blocks of V. Rows are those of `layout.Rows`: only steps that exist, the rows of a
step one after the other, so that the active rows of a step are the first n of the state.

A cell is functions of one scratch array of slots, V units each. Loops over j in V with constant
distances between the slots vectorise without a run-time check of overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import uint64 as at  # an unsigned index is not tested for wrapping: that hinders LLVM

from rnnfast._numba.compiling import called, inlined
from rnnfast._numba.tile import V, multiply

# The slots. Forward: A.. and H_PREV, C_PREV in; H, C and SAVED.. out. Backward: H_PREV, SAVED..,
# DH and DC in; A.. (gradients), DH (the part that is no product) and DC out.
A, H_PREV, C_PREV, H, C, SAVED = 0, 4 * V, 5 * V, 6 * V, 7 * V, 8 * V
DH, DC = H, C
SLOTS = 14


class Groups(NamedTuple):
    """The columns of a row of pre-activations `a`, each group of them in blocks.

    lead : 1: first those that only the input adds to, [block][V].
    together : how many gates are next, [block][gate][V]; the input and h add to them.
    tail : 1: last those of the candidate, [block][V]. With a lead only h adds to them; without,
        the input does, and the candidate's own product.
    saves : the slots saved for backward.
    """

    lead: int
    together: int
    tail: int
    saves: int


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
def _product(a, i, p, n, depth, panels, out, k, q, width):
    """out[k : k + n, q : q + width] += a[i : i + n, p : p + depth] @ weights.

    panels : (width / V, depth, V) flat; depth and width are multiples of V.
    """
    for panel in range(width // V):
        row = 0
        while row < n:
            row += multiply(
                a, i + row, p, n - row, depth, panels, panel * depth * V,
                out, k + row, q + panel * V,
            )  # fmt: skip


@inlined
def _load_gates(a, i, block, blocks, groups, slots):
    first = groups.lead * blocks + block * groups.together
    last = groups.lead + groups.together
    if groups.lead:
        _load(a, i, block * V, slots, A, V)
    _load(a, i, first * V, slots, A + groups.lead * V, groups.together * V)
    if groups.tail:
        _load(a, i, (blocks * last + block) * V, slots, A + last * V, V)


@inlined
def _store_gates(slots, a, i, block, blocks, groups, count):
    """Stores `count` units of every gate; the padding beyond them stays."""
    first = groups.lead * blocks + block * groups.together
    last = groups.lead + groups.together
    if groups.lead:
        _store(slots, A, a, i, block * V, count)
    for gate in range(groups.together):
        _store(slots, A + (groups.lead + gate) * V, a, i, (first + gate) * V, count)
    if groups.tail:
        _store(slots, A + last * V, a, i, (blocks * last + block) * V, count)


@inlined
def forward(cell, first, groups, args):
    """The steps from `begin` to `end`, whose rows are those of the arrays (rows, ...).

    cell, first : the cell's functions; first: what comes before the candidate's own product of a
        GRU that resets before it, else None.
    groups : a `Groups`.
    args : a tuple of what Python gives, as below.

    offsets : (T + 1,), the rows before each step.
    recurrent, candidate, projection : panels of weights; empty where the layer has none.
    reset : (rows,); a : (rows, columns) in/out, x W + b on entry.
    h, u, c : (B, ...) in/out, the states, padded with zeros; u: h before the projection, or h;
        c: (B, 0) where the cell has none, and dc also.
    y : (rows, W) out; h_saved : (rows, W padded), saved : (rows, blocks * saves * V), out.
    """
    (
        offsets, begin, end, reverse, hidden, training,
        recurrent, candidate, projection,
        reset, a, h, u, c, y, h_saved, saved,
    ) = args  # fmt: skip
    slots = np.zeros(SLOTS * V, a.dtype)
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
        _product(h, 0, 0, n, depth, recurrent, a, row, groups.lead * units, width)
        if first is not None:
            for b in range(n):
                for block in range(blocks):
                    count = min(V, hidden - block * V)
                    _load_gates(a, row + b, block, blocks, groups, slots)
                    _load(h, b, block * V, slots, H_PREV, V)
                    first(slots)
                    _store_gates(slots, a, row + b, block, blocks, groups, count)
                    _store(slots, H, u, b, block * V, count)
            _product(u, 0, 0, n, units, candidate, a, row, width, units)
        for b in range(n):
            for block in range(blocks):
                count = min(V, hidden - block * V)
                _load_gates(a, row + b, block, blocks, groups, slots)
                if not projection.size:
                    _load(h, b, block * V, slots, H_PREV, V)
                if c.size:
                    _load(c, b, block * V, slots, C_PREV, V)
                cell(slots)
                if first is None:
                    _store(slots, H, u, b, block * V, count)
                else:
                    _store(slots, H, h, b, block * V, count)
                if c.size:
                    _store(slots, C, c, b, block * V, count)
                if training:
                    _store(slots, SAVED, saved, row + b, block * groups.saves * V, groups.saves * V)
        if projection.size:
            for b in range(n):
                _clear(h, b)
            _product(u, 0, 0, n, units, projection, h, 0, 0, depth)
        for b in range(n):
            _copy(h, b, 0, y, row + b, 0, y.shape[1])


@inlined
def backward(cell, last, groups, args):
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
    slots = np.zeros(SLOTS * V, da.dtype)
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
            _product(dh, 0, 0, n, depth, projection, du, 0, 0, units)
        for b in range(n):
            for block in range(blocks):
                count = min(V, hidden - block * V)
                if projection.size:
                    _load(du, b, block * V, slots, DH, V)
                else:
                    _load(dh, b, block * V, slots, DH, V)
                    _load(h_saved, row + b, block * V, slots, H_PREV, V)
                if dc.size:
                    _load(dc, b, block * V, slots, DC, V)
                _load(saved, row + b, block * groups.saves * V, slots, SAVED, groups.saves * V)
                cell(slots)
                _store_gates(slots, da, row + b, block, blocks, groups, count)
                if dc.size:
                    _store(slots, DC, dc, b, block * V, count)
                if not projection.size:
                    _store(slots, DH, dh, b, block * V, count)
        if projection.size:
            for b in range(n):
                _clear(dh, b)
        if last is not None:
            for b in range(n):
                _clear(du, b)
            _product(da, row, width, n, units, candidate, du, 0, 0, units)
            for b in range(n):
                for block in range(blocks):
                    count = min(V, hidden - block * V)
                    _load(dh, b, block * V, slots, DH, V)
                    _load(du, b, block * V, slots, DC, V)
                    _load(h_saved, row + b, block * V, slots, H_PREV, V)
                    _load(saved, row + b, block * groups.saves * V, slots, SAVED, groups.saves * V)
                    last(slots)
                    _store(slots, A, da, row + b, block * groups.together * V, count)
                    _store(slots, DH, dh, b, block * V, count)
        _product(da, row, groups.lead * units, n, width, recurrent, dh, 0, 0, depth)
        for b in range(n):
            if reset[row + b]:
                _clear(dh, b)
                _clear(dc, b)
