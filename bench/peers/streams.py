"""rnnfast's streams, which run a layer one step at a time, from Python and in C.

A call of these runners takes T steps in a row, the problem's T. The timed steps of `Steps` read a
few arrays again and again, as a program does that reads a sensor. The answer is for all T inputs.
"""

from __future__ import annotations

import ctypes
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rnnfast
from bench.peers.base import Peer, Runner
from bench.problem import Problem, layer_of
from bench.shapes import Case

FEW = 4  # the number of different inputs of the timed steps


class Steps(Peer):
    """Steps by `step(x, out)` from Python.

    weights : the format of the stream's weights.
    """

    def __init__(self, weights: str) -> None:
        self._weights = weights

    def refuses(self, case: Case, mode: str) -> str | None:
        return None

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Steps(problem, self._weights)


class _Steps(Runner):
    def __init__(self, problem: Problem, weights: str) -> None:
        self._stream = layer_of(problem.case).stream(weights=weights)
        self._inputs = [x[:, 0] for x in problem.inputs]
        self._few = [(list(x[:FEW]) * len(x))[: len(x)] for x in self._inputs]
        self._out = np.empty(problem.case.shape.H, np.float32)
        self.precision = weights

    def ready(self) -> AbstractContextManager[Any]:
        self._stream.reset()
        return nullcontext()

    def run(self, k: int) -> Any:
        step, out = self._stream.step, self._out
        for x in self._few[k]:
            step(x, out)

    def answer(self, result: Any) -> dict[str, NDArray]:
        self._stream.reset()
        steps = [self._stream.step(x, self._out).copy() for x in self._inputs[0]]
        return {"output": np.stack(steps)[:, None]}


class StepsInC(Peer):
    """Steps by the C library's `rnnfast_run`, which runs T steps in one call without Python."""

    def refuses(self, case: Case, mode: str) -> str | None:
        return None if _library() else "this install has no C library"

    def build(self, problem: Problem, mode: str) -> Runner:
        return _StepsInC(problem)


def _library() -> Path | None:
    """The path of the shared C library; None if it is not installed."""
    folders = (Path(folder) / "lib" for folder in rnnfast.__path__)
    return next((path for folder in folders for path in sorted(folder.glob("librnnfast.*"))), None)


class _Config(ctypes.Structure):
    """The struct `rnnfast_config` of rnnfast.h."""

    _fields_ = (
        ("cell", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("weights", ctypes.c_char_p),
        ("input_size", ctypes.c_int64),
        ("hidden_size", ctypes.c_int64),
        ("proj_size", ctypes.c_int64),
        ("num_layers", ctypes.c_int64),
        ("batch_size", ctypes.c_int64),
    )


class _StepsInC(Runner):
    """A runner that passes the layer to C in a file, as programs in C get it."""

    def __init__(self, problem: Problem) -> None:
        self._c = ctypes.CDLL(str(_library()))
        self._c.rnnfast_open.restype = ctypes.c_void_p
        self._c.rnnfast_error.restype = ctypes.c_char_p
        config = _Config(weights=b"float32", batch_size=1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "layer.safetensors")
            layer_of(problem.case).save(path)
            handle = self._c.rnnfast_open(str(path).encode(), ctypes.byref(config))
        if not handle:
            raise RuntimeError(self._c.rnnfast_error().decode())
        self._handle = ctypes.c_void_p(handle)
        self._inputs = problem.inputs
        shape = problem.case.shape
        self._out = np.empty((shape.T, 1, shape.H), np.float32)
        steps, y = ctypes.c_int64(shape.T), ctypes.c_void_p(self._out.ctypes.data)
        self._arguments = [
            (self._handle, steps, ctypes.c_void_p(x.ctypes.data), y) for x in problem.inputs
        ]

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._c.rnnfast_destroy(self._handle)

    def ready(self) -> AbstractContextManager[Any]:
        self._c.rnnfast_reset(self._handle, None)
        return nullcontext()

    def run(self, k: int) -> Any:
        self._c.rnnfast_run(*self._arguments[k])

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": self._out.copy()}
