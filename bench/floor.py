"""What a floor is, and the figures of a record that one is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import records
from bench.records import Row


class Figure(NamedTuple):
    """One figure.

    what : it is of. bound : what it would be at best on this machine, by what was measured in the
    same process; None where nothing was.
    """

    what: str
    value: float
    bound: float | None = None


Figures = list[Figure]


@dataclass(frozen=True)
class Floor:
    """One line of the table.

    figures : those of a record that the floor is about.
    each, mean : what every figure, and their geometric mean, must reach; None: nothing.
    at_most : the figures must not exceed `each` instead.
    """

    name: str
    figures: Callable[[dict[str, Any]], Figures]
    each: float | None = None
    mean: float | None = None
    at_most: bool = False


def at_bound(figure: Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    """What a figure that is some time over ours would be, did ours take no more than the bound."""

    def best(row: Row) -> float | None:
        value, fraction = figure(row), row.fraction
        return None if value is None or fraction is None else value / min(1.0, fraction)

    return best


def of_rows(
    figure: Callable[[Row], float | None],
    section: str = "results",
    bound: Callable[[Row], float | None] | None = None,
    **wanted: Any,
) -> Callable[[dict[str, Any]], Figures]:
    """The figures of the float32 rows that have one and whose cell, mode and threads are wanted.

    section : of the record, as `records.rows` has it.
    bound : what the figure of a row would be at best.
    """

    def figures(record: dict[str, Any]) -> Figures:
        found = []
        for row in records.rows(record, section):
            is_about = {
                "cell": row.case.cell,
                "mode": row.mode,
                "threads": row.case.threads,
                "ragged": row.case.shape.ragged,
            }
            value = figure(row)
            if (
                value is not None
                and row.case.dtype == "float32"
                and all(is_about[name] == value for name, value in wanted.items())
            ):
                what = f"{row.case.cell} {row.case.shape.name} {row.mode}"
                found.append(Figure(what, value, bound and bound(row)))
        return found

    return figures
