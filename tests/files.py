"""Building blocks of the tests of saved files: modules of every kind, and files made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
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


# What mutations put into a header, besides other bytes.
PIECES = ['"', "{", "}", "[", "]", ",", ":", "-1", "1e9", "0", "9" * 19, "NaN", "true", "null"]
PIECES += ["F64", "GRU", "\\u0031", "\\", "_l0", "_reverse", "__metadata__", " ", "\x00", "é"]


def mutated(rng: np.random.Generator, content: bytes, other: bytes) -> bytes:
    """`content` after one to three changes, most of them in its header."""
    for _ in range(rng.integers(1, 4)):
        before = len(content)
        (length,) = struct.unpack("<Q", content[:8].ljust(8, b"\0"))
        at = int(rng.integers(0, min(8 + length, before) if rng.random() < 0.8 else before))
        size, piece = rng.integers(0, 24), PIECES[rng.integers(len(PIECES))].encode()
        head, tail = content[:at], content[at:]
        content = [
            head + rng.bytes(1) + tail[1:],
            head,
            head + tail[size:],
            head + tail[:size] + tail,
            head + other[at:],
            head + piece + tail,
            head + piece + tail[len(piece) :],
        ][rng.integers(7)]
        grown = length + len(content) - before
        if 8 <= at < 8 + length and 0 <= grown < 2**64 and rng.random() < 0.7:
            # The header's length fits again, so that more than it is looked at.
            content = struct.pack("<Q", grown) + content[8:]
        if not content:
            break
    return content
