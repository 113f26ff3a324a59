"""Building blocks of the tests of `torch.compile` and `torch.export`."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_twins import CELLS, GRADIENT, HIDDEN, INPUT, OUTPUT, normal  # noqa: E402

import rnnfast.torch as rt  # noqa: E402

# Sizes that are equal where tracing sees them are one size to torch: T, B, I and H differ.
STEPS, BATCH = 6, 2
VALUE, DERIVATIVE = OUTPUT[torch.float32], GRADIENT[torch.float32]
SHAPES = [(6, 2), (3, 8), (7, 3), (2, 2), (4, 5), (9, 4)]  # T, B; a size of 1 compiles anew


def inputs(kind, steps=STEPS, batch=BATCH, seed=3):
    return normal(*(() if kind in CELLS else (steps,)), batch, INPUT, seed=seed)


class Tagger(torch.nn.Module):
    """An encoder of torch.nn's layers, nested in other modules."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.ModuleDict({"rnn": torch.nn.GRU(INPUT, HIDDEN, bidirectional=True)})
        self.outer = torch.nn.LSTM(2 * HIDDEN, HIDDEN, num_layers=2)
        self.head = torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU())

    def forward(self, x):
        y, _ = self.inner["rnn"](torch.tanh(x))
        y, (h, c) = self.outer(y * 2)
        return self.head(y).mean(0), h, c


def taggers():
    """An accelerated model and the same of torch.nn."""
    pair = []
    for _ in range(2):
        torch.manual_seed(0)
        pair.append(Tagger())
    return rt.accelerate(pair[0]), pair[1]
