"""The cells RNNCell, GRUCell and LSTMCell: single steps, with the meaning of torch.nn's cells.

Letters: B batch, I input size, H hidden size.
"""

from __future__ import annotations

from typing import Any, ClassVar, Generic, cast

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layout import StateT
from rnnfast._module import NONLINEARITIES, Module, Options, option
from rnnfast._stack import Inputs
from rnnfast._tape import Tape


class _Cell(Module, Generic[StateT]):
    """The base class of RNNCell, GRUCell and LSTMCell."""

    _DEFAULTS: ClassVar = {
        "bias": True,
        "nonlinearity": "tanh",
        "reset_after": True,
        "dtype": "float32",
        "precision": None,
    }

    def __init__(self, cell: str, options: Options, seed: int | None) -> None:
        super().__init__(cell, options, [""], seed)

    def __call__(self, x: Any, state: Any = None) -> StateT:
        """Runs one step for inference and keeps nothing.

        Parameters
        ----------
        x : (B, I), or (I,) for one row; in the cell's dtype.
        state : h (B, H), or for LSTMCell a pair (h, c) of such arrays; (H,) if x is (I,). The
            cell's dtype. None: zeros.

        Returns
        -------
        state : the next state, h or (h, c), in the same form.

        Raises
        ------
        TypeError : an argument has the wrong dtype, or `state` is not of the form above.
        ValueError : an argument has the wrong shape.
            In both cases nothing is computed.
        """
        native = self._native()
        if native is not None:
            result = native.infer(x, state)
            if result is not NotImplemented:
                last: StateT = result[1]
                return last
        inputs = self._read(x, state)
        return cast("StateT", self._packs().infer(inputs)[1])

    def record(self, x: Any, state: Any = None) -> Tape[StateT]:
        """Runs one step for training and keeps what the backward pass needs.

        Parameters
        ----------
        x, state : as for a call of the cell. They are copied.

        Returns
        -------
        tape : a `Tape` whose `state` is the next state and whose `output` is the h in it.
            `tape.backward(d_output, d_state)` takes gradients with respect to both; where both
            are given, h gets their sum.

        Raises
        ------
        TypeError, ValueError : as for a call of the cell.
        ValueError : the cell's precision is "int8", which has no backward pass.
        """
        self._check_trains()
        native = self._native()
        if native is not None:
            result = native.record(x, state)
            if result is not NotImplemented:
                return Tape(*result, self._signature)
        inputs = self._read(x, state)
        return Tape(*self._packs().record(inputs), self._signature)

    def _read(self, x: Any, state: Any) -> Inputs:
        x, layout = self._signature.input(x)
        return Inputs(x, self._signature.states("state", state, layout, x.shape[1]), layout)


class RNNCell(_Cell[NDArray]):
    """One step of the Elman RNN: h' = tanh(W x + b_w + R h + b_r), or relu in place of tanh.

    Call the cell for inference, and `record` for training.

    Parameters
    ----------
    input_size, hidden_size : I, at least 0, and H, at least 1.
    bias : whether the cell has the biases b_w and b_r.
    nonlinearity : "tanh" or "relu".
    dtype : "float32" or "float64", for the parameters and for all arrays.
    precision : as for `RNN`.
    seed : an integer of at least 0, which determines the initial parameters, uniform in
        ±1/sqrt(H). None: fresh entropy from the operating system.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.

    References
    ----------
    As for `RNN`.
    """

    nonlinearity: str = option("nonlinearity", '"tanh" or "relu".')

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        nonlinearity = _validate.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        options = Options(
            input_size,
            hidden_size,
            bias=bias,
            nonlinearity=nonlinearity,
            dtype=dtype,
            precision=precision,
        )
        super().__init__(f"rnn_{nonlinearity}", options, seed)


class GRUCell(_Cell[NDArray]):
    """One step of the gated recurrent unit; `GRU` gives its equations and reference.

    Call the cell for inference, and `record` for training.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, precision, seed : as for `RNNCell`.
    reset_after : as for `GRU`.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.
    """

    reset_after: bool = option(
        "reset_after", "Whether r multiplies R_n h + b_rn (True) or h itself (False)."
    )

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        reset_after = _validate.flag("reset_after", reset_after)
        options = Options(
            input_size,
            hidden_size,
            bias=bias,
            reset_after=reset_after,
            dtype=dtype,
            precision=precision,
        )
        super().__init__("gru" if reset_after else "gru_reset_before", options, seed)


class LSTMCell(_Cell[tuple[NDArray, NDArray]]):
    """One step of the long short-term memory; `LSTM` gives its equations and references.

    The state is the pair (h, c). Call the cell for inference, and `record` for training.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, precision, seed : as for `RNNCell`.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        options = Options(input_size, hidden_size, bias=bias, dtype=dtype, precision=precision)
        super().__init__("lstm", options, seed)
