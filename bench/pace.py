"""How fast the machine is while a case is timed: arithmetic in registers, in turn with it.

A core that is shared, as those of virtual machines are, does at one moment half of what it does at
the next. Bounds (bench/roofline.py) come from its best moments and medians from its usual ones, so
a bound is stretched by how much longer arithmetic took in the rounds than at its best. Where it
always runs at its best, by nothing. Arithmetic stands for all of a bound: on the virtual machine
that this was made for it took 1.40 times as long in the median of 75 s as at its best, and reading
from L2 and L3 1.33.

With more than one thread the same arithmetic is done by all and by one: what that gains is what a
layer could gain at most, less what it takes the threads to meet.
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
# Of a call; for each thread, long beside handing a part to it.
SECONDS = 0.002
SECONDS_OF_EACH = 0.01
UNIT = 1000  # rounds of the probe


class Pace:
    """Arithmetic of one dtype on some threads.

    peak : operations a second of one core, as the bounds that are to be stretched have it.
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
        """Those that are to stand beside what is timed."""
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
        """What a record says of them.

        `slowed` is how many times as long arithmetic took in the median round as at its best. With
        more than one thread `arithmetic_over_one` is how many times as fast it was on all, and
        `meeting_us` what they take to meet.
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
    """How many meetings of that many threads there were: none where there are fewer threads."""
    return 100 * rounds * (native.probe_meetings(threads, 100 * rounds) == threads)
