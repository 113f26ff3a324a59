"""The contenders to time on a device: modules with the same parameters, and their answers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

import rnnfast.torch as rt
from bench.cuda.cases import FLASHRNN, GOAL, OURS, TF32, Case

CLASSES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM"}
# FlashRNN compiles its kernels for each size, which takes minutes. It is timed at the goal's only.
FLASHRNN_SHAPE = GOAL[2:]
FLASHRNN_CELLS = {"rnn": "elman", "gru": "gru", "lstm": "lstm"}

Call = Callable[[torch.Tensor], torch.Tensor]


class Problem:
    """The input, the parameters and the output's gradient of a case, equal for all contenders.

    Values are in the case's dtype. The reference uses the same values in float64.
    """

    def __init__(self, case: Case, where: str) -> None:
        self.case = case
        self.dtype = getattr(torch, case.dtype)
        torch.manual_seed(1)
        theirs = getattr(torch.nn, CLASSES[case.cell])(case.H, case.H).to(where, self.dtype)
        self.parameters = theirs.state_dict()
        self.x = torch.randn(case.T, case.B, case.H, device=where).to(self.dtype)
        self.dy = torch.randn(case.T, case.B, case.H, device=where).to(self.dtype)

    def module(self, package: Any, dtype: torch.dtype | None = None) -> torch.nn.Module:
        """A layer of `package`, torch.nn or rnnfast.torch; dtype : None: the case's."""
        module = getattr(package, CLASSES[self.case.cell])(self.case.H, self.case.H)
        module.to(self.x.device, dtype or self.dtype)
        module.load_state_dict(self.parameters)
        return module

    def reference(self, mode: str) -> dict[str, torch.Tensor]:
        """The answer of torch.nn in float64."""
        module = self.module(torch.nn, torch.float64)
        call = Contender(lambda x: module(x)[0], list(module.parameters()), module)
        call.prepare(mode)
        return call.answer(self.x.double(), self.dy.double(), mode)


class Contender:
    """A function to time: y of x, and in training the gradients at x and all parameters, from dy.

    forward : computes y from x.
    parameters : the parameters, in the order of torch.nn.
    module : the module that `forward` calls, if any.
    context : makes the context in which `run` is called.
    precision : the precision in which it computes; None: the case's dtype.
    """

    def __init__(
        self,
        forward: Call,
        parameters: list[torch.Tensor],
        module: torch.nn.Module | None = None,
        context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        precision: str | None = None,
    ) -> None:
        self.forward = forward
        self.parameters = parameters
        self.module = module
        self.context = context
        self.precision = precision

    def prepare(self, mode: str) -> None:
        """Must be called first: cuDNN keeps the data for a backward pass in training mode only."""
        if self.module is not None:
            self.module.train(mode == "training")

    def run(self, x: torch.Tensor, dy: torch.Tensor, mode: str) -> list[torch.Tensor]:
        """The output and, in training, the gradients."""
        if mode == "inference":
            with torch.no_grad():
                return [self.forward(x)]
        y = self.forward(x)
        return [y, *torch.autograd.grad(y, [x, *self.parameters], dy)]

    def answer(self, x: torch.Tensor, dy: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
        """The results of `run`, by name."""
        with self.context():
            found = self.run(x.detach().requires_grad_(mode != "inference"), dy, mode)
        names = ["output", "x", *map(str, range(len(self.parameters)))]
        return {name: value.detach() for name, value in zip(names, found, strict=False)}


def missing(name: str, case: Case) -> str | None:
    """Why a contender is not timed; None if it is timed."""
    if name == TF32 and case.dtype != "float32":
        return "there is none in bfloat16"
    if name == FLASHRNN:
        if importlib.util.find_spec("flashrnn") is None:
            return "not installed (pip install flashrnn einops ninja)"
        if (case.T, case.B, case.H) != FLASHRNN_SHAPE or case.dtype != "bfloat16":
            return "compiles for each size: only at that of the goal, in bfloat16"
    return None


def make(name: str, problem: Problem) -> Contender:
    """Makes the contender called `name`, one of `cases.NAMES`."""
    if name == FLASHRNN:
        return _flashrnn(problem)
    module = problem.module(rt if name == OURS else torch.nn)
    context = _tf32 if name == TF32 else _exact
    precision = "bfloat16" if name == TF32 else None  # TF32 has 11 bits, bfloat16 8
    return Contender(lambda x: module(x)[0], list(module.parameters()), module, context, precision)


@contextlib.contextmanager
def _with_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _tf32() -> contextlib.AbstractContextManager[None]:
    """A context in which cuDNN may use TF32, which is torch's default."""
    return _with_tf32(True)


def _exact() -> contextlib.AbstractContextManager[None]:
    return _with_tf32(False)


def _flashrnn(problem: Problem, backend: str = "cuda_fused") -> Contender:
    """FlashRNN with one head; torch computes the input product."""
    case, given = problem.case, problem.parameters
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = [given[name].clone().requires_grad_() for name in names]
    gates, hidden = len(weights[0]) // case.H, case.H

    def forward(x: torch.Tensor) -> torch.Tensor:
        from flashrnn import flashrnn  # this compiles its kernels

        w_ih, w_hh, b_ih, b_hh = weights
        recurrent = w_hh.view(gates, 1, hidden, hidden)
        b_w, b_r = b_ih.view(gates, 1, hidden), b_hh.view(gates, 1, hidden)
        bias = b_w + b_r
        if case.cell == "gru":  # gates n, r, z; n has two separate biases
            recurrent = recurrent[[2, 0, 1]]
            bias = torch.cat((b_r[2:], bias[:2], b_w[2:]))
        wx = (x @ w_ih.t()).view(*x.shape[:2], gates, 1, hidden).transpose(0, 1)
        function = FLASHRNN_CELLS[case.cell]
        states, _ = flashrnn(
            wx, recurrent, bias, function=function, backend=backend, dtype=case.dtype
        )
        return states[0].squeeze(2).transpose(0, 1)

    return Contender(forward, weights)
