"""The modules RNN, GRU, LSTM and their cells: torch.nn's, run by rnnfast's kernels on the CPU."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.modules import rnn as torch_rnn
from torch.nn.utils.rnn import PackedSequence

from rnnfast._cells import Sizes
from rnnfast.torch import cuda, eager, graph
from rnnfast.torch.cache import PackCache
from rnnfast.torch.kinds import Kind

_CELL_OF_MODE = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn_tanh", "RNN_RELU": "rnn_relu"}

_is_compiling = torch.compiler.is_compiling
_is_any_autocast = torch._C._is_any_autocast_enabled
_is_transformed = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def _is_on_a_graph() -> bool:
    """Whether graph.py runs a call, because it is traced, transformed or under autocast."""
    return bool(
        _is_compiling()
        or (_is_any_autocast() and torch.is_autocast_enabled("cpu"))
        or _is_transformed()
        or _dispatch_modes()
    )


def _foreign(module: torch.nn.Module) -> Any:
    """Torch's class of a module of torch that got here through a name that `patch` replaced."""
    return next((t for t in TWINS if isinstance(module, t)), torch_rnn.RNNBase)


# Stands for a state that is left to torch: its form, or the module's mode, is unknown here.
_OTHER: Any = object()


def _given(hx: Any, has_c: bool) -> Any:
    """`hx` as (h,) or (h, c); None: zeros; `_OTHER`: something else."""
    if hx is None:
        return None
    if not has_c:
        return (hx,) if isinstance(hx, Tensor) else _OTHER
    return tuple(hx) if isinstance(hx, (tuple, list)) and len(hx) == 2 else _OTHER


