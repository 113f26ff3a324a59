"""What a backend is, and which one is in use.

A backend runs one layer in one direction. `functional` validates and allocates, so that a backend
gets arrays of one dtype, native byte order, aligned, with unit stride in the last axis, and of the
right shape, and neither checks nor raises. `csrc/core/args.h` is the same contract in C++.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from rnnfast._cells import Cell, Weights
from rnnfast._locks import Lock
from rnnfast._validate import Memory


@dataclass(slots=True)
class Forward:
    """The arguments of a forward pass. W is the width of h: P, or H without projection."""

    x: NDArray  # (T, B, I)  in
    h0: NDArray | None  # (B, W)  in; None: zeros; contiguous
    c0: NDArray | None  # (B, H)  in; None: zeros, or the cell has no c; contiguous
    lengths: NDArray | None  # (B,)  in, int64, each in 0..T; None: all T; contiguous
    reset: NDArray | None  # (T, B)  in, bool: zero state before the step, as run; None: never
    reverse: bool  # steps from the last to the first
    y: NDArray  # (T, B, W)  out: h after each step, 0 past a row's length
    hn: NDArray  # (B, W)  out: h after a row's last step; contiguous
    cn: NDArray | None  # (B, H)  out; None: the cell has no c; contiguous


@dataclass(slots=True)
class Backward:
    """The arguments of a backward pass, beside those of the forward pass."""

    dy: NDArray | None  # (T, B, W)  in; None: zeros; what lies past a row's length is not read
    dhn: NDArray | None  # (B, W)  in; None: zeros; contiguous
    dcn: NDArray | None  # (B, H)  in; None: zeros, or no c; contiguous
    dx: NDArray | None  # (T, B, I)  out, assigned, 0 past a row's length; None: not wanted
    dh0: NDArray  # (B, W)  out, assigned; contiguous
    dc0: NDArray | None  # (B, H)  out, assigned; None: the cell has no c; contiguous
    weights: Weights  # in/out: gradients of the parameters, accumulated (+=); contiguous


class Backend(Protocol):
    """One implementation of every cell, forward and backward.

    memory : where its arrays lie.
    """

    name: str
    memory: Memory

    def pack(self, cell: Cell, weights: Weights, format_name: str | None = None) -> Any:
        """A private copy of the weights, which are contiguous, in the backend's own layout.

        format_name : of `_low_precision.FORMATS`, for float32 weights: the matrices and what they
            are multiplied with are rounded to it, forward and backward.
        """

    def forward(self, cell: Cell, packed: Any, args: Forward, training: bool) -> Any:
        """Runs forward; returns what `backward` needs when `training`, else None."""

    def backward(self, cell: Cell, packed: Any, saved: Any, args: Forward, grads: Backward) -> None:
        """Runs backward; leaves `saved` as it was, so that it can be called again."""


# Best first. Each names a module with a function `load() -> Backend` that raises ImportError.
BACKENDS: dict[str, str] = {
    "native": "rnnfast._native_backend",
    "numba": "rnnfast._numba",
    "numpy": "rnnfast._reference",
}

# What the compiled module is called; a pure-Python install has none.
NATIVE_MODULE = "rnnfast._native"

_lock = Lock()
_current: Backend | None = None


class MissingBackendError(RuntimeError):
    """The backend is not installed, or cannot be imported here."""


def load(name: str) -> Backend:
    """The backend called `name`.

    Raises
    ------
    ValueError : an unknown name.
    MissingBackendError : it cannot be imported.
    RuntimeError : it is there but refuses, such as an `RNNFAST_ISA` that the CPU lacks.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r:.80}")
    try:
        return importlib.import_module(BACKENDS[name]).load()
    except ImportError as error:
        raise MissingBackendError(f"backend: {name} is not available: {error}") from error


def native_is_installed() -> bool:
    """Whether the compiled module is there, without importing it."""
    return importlib.util.find_spec(NATIVE_MODULE) is not None


def current() -> Backend:
    """The backend in use: the one that `RNNFAST_BACKEND` names, else the first that loads."""
    if _current is not None:
        return _current
    with _lock:
        return _current or _choose()


def use(name: str) -> None:
    """Puts the backend called `name` in use, or fails and leaves the one in use."""
    global _current
    backend = load(name)
    with _lock:
        _current = backend


def _choose() -> Backend:
    global _current
    forced = os.environ.get("RNNFAST_BACKEND")
    if forced:
        if forced not in BACKENDS:
            names = ", ".join(BACKENDS)
            raise ValueError(f"RNNFAST_BACKEND: expected one of {names}, got {forced!r:.80}")
        _current = load(forced)
        return _current
    for name in BACKENDS:
        try:
            _current = load(name)
            return _current
        except MissingBackendError as error:
            # `import rnnfast` warns where it is not installed; here it is, and does not work.
            if name == "native" and native_is_installed():
                warnings.warn(f"{error}; falling back", RuntimeWarning, stacklevel=2)
    raise RuntimeError("backend: none is available, and numpy should always be")
