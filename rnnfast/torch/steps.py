"""The steps of a loop with gradients, whose weights' gradients are computed together.

The steps are calls of a cell, or of a layer that is called with one step at a time.
"""

from __future__ import annotations

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
    copy_of,
    is_given,
    is_leaf,
    state_of,
    step_gradients,
)
from rnnfast.torch.kinds import Kind
from rnnfast.torch.packs import Packs, Parameters
from rnnfast.torch.shared_weights import SharedWeights

_get_num_threads = torch.get_num_threads
# Returns None if no such hooks are active. A torch without this function may have some.
_saved_tensors_hooks = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: NotImplemented
)


def goes_on(kind: Kind, states: Sequence[Tensor] | None) -> bool:
    """Whether a layer's call of one step continues a loop: its state was computed on a graph."""
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
    """One step on torch's graph: a layer's output, then h and c. None: the arguments don't fit.

    holder : its attribute `shared` gets weak references to the `SharedWeights` of the module's last
        step and to their token. Only the graph keeps these and the weights alive. Its attribute
        `lone` gets the mark of that step, if the step is so far the only one of its graph.
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
        own = SharedWeights(holder, call, weights)
        token = own.new_token()
        # If weights are computed for each call, the next step has other ones.
        holder.shared = _references(own, token) if all(map(is_leaf, weights)) else None
        holder.lone = own.lone
    else:
        holder.lone = None
    own.remember(packs)
    return _on_graph(own, packs, result, token, x, states or ())


def again(
    cache: PackCache,
    parameters: Parameters,
    batch_first: bool,
    weights: tuple[Tensor, ...],
    x: Any,
    hx: Any,
) -> tuple[Any, Any] | None:
    """(output, state) of a step that continues the last step's graph; None: it may not do so.

    parameters : those that the cache still keeps. The other arguments: see `Parameters.again`.
    """
    own, token = _last(cache)
    if own is None or token is None:
        return None
    found = own.run_again(parameters, batch_first, weights, x, hx)
    if found is None:
        return None
    cache.lone = None
    states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    outputs = _on_graph(own, *found, token, x, states)
    y, last = (None, outputs) if own.kind.one_step else (outputs[0], outputs[1:])
    return y, (last if len(last) == 2 else last[0])


def _on_graph(
    own: SharedWeights,
    packs: Packs,
    result: tuple[Any, Any, Tensor],
    token: Tensor | None,
    x: Tensor,
    states: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Puts a step that has run on torch's graph; `result` : what the stack's `forward` gave."""
    y, last, tape = result
    outputs = last if isinstance(last, tuple) else (last,)
    kept = None
    if y is not None:
        outputs = y, *outputs
        if packs.kind.saves_y:  # the caller may change y, unless the module is in bfloat16
            kept = copy_of(y) if own.in_float else y
    h0, c0 = (*states, None, None)[:2]
    return _apply(own, packs, outputs, kept, tape, token, x, h0, c0)


def _is_alone(holder: PackCache, weights: tuple[Tensor, ...]) -> bool:
    """Whether a graph's first step is likely to be its only one, as the one before was."""
    # A checkpoint sets such hooks, and runs the step again, when the step before it may be another.
    # Its node must be of the same kind both times, and notice if weights have changed in between.
    if _saved_tensors_hooks(True) is not None:
        return False
    if not all(map(is_leaf, weights)):  # made for each call: the next step has other ones
        return True
    last = holder.lone  # other threads may change it
    return last is not None and last.is_back


def _references(*objects: Any) -> tuple[Any, ...]:
    return tuple(None if one is None else weakref.ref(one) for one in objects)


def _last(holder: PackCache) -> tuple[SharedWeights | None, Tensor | None]:
    """The weights and the token of the holder's last step, as long as its graph exists."""
    shared = holder.shared  # other threads may change it
    own, token = (None if one is None else one() for one in shared or (None, None))
    return (None, None) if own and token is None and any(own.needed) else (own, token)


_NOTHING = (None,) * 5  # the gradients at a step's arguments before the token


def _at_token(own: SharedWeights) -> Tensor | None:
    """The token's gradient: zero for compiled autograd, which sums gradients; else none."""
    compiled = sys.modules.get("torch._dynamo.compiled_autograd")
    if compiled is None or not getattr(compiled, "in_compiled_autograd_region", False):
        return None
    return own.weights[0].new_zeros(())


class _StepFunction(torch.autograd.Function):
    """A step that has already run.

    Besides its outputs it saves two tensors that only backward reads: the kept y, and the tape.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: SharedWeights,
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
        own: SharedWeights = ctx.own
        *_, at_weights, at_x, at_h0, at_c0 = ctx.needs_input_grad
        before_x = (*_NOTHING, _at_token(own) if at_weights else None)
        if not any(map(is_given, d_outputs)):
            return (*before_x, None, None, None)
        y, tape, x, h0, c0 = ctx.saved_tensors
        own.check_unchanged()
        kind, left = own.kind, own.left() if at_weights else None
        dy, d_states = (None, d_outputs) if kind.one_step else (d_outputs[0], d_outputs[1:])
        state = (h0, c0) if c0 is not None else h0
        d_state = d_states if len(d_states) == 2 else d_states[0]
        stack, at = own.stack(ctx.packs), (at_x, at_h0 or at_c0, at_weights)
        result = step_gradients(stack, x, state, y, tape, dy, d_state, at)
        if result is None:
            form, inputs = (kind, None, own.batch_first), (x, h0, c0, own.weights)
            wanted = [at_x, at_h0, at_c0, *(needed and at_weights for needed in own.needed)]
            found = differentiable.gradients(*form, dy, d_states, *inputs, wanted)
            if left is not None:
                left.found.append(found[3:])
            return (*before_x, *found[:3])
        dx, initial, gates = result
        if left is not None and gates is not None:
            left.steps.append((x, h0, tape if kind.layers > 1 else None, gates))
        dh0, dc0 = initial if isinstance(initial, tuple) else (initial, None)
        at_states = dh0 if at_h0 else None, dc0 if at_c0 else None
        return (*before_x, dx, *at_states)


# Python's `apply` handles `torch.func`, which is never active here; this one saves 2 us of 10.
_apply = super(torch.autograd.Function, _StepFunction).apply
