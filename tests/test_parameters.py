"""Parameters: names, views, updates, and that packed weights are never stale."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from oracle import KINDS, by_hand, make, normal, parts, state_for
from tolerances import REFERENCE, TORCH, assert_close

import rnnfast

STEPS, BATCH, SIZE = 5, 3, 4


@pytest.fixture
def layer():
    return make("lstm", num_layers=2, bidirectional=True)


@pytest.fixture
def x(rng):
    return normal(rng, (STEPS, BATCH, SIZE), "float32")


def assert_current(layer, x, rng) -> None:
    """The layer computes with what `layer.parameters` shows."""
    state = state_for(layer, BATCH, rng)
    want, _ = by_hand(layer, x, state)
    assert_close(layer(x, state)[0], want, REFERENCE["float32", "forward"])
    assert_close(layer.record(x, state).output, want, REFERENCE["float32", "forward"])


def test_names_order_and_shapes():
    layer = rnnfast.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3)
    shapes = {name: array.shape for name, array in layer.parameters.items()}
    one = {"weight_ih": (20, 4), "weight_hh": (20, 3), "bias_ih": (20,), "bias_hh": (20,)}
    one["weight_hr"] = (3, 5)
    want = {}
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        want |= {n + suffix: s for n, s in one.items()}
        if suffix.startswith("_l1"):
            want["weight_ih" + suffix] = (20, 6)
    assert list(shapes.items()) == list(want.items())
    assert list(rnnfast.GRU(4, 5, bias=False).parameters) == ["weight_ih_l0", "weight_hh_l0"]


def test_views_cannot_be_written_or_made_writable(layer):
    for array in layer.parameters.values():
        assert not array.flags.writeable
        with pytest.raises(ValueError):
            array.flags.writeable = True
        with pytest.raises(ValueError):
            array[...] = 0
        with pytest.raises(ValueError):
            array.view().flags.writeable = True


def test_views_follow_updates(layer):
    name = "weight_hh_l1_reverse"
    view = layer.parameters[name]
    layer.parameters[name] = np.full_like(view, 3)
    assert (view == 3).all()
    with layer.parameters.edit() as p:
        p[name] += 1
    assert (view == 4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_takes_effect(kind, x, rng):
    layer = make(kind, num_layers=2, bidirectional=True)
    for name, value in layer.parameters.items():
        before = layer(x)[0]
        layer.parameters[name] = value * np.float32(1.5)
        assert not np.array_equal(layer(x)[0], before), name
        assert_current(layer, x, rng)


def test_assignment_copies(layer, x, rng):
    mine = np.array(layer.parameters["bias_ih_l0"])
    layer.parameters["bias_ih_l0"] = mine
    before = layer(x)[0]
    mine[...] = 9
    np.testing.assert_array_equal(layer(x)[0], before)
    assert_current(layer, x, rng)


def test_assignment_of_its_own_transposed_view(layer):
    layer = rnnfast.RNN(4, 4)
    want = layer.parameters["weight_hh_l0"].T.copy()
    layer.parameters["weight_hh_l0"] = layer.parameters["weight_hh_l0"].T
    np.testing.assert_array_equal(layer.parameters["weight_hh_l0"], want)


def test_assignment_checks(layer):
    parameters, before = layer.parameters, layer.state_dict()
    with pytest.raises(TypeError, match="bias_ih_l0: expected float32, got float64"):
        parameters["bias_ih_l0"] = np.zeros(20)
    with pytest.raises(ValueError, match=r"bias_ih_l0: expected shape \(20,\), got \(5,\)"):
        parameters["bias_ih_l0"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match=r"parameters: expected one of weight_ih_l0, .*, got 'w'"):
        parameters["w"] = np.zeros(5, np.float32)
    with pytest.raises(KeyError):
        parameters["w"]
    with pytest.raises(TypeError, match="bias_ih_l0"):
        del parameters["bias_ih_l0"]
    good = {"bias_ih_l0": np.ones(20, np.float32)}
    with pytest.raises(ValueError):
        parameters.update(good, bias_hh_l0=np.ones(3, np.float32))
    for name, value in before.items():
        np.testing.assert_array_equal(parameters[name], value)
    parameters.update(good)
    assert (parameters["bias_ih_l0"] == 1).all()
    assert "bias_ih_l0" in parameters and "w" not in parameters and len(parameters) == 16


class TestEdit:
    def test_changes_take_effect(self, layer, x, rng):
        layer(x)
        with layer.parameters.edit() as p:
            assert list(p) == list(layer.parameters)
            for name in p:
                p[name] *= 1.5
        assert_current(layer, x, rng)

    def test_calls_within_see_them(self, layer, x, rng):
        outputs = [layer(x)[0]]
        with layer.parameters.edit() as p:
            array = p["weight_ih_l0"]
            for _ in range(2):
                array *= 1.5
                outputs.append(layer(x)[0])
                np.testing.assert_array_equal(layer.parameters["weight_ih_l0"], array)
                assert_current(layer, x, rng)
            np.testing.assert_array_equal(layer.state_dict()["weight_ih_l0"], array)
        outputs.append(layer(x)[0])
        assert not np.array_equal(outputs[0], outputs[1])
        assert not np.array_equal(outputs[1], outputs[2])
        np.testing.assert_array_equal(outputs[2], outputs[3])

    def test_handles_kept_after_it_reach_nothing(self, layer, x):
        with layer.parameters.edit() as p:
            array, part = p["weight_ih_l0"], p["weight_ih_l0"][2:]
        before, values = layer(x)[0], layer.state_dict()
        with pytest.raises(ValueError):
            array[...] = 7
        part[...] = 7
        np.testing.assert_array_equal(layer(x)[0], before)
        np.testing.assert_array_equal(layer.parameters["weight_ih_l0"], values["weight_ih_l0"])

    def test_assignment_within(self, layer, x, rng):
        with layer.parameters.edit() as p:
            p["bias_ih_l0"] = np.full(20, 2, np.float32)
            layer.parameters["bias_hh_l0"] = np.full(20, 3, np.float32)
            with pytest.raises(TypeError):
                p["bias_ih_l1"] = np.zeros(20)
            with pytest.raises(ValueError):
                p["other"] = np.zeros(20, np.float32)
        assert (layer.parameters["bias_ih_l0"] == 2).all()
        assert (layer.parameters["bias_hh_l0"] == 3).all()
        assert_current(layer, x, rng)

    def test_changes_before_an_exception_stay(self, layer, x, rng):
        layer(x)
        with pytest.raises(ZeroDivisionError), layer.parameters.edit() as p:
            p["bias_ih_l0"][...] = 2
            raise ZeroDivisionError
        assert (layer.parameters["bias_ih_l0"] == 2).all()
        assert_current(layer, x, rng)
        with layer.parameters.edit():
            pass  # the block above is closed

    def test_one_object_for_two_blocks(self, layer, x):
        block = layer.parameters.edit()
        for value in (2, 3):
            with block as p:
                layer(x)
                p["bias_ih_l0"][...] = value
            assert (layer.parameters["bias_ih_l0"] == value).all()

    def test_one_at_a_time(self, layer):
        with layer.parameters.edit() as p:
            with (
                pytest.raises(RuntimeError, match="edit: expected no open edit block"),
                layer.parameters.edit(),
            ):
                pass
            p["bias_ih_l0"][...] = 2
        assert (layer.parameters["bias_ih_l0"] == 2).all()

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
    def test_copies_made_within_have_the_changes(self, layer, copied):
        with layer.parameters.edit() as p:
            p["bias_ih_l0"][...] = 2
            other = copied(layer)
            p["bias_ih_l0"][...] = 3
        assert (other.parameters["bias_ih_l0"] == 2).all()


class TestStateDict:
    def test_copies_out_and_in(self, layer, x):
        state = layer.state_dict()
        assert list(state) == list(layer.parameters)
        other = make("lstm", num_layers=2, bidirectional=True, seed=99)
        other.load_state_dict(state)
        np.testing.assert_array_equal(other(x)[0], layer(x)[0])
        before = layer(x)[0]
        for array in state.values():
            array[...] = 0
        np.testing.assert_array_equal(layer(x)[0], before)
        np.testing.assert_array_equal(other(x)[0], before)

    def test_one_error_names_all_and_nothing_changes(self, layer):
        before = layer.state_dict()
        state = {name: array + 1 for name, array in before.items()}
        del state["bias_hh_l0"], state["weight_ih_l1"]
        state["extra"] = np.zeros(1)
        state["weight_hh_l0"] = np.zeros((3, 3), np.float32)
        state["bias_ih_l1"] = np.zeros(20, np.int64)
        with pytest.raises(ValueError) as caught:
            layer.load_state_dict(state)
        text = str(caught.value)
        for part in (
            "bias_hh_l0: expected an entry, got none",
            "weight_ih_l1: expected an entry, got none",
            "extra: expected no such entry, got one",
            "weight_hh_l0: expected shape (20, 5), got (3, 3)",
            "bias_ih_l1: expected floating point, got int64",
        ):
            assert part in text
        with pytest.raises(ValueError) as caught:
            layer.load_state_dict(state, strict=False)
        assert "weight_hh_l0" in str(caught.value) and "extra" not in str(caught.value)
        for name, value in before.items():
            np.testing.assert_array_equal(layer.parameters[name], value)

    def test_not_strict_takes_what_fits(self, layer):
        before = layer.state_dict()
        new = np.ones(20, np.float32)
        layer.load_state_dict({"bias_ih_l0": new, "extra": new}, strict=False)
        for name, value in before.items():
            want = new if name == "bias_ih_l0" else value
            np.testing.assert_array_equal(layer.parameters[name], want)

    @pytest.mark.parametrize("foreign", ["float16", "float64", ">f4", "longdouble"])
    def test_casts_floating_point(self, layer, foreign):
        state = {name: array.astype(foreign) for name, array in layer.state_dict().items()}
        layer.load_state_dict(state)
        for name, value in state.items():
            np.testing.assert_array_equal(layer.parameters[name], value.astype(np.float32))
            assert layer.parameters[name].dtype == np.float32

    @pytest.mark.parametrize("foreign", ["int32", "complex64", "bool", "object", "U3"])
    def test_other_types_are_type_errors(self, layer, foreign):
        state = layer.state_dict()
        state["bias_ih_l0"] = np.zeros(20).astype(foreign)
        with pytest.raises(TypeError, match="bias_ih_l0: expected floating point"):
            layer.load_state_dict(state)
        with pytest.raises(TypeError, match="state_dict: expected a mapping, got list"):
            layer.load_state_dict([])

    def test_takes_torch_tensors(self, layer):
        torch = pytest.importorskip("torch")
        other = torch.nn.LSTM(SIZE, 5, num_layers=2, bidirectional=True)
        layer.load_state_dict(other.state_dict())
        layer.load_state_dict(dict(other.named_parameters()))  # these require gradients
        for name, value in other.state_dict().items():
            np.testing.assert_array_equal(layer.parameters[name], value.numpy())

    @pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
    def test_takes_torch_s_low_precision(self, layer, dtype):
        torch = pytest.importorskip("torch")
        dtype, before = getattr(torch, dtype), layer.state_dict().items()
        state = {name: torch.tensor(a).to(dtype) for name, a in before}
        layer.load_state_dict(state)
        for name, value in state.items():
            np.testing.assert_array_equal(layer.parameters[name], value.float().numpy())

    def test_takes_what_numpy_has_no_dtype_for(self, layer):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
            state = {name: array.astype(dtype) for name, array in layer.state_dict().items()}
            layer.load_state_dict(state)
            for name, value in state.items():
                np.testing.assert_array_equal(layer.parameters[name], value.astype(np.float32))

    def test_tensors_without_values_are_named(self, layer):
        torch = pytest.importorskip("torch")
        before = layer.state_dict()
        state = {name: torch.empty(a.shape, device="meta") for name, a in before.items()}
        with pytest.raises(
            TypeError, match=r"weight_ih_l0: .*bias_hh_l1_reverse: expected an array"
        ):
            layer.load_state_dict(state)
        for name, value in before.items():
            np.testing.assert_array_equal(layer.parameters[name], value)

    def test_torch_takes_it(self, layer, x):
        torch = pytest.importorskip("torch")
        other = torch.nn.LSTM(SIZE, 5, num_layers=2, bidirectional=True)
        other.load_state_dict({n: torch.from_numpy(a) for n, a in layer.state_dict().items()})
        with torch.no_grad():
            want, states = other(torch.from_numpy(x))
        output, state = layer(x)
        assert_close(output, want.numpy(), TORCH["float32", "forward"])
        for got, expected in zip(state, states, strict=True):
            assert_close(got, expected.numpy(), TORCH["float32", "forward"])

    def test_within_an_edit_block(self, layer, x, rng):
        state = {name: array * 2 for name, array in layer.state_dict().items()}
        with layer.parameters.edit():
            layer.load_state_dict(state)
        np.testing.assert_array_equal(layer.parameters["bias_ih_l0"], state["bias_ih_l0"])
        assert_current(layer, x, rng)


def test_parameters_that_another_library_unpickled(layer, x):
    """Read-only, in Fortran's order, in a foreign byte order, or of a subclass."""
    state, twin = layer.parameters.__getstate__(), make("lstm", num_layers=2, bidirectional=True)
    arrays = {name: np.asfortranarray(a).astype(">f4") for name, a in state["arrays"].items()}
    arrays["bias_ih_l0"] = arrays["bias_ih_l0"].view(np.recarray)
    for array in arrays.values():
        array.flags.writeable = False
    twin.parameters.__setstate__({"arrays": arrays})
    np.testing.assert_array_equal(twin(x)[0], layer(x)[0])
    with twin.parameters.edit() as p:
        p["weight_ih_l0"] *= 2
    np.testing.assert_array_equal(
        twin.parameters["weight_ih_l0"], 2 * layer.parameters["weight_ih_l0"]
    )


def test_tapes_keep_the_weights_they_were_made_with(layer, x, rng):
    d_output = normal(rng, (STEPS, BATCH, 10), "float32")
    want = layer.record(x).backward(d_output)
    tape = layer.record(x)
    with layer.parameters.edit() as p:
        for name in p:
            p[name] *= 2
    layer(x)
    got = tape.backward(d_output)
    np.testing.assert_array_equal(got.input, want.input)
    for a, b in zip(parts(got.state), parts(want.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, gradient in got.parameters.items():
        np.testing.assert_array_equal(gradient, want.parameters[name])
