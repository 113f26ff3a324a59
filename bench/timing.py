"""Times of several contenders, taken in turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

# A block is long beside the clock's reading and short beside what changes the machine's speed.
BLOCK_SECONDS = 0.01
# Below this a contender is called untimed at the start of its block, for so long: its code and
# weights have been driven out of the caches by the others, which is no part of its time.
WARM_BELOW = BLOCK_SECONDS / 2
WARM_SECONDS = BLOCK_SECONDS / 5
MIN_BLOCKS = 5
# A library's own threads spin or tidy up after a call, on the cores that the next contender needs:
# those of ONNX Runtime for 45 ms, those of JAX for 7 even where it is to have one core.
GLANCE_SECONDS = 0.001
PATIENCE_SECONDS = 0.1
PAUSE_SECONDS = 0.01
TASKS = Path("/proc/self/task")
# A process that had its core for less of a block than this shared it with another.
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
        """For JSON, with as many digits as mean something."""
        return {name: float(f"{value:.5g}") for name, value in asdict(self).items()}


def spread_of(values: list[float] | np.ndarray) -> Spread:
    """The median and the quartiles of `values`."""
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(q1), float(q3))


@dataclass(frozen=True)
class Contender:
    """What is timed.

    run : called with k, 0 <= k < rotated, the number of the input.
    ready : makes the context that a block runs in, which is no part of its time.
    """

    run: Callable[[int], object]
    ready: Callable[[], AbstractContextManager[object]] = nullcontext
    rotated: int = 1


def time_block(run: Callable[[int], object], calls: int, rotated: int) -> tuple[float, float]:
    """Times `calls` calls in a row.

    Returns
    -------
    seconds : of one call.
    share : of that time in which this process had a core; with threads of its own also above 1.
    """
    order = [k % rotated for k in range(calls)]
    cpu, start = time.process_time(), time.perf_counter()
    for k in order:
        run(k)
    took = time.perf_counter() - start
    return took / calls, (time.process_time() - cpu) / took


def others_run() -> bool:
    """Whether other threads of this process run or could."""
    own = str(threading.get_native_id())
    for task in TASKS.iterdir():
        try:
            if task.name != own and (task / "stat").read_text().rpartition(") ")[2][0] == "R":
                return True
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
    return False


def wait_until_quiet() -> None:
    """Sleeps until no other thread of this process runs, or for `PATIENCE_SECONDS`.

    Where the system does not say what threads do, for `PAUSE_SECONDS`.
    """
    if not TASKS.exists():
        time.sleep(PAUSE_SECONDS)
        return
    stop = time.perf_counter() + PATIENCE_SECONDS
    while others_run() and time.perf_counter() < stop:
        time.sleep(GLANCE_SECONDS)


def seconds_per_call(run: Callable[[int], object], seconds: float) -> float:
    """The least time of a call on input 0 over about `seconds`, after a first one untimed."""
    run(0)
    best, stop = float("inf"), time.perf_counter() + seconds
    while True:
        best = min(best, time_block(run, 1, 1)[0])
        if time.perf_counter() >= stop:
            return best


@dataclass(frozen=True)
class Rounds:
    """What `interleave` measured.

    times : by contender, seconds per call in each round.
    disturbed : the share of the rounds that were left out, as another process took the core.
    """

    times: dict[str, np.ndarray]
    disturbed: float


def interleave(contenders: Mapping[str, Contender], seconds: float, threads: int) -> Rounds:
    """Times the contenders in rounds of one block each.

    Each round starts with another one, so that none always follows the same. A contender that takes
    longer than a block has one call in it. There are rounds for about `seconds` times the number of
    contenders, and at least `MIN_BLOCKS`.

    threads : that each contender takes. With one, rounds in which another process took a part of
        the core are measured again while less than twice the time has passed; should all the same
        fewer than `MIN_BLOCKS` be left, then all count.
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
