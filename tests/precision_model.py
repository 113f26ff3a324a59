"""Layers in low precision, in float64 but for the operands of products, with gradients.

Written without anything of the package: equations run forward on `Node`s, which know how gradients
flow back through them, so that a product is the only place where something is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


def bfloat16(a: NDArray) -> NDArray:
    """Of float32's nearest, the nearest with 8 bits; ties to even."""
    fraction, exponent = np.frexp(a.astype("f4").astype("f8"))
    return np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8)


def int8(a: NDArray) -> NDArray:
    """Each row to 255 steps between -max|.| and max|.|."""
    unit = np.abs(a).max(-1, keepdims=True, initial=0) / 127
    return np.rint(np.divide(a, unit, where=unit > 0, out=np.zeros_like(a))) * unit


ROUNDING: dict[str, Callable[[NDArray], NDArray]] = {
    "float32": lambda a: a,
    "bfloat16": bfloat16,
    "int8": int8,
}


@dataclass(eq=False)
class Node:
    """An array, and for each array that it is made of, how its gradient becomes that one's."""

    value: NDArray
    parents: list[tuple[Node, Callable[[NDArray], NDArray]]] = field(default_factory=list)
    grad: NDArray = field(init=False)

    def __post_init__(self) -> None:
        self.value = np.asarray(self.value, "f8")
        self.grad = np.zeros_like(self.value)

    def __add__(self, other: Node) -> Node:
        """Also of a bias (N,) to rows (B, N)."""
        wide = self.value.ndim > other.value.ndim
        back = (lambda d: d.sum(0)) if wide else (lambda d: d)
        return Node(self.value + other.value, [(self, lambda d: d), (other, back)])

    def __mul__(self, other: Node) -> Node:
        a, b = self.value, other.value
        return Node(a * b, [(self, lambda d: d * b), (other, lambda d: d * a)])

    def split(self, count: int) -> list[Node]:
        """Equal parts of the last axis."""
        width = self.value.shape[-1] // count

        def part(k: int) -> Node:
            def back(d: NDArray) -> NDArray:
                whole = np.zeros_like(self.value)
                whole[..., k * width : (k + 1) * width] = d
                return whole

            return Node(self.value[..., k * width : (k + 1) * width], [(self, back)])

        return [part(k) for k in range(count)]

    def rows(self, first: int, last: int) -> Node:
        """Some entries of the first axis."""

        def back(d: NDArray) -> NDArray:
            whole = np.zeros_like(self.value)
            whole[first:last] = d
            return whole

        return Node(self.value[first:last], [(self, back)])

    def apply(self, function: Callable, slope: Callable) -> Node:
        """A function of each element, and its slope from its value."""
        value = function(self.value)
        return Node(value, [(self, lambda d: d * slope(value))])

    def sigmoid(self) -> Node:
        return self.apply(lambda a: 1 / (1 + np.exp(-a)), lambda s: s * (1 - s))

    def tanh(self) -> Node:
        return self.apply(np.tanh, lambda t: 1 - t * t)

    def relu(self) -> Node:
        return self.apply(lambda a: np.maximum(a, 0), lambda r: r > 0)

    def complement(self) -> Node:
        """1 - self."""
        return Node(1 - self.value, [(self, lambda d: -d)])

    def only(self, mask: NDArray) -> Node:
        """Zero in other rows."""
        m = mask[:, None]
        return Node(np.where(m, self.value, 0), [(self, lambda d: np.where(m, d, 0))])


def product(rows: Node, matrix: Node, precision: str) -> Node:
    """rows matrix^T, where forward and backward multiply what is rounded."""
    rounded = ROUNDING[precision]
    a, b = rounded(rows.value), rounded(matrix.value)
    return Node(a @ b.T, [(rows, lambda d: rounded(d) @ b), (matrix, lambda d: rounded(d).T @ a)])


def beside(a: Node, b: Node) -> Node:
    """The last axes one after the other."""
    n = a.value.shape[-1]
    value = np.concatenate([a.value, b.value], -1)
    return Node(value, [(a, lambda d: d[..., :n]), (b, lambda d: d[..., n:])])


def stacked(parts: list[Node]) -> Node:
    """Along a new first axis."""
    parents = [(part, lambda d, k=k: d[k]) for k, part in enumerate(parts)]
    return Node(np.stack([part.value for part in parts]), parents)


