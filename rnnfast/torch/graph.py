"""Calls that torch traces or transforms. They run by the registered operators, on torch's graph.

These are calls in `torch.compile` and `torch.export`, which trace this file, in `torch.func`, and
under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnfast.torch import operators, transforms
from rnnfast.torch.kinds import COMPUTED, FORMATS, native, torch_reads_output

if TYPE_CHECKING:
    from rnnfast.torch.modules import Cell, Layer

# This import registers the operators. The code below calls them by their names in `torch.ops`.
_forward = operators.forward

# Whether torch gives an LSTM in float16 to oneDNN where there are no gradients, as it may from 2.5
# on. It is found out here, since code that compilers trace cannot ask it.
_supports = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
_ONEDNN_HAS_FLOAT16 = torch.__version__ >= (2, 5) and _supports is not None and bool(_supports())


def layer(module: Layer, input: Any, hx: Any, format_name: str | None = None) -> Any:
    """A layer's call; `format_name` : the format of operands of products, for a float32 layer."""
    if torch.is_autocast_enabled("cpu"):
        return _with_autocast(module, input, hx)
    states = module._states(hx)
    if isinstance(input, PackedSequence) or not _covers(input, states):
        return module._torch_forward(input, hx)
    weights = [getattr(module, name) for name in module._flat_weights_names]
    unbatched = input.dim() == 2
    x = input.unsqueeze(1) if unbatched else input.transpose(0, 1) if module.batch_first else input
    has_gradients = torch.is_grad_enabled()
    if has_gradients:
        x = x.contiguous()  # as torch does, so the caller may change an x that is not
    if unbatched and states is not None:
        states = [s.unsqueeze(1) for s in states]
    rows = module.num_layers * (2 if module.bidirectional else 1)
    widths = (module.proj_size or module.hidden_size, module.hidden_size)
    if input.dim() not in (2, 3) or not _fit(module, x, states, rows, widths, weights):
        return module._torch_forward(input, hx)
    y, last = _run_layers(module, x, states, weights, format_name)
    directions = 2 if module.bidirectional else 1
    form = module._cell(), directions, module.proj_size, input.dtype
    # Compiled code makes new views of the output, and torch does not notice changes through them.
    if has_gradients and (torch.compiler.is_compiling() or not torch_reads_output(*form)):
        y = _copied(y)  # backward reads the original
    if unbatched:
        y, last = y.squeeze(1), [s.squeeze(1) for s in last]
    elif module.batch_first:
        y = y.transpose(0, 1)
    return y, (tuple(last) if module.mode == "LSTM" else last[0])


def cell(module: Cell, input: Any, hx: Any, format_name: str | None = None) -> Any:
    """A cell's call, which runs as a layer over one step; `format_name` : as for `layer`."""
    if torch.is_autocast_enabled("cpu"):
        return _with_autocast(module, input, hx)
    states = module._states(hx)
    if not _covers(input, states) or input.dim() not in (1, 2):
        return module._torch_forward(input, hx)
    weights = [module.weight_ih, module.weight_hh]
    if module.bias:
        weights += [module.bias_ih, module.bias_hh]
    unbatched = input.dim() == 1
    x = input.reshape(1, 1, -1) if unbatched else input.unsqueeze(0)
    if states is not None:
        if any(s.dim() != input.dim() for s in states):
            return module._torch_forward(input, hx)
        states = [s.reshape(1, 1, -1) if unbatched else s.unsqueeze(0) for s in states]
    widths = (module.hidden_size, module.hidden_size)
    if not _fit(module, x, states, 1, widths, weights):
        return module._torch_forward(input, hx)
    _, last = _run(module._cell(), 1, module.bias, x, states, weights, format_name)
    last = [s.reshape(-1) if unbatched else s.squeeze(0) for s in last]
    return tuple(last) if len(last) == 2 else last[0]


def _with_autocast(module: Layer | Cell, input: Any, hx: Any) -> Any:
    """The call of a layer or cell under autocast; the results have the dtypes of torch's.

    Operands of products are in bfloat16 if that is autocast's dtype; all else is in float32.
    """
    states = module._states(hx)
    x = input.data if isinstance(input, PackedSequence) else input
    given = [x, *(states or ())] if isinstance(states, (tuple, list, type(None))) else [None]
    lower = torch.get_autocast_dtype("cpu")
    own = [p.dtype for p in module._parameters.values() if p is not None]
    if not own:  # all are parametrized, perhaps by products that autocast would convert
        with torch.autocast("cpu", enabled=False):
            own = [module._parameter(0).dtype]
    weight = own[0]
    if weight not in (torch.float32, lower if lower in FORMATS else None) or not all(
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16)
        for tensor in given
    ):
        return module._torch_forward(input, hx)
    if any([dtype != weight for dtype in own]):
        return module._torch_forward(input, hx)
    state = x.dtype if states is None else states[-1].dtype
    dtype = _autocast_result(module, input, state)
    if states is not None:
        states = [s.to(weight) for s in states]
        hx = tuple(states) if len(states) == 2 else states[0]
    format_name = FORMATS.get(lower) if weight is torch.float32 else None
    with torch.autocast("cpu", enabled=False):
        result = module._call(input.to(weight), hx, format_name)
    if getattr(module, "proj_size", 0):  # of h alone: c is not projected
        output, (h, c) = result
        return _to(output, dtype), (_to(h, dtype), c.to(torch.promote_types(dtype, state)))
    return _to(result, dtype)


