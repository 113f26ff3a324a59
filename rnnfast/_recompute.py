"""A forward pass that keeps the states at chunk borders only; `backward` runs it again."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Backward, Forward
from rnnfast._cells import Weights
from rnnfast.functional import Gradients, Packed, run_checked, zero_weights

# The least rows (steps times batch) in a chunk, so that the matrix products over it stay large.
_LEAST_ROWS = 128


class RecomputedRun:
    """A `functional.Run` with O(sqrt(T)) memory besides x and y, at the cost of a second pass.

    Chen et al. 2016, "Training deep nets with sublinear memory cost". With chunks of about sqrt(T)
    steps, the states at the borders take about as much memory as the backward pass of one chunk.
    """

    def __init__(self, packed: Packed, args: Forward) -> None:
        self.packed = packed
        self.args = args
        steps, batch = args.x.shape[:2]
        if not batch:
            steps = 0  # no step computes anything, and there may be very many
        size = max(1, math.ceil(math.sqrt(steps)), math.ceil(_LEAST_ROWS / max(1, batch)))
        chunks = [slice(t, min(t + size, steps)) for t in range(0, steps, size)] or [slice(0, 0)]
        self._chunks = chunks[::-1] if args.reverse else chunks  # in the order in which they run
        self._borders: list[tuple[NDArray | None, NDArray | None]] = []
        h, c = args.h0, args.c0
        for chunk in self._chunks:
            self._borders.append((h, c))
            part = self._part(chunk, h, c, args.y[chunk])
            run_checked(packed, part, training=False)
            h, c = part.hn, part.cn
        args.hn[...] = h
        if args.cn is not None:
            args.cn[...] = c

    def backward_checked(
        self,
        dy: NDArray | None,
        dh: NDArray | None,
        dc: NDArray | None,
        *,
        want_dx: bool = True,
        into: Weights | None = None,
    ) -> Gradients:
        """See `functional.Run.backward_checked`."""
        args, packed = self.args, self.packed
        dx = np.empty(args.x.shape, packed.dtype) if want_dx else None
        weights = zero_weights(packed) if into is None else into
        # The second pass writes to a scratch y, as the caller may be reading the first one.
        longest = max(chunk.stop - chunk.start for chunk in self._chunks)
        scratch = np.empty((longest, *args.y.shape[1:]), packed.dtype)
        for chunk, (h, c) in zip(reversed(self._chunks), reversed(self._borders), strict=True):
            part = self._part(chunk, h, c, scratch[: chunk.stop - chunk.start])
            saved = packed.backend.forward(packed.cell, packed.weights, part, True)
            grads = Backward(
                dy=None if dy is None else dy[chunk],
                dhn=dh,
                dcn=dc,
                dx=None if dx is None else dx[chunk],
                dh0=np.empty_like(args.hn),
                dc0=None if args.cn is None else np.empty_like(args.cn),
                weights=weights,
            )
            packed.backend.backward(packed.cell, packed.weights, saved, part, grads)
            dh, dc = grads.dh0, grads.dc0
        return Gradients(dx, cast("NDArray", dh), dc, weights)

    def _part(self, chunk: slice, h: NDArray | None, c: NDArray | None, y: NDArray) -> Forward:
        """The arguments of a pass over `chunk`, with new arrays for its last states."""
        args, lengths = self.args, self.args.lengths
        if lengths is not None:
            lengths = np.clip(lengths - chunk.start, 0, chunk.stop - chunk.start)
        return replace(
            args,
            x=args.x[chunk],
            h0=h,
            c0=c,
            lengths=lengths,
            reset=None if args.reset is None else args.reset[chunk],
            y=y,
            hn=np.empty_like(args.hn),
            cn=None if args.cn is None else np.empty_like(args.cn),
        )
