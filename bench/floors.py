"""The table of floors, and the check whether a record meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bench import low_floors, memory, peers, records
from bench.floor import Figure, Figures, Floor, at_bound, of_rows
from bench.markdown import table
from bench.records import Row
from bench.shapes import CELL_LOOPS, CELLS, FALLBACK, IN_MODELS, PACKED, SHORTEST


@dataclass(frozen=True)
class Verdict:
    """The result of checking a floor in a record.

    count : the number of figures.
    mean : the geometric mean of the figures; None if one is not positive.
    worst : the figure that is nearest to failing, or fails most.
    failures : a sentence for each failure.
    bound : the geometric mean of the figures' bounds; None if one is not known.
    If nothing was measured, `mean`, `worst` and `bound` are None.
    """

    floor: Floor
    count: int
    mean: float | None
    worst: Figure | None
    failures: list[str]
    bound: float | None = None


def _fastest(row: Row) -> float | None:
    return row.fastest(peers.FLOOR_PEERS)


def _against(peer: str) -> Callable[[Row], float | None]:
    return lambda row: row.ratio(peer)


def _function(row: Row) -> float | None:
    return row.function


def _two_over_one_at_best(row: Row) -> float | None:
    return row.over_one_thread_at_best


def _speedup_at_best(row: Row) -> float | None:
    return row.dropin_speedup_at_best


def _scales(row: Row) -> bool:
    """Whether a step has enough work for two threads, and there are enough steps."""
    shape = row.case.shape
    return shape.B * shape.H**2 >= 60_000 and shape.T >= 20


def _two_over_one(large: bool) -> Callable[[Row], float | None]:
    return lambda row: row.over_one_thread if _scales(row) == large else None


def _fraction(row: Row) -> float | None:
    return row.fraction if row.case.shape.H >= 128 else None


def _memory(contender: str) -> Callable[[dict[str, Any]], Figures]:
    """The peak memory over torch's; the bound is the memory of a step's results over torch's."""
    return lambda record: [
        Figure(
            f"{case.cell} {case.shape.name}",
            mib[contender] / mib["torch"],
            memory.results(case) / mib["torch"],
        )
        for case, mib in records.memory(record).items()
        if contender in mib and mib.get("torch")
    ]


def _speedup(row: Row) -> float | None:
    """The speed of rnnfast.torch over that of torch.nn."""
    return None if row.dropin_speedup is None else row.dropin_speedup["median"]


def _speedup_of_one_step(row: Row) -> float | None:
    return _speedup(row) if row.case.shape.T == row.case.shape.B == 1 else None


def _dropin_cost(row: Row) -> float | None:
    """The drop-in's own cost, for the shape where it is most of the time; else it is noise."""
    return row.dropin_cost if row.case.shape.name == SHORTEST else None


def _of_dropin(threads: int) -> Iterator[Floor]:
    """The floors of `rnnfast.torch`: its speed over torch.nn, and its cost beyond our layer."""
    name = f"{peers.DROPIN}, {'one thread' if threads == 1 else f'{threads} threads'}"
    training = {"mode": "training", "threads": threads}
    yield Floor(
        f"{name}: LSTM at T = B = 1, inference, against torch.nn",
        of_rows(
            _speedup_of_one_step,
            bound=_speedup_at_best,
            cell="lstm",
            mode="inference",
            threads=threads,
        ),
        each=10.0,
    )
    for cell, mean in (("rnn", 4.0), ("gru", 4.0), ("lstm", 1.6)):
        yield Floor(
            f"{name}: {cell.upper()} training, against torch.nn",
            of_rows(_speedup, bound=_speedup_at_best, cell=cell, **training),
            each=1.0,
            mean=mean,
        )
    yield Floor(
        f"{name}: PackedSequence, training, against torch.nn",
        of_rows(_speedup, PACKED, **training),
        each=4.0,
    )
    yield Floor(
        f"{name}: in a model, training, against torch.nn",
        of_rows(_speedup, IN_MODELS, **training),
        each=1.0,
    )
    yield Floor(
        f"{name}: a loop of LSTMCell, training, against torch.nn",
        of_rows(_speedup, CELL_LOOPS, _speedup_at_best, cell="lstm", **training),
        each=3.0,
    )
    for mode, most in (("inference", 8.0), ("training", 45.0)):
        yield Floor(
            f"{name}: µs of its own, {mode}",
            of_rows(_dropin_cost, bound=_function, mode=mode, threads=threads),
            each=most,
            at_most=True,
        )


# The floor for a library that only the option --yardstick names.
AGAINST_YARDSTICK = Floor(
    "LSTM, against the yardstick",
    of_rows(
        _against(peers.YARDSTICK),
        bound=at_bound(_against(peers.YARDSTICK)),
        cell="lstm",
        threads=1,
    ),
    each=0.97,
    mean=1.05,
)

