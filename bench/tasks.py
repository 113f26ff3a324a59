"""The tasks of a worker: to time a case, sweep a size, or measure memory or the machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import low_precision, memory, peers, roofline, timing, validation
from bench.pace import Pace
from bench.peers.ours import Ours
from bench.peers.streams import Steps, StepsInC
from bench.problem import Problem, make_problem
from bench.shapes import CELL_LOOPS, MODES, STEP, WAYS, Case
from rnnfast._low_precision import FORMATS

# Functions that make each contender's peer. They may fail, as if a package cannot be imported.
Makers = dict[str, Callable[[], peers.Peer]]


def time_case(
    case: dict[str, Any], contenders: list[str], seconds: float, yardstick: str | None
) -> list[dict[str, Any]]:
    """One entry for each mode: times, ratios to ours, skipped contenders and errors."""
    parsed = Case.from_dict(case)
    problem = make_problem(parsed)
    bounds: dict[str, float] = {}
    native, pace = roofline.native_module(), None
    if native is not None:
        roof = roofline.measure_roof(native, parsed.dtype)
        pace = Pace(native, parsed.dtype, roof.peak, parsed.threads)
        if parsed.threads == 1:
            bounds = roofline.bound(parsed, roof)
    makers: Makers = {name: partial(peers.load, name, yardstick) for name in contenders}
    if parsed.threads > 1:
        makers[peers.ONE_THREAD] = partial(Ours, threads=1)
    else:
        makers[peers.NEW_WEIGHTS] = partial(Ours, new_weights=True)
    entries = []
    for mode in MODES:
        entry = _time_mode(problem, mode, makers, seconds, pace)
        if mode in bounds:
            entry["bound_us"] = _stretched(bounds[mode], entry)
        entries.append({"case": asdict(parsed), "mode": mode, **entry})
    return entries


def _stretched(bound: float, entry: dict[str, Any]) -> float:
    """A bound in seconds as microseconds, at the speed that the machine had in the rounds."""
    return float(f"{bound * entry['slowed'] * 1e6:.5g}")


def _time_mode(
    problem: Problem, mode: str, makers: Makers, seconds: float, pace: Pace | None = None
) -> dict[str, Any]:
    case, baseline = problem.case, makers[peers.BASELINE]().build(problem, mode)
    runners = {peers.BASELINE: baseline}
    want = _answer(baseline)
    skipped, errors = {}, {}
    for name in makers:
        if name == peers.BASELINE:
            continue
        try:
            peer = makers[name]()
            reason = peer.refuses(case, mode)
            if reason:
                skipped[name] = reason
            else:
                runners[name] = _validated(peer.build(problem, mode), want, case.dtype)
        except Exception as error:  # the other peers are timed all the same
            errors[name] = f"{type(error).__name__}: {error}"
    contenders = {
        name: timing.Contender(runner.run, runner.ready, len(problem.inputs))
        for name, runner in runners.items()
    }
    least = _least_of_autograd(problem, mode) if peers.DROPIN in runners else {}
    with nullcontext({}) if pace is None else pace.contenders() as arithmetic:
        timed = {**arithmetic, **contenders, **least}
        rounds = timing.interleave(timed, seconds, case.threads)
    times = {name: rounds.times[name] for name in contenders}
    ours = times[peers.BASELINE]
    entry: dict[str, Any] = {
        "times_us": {name: timing.spread_of(t).scaled(1e6).as_dict() for name, t in times.items()},
        "rounds": len(ours),
        "disturbed": round(rounds.disturbed, 3),
        "ratios": {
            name: timing.spread_of(other / ours).as_dict()
            for name, other in times.items()
            if name != peers.BASELINE
        },
        "skipped": skipped,
        "errors": errors,
    }
    if pace is not None:
        entry |= pace.entries(rounds.times)
    if {"torch", peers.DROPIN} <= times.keys():
        entry["dropin_speedup"] = timing.spread_of(times["torch"] / times[peers.DROPIN]).as_dict()
    for name in least:  # at most one
        entry["function_us"] = float(f"{np.median(rounds.times[name]) * 1e6:.5g}")
    return entry


def _least_of_autograd(problem: Problem, mode: str) -> dict[str, timing.Contender]:
    """The contender that shows torch's own part of a training step: it computes nothing."""
    if mode != "training":
        return {}
    from bench.peers.torch import Nothing, NothingInALoop

    runner = (NothingInALoop if problem.case.shape.name in WAYS[CELL_LOOPS] else Nothing)(problem)
    return {"autograd": timing.Contender(runner.run, runner.ready, len(problem.inputs))}


def _validated(runner: peers.Runner, want: dict[str, NDArray], dtype: str) -> peers.Runner:
    """The runner, if its answer for input 0 agrees with ours; else raises `Mismatch`."""
    validation.compare(_answer(runner), want, runner.precision or dtype)
    return runner


def _answer(runner: peers.Runner) -> dict[str, NDArray]:
    with runner.ready():
        return runner.answer(runner.run(0))


