"""ONNX Runtime as an oracle of its own gate orders, directions, lengths and both kinds of GRU.

In float32 only: its CPU kernels of RNN, GRU and LSTM have no float64. Without a length of 0, of
which it gives zero as the last state and rnnfast the initial state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from tolerances import TORCH, assert_close

from rnnfast import functional
from rnnfast._cells import CELLS, Sizes, weight_shapes

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Operator(NamedTuple):
    """How ONNX has a cell: its operator, the order of its gates in our letters, and attributes."""

    name: str
    gates: str
    attributes: dict


OPERATORS = {
    "rnn_tanh": Operator("RNN", "h", {"activations": "Tanh"}),
    "rnn_relu": Operator("RNN", "h", {"activations": "Relu"}),
    "lstm": Operator("LSTM", "iofg", {}),
    "gru": Operator("GRU", "zrn", {"linear_before_reset": 1}),
    "gru_reset_before": Operator("GRU", "zrn", {"linear_before_reset": 0}),
}
DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
STEPS, BATCH, SIZE, HIDDEN = 11, 5, 4, 7
LENGTHS = {
    "full": None,
    "descending": [11, 9, 4, 4, 1],
    "any order": [3, 11, 1, 7, 5],
    "none full": [2, 6, 5, 1, 6],
}
# ONNX Runtime's own error comes on top of ours, as torch's does.
TOLERANCE = TORCH["float32", "forward"]


def normal(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def random_weights(cell: str, rng, bias: bool) -> dict[str, np.ndarray]:
    """Weights of one direction; each gate has a scale of its own, so that none is like another."""
    shapes = weight_shapes(CELLS[cell], Sizes(SIZE, HIDDEN, 0), bias)
    gates = len(CELLS[cell].gates)
    scales = np.repeat(np.linspace(0.3, 1.0, gates), HIDDEN)
    weights = {name: normal(rng, *shape) for name, shape in shapes.items()}
    return {
        name: (w * scales.reshape(-1, *[1] * (w.ndim - 1)) / 2).astype(np.float32)
        for name, w in weights.items()
    }


def in_onnx_order(cell: str, array: np.ndarray) -> np.ndarray:
    """The rows of a weight or bias, gate by gate in the order of ONNX."""
    gates = CELLS[cell].gates
    blocks = np.split(array, len(gates))
    return np.concatenate([blocks[gates.index(gate)] for gate in OPERATORS[cell].gates])


def run_onnx(cell: str, direction: str, weights, inputs) -> dict[str, np.ndarray]:
    """Y (T, D, B, H), Y_h and Y_c (D, B, H) of a model of one node."""
    operator, count = OPERATORS[cell], len(DIRECTIONS[direction])
    ordered = [{n: in_onnx_order(cell, w) for n, w in one.items()} for one in weights]
    fed = {
        "W": np.stack([one["weight_ih"] for one in ordered]),
        "R": np.stack([one["weight_hh"] for one in ordered]),
        **inputs,
    }
    if "bias_ih" in ordered[0]:
        biases = [np.concatenate([one["bias_ih"], one["bias_hh"]]) for one in ordered]
        fed["B"] = np.stack(biases)
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c"]
    names = [name if name in fed else "" for name in names[: 6 + (cell == "lstm")]]
    results = ["Y", "Y_h", "Y_c"][: 2 + (cell == "lstm")]
    attributes = dict(operator.attributes)
    if "activations" in attributes:
        attributes["activations"] = [attributes["activations"]] * count
    node = onnx.helper.make_node(
        operator.name, names, results, direction=direction, hidden_size=HIDDEN, **attributes
    )
    kinds = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int32"): onnx.TensorProto.INT32}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        cell,
        [value(name, kinds[array.dtype], array.shape) for name, array in fed.items()],
        [value(name, onnx.TensorProto.FLOAT, None) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8  # of opset 14's time, which every ONNX Runtime since 1.12 reads
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return dict(zip(results, session.run(results, fed), strict=True))


def assert_same_as_onnx(
    cell: str, direction: str, rng, *, lengths=None, bias=True, states=True
) -> None:
    """Both on the same weights and inputs: every output of ONNX."""
    reverse = DIRECTIONS[direction]
    weights = [random_weights(cell, rng, bias) for _ in reverse]
    inputs = {"X": normal(rng, STEPS, BATCH, SIZE)}
    if states:
        for name in ("initial_h", "initial_c")[: 1 + (cell == "lstm")]:
            inputs[name] = normal(rng, len(reverse), BATCH, HIDDEN)
    if lengths is not None:
        inputs["sequence_lens"] = np.array(lengths, np.int32)
    want = run_onnx(cell, direction, weights, inputs)
    for d, backwards in enumerate(reverse):
        state = (inputs[name][d] for name in ("initial_h", "initial_c") if name in inputs)
        packed = functional.pack(cell, **weights[d])
        run = functional.forward(packed, inputs["X"], *state, lengths=lengths, reverse=backwards)
        assert_close(run.y, want["Y"][:, d], TOLERANCE, f"Y of direction {d}")
        assert_close(run.h, want["Y_h"][d], TOLERANCE, f"Y_h of direction {d}")
        if cell == "lstm":
            assert_close(run.c, want["Y_c"][d], TOLERANCE, f"Y_c of direction {d}")


def test_every_cell_is_in_onnx():
    assert OPERATORS.keys() == CELLS.keys()


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("cell", OPERATORS)
def test_directions_and_lengths(cell, direction, lengths, rng):
    assert_same_as_onnx(cell, direction, rng, lengths=LENGTHS[lengths])


@pytest.mark.parametrize("states", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("cell", OPERATORS)
def test_without_biases_and_states(cell, bias, states, rng):
    assert_same_as_onnx(
        cell, "bidirectional", rng, lengths=LENGTHS["any order"], bias=bias, states=states
    )
