"""rnnfast: fused recurrent layers (Elman RNN, LSTM, GRU) for CPUs.

`RNN`, `GRU` and `LSTM` are layers for NumPy arrays, and `RNNCell`, `GRUCell` and `LSTMCell` single
steps of them. Call a layer for inference; its `record` returns a `Tape` for training, and its
`stream` runs it step by step. `load` reads a layer from the file that its `save` wrote.
`show_config` prints the backend, instruction set and threads in use. `rnnfast.functional` has
single layers in one direction with weights of your own, and `rnnfast.torch` the modules for torch.
"""

from __future__ import annotations

import os as _os
import warnings as _warnings

from rnnfast import _backend, _config, _native_backend, functional
from rnnfast._config import (
    active_isa,
    get_num_threads,
    set_backend,
    set_num_threads,
    show_config,
)
from rnnfast._files import load
from rnnfast._tape import Gradients, Tape
from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.layers import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "Gradients",
    "LSTMCell",
    "RNNCell",
    "Tape",
    "active_isa",
    "functional",
    "get_num_threads",
    "load",
    "set_backend",
    "set_num_threads",
    "show_config",
]

__version__ = _config.version()

_config.register_with_threadpoolctl()

if _os.environ.get("RNNFAST_BACKEND", "") in ("", "native"):
    _native_backend.preload()

if not _backend.native_is_installed() and not _os.environ.get("RNNFAST_BACKEND"):
    _warnings.warn(_config.fallback_warning(), RuntimeWarning, stacklevel=2)
