"""The base class of layers and cells: their options, parameters and packed weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rnnfast import _backend, _safetensors, _validate
from rnnfast._cells import CELLS, DTYPES, Sizes, Weights, weight_shapes
from rnnfast._layout import Signature
from rnnfast._low_precision import check_sums, check_trains, checked_format
from rnnfast._parameters import Parameters, loadable
from rnnfast._stack import PackedStack
from rnnfast.functional import pack_checked

if TYPE_CHECKING:
    from rnnfast._native import Stack

# The metadata that every file of `save` has. Another version means another form of the file.
FILE_FORMAT = {"format": "rnnfast", "format_version": "1"}

# Makes the arrays of parameters from their shapes, both by name.
Source = Callable[[Mapping[str, tuple[int, ...]]], dict[str, NDArray]]
Made = TypeVar("Made", bound="Module")

NONLINEARITIES = tuple(n.removeprefix("rnn_") for n in CELLS if n.startswith("rnn_"))


class Options(NamedTuple):
    """The checked options of a layer or cell; None for an option that its class does not have.

    They are in the order in which torch prints them, followed by rnnfast's own.
    """

    input_size: int
    hidden_size: int
    proj_size: int | None = None
    num_layers: int | None = None
    bias: bool = True
    batch_first: bool | None = None
    dropout: float | None = None
    bidirectional: bool | None = None
    nonlinearity: str | None = None
    reset_after: bool | None = None
    dtype: str = "float32"
    precision: str | None = None  # one of FORMATS; None: the dtype


class _PackedCache(NamedTuple):
    version: int
    backend: _backend.Backend
    stack: PackedStack


def option(name: str, doc: str) -> Any:
    """A property that reads an option; it cannot be set, since the parameters fit its value."""
    return property(attrgetter(f"_options.{name}"), doc=doc)


class Module:
    """The base class of layers and cells."""

    # The options that `repr` leaves out, because they have these values.
    _DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    # Where the initial parameters come from; None: they are drawn at random.
    _source: Source | None = None

    input_size: int = option("input_size", "I, the size of the input.")
    hidden_size: int = option("hidden_size", "H, the size of the hidden state.")
    bias: bool = option("bias", "Whether there are biases b_w and b_r.")
    dtype: str = option("dtype", '"float32" or "float64".')

    def __init__(self, cell: str, options: Options, suffixes: list[str], seed: Any) -> None:
        # options: those that only layers or only some classes have are already checked
        # suffixes: the end of the parameters' names for each layer and direction, layer by layer
        self._options = options._replace(
            input_size=_validate.integer("input_size", options.input_size, 0),
            hidden_size=_validate.integer("hidden_size", options.hidden_size, 1),
            bias=_validate.flag("bias", options.bias),
            dtype=_validate.float_dtype("dtype", options.dtype).name,
        )
        self._options = self._in_precision(options.precision)
        self._cell = CELLS[cell]
        self._signature = Signature(
            self._cell,
            self._sizes(0),
            DTYPES[self._options.dtype],
            one_step=self._options.num_layers is None,
            directions=2 if self._options.bidirectional else 1,
            rows=len(suffixes),
            batch_first=bool(self._options.batch_first),
        )
        self._cache: _PackedCache | None = None
        if seed is not None:
            seed = _validate.integer("seed", seed, 0)
        for_parameters, for_dropout = np.random.SeedSequence(seed).spawn(2)
        self._rng = np.random.default_rng(for_dropout)
        own = [self._shapes(k) for k in range(len(suffixes))]
        # The parameters' names of each layer and direction, in the order of `Weights`.
        self._names = [
            tuple([name + suffix if name in shapes else None for name in Weights._fields])
            for suffix, shapes in zip(suffixes, own, strict=True)
        ]
        shapes = {
            name + suffix: shape
            for suffix, shapes in zip(suffixes, own, strict=True)
            for name, shape in shapes.items()
        }
        drawn = partial(self._drawn, np.random.default_rng(for_parameters))
        self._parameters = Parameters((self._source or drawn)(shapes))

    @classmethod
    def _from_source(cls: type[Made], source: Source, options: Mapping[str, Any]) -> Made:
        """A module whose parameters come from `source`, without any being drawn at random."""
        module = cls.__new__(cls)
        module._source = source
        cls.__init__(module, **options)
        del module._source
        return module

    @property
    def parameters(self) -> Parameters:
        """The parameters: read-only arrays by torch's names; `Parameters` tells how to change them.

        Shapes, with G gates (RNN 1, GRU 3, LSTM 4), and W = P with a projection, else H:
        `weight_ih_l0` (G*H, I), in layers above the first (G*H, D*W); `weight_hh_l0` (G*H, W);
        `bias_ih_l0` and `bias_hh_l0` (G*H,); `weight_hr_l0` (P, H). Names in the reverse direction
        end in `_reverse`; those of a cell have no `_l0`. Gates are in the order i f g o or r z n.
        """
        return self._parameters

    @property
    def precision(self) -> str:
        """The number format in which products with weights are computed.

        It is the layer's dtype, "bfloat16" or "int8", as the constructor describes them. It can be
        changed at any time; the parameters themselves keep full precision. Existing tapes and
        streams keep the format they were made with. Assigning None selects the dtype.

        Raises
        ------
        ValueError : the assigned value is no precision that a layer of this dtype has, or is
            "int8" and the layer is wider than "int8" allows.
        """
        return self._options.precision or self._options.dtype

    @precision.setter
    def precision(self, value: str | None) -> None:
        options = self._in_precision(value)
        with self._parameters.lock:  # so that no pack in the old precision is stored afterwards
            self._options = options
            self._cache = None

    def state_dict(self) -> dict[str, NDArray]:
        """A copy of every parameter: a dict of arrays in the names and order of `parameters`."""
        return self._parameters.copies()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copies parameters into the layer or cell, from arrays or torch tensors.

        Entries of another floating-point dtype are cast to the layer's, as in torch. Unlike
        torch's method, this one does not return the missing and unexpected names.

        Parameters
        ----------
        state_dict : a mapping of names to entries, each of which has its parameter's shape.
        strict : True: missing and unexpected entries are errors. False: they are ignored.

        Raises
        ------
        ValueError : entries are missing, unexpected or misshapen. The message names all of them,
            and all that are not floating-point arrays.
        TypeError : `state_dict` is not a mapping, or the only thing wrong is that entries are not
            floating-point arrays.
            In both cases no parameter has changed.
        """
        _validate.flag("strict", strict)
        self._parameters.update(loadable(self._parameters, state_dict, strict))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes class, options and parameters to a file, from which `rnnfast.load` makes a copy.

        Parameters
        ----------
        path : the path of the file. An existing file is replaced, and only when the new one is
            complete.

        Raises
        ------
        TypeError : `path` is not a path.
        OSError : the file cannot be written. A file that was there before is still there.

        Notes
        -----
        The file is in the safetensors format. It has every parameter under its own name, so that
        `safetensors.torch.load_file` returns what torch's `load_state_dict` takes. Its metadata
        are strings: `format` is "rnnfast" and `format_version` "1"; `class` is the name of
        rnnfast's class, also if `self` is an instance of a subclass; and each option of the
        constructor except `seed` has an entry, such as `hidden_size` "128", `bias` "true",
        `dropout` "0.5" or `dtype` "float32". `precision` is there only if it is not the dtype.
        """
        own = next(c for c in type(self).__mro__ if c.__module__.split(".")[0] == __package__)
        metadata = {**FILE_FORMAT, "class": own.__name__}
        for name, value in self._options._asdict().items():
            if value is not None:
                metadata[name] = value if isinstance(value, str) else json.dumps(value)
        _safetensors.write(_validate.path("path", path), self.state_dict(), metadata)

    def __repr__(self) -> str:
        return self._text()

    def _text(self, without: str = "") -> str:
        """The text that `repr` gives; `without` : the name of an option to leave out."""
        shown = [str(self._options.input_size), str(self._options.hidden_size)]
        for name, value in self._options._asdict().items():
            if name != without and value is not None and value != self._DEFAULTS.get(name, value):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def _in_precision(self, precision: Any) -> Options:
        """The options with another precision, which is checked first."""
        options = self._options
        format_name = checked_format("precision", precision, options.dtype)
        sizes = {"input_size": options.input_size, "hidden_size": options.hidden_size}
        if options.bidirectional and options.num_layers != 1:
            output = "proj_size" if options.proj_size else "hidden_size"
            sizes[f"2 * {output}"] = 2 * (options.proj_size or options.hidden_size)
        check_sums(format_name, sizes)
        return options._replace(precision=format_name)

    def _check_trains(self) -> None:
        """Raises ValueError if there is no backward pass in the layer's precision."""
        options = self._options
        check_trains(options.precision, options.dtype)

    def _sizes(self, k: int) -> Sizes:
        """The sizes of layer and direction `k`; the input of layers above the first has D*W."""
        options = self._options
        hidden, projection = options.hidden_size, options.proj_size or 0
        directions = 2 if options.bidirectional else 1
        below = directions * (projection or hidden)
        return Sizes(options.input_size if k < directions else below, hidden, projection)

    def _shapes(self, k: int) -> dict[str, tuple[int, ...]]:
        return weight_shapes(self._cell, self._sizes(k), self._options.bias)

    def _drawn(
        self, rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[str, NDArray]:
        """Initial parameters, uniform in ±1/sqrt(H), as in torch."""
        dtype = np.dtype(self._options.dtype)
        for name, shape in shapes.items():
            if math.prod(shape) * dtype.itemsize > np.iinfo(np.intp).max:
                raise ValueError(
                    f"{name}: expected a size that fits in memory, got {_validate.shown(shape)}"
                )
        # All are allocated before any is filled, so that sizes that cannot fit fail at once.
        arrays = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
        bound = 1 / math.sqrt(self._options.hidden_size)
        for array in arrays.values():
            rng.random(dtype=dtype, out=array)
            array *= 2 * bound
            array -= bound
        return arrays

    def _weights(self, arrays: Mapping[str, NDArray]) -> list[Weights]:
        """The `Weights` of each layer and direction, from the parameters by name."""

        def of(name: str | None) -> Any:
            return None if name is None else arrays[name]

        return [Weights(*map(of, names)) for names in self._names]

    def _native(self) -> Stack | None:
        """The native stack with the current weights, which are packed again if they have changed.

        None if no stack has been made yet, or if the native backend is not in use.

        The stack takes arrays whose memory layout is the one that it needs. For everything else,
        right or wrong, it returns NotImplemented: then `_packs` and its checks are the way.
        """
        # This reads what `_backend.current` and `Parameters.version` would return: those two calls
        # took 5 % of a small layer's step.
        cache, parameters = self._cache, self._parameters
        # Within an edit block each read would pack once more.
        if cache is None or cache.backend is not _backend._current or parameters._draft is not None:
            return None
        if cache.version == parameters._version:
            return cache.stack.native
        return None if cache.stack.native is None else self._packs().native

    def _packs(self) -> PackedStack:
        """The current weights of every layer and direction, packed for the backend in use."""
        backend = _backend.current()
        parameters = self._parameters
        version = parameters.version  # reading it takes over the changes of an edit block
        cache = self._cache
        if cache and cache.version == version and cache.backend is backend:
            return cache.stack
        with parameters.lock:
            version, arrays = parameters.settled()
            cache = self._cache
            if cache and cache.version == version and cache.backend is backend:
                return cache.stack
            format_name = self._options.precision
            packs = [
                pack_checked(self._cell, self._sizes(k), weights, format_name, backend)
                for k, weights in enumerate(self._weights(arrays))
            ]
            stack = PackedStack(self._signature, packs, self._names)
            self._cache = _PackedCache(version, backend, stack)
            return stack
