"""What the demo's model loses when its weights are in low precision."""

from __future__ import annotations

import numpy as np
import pytest

from rnnfast.demo import CharModel, evaluate, train
from rnnfast.demo.cli import COMPARED_CHARACTERS
from rnnfast.demo.text import python_topics


@pytest.fixture(scope="module")
def trained() -> tuple[CharModel, np.ndarray]:
    """A model as the demo trains it, for a short while, and a part of the held-out text."""
    real = python_topics()
    model = CharModel("lstm", len(real.characters), 64)
    train(model, real.train, updates=300)
    return model, real.held_out[:COMPARED_CHARACTERS]


@pytest.mark.parametrize(("weights", "most"), [("bfloat16", 0.01), ("int8", 0.03)])
def test_low_precision_loses_few_bits(trained, weights: str, most: float) -> None:
    model, held_out = trained
    bits = evaluate(model, held_out)
    assert bits < 4
    assert 0 < abs(evaluate(model, held_out, weights=weights) - bits) <= most