def _autocast_result(module: Layer | Cell, input: Any, state: torch.dtype) -> torch.dtype:
    """The dtype of torch's result: its products have autocast's, its kernels may widen that."""
    dtype: torch.dtype = torch.get_autocast_dtype("cpu")
    name = module._cell()
    padded_lstm = name == "lstm" and not isinstance(input, PackedSequence)
    is_layer = hasattr(module, "mode")
    # The results of an RNN or a projection have the dtype of the products. So have those of an LSTM
    # by oneDNN, which has one dtype for all.
    if name.startswith("rnn") or getattr(module, "proj_size", 0) > 0:
        return dtype
    onednn = _ONEDNN_HAS_FLOAT16 and not torch.is_grad_enabled()
    if padded_lstm and is_layer and (onednn or input.dtype != torch.float16):
        return dtype
    return torch.promote_types(dtype, state)


def _to(result: Any, dtype: torch.dtype) -> Any:
    if isinstance(result, (Tensor, PackedSequence)):
        return result.to(dtype)
    return tuple(_to(part, dtype) for part in result)


def _is_transformed() -> bool:
    """Whether `torch.func` needs the rules in transforms.py; never within `torch.compile`."""
    return not torch.compiler.is_compiling() and transforms.need_rules()


def _covers(input: Any, states: Any) -> bool:
    """Whether the operators take such arguments, apart from their shapes."""
    if not isinstance(input, Tensor) or not (
        states is None or (isinstance(states, (tuple, list)) and len(states))
    ):
        return False
    given = [input] if states is None else [input, *states]
    right = input.dtype in COMPUTED
    for tensor in given:
        right = (
            right
            and isinstance(tensor, Tensor)
            and tensor.device.type == "cpu"
            and tensor.dtype == input.dtype
        )
    if not torch.compiler.is_compiling() and transforms.has_forward_mode():
        return False
    return right and native() is not None


def _fit(
    module: Layer | Cell,
    x: Tensor,
    states: Sequence[Tensor] | None,
    rows: int,
    widths: Sequence[int],
    weights: Sequence[Tensor],
) -> bool:
    """Whether x (T, B, I) and the states fit the module; if not, torch raises the error."""
    right = x.dim() == 3 and x.shape[2] == module.input_size and x.shape[0] > 0 and x.shape[1] > 0
    right = right and weights[0].dtype == x.dtype and weights[0].device == x.device
    if right and states is not None:
        for state, width in zip(states, widths):  # noqa: B905  one state, h, uses the first width
            right = right and state.dim() == 3 and state.shape == (rows, x.shape[1], width)
    return right


def _copied(y: Tensor) -> Tensor:
    # Compilers would remove a `clone`: they do not see that backward still reads its source.
    return torch.ops.rnnfast.copy(y) if torch.compiler.is_compiling() else y.clone()


def _run_layers(
    module: Layer,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: list[Tensor],
    format_name: str | None,
) -> tuple[Tensor, list[Tensor]]:
    directions = 2 if module.bidirectional else 1
    name = module._cell()
    dropped = module.training and module.dropout > 0 and module.num_layers > 1
    if not dropped:
        return _run(name, directions, module.bias, x, states, weights, format_name)
    per_layer = len(weights) // module.num_layers
    ends = []
    for index in range(module.num_layers):
        rows = slice(index * directions, (index + 1) * directions)
        own = None if states is None else [s[rows] for s in states]
        of_layer = weights[index * per_layer : (index + 1) * per_layer]
        x, last = _run(name, directions, module.bias, x, own, of_layer, format_name)
        ends.append(last)
        if index < module.num_layers - 1:
            x = torch.dropout(x, module.dropout, True)
    return x, [torch.cat(parts) for parts in zip(*ends, strict=True)]


def _run(
    name: str,
    directions: int,
    bias: bool,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: list[Tensor],
    format_name: str | None,
) -> tuple[Tensor, list[Tensor]]:
    h0 = None if states is None else states[0]
    c0 = None if states is None or len(states) == 1 else states[1]
    if _is_transformed():
        y, h, c = transforms.forward((name, directions, bias, format_name), x, h0, c0, weights)
    else:
        own = name, directions, bias, torch.is_grad_enabled(), format_name
        y, h, c, _ = torch.ops.rnnfast.forward(x, h0, c0, weights, *own)
    return y, ([h, c] if name == "lstm" else [h])
