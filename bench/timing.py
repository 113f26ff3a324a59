"""Measures the times of several contenders, which run in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

# A block is long compared to reading the clock, and short compared to the time in which the
# machine's speed changes.
BLOCK_SECONDS = 0.01
# A call below WARM_BELOW seconds first runs untimed for WARM_SECONDS in each block: the other
# contenders have driven its code and weights out of the caches, which must not count.
WARM_BELOW = BLOCK_SECONDS / 2
WARM_SECONDS = BLOCK_SECONDS / 5
MIN_BLOCKS = 5
# A library's own threads spin or tidy up after a call, on the cores that the next contender needs:
# those of ONNX Runtime for 45 ms, those of JAX for 7 ms, even if it is limited to one core.
GLANCE_SECONDS = 0.001
PATIENCE_SECONDS = 0.1
PAUSE_SECONDS = 0.01
TASKS = Path("/proc/self/task")
# If the process had its core for a smaller part of a block, another process shared the core.
ALONE = 0.97


@dataclass(frozen=True)
class Spread:
    """The median of some values, and their quartiles."""

    median: float
    q1: float
    q3: float

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.q1 * factor, self.q3 * factor)

    def as_dict(self) -> dict[str, float]:
        """A dict for JSON, with the five digits that are significant."""
        return {name: float(f"{value:.5g}") for name, value in asdict(self).items()}


def spread_of(values: list[float] | np.ndarray) -> Spread:
    """The median and the quartiles of `values`."""
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(q1), float(q3))


@dataclass(frozen=True)
class Contender:
    """A function to time.

    run : is called with k, the number of the input, 0 <= k < rotated.
    ready : makes the context in which a block runs; entering and leaving it is not timed.
    rotated : the number of inputs.
    """

    run: Callable[[int], object]
    ready: Callable[[], AbstractContextManager[object]] = nullcontext
    rotated: int = 1


def time_block(run: Callable[[int], object], calls: int, rotated: int) -> tuple[float, float]:
    """Times `calls` calls in a row.

    Returns
    -------
    seconds : the time of one call.
    share : the CPU time of this process over the time; it may exceed 1 with several threads.
    """
    order = [k % rotated for k in range(calls)]
    cpu, start = time.process_time(), time.perf_counter()
    for k in order:
        run(k)
    took = time.perf_counter() - start
    return took / calls, (time.process_time() - cpu) / took


def others_run() -> bool:
    """Whether other threads of this process run, or are ready to run."""
    own = str(threading.get_native_id())
    for task in TASKS.iterdir():
        try:
            if task.name != own and (task / "stat").read_text().rpartition(") ")[2][0] == "R":
                return True
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return False


def wait_until_quiet() -> None:
    """Sleeps until no other thread of this process runs, or for `PATIENCE_SECONDS`.

    If the system does not report the state of threads, it sleeps for `PAUSE_SECONDS`.
    """
    if not TASKS.exists():
        time.sleep(PAUSE_SECONDS)
        return
    stop = time.perf_counter() + PATIENCE_SECONDS
    while others_run() and time.perf_counter() < stop:
        time.sleep(GLANCE_SECONDS)


def seconds_per_call(run: Callable[[int], object], seconds: float) -> float:
    """The least time of a call on input 0 within about `seconds`, after one untimed call."""
    run(0)
    best, stop = float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, time_block(run, 1, 1)[0])
        if time.perf_counter() >= stop:
            return best


@dataclass(frozen=True)
class Rounds:
    """The result of `interleave`.

    times : the seconds per call in each round, by contender.
    disturbed : the part of the rounds in which another process took the core.
    """

    times: dict[str, np.ndarray]
    disturbed: float


def interleave(contenders: Mapping[str, Contender], seconds: float, threads: int) -> Rounds:
    """Times the contenders in rounds of one block each.

    Each round starts with the next contender. A contender whose call takes longer than a block has
    one call in its block. The rounds take about `seconds` times the number of contenders, and there
    are at least `MIN_BLOCKS` of them.

    threads : the number of threads that each contender uses. With one thread, a round in which
        another process took a part of the core is left out and repeated, until twice the time has
        passed. If fewer than `MIN_BLOCKS` rounds then remain, all rounds count.
    """
    calls, block = {}, {}
    for name, contender in contenders.items():
        with contender.ready():
            once = seconds_per_call(contender.run, BLOCK_SECONDS)
        calls[name] = max(1, round(BLOCK_SECONDS / once))
        block[name] = once * calls[name]
    budget = seconds * len(block)
    wanted = max(MIN_BLOCKS, int(budget / sum(block.values())))
    names = list(contenders)
    rounds: list[dict[str, float]] = []
    clean: list[dict[str, float]] = []
    stop = time.perf_counter() + 2 * budget
    while len(clean) < wanted and (len(rounds) < MIN_BLOCKS or time.perf_counter() < stop):
        times, shares = {}, []
        for offset in range(len(names)):
            name = names[(len(rounds) + offset) % len(names)]
            contender = contenders[name]
            wait_until_quiet()
            with contender.ready():
                once = block[name] / calls[name]
                if once < WARM_BELOW:
                    time_block(contender.run, max(1, round(WARM_SECONDS / once)), 1)
                times[name], share = time_block(contender.run, calls[name], contender.rotated)
            shares.append(share)
        rounds.append(times)
        if threads > 1 or min(shares) >= ALONE:
            clean.append(times)
    kept = clean if len(clean) >= MIN_BLOCKS else rounds
    return Rounds(
        {name: np.array([times[name] for times in kept]) for name in names},
        1 - len(clean) / len(rounds),
    )
