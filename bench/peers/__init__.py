"""The peers, which are the implementations to time. Those that are not installed are left out."""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

from bench.peers.base import Peer, Runner

__all__ = [
    "BASELINE",
    "BOUND_RUN",
    "DROPIN",
    "FLOOR_PEERS",
    "IN_C",
    "MODULES",
    "NEW_WEIGHTS",
    "NUMBA",
    "ONE_THREAD",
    "OURS_IN",
    "PEERS",
    "RECOMPUTE",
    "RUN",
    "TORCH_IN",
    "YARDSTICK",
    "Entry",
    "Peer",
    "Runner",
    "load",
    "missing",
]


class Entry(NamedTuple):
    """The place and the needs of a peer.

    module, name : its class.
    packages : the packages that it needs.
    slow : whether it compiles for each case, which takes seconds. The quick preset leaves it out.
    """

    module: str
    name: str
    packages: tuple[str, ...]
    slow: bool = False


BASELINE = "ours"
# Variants of ours, timed beside the baseline.
ONE_THREAD = "ours, one thread"  # if the baseline uses more
NEW_WEIGHTS = "ours, new weights"  # packs weights in each training step, as after an optimiser's
RECOMPUTE = "ours, recompute"  # `record` with recompute; only its memory is measured
NUMBA = "ours, Numba"  # runs on Numba instead of the compiled module
DROPIN = "rnnfast.torch"  # ours as modules of torch, to compare with torch's
YARDSTICK = "yardstick"
# Steps of a stream, where the baseline is a step in float32 from Python: ours in C, and ONNX
# Runtime's.
IN_C = "in C"
RUN, BOUND_RUN = "onnxruntime, run", "onnxruntime, bound"
# Sequences in low precision, by the format.
OURS_IN = {"bfloat16": "ours, bfloat16", "int8": "ours, int8"}
TORCH_IN = {"bfloat16": "torch, bfloat16", "int8": "torch, int8"}
PEERS = {
    BASELINE: Entry("bench.peers.ours", "Ours", ()),
    "torch": Entry("bench.peers.torch", "Torch", ("torch",)),
    DROPIN: Entry("bench.peers.dropin", "Dropin", ("torch",)),
    "onnxruntime": Entry("bench.peers.onnxruntime", "OnnxRuntime", ("onnx", "onnxruntime")),
    "openvino": Entry("bench.peers.openvino", "OpenVino", ("onnx", "openvino")),
    "jax": Entry("bench.peers.jax", "Jax", ("jax",), slow=True),
    YARDSTICK: Entry("bench.peers.yardstick", "Yardstick", ()),
}

# These take part if onnxruntime or torch does.
_STEPS, _LOW = "bench.peers.onnx_steps", "bench.peers.torch_low"
_ONNX = ("onnx", "onnxruntime")
OTHERS = {
    RUN: Entry(_STEPS, "OnnxSteps", _ONNX),
    BOUND_RUN: Entry(_STEPS, "OnnxBoundSteps", _ONNX),
    TORCH_IN["bfloat16"]: Entry(_LOW, "TorchBfloat16", ("torch",)),
    TORCH_IN["int8"]: Entry(_LOW, "TorchInt8", ("torch",)),
}
FLOOR_PEERS = ("torch", "onnxruntime", "openvino")  # the fastest of these is the one to beat
MODULES = ("torch", DROPIN)  # the peers that `WAYS` uses in other ways, too


def missing(name: str, yardstick: str | None) -> str | None:
    """Why the peer called `name` cannot be timed here; None if it can. This imports nothing."""
    if name == YARDSTICK and yardstick is None:
        return "no --yardstick was given"
    absent = [package for package in PEERS[name].packages if not importlib.util.find_spec(package)]
    return f"{' and '.join(absent)} not installed" if absent else None


def load(name: str, yardstick: str | None = None, **options: str) -> Peer:
    """Makes the peer called `name`, a key of `PEERS` or `OTHERS`.

    yardstick : the path of the yardstick's shared library.
    options : arguments of the peer's constructor.
    """
    entry = PEERS.get(name) or OTHERS[name]
    constructor = getattr(importlib.import_module(entry.module), entry.name)
    return constructor(yardstick) if name == YARDSTICK else constructor(**options)
