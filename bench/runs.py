"""A whole benchmark: makes the list of tasks, and runs each one in a process of its own."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import ROOT, machine, memory, peers, records
from bench.low_precision import WEIGHTS
from bench.shapes import (
    CELLS,
    FALLBACK,
    FALLBACK_SHAPES,
    PRECISION,
    PRECISION_SHAPES,
    PRESETS,
    SHAPES,
    STREAM_SHAPES,
    STREAMS,
    WAYS,
    Case,
    scaling_shapes,
)
from bench.worker import thread_environment

TASK_LIMIT = 900  # seconds; a worker that takes longer is considered to hang
SWEEP_SECONDS = 0.1
SWEPT = ("ours", "torch")


@dataclass(frozen=True)
class Options:
    """The choices of the command line; an empty tuple of shapes: all those of the preset."""

    preset: str = "quick"
    cells: tuple[str, ...] = CELLS
    shapes: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1, 2)
    peers: tuple[str, ...] = tuple(peers.PEERS)
    yardstick: str | None = None


@dataclass(frozen=True)
class Task:
    """The work of one worker.

    section : the section of the record that takes its result.
    label : its name in progress and errors.
    threads : the number of threads, and of cores, of the worker.
    fields : the JSON that the worker reads, but for its cores.
    """

    section: str
    label: str
    threads: int
    fields: dict[str, Any]


class WorkerFailed(Exception):
    """A worker crashed, hung, or reported an error."""


def contenders_for(options: Options) -> tuple[list[str], dict[str, str]]:
    """The names of the peers to time, ours first; and, by name, why the others are missing."""
    absent, preset = {}, PRESETS[options.preset]
    for name in peers.PEERS:
        reason = peers.missing(name, options.yardstick)
        if name != peers.BASELINE and name not in options.peers:
            reason = "not asked for"
        elif (peers.PEERS[name].slow and not preset.slow_peers) or (
            preset.peers and name not in preset.peers
        ):
            reason = f"not in the preset {options.preset}"
        if reason:
            absent[name] = reason
    return [name for name in peers.PEERS if name not in absent], absent


def tasks(options: Options, names: list[str]) -> Iterator[Task]:
    """All tasks that the options ask for, in the order in which they run."""
    preset = PRESETS[options.preset]
    shapes = [SHAPES[name] for name in options.shapes or preset.shapes if name in SHAPES]
    yield Task(
        "levels", "peak and bandwidths", 1, {"kind": "levels", "dtypes": ["float32", "float64"]}
    )
    for threads in options.threads:
        for shape in shapes:
            cases = [Case(c, shape, threads=threads) for c in shape.cells if c in options.cells]
            label = f"{shape.name} threads={threads}"
            if not preset.shared:
                yield from (_timing(case, names, options) for case in cases)
            elif cases:
                yield _sweep("results", label, cases, names, preset.seconds)
    for shape in shapes:
        if 1 in options.threads and shape.name in preset.double:
            for cell in options.cells:
                yield _timing(Case(cell, shape, "float64"), names, options)
    yield from _ways(options, names)
    if 1 in options.threads:
        yield from _streams(options, names)
        yield from _precision(options, names)
        yield from _fallback(options, names)
    yield from _memory(options, names)
    if not options.shapes and 1 in options.threads:
        for axis, values in preset.scaling.items():
            for cell in options.cells:
                cases = [Case(cell, shape) for shape in scaling_shapes(axis, values)]
                swept = [name for name in SWEPT if name in names]
                yield _sweep("scaling", f"{cell} against {axis}", cases, swept, SWEEP_SECONDS)


def _timing(case: Case, names: list[str], options: Options) -> Task:
    preset = PRESETS[options.preset]
    with_slow = case.shape.name in preset.slow_peers
    fields = {
        "kind": "time",
        "case": asdict(case),
        "contenders": [name for name in names if with_slow or not peers.PEERS[name].slow],
        "seconds": preset.seconds,
        "yardstick": options.yardstick,
    }
    return Task("results", str(case), case.threads, fields)


def _sweep(
    section: str, label: str, cases: list[Case], names: list[str], seconds: float, **options: str
) -> Task:
    """A task for cases with one number of threads, which share a process."""
    fields = {
        "kind": "sweep",
        "cases": [asdict(case) for case in cases],
        "contenders": names,
        "seconds": seconds,
        **options,
    }
    return Task(section, label, cases[0].threads, fields)


def _ways(options: Options, names: list[str]) -> Iterator[Task]:
    preset = PRESETS[options.preset]
    modules = [peers.BASELINE, *(name for name in peers.MODULES if name in names)]
    for section, shapes in WAYS.items() if modules[1:] else ():
        wanted = options.shapes or (shapes if preset.ways else ())
        for threads in options.threads:
            for shape in (shapes[name] for name in wanted if name in shapes):
                cases = [Case(cell, shape, threads=threads) for cell in options.cells]
                label = f"{shape.name} threads={threads}"
                yield _sweep(section, label, cases, modules, preset.seconds, way=section)


def _streams(options: Options, names: list[str]) -> Iterator[Task]:
    preset = PRESETS[options.preset]
    wanted = options.shapes or preset.streams
    for shape in (STREAM_SHAPES[name] for name in wanted if name in STREAM_SHAPES):
        cases = [asdict(Case(cell, shape)) for cell in options.cells]
        fields = {"cases": cases, "contenders": names, "seconds": preset.seconds}
        yield Task(STREAMS, shape.name, 1, {"kind": "steps", **fields})


def _precision(options: Options, names: list[str]) -> Iterator[Task]:
    preset = PRESETS[options.preset]
    wanted = options.shapes or (PRECISION_SHAPES if preset.precision else ())
    for shape in (PRECISION_SHAPES[name] for name in wanted if name in PRECISION_SHAPES):
        for case in (Case(cell, shape) for cell in shape.cells if cell in options.cells):
            fields = {"case": asdict(case), "contenders": names, "seconds": preset.seconds}
            yield Task(PRECISION, str(case), 1, {"kind": "precision", **fields})
    if preset.precision and not options.shapes and "lstm" in options.cells:
        case = asdict(Case("lstm", STREAM_SHAPES["1-1-256-256-stream"]))
        for weights in WEIGHTS:
            fields = {"case": case, "weights": weights}
            yield Task("latency", f"latency in {weights}", 1, {"kind": "latency", **fields})
        yield Task("characters", "the demo's model", 1, {"kind": "characters", "cell": "lstm"})


def _fallback(options: Options, names: list[str]) -> Iterator[Task]:
    if not importlib.util.find_spec("numba"):
        return
    wanted = options.shapes or (FALLBACK_SHAPES if PRESETS[options.preset].fallback else ())
    for shape in (FALLBACK_SHAPES[name] for name in wanted if name in FALLBACK_SHAPES):
        for case in (Case(cell, shape) for cell in options.cells):
            fields = {"case": asdict(case), "contenders": names}
            seconds = PRESETS[options.preset].seconds
            yield Task(FALLBACK, str(case), 1, {"kind": "fallback", "seconds": seconds, **fields})


def _memory(options: Options, names: list[str]) -> Iterator[Task]:
    preset = PRESETS[options.preset]
    wanted = [n for n in preset.memory if not options.shapes or n in options.shapes]
    if not memory.available() or 1 not in options.threads:
        return
    for name in wanted:
        for cell in SHAPES[name].cells:
            for contender in memory.CONTENDERS:
                if cell in options.cells and (contender in names or contender == peers.RECOMPUTE):
                    fields = {
                        "kind": "memory",
                        "case": asdict(Case(cell, SHAPES[name])),
                        "contender": contender,
                    }
                    yield Task("memory", f"memory of {contender}, {cell} {name}", 1, fields)


def run_worker(task: dict[str, Any], threads: int, cpus: list[int]) -> Any:
    """Runs one task in a process of its own on `cpus`; returns its result.

    Raises
    ------
    WorkerFailed : the process failed; the text says why.
    """
    search = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {
        **os.environ,
        **thread_environment(threads),
        "PYTHONPATH": os.pathsep.join([*search, str(ROOT)]),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.worker"],
            input=json.dumps({**task, "cpus": cpus}),
            env=environment,
            capture_output=True,
            text=True,
            timeout=TASK_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise WorkerFailed(f"no answer in {TASK_LIMIT} s") from None
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise WorkerFailed(f"exit status {done.returncode}: {last[0]}") from None
    if "error" in answer:
        raise WorkerFailed(answer["error"])
    return answer["result"]


def run(options: Options) -> dict[str, Any]:
    """Runs the benchmark; returns the record, which can be written as JSON."""
    names, absent = contenders_for(options)
    for name, reason in absent.items():
        print(f"{name}: left out, {reason}", file=sys.stderr)
    cpus = machine.cores()
    record: dict[str, Any] = {
        "format": records.FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": {
            **asdict(options),
            "yardstick": options.yardstick and Path(options.yardstick).name,
        },
        "missing": absent,
        "levels": None,
        **{section: [] for section in records.SECTIONS},
        "latency": [],
        "characters": [],
        "memory": [],
        "errors": [],
    }
    started = time.perf_counter()
    for task in _progress(list(tasks(options, names))):
        if task.threads > len(cpus):
            record["missing"][f"{task.threads} threads"] = f"{len(cpus)} core(s) to run on"
            continue
        try:
            # Workers get the last cores, because the system's own work prefers the first ones.
            result = run_worker(task.fields, task.threads, cpus[-task.threads :])
        except WorkerFailed as error:
            record["errors"].append({"task": task.label, "error": str(error)})
            print(f"\n{task.label}: {error}", file=sys.stderr)
            continue
        if task.section == "levels":
            record["levels"] = result
        elif task.section == "memory":
            case, contender = task.fields["case"], task.fields["contender"]
            record["memory"].append({"case": case, "contender": contender, "mib": round(result, 3)})
        else:
            record[task.section] += result
    record["seconds"] = round(time.perf_counter() - started)
    return record


def _progress(items: list[Task]) -> Iterator[Task]:
    """The tasks, with a progress bar on stderr, or plain lines if tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        for number, item in enumerate(items, 1):
            print(f"{number}/{len(items)} {item.label}", file=sys.stderr)
            yield item
        return
    with tqdm(items, file=sys.stderr, unit="task", dynamic_ncols=True) as bar:
        for item in bar:
            bar.set_description(item.label)
            yield item
