"""`rnnfast.functional` on CUDA arrays: an emulated device, and a stand-in for CuPy."""

from __future__ import annotations

import fake_cupy
import numpy as np
import pytest
from fake_cupy import Foreign, on_device
from tolerances import REFERENCE, assert_close

from rnnfast import _backend, functional
from rnnfast._cells import CELLS, Weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("emulated_cupy")]

NAMES = [name for name in CELLS if name != "gru_reset_before"]
STEPS, BATCH, SIZE, HIDDEN = 6, 4, 3, 5


def weights_of(rng, name, bias=True, size=SIZE, hidden=HIDDEN):
    rows = len(CELLS[name].gates) * hidden
    shapes = [(rows, size), (rows, hidden), *([(rows,), (rows,)] if bias else [])]
    return [(0.5 * rng.standard_normal(shape)).astype("f4") for shape in shapes]


def arguments(rng, name, shape=(STEPS, BATCH)):
    """x, and the states by name."""
    states = {f"{s}0": rng.standard_normal((shape[1], HIDDEN)).astype("f4") for s in "hc"}
    states = {s: value for s, value in states.items() if s[0] in CELLS[name].states}
    return rng.standard_normal((*shape, SIZE)).astype("f4"), states


def wide(value):
    return None if value is None else value.astype("f8")


def gradients_of(rng, run):
    """Random gradients of y, h and c, as NumPy's float32."""
    wanted = {"dy": run.y, "dh": run.h, "dc": run.c}
    shapes = {name: value.shape for name, value in wanted.items() if value is not None}
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in shapes.items()}


def assert_like(got, want, which):
    """CuPy's arrays beside those of the reference in float64."""
    for name, right in want.items():
        assert (got[name] is None) == (right is None), name
        if right is not None:
            assert type(got[name]) is fake_cupy.ndarray and got[name].dtype == "f4"
            assert_close(got[name].get(), right, REFERENCE["float32", which], name)


def results(run):
    return {"y": run.y, "h": run.h, "c": run.c}


def all_of(grads):
    return {"x": grads.x, "h0": grads.h0, "c0": grads.c0, **grads.weights._asdict()}


MASKS = ["even", "ragged", "resets", "both"]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("with_state", [False, True], ids=["zeros", "state"])
@pytest.mark.parametrize("name", NAMES)
def test_results_and_gradients(name, with_state, reverse, masks, rng, keep_backend):
    _backend.use("numpy")
    bias = with_state == (masks in ("even", "both"))
    weights = weights_of(rng, name, bias)
    x, states = arguments(rng, name)
    states = states if with_state else {}
    options = {"reverse": reverse, "training": True}
    if masks in ("ragged", "both"):
        options["lengths"] = np.array([STEPS, 0, 2, 5])
    if masks in ("resets", "both"):
        options["reset"] = rng.random((STEPS, BATCH)) < 0.3
        options["reset"][-1, 0] = True
    got = functional.forward(
        functional.pack(name, *map(on_device, weights)),
        on_device(x),
        **{s: on_device(value) for s, value in states.items()},
        **options,
    )
    want = functional.forward(
        functional.pack(name, *map(wide, weights)),
        wide(x),
        **{s: wide(value) for s, value in states.items()},
        **options,
    )
    assert_like(results(got), results(want), "forward")
    at = gradients_of(rng, want)
    d_got = got.backward(**{s: on_device(value) for s, value in at.items()})
    d_want = want.backward(**{s: wide(value) for s, value in at.items()})
    assert_like(all_of(d_got), all_of(d_want), "backward")


@pytest.mark.parametrize("shape", [(0, BATCH), (STEPS, 0)], ids=["no steps", "no rows"])
@pytest.mark.parametrize("with_state", [False, True])
def test_nothing_to_run(shape, with_state, rng):
    weights = weights_of(rng, "lstm")
    x, states = arguments(rng, "lstm", shape)
    states = states if with_state else {}
    packs = functional.pack("lstm", *map(on_device, weights)), functional.pack("lstm", *weights)
    got = functional.forward(
        packs[0], on_device(x), **{s: on_device(v) for s, v in states.items()}, training=True
    )
    want = functional.forward(packs[1], x, **states, training=True)
    assert_like(results(got), results(want), "forward")
    at = gradients_of(rng, want)
    d_got = got.backward(**{s: on_device(value) for s, value in at.items()})
    assert_like(all_of(d_got), all_of(want.backward(**at)), "backward")


def test_masks_from_the_device(rng, emulated_library):
    packed = functional.pack("gru", *map(on_device, weights_of(rng, "gru")))
    x, _ = arguments(rng, "gru")
    lengths, reset = np.array([1, 6, 3, 0]), rng.random((STEPS, BATCH)) < 0.3
    want = functional.forward(packed, on_device(x), lengths=lengths.tolist(), reset=reset)
    got = functional.forward(
        packed, on_device(x), lengths=on_device(lengths), reset=on_device(reset)
    )
    np.testing.assert_array_equal(got.y.get(), want.y.get())
    for changed, error, text in [
        ({"lengths": on_device(lengths + 1)}, ValueError, "lengths: expected values in 0..T"),
        ({"lengths": on_device(lengths[1:])}, ValueError, r"lengths: expected shape \(B,\) = "),
        ({"lengths": on_device(lengths * 1.0)}, TypeError, "lengths: expected integers, got flo"),
        ({"reset": on_device(reset[1:])}, ValueError, r"reset: expected shape \(T, B\) = "),
        ({"reset": on_device(reset * 1)}, TypeError, "reset: expected bool, got int64"),
        ({"reset": on_device(reset, 1)}, ValueError, "reset: expected an array on CUDA device 0"),
    ]:
        with pytest.raises(error, match=f"^{text}"):
            functional.forward(packed, on_device(x), **changed)


