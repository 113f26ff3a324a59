"""JAX, with the cells in a compiled `lax.scan`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bench.peers.base import Peer, Runner
from bench.problem import Problem, split_weights
from bench.shapes import Case


class Jax(Peer):
    """Layers whose input product over all steps comes before the scan, as JAX's users write it."""

    def refuses(self, case: Case, mode: str) -> str | None:
        if case.shape.ragged:
            return "has no recurrent layer, and so no lengths"
        if case.threads != 1:
            return "timed on one thread only"
        return None if case.dtype == "float32" else "timed in float32 only"

    def build(self, problem: Problem, mode: str) -> Runner:
        return _Runner(problem, mode)


def _rnn(h: Any, wx: Any, weights: dict[str, Any]) -> Any:
    return jnp.tanh(wx + h @ weights["weight_hh"].T + weights["bias_hh"])


def _gru(h: Any, wx: Any, weights: dict[str, Any]) -> Any:
    rh = h @ weights["weight_hh"].T + weights["bias_hh"]
    (wx_r, wx_z, wx_n), (rh_r, rh_z, rh_n) = jnp.split(wx, 3, -1), jnp.split(rh, 3, -1)
    r, z = jax.nn.sigmoid(wx_r + rh_r), jax.nn.sigmoid(wx_z + rh_z)
    n = jnp.tanh(wx_n + r * rh_n)
    return (1 - z) * n + z * h


def _lstm(state: Any, wx: Any, weights: dict[str, Any]) -> Any:
    h, c = state
    i, f, g, o = jnp.split(wx + h @ weights["weight_hh"].T + weights["bias_hh"], 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


STEPS: dict[str, Callable] = {"rnn": _rnn, "gru": _gru, "lstm": _lstm}


def _direction(cell: str, x: Any, weights: dict[str, Any], reverse: bool) -> Any:
    """The output (T, B, H) of one layer in one direction."""
    wx = x @ weights["weight_ih"].T + weights["bias_ih"]
    h0 = jnp.zeros((x.shape[1], weights["weight_hh"].shape[1]), x.dtype)

    def step(state: Any, wx_t: Any) -> Any:
        state = STEPS[cell](state, wx_t, weights)
        return state, state[0] if cell == "lstm" else state

    return jax.lax.scan(step, (h0, h0) if cell == "lstm" else h0, wx, reverse=reverse)[1]


def _forward(cell: str, x: Any, layers: list[list[dict[str, Any]]]) -> Any:
    for layer in layers:
        outputs = [_direction(cell, x, weights, d == 1) for d, weights in enumerate(layer)]
        x = jnp.concatenate(outputs, axis=-1)
    return x


class _Runner(Runner):
    def __init__(self, problem: Problem, mode: str) -> None:
        cell = problem.case.cell
        self._layers = jax.tree.map(jnp.asarray, split_weights(problem.case, problem.weights))
        self._inputs = [jnp.asarray(x) for x in problem.inputs]
        self._gradients = [jnp.asarray(d) for d in problem.gradients]
        self._training = mode == "training"

        def infer(x: Any, d_output: Any, layers: Any) -> Any:
            return _forward(cell, x, layers)

        def train(x: Any, d_output: Any, layers: Any) -> Any:
            output, pull_back = jax.vjp(lambda x, layers: _forward(cell, x, layers), x, layers)
            return output, *pull_back(d_output)

        self._step = jax.jit(train if self._training else infer)

    def run(self, k: int) -> Any:
        result = self._step(self._inputs[k], self._gradients[k], self._layers)
        return jax.block_until_ready(result)

    def answer(self, result: Any) -> dict[str, NDArray]:
        if not self._training:
            return {"output": np.asarray(result)}
        output, d_input, d_layers = result
        answer = {"output": np.asarray(output), "input": np.asarray(d_input)}
        for k, layer in enumerate(d_layers):
            for suffix, direction in zip(("", "_reverse"), layer, strict=False):
                for name, gradient in direction.items():
                    answer[f"{name}_l{k}{suffix}"] = np.asarray(gradient)
        return answer
