"""What `record` returns: an output, and the way back to the gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layout import Layout, read_states
from rnnfast._locks import Lock
from rnnfast._parameters import read_only
from rnnfast._stack import MaybeStates, States, TrainingRun

State = NDArray | tuple[NDArray, NDArray]


@dataclass(frozen=True)
class Gradients:
    """The gradients of a loss with respect to everything that went into `record`.

    input : the shape of x.
    state : the form and shapes of `state`: h, or (h, c) for LSTM. Also where it was None.
    parameters : by name, the keys and order of `layer.parameters`.
    """

    input: NDArray
    state: State
    parameters: dict[str, NDArray]


class Tape:
    """A forward pass that has run, from `record`, with all that its backward pass needs.

    A tape holds its own copy of the weights and inputs, so that neither updates of
    `layer.parameters` nor other tapes change what `backward` gives. Several threads may use it.
    """

    def __init__(
        self, run: TrainingRun, output: NDArray, layout: Layout, suffixes: list[str]
    ) -> None:
        # output: (T, B, D*W)
        self._run: TrainingRun | None = run
        self._layout = layout
        self._suffixes = suffixes
        self._lock = Lock()
        self._output = layout.outward(read_only(output))
        states = {name: read_only(state) for name, state in run.states.items()}
        self._state = user_state(states, layout)
        steps, batch, width = output.shape
        self._output_shape = (steps, batch, width)

    @property
    def output(self) -> NDArray:
        """The output, as the layer returns it; read-only, because `backward` reads it."""
        return self._output

    @property
    def state(self) -> State:
        """The last state, as the layer returns it; read-only."""
        return self._state

    def __repr__(self) -> str:
        done = ", backward done" if self._run is None else ""
        return f"Tape(output={self.output.shape}{done})"

    def backward(
        self, d_output: Any = None, d_state: Any = None, *, retain: bool = False
    ) -> Gradients:
        """The gradients of a loss, from its gradients with respect to output and state.

        Parameters
        ----------
        d_output : the shape and dtype of `output`; None: zeros. What lies past a sequence's
            length has no effect.
        d_state : the form, shapes and dtype of `state`; None, or None for one of a pair: zeros.
        retain : keep what another call needs; otherwise its memory is released.

        Raises
        ------
        RuntimeError : `backward` was called before, without `retain`.
        TypeError, ValueError : a gradient of the wrong dtype, form or shape; the tape stays as
            it was.
        """
        _validate.flag("retain", retain)
        with self._lock:
            run = self._run
            if run is None:
                raise RuntimeError(
                    "backward: expected the only call on this tape, got another; "
                    "call it with retain=True to be able to call it again"
                )
            first = run.packs[0]
            dy = None
            if d_output is not None:
                shape = self._output_shape
                dy = self._layout.floats("d_output", d_output, first.dtype, shape, "T B D*W")
            rows, batch = len(run.packs), self._output_shape[1]
            dstates: MaybeStates = read_states(
                "d_state",
                d_state,
                first.cell,
                first.sizes,
                first.dtype,
                self._layout,
                rows,
                batch,
                partly=True,
            )
            dx, initial, weights = run.backward(dy, dstates)
            if not retain:
                self._run = None
        parameters = {
            name + suffix: gradient
            for suffix, own in zip(self._suffixes, weights, strict=True)
            for name, gradient in own._asdict().items()
            if gradient is not None
        }
        return Gradients(self._layout.outward(dx), user_state(initial, self._layout), parameters)


def user_state(states: States, layout: Layout) -> State:
    """The states (L*D, B, ·) in the user's form: h, or (h, c)."""
    h, *c = (layout.state_outward(state) for state in states.values())
    return (h, c[0]) if c else h
