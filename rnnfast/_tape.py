"""Tapes: what `record` returns, with the output and the backward pass."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, NamedTuple

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layout import Signature, State, StateT
from rnnfast._locks import Lock
from rnnfast._stack import TapeRun


class Gradients(NamedTuple):
    """The gradients of a loss with respect to the arguments of `record` and to the parameters.

    All are arrays of the layer's dtype.

    input : the gradient with respect to x, in the shape of x.
    state : the gradient with respect to the initial state, in its form and shapes: h, or (h, c)
        for LSTM. It is there even if `record` was given no state.
    parameters : the gradient with respect to each parameter, in the names and order of
        `layer.parameters`.
    """

    input: NDArray
    state: State
    parameters: dict[str, NDArray]


class Tape(Generic[StateT]):
    """A forward pass that `record` has run, with all that its backward pass needs.

    A tape keeps the weights and inputs as they were, so neither updates of `layer.parameters` nor
    other tapes change what `backward` returns. Several threads may use a tape.
    """

    __slots__ = ("_output", "_run", "_signature", "_state")

    # One for all tapes, held only for an instant: making one for each would take as long as a step.
    _lock: ClassVar = Lock()

    def __init__(self, run: TapeRun, output: NDArray, state: Any, signature: Signature) -> None:
        # output, state: read-only arrays in the user's layout
        self._run: TapeRun | None = run
        self._output = output
        self._state: StateT = state
        self._signature = signature

    @property
    def output(self) -> NDArray:
        """The output, as a call of the layer returns it. Read-only, because `backward` reads it."""
        return self._output

    @property
    def state(self) -> StateT:
        """The last state, as a call of the layer returns it. Read-only."""
        return self._state

    def __repr__(self) -> str:
        done = ", backward done" if self._run is None else ""
        return f"Tape(output={self.output.shape}{done})"

    def backward(
        self, d_output: Any = None, d_state: Any = None, *, retain: bool = False
    ) -> Gradients:
        """Computes the gradients of a loss from its gradients with respect to output and state.

        Parameters
        ----------
        d_output : the gradient with respect to `output`, in its shape and dtype. None: zeros.
            Entries past a sequence's length have no effect.
        d_state : the gradient with respect to `state`, in its form, shapes and dtype. None, or
            None for one array of a pair: zeros.
        retain : True: the tape keeps what another call of `backward` needs. False: it releases
            that memory.

        Returns
        -------
        gradients : the `Gradients` with respect to the input, the initial state and the
            parameters.

        Raises
        ------
        RuntimeError : an earlier call of `backward` was made without `retain`.
        TypeError, ValueError : a gradient has the wrong dtype, form or shape. The tape can still
            be used.
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
        """The arguments of `backward`, checked and converted, in the user's layout."""
        dy, states, layout = self._signature.gradients(d_output, d_state, self._output)
        return None if dy is None else layout.outward(dy), layout.states_outward(states)
