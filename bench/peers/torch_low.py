"""PyTorch in low precision: modules in bfloat16, and modules quantised to int8."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch.ao.quantization import quantize_dynamic

from bench.peers.base import Peer, Runner
from bench.peers.torch import _Inference, _Training
from bench.problem import Problem
from bench.shapes import Case


class _InBfloat16(_Inference):
    precision = "bfloat16"

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        self._module.to(torch.bfloat16)
        self._inputs = [x.detach().bfloat16().requires_grad_(self.grad) for x in self._inputs]

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": _array(result)}


class _TrainingInBfloat16(_InBfloat16, _Training):
    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        self._gradients = [d.bfloat16() for d in self._gradients]

    def answer(self, result: Any) -> dict[str, NDArray]:
        output, x = result
        gradients = {name: _array(p.grad) for name, p in self._parameters.items()}
        return {"output": _array(output), "input": _array(x.grad), **gradients}


class _InInt8(_Inference):
    precision = "int8"

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        # `quantize_dynamic` quantises only the children of a module.
        whole = torch.nn.Sequential(self._module)
        (self._module,) = quantize_dynamic(whole, {type(self._module)}, dtype=torch.qint8)


def _array(tensor: torch.Tensor) -> NDArray:
    return tensor.detach().float().numpy()


class TorchBfloat16(Peer):
    """Layers in bfloat16, with inputs and gradients in bfloat16."""

    def refuses(self, case: Case, mode: str) -> str | None:
        return None

    def build(self, problem: Problem, mode: str) -> Runner:
        return (_TrainingInBfloat16 if mode == "training" else _InBfloat16)(problem, torch.nn)


class TorchInt8(Peer):
    """Layers of `quantize_dynamic`: int8 weights, and operands that each step rounds to int8."""

    def refuses(self, case: Case, mode: str) -> str | None:
        if mode == "training":
            return "inference only"
        return "it quantises no torch.nn.RNN" if case.cell == "rnn" else None

    def build(self, problem: Problem, mode: str) -> Runner:
        return _InInt8(problem, torch.nn)
