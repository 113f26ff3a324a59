"""Whether a peer computes what we do: asked of every peer before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# ‖got − want‖ / ‖want‖, by what is computed in. Ours is within 1e-6 forward and 5e-6 backward of
# the exact answer in float32 (1e-13 and 1e-12 in float64) at 200 steps; ten times that leaves room
# for 2048 steps and for peers that round less well, while gates in a wrong order are off by 0.1
# and more. In low precision peers are within 6e-3 (bfloat16) and 2.5e-2 (torch's int8, of one unit
# for a matrix), and torch's bfloat16 gradients of a GRU within 2.3e-2.
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
    """A peer's answer is not ours."""


def relative_error(got: NDArray, want: NDArray) -> float:
    """‖got − want‖ / ‖want‖ in double precision; NaN where a value is."""
    exact = want.astype(np.float64)
    return float(np.linalg.norm(got - exact) / max(np.linalg.norm(exact), 1e-300))


def compare(
    got: dict[str, Any],
    want: dict[str, Any],
    precision: str,
    error_of: Callable[[Any, Any], float] = relative_error,
) -> None:
    """Raises `Mismatch`, naming the first array, where an answer of a peer is not ours.

    got, want : as `Runner.answer` gives them.
    precision : what the peer computes in.
    error_of : the relative error of arrays of another kind than NumPy's.
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
