"""Training and evaluation of a `CharModel`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rnnfast.demo.model import CELLS, CharModel, cross_entropy

STREAMS = 16
STEPS = 64
CLIP = 1.0
WARM_UP = 50
FINAL_RATE = 0.05


@dataclass
class Training:
    """The course of a training so far.

    losses : for each update, the bits per character on its chunk, before the update.
    characters : the number of characters trained on.
    seconds : the time that the training took.
    fraction : the part of the training that is done; at least 1 at the end.
    """

    losses: list[float] = field(default_factory=list)
    characters: int = 0
    seconds: float = 0.0
    fraction: float = 0.0

    @property
    def speed(self) -> float:
        """Characters per second."""
        return self.characters / self.seconds if self.seconds else 0.0


class Adam:
    """The optimiser Adam of Kingma & Ba 2015, which updates parameters in place."""

    def __init__(self, beta1: float = 0.9, beta2: float = 0.99, epsilon: float = 1e-8) -> None:
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        self.moments: dict[str, tuple[NDArray, NDArray, NDArray]] = {}
        self.updates = 0

    def update(
        self, parameters: Mapping[str, NDArray], gradients: Mapping[str, NDArray], rate: float
    ) -> None:
        """Moves `parameters` one step of size `rate` against `gradients`."""
        self.updates += 1
        unbias1 = 1 - self.beta1**self.updates
        unbias2 = math.sqrt(1 - self.beta2**self.updates)
        for name, gradient in gradients.items():
            if name not in self.moments:
                mean, square = np.zeros_like(gradient), np.zeros_like(gradient)
                self.moments[name] = mean, square, np.empty_like(gradient)
            mean, square, scratch = self.moments[name]
            mean *= self.beta1
            mean += np.multiply(gradient, 1 - self.beta1, out=scratch)
            square *= self.beta2
            np.multiply(gradient, gradient, out=scratch)
            scratch *= 1 - self.beta2
            square += scratch
            np.sqrt(square, out=scratch)
            scratch += self.epsilon * unbias2
            np.divide(mean, scratch, out=scratch)
            scratch *= rate * unbias2 / unbias1
            parameter = parameters[name]
            parameter -= scratch


def clip_norm(gradients: Mapping[str, NDArray], limit: float) -> float:
    """Scales all gradients, in place, so that their common norm is at most `limit`.

    Returns the norm before the scaling. Pascanu, Mikolov & Bengio 2013.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if norm > limit:
        for gradient in gradients.values():
            gradient *= limit / norm
    return norm


def train(
    model: CharModel,
    ids: NDArray[np.intp],
    *,
    seconds: float = math.inf,
    updates: int | None = None,
    progress: Callable[[Training], None] | None = None,
) -> Training:
    """Trains `model` in place on the text `ids`, for `updates` updates or else for `seconds`.

    `STREAMS` readers start at even distances in the text and read it round and round, `STEPS`
    characters in an update. Each keeps its state from update to update. The learning rate rises
    over `WARM_UP` updates and then falls linearly to `FINAL_RATE` of its peak.

    With `updates`, the losses depend on the arguments only. Without it, this holds for the first
    `WARM_UP` losses. The later ones depend on the machine's speed as well, because the learning
    rate follows the time.

    Parameters
    ----------
    model : the model, trained in place.
    ids : (n,) integers, the text.
    seconds : how long to train, checked between updates; unused if `updates` is given.
    updates : the number of updates. None: train for `seconds`.
    progress : a function that is called after each update.

    Raises
    ------
    ValueError : neither `seconds` nor `updates` is given.
    """
    if updates is None and not math.isfinite(seconds):
        raise ValueError("train: expected seconds or updates, got neither")
    starts = np.arange(STREAMS) * ids.size // STREAMS
    chunk = np.arange(STEPS + 1)[:, None]
    adam, state, done = Adam(), None, Training()
    begin = time.perf_counter()
    while done.fraction < 1:
        count = len(done.losses)
        read = ids[(starts + count * STEPS + chunk) % ids.size]
        loss, gradients, state = model.gradients(read[:-1], read[1:], state)
        clip_norm(gradients, CLIP)
        rate = min(1.0, (count + 1) / WARM_UP)
        if count >= WARM_UP:
            rate -= (1 - FINAL_RATE) * done.fraction
        with model.edit() as parameters:
            adam.update(parameters, gradients, rate * CELLS[model.cell].rate)
        done.losses.append(loss / math.log(2))
        done.characters += read[1:].size
        done.seconds = time.perf_counter() - begin
        done.fraction = done.seconds / seconds if updates is None else (count + 1) / updates
        if progress is not None:
            progress(done)
    return done


def evaluate(
    model: CharModel, ids: NDArray[np.intp], streams: int = 16, weights: str = "float32"
) -> float:
    """The bits per character with which `model` predicts the text `ids`.

    All characters but the first are predicted. The text is cut into `streams` parts, which are read
    side by side. Each part starts from a state of zeros, so its first few characters are harder to
    predict.

    Parameters
    ----------
    ids : (n,) integers, the text.
    streams : the number of parts.
    weights : the precision of the layer's weights, as for the layer's method `stream`.
    """
    layer = model.layer.stream(streams, weights)
    count = ids.size - 1
    width = -(-count // streams)
    starts = np.arange(streams) * width
    total = 0.0
    for first in range(0, width, STEPS):
        steps = np.arange(first, min(first + STEPS, width))[:, None]
        places = starts + steps
        real = places < count
        read = np.minimum(places, count - 1)
        output = layer.run(model.embedding[ids[read]])
        loss, _ = cross_entropy(model.logits(output[real]), ids[read[real] + 1])
        total += loss * np.count_nonzero(real)
    return float(total / count / math.log(2))
