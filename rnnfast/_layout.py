"""The order and presence of the axes T and B in users' arrays, and conversion to (T, B, ·).

Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), W the width
of h (P, or H without projection), L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import Cell, Sizes

# The states by name: h (L*D, B, W) and, for LSTM, c (L*D, B, H). None: zeros.
MaybeStates = Mapping[str, NDArray | None]
# A state in the user's form: h, or (h, c).
State = NDArray | tuple[NDArray, NDArray]
# The one of these two forms that a given layer or cell has.
StateT = TypeVar("StateT", NDArray, tuple[NDArray, NDArray])


class Layout(NamedTuple):
    """The leading axes that a user's arrays have.

    has : whether arrays have the axes T and B; for states, the axes L*D and B. Unbatched input
        has no B, and a cell has neither T nor L*D.
    batch_first : whether x and the output are (B, T, ·). It does not affect states and `reset`.
    """

    has: tuple[bool, bool]
    batch_first: bool = False

    def inward(self, array: NDArray) -> NDArray:
        """A view (T, B, ·) of an array in the user's layout."""
        array = self.state_inward(array)
        return array.swapaxes(0, 1) if self.batch_first else array

    def outward(self, array: NDArray) -> NDArray:
        """The inverse of `inward`."""
        return self.state_outward(array.swapaxes(0, 1) if self.batch_first else array)

    def state_inward(self, array: NDArray) -> NDArray:
        """A view (L*D, B, ·) of a state in the user's layout, or (T, B) of a `reset`."""
        if all(self.has):
            return array
        return array[tuple(slice(None) if has else None for has in self.has)]

    def state_outward(self, array: NDArray) -> NDArray:
        """The inverse of `state_inward`."""
        if all(self.has):
            return array
        return array[tuple(slice(None) if has else 0 for has in self.has)]

    def states_outward(self, states: MaybeStates) -> Any:
        """States (L*D, B, ·) in the user's form, a `State`; None if all of them are None."""
        parts = [None if s is None else self.state_outward(s) for s in states.values()]
        if all(part is None for part in parts):
            return None
        return parts[0] if len(parts) == 1 else tuple(parts)

    def floats(
        self, name: str, value: Any, dtype: np.dtype, shape: tuple[int, ...], letters: str
    ) -> NDArray:
        """`value`, whose shape must be `shape` in the user's layout, as a view (T, B, ·).

        shape, letters : of (T, B, ·), such as (-1, -1, 40) and "T B I".
        """
        axes, text = _axes(self, letters)
        array = _validate.floats(name, value, dtype, tuple([shape[k] for k in axes]), text)
        return self.inward(array)


@lru_cache
def _axes(layout: Layout, letters: str) -> tuple[list[int], str]:
    """The axes of `letters`, such as "T B I", in a user's array: their numbers, and "(B, I)"."""
    axes = [k for k, has in enumerate((*layout.has, True)) if has]
    if layout.batch_first:
        axes[:2] = axes[1::-1]
    names = letters.split()
    text = ", ".join(names[k] for k in axes)
    return axes, f"({text})" if len(axes) > 1 else f"({text},)"


LAYER_LAYOUTS = {3: Layout((True, True)), 2: Layout((True, False))}
CELL_LAYOUTS = {2: Layout((False, True)), 1: Layout((False, False))}


def state_widths(cell: Cell, sizes: Sizes) -> dict[str, int]:
    """The width of each state: W for h, H for c."""
    return {state: sizes.output if state == "h" else sizes.hidden for state in cell.states}