def step(kind: str, p: dict[str, Node], x: Node, h: Node, c: Node | None, precision: str):
    """One step of a cell: the next h and c."""

    def product_of(rows: Node, matrix: Node) -> Node:
        return product(rows, matrix, precision)

    if kind.startswith("gru"):
        size = h.value.shape[1]
        zero = Node(np.zeros(3 * size))
        ax = product_of(x, p["weight_ih"]) + p.get("bias_ih", zero)
        bias, R = p.get("bias_hh", zero), p["weight_hh"]
        xr, xz, xn = ax.split(3)
        hr, hz = (product_of(h, R.rows(0, 2 * size)) + bias.rows(0, 2 * size)).split(2)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        R_n, b_n = R.rows(2 * size, 3 * size), bias.rows(2 * size, 3 * size)
        if kind == "gru":
            n = (xn + r * (product_of(h, R_n) + b_n)).tanh()
        else:
            n = (xn + product_of(r * h, R_n) + b_n).tanh()
        return z.complement() * n + z * h, None
    a = product_of(x, p["weight_ih"]) + product_of(h, p["weight_hh"])
    if "bias_ih" in p:
        a = a + p["bias_ih"] + p["bias_hh"]
    if c is None:
        return (a.relu() if kind == "rnn_relu" else a.tanh()), None
    i, f, g, o = a.split(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (product_of(h, p["weight_hr"]) if "weight_hr" in p else h), c


def one_direction(kind, p, xs, h, c, lengths, reset, reverse, precision):
    """h after each step, zero past a row's length, and the last h and c."""
    steps, ys = len(xs), [None] * len(xs)
    for t in reversed(range(steps)) if reverse else range(steps):
        active = t < lengths
        cut = reset[t]
        if reverse:  # what ran before is step t + 1, where there is one
            cut = reset[t + 1] & (t + 1 < lengths) if t + 1 < steps else np.zeros_like(active)
        before = [None if s is None else s.only(~cut) for s in (h, c)]
        new = step(kind, p, xs[t], *before, precision)
        h, c = (
            None if n is None else n.only(active) + s.only(~active)
            for n, s in zip(new, (h, c), strict=True)
        )
        ys[t] = new[0].only(active)
    return ys, h, c


class Model:
    """A layer of `kind` over a batch (T, B, I), and its gradients.

    output : (T, B, D*W); state : [h] or [h, c], each (L*D, B, ·).
    """

    def __init__(self, kind, layer, x, state, lengths=None, reset=None, precision=None):
        precision = precision or layer.precision
        steps, batch = x.shape[:2]
        lengths = np.full(batch, steps) if lengths is None else np.asarray(lengths)
        reset = np.zeros((steps, batch), bool) if reset is None else reset
        self.xs = [Node(x_t) for x_t in x]
        self.initial = [[Node(row) for row in s] for s in state]
        self.parameters = {name: Node(a) for name, a in layer.parameters.items()}
        directions = ["", "_reverse"][: 1 + layer.bidirectional]
        ys, last = self.xs, []
        for level in range(layer.num_layers):
            halves = []
            for d, suffix in enumerate(directions):
                k, end = len(last), f"_l{level}{suffix}"
                own = {
                    name.removesuffix(end): node
                    for name, node in self.parameters.items()
                    if name.endswith(end)
                }
                h, c = (*(s[k] for s in self.initial), None)[:2]
                half, *final = one_direction(kind, own, ys, h, c, lengths, reset, d == 1, precision)
                halves.append(half)
                last.append(final)
            ys = [beside(*pair) for pair in zip(*halves, strict=True)] if d else halves[0]
        self._output = stacked(ys)
        self._last = [stacked(list(s)) for s in zip(*last, strict=True) if s[0] is not None]
        self.output = self._output.value
        self.state = [node.value for node in self._last]

    def backward(self, d_output, d_state) -> dict[str, NDArray]:
        """By name: at `x`, at `state 0` and `state 1`, and at each parameter. Once."""
        self._output.grad += d_output
        for node, d in zip(self._last, d_state, strict=True):
            node.grad += d
        for node in reversed(_sorted([self._output, *self._last])):
            for parent, back in node.parents:
                parent.grad += back(node.grad)
        grads = {"x": np.stack([node.grad for node in self.xs])}
        for k, rows in enumerate(self.initial):
            grads[f"state {k}"] = np.stack([node.grad for node in rows])
        return grads | {name: node.grad for name, node in self.parameters.items()}


def _sorted(ends: list[Node]) -> list[Node]:
    """All nodes that `ends` are made of, each after those that it is made of."""
    order: list[Node] = []
    seen: set[int] = set()
    pending = [(node, False) for node in ends]
    while pending:
        node, parents_are_done = pending.pop()
        if parents_are_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            pending += [(parent, False) for parent, _ in node.parents]
    return order
