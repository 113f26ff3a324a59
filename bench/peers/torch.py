"""PyTorch on the CPU, eager."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.peers.base import Peer, Runner
from bench.problem import Problem
from bench.shapes import Case


class Torch(Peer):
    """`torch.nn`'s layers; ragged lengths as a PackedSequence, packed and padded in the step."""

    def refuses(self, case: Case, mode: str) -> str | None:
        return None

    def build(self, problem: Problem, mode: str) -> Runner:
        return (_Training if mode == "training" else _Inference)(problem)


class _Inference(Runner):
    """In inference mode, which is entered once for a block and not in each call."""

    grad = False

    def __init__(self, problem: Problem) -> None:
        case, shape = problem.case, problem.case.shape
        constructor = getattr(torch.nn, case.cell.upper())
        self._layer = constructor(
            shape.I, shape.H, shape.L, bidirectional=shape.D == 2, dtype=getattr(torch, case.dtype)
        )
        self._layer.load_state_dict({n: torch.from_numpy(w) for n, w in problem.weights.items()})
        self._layer.requires_grad_(self.grad)
        self._inputs = [torch.from_numpy(x).requires_grad_(self.grad) for x in problem.inputs]
        lengths = problem.lengths
        self._lengths = None if lengths is None else torch.from_numpy(lengths)
        self._steps, self._threads = shape.T, case.threads

    def ready(self) -> AbstractContextManager[Any]:
        torch.set_num_threads(self._threads)
        return nullcontext() if self.grad else torch.inference_mode()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._lengths is None:
            return self._layer(x)[0]
        packed = pack_padded_sequence(x, self._lengths, enforce_sorted=False)
        return pad_packed_sequence(self._layer(packed)[0], total_length=self._steps)[0]

    def run(self, k: int) -> Any:
        return self._forward(self._inputs[k])

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": result.numpy()}


class _Training(_Inference):
    """Gradients are assigned and not added to earlier ones, as with `set_to_none`."""

    grad = True

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._gradients = [torch.from_numpy(d) for d in problem.gradients]
        self._parameters = dict(self._layer.named_parameters())

    def run(self, k: int) -> Any:
        x = self._inputs[k]
        x.grad = None
        for parameter in self._parameters.values():
            parameter.grad = None
        output = self._forward(x)
        output.backward(self._gradients[k])
        return output, x

    def answer(self, result: Any) -> dict[str, NDArray]:
        output, x = result
        gradients = {name: p.grad.numpy() for name, p in self._parameters.items()}
        return {"output": output.detach().numpy(), "input": x.grad.numpy(), **gradients}
