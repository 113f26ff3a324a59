"""The time loops, forward and backward, written once for every cell.

Units are grouped in blocks of V. The rows are those of `layout.Rows`: there are only steps that
exist, and the rows of a step follow one another. The active rows of a step are therefore the first
n rows of the state.

The functions of a cell work on one scratch array, which consists of slots of V units each. Loops
over j in V with constant distances between the slots vectorise without a run-time check of
overlaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import uint64 as at  # unsigned: LLVM vectorises without a test for negative indices

from rnnfast._numba.compiling import called, inlined
from rnnfast._numba.tile import V, multiply

# Where the slots begin. Forward reads A (4 slots of pre-activations), H_PREV and C_PREV, and writes
# H, C and SAVED (6 slots). Backward reads H_PREV, SAVED, DH and DC. It writes A (gradients), DH
# (the part that needs no product) and DC.
A, H_PREV, C_PREV, H, C, SAVED = 0, 4 * V, 5 * V, 6 * V, 7 * V, 8 * V
DH, DC = H, C
SLOTS = 14


class Groups(NamedTuple):
    """The columns of a row of pre-activations `a`: three groups, one after the other, in blocks.

    lead : 1 if there is a first group [block][V], to which only the input adds; else 0.
    together : the number of gates in the second group [block][gate][V], to which the input and h
        add.
    tail : 1 if there is a last group [block][V], that of the candidate; else 0. If there is a
        lead, only h adds to it; if not, the input and the candidate's own product add to it.
    saves : the number of slots that are saved for backward.
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
    """Stores `count` units of every gate; leaves the padding beyond them as it is."""
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
    """Runs the steps from `begin` to `end`; arrays (rows, ...) have the rows of these steps.

    cell : the equations of the cell after the last product of a step.
    first : the equations before the candidate's own product, in a GRU that resets before it; else
        None.
    groups : a `Groups`.
    args : a tuple of the arguments that Python gives, in the order of the assignment below:

    offsets : (T + 1,), the number of rows before each step.
    recurrent, candidate, projection : panels of weights; empty if the layer has no such matrix.
    reset : (rows,).
    h, c : (B, ...) in/out, the states, padded with zeros. c is (B, 0) if the cell has none.
    u : (B, ...), scratch: h before the projection, or r h for the candidate's product; else h.
    a : (rows, columns) in/out, x W + b on entry.
    y : (rows, W) out.
    h_saved : (rows, W padded) out, if `training`.
    saved : (rows, blocks * saves * V) out, if `training`.
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
    """Runs the gradients of the steps of `forward`, in the opposite order.

    The arguments are those of `forward`, and:

    last : the equations after the gradient of the candidate's own product; None if there is none.
    recurrent, candidate, projection : panels of the transposed weights.
    dy : (rows, W), or empty: zeros.
    dh, dc : (B, ...) in/out, the gradients at the states. dc is (B, 0) if the cell has no c.
    du : (B, H padded), scratch.
    dh_rows : (rows, W) out, the gradient at h of each row, if there is a projection; else empty.
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
