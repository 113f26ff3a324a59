"""Records that a benchmark wrote, and the figures in them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import BASELINE, DROPIN, ONE_THREAD
from bench.shapes import FALLBACK, PRECISION, STREAMS, WAYS, Case

FORMAT = 1
# Those that hold rows.
SECTIONS = ("results", "scaling", *WAYS, STREAMS, PRECISION, FALLBACK)
MOSTLY = 0.5


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The record in a file.

    Raises
    ------
    OSError : it cannot be read.
    ValueError : it is no record of this format, or one of another kind of device.
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
    """Writes the record, one entry a line, so that two can be compared by eye."""
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
    """One case in one mode: what a line of a table says.

    times : microseconds by contender; ratios : a contender's time over ours. Each is a mapping of
    median, q1 and q3. bound : microseconds; dropin_speedup : torch.nn's time over rnnfast.torch's,
    a mapping like those; peak : GFLOP/s of the core in bfloat16; bytes and relative_error : by how
    a stream keeps its weights; function : microseconds of torch's autograd, called for nothing;
    low_bound : microseconds, of the layer in bfloat16; arithmetic_over_one : how many times as fast
    arithmetic is on all threads as on one, a mapping like those; meeting : microseconds that the
    threads take to meet.
    All these are None where they were not measured.
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
        """What makes it the same measurement in two records."""
        case = self.case
        return case.cell, case.shape.name, case.dtype, self.mode, case.threads

    @property
    def ours(self) -> float:
        """Microseconds of ours."""
        return self.times[BASELINE]["median"]

    def ratio(self, peer: str) -> float | None:
        """How many times as long a peer takes; None where it was not timed."""
        found = self.ratios.get(peer)
        return None if found is None else found["median"]

    def fastest(self, peers: tuple[str, ...]) -> float | None:
        """The ratio of the fastest of some peers."""
        found = [self.ratios[peer]["median"] for peer in peers if peer in self.ratios]
        return min(found) if found else None

    def over(self, slower: str, faster: str) -> float | None:
        """How many times as long one contender takes as another; None where one was not timed."""
        if slower not in self.times or faster not in self.times:
            return None
        return self.times[slower]["median"] / self.times[faster]["median"]

    @property
    def over_one_thread(self) -> float | None:
        """How many times as fast all threads are as one."""
        return self.ratio(ONE_THREAD)

    @property
    def over_one_thread_at_best(self) -> float | None:
        """What that would be if threads gained as much as in arithmetic; None where not known.

        They may gain more, by the second core's caches. The only row of the only layer and
        direction is shared out by units, and its threads meet in each step, in training twice.
        Where more threads gain nothing one does it all.
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
        """`dropin_speedup` if rnnfast.torch took what ours does at least, and autograd does.

        At least: the bound, or the layer's own time where that is not known or less.
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
        """Microseconds that rnnfast.torch takes beyond ours; None where it was not timed."""
        found = self.times.get(DROPIN)
        return None if found is None else found["median"] - self.ours

    @property
    def fraction(self) -> float | None:
        """The bound over the time: 1 is the machine's limit."""
        return None if self.bound is None else self.bound / self.ours


def rows(record: dict[str, Any], section: str = "results") -> list[Row]:
    """The rows of a section of a record, one of `SECTIONS`; none where the record lacks it."""
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
    """What went wrong: workers that failed, and peers whose answer was not ours."""
    found = [f"{error['task']}: {error['error']}" for error in record["errors"]]
    for row in (row for section in SECTIONS for row in rows(record, section)):
        found += [f"{row.case} {row.mode}: {peer}: {e}" for peer, e in row.errors.items()]
    return found


def disturbed(record: dict[str, Any]) -> str | None:
    """A sentence where other processes took the core from most rounds of some measurements."""
    entries = [entry for section in SECTIONS for entry in record.get(section, [])]
    count = sum(entry["disturbed"] > MOSTLY for entry in entries)
    if not count:
        return None
    return (
        f"{count} of {len(entries)} measurements shared their core with other processes, and are "
        "uncertain."
    )


def slowed(record: dict[str, Any]) -> tuple[float, float] | None:
    """How many times as long arithmetic took as at its best: the median and the most."""
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
    """Of positive values."""
    return float(np.exp(np.mean(np.log(values))))


def slope(x: list[float], y: list[float]) -> float:
    """The exponent of the power law through the points, by least squares on log axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
