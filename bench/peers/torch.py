"""PyTorch on the CPU, in eager mode."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bench.peers.base import Peer, Runner
from bench.problem import Problem
from bench.shapes import CELL_LOOPS, IN_MODELS, LAYER_LOOPS, PACKED, Case


class Torch(Peer):
    """The layers of `torch.nn`. For ragged lengths, a timed step packs and pads a PackedSequence.

    way : another way to use the modules, one of `WAYS`; "": as layers.
    """

    modules: ClassVar[ModuleType] = torch.nn

    def __init__(self, way: str = "") -> None:
        self._way = way

    def refuses(self, case: Case, mode: str) -> str | None:
        return "timed in training" if self._way and mode != "training" else None

    def build(self, problem: Problem, mode: str) -> Runner:
        ways = {CELL_LOOPS: _Loop, LAYER_LOOPS: _Steps, PACKED: _Packed, IN_MODELS: _InAModel}
        runner = ways.get(self._way, _Training) if mode == "training" else _Inference
        return runner(problem, self.modules)


class _Inference(Runner):
    """A runner in torch's inference mode, which it enters once for a block of calls."""

    grad = False
    suffix = ""  # added to the module's parameter names, it gives those of the problem

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        case, shape = problem.case, problem.case.shape
        self._module = self._made(case, modules)
        self._module.load_state_dict(
            {n.removesuffix(self.suffix): torch.from_numpy(w) for n, w in problem.weights.items()}
        )
        self._module.requires_grad_(self.grad)
        self._inputs = [torch.from_numpy(x).requires_grad_(self.grad) for x in problem.inputs]
        lengths = problem.lengths
        self._lengths = None if lengths is None else torch.from_numpy(lengths)
        self._steps, self._threads = shape.T, case.threads

    def _made(self, case: Case, modules: ModuleType) -> torch.nn.Module:
        shape, dtype = case.shape, getattr(torch, case.dtype)
        constructor = getattr(modules, case.cell.upper())
        return constructor(shape.I, shape.H, shape.L, bidirectional=shape.D == 2, dtype=dtype)

    def ready(self) -> AbstractContextManager[Any]:
        torch.set_num_threads(self._threads)
        return nullcontext() if self.grad else torch.inference_mode()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._lengths is None:
            return self._module(x)[0]
        packed = pack_padded_sequence(x, self._lengths, enforce_sorted=False)
        return pad_packed_sequence(self._module(packed)[0], total_length=self._steps)[0]

    def run(self, k: int) -> Any:
        return self._forward(self._inputs[k])

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": result.numpy()}


class _Training(_Inference):
    """A runner that assigns gradients, and does not add to earlier ones, as with `set_to_none`."""

    grad = True

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        self._gradients = [torch.from_numpy(d) for d in problem.gradients]
        self._parameters = {n + self.suffix: p for n, p in self._module.named_parameters()}

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


class _Loop(_Training):
    """A loop that calls a cell for each step of a sequence, from states of zeros."""

    suffix = "_l0"

    def _made(self, case: Case, modules: ModuleType) -> torch.nn.Module:
        constructor = getattr(modules, f"{case.cell.upper()}Cell")
        return constructor(case.shape.I, case.shape.H, dtype=getattr(torch, case.dtype))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, states = [], None
        # With x[t] instead, each step would add a gradient in the shape of all of x.
        for step in x.unbind():
            states = self._module(step, states)
            outputs.append(states[0] if isinstance(states, tuple) else states)
        return torch.stack(outputs)


class _Steps(_Training):
    """A loop that calls a layer for each step of a sequence."""

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, states = [], None
        for step in x.split(1):
            output, states = self._module(step, states)
            outputs.append(output)
        return torch.cat(outputs)


class _InAModel(_Training):
    """A layer between two linear layers; all three are trained.

    The linear layers compute the identity, so that the answer is that of the layer alone.
    """

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        shape, dtype = problem.case.shape, self._inputs[0].dtype
        self._before, self._after = (
            torch.nn.Linear(size, size, dtype=dtype) for size in (shape.I, shape.D * shape.H)
        )
        for linear in self._before, self._after:
            torch.nn.init.eye_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
        self._others = [*self._before.parameters(), *self._after.parameters()]

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        for parameter in self._others:
            parameter.grad = None
        return self._after(super()._forward(self._before(x)))


class _Packed(_Training):
    """A layer that takes and returns a PackedSequence, with the gradient at its data."""

    def __init__(self, problem: Problem, modules: ModuleType) -> None:
        super().__init__(problem, modules)
        self._inputs = [
            x._replace(data=x.data.requires_grad_()) for x in map(self._pack, problem.inputs)
        ]
        self._gradients = [d.data for d in map(self._pack, problem.gradients)]

    def _pack(self, padded: NDArray) -> PackedSequence:
        return pack_padded_sequence(torch.from_numpy(padded), self._lengths, enforce_sorted=False)

    def _pad(self, packed: PackedSequence) -> torch.Tensor:
        return pad_packed_sequence(packed, total_length=self._steps)[0]

    def run(self, k: int) -> Any:
        x = self._inputs[k]
        x.data.grad = None
        for parameter in self._parameters.values():
            parameter.grad = None
        output = self._module(x)[0]
        output.data.backward(self._gradients[k])
        return output, x

    def answer(self, result: Any) -> dict[str, NDArray]:
        output, x = result
        gradients = {name: p.grad.numpy() for name, p in self._parameters.items()}
        d_input = self._pad(x._replace(data=x.data.grad))
        return {"output": self._pad(output).detach().numpy(), "input": d_input.numpy(), **gradients}


class _Empty(torch.autograd.Function):
    """A function of `inputs` whose outputs, of `shapes`, and gradients are left unwritten."""

    @staticmethod
    def forward(ctx: Any, shapes: list[tuple[int, ...]], *inputs: torch.Tensor) -> Any:
        ctx.save_for_backward(*inputs)
        return tuple(inputs[0].new_empty(shape) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        return None, *map(torch.empty_like, ctx.saved_tensors)


# This skips the part of Python's `apply` that is for `torch.func`, as a lean module would.
_empty = super(torch.autograd.Function, _Empty).apply


class Nothing(_Training):
    """A layer that computes nothing, to show what autograd alone takes of a training step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, torch.nn)
        shape, states = problem.case.shape, 2 if problem.case.cell == "lstm" else 1
        state = shape.L * shape.D, shape.B, shape.H
        self._shapes = [(shape.T, shape.B, shape.D * shape.H), *states * [state]]
        self._tensors = list(self._parameters.values())

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        return _empty(self._shapes, x, *self._tensors)[0]


class NothingInALoop(_Loop):
    """The same for a loop of cells. One tensor stands for the weights in all steps."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem, torch.nn)
        self._tensors, shape = list(self._parameters.values()), problem.case.shape
        self._states = (2 if problem.case.cell == "lstm" else 1) * [(shape.B, shape.H)]
        self._module = self._step

    def _step(self, x: torch.Tensor, before: Any) -> Any:
        return _empty(self._states, x, self._weights, *(before or ()))

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        (self._weights,) = _empty([()], *self._tensors)
        return super()._forward(x)
