"""ONNX Runtime, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from bench.peers.base import Peer, Runner
from bench.peers.onnx_model import onnx_model, output_of
from bench.problem import Problem
from bench.shapes import Case


class OnnxRuntime(Peer):
    """Layers with all graph optimisations; their constant weights are packed with the session."""

    def refuses(self, case: Case, mode: str) -> str | None:
        if mode == "training":
            return "inference only"
        return None if case.dtype == "float32" else "its recurrent operators are float32 only"

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Inference(problem)


def session_of(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session with all graph optimisations, on `threads` threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class _Inference(Runner):
    """A runner whose inputs and output are bound in advance, so that a call copies nothing."""

    def __init__(self, problem: Problem) -> None:
        self._session = session_of(onnx_model(problem), problem.case.threads)
        value = onnxruntime.OrtValue.ortvalue_from_numpy
        shape = problem.case.shape
        self._y = value(np.empty((shape.T, shape.D, shape.B, shape.H), np.float32))
        self._bindings = []
        for x in problem.inputs:
            binding = self._session.io_binding()
            binding.bind_ortvalue_input("X", value(x))
            if problem.lengths is not None:
                binding.bind_ortvalue_input("lengths", value(problem.lengths.astype(np.int32)))
            binding.bind_ortvalue_output("Y", self._y)
            self._bindings.append(binding)

    def run(self, k: int) -> Any:
        self._session.run_with_iobinding(self._bindings[k])
        return self._y

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": output_of(result.numpy())}
