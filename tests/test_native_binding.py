"""The compiled module called directly: what it can't run safely it refuses, and writes nothing.

`functional` gives it only what is right; these are the checks behind that. The calls run in a
process of their own, so that a crash is a failure like any other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
from subprocesses import TESTS, python

from rnnfast import _backend
from rnnfast._cells import CELLS, DTYPES, Sizes, weight_shapes

if not _backend.native_is_installed():
    pytest.skip("the compiled module is missing", allow_module_level=True)

STEPS, BATCH, SIZES = 6, 3, Sizes(4, 5, 0)
SIZED = {"plain": SIZES, "projected": Sizes(4, 5, 2), "longer": Sizes(4, 6, 0)}


class Pass:
    """Arguments of `pack`, `forward` and `backward` that fit, by name."""

    def __init__(self, cell="lstm", sizes=SIZES, dtype="float32", steps=STEPS, batch=BATCH):
        rng = np.random.default_rng(4)
        kind, width, hidden = CELLS[cell], sizes.output, sizes.hidden

        def array(*shape):
            return rng.standard_normal(shape).astype(dtype)

        self.cell, self.has_c = cell, "c" in kind.states
        shapes = weight_shapes(kind, sizes, bias=True)
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
        self.weights = {n: array(*shapes[n]) if n in shapes else None for n in names}

        def c():
            return array(batch, hidden) if self.has_c else None

        self.forward = {
            "x": array(steps, batch, sizes.input),
            "h0": array(batch, width),
            "c0": c(),
            "lengths": np.full(batch, steps, np.int64),
            "reset": np.zeros((steps, batch), bool),
            "reverse": False,
            "y": array(steps, batch, width),
        }
        self.last = {"hn": array(batch, width), "cn": c()}
        self.gradients = {
            "dy": array(steps, batch, width),
            "dhn": array(batch, width),
            "dcn": c(),
            "dx": array(steps, batch, sizes.input),
            "dh0": array(batch, width),
            "dc0": c(),
            **{n: None if w is None else np.zeros_like(w) for n, w in self.weights.items()},
        }

    def changed(self, name, value):
        """The same with one argument replaced."""
        other = object.__new__(Pass)
        for key, own in vars(self).items():
            replace = isinstance(own, dict) and name in own and own is not self.weights
            setattr(other, key, {**own, name: value} if replace else own)
        return other

    def pack(self, native, **changed):
        return native.pack(self.cell, *{**self.weights, **changed}.values())

    def run(self, native, packed, training=True):
        return native.forward(packed, *self.forward.values(), *self.last.values(), training)

    def run_back(self, native, packed, saved):
        native.backward(packed, saved, *self.forward.values(), *self.gradients.values())


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


WRONG = {
    "another dtype": lambda a: a.astype("f8" if a.dtype != np.float64 else "f4"),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")) if a.itemsize > 1 else a.tolist(),
    "list": lambda a: a.tolist(),
    "scalar": lambda a: a.flat[0],
    "object": lambda a: object(),
    "short": lambda a: a[:-1],
    "long": lambda a: np.concatenate([a, a]),
    "more axes": lambda a: a[None],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "one number": lambda a: np.broadcast_to(a.flat[0], a.shape),
    "misaligned": lambda a: misaligned(a) if a.itemsize > 1 else a[..., None],
}
WRITTEN = ["y", "hn", "cn", "dx", "dh0", "dc0", *Pass().weights]
# What a call can't do without. Biases are not among them: a layer may have none.
NEEDED = ["x", "y", "hn", "cn", "dh0", "dc0", "weight_ih", "weight_hh", "weight_hr"]


def refused(call, *arguments, **options) -> str | None:
    """The class of the error that a call gives, if it is one of those that a binding may give."""
    try:
        call(*arguments, **options)
    except (TypeError, ValueError) as error:
        return type(error).__name__
    return None


def wrong_arguments(native):
    """Whether each wrong argument was refused, by what it is."""
    for label, sizes in SIZED.items():
        good = Pass(sizes=sizes)
        packed = good.pack(native)
        saved = good.run(native, packed)
        arrays = {**good.forward, **good.last, **good.gradients}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                continue
            values = {how: make(array) for how, make in WRONG.items()}
            if name in WRITTEN:
                values["read-only"] = read_only(array)
            if name in NEEDED:
                values["None"] = None
            for how, value in values.items():
                bad = good.changed(name, value)
                key = f"{label} {name} {how}"
                if name in good.gradients:
                    yield key, refused(bad.run_back, native, packed, saved)
                else:
                    yield key, refused(bad.run, native, packed)
                if name in good.weights and how != "read-only":
                    yield f"pack {key}", refused(good.pack, native, **{name: value})
    good = Pass()
    packed = good.pack(native)
    saved = good.run(native, packed)
    for lengths in ([-1, 0, 1], [0, 0, STEPS + 1], [2**63 - 1, 0, 0], [-(2**63), 0, 0]):
        bad = good.changed("lengths", np.array(lengths))
        yield f"lengths {lengths}", refused(bad.run, native, packed)
        yield (
            f"lengths {lengths} back",
            refused(bad.run_back, native, packed, saved),
        )
    for dtype in ("u8", "i4", "f8", "?"):
        bad = good.changed("lengths", np.ones(BATCH, dtype))
        yield f"lengths {dtype}", refused(bad.run, native, packed)


def wrong_objects(native):
    """Weights and saved states of other layers, and what is neither."""
    good = Pass()
    packed = good.pack(native)
    others = {
        "another cell": Pass("rnn_tanh"),
        "another dtype": Pass(dtype="float64"),
        "fewer steps": Pass(steps=1),
        "more steps": Pass(steps=STEPS + 1),
        "smaller batch": Pass(batch=1),
        "wider": Pass(sizes=Sizes(4, 40, 0)),
        "wider and projected": Pass(sizes=Sizes(4, 40, 2)),
        "shorter sequences": Pass().changed("lengths", np.array([1, 0, 2])),
    }
    for label, other in others.items():
        saved = other.run(native, other.pack(native))
        yield f"saved of {label}", refused(good.run_back, native, packed, saved)
    rnn = Pass("rnn_tanh")  # whose passes save nothing but y
    others_of_rnn = {
        "another cell": Pass(),
        "fewer steps": Pass("rnn_tanh", steps=1),
        "wider": Pass("rnn_tanh", sizes=Sizes(4, 40, 0)),
    }
    for label, other in others_of_rnn.items():
        saved = other.run(native, other.pack(native))
        yield f"an RNN's of {label}", refused(rnn.run_back, native, rnn.pack(native), saved)
    saved = good.run(native, packed)
    for label in ("another dtype", "wider", "wider and projected"):
        foreign = others[label].pack(native)
        yield f"packed of {label}", refused(good.run, native, foreign)
        yield f"packed of {label} back", refused(good.run_back, native, foreign, saved)
    for nothing in (None, 1, "saved", packed):
        yield f"saved {nothing!r:.8}", refused(good.run_back, native, packed, nothing)
    for nothing in (None, 1, "packed", saved):
        yield f"packed {nothing!r:.8}", refused(good.run, native, nothing)
    for cls in (native.Packed, native.Saved, native.Stack, native.Run):
        yield f"{cls.__name__}()", refused(cls)
    yield "unknown cell", refused(native.pack, "lstm2", *good.weights.values())
    yield "one bias", refused(good.pack, native, bias_ih=None)
    yield "projection", refused(Pass("gru").pack, native, weight_hr=np.zeros((2, 5), "f4"))


def run_in_a_process(which: str) -> dict[str, str | None]:
    """The results of `wrong_arguments` or `wrong_objects`, up to a crash if there is one."""
    code = (
        "import json, sys; from rnnfast import _native; import test_native_binding as this\n"
        f"for key, error in this.{which}(_native): print(json.dumps([key, error]), flush=True)"
    )
    code = f"import sys; sys.path[:0] = {[str(TESTS), *sys.path]!r}\n{code}"
    done = python(code, RNNFAST_ISA=os.environ.get("RNNFAST_ISA"))
    results = dict(map(json.loads, done.stdout.splitlines()))
    last = list(results)[-1:]
    assert done.returncode == 0, f"ended with {done.returncode} after {last}: {done.stderr[-500:]}"
    return results


@pytest.mark.parametrize("which, least", [("wrong_arguments", 500), ("wrong_objects", 25)])
def test_what_does_not_fit_is_refused(which, least):
    results = run_in_a_process(which)
    assert len(results) >= least
    assert [key for key, error in results.items() if error is None] == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_refused_call_writes_nothing(cell, dtype):
    native = importlib.import_module(_backend.NATIVE_MODULE)
    good = Pass(cell, dtype=dtype)
    packed = good.pack(native)
    saved = good.run(native, packed)
    written = {**good.forward, **good.last, **good.gradients}
    before = {n: a.copy() for n, a in written.items() if isinstance(a, np.ndarray)}
    with pytest.raises(ValueError, match=r"^h0: expected shape"):
        good.changed("h0", np.zeros((1, 1), dtype)).run(native, packed)
    with pytest.raises(ValueError, match=r"^bias_hh: expected shape"):
        good.changed("bias_hh", np.zeros(1, dtype)).run_back(native, packed, saved)
    for name, array in before.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)
