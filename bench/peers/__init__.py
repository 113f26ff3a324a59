"""Who is timed. A peer that is not installed is left out."""

from __future__ import annotations

import importlib
import importlib.util
from typing import NamedTuple

from bench.peers.base import Peer, Runner

__all__ = [
    "BASELINE",
    "DROPIN",
    "FLOOR_PEERS",
    "MODULES",
    "NEW_WEIGHTS",
    "ONE_THREAD",
    "PEERS",
    "RECOMPUTE",
    "YARDSTICK",
    "Entry",
    "Peer",
    "Runner",
    "load",
    "missing",
]


class Entry(NamedTuple):
    """Where a peer is, and what it needs.

    slow : compiled anew for each case, which takes seconds: not in the quick preset.
    """

    module: str
    name: str
    packages: tuple[str, ...]
    slow: bool = False


BASELINE = "ours"
# Ours in other ways, beside the baseline.
ONE_THREAD = "ours, one thread"  # where the baseline has more
NEW_WEIGHTS = "ours, new weights"  # packed in each training step, as after an optimiser's
RECOMPUTE = "ours, recompute"  # in backward, for its memory
DROPIN = "rnnfast.torch"  # ours as modules of torch, which compare with torch's
YARDSTICK = "yardstick"
PEERS = {
    BASELINE: Entry("bench.peers.ours", "Ours", ()),
    "torch": Entry("bench.peers.torch", "Torch", ("torch",)),
    DROPIN: Entry("bench.peers.dropin", "Dropin", ("torch",)),
    "onnxruntime": Entry("bench.peers.onnxruntime", "OnnxRuntime", ("onnx", "onnxruntime")),
    "openvino": Entry("bench.peers.openvino", "OpenVino", ("onnx", "openvino")),
    "jax": Entry("bench.peers.jax", "Jax", ("jax",), slow=True),
    YARDSTICK: Entry("bench.peers.yardstick", "Yardstick", ()),
}
FLOOR_PEERS = ("torch", "onnxruntime", "openvino")  # the fastest of these is the one to beat
MODULES = ("torch", DROPIN)  # that are used in other ways too


def missing(name: str, yardstick: str | None) -> str | None:
    """Why the peer called `name` cannot be timed here, without importing it; None where it can."""
    if name == YARDSTICK and yardstick is None:
        return "no --yardstick was given"
    absent = [package for package in PEERS[name].packages if not importlib.util.find_spec(package)]
    return f"{' and '.join(absent)} not installed" if absent else None


def load(name: str, yardstick: str | None = None, **options: str) -> Peer:
    """The peer called `name`.

    yardstick : the path of the yardstick's shared library.
    options : of the peer's constructor.
    """
    entry = PEERS[name]
    constructor = getattr(importlib.import_module(entry.module), entry.name)
    return constructor(yardstick) if name == YARDSTICK else constructor(**options)
