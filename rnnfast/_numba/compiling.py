"""The ways in which Numba compiles the functions of this backend."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit

# Multiply-adds may be fused ("contract"). The other flags of `fastmath` would break NaN, Inf and
# the corrections of rounding errors in `activations`.
_OPTIONS: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()[:16]

# For a part of an entry point. It is always inlined, as a call in a loop keeps LLVM from
# vectorising the loop.
inlined = njit(forceinline=True, **_OPTIONS)

# For a part that is called. It is compiled once for all entry points, which saves seconds.
called = njit(nogil=True, **_OPTIONS)

# The options of `inlined`, for `numba.extending.overload`.
INLINED_OPTIONS: dict[str, Any] = {"forceinline": True, **_OPTIONS}


def entry(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function that Python calls, on its first call; caches machine code on disk."""
    # To detect stale code, Numba checks only the file of `function`. It names the cached files
    # after the qualified name, so the digest gives a new name after any change of this package.
    function.__qualname__ += f"_{_DIGEST}"
    try:
        return njit(cache=True, nogil=True, **_OPTIONS)(function)
    except RuntimeError:  # neither this folder nor the user's cache can be written
        return njit(nogil=True, **_OPTIONS)(function)
