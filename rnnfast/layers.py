"""The layers RNN, GRU and LSTM: NumPy in, NumPy out, with torch.nn's meaning.

Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), L layers, D
directions.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layer import Layer
from rnnfast._module import NONLINEARITIES, Options, option


class RNN(Layer[NDArray]):
    """The Elman RNN, h_t = tanh(W x_t + b_w + R h_{t-1} + b_r), or relu. Elman 1990.

    Parameters
    ----------
    input_size, hidden_size : I and H.
    num_layers : L; each layer reads the output of the one below.
    nonlinearity : "tanh" or "relu".
    bias : whether there are b_w and b_r.
    batch_first : whether x and output are (B, T, ·) instead of (T, B, ·). States never are.
    dropout : the probability with which `record` drops outputs of all layers but the last.
    bidirectional : whether a second direction runs from the last step to the first; the two
        outputs stand side by side, forward first.
    dtype : "float32" or "float64".
    precision : of the products of weights with x and h: the dtype, which None means too; or, of a
        float32 layer,

        * "bfloat16": both are rounded to nearest even, and so is what backward multiplies, the
          gates' gradients with weights, x and h;
        * "int8", for inference: each row of a matrix is rounded in units of its max|w| / 127, and
          each row of x and h, at each step, in those of its own; one with NaN or infinity has
          NaN for results. What a layer reads, and H: at most 131072 wide.

        In either the parameters themselves, states, sums, equations and gradients are float32.
    seed : of the initial parameters, uniform in ±1/sqrt(H), and of dropout; None: fresh entropy.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    nonlinearity: str = option("nonlinearity", '"tanh" or "relu".')

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        nonlinearity = _validate.one_of("nonlinearity", nonlinearity, NONLINEARITIES)
        options = Options(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            nonlinearity=nonlinearity,
            dtype=dtype,
            precision=precision,
        )
        super().__init__(f"rnn_{nonlinearity}", options, seed)


class GRU(Layer[NDArray]):
    """The gated recurrent unit. Cho et al. 2014.

    r, z = sigmoid(W x_t + b_w + R h_{t-1} + b_r),
    n = tanh(W_n x_t + b_wn + r (R_n h_{t-1} + b_rn)), h_t = (1 - z) n + z h_{t-1}.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
    precision, seed : as for `RNN`.
    reset_after : whether r multiplies the product with R_n, as above and in torch and cuDNN;
        otherwise it multiplies h: R_n (r h_{t-1}) + b_rn, as in the paper and ONNX's default.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    reset_after: bool = option("reset_after", "Whether r multiplies the product with R_n, not h.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        reset_after = _validate.flag("reset_after", reset_after)
        options = Options(
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            reset_after=reset_after,
            dtype=dtype,
            precision=precision,
        )
        super().__init__("gru" if reset_after else "gru_reset_before", options, seed)


class LSTM(Layer[tuple[NDArray, NDArray]]):
    """Long short-term memory. Hochreiter & Schmidhuber 1997, with Gers et al. 2000's forget gate.

    a = W x_t + b_w + R h_{t-1} + b_r, in the order i f g o; i, f, o = sigmoid, g = tanh;
    c_t = f c_{t-1} + i g, h_t = o tanh(c_t); with projection, h_t = W_hr (o tanh(c_t)), Sak et
    al. 2014.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
    precision, seed : as for `RNN`.
    proj_size : P, below H: the width of h after a projection; 0: none.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    proj_size: int = option("proj_size", "P, the width of the projected h; 0: none.")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: Any = "float32",
        precision: str | None = None,
        seed: int | None = None,
    ) -> None:
        hidden_size = _validate.integer("hidden_size", hidden_size, 1)
        proj_size = _validate.integer("proj_size", proj_size, 0)
        if proj_size >= hidden_size:
            raise ValueError(f"proj_size: expected less than {hidden_size}, got {proj_size}")
        options = Options(
            input_size=input_size,
            hidden_size=hidden_size,
            proj_size=proj_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            dtype=dtype,
            precision=precision,
        )
        super().__init__("lstm", options, seed)
