"""rnnfast's layers for NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from numpy.typing import NDArray

import rnnfast
from bench.peers.base import Peer, Runner
from bench.problem import Problem, layer_of
from bench.shapes import Case
from rnnfast import _backend


class Ours(Peer):
    """Our layers on NumPy arrays. Packed weights are cached while the parameters do not change.

    threads : the number of threads; None: that of the case.
    new_weights : whether each training step starts as if the parameters had changed.
    recompute : the argument of `record`.
    precision : the layer's option; None: its dtype.
    backend : the backend that computes; None: the one in use.
    """

    def __init__(
        self,
        threads: int | None = None,
        new_weights: bool = False,
        recompute: bool = False,
        precision: str | None = None,
        backend: str | None = None,
    ) -> None:
        self._threads = threads
        self._backend = backend
        self._new_weights = new_weights
        self._recompute = recompute
        self._precision = precision

    def refuses(self, case: Case, mode: str) -> str | None:
        if self._precision == "int8" and mode == "training":
            return "inference only"
        return "timed in training" if self._new_weights and mode != "training" else None

    def build(self, problem: Problem, mode: str) -> Runner:
        threads = self._threads or problem.case.threads
        if mode == "training":
            options = self._backend, self._precision, self._new_weights, self._recompute
            return _Training(problem, threads, *options)
        return _Inference(problem, threads, self._backend, self._precision)


@contextmanager
def _by(backend: str) -> Iterator[None]:
    before = _backend.current().name
    rnnfast.set_backend(backend)
    try:
        yield
    finally:
        rnnfast.set_backend(before)


class _Inference(Runner):
    def __init__(
        self, problem: Problem, threads: int, backend: str | None, precision: str | None
    ) -> None:
        options = {} if precision is None else {"precision": precision}
        self.precision = precision
        self._layer = layer_of(problem.case, **options)
        self._layer.load_state_dict(problem.weights)
        self._inputs, self._lengths = problem.inputs, problem.lengths
        self._threads, self._backend = threads, backend

    def ready(self) -> AbstractContextManager[Any]:
        rnnfast.set_num_threads(self._threads)
        return nullcontext() if self._backend is None else _by(self._backend)

    def run(self, k: int) -> Any:
        return self._layer(self._inputs[k], lengths=self._lengths)

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": result[0]}


class _Training(_Inference):
    def __init__(
        self,
        problem: Problem,
        threads: int,
        backend: str | None,
        precision: str | None,
        new_weights: bool,
        recompute: bool,
    ) -> None:
        super().__init__(problem, threads, backend, precision)
        self._gradients = problem.gradients
        self._new_weights, self._recompute = new_weights, recompute

    def run(self, k: int) -> Any:
        if self._new_weights:
            with self._layer.parameters.edit():
                pass  # even if nothing is written, this makes the packed weights stale
        tape = self._layer.record(self._inputs[k], lengths=self._lengths, recompute=self._recompute)
        return tape, tape.backward(self._gradients[k])

    def answer(self, result: Any) -> dict[str, NDArray]:
        tape, gradients = result
        return {"output": tape.output, "input": gradients.input, **gradients.parameters}
