"""Every backend against the NumPy reference in float64, and the reference against differences.

The product of cells, dtypes and backends that the registries list, at hidden sizes around the
vector widths, through `rnnfast.functional`.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tolerances import FINITE_DIFFERENCES, REFERENCE, assert_close

from rnnfast import _backend, functional
from rnnfast._cells import CELLS, Sizes, weight_shapes

# V - 1, V, V + 1 and 2 V + 3 for vectors of 4, 8 and 16, and what is smaller than any.
HIDDEN_SIZES = (1, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 19, 33, 35)
OPTIONS = ("lengths", "reset", "reverse", "states", "strided")
PROJECTED = [name for name, cell in CELLS.items() if cell.projects]


@pytest.fixture(params=list(CELLS))
def cell(request) -> str:
    return request.param


class Case:
    """Weights, inputs and gradients of one pass; `options` are names from OPTIONS."""

    def __init__(self, cell, dtype, steps, batch, sizes, options=OPTIONS, bias=True, seed=1):
        rng = np.random.default_rng(seed)
        normal = lambda *shape: rng.standard_normal(shape).astype(dtype)  # noqa: E731
        self.cell, self.dtype, self.options = cell, dtype, options
        self.steps, self.batch, self.sizes = steps, batch, sizes
        scale = np.dtype(dtype).type(1 / np.sqrt(sizes.hidden))
        shapes = weight_shapes(CELLS[cell], sizes, bias)
        self.weights = {name: normal(*shape) * scale for name, shape in shapes.items()}
        self.x = normal(steps, batch, sizes.input)
        self.dy = normal(steps, batch, sizes.output)
        if "strided" in options:
            self.x = np.ascontiguousarray(self.x.swapaxes(0, 1)).swapaxes(0, 1)
            self.dy = np.concatenate([self.dy, self.dy[..., :1]], axis=-1)[..., :-1]
        self.inputs = {"reverse": "reverse" in options}
        self.d_state = {"dh": normal(batch, sizes.output)}
        if "lengths" in options:
            self.inputs["lengths"] = rng.integers(0, steps + 1, batch)
            self.inputs["lengths"][: batch // 4] = 0
        if "reset" in options:
            self.inputs["reset"] = rng.random((steps, batch)) < 0.2
        if "states" in options:
            self.inputs["h0"] = normal(batch, sizes.output)
        if "c" in CELLS[cell].states:
            self.d_state["dc"] = normal(batch, sizes.hidden)
            if "states" in options:
                self.inputs["c0"] = normal(batch, sizes.hidden)

    def in_float64(self) -> Case:
        """The same numbers in float64."""
        twin = copy.copy(self)
        twin.dtype = "float64"
        twin.x, twin.dy = _float64(self.x), _float64(self.dy)
        for name in ("weights", "inputs", "d_state"):
            setattr(twin, name, {k: _float64(v) for k, v in getattr(self, name).items()})
        return twin

    def forward(self, training=True) -> functional.Run:
        out = None
        if "strided" in self.options:  # the second half of a wider array, such as a direction's
            wide = np.full((self.steps, self.batch, 2 * self.sizes.output), 7.0, self.dtype)
            out = wide[..., self.sizes.output :]
        packed = functional.pack(self.cell, **self.weights)
        run = functional.forward(packed, self.x, **self.inputs, training=training, out=out)
        if out is not None:
            assert run.y is out
            assert (wide[..., : self.sizes.output] == 7).all(), "wrote beside y"
        return run

    def backward(self, run, **options) -> functional.Gradients:
        return run.backward(self.dy, **self.d_state, **options)

    def loss(self) -> float:
        """The scalar whose gradients `backward` gives."""
        run = self.forward(training=False)
        c = 0 if run.c is None else (run.c * self.d_state["dc"]).sum()
        return (run.y * self.dy).sum() + (run.h * self.d_state["dh"]).sum() + c


def _float64(value):
    """Arrays of floats in float64; flags, lengths and resets as they are."""
    floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
    return value.astype(np.float64) if floats else value


def results(run, gradients) -> dict[str, dict[str, np.ndarray]]:
    """Everything that both passes gave, by name."""
    forward = {"y": run.y, "h": run.h, "c": run.c}
    backward = {"x": gradients.x, "h0": gradients.h0, "c0": gradients.c0}
    backward.update(gradients.weights._asdict())
    both = {"forward": forward, "backward": backward}
    return {p: {n: v for n, v in arrays.items() if v is not None} for p, arrays in both.items()}


def assert_matches_reference(case: Case, backend: str) -> None:
    run = case.forward()
    got = results(run, case.backward(run))
    _backend.use("numpy")
    exact = case.in_float64()
    run = exact.forward()
    want = results(run, exact.backward(run))
    for which, arrays in want.items():
        assert got[which].keys() == arrays.keys()
        for name, array in arrays.items():
            assert got[which][name].dtype == case.dtype
            assert_close(got[which][name], array, REFERENCE[case.dtype, which], f"{which} {name}")


@pytest.mark.parametrize("hidden", HIDDEN_SIZES)
def test_hidden_sizes(cell, dtype, backend, hidden):
    case = Case(cell, dtype, 6, 1 + hidden % 7, Sizes(1 + hidden % 5, hidden, 0))
    assert_matches_reference(case, backend)


@pytest.mark.parametrize("options", [(), *((o,) for o in OPTIONS)], ids=lambda o: "-".join(o))
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_options(cell, dtype, backend, options, bias):
    assert_matches_reference(Case(cell, dtype, 9, 5, Sizes(4, 9, 0), options, bias), backend)


@pytest.mark.parametrize("projected", PROJECTED)
@pytest.mark.parametrize("sizes", [Sizes(3, 9, 4), Sizes(3, 5, 17), Sizes(2, 35, 1)])
@pytest.mark.parametrize("options", [(), OPTIONS], ids=["plain", "all"])
def test_projections(projected, dtype, backend, sizes, options):
    assert_matches_reference(Case(projected, dtype, 6, 5, sizes, options), backend)


def test_many_steps_and_rows(cell, dtype, backend):
    """More than one chunk in every backend, at the length that the tolerances are promised for."""
    case = Case(cell, dtype, 200, 27, Sizes(13, 33, 0))
    case.inputs["reset"] &= np.random.default_rng(0).random((200, 27)) < 0.05
    assert_matches_reference(case, backend)


@pytest.mark.parametrize("empty", ["steps", "batch", "input", "lengths"])
@pytest.mark.parametrize("options", [("states",), OPTIONS], ids=["states", "all"])
def test_empty_sizes(cell, dtype, backend, empty, options):
    sizes = Sizes(0 if empty == "input" else 3, 5, 0)
    steps, batch = 0 if empty == "steps" else 4, 0 if empty == "batch" else 3
    case = Case(cell, dtype, steps, batch, sizes, options)
    if empty == "lengths":
        case.inputs["lengths"] = np.zeros(batch, int)
    assert_matches_reference(case, backend)


@pytest.mark.parametrize("name", [*CELLS, *(f"{n}+projection" for n in PROJECTED)])
def test_reference_gradients_are_those_of_the_loss(name, keep_backend):
    """Central differences of every number of every input."""
    _backend.use("numpy")
    cell, _, projected = name.partition("+")
    case = Case(cell, "float64", 4, 4, Sizes(2, 3, 2 if projected else 0))
    run = case.forward()
    got = results(run, case.backward(run))["backward"]
    inputs = {**case.weights, "x": case.x, **case.inputs}
    step = 1e-6
    for key, gradient in got.items():
        want = np.zeros_like(gradient)
        for place in np.ndindex(gradient.shape):
            before = inputs[key][place]
            losses = []
            for value in (before + step, before - step):
                inputs[key][place] = value
                losses.append(case.loss())
            inputs[key][place] = before
            want[place] = (losses[0] - losses[1]) / (2 * step)
        assert_close(gradient, want, FINITE_DIFFERENCES, key)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_rows_are_isolated(cell, dtype, backend, poison):
    """What is in one row, or past a row's end, changes no bit of any other row."""
    case = Case(cell, dtype, 7, 9, Sizes(4, 17, 0))
    lengths = case.inputs["lengths"] = np.array([7, 3, 0, 7, 5, 2, 7, 6, 1])
    run = case.forward()
    want = results(run, case.backward(run))
    past = np.arange(7)[:, None] >= lengths
    case.x[past], case.dy[past] = poison, poison
    run = case.forward()
    got = results(run, case.backward(run))
    for which, arrays in want.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(got[which][name], array, err_msg=f"past the end: {name}")

    bad = 3
    case.x[:, bad] = poison
    run = case.forward()
    got = results(run, case.backward(run))
    assert np.isnan(got["forward"]["y"][:, bad]).any() or not np.isnan(poison)
    for which, name, axis in [
        ("forward", "y", 1),
        ("forward", "h", 0),
        ("backward", "x", 1),
        ("backward", "h0", 0),
    ]:
        others = [np.delete(a[which][name], bad, axis) for a in (got, want)]
        np.testing.assert_array_equal(*others, err_msg=name)


