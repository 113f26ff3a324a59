"""What tests run in other processes of torch: data, models and steps, by names of a module."""

from __future__ import annotations

import torch
from torch import nn

import rnnfast.torch as rt

STEPS, FEATURES, WORLD = 5, 4, 2


class Reader(nn.Module):
    """A bidirectional LSTM, a GRU cell on its last output, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, 6, 2, bidirectional=True)
        self.cell = nn.GRUCell(12, 5)
        self.readout = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(x)
        return self.readout(self.cell(y[-1]))


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader()


def batch() -> torch.Tensor:
    """(T, B, I), of which each of the processes has a part of B."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEPS, 3 * WORLD, FEATURES, generator=generator)


def two_steps(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Trains by them, and gives all gradients of both."""
    optimiser = torch.optim.SGD(model.parameters(), 0.5)
    found = []
    for _ in range(2):
        optimiser.zero_grad()
        model(x).square().mean().backward()
        found += [p.grad.clone() for p in model.parameters()]
        optimiser.step()
    return found


def train_in_parallel(rank: int, folder: str) -> None:
    """One of the processes: leaves its gradients in `folder`."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    try:
        model = nn.parallel.DistributedDataParallel(rt.accelerate(reader()))
        torch.save(two_steps(model, batch().chunk(WORLD, 1)[rank]), f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


class Encoded(torch.utils.data.Dataset):
    """Sequences of different lengths, each through a module."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        self.encoder = rt.LSTM(FEATURES, 6).requires_grad_(False)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(index)
        y, _ = self.encoder(torch.randn(1 + index % 4, FEATURES, generator=generator))
        return y


class Summary:
    """A collate function that runs a module over packed sequences."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.summary = rt.GRU(6, 5, bidirectional=True).requires_grad_(False)

    def __call__(self, sequences: list[torch.Tensor]) -> torch.Tensor:
        packed = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
        return self.summary(packed)[1]
