"""The bound: the least time in which this core could run a case, from its measured limits.

The limits are measured in the process that times the case, on the same core: the peak of
multiply-adds in registers, the bandwidth of reading or writing an array of the weights' size, in
whatever cache that lies, and the time of the kernels' sigmoid and tanh on data in L1.

One layer in one direction, forward, with B_t rows at step t, N = sum of B_t, and s bytes a number:

    step_t      = max(2 G H^2 B_t / peak, s G H^2 / reading(s G H^2))
    input       = max(2 G H I N / peak,   s G H I / reading(all weights))
    elementwise = H N (sigmoids * t_sigmoid + tanhs * t_tanh)
    inference   = sum of step_t, t > 0, + input + elementwise

The first step has no product with R, because its state is zeros.

Training has three times as many operations. The backward pass runs a product of the size of R
through all steps, of which the first reads R from the cache that holds all weights. It also
computes three products over all steps, for the gradients of x, W and R:

    weights  = max(2 G H (I + H) N / peak, s G H (I + H) / writing(all weights))
    training = inference + sum of step_t + input + weights + saved

where `weights` writes the gradients of W and R at least once. `saved` is the elementwise part of
the backward pass. It reads once what forward saved, and the gradients of the gates: s H N (A + G)
bytes, at the bandwidth of an array of that size. Its arithmetic and all other writing are left out,
because this is a bound: a kernel that hides them comes nearer to it.

A step of a stream reads both matrices, because its state is not zeros:

    step = max(2 G H (I + H) / peak, s G H (I + H) / reading(all weights)) + elementwise

The bound adds the times of products and activations, as for a program that does not overlap them.
A program that overlaps them can exceed 1, the bound over its time.
"""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from bench.problem import active_rows
from bench.shapes import GATES, Case
from rnnfast import _backend

SIGMOIDS = {"rnn": 0, "gru": 2, "lstm": 3}
TANHS = {"rnn": 1, "gru": 1, "lstm": 2}
SAVED = {"rnn": 1, "gru": 4, "lstm": 5}  # A: h; r, z, n and R_n h + b; the four gates and c
PROBE_SECONDS = 0.002  # short enough to fit between two interruptions
REPEATS = 20
ALIGNMENT = 64  # a vector that crosses a cache line costs two reads
IN_L1 = 2048  # elements: 32 KB of float64, read and written
LEVELS = {"L1": 16 << 10, "L2": 512 << 10, "L3": 4 << 20, "memory": 256 << 20}


def native_module() -> ModuleType | None:
    """The compiled module, which has the probes; None if another backend is in use."""
    if _backend.current().name != "native":
        return None
    return importlib.import_module(_backend.NATIVE_MODULE)


@dataclass
class Roof:
    """The limits of the core for one dtype.

    peak : operations a second.
    sigmoid, tanh : seconds an element.
    """

    native: ModuleType
    dtype: str
    peak: float
    sigmoid: float
    tanh: float

    def reading(self, size: float) -> float:
        """The bytes a second at which an array of `size` bytes can be read again and again."""
        return read_bandwidth(self.native, self.dtype, int(size))

    def writing(self, size: float) -> float:
        """The bytes a second at which such an array can be written; if small, those of L2."""
        return write_bandwidth(int(max(size, LEVELS["L2"])))


def measure_rate(probe: Callable[[int], float]) -> float:
    """The most that `probe(rounds)` does in a second: the best of `REPEATS` equal runs."""

    def timed(rounds: int) -> tuple[float, float]:
        start = time.perf_counter()
        done = probe(rounds)
        return time.perf_counter() - start, done

    rounds = 1
    # The least of three runs, as an interruption would look like a long run.
    while (took := min(timed(rounds)[0] for _ in range(3))) <= PROBE_SECONDS / 4:
        rounds *= 4
    rounds = max(1, round(rounds * PROBE_SECONDS / took))
    return max(done / seconds for seconds, done in (timed(rounds) for _ in range(REPEATS)))


