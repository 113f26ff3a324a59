"""What `rnnfast.functional` refuses of CUDA arrays, before anything is computed."""

from __future__ import annotations

import sys

import fake_cupy
import numpy as np
import pytest
from fake_cupy import Foreign, on_device

import rnnfast
from rnnfast import _cuda, _cupy, functional
from rnnfast._cells import Weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("emulated_cupy")]

STEPS, BATCH, SIZE, HIDDEN = 6, 4, 3, 5


def wide(value):
    return value.astype("f8")


ROWS = 4 * HIDDEN
W_IH, W_HH, BIAS = (np.zeros(s, "f4") for s in ((ROWS, SIZE), (ROWS, HIDDEN), (ROWS,)))
HERE, THERE = on_device, lambda array: on_device(array, 1)
REFUSES = type(
    "Tensor", (), {"__cuda_array_interface__": property(lambda self: 1 / 0)}
)  # as torch's raises
PACKS = [
    (
        ("lstm", HERE(W_IH), W_HH),
        TypeError,
        "weight_hh: expected an array on CUDA device 0",
    ),
    (
        ("lstm", W_IH, HERE(W_HH)),
        TypeError,
        "weight_ih: expected an array on CUDA device 0",
    ),
    (
        ("lstm", HERE(W_IH), THERE(W_HH)),
        ValueError,
        "weight_hh: expected an array on CUDA device 0",
    ),
    (
        ("lstm", HERE(W_IH), [[1.0]]),
        TypeError,
        "weight_hh: expected an array on CUDA device 0",
    ),
    (
        ("lstm", HERE(W_IH), HERE(W_HH[1:])),
        ValueError,
        "weight_hh: expected shape (20, 5), ",
    ),
    (
        ("lstm", HERE(W_IH), HERE(W_HH), HERE(BIAS)),
        ValueError,
        "bias_hh: expected both biases",
    ),
    (
        ("lstm", *map(HERE, map(wide, (W_IH, W_HH)))),
        TypeError,
        "weight_ih: expected float32, ",
    ),
    (("lstm", HERE(W_IH), HERE(wide(W_HH))), TypeError, "weight_hh: expected float32, "),
    (
        ("lstm", HERE(W_IH), REFUSES()),
        TypeError,
        "weight_hh: expected an array, got Te",
    ),
    (
        ("lstm", Foreign(W_IH, mask=Foreign(W_IH)), HERE(W_HH)),
        TypeError,
        "weight_ih: expected an array, got Foreign: CuPy currently does not support masked",
    ),
    (
        ("gru_reset_before", HERE(W_IH[:15]), HERE(W_HH[:15])),
        ValueError,
        "cell: expected one that runs on a CUDA device, got gru_reset_before",
    ),
    (
        ("lstm", HERE(W_IH), HERE(W_HH[:, :2]), None, None, HERE(W_HH[:2])),
        ValueError,
        "weight_hr: expected None on a CUDA device, got an array",
    ),
]


@pytest.mark.parametrize("given, error, text", PACKS, ids=[p[2] for p in PACKS])
def test_errors_of_pack(given, error, text):
    with pytest.raises(error) as caught:
        functional.pack(*given)
    assert str(caught.value).startswith(text)


def test_other_precisions_are_the_hosts():
    text = r"^precision: expected float32 on a CUDA device, got bfloat16"
    with pytest.raises(ValueError, match=text):
        functional.pack("lstm", HERE(W_IH), HERE(W_HH), precision="bfloat16")


X, Y = np.zeros((STEPS, BATCH, SIZE), "f4"), np.zeros((STEPS, BATCH, HIDDEN), "f4")
H = Y[0]
FORWARDS = [
    ({"x": X}, TypeError, "x: expected an array on CUDA device 0, got one in the host's memory"),
    ({"x": THERE(X)}, ValueError, "x: expected an array on CUDA device 0, got one on device 1"),
    ({"x": None}, TypeError, "x: expected an array on CUDA device 0, got NoneType"),
    ({"x": HERE(X[0])}, ValueError, "x: expected shape (T, B, I) = (*, *, 3), got (4, 3)"),
    ({"x": HERE(wide(X))}, TypeError, "x: expected float32, got float64"),
    ({"h0": H}, TypeError, "h0: expected an array on CUDA device 0, got one in the host's memory"),
    ({"c0": HERE(H[1:])}, ValueError, "c0: expected shape (B, H) = (4, 5), got (3, 5)"),
    ({"reverse": 1}, TypeError, "reverse: expected a bool, got int"),
    (
        {"out": Y},
        TypeError,
        "out: expected an array on CUDA device 0, got one in the host's memory",
    ),
    ({"out": HERE(Y[1:])}, ValueError, "out: expected shape (T, B, W) = (6, 4, 5), got (5, 4, 5)"),
    ({"out": Foreign(Y, read_only=True)}, ValueError, "out: expected a writable array with unit "),
    (
        {"out": Foreign(Y.swapaxes(0, 1).copy().swapaxes(0, 1))},
        ValueError,
        "out: expected a wri",
    ),
]


