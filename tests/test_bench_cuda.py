"""`python -m bench --device cuda` measures: all of it but the device, which is emulated."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")
torch = pytest.importorskip("torch")

from cuda_records import LATENCIES, Emulated, record_of  # noqa: E402

from bench import cli, records  # noqa: E402
from bench.cuda import cases, contenders, device, floors, latencies, report, runs  # noqa: E402
from bench.cuda.cases import CUDNN, FLASHRNN, GOAL, OURS, TF32, Case  # noqa: E402
from bench.shapes import CELLS, MODES  # noqa: E402
from rnnfast.torch import cuda, eager  # noqa: E402

pytestmark = pytest.mark.slow


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
