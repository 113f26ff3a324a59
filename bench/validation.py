"""The comparison of a peer's answer with ours, which every peer must pass before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The greatest ‖got − want‖ / ‖want‖ allowed, by precision. At 200 steps our answer is within 1e-6
# forward and 5e-6 backward of the exact one in float32 (1e-13 and 1e-12 in float64). Ten times that
# leaves room for 2048 steps and for peers that round less well, while gates in a wrong order give
# 0.1 and more. In low precision, peers are within 6e-3 (bfloat16) and 2.5e-2 (torch's int8, which
# has one unit for a matrix), and torch's bfloat16 gradients of a GRU are within 2.3e-2.
TOLERANCES = {
    ("float32", "output"): 1e-5,
    ("float32", "gradient"): 5e-5,
    ("float64", "output"): 1e-12,
    ("float64", "gradient"): 1e-11,
    ("bfloat16", "output"): 2e-2,
    ("bfloat16", "gradient"): 5e-2,
    ("int8", "output"): 5e-2,
}


class Mismatch(Exception):
    """A peer's answer differs from ours."""


def relative_error(got: NDArray, want: NDArray) -> float:
    """‖got − want‖ / ‖want‖ in double precision; NaN if a value is NaN."""
    exact = want.astype(np.float64)
    return float(np.linalg.norm(got - exact) / max(np.linalg.norm(exact), 1e-300))


def compare(
    got: dict[str, Any],
    want: dict[str, Any],
    precision: str,
    error_of: Callable[[Any, Any], float] = relative_error,
) -> None:
    """Raises `Mismatch`, which names the first array that differs, unless two answers agree.

    got, want : the peer's and our answer, as `Runner.answer` returns them.
    precision : the precision in which the peer computes.
    error_of : computes the relative error of two arrays.
    """
    if got.keys() != want.keys():
        raise Mismatch(f"answers with {sorted(got)} instead of {sorted(want)}")
    for name, right in want.items():
        if got[name].shape != right.shape:
            raise Mismatch(f"{name}: shape {got[name].shape}, expected {right.shape}")
    for name, right in want.items():
        allowed = TOLERANCES[precision, "output" if name == "output" else "gradient"]
        error = error_of(got[name], right)
        if not error <= allowed:
            raise Mismatch(f"{name}: relative error {error:.1e}, allowed {allowed:.0e}")
