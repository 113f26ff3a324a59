"""The emulated CUDA device of tests, as csrc/tests/cuda_emulated.cpp lets them change it."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from rnnfast import _cuda


class Launches(NamedTuple):
    """How many there were: of kernels alone, of these in clusters, and of graphs."""

    kernels: int
    clusters: int
    graphs: int


class Emulator:
    """Of a library, whose memory is the host's."""

    def __init__(self, library: _cuda.Library) -> None:
        self._dll = library._dll

    def use(self, processors: int = 8, cluster_blocks: int = 0, has_code: bool = True) -> None:
        """Makes another device the current one; cluster_blocks: that its clusters may have."""
        self._dll.rnnfast_cuda_emulate(processors, cluster_blocks, has_code)
        self.launches()

    def capture(self, captures: bool) -> None:
        """Whether streams are captured by the caller from now on."""
        self._dll.rnnfast_cuda_emulate_capture(captures)

    def launches(self) -> Launches:
        """Since the last call."""
        counts = (ctypes.c_int32 * 3)()
        self._dll.rnnfast_cuda_emulated(counts)
        return Launches(*counts)
