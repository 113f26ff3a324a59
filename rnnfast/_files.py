"""Loading layers and cells from the files that `save` writes."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from rnnfast import _safetensors, _validate
from rnnfast._cells import DTYPES
from rnnfast._module import FILE_FORMAT
from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.layers import GRU, LSTM, RNN

Loaded = RNN | GRU | LSTM | RNNCell | GRUCell | LSTMCell

_CLASSES: dict[str, type[Loaded]] = {
    found.__name__: found for found in (RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell)
}

# The most arrays that one error names.
_MOST_NAMED = 20

# Options that `save` leaves out if they are None.
_MAY_BE_ABSENT = {"precision"}


def load(path: str | os.PathLike[str]) -> Loaded:
    """Loads a layer or cell from a file that its method `save` wrote.

    Parameters
    ----------
    path : the path of a file in the safetensors format, with the metadata that `save` describes.

    Returns
    -------
    layer : an object of the same class of rnnfast, with the same options, dtype and parameters, bit
        for bit. The random numbers for dropout are new, as with `seed=None`.

    Raises
    ------
    TypeError : `path` is not a path.
    ValueError : the file has another format, is damaged, or has parameters that do not fit its
        options. The message names the file and what is wrong.
    OSError : the file cannot be read.

    Notes
    -----
    Nothing in the file is executed. Whatever it contains, this allocates no more memory than a few
    times its size.
    """
    name = _validate.path("path", path)
    with open(name, "rb") as file:
        try:
            return _rebuilt(_safetensors.Reader(file))
        # An option of the wrong type in the file raises a TypeError.
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fsdecode(name)}: {error}") from error


def _rebuilt(reader: _safetensors.Reader) -> Loaded:
    given = dict(reader.metadata)
    for key, want in FILE_FORMAT.items():
        _validate.one_of(f"metadata {key}", given.pop(key, None), [want])
    found = _CLASSES[_validate.one_of("metadata class", given.pop("class", None), _CLASSES)]
    options = _options(found, given)
    layers = options.get("num_layers")
    if isinstance(layers, int) and layers > len(reader.tensors):  # before their names are listed
        raise ValueError(f"num_layers: expected the layers of the file, got {layers}")

    def parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray]:
        _check_tensors(reader.tensors, shapes, options["dtype"])
        return {name: reader.read(name) for name in shapes}

    return found._from_source(parameters, options)


def _options(found: type[Loaded], texts: Mapping[str, str]) -> dict[str, Any]:
    """The options of a class from their texts, which must be exactly those that `save` writes."""
    names = inspect.signature(found).parameters.keys() - {"seed", *_MAY_BE_ABSENT}
    if texts.keys() - _MAY_BE_ABSENT != names:
        raise ValueError(
            f"metadata: expected for {found.__name__} the options {', '.join(sorted(names))}, "
            f"got {', '.join(map(_validate.shown, sorted(texts))) or 'none'}"
        )
    options = {name: _value(text) for name, text in texts.items()}
    _validate.one_of("dtype", options["dtype"], DTYPES)
    return options


def _value(text: str) -> int | float | str:
    """The number or bool that `save` writes as this text; else the text itself."""
    if len(text) <= 32:  # no number is longer, and JSON nested too deeply for Python is
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return text
        if isinstance(value, (int, float)) and json.dumps(value) == text:
            return value
    return text


def _check_tensors(
    tensors: Mapping[str, _safetensors.Tensor], shapes: Mapping[str, tuple[int, ...]], dtype: str
) -> None:
    """Raises ValueError unless a file has the arrays that its options need; allocates none."""
    wrong = [f"{name}: expected an array, got none" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if len(wrong) > _MOST_NAMED:
            wrong[_MOST_NAMED:] = ["and more"]
            break
        if name not in shapes:
            wrong.append(f"{_validate.shown(name)}: expected no such array, got one")
        elif tensor.shape != shapes[name]:
            wrong.append(f"{name}: expected shape {shapes[name]}, got {tensor.shape}")
        elif tensor.dtype != DTYPES[dtype]:
            wrong.append(f"{name}: expected {dtype}, got {tensor.dtype}")
    if wrong:
        raise ValueError("; ".join(wrong))
