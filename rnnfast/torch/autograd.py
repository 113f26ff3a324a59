"""Layers with gradients: one `autograd.Function` over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnnfast.torch import differentiable
from rnnfast.torch.exchange import States, copy_of, gradients, is_special, state_of, states_of
from rnnfast.torch.packs import Packs, Parameters

_get_num_threads = torch.get_num_threads


class Ragged:
    """Where the rows of packed data (N, ·) are in (T, B, ·): sequence b has `lengths[b]` steps."""

    def __init__(self, batch_sizes: Tensor) -> None:
        sizes = batch_sizes.numpy()
        self.batch_sizes = batch_sizes
        # Packed rows stand step by step, and the longest sequences first: in the mask's own order.
        self.mask = np.arange(sizes[0]) < sizes[:, None]
        self.lengths = torch.from_numpy(self.mask.sum(0, dtype=np.int64))

    def pad(self, data: Tensor) -> Tensor:
        """Packed data as (T, B, ·); what lies past the lengths is arbitrary."""
        padded = data.new_empty((*self.mask.shape, data.shape[1]))
        padded.numpy()[self.mask] = data.detach().numpy()
        return padded

    def unpad(self, padded: Tensor) -> Tensor:
        """The inverse of `pad`."""
        return torch.from_numpy(padded.numpy()[self.mask])


class Call(NamedTuple):
    """One pass: what runs it, and what its arrays look like.

    packs : of `parameters`, or of one of its layers.
    ragged : of packed input (N, I); None: x is (T, B, I), or (B, T, I) if `batch_first`.
    """

    parameters: Parameters
    packs: Packs
    ragged: Ragged | None = None
    batch_first: bool = False


def infer(call: Call, x: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, States] | None:
    """Output (a cell's: None) and last states, without gradients. None: the arguments don't fit."""
    _, packs, ragged, batch_first = call
    rows, lengths = (x, None) if ragged is None else (ragged.pad(x), ragged.lengths)
    result = packs.stack(batch_first).infer(
        rows, state_of(states), lengths, None, None, _get_num_threads()
    )
    if result is NotImplemented:
        return None
    output, last = result
    return (output if ragged is None else ragged.unpad(output)), states_of(last)


def record(
    call: Call, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, States] | None:
    """The same of a layer, on torch's graph."""
    _, packs, ragged, batch_first = call
    rows, lengths = (x, None) if ragged is None else (ragged.pad(x), ragged.lengths)
    result = packs.stack(batch_first).forward(rows, state_of(states), lengths, _get_num_threads())
    if result is NotImplemented:
        return None
    y, last, tape = result
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    # Backward reads the output. Where it is y itself, a y changed in place is an error, as with
    # oneDNN's LSTM; torch's other layers read none of theirs, and so a copy is read here.
    kept = y
    if ragged is not None:
        y = ragged.unpad(y)
    elif packs.kind.cell != "lstm" or packs.kind.sizes.projection or x.dtype is not torch.float32:
        kept = copy_of(y)
    results = (y, *states_of(last), kept, tape)
    outputs = _apply(call, results, x, h0, c0, *weights)
    return outputs[0], outputs[1:]


class _Pass(torch.autograd.Function):
    """A pass that has run: `results` are its outputs; and, which are none, y as kept and the tape.

    The inputs, the output and the tape are saved tensors, so that torch notices when one is
    changed before backward, frees them after it, and lets hooks move them elsewhere.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        results: tuple[Tensor, ...],
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*results[-2:], x, h0, c0, *weights)
        return results[:-2]

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *d_states: Tensor | None) -> tuple[Any, ...]:
        parameters, packs, ragged, batch_first = ctx.call
        saved = ctx.saved_tensors
        y, tape, x, h0, c0 = saved[:5]
        weights = saved[5:]
        wanted = ctx.needs_input_grad[2:]
        d_outputs = (dy, *d_states)
        # With create_graph; or for gradients in batches, or negated ones, which no kernel reads.
        if torch.is_grad_enabled() or any(map(is_special, d_outputs)):
            found = differentiable.gradients(
                packs.kind, ragged, batch_first, dy, d_states, x, h0, c0, weights, wanted
            )
            return (None, None, *found)
        lengths, rows, d_output = None, x, dy
        if ragged is not None:
            rows, lengths = ragged.pad(x), ragged.lengths
            d_output = None if dy is None else ragged.pad(dy)
        states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
        at = (wanted[0], wanted[1] or wanted[2], *wanted[3:])
        stack = parameters.still(packs, weights).stack(batch_first)
        dx, initial, d_weights = gradients(
            stack, rows, states, lengths, y, tape, d_output, d_states, at
        )
        if dx is not None and ragged is not None:
            dx = ragged.unpad(dx)
        return (
            None,
            None,
            dx,
            initial[0] if wanted[1] else None,
            initial[1] if wanted[2] else None,
            *d_weights,
        )


# Without what Python's `apply` does for `torch.func`, which is not in force here: 2 us of 10.
_apply = super(torch.autograd.Function, _Pass).apply
