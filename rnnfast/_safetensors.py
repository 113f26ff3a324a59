"""Reads and writes safetensors files, which hold arrays by name, and strings as metadata.

A file consists of three parts: the length N of the header as 8 bytes, little-endian; the header,
which is N bytes of JSON, padded with spaces,

    {"__metadata__": {string: string, ...},
     name: {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}, ...}

and the arrays, C-contiguous and little-endian, one after the other without holes or overlaps.
Offsets count from the end of the header. https://huggingface.co/docs/safetensors

A file may be damaged, or made to do harm. The parser therefore accepts the form above only: no
deeper nesting, no repeated keys, and no more memory than a few times the header's. It allocates an
array only after it has checked the array's place in the file.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import DTYPES

# The dtypes by the names that the format gives them, such as "F32".
_DTYPES = {f"F{8 * dtype.itemsize}": dtype for dtype in DTYPES.values()}
_TAGS = {dtype: tag for tag, dtype in _DTYPES.items()}

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8  # the arrays in a file start at a multiple of 8 bytes
_MAX_HEADER = 100_000_000  # bytes; the same limit as in the format's own library
_MAX_AXES = 64  # the same limit as in NumPy
_MAX_METADATA = 64  # strings; a layer has several times fewer options

_SPACE = re.compile(r"[ \t\n\r]*")
# At most 18 digits, so that every value fits an int64.
_INTEGER = re.compile(r"(?:0|[1-9][0-9]{0,17})(?![0-9.eE])")
_STRING = json.JSONDecoder()  # called only where a string begins


class Tensor(NamedTuple):
    """The description of an array in a file; `begin` and `end` count from the header's end."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Reader:
    """An open safetensors file whose header has been read and checked.

    metadata : the strings by key.
    tensors : the descriptions of the arrays by name.

    Raises
    ------
    ValueError : the file is not in this format, is incomplete, or has arrays of other dtypes.
    """

    def __init__(self, file: BufferedReader) -> None:
        # `file` is seekable and at its beginning.
        self._file = file
        rest = os.fstat(file.fileno()).st_size - _LENGTH.size
        if rest < 0:
            raise ValueError(f"file: expected at least {_LENGTH.size} bytes, got fewer")
        (length,) = _LENGTH.unpack(_exactly(file, _LENGTH.size))
        most = min(rest, _MAX_HEADER)
        if length > most:
            raise ValueError(f"header: expected at most {most} bytes, got a length of {length}")
        try:
            text = _exactly(file, length).decode()
        except UnicodeDecodeError:
            raise ValueError("header: expected UTF-8, got other bytes") from None
        self.metadata, self.tensors = _parsed(text)
        self._start = _LENGTH.size + length
        _check_places(self.tensors, rest - length)

    def read(self, name: str) -> NDArray:
        """The array called `name`, in native byte order; ValueError if the file has got shorter."""
        dtype, shape, begin, end = self.tensors[name]
        array = np.empty(shape, dtype.newbyteorder("<"))
        self._file.seek(self._start + begin)
        got = self._file.readinto(array.data)
        if got != end - begin:
            raise ValueError(f"{name}: expected {end - begin} bytes, got {got}")
        return array.astype(dtype, copy=False)


def write(path: str | bytes, tensors: Mapping[str, NDArray], metadata: Mapping[str, str]) -> None:
    """Writes a file with the arrays in the given order; it replaces an old one only when whole."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in tensors.items():
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _TAGS[array.dtype],
            "shape": array.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with _replacing(path) as file:
        file.write(_LENGTH.pack(len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)


@contextmanager
def _replacing(path: str | bytes) -> Iterator[BinaryIO]:
    """A new file, which replaces `path` at the end of the block and takes over its permissions."""
    target = os.path.realpath(os.fsdecode(path))  # so that a symbolic link stays one
    exists = os.path.exists(target)
    if exists and not os.path.isfile(target):  # a device or pipe must not be replaced by a file
        with open(target, "wb") as file:
            yield file
        return
    temporary = os.path.join(os.path.dirname(target), f".rnnfast-{secrets.token_hex(8)}.tmp")
    # The old file may be private: until its permissions are copied, only the owner has access.
    mode = 0o600 if exists else 0o666
    try:
        file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode))
    except OSError as error:
        error.filename = path
        raise
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # else a power failure may leave an empty file
        if exists:
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):  # interrupted after os.replace
            os.unlink(temporary)
        raise


def _exactly(file: BufferedReader, length: int) -> bytes:
    got = file.read(length)
    if len(got) != length:
        raise ValueError(f"file: expected {length} bytes, got {len(got)}")
    return got


def _parsed(text: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the arrays of a header."""
    header = _Header(text)
    metadata: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    if not text.startswith("{"):
        header.fail("'{'")
    for name in header.keys():
        if name == "__metadata__":
            for key in header.keys():
                if len(metadata) == _MAX_METADATA:
                    raise ValueError(
                        f"metadata: expected at most {_MAX_METADATA} strings, got more"
                    )
                metadata[key] = header.string()
        else:
            tensors[name] = header.tensor(name)
    header.end()
    return metadata, tensors


