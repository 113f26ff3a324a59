"""rnnfast as modules of torch."""

from __future__ import annotations

import rnnfast.torch
from bench.peers.torch import Torch


class Dropin(Torch):
    """The modules of `rnnfast.torch`, used exactly as those of `torch.nn`."""

    modules = rnnfast.torch
