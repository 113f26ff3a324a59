"""The benchmark of streams and low precision: what is measured, its floors and its report."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import rnnfast

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

from bench import cli, low_precision, machine, peers, records, roofline, runs, tasks
from bench.peers.streams import Steps
from bench.shapes import (
    CELLS,
    MODES,
    PRECISION,
    PRECISION_SHAPES,
    STEP,
    STREAM_SHAPES,
    STREAMS,
    Case,
    Shape,
)
from rnnfast._low_precision import FORMATS

pytestmark = pytest.mark.slow

MOMENT = 1e-4
TINY = Shape("tiny", "test", T=8, B=1, I=3, H=5)
INSTALLED = [name for name in peers.PEERS if peers.missing(name, None) is None]
HAS_PRECISION = "precision" in inspect.signature(rnnfast.LSTM).parameters


def work(**task):
    return runs.run_worker(task, 1, machine.cores()[:1])


# ---- Measuring ----------------------------------------------------------------------------------


def test_steps_of_every_cell():
    cases = [asdict(Case(cell, TINY)) for cell in CELLS]
    entries = work(kind="steps", cases=cases, contenders=INSTALLED, seconds=MOMENT)
    wanted = {"ours", *FORMATS}
    if "onnxruntime" in INSTALLED:
        wanted |= {peers.RUN, peers.BOUND_RUN}
    for cell, entry in zip(CELLS, entries, strict=True):
        assert (entry["case"]["cell"], entry["mode"], entry["errors"]) == (cell, STEP, {})
        assert entry["times_us"].keys() == wanted | ({peers.IN_C} - entry["skipped"].keys())
        assert entry["bytes"].keys() == {"float32", *FORMATS}
        if machine.describe()["backend"] == "native":
            assert 0 < entry["bound_us"] < entry["times_us"]["ours"]["median"]
        for name in FORMATS:
            assert 0 < entry["relative_error"][name] < 5e-2


def test_times_are_of_one_step():
    (entry,) = tasks.time_steps([asdict(Case("gru", TINY))], [], MOMENT)
    (longer,) = tasks.time_steps([asdict(Case("gru", replace(TINY, T=800)))], [], MOMENT)
    # A hundred times the steps: a time of all of them would be about as many times as long.
    assert longer["times_us"]["ours"]["median"] < 20 * entry["times_us"]["ours"]["median"]


class Forgetful(Steps):
    """A peer whose state is zero at each step."""

    def __init__(self, *_):
        super().__init__("int8")

    def build(self, problem, mode):
        runner = super().build(problem, mode)
        stream, out = runner._stream, runner._out

        def answer(result):
            rows = []
            for x in runner._inputs[0]:
                stream.reset()
                rows.append(stream.step(x, out).copy())
            return {"output": np.stack(rows)[:, None]}

        runner.answer = answer
        return runner


@pytest.mark.parametrize("cell", CELLS)
def test_a_step_that_forgets_its_state_is_an_error_even_in_low_precision(cell, monkeypatch):
    monkeypatch.setattr(peers, "load", lambda name: Forgetful())
    (entry,) = tasks.time_steps([asdict(Case(cell, TINY))], ["onnxruntime"], MOMENT)
    assert entry["errors"].keys() == {peers.RUN, peers.BOUND_RUN}
    assert "output: relative error" in entry["errors"][peers.RUN]
    assert not {peers.RUN, peers.BOUND_RUN} & entry["times_us"].keys()


@pytest.mark.skipif("torch" not in INSTALLED, reason="torch is not installed")
def test_sequences_in_low_precision():
    shape = Shape("tiny", "test", T=6, B=4, I=8, H=16)
    for cell in ("gru", "lstm"):
        case = asdict(Case(cell, shape))
        entries = work(kind="precision", case=case, contenders=["ours", "torch"], seconds=MOMENT)
        assert [entry["mode"] for entry in entries] == list(MODES)
        for entry in entries:
            quantised = {"ours, int8", "torch, int8"} if entry["mode"] == "inference" else set()
            wanted = {"ours", "ours, bfloat16", "torch, bfloat16"} | quantised
            if not HAS_PRECISION:
                wanted -= {"ours, bfloat16", "ours, int8"}
            assert entry["times_us"].keys() == wanted
            assert not HAS_PRECISION or entry["errors"] == {}
            if machine.describe()["backend"] == "native":
                assert entry["peak_gflops"] > 0
                low = entry["times_us"].get("ours, bfloat16", {"median": math.inf})
                assert 0 < entry["low_bound_us"] < low["median"]


def test_the_bound_in_low_precision():
    case = Case("gru", replace(TINY, B=2))
    roof = roofline.Roof(None, "float32", peak=1.0, sigmoid=3.0, tanh=5.0)
    limit = low_precision.bound(case, roof, peak=10.0)
    activations = case.shape.T * 2 * case.shape.H * (2 * 3.0 + 5.0)
    products = low_precision.flops(case) / 10
    assert limit["inference"] == pytest.approx(products + activations)
    assert limit["training"] == pytest.approx(3 * products + activations)


@pytest.mark.parametrize("weights", low_precision.WEIGHTS)
def test_every_step_is_in_the_histogram(weights):
    case = asdict(Case("lstm", TINY))
    (entry,) = low_precision.latency(case, weights, steps=2000)
    numbers, counts = np.transpose(entry["bins"])
    assert counts.sum() == entry["steps"] == 2000 and (np.diff(numbers) > 0).all()
    low, middle, high = entry["percentiles_us"].values()
    assert 0 < low <= middle <= high
    if machine.describe()["backend"] == "native":
        low_other, middle_other, high_other = entry["arithmetic_us"].values()
        assert 0 < low_other <= middle_other <= high_other
    # Half of the steps lie in the bins up to the median's.
    of_median = np.floor(low_precision.BINS_PER_DECADE * np.log10(low))
    assert counts[numbers <= of_median + 1].sum() >= 1000
    assert counts[numbers < of_median - 1].sum() <= 1000


def test_the_demos_bits_by_format():
    (entry,) = low_precision.characters("gru", hidden=16, updates=20)
    bits = entry["bits"]
    assert bits.keys() == {"float32", *FORMATS}
    assert all(3 < value < 8 for value in bits.values())
    assert bits["int8"] != bits["float32"]
    trained = entry["trained_in"]["bfloat16"]
    assert 0 < abs(trained - bits["bfloat16"]) < 0.1


def test_the_probe_counts_its_products():
    native = pytest.importorskip("rnnfast._native")
    # Products of words: in four tiles of 16 rows, columns and words, or in chains of vectors.
    words = 4 * 16**3 if native.active_amx() else 12 * native.vector_bytes() // 4
    assert native.probe_dot("bfloat16", 7) == 7 * words * 2 * 2
    assert native.probe_dot("int8", 7) == 7 * words * 4 * 2
    with pytest.raises(ValueError, match="format: expected a name in formats"):
        native.probe_dot("float16", 7)


# ---- The command line ---------------------------------------------------------------------------


def test_the_preset_streams_measures_each_once():
    found = list(runs.tasks(runs.Options("streams"), ["ours", "torch"]))
    steps = [task for task in found if task.section == STREAMS]
    assert [len(task.fields["cases"]) for task in steps] == [len(CELLS)] * len(STREAM_SHAPES)
    sequences = {task.label for task in found if task.section == PRECISION}
    assert len(sequences) == sum(len(shape.cells) for shape in PRECISION_SHAPES.values())
    assert [t.fields["weights"] for t in found if t.section == "latency"] == [
        *low_precision.WEIGHTS
    ]
    assert sum(task.section == "characters" for task in found) == 1
    assert {task.threads for task in found} == {1}


def test_a_stream_by_its_name(tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--shapes", "1-1-1-16-stream", "--cells", "gru", "--peers", "ours"]
    assert cli.main([*options, "--out", str(out)]) == 0
    record = records.load(out)
    (row,) = records.rows(record, STREAMS)
    assert (row.case.cell, row.mode) == ("gru", STEP)
    assert record["results"] == record["latency"] == record["characters"] == []
    assert "gru 1-1-1-16-stream" in capsys.readouterr().out
