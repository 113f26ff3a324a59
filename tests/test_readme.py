"""README.md: its Python runs, and its commands and links are there."""

import re
from pathlib import Path

import pytest

import rnnfast

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""

pytestmark = pytest.mark.skipif(not TEXT, reason="the tests run without README.md")


def blocks(language: str) -> dict[str, str]:
    """The last block in `language` under each heading."""
    found = {}
    for section in re.split(r"^#+ +", TEXT, flags=re.M)[1:]:
        for block in re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S):
            found[section.splitlines()[0]] = block
    return found


@pytest.mark.parametrize("heading", blocks("python"))
def test_python_runs(heading: str, keep_backend, tmp_path, monkeypatch) -> None:
    if heading == "PyTorch":
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    threads = rnnfast.get_num_threads()
    try:
        exec(compile(blocks("python")[heading], f"README.md, {heading}", "exec"), {})
    finally:
        rnnfast.set_num_threads(threads)
    assert not list(tmp_path.iterdir())


def test_the_example_learns(capsys) -> None:
    exec(blocks("python")["Training"], {})
    error, variance = map(float, re.findall(r"\d\.\d+", capsys.readouterr().out))
    assert error < 0.3 * variance


def test_every_use_has_an_example() -> None:
    headings = [
        "rnnfast",
        "Use",
        "Training",
        "Lengths and resets",
        "Streaming",
        "PyTorch",
        "Configuration",
    ]
    assert list(blocks("python")) == headings
    assert TEXT.count("```python\n") == len(blocks("python"))


def test_commands_are_complete() -> None:
    """Each is one line that starts on a fresh machine."""
    commands = blocks("sh")
    assert list(commands) == ["The demo", "Tests"]
    for command in commands.values():
        assert re.fullmatch(
            r"python3 -m venv \.venv && \.venv/bin/pip install \"\.\[\w+\]\" && \.venv/bin/.+\n",
            command,
        )


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    for target in targets:
        assert "://" in target or (ROOT / target).exists(), target
