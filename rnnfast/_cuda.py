"""The library of the CUDA kernels: where it is, and its functions, by ctypes.

It is a file of its own, in this package or in the distribution `rnnfast-cuda13`, and is opened
when it is first needed. That there is none, or no device, is never an error here.
`include/rnnfast_cuda.h` says what the functions do.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

FILE = "librnnfast_cuda.so"
PACKAGES = ("rnnfast", "rnnfast_cuda13")  # that may carry it, under lib/

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


class Pass(ctypes.Structure):
    """`rnnfast_cuda_pass`: sizes, and what forward and backward both read."""

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
    """The functions of an opened library.

    Raises
    ------
    OSError : it cannot be opened.
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
        """Of the package that it was built with."""
        return self._dll.rnnfast_cuda_version().decode()

    def devices(self) -> int:
        """How many CUDA devices there are; -1: `error()` says why that is not known."""
        return self._dll.rnnfast_cuda_devices()

    def error(self) -> str:
        """Why the last call of this thread failed."""
        return self._dll.rnnfast_cuda_error().decode(errors="replace")

    def lacks(self) -> str:
        """Why passes do not run on the current device, such as no code for it; empty: they do."""
        return self.error() if self._dll.rnnfast_cuda_runs() else ""

    def saved(self, cell: str) -> int:
        """The numbers that a forward pass saves of a unit and step; 0: a cell it does not run."""
        return self._dll.rnnfast_cuda_saved(cell.encode())

    def workspace(self, of: Pass, backward: bool) -> int:
        """Bytes of memory that a pass of such sizes needs while it runs."""
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
    """The library that runs here, if there is one; and what there is to say of it."""
    why = f"not built: no {' or '.join(PACKAGES)} has {FILE} (RNNFAST_CUDA in CMake)"
    for file in _files():
        try:
            library = Library(file)
        except (OSError, AttributeError) as error:  # or has not all functions: of another version
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
    """The library, of this version of the package; None where it cannot run."""
    return _found(version)[0]


def describe(version: str) -> str:
    """Whether it was found, was not built, or has no device, and why."""
    return _found(version)[1]
