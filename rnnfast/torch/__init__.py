"""Recurrent layers for torch: the modules of torch.nn, run by rnnfast's kernels on the CPU.

`accelerate(model)` switches a model; or use `LSTM` and the others in place of torch.nn's. They have
torch's constructors, parameters, `state_dict`, results and errors. What the kernels do not cover
runs by torch's own implementation: other dtypes, devices without kernels (CUDA's are optional, and
of layers alone), forward-mode differentiation, `torch.jit.trace`. See docs/torch.md.

Importing this puts a backend in use, as a first call does elsewhere, and raises what that raises.
"""

from rnnfast import _backend
from rnnfast.torch.accelerating import accelerate, freeze, patch, report, restore, unfreeze
from rnnfast.torch.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

_backend.current()  # `torch.compile`, which may trace a process's first call, cannot choose

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "accelerate",
    "freeze",
    "patch",
    "report",
    "restore",
    "unfreeze",
]
