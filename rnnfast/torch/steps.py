"""The steps of a loop with gradients, whose weights' gradients are computed together.

They are those of a cell, or of a layer that is called with one step after the other. A step of
its own would add an outer product to each weight's gradient: as much memory to write as all that
its forward pass reads. So a step takes not the weights but a token that stands for them. Torch
takes the token's node back after all steps that used it, which then are one batch.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfast.torch import autograd, differentiable
from rnnfast.torch.autograd import Call, Lone
from rnnfast.torch.cache import PackCache
from rnnfast.torch.exchange import (
    are_for_torch,
    copy_of,
    is_given,
    is_leaf,
    requires_grad,
    state_of,
    step_gradients,
    steps_gradients,
    version,
)
from rnnfast.torch.kinds import Kind
from rnnfast.torch.packs import Packs

_get_num_threads = torch.get_num_threads
_graph_task = torch._C._current_graph_task_id
# None: there are none in force. A torch that does not tell may have some.
_saved_tensors_hooks = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: NotImplemented
)


# A step, as far as the gradients of the weights need it: its input, the h before it if there is
# one, its tape, where the outputs of inner layers are, if there are some, and the gradients at its
# gates.
_LeftStep = tuple[Tensor, Tensor | None, Tensor | None, Tensor]


class _Left:
    """What a backward pass has left: steps, and the gradients of others that torch found."""

    __slots__ = ("found", "steps")

    def __init__(self) -> None:
        self.steps: list[_LeftStep] = []
        self.found: list[Sequence[Tensor | None]] = []


class _Weights:
    """The weights as the steps of a graph share them, and what those steps left in backward."""

    def __init__(self, holder: PackCache, call: Call, weights: tuple[Tensor, ...]) -> None:
        self._holder = weakref.ref(holder)
        self._parameters, packs, _, self.batch_first, _ = call
        self.kind, self._format_name = packs.kind, packs.format_name
        self._any_stack = packs.stack(self.batch_first)  # for products that read no weights
        self.weights = weights
        self.needed = tuple(map(requires_grad, weights))
        self._versions = tuple(map(version, weights))
        self._left: dict[int, _Left] = {}
        self.lone = Lone()  # until another step shares them

    def still_fit(self, call: Call, weights: tuple[Tensor, ...]) -> bool:
        """Whether another step can share them, as they are the same and have not changed."""
        parameters, packs, _, batch_first, _ = call
        return (
            parameters is self._parameters
            and packs.format_name == self._format_name
            and batch_first == self.batch_first
            and all(map(operator.is_, weights, self.weights))
            and tuple(map(requires_grad, weights)) == self.needed
            and tuple(map(version, weights)) == self._versions
        )

    def stack(self, packs: Packs) -> Any:
        """What runs a step's backward pass: on `packs`, or on others of weights that have moved."""
        return self._parameters.still(packs, self.weights).stack(self.batch_first)

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

    def left(self) -> _Left:
        """Where the present backward pass leaves its steps for the token's backward."""
        task = _graph_task()
        left = self._left.get(task)
        if left is None:
            left = self._left[task] = _Left()
            self.lone.is_back = True
            holder = self._holder()
            shared = None if holder is None else holder.shared  # other threads may change it
            if holder is not None and shared is not None and shared[0]() is self:
                holder.shared = None  # a graph that is taken back grows no more
            # Where the token is not asked for, as when only gradients at inputs are wanted.
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._left.pop(task, None))
        return left

    def gradients(self, wanted: tuple[bool, ...]) -> Sequence[Tensor | None]:
        """At each weight, of all that the present backward pass has left."""
        left = self._left.pop(_graph_task(), None) or _Left()
        found = left.found
        if left.steps:
            found.append(steps_gradients(self._any_stack, left.steps, wanted))
        total: list[Tensor | None] = [None] * len(wanted)
        for own in found:
            for k, gradient in enumerate(own):
                if gradient is not None and wanted[k]:
                    before = total[k]
                    total[k] = gradient if before is None else before + gradient
        return total


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


def goes_on(kind: Kind, states: Sequence[Tensor] | None) -> bool:
    """Whether a layer's call of one step is of a loop: from a state that is on a graph."""
    return (
        states is not None
        and not is_leaf(states[0])
        and kind.directions == 1
        and not kind.sizes.projection
    )


