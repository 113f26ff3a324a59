"""The benchmark's records: floors, comparisons, the report, and the exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

import full_record
import low_records
from full_record import find
from low_records import spread

from bench import cli, floors, machine, peers, records
from bench.compare import compare
from bench.shapes import CELLS, FALLBACK, MODES, PRECISION, STREAMS, WAYS


@pytest.fixture
def record():
    return full_record.make()


def saved(record, path):
    records.save(record, path)
    return str(path)


def test_a_record_survives_its_file(record, tmp_path):
    path = tmp_path / "record.json"
    records.save(record, path)
    assert records.load(path) == json.loads(json.dumps(record))


def test_a_good_record_passes(record, tmp_path, capsys):
    verdicts, problems = floors.check(record)
    assert problems == []
    assert [v.floor.name for v in verdicts if v.failures or not v.count] == []
    assert cli.main(["--load", saved(record, tmp_path / "good.json"), "--check"]) == 0
    assert "FAILS" not in capsys.readouterr().out


DOCTORED = {
    "inference": ("lstm", "100-1-128-128", "inference", 1, "torch", 0.9),
    "gru training": ("gru", "100-1-128-128", "training", 1, "torch", 1.25),
    "yardstick": ("lstm", "100-1-128-128", "training", 1, peers.YARDSTICK, 0.96),
    "two threads": ("rnn", "25-64-1024-1024", "training", 2, "torch", 0.99),
    "two over one": ("rnn", "25-64-1024-1024", "training", 2, peers.ONE_THREAD, 1.69),
    "small two over one": ("rnn", "1-1-64-64", "inference", 2, peers.ONE_THREAD, 0.96),
    "ragged": ("rnn", "200-32-256-256-ragged", "training", 1, "torch", 3.9),
}


@pytest.mark.parametrize("what", DOCTORED)
def test_a_floor_that_fails_names_its_shape(what, record, tmp_path, capsys):
    cell, shape, mode, threads, peer, ratio = DOCTORED[what]
    find(record, cell, shape, mode, threads)["ratios"][peer] = spread(ratio)
    assert cli.main(["--load", saved(record, tmp_path / "bad.json"), "--check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("FAILS") for line in lines) == 1
    (failure,) = (line for line in lines if "expected" in line)
    assert f"{cell} {shape} {mode}: {ratio:.3f}, expected at least" in failure
    at_best = f"; {ratio / 0.95:.2f} at the bound"  # which is known of one thread
    assert failure.endswith(at_best) == (threads == 1)


def test_the_dropin_is_no_peer_to_beat(record):
    row = find(record, "lstm", "100-1-128-128", "inference")
    assert row["ratios"][peers.DROPIN]["median"] < 1
    assert peers.DROPIN not in peers.FLOOR_PEERS
    assert not [v for v in floors.check(record)[0] if v.failures]


def test_a_record_from_before_the_dropin(record, tmp_path):
    old = {name: value for name, value in record.items() if name not in WAYS}
    for row in old["results"]:
        del row["dropin_speedup"], row["times_us"][peers.DROPIN], row["ratios"][peers.DROPIN]
    path = tmp_path / "old.json"
    records.save(old, path)
    verdicts, problems = floors.check(records.load(path))
    assert problems == []
    unmeasured = [v.floor.name for v in verdicts if not v.count]
    assert unmeasured == [f.name for f in floors.FLOORS if f.name.startswith(peers.DROPIN)]
    pytest.importorskip("matplotlib")
    assert cli.main(["--load", str(path), "--report", str(tmp_path)]) == 0
    assert "## rnnfast.torch" not in (tmp_path / "BENCHMARKS.md").read_text()
    assert not (tmp_path / "bench-torch.png").exists()


def test_means_bounds_memory_and_errors_fail_too(record):
    for row in record["results"]:
        if row["mode"] == "inference" and row["case"]["cell"] == "rnn":
            row["ratios"]["torch"] = spread(1.1)
    find(record, "gru", "100-1-128-128", "training")["bound_us"] = 79.0
    record["memory"][0]["mib"], record["memory"][1]["mib"] = 61.0, 25.0
    find(record, "gru", "100-1-64-64", "training")["errors"]["torch"] = "Mismatch: output"
    numba = "100-8-128-128-fallback"
    slow = find(record, "rnn", numba, "inference", section=FALLBACK)
    slow["ratios"][peers.NUMBA] = spread(4.1)
    slow = find(record, "gru", numba, "training", section=FALLBACK)
    slow["times_us"] |= {peers.NUMBA: spread(3.0), "torch": spread(2.97)}
    verdicts, problems = floors.check(record)
    failing = {v.floor.name: v.failures for v in verdicts if v.failures}
    assert failing == {
        "RNN inference, against the fastest peer": [
            "geometric mean: 1.100, expected at least 1.3; 1.16 at the bound"
        ],
        "fraction of the bound, training, H ≥ 128": [
            "gru 100-1-128-128 training: 0.790, expected at least 0.8"
        ],
        "Numba, its time over the compiled module's": [
            "rnn 100-8-128-128-fallback inference: 4.100, expected at most 4"
        ],
        "Numba, GRU, against torch": [
            "gru 100-8-128-128-fallback training: 0.990, expected at least 1"
        ],
        "peak memory of a training step, over torch's": [
            "gru 100-32-256-256: 1.017, expected at most 1; 0.13 at the bound"
        ],
        "peak memory with recompute, over torch's": [
            "gru 100-32-256-256: 0.417, expected at most 0.4; 0.13 at the bound"
        ],
    }
    assert problems == ["gru 100-1-64-64 float32 threads=1 training: torch: Mismatch: output"]


def test_a_record_of_nothing_fails(record):
    parts = ("results", "memory", FALLBACK, *WAYS, *low_records.sections())
    empty = {**record, **{part: [] for part in parts}}
    assert floors.check(empty)[1] == ["no floor was measured"]


def test_compare(record, tmp_path, capsys):
    after = json.loads(json.dumps(record))
    slower = find(after, "lstm", "100-1-128-128", "inference")
    slower["times_us"]["ours"] = spread(125.0)
    slower["ratios"]["torch"] = spread(4.0)
    paths = [saved(r, tmp_path / f"{k}.json") for k, r in enumerate((record, after))]
    assert cli.main(["--compare", *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["lstm", "100-1-128-128"]
    assert lines[1].split()[-3:] == ["0.800", "*", "0.800"]
    assert [line for line in lines[2:-1] if "*" in line] == []
    nothing = {**record, "results": [], STREAMS: [], PRECISION: []}
    assert list(compare(nothing, after)) == ["nothing was measured in both"]
    assert any("1-1-512-512-stream" in line for line in compare(record, after))


def test_the_report(record, tmp_path):
    pytest.importorskip("matplotlib")
    from bench import report

    spoilt = find(record, "rnn", "25-64-1024-1024", "training")
    spoilt.update(errors={"torch": "Mismatch: output"}, disturbed=0.6)
    find(record, "rnn", "1-1-64-64", "training")["function_us"] = 4.5
    source = saved(record, tmp_path / "record.json")
    assert cli.main(["--load", source, "--report", str(tmp_path)]) == 1
    page = (tmp_path / "BENCHMARKS.md").read_text()
    for name in report.PICTURES:
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert machine.describe()["cpu"] in page
    for floor in floors.FLOORS:
        assert page.count(f"| {floor.name} |") == 1
    assert "| 100-1-128-128 | one sequence | 100 | 5.00 | 5.00 | 5.00 | 0.95 |" in page
    assert "| GRU | 100-32-256-256 | 30.0 | 15.0 | 60.0 |" in page
    assert page.count("| GRU | 100-8-128-128-fallback | 1 | 3.00 | 1.33 |") == len(MODES)
    step = "| 1-1-1024-1024 | streaming audio |"
    assert f"{step}{' 12.00 |' * len(MODES) * len(CELLS)}" in page
    assert "| LSTM | 100-16-64-64-cells | 2 | 500 | 105 | 12.00 | 100 |" in page
    assert "| RNN | 200-32-256-256-packed | 1 | 500 | 105 | 12.00 | 100 |" in page
    assert "| RNN | training | 1 | 100 | 105 | 5 | 4.5 |" in page
    assert "5.00 (rnn 1-1-64-64 training; 4.50 at the bound)" in page
    assert "Mismatch: output" in page
    measured = sum(len(record[section]) for section in records.SECTIONS)
    assert f"1 of {measured} measurements shared their core" in page


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}'])
def test_a_file_that_is_no_record(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        records.load(path)
