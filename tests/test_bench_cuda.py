"""`python -m bench --device cuda`: all of it but the device, which is emulated or left out."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from c_programs import find_source, find_tool, run

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")
torch = pytest.importorskip("torch")

from bench import cli, records  # noqa: E402
from bench.cuda import cases, contenders, device, floors, latencies, report, runs  # noqa: E402
from bench.cuda.cases import CUDNN, FLASHRNN, GOAL, OURS, TF32, Case  # noqa: E402
from bench.shapes import CELLS, MODES  # noqa: E402
from rnnfast import _cuda  # noqa: E402
from rnnfast.torch import cuda, eager  # noqa: E402

pytestmark = pytest.mark.slow

LATENCIES = {
    "processors": 132,
    "grid_sync": 1100.4,
    "l2_exchange": 900.0,
    "cluster": 16,
    "cluster_sync": 480.0,
    "ring": 190.0,
}


class Emulated(device.Device):
    """The host, in whose memory the emulated device's lies."""

    where = "cpu"

    def time_block(self, run, calls):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def describe(self):
        return {
            "kind": "cuda",
            "name": "Emulated",
            "capability": "9.0",
            "processors": 4,
            "memory_gib": 1,
            "driver": None,
        }

    def versions(self):
        return {"cuda": "none"}


