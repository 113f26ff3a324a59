"""What is installed: the right copy of the package, its metadata, and its promises."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import rnnfast

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def metadata() -> importlib.metadata.PackageMetadata:
    return importlib.metadata.metadata("rnnfast")


def source(name: str) -> str:
    """The text of a file of the source tree."""
    path = ROOT / name
    if not path.is_file():
        pytest.skip(f"the tests run without {name}")
    return path.read_text()


def is_editable() -> bool:
    text = importlib.metadata.distribution("rnnfast").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


@pytest.mark.skipif(
    os.environ.get("RNNFAST_ALLOW_SOURCE") == "1", reason="RNNFAST_ALLOW_SOURCE=1 is set"
)
def test_the_installed_package_is_tested() -> None:
    """`python -m pytest` puts the current folder, and so the source tree, before site-packages."""
    package = Path(rnnfast.__file__).resolve().parent
    if not is_editable():
        assert package != ROOT / "rnnfast", "run the tests with `python -P -m pytest`"


@pytest.mark.skipif(
    os.environ.get("RNNFAST_REQUIRE_NATIVE") != "1", reason="RNNFAST_REQUIRE_NATIVE=1 is not set"
)
def test_the_compiled_module_is_there_where_it_must_be() -> None:
    assert importlib.util.find_spec("rnnfast._native") is not None


def test_version_is_the_metadata_version() -> None:
    assert rnnfast.__version__ == importlib.metadata.version("rnnfast")


def test_changelog_has_the_version() -> None:
    assert f"\n## [{rnnfast.__version__}]" in source("CHANGELOG.md")


def test_numpy_is_all_that_is_needed(metadata: importlib.metadata.PackageMetadata) -> None:
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.split(r"[^\w-]", line)[0] for line in needed] == ["numpy"]


def test_types_are_shipped() -> None:
    assert Path(rnnfast.__file__).with_name("py.typed").is_file()


def test_the_command_runs() -> None:
    suffix = ".exe" if sys.platform == "win32" else ""
    command = Path(sysconfig.get_path("scripts"), f"rnnfast{suffix}")
    result = subprocess.run([command, "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert rnnfast.__version__ in result.stdout


@pytest.mark.parametrize("tool", ["clang-format", "mypy", "numpy", "ruff"])
def test_pre_commit_and_ci_use_one_version(tool: str) -> None:
    pin = re.compile(rf"\b{tool}==([\w.]+)")
    ci = set(pin.findall(source(".ci/requirements.txt")))
    assert len(ci) == 1
    assert set(pin.findall(source(".pre-commit-config.yaml"))) == ci


def test_readme_gives_the_test_command() -> None:
    """CI runs that block as it stands; it must test the installed package."""
    readme = source("README.md")
    block = re.search(r"^#+ +Tests *\n(?:(?!#).*\n)*?```\w*\n(.*?)^```", readme, re.M | re.S)
    assert block, 'README.md has no fenced block under a heading "Tests"'
    assert 'pip install ".[test]"' in block[1]
    assert re.search(r"\bpytest tests\b", block[1])
    assert not re.search(r"python3? -m pytest", block[1]), "that puts the source tree first"
