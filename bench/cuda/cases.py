"""What is measured on a device."""

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
# Who is timed.
OURS, CUDNN, TF32, FLASHRNN = NAMES = ("ours", "torch.nn", "torch.nn, TF32", "FlashRNN")
# What CUDA libraries for recurrent layers publish their times of.
GOAL = ("lstm", "bfloat16", 1024, 16, 768)


@dataclass(frozen=True)
class Case:
    """One layer in one direction, whose input is as wide as its state: I = H."""

    cell: str
    dtype: str
    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"{self.cell} {self.dtype} {self.shape}"

    @property
    def shape(self) -> str:
        """T-B-H."""
        return f"{self.T}-{self.B}-{self.H}"

    @staticmethod
    def from_dict(entry: dict[str, Any]) -> Case:
        """The inverse of `dataclasses.asdict`."""
        return Case(**entry)


def cases(cells: Sequence[str] = CELLS, shapes: Sequence[str] = ()) -> list[Case]:
    """All of them; of some cells and shapes alone, if there are any of those."""
    return [case for case in _all() if case.cell in cells and (not shapes or case.shape in shapes)]


def _all() -> Iterator[Case]:
    for cell, dtype, steps, batch, hidden in product(CELLS, DTYPES, STEPS, BATCHES, HIDDEN):
        yield Case(cell, dtype, steps, batch, hidden)
