"""Weights that the kernels read where they are: the bits of a pack, and never a stale one."""

from __future__ import annotations

import ctypes
import gc
import mmap
import weakref
from itertools import product

import numpy as np
import pytest
from oracle import assert_same_bits, normal, parts

import rnnfast
from rnnfast import _backend
from rnnfast._cells import CELLS, Sizes, Weights, weight_shapes

# Around the lanes of every ISA, with and without a rest.
SIZES = [(1, 1), (5, 3), (16, 16), (33, 17), (16, 33), (5, 64)]
# The fewest rows of a register tile, which the kernels take on every ISA.
FEW = 3


@pytest.fixture(autouse=True)
def _native(native, keep_threads):
    """All of this is about the native backend."""
    yield
    native.force_schedule("none")


def shapes(cell, inputs, hidden, *, projection=0, bias=True, layers=1, directions=1):
    """Those of the parameters of each layer and direction, by name."""
    for layer in range(layers):
        below = directions * (projection or hidden) if layer else inputs
        yield from [weight_shapes(CELLS[cell], Sizes(below, hidden, projection), bias)] * directions


class Pair:
    """The same weights in two stacks, packed and borrowed."""

    def __init__(self, cell, inputs, hidden, dtype, rng, *, make=None, **options):
        backend = _backend.current()
        self.cell, self.dtype, self.rng, self.inputs = cell, dtype, rng, inputs
        self.width, self.hidden = options.get("projection") or hidden, hidden
        self.directions = options.get("directions", 1)
        make = make or (lambda shape: normal(rng, shape, dtype) / 2)
        self.weights = [
            Weights(**{name: make(shape) for name, shape in own.items()})
            for own in shapes(cell, inputs, hidden, **options)
        ]
        self.parameters = [a for own in self.weights for a in own if a is not None]
        self.backend = backend
        self.packed, self.borrowed = self.stack(backend.pack), self.stack(backend.borrow)

    def stack(self, hold):
        names = [
            tuple(None if a is None else n for n, a in zip(Weights._fields, own, strict=True))
            for own in self.weights
        ]
        packs = [hold(CELLS[self.cell], own) for own in self.weights]
        return self.backend.stack(packs, names, self.directions, False, False)

    def inputs_of(self, batch, steps=1):
        """x and a state."""
        rows = (len(self.weights), batch)
        h, c = (normal(self.rng, (*rows, n), self.dtype) for n in (self.width, self.hidden))
        state = (h, c) if CELLS[self.cell].states[1:] else h
        return normal(self.rng, (steps, batch, self.inputs), self.dtype), state

    def assert_same(self, batch):
        """Every result of every pass, to the bit; and a tape of one goes with the other."""
        x, state = self.inputs_of(batch)
        wanted = (True,) * (2 + len(self.parameters))
        results = []
        for first, second in product((self.packed, self.borrowed), repeat=2):
            output, last = first.infer(x, state)
            y, last_too, tape = first.forward(x, state, None, 0)
            assert_same_bits(output, y)
            rng = np.random.default_rng(3)
            d_output = normal(rng, y.shape, self.dtype)
            d_state = tuple(normal(rng, s.shape, self.dtype) for s in parts(last))
            d_state = d_state if isinstance(last, tuple) else d_state[0]
            gradients = second.backward(x, state, None, y, tape, d_output, d_state, wanted, 0)
            dx, d_initial, d_parameters = gradients
            assert [g.shape for g in d_parameters] == [p.shape for p in self.parameters]
            results.append(
                [output, *parts(last), *parts(last_too), tape, dx, *parts(d_initial), *d_parameters]
            )
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert_same_bits(a, b)


STACKS = {
    "one": {},
    "no_bias": {"bias": False},
    "both_directions": {"directions": 2, "layers": 2},
    "layers": {"layers": 3},
}


@pytest.mark.parametrize("batch", [1, FEW])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_a_pack(cell, sizes, batch, dtype, rng):
    Pair(cell, *sizes, dtype, rng).assert_same(batch)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_a_pack_in_stacks(cell, stack, dtype, rng):
    Pair(cell, 5, 17, dtype, rng, **STACKS[stack]).assert_same(2)


