"""How the functions of this backend are compiled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Multiply-adds may be fused. Anything more of `fastmath` would break NaN, Inf and the rounding
# tricks of `activations`.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]

# A part of an entry point. Always inlined: a call in a loop keeps LLVM from vectorising it.
inlined = njit(forceinline=True, **_OPTIONS)

# A part that is called: compiled once for all entry points, which saves seconds.
called = njit(nogil=True, **_OPTIONS)

# For `numba.extending.overload`, the same.
INLINED_OPTIONS: dict[str, Any] = {"forceinline": True, **_OPTIONS}


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what Python calls, on its first call, and keeps the machine code on disk."""
    # Numba takes machine code for stale by the file of `function` only, and names the files that
    # it keeps after the qualified name: with the digest, any change here is a new name.
    function.__qualname__ += f"_{_DIGEST}"
    try:
        return njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:  # no directory to keep it in: neither this one nor the user's cache
        return njit(nogil=True, **_OPTIONS)(function)
