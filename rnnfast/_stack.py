"""A stack of layers, each in one or two directions: forward, backward, and dropout between."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Forward
from rnnfast._cells import Weights
from rnnfast._layout import state_widths
from rnnfast._recompute import RecomputedRun
from rnnfast.functional import Packed, Run, reversed_reset, run_checked, zero_weights

# By name: h (L*D, B, W) and, for LSTM, c (L*D, B, H). None: zeros.
States = dict[str, NDArray]
MaybeStates = Mapping[str, "NDArray | None"]


@dataclass
class Inputs:
    """The arguments of a pass through a stack, checked.

    x : (T, B, I), unit stride in the last axis.
    states : contiguous.
    lengths : (B,) int64 or None; reset : (T, B) bool or None; contiguous.
    """

    x: NDArray
    states: MaybeStates
    lengths: NDArray | None = None
    reset: NDArray | None = None

    def snapshot(self) -> Inputs:
        """With copies of what may belong to the caller, who may reuse it before backward."""
        states = {name: None if s is None else s.copy() for name, s in self.states.items()}
        return Inputs(self.x.copy(), states, self.lengths, self.reset)


@dataclass
class Dropout:
    """Inverted dropout of the outputs of all layers but the last; keeps its masks for backward."""

    p: float
    rng: np.random.Generator
    masks: list[NDArray] = field(default_factory=list)

    def forward(self, y: NDArray) -> NDArray:
        """`y` with a new mask: zero with probability p, else divided by 1 - p."""
        keep = self.rng.random(y.shape, dtype=np.float32) >= self.p
        self.masks.append(keep)
        return self._apply(y, keep)

    def backward(self, dy: NDArray, layer: int) -> NDArray:
        """The gradient of `forward` after `layer`."""
        return self._apply(dy, self.masks[layer])

    def _apply(self, array: NDArray, keep: NDArray) -> NDArray:
        with np.errstate(all="ignore"):  # infinity dropped is NaN, as in torch
            dropped = array * keep
            if self.p < 1:
                dropped *= 1 / (1 - self.p)
        return dropped


def infer(packs: Sequence[Packed], directions: int, inputs: Inputs, output: NDArray) -> States:
    """Runs a stack and returns its last states.

    packs : one for each layer and direction, layer by layer.
    output : (T, B, D*W), unit stride in the last axis: the last layer's output, written.
    """
    return _forward(packs, directions, inputs, output, _infer_one, None)


class TrainingRun:
    """A pass through a stack that has run, and can run backward any number of times."""

    def __init__(
        self,
        packs: Sequence[Packed],
        directions: int,
        inputs: Inputs,
        output: NDArray,
        dropout: Dropout | None,
        recompute: bool,
    ) -> None:
        self.packs = packs
        self._directions = directions
        self._dropout = dropout
        self._runs: list[Run | RecomputedRun] = []

        def run_one(packed: Packed, args: Forward) -> None:
            run = RecomputedRun if recompute else _train_one
            self._runs.append(run(packed, args))

        self.states = _forward(packs, directions, inputs, output, run_one, dropout)

    def backward(
        self, dy: NDArray | None, dstates: MaybeStates
    ) -> tuple[NDArray, States, list[Weights]]:
        """The gradients at x, at the states, and at the parameters in the order of the packs."""
        weights = [zero_weights(packed) for packed in self.packs]
        initial = {name: np.empty_like(s) for name, s in self.states.items()}
        dh, dc = dstates["h"], dstates.get("c")
        for layer in reversed(range(len(self._runs) // self._directions)):
            parts = []
            for direction in range(self._directions):
                k = layer * self._directions + direction
                grads = self._runs[k].backward_checked(
                    None if dy is None else _half(dy, self.packs[k], direction),
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
        return cast("NDArray", dy), initial, weights


def _forward(
    packs: Sequence[Packed],
    directions: int,
    inputs: Inputs,
    output: NDArray,
    run_one: Callable[[Packed, Forward], None],
    dropout: Dropout | None,
) -> States:
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
    """What one direction writes of the (T, B, D*W) output of a layer."""
    width = packed.sizes.output
    return y[..., direction * width : (direction + 1) * width]


def _infer_one(packed: Packed, args: Forward) -> None:
    run_checked(packed, args, training=False)


def _train_one(packed: Packed, args: Forward) -> Run:
    return run_checked(packed, args, training=True)
