"""Checks of the arguments of the registered operators, which anyone may call.

They serve real tensors, and those that compilers trace with, whose sizes may be symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfast._cells import CELLS, Sizes
from rnnfast.torch.kinds import COMPUTED, FORMATS, Kind

# All but the GRU with the reset before the product: torch does not have it, and `differentiable`
# does not compute it.
_CELLS = tuple(name for name in CELLS if name != "gru_reset_before")


def check(
    name: str,
    tensor: Tensor | None,
    x: Tensor,
    shape: Sequence[Any],
    dtype: torch.dtype | None = None,
) -> None:
    """Checks that a tensor, unless None, has `shape`, `dtype` (None: x's) and x's device."""
    if tensor is None:
        return
    dtype = dtype or x.dtype
    if tensor.dtype != dtype or tensor.device != x.device:
        got = f"{tensor.dtype} on {tensor.device}"
        raise TypeError(f"{name}: expected {dtype} on {x.device}, got {got}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def checked_kind(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    cell: str,
    directions: int,
    bias: bool,
    format_name: str | None = None,
) -> Kind:
    """The kind that the operator is to compute, after a check that all arguments fit together.

    Raises
    ------
    TypeError : a dtype or device is not that of x, or the kernels do not take the dtype.
    ValueError : a shape, the number of weights, or an option does not fit.
    """
    if x.dtype not in COMPUTED:
        expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTED)
        raise TypeError(f"x: expected {expected}, got {x.dtype}")
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {tuple(x.shape)}")
    if cell not in _CELLS:
        raise ValueError(f"cell: expected one of {', '.join(_CELLS)}, got {cell!r}")
    if directions not in (1, 2):
        raise ValueError(f"directions: expected 1 or 2, got {directions}")
    formats = tuple(FORMATS.values()) if x.dtype is torch.float32 else ()
    if format_name is not None and format_name not in formats:
        expected = " or ".join(["None", *formats])
        raise ValueError(f"format_name: expected {expected} for {x.dtype}, got {format_name!r}")
    kind = _kind(weights, cell, directions, bias)
    shapes = [shape for own in kind.shapes() for shape in own.values()]
    for k, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
        check(f"weights[{k}]", weight, x, shape)
    steps, batch = x.shape[:2]
    check("x", x, x, (steps, batch, kind.sizes.input))
    rows, sizes = kind.layers * directions, kind.sizes
    if not kind.has_c and c0 is not None:
        raise ValueError(f"c0: expected None for {cell}, got a tensor")
    if kind.has_c and (h0 is None) != (c0 is None):
        raise ValueError("c0: expected both states or none, got one")
    check("h0", h0, x, (rows, batch, sizes.output))
    check("c0", c0, x, (rows, batch, sizes.hidden))
    return kind


def check_backward(
    kind: Kind,
    dy: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    x: Tensor,
    y: Tensor,
    tape: Tensor,
    tape_shape: tuple[Any],
    weights: int,
    wanted: Sequence[bool],
) -> None:
    """Checks the other arguments of a backward pass; raises the errors of `checked_kind`."""
    steps, batch = x.shape[:2]
    rows, sizes = kind.layers * kind.directions, kind.sizes
    check("y", y, x, (steps, batch, kind.width))
    check("tape", tape, x, tape_shape, COMPUTED[x.dtype])
    check("dy", dy, x, (steps, batch, kind.width))
    check("dh", dh, x, (rows, batch, sizes.output))
    if dc is not None and not kind.has_c:
        raise ValueError(f"dc: expected None for {kind.cell}, got a tensor")
    check("dc", dc, x, (rows, batch, sizes.hidden))
    if len(wanted) != 3 + weights:
        raise ValueError(f"wanted: expected {3 + weights} entries, got {len(wanted)}")
    if wanted[2] and not kind.has_c:
        raise ValueError(f"wanted: expected False for c0 of {kind.cell}, got True")


def _kind(weights: Sequence[Tensor], cell: str, directions: int, bias: bool) -> Kind:
    """The kind, as it follows from the first two weights' shapes and the number of weights."""
    if len(weights) < 2 or any(w.dim() != 2 for w in weights[:2]):
        raise ValueError("weights: expected (G*H, I) and (G*H, H or P) first, got others")
    gates = len(CELLS[cell].gates)
    rows, width = weights[0].shape[0], weights[1].shape[1]
    hidden = rows // gates
    if hidden * gates != rows or hidden == 0 or width == 0:
        raise ValueError(f"weights[0]: expected G*H = {gates}*H rows, got {rows}")
    projected = CELLS[cell].projects and bool(width < hidden)
    per_job = 2 + 2 * bias + projected
    layers, rest = divmod(len(weights), directions * per_job)
    if rest or not layers:
        raise ValueError(
            f"weights: expected {per_job} for each layer and direction, got {len(weights)} in all"
        )
    sizes = Sizes(weights[0].shape[1], hidden, width if projected else 0)
    return Kind(cell, sizes, layers, directions, bias)
