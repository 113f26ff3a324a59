"""What a floor is, and the figures of a record that one is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench import records
from bench.records import Row

# A figure, and what it is of.
Figures = list[tuple[str, float]]


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


def of_rows(
    figure: Callable[[Row], float | None], section: str = "results", **wanted: Any
) -> Callable[[dict[str, Any]], Figures]:
    """The figures of the float32 rows that have one and whose cell, mode and threads are wanted.

    section : of the record, as `records.rows` has it.
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
                found.append((f"{row.case.cell} {row.case.shape.name} {row.mode}", value))
        return found

    return figures
