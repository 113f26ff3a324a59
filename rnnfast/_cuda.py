"""Finds the library of the CUDA kernels, and calls its functions by ctypes.

The library is a separate file, in this package or in the distribution `rnnfast-cuda13`. It is
opened when it is first needed. If there is no library or no device, nothing here raises an error.
`csrc/include/rnnfast_cuda.h` documents the functions.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

FILE = "librnnfast_cuda.so"
PACKAGES = ("rnnfast", "rnnfast_cuda13")  # the packages that may have it, in their folder lib

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


class Pass(ctypes.Structure):
    """`rnnfast_cuda_pass`: the sizes, and the arrays that both forward and backward read."""

    _fields_ = (
        ("cell", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        *((name, _INT) for name in ("steps", "batch", "hidden", "reverse")),
        *((name, _POINTER) for name in ("lengths", "resets", "weight_hh", "bias_hh", "h0", "c0")),
        ("workspace", _POINTER),
        ("stream", _POINTER),
    )


class Outputs(ctypes.Structure):
    """`rnnfast_cuda_outputs`: the arrays of a forward pass."""

    _fields_ = tuple((name, _POINTER) for name in ("wx", "y", "hn", "cn", "saved"))


class Gradients(ctypes.Structure):
    """`rnnfast_cuda_gradients`: the arrays of a backward pass."""

    _fields_ = tuple(
        (name, _POINTER)
        for name in ("saved", "y", "dy", "dhn", "dcn", "da", "da_hidden", "dh0", "dc0")
    )


class Library:
    """An opened library and its functions.

    Raises
    ------
    OSError : the library cannot be opened.
    AttributeError : it lacks a function, so it belongs to another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dll = dll = ctypes.CDLL(str(path))
        dll.rnnfast_cuda_error.restype = ctypes.c_char_p
        dll.rnnfast_cuda_version.restype = ctypes.c_char_p
        dll.rnnfast_cuda_saved.argtypes = [ctypes.c_char_p]
        dll.rnnfast_cuda_runs.argtypes = []
        for function, arrays in (("forward", Outputs), ("backward", Gradients)):
            getattr(dll, f"rnnfast_cuda_{function}").argtypes = [
                ctypes.POINTER(Pass),
                ctypes.POINTER(arrays),
            ]

    @property
    def version(self) -> str:
        """The version of the package with which the library was built."""
        return self._dll.rnnfast_cuda_version().decode()

    def devices(self) -> int:
        """The number of CUDA devices; -1 if it is not known, and then `error()` says why."""
        return self._dll.rnnfast_cuda_devices()

    def error(self) -> str:
        """The reason for which the last failed call of this thread failed."""
        return self._dll.rnnfast_cuda_error().decode(errors="replace")

    def lacks(self) -> str:
        """The reason why passes cannot run on the current device; empty if they can."""
        return self.error() if self._dll.rnnfast_cuda_runs() else ""

    def saved(self, cell: str) -> int:
        """How many numbers a forward pass saves for each unit and step; 0 for an unknown cell."""
        return self._dll.rnnfast_cuda_saved(cell.encode())

    def workspace(self, of: Pass, backward: bool) -> int:
        """The bytes of memory that a pass of these sizes needs while it runs."""
        size = ctypes.c_size_t()
        self._check(
            self._dll.rnnfast_cuda_workspace(ctypes.byref(of), backward, ctypes.byref(size))
        )
        return size.value

    def forward(self, of: Pass, outputs: Outputs) -> None:
        """Puts a forward pass on the stream."""
        self._check(self._dll.rnnfast_cuda_forward(of, outputs))

    def backward(self, of: Pass, gradients: Gradients) -> None:
        """Puts a backward pass on the stream."""
        self._check(self._dll.rnnfast_cuda_backward(of, gradients))

    def _check(self, failed: int) -> None:
        if failed:
            raise RuntimeError(self.error())


def _files() -> Iterator[Path]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            file = Path(folder, "lib", FILE)
            if file.exists():
                yield file


@functools.cache
def _found(version: str) -> tuple[Library | None, str]:
    """The library, or None if it cannot run here; and a text that `describe` returns."""
    why = f"not built: no {' or '.join(PACKAGES)} has {FILE} (RNNFAST_CUDA in CMake)"
    for file in _files():
        try:
            library = Library(file)
        except (OSError, AttributeError) as error:  # an AttributeError: of another version
            why = f"cannot be opened: {error}"
            continue
        if library.version != version:
            why = f"not used: {file} was built for rnnfast {library.version}, this is {version}"
            continue
        devices = library.devices()
        if devices > 0:
            return library, f"found: {devices} device{'s' * (devices > 1)}, {file}"
        why = f"no device: {library.error() or 'none was found'}"
    return None, why


def library(version: str) -> Library | None:
    """The library, if it belongs to this version of the package and can run; else None."""
    return _found(version)[0]


def describe(version: str) -> str:
    """Whether the library was found, and if not, why: it was not built, or has no device."""
    return _found(version)[1]
