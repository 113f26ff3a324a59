"""The layers RNN, GRU and LSTM for NumPy arrays, with the meaning that torch.nn gives them.

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
    """The Elman RNN: h_t = tanh(W x_t + b_w + R h_{t-1} + b_r), or relu in place of tanh.

    Call the layer for inference, `record` for training, and `stream` to run it step by step.

    Parameters
    ----------
    input_size, hidden_size : I, at least 0, and H, at least 1.
    num_layers : L, 1 to 65536. Each layer reads the output of the layer below.
    nonlinearity : "tanh" or "relu".
    bias : whether the layer has the biases b_w and b_r.
    batch_first : whether x and the output have the shape (B, T, ·) instead of (T, B, ·). States
        keep the same shape in either case.
    dropout : the probability, 0 to 1, with which `record` sets an output of any layer but the last
        to zero. The outputs that remain are divided by 1 - dropout. Calls never drop.
    bidirectional : whether a second direction runs from the last step to the first. The outputs
        of the two directions are concatenated in the last axis, the forward direction first.
    dtype : "float32" or "float64", for the parameters and for all arrays.
    precision : the number format in which products of weights with x and h are computed. None
        selects the dtype. A float32 layer also accepts

        * "bfloat16": weights, x and h are rounded to bfloat16, to nearest even. `backward` rounds
          the gradients at the gates in the same way before it multiplies them with weights, x
          and h.
        * "int8", for inference only: each row of a weight matrix is rounded to integers in units
          of its max|w| / 127. At each step each row of x and of h is rounded in the same way, in
          a unit of its own; a row that contains NaN or infinity gives NaN. `input_size`,
          `hidden_size` and, in stacked bidirectional layers, twice the width of h must be at
          most 131072.

        In both formats the parameters themselves, the states, the activations and the gradients
        stay float32. Products are summed in float32 (bfloat16) or as exact integers (int8).
    seed : an integer of at least 0, which determines the initial parameters, uniform in
        ±1/sqrt(H), and the dropout. None: fresh entropy from the operating system.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.

    Warns
    -----
    UserWarning : `dropout` has no effect, because there is only one layer.

    References
    ----------
    Elman 1990, "Finding structure in time".
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
    """The gated recurrent unit (GRU).

    r, z = sigmoid(W x_t + b_w + R h_{t-1} + b_r),
    n = tanh(W_n x_t + b_wn + r (R_n h_{t-1} + b_rn)), h_t = (1 - z) n + z h_{t-1}.

    Call the layer for inference, `record` for training, and `stream` to run it step by step.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
    precision, seed : as for `RNN`.
    reset_after : True: r multiplies R_n h_{t-1} + b_rn, as above, in torch and in cuDNN. False: r
        multiplies h, which gives R_n (r h_{t-1}) + b_rn, as in the paper and by default in ONNX.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.

    Warns
    -----
    UserWarning : as for `RNN`.

    References
    ----------
    Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder for statistical
    machine translation".
    """

    reset_after: bool = option(
        "reset_after", "Whether r multiplies R_n h + b_rn (True) or h itself (False)."
    )

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
    """The long short-term memory (LSTM), with a forget gate and an optional projection.

    a = W x_t + b_w + R h_{t-1} + b_r has four parts, in the order i f g o. Then
    i, f, o = sigmoid(a_i, a_f, a_o), g = tanh(a_g), c_t = f c_{t-1} + i g, h_t = o tanh(c_t).
    With a projection, h_t = W_hr (o tanh(c_t)).

    Call the layer for inference, `record` for training, and `stream` to run it step by step.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype,
    precision, seed : as for `RNN`.
    proj_size : P, the width of h after the projection, less than H. 0: there is no projection.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong type or value; the message names it.

    Warns
    -----
    UserWarning : as for `RNN`.

    References
    ----------
    Hochreiter & Schmidhuber 1997, "Long short-term memory". The forget gate: Gers et al. 2000,
    "Learning to forget". The projection: Sak et al. 2014, "Long short-term memory based recurrent
    neural network architectures for large vocabulary speech recognition".
    """

    proj_size: int = option("proj_size", "P, the width of the projected h; 0: no projection.")

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
