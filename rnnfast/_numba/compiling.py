"""How the functions of this backend are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# Multiply-adds may be fused. Anything more of `fastmath` would break NaN, Inf and the rounding
# tricks of `activations`.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

# A part of an entry point. Always inlined: a call in a loop keeps LLVM from vectorising it.
inlined = njit(forceinline=True, **_OPTIONS)

# A part that is called: compiled once for all entry points, which saves seconds.
called = njit(nogil=True, **_OPTIONS)

# For `numba.extending.overload`, the same.
INLINED_OPTIONS: dict[str, Any] = {"forceinline": True, **_OPTIONS}


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what Python calls, on its first call, and keeps the machine code on disk.

    Numba looks for new sources in the file of `function` only: after a change to another file of
    this package, remove `__pycache__` here.
    """
    try:
        return njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:  # no directory to keep it in: neither this one nor the user's cache
        return njit(nogil=True, **_OPTIONS)(function)
