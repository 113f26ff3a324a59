"""What users may give where an array or a name is expected: classes of their own, None, words."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import rnnfast
from rnnfast import _parameters, _validate, functional


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __array__(self, *args, **kwargs):
        raise self.error


class RaisesAtOnce:
    """Its attributes do too."""

    def __getattr__(self, name):
        raise ZeroDivisionError(name)


@pytest.fixture
def layer():
    return rnnfast.LSTM(2, 3, num_layers=2, seed=0)


@pytest.mark.parametrize("error", [KeyError("k"), OSError("o"), ZeroDivisionError("z")])
def test_what_a_users_class_raises_is_a_type_error(layer, error):
    text = f"x: expected an array, got Raises: {error}"
    with pytest.raises(TypeError) as caught:
        layer(Raises(error))
    assert str(caught.value) == text
    assert caught.value.__cause__ is error
    with pytest.raises(TypeError, match="x: expected an array, got RaisesAtOnce: "):
        layer(RaisesAtOnce())


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()])
def test_what_is_no_fault_of_the_array_stays(layer, error):
    with pytest.raises(type(error)) as caught:
        layer(Raises(error))
    assert caught.value is error


def test_none_is_no_array(layer):
    x = np.zeros((1, 2), np.float32)
    cases = {
        "x": lambda: layer(None),
        "state[0]": lambda: layer(x, (None, np.zeros((2, 3), np.float32))),
        "bias_ih_l0": lambda: layer.parameters.update(bias_ih_l0=None),
        "weight_ih": lambda: functional.pack("gru", None, x),
        "weight_hh": lambda: functional.pack("gru", np.zeros((9, 2), np.float32), None),
        "state_dict: bias_ih_l0": lambda: layer.load_state_dict({"bias_ih_l0": None}, strict=False),
    }
    for name, call in cases.items():
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"{name}: expected an array, got None"


class TestUnknownName:
    TEXT = "parameters: expected one of weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, "

    def test_reading_and_assigning_raise_both(self, layer):
        with layer.parameters.edit() as draft:
            for mapping in (layer.parameters, draft):
                for error in (KeyError, ValueError):
                    with pytest.raises(error) as caught:
                        mapping["nope"]
                    text = str(caught.value)
                    assert text.startswith(self.TEXT) and text.endswith(", got 'nope'")
                    with pytest.raises(error) as caught:
                        mapping["nope"] = None
                    assert str(caught.value) == text

    def test_the_methods_of_a_mapping_work(self, layer):
        parameters = layer.parameters
        assert parameters.get("nope") is None and parameters.get("nope", 7) == 7
        assert "nope" not in parameters and "bias_ih_l0" in parameters
        assert parameters.pop("nope", 7) == 7
        assert parameters.get("bias_ih_l0") is parameters["bias_ih_l0"]


def test_parameters_compare_by_identity(layer):
    other = rnnfast.LSTM(2, 3, num_layers=2, seed=0)
    assert layer.parameters == layer.parameters
    assert layer.parameters != other.parameters
    assert len({layer.parameters, other.parameters, layer.parameters}) == 2


def test_values_past_the_range_of_float32_load_in_silence(layer):
    given = np.full(12, 1e300)
    given[:2] = -1e300, 1e-300
    with warnings.catch_warnings(), np.errstate(all="raise"):
        warnings.simplefilter("error")
        assert layer.load_state_dict({"bias_ih_l0": given}, strict=False) is None
    got = layer.parameters["bias_ih_l0"]
    assert got[0] == -np.inf and got[1] == 0 and (got[2:] == np.inf).all()


def test_what_a_tape_shows_stays(layer):
    tape = layer.record(np.zeros((1, 2), np.float32))
    for name in ("output", "state"):
        with pytest.raises(AttributeError):
            setattr(tape, name, None)


class TestCopiesWithinAnEditBlock:
    """How many parameters a reading copies from the block's arrays, by counting."""

    @pytest.fixture
    def copied(self, monkeypatch):
        names: list[str] = []
        store = _parameters._Arrays._store

        def count(self, values):
            names.extend(values)
            store(self, values)

        monkeypatch.setattr(_parameters._Arrays, "_store", count)
        return names

    def test_a_call_copies_each_once(self, layer, copied):
        x = np.ones((1, 2), np.float32)
        with layer.parameters.edit():
            copied.clear()
            layer(x)
            assert sorted(copied) == sorted(layer.parameters)

    def test_a_reading_copies_what_is_read(self, layer, copied):
        with layer.parameters.edit() as draft:
            draft["bias_hh_l1"][...] = 3
            copied.clear()
            assert (layer.parameters["bias_hh_l1"] == 3).all()
            assert copied == ["bias_hh_l1"]
            copied.clear()
            layer.state_dict()
            assert sorted(copied) == sorted(layer.parameters)

    def test_an_update_in_place_copies_nothing(self, layer, copied):
        with layer.parameters.edit() as draft:
            copied.clear()
            draft["bias_hh_l1"] -= 1
            assert not copied
            want = draft["bias_hh_l1"].copy()
        np.testing.assert_array_equal(layer.parameters["bias_hh_l1"], want)


def test_the_dtype_is_told_before_the_number_of_axes():
    for value in (None, "a", 1.0, [[1.0, 2.0]], np.zeros(7)):
        with pytest.raises(TypeError, match=r"^x: expected "):
            rnnfast.GRUCell(2, 3)(value)
    assert _validate.of_dtype("x", np.zeros(2, ">f4"), np.dtype("f4")).dtype == ">f4"