class _Own:
    """What layers and cells share. Their attribute `_rnnfast` is the module's `PackCache`."""

    _names: Callable[[], list[str]]  # the names of the flat list of parameters
    _cell: Callable[[], str]  # the cell's name in `CELLS`
    _new_kind: Callable[[str], Kind]

    def _weights(self, cache: PackCache) -> tuple[Tensor, ...]:
        """The present parameters, in a flat list; callers may have parametrized or swapped them."""
        if cache.select is None:
            cache.select = operator.itemgetter(*self._names())
        try:
            return cache.select(self.__dict__["_parameters"])
        except KeyError:
            return tuple(getattr(self, name) for name in self._names())

    def _parameter(self, index: int) -> Tensor:
        return getattr(self, self._names()[index])

    def _kind(self, cache: PackCache) -> Kind:
        cell = self._cell()
        kind = cache.kinds.get(cell)
        if kind is None:
            kind = cache.kinds[cell] = self._new_kind(cell)
        return kind

    def __getstate__(self) -> dict[str, Any]:
        """The state without the cache, whose class `torch.load(weights_only=True)` refuses."""
        is_layer = isinstance(self, torch_rnn.RNNBase)
        state = torch_rnn.RNNBase.__getstate__(self) if is_layer else self.__dict__
        return {name: value for name, value in state.items() if name != "_rnnfast"}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(self, _Own):
            return _foreign(self).__setstate__(self, state)
        super().__setstate__(state)  # type: ignore[misc]  # torch's
        # A shallow copy has the original's cache if its class has a `__getstate__` of its own.
        self.__dict__.pop("_rnnfast", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if not isinstance(self, _Own):
            return _foreign(self).__setattr__(self, name, value)
        if name in _OF_KIND and self.__dict__.get(name, value) != value:
            self.__dict__.pop("_rnnfast", None)
        super().__setattr__(name, value)

    def __prepare_scriptable__(self) -> Any:
        """Raises an error here, since `torch.jit.script` would fail later with other reasons."""
        name = type(self).__name__
        raise RuntimeError(
            f"torch.jit.script: expected modules of torch, got {name} of rnnfast.torch: "
            "call rnnfast.torch.restore(model) before"
        )


# The attributes that make up a `Kind`, besides the cell.
_OF_KIND = frozenset(
    ["input_size", "hidden_size", "proj_size", "num_layers", "bidirectional", "bias"]
)


class Layer(_Own, torch_rnn.RNNBase):
    """The base class of the three layers.

    It derives from torch's RNNBase, not from its RNN, GRU or LSTM: `torch.compile` refuses to trace
    into instances of those. Each layer defines its own `forward`, because Python's errors show that
    method's name. In it, `self` may be a module of torch that got there by a name of `patch`.
    """

    # Torch's class of the same name, which also makes the checks and their messages.
    _TORCH: ClassVar[type[torch_rnn.RNNBase]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self, Layer):
            return _foreign(self).__init__(self, *args, **kwargs)
        # Torch checks the arguments and makes empty parameters. Then `reset_parameters`, which a
        # subclass may override, fills them.
        self.__dict__.update(_EMPTY[self._TORCH](*args, **kwargs).__dict__)
        self.__dict__.pop("_rnnfast", None)  # if a module is initialised again
        self.reset_parameters()

    def _call(self, input: Any, hx: Any, format_name: str | None = None) -> Any:
        """Runs the layer; `format_name` : the format of operands of products under autocast."""
        if _is_on_a_graph():
            return graph.layer(self, input, hx, format_name)
        known = None if format_name is not None else eager.again(self, input, hx)
        if known is not None:
            return known
        states = self._states(hx)
        if states is _OTHER:
            result = None
        elif isinstance(input, PackedSequence):
            result = self._packed(input, states, format_name)
        else:
            result = eager.layer(self, input, None, states, format_name)
        if result is None:
            return self._torch_forward(input, hx)
        output, last = result
        return output, (last if self.mode == "LSTM" else last[0])

    def _packed(self, input: PackedSequence, states: Any, format_name: str | None) -> Any:
        if states is not None and input.sorted_indices is not None:
            if any(not isinstance(s, Tensor) or s.dim() != 3 for s in states):
                return None
            states = tuple(s.index_select(1, input.sorted_indices) for s in states)
        result = eager.layer(self, input.data, input.batch_sizes, states, format_name)
        if result is None:
            return None
        data, last = result
        if input.unsorted_indices is not None:
            last = tuple(s.index_select(1, input.unsorted_indices) for s in last)
        return PackedSequence(data, *input[1:]), last

    def _torch_forward(self, input: Any, hx: Any) -> Any:
        """Runs the CUDA kernels, or torch's own implementation, which also raises the errors."""
        if not (_is_compiling() or _is_transformed() or _dispatch_modes()):
            states = self._states(hx)
            result = None if states is _OTHER else cuda.layer(self, input, states)
            if result is not None:
                output, last = result
                return output, (last if self.mode == "LSTM" else last[0])
        return self._TORCH.forward(self, input, hx)

    def _states(self, hx: Any) -> Any:
        known = self.mode in _CELL_OF_MODE  # torch refuses other modes
        return _given(hx, self.mode == "LSTM") if known else _OTHER

    def _names(self) -> list[str]:
        return self.__dict__["_flat_weights_names"]

    def _new_kind(self, cell: str) -> Kind:
        sizes = Sizes(self.input_size, self.hidden_size, self.proj_size)
        directions = 2 if self.bidirectional else 1
        return Kind(cell, sizes, self.num_layers, directions, self.bias)

    def _cell(self) -> str:
        return _CELL_OF_MODE[self.mode]


def _empty(layer: type[torch_rnn.RNNBase]) -> type[torch_rnn.RNNBase]:
    """A subclass of torch's layer whose constructor leaves the parameters uninitialised."""
    return type(layer.__name__, (layer,), {"reset_parameters": lambda self: None})


class RNN(Layer):
    """The Elman RNN of `torch.nn.RNN`: the same constructor, parameters, results and errors."""

    _TORCH = torch_rnn.RNN

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.RNN.forward` does."""
        if not isinstance(self, Layer):
            return torch_rnn.RNN.forward(self, input, hx)
        return self._call(input, hx)


class GRU(Layer):
    """The GRU of `torch.nn.GRU`: the same constructor, parameters, results and errors."""

    _TORCH = torch_rnn.GRU

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.GRU.forward` does."""
        if not isinstance(self, Layer):
            return torch_rnn.GRU.forward(self, input, hx)
        return self._call(input, hx)


class LSTM(Layer):
    """The LSTM of `torch.nn.LSTM`: the same constructor, parameters, results and errors."""

    _TORCH = torch_rnn.LSTM

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.LSTM.forward` does."""
        if not isinstance(self, Layer):
            return torch_rnn.LSTM.forward(self, input, hx)
        return self._call(input, hx)

    # Torch's LSTM defines these itself, for its pair of states.
    get_expected_cell_size = torch_rnn.LSTM.get_expected_cell_size
    check_forward_args = torch_rnn.LSTM.check_forward_args
    permute_hidden = torch_rnn.LSTM.permute_hidden


class Cell(_Own, torch_rnn.RNNCellBase):
    """The base class of the three cells, which also derive from torch's."""

    _torch_forward: Callable[..., Any]
    _CELL: ClassVar[str]  # the name in `CELLS`; RNNCell has one of two names

    def _call(self, input: Any, hx: Any, format_name: str | None = None) -> Any:
        """Runs the cell; `format_name` : the format of operands of products under autocast."""
        if _is_on_a_graph():
            return graph.cell(self, input, hx, format_name)
        known = None if format_name is not None else eager.again(self, input, hx)
        if known is not None:
            return known[1]
        states = self._states(hx)
        if states is not _OTHER:
            last = eager.cell(self, input, states, format_name)
            if last is not None:
                return last if len(last) == 2 else last[0]
        return self._torch_forward(input, hx)

    def _states(self, hx: Any) -> Any:
        return _given(hx, isinstance(self, LSTMCell))

    def _names(self) -> list[str]:
        return _CELL_NAMES if self.bias else _CELL_NAMES[:2]

    def _new_kind(self, cell: str) -> Kind:
        sizes = Sizes(self.input_size, self.hidden_size, 0)
        return Kind(cell, sizes, bias=self.bias, one_step=True)

    def _cell(self) -> str:
        return self._CELL


_CELL_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


class RNNCell(Cell, torch_rnn.RNNCell):
    """`torch.nn.RNNCell`, run by rnnfast's kernels."""

    _torch_forward = torch_rnn.RNNCell.forward

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.RNNCell.forward` does."""
        if not isinstance(self, Cell):
            return torch_rnn.RNNCell.forward(self, input, hx)
        return self._call(input, hx)

    def _states(self, hx: Any) -> Any:
        known = self.nonlinearity in ("tanh", "relu")  # torch refuses others, at the call
        return super()._states(hx) if known else _OTHER

    def _cell(self) -> str:
        return f"rnn_{self.nonlinearity}"


class GRUCell(Cell, torch_rnn.GRUCell):
    """`torch.nn.GRUCell`, run by rnnfast's kernels."""

    _CELL = "gru"
    _torch_forward = torch_rnn.GRUCell.forward

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.GRUCell.forward` does."""
        if not isinstance(self, Cell):
            return torch_rnn.GRUCell.forward(self, input, hx)
        return self._call(input, hx)


class LSTMCell(Cell, torch_rnn.LSTMCell):
    """`torch.nn.LSTMCell`, run by rnnfast's kernels."""

    _CELL = "lstm"
    _torch_forward = torch_rnn.LSTMCell.forward

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Takes and returns what `torch.nn.LSTMCell.forward` does."""
        if not isinstance(self, Cell):
            return torch_rnn.LSTMCell.forward(self, input, hx)
        return self._call(input, hx)


# Torch's modules, and rnnfast's of the same names.
TWINS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch_rnn.RNN: RNN,
    torch_rnn.GRU: GRU,
    torch_rnn.LSTM: LSTM,
    torch_rnn.RNNCell: RNNCell,
    torch_rnn.GRUCell: GRUCell,
    torch_rnn.LSTMCell: LSTMCell,
}
_EMPTY: dict[Any, Any] = {
    theirs: _empty(theirs) for theirs, ours in TWINS.items() if issubclass(ours, Layer)
}
