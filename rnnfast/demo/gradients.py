"""How far back in time a gradient reaches: the norm of dL/dh_t against the distance T - t."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnfast.demo.model import CharModel, cross_entropy

ROWS = 32
LEAD_IN = 50


def gradient_norms(model: CharModel, ids: NDArray[np.intp], distance: int = 100) -> NDArray:
    """The norm of the gradient of one prediction's loss with respect to the earlier states h.

    The prediction comes after `LEAD_IN + distance` characters. There is one tape for each step. The
    tapes run backward one after the other: `grads.state` of one is `d_state` of the next.

    Parameters
    ----------
    ids : (n,) integers, the text. The norms are averaged over `ROWS` places, evenly spread in it.
    distance : how many steps to go back.

    Returns
    -------
    (distance + 1,) : the mean over the places of ‖dL/dh‖, 0 to `distance` steps before the end.
    """
    length = LEAD_IN + distance
    starts = np.arange(ROWS) * (ids.size - length - 1) // ROWS
    read = ids[starts + np.arange(length + 1)[:, None]]
    x = model.embedding[read[:-1]]
    _, state = model.layer(x[:LEAD_IN])
    tapes = []
    for step in range(LEAD_IN, length):
        tapes.append(model.layer.record(x[step : step + 1], state))
        state = tapes[-1].state
    h = _h(state)
    _, d_logits = cross_entropy(model.logits(h[0]), read[-1])
    # The loss is a mean over the rows; times ROWS it gives the gradient of each row's own loss.
    d_h = (d_logits @ model.out_weight)[None] * np.float32(ROWS)
    d_state: Any = (d_h, np.zeros_like(d_h)) if isinstance(state, tuple) else d_h
    norms = [_mean_norm(d_state)]
    for tape in reversed(tapes):
        d_state = tape.backward(d_state=d_state).state
        norms.append(_mean_norm(d_state))
    return np.array(norms)


def _h(state: Any) -> NDArray:
    h: NDArray = state[0] if isinstance(state, tuple) else state
    return h


def _mean_norm(d_state: Any) -> float:
    # In float64, because the squares of vanishing gradients underflow before the gradients do.
    return float(np.linalg.norm(_h(d_state).astype(np.float64), axis=-1).mean())
