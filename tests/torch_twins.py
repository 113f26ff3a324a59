"""Pairs of modules with equal parameters, rnnfast's and torch.nn's, for the tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from tolerances import assert_close

import rnnfast.torch as rt

INPUT, HIDDEN = 4, 5

# One line for each thing that a module can be: torch's class, and the options that select it.
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_projected": ("LSTM", {"proj_size": 3}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh_cell": ("RNNCell", {}),
    "rnn_relu_cell": ("RNNCell", {"nonlinearity": "relu"}),
    "gru_cell": ("GRUCell", {}),
    "lstm_cell": ("LSTMCell", {}),
}

# What the documentation promises against torch.nn.
OUTPUT = {torch.float32: 1e-5, torch.float64: 1e-12}
GRADIENT = {torch.float32: 1e-4, torch.float64: 1e-10}


def twins(kind: str, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """rnnfast's module of `kind` and torch.nn's, with equal parameters."""
    name, own = {**LAYERS, **CELLS}[kind]
    options = {**own, **options}
    torch.manual_seed(5)
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, **options)
    ours = getattr(rt, name)(INPUT, HIDDEN, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> torch.Tensor:
    """By NumPy: torch's generators are what some of its transforms refuse."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def state_for(
    module: torch.nn.Module, batch: int | None, dtype: torch.dtype = torch.float32
) -> Any:
    """A random initial state in the form that the module takes; batch None: unbatched."""
    rows = [] if batch is None else [batch]
    if isinstance(module, torch.nn.RNNBase):
        rows = [module.num_layers * (1 + module.bidirectional), *rows]
        h = normal(*rows, module.proj_size or module.hidden_size, dtype=dtype, seed=11)
        has_c = module.mode == "LSTM"
    else:
        h = normal(*rows, module.hidden_size, dtype=dtype, seed=11)
        has_c = isinstance(module, torch.nn.LSTMCell)
    return (h, normal(*rows, module.hidden_size, dtype=dtype, seed=12)) if has_c else h


def flat(result: Any) -> list[torch.Tensor]:
    """The tensors of a result, in order."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in flat(part)]


def assert_like(got: Any, want: Any, tolerance: float, what: str = "result") -> None:
    """Each tensor of `got` is within `tolerance` of the one of `want`, and of its dtype."""
    got, want = flat(got), flat(want)
    assert len(got) == len(want)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape, f"{what} {index}"
        assert_close(as_array(a), as_array(b), tolerance, f"{what} {index}")


def as_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def loss(result: Any) -> torch.Tensor:
    """A number that every entry of every tensor reaches with a weight of its own."""
    parts = flat(result)
    return sum(
        (part * normal(*part.shape, dtype=part.dtype, seed=20 + i)).sum()
        for i, part in enumerate(parts)
    )


def gradients(
    module: torch.nn.Module, result: Any, inputs: Iterable[torch.Tensor] = ()
) -> Sequence:
    """The gradients of `loss(result)` at the inputs and all parameters."""
    return torch.autograd.grad(loss(result), [*inputs, *module.parameters()])
