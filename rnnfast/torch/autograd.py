"""Passes by the compiled kernels, and the `autograd.Function` that puts them on torch's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast.torch import differentiable
from rnnfast.torch.exchange import (
    States,
    are_for_torch,
    copy_of,
    copy_on_graph,
    gradients,
    is_given,
    state_of,
    states_of,
)
from rnnfast.torch.kinds import torch_reads_output
from rnnfast.torch.packs import Packs, Parameters

_get_num_threads = torch.get_num_threads


class Lone:
    """A step that is, so far, the only one of its graph.

    is_back : whether its backward pass has run.
    """

    __slots__ = ("is_back",)

    def __init__(self) -> None:
        self.is_back = False


class Call(NamedTuple):
    """One pass: the weights that it uses, and the layout of its arrays.

    packs : the packs of `parameters`, or of one of its layers.
    batch_sizes : the batch sizes of packed input (N, I); None: x is (T, B, I), or (B, T, I) if
        `batch_first`.
    lone : the mark of a cell's step that is alone on its graph; backward sets its `is_back`.
    """

    parameters: Parameters
    packs: Packs
    batch_sizes: Tensor | None = None
    batch_first: bool = False
    lone: Lone | None = None

    def stack(self, packs: Packs) -> Any:
        """The stack that runs the pass on `packs`."""
        return packs.stack(self.batch_first, self.batch_sizes is not None)


def infer(
    stack: Any, x: Tensor, states: Sequence[Tensor] | None, batch_sizes: Tensor | None = None
) -> tuple[Tensor, States] | None:
    """The output (None for a cell) and the last states, without gradients.

    None : the kernels cannot take the arguments.
    """
    result = stack.infer(x, state_of(states), batch_sizes, None, None, _get_num_threads())
    if result is NotImplemented:
        return None
    output, last = result
    return output, states_of(last)


def record(
    call: Call, weights: Sequence[Tensor], x: Tensor, states: Sequence[Tensor] | None
) -> tuple[Tensor, States] | None:
    """The results of `infer`, on torch's graph."""
    kind, batch_sizes = call.packs.kind, call.batch_sizes
    result = call.stack(call.packs).forward(x, state_of(states), batch_sizes, _get_num_threads())
    if result is NotImplemented:
        return None
    y, last, tape = result
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    # Backward reads the output. If that is the caller's y, changing it in place is an error, as it
    # is with oneDNN's LSTM. Torch's other layers do not read theirs, so for them backward reads a
    # copy here. A module in bfloat16 needs no copy: its caller gets a rounded y.
    if y is None or call.parameters.format_name is not None:
        kept = y
    else:
        is_read = torch_reads_output(kind.cell, kind.directions, kind.sizes.projection, x.dtype)
        kept = y if is_read and batch_sizes is None else copy_of(y)
        x = apart(x) if call.batch_first else x
    if batch_sizes is not None:  # a copy, since the caller may change them before backward
        call = call._replace(batch_sizes=batch_sizes.clone())
    results = (y, *states_of(last), kept, tape)
    outputs = _apply(call, results, x, h0, c0, *weights)
    return outputs[0], outputs[1:]


def apart(x: Tensor) -> Tensor:
    """The x that a layer with `batch_first` reads: a copy if x has several steps and rows.

    Torch's layers also copy it, so the caller may change x before backward: `x += layer(x)[0]`.
    """
    return x if x.dim() < 3 or 1 in x.shape[:2] else copy_on_graph(x)


class _Pass(torch.autograd.Function):
    """A pass that has already run.

    Its `results` are the outputs and then two tensors that only backward reads: the y that it
    keeps, and the tape. The inputs, that y and the tape are saved tensors, so torch notices when
    one is changed before backward, frees them after it, and lets hooks move them elsewhere.
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
        if not (is_given(dy) or any(map(is_given, d_states))):
            return (None,) * len(ctx.needs_input_grad)
        call = ctx.call
        packs = call.packs
        if call.lone is not None:
            call.lone.is_back = True
        saved = ctx.saved_tensors
        y, tape, x, h0, c0 = saved[:5]
        weights = saved[5:]
        wanted = ctx.needs_input_grad[2:]
        d_outputs = (dy, *d_states)
        if are_for_torch(d_outputs):
            given = dy, d_states, x, h0, c0, weights, wanted
            form = packs.kind, call.batch_sizes, call.batch_first
            found = differentiable.gradients(*form, *given)
            return (None, None, *found)
        states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
        at = (wanted[0], wanted[1] or wanted[2], *wanted[3:])
        stack = call.stack(call.parameters.still(packs, weights))
        dx, initial, d_weights = gradients(
            stack, x, states, call.batch_sizes, y, tape, dy, d_states, at
        )
        return (
            None,
            None,
            dx,
            initial[0] if wanted[1] else None,
            initial[1] if wanted[2] else None,
            *d_weights,
        )


# Python's `apply` handles `torch.func`, which is never active here; this one saves 2 us of 10.
_apply = super(torch.autograd.Function, _Pass).apply