def test_reset_hides_what_was_before(cell, dtype, backend):
    """By selection: NaN times zero would be NaN."""
    case = Case(cell, dtype, 5, 3, Sizes(4, 9, 0), ("states", "reset"))
    case.inputs["reset"][:] = False
    case.inputs["reset"][2, 1] = True
    case.x[:2, 1] = np.nan
    case.dy[:2, 1] = 0
    run = case.forward()
    assert np.isnan(run.y[:2, 1]).all()
    assert np.isfinite(run.y[2:]).all()
    assert np.isfinite(run.h).all()
    gradients = case.backward(run)
    assert np.isfinite(gradients.x[2:]).all()
    assert np.isfinite(np.delete(gradients.h0, 1, 0)).all()


def test_padding_is_zero(cell, dtype, backend):
    case = Case(cell, dtype, 6, 5, Sizes(3, 7, 0))
    lengths = case.inputs["lengths"] = np.array([0, 6, 2, 5, 1])
    past = np.arange(6)[:, None] >= lengths
    run = case.forward()
    assert (run.y[past] == 0).all()
    assert (run.y[~past] != 0).any()
    assert (case.backward(run).x[past] == 0).all()
    np.testing.assert_array_equal(run.h[0], case.inputs["h0"][0])


def test_inputs_stay_and_backward_repeats(cell, dtype, backend):
    case = Case(cell, dtype, 6, 5, Sizes(3, 17, 0))
    given = {**case.weights, "x": case.x, "dy": case.dy, **case.inputs, **case.d_state}
    copies = {name: np.array(value) for name, value in given.items()}
    run = case.forward()
    first = results(run, case.backward(run))
    again = results(run, case.backward(run))
    for which, arrays in first.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[which][name], array, err_msg=name)
    for name, value in copies.items():
        np.testing.assert_array_equal(given[name], value, err_msg=name)


