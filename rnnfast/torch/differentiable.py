"""The computation of the kernels, by torch's own differentiable operations.

It serves gradients of gradients, and incoming gradients that no kernel takes, such as those of
`torch.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from rnnfast._cells import CELLS
from rnnfast.torch.exchange import widened
from rnnfast.torch.kinds import Kind

States = list[Tensor]  # [h] or [h, c]


def forward(
    kind: Kind,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The output and last states of layers over x (T, B, I); of a cell over x (B, I), the states.

    Tensors in bfloat16 are computed with in float32. The results are rounded to x's dtype at the
    end.
    """
    dtype = x.dtype
    x, h0, c0, *weights = _widened(x, h0, c0, *weights)
    jobs = kind.layers * kind.directions
    rows = () if kind.one_step else (jobs,)
    widths = (kind.sizes.output, kind.sizes.hidden)[: len(CELLS[kind.cell].states)]
    batch = x.shape[-2]
    states = [
        x.new_zeros((*rows, batch, width)) if given is None else given
        for given, width in zip((h0, c0)[: len(widths)], widths, strict=True)
    ]
    if kind.one_step:
        return tuple(s.to(dtype) for s in _step(kind, x, states, weights))
    per_job = len(weights) // jobs
    ends: list[States] = []
    for layer in range(kind.layers):
        outputs = []
        for direction in range(kind.directions):
            k = layer * kind.directions + direction
            own = weights[k * per_job : (k + 1) * per_job]
            y, last = _steps(kind, x, [s[k] for s in states], own, bool(direction))
            outputs.append(y)
            ends.append(last)
        x = torch.cat(outputs, -1)
    return x.to(dtype), *(torch.stack(parts).to(dtype) for parts in zip(*ends, strict=True))


def _steps(
    kind: Kind,
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    reverse: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, States]:
    """The output (T, B, W) and last states of a layer in one direction.

    lengths : the rows' lengths (B); None: all rows have T steps.
    """
    order, outputs = slice(None, None, -1 if reverse else 1), []
    for t in range(x.shape[0])[order]:
        after = _step(kind, x[t], states, weights)
        y = after[0]
        if lengths is not None:
            runs = (lengths > t).unsqueeze(1)
            after = [torch.where(runs, new, old) for new, old in zip(after, states, strict=True)]
            y = torch.where(runs, y, 0)
        states = after
        outputs.append(y)
    return torch.stack(outputs[order]), states


def _widened(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else widened(t) for t in tensors]


def _step(kind: Kind, x: Tensor, states: States, weights: Sequence[Tensor]) -> States:
    """One step of one layer, by the equations in `rnnfast.layers`."""
    biases: Sequence[Tensor | None] = weights[2:4] if kind.bias else (None, None)
    wx, rh = linear(x, weights[0], biases[0]), linear(states[0], weights[1], biases[1])
    if kind.cell == "rnn_tanh":
        return [torch.tanh(wx + rh)]
    if kind.cell == "rnn_relu":
        return [torch.relu(wx + rh)]
    if kind.cell == "gru":
        (wr, wz, wn), (rr, rz, rn) = wx.chunk(3, -1), rh.chunk(3, -1)
        r, z = torch.sigmoid(wr + rr), torch.sigmoid(wz + rz)
        n = torch.tanh(wn + r * rn)
        return [(1 - z) * n + z * states[0]]
    i, f, g, o = (wx + rh).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return [linear(h, weights[-1]) if kind.sizes.projection else h, c]


def _packed(
    kind: Kind,
    batch_sizes: Tensor,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """`forward` for packed x (N, I), by torch's function, which uses differentiable operations."""
    x, h0, c0, *weights = _widened(x, h0, c0, *weights)
    rows, sizes = kind.layers * kind.directions, kind.sizes
    batch = int(batch_sizes[0])
    h = x.new_zeros((rows, batch, sizes.output)) if h0 is None else h0
    c = x.new_zeros((rows, batch, sizes.hidden)) if c0 is None else c0
    run = getattr(torch._VF, kind.cell)
    both = kind.directions == 2
    states = (h, c) if kind.has_c else h
    options = (kind.bias, kind.layers, 0.0, False, both)  # no dropout, so not training
    return tuple(run(x, batch_sizes, states, list(weights), *options))


def gradients(
    kind: Kind,
    batch_sizes: Tensor | None,
    batch_first: bool,
    dy: Tensor | None,
    dstates: Sequence[Tensor | None],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients at x, h0, c0 and each weight, of which `wanted` selects some.

    Where gradients are enabled, the results are differentiable in all arguments, including dy and
    dstates.
    """

    def run(x: Tensor, h0: Any, c0: Any, *weights: Any) -> tuple[Tensor, ...]:
        axis = 0 if kind.one_step else 1  # the axis of B, if x is batched
        unbatched = batch_sizes is None and x.dim() == axis + 1
        if unbatched:
            x, h0, c0 = (None if t is None else t.unsqueeze(axis) for t in (x, h0, c0))
        elif batch_first:
            x = x.transpose(0, 1)
        if batch_sizes is None:
            outputs = forward(kind, x, h0, c0, weights)
        else:
            outputs = _packed(kind, batch_sizes, x, h0, c0, weights)
        if unbatched:
            return tuple(out.squeeze(axis) for out in outputs)
        return (outputs[0].transpose(0, 1), *outputs[1:]) if batch_first else outputs

    at = dstates if kind.one_step else (dy, *dstates)
    return _gradients(run, (x, h0, c0, *weights), at, wanted)


def gradients_of_one(
    kind: Kind,
    reverse: bool,
    lengths: Tensor | None,
    d_outputs: Sequence[Tensor | None],
    given: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """`gradients` for one layer in one direction, over padded x.

    lengths : the rows' lengths (B); None: all rows have T steps.
    d_outputs : the gradients at y (T, B, H) and the last states (B, H).
    given : x (T, B, I), h0 and c0 (B, H) or None, then the weights as in `Weights`.
    """

    def run(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
        dtype = x.dtype
        x, h0, c0, *weights = _widened(x, *others)
        states = [
            x.new_zeros(x.shape[1], kind.sizes.output) if s is None else s
            for s in (h0, c0)[: 1 + kind.has_c]
        ]
        y, last = _steps(kind, x, states, weights, reverse, lengths)
        return tuple(out.to(dtype) for out in (y, *last))

    return _gradients(run, given, d_outputs, wanted)


def _gradients(
    run: Callable[..., tuple[Tensor, ...]],
    given: Sequence[Tensor | None],
    d_outputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of the outputs of `run(*given)` at the wanted ones of `given`."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        own: list[Any] = [
            None if t is None else _apart(t, want) for t, want in zip(given, wanted, strict=True)
        ]
        pairs = zip(run(*own), d_outputs, strict=True)
        reached = [(out, d) for out, d in pairs if d is not None and out.requires_grad]
        inputs = [tensor for tensor, want in zip(own, wanted, strict=True) if want]
        if not reached:
            return (None,) * len(wanted)
        found = iter(
            torch.autograd.grad(
                [out for out, _ in reached],
                inputs,
                [d for _, d in reached],
                create_graph=create_graph,
                allow_unused=True,
            )
        )
    return tuple(next(found) if want else None for want in wanted)


def _apart(tensor: Tensor, want: bool) -> Tensor:
    """A view of the tensor, at which the gradient is taken.

    Without it, the gradient at x would include what reaches x through an h0 made from x. A tensor
    whose gradient is wanted may have stopped requiring one since the forward pass.
    """
    if want and not tensor.requires_grad:
        return tensor.detach().requires_grad_()
    return tensor.view_as(tensor)