@pytest.mark.parametrize("projection", [1, 5, 17])
def test_the_bits_of_a_pack_with_a_projection(projection, dtype, rng):
    Pair("lstm", 5, 33, dtype, rng, projection=projection, layers=2).assert_same(2)


@pytest.mark.parametrize("schedule", ["shards", "units", "directions", "layers"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_a_pack_on_two_threads(cell, schedule, dtype, rng, native):
    rnnfast.set_num_threads(2)
    native.force_schedule(schedule)
    stack = {"directions": {"directions": 2}, "layers": {"layers": 2}}.get(schedule, {})
    pair = Pair(cell, 16, 130, dtype, rng, **stack)  # panels enough to share out
    pair.assert_same(FEW)
    assert native.last_schedule() == schedule


LARGE = {
    "in memory": ("rnn_tanh", 5, 1500),  # 8 MB and more, of which what comes next is fetched
    "gates in memory": ("lstm", 530, 1030),
    "rows that collide": ("rnn_tanh", 512, 512),  # in L1, two columns at a time
    "gates that collide": ("gru", 512, 530),
}


@pytest.mark.parametrize("batch", [1, FEW])
@pytest.mark.parametrize("layer", LARGE.values(), ids=LARGE)
def test_the_bits_of_a_pack_of_a_large_matrix(layer, batch, rng):
    cell, inputs, hidden = layer
    pair = Pair(cell, inputs, hidden, "float32", rng)
    x, state = pair.inputs_of(batch)
    for given in (state, None):
        assert_same_bits(pair.borrowed.infer(x, given)[0], pair.packed.infer(x, given)[0])


SPECIAL = {"ordinary": None, "signs": None, "infinite": np.inf, "nan": np.nan}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("sizes", [*SIZES, (2, 100)], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_a_pack_without_a_state(cell, sizes, special, dtype, rng):
    """R times zeros is -0 where all of a row is negative, and NaN where it is not finite."""
    pair = Pair(cell, *sizes, dtype, rng)
    for own in pair.weights:
        rows = own.weight_hh
        if special == "signs":  # which show where nothing else is added
            own.bias_ih[...] = own.bias_hh[...] = -0.0
            rows[...] = np.abs(rows) * np.where(rng.random((len(rows), 1)) < 0.5, -1, 1)
        elif special != "ordinary":
            rows[rng.integers(len(rows)), rng.integers(rows.shape[1])] = SPECIAL[special]
    packed = pair.stack(pair.backend.pack)
    x = -np.zeros((1, FEW, sizes[0]), dtype) if special == "signs" else pair.inputs_of(FEW)[0]
    results = []
    for stack in (packed, pair.borrowed):
        output, last = stack.infer(x, None)
        results.append([output, *parts(last)])
    for want, got in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)
        if special in ("ordinary", "signs"):
            assert_same_bits(got, want)


def test_the_bits_of_a_pack_without_a_state_on_two_threads(dtype, rng, native):
    rnnfast.set_num_threads(2)
    native.force_schedule("units")
    pair = Pair("lstm", 16, 130, dtype, rng)
    x, _ = pair.inputs_of(FEW)
    assert_same_bits(pair.borrowed.infer(x, None)[0], pair.packed.infer(x, None)[0])
    assert native.last_schedule() == "units"


def most_rows(pair):
    """As many as the borrowed stack takes."""
    for batch in range(1, 100):
        if pair.borrowed.infer(*pair.inputs_of(batch)) is NotImplemented:
            return batch - 1
    raise AssertionError("it takes any number of rows")


def test_only_one_step_of_few_rows_without_lengths(rng):
    pair = Pair("lstm", 4, 5, "float32", rng)
    most = most_rows(pair)
    assert most >= FEW
    pair.assert_same(most)
    refused = {
        "steps": (*pair.inputs_of(1, steps=2), None),
        "none": (*pair.inputs_of(1, steps=0), None),
        "rows": (*pair.inputs_of(most + 1), None),
        "lengths": (*pair.inputs_of(1), np.ones(1, np.int64)),
    }
    for x, state, lengths in refused.values():
        borrowed, packed = pair.borrowed, pair.packed
        y, last, tape = packed.forward(x, state, lengths, 0)
        rest = (lengths, y, tape, y, last, (True,) * 6, 0)
        assert packed.backward(x, state, *rest) is not NotImplemented
        assert borrowed.backward(x, state, *rest) is NotImplemented
        assert borrowed.forward(x, state, lengths, 0) is NotImplemented
        assert borrowed.infer(x, state, lengths, None, None, 0) is NotImplemented
        assert borrowed.record(x, state, lengths, None, None) is NotImplemented
    x, state = pair.inputs_of(1)
    reset = np.ones((1, 1), bool)
    assert pair.borrowed.infer(x, state, None, reset, reset, 0) is NotImplemented


def test_changes_show_in_the_next_pass(dtype, rng):
    pair = Pair("gru", 5, 17, dtype, rng)
    x, state = pair.inputs_of(1)
    before = pair.borrowed.infer(x, state)[0].copy()
    for parameter in pair.parameters:
        parameter.flat[-1] += 1
        changed = pair.borrowed.infer(x, state)[0]
        assert changed.tobytes() != before.tobytes()
        assert_same_bits(changed, pair.stack(pair.backend.pack).infer(x, state)[0])
        before = changed.copy()
    assert pair.packed.infer(x, state)[0].tobytes() != before.tobytes()


def test_the_arrays_live_as_long_as_the_stack(rng):
    pair = Pair("lstm", 5, 33, "float32", rng)
    x, state = pair.inputs_of(1)
    want = pair.packed.infer(x, state)[0]
    arrays = [weakref.ref(a) for a in pair.parameters]
    stack = pair.borrowed
    del pair
    gc.collect()
    assert all(a() is not None for a in arrays)
    assert_same_bits(stack.infer(x, state)[0], want)
    del stack
    gc.collect()
    assert all(a() is None for a in arrays)


def test_borrowed_and_packed_do_not_mix(rng):
    pair = Pair("lstm", 5, 5, "float32", rng, layers=2)
    names, cell = [("a", "b", "c", "d", None)] * 2, CELLS["lstm"]
    packs = [pair.backend.pack(cell, pair.weights[0]), pair.backend.borrow(cell, pair.weights[1])]
    with pytest.raises(ValueError, match="borrowed or none"):
        pair.backend.stack(packs, names, 1, False, False)


@pytest.mark.parametrize(
    "change, error",
    [
        ({"weight_hh": np.zeros((20, 4), "float32")}, ValueError),
        ({"weight_ih": np.zeros((40, 5), "float32")[::2]}, ValueError),
        ({"bias_hh": None}, ValueError),
        ({"bias_hh": np.zeros(20)}, TypeError),
    ],
)
def test_the_checks_of_a_pack(change, error, rng):
    own = Pair("lstm", 5, 5, "float32", rng).weights[0]
    for hold in (_backend.current().pack, _backend.current().borrow):
        with pytest.raises(error):
            hold(CELLS["lstm"], own._replace(**change))


@pytest.fixture
def guarded():
    """Makes arrays that end where memory ends: to read one byte past them ends the process."""
    if not hasattr(mmap, "PROT_READ") or not hasattr(ctypes.CDLL(None), "mprotect"):
        pytest.skip("this system cannot protect pages")
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def make(array):
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        pages = np.frombuffer(memory, np.uint8)
        assert protect(pages.ctypes.data + size, mmap.PAGESIZE, 0) == 0
        made = pages[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
        made[...] = array
        return made

    return make


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_read_past_the_arrays(cell, sizes, dtype, rng, guarded):
    def make(shape):
        return guarded(normal(rng, shape, dtype) / 2)

    Pair(cell, *sizes, dtype, rng, make=make).assert_same(2)


def test_nothing_is_read_past_a_projection(dtype, rng, guarded):
    def make(shape):
        return guarded(normal(rng, shape, dtype) / 2)

    Pair("lstm", 5, 17, dtype, rng, make=make, projection=5).assert_same(2)
