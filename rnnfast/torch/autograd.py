"""Passes with gradients: one `autograd.Function` over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnnfast.torch import differentiable
from rnnfast.torch.packs import Kind

if TYPE_CHECKING:
    from rnnfast._native import Stack

States = tuple[Tensor, ...]  # (h,) or (h, c)

_from_numpy = torch.from_numpy
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


def array(tensor: Tensor) -> NDArray:
    """The tensor's memory as an array of its shape and strides."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def state_arrays(states: Sequence[Tensor] | None) -> Any:
    """States as the native stack takes them."""
    if states is None:
        return None
    if len(states) == 1:
        return array(states[0])
    return array(states[0]), array(states[1])


def states_of(arrays: Any) -> States:
    """What the native stack gives, as tensors."""
    if isinstance(arrays, tuple):
        return _from_numpy(arrays[0]), _from_numpy(arrays[1])
    return (_from_numpy(arrays),)


def infer(call: Call, x: Tensor, states: Sequence[Tensor] | None) -> tuple[Tensor, States] | None:
    """Output and last states, without gradients; a cell's output is h. None: arguments don't fit."""
    ragged, lengths = call.ragged, None
    rows = array(x)
    if ragged is not None:
        rows, lengths = ragged.pad(rows), ragged.lengths
    result = call.stack.infer(
        rows, state_arrays(states), lengths, None, None, _get_num_threads()
    )
    if result is NotImplemented:
        return None
    output, last = result
    own = states_of(last)
    if output is None:
        return own[0], own
    return _from_numpy(output if ragged is None else ragged.unpad(output)), own


def record(
    call: Call, x: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor]
) -> tuple[Tensor, States] | None:
    """The same, on torch's graph."""
    ragged, lengths = call.ragged, None
    rows = array(x)
    if ragged is not None:
        rows, lengths = ragged.pad(rows), ragged.lengths
    result = call.stack.forward(rows, state_arrays(states), lengths, _get_num_threads())
    if result is NotImplemented:
        return None
    output, last, tape = result
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    own = states_of(last)
    if output is None:
        outputs = _Pass.apply(call, (*own, _from_numpy(tape)), x, h0, c0, *weights)
        return outputs[0], outputs
    y = _from_numpy(output if ragged is None else ragged.unpad(output))
    outputs = _Pass.apply(call, (y, *own, _from_numpy(tape)), x, h0, c0, *weights)
    return outputs[0], outputs[1:]


class _Pass(torch.autograd.Function):
    """A pass that has run: `results` are its outputs, and its tape, which no output is.

    The inputs, the output and the tape are saved tensors, so that torch notices when one is
    changed before backward, frees them after it, and lets hooks move them elsewhere.
    """

    @staticmethod
    def forward(  # type: ignore[override]
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
        ctx.save_for_backward(results[0], results[-1], x, h0, c0, *weights)
        return results[:-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        call: Call = ctx.call
        y, tape, x, h0, c0, *weights = ctx.saved_tensors
        one_step = call.kind.one_step
        dy, dstates = (None, gradients) if one_step else (gradients[0], gradients[1:])
        wanted = ctx.needs_input_grad[2:]
        states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
        if torch.is_grad_enabled():  # create_graph
            found = differentiable.gradients(
                call.kind, call.ragged, call.batch_first, dy, dstates, x, h0, c0, weights, wanted
            )
        else:
            found = _gradients(call, y, tape, x, states, dy, dstates, wanted)
        return (None, None, *found)


def _gradients(
    call: Call,
    y: Tensor,
    tape: Tensor,
    x: Tensor,
    states: Sequence[Tensor] | None,
    dy: Tensor | None,
    dstates: Sequence[Tensor | None],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """At x, h0, c0 and each weight; `wanted` tells which."""
    ragged, lengths = call.ragged, None
    rows, output = array(x), None if call.kind.one_step else array(y)
    d_output = None if dy is None else _readable(dy)
    if ragged is not None:
        rows, output, lengths = ragged.pad(rows), ragged.pad(output), ragged.lengths
        d_output = None if d_output is None else ragged.pad(d_output)
    d_state: Any = tuple(None if d is None else _contiguous(d) for d in dstates)
    dx, initial, parameters = call.stack.backward(
        rows,
        state_arrays(states),
        lengths,
        output,
        array(tape),
        d_output,
        d_state if len(d_state) == 2 else d_state[0],
        (wanted[0], *wanted[3:]),
        _get_num_threads(),
    )
    if dx is not None:
        dx = _from_numpy(dx if ragged is None else ragged.unpad(dx))
    own = states_of(initial)
    return (
        dx,
        own[0] if wanted[1] else None,
        own[1] if wanted[2] else None,
        *(None if d is None else _from_numpy(d) for d in parameters),
    )


def _contiguous(tensor: Tensor) -> NDArray:
    return array(tensor.contiguous())


def _readable(tensor: Tensor) -> NDArray:
    """As an array whose last axis has unit stride; strides of zero, as of a sum's, may stay."""
    last = tensor.dim() - 1
    if tensor.stride(last) == 1 or tensor.size(last) == 1:
        return array(tensor)
    return _contiguous(tensor)
