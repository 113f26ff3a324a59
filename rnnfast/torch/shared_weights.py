"""Weights that the steps of a loop share on torch's graph, and their gradients.

A step that computed these gradients alone would add an outer product to each weight's gradient, and
so write as much memory as its forward pass reads. So a step depends not on the weights but on a
token that stands for them. Torch runs the token's backward after that of all steps that used the
token, and this computes the weights' gradients from all these steps as one batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfast.torch.autograd import Call, Lone
from rnnfast.torch.cache import PackCache
from rnnfast.torch.exchange import requires_grad, steps_gradients, version
from rnnfast.torch.packs import Known, Packs, Parameters
from rnnfast.torch.profiling import is_profiled

_get_num_threads = torch.get_num_threads
_graph_task = torch._C._current_graph_task_id


# What the gradients of the weights need of a step: its input, the h before it, if any, its tape, if
# it holds the outputs of inner layers, and the gradients at its gates.
LeftStep = tuple[Tensor, Tensor | None, Tensor | None, Tensor]


class Left:
    """What a backward pass leaves for the token: steps, and gradients that torch has computed.

    found : the weights' gradients of the steps whose backward ran by torch's operations.
    """

    __slots__ = ("found", "steps")

    def __init__(self) -> None:
        self.steps: list[LeftStep] = []
        self.found: list[Sequence[Tensor | None]] = []


class SharedWeights:
    """The weights that the steps of a graph share, and what those steps leave in backward."""

    def __init__(self, holder: PackCache, call: Call, weights: tuple[Tensor, ...]) -> None:
        self._holder = weakref.ref(holder)
        self._parameters, packs, _, self.batch_first, _ = call
        self.kind, self._format_name = packs.kind, packs.format_name
        self._any_stack = packs.stack(self.batch_first)  # for products that read no weights
        self.weights = weights
        self.needed = tuple(map(requires_grad, weights))
        self._ids = tuple(map(id, weights))
        self._versions = tuple(map(version, weights))
        self._left: dict[int, Left] = {}
        self.in_float = self._parameters.format_name is None  # false for a module in bfloat16
        self.lone = Lone()  # the first step's mark, until another step shares the weights
        # What ran the last step, if the next one can run the same way; see `run_again`.
        self._again: tuple[Packs, Known] | None = None

    def remember(self, packs: Packs) -> None:
        """Keeps the packs that ran a step, for `run_again`."""
        known = self._parameters.known(packs, self.batch_first)
        self._again = None if known is None else (packs, known)

    def run_again(
        self,
        parameters: Parameters,
        batch_first: bool,
        weights: tuple[Tensor, ...],
        x: Any,
        state: Any,
    ) -> tuple[Packs, Any] | None:
        """Runs a step as the last one ran; None: it may be another kind of step.

        Returns the packs and the result of their stack's `forward`, which checks all that is not
        checked here.
        """
        again = self._again  # other threads may change it
        if (
            again is None
            or parameters is not self._parameters
            or batch_first != self.batch_first
            or not self._are(weights)
            or is_profiled()
        ):
            return None
        packs, known = again
        given = known.place, weights, x, state, _get_num_threads(), known.seen
        result = known.stack.forward_at(*given)
        return None if result is NotImplemented else (packs, result)

    def _are(self, weights: tuple[Tensor, ...]) -> bool:
        """Whether these are the same weights, unchanged as far as torch can tell."""
        return (
            tuple(map(id, weights)) == self._ids
            and tuple(map(requires_grad, weights)) == self.needed
            and tuple(map(version, weights)) == self._versions
        )

    def still_fit(self, call: Call, weights: tuple[Tensor, ...]) -> bool:
        """Whether another step can share the weights: it has the same ones, not changed since."""
        parameters, packs, _, batch_first, _ = call
        return (
            parameters is self._parameters
            and packs.format_name == self._format_name
            and batch_first == self.batch_first
            and self._are(weights)
        )

    def stack(self, packs: Packs) -> Any:
        """The stack for a step's backward pass, on the packs that `Parameters.still` returns."""
        return self._parameters.still(packs, self.weights).stack(self.batch_first)

    def new_token(self) -> Tensor | None:
        """A tensor that stands for the weights; None: none of them needs a gradient."""
        return _Token.apply(self, *self.weights) if any(self.needed) else None

    def check_unchanged(self) -> None:
        """Raises torch's error if a weight was changed in place since the forward pass."""
        if tuple(map(version, self.weights)) == self._versions:
            return
        for weight, seen in zip(self.weights, self._versions, strict=True):
            if weight._version != seen:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    f"inplace operation: [{weight.type()} {list(weight.shape)}] is at version "
                    f"{weight._version}; expected version {seen} instead."
                )

    def left(self) -> Left:
        """Where the present backward pass leaves its steps for the token's backward."""
        task = _graph_task()
        left = self._left.get(task)
        if left is None:
            left = self._left[task] = Left()
            self.lone.is_back = True
            holder = self._holder()
            shared = None if holder is None else holder.shared  # other threads may change it
            if holder is not None and shared is not None and shared[0]() is self:
                holder.shared = None  # no more steps join a graph once its backward runs
            # The token's backward does not run if, for example, only inputs' gradients are wanted.
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._left.pop(task, None))
        return left

    def gradients(self, wanted: tuple[bool, ...]) -> Sequence[Tensor | None]:
        """The gradient at each weight, from all that the present backward pass has left."""
        left = self._left.pop(_graph_task(), None) or Left()
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
    """The node that stands for the weights on the graph of their steps."""

    @staticmethod
    def forward(ctx: Any, own: SharedWeights, *weights: Tensor) -> Tensor:
        ctx.own = own
        ctx.set_materialize_grads(False)
        return weights[0].new_empty(())

    @staticmethod
    def backward(ctx: Any, _: None) -> tuple[Any, ...]:
        return (None, *ctx.own.gradients(ctx.needs_input_grad[1:]))
