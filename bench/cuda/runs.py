"""A whole benchmark on a device, in one process."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bench import machine, validation
from bench.cuda import contenders as peers
from bench.cuda import latencies
from bench.cuda.cases import FLASHRNN, GOAL, NAMES, OURS, Case, cases
from bench.cuda.contenders import Contender, Problem
from bench.cuda.device import Device
from bench.records import FORMAT
from bench.shapes import CELLS, MODES
from bench.timing import spread_of
from rnnfast.torch import cuda as kernels

# A block is long compared to the cost of an event. A round of blocks is short compared to the time
# in which the device's clock rate changes.
BLOCK_SECONDS = 0.005
MIN_ROUNDS = 7
MOST_ROUNDS = 50
PACKAGES = ("numpy", "torch", "flashrnn")

TimeBlock = Callable[[Callable[[], object], int], float]


@dataclass(frozen=True)
class Options:
    """The choices of the command line; no shapes: all. seconds : per contender, case and mode."""

    cells: tuple[str, ...] = CELLS
    shapes: tuple[str, ...] = ()
    seconds: float = 0.1


def interleave(
    runs: Mapping[str, Callable[[], object]], time_block: TimeBlock, seconds: float
) -> dict[str, np.ndarray]:
    """The seconds of a call in each round, by contender; contenders take turns to be first."""
    calls, block = {}, {}
    for name, run in runs.items():
        time_block(run, 2)  # this compiles, allocates and chooses algorithms
        once = time_block(run, 1)
        calls[name] = max(1, round(BLOCK_SECONDS / once))
        block[name] = once * calls[name]
    wanted = int(seconds * len(runs) / sum(block.values()))
    rounds = min(MOST_ROUNDS, max(MIN_ROUNDS, wanted))
    names, times = list(runs), {name: np.empty(rounds) for name in runs}
    for k in range(rounds):
        for offset in range(len(names)):
            name = names[(k + offset) % len(names)]
            times[name][k] = time_block(runs[name], calls[name])
    return times


def measure(case: Case, device: Device, seconds: float) -> list[dict[str, Any]]:
    """One entry for each mode: the times of contenders that agree with torch in float64."""
    problem = Problem(case, device.where)
    want = problem.reference("training")
    made = {name: peers.make(name, problem) for name in NAMES if not peers.missing(name, case)}
    entries = []
    for mode in MODES:
        wanted = want if mode == "training" else {"output": want["output"]}
        right: dict[str, Contender] = {}
        errors: dict[str, str] = {}
        absent: dict[str, str] = {}
        for name, contender in made.items():
            error = disagreement(name, contender, problem, mode, wanted)
            if error is None:
                right[name] = contender
            elif name == FLASHRNN and not error.startswith(validation.Mismatch.__name__):
                absent[name] = error  # that it does not compile is no error of ours
            else:
                errors[name] = error
        entries.append(
            {
                "case": asdict(case),
                "mode": mode,
                **_times(right, problem, mode, device.time_block, seconds),
                "errors": errors,
                "absent": absent,
            }
        )
    return entries


def disagreement(
    name: str, contender: Contender, problem: Problem, mode: str, want: dict[str, torch.Tensor]
) -> str | None:
    """Why a contender must not be timed, as its answer is wrong; None if it is right."""
    case = problem.case
    try:
        if name == OURS and not kernels.runs(next(iter(contender.parameters))):
            return "runs by torch, and not by the kernels"
        contender.prepare(mode)
        got = contender.answer(problem.x, problem.dy, mode)
        validation.compare(got, want, contender.precision or case.dtype, _relative_error)
    except Exception as error:  # the benchmark reports any error and goes on
        return f"{type(error).__name__}: {error}"
    return None


def _relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """‖got − want‖ / ‖want‖, computed on the device of the tensors."""
    norm = torch.linalg.vector_norm
    return float(norm(got.double() - want) / norm(want).clamp(min=1e-300))


def _times(
    made: Mapping[str, Contender],
    problem: Problem,
    mode: str,
    time_block: TimeBlock,
    seconds: float,
) -> dict[str, Any]:
    x = problem.x.detach().requires_grad_(mode == "training")

    def within(contender: Contender) -> Callable[[], object]:
        return lambda: contender.run(x, problem.dy, mode)

    runs = {name: within(contender) for name, contender in made.items()}
    contexts = {runs[name]: contender.context for name, contender in made.items()}

    def in_context(run: Callable[[], object], calls: int) -> float:
        with contexts[run]():
            return time_block(run, calls)

    times = interleave(runs, in_context, seconds) if runs else {}
    ours = times.get(OURS)
    others = {} if ours is None else {n: t / ours for n, t in times.items() if n != OURS}
    return {
        "times_us": {n: spread_of(t).scaled(1e6).as_dict() for n, t in times.items()},
        "ratios": {n: spread_of(r).as_dict() for n, r in others.items()},
    }


def run(options: Options, device: Device) -> dict[str, Any]:
    """Runs the benchmark, and returns its record; prints each case to stderr as it begins."""
    start = time.perf_counter()
    described = device.describe()
    record: dict[str, Any] = {
        "format": FORMAT,
        "device": described,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": {**_versions(), **device.versions()},
        "options": asdict(options),
        "latencies_ns": latencies.measure(described["capability"]),
        "results": [],
        "errors": [],
    }
    for case in cases(options.cells, options.shapes):
        print(case, file=sys.stderr, flush=True)
        try:
            record["results"] += measure(case, device, options.seconds)
        except Exception as error:  # as if there is too little memory for the case
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            record["errors"].append({"task": str(case), "error": text})
        gc.collect()
    reasons = {name: peers.missing(name, Case(*GOAL)) for name in (FLASHRNN,)}
    record["absent"] = {name: reason for name, reason in reasons.items() if reason}
    record["seconds"] = round(time.perf_counter() - start)
    return record


def _versions() -> dict[str, str]:
    found = {k: v for k, v in machine.versions().items() if k in ("python", "rnnfast")}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
