"""Layers with gradients: one `autograd.Function` over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnfast.torch import differentiable
from rnnfast.torch.arrays import (
    States,
    array,
    contiguous,
    from_numpy,
    is_batched,
    state_arrays,
    states_of,
    unit_stride,
)
from rnnfast.torch.packs import Kind

if TYPE_CHECKING:
    from rnnfast._native import Stack

_get_num_threads = torch.get_num_threads


class Ragged:
    """Where the rows of packed data (N, ·) are in (T, B, ·): sequence b has `lengths[b]` steps."""

    def __init__(self, batch_sizes: Tensor) -> None:
        sizes = batch_sizes.numpy()
        self.batch_sizes = batch_sizes
        # Packed rows stand step by step, and the longest sequences first: in the mask's own order.
        self.mask = np.arange(sizes[0]) < sizes[:, None]
        self.lengths = self.mask.sum(0, dtype=np.int64)

    def pad(self, data: NDArray) -> NDArray:
        """Packed data as (T, B, ·); what lies past the lengths is arbitrary."""
        padded = np.empty((*self.mask.shape, data.shape[1]), data.dtype)
        padded[self.mask] = data
        return padded

    def unpad(self, padded: NDArray) -> NDArray:
        """The inverse of `pad`."""
        return padded[self.mask]


class Call(NamedTuple):
    """One pass: what runs it, and what its arrays look like.

    ragged : of packed input (N, I); None: x is (T, B, I), or as the stack says.
    """

    stack: Stack
    kind: Kind
    ragged: Ragged | None = None
    batch_first: bool = False


def infer(call: Call, x: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, States] | None:
    """Output (a cell's: h) and last states, without gradients. None: the arguments don't fit."""
    ragged, lengths = call.ragged, None
    rows = array(x)
    if ragged is not None:
        rows, lengths = ragged.pad(rows), ragged.lengths
    result = call.stack.infer(rows, state_arrays(states), lengths, None, None, _get_num_threads())
    if result is NotImplemented:
        return None
    output, last = result
    own = states_of(last)
    if output is None:
        return own[0], own
    return from_numpy(output if ragged is None else ragged.unpad(output)), own


def record(
    call: Call, x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, States] | None:
    """The same of a layer, on torch's graph."""
    ragged, lengths = call.ragged, None
    rows = array(x)
    if ragged is not None:
        rows, lengths = ragged.pad(rows), ragged.lengths
    result = call.stack.forward(rows, state_arrays(states), lengths, _get_num_threads())
    if result is NotImplemented:
        return None
    output, last, tape = result
    y = from_numpy(output if ragged is None else ragged.unpad(output))
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    # Backward reads the output. Where it is y itself, a y changed in place is an error, as with
    # oneDNN's LSTM; torch's other layers read none of theirs, and so a copy is read here.
    kept = y
    if ragged is not None:
        kept = from_numpy(output)
    elif call.kind.cell != "lstm" or call.kind.sizes.projection or x.dtype is not torch.float32:
        kept = from_numpy(output.copy())
    results = (y, *states_of(last), kept, from_numpy(tape))
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
        call: Call = ctx.call
        y, tape, x, h0, c0, *weights = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        d_outputs = (dy, *d_states)
        # With create_graph; or for gradients in batches, which NumPy has no arrays for.
        if torch.is_grad_enabled() or any(d is not None and is_batched(d) for d in d_outputs):
            found = differentiable.gradients(
                call.kind, call.ragged, call.batch_first, dy, d_states, x, h0, c0, weights, wanted
            )
            return (None, None, *found)
        ragged, lengths = call.ragged, None
        rows, output = array(x), array(y)
        d_output = None if dy is None else unit_stride(dy)
        if ragged is not None:
            rows, lengths = ragged.pad(rows), ragged.lengths
            d_output = None if d_output is None else ragged.pad(d_output)
        at_states = [None if d is None else contiguous(d) for d in d_states]
        dx, initial, parameters = call.stack.backward(
            rows,
            state_arrays(None if h0 is None else (h0,) if c0 is None else (h0, c0)),
            lengths,
            output,
            array(tape),
            d_output,
            tuple(at_states) if len(at_states) == 2 else at_states[0],
            (wanted[0], *wanted[3:]),
            _get_num_threads(),
        )
        if dx is not None:
            dx = from_numpy(dx if ragged is None else ragged.unpad(dx))
        own = states_of(initial) if wanted[1] or wanted[2] else (None, None)
        return (
            None,
            None,
            dx,
            own[0] if wanted[1] else None,
            own[1] if wanted[2] else None,
            *[None if d is None else from_numpy(d) for d in parameters],
        )


# Without what Python's `apply` does for `torch.func`, which is not in force here: 2 us of 10.
_apply = super(torch.autograd.Function, _Pass).apply
