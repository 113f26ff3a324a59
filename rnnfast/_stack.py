"""A stack of layers, each in one or two directions: forward, backward, and dropout between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Forward
from rnnfast._layout import Layout, MaybeStates, Signature, State, reversed_reset, state_widths
from rnnfast._low_precision import check_trains
from rnnfast._native_backend import NativeBackend
from rnnfast._parameters import read_only
from rnnfast._recompute import RecomputedRun
from rnnfast.functional import Packed, Run, run_checked, zero_weights

if TYPE_CHECKING:
    from rnnfast._native import Stack

States = dict[str, NDArray]
# The names of the parameters of one layer and direction, in the order of `Weights`.
Names = tuple[str | None, ...]
# The gradients with respect to x, the state and the parameters, in the user's layout.
PassGradients = tuple[NDArray, State, dict[str, NDArray]]


@dataclass
class Inputs:
    """The checked arguments of a pass through a stack.

    x : (T, B, I), with unit stride in the last axis.
    states : contiguous arrays, by name.
    layout : the layout of the user's arrays, of which x is a view.
    lengths : (B,) int64, contiguous, or None.
    reset : (T, B) bool, contiguous, or None.
    """

    x: NDArray
    states: MaybeStates
    layout: Layout
    lengths: NDArray | None = None
    reset: NDArray | None = None

    def snapshot(self) -> Inputs:
        """The same with copies of x and states, which the caller may reuse before backward."""
        states = {name: None if s is None else s.copy() for name, s in self.states.items()}
        return Inputs(self.x.copy(), states, self.layout, self.lengths, self.reset)

    def native(self) -> tuple[Any, ...]:
        """The arguments of the native stack's `infer` and `record`."""
        layout, lengths = self.layout, self.lengths
        x, state = layout.outward(self.x), layout.states_outward(self.states)
        resets = self.reset, reversed_reset(self.reset, lengths)
        return x, state, lengths, *(r if r is None else layout.state_outward(r) for r in resets)


@dataclass
class Dropout:
    """Inverted dropout of the outputs of all layers but the last; keeps the masks for backward."""

    p: float
    rng: np.random.Generator
    masks: list[NDArray] = field(default_factory=list)

    def forward(self, y: NDArray) -> NDArray:
        """`y` under a new mask: each element is 0 with probability p, else divided by 1 - p."""
        keep = self.rng.random(y.shape, dtype=np.float32) >= self.p
        self.masks.append(keep)
        return self._apply(y, keep)

    def backward(self, dy: NDArray, layer: int) -> NDArray:
        """The gradient with respect to the y of `forward` after `layer`."""
        return self._apply(dy, self.masks[layer])

    def _apply(self, array: NDArray, keep: NDArray) -> NDArray:
        with np.errstate(all="ignore"):  # infinity dropped is NaN, as in torch
            dropped = array * keep
            if self.p < 1:
                dropped *= 1 / (1 - self.p)
        return dropped


class TapeRun(Protocol):
    """A forward pass that has run. Several threads may call `backward`, any number of times."""

    def backward(self, d_output: Any, d_state: Any, /) -> Any:
        """The `PassGradients`, from the gradients with respect to the output and the state.

        All are in the user's layout. NotImplemented: the arguments must be checked and converted
        first.
        """


class PackedStack:
    """The packed weights of all layers and directions, layer by layer, direction by direction.

    native : the native backend's stack, which runs all layers in one call; None on other backends.
    """

    __slots__ = ("names", "native", "packs", "signature")

    def __init__(
        self, signature: Signature, packs: Sequence[Packed], names: Sequence[Names]
    ) -> None:
        self.signature = signature
        self.packs = packs
        self.names = names
        self.native: Stack | None = None
        backend = packs[0].backend
        if isinstance(backend, NativeBackend):
            weights = [packed.weights for packed in packs]
            self.native = backend.stack(
                weights, names, signature.directions, signature.one_step, signature.batch_first
            )

    def infer(self, inputs: Inputs) -> tuple[NDArray, State]:
        """The output and the last state, in the user's layout; a cell's output is of no use."""
        if self.native is not None:
            output, state = self.native.infer(*inputs.native())
            return output, state
        output = self._output(inputs)
        states = _forward(self, inputs, output, _infer_one, None)
        return inputs.layout.outward(output), inputs.layout.states_outward(states)

    def record(
        self, inputs: Inputs, dropout: Dropout | None = None, recompute: bool = False
    ) -> tuple[TapeRun, NDArray, State]:
        """A run for backward, and its output and last state, read-only, as `infer` gives them.

        The inputs are copied.
        """
        # Another thread may have changed the layer's precision since the arguments were checked.
        check_trains(self.packs[0].format_name, self.signature.dtype.name)
        recompute = recompute and self._saves()
        if self.native is not None and dropout is None and not recompute:
            run, output, state = self.native.record(*inputs.native())
            return run, output, state
        output = self._output(inputs)
        training = TrainingRun(self, inputs.snapshot(), output, dropout, recompute)
        layout, states = inputs.layout, training.states
        views = {name: read_only(state) for name, state in states.items()}
        return training, training.output, layout.states_outward(views)

    def _saves(self) -> bool:
        """Whether a pass keeps more for backward than its inputs and outputs."""
        first = self.packs[0]
        if self.signature.one_step or not isinstance(first.backend, NativeBackend):
            return True
        dtype = self.signature.dtype.name
        return first.backend.tape_row(first.cell.name, dtype, *first.sizes, 1, 1) > 0

    def _output(self, inputs: Inputs) -> NDArray:
        """A view (T, B, D*W) of a new output array, which is contiguous in the user's layout."""
        steps, batch = inputs.x.shape[:2]
        signature, batch_first = self.signature, inputs.layout.batch_first
        leading = (batch, steps) if batch_first else (steps, batch)
        width = signature.directions * signature.sizes.output
        output = np.empty((*leading, width), signature.dtype)
        return output.swapaxes(0, 1) if batch_first else output


