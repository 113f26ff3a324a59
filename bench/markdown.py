"""Markdown for the pages of the benchmark."""

from __future__ import annotations

from collections.abc import Iterator


def table(header: list[str], lines: list[list[str]]) -> Iterator[str]:
    """A table in Markdown; all columns but the first two are numbers."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join(["---"] * 2 + ["---:"] * (len(header) - 2)) + "|"
    yield from ("| " + " | ".join(line) + " |" for line in lines)
    yield ""
