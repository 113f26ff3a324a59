"""What a recurrent module computes, and whether the compiled kernels can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rnnfast import _backend
from rnnfast._cells import CELLS, Sizes, weight_shapes
from rnnfast._native_backend import NativeBackend
from rnnfast.torch.exchange import has_memory, is_as_it_lies

DTYPES = {torch.float32: "float32", torch.float64: "float64"}

# For tensors of these dtypes the kernels compute in float32, except that the operands of products
# have this format.
FORMATS = {torch.bfloat16: "bfloat16"}

# The dtype in which the kernels compute with tensors of each dtype.
COMPUTED = {**{dtype: dtype for dtype in DTYPES}, **dict.fromkeys(FORMATS, torch.float32)}


class Kind(NamedTuple):
    """What a recurrent module computes, apart from the values of its weights.

    cell : a name in `CELLS`.
    sizes : the sizes of the first layer.
    one_step : whether it is a cell module, whose arrays have no axis T.
    """

    cell: str
    sizes: Sizes
    layers: int = 1
    directions: int = 1
    bias: bool = True
    one_step: bool = False

    @property
    def has_c(self) -> bool:
        """Whether its state is a pair (h, c)."""
        return "c" in CELLS[self.cell].states

    @property
    def width(self) -> int:
        """D*W, the width of the output."""
        return self.directions * self.sizes.output

    def sizes_of(self, layer: int) -> Sizes:
        """The sizes of a layer. Layers above the first have an input of D*W."""
        return self.sizes if layer == 0 else self.sizes._replace(input=self.width)

    def shapes(self) -> list[dict[str, tuple[int, ...]]]:
        """The shapes of the parameters of each layer and direction, by their names in `Weights`."""
        cell = CELLS[self.cell]
        return [
            weight_shapes(cell, self.sizes_of(layer), self.bias)
            for layer in range(self.layers)
            for _ in range(self.directions)
        ]

    @property
    def saves_y(self) -> bool:
        """Whether a layer's backward pass reads the output and has no tape of its own."""
        return self.cell.startswith("rnn")

    def layer(self, layer: int) -> Kind:
        """The kind of one of the layers alone."""
        return self._replace(sizes=self.sizes_of(layer), layers=1)


def native() -> NativeBackend | None:
    """The compiled kernels, if they are the backend in use."""
    backend = _backend.current()
    return backend if isinstance(backend, NativeBackend) else None


def torch_reads_output(cell: str, directions: int, projection: int, dtype: torch.dtype) -> bool:
    """Whether torch's backward pass of a layer, on padded input, reads the caller's output.

    That is so for oneDNN's LSTM, unless its output joins the outputs of two directions.
    """
    return cell == "lstm" and directions == 1 and not projection and dtype is torch.float32


def fits(kind: Kind, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take the weights: CPU tensors of one dtype, in the kind's shapes."""
    if not kind.sizes.hidden or not all(map(is_as_it_lies, weights)):
        return False
    shapes = [shape for own in kind.shapes() for shape in own.values()]
    dtype = weights[0].dtype
    return (
        dtype in COMPUTED
        and len(shapes) == len(weights)
        and all(
            w.is_cpu
            and w.dtype is dtype
            and w.layout is torch.strided
            and w.shape == shape
            and w.data_ptr() % w.element_size() == 0
            and has_memory(w)
            for w, shape in zip(weights, shapes, strict=True)
        )
    )
