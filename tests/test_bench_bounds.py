"""The bounds that the benchmark compares times with, and the probes that they are made of."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

import rnnfast
from bench import problem, roofline, tasks, timing
from bench.pace import Pace
from bench.shapes import CELLS, GATES, Case, Shape

pytestmark = pytest.mark.slow

TINY = Shape("tiny", "test", T=5, B=3, I=4, H=6)
DEEP = replace(TINY, name="deep", L=2, D=2)
RAGGED = replace(TINY, name="ragged", ragged=True)


class Ideal(roofline.Roof):
    """A core whose memory and activations cost nothing."""

    def __init__(self):
        super().__init__(None, "float32", peak=1.0, sigmoid=0.0, tanh=0.0)

    def reading(self, size):
        return np.inf

    def writing(self, size):
        return np.inf


def flops_of_zeros(cell, shape):
    """Of the first step's product with R, which forward leaves out."""
    return 2 * shape.L * shape.D * GATES[cell] * shape.H**2 * shape.B


@pytest.mark.parametrize("shape", [TINY, DEEP], ids=["tiny", "deep"])
@pytest.mark.parametrize("cell", CELLS)
def test_without_memory_the_bound_is_the_flops(cell, shape):
    limit = roofline.bound(Case(cell, shape), Ideal())
    left_out = flops_of_zeros(cell, shape)
    assert limit["inference"] == pytest.approx(shape.flops(cell) - left_out)
    assert limit["training"] == pytest.approx(3 * shape.flops(cell) - left_out)


def test_the_bound_of_ragged_lengths_is_that_of_the_real_steps():
    lengths = problem.lengths_of(RAGGED)
    assert (problem.active_rows(RAGGED) == [(lengths > t).sum() for t in range(RAGGED.T)]).all()
    part = lengths.sum() / (RAGGED.T * RAGGED.B)
    assert part < 1
    limit = roofline.bound(Case("gru", RAGGED), Ideal())
    wanted = part * RAGGED.flops("gru") - flops_of_zeros("gru", RAGGED)
    assert limit["inference"] == pytest.approx(wanted)


@pytest.mark.parametrize("cell", CELLS)
def test_the_bound_of_a_step_has_both_products(cell):
    case, roof = Case(cell, TINY), Ideal()
    numbers = GATES[cell] * TINY.H * (TINY.I + TINY.H)
    assert roofline.step_bound(case, roof) == pytest.approx(2 * numbers)
    roof.reading = lambda size: size / 100 if size == 4 * numbers else 0
    assert roofline.step_bound(case, roof) == pytest.approx(max(100, 2 * numbers))
    roof.tanh = 1.0
    wanted = max(100, 2 * numbers) + roofline.TANHS[cell] * TINY.H
    assert roofline.step_bound(case, roof) == pytest.approx(wanted)


def test_probes_do_what_they_say(native, dtype):
    lanes = native.vector_bytes() // np.dtype(dtype).itemsize
    one, ten = (native.probe_fma(dtype, rounds) for rounds in (1, 10))
    assert one % (2 * lanes) == 0 and ten == 10 * one
    numbers = np.arange(40 * lanes, dtype=dtype)
    assert native.probe_read(numbers, 3) == 3 * numbers.sum()
    assert native.probe_read(numbers[: lanes - 1], 3) == 0
    with pytest.raises(ValueError, match="dtype: expected"):
        native.probe_fma("float16", 1)


def test_an_interruption_is_not_taken_for_a_long_run(monkeypatch):
    """A clock that stands still but while something runs: 1 us a round, and once 5 ms beside."""
    now, late, longest = [0.0], [5e-3], [0]

    def probe(rounds):
        now[0] += 1e-6 * rounds + (late.pop() if rounds == 16 and late else 0)
        longest[0] = max(longest[0], rounds)
        return rounds

    monkeypatch.setattr(roofline.time, "perf_counter", lambda: now[0])
    assert roofline.measure_rate(probe) == pytest.approx(1e6)
    assert not late and longest[0] == round(roofline.PROBE_SECONDS * 1e6)


@pytest.mark.usefixtures("keep_threads")
def test_threads_that_meet(native):
    rnnfast.set_num_threads(3)
    assert [native.probe_meetings(threads, 5) for threads in (1, 2, 3, 4)] == [1, 2, 3, 3]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("keep_threads")
def test_the_pace_of_the_machine(native, threads):
    rnnfast.set_num_threads(threads)
    for _ in range(10):  # the peak may be that of a slow moment, where others use the machine too
        pace = Pace(native, "float32", roofline.fma_peak(native, "float32"), threads)
        with pace.contenders() as contenders:
            times = timing.interleave(contenders, 0.05, threads).times
        measured = pace.entries(times)
        if measured["slowed"] > 0.9:
            break
    assert measured["slowed"] > 0.9
    if threads == 1:
        assert measured.keys() == {"slowed"}
        return
    assert 0 < measured["arithmetic_over_one"]["median"] < 1.1 * threads
    assert measured["meeting_us"] > 0
    # A machine at half of its speed.
    later = pace.entries({name: 2 * seconds for name, seconds in times.items()})
    assert later["slowed"] == pytest.approx(2 * measured["slowed"], rel=1e-3)
    assert later["arithmetic_over_one"] == measured["arithmetic_over_one"]
    assert tasks._stretched(2e-6, {"slowed": 1.5}) == 3.0
