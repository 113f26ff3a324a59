"""The layers RNN, GRU and LSTM: NumPy in, NumPy out, with torch.nn's meaning.

Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), W the width
of h (P, or H without projection), L layers, D directions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import Weights
from rnnfast._layout import State
from rnnfast._low_precision import FORMATS
from rnnfast._module import NONLINEARITIES, Module, Options, option
from rnnfast._stack import Dropout, Inputs
from rnnfast._streams import Form, Stream
from rnnfast._tape import Tape

if TYPE_CHECKING:
    from rnnfast.stream import Stream as CompiledStream


class _Layer(Module):
    """What the three layers share."""

    _DEFAULTS: ClassVar = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "proj_size": 0,
        "nonlinearity": "tanh",
        "reset_after": True,
        "dtype": "float32",
    }

    num_layers = option("num_layers", "L, the number of layers.")
    batch_first = option("batch_first", "Whether x and output are (B, T, ·).")
    dropout = option("dropout", "The probability of dropout between layers, in `record`.")
    bidirectional = option("bidirectional", "Whether D is 2.")

    def __init__(self, cell: str, options: Options, seed: int | None) -> None:
        num_layers = _validate.integer("num_layers", options.num_layers, 1)
        options = options._replace(
            num_layers=num_layers,
            batch_first=_validate.flag("batch_first", options.batch_first),
            dropout=_validate.fraction("dropout", options.dropout),
            bidirectional=_validate.flag("bidirectional", options.bidirectional),
        )
        directions = ("", "_reverse") if options.bidirectional else ("",)
        suffixes = [f"_l{layer}{d}" for layer in range(num_layers) for d in directions]
        super().__init__(cell, options, suffixes, seed)
        # Of a layer that is loaded, its maker was warned.
        if options.dropout and num_layers == 1 and self._source is None:
            warnings.warn(
                "dropout: expected num_layers above 1 for dropout between layers to have an "
                f"effect, got dropout={options.dropout} and num_layers=1",
                UserWarning,
                stacklevel=3,
            )

    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[NDArray, State]:
        """Runs inference: no dropout, nothing kept.

        Parameters
        ----------
        x : (T, B, I), (B, T, I) with `batch_first`, or (T, I) unbatched; the layer's dtype.
        state : h (L*D, B, W), or for LSTM a pair (h, c) with c (L*D, B, H); the layer's dtype;
            without B where x is unbatched. None: zeros.
        lengths : (B,) integers in 0..T, in any order; unbatched: one integer. None: all T.
            Past its length a sequence's output is zero, and its last state is the one after its
            last real step; the reverse direction starts at its own end.
        reset : (T, B) booleans, also with `batch_first`; (T,) unbatched. Where true, that row's
            sequence is cut before that step, in both directions: the pieces are run as sequences
            of their own, but for the initial state, which the first piece (reversed: the last)
            starts from.

        Returns
        -------
        output : (T, B, D*W), or (B, T, D*W), or (T, D*W): h of the last layer after each step.
        state : the last state of every layer and direction, in the form and shape of `state`.

        Raises
        ------
        TypeError : an argument of the wrong dtype or form.
        ValueError : an argument of the wrong shape or value. In either case nothing is computed.
        """
        if lengths is None and reset is None:
            native = self._native()
            if native is not None:
                result = native.infer(x, state)
                if result is not NotImplemented:
                    return result
        inputs = self._read(x, state, lengths, reset)
        return self._packs().infer(inputs)

    def record(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        recompute: bool = False,
    ) -> Tape:
        """Runs for training: with dropout, and keeping what the backward pass needs.

        Parameters
        ----------
        x, state, lengths, reset : as when calling the layer; copied.
        recompute : keep states at the borders of about sqrt(T) chunks of steps only, and run each
            chunk again in `backward`: less memory for a second forward pass.

        Returns
        -------
        tape : with `output`, `state`, and `backward(d_output, d_state)`.

        Raises
        ------
        TypeError, ValueError : as when calling the layer; nothing is computed, and the state of
            the random generator for dropout stays.
        """
        _validate.flag("recompute", recompute)
        dropped = self._options.dropout
        if lengths is None and reset is None and not recompute and not dropped:
            native = self._native()
            if native is not None:
                result = native.record(x, state)
                if result is not NotImplemented:
                    return Tape(*result, self._signature)
        inputs = self._read(x, state, lengths, reset)
        stack = self._packs()
        dropout = Dropout(dropped, self._rng) if dropped else None
        return Tape(*stack.record(inputs, dropout, recompute), self._signature)

    def stream(self, batch_size: int = 1, weights: str | None = None) -> Stream | CompiledStream:
        """Runs the layer step by step, for inference, with the state inside, zero at first.

        A stream has a copy of the parameters: later changes do not show in it. On the native
        backend its steps have the same bits as the layer over the whole sequence, but for those in
        low precision.

        Parameters
        ----------
        batch_size : B.
        weights : how they are kept: the layer's dtype, which None means too; or, of a float32
            layer, in low precision, as are x and h where they meet them: "bfloat16", rounded
            to nearest even, in half the memory, or "int8", in units of 1/127 of the largest in
            each of their rows and, at each step, of x and h, in a quarter.

        Returns
        -------
        stream : with `step`, `run`, `state` and `reset`; see `rnnfast.stream.Stream`.

        Raises
        ------
        TypeError, ValueError : an argument of the wrong type or value; or the layer is
            bidirectional, so that its first output needs the last input.
        """
        options = self._options
        batch_size = _validate.integer("batch_size", batch_size, 1)
        if weights is not None:
            formats = FORMATS if options.dtype == "float32" else ()
            _validate.one_of("weights", weights, [options.dtype, *formats])
        if options.bidirectional:
            raise ValueError("bidirectional: expected False for a stream, got True")
        arrays = self._parameters.copies()
        layers = [
            Weights(**{name: arrays[name + suffix] for name in self._shapes(k)})
            for k, suffix in enumerate(self._suffixes)
        ]
        kept = options.dtype if weights is None else weights
        return Form.of(repr(self), self._signature, layers, kept, batch_size).open()

    def _read(self, x: Any, state: Any, lengths: Any, reset: Any) -> Inputs:
        x, layout = self._signature.input(x)
        steps, batch = x.shape[:2]
        states = self._signature.states("state", state, layout, batch)
        batched = all(layout.has)
        if lengths is not None and not batched:
            lengths = np.atleast_1d(_validate.array("lengths", lengths))
        lengths = _validate.lengths(lengths, batch, steps)
        if batched:
            reset = _validate.reset(reset, (steps, batch))
        else:
            reset = _validate.reset(reset, (steps,), "(T,)")
        if reset is not None:
            reset = layout.state_inward(reset)
        return Inputs(x, states, layout, lengths, reset)


class RNN(_Layer):
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
    seed : of the initial parameters, uniform in ±1/sqrt(H), and of dropout; None: fresh entropy.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    nonlinearity = option("nonlinearity", '"tanh" or "relu".')

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
        )
        super().__init__(f"rnn_{nonlinearity}", options, seed)


class GRU(_Layer):
    """The gated recurrent unit. Cho et al. 2014.

    r, z = sigmoid(W x_t + b_w + R h_{t-1} + b_r),
    n = tanh(W_n x_t + b_wn + r (R_n h_{t-1} + b_rn)), h_t = (1 - z) n + z h_{t-1}.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed :
        as for `RNN`.
    reset_after : whether r multiplies the product with R_n, as above and in torch and cuDNN;
        otherwise it multiplies h: R_n (r h_{t-1}) + b_rn, as in the paper and ONNX's default.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    reset_after = option("reset_after", "Whether r multiplies the product with R_n, not h.")

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
        )
        super().__init__("gru" if reset_after else "gru_reset_before", options, seed)


class LSTM(_Layer):
    """Long short-term memory. Hochreiter & Schmidhuber 1997, with Gers et al. 2000's forget gate.

    a = W x_t + b_w + R h_{t-1} + b_r, in the order i f g o; i, f, o = sigmoid, g = tanh;
    c_t = f c_{t-1} + i g, h_t = o tanh(c_t); with projection, h_t = W_hr (o tanh(c_t)), Sak et
    al. 2014.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed :
        as for `RNN`.
    proj_size : P, below H: the width of h after a projection; 0: none.

    Raises
    ------
    TypeError, ValueError : an argument of the wrong type or value.
    """

    proj_size = option("proj_size", "P, the width of the projected h; 0: none.")

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
        )
        super().__init__("lstm", options, seed)
