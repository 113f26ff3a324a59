"""What layers and cells share: options, parameters, and their packed weights."""

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

# The metadata that every file of `save` has; another version is another form of what follows.
FILE_FORMAT = {"format": "rnnfast", "format_version": "1"}

# Arrays for the shapes of parameters, by name.
Source = Callable[[Mapping[str, tuple[int, ...]]], dict[str, NDArray]]
Made = TypeVar("Made", bound="Module")

NONLINEARITIES = tuple(n.removeprefix("rnn_") for n in CELLS if n.startswith("rnn_"))


class Options(NamedTuple):
    """What a layer or cell was constructed with, checked; `None`: it has no such option.

    In the order in which torch prints them, then rnnfast's own.
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
    """A read-only attribute: the parameters have been made for its value."""
    return property(attrgetter(f"_options.{name}"), doc=doc)


class Module:
    """The base of layers and cells."""

    # How `repr` knows which options to leave out.
    _DEFAULTS: ClassVar[Mapping[str, Any]] = {}
    # Where the first parameters come from; None: from chance.
    _source: Source | None = None

    input_size: int = option("input_size", "I, the size of the input.")
    hidden_size: int = option("hidden_size", "H, the size of the hidden state.")
    bias: bool = option("bias", "Whether there are biases.")
    dtype: str = option("dtype", '"float32" or "float64".')

    def __init__(self, cell: str, options: Options, suffixes: list[str], seed: Any) -> None:
        # options: those that layers and cells share are checked here, others are
        # suffixes: of the parameters' names, for each layer and direction, layer by layer
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
        # Of each layer and direction, in the order of `Weights`.
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
        """A module with parameters from `source`, none of which are drawn first."""
        module = cls.__new__(cls)
        module._source = source
        cls.__init__(module, **options)
        del module._source
        return module

    @property
    def parameters(self) -> Parameters:
        """The parameters by torch's names, as read-only views; see `Parameters` for updates."""
        return self._parameters

    @property
    def precision(self) -> str:
        """That of the products with weights: the dtype, "bfloat16" or "int8"; may be changed.

        The parameters stay as they are, so that any trained layer can be given any of them, and
        its own back; tapes and streams that there are keep theirs. None: the dtype.

        Raises
        ------
        ValueError : no precision of such a layer.
        """
        return self._options.precision or self._options.dtype

    @precision.setter
    def precision(self, value: str | None) -> None:
        options = self._in_precision(value)
        with self._parameters.lock:  # weights that are being packed are those of before
            self._options = options
            self._cache = None

    def state_dict(self) -> dict[str, NDArray]:
        """A copy of every parameter, by name."""
        return self._parameters.copies()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Copies parameters in, from arrays or torch tensors.

        Floating-point entries of another precision are cast to the layer's, as torch does. Returns
        nothing, where torch returns the missing and unexpected names.

        Parameters
        ----------
        state_dict : entries by name, each in the parameter's shape.
        strict : whether missing and unexpected entries are errors; otherwise they are ignored.

        Raises
        ------
        ValueError : entries are missing, unexpected or misshapen; the message names all of them.
        TypeError : entries are not floating-point arrays, and nothing else is wrong.
            In either case no parameter has changed.
        """
        _validate.flag("strict", strict)
        self._parameters.update(loadable(self._parameters, state_dict, strict))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes class, options and parameters to a file, from which `rnnfast.load` makes a copy.

        The file is in the safetensors format: every parameter under its own name, so that
        `safetensors.torch.load_file` gives what `load_state_dict` of torch's module takes. Its
        metadata, strings by name, are `format` "rnnfast"; `format_version` "1"; `class`, that of
        rnnfast, also where `self` is of a class made from it; and each option of the constructor
        but `seed`: `hidden_size` "128", `bias` "true", `dropout` "0.5", `dtype` "float32";
        `precision` only where it is not the dtype.

        Parameters
        ----------
        path : of the file, which is replaced if there is one, and only once the new one is whole.

        Raises
        ------
        OSError : the file cannot be written; what was there before is still there.
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
        """How the module prints; `without` : the name of an option that is told beside it."""
        shown = [str(self._options.input_size), str(self._options.hidden_size)]
        for name, value in self._options._asdict().items():
            if name != without and value is not None and value != self._DEFAULTS.get(name, value):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}

    def _in_precision(self, precision: Any) -> Options:
        """The options with another precision, once it is known to be one."""
        options = self._options
        format_name = checked_format("precision", precision, options.dtype)
        sizes = {"input_size": options.input_size, "hidden_size": options.hidden_size}
        if options.bidirectional and options.num_layers != 1:
            output = "proj_size" if options.proj_size else "hidden_size"
            sizes[f"2 * {output}"] = 2 * (options.proj_size or options.hidden_size)
        check_sums(format_name, sizes)
        return options._replace(precision=format_name)

    def _check_trains(self) -> None:
        """That there is a backward pass in the layer's precision."""
        options = self._options
        check_trains(options.precision, options.dtype)

    def _sizes(self, k: int) -> Sizes:
        """The sizes of layer and direction `k`; layers above the first read D*W."""
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
        """Uniform in ±1/sqrt(H), as torch's."""
        dtype = np.dtype(self._options.dtype)
        for name, shape in shapes.items():
            if math.prod(shape) * dtype.itemsize > np.iinfo(np.intp).max:
                raise ValueError(
                    f"{name}: expected a size that fits in memory, got {_validate.shown(shape)}"
                )
        # All are allocated before any is filled, so that what can't fit fails at once.
        arrays = {name: np.empty(shape, dtype) for name, shape in shapes.items()}
        bound = 1 / math.sqrt(self._options.hidden_size)
        for array in arrays.values():
            rng.random(dtype=dtype, out=array)
            array *= 2 * bound
            array -= bound
        return arrays

    def _weights(self, arrays: Mapping[str, NDArray]) -> list[Weights]:
        """Of each layer and direction, from the parameters by name."""

        def of(name: str | None) -> Any:
            return None if name is None else arrays[name]

        return [Weights(*map(of, names)) for names in self._names]

    def _native(self) -> Stack | None:
        """The native stack, with the current weights, which it packs if there was one of others.

        None without one, or where its backend is not in use.

        It takes arrays that lie in memory as it needs them. To everything else, right or wrong,
        it answers NotImplemented: that must be checked, and goes the long way, by `_packs`.
        """
        # Reads what `_backend.current` and `Parameters.version` would: those two calls took 5 % of
        # a small layer's step.
        cache, parameters = self._cache, self._parameters
        # In an edit block each reading would pack once more.
        if cache is None or cache.backend is not _backend._current or parameters._draft is not None:
            return None
        if cache.version == parameters._version:
            return cache.stack.native
        return None if cache.stack.native is None else self._packs().native

    def _packs(self) -> PackedStack:
        """The current weights of every layer and direction, packed for the backend in use."""
        backend = _backend.current()
        parameters = self._parameters
        version = parameters.version  # always, so that an edit block's changes are taken over
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
