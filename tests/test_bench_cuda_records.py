"""What `python -m bench --device cuda` makes of its records, and what it says without a device."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from c_programs import find_source, find_tool, run

# At the end of the path: the package that is tested stays the installed one.
sys.path.append(str(Path(__file__).resolve().parent.parent))
pytest.importorskip("bench", reason="the tests run without bench")
torch = pytest.importorskip("torch")

from cuda_records import LATENCIES, entry, record_of  # noqa: E402

from bench import cli, records  # noqa: E402
from bench.cuda import cases, floors, latencies, report  # noqa: E402
from bench.cuda.cases import FLASHRNN, GOAL, Case  # noqa: E402
from rnnfast import _cuda  # noqa: E402

pytestmark = pytest.mark.slow


def test_what_is_measured():
    assert len(cases.cases()) == 3 * 2 * 2 * 3 * 5 == len(set(cases.cases()))
    assert Case(*GOAL) in cases.cases()
    assert {case.cell for case in cases.cases(("gru",))} == {"gru"}
    assert {case.shape for case in cases.cases(shapes=("64-1-64",))} == {"64-1-64"}
    assert Case.from_dict(vars(Case(*GOAL))) == Case(*GOAL)


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