def _check_places(tensors: Mapping[str, Tensor], size: int) -> None:
    """Raises ValueError unless the arrays fill `size` bytes, one after the other."""
    at = 0
    for name, (_, _, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise ValueError(
                f"{_validate.shown(name)}: expected data that begins at {at}, got {begin}"
            )
        at = end
    if at != size:
        raise ValueError(f"file: expected {at} bytes of data, got {size}")


class _Header:
    """A parser at a place in the header's text.

    Each method reads the element that must come next and moves past it, or raises ValueError.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def fail(self, expected: str) -> NoReturn:
        got = self._text[self._at : self._at + 16] or "its end"
        raise ValueError(f"header: expected {expected} at character {self._at}, got {got!r}")

    def keys(self) -> Iterator[str]:
        """The keys of an object. The caller must read a key's value before it takes the next."""
        self._expect("{")
        if self._take("}"):
            return
        seen: set[str] = set()
        while True:
            key = self.string()
            if key in seen:
                twice = _validate.shown(key)
                raise ValueError(f"header: expected each key once in an object, got {twice} twice")
            seen.add(key)
            self._expect(":")
            yield key
            if not self._take(","):
                self._expect("}")
                return

    def string(self) -> str:
        if self._next() != '"':
            self.fail("a string")
        try:
            value, self._at = _STRING.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            self.fail("a valid string")
        return value

    def tensor(self, name: str) -> Tensor:
        dtype, shape, offsets = "", None, None
        for key in self.keys():
            if key == "dtype":
                dtype = self.string()
            elif key == "shape":
                shape = self._integers(_MAX_AXES)
            elif key == "data_offsets":
                offsets = self._integers(2)
            else:
                raise ValueError(
                    f"{_validate.shown(name)}: expected dtype, shape and data_offsets, "
                    f"got {_validate.shown(key)}"
                )
        what = _validate.shown(name)
        found = _DTYPES[_validate.one_of(f"{what}: dtype", dtype, _DTYPES)]
        if shape is None or offsets is None or len(offsets) != 2:
            raise ValueError(f"{what}: expected a shape and two data_offsets, got fewer")
        begin, end = offsets
        size = math.prod(shape) * found.itemsize
        if end - begin != size:
            raise ValueError(f"{what}: expected {size} bytes, got data_offsets {begin}, {end}")
        return Tensor(found, shape, begin, end)

    def end(self) -> None:
        if self._next():
            self.fail("its end")

    def _integers(self, most: int) -> tuple[int, ...]:
        self._expect("[")
        values: list[int] = []
        while not self._take("]"):
            if values:
                self._expect(",")
            self._next()
            match = _INTEGER.match(self._text, self._at)
            if match is None:
                self.fail("an integer of 0 or more and at most 18 digits")
            if len(values) == most:
                self.fail(f"at most {most} integers")
            values.append(int(match[0]))
            self._at = match.end()
        return tuple(values)

    def _next(self) -> str:
        """Skips white space; the next character, which is not consumed, or "" at the end."""
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._text[self._at : self._at + 1]

    def _take(self, char: str) -> bool:
        found = self._next() == char
        self._at += found
        return found

    def _expect(self, char: str) -> None:
        if not self._take(char):
            self.fail(repr(char))
