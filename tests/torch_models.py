"""Modules for the tests of rnnfast.torch, and what torch makes of the same parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rnnfast import _backend

H = 6  # the width of what the small modules read


class Everywhere(nn.Module):
    """Recurrent modules in each place where a model may have them; `again` is `first`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(3, 4)
        self.again = self.first
        self.chain = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.GRU(3, 5)))
        self.each = nn.ModuleList([nn.RNN(5, 3), nn.LSTM(3, 4, bidirectional=True, proj_size=2)])
        self.named = nn.ModuleDict({"rnn": nn.RNNCell(4, 3), "lstm": nn.LSTMCell(3, 3)})
        self.named["gru"] = nn.GRUCell(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.first(x)
        y, state = self.again(self.chain[0](y))
        y, _ = self.chain(y)
        for layer in self.each:
            y, _ = layer(y)
        h, _ = self.named["lstm"](self.named["rnn"](y[-1]))
        return self.named["gru"](h) + state[0].sum()


RECURRENT = ["first", "chain.1.0", "each.0", "each.1", "named.rnn", "named.lstm", "named.gru"]


class Scaled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 2


def everywhere() -> tuple[Everywhere, torch.Tensor]:
    torch.manual_seed(0)
    return Everywhere(), torch.randn(6, 2, 3)


def output(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer gives, or a cell: for either the first tensor of it."""
    result = layer(x)
    return result[0] if isinstance(result, tuple) else result


def inputs() -> torch.Tensor:
    return torch.randn(4, 2, H, generator=torch.Generator().manual_seed(1))


def run(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module(inputs())[0]


def by_torch(module: torch.nn.Module) -> torch.Tensor:
    """What torch's own module gives with the parameters as they are now."""
    theirs = getattr(torch.nn, type(module).__name__)(H, module.hidden_size, module.num_layers)
    theirs.load_state_dict(module.state_dict())
    return run(theirs)


def packs_made(monkeypatch) -> list:
    """The recurrent weights of all packs that are made from now on."""
    backend = _backend.current()
    made, pack, repack = [], backend.pack, backend.repack

    def packing(cell, weights, *args):
        made.append(weights.weight_hh.copy())
        return pack(cell, weights, *args)

    def repacking(packs, weights):
        per_pack = len(weights) // len(packs)
        made.extend(np.from_dlpack(w).copy() for w in weights[1::per_pack])
        return repack(packs, weights)

    monkeypatch.setattr(backend, "pack", packing)
    monkeypatch.setattr(backend, "repack", repacking)
    return made
