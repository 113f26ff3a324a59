"""What `import rnnfast` does: loads the compiled module, or says what to do where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from subprocesses import python

import rnnfast
from rnnfast import _backend, _config

NATIVE = _backend.native_is_installed()
IS_LOADED = "import sys, rnnfast; print('rnnfast._native' in sys.modules)"
REMEDY = (
    "In its source folder, `RNNFAST_REQUIRE_NATIVE=1 pip install --force-reinstall --no-cache-dir "
    ".` shows why the compiled module could not be built (a C++17 compiler and Python's headers "
    "are needed)"
)


@pytest.mark.skipif(not NATIVE, reason="needs the compiled module")
class TestCompiledModule:
    def test_is_loaded_where_it_may_be_used(self):
        assert python(IS_LOADED).stdout == "True\n"
        assert python(IS_LOADED, RNNFAST_BACKEND="native").stdout == "True\n"
        for other in ("numba", "numpy", "nonsense"):
            assert python(IS_LOADED, RNNFAST_BACKEND=other).stdout == "False\n"

    def test_a_limit_set_before_the_first_use_stays(self):
        code = """
import numpy as np, rnnfast
from rnnfast import _native
assert _native.get_num_threads() == 3
_native.set_num_threads(2)  # as threadpoolctl does
rnnfast.GRU(2, 3)(np.ones((4, 2), np.float32))
rnnfast.set_backend("numpy")
rnnfast.set_backend("native")
print(rnnfast.get_num_threads())
"""
        done = python(code, RNNFAST_NUM_THREADS="3")
        assert done.stdout == "2\n", done.stderr

    @pytest.mark.parametrize("name", ["RNNFAST_NUM_THREADS", "RNNFAST_ISA"])
    def test_nonsense_fails_at_the_first_use(self, name):
        code = """
import numpy as np, rnnfast
for _ in range(2):
    try:
        rnnfast.GRU(2, 3)(np.ones((4, 2), np.float32))
    except (ValueError, RuntimeError) as error:
        print(error)
"""
        done = python(code, **{name: "nonsense"})
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 2
        assert all(line.startswith(name) and "nonsense" in line for line in lines)

    def test_one_that_cannot_be_loaded_is_told_at_the_first_use(self, tmp_path):
        package = copy(tmp_path)
        (package / "_native.py").write_text("raise ImportError('no such symbol')\n")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rnnfast; print(1)"
        done = python(code)
        assert (done.stdout, done.stderr) == ("1\n", "")
        done = python(code + "; rnnfast._backend.current()")
        assert "native is not available: no such symbol; falling back" in done.stderr


def copy(folder: Path) -> Path:
    """The package without its compiled module."""
    package = folder / "rnnfast"
    ignored = shutil.ignore_patterns("__pycache__", "_native.*")
    shutil.copytree(Path(rnnfast.__file__).parent, package, ignore=ignored)
    return package


@pytest.mark.parametrize("source_tree", [True, False])
def test_what_to_do_without_the_compiled_module(tmp_path, source_tree):
    copy(tmp_path)
    if source_tree:
        (tmp_path / "pyproject.toml").touch()
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__]
import rnnfast
print(rnnfast._config._describe_native()[0])
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: rnnfast was ") == 1
    wrong = (
        f"imported from the source tree {tmp_path}, which has no compiled module: run outside of it"
    )
    assert (wrong in done.stderr) == (wrong in done.stdout) == source_tree
    assert (REMEDY in done.stderr) == (not source_tree)
    assert done.stdout.startswith("missing: ")
    assert python(code, RNNFAST_BACKEND="numpy").stderr == ""


@pytest.mark.parametrize(
    "text, want", [("150000 100000\n", 2), ("50000 100000\n", 1), ("max 100000\n", 8), (None, 8)]
)
def test_threads_are_at_most_the_quota_of_the_container(text, want, monkeypatch, tmp_path):
    quota = tmp_path / "cpu.max"
    if text:
        quota.write_text(text)
    monkeypatch.setattr(_config, "_threads", None)
    monkeypatch.delenv("RNNFAST_NUM_THREADS", raising=False)
    monkeypatch.setattr(_config, "_CPU_QUOTA", quota)
    monkeypatch.setattr(_config.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert _config.wanted_threads() == want
