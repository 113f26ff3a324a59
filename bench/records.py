"""Reads and writes the records of benchmarks, and computes figures from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import BASELINE, DROPIN, ONE_THREAD
from bench.shapes import FALLBACK, PRECISION, STREAMS, WAYS, Case

FORMAT = 1
# The sections of a record that hold rows.
SECTIONS = ("results", "scaling", *WAYS, STREAMS, PRECISION, FALLBACK)
MOSTLY = 0.5


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The record in a file.

    Raises
    ------
    OSError : the file cannot be read.
    ValueError : it is not a record of this format, or one of another kind of device.
    """
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a benchmark's record of format {FORMAT}")
    kind = record.get("device", {}).get("kind", "cpu")
    if kind != device:
        raise ValueError(f"{path}: is a record of --device {kind}")
    return record


def save(record: dict[str, Any], path: Path) -> None:
    """Writes the record with one entry in a line, so that two files can be compared by eye."""
    parts = []
    for name, value in record.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(entry)}" for entry in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n ]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value)}")
    path.write_text("{" + ",\n ".join(parts) + "}\n")


@dataclass(frozen=True)
class Row:
    """The measurements of one case in one mode, a line of a table.

    A spread is a mapping with the keys median, q1 and q3.

    times : the microseconds of each contender, a spread.
    ratios : each contender's time over ours, a spread.
    errors : the errors of contenders that failed.
    bound : the bound in microseconds.
    dropin_speedup : torch.nn's time over rnnfast.torch's, a spread.
    peak : the core's peak in bfloat16, in GFLOP/s.
    bytes, relative_error : of a stream, by the format of its weights.
    function : the microseconds of torch's autograd around a function that computes nothing.
    low_bound : the bound of the layer in bfloat16, in microseconds.
    arithmetic_over_one : the speed of arithmetic on all threads over that on one, a spread.
    meeting : the microseconds that the threads take to meet.
    All from `bound` on are None if they were not measured.
    """

    case: Case
    mode: str
    times: dict[str, dict[str, float]]
    ratios: dict[str, dict[str, float]]
    errors: dict[str, str]
    bound: float | None
    dropin_speedup: dict[str, float] | None
    peak: float | None = None
    bytes: dict[str, int] | None = None
    relative_error: dict[str, float] | None = None
    function: float | None = None
    low_bound: float | None = None
    arithmetic_over_one: dict[str, float] | None = None
    meeting: float | None = None

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """The key under which two records have the same measurement."""
        case = self.case
        return case.cell, case.shape.name, case.dtype, self.mode, case.threads

    @property
    def ours(self) -> float:
        """Our median time in microseconds."""
        return self.times[BASELINE]["median"]

    def ratio(self, peer: str) -> float | None:
        """The time of a peer over ours; None if it was not timed."""
        found = self.ratios.get(peer)
        return None if found is None else found["median"]

    def fastest(self, peers: tuple[str, ...]) -> float | None:
        """The ratio of the fastest of some peers; None if none was timed."""
        found = [self.ratios[peer]["median"] for peer in peers if peer in self.ratios]
        return min(found) if found else None

    def over(self, slower: str, faster: str) -> float | None:
        """The time of `slower` over that of `faster`; None if one was not timed."""
        if slower not in self.times or faster not in self.times:
            return None
        return self.times[slower]["median"] / self.times[faster]["median"]

    @property
    def over_one_thread(self) -> float | None:
        """The speed on all threads over that on one; None if it was not measured."""
        return self.ratio(ONE_THREAD)

    @property
    def over_one_thread_at_best(self) -> float | None:
        """`over_one_thread` if threads gained as much as in arithmetic; None if not known.

        Threads may gain more than that, from the second core's caches; then the measured value
        counts. A single row of a single layer and direction is split by units: its threads meet in
        each step, in training twice, which takes time. The value is at least 1, because one thread
        does all the work if more would not gain anything.
        """
        alone, own = self.times.get(ONE_THREAD), self.over_one_thread
        if alone is None or own is None or self.arithmetic_over_one is None:
            return None
        shape, best = self.case.shape, alone["median"] / self.arithmetic_over_one["median"]
        if shape.B * shape.L * shape.D == 1:
            best += (self.meeting or 0.0) * shape.T * (2 if self.mode == "training" else 1)
        return max(1.0, own, alone["median"] / best)

    @property
    def dropin_speedup_at_best(self) -> float | None:
        """`dropin_speedup` if rnnfast.torch took the least time of our layer, plus autograd's.

        The least time is the smaller one of the bound and the layer's own time. Autograd's part
        counts in training only. None if a part was not measured.
        """
        dropin = self.times.get(DROPIN)
        if self.dropin_speedup is None or dropin is None:
            return None
        if self.mode == "training" and self.function is None:
            return None
        least = min(self.ours, self.bound or self.ours)
        if self.mode == "training":
            least += self.function or 0.0
        return self.dropin_speedup["median"] * max(1.0, dropin["median"] / least)

    @property
    def dropin_cost(self) -> float | None:
        """The microseconds that rnnfast.torch takes beyond our layer; None if not timed."""
        found = self.times.get(DROPIN)
        return None if found is None else found["median"] - self.ours

    @property
    def fraction(self) -> float | None:
        """The bound over our time: 1 is the machine's limit. None without a bound."""
        return None if self.bound is None else self.bound / self.ours


