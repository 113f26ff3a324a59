"""OpenVINO, on the CPU, from the same ONNX model."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from bench.peers.base import Peer, Runner
from bench.peers.onnx_model import onnx_model, output_of
from bench.problem import Problem
from bench.shapes import Case


class OpenVino(Peer):
    """Layers set for latency, in float32: the default is bfloat16 on CPUs that support it."""

    def refuses(self, case: Case, mode: str) -> str | None:
        if mode == "training":
            return "inference only"
        return None if case.dtype == "float32" else "computes in float32 at most"

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Inference(problem)


class _Inference(Runner):
    def __init__(self, problem: Problem) -> None:
        core = openvino.Core()
        model = core.read_model(onnx_model(problem))
        compiled = core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": problem.case.threads,
                "ENABLE_CPU_PINNING": False,  # the process itself is pinned
            },
        )
        self._request = compiled.create_infer_request()
        lengths = problem.lengths
        more = {} if lengths is None else {"lengths": lengths.astype(np.int32)}
        self._inputs = [{"X": x, **more} for x in problem.inputs]

    def run(self, k: int) -> Any:
        return self._request.infer(self._inputs[k], share_inputs=True, share_outputs=True)

    def answer(self, result: Any) -> dict[str, NDArray]:
        return {"output": output_of(np.array(result[0]))}
