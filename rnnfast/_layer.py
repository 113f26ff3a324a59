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


# The names and arrays alone of so many take Python seconds and hundreds of MB.
_MOST_LAYERS = 1 << 16


class Layer(Module, Generic[StateT]):
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
        "precision": None,
    }

    num_layers: int = option("num_layers", "L, the number of layers.")
    batch_first: bool = option("batch_first", "Whether x and output are (B, T, ·).")
    dropout: float = option("dropout", "The probability of dropout between layers, in `record`.")
    bidirectional: bool = option("bidirectional", "Whether D is 2.")

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
    ) -> tuple[NDArray, StateT]:
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
        """Runs for training: with dropout, and keeping what the backward pass needs.

        Parameters
        ----------
        x, state, lengths, reset : as when calling the layer; copied.
        recompute : keep states at the borders of about sqrt(T) chunks of steps only, and run each
            chunk again in `backward`: less memory for a second forward pass. An RNN keeps no more
            than its output anyway, and on compiled kernels runs once.

        Returns
        -------
        tape : with `output`, `state`, and `backward(d_output, d_state)`.

        Raises
        ------
        TypeError, ValueError : as when calling the layer; nothing is computed, and the state of
            the random generator for dropout stays.
        ValueError : the layer's precision is int8, which has no backward pass.
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
        """Runs the layer step by step, for inference, with the state inside, zero at first.

        A stream has a copy of the parameters: later changes do not show in it. On the native
        backend its steps have the same bits as a layer of its precision over the whole sequence.

        Parameters
        ----------
        batch_size : B.
        weights : a precision, as the constructor takes one: the layer's dtype, or, of a float32
            layer, "bfloat16", in half the memory, or "int8", in a quarter. None: the layer's own.

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
