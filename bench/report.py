"""Writes docs/BENCHMARKS.md and its pictures from a record."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from bench import floors, low_pictures, low_report, memory, peers, pictures, records
from bench.markdown import table
from bench.records import Row
from bench.shapes import CELLS, FALLBACK, MODES, SHAPES, SHORTEST, WAYS

PAGE = "BENCHMARKS.md"
PICTURES = {
    "bench-speedup.png": (pictures.speedup, "How many times as long the other libraries take"),
    "bench-torch.png": (pictures.dropin, "How many times as fast rnnfast.torch is as torch.nn"),
    "bench-roofline.png": (pictures.roofline, "The fraction of the machine's limit"),
    "bench-scaling.png": (pictures.scaling, "Time against T, B and H on log axes"),
    "bench-latency.png": (low_pictures.latency, "How long single steps of a stream take"),
    "bench-precision.png": (low_pictures.precision, "Relative error and time by precision"),
}
NAMES = {
    "torch": "torch",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "jax": "JAX",
    peers.YARDSTICK: "yardstick",
    peers.ONE_THREAD: "one thread",
    peers.NEW_WEIGHTS: "new weights",
    peers.NUMBA: "Numba",
}
HOW = """\
Every answer is compared with ours (output, and in training every gradient) before it is timed. Each
case has a process of its own, which the cells of a shape share in the preset torch, pinned to its
cores; the libraries run in turn, in blocks of about 10 ms, on inputs that rotate. Times are
medians; a ratio is the median over rounds of a library's time in a round over ours in the same
round, so above 1 we are faster.

Training is a forward pass and the gradients of the input and of all parameters. The weights stay as
they are between steps; *new weights* is ours where they are packed anew in each, over ours where
they are not.
"""
BOUND = """\
The bound is what the core could do at best, from the peak of its arithmetic, the bandwidth of
reading the weights from the cache they lie in and of writing their gradients, and the cost of the
activations, all measured in the same process; [`bench/roofline.py`](../bench/roofline.py) has the
formula. It is stretched by how much longer arithmetic took in the rounds than at its best
([`bench/pace.py`](../bench/pace.py)), as a machine that others use too is seldom at its best. What
a floor's figure would be at the bound stands beside it. Of two threads that is what arithmetic
gains by them, less what it takes them to meet (more where each has its weights nearer); of
rnnfast.torch, that it takes the bound, or the layer's own time where none is known, and in training
what torch does where nothing is computed.
"""
DROPIN = """\
Modules of [`rnnfast.torch`](../rnnfast/torch) beside those of `torch.nn`, with the same weights and
tensors, ragged lengths as a PackedSequence: torch.nn's time over rnnfast.torch's in the same round,
so above 1 rnnfast.torch is faster. Inference is in torch's inference mode.
"""
IN_OTHER_WAYS = """\
Training, by modules used in other ways: a loop in Python that calls a cell (`-cells`) or a layer
(`-steps`) for each step; a layer from a PackedSequence to a PackedSequence, without torch's packing
and padding, which above are part of the step; and a layer between two linear ones (`-model`), whose
time is a part of both. The layer is rnnfast's, from NumPy, over the same steps in one call.
"""
COST = """\
What rnnfast.torch takes beyond rnnfast's layer, which takes and gives NumPy's arrays, where nearly
nothing is to be computed. *Autograd's* is what torch takes of a training step of a layer that
computes nothing: about the least of ours.
"""


def write(record: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the page, and the pictures for which the record has figures; returns their paths.

    Raises
    ------
    OSError : the folder does not exist, or cannot be written to.
    """
    written = []
    for name, (draw, _) in PICTURES.items():
        figure = draw(record)
        if figure is not None:
            figure.savefig(folder / name, format="png", pil_kwargs={"optimize": True})
            written.append(folder / name)
    page = folder / PAGE
    lines = _page(record, [path.name for path in written])
    page.write_text("\n".join(lines) + "\n")
    return [page, *written]


