"""ONNX Runtime one step at a time; the caller passes the state from call to call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bench.peers.base import Peer, Runner
from bench.peers.onnx_model import STATES, onnx_step
from bench.peers.onnxruntime import session_of
from bench.peers.streams import FEW
from bench.problem import Problem
from bench.shapes import Case


class OnnxSteps(Peer):
    """Steps by `run`, on NumPy arrays."""

    def refuses(self, case: Case, mode: str) -> str | None:
        return None

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Steps(problem)


class OnnxBoundSteps(OnnxSteps):
    """Steps by `run_with_iobinding`, on inputs and states that are bound in advance."""

    def build(self, problem: Problem, mode: str) -> Runner:
        return _BoundSteps(problem)


class _Steps(Runner):
    def __init__(self, problem: Problem) -> None:
        case = problem.case
        self._session = session_of(onnx_step(problem), case.threads)
        self._states = STATES[case.cell]
        self._zeros = np.zeros((1, 1, case.shape.H), np.float32)
        # Each input is (1, 1, I).
        self._inputs = [[x[t : t + 1] for t in range(len(x))] for x in problem.inputs]
        self._few = [(x[:FEW] * len(x))[: len(x)] for x in self._inputs]

    def ready(self) -> AbstractContextManager[Any]:
        self._feeds = dict.fromkeys(self._states, self._zeros)
        return nullcontext()

    def run(self, k: int) -> Any:
        call, feeds = self._session.run, self._feeds
        if len(self._states) == 2:
            for x in self._few[k]:
                feeds["X"] = x
                feeds["h"], feeds["c"] = call(None, feeds)
        else:
            for x in self._few[k]:
                feeds["X"] = x
                (feeds["h"],) = call(None, feeds)

    def answer(self, result: Any) -> dict[str, NDArray]:
        self.ready()
        steps = []
        for x in self._inputs[0]:
            after = self._session.run(None, {"X": x, **self._feeds})
            self._feeds = dict(zip(self._states, after, strict=True))
            steps.append(after[0][0])
        return {"output": np.stack(steps)}


class _BoundSteps(Runner):
    """A runner in which two sets of states take turns as input and output, to avoid copies."""

    def __init__(self, problem: Problem) -> None:
        case = problem.case
        self._session = session_of(onnx_step(problem), case.threads)
        names, shape = STATES[case.cell], (1, 1, case.shape.H)
        self._sets = [{name: np.zeros(shape, np.float32) for name in names} for _ in range(2)]
        self._all = [self._bind(x[t : t + 1], t) for x in problem.inputs[:1] for t in range(len(x))]
        few = [[self._bind(x[t : t + 1], t) for t in range(FEW)] for x in problem.inputs]
        self._few = [(bindings * case.shape.T)[: case.shape.T] for bindings in few]

    def _bind(self, x: NDArray, t: int) -> Any:
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("X", value(x))
        before, after = self._sets[t % 2], self._sets[(t + 1) % 2]
        for name in before:
            binding.bind_ortvalue_input(name, value(before[name]))
            binding.bind_ortvalue_output(f"{name}_next", value(after[name]))
        return binding

    def ready(self) -> AbstractContextManager[Any]:
        for state in self._sets[0].values():
            state.fill(0)
        return nullcontext()

    def run(self, k: int) -> Any:
        call = self._session.run_with_iobinding
        for binding in self._few[k]:
            call(binding)

    def answer(self, result: Any) -> dict[str, NDArray]:
        self.ready()
        steps = []
        for t, binding in enumerate(self._all):
            self._session.run_with_iobinding(binding)
            steps.append(self._sets[(t + 1) % 2]["h"][0].copy())
        return {"output": np.stack(steps)}