@pytest.mark.parametrize("changed, error, text", FORWARDS, ids=[f[2] for f in FORWARDS])
def test_errors_of_forward(changed, error, text, emulated_library, monkeypatch):
    packed = functional.pack("lstm", HERE(W_IH), HERE(W_HH))
    monkeypatch.setattr(emulated_library, "forward", lambda *args: pytest.fail("it was computed"))
    with pytest.raises(error) as caught:
        functional.forward(**{"packed": packed, "x": HERE(X), **changed})
    assert str(caught.value).startswith(text)


INTO = Weights(*map(HERE, (W_IH, W_HH)))
BACKWARDS = [
    ({"dy": Y}, TypeError, "dy: expected an array on CUDA device 0, got one in the host's memory"),
    ({"dh": HERE(H[1:])}, ValueError, "dh: expected shape (B, W) = (4, 5), got (3, 5)"),
    ({"dc": HERE(wide(H))}, TypeError, "dc: expected float32, got float64"),
    (
        {"into": INTO._replace(weight_ih=W_IH)},
        TypeError,
        "into.weight_ih: expected an array on",
    ),
    (
        {"into": INTO._replace(weight_ih=Foreign(W_IH, read_only=True))},
        ValueError,
        "into.weight_ih: expected a writable contiguous array, got another",
    ),
    (
        {"into": INTO._replace(weight_hh=Foreign(np.zeros((ROWS, 9), "f4")[:, :HIDDEN]))},
        ValueError,
        "into.weight_hh: expected a writable contiguous array, got another",
    ),
]


@pytest.mark.parametrize("changed, error, text", BACKWARDS, ids=[b[2] for b in BACKWARDS])
def test_errors_of_backward(changed, error, text, emulated_library, monkeypatch):
    run = functional.forward(
        functional.pack("lstm", HERE(W_IH), HERE(W_HH)), HERE(X), training=True
    )
    monkeypatch.setattr(emulated_library, "backward", lambda *args: pytest.fail("it was computed"))
    with pytest.raises(error) as caught:
        run.backward(**{"dy": HERE(Y), **changed})
    assert str(caught.value).startswith(text)


def test_memory_that_is_also_read():
    packed = functional.pack("rnn_tanh", HERE(W_HH[:HIDDEN]), HERE(W_HH[:HIDDEN]))
    both = np.zeros((STEPS + 1, BATCH, HIDDEN), "f4")
    with pytest.raises(ValueError, match=r"^out: expected memory apart from x, got an overlap"):
        functional.forward(packed, Foreign(both[1:]), out=Foreign(both[:-1]))
    halves = np.zeros((2 * STEPS, BATCH, HIDDEN), "f4")
    functional.forward(packed, Foreign(halves[STEPS:]), out=Foreign(halves[:STEPS]))


def test_weights_and_inputs_of_both_kinds():
    packed = functional.pack("lstm", W_IH, W_HH)
    text = r"^x: expected an array in the host's memory, got one on a CUDA device"
    with pytest.raises(TypeError, match=text):
        functional.forward(packed, HERE(X))
    with pytest.raises(TypeError, match=text):
        rnnfast.LSTM(SIZE, HIDDEN)(HERE(X))


def test_without_cupy(monkeypatch):
    """Which arrays of the host never ask for."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    functional.forward(functional.pack("lstm", W_IH, W_HH), X)
    with pytest.raises(RuntimeError, match=r"^weight_ih: lies on a CUDA device, and needs CuPy: "):
        functional.pack("lstm", HERE(W_IH), HERE(W_HH))


def test_without_the_library(monkeypatch):
    monkeypatch.setattr(_cupy, "library", lambda: None)
    monkeypatch.setattr(_cuda, "describe", lambda version: "not built: as it happens")
    text = r"^weight_hh: lies on a CUDA device, and rnnfast's kernels: not built: as it happens"
    with pytest.raises(RuntimeError, match=text):
        functional.pack("lstm", W_IH, HERE(W_HH))


def test_a_device_that_there_is_no_code_for(emulator):
    emulator.use(has_code=False)
    text = r"^weight_ih: lies on CUDA device 1, and rnnfast's kernels do not run there: CUDA: an er"
    with pytest.raises(RuntimeError, match=text):
        functional.pack("lstm", THERE(W_IH), THERE(W_HH))
    emulator.use()
    functional.pack("lstm", HERE(W_IH), HERE(W_HH))


def test_the_stand_in_has_nothing_that_cupy_lacks(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy")
    cupy = pytest.importorskip("cupy")
    assert set(fake_cupy.__all__) <= set(dir(cupy))
    assert set(dir(fake_cupy.ndarray)) - {"__dict__", "__weakref__"} <= set(dir(cupy.ndarray))
    assert set(vars(fake_cupy.cuda)) <= set(dir(cupy.cuda))
    assert set(vars(fake_cupy.cuda.runtime)) <= set(dir(cupy.cuda.runtime))
