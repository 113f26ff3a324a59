"""Makes an ONNX model of a problem's layers, for the peers that read one.

ONNX orders the gates `iofc` and `zrh`, and stacks both biases into one, [W_b, R_b]. torch's GRU,
with the reset after the product, has `linear_before_reset=1`. Y is (T, D, B, H).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.problem import Problem, in_gate_order, split_weights
from bench.shapes import Case

ORDERS = {"rnn": "h", "gru": "zrn", "lstm": "iofg"}
OPSET = 14
IR_VERSION = 8  # the version at the time of opset 14, which every reader supports


# The states of a cell, as inputs of the model of a step. Its outputs have the suffix `_next`.
STATES = {"rnn": ("h",), "gru": ("h",), "lstm": ("h", "c")}


def onnx_step(problem: Problem) -> bytes:
    """The serialised model of one step of the problem's only layer.

    Its inputs are `X` (1, B, I) and the states (1, B, H), its outputs the states after the step.
    """
    case, shape = problem.case, problem.case.shape
    ((layer,),) = split_weights(case, problem.weights)
    parts, states = list("WRB"), STATES[case.cell]
    constants = [
        numpy_helper.from_array(array, part)
        for part, array in zip(parts, _stacked(case, [layer]), strict=True)
    ]
    after = [f"{name}_next" for name in states]
    node = helper.make_node(
        case.cell.upper(),
        ["X", *parts, "", *states],
        ["", *after],
        hidden_size=shape.H,
        **({"linear_before_reset": 1} if case.cell == "gru" else {}),
    )
    state = (1, shape.B, shape.H)
    return _serialised(
        [node],
        {"X": (1, shape.B, shape.I), **dict.fromkeys(states, state)},
        dict.fromkeys(after, state),
        constants,
    )


def onnx_model(problem: Problem) -> bytes:
    """The serialised model of the problem's layers over whole sequences.

    Its inputs are `X` (T, B, I) and, if ragged, `lengths` (B,). Its output is `Y` (T, D, B, H).
    Between layers, the model concatenates the directions. It returns the last layer's Y as it is,
    which saves the peer a copy.
    """
    case, shape = problem.case, problem.case.shape
    nodes, constants = [], []
    source, ragged = "X", problem.lengths is not None
    for k, layer in enumerate(split_weights(case, problem.weights)):
        last = k == shape.L - 1
        names = [f"{part}{k}" for part in "WRB"]
        constants += [
            numpy_helper.from_array(array, name)
            for name, array in zip(names, _stacked(case, layer), strict=True)
        ]
        y = "Y" if last else f"Y{k}"
        nodes.append(
            helper.make_node(
                case.cell.upper(),
                [source, *names, "lengths" if ragged else ""],
                [y],
                hidden_size=shape.H,
                direction="bidirectional" if shape.D == 2 else "forward",
                **({"linear_before_reset": 1} if case.cell == "gru" else {}),
            )
        )
        if not last:
            nodes.append(helper.make_node("Transpose", [y], [f"t{k}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{k}", "wide"], [f"x{k + 1}"]))
            source = f"x{k + 1}"
    if shape.L > 1:
        wide = np.array([shape.T, shape.B, shape.D * shape.H], np.int64)
        constants.append(numpy_helper.from_array(wide, "wide"))
    inputs: dict[str, tuple[int, ...]] = {"X": (shape.T, shape.B, shape.I)}
    if ragged:
        inputs["lengths"] = (shape.B,)
    output = {"Y": (shape.T, shape.D, shape.B, shape.H)}
    return _serialised(nodes, inputs, output, constants)


def _serialised(
    nodes: list[Any],
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    constants: list[Any],
) -> bytes:
    """The serialised model of the nodes, after ONNX's check.

    inputs, outputs : the shapes by name.
    """

    def values(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                name, TensorProto.INT32 if name == "lengths" else TensorProto.FLOAT, shape
            )
            for name, shape in shapes.items()
        ]

    graph = helper.make_graph(nodes, "layers", values(inputs), values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _stacked(case: Case, layer: list[dict[str, NDArray]]) -> list[NDArray]:
    """W (D, G*H, I), R (D, G*H, H) and B (D, 2*G*H) of one layer, in ONNX's order."""
    ordered = [
        {name: in_gate_order(case.cell, w, ORDERS[case.cell]) for name, w in direction.items()}
        for direction in layer
    ]
    return [
        np.stack([one["weight_ih"] for one in ordered]),
        np.stack([one["weight_hh"] for one in ordered]),
        np.stack([np.concatenate([one["bias_ih"], one["bias_hh"]]) for one in ordered]),
    ]


def output_of(y: NDArray) -> NDArray:
    """ONNX's Y (T, D, B, H) as (T, B, D*H)."""
    steps, directions, batch, hidden = y.shape
    return y.transpose(0, 2, 1, 3).reshape(steps, batch, directions * hidden)