def test_parameter_gradients_accumulate(cell, dtype, backend):
    case = Case(cell, dtype, 6, 5, Sizes(3, 7, 0))
    run = case.forward()
    once = case.backward(run).weights
    into = functional.zero_weights(run.packed)
    case.backward(run, into=into, want_dx=False)
    gradients = case.backward(run, into=into, want_dx=False)
    assert gradients.x is None
    for name, twice in into._asdict().items():
        if twice is not None:
            want = 2 * getattr(once, name)
            assert_close(twice, want, REFERENCE[dtype, "forward"], name)


def test_a_gradient_not_given_is_zero(cell, dtype, backend):
    case = Case(cell, dtype, 6, 5, Sizes(3, 7, 0))
    run = case.forward()
    zeros = {name: np.zeros_like(value) for name, value in case.d_state.items()}
    want = results(run, run.backward(case.dy, **zeros))["backward"]
    for name, got in results(run, run.backward(case.dy))["backward"].items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    want = results(run, run.backward(np.zeros_like(case.dy), **case.d_state))["backward"]
    for name, got in results(run, run.backward(**case.d_state))["backward"].items():
        np.testing.assert_array_equal(got, want[name], err_msg=name)


@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
def test_activations_in_ulp(dtype, backend, function):
    """An RNN with W = 1 is tanh(x); a GRU whose z alone has a weight, from h = 1, is sigmoid(x)."""
    if backend == "numpy":
        pytest.skip("the reference uses NumPy's functions, which promise 4 ULP, in one precision")
    limit = {"float32": 2, "float64": 4}[dtype]
    rng = np.random.default_rng(3)
    spread = np.exp(rng.uniform(np.log(1e-30), np.log(80), 20000))
    x = np.concatenate([rng.uniform(-20, 20, 20000), spread, -spread]).astype(dtype)
    one, zero = np.ones((1, 1), dtype), np.zeros((1, 1), dtype)
    h0 = None
    packed = functional.pack("rnn_tanh", one, zero)
    if function == "sigmoid":
        packed = functional.pack(
            "gru", np.concatenate([zero, one, zero]), np.concatenate([zero, zero, zero])
        )
        h0 = np.ones((x.size, 1), dtype)
    got = functional.forward(packed, x.reshape(1, -1, 1), h0).y.ravel()
    wide = x.astype(np.longdouble)
    want = np.tanh(wide) if function == "tanh" else 1 / (1 + np.exp(-wide))
    normal = np.abs(want) > np.finfo(dtype).tiny
    ulp = np.spacing(np.abs(want).astype(dtype)).astype(np.longdouble)
    errors = np.where(normal, np.abs(got - want) / ulp, 0)
    # Where long double is no wider than double, the yardstick has an error of its own.
    limit += dtype == "float64" and np.finfo(np.longdouble).eps == np.finfo(np.float64).eps
    assert errors.max() <= limit, f"at {x[errors.argmax()]!r}"


