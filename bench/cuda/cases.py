"""The cases to time on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.shapes import CELLS

DTYPES = ("float32", "bfloat16")
STEPS = (64, 1024)
BATCHES = (1, 16, 64)
HIDDEN = (64, 256, 512, 768, 1024)
# The names of the contenders.
OURS, CUDNN, TF32, FLASHRNN = NAMES = ("ours", "torch.nn", "torch.nn, TF32", "FlashRNN")
# The goal: the case for which CUDA libraries for recurrent layers publish their times.
GOAL = ("lstm", "bfloat16", 1024, 16, 768)


@dataclass(frozen=True)
class Case:
    """One layer in one direction, whose input and state have the same width: I = H."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} {self.shape}"

    @property
    def shape(self) -> str:
        """The name of the shape: T-B-H."""
        return f"{self.T}-{self.B}-{self.H}"

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Case:
        """The inverse of `dataclasses.asdict`."""
        return Case(**entry)


def cases(cells: Sequence[str] = CELLS, shapes: Sequence[str] = ()) -> list[Case]:
    """All cases of some cells and, if `shapes` is not empty, of these shapes only."""
    return [case for case in _all() if case.cell in cells and (not shapes or case.shape in shapes)]


def _all() -> Iterator[Case]:
    for cell, dtype, steps, batch, hidden in product(CELLS, DTYPES, STEPS, BATCHES, HIDDEN):
        yield Case(cell, dtype, steps, batch, hidden)