def rows(record: dict[str, Any], section: str = "results") -> list[Row]:
    """The rows of a section of a record, one of `SECTIONS`; empty if the record lacks it."""
    return [
        Row(
            Case.from_dict(entry["case"]),
            entry["mode"],
            times=entry["times_us"],
            ratios=entry["ratios"],
            errors=entry["errors"],
            bound=entry.get("bound_us"),
            dropin_speedup=entry.get("dropin_speedup"),
            peak=entry.get("peak_gflops"),
            bytes=entry.get("bytes"),
            relative_error=entry.get("relative_error"),
            function=entry.get("function_us"),
            low_bound=entry.get("low_bound_us"),
            arithmetic_over_one=entry.get("arithmetic_over_one"),
            meeting=entry.get("meeting_us"),
        )
        for entry in record.get(section, [])
    ]


def errors(record: dict[str, Any]) -> list[str]:
    """Texts of what went wrong: workers that failed, and peers with an error or wrong answer."""
    found = [f"{error['task']}: {error['error']}" for error in record["errors"]]
    for row in (row for section in SECTIONS for row in rows(record, section)):
        found += [f"{row.case} {row.mode}: {peer}: {e}" for peer, e in row.errors.items()]
    return found


def disturbed(record: dict[str, Any]) -> str | None:
    """A warning if other processes disturbed most rounds of some measurements; else None."""
    entries = [entry for section in SECTIONS for entry in record.get(section, [])]
    count = sum(entry["disturbed"] > MOSTLY for entry in entries)
    if not count:
        return None
    return (
        f"{count} of {len(entries)} measurements shared their core with other processes, and are "
        "uncertain."
    )


def slowed(record: dict[str, Any]) -> tuple[float, float] | None:
    """The time of arithmetic over its best time: the median and the maximum; None if not timed."""
    found = [
        entry["slowed"] for name in SECTIONS for entry in record.get(name, []) if "slowed" in entry
    ]
    return (float(np.median(found)), max(found)) if found else None


def memory(record: dict[str, Any]) -> dict[Case, dict[str, float]]:
    """The peak memory of a training step in MiB, by case and contender."""
    found: dict[Case, dict[str, float]] = {}
    for entry in record["memory"]:
        found.setdefault(Case.from_dict(entry["case"]), {})[entry["contender"]] = entry["mib"]
    return found


def geometric_mean(values: list[float]) -> float:
    """The geometric mean of positive values."""
    return float(np.exp(np.mean(np.log(values))))


def slope(x: list[float], y: list[float]) -> float:
    """The exponent of the power law through the points, by least squares on log axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