def test_out_and_into(rng):
    weights = weights_of(rng, "lstm")
    packed = functional.pack("lstm", *map(on_device, weights))
    x, states = arguments(rng, "lstm")
    given = on_device(x), *map(on_device, states.values())
    want = functional.forward(packed, *given, training=True)
    out = fake_cupy.empty((STEPS, BATCH, HIDDEN), "f4")
    got = functional.forward(packed, *given, out=out, training=True)
    assert got.y is out
    np.testing.assert_array_equal(out.get(), want.y.get())
    dy = fake_cupy.ndarray(rng.standard_normal(out.shape).astype("f4"))
    grads = want.backward(dy, want_dx=False)
    assert grads.x is None
    before = [rng.standard_normal(w.shape).astype("f4") for w in weights]
    into = Weights(*map(on_device, before))
    added = got.backward(dy, into=into).weights
    for total, start, gradient in zip(into[:4], before, grads.weights[:4], strict=True):
        np.testing.assert_allclose(total.get(), start + gradient.get(), rtol=1e-5, atol=1e-5)
    assert added == into


def test_arrays_of_other_libraries(rng):
    """On the memory where they are, once the stream is done that their interface names."""
    weights = weights_of(rng, "gru")
    x, states = arguments(rng, "gru")
    want = functional.forward(
        functional.pack("gru", *map(on_device, weights)), on_device(x), on_device(states["h0"])
    )
    packed = functional.pack("gru", *(Foreign(w, stream=7) for w in weights))
    out = np.zeros((STEPS, BATCH, HIDDEN), "f4")
    swapped = Foreign(np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1), stream=8)
    got = functional.forward(
        packed, swapped, Foreign(states["h0"], stream=None), out=Foreign(out), training=True
    )
    assert type(got.y) is fake_cupy.ndarray
    np.testing.assert_array_equal(out, want.y.get())
    assert set(fake_cupy.waited_for) == {7, 8}
    into = Weights(*(np.zeros_like(w) for w in weights))
    dy = Foreign(rng.standard_normal(out.shape).astype("f4"))
    found = got.backward(dy, into=Weights(*(map(Foreign, into[:4])))).weights
    wanted = got.backward(dy).weights
    for total, own, gradient in zip(into[:4], found, wanted, strict=False):
        np.testing.assert_array_equal(total, gradient.get())
        np.testing.assert_array_equal(own.get(), gradient.get())


def test_the_current_stream_is_the_one(rng, emulated_library, monkeypatch):
    seen = []
    for name in ("forward", "backward"):
        run = getattr(emulated_library, name)
        monkeypatch.setattr(
            emulated_library, name, lambda own, a, run=run: [seen.append(own.stream), run(own, a)]
        )
    packed = functional.pack("rnn_tanh", *map(on_device, weights_of(rng, "rnn_tanh")))
    x = on_device(arguments(rng, "rnn_tanh")[0])
    with fake_cupy.cuda.ExternalStream(1234):
        run = functional.forward(packed, x, training=True)
    with fake_cupy.cuda.ExternalStream(5678):
        run.backward(run.y)
    functional.forward(packed, x)
    assert seen == [1234, 5678, None]  # None: 0, the default stream


def test_another_device_than_the_current_one(rng):
    """Which then is current for as long as a call takes, and no longer."""
    weights = weights_of(rng, "lstm")
    x, states = arguments(rng, "lstm")
    packed = functional.pack("lstm", *(on_device(w, 1) for w in weights))
    given = on_device(x, 1), *(on_device(s, 1) for s in states.values())
    options = {"lengths": [6, 2, 0, 5], "reset": np.eye(STEPS, BATCH) > 0, "reverse": True}
    run = functional.forward(packed, *given, **options, training=True)
    grads = run.backward(run.y, run.h, run.c)
    found = [*results(run).values(), *all_of(grads).values()]
    assert {value.device.id for value in found if value is not None} == {1}
    assert fake_cupy._current == [0]
    foreign = Foreign(x)
    fake_cupy.devices_of[x.ctypes.data] = 1
    again = functional.forward(packed, foreign, *given[1:], **options)
    np.testing.assert_array_equal(again.y.get(), run.y.get())


def test_packing_takes_a_snapshot(rng):
    weights = [on_device(w) for w in weights_of(rng, "gru")]
    packed = functional.pack("gru", *weights)
    x = on_device(arguments(rng, "gru")[0])
    before = functional.forward(packed, x).y
    for w in weights:
        w._host[...] = 0
    np.testing.assert_array_equal(functional.forward(packed, x).y.get(), before.get())
