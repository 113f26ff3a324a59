"""Where the axes T and B of (T, B, ·) are in a user's arrays."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import Cell, Sizes


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


def read_input(
    x: Any, dtype: np.dtype, size: int, layouts: dict[int, Layout], batch_first: bool = False
) -> tuple[NDArray, Layout]:
    """`x` checked, as a view (T, B, I), and its layout, which its number of axes tells."""
    array = _validate.of_dtype("x", x, dtype)
    if array.ndim not in layouts:
        forms = [_axes(_with_order(form, batch_first), "T B I")[1] for form in layouts.values()]
        raise ValueError(f"x: expected shape {' or '.join(forms)}, got {array.shape}")
    layout = _with_order(layouts[array.ndim], batch_first)
    return layout.floats("x", array, dtype, (-1, -1, size), "T B I"), layout


def read_states(
    name: str,
    value: Any,
    cell: Cell,
    sizes: Sizes,
    dtype: np.dtype,
    layout: Layout,
    rows: int,
    batch: int,
    partly: bool = False,
) -> dict[str, NDArray | None]:
    """A state h, or pair (h, c), as contiguous (L*D, B, ·) by the names of the cell's states.

    None: all are None. `partly`: one of a pair may be None, as gradients may.
    """
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
        array = layout.floats(label, part, dtype, (rows, batch, width), f"L*D B {letter}")
        states[state] = np.ascontiguousarray(array)
    return states


def state_widths(cell: Cell, sizes: Sizes) -> dict[str, int]:
    """The width of each state: W for h, H for c."""
    return {state: sizes.output if state == "h" else sizes.hidden for state in cell.states}


def _with_order(layout: Layout, batch_first: bool) -> Layout:
    """`layout` with `batch_first` where it has both axes."""
    return Layout(layout.has, batch_first and all(layout.has))
