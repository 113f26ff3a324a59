"""docs/GPU.md: what it names is there, and what show_config says is in its table."""

import ast
import re
from pathlib import Path

import pytest

from rnnfast import _cuda

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "GPU.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""

pytestmark = pytest.mark.skipif(not TEXT, reason="the tests run without docs/GPU.md")


def test_links_and_files_are_there() -> None:
    targets = [PAGE.parent / target for target in re.findall(r"\]\(([^)#]+)", TEXT)]
    named = [ROOT / name for name in re.findall(r"\btests/\w+\.py|\.ci/\w+|\bcsrc/cuda\b", TEXT)]
    assert targets and len(named) >= 8
    assert [str(path) for path in targets + named if not path.exists()] == []


def test_python_is_python() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    assert len(blocks) == 2
    for block in blocks:  # which only a device runs
        ast.parse(block)


def test_the_lines_of_show_config(monkeypatch, tmp_path) -> None:
    lines = re.findall(r"^\| `(.*?)` \|", TEXT, re.M)
    prefixes = {line.partition(":")[0] for line in lines if ": " in line}
    source = Path(_cuda.__file__).read_text()
    said = set(re.findall(r"f\"([a-z ]+): ", source))
    assert prefixes == said == {"found", "no device", "not built", "not used", "cannot be opened"}


def test_no_figure_is_claimed_without_a_record() -> None:
    measured = (PAGE.parent / "GPU-BENCHMARKS.md").exists()
    assert measured or ("None yet" in TEXT and TEXT.count("not measured") == 6)
