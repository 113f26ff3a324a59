"""Measurements of streams and low precision: bytes, errors, single steps, the demo's bits, bounds.

RTNeural is not run here; its times for a step are constants. It is a library in C++ whose sizes are
fixed when it is compiled (-march=native -ffast-math). It was timed on one core of an AMD EPYC
(family 25, model 17).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.problem import active_rows, layer_of
from bench.roofline import Roof, elementwise, measure_rate, native_module
from bench.shapes import GATES, Case
from bench.validation import relative_error
from rnnfast import demo
from rnnfast._low_precision import FORMATS
from rnnfast.demo.text import python_topics

# RTNeural's microseconds for a step, by (cell, I, H).
RTNEURAL = {
    ("lstm", 1, 16): 0.088,
    ("lstm", 1, 32): 0.184,
    ("lstm", 1, 64): 1.02,
    ("lstm", 64, 64): 1.77,
    ("lstm", 128, 128): 7.8,
    ("gru", 1, 16): 0.124,
    ("gru", 64, 64): 1.53,
    ("gru", 128, 128): 5.1,
}
WEIGHTS = ("float32", *FORMATS)
ACCURACY_STEPS = 1000
LATENCY_STEPS = 100_000
PERCENTILES = (50.0, 99.0, 99.9)
BINS_PER_DECADE = 50
# The hidden size of the demo's model, and a third of the updates that two cores make in 40 s.
HIDDEN, UPDATES = 192, 500


def bytes_of(case: Case) -> dict[str, int]:
    """The bytes of a stream's packed weights, by their format."""
    layer = layer_of(case)
    return {weights: layer.stream(weights=weights).nbytes for weights in WEIGHTS}


def errors_of(case: Case) -> dict[str, float]:
    """The relative error of `ACCURACY_STEPS` outputs against those in float32, by format."""
    layer = layer_of(case)
    x = np.random.default_rng(3).standard_normal((ACCURACY_STEPS, case.shape.I), np.float32)
    want = layer.stream().run(x)
    errors = {name: relative_error(layer.stream(weights=name).run(x), want) for name in FORMATS}
    return {name: float(f"{error:.4g}") for name, error in errors.items()}


def latency(case: dict[str, Any], weights: str, steps: int = LATENCY_STEPS) -> list[dict[str, Any]]:
    """One entry: the distribution of the times of single steps, which include reading the clock.

    `bins` are pairs of a bin's number and its count of steps; bin k begins at
    10^(k / BINS_PER_DECADE) microseconds. `share` is the part of the time in which the process had
    its core. `arithmetic_us` has the percentiles of a stretch of arithmetic between the steps. It
    is as long as a step and uses registers only, so its delays are due to the machine.
    """
    parsed = Case.from_dict(case)
    stream = layer_of(parsed).stream(weights=weights)
    x = np.random.default_rng(3).standard_normal(parsed.shape.I, np.float32)
    step, out, clock = stream.step, np.empty(parsed.shape.H, np.float32), time.perf_counter_ns
    native, compute = native_module(), lambda: None
    if native is not None:
        seconds = 1 / measure_rate(lambda n: _repeat(n, lambda: step(x, out)))
        probe = partial(native.probe_fma, "float32")
        compute = partial(probe, _rounds_of(seconds, probe))
    times, others = [0] * steps, [0] * steps
    cpu, start = time.process_time(), time.perf_counter()
    for k in range(steps):
        before = clock()
        step(x, out)
        between = clock()
        compute()
        times[k], others[k] = between - before, clock() - between
    share = (time.process_time() - cpu) / (time.perf_counter() - start)
    microseconds = np.maximum(times, 1) / 1e3
    numbers = np.floor(BINS_PER_DECADE * np.log10(microseconds)).astype(int)
    return [
        {
            "case": case,
            "weights": weights,
            "steps": steps,
            "share": round(share, 3),
            "percentiles_us": _percentiles(microseconds),
            "arithmetic_us": None if native is None else _percentiles(np.array(others) / 1e3),
            "bins": np.stack(np.unique(numbers, return_counts=True), 1).tolist(),
        }
    ]


def _repeat(n: int, step: Callable[[], object]) -> int:
    for _ in range(n):
        step()
    return n


def _rounds_of(seconds: float, compute: Callable[[int], object]) -> int:
    """The number of rounds of `compute` that take `seconds`."""
    return max(1, round(seconds * measure_rate(lambda n: [compute(1000 * n), 1000 * n][1])))


def _percentiles(microseconds: NDArray) -> dict[str, float]:
    values = np.percentile(microseconds, PERCENTILES).tolist()
    return {f"{p:g}": round(v, 3) for p, v in zip(PERCENTILES, values, strict=True)}


def characters(cell: str, hidden: int = HIDDEN, updates: int = UPDATES) -> list[dict[str, Any]]:
    """One entry: the bits per character of the demo's model on the held-out text.

    `bits` has them by the format of the weights, for a model trained in float32. `trained_in` has
    them for models that were trained, and run, in low precision.
    """
    text = python_topics()

    def trained(precision: str) -> demo.CharModel:
        model = demo.CharModel(cell, len(text.characters), hidden)
        model.layer.precision = precision
        demo.train(model, text.train, updates=updates)
        return model

    def bits(model: demo.CharModel, weights: str) -> float:
        return round(demo.evaluate(model, text.held_out, weights=weights), 5)

    model = trained("float32")
    return [
        {
            "cell": cell,
            "hidden": hidden,
            "updates": updates,
            "bits": {weights: bits(model, weights) for weights in WEIGHTS},
            "trained_in": {"bfloat16": bits(trained("bfloat16"), "bfloat16")},
        }
    ]


def peak(native: ModuleType) -> float:
    """The peak of bfloat16 arithmetic, in operations a second: two for each multiply-add."""
    return measure_rate(lambda rounds: native.probe_dot("bfloat16", 1000 * rounds))


def bound(case: Case, roof: Roof, peak: float) -> dict[str, float]:
    """The seconds of one layer's products at `peak`, plus those of its activations, by mode.

    Activations are in float32, in whatever precision products are computed. A backward pass has
    two products for each one of a forward pass.
    """
    products = flops(case) / peak
    activations = float(active_rows(case.shape).sum()) * elementwise(case, roof)
    return {"inference": products + activations, "training": 3 * products + activations}


def flops(case: Case) -> float:
    """The operations of inference in one layer; its first step has no product with R."""
    shape = case.shape
    return shape.flops(case.cell) - 2 * GATES[case.cell] * shape.H**2 * shape.B