def read_bandwidth(native: ModuleType, dtype: str, size: int) -> float:
    """The bytes a second at which the whole vectors of an array of `size` bytes are read."""
    itemsize = np.dtype(dtype).itemsize
    # Not zeros, which would be one page of memory, mapped many times.
    raw = np.ones((size + ALIGNMENT) // itemsize, dtype)
    start = -raw.ctypes.data % ALIGNMENT // itemsize
    array = raw[start : start + max(size, ALIGNMENT) // itemsize]

    def probe(rounds: int) -> float:
        native.probe_read(array, rounds)
        return rounds * array.nbytes

    return measure_rate(probe)


def write_bandwidth(size: int) -> float:
    """The bytes a second at which the C library's memset sets an array of `size` bytes."""
    array = np.empty(size, np.uint8)
    address = array.ctypes.data

    def probe(rounds: int) -> float:
        for _ in range(rounds):
            ctypes.memset(address, 0, size)
        return rounds * size

    return measure_rate(probe)


def fma_peak(native: ModuleType, dtype: str) -> float:
    """The operations a second of multiply-adds in registers."""
    return measure_rate(lambda rounds: native.probe_fma(dtype, 1000 * rounds))


def measure_roof(native: ModuleType, dtype: str) -> Roof:
    """Measures the peak and the activations, in about a fifth of a second."""
    x = np.linspace(-4, 4, IN_L1, dtype=dtype)
    y = np.empty_like(x)

    def activation(name: str) -> float:
        def probe(rounds: int) -> float:
            native.activation(name, x, y, rounds)
            return rounds * x.size

        return 1 / measure_rate(probe)

    peak = fma_peak(native, dtype)
    return Roof(native, dtype, peak, activation("sigmoid"), activation("tanh"))


def measure_levels(native: ModuleType, dtype: str) -> dict[str, float]:
    """The peak in GFLOP/s, and the bandwidth of each level of memory in GB/s."""
    roof = measure_roof(native, dtype)
    levels = {name: roof.reading(size) / 1e9 for name, size in LEVELS.items()}
    return {"peak": roof.peak / 1e9, **levels}


def step_bound(case: Case, roof: Roof) -> float:
    """The least seconds of a step of a stream of the case's layer, for one row."""
    cell, shape = case.cell, case.shape
    numbers = GATES[cell] * shape.H * (shape.I + shape.H)
    size = numbers * np.dtype(case.dtype).itemsize
    return max(2 * numbers / roof.peak, size / roof.reading(size)) + elementwise(case, roof)


def elementwise(case: Case, roof: Roof) -> float:
    """The seconds of the activations of one row."""
    cell = case.cell
    return case.shape.H * (SIGMOIDS[cell] * roof.sigmoid + TANHS[cell] * roof.tanh)


def bound(case: Case, roof: Roof) -> dict[str, float]:
    """The least seconds of the case, by mode; see the module's docstring."""
    shape, cell = case.shape, case.cell
    rows = active_rows(shape)
    total, size = float(rows.sum()), np.dtype(case.dtype).itemsize
    width = GATES[cell] * shape.H
    recurrent = width * shape.H
    weights = size * width * shape.D * sum(inputs + shape.H for inputs in shape.inputs)
    read = np.full(shape.T, size * recurrent / roof.reading(size * recurrent))
    read[0] = size * recurrent / roof.reading(weights)
    steps = np.maximum(2 * recurrent * rows / roof.peak, read)
    activations = total * elementwise(case, roof)
    kept = size * shape.H * total * (SAVED[cell] + GATES[cell])
    written = roof.writing(weights)
    saved = kept / roof.reading(min(kept, LEVELS["memory"]))
    inference = training = 0.0
    for inputs in shape.inputs:
        flops = 2 * width * inputs
        product = max(flops * total / roof.peak, size * width * inputs / roof.reading(weights))
        forward = float(steps[1:].sum()) + product + activations
        gradients = max(
            (flops + 2 * recurrent) * total / roof.peak,
            size * width * (inputs + shape.H) / written,
        )
        inference += shape.D * forward
        training += shape.D * (forward + float(steps.sum()) + product + gradients + saved)
    return {"inference": inference, "training": training}
