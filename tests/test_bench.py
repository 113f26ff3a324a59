"""The benchmark: its answers, workers, bounds and command line, on tiny shapes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from subprocesses import python

import rnnfast
from rnnfast import _backend

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")

import bench
from bench import cli, machine, peers, records, roofline, runs, tasks, timing
from bench.peers.ours import Ours
from bench.shapes import (
    CELL_LOOPS,
    CELLS,
    FALLBACK,
    FALLBACK_SHAPES,
    GATES,
    MODES,
    NAMED,
    PACKED,
    PRECISION_SHAPES,
    PRESETS,
    SHAPES,
    SHORTEST,
    STREAM_SHAPES,
    WAYS,
    Case,
    Shape,
)

pytestmark = pytest.mark.slow

ROOT = bench.ROOT
TINY = Shape("tiny", "test", T=5, B=3, I=4, H=6)
DEEP = replace(TINY, name="deep", L=2, D=2)
RAGGED = replace(TINY, name="ragged", ragged=True)
INSTALLED = [name for name in peers.PEERS if peers.missing(name, None) is None]
MOMENT = 1e-4


def work(**task):
    return runs.run_worker(task, 1, machine.cores()[:1])


# ---- Measuring ----------------------------------------------------------------------------------


def assert_measured(entry, expected):
    """Every expected contender has a time and a ratio that make sense."""
    assert entry["errors"] == {}
    assert entry["times_us"].keys() == expected
    assert entry["ratios"].keys() == expected - {"ours"}
    for spread in (*entry["times_us"].values(), *entry["ratios"].values()):
        assert 0 < spread["q1"] <= spread["median"] <= spread["q3"] < np.inf


def test_every_installed_peer_is_timed():
    case = Case("lstm", TINY)
    fields = {"case": asdict(case), "contenders": INSTALLED, "seconds": MOMENT, "yardstick": None}
    inference, training = work(kind="time", **fields)
    assert [inference["mode"], training["mode"]] == list(MODES)
    assert_measured(inference, set(INSTALLED))
    trained = {*INSTALLED, peers.NEW_WEIGHTS} - training["skipped"].keys()
    assert trained >= {"ours", peers.NEW_WEIGHTS}
    assert_measured(training, trained)
    if machine.describe()["backend"] == "native":
        # Each at the speed that the machine had in its rounds.
        bounds = [entry["bound_us"] / entry["slowed"] for entry in (inference, training)]
        assert 0 < bounds[0] < bounds[1]


def test_every_cell_layers_directions_and_lengths():
    contenders = [name for name in INSTALLED if not peers.PEERS[name].slow]
    cases = [Case(cell, shape) for cell in CELLS for shape in (TINY, DEEP, RAGGED)]
    cases.append(Case("gru", DEEP, "float64"))
    fields = {"cases": [asdict(case) for case in cases], "contenders": contenders}
    entries = work(kind="sweep", seconds=MOMENT, **fields)
    assert len(entries) == len(cases) * len(MODES)
    for entry in entries:
        assert_measured(entry, set(contenders) - entry["skipped"].keys())
        if entry["case"]["dtype"] == "float32" and entry["mode"] == "inference":
            assert entry["skipped"] == {}


@pytest.mark.skipif(peers.DROPIN not in INSTALLED, reason="torch is not installed")
@pytest.mark.parametrize("way", WAYS)
def test_modules_in_other_ways_beside_the_layer(way):
    shape = replace(TINY, name=way, ragged=way == PACKED)
    fields = {"contenders": [peers.BASELINE, *peers.MODULES], "way": way, "seconds": MOMENT}
    cases = [Case(cell, shape, dtype) for cell in CELLS for dtype in ("float32", "float64")]
    entries = work(kind="sweep", cases=[asdict(case) for case in cases], **fields)
    assert [entry["mode"] for entry in entries] == ["training"] * len(cases)
    for entry in entries:
        assert_measured(entry, {peers.BASELINE, *peers.MODULES})
        theirs, ours = (entry["times_us"][name] for name in peers.MODULES)
        assert theirs["q1"] / ours["q3"] <= entry["dropin_speedup"]["q3"]
        assert entry["dropin_speedup"]["q1"] <= theirs["q3"] / ours["q1"]


@pytest.mark.skipif(peers.DROPIN not in INSTALLED, reason="torch is not installed")
@pytest.mark.parametrize("cell", CELLS)
def test_what_autograd_takes_of_a_step(cell):
    cases = [asdict(Case(cell, SHAPES[SHORTEST])), asdict(Case(cell, DEEP))]
    fields = {"contenders": [peers.BASELINE, *peers.MODULES], "seconds": MOMENT}
    entries = work(kind="sweep", cases=cases, **fields)
    cases = [asdict(Case(cell, WAYS[CELL_LOOPS]["100-1-64-64-cells"]))]
    entries += work(kind="sweep", cases=cases, way=CELL_LOOPS, **fields)
    assert [entry["mode"] for entry in entries] == [*MODES, *MODES, "training"]
    for entry in entries:
        if entry["mode"] == "training":
            # It computes less than the module that has autograd's part in its time.
            assert 0 < entry["function_us"] < entry["times_us"]["torch"]["q3"]
            assert "autograd" not in entry["times_us"]
        else:
            assert "function_us" not in entry
    assert entries[-1]["function_us"] > 10 * entries[1]["function_us"]  # that of 100 steps


@pytest.mark.usefixtures("keep_backend", "keep_threads")
def test_numba_beside_the_compiled_module(native, monkeypatch):
    pytest.importorskip("numba")
    seen, build = [], Ours.build
    case = asdict(Case("gru", TINY))

    def built(self, problem, mode):
        runner = build(self, problem, mode)
        with runner.ready():
            seen.append(_backend.current().name)
        return runner

    monkeypatch.setattr(Ours, "build", built)
    entries = tasks.time_fallback(case, [], MOMENT)
    assert [entry["mode"] for entry in entries] == [*MODES]
    for entry in entries:
        assert_measured(entry, {peers.BASELINE, peers.NUMBA})
    assert seen == ["native", "numba"] * 2 and _backend.current().name == "native"


def test_numba_is_timed_where_it_is_installed(monkeypatch):
    def fallback():
        found = runs.tasks(runs.Options("full"), ["ours"])
        return [task.fields["case"]["cell"] for task in found if task.section == FALLBACK]

    assert fallback() == [*CELLS] if importlib.util.find_spec("numba") else []
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda name: None)
    assert fallback() == []


@pytest.mark.skipif(peers.DROPIN not in INSTALLED, reason="torch is not installed")
def test_the_dropin_is_another_module_than_torchs():
    modules = [peers.load(name).modules for name in peers.MODULES]
    assert [m.__name__ for m in modules] == ["torch.nn", "rnnfast.torch"]


@pytest.mark.skipif(not timing.TASKS.exists(), reason="the system does not say what threads do")
def test_the_next_contender_waits_for_threads_of_the_last():
    until = time.perf_counter() + 0.05

    def spin():
        while time.perf_counter() < until:
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    timing.wait_until_quiet()
    assert until <= time.perf_counter()
    thread.join()
    started = time.perf_counter()
    timing.wait_until_quiet()
    assert time.perf_counter() - started < timing.PATIENCE_SECONDS


class WrongOrder(Ours):
    """A peer that takes the first two gates for each other."""

    def build(self, problem, mode):
        H = problem.case.shape.H
        order = np.r_[H : 2 * H, :H, 2 * H : GATES[problem.case.cell] * H]
        wrong = {name: weight[order] for name, weight in problem.weights.items()}
        return super().build(replace(problem, weights=wrong), mode)


class Broken(Ours):
    def build(self, problem, mode):
        raise RuntimeError("no such thing")


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.usefixtures("keep_threads")
def test_a_wrong_answer_is_an_error_and_no_time(cell, monkeypatch):
    made = {"ours": Ours, "wrong": WrongOrder, "broken": Broken, "same": Ours}
    monkeypatch.setattr(peers, "load", lambda name, yardstick: made[name]())
    names = [*made, "not importable"]
    for entry in tasks.time_case(asdict(Case(cell, TINY)), names, MOMENT, None):
        assert entry["errors"].keys() == {"wrong", "broken", "not importable"}
        assert "output: relative error" in entry["errors"]["wrong"]
        assert "no such thing" in entry["errors"]["broken"]
        assert entry["times_us"].keys() >= {"ours", "same"}
        assert not {"wrong", "broken"} & (entry["times_us"].keys() | entry["ratios"].keys())


@pytest.mark.usefixtures("keep_threads")
def test_two_threads_are_measured_against_one(monkeypatch):
    case = Case("rnn", TINY, threads=2)
    inference, _ = tasks.time_case(asdict(case), ["ours"], MOMENT, None)
    assert inference["ratios"].keys() == {peers.ONE_THREAD}
    assert "bound_us" not in inference
    if roofline.native_module() is not None:
        assert inference["arithmetic_over_one"]["median"] > 0


def test_a_worker_that_fails_or_hangs_is_recorded(monkeypatch, capsys):
    failing = runs.Task("results", "a bad one", 1, {"kind": "nothing"})
    many = runs.Task("results", "too many threads", 10_000, {"kind": "nothing"})
    monkeypatch.setattr(runs, "tasks", lambda options, names: [failing, many])
    record = runs.run(runs.Options())
    assert [error["task"] for error in record["errors"]] == ["a bad one"]
    assert "nothing" in record["errors"][0]["error"] and "a bad one" in capsys.readouterr().err
    assert "10000 threads" in record["missing"]
    assert records.errors(record) == ["a bad one: KeyError: 'nothing'"]
    monkeypatch.setattr(runs, "TASK_LIMIT", 0.001)
    with pytest.raises(runs.WorkerFailed, match=r"no answer in 0\.001 s"):
        work(kind="levels", dtypes=[])


# ---- The command line ---------------------------------------------------------------------------


def test_a_run_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--shapes", "1-1-64-64", "--cells", "rnn", "--threads", "1", "--peers", "ours"]
    assert cli.main([*options, "--out", str(out)]) == 0
    record = records.load(out)
    assert [row.key for row in records.rows(record)] == [
        ("rnn", "1-1-64-64", "float32", mode, 1) for mode in MODES
    ]
    assert record["machine"]["isa"] == rnnfast.active_isa()
    assert record["missing"]["torch"] == "not asked for"
    assert "rnn 1-1-64-64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "huge"], "invalid choice"),
        (["--cells", "lstm,gpu"], "expected some of rnn, gru, lstm, got 'gpu'"),
        (["--threads", "3"], "got '3'"),
        (["--load", "absent.json"], "absent.json"),
        (["--out", "no/such/folder.json"], "no folder"),
        (["--report", "no/such/folder"], "no folder"),
        (["--yardstick", "absent.so"], "no file absent.so"),
    ],
)
def test_a_mistake_in_the_options(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_presets_name_shapes_and_peers():
    for preset in PRESETS.values():
        assert {*preset.shapes, *preset.double, *preset.memory} <= SHAPES.keys()
        assert {*preset.peers} <= peers.PEERS.keys()
        assert {*preset.streams} <= STREAM_SHAPES.keys()
    lists = (SHAPES, *WAYS.values(), STREAM_SHAPES, PRECISION_SHAPES, FALLBACK_SHAPES)
    assert len(NAMED) == sum(map(len, lists))


def test_the_preset_torch_measures_the_dropin_alone():
    options = runs.Options("torch")
    names, absent = runs.contenders_for(options)
    assert {*names} == {peers.BASELINE, *peers.MODULES} & {*INSTALLED}
    assert absent.keys() == peers.PEERS.keys() - {*names}
    wanted = [peers.BASELINE, *peers.MODULES]
    found = list(runs.tasks(options, wanted))
    timed = {section: set() for section in ("results", *WAYS)}
    for task in found[1:]:
        assert task.fields["contenders"] == wanted
        for fields in task.fields["cases"]:
            case = Case.from_dict(fields)
            assert (case.dtype, case.threads) == ("float32", task.threads)
            timed[task.section].add((case.cell, case.shape.name, case.threads))
    for section, shapes in (("results", SHAPES), *WAYS.items()):
        cells = {(cell, s.name) for s in shapes.values() for cell in s.cells}
        assert timed[section] == {(*cell, threads) for cell in cells for threads in (1, 2)}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_by_name_and_only_with_torch(way):
    options = runs.Options(shapes=(next(iter(WAYS[way])),), cells=("gru",), threads=(2,))
    task = list(runs.tasks(options, ["ours", "torch", "onnxruntime"]))[-1]
    assert (task.section, task.threads, len(task.fields["cases"])) == (way, 2, 1)
    assert task.fields["contenders"] == ["ours", "torch"]
    assert [t.section for t in runs.tasks(options, ["ours", "onnxruntime"])] == ["levels"]


def test_the_installed_package_is_the_one_that_runs(tmp_path):
    shutil.copytree(ROOT / "bench", tmp_path / "bench")
    (tmp_path / "rnnfast").mkdir()
    (tmp_path / "rnnfast" / "__init__.py").write_text("raise SystemExit('the source tree')\n")
    installed = Path(rnnfast.__file__).resolve()
    done = python(
        "import bench, rnnfast; print(rnnfast.__file__)",
        cwd=tmp_path,
        PYTHONSAFEPATH=None,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).resolve() == installed
    command = [sys.executable, "-m", "bench", "--list-shapes"]
    listed = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert listed.returncode == 0 and b"1-1-64-64" in listed.stdout


def test_a_source_tree_with_its_own_module_stays_first(tmp_path):
    path = ["", str(tmp_path), "elsewhere"]
    (tmp_path / "rnnfast").mkdir()
    assert bench.path_for_installed(path, tmp_path) == ["", "elsewhere", str(tmp_path)]
    assert bench.path_for_installed(["elsewhere"], tmp_path) == ["elsewhere"]
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    (tmp_path / "rnnfast" / f"_native{suffix}").touch()
    assert bench.path_for_installed(path, tmp_path) == path
