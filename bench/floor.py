"""Floors, which are limits for figures of a record, and the selection of these figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import records
from bench.records import Row


class Figure(NamedTuple):
    """One figure.

    what : the measurement that the figure is about, as text.
    bound : the best value possible on this machine, according to measurements in the same process;
        None if there are none.
    """

    what: str
    value: float
    bound: float | None = None


Figures = list[Figure]


@dataclass(frozen=True)
class Floor:
    """A limit for some figures of a record; one line of the table of floors.

    figures : selects these figures of a record.
    each : the least value of every figure; None: no limit.
    mean : the least geometric mean of the figures; None: no limit.
    at_most : whether `each` is the greatest value instead.
    """

    name: str
    figures: Callable[[dict[str, Any]], Figures]
    each: float | None = None
    mean: float | None = None
    at_most: bool = False


def at_bound(figure: Callable[[Row], float | None]) -> Callable[[Row], float | None]:
    """The value of `figure`, a time divided by our time, if our time were at the bound."""

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
    """Selects the figures of float32 rows.

    figure : computes the figure of a row; None: the row has none.
    section : the section of the record, one of `records.SECTIONS`.
    bound : computes the best possible figure of a row.
    wanted : the values that a row must have, by the names cell, mode, threads and ragged.
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
