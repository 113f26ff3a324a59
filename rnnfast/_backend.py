"""The interface of a backend, and the choice of the one in use.

A backend runs one layer in one direction. `functional` validates and allocates the arrays: all
have one dtype (but for `lengths` and `reset`), native byte order, the right shape and unit stride
in the last axis, and are aligned. A backend neither checks this nor raises. `csrc/core/args.h`
states the same contract in C++.

Letters: T steps, B batch, I input size, H hidden size, P projection size (0: none), W the width
of h (P, or H without projection).
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
    """The arguments of a forward pass."""

    x: NDArray  # (T, B, I)  in
    h0: NDArray | None  # (B, W)  in; None: zeros; contiguous
    c0: NDArray | None  # (B, H)  in; None: zeros, or the cell has no c; contiguous
    lengths: NDArray | None  # (B,)  in, int64, each in 0..T; None: all T; contiguous
    # (T, B)  in, bool: the state is set to zero before the step, in the order run; None: never
    reset: NDArray | None
    reverse: bool  # whether the steps run from the last to the first
    y: NDArray  # (T, B, W)  out: h after each step, 0 past a row's length
    hn: NDArray  # (B, W)  out: h after a row's last step; contiguous
    cn: NDArray | None  # (B, H)  out; None: the cell has no c; contiguous


@dataclass(slots=True)
class Backward:
    """The arguments that a backward pass takes in addition to those of the forward pass."""

    dy: NDArray | None  # (T, B, W)  in; None: zeros; values past a row's length are not read
    dhn: NDArray | None  # (B, W)  in; None: zeros; contiguous
    dcn: NDArray | None  # (B, H)  in; None: zeros, or no c; contiguous
    dx: NDArray | None  # (T, B, I)  out, assigned, 0 past a row's length; None: not computed
    dh0: NDArray  # (B, W)  out, assigned; contiguous
    dc0: NDArray | None  # (B, H)  out, assigned; None: the cell has no c; contiguous
    weights: Weights  # in/out: gradients of the parameters, accumulated (+=); contiguous


class Backend(Protocol):
    """One implementation of every cell, forward and backward.

    name : its key in `BACKENDS`.
    memory : the memory in which its arrays lie.
    """

    name: str
    memory: Memory

    def pack(self, cell: Cell, weights: Weights, format_name: str | None = None) -> Any:
        """A private copy of the weights in the backend's own layout; `weights` are contiguous.

        format_name : a name in `_low_precision.FORMATS`, for float32 weights only. The matrices,
            and the values that they are multiplied with, are rounded to this format, forward and
            backward. None: nothing is rounded.
        """

    def forward(self, cell: Cell, packed: Any, args: Forward, training: bool) -> Any:
        """Runs a forward pass; returns what `backward` needs if `training`, else None."""

    def backward(self, cell: Cell, packed: Any, saved: Any, args: Forward, grads: Backward) -> None:
        """Runs a backward pass. It may run again with the same `saved`, which it leaves as is."""


# The modules of the backends, the best first. Each module has a function `load() -> Backend`, which
# raises ImportError if the backend is not available.
BACKENDS: dict[str, str] = {
    "native": "rnnfast._native_backend",
    "numba": "rnnfast._numba",
    "numpy": "rnnfast._reference",
}

# The name of the compiled module, which a pure-Python install lacks.
NATIVE_MODULE = "rnnfast._native"

_lock = Lock()
_current: Backend | None = None


class MissingBackendError(RuntimeError):
    """The backend is not installed, or cannot be imported here."""


def load(name: str) -> Backend:
    """The backend called `name`.

    Raises
    ------
    ValueError : `name` is not a key of `BACKENDS`.
    MissingBackendError : the backend cannot be imported.
    RuntimeError : the backend is there but refuses, as if `RNNFAST_ISA` names an ISA that the CPU
        lacks.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r:.80}")
    try:
        return importlib.import_module(BACKENDS[name]).load()
    except ImportError as error:
        raise MissingBackendError(f"backend: {name} is not available: {error}") from error


def native_is_installed() -> bool:
    """Whether the compiled module is there; this does not import it."""
    return importlib.util.find_spec(NATIVE_MODULE) is not None


def current() -> Backend:
    """The backend in use. The first call chooses `RNNFAST_BACKEND`, else the first that loads."""
    if _current is not None:
        return _current
    with _lock:
        return _current or _choose()


def use(name: str) -> None:
    """Selects the backend called `name`; raises as `load` does, and then changes nothing."""
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
            # `import rnnfast` has warned if it is not installed; this warns if it does not work.
            if name == "native" and native_is_installed():
                warnings.warn(f"{error}; falling back", RuntimeWarning, stacklevel=2)
    raise RuntimeError("backend: none is available, and numpy should always be")
