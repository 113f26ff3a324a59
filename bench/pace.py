"""The machine's speed while a case is timed, from arithmetic in registers, timed in turn with it.

A shared core, as of a virtual machine, may be half as fast at one moment as at the next. Bounds
(bench/roofline.py) come from the core's best moments, but medians from its usual ones. A bound is
therefore multiplied by the time of arithmetic in the rounds over its best time, which is 1 on a
core that always runs at its best. Arithmetic stands for all parts of a bound: on the virtual
machine that this was made for, arithmetic took 1.40 times as long in the median of 75 s as at its
best, and reading from L2 and L3 1.33.

With more than one thread, all threads and one thread do the same arithmetic. The speed-up is the
most that a layer can gain, less the time in which the threads meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.roofline import measure_rate
from bench.timing import Contender, spread_of

ARITHMETIC, ON_ONE = "arithmetic", "arithmetic, one thread"
# The time of a call on one thread, and, with more, the time for each thread, which is long compared
# to handing a part of the work to it.
SECONDS = 0.002
SECONDS_OF_EACH = 0.01
UNIT = 1000  # rounds of the probe


class Pace:
    """Arithmetic of one dtype on some threads.

    peak : the operations a second of one core, as used in the bounds.
    """

    def __init__(self, native: ModuleType, dtype: str, peak: float, threads: int = 1) -> None:
        self._threads = threads
        self._probe = partial(native.probe_fma, dtype)
        unit = self._probe(UNIT) / peak
        units = max(1, round((SECONDS if threads == 1 else threads * SECONDS_OF_EACH) / unit))
        self._rounds = units * UNIT
        self._best = units * unit
        met = measure_rate(partial(_meet, native, threads)) if threads > 1 else 0.0
        self._meeting = 1 / met if met else None

    @contextmanager
    def contenders(self) -> Iterator[dict[str, Contender]]:
        """The contenders to time in turn with the case."""
        if self._threads == 1:
            yield {ARITHMETIC: Contender(self._alone)}
            return
        with ThreadPoolExecutor(self._threads - 1) as others:
            part = self._rounds // self._threads

            def share(k: int) -> None:
                waited = [others.submit(self._probe, part) for _ in range(self._threads - 1)]
                self._probe(part)
                for each in waited:
                    each.result()

            yield {ARITHMETIC: Contender(share), ON_ONE: Contender(self._alone)}

    def _alone(self, k: int) -> None:
        self._probe(self._rounds)

    def entries(self, times: Mapping[str, NDArray]) -> dict[str, Any]:
        """The entries of a record, from the times of `contenders`.

        `slowed` is the time of arithmetic in the median round over its best time. With more than
        one thread, `arithmetic_over_one` is its speed on all threads over its speed on one, and
        `meeting_us` the microseconds that the threads take to meet.
        """
        alone = times[ON_ONE if self._threads > 1 else ARITHMETIC]
        slowed = float(np.median(alone)) / self._best
        if self._threads == 1:
            return {"slowed": round(slowed, 4)}
        found = {
            "slowed": round(slowed, 4),
            "arithmetic_over_one": spread_of(alone / times[ARITHMETIC]).as_dict(),
        }
        if self._meeting is not None:
            found["meeting_us"] = round(self._meeting * slowed * 1e6, 4)
        return found


def _meet(native: ModuleType, threads: int, rounds: int) -> float:
    """The number of meetings of `threads` threads; 0 if there were fewer threads."""
    return 100 * rounds * (native.probe_meetings(threads, 100 * rounds) == threads)
