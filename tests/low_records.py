"""The sections of a benchmark's record on streams and low precision, with floors that all hold."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bench import peers
from bench.low_precision import RTNEURAL, WEIGHTS
from bench.shapes import (
    CELLS,
    MODES,
    PRECISION,
    PRECISION_SHAPES,
    STEP,
    STREAM_SHAPES,
    STREAMS,
    Case,
    Shape,
)

OVERHEAD = 0.1  # µs


def spread(median: float) -> dict[str, float]:
    """As a record has the times of a contender."""
    return {"median": median, "q1": 0.98 * median, "q3": 1.02 * median}


def row(case: Case, mode: str, times: dict[str, float], **more: Any) -> dict[str, Any]:
    """An entry of a section that holds rows, from microseconds by contender."""
    ours = times["ours"]
    return {
        "case": asdict(case),
        "mode": mode,
        "times_us": {name: spread(time) for name, time in times.items()},
        "ratios": {name: spread(t / ours) for name, t in times.items() if name != "ours"},
        "disturbed": 0.0,
        "skipped": {},
        "errors": {},
        **more,
    }


def _steps(cell: str, shape: Shape) -> dict[str, Any]:
    in_c = RTNEURAL.get((cell, shape.I, shape.H), 1.5) / 1.5
    ours = in_c + OVERHEAD
    times = {"ours": ours, peers.IN_C: in_c, "bfloat16": ours / 2, "int8": ours / 4}
    times |= {peers.RUN: 10 * ours, peers.BOUND_RUN: 9 * ours}
    kept = {"float32": 10_000, "bfloat16": 5_100, "int8": 2_600}
    errors = {"bfloat16": 3e-3, "int8": 1e-2}
    return row(Case(cell, shape), STEP, times, bytes=kept, relative_error=errors)


def _sequences(cell: str, shape: Shape) -> list[dict[str, Any]]:
    case, peak = Case(cell, shape), 200.0
    low = shape.flops(cell) / (0.9 * peak * 1e3)  # µs
    times = {"ours": 1.8 * low, "ours, bfloat16": low, "torch, bfloat16": 1.5 * low}
    quantised = {"ours, int8": 0.5 * low, "torch, int8": low}
    training = {name: 3 * value for name, value in times.items()}
    both = {"inference": {**times, **quantised}, "training": training}
    return [row(case, mode, both[mode], peak_gflops=peak) for mode in MODES]


def sections() -> dict[str, list[dict[str, Any]]]:
    """All of them."""
    case = asdict(Case("lstm", STREAM_SHAPES["1-1-256-256-stream"]))
    percentiles = {"50": 10.0, "99": 12.0, "99.9": 20.0}
    single = {"case": case, "steps": 1000, "share": 1.0, "bins": [[49, 100], [50, 880], [60, 20]]}
    bits = {"float32": 2.0, "bfloat16": 1.999, "int8": 2.02}
    return {
        STREAMS: [_steps(cell, shape) for shape in STREAM_SHAPES.values() for cell in CELLS],
        PRECISION: [
            entry
            for shape in PRECISION_SHAPES.values()
            for cell in shape.cells
            for entry in _sequences(cell, shape)
        ],
        "latency": [
            {
                **single,
                "weights": weights,
                "percentiles_us": dict(percentiles),
                "arithmetic_us": {"50": 10.0, "99": 11.0, "99.9": 15.0},
            }
            for weights in WEIGHTS
        ],
        "characters": [
            {
                "cell": "lstm",
                "hidden": 192,
                "updates": 500,
                "bits": bits,
                "trained_in": {"bfloat16": 2.01},
            }
        ],
    }
