"""A comparison of two records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.records import Row, geometric_mean, rows
from bench.shapes import PRECISION, STREAMS


def compare(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """The lines of a table of every measurement that both records have, the greatest loss first.

    Two runs of the same program differ by some 15 % here, because the machine's speed changes from
    day to day. The last column does not suffer from that: it is the change of the ratio to torch,
    which was timed in turn with ours in each run.
    """
    sections = ("results", STREAMS, PRECISION)
    old = {row.key: row for name in sections for row in rows(before, name)}
    new = [row for name in sections for row in rows(after, name)]
    pairs = [(old[row.key], row) for row in new if row.key in old]
    if not pairs:
        yield "nothing was measured in both"
        return
    pairs.sort(key=lambda pair: pair[0].ours / pair[1].ours)
    widths = [4, max(len(row.case.shape.name) for _, row in pairs), 7, 9, 7]
    yield (
        f"{'cell':4}  {'shape':{widths[1]}}  {'dtype':7}  {'mode':9}  threads "
        f"{'before µs':>12} {'after µs':>12} {'speed-up':>9}   {'over torch':>10}"
    )
    for a, b in pairs:
        texts = [f"{part!s:{width}}" for part, width in zip(b.key, widths, strict=True)]
        mark = "*" if _apart(a, b) else " "
        yield (
            f"{'  '.join(texts)} {a.ours:12.2f} {b.ours:12.2f} {a.ours / b.ours:9.3f} {mark} "
            f"{_change(a, b):>10}"
        )
    mean = geometric_mean([a.ours / b.ours for a, b in pairs])
    yield f"geometric mean of {len(pairs)}: {mean:.3f}   (* the quartiles do not overlap)"


def _apart(a: Row, b: Row) -> bool:
    """Whether the interquartile ranges of our times do not overlap."""
    first, second = a.times["ours"], b.times["ours"]
    return first["q3"] < second["q1"] or second["q3"] < first["q1"]


def _change(a: Row, b: Row) -> str:
    """The ratio to torch after, divided by the ratio before; "" if one was not measured."""
    before, after = a.ratio("torch"), b.ratio("torch")
    return "" if before is None or after is None else f"{after / before:.3f}"
