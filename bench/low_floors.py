"""The floors of streams and of low precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import low_precision, peers
from bench.floor import Figures, Floor, of_rows
from bench.peers import BASELINE, OURS_IN, TORCH_IN
from bench.records import Row
from bench.shapes import MODES, PRECISION, STREAMS

# Where a step in low precision reads so many weights that its speed is theirs.
LARGE = (256, 512)
# A call's own time is what a step takes from Python beyond one in C, seen where both are short.
SHORT = 64

Figure = Callable[[Row], float | None]


def _where(holds: Callable[[Row], bool], figure: Figure) -> Figure:
    return lambda row: figure(row) if holds(row) else None


def _is_large(row: Row) -> bool:
    return row.case.shape.H in LARGE


def _has_256(row: Row) -> bool:
    return row.case.shape.H >= 256


def over_float32(contender: str) -> Figure:
    """How many times as fast as ours in float32."""
    return lambda row: row.over(BASELINE, contender)


def bytes_ratio(weights: str) -> Figure:
    """The bytes of a stream's weights over those in float32."""
    return lambda row: row.bytes[weights] / row.bytes["float32"] if row.bytes else None


def overhead(row: Row) -> float | None:
    """Microseconds that a step takes from Python beyond one in C."""
    in_c = row.times.get(peers.IN_C)
    return None if in_c is None else row.ours - in_c["median"]


def over_rtneural(row: Row) -> float | None:
    """RTNeural's time for a step over ours in C."""
    shape, in_c = row.case.shape, row.times.get(peers.IN_C)
    theirs = low_precision.RTNEURAL.get((row.case.cell, shape.I, shape.H))
    return None if in_c is None or theirs is None else theirs / in_c["median"]


def _error(weights: str) -> Figure:
    return lambda row: row.relative_error[weights] if row.relative_error else None


def _over_torch(kind: str) -> Figure:
    return lambda row: row.over(TORCH_IN[kind], OURS_IN[kind])


def fraction_of_peak(row: Row) -> float | None:
    """Of the core's peak in bfloat16, reached by our layer in it; None where it was not timed.

    Backward has two products for each of forward.
    """
    ours = row.times.get(OURS_IN["bfloat16"])
    if row.peak is None or ours is None:
        return None
    products = 3 if row.mode == "training" else 1
    return products * low_precision.flops(row.case) / (ours["median"] * 1e3 * row.peak)


def tail(record: dict[str, Any]) -> Figures:
    """The 99.9th percentile of single steps over their median."""
    return [
        (f"{entry['case']['cell']} {entry['case']['shape']['name']} {entry['weights']}", p99 / p50)
        for entry in record.get("latency", [])
        for p50, _, p99 in [entry["percentiles_us"].values()]
    ]


def _lost(weights: str) -> Callable[[dict[str, Any]], Figures]:
    """Bits per character that the demo's model loses."""
    return lambda record: [
        (f"{entry['cell']} {entry['hidden']}", entry["bits"][weights] - entry["bits"]["float32"])
        for entry in record.get("characters", [])
    ]


def _lost_in_training(record: dict[str, Any]) -> Figures:
    """Bits per character that a model is worse by if it is trained, and run, in bfloat16."""
    return [
        (f"{entry['cell']} {entry['hidden']}", bits - entry["bits"]["float32"])
        for entry in record.get("characters", [])
        for bits in entry.get("trained_in", {}).values()
    ]


def _step(name: str, figure: Figure, each: float, at_most: bool = False) -> Floor:
    return Floor(f"streams: {name}", of_rows(figure, STREAMS), each, at_most=at_most)


def _sequence(
    name: str, figure: Figure, each: float, mode: str = "inference", **wanted: Any
) -> Floor:
    return Floor(f"sequences, {name}", of_rows(figure, PRECISION, mode=mode, **wanted), each)


FLOORS = (
    _step(
        "a step against ONNX Runtime's run, H ≤ 128",
        _where(lambda row: row.case.shape.H <= 128, lambda row: row.ratio(peers.RUN)),
        8.0,
    ),
    _step(
        "a step against ONNX Runtime's run, H = 512",
        _where(lambda row: row.case.shape.H == 512, lambda row: row.ratio(peers.RUN)),
        1.8,
    ),
    _step("in C against RTNeural", over_rtneural, 1.2),
    # Of longer steps it is a small difference of times that vary by more.
    _step(
        f"µs of a call from Python, H ≤ {SHORT}",
        _where(lambda row: row.case.shape.H <= SHORT, overhead),
        0.15,
        at_most=True,
    ),
    *(
        floor
        for weights, speed, share, error in (
            ("bfloat16", 1.6, 0.52, 2e-2),
            ("int8", 2.5, 0.27, 5e-2),
        )
        for floor in (
            _step(
                f"{weights} over float32, H = 256, 512",
                _where(_is_large, over_float32(weights)),
                speed,
            ),
            _step(
                f"bytes in {weights} over float32, H = 256, 512",
                _where(_is_large, bytes_ratio(weights)),
                share,
                at_most=True,
            ),
            _step(
                f"relative error in {weights} over {low_precision.ACCURACY_STEPS} steps",
                _error(weights),
                error,
                at_most=True,
            ),
        )
    ),
    Floor("streams: p99.9 of single steps over their p50", tail, 3.0, at_most=True),
    *(
        Floor(f"streams: bits per character lost in {weights}", _lost(weights), each, at_most=True)
        for weights, each in (("bfloat16", 0.01), ("int8", 0.03))
    ),
    Floor(
        "sequences, bits per character lost by training in bfloat16",
        _lost_in_training,
        0.03,
        at_most=True,
    ),
    _sequence(
        "bfloat16 over float32, H ≥ 256",
        _where(_has_256, over_float32(OURS_IN["bfloat16"])),
        1.6,
    ),
    _sequence("bfloat16 against torch's, H ≥ 256", _where(_has_256, _over_torch("bfloat16")), 1.1),
    _sequence(
        "bfloat16 against torch's, H < 256",
        _where(lambda row: not _has_256(row), _over_torch("bfloat16")),
        1.3,
    ),
    _sequence("int8 against torch's dynamic int8", _over_torch("int8"), 1.3),
    _sequence(
        "bfloat16 over float32, training",
        over_float32(OURS_IN["bfloat16"]),
        1.3,
        mode="training",
    ),
    *(
        _sequence(
            f"bfloat16, fraction of the peak, H ≥ 256, {mode}",
            _where(_has_256, fraction_of_peak),
            0.8,
            mode=mode,
        )
        for mode in MODES
    ),
)
