"""The peak memory of a training step, from the high-water mark of the resident set."""

from __future__ import annotations

import ctypes
import gc
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import peers
from bench.peers.ours import Ours
from bench.problem import make_problem
from bench.shapes import GATES, Case

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"
CONTENDERS = (peers.BASELINE, peers.RECOMPUTE, "torch")


def available() -> bool:
    """Whether the system reports the high-water mark, as Linux does."""
    return CLEAR.exists()


def _status(field: str) -> int:
    """The value of a line of /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}")
    return int(found[1]) * 1024


def _settle() -> None:
    """Returns free memory to the system, so that the step cannot use it unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def results(case: Case) -> float:
    """MiB of the results that a step holds at its end: y, and the gradients at x and parameters."""
    shape, width = case.shape, GATES[case.cell] * case.shape.H
    parameters = shape.D * sum(width * (size + shape.H + 2) for size in shape.inputs)
    numbers = shape.T * shape.B * (shape.D * shape.H + shape.I) + parameters
    return numbers * np.dtype(case.dtype).itemsize / 2**20


def training_peak(case: Case, contender: str) -> int:
    """The peak of the second training step in bytes, above the level before the first one.

    The level is taken with inputs and weights in place, and after a small step, because a library
    may load or start something on first use. Memory that is kept from the first step to the second,
    such as packed weights, counts. The process must be a fresh one.

    contender : one of `CONTENDERS`.
    """
    peer = Ours(recompute=True) if contender == peers.RECOMPUTE else peers.load(contender)
    small = make_problem(replace(case, shape=replace(case.shape, T=4, B=2, I=16, H=16)))
    runner = peer.build(small, "training")
    with runner.ready():
        for _ in range(2):
            runner.run(0)
    runner = peer.build(make_problem(case), "training")
    with runner.ready():
        _settle()
        level = _status("VmRSS")
        runner.run(0)
        _settle()
        CLEAR.write_text(RESET_PEAK)
        runner.run(0)
        return _status("VmHWM") - level
