"""sigmoid and tanh of the kernels in use, against wider arithmetic, in units in the last place."""

from __future__ import annotations

import numpy as np
import pytest

LIMIT = {"float32": 2, "float64": 4}
WIDER = {"float32": np.float64, "float64": np.longdouble}


@pytest.fixture(params=["tanh", "sigmoid"])
def name(request) -> str:
    return request.param


@pytest.fixture
def apply(name, dtype, native):
    """The function that the kernels apply to vectors, on arrays."""

    def function(x):
        x = np.asarray(x, dtype)
        y = np.full(x.shape, 7, dtype)
        native.activation(name, x, y)
        return y

    return function


def every_magnitude(dtype: str) -> np.ndarray:
    """Bit patterns of finite numbers of both signs, at a prime distance."""
    bits = np.dtype(f"u{np.dtype(dtype).itemsize}")
    infinity = int(np.array(np.inf, dtype).view(bits))
    patterns = np.arange(0, infinity, infinity // 1_000_003, bits).view(dtype)
    return np.concatenate([patterns, -patterns])


def where_it_is_curved(dtype: str) -> np.ndarray:
    """Random, and on both sides of where range reduction goes from one 2^n to the next."""
    rng = np.random.default_rng(5)
    borders = ((np.arange(-130, 131) + 0.5) * (np.log(2) / 2)).astype(dtype)
    near = [borders]
    for direction in (-np.inf, np.inf):
        x = borders
        for _ in range(8):
            x = np.nextafter(x, np.array(direction, dtype))
            near.append(x)
    return np.concatenate([rng.uniform(-20, 20, 300_000).astype(dtype), *near])


@pytest.mark.parametrize("inputs", [every_magnitude, where_it_is_curved])
def test_error(apply, name, dtype, inputs):
    wider = WIDER[dtype]
    if np.finfo(wider).eps > np.finfo(dtype).eps / 2**10:
        pytest.skip("long double is no wider than double here")
    x = inputs(dtype)
    got = apply(x)
    with np.errstate(over="ignore", under="ignore"):
        wide = x.astype(wider)
        want = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
        nearest = want.astype(dtype)
    # What is below the normal numbers is zero in the kernels.
    smallest = np.finfo(dtype).tiny
    ulp = np.maximum(np.spacing(np.abs(nearest)), np.spacing(smallest)).astype(wider)
    error = np.abs(got - want) / ulp
    error[np.abs(want) < smallest] = 0
    assert not np.isnan(got).any()
    assert error.max() <= LIMIT[dtype], f"{error.max():.3f} ULP at {x[error.argmax()]!r}"
    assert (np.abs(got[np.abs(want) < smallest]) <= smallest).all()


def test_edges(apply, name, dtype):
    largest, smallest = np.finfo(dtype).max, np.finfo(dtype).tiny
    x = [0.0, -0.0, np.inf, -np.inf, largest, -largest, smallest, -smallest, np.nan]
    got = apply(x)
    if name == "tanh":
        want = [0.0, -0.0, 1, -1, 1, -1, smallest, -smallest]
        np.testing.assert_array_equal(np.signbit(got[:8]), np.signbit(want))
    else:
        want = [0.5, 0.5, 1, 0, 1, 0, 0.5, 0.5]
        assert (np.abs(got[[3, 5]]) <= smallest).all()
        got[[3, 5]] = 0
    np.testing.assert_array_equal(got[:8], np.array(want, dtype))
    assert np.isnan(got[8])


def test_range_and_symmetry(apply, name, dtype):
    x = np.concatenate([every_magnitude(dtype), where_it_is_curved(dtype)])
    got = apply(x)
    assert (np.abs(got) <= 1).all()
    if name == "tanh":
        assert (np.signbit(got) == np.signbit(x)).all()
        np.testing.assert_array_equal(apply(-x), -got)
    else:
        assert (got >= 0).all()


def test_lanes_do_not_differ(apply, dtype):
    """One number alone, and at any place in an array of any length, has the same result."""
    x = np.random.default_rng(1).normal(0, 3, 37).astype(dtype)
    want = apply(x)
    for size in range(1, 38):
        np.testing.assert_array_equal(apply(x[:size]), want[:size])
        np.testing.assert_array_equal(apply(x[-size:].copy()), want[-size:])
    x[5] = np.nan
    got = apply(x)
    assert np.isnan(got[5])
    np.testing.assert_array_equal(np.delete(got, 5), np.delete(want, 5))
