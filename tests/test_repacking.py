"""Weights that change are packed again as they were first: to the same bits, or not at all."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from oracle import make, normal

from rnnfast import _backend, functional
from rnnfast._cells import CELLS, Sizes, Weights, weight_shapes
from rnnfast._low_precision import FORMATS

SIZES = Sizes(5, 20, 0)
T, B = 4, 3


@pytest.fixture(autouse=True)
def _native(native):
    """All of this is about the native backend."""


def weights(rng, cell, sizes, dtype, bias):
    shapes = weight_shapes(CELLS[cell], sizes, bias)
    return Weights(**{name: normal(rng, shape, dtype) for name, shape in shapes.items()})


def there(own):
    return tuple(w for w in own if w is not None)


def outputs(cell, sizes, own, pack, x, format_name=None):
    """What a pass over x gives with a pack of the weights."""
    kind, bias = CELLS[cell], own.bias_ih is not None
    backend = _backend.current()
    packed = functional.Packed(kind, sizes, x.dtype, bias, format_name, backend, pack)
    run = functional.forward(packed, x)
    return run.y, run.h, *(() if run.c is None else (run.c,))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
def test_has_the_bits_of_a_first_pack(rng, cell, dtype, bias):
    backend, kind = _backend.current(), CELLS[cell]
    x = normal(rng, (T, B, SIZES.input), dtype)
    projected = SIZES._replace(projection=3)
    for sizes in [SIZES, *([projected] if kind.projects else [])]:
        old, new = (weights(rng, cell, sizes, dtype, bias) for _ in range(2))
        first = backend.pack(kind, old)
        before = outputs(cell, sizes, old, first, x)
        (again,) = backend.repack([first], there(new))
        got = outputs(cell, sizes, new, again, x)
        want = outputs(cell, sizes, new, backend.pack(kind, new), x)
        assert all(map(np.array_equal, got, want))
        assert not np.array_equal(got[0], before[0])
        # What others run on is as it was.
        assert all(map(np.array_equal, outputs(cell, sizes, old, first, x), before))


@pytest.mark.parametrize("format_name", FORMATS)
def test_keeps_its_format(rng, format_name):
    backend, kind = _backend.current(), CELLS["gru"]
    x = normal(rng, (T, B, SIZES.input), "float32")
    old, new = (weights(rng, "gru", SIZES, "float32", True) for _ in range(2))
    (again,) = backend.repack([backend.pack(kind, old, format_name)], there(new))
    got = outputs("gru", SIZES, new, again, x, format_name)
    first = backend.pack(kind, new, format_name)
    assert all(map(np.array_equal, got, outputs("gru", SIZES, new, first, x, format_name)))
    plain = outputs("gru", SIZES, new, backend.pack(kind, new), x)
    assert not np.array_equal(got[0], plain[0])


@pytest.mark.parametrize("cell", CELLS)
def test_borrows_where_those_were_borrowed(rng, cell):
    backend, kind = _backend.current(), CELLS[cell]
    x = normal(rng, (1, 1, SIZES.input), "float32")
    old, new = (weights(rng, cell, SIZES, "float32", True) for _ in range(2))
    lent = there(weights(rng, cell, SIZES, "float32", True))
    for to, value in zip(lent, there(new), strict=True):
        to[...] = value
    owner = weakref.ref(lent[1])
    (again,) = backend.repack([backend.borrow(kind, old)], lent)
    want = outputs(cell, SIZES, new, backend.pack(kind, new), x)
    assert all(map(np.array_equal, outputs(cell, SIZES, new, again, x), want))
    lent[0][...] = new.weight_ih[...] = 0  # which shows, as nothing was packed
    del lent, to
    gc.collect()
    assert owner() is not None  # kept by what reads it
    want = outputs(cell, SIZES, new, backend.pack(kind, new), x)
    assert all(map(np.array_equal, outputs(cell, SIZES, new, again, x), want))
    del again
    assert owner() is None


def test_takes_the_weights_of_several_layers_in_turn(rng):
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 3}
    old, new = (make("lstm", 5, 7, seed=seed, **options)._packs().packs for seed in (0, 1))
    parameters = make("lstm", 5, 7, seed=1, **options).state_dict()
    made = _backend.current().repack([p.weights for p in old], tuple(parameters.values()))
    assert len(made) == 4
    for before, weights, after in zip(old, made, new, strict=True):
        x = normal(rng, (T, B, before.sizes.input), "float32")
        got = functional.forward(dataclasses.replace(before, weights=weights), x)
        assert np.array_equal(got.y, functional.forward(after, x).y)
        assert not np.array_equal(got.y, functional.forward(before, x).y)


def test_refuses_what_does_not_fit(rng):
    backend, kind = _backend.current(), CELLS["lstm"]
    own = weights(rng, "lstm", SIZES, "float32", True)
    pack, right = backend.pack(kind, own), there(own)
    w_ih, w_hh, b_ih, b_hh = right
    assert len(backend.repack([pack], right)) == 1
    at = np.zeros(w_ih.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(w_ih.shape)
    for wrong in [
        (),
        right[:3],
        (*right, b_ih),
        (w_hh, w_ih, b_ih, b_hh),
        (w_ih, w_hh, w_hh, b_hh),
        (w_ih[:-4], w_hh, b_ih, b_hh),
        (w_ih[:, ::-1], w_hh, b_ih, b_hh),
        (np.asfortranarray(w_ih), w_hh, b_ih, b_hh),
        (at, w_hh, b_ih, b_hh),
        (w_ih.astype("float64"), w_hh, b_ih, b_hh),
        (w_ih.astype(w_ih.dtype.newbyteorder()), w_hh, b_ih, b_hh),
        (w_ih, w_hh, None, None),
        (w_ih.tolist(), w_hh, b_ih, b_hh),
    ]:
        assert backend.repack([pack], wrong) is None
        assert backend.repack([backend.borrow(kind, own)], wrong) is None
    assert backend.repack([], ()) == []
    assert backend.repack([pack, pack], right) is None
    made = iter([pack])  # what gives packs that nobody else holds
    for wrong in [([None], right), ([pack], list(right)), ([own], right), (made, right)]:
        with pytest.raises(TypeError):
            backend.repack(*wrong)
