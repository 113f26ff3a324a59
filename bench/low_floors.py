"""The floors of streams and of low precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import low_precision, peers
from bench.floor import Figure, Figures, Floor, at_bound, of_rows
from bench.peers import BASELINE, OURS_IN, TORCH_IN
from bench.records import Row
from bench.shapes import MODES, PRECISION, STREAMS

# The values of H for which reading the weights determines the speed of a step in low precision.
LARGE = (256, 512)
# The greatest H for which the time of a call from Python is measured: the difference between a step
# from Python and one in C, which shows only if both are short.
SHORT = 64

Measure = Callable[[Row], float | None]


def _where(holds: Callable[[Row], bool], figure: Measure) -> Measure:
    return lambda row: figure(row) if holds(row) else None


def _is_large(row: Row) -> bool:
    return row.case.shape.H in LARGE


def _has_256(row: Row) -> bool:
    return row.case.shape.H >= 256


def over_float32(contender: str) -> Measure:
    """The speed of a contender over that of ours in float32."""
    return lambda row: row.over(BASELINE, contender)


def bytes_ratio(weights: str) -> Measure:
    """The bytes of a stream's weights in a format, over the bytes in float32."""
    return lambda row: row.bytes[weights] / row.bytes["float32"] if row.bytes else None


def overhead(row: Row) -> float | None:
    """The microseconds that a step from Python takes longer than one in C."""
    in_c = row.times.get(peers.IN_C)
    return None if in_c is None else row.ours - in_c["median"]


def over_rtneural(row: Row) -> float | None:
    """RTNeural's time for a step, over the time of our step in C."""
    in_c, theirs = row.times.get(peers.IN_C), _rtneural(row)
    return None if in_c is None or theirs is None else theirs / in_c["median"]


def _rtneural(row: Row) -> float | None:
    return low_precision.RTNEURAL.get((row.case.cell, row.case.shape.I, row.case.shape.H))


def _over_rtneural_at_bound(row: Row) -> float | None:
    theirs = _rtneural(row)
    return None if row.bound is None or theirs is None else theirs / row.bound


def _error(weights: str) -> Measure:
    return lambda row: row.relative_error[weights] if row.relative_error else None


def _over_torch(kind: str) -> Measure:
    return lambda row: row.over(TORCH_IN[kind], OURS_IN[kind])


def _at_low_bound(figure: Measure) -> Measure:
    """`figure`, which grows as our bfloat16 time shrinks, if that time were at its bound."""

    def best(row: Row) -> float | None:
        value, ours = figure(row), row.times.get(OURS_IN["bfloat16"])
        if value is None or ours is None or row.low_bound is None:
            return None
        return value * max(1.0, ours["median"] / row.low_bound)

    return best


def fraction_of_peak(row: Row) -> float | None:
    """The part of the core's bfloat16 peak that our bfloat16 layer reaches; None if not timed.

    A backward pass has two products for each one of a forward pass.
    """
    ours = row.times.get(OURS_IN["bfloat16"])
    if row.peak is None or ours is None:
        return None
    products = 3 if row.mode == "training" else 1
    return products * low_precision.flops(row.case) / (ours["median"] * 1e3 * row.peak)


def tail(record: dict[str, Any]) -> Figures:
    """The 99.9th percentile of single steps over their median; as bound, that of arithmetic."""
    return [
        Figure(
            f"{entry['case']['cell']} {entry['case']['shape']['name']} {entry['weights']}",
            _tail(entry["percentiles_us"]),
            _tail(entry["arithmetic_us"]) if entry.get("arithmetic_us") else None,
        )
        for entry in record.get("latency", [])
    ]


def _tail(percentiles: dict[str, float]) -> float:
    p50, _, last = percentiles.values()
    return last / p50


def _lost(weights: str) -> Callable[[dict[str, Any]], Figures]:
    """The bits per character that the demo's model loses with weights in a format."""
    return lambda record: [
        Figure(
            f"{entry['cell']} {entry['hidden']}",
            entry["bits"][weights] - entry["bits"]["float32"],
        )
        for entry in record.get("characters", [])
    ]


def _lost_in_training(record: dict[str, Any]) -> Figures:
    """The bits per character that a model loses if it is trained, and run, in bfloat16."""
    return [
        Figure(f"{entry['cell']} {entry['hidden']}", bits - entry["bits"]["float32"])
        for entry in record.get("characters", [])
        for bits in entry.get("trained_in", {}).values()
    ]


def _step(
    name: str, figure: Measure, each: float, at_most: bool = False, bound: Measure | None = None
) -> Floor:
    return Floor(f"streams: {name}", of_rows(figure, STREAMS, bound), each, at_most=at_most)


def _against_run(name: str, is_about: Callable[[Row], bool], each: float) -> Floor:
    figure = _where(is_about, lambda row: row.ratio(peers.RUN))
    return _step(f"a step against ONNX Runtime's run, {name}", figure, each, bound=at_bound(figure))


def _sequence(name: str, figure: Measure, each: float, mode: str = "inference") -> Floor:
    return Floor(f"sequences, {name}", of_rows(figure, PRECISION, mode=mode), each)


def _in_bfloat16(name: str, figure: Measure, each: float, mode: str = "inference") -> Floor:
    figures = of_rows(figure, PRECISION, _at_low_bound(figure), mode=mode)
    return Floor(f"sequences, bfloat16{name}", figures, each)


FLOORS = (
    _against_run("H ≤ 128", lambda row: row.case.shape.H <= 128, 8.0),
    _against_run("H = 512", lambda row: row.case.shape.H == 512, 1.8),
    _step("in C against RTNeural", over_rtneural, 1.2, bound=_over_rtneural_at_bound),
    # For longer steps, the difference is smaller than the variation of the times.
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
    _in_bfloat16(
        " over float32, H ≥ 256",
        _where(_has_256, over_float32(OURS_IN["bfloat16"])),
        1.6,
    ),
    _in_bfloat16(" against torch's, H ≥ 256", _where(_has_256, _over_torch("bfloat16")), 1.1),
    _in_bfloat16(
        " against torch's, H < 256",
        _where(lambda row: not _has_256(row), _over_torch("bfloat16")),
        1.3,
    ),
    _sequence("int8 against torch's dynamic int8", _over_torch("int8"), 1.3),
    _in_bfloat16(
        " over float32, training",
        over_float32(OURS_IN["bfloat16"]),
        1.3,
        mode="training",
    ),
    *(
        _in_bfloat16(
            f", fraction of the peak, H ≥ 256, {mode}",
            _where(_has_256, fraction_of_peak),
            0.8,
            mode=mode,
        )
        for mode in MODES
    ),
)
