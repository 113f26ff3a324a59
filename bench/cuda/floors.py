"""The floors for a device, and the check whether a record meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import floors
from bench.cuda.cases import CUDNN, GOAL, OURS, Case, cases
from bench.floor import Figure, Figures, Floor
from bench.floors import Verdict
from bench.shapes import MODES

# The device for which the goals in milliseconds hold.
GOAL_DEVICE = "H200"
GOAL_MS = {"inference": 1.2, "training": 3.4}
MOST_ROWS = 64


def against_cudnn(mode: str | None = None) -> Callable[[dict[str, Any]], Figures]:
    """The time of torch.nn over ours, in the same dtype and without TF32."""

    def figures(record: dict[str, Any]) -> Figures:
        return [
            Figure(
                f"{Case.from_dict(entry['case'])} {entry['mode']}",
                entry["ratios"][CUDNN]["median"],
            )
            for entry in record["results"]
            if CUDNN in entry["ratios"]
            and mode in (None, entry["mode"])
            and entry["case"]["B"] <= MOST_ROWS
        ]

    return figures


def milliseconds_of_the_goal(mode: str) -> Callable[[dict[str, Any]], Figures]:
    """Our milliseconds for the goal; no figures on another device than the goal's."""

    def figures(record: dict[str, Any]) -> Figures:
        if GOAL_DEVICE not in record["device"]["name"]:
            return []
        return [
            Figure(f"{Case(*GOAL)} {mode}", entry["times_us"][OURS]["median"] / 1e3)
            for entry in record["results"]
            if entry["mode"] == mode
            and Case.from_dict(entry["case"]) == Case(*GOAL)
            and OURS in entry["times_us"]
        ]

    return figures


FLOORS = (
    Floor(f"against torch.nn (cuDNN), B ≤ {MOST_ROWS}", against_cudnn(), each=1.0),
    *(Floor(f"against torch.nn (cuDNN), {m}", against_cudnn(m), mean=1.5) for m in MODES),
    *(
        Floor(
            f"ms of {Case(*GOAL)}, {mode}, on an {GOAL_DEVICE}",
            milliseconds_of_the_goal(mode),
            each=most,
            at_most=True,
        )
        for mode, most in GOAL_MS.items()
    ),
)


def errors(record: dict[str, Any]) -> list[str]:
    """Texts of what went wrong: cases that failed, and contenders with a wrong answer."""
    found = [f"{error['task']}: {error['error']}" for error in record["errors"]]
    for entry in record["results"]:
        what = f"{Case.from_dict(entry['case'])} {entry['mode']}"
        found += [f"{what}: {name}: {error}" for name, error in entry["errors"].items()]
    return found


def check(record: dict[str, Any]) -> tuple[list[Verdict], list[str]]:
    """A verdict on every floor, and the other problems for which a check fails."""
    verdicts = [floors.judge(floor, record) for floor in FLOORS]
    problems = errors(record)
    if not any(verdict.count for verdict in verdicts):
        problems.append("no floor was measured")
    if not record["options"]["shapes"]:
        wanted = set(cases(record["options"]["cells"]))
        timed = {
            Case.from_dict(entry["case"])
            for entry in record["results"]
            if {OURS, CUDNN} <= entry["times_us"].keys()
        }
        problems += [f"not measured: {case}" for case in cases() if case in wanted - timed]
    return verdicts, problems
