"""The cells RNNCell, GRUCell and LSTMCell: one step, after those of torch.nn.

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
    """What the three cells share."""

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
        """Runs one step, for inference.

        Parameters
        ----------
        x : (B, I) or (I,), the cell's dtype.
        state : h (B, H), or for LSTMCell a pair (h, c); without B where x has none. None: zeros.

        Returns
        -------
        state : the next one, h or (h, c), in the same form.

        Raises
        ------
        TypeError : an argument of the wrong dtype or form.
        ValueError : an argument of the wrong shape. In either case nothing is computed.
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
        """Runs one step, keeping what the backward pass needs.

        Parameters
        ----------
        x, state : as when calling the cell; copied.

        Returns
        -------
        tape : `state` is the next state, `output` its h. `backward(d_output, d_state)` takes
            gradients with respect to either, and adds those at h.

        Raises
        ------
        TypeError, ValueError : as when calling the cell.
        ValueError : the cell's precision is int8, which has no backward pass.
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
    """One step of `RNN`: h' = tanh(W x + b_w + R h + b_r), or relu.

    Parameters
    ----------
    input_size, hidden_size : I and H.
    bias : whether there are b_w and b_r.
    nonlinearity : "tanh" or "relu".
    dtype : "float32" or "float64".
    precision : as for `RNN`.
    seed : of the initial parameters, uniform in ±1/sqrt(H); None: fresh entropy.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
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
    """One step of `GRU`, which has the equations.

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, precision, seed : as for `RNNCell`.
    reset_after : as for `GRU`.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    reset_after: bool = option("reset_after", "Whether r multiplies the product with R_n, not h.")

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
    """One step of `LSTM`, which has the equations; its state is the pair (h, c).

    Parameters
    ----------
    input_size, hidden_size, bias, dtype, precision, seed : as for `RNNCell`.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
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