def _page(record: dict[str, Any], drawn: list[str]) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield f"Written by `python -m bench --report`. {_conditions(record)}"
    if records.disturbed(record):
        yield f"**{records.disturbed(record)}**"
    yield ""
    yield HOW
    for name in drawn:
        yield f"![{PICTURES[name][1]}]({name})"
        yield ""
    yield from _floors(record)
    yield from _cells(record)
    yield from _dropin(record)
    yield from low_report.lines(record)
    yield from _double(record)
    yield from _fallback(record)
    yield from _memory(record)
    yield from _machine(record)
    problems = records.errors(record)
    if problems:
        yield from ["## Errors", "", *(f"* {problem}" for problem in problems), ""]


def _conditions(record: dict[str, Any]) -> str:
    machine, versions = record["machine"], record["versions"]
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{record['date'][:10]}, commit {record['commit'] or 'unknown'}, preset "
        f"{record['options']['preset']}; {machine['cpu']}, cores used: {machine['cores']}, "
        f"{caches}; {machine['system']}; backend {machine['backend']}, "
        f"ISA {machine['isa']}{' with AMX' if machine.get('amx') else ''}; {packages}."
    )


def _floors(record: dict[str, Any]) -> Iterator[str]:
    yield from ["## Floors", "", "What `python -m bench --check` asks for; float32.", ""]
    yield from floors.lines(floors.check(record)[0])


def _cells(record: dict[str, Any]) -> Iterator[str]:
    found = [row for row in records.rows(record) if row.case.dtype == "float32"]
    yield from ["## Times", "", "float32; shapes are T-B-I-H.", "", BOUND]
    slowed = records.slowed(record)
    if slowed is not None:
        yield f"Here that was {slowed[0]:.2f} times in the median row, {slowed[1]:.2f} at most."
        yield ""
    for cell in CELLS:
        for mode in MODES:
            for threads in sorted({row.case.threads for row in found}):
                wanted = [
                    row
                    for row in found
                    if (row.case.cell, row.mode, row.case.threads) == (cell, mode, threads)
                ]
                if wanted:
                    yield from [f"### {cell.upper()}, {mode}, {_counted(threads)}", ""]
                    yield from _times(wanted)


def _times(rows: list[Row]) -> Iterator[str]:
    """A table with a line for each row, and a column for each contender of any row."""
    others = [name for name in NAMES if any(name in row.ratios for row in rows)]
    bounds = any(row.fraction is not None for row in rows)
    lines = []
    for row in rows:
        shape = row.case.shape
        line = [shape.name, SHAPES[shape.name].use if shape.name in SHAPES else ""]
        line.append(f"{row.ours:.4g}")
        ratios = [row.ratio(name) for name in others]
        line += ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
        if bounds:
            line.append("" if row.fraction is None else f"{row.fraction:.2f}")
        lines.append(line)
    header = ["shape", "use", "µs", *(f"× {NAMES[name]}" for name in others)]
    yield from table([*header, "of the bound"] if bounds else header, lines)


