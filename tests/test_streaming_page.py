"""docs/streaming.md: its Python runs, and prints what it says; its links lead somewhere."""

import re
from pathlib import Path

import pytest

from rnnfast._low_precision import FORMATS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "streaming.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""

pytestmark = pytest.mark.skipif(not TEXT, reason="the tests run without docs/streaming.md")


def test_python_runs(native, capsys) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    for block in blocks:
        exec(compile(block, "docs/streaming.md", "exec", dont_inherit=True), {})
    # A comment that begins a line is what the lines above it printed.
    promised = re.findall(r"^# (.+\n)", "".join(blocks), re.M)
    assert len(promised) == len(FORMATS)
    assert capsys.readouterr().out == "".join(promised)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    for target in targets:
        assert "://" in target or (PAGE.parent / target).exists(), target
