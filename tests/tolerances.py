"""The tolerances of all tests, with their reasons. Errors are ‖got − want‖ / ‖want‖."""

from __future__ import annotations

import numpy as np

# (dtype, pass): the promises of the API against a float64 reference, at up to 200 steps. One
# rounding is 6e-8 in float32 and 1.1e-16 in float64; sums over H and T and the 2 ULP of the
# activations make some ten of it forward, and backward again as much for the longer chain.
REFERENCE = {
    ("float32", "forward"): 1e-6,
    ("float32", "backward"): 5e-6,
    ("float64", "forward"): 1e-13,
    ("float64", "backward"): 1e-12,
}

# Against torch in the same dtype, whose own error comes on top of ours: three times the above.
TORCH = {key: 3 * tolerance for key, tolerance in REFERENCE.items()}

# In bfloat16, whose rounding is 4e-3 (8 significant bits): what docs/torch.md promises of outputs
# and gradients. Some roundings in a row make half of it.
BFLOAT16 = 2e-2

# Central differences in float64 with a step of 1e-6: truncation is about 1e-12, cancellation
# 1e-16 / 1e-6 = 1e-10 of a loss whose gradient is some hundred times smaller than itself.
FINITE_DIFFERENCES = 1e-7


def relative_error(got, want) -> float:
    """‖got − want‖ / ‖want‖; where want is zero, ‖got‖."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    scale = np.linalg.norm(want)
    return float(np.linalg.norm(got - want) / (scale if scale else 1.0))


def assert_close(got, want, tolerance: float, what: str = "result") -> None:
    """Fails with the error where it is above `tolerance`, or not a number."""
    error = relative_error(got, want)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"
