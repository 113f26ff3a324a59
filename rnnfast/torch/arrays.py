"""Torch's tensors as NumPy's arrays on the same memory, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

States = tuple[Tensor, ...]  # (h,) or (h, c)

from_numpy = torch.from_numpy
# Whether a tensor stands for several, as gradients do with `is_grads_batched`.
is_batched = torch._C._functorch.is_legacy_batchedtensor
# As functions, for `map`.
requires_grad = Tensor.requires_grad.__get__
is_leaf = Tensor.is_leaf.__get__
version = Tensor._version.__get__


def array(tensor: Tensor) -> NDArray:
    """The tensor's memory as an array of its shape and strides."""
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def contiguous(tensor: Tensor) -> NDArray:
    """The same, of a contiguous copy where it is not contiguous."""
    return array(tensor.contiguous())


def unit_stride(tensor: Tensor) -> NDArray:
    """The same, of a contiguous copy where the last axis does not have unit stride."""
    last = tensor.dim() - 1
    if tensor.stride(last) == 1 or tensor.size(last) == 1:
        return array(tensor)
    return contiguous(tensor)


def state_arrays(states: Sequence[Tensor] | None) -> Any:
    """States as the native stack takes them."""
    if states is None:
        return None
    if len(states) == 1:
        return array(states[0])
    return array(states[0]), array(states[1])


def states_of(arrays: Any) -> States:
    """What the native stack gives, as tensors."""
    if isinstance(arrays, tuple):
        return from_numpy(arrays[0]), from_numpy(arrays[1])
    return (from_numpy(arrays),)
