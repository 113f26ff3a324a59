"""Building blocks of the tests of saved files: modules of every kind, and files made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from oracle import KINDS, assert_same_bits

import rnnfast

CELLS = {
    "rnn_cell": (rnnfast.RNNCell, {"nonlinearity": "relu"}),
    "lstm_cell": (rnnfast.LSTMCell, {}),
    "gru_cell": (rnnfast.GRUCell, {"reset_after": False}),
}
LAYER_OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bias": False, "batch_first": True, "dropout": 0.25},
    {"num_layers": 2, "bidirectional": True},
]
# A constructor and its options.
MODULES = {
    f"{kind}-{k}": (constructor, own | options)
    for kind, (constructor, own) in KINDS.items()
    for k, options in enumerate(LAYER_OPTIONS)
} | {
    f"{kind}-{k}": (constructor, own | {"bias": k == 0})
    for kind, (constructor, own) in CELLS.items()
    for k in range(2)
}


def assert_same_module(got, want) -> None:
    """The same class, options and parameters, bit for bit."""
    assert type(got) is type(want)
    assert got._options == want._options
    assert list(got.parameters) == list(want.parameters)
    for name, array in got.parameters.items():
        assert_same_bits(array, want.parameters[name], name)


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any] | str | bytes, data: bytes) -> bytes:
    """A file of a header, as it is or as an object for JSON, and data."""
    text = json.dumps(header) if isinstance(header, dict) else header
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def saved(module, folder: Path) -> bytes:
    """The content of a module's file."""
    path = folder / "saved.safetensors"
    module.save(path)
    return path.read_bytes()
