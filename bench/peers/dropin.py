"""rnnfast as modules of torch."""

from __future__ import annotations

import rnnfast.torch
from bench.peers.torch import Torch


class Dropin(Torch):
    """`rnnfast.torch`'s modules, used just as those of `torch.nn` are."""

    modules = rnnfast.torch
