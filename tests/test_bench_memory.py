"""The benchmark's memory: what a training step takes at its peak, and what it gives."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import rnnfast

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

from bench import machine, memory, runs
from bench.shapes import CELLS, Case, Shape

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not memory.available(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_steps():
    shape = Shape("long", "test", T=400, B=32, I=8, H=64)
    tasks = [
        {"kind": "memory", "case": asdict(Case("lstm", replace(shape, T=T))), "contender": "ours"}
        for T in (400, 800)
    ]
    peaks = [runs.run_worker(task, 1, machine.cores()[:1]) for task in tasks]
    least = 400 * 32 * 64 * 4 * 4 / 2**20  # four gates, which cannot be had without
    assert least < peaks[0] < 10 * least
    assert 1.5 < peaks[1] / peaks[0] < 2.5


@pytest.mark.parametrize("cell", CELLS)
def test_results_are_what_a_step_gives(cell):
    shape = Shape("deep", "test", T=5, B=3, I=4, H=6, L=2, D=2)
    options = {"num_layers": shape.L, "bidirectional": True}
    layer = getattr(rnnfast, cell.upper())(shape.I, shape.H, **options)
    tape = layer.record(np.zeros((shape.T, shape.B, shape.I), np.float32))
    gradients = tape.backward()
    arrays = tape.output, gradients.input, *gradients.parameters.values()
    assert memory.results(Case(cell, shape)) * 2**20 == sum(array.nbytes for array in arrays)
