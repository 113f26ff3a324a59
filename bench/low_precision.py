"""Streams and low precision, beside their times: bytes, errors, single steps, and the demo's bits.

RTNeural's steps are figures and no code that is run: a library in C++ whose sizes are fixed when it
is compiled (-march=native -ffast-math), timed on one core of an AMD EPYC (family 25, model 17).
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

# (cell, I, H) -> microseconds of a step.
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
# The demo's model, and a third of the training that two cores give it in 40 s.
HIDDEN, UPDATES = 192, 500


def bytes_of(case: Case) -> dict[str, int]:
    """The bytes of a stream's packed weights, by how it keeps them."""
    layer = layer_of(case)
    return {weights: layer.stream(weights=weights).nbytes for weights in WEIGHTS}


def errors_of(case: Case) -> dict[str, float]:
    """‖got − want‖ / ‖want‖ of `ACCURACY_STEPS` outputs beside those in float32, by format."""
    layer = layer_of(case)
    x = np.random.default_rng(3).standard_normal((ACCURACY_STEPS, case.shape.I), np.float32)
    want = layer.stream().run(x)
    errors = {name: relative_error(layer.stream(weights=name).run(x), want) for name in FORMATS}
    return {name: float(f"{error:.4g}") for name, error in errors.items()}


def latency(case: dict[str, Any], weights: str, steps: int = LATENCY_STEPS) -> list[dict[str, Any]]:
    """One entry: the distribution of the times of single steps, the clock's reading included.

    `bins` are pairs of the number of a bin and how many times are in it: bin k begins at
    10^(k / BINS_PER_DECADE) microseconds. `share` is that of the time in which the process had its
    core. `arithmetic_us` has the percentiles of what stands between the steps, as long as one of
    them and in registers alone: what takes longer there is the machine's doing.
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
    """The rounds of `compute` that take so long."""
    return max(1, round(seconds * measure_rate(lambda n: [compute(1000 * n), 1000 * n][1])))


def _percentiles(microseconds: NDArray) -> dict[str, float]:
    values = np.percentile(microseconds, PERCENTILES).tolist()
    return {f"{p:g}": round(v, 3) for p, v in zip(PERCENTILES, values, strict=True)}


def characters(cell: str, hidden: int = HIDDEN, updates: int = UPDATES) -> list[dict[str, Any]]:
    """One entry: bits per character of the demo's model on the held-out text, by its weights.

    `trained_in` has those of models that were trained in low precision, and run in it.
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
    """Operations a second in bfloat16, two for each product that is added up."""
    return measure_rate(lambda rounds: native.probe_dot("bfloat16", 1000 * rounds))


def bound(case: Case, roof: Roof, peak: float) -> dict[str, float]:
    """Seconds of products at `peak` and of activations alone, of one layer in each mode.

    Whatever products are computed in, activations are in float32. Backward has two products for
    each of forward.
    """
    products = flops(case) / peak
    activations = float(active_rows(case.shape).sum()) * elementwise(case, roof)
    return {"inference": products + activations, "training": 3 * products + activations}


def flops(case: Case) -> float:
    """Of inference in one layer, whose first step has no product with R."""
    shape = case.shape
    return shape.flops(case.cell) - 2 * GATES[case.cell] * shape.H**2 * shape.B