@pytest.fixture
def emulated(emulated_library, monkeypatch):
    """One shape of each, by the kernels."""
    monkeypatch.setattr(cuda, "library", lambda: emulated_library)
    monkeypatch.setattr(cuda, "_is_on_device", lambda x: True)
    monkeypatch.setattr(cuda, "_on_stream", lambda x: (contextlib.nullcontext(), 0))
    monkeypatch.setattr(eager, "layer", lambda *args: None)  # which runs tensors of the host
    monkeypatch.setattr(device, "find", Emulated)
    monkeypatch.setattr(latencies, "measure", lambda capability: LATENCIES)
    for name, value in {"STEPS": (3,), "BATCHES": (2,), "HIDDEN": (5,)}.items():
        monkeypatch.setattr(cases, name, value)
    monkeypatch.setattr(runs, "BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(runs, "MIN_ROUNDS", 3)


def entry(case, mode, ratio, ours=1000.0, absent=None):
    """As a run writes it."""
    spread = {"median": 1.0, "q1": 1.0, "q3": 1.0}
    return {
        "case": vars(case),
        "mode": mode,
        "times_us": {OURS: {**spread, "median": ours}, CUDNN: spread},
        "ratios": {CUDNN: {**spread, "median": ratio}},
        "errors": {},
        "absent": absent or {},
    }


def record_of(results, name="NVIDIA H200", shapes=("64-1-64",), **changed):
    return {
        "format": records.FORMAT,
        "device": {**Emulated().describe(), "name": name},
        "date": "2026-01-02T03:04:05",
        "commit": "abc",
        "versions": {"torch": "2.13.0"},
        "options": {"cells": CELLS, "shapes": shapes},
        "latencies_ns": LATENCIES,
        "results": results,
        "errors": [],
        "absent": {FLASHRNN: "not installed"},
        **changed,
    }


def test_what_is_measured():
    assert len(cases.cases()) == 3 * 2 * 2 * 3 * 5 == len(set(cases.cases()))
    assert Case(*GOAL) in cases.cases()
    assert {case.cell for case in cases.cases(("gru",))} == {"gru"}
    assert {case.shape for case in cases.cases(shapes=("64-1-64",))} == {"64-1-64"}
    assert Case.from_dict(vars(Case(*GOAL))) == Case(*GOAL)


def test_a_run_from_the_command_line(emulated, tmp_path, capsys, monkeypatch):
    ran = []
    forward = cuda._forward
    monkeypatch.setattr(cuda, "_forward", lambda *a, **k: [ran.append(a[0]), forward(*a, **k)][1])
    out = tmp_path / "gpu.json"
    status = cli.main(["--device", "cuda", "--out", str(out), "--report", str(tmp_path)])
    record = records.load(out, "cuda")
    assert floors.errors(record) == [] and status == 0
    assert record["device"]["name"] == "Emulated" and record["latencies_ns"] == LATENCIES
    assert record["versions"].keys() >= {"python", "rnnfast", "torch", "cuda"}
    found = {(e["case"]["cell"], e["case"]["dtype"], e["mode"]) for e in record["results"]}
    assert found == {(c, d, m) for c in CELLS for d in cases.DTYPES for m in MODES}
    for one in record["results"]:
        others = {CUDNN, TF32} if one["case"]["dtype"] == "float32" else {CUDNN}
        assert one["times_us"].keys() == others | {OURS} and one["ratios"].keys() == others
        for name in others:
            times = [one["times_us"][n] for n in (name, OURS)]
            low, high = times[0]["q1"] / times[1]["q3"], times[0]["q3"] / times[1]["q1"]
            assert low / 2 < one["ratios"][name]["median"] < high * 2
    assert {form.cell for form in ran} == {"rnn_tanh", "gru", "lstm"}
    page = (tmp_path / report.PAGE).read_text()
    assert "| 3-2-5 |" in page and "Emulated" in page and "| 190 |" in page
    text = capsys.readouterr().out
    assert "lstm bfloat16 3-2-5" in text and f"× {CUDNN}" in text
    # And again from the record.
    assert cli.main(["--device", "cuda", "--load", str(out), "--report", str(tmp_path)]) == 0
    assert (tmp_path / report.PAGE).read_text() == page


def test_a_wrong_answer_is_an_error_and_no_time(emulated, monkeypatch):
    forward = cuda._forward

    def wrong(*args, **kwargs):
        results, saved = forward(*args, **kwargs)
        return (results[0] * 1.01, *results[1:]), saved

    monkeypatch.setattr(cuda, "_forward", wrong)
    found = runs.measure(Case("gru", "float32", 3, 2, 5), Emulated(), 0.01)
    for one in found:
        assert OURS not in one["times_us"] and CUDNN in one["times_us"] and not one["ratios"]
        assert one["errors"][OURS].startswith("Mismatch: output: relative error")
    assert [text.split(": ")[1] for text in floors.errors(record_of(found))] == [OURS, OURS]


def test_a_wrong_gradient_is_an_error_in_training_alone(emulated, monkeypatch, emulated_library):
    before = cuda._before
    monkeypatch.setattr(cuda, "_before", lambda *args: before(*args) * 1.001)
    inference, training = runs.measure(Case("lstm", "float32", 3, 2, 5), Emulated(), 0.01)
    assert OURS in inference["times_us"] and OURS not in training["times_us"]
    assert training["errors"][OURS].startswith("Mismatch: 1: relative error")


def test_what_torch_runs_is_not_ours(emulated, monkeypatch):
    monkeypatch.setattr(cuda, "library", lambda: None)
    for one in runs.measure(Case("gru", "float32", 3, 2, 5), Emulated(), 0.01):
        assert one["errors"] == {OURS: "runs by torch, and not by the kernels"}


def test_a_case_that_fails_is_recorded_and_the_rest_measured(emulated, monkeypatch):
    reference = contenders.Problem.reference

    def fails(problem, mode):
        if problem.case.cell == "gru":
            raise RuntimeError("CUDA out of memory\nand more")
        return reference(problem, mode)

    monkeypatch.setattr(contenders.Problem, "reference", fails)
    record = runs.run(runs.Options(seconds=0.01), Emulated())
    assert {e["case"]["cell"] for e in record["results"]} == {"rnn", "lstm"}
    text = "gru bfloat16 3-2-5: RuntimeError: CUDA out of memory"
    assert text in floors.errors(record)


def test_float32_of_torch_is_exact_but_where_it_is_said(emulated):
    problem = contenders.Problem(Case("gru", "float32", 3, 2, 5), "cpu")
    before = torch.backends.cudnn.allow_tf32
    for name, allowed in ((OURS, False), (CUDNN, False), (TF32, True)):
        with contenders.make(name, problem).context():
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is before


def test_cudnn_keeps_nothing_for_backward_in_inference(emulated, monkeypatch):
    seen = []
    forward = torch.nn.GRU.forward
    monkeypatch.setattr(
        torch.nn.GRU, "forward", lambda m, *given: [seen.append(m.training), forward(m, *given)][1]
    )
    problem = contenders.Problem(Case("gru", "float32", 3, 2, 5), "cpu")
    contender = contenders.make(CUDNN, problem)
    for mode in MODES:
        wanted = problem.reference(mode)
        assert runs.disagreement(CUDNN, contender, problem, mode, wanted) is None
    assert seen == [False, False, True, True]


def test_contenders_take_turns():
    order = []

    def time_block(run, calls):
        order.append((run(), calls))
        return {"a": 1e-3, "b": 4e-3}[run()]

    found = runs.interleave({"a": lambda: "a", "b": lambda: "b"}, time_block, 0.05)
    rounds = order[4:]  # after two warm-ups of each
    assert order[:4] == [("a", 2), ("a", 1), ("b", 2), ("b", 1)]
    assert {name: calls for name, calls in rounds} == {"a": 5, "b": 1}  # blocks of 5 ms
    assert [name for name, _ in rounds[:4]] == ["a", "b", "b", "a"]
    assert len(rounds) == 2 * 11  # 0.05 s for each of two, blocks of 5 and 4 ms
    np.testing.assert_array_equal(found["b"], np.full(11, 4e-3))
    few = runs.interleave({"a": lambda: "a"}, lambda run, calls: 1.0, 0.05)
    assert len(few["a"]) == runs.MIN_ROUNDS


def test_floors_hold_and_fail():
    goal, other = Case(*GOAL), Case("gru", "float32", 64, 1, 64)
    good = [entry(goal, "inference", 1.6, 1199.0), entry(goal, "training", 1.6, 3399.0)]
    verdicts, problems = floors.check(record_of(good))
    assert not problems and not any(v.failures for v in verdicts)
    assert all(v.count for v in verdicts)
    bad = [
        entry(goal, "inference", 1.6, 1201.0),
        entry(goal, "training", 1.6, 3401.0),
        entry(other, "inference", 0.99),
        entry(other, "training", 1.3),
    ]
    verdicts, _ = floors.check(record_of(bad))
    texts = [failure for verdict in verdicts for failure in verdict.failures]
    assert texts == [
        "gru float32 64-1-64 inference: 0.990, expected at least 1",
        "geometric mean: 1.259, expected at least 1.5",
        "geometric mean: 1.442, expected at least 1.5",
        f"{goal} inference: 1.201, expected at most 1.2",
        f"{goal} training: 3.401, expected at most 3.4",
    ]
    elsewhere, _ = floors.check(record_of(bad, name="NVIDIA A100"))
    assert [v.count for v in elsewhere] == [4, 2, 2, 0, 0]


def test_a_check_wants_all_cases_measured():
    _, problems = floors.check(record_of([], shapes=()))
    assert "no floor was measured" in problems and f"not measured: {Case(*GOAL)}" in problems
    assert len(problems) == 1 + len(cases.cases())
    failed = {"task": "x", "error": "y"}
    _, problems = floors.check(record_of([], errors=[failed]))
    assert problems == ["x: y", "no floor was measured"]


def test_the_page():
    goal = Case(*GOAL)
    absent = {FLASHRNN: "ImportError: nothing compiles"}
    results = [entry(goal, "inference", 1.63, 2048.0), entry(goal, "training", 1.2, absent=absent)]
    text = "\n".join(report.lines(record_of(results)))
    assert "## LSTM, bfloat16, inference" in text and "GRU" not in text
    assert "| 1024-16-768 |  | 2048 | 2 | 1.63 |" in text
    assert "no FlashRNN: not installed" in text and "driver unknown" in text
    assert "132 processors, 16 blocks to a cluster." in text
    assert f"* {goal} training: FlashRNN: ImportError: nothing compiles" in text
    assert "**fails**" in text and "## Errors" not in text
    without = record_of(results, latencies_ns={"error": "not measured: there is no nvcc"})
    assert "not measured: there is no nvcc" in "\n".join(report.lines(without))


def test_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usage_error(["--device", "cuda"], capsys).startswith("there is no CUDA device (torch ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_cuda, "library", lambda version: None)
    monkeypatch.setattr(_cuda, "describe", lambda version: "not built: as it happens")
    text = usage_error(["--device", "cuda"], capsys)
    assert text == "the CUDA kernels: not built: as it happens"


def usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.rpartition("error: ")[2].strip()


def test_records_of_devices_and_of_the_cpu_are_apart(tmp_path, capsys):
    path = tmp_path / "record.json"
    records.save(record_of([]), path)
    assert usage_error(["--load", str(path)], capsys) == f"{path}: is a record of --device cuda"
    path.write_text(json.dumps({"format": records.FORMAT}))
    text = usage_error(["--device", "cuda", "--load", str(path)], capsys)
    assert text == f"{path}: is a record of --device cpu"
    text = usage_error(["--device", "cuda", "--shapes", "1-2-3"], capsys)
    assert text.startswith("argument --shapes: expected some of 64-1-64, ")


def test_the_program_of_latencies_compiles(tmp_path, monkeypatch):
    find_source("bench/cuda_latencies.cu")
    find_tool("nvcc")
    assert latencies.architecture("9.0") == "sm_90a" and latencies.architecture("8.0") == "sm_80"
    for capability in ("9.0", "8.0"):
        assert latencies.build(tmp_path / "program", capability) is None
    done = run(tmp_path / "program", status=None)
    if done.returncode:  # without a device, or without a driver
        assert done.returncode == 1 and done.stderr.startswith("cudaGetDevice(&device): ")
    else:
        assert json.loads(done.stdout).keys() <= LATENCIES.keys()


def test_latencies_that_cannot_be_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert latencies.measure("9.0") == {"error": "not measured: there is no nvcc"}
    compiler = tmp_path / "nvcc"
    monkeypatch.setattr(shutil, "which", lambda name: str(compiler))
    for program, error in {
        "#!/bin/sh\necho first >&2; echo no such architecture >&2; exit 1\n": (
            "not measured: nvcc: no such architecture"
        ),
        "#!/bin/sh\nprintf '#!/bin/sh\\necho no device >&2; exit 1\\n' > $6; chmod +x $6\n": (
            "not measured: no device"
        ),
    }.items():
        compiler.write_text(program)
        compiler.chmod(0o755)
        assert latencies.measure("9.0") == {"error": error}
    compiler.write_text(
        "#!/bin/sh\nprintf '#!/bin/sh\\necho {\\\\\"ring\\\\\": 190.5}\\n' > $6; chmod +x $6\n"
    )
    assert latencies.measure("9.0") == {"ring": 190.5}


def test_flashrnn_is_timed_at_the_goal_alone(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert contenders.missing(FLASHRNN, Case(*GOAL)).startswith("not installed")
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: object())
    assert contenders.missing(FLASHRNN, Case(*GOAL)) is None
    assert contenders.missing(FLASHRNN, Case("gru", "bfloat16", 64, 16, 768)) is not None
    assert contenders.missing(TF32, Case(*GOAL)) is not None


def test_flashrnn_that_fails_is_left_out_and_a_wrong_one_an_error(emulated, monkeypatch):
    goal = Case("lstm", "bfloat16", 3, 2, 5)
    monkeypatch.setattr(contenders, "FLASHRNN_SHAPE", (3, 2, 5))
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    for one in runs.measure(goal, Emulated(), 0.01):
        assert not one["errors"] and one["absent"][FLASHRNN].startswith("ModuleNotFoundError: ")

    def zeros(wx, *weights, **options):
        return 0 * (wx[None, :, :, 0] + sum(w.sum() for w in weights)), None

    monkeypatch.setitem(sys.modules, "flashrnn", SimpleNamespace(flashrnn=zeros))
    for one in runs.measure(goal, Emulated(), 0.01):
        assert not one["absent"] and one["errors"][FLASHRNN].startswith("Mismatch: ")


@pytest.mark.parametrize("cell", CELLS)
def test_flashrnn_computes_the_same(cell):
    pytest.importorskip("flashrnn")
    problem = contenders.Problem(Case(cell, "float32", 5, 3, 8), "cpu")
    found = contenders._flashrnn(problem, "vanilla").answer(problem.x, problem.dy, "training")
    for name, right in problem.reference("training").items():
        torch.testing.assert_close(found[name].double(), right, rtol=1e-4, atol=1e-5)