class TrainingRun:
    """A `TapeRun` that runs layer by layer: for all backends, dropout and recomputation."""

    def __init__(
        self,
        stack: PackedStack,
        inputs: Inputs,
        output: NDArray,
        dropout: Dropout | None,
        recompute: bool,
    ) -> None:
        # output: (T, B, D*W); this writes it
        self._stack = stack
        self._dropout = dropout
        self._runs: list[Run | RecomputedRun] = []

        def run_one(packed: Packed, args: Forward) -> None:
            run = RecomputedRun if recompute else _train_one
            self._runs.append(run(packed, args))

        self.states = _forward(stack, inputs, output, run_one, dropout)
        self.output = inputs.layout.outward(read_only(output))

    def backward(self, d_output: Any, d_state: Any) -> PassGradients:
        """`TapeRun.backward`, which checks its arguments here."""
        packs, signature = self._stack.packs, self._stack.signature
        dy, dstates, layout = signature.gradients(d_output, d_state, self.output)
        weights = [zero_weights(packed) for packed in packs]
        initial = {name: np.empty_like(s) for name, s in self.states.items()}
        dh, dc = dstates["h"], dstates.get("c")
        directions = signature.directions
        for layer in reversed(range(len(self._runs) // directions)):
            parts = []
            for direction in range(directions):
                k = layer * directions + direction
                grads = self._runs[k].backward_checked(
                    None if dy is None else _half(dy, packs[k], direction),
                    None if dh is None else dh[k],
                    None if dc is None else dc[k],
                    into=weights[k],
                )
                parts.append(cast("NDArray", grads.x))
                initial["h"][k] = grads.h0
                if grads.c0 is not None:
                    initial["c"][k] = grads.c0
            dy = parts[0]
            if len(parts) == 2:
                with np.errstate(all="ignore"):
                    dy += parts[1]
            if self._dropout is not None and layer:
                dy = self._dropout.backward(dy, layer - 1)
        parameters = {
            name: gradient
            for names, own in zip(self._stack.names, weights, strict=True)
            for name, gradient in zip(names, own, strict=True)
            if name is not None and gradient is not None
        }
        return layout.outward(cast("NDArray", dy)), layout.states_outward(initial), parameters


def _forward(
    stack: PackedStack,
    inputs: Inputs,
    output: NDArray,
    run_one: Callable[[Packed, Forward], None],
    dropout: Dropout | None,
) -> States:
    packs, directions = stack.packs, stack.signature.directions
    first = packs[0]
    batch = inputs.x.shape[1]
    widths = state_widths(first.cell, first.sizes)
    last = {name: np.empty((len(packs), batch, w), first.dtype) for name, w in widths.items()}
    h0, c0 = inputs.states["h"], inputs.states.get("c")
    resets = [inputs.reset]
    if directions == 2:
        resets.append(reversed_reset(inputs.reset, inputs.lengths))
    x, y = inputs.x, output
    layers = len(packs) // directions
    for layer in range(layers):
        if layer:
            x = y if dropout is None else dropout.forward(y)
        y = output if layer == layers - 1 else np.empty(output.shape, first.dtype)
        for direction in range(directions):
            k = layer * directions + direction
            args = Forward(
                x=x,
                h0=None if h0 is None else h0[k],
                c0=None if c0 is None else c0[k],
                lengths=inputs.lengths,
                reset=resets[direction],
                reverse=direction == 1,
                y=_half(y, packs[k], direction),
                hn=last["h"][k],
                cn=last["c"][k] if "c" in last else None,
            )
            run_one(packs[k], args)
    return last


def _half(y: NDArray, packed: Packed, direction: int) -> NDArray:
    """The part of a layer's output (T, B, D*W) that one direction writes."""
    width = packed.sizes.output
    return y[..., direction * width : (direction + 1) * width]


def _infer_one(packed: Packed, args: Forward) -> None:
    run_checked(packed, args, training=False)


def _train_one(packed: Packed, args: Forward) -> Run:
    return run_checked(packed, args, training=True)