FLOORS = (
    *(
        Floor(
            f"{cell.upper()} inference, against the fastest peer",
            of_rows(_fastest, bound=at_bound(_fastest), cell=cell, mode="inference", threads=1),
            each=1.0,
            mean=1.3,
        )
        for cell in CELLS
    ),
    *(
        Floor(
            f"{cell.upper()} training, against torch",
            of_rows(
                _against("torch"),
                bound=at_bound(_against("torch")),
                cell=cell,
                mode="training",
                threads=1,
            ),
            each=each,
            mean=mean,
        )
        for cell, each, mean in (("rnn", 1.2, 4.0), ("gru", 1.3, 4.0), ("lstm", 1.0, 1.6))
    ),
    Floor(
        "two threads, inference, against the fastest peer with two",
        of_rows(_fastest, mode="inference", threads=2),
        each=1.0,
        mean=1.5,
    ),
    Floor(
        "two threads, training, against torch with two",
        of_rows(_against("torch"), mode="training", threads=2),
        each=1.0,
        mean=2.0,
    ),
    Floor(
        "two threads over one, B H² ≥ 60,000 and T ≥ 20",
        of_rows(_two_over_one(large=True), bound=_two_over_one_at_best, threads=2),
        each=1.7,
    ),
    Floor(
        "two threads over one, smaller",
        of_rows(_two_over_one(large=False), bound=_two_over_one_at_best, threads=2),
        each=0.97,
    ),
    Floor(
        "ragged, training, against torch with PackedSequence",
        of_rows(
            _against("torch"),
            bound=at_bound(_against("torch")),
            mode="training",
            threads=1,
            ragged=True,
        ),
        each=4.0,
    ),
    Floor(
        "fraction of the bound, inference, H ≥ 128",
        of_rows(_fraction, mode="inference", threads=1),
        each=0.85,
        mean=0.9,
    ),
    Floor(
        "fraction of the bound, training, H ≥ 128",
        of_rows(_fraction, mode="training", threads=1),
        each=0.8,
    ),
    AGAINST_YARDSTICK,
    Floor(
        "peak memory of a training step, over torch's",
        _memory(peers.BASELINE),
        each=1.0,
        at_most=True,
    ),
    Floor(
        "peak memory with recompute, over torch's", _memory(peers.RECOMPUTE), each=0.4, at_most=True
    ),
    *_of_dropin(threads=1),
    *_of_dropin(threads=2),
    *low_floors.FLOORS,
    Floor(
        "Numba, its time over the compiled module's",
        of_rows(_against(peers.NUMBA), FALLBACK),
        each=4.0,
        at_most=True,
    ),
    Floor(
        "Numba, GRU, against torch",
        of_rows(lambda row: row.over("torch", peers.NUMBA), FALLBACK, cell="gru"),
        each=1.0,
    ),
)


def brief(value: float, digits: int = 2) -> str:
    """The value with `digits` decimals, or, below 0.1, with `digits` significant digits."""
    return f"{value:.{digits}{'f' if abs(value) >= 0.1 else 'g'}}"


def judge(floor: Floor, record: dict[str, Any]) -> Verdict:
    """Checks a floor in a record."""
    figures = floor.figures(record)
    if not figures:
        return Verdict(floor, 0, None, None, [])
    values = [figure.value for figure in figures]
    bounds = [figure.bound for figure in figures if figure.bound is not None]
    mean = records.geometric_mean(values) if min(values) > 0 else None
    bound = records.geometric_mean(bounds) if len(bounds) == len(figures) else None
    ordered = sorted(figures, key=lambda figure: figure.value, reverse=floor.at_most)
    failures = []
    for what, value, best in ordered:
        if floor.each is not None and (value > floor.each if floor.at_most else value < floor.each):
            limit = "at most" if floor.at_most else "at least"
            failures.append(
                f"{what}: {brief(value, 3)}, expected {limit} {floor.each:g}{_at(best)}"
            )
    if floor.mean is not None and mean is not None and mean < floor.mean:
        expected = f"expected at least {floor.mean:g}"
        failures.append(f"geometric mean: {mean:.3f}, {expected}{_at(bound)}")
    return Verdict(floor, len(figures), mean, ordered[0], failures, bound)


def _at(bound: float | None) -> str:
    """The text that follows a figure with a bound; "" without one."""
    return "" if bound is None else f"; {brief(bound)} at the bound"


def check(record: dict[str, Any]) -> tuple[list[Verdict], list[str]]:
    """A verdict on every floor, and the other problems for which a check fails."""
    verdicts = [judge(floor, record) for floor in FLOORS]
    problems = records.errors(record)
    if not any(verdict.count for verdict in verdicts):
        problems.append("no floor was measured")
    elif record["options"]["preset"] == "full":
        problems += [
            f"not measured: {verdict.floor.name}"
            for verdict in verdicts
            if not verdict.count and verdict.floor is not AGAINST_YARDSTICK
        ]
    return verdicts, problems


def describe(verdicts: list[Verdict], problems: list[str]) -> Iterator[str]:
    """The lines that `--check` prints."""
    for verdict in verdicts:
        if not verdict.count:
            yield f"not measured  {verdict.floor.name}"
            continue
        assert verdict.worst is not None
        state = "FAILS" if verdict.failures else "holds"
        mean = "" if verdict.mean is None else f"geometric mean {brief(verdict.mean)}, "
        yield (
            f"{state:12}  {verdict.floor.name}: {verdict.count} figures, {mean}"
            f"worst {_worst(verdict.worst)}"
        )
        yield from (f"{'':14}  {failure}" for failure in verdict.failures)
    yield from (f"ERROR         {problem}" for problem in problems)


def _worst(figure: Figure) -> str:
    return f"{brief(figure.value)} ({figure.what}{_at(figure.bound)})"


def lines(verdicts: list[Verdict]) -> Iterator[str]:
    """The lines of the table of floors in a report."""
    rows = []
    for verdict in verdicts:
        floor, worst = verdict.floor, verdict.worst
        sign = "≤" if floor.at_most else "≥"
        rows.append(
            [
                floor.name,
                "not measured" if worst is None else "**fails**" if verdict.failures else "holds",
                "" if worst is None else _worst(worst),
                "" if floor.each is None else f"{sign} {floor.each:g}",
                "" if verdict.mean is None else brief(verdict.mean),
                "" if floor.mean is None else f"≥ {floor.mean:g}",
                str(verdict.count),
            ]
        )
    header = ["floor", "", "worst", "each", "geometric mean", "mean", "figures"]
    yield from table(header, rows)
