"""What the operators `rnnfast::forward` and `rnnfast::backward` refuse."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_twins import normal  # noqa: E402

pytestmark = pytest.mark.usefixtures("native")


def forward(*args):
    return torch.ops.rnnfast.forward(*args)


def backward(*args):
    return torch.ops.rnnfast.backward(*args)


# What a caller of the operator may get wrong: changes to its arguments, by their names. Nothing
# here is checked by torch, which knows the operator's schema alone.
NAMES = ("x", "h0", "c0", "weights", "cell", "directions", "bias", "training")
WEIGHTS = [(20, 4), (20, 5), (20,), (20,)]


def weights_of(*shapes, dtype=torch.float32, device="cpu"):
    return [normal(*shape, dtype=dtype).to(device) for shape in shapes]


WRONG_FORWARD = {
    "no weights": {"weights": []},
    "one weight": {"weights": weights_of(*WEIGHTS[:1])},
    "no biases": {"weights": weights_of(*WEIGHTS[:2])},
    "one bias": {"weights": weights_of(*WEIGHTS[:3])},
    "a weight too many": {"weights": weights_of(*WEIGHTS, (3,))},
    "biases not said": {"bias": False},
    "one H in weight_ih, another in weight_hh": {
        "weights": weights_of(WEIGHTS[0], (24, 6), *WEIGHTS[2:])
    },
    "rows of weight_hh": {"weights": weights_of(WEIGHTS[0], (24, 5), *WEIGHTS[2:])},
    "rows of no whole gate": {"weights": weights_of((21, 4), (21, 5), (21,), (21,))},
    "a short bias": {"weights": weights_of(*WEIGHTS[:3], (19,))},
    "weights without dimensions": {"weights": weights_of((), (), (), ())},
    "weights of one dimension": {"weights": weights_of((20,), (20,), (20,), (20,))},
    "H of 0": {"weights": weights_of((0, 4), (0, 0), (0,), (0,))},
    "a second layer that reads another width": {"weights": weights_of(*WEIGHTS, *WEIGHTS)},
    "weights in float64": {"weights": weights_of(*WEIGHTS, dtype=torch.float64)},
    "one weight in float64": {
        "weights": [*weights_of(*WEIGHTS[:3]), normal(20, dtype=torch.float64)]
    },
    "weights on meta": {"weights": weights_of(*WEIGHTS, device="meta")},
    "one weight on meta": {"weights": [*weights_of(*WEIGHTS[:3]), normal(20).to("meta")]},
    "an unknown cell": {"cell": "mgu"},
    "another cell": {"cell": "gru"},
    "directions of 0": {"directions": 0},
    "directions of -1": {"directions": -1},
    "directions of 2 for one": {"directions": 2},
    "directions of 3": {"directions": 3, "weights": weights_of(*WEIGHTS * 3)},
    "directions of 2**62": {"directions": 2**62},
    "I": {"x": normal(3, 2, 7)},
    "x of one dimension": {"x": normal(4)},
    "x of two dimensions": {"x": normal(3, 4)},
    "x of four dimensions": {"x": normal(3, 2, 4, 1)},
    "x in float16": {"x": normal(3, 2, 4, dtype=torch.float16)},
    "all in float16": {
        "x": normal(3, 2, 4, dtype=torch.float16),
        "weights": weights_of(*WEIGHTS, dtype=torch.float16),
    },
    "x in bfloat16": {"x": normal(3, 2, 4, dtype=torch.bfloat16)},
    "x of integers": {"x": torch.ones(3, 2, 4, dtype=torch.int64)},
    "x in float64": {"x": normal(3, 2, 4, dtype=torch.float64)},
    "the states' B": {"h0": normal(1, 3, 5), "c0": normal(1, 3, 5)},
    "the states' H": {"h0": normal(1, 2, 6), "c0": normal(1, 2, 6)},
    "the states' L": {"h0": normal(2, 2, 5), "c0": normal(2, 2, 5)},
    "states in float64": {
        "h0": normal(1, 2, 5, dtype=torch.float64),
        "c0": normal(1, 2, 5, dtype=torch.float64),
    },
    "states on meta": {"h0": normal(1, 2, 5).to("meta"), "c0": normal(1, 2, 5).to("meta")},
    "h0 without c0": {"h0": normal(1, 2, 5)},
    "c0 without h0": {"c0": normal(1, 2, 5)},
    "c0 of a GRU": {
        "c0": normal(1, 2, 5),
        "cell": "gru",
        "weights": weights_of((15, 4), (15, 5), (15,), (15,)),
    },
}


def right_forward():
    return dict(
        zip(
            NAMES,
            (normal(3, 2, 4), None, None, weights_of(*WEIGHTS), "lstm", 1, True, True),
            strict=True,
        )
    )


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("what", WRONG_FORWARD)
def test_forward_refuses(what, known):
    """With a sentence that says what it expected; never a wrong result, and never a crash.

    known : whether the weights have been used before.
    """
    arguments = right_forward()
    if known:
        forward(*arguments.values())
    arguments.update(WRONG_FORWARD[what])
    with pytest.raises((RuntimeError, TypeError, ValueError), match="expected"):
        forward(*arguments.values())


WRONG_BACKWARD = {
    "an empty tape": {"tape": torch.empty(0)},
    "a short tape": {"tape": torch.zeros(3)},
    "a long tape": {"tape": torch.zeros(100_000)},
    "a tape in float64": {"tape": torch.zeros(495, dtype=torch.float64)},
    "a tape in bfloat16": {"tape": torch.zeros(495, dtype=torch.bfloat16)},
    "a tape of integers": {"tape": torch.zeros(495, dtype=torch.int32)},
    "a tape on meta": {"tape": torch.zeros(495, device="meta")},
    "a tape of two dimensions": {"tape": torch.zeros(3, 165)},
    "y of another T": {"y": normal(2, 2, 5)},
    "y of another width": {"y": normal(3, 2, 4)},
    "an empty y": {"y": torch.empty(0)},
    "y in float64": {"y": normal(3, 2, 5, dtype=torch.float64)},
    "y on meta": {"y": normal(3, 2, 5).to("meta")},
    "dy of another T": {"dy": normal(4, 2, 5)},
    "dy of another width": {"dy": normal(3, 2, 6)},
    "dy in float64": {"dy": normal(3, 2, 5, dtype=torch.float64)},
    "dy on meta": {"dy": normal(3, 2, 5).to("meta")},
    "dh of another H": {"dh": normal(1, 2, 6)},
    "dh in float64": {"dh": normal(1, 2, 5, dtype=torch.float64)},
    "dc of another B": {"dc": normal(1, 3, 5)},
    "x of another T": {"x": normal(30, 2, 4)},
    "x of another B": {"x": normal(3, 20, 4)},
    "x of another I": {"x": normal(3, 2, 7)},
    "weights of another H": {"weights": weights_of((200, 4), (200, 50), (200,), (200,))},
    "no weights": {"weights": [], "wanted": [True] * 3},
    "another cell": {"cell": "gru"},
    "an unknown cell": {"cell": "mgu"},
    "directions of -1": {"directions": -1},
    "directions of 0": {"directions": 0},
    "directions of 2 for one": {"directions": 2},
    "nothing wanted": {"wanted": []},
    "wanted without the weights": {"wanted": [True] * 3},
    "wanted of one too few": {"wanted": [True] * 6},
    "wanted of one too many": {"wanted": [True] * 8},
    "states of another B": {"h0": normal(1, 5, 5), "c0": normal(1, 5, 5)},
    "h0 without c0": {"h0": normal(1, 2, 5)},
}
WRONG_BACKWARD_OF_GRU = {
    "dc": {"dc": normal(1, 2, 5)},
    "c0": {"c0": normal(1, 2, 5)},
    "c0 wanted": {"wanted": [True] * 7},
}


def refuses(right, wrong):
    """That backward of a pass with the right arguments does not take them with the wrong."""
    y, h, c, tape = forward(*right.values())
    arguments = {
        "dy": normal(*y.shape),
        "dh": normal(*h.shape),
        "dc": normal(*c.shape) if c.numel() else None,
        **{name: right[name] for name in NAMES[:4]},
        "y": y,
        "tape": tape,
        **{name: right[name] for name in NAMES[4:7]},
        "wanted": [True, False, False, True, True, True, True],
    }
    backward(*arguments.values())
    arguments.update(wrong)
    with pytest.raises((RuntimeError, TypeError, ValueError), match="expected"):
        backward(*arguments.values())


@pytest.mark.parametrize("what", WRONG_BACKWARD)
def test_backward_refuses(what):
    refuses(right_forward(), WRONG_BACKWARD[what])


@pytest.mark.parametrize("what", WRONG_BACKWARD_OF_GRU)
def test_backward_of_a_gru_refuses(what):
    weights = weights_of((15, 4), (15, 5), (15,), (15,))
    refuses({**right_forward(), "cell": "gru", "weights": weights}, WRONG_BACKWARD_OF_GRU[what])
