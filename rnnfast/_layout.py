"""Where the axes T and B of (T, B, ·) are in a user's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import Cell, Sizes

# By name: h (L*D, B, W) and, for LSTM, c (L*D, B, H). None: zeros.
MaybeStates = Mapping[str, NDArray | None]
# In the user's form: h, or (h, c).
State = NDArray | tuple[NDArray, NDArray]
# Of a layer or cell, the one of the two that it has.
StateT = TypeVar("StateT", NDArray, tuple[NDArray, NDArray])


class Layout(NamedTuple):
    """The leading axes that a user's arrays have.

    has : whether there are T and B; for states, the layers and B. A layer called with unbatched
        input has no B, a cell has no T.
    batch_first : x and output are (B, T, ·). States and `reset` never are.
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
        """States (L*D, B, ·) in the user's form, a `State`; None where all are."""
        parts = [None if s is None else self.state_outward(s) for s in states.values()]
        if all(part is None for part in parts):
            return None
        return parts[0] if len(parts) == 1 else tuple(parts)

    def floats(
        self, name: str, value: Any, dtype: np.dtype, shape: tuple[int, ...], letters: str
    ) -> NDArray:
        """`value` checked against the (T, B, ·) shape and letters, as a view (T, B, ·)."""
        axes, text = _axes(self, letters)
        array = _validate.floats(name, value, dtype, tuple([shape[k] for k in axes]), text)
        return self.inward(array)


@lru_cache
def _axes(layout: Layout, letters: str) -> tuple[list[int], str]:
    """Which axes of "T B I" or the like a user's array has, in its order, and as "(B, I)"."""
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
    """What a layer or cell takes and gives: the sizes, forms and dtype of its arrays.

    one_step : a cell's: no T, and states of one layer without its axis.
    directions : D; rows : L*D.
    batch_first : as the layer's.
    """

    cell: Cell
    sizes: Sizes  # of the first layer
    dtype: np.dtype
    one_step: bool = False
    directions: int = 1
    rows: int = 1
    batch_first: bool = False

    def layout(self, axes: int) -> Layout | None:
        """The layout of an array (T, B, ·) that has so many axes; None: none has."""
        form = (CELL_LAYOUTS if self.one_step else LAYER_LAYOUTS).get(axes)
        return form and _with_order(form, self.batch_first)

    def input(self, x: Any) -> tuple[NDArray, Layout]:
        """`x` checked, as a view (T, B, I), and its layout, which its number of axes tells."""
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
        """A state h, or pair (h, c), as contiguous (L*D, B, ·) by the names of the cell's states.

        None: all are None. `partly`: one of a pair may be None, as gradients may.
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
        """The gradients with respect to `output`, as (T, B, D*W), and to the state."""
        layout = cast("Layout", self.layout(output.ndim))
        shape = layout.inward(output).shape
        dy = None
        if d_output is not None:
            dy = layout.floats("d_output", d_output, self.dtype, shape, "T B D*W")
        return dy, self.states("d_state", d_state, layout, shape[1], partly=True), layout


def _with_order(layout: Layout, batch_first: bool) -> Layout:
    """`layout` with `batch_first` where it has both axes."""
    return Layout(layout.has, batch_first and all(layout.has))


def reversed_reset(
    reset: NDArray | None, lengths: NDArray | None, memory: _validate.Memory = _validate.HOST
) -> NDArray | None:
    """`reset` as a reversed backend takes it: where the state is zero before a step, as run.

    A cut before step t is a zero state before step t - 1, which runs after t; a cut past a row's
    last step is none.
    """
    if reset is None or not reset.size:
        return reset
    zero = reset.copy()
    zero[:-1], zero[-1] = reset[1:], False
    if lengths is not None:
        zero &= memory.arange(1, len(reset) + 1)[:, None] < lengths
    return zero
