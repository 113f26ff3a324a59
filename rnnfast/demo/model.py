"""A character model: an embedding, one recurrent layer, and a softmax over the characters.

Letters: T steps, B streams, D embedding size, H hidden size, V characters, N = T*B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import rnnfast

EMBEDDING = 64


class Cell(NamedTuple):
    """A cell of the demo: its layer, and the peak learning rate that suits it."""

    layer: type
    rate: float


# The simpler the cell, the lower the learning rate at which its training becomes unstable.
CELLS = {
    "rnn": Cell(rnnfast.RNN, 0.003),
    "lstm": Cell(rnnfast.LSTM, 0.012),
    "gru": Cell(rnnfast.GRU, 0.006),
}


class CharModel:
    """Predicts each next character of a text. Everything is float32.

    Parameters
    ----------
    cell : a key of `CELLS`.
    characters : V, the number of different characters.
    hidden : H.
    seed : determines the initial parameters.
    """

    def __init__(self, cell: str, characters: int, hidden: int, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        bound = 1 / math.sqrt(hidden)
        self.cell = cell
        self.layer = CELLS[cell].layer(EMBEDDING, hidden, seed=seed)
        self.embedding = random.standard_normal((characters, EMBEDDING), np.float32)
        self.out_weight = random.uniform(-bound, bound, (characters, hidden)).astype(np.float32)
        self.out_bias = np.zeros(characters, np.float32)

    @contextmanager
    def edit(self) -> Iterator[Mapping[str, NDArray]]:
        """All parameters, the layer's among them, as arrays to update in place."""
        with self.layer.parameters.edit() as layer_parameters:
            yield {
                "embedding": self.embedding,
                "out_weight": self.out_weight,
                "out_bias": self.out_bias,
                **layer_parameters,
            }

    def gradients(
        self, ids: NDArray[np.intp], targets: NDArray[np.intp], state: Any
    ) -> tuple[float, dict[str, NDArray], Any]:
        """Runs one chunk of truncated backpropagation through time.

        Parameters
        ----------
        ids, targets : (T, B), the characters read and the ones that follow them.
        state : the layer's state before the chunk; None: zeros.

        Returns
        -------
        loss : the mean loss in nats.
        gradients : its gradients, under the names that `edit` uses. They stop at `state`.
        state : the layer's state after the chunk.
        """
        tape = self.layer.record(self.embedding[ids], state)
        hidden = tape.output.reshape(targets.size, -1)
        loss, d_logits = cross_entropy(self.logits(hidden), targets.ravel())
        grads = tape.backward((d_logits @ self.out_weight).reshape(tape.output.shape))
        # The row of a character sums the gradients of all its places, which is a matrix product.
        one_hot = np.zeros_like(d_logits)
        one_hot[np.arange(ids.size), ids.ravel()] = 1
        named = {
            "embedding": one_hot.T @ grads.input.reshape(ids.size, -1),
            "out_weight": d_logits.T @ hidden,
            "out_bias": d_logits.sum(axis=0),
            **grads.parameters,
        }
        return loss, named, tape.state

    def logits(self, hidden: NDArray) -> NDArray:
        """(N, H) -> (N, V): the unnormalised log-probabilities of the next characters."""
        logits: NDArray = hidden @ self.out_weight.T
        logits += self.out_bias
        return logits

    def sample(
        self, prompt: NDArray[np.intp], length: int, temperature: float = 0.7, seed: int = 0
    ) -> NDArray[np.intp]:
        """The numbers of `length` characters that the model writes after those of `prompt`."""
        random = np.random.default_rng(seed)
        output, state = self.layer(self.embedding[prompt[:, None]])
        ids = np.empty(length, np.intp)
        for i in range(length):
            scaled = self.logits(output[-1]).astype(np.float64)[0] / temperature
            # The largest of logits plus Gumbel noise is a sample of their softmax.
            ids[i] = np.argmax(scaled + random.gumbel(size=scaled.size))
            output, state = self.layer(self.embedding[ids[i : i + 1, None]], state)
        return ids


def cross_entropy(logits: NDArray, targets: NDArray[np.intp]) -> tuple[float, NDArray]:
    """The mean of -log softmax(logits)[target] in nats, and its gradient.

    logits : (N, V); the gradient overwrites them.
    targets : (N,) integers.
    """
    rows = np.arange(targets.size)
    logits -= logits.max(axis=1, keepdims=True)
    at_targets = logits[rows, targets]
    np.exp(logits, out=logits)
    sums = logits.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(sums[:, 0]) - at_targets, dtype=np.float64))
    logits /= sums
    logits[rows, targets] -= 1
    logits /= targets.size
    return loss, logits