def record(
    holder: PackCache,
    call: Call,
    weights: tuple[Tensor, ...],
    x: Tensor,
    states: Sequence[Tensor] | None,
) -> tuple[Tensor, ...] | None:
    """One step on torch's graph: a layer's output, and (h,) or (h, c). None: they do not fit.

    holder : has an attribute `shared`, for the `_Weights` of the module's last step and their
        token, which it does not keep: a graph that is dropped takes them along, and the weights;
        and `lone`, for that step if it is the only one of its graph.
    """
    packs = call.packs
    own, token = _last(holder)
    if own is not None and not own.still_fit(call, weights):
        own = None
    if own is None and packs.kind.one_step and _is_alone(holder, weights):
        lone = Lone()
        found = autograd.record(call._replace(lone=lone), weights, x, states)
        if found is None:
            return None
        holder.lone = lone
        return found[1]
    stack = packs.stack(call.batch_first)
    result = stack.forward(x, state_of(states), None, _get_num_threads())
    if result is NotImplemented:
        return None
    if own is None:
        own = _Weights(holder, call, weights)
        token = own.new_token()
        # Weights made from others are not those of the next step.
        holder.shared = _references(own, token) if all(map(is_leaf, weights)) else None
        holder.lone = own.lone
    else:
        holder.lone = None
    y, last, tape = result
    outputs = last if isinstance(last, tuple) else (last,)
    kept = None
    if y is not None:
        outputs = y, *outputs
        if packs.kind.saves_y:  # the caller may change it; of a module in bfloat16 none sees it
            kept = copy_of(y) if call.parameters.format_name is None else y
    h0, c0 = (None, None) if states is None else (*states, None)[:2]
    return _apply(own, packs, outputs, kept, tape, token, x, h0, c0)


def _is_alone(holder: PackCache, weights: tuple[Tensor, ...]) -> bool:
    """Whether a graph's first step is likely to be its only one, as the one before was."""
    # A checkpoint runs the step once more, and then the one before is another: its node has to be
    # the same, and to notice weights that have changed meanwhile.
    if _saved_tensors_hooks(True) is not None:
        return False
    if not all(map(is_leaf, weights)):  # made from others, they are not those of the next
        return True
    last = holder.lone  # other threads may change it
    return last is not None and last.is_back


def _references(*objects: Any) -> tuple[Any, ...]:
    return tuple(None if one is None else weakref.ref(one) for one in objects)


def _last(holder: PackCache) -> tuple[_Weights | None, Tensor | None]:
    """The weights and token of the holder's last step, as long as its graph is there."""
    shared = holder.shared  # other threads may change it
    own, token = (None if one is None else one() for one in shared or (None, None))
    return (None, None) if own and token is None and any(own.needed) else (own, token)


_NOTHING = (None,) * 5  # at the arguments of a step that are before the token


def _at_token(own: _Weights) -> Tensor | None:
    """Its gradient, of no use but for compiled autograd, which adds up what is there."""
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    if compiled is None or not getattr(compiled, "in_compiled_autograd_region", False):
        return None
    return own.weights[0].new_zeros(())


class _StepFunction(torch.autograd.Function):
    """A step that has run: its outputs; and, which are none, y as kept and the tape."""

    @staticmethod
    def forward(
        ctx: Any,
        own: _Weights,
        packs: Packs,
        outputs: tuple[Tensor, ...],
        kept: Tensor | None,
        tape: Tensor,
        token: Tensor | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.own, ctx.packs = own, packs
        ctx.token = token  # for the next step
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, tape, x, h0, c0)
        return outputs

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        own: _Weights = ctx.own
        *_, at_weights, at_x, at_h0, at_c0 = ctx.needs_input_grad
        before_x = (*_NOTHING, _at_token(own) if at_weights else None)
        if not any(map(is_given, d_outputs)):
            return (*before_x, None, None, None)
        y, tape, x, h0, c0 = ctx.saved_tensors
        own.check_unchanged()
        kind, left = own.kind, own.left() if at_weights else None
        dy, d_states = (None, d_outputs) if kind.one_step else (d_outputs[0], d_outputs[1:])
        if are_for_torch(d_outputs):
            form, inputs = (kind, None, own.batch_first), (x, h0, c0, own.weights)
            wanted = [at_x, at_h0, at_c0, *(needed and at_weights for needed in own.needed)]
            found = differentiable.gradients(*form, dy, d_states, *inputs, wanted)
            if left is not None:
                left.found.append(found[3:])
            return (*before_x, *found[:3])
        state = (h0, c0) if c0 is not None else h0
        d_state = d_states if len(d_states) == 2 else d_states[0]
        stack, at = own.stack(ctx.packs), (at_x, at_h0 or at_c0, at_weights)
        dx, initial, gates = step_gradients(stack, x, state, y, tape, dy, d_state, at)
        if left is not None and gates is not None:
            left.steps.append((x, h0, tape if kind.layers > 1 else None, gates))
        dh0, dc0 = initial if isinstance(initial, tuple) else (initial, None)
        at_states = dh0 if at_h0 else None, dc0 if at_c0 else None
        return (*before_x, dx, *at_states)


# Without what Python's `apply` does for `torch.func`, which is not in force here: 2 us of 10.
_apply = super(torch.autograd.Function, _StepFunction).apply