def test_special_values(dtype, backend):
    """Infinite input saturates; relu lets Inf through."""
    one, zero = np.ones((1, 1), dtype), np.zeros((1, 1), dtype)
    x = np.array([np.inf, -np.inf, np.nan], dtype).reshape(1, 3, 1)
    for cell, want in [("rnn_tanh", [1, -1, np.nan]), ("rnn_relu", [np.inf, 0, np.nan])]:
        run = functional.forward(functional.pack(cell, one, zero), x)
        np.testing.assert_array_equal(run.y.ravel(), want)


def test_concurrent_passes_do_not_mix(cell, dtype, backend):
    """Four threads, each with passes of its own, on one pack of weights."""
    case = Case(cell, dtype, 12, 5, Sizes(3, 33, 0))
    packed = functional.pack(cell, **case.weights)

    def gradient(scale: int) -> bytes:
        run = functional.forward(packed, case.x * case.x.dtype.type(scale), training=True)
        return run.y.tobytes() + case.backward(run).x.tobytes()

    want = [gradient(scale) for scale in range(4)]
    assert len(set(want)) == 4
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(gradient, [0, 1, 2, 3] * 4)) == want * 4


def test_floating_point_environment_stays(cell, dtype, backend):
    """Denormals still count after a pass, whatever they are inside."""
    tiny = np.array([np.finfo(dtype).tiny])
    case = Case(cell, dtype, 3, 2, Sizes(3, 5, 0))
    case.backward(case.forward())
    assert (tiny / 4 > 0).all()
    with np.errstate(all="raise"):
        case.backward(case.forward())
        assert (np.ones(3, dtype) * 2 == 2).all()
