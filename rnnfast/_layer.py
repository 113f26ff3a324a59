"""What the layers RNN, GRU and LSTM share: calls, tapes, and streams.

Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), W the width
of h (P, or H without projection), L layers, D directions.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Generic, cast

from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._layout import StateT
from rnnfast._low_precision import checked_format
from rnnfast._module import Module, Options, option
from rnnfast._stack import Dropout, Inputs
from rnnfast._streams import Form, Stream
from rnnfast._tape import Tape

if TYPE_CHECKING:
    from rnnfast.stream import Stream as CompiledStream


# With this many layers the names and arrays alone take Python seconds and hundreds of MB.
_MOST_LAYERS = 1 << 16


class Layer(Module, Generic[StateT]):
    """The base class of RNN, GRU and LSTM."""

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
        "precision": None,
    }

    num_layers: int = option("num_layers", "L, the number of layers.")
    batch_first: bool = option("batch_first", "Whether x and the output are (B, T, ·).")
    dropout: float = option("dropout", "The probability of dropout between layers in `record`.")
    bidirectional: bool = option("bidirectional", "Whether the layer has two directions (D = 2).")

    def __init__(self, cell: str, options: Options, seed: int | None) -> None:
        num_layers = _validate.integer("num_layers", options.num_layers, 1)
        if num_layers > _MOST_LAYERS:
            raise ValueError(f"num_layers: expected {_MOST_LAYERS} or less, got {num_layers}")
        options = options._replace(
            num_layers=num_layers,
            batch_first=_validate.flag("batch_first", options.batch_first),
            dropout=_validate.fraction("dropout", options.dropout),
            bidirectional=_validate.flag("bidirectional", options.bidirectional),
        )
        directions = ("", "_reverse") if options.bidirectional else ("",)
        suffixes = [f"_l{layer}{d}" for layer in range(num_layers) for d in directions]
        super().__init__(cell, options, suffixes, seed)
        # A layer from a file gives no warning: its maker was warned.
        if options.dropout and num_layers == 1 and self._source is None:
            warnings.warn(
                "dropout: expected num_layers above 1 for dropout between layers to have an "
                f"effect, got dropout={options.dropout} and num_layers=1",
                UserWarning,
                stacklevel=3,
            )

    def __call__(
        self, x: Any, state: Any = None, *, lengths: Any = None, reset: Any = None
    ) -> tuple[NDArray, StateT]:
        """Runs the layer over sequences for inference, without dropout, and keeps nothing.

        Parameters
        ----------
        x : (T, B, I), (B, T, I) with `batch_first`, or (T, I) for one unbatched sequence; in the
            layer's dtype.
        state : the initial state: h (L*D, B, W), or for LSTM a pair (h, c) with c (L*D, B, H);
            without the axis B if x is unbatched. The layer's dtype. None: zeros.
        lengths : the number of real steps of each sequence: (B,) integers in 0..T, in any order;
            one integer if x is unbatched. None: all T. Past its length the output of a sequence
            is zero. Its last state is the one after its last real step, or its initial state if
            its length is 0. The reverse direction starts at the last real step.
        reset : (T, B) booleans, also with `batch_first`; (T,) if x is unbatched. True at (t, b)
            cuts sequence b before step t, in both directions. Each piece is run as an independent
            sequence that starts from zeros; only the first piece (the last one in the reverse
            direction) starts from `state`. So a cut before step 0 discards `state` in the forward
            direction.

        Returns
        -------
        output : h of the last layer after each step: (T, B, D*W), or (B, T, D*W) with
            `batch_first`, or (T, D*W) if x is unbatched. W is P with a projection, else H.
        state : the last state of every layer and direction, in the form and shape of `state`.

        Raises
        ------
        TypeError : an argument has the wrong dtype, or `state` is not of the form above.
        ValueError : an argument has the wrong shape or value.
            In both cases nothing is computed.
        """
        native = self._native() if reset is None or not self._options.bidirectional else None
        if native is not None:
            if lengths is None and reset is None:
                result = native.infer(x, state)  # 0.04 us less than with all arguments
            else:
                result = native.infer(x, state, lengths, reset, reset)
            if result is not NotImplemented:
                return result
        inputs = self._read(x, state, lengths, reset)
        return cast("tuple[NDArray, StateT]", self._packs().infer(inputs))

    def record(
        self,
        x: Any,
        state: Any = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        recompute: bool = False,
    ) -> Tape[StateT]:
        """Runs the layer for training, with dropout, and keeps what the backward pass needs.

        Parameters
        ----------
        x, state, lengths, reset : as for a call of the layer. They are copied.
        recompute : whether to save memory at the cost of a second forward pass. The tape then
            keeps the states only at the borders of about sqrt(T) chunks of steps, and `backward`
            runs each chunk again. On the compiled kernels it has no effect for an RNN, which
            keeps nothing but its output.

        Returns
        -------
        tape : a `Tape` with `output`, `state` and `backward(d_output, d_state)`.

        Raises
        ------
        TypeError, ValueError : as for a call of the layer. Nothing is computed, and the random
            numbers for dropout go on as if the call had not been made.
        ValueError : the layer's precision is "int8", which has no backward pass.

        References
        ----------
        `recompute`: Chen et al. 2016, "Training deep nets with sublinear memory cost".
        """
        self._check_trains()
        _validate.flag("recompute", recompute)
        dropped = self._options.dropout
        long_way = recompute or dropped or (reset is not None and self._options.bidirectional)
        native = None if long_way else self._native()
        if native is not None:
            result = native.record(x, state, lengths, reset, reset)
            if result is not NotImplemented:
                return Tape(*result, self._signature)
        inputs = self._read(x, state, lengths, reset)
        stack = self._packs()
        dropout = Dropout(dropped, self._rng) if dropped else None
        return Tape(*stack.record(inputs, dropout, recompute), self._signature)

    def stream(self, batch_size: int = 1, weights: str | None = None) -> Stream | CompiledStream:
        """Makes a stream, which runs the layer step by step for inference and holds its state.

        The state is zero at first. The stream has its own copy of the parameters, so later changes
        to the layer do not affect it. On the native backend its steps give the same bits as a
        layer with the stream's precision gives over the whole sequence.

        Parameters
        ----------
        batch_size : B, at least 1.
        weights : the precision of the stream, with the meaning of the constructor's `precision`:
            the layer's dtype or, for a float32 layer, "bfloat16" or "int8". On the native backend
            these two keep the weights in about a half and a quarter of the memory. None: the
            layer's precision.

        Returns
        -------
        stream : an object with `step`, `run`, `state` and `reset`; see `rnnfast.stream.Stream`.

        Raises
        ------
        TypeError, ValueError : an argument has the wrong type or value; the message names it.
        ValueError : the layer is bidirectional: its first output depends on the last input.
        """
        options = self._options
        batch_size = _validate.integer("batch_size", batch_size, 1)
        format_name = options.precision
        if weights is not None:
            format_name = checked_format("weights", weights, options.dtype)
        if options.bidirectional:
            raise ValueError("bidirectional: expected False for a stream, got True")
        layers = self._weights(self._parameters.copies())
        kept = format_name or options.dtype
        text = self._text(without="precision")  # a stream's weights tell its own
        return Form.of(text, self._signature, layers, kept, batch_size).open()

    def _read(self, x: Any, state: Any, lengths: Any, reset: Any) -> Inputs:
        x, layout = self._signature.input(x)
        steps, batch = x.shape[:2]
        states = self._signature.states("state", state, layout, batch)
        batched = all(layout.has)
        if lengths is not None and not batched:
            given = _validate.array("lengths", lengths)
            lengths = lengths if given.ndim else given[None]
        lengths = _validate.lengths(lengths, batch, steps)
        if batched:
            reset = _validate.reset(reset, (steps, batch))
        else:
            reset = _validate.reset(reset, (steps,), "(T,)")
        if reset is not None:
            reset = layout.state_inward(reset)
        return Inputs(x, states, layout, lengths, reset)
