"""A plain LSTM of one layer in a shared library, which ours should not be slower than.

    void* mkp(int I, int H, W, R, b_w, b_r)                    packs weights of torch's layout
    void fwd(p, int T, int B, x, h0, c0, y, c, gates, int training, int fuse)
    void bwd(p, int T, int B, x, h0, c0, y, c, gates, dy, dx, dW, dR, db, dh0, dc0)

All arrays are float32. `bwd` adds to dW, dR and db. `fuse`, 0 or 1, chooses between two ways to
compute the input product; the faster one is timed.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.peers.base import Peer, Runner
from bench.problem import Problem
from bench.shapes import Case
from bench.timing import seconds_per_call

VECTOR = 16  # the library only has code for whole vectors of AVX-512


def _pointer(array: NDArray) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


class Yardstick(Peer):
    """The LSTM of the shared library, which writes to the same buffers in every call."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)
        self._library.mkp.restype = ctypes.c_void_p

    def refuses(self, case: Case, mode: str) -> str | None:
        shape = case.shape
        if case.cell != "lstm" or shape.L * shape.D != 1 or shape.ragged:
            return "an LSTM of one layer in one direction only"
        if case.dtype != "float32" or case.threads != 1:
            return "float32 on one thread only"
        return (
            f"I and H in multiples of {VECTOR} only"
            if shape.I % VECTOR or shape.H % VECTOR
            else None
        )

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Runner(self._library, problem, mode)


class _Runner(Runner):
    def __init__(self, library: Any, problem: Problem, mode: str) -> None:
        shape = problem.case.shape
        self._forward, self._backward = library.fwd, library.bwd
        self._training = int(mode == "training")
        weights = [
            problem.weights[f"{n}_l0"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        packed = ctypes.c_void_p(library.mkp(shape.I, shape.H, *map(_pointer, weights)))
        state = [np.zeros((shape.B, shape.H), np.float32) for _ in range(2)]
        y, c = (np.empty((shape.T, shape.B, shape.H), np.float32) for _ in range(2))
        gates = np.empty((shape.T, shape.B, 4 * shape.H), np.float32)
        self._y, self._dx = y, np.empty((shape.T, shape.B, shape.I), np.float32)
        self._sums = [np.zeros_like(w) for w in weights[:3]]
        self._kept = [problem, state, c, gates, [np.empty_like(s) for s in state]]
        common = [
            [packed, shape.T, shape.B, *map(_pointer, (x, *state, y, c, gates))]
            for x in problem.inputs
        ]
        gradients = list(map(_pointer, (self._dx, *self._sums, *self._kept[-1])))
        self._backwards = [
            [*arguments, _pointer(dy), *gradients]
            for arguments, dy in zip(common, problem.gradients, strict=True)
        ]
        ways = [[[*arguments, self._training, fuse] for arguments in common] for fuse in (0, 1)]
        self._forwards = min(
            ways, key=lambda way: seconds_per_call(lambda k: self._forward(*way[k]), 0.05)
        )

    def run(self, k: int) -> Any:
        self._forward(*self._forwards[k])
        if self._training:
            for gradient in self._sums:
                gradient.fill(0)
            self._backward(*self._backwards[k])

    def answer(self, result: Any) -> dict[str, NDArray]:
        if not self._training:
            return {"output": self._y.copy()}
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
        gradients = {n: g.copy() for n, g in zip(names, self._sums, strict=True)}
        gradients["bias_hh_l0"] = gradients["bias_ih_l0"]
        return {"output": self._y.copy(), "input": self._dx.copy(), **gradients}
