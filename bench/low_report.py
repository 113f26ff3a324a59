"""The sections of docs/BENCHMARKS.md on streams and low precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench import low_floors, low_precision, peers, records
from bench.markdown import table
from bench.peers import BASELINE, OURS_IN, TORCH_IN
from bench.records import Row
from bench.shapes import MODES, PRECISION, STREAMS
from rnnfast._low_precision import FORMATS

STEPS = """\
`stream.step(x, out)` from Python, B = 1, one thread, in µs; *in C* is `rnnfast_run` of the C
library over many steps, a loop without Python. *At best* is what reading the weights once or their
arithmetic takes, and the activations, as in the bound of layers. ONNX Runtime takes one step with
its state passed, by `run` and, *bound*, by `run_with_iobinding`: their times over the step from
Python. bfloat16 and int8: how many times as fast as float32 their steps are, and the bytes of their
weights over float32's.

RTNeural's time stands over that of the step in C. Its times are no part of this run: a library in
C++, its sizes fixed at compile time (-march=native -ffast-math), timed on one core of an AMD EPYC
(family 25, model 17).
"""
SINGLE = """\
Single steps from Python, timed one by one with the clock's reading included, in µs. The core's
share is the part of the time in which no other process had it. *Arithmetic*: of as long a stretch
of it after each step, which reads nothing but registers; what takes longer there, the machine does.
"""
ERRORS = f"""\
‖got − want‖ / ‖want‖ of {low_precision.ACCURACY_STEPS} outputs of a stream beside those in float32:
random weights, as a layer has them at first, and normal inputs.
"""
CHARACTERS = """\
Bits per character on the held-out text of the demo's model, trained in float32, by how its weights
are kept.
"""
SEQUENCES = """\
A layer over whole sequences, one thread: ours in float32 in µs, and how many times as fast ours and
torch's are in low precision: `torch.nn`'s module in bfloat16, and `quantize_dynamic` to int8. *Of
the peak* is the part of the core's bfloat16 arithmetic that ours in bfloat16 reaches in inference.
"""


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The lines of those sections for which the record has figures."""
    steps = records.rows(record, STREAMS)
    if steps:
        yield from ["## Streams", "", STEPS]
        yield from _steps(steps)
    if record.get("latency"):
        yield from ["### Single steps", "", SINGLE]
        yield from _latency(record["latency"])
    sequences = records.rows(record, PRECISION)
    if not steps and not sequences and not record.get("characters"):
        return
    yield from ["## Low precision", ""]
    if steps:
        yield from ["### Errors of streams", "", ERRORS]
        header = ["cell", "I → H", *FORMATS]
        yield from table(header, [_errors(row) for row in steps])
    if record.get("characters"):
        yield from ["### The demo", "", CHARACTERS]
        yield from _characters(record["characters"])
    if sequences:
        yield from ["### Sequences", "", SEQUENCES]
        yield from _sequences(sequences)


def _number(value: float | None, digits: str = ".2f") -> str:
    return "" if value is None else f"{value:{digits}}"


def _sizes(row: Row) -> list[str]:
    return [row.case.cell.upper(), f"{row.case.shape.I} → {row.case.shape.H}"]


def _steps(rows: list[Row]) -> Iterator[str]:
    found = []
    for row in rows:
        in_c = row.times.get(peers.IN_C)
        speeds = (low_floors.over_float32(name)(row) for name in FORMATS)
        parts = (low_floors.bytes_ratio(name)(row) for name in FORMATS)
        found.append(
            [
                *_sizes(row),
                f"{row.ours:.3g}",
                _number(in_c and in_c["median"], ".3g"),
                _number(row.bound, ".3g"),
                _number(low_floors.over_rtneural(row)),
                _number(row.ratio(peers.RUN)),
                _number(row.ratio(peers.BOUND_RUN)),
                *map(_number, speeds),
                *map(_number, parts),
            ]
        )
    against = ["× RTNeural", "× ONNX Runtime", "× bound"]
    low = [f"{name} {what}" for what in ("×", "bytes") for name in FORMATS]
    yield from table(["cell", "I → H", "µs", "in C", "at best", *against, *low], found)


def _latency(entries: list[dict[str, Any]]) -> Iterator[str]:
    found = []
    for entry in entries:
        shape, percentiles = entry["case"]["shape"], entry["percentiles_us"]
        layer = f"{entry['case']['cell'].upper()} {shape['I']} → {shape['H']}"
        share = f"{entry['share']:.2f}"
        times = [f"{value:.4g}" for value in percentiles.values()]
        others = entry.get("arithmetic_us") or dict.fromkeys(percentiles)
        beside = [_number(value, ".4g") for value in others.values()]
        found.append([layer, entry["weights"], f"{entry['steps']:,}", *times, *beside, share])
    names = [f"p{name}" for name in entries[0]["percentiles_us"]]
    beside = [f"arithmetic, {name}" for name in names]
    yield from table(["layer", "weights", "steps", *names, *beside, "core's share"], found)


def _errors(row: Row) -> list[str]:
    errors = row.relative_error or {}
    return [*_sizes(row), *(_number(errors.get(name), ".1e") for name in FORMATS)]


def _characters(entries: list[dict[str, Any]]) -> Iterator[str]:
    yield from table(
        ["cell, H", "updates", *entries[0]["bits"], "trained in bfloat16"],
        [
            [
                f"{entry['cell'].upper()}, {entry['hidden']}",
                str(entry["updates"]),
                *(f"{bits:.4f}" for bits in entry["bits"].values()),
                _number(entry.get("trained_in", {}).get("bfloat16"), ".4f"),
            ]
            for entry in entries
        ],
    )


def _sequences(rows: list[Row]) -> Iterator[str]:
    contenders = [*OURS_IN.values(), *TORCH_IN.values()]
    found = [
        [
            f"{row.case.cell.upper()} {row.case.shape.name}",
            row.mode,
            f"{row.ours:.4g}",
            *(_number(row.over(BASELINE, name)) for name in contenders),
            _number(low_floors.fraction_of_peak(row)),
        ]
        for mode in MODES
        for row in rows
        if row.mode == mode
    ]
    yield from table(["case", "mode", "µs", *contenders, "of the peak"], found)