class Signature(NamedTuple):
    """The sizes, layouts and dtype of the arrays that a layer or cell takes and returns.

    one_step : whether it is a cell, whose arrays have no axis T, and whose states have no L*D.
    directions : D.
    rows : L*D.
    batch_first : the layer's option.
    """

    cell: Cell
    sizes: Sizes  # those of the first layer
    dtype: np.dtype
    one_step: bool = False
    directions: int = 1
    rows: int = 1
    batch_first: bool = False

    def layout(self, axes: int) -> Layout | None:
        """The layout of an x or output with `axes` axes; None if there is no such layout."""
        form = (CELL_LAYOUTS if self.one_step else LAYER_LAYOUTS).get(axes)
        return form and _with_order(form, self.batch_first)

    def input(self, x: Any) -> tuple[NDArray, Layout]:
        """`x` checked, as a view (T, B, I), and its layout, which follows from its axes."""
        array = _validate.of_dtype("x", x, self.dtype)
        layout = self.layout(array.ndim)
        if layout is None:
            layouts = CELL_LAYOUTS if self.one_step else LAYER_LAYOUTS
            forms = [_axes(_with_order(f, self.batch_first), "T B I")[1] for f in layouts.values()]
            raise ValueError(f"x: expected shape {' or '.join(forms)}, got {array.shape}")
        shape = (-1, -1, self.sizes.input)
        return layout.floats("x", array, self.dtype, shape, "T B I"), layout

    def states(
        self, name: str, value: Any, layout: Layout, batch: int, partly: bool = False
    ) -> MaybeStates:
        """A state h, or a pair (h, c), checked: contiguous arrays (L*D, B, ·) by their names.

        value : the state in the user's form; None gives None for every name.
        partly : whether one of a pair may be None, as in gradients.
        """
        cell, sizes = self.cell, self.sizes
        if value is None:
            return dict.fromkeys(cell.states)
        parts = {name: value}
        if len(cell.states) > 1:
            form = f"a pair ({', '.join(cell.states)})"
            if not isinstance(value, (tuple, list)):
                raise TypeError(f"{name}: expected {form}, got {type(value).__name__}")
            if len(value) != len(cell.states):
                raise ValueError(f"{name}: expected {form}, got {len(value)} entries")
            parts = {f"{name}[{k}]": part for k, part in enumerate(value)}
        layout = Layout(layout.has)
        widths = state_widths(cell, sizes)
        states: dict[str, NDArray | None] = {}
        for (state, width), (label, part) in zip(widths.items(), parts.items(), strict=True):
            if part is None and partly:
                states[state] = None
                continue
            letter = "P" if state == "h" and sizes.projection else "H"
            shape = (self.rows, batch, width)
            array = layout.floats(label, part, self.dtype, shape, f"L*D B {letter}")
            states[state] = np.ascontiguousarray(array)
        return states

    def gradients(
        self, d_output: Any, d_state: Any, output: NDArray
    ) -> tuple[NDArray | None, MaybeStates, Layout]:
        """The gradients at `output`, as a view (T, B, D*W), and at the state; and the layout."""
        layout = cast("Layout", self.layout(output.ndim))
        shape = layout.inward(output).shape
        dy = None
        if d_output is not None:
            dy = layout.floats("d_output", d_output, self.dtype, shape, "T B D*W")
        return dy, self.states("d_state", d_state, layout, shape[1], partly=True), layout


def _with_order(layout: Layout, batch_first: bool) -> Layout:
    """`layout` with `batch_first`, which has no effect unless it has both axes."""
    return Layout(layout.has, batch_first and all(layout.has))


def reversed_reset(
    reset: NDArray | None, lengths: NDArray | None, memory: _validate.Memory = _validate.HOST
) -> NDArray | None:
    """`reset` (T, B) for a backend that runs the steps in reverse.

    Backends set the state to zero before a step in the order run. A cut before step t thus becomes
    a zero state before step t - 1, which runs after t. A cut past a row's last step has no effect.
    """
    if reset is None or not reset.size:
        return reset
    zero = reset.copy()
    zero[:-1], zero[-1] = reset[1:], False
    if lengths is not None:
        zero &= memory.arange(1, len(reset) + 1)[:, None] < lengths
    return zero