def _counted(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def _dropin(record: dict[str, Any]) -> Iterator[str]:
    """The tables of rnnfast.torch; nothing if it was not timed beside torch.nn."""
    rows, *ways = (
        [row for row in records.rows(record, section) if row.dropin_speedup]
        for section in ("results", *WAYS)
    )
    rows = [row for row in rows if row.case.dtype == "float32"]
    in_other_ways = list(chain.from_iterable(ways))
    if not rows + in_other_ways:
        return
    yield from ["## rnnfast.torch", "", DROPIN]
    for threads in sorted({row.case.threads for row in rows}):
        yield from [f"### {_counted(threads).capitalize()}", ""]
        yield from _speedups([row for row in rows if row.case.threads == threads])
    if in_other_ways:
        yield from ["### Loops over steps, PackedSequences and models", "", IN_OTHER_WAYS]
        header = ["cell", "shape", "threads", "torch.nn µs", "rnnfast.torch µs", "×", "layer µs"]
        yield from table(header, [_in_other_way(row) for row in in_other_ways])
    shortest = [row for row in rows if row.case.shape.name == SHORTEST]
    if shortest:
        yield from ["### Its own cost", "", COST]
        header = [
            "cell",
            "mode",
            "threads",
            "layer µs",
            "rnnfast.torch µs",
            "µs of its own",
            "autograd's",
        ]
        yield from table(header, [_own_cost(row) for row in shortest])


def _speedups(rows: list[Row]) -> Iterator[str]:
    """A table with a line for each shape, and a column for each mode and cell."""
    found = {
        (row.case.shape.name, row.mode, row.case.cell): f"{row.dropin_speedup['median']:.2f}"
        for row in rows
        if row.dropin_speedup
    }
    columns = [(mode, cell) for mode in MODES for cell in CELLS]
    lines = [
        [shape.name, shape.use, *(found.get((shape.name, *column), "") for column in columns)]
        for shape in {row.case.shape.name: row.case.shape for row in rows}.values()
    ]
    header = ["shape", "use", *(f"{cell.upper()} {mode}" for mode, cell in columns)]
    yield from table(header, lines)


def _in_other_way(row: Row) -> list[str]:
    torch, own = (row.times[name]["median"] for name in peers.MODULES)
    speedup = f"{row.dropin_speedup['median']:.2f}" if row.dropin_speedup else ""
    case = row.case
    sizes = [case.cell.upper(), case.shape.name, str(case.threads)]
    return [*sizes, f"{torch:.4g}", f"{own:.4g}", speedup, f"{row.ours:.4g}"]


def _own_cost(row: Row) -> list[str]:
    own, cost = row.times[peers.DROPIN]["median"], row.dropin_cost
    sizes = [row.case.cell.upper(), row.mode, str(row.case.threads)]
    function = "" if row.function is None else f"{row.function:.4g}"
    return [*sizes, f"{row.ours:.4g}", f"{own:.4g}", f"{cost:.4g}", function]


def _double(record: dict[str, Any]) -> Iterator[str]:
    found = [row for row in records.rows(record) if row.case.dtype == "float64"]
    if not found:
        return
    yield from ["## float64", ""]
    lines = []
    for row in found:
        ratio, fraction = row.ratio("torch"), row.fraction
        lines.append(
            [
                f"{row.case.cell.upper()} {row.case.shape.name}",
                row.mode,
                f"{row.ours:.4g}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if fraction is None else f"{fraction:.2f}",
            ]
        )
    yield from table(["case", "mode", "µs", "× torch", "of the bound"], lines)


def _fallback(record: dict[str, Any]) -> Iterator[str]:
    found = records.rows(record, FALLBACK)
    if not found:
        return
    yield from ["## Without the compiled module", "", "float32, one thread, by Numba.", ""]
    for mode in MODES:
        yield from [f"### {mode.capitalize()}", ""]
        lines = [
            [row.case.cell.upper(), row.case.shape.name, f"{row.ours:.4g}", *map(_ratio, others)]
            for row in found
            if row.mode == mode
            for others in [[row.ratio(peers.NUMBA), row.over("torch", peers.NUMBA)]]
        ]
        header = ["cell", "shape", "compiled, µs", "Numba's over it", "torch's over Numba's"]
        yield from table(header, lines)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _memory(record: dict[str, Any]) -> Iterator[str]:
    if not record["memory"]:
        return
    yield from ["## Peak memory of a training step", ""]
    yield "MiB above inputs and weights, float32, one thread, each in a fresh process. *Results*"
    yield "is what every step holds at its end: the output, and gradients of x and all parameters."
    yield ""
    lines = []
    for case, mib in records.memory(record).items():
        values = [*(mib.get(name) for name in memory.CONTENDERS), memory.results(case)]
        numbers = ("" if v is None else f"{v:.1f}" for v in values)
        lines.append([case.cell.upper(), case.shape.name, *numbers])
    yield from table(["cell", "shape", *memory.CONTENDERS, "results"], lines)


def _machine(record: dict[str, Any]) -> Iterator[str]:
    if record["levels"] is None:
        return
    yield from ["## The machine", "", "One core: GFLOP/s, and GB/s read from each level.", ""]
    header = ["dtype", "", *next(iter(record["levels"].values()))]
    lines = [
        [dtype, "", *(f"{value:.0f}" for value in levels.values())]
        for dtype, levels in record["levels"].items()
    ]
    yield from table(header, lines)
