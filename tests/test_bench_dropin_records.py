"""What the benchmark makes of its figures of rnnfast.torch and of two threads, and their bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

import full_record
from full_record import DROPIN_COST, find
from low_records import spread

from bench import floors, peers
from bench.shapes import CELL_LOOPS, IN_MODELS, PACKED


@pytest.fixture
def record():
    return full_record.make()


DOCTORED_DROPIN = {
    "one thread: LSTM at T = B = 1, inference, against torch.nn": (
        ("lstm", "1-1-1024-1024", "inference", 1, "results"),
        {"dropin_speedup": spread(9.9)},
        "9.900, expected at least 10; 10.94 at the bound",
    ),
    "2 threads: RNN training, against torch.nn": (
        ("rnn", "33-5-17-45", "training", 2, "results"),
        {"dropin_speedup": spread(0.99)},
        "0.990, expected at least 1",
    ),
    "one thread: PackedSequence, training, against torch.nn": (
        ("gru", "200-32-256-256-packed", "training", 1, PACKED),
        {"dropin_speedup": spread(3.9)},
        "3.900, expected at least 4",
    ),
    "2 threads: in a model, training, against torch.nn": (
        ("lstm", "64-16-128-128-model", "training", 2, IN_MODELS),
        {"dropin_speedup": spread(0.9)},
        "0.900, expected at least 1",
    ),
    "2 threads: a loop of LSTMCell, training, against torch.nn": (
        ("lstm", "100-16-256-256-cells", "training", 2, CELL_LOOPS),
        {"dropin_speedup": spread(2.9)},
        "2.900, expected at least 3",
    ),
    "one thread: µs of its own, inference": (
        ("rnn", "1-1-64-64", "inference", 1, "results"),
        {"times_us": {"ours": spread(2.0), peers.DROPIN: spread(10.5)}},
        "8.500, expected at most 8",
    ),
    "2 threads: µs of its own, training": (
        ("gru", "1-1-64-64", "training", 2, "results"),
        {"times_us": {"ours": spread(10.0), peers.DROPIN: spread(56.0)}, "function_us": 45.5},
        "46.000, expected at most 45; 45.50 at the bound",
    ),
}


@pytest.mark.parametrize("name", DOCTORED_DROPIN)
def test_the_floors_of_the_dropin(name, record):
    (cell, shape, mode, threads, section), doctored, sentence = DOCTORED_DROPIN[name]
    find(record, cell, shape, mode, threads, section).update(doctored)
    failures = {v.floor.name: v.failures for v in floors.check(record)[0] if v.failures}
    assert failures == {f"{peers.DROPIN}, {name}": [f"{cell} {shape} {mode}: {sentence}"]}


@pytest.mark.parametrize(("cell", "mean"), [("rnn", 4.0), ("gru", 4.0), ("lstm", 1.6)])
def test_the_mean_speedup_of_the_dropin(cell, mean, record):
    for row in record["results"]:
        of_cell = row["case"]["cell"] == cell and row["case"]["threads"] == 2
        if of_cell and row["mode"] == "training" and not row["case"]["shape"]["ragged"]:
            row["dropin_speedup"] = spread(0.9 * mean)
    find(record, cell, "200-32-256-256-ragged", "training", 2)["dropin_speedup"] = spread(4.0)
    failing = {v.floor.name: v.failures for v in floors.check(record)[0] if v.failures}
    name = f"{peers.DROPIN}, 2 threads: {cell.upper()} training, against torch.nn"
    assert failing.keys() == {name}
    assert failing[name][0].endswith(f"expected at least {mean:g}")


def test_two_threads_gain_what_arithmetic_does_less_their_meetings(record):
    found = find(record, "lstm", "100-1-512-512", "training", 2)
    found["times_us"][peers.ONE_THREAD], found["ratios"][peers.ONE_THREAD] = spread(90.0), spread(1)
    found |= {"arithmetic_over_one": spread(1.8), "meeting_us": 0.05}
    many = find(record, "lstm", "100-32-256-256", "inference", 2)  # which never meet
    many["ratios"][peers.ONE_THREAD] = spread(1.5)
    many |= {"arithmetic_over_one": spread(1.9), "meeting_us": 0.05}
    small = find(record, "lstm", "100-1-64-64", "inference", 2)
    small["ratios"][peers.ONE_THREAD] = spread(0.9)
    small |= {"arithmetic_over_one": spread(1.9), "meeting_us": 9.0}
    failing = {v.floor.name: v.failures for v in floors.check(record)[0] if v.failures}
    assert failing == {
        "two threads over one, B H² ≥ 60,000 and T ≥ 20": [
            "lstm 100-1-512-512 training: 1.000, expected at least 1.7; 1.50 at the bound",
            "lstm 100-32-256-256 inference: 1.500, expected at least 1.7; 1.90 at the bound",
        ],
        "two threads over one, smaller": [
            "lstm 100-1-64-64 inference: 0.900, expected at least 0.97; 1.00 at the bound"
        ],
    }


def test_what_the_dropin_takes_at_least(record):
    step = find(record, "lstm", "1-1-256-256", "inference")
    step |= {"dropin_speedup": spread(8.0), "bound_us": 86.0}  # of 105 us
    loop = find(record, "lstm", "100-1-64-64-cells", "training", section=CELL_LOOPS)
    loop |= {"dropin_speedup": spread(2.0), "function_us": 60.0}
    loop["times_us"] |= {"ours": spread(10.0), peers.DROPIN: spread(105.0)}
    failing = {v.floor.name: v.failures for v in floors.check(record)[0] if v.failures}
    one = f"{peers.DROPIN}, one thread: "
    assert failing == {
        f"{one}LSTM at T = B = 1, inference, against torch.nn": [
            "lstm 1-1-256-256 inference: 8.000, expected at least 10; 9.77 at the bound"
        ],
        f"{one}a loop of LSTMCell, training, against torch.nn": [
            "lstm 100-1-64-64-cells training: 2.000, expected at least 3; 3.00 at the bound"
        ],
    }


def test_a_dropin_that_costs_nothing_holds(record):
    free = find(record, "lstm", "1-1-64-64", "training")
    free["times_us"] = {"ours": spread(10.0), peers.DROPIN: spread(9.0)}
    verdicts, _ = floors.check(record)
    (verdict,) = (
        v for v in verdicts if v.floor.name.endswith("one thread: µs of its own, training")
    )
    assert verdict.failures == [] and verdict.mean is None
    assert verdict.worst.value == DROPIN_COST
    assert any(
        f"{verdict.floor.name}: 3 figures, worst 5.00" in t for t in floors.describe(verdicts, [])
    )
