"""What does not fit a pass of the native stack on a tape is not read, whatever it is.

It gives NotImplemented, or an error.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, make, normal
from tape_cases import LENGTHS, STEPS, Case, cell_case, layer_case

from rnnfast._cells import Sizes


@pytest.fixture(autouse=True)
def _native(native):
    """All of this is about the native backend."""


def misaligned(array):
    odd = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


# What does not fit, for any array.
WRONG = {
    "None": lambda a: None,
    "list": lambda a: a.tolist(),
    "number": lambda a: 1.0,
    "type": lambda a: np.ndarray,
    "subclass": lambda a: np.ma.masked_array(a),
    "other dtype": lambda a: a.astype("f8"),
    "integers": lambda a: np.zeros(a.shape, "i4"),
    "byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "short": lambda a: a[..., :-1].copy(),
    "long": lambda a: np.concatenate([a, a[..., :1]], axis=-1),
    "empty": lambda a: a[..., :0].copy(),
    "fewer rows": lambda a: a[:-1],
    "more axes": lambda a: a[None],
    "no axis": lambda a: a.ravel()[0],
    "flat": lambda a: a.ravel() if a.ndim > 1 else a[:, None],
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "broadcast": lambda a: np.broadcast_to(a[..., :1], a.shape),
}
MAY_BE_NONE = ("state", "d_output", "d_state")


class TestOtherArguments:
    """They are not read, and nothing is computed."""

    @pytest.fixture
    def case(self):
        return layer_case("lstm", num_layers=2, bidirectional=True)

    @pytest.mark.parametrize("how", WRONG)
    @pytest.mark.parametrize("name", ["x", "output", "tape", "d_output"])
    def test_an_array(self, case, name, how):
        if how == "None" and name in MAY_BE_NONE:
            return
        given = case.arguments()
        wrong = WRONG[how](given[name])
        assert case.backward(**{name: wrong}) is NotImplemented
        if name == "x" and how != "fewer rows":  # of which there may be as many
            assert case.stack.forward(wrong, case.state, None, 0) is NotImplemented

    @pytest.mark.parametrize("how", WRONG)
    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("name", ["state", "d_state"])
    def test_a_state(self, case, name, which, how):
        if how == "None" and name == "d_state":
            return
        given = list(case.arguments()[name])
        given[which] = WRONG[how](given[which])
        assert case.backward(**{name: tuple(given)}) is NotImplemented
        if name == "state":
            assert case.stack.forward(case.x, tuple(given), None, 0) is NotImplemented

    @pytest.mark.parametrize("name", ["state", "d_state"])
    def test_no_pair(self, case, name):
        h, c = case.arguments()[name]
        for wrong in (h, (), (h,), (h, c, c), [h, c], 0):
            assert case.backward(**{name: wrong}) is NotImplemented
        other = layer_case("gru")
        for wrong in ((other.last,), (other.last, other.last), [other.last]):
            assert other.backward(**{name: wrong}) is NotImplemented

    def test_lengths(self, case):
        for wrong in (
            [1, 2, 3],
            np.array([1, 2]),
            np.array([[1, 2, 3]]),
            np.array([1, 2, STEPS + 1]),
            np.array([1, -1, 2]),
            np.array([1, 2, 3], "i4"),
            np.array([1.0, 2, 3]),
            np.array([1, 1, 2, 2, 3, 3])[::2],
            3,
        ):
            assert case.stack.forward(case.x, None, wrong, 0) is NotImplemented
            assert case.backward(lengths=wrong) is NotImplemented

    def test_wanted(self, case):
        every = case.all
        for wrong in (
            None,
            True,
            (),
            list(every),
            np.ones(len(every), bool),
            every[:-1],
            (*every, True),
            *((other, *every[1:]) for other in (1, 0, None, np.True_, np.False_, "yes")),
            *((*every[:-1], other) for other in (1, 0, None, np.True_, np.False_, [True])),
        ):
            assert case.backward(wanted=wrong) is NotImplemented

    def test_a_tape_of_another_pass(self, case):
        """Other numbers of rows, layers or directions have tapes of other sizes."""
        sizes = [case.forward()[2].size]
        for options in ({}, {"num_layers": 2}, {"bidirectional": True}):
            tape = layer_case("lstm", **options).forward()[2]
            sizes.append(tape.size)
            assert case.backward(tape=tape) is NotImplemented
        assert len(set(sizes)) == len(sizes)
        shorter = case.stack.forward(case.x[:-1], case.state, None, 0)[2]
        assert case.backward(tape=shorter) is NotImplemented

    def test_a_cell_has_no_output(self):
        case = cell_case("lstm")
        assert case.backward(output=case.last[0]) is NotImplemented
        for lengths in (np.array([1, 0, 1]), None):
            case.backward(lengths=lengths)

    @pytest.mark.parametrize("count", [*range(9), 10])
    def test_other_numbers_of_arguments(self, case, count):
        with pytest.raises(TypeError, match=f"backward: got {count} arguments"):
            case.stack.backward(*[None] * count)
        if count != 4:
            with pytest.raises(TypeError, match=f"forward: got {count} arguments"):
                case.stack.forward(*[None] * count)

    def test_what_is_no_number_of_threads(self, case):
        wrongs = {"2": TypeError, None: TypeError, 1.0: TypeError, 1 << 100: OverflowError}
        for wrong, error in wrongs.items():
            for call in (
                lambda threads: case.stack.infer(case.x, None, None, None, None, threads),
                case.forward,
                lambda threads: case.backward(threads=threads),
            ):
                with pytest.raises(error):
                    call(wrong)


class TestHugeSizes:
    def test_many_steps_without_rows_cost_nothing(self):
        layer = make("lstm", 1, 1, num_layers=2, bidirectional=True)
        x = np.empty((2**40, 0, 1), np.float32)
        for lengths in (None, np.empty(0, np.int64)):
            case = Case(layer, x, None, lengths)
            output, _, tape = case.forward()
            assert output.shape == (2**40, 0, 2)
            assert tape.size < 1000
            found = case.backward(output=output, tape=tape)
            assert found[0].shape == x.shape
            assert not any(gradient.any() for gradient in found[2])

    def test_more_rows_than_a_tape_can_be_of(self):
        """x and the output are one number, seen 2^60 times: what they say is not what there is."""
        layer = make("lstm", 1, 1)
        stack, number = layer._packs().native, np.zeros((1, 1, 1), np.float32)
        for shape in [(2**60, 1, 1), (1, 2**60, 1), (2**30, 2**30, 1)]:
            x = np.broadcast_to(number, shape)
            with pytest.raises((ValueError, MemoryError)):
                stack.forward(x, None, None, 0)
            for size in range(1, 64):
                tape = np.zeros(size, np.float32)
                wanted = (False,) * 2 + (True,) * len(layer.parameters)
                with pytest.raises(ValueError, match="array is too big"):
                    stack.backward(x, None, None, x, tape, None, None, wanted, 0)


class TestTapeRow:
    @pytest.mark.parametrize("layers, directions", [(1, 1), (1, 2), (2, 1), (3, 2)])
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_what_forward_returns(self, native, kind, layers, directions, dtype, rng):
        for size, hidden in ((0, 1), (3, 5), (7, 33)):
            projection = 3 if kind == "lstm_projected" and hidden > 3 else 0
            options = {"num_layers": layers, "bidirectional": directions == 2, "dtype": dtype}
            if kind == "lstm_projected":
                options["proj_size"] = projection
            layer = make(kind, size, hidden, **options)
            row = native.tape_row(
                layer._cell.name, dtype, size, hidden, projection, layers, directions
            )
            for steps, batch in ((0, 2), (1, 0), (1, 1), (4, 3)):
                x = normal(rng, (steps, batch, size), dtype)
                tape = layer._packs().native.forward(x, None, None, 0)[2]
                assert (tape.dtype, tape.shape) == (np.dtype(dtype), (steps * batch * row,))

    def test_lengths_do_not_change_it(self):
        full, cut = layer_case("lstm"), layer_case("lstm", lengths=LENGTHS)
        assert full.forward()[2].size == cut.forward()[2].size

    def test_wrong_names(self, native):
        sizes = Sizes(3, 4, 0)
        for cell, dtype in (("lstm", "float16"), ("lstm", ""), ("peephole", "float32")):
            with pytest.raises(ValueError, match=r"^(cell|dtype): expected"):
                native.tape_row(cell, dtype, *sizes, 1, 1)
