"""examples/torch_forecast.py: it runs, its curves are one, and it fails where they are not."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "torch_forecast.py"
NAMES = (r"torch\.nn", r"rnnfast\.torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EXAMPLE.is_file(), reason="the tests run without the examples"),
    pytest.mark.skipif(
        importlib.util.find_spec("statsmodels") is None,
        reason="statsmodels, which has the example's series, is not installed",
    ),
]


@pytest.mark.parametrize(("allowed", "status"), [("1e-4", 0), ("-1.0", 1)])
def test_it_compares_and_draws(tmp_path, allowed: str, status: int) -> None:
    example, plot = tmp_path / "torch_forecast.py", tmp_path / "plot.png"
    text = EXAMPLE.read_text(encoding="utf-8")
    changed = re.sub(r"^TOLERANCE = .*$", f"TOLERANCE = {allowed}", text, flags=re.M)
    assert f"\nTOLERANCE = {allowed}\n" in changed
    example.write_text(changed, encoding="utf-8")
    options = ["--epochs", "2", "--hidden", "8", "--threads", "1", "--plot", str(plot)]
    done = subprocess.run(
        [sys.executable, str(example), *options], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    losses = [re.search(rf"^{name} +(\d\.\d+)", done.stdout, re.M) for name in NAMES]
    assert losses[0] and losses[1] and losses[0][1] == losses[1][1]
    difference = re.search(r"relative difference of the losses: (\S+),", done.stdout)
    assert difference and float(difference[1]) < 1e-5
    baselines = re.findall(r"^(?:the year|11 years) before +(\d+\.\d)$", done.stdout, re.M)
    assert baselines == ["32.9", "37.2"]
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
