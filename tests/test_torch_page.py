"""docs/torch.md: its Python runs, and prints what it says; its links lead somewhere."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

PAGE = Path(__file__).resolve().parent.parent / "docs" / "torch.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)

pytestmark = pytest.mark.skipif(not TEXT, reason="the tests run without docs/torch.md")


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_runs(block: str, native, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(block, "docs/torch.md", "exec", dont_inherit=True)
    # A class that a block defines has a module of that name.
    exec(code, {"__name__": "page"})
    # A comment that begins a line is what the line above it printed.
    promised = re.findall(r"^# (.+\n)", block, re.M)
    assert capsys.readouterr().out == "".join(promised)


def test_every_public_name_is_told_of() -> None:
    import rnnfast.torch as rt

    for name in rt.__all__:
        assert re.search(rf"`(?:rt\.)?{name}`", TEXT), name
    for name in {n for n in rt.__all__ if n[0].islower()}:
        assert any(f"rt.{name}(" in block for block in BLOCKS), name


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)", TEXT)
    assert targets
    for target in targets:
        assert (PAGE.parent / target).exists(), target
