"""Cells with gradients: the steps of a loop, whose weights' gradients are computed together.

A step of its own would add an outer product to each weight's gradient: as much memory to write as
all that its forward pass reads. So a step takes not the weights but a token that stands for them.
Torch takes the token's node back after all steps that used it, which then are one batch.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast.torch import differentiable
from rnnfast.torch.autograd import Call
from rnnfast.torch.exchange import (
    States,
    are_for_torch,
    gradients,
    is_leaf,
    requires_grad,
    state_of,
    states_of,
    version,
)
from rnnfast.torch.packs import PackCache, Packs, Parameters

# That are copied for one product, which from some hundred rows on gains nothing by more.
_MOST_ROWS = 4096

_get_num_threads = torch.get_num_threads
_graph_task = torch._C._current_graph_task_id


class _Step(NamedTuple):
    """What the gradients of the weights need of one step."""

    x: Tensor
    states: Sequence[Tensor] | None
    tape: Tensor
    d_states: Sequence[Tensor | None]


class _Weights:
    """The weights as the steps of a graph share them, and what those steps left in backward."""

    def __init__(
        self,
        holder: PackCache,
        parameters: Parameters,
        packs: Packs,
        weights: tuple[Tensor, ...],
    ) -> None:
        self._holder = weakref.ref(holder)
        self.parameters = parameters
        self.kind = parameters.kind
        self.weights = weights
        self._format_name = packs.format_name
        self._stack = packs.stack()  # for products that read no weights
        self.needed = tuple(map(requires_grad, weights))
        self.none_wanted = (False,) * len(weights)
        self._versions = tuple(map(version, weights))
        self._left: dict[int, list[_Step | tuple[Tensor | None, ...]]] = {}

    def still_fit(self, parameters: Parameters, packs: Packs, weights: tuple[Tensor, ...]) -> bool:
        """Whether another step can share them, as they are the same and have not changed."""
        return (
            parameters is self.parameters
            and packs.format_name == self._format_name
            and all(map(operator.is_, weights, self.weights))
            and tuple(map(requires_grad, weights)) == self.needed
            and tuple(map(version, weights)) == self._versions
        )

    def new_token(self) -> Tensor | None:
        """What stands for the weights; None: none of them needs a gradient."""
        return _Token.apply(self, *self.weights) if any(self.needed) else None

    def check_unchanged(self) -> None:
        """Raises what torch does where a weight was changed in place since the forward pass."""
        if tuple(map(version, self.weights)) == self._versions:
            return
        for weight, seen in zip(self.weights, self._versions, strict=True):
            if weight._version != seen:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: [{weight.type()} {list(weight.shape)}] is at version "
                    f"{weight._version}; expected version {seen} instead."
                )

    def leave(self, step: _Step | tuple[Tensor | None, ...]) -> None:
        """Leaves a step, or its gradients as far as they are there, for the token's backward."""
        task = _graph_task()
        left = self._left.get(task)
        if left is None:
            left = self._left[task] = []
            holder = self._holder()
            shared = None if holder is None else holder.shared  # other threads may change it
            if holder is not None and shared is not None and shared[0] is self:
                holder.shared = None  # a graph that is taken back grows no more
            # Where the token is not asked for, as when only gradients at inputs are wanted.
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._left.pop(task, None))
        left.append(step)

    def gradients(self, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
        """At each weight, of all that the present backward pass has left."""
        left = self._left.pop(_graph_task(), [])
        ready = [own for own in left if not isinstance(own, _Step)]
        steps = [own for own in left if isinstance(own, _Step)]
        ready += [self._of_steps(group, wanted) for group in _groups(steps)]
        total: list[Tensor | None] = [None] * len(wanted)
        for own in ready:
            for k, found in enumerate(own):
                if found is not None and wanted[k]:
                    before = total[k]
                    total[k] = found if before is None else before + found
        return total

    def _of_steps(self, steps: list[_Step], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        sizes, stack = self.kind.sizes, self._stack
        x = _joined([step.x for step in steps], sizes.input)
        rows = list(map(_rows, steps))
        widths = range(len(steps[0].d_states))
        states = None
        if any(step.states is not None for step in steps):
            own = [[None if s.states is None else s.states[k] for s in steps] for k in widths]
            states = tuple(_filled(parts, rows, x, sizes.hidden) for parts in own)
        d_states = tuple(
            _filled([step.d_states[k] for step in steps], rows, x, sizes.hidden) for k in widths
        )
        tape = steps[0].tape
        if len(steps) > 1:
            tape = torch.cat([step.tape for step in steps])
        _, _, found = gradients(
            stack, x, states, None, None, tape, None, d_states, (False, False, *wanted)
        )
        return tuple(found)


def _groups(steps: list[_Step]) -> list[list[_Step]]:
    """The steps in order, as many together as have some thousand rows: their inputs are copied."""
    groups: list[list[_Step]] = []
    rows = _MOST_ROWS
    for step in steps:
        own = _rows(step)
        rows += own
        if rows > _MOST_ROWS:
            groups.append([])
            rows = own
        groups[-1].append(step)
    return groups


def _rows(step: _Step) -> int:
    shape = step.x.shape
    return shape[0] if len(shape) == 2 else 1


def _joined(parts: list[Tensor], width: int) -> Tensor:
    """The rows of tensors (B, ·) or (·,), one below another."""
    rows = [part if part.dim() == 2 else part.reshape(1, width) for part in parts]
    return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows)


def _filled(parts: list[Tensor | None], rows: list[int], x: Tensor, width: int) -> Tensor:
    """The same, with zeros for those that are None."""
    pairs = zip(parts, rows, strict=True)
    return _joined([x.new_zeros((n, width)) if p is None else p for p, n in pairs], width)


class _Token(torch.autograd.Function):
    """Stands for the weights on the graph of their steps."""

    @staticmethod
    def forward(ctx: Any, own: _Weights, *weights: Tensor) -> Tensor:
        ctx.own = own
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple[Any, ...]:
        return (None, *ctx.own.gradients(ctx.needs_input_grad[1:]))


def record(
    holder: PackCache,
    call: Call,
    weights: tuple[Tensor, ...],
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> States | None:
    """One step on torch's graph: (h,) or (h, c). None: the arguments do not fit.

    holder : has an attribute `shared`, where the `_Weights` of the module's last step are kept,
        and their token.
    """
    parameters, packs, *_ = call
    result = packs.stack().forward(x, state_of(states), None, _get_num_threads())
    if result is NotImplemented:
        return None
    _, last, tape = result
    own, token = holder.shared or (None, None)
    if own is None or not own.still_fit(parameters, packs, weights):
        own = _Weights(holder, parameters, packs, weights)
        token = own.new_token()
        # Weights made from others would keep the graph that they are on.
        holder.shared = (own, token) if all(map(is_leaf, weights)) else None
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    results = (*states_of(last), tape)
    return _apply(own, packs, results, token, x, h0, c0)


class _StepFunction(torch.autograd.Function):
    """A step that has run: `results` are its outputs, and its tape, which no output is."""

    @staticmethod
    def forward(
        ctx: Any,
        own: _Weights,
        packs: Packs,
        results: tuple[Tensor, ...],
        token: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.own, ctx.packs = own, packs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(results[-1], x, h0, c0)
        return results[:-1]

    @staticmethod
    def backward(ctx: Any, *d_states: Tensor | None) -> tuple[Any, ...]:
        own: _Weights = ctx.own
        tape, x, h0, c0 = ctx.saved_tensors
        own.check_unchanged()
        _, _, _, at_weights, *wanted = ctx.needs_input_grad
        if are_for_torch(d_states):
            found = differentiable.gradients(
                own.kind,
                None,
                False,
                None,
                d_states,
                x,
                h0,
                c0,
                own.weights,
                [*wanted, *(own.needed if at_weights else own.none_wanted)],
            )
            if at_weights:
                own.leave(found[3:])
            return (None, None, None, None, *found[:3])
        states = None if h0 is None else (h0,) if c0 is None else (h0, c0)
        at_inputs = (wanted[0], wanted[1] or wanted[2], *own.none_wanted)
        if at_weights:
            own.leave(_Step(x, states, tape, d_states))
        if not any(wanted):
            return (None,) * 7
        dx, initial, _ = gradients(
            own.parameters.still(ctx.packs, own.weights).stack(),
            x,
            states,
            None,
            None,
            tape,
            None,
            d_states,
            at_inputs,
        )
        return (
            None,
            None,
            None,
            None,
            dx,
            initial[0] if wanted[1] else None,
            initial[1] if wanted[2] else None,
        )


# Without what Python's `apply` does for `torch.func`, which is not in force here: 2 us of 10.
_apply = super(torch.autograd.Function, _StepFunction).apply
