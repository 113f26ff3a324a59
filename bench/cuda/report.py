"""Writes GPU-BENCHMARKS.md from a record of a device."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from bench import floors as host_floors
from bench.cuda import floors
from bench.cuda.cases import DTYPES, NAMES, OURS, Case
from bench.cuda.latencies import NAMES as LATENCIES
from bench.markdown import table
from bench.shapes import CELLS, MODES

PAGE = "GPU-BENCHMARKS.md"
HOW = """\
One layer in one direction, as wide an input as its state. Every answer (output, and in training the
gradients of the input and of all parameters) is within a tolerance of torch.nn's in float64 on the
same values before it is timed. Contenders run in turn, in blocks of about 5 ms between two events
on one stream; times are medians, and hold the host's part where that is longer. A ratio is the
median over rounds of a contender's time over ours in the same round: above 1 ours is faster.
*torch.nn* is cuDNN in the same dtype, float32 without TF32; *TF32* is cuDNN as torch has it unless
told otherwise, which rounds what is multiplied to 11 bits.
"""


def entries(record: dict[str, Any]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """The case and the entry of each measurement."""
    yield from ((Case.from_dict(entry["case"]), entry) for entry in record["results"])


def write(record: dict[str, Any], folder: Path) -> Path:
    """Writes the page, and returns its path.

    Raises
    ------
    OSError : the folder does not exist, or cannot be written to.
    """
    page = folder / PAGE
    page.write_text("\n".join(lines(record)) + "\n")
    return page


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    yield from ["# Benchmarks on a GPU", "", _conditions(record), "", HOW]
    yield from _latencies(record["latencies_ns"])
    yield from ["## Floors", "", "What `python -m bench --device cuda --check` asks for.", ""]
    yield from host_floors.lines(floors.check(record)[0])
    for cell, dtype, mode in product(CELLS, DTYPES, MODES):
        found = [
            (case, entry)
            for case, entry in entries(record)
            if (case.cell, case.dtype, entry["mode"]) == (cell, dtype, mode)
        ]
        if found:
            yield from [f"## {cell.upper()}, {dtype}, {mode}", "", "Shapes are T-B-H.", ""]
            yield from _times(found)
    absent = [
        f"* {case} {entry['mode']}: {name}: {reason}"
        for case, entry in entries(record)
        for name, reason in entry["absent"].items()
    ]
    if absent:
        yield from ["## Not timed", "", *absent, ""]
    problems = floors.errors(record)
    if problems:
        yield from ["## Errors", "", *(f"* {problem}" for problem in problems), ""]


def _conditions(record: dict[str, Any]) -> str:
    device = record["device"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    absent = "; ".join(f"no {name}: {reason}" for name, reason in record["absent"].items())
    return (
        f"Written by `python -m bench --device cuda --report`. {record['date'][:10]}, commit "
        f"{record['commit'] or 'unknown'}; {device['name']}, compute capability "
        f"{device['capability']}, {device['processors']} processors, {device['memory_gib']} GiB, "
        f"driver {device['driver'] or 'unknown'}; {versions}.{f' {absent}.' if absent else ''}"
    )


def _latencies(found: dict[str, Any]) -> Iterator[str]:
    yield from ["## Latencies", ""]
    if "error" in found:
        yield from [found["error"], ""]
        return
    cluster = f", {found['cluster']} blocks to a cluster" if "cluster" in found else ""
    yield from [f"{found['processors']} processors{cluster}.", ""]
    rows = [[text, "", f"{found[name]:.0f}"] for name, text in LATENCIES.items() if name in found]
    yield from table(["exchange", "", "ns"], rows)


def _times(found: list[tuple[Case, dict[str, Any]]]) -> Iterator[str]:
    others = [n for n in NAMES if n != OURS and any(n in entry["ratios"] for _, entry in found)]
    rows = []
    for case, entry in found:
        ours, ratios = entry["times_us"].get(OURS), entry["ratios"]
        step = "" if ours is None else f"{ours['median'] / case.T:.3g}"
        row = [case.shape, "", "" if ours is None else f"{ours['median']:.4g}", step]
        rows.append([*row, *(f"{ratios[n]['median']:.2f}" if n in ratios else "" for n in others)])
    yield from table(["shape", "", "µs", "µs a step", *(f"× {name}" for name in others)], rows)
