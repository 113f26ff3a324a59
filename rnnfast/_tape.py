"""What `record` returns: an output, and the way back to the gradients."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, NamedTuple

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layout import Signature, State, StateT
from rnnfast._locks import Lock
from rnnfast._stack import TapeRun


class Gradients(NamedTuple):
    """The gradients of a loss with respect to everything that went into `record`.

    input : the shape of x.
    state : the form and shapes of `state`: h, or (h, c) for LSTM. Also where it was None.
    parameters : by name, the keys and order of `layer.parameters`.
    """

    input: NDArray
    state: State
    parameters: dict[str, NDArray]


class Tape(Generic[StateT]):
    """A forward pass that has run, from `record`, with all that its backward pass needs.

    A tape holds its own copy of the weights and inputs, so that neither updates of
    `layer.parameters` nor other tapes change what `backward` gives. Several threads may use it.
    """

    __slots__ = ("_output", "_run", "_signature", "_state")

    # Of all tapes, since it is held for an instant: to make one for each takes as long as a step.
    _lock: ClassVar = Lock()

    def __init__(self, run: TapeRun, output: NDArray, state: Any, signature: Signature) -> None:
        # output, state: read-only, in the user's layout
        self._run: TapeRun | None = run
        self._output = output
        self._state: StateT = state
        self._signature = signature

    @property
    def output(self) -> NDArray:
        """The output, as the layer returns it; read-only, because `backward` reads it."""
        return self._output

    @property
    def state(self) -> StateT:
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
        run = self._run
        if run is None:
            raise self._used_up()
        gradients = run.backward(d_output, d_state)
        if gradients is NotImplemented:
            gradients = run.backward(*self._checked(d_output, d_state))
        found = Gradients(*gradients)
        if not retain:
            with self._lock:
                if self._run is None:  # another thread's call came first
                    raise self._used_up()
                self._run = None
        return found

    @staticmethod
    def _used_up() -> RuntimeError:
        return RuntimeError(
            "backward: expected the only call on this tape, got another; "
            "call it with retain=True to be able to call it again"
        )

    def _checked(self, d_output: Any, d_state: Any) -> tuple[Any, Any]:
        """The arguments of `backward` checked and converted, still in the user's layout."""
        dy, states, layout = self._signature.gradients(d_output, d_state, self._output)
        return None if dy is None else layout.outward(dy), layout.states_outward(states)