def sweep(
    cases: list[dict[str, Any]], contenders: list[str], seconds: float, way: str = ""
) -> list[dict[str, Any]]:
    """Times several cases in one process, as `time_case` does, but without bounds.

    way : the way in which the modules of `peers.MODULES` are used, one of `WAYS`. Then only
        training is timed, beside our layer. "": as layers.
    """
    makers: Makers = {
        name: partial(peers.load, name, way=way)
        if way and name in peers.MODULES
        else partial(peers.load, name)
        for name in contenders
    }
    entries = []
    for fields in cases:
        problem = make_problem(Case.from_dict(fields))
        for mode in ("training",) if way else MODES:
            entry = _time_mode(problem, mode, makers, seconds)
            entries.append({"case": fields, "mode": mode, **entry})
    return entries


def time_steps(
    cases: list[dict[str, Any]], contenders: list[str], seconds: float
) -> list[dict[str, Any]]:
    """One entry for each case: a step of our streams, and of ONNX Runtime if it takes part.

    Times are those of one step, the T-th part of a call. `bytes` has the bytes of the weights, and
    `relative_error` the error over `low_precision.ACCURACY_STEPS` steps, both by the format of the
    stream's weights.
    """
    makers: Makers = {peers.BASELINE: partial(Steps, "float32"), peers.IN_C: StepsInC}
    makers |= {name: partial(Steps, name) for name in FORMATS}
    if "onnxruntime" in contenders:
        makers |= {name: partial(peers.load, name) for name in (peers.RUN, peers.BOUND_RUN)}
    native = roofline.native_module()
    roof = None if native is None else roofline.measure_roof(native, "float32")
    pace = None if roof is None else Pace(roof.native, "float32", roof.peak)
    entries = []
    for fields in cases:
        case = Case.from_dict(fields)
        entry = _time_mode(make_problem(case), STEP, makers, seconds, pace)
        if roof is not None:
            entry["bound_us"] = _stretched(roofline.step_bound(case, roof), entry)
        entry["times_us"] = {
            name: {part: float(f"{value / case.shape.T:.5g}") for part, value in spread.items()}
            for name, spread in entry["times_us"].items()
        }
        entry["bytes"] = low_precision.bytes_of(case)
        entry["relative_error"] = low_precision.errors_of(case)
        entries.append({"case": fields, "mode": STEP, **entry})
    return entries


def time_precision(
    case: dict[str, Any], contenders: list[str], seconds: float
) -> list[dict[str, Any]]:
    """One entry for each mode: our layer in float32 beside ours and torch's in low precision.

    `peak_gflops` is the core's peak in bfloat16, from `low_precision.peak`. `low_bound_us` is the
    least time of a layer in bfloat16.
    """
    parsed = Case.from_dict(case)
    problem = make_problem(parsed)
    makers: Makers = {peers.BASELINE: Ours}
    makers |= {name: partial(Ours, precision=kind) for kind, name in peers.OURS_IN.items()}
    if "torch" in contenders:
        makers |= {name: partial(peers.load, name) for name in peers.TORCH_IN.values()}
    native = roofline.native_module()
    if native is not None:
        roof, peak = roofline.measure_roof(native, "float32"), low_precision.peak(native)
        bounds = low_precision.bound(parsed, roof, peak)
    entries = []
    for mode in MODES:
        entry = {"case": case, "mode": mode, **_time_mode(problem, mode, makers, seconds)}
        if native is not None:
            entry["peak_gflops"] = round(peak / 1e9, 2)
            entry["low_bound_us"] = float(f"{bounds[mode] * 1e6:.5g}")
        entries.append(entry)
    return entries


def time_fallback(
    case: dict[str, Any], contenders: list[str], seconds: float
) -> list[dict[str, Any]]:
    """One entry for each mode: ours, ours on Numba, and torch if it takes part."""
    makers: Makers = {peers.BASELINE: Ours, peers.NUMBA: partial(Ours, backend="numba")}
    if "torch" in contenders:
        makers["torch"] = partial(peers.load, "torch")
    problem = make_problem(Case.from_dict(case))
    return [
        {"case": case, "mode": mode, **_time_mode(problem, mode, makers, seconds)} for mode in MODES
    ]


def levels(dtypes: list[str]) -> dict[str, dict[str, float]] | None:
    """The peak and the bandwidths, by dtype; None without the compiled module."""
    native = roofline.native_module()
    if native is None:
        return None
    return {dtype: roofline.measure_levels(native, dtype) for dtype in dtypes}


def peak_memory(case: dict[str, Any], contender: str) -> float:
    """The peak memory of a training step in MiB, without inputs and weights."""
    return memory.training_peak(Case.from_dict(case), contender) / 2**20


TASKS: dict[str, Callable[..., Any]] = {
    "time": time_case,
    "sweep": sweep,
    "levels": levels,
    "memory": peak_memory,
    "steps": time_steps,
    "precision": time_precision,
    "fallback": time_fallback,
    "latency": low_precision.latency,
    "characters": low_precision.characters,
}
