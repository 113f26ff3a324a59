"""Recurrent layers and cells for torch: the modules of torch.nn, run by rnnfast's CPU kernels.

`accelerate(model)` switches the recurrent modules of a model to rnnfast. You can also use `RNN`,
`GRU`, `LSTM`, `RNNCell`, `GRUCell` and `LSTMCell` in place of torch.nn's. They have torch's
constructors, parameters, `state_dict`, results and errors.

Calls that the kernels do not cover run by torch's own implementation: other dtypes than float32,
float64 and bfloat16, devices without kernels, forward-mode differentiation and `torch.jit.trace`.
CUDA kernels are optional, and for layers only. docs/torch.md has the details.

Importing this module chooses the backend, which otherwise the first call does. So the import raises
the errors of that choice: a backend, ISA or number of threads that the environment asks for and
that is not available.
"""

from rnnfast import _backend
from rnnfast.torch.accelerating import accelerate, freeze, patch, report, restore, unfreeze
from rnnfast.torch.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell

_backend.current()  # now, since `torch.compile` may trace the first call, and cannot choose

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
