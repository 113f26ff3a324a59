"""The floors of streams and of low precision, and their part of the report."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

import low_records
from low_records import spread

from bench import cli, floors, low_floors, low_precision, machine, peers, records, runs
from bench.shapes import PRECISION, PRECISION_SHAPES, STEP, STREAMS

pytestmark = pytest.mark.slow


@pytest.fixture
def record():
    """A record of nothing else, in which every floor holds."""
    return {
        "format": records.FORMAT,
        "date": "2000-01-01T00:00:00+00:00",
        "commit": None,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "options": asdict(runs.Options("streams")),
        "missing": {},
        "errors": [],
        "levels": None,
        "results": [],
        "memory": [],
        **low_records.sections(),
    }


def find(record, section, cell, shape, mode=STEP):
    keys = [row.key for row in records.rows(record, section)]
    return record[section][keys.index((cell, shape, "float32", mode, 1))]


def test_all_hold_and_only_these_are_measured(record):
    verdicts, problems = floors.check(record)
    assert problems == [] and not [v for v in verdicts if v.failures]
    assert [v.floor for v in verdicts if v.count] == [*low_floors.FLOORS]


STEPS = {
    "streams: a step against ONNX Runtime's run, H ≤ 128": ("gru", 128, {peers.RUN: 7.9}, "7.900"),
    "streams: a step against ONNX Runtime's run, H = 512": ("rnn", 512, {peers.RUN: 1.7}, "1.700"),
    "streams: bfloat16 over float32, H = 256, 512": ("rnn", 256, {"bfloat16": 1 / 1.5}, "1.500"),
    "streams: int8 over float32, H = 256, 512": ("lstm", 512, {"int8": 1 / 2.4}, "2.400"),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_slow(name, record):
    cell, hidden, slow, figure = STEPS[name]
    entry = find(record, STREAMS, cell, f"1-1-{hidden}-{hidden}-stream")
    for contender, ratio in slow.items():
        entry["times_us"][contender] = spread(ratio * entry["times_us"]["ours"]["median"])
        entry["ratios"][contender] = spread(ratio)
    assert_fails(record, name, f"{cell} 1-1-{hidden}-{hidden}-stream step: {figure}, expected")


def test_a_slow_step_stands_beside_the_machines_bound(record):
    entry = find(record, STREAMS, "lstm", "1-1-64-64-stream")
    ours = entry["times_us"]["ours"]["median"]
    entry["bound_us"], entry["ratios"][peers.RUN] = ours / 1.5, spread(4.0)
    name = "streams: a step against ONNX Runtime's run, H ≤ 128"
    what = "lstm 1-1-64-64-stream step"
    assert_fails(record, name, f"{what}: 4.000, expected at least 8; 6.00 at the bound")
    entry["ratios"][peers.RUN] = spread(10.0)
    entry["times_us"][peers.IN_C], entry["times_us"]["ours"] = spread(1.7), spread(1.8)
    at_best = low_precision.RTNEURAL["lstm", 64, 64] / entry["bound_us"]
    sentence = f"{what}: 1.041, expected at least 1.2; {at_best:.2f} at the bound"
    assert_fails(record, "streams: in C against RTNeural", sentence)


OTHERS = {
    "streams: in C against RTNeural": ("times_us", peers.IN_C, spread(1.7), "1.041"),
    "streams: bytes in int8 over float32, H = 256, 512": ("bytes", "int8", 2_800, "0.280"),
    "streams: bytes in bfloat16 over float32, H = 256, 512": ("bytes", "bfloat16", 5_300, "0.530"),
    "streams: relative error in int8 over 1000 steps": ("relative_error", "int8", 0.06, "0.06"),
    "streams: relative error in bfloat16 over 1000 steps": (
        ("relative_error", "bfloat16", 0.03, "0.03")
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_figure_of_a_stream_that_is_bad(name, record):
    part, which, value, figure = OTHERS[name]
    size = 64 if part == "times_us" else 256
    entry = find(record, STREAMS, "lstm", f"1-1-{size}-{size}-stream")
    entry[part][which] = value
    if part == "times_us":
        entry["times_us"]["ours"] = spread(1.7)
    assert_fails(record, name, f"lstm 1-1-{size}-{size}-stream step: {figure}, expected")


def test_a_call_from_python_that_costs(record):
    entry = find(record, STREAMS, "rnn", "1-1-1-16-stream")
    entry["times_us"]["ours"] = spread(entry["times_us"][peers.IN_C]["median"] + 0.2)
    name = "streams: µs of a call from Python, H ≤ 64"
    assert_fails(record, name, "rnn 1-1-1-16-stream step: 0.200, expected at most 0.15")


def test_steps_that_are_late_and_bits_that_are_lost(record):
    record["latency"][1]["percentiles_us"]["99.9"] = 31.0
    name = "streams: p99.9 of single steps over their p50"
    sentence = "lstm 1-1-256-256-stream bfloat16: 3.100, expected at most 3; 1.50 at the bound"
    assert_fails(record, name, sentence)
    record["latency"] = []
    record["characters"][0]["bits"]["bfloat16"] = 2.02
    name = "streams: bits per character lost in bfloat16"
    assert_fails(record, name, "lstm 192: 0.02, expected at most 0.01")
    record["characters"][0]["bits"]["bfloat16"] = 2.0
    record["characters"][0]["trained_in"]["bfloat16"] = 2.04
    name = "sequences, bits per character lost by training in bfloat16"
    assert_fails(record, name, "lstm 192: 0.04, expected at most 0.03")


SLOW = {
    "sequences, bfloat16 over float32, H ≥ 256": (256, "inference", "ours", 1.5),
    "sequences, bfloat16 against torch's, H ≥ 256": (1024, "inference", "torch, bfloat16", 1.0),
    "sequences, bfloat16 against torch's, H < 256": (64, "inference", "torch, bfloat16", 1.2),
    "sequences, bfloat16 over float32, training": (64, "training", "ours", 1.2),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_sequence_that_is_slow(name, record):
    hidden, mode, other, ratio = SLOW[name]
    (shape,) = (shape for shape in PRECISION_SHAPES.values() if shape.H == hidden)
    entry = find(record, PRECISION, "lstm", shape.name, mode)
    ours = entry["times_us"]["ours, bfloat16"]["median"]
    entry["times_us"][other] = spread(ratio * ours)
    assert_fails(record, name, f"lstm {shape.name} {mode}: {ratio:.3f}, expected at least")


def test_low_precision_stands_beside_its_bound(record):
    entry = find(record, PRECISION, "gru", "100-32-256-256-low", "inference")
    low = entry["times_us"]["ours, bfloat16"]["median"]
    entry["times_us"]["torch, bfloat16"] = spread(1.05 * low)
    name = "sequences, bfloat16 against torch's, H ≥ 256"
    sentence = "gru 100-32-256-256-low inference: 1.050, expected at least 1.1"
    assert_fails(record, name, sentence)
    for bound, best in ((low / 2, "2.10"), (2 * low, "1.05")):
        entry["low_bound_us"] = bound
        assert_fails(record, name, f"{sentence}; {best} at the bound")


def test_the_fraction_of_the_peak(record):
    entry = find(record, PRECISION, "gru", "100-32-256-256-low", "inference")
    entry["peak_gflops"] = 240.0
    # 0.9 of 200, and the first of a hundred steps has half of the products.
    name = "sequences, bfloat16, fraction of the peak, H ≥ 256, inference"
    assert_fails(record, name, "gru 100-32-256-256-low inference: 0.746, expected at least 0.8")


def assert_fails(record, name, start):
    failures = {v.floor.name: v.failures for v in floors.check(record)[0] if v.failures}
    assert failures.keys() == {name}
    assert failures[name][0].startswith(start)


def test_a_record_from_before_streams(record, tmp_path):
    old = {key: v for key, v in record.items() if key not in low_records.sections()}
    path = tmp_path / "old.json"
    records.save(old, path)
    loaded = records.load(path)
    assert not [v for v in floors.check(loaded)[0] if v.count]
    pytest.importorskip("matplotlib")
    assert cli.main(["--load", str(path), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "BENCHMARKS.md").read_text()
    assert "## Streams" not in page and "## Low precision" not in page
    assert not list(tmp_path.glob("*.png"))


def test_the_report(record, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "record.json"
    records.save(record, path)
    assert records.load(path) == json.loads(json.dumps(record))
    assert cli.main(["--load", str(path), "--report", str(tmp_path)]) == 0
    page = (tmp_path / "BENCHMARKS.md").read_text()
    for name in ("bench-latency.png", "bench-precision.png"):
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    step = "| LSTM | 128 → 128 | 5.3 | 5.2 |  | 1.50 | 10.00 | 9.00 | 2.00 | 4.00 | 0.51 | 0.26 |"
    assert step in page
    assert "| LSTM 256 → 256 | int8 | 1,000 | 10 | 12 | 20 | 10 | 11 | 15 | 1.00 |" in page
    assert "| GRU | 512 → 512 | 3.0e-03 | 1.0e-02 |" in page
    assert "| LSTM, 192 | 500 | 2.0000 | 1.9990 | 2.0200 |" in page
    assert "| 1.80 | 3.60 | 1.20 | 1.80 | 0.90 |" in page
