"""The layers of the source, read off its `#include` and `import` lines: no edge goes upward."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350

# What a folder of csrc may include besides itself. Nothing may include what is not named here.
CPP_LAYERS: dict[str, set[str]] = {
    "core": set(),
    "include": set(),
    "simd": {"core"},
    "cells": {"core", "simd"},
    "kernels": {"core", "simd", "cells"},
    "dispatch": {"core", "kernels"},
    "api": {"core", "dispatch", "include"},
    "bindings": {"core", "dispatch", "api", "include"},
    "cuda": {"core", "simd", "cells", "include"},
    "tests": {"core", "simd", "cells", "kernels", "dispatch", "api", "cuda", "include"},
}

# Compiled once per ISA: an inline function of a shared header, instantiated here with AVX-512,
# could be the copy that the linker hands to a caller on an older CPU. These define none.
ISA_FOLDERS = {"core", "simd", "cells", "kernels"}
ISA_HEADERS = {"cstddef", "cstdint", "cfloat", "climits", "immintrin.h", "arm_neon.h"}

# The package's modules from the bottom up; a module may import only from rows above its own. One
# that is not named here (with those below it) belongs to the top row.
PYTHON_LAYERS: list[set[str]] = [
    {"_cells", "_locks"},
    {"_validate"},
    {"_layout", "_safetensors"},
    {"_native"},
    {"stream"},
    {"_backend", "_cuda"},
    {"_config", "_parameters"},
    {"_low_precision"},
    {"_cupy", "_native_backend", "_reference"},
    {"_numba"},
    {"functional"},
    {"_recompute"},
    {"_stack"},
    {"_module", "_streams", "_tape"},
    {"_layer"},
    {"cells", "layers"},
]
# The only modules that may import something beyond NumPy and the standard library. Late imports,
# inside a function, are free: they are how an optional package is used.
THIRD_PARTY: dict[str, set[str]] = {"_numba": {"numba", "llvmlite"}, "torch": {"torch"}}


def source_files(folder: Path, suffixes: set[str]) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix in suffixes)


def include_errors(csrc: Path) -> list[str]:
    """What is wrong with the `#include` lines under `csrc`."""
    errors = []
    for path in source_files(csrc, {".h", ".inc", ".cpp", ".cu", ".cuh"}):
        name = path.relative_to(csrc)
        layer = name.parts[0]
        if layer not in CPP_LAYERS:
            errors.append(f"{name}: {layer}/ is no known layer")
            continue
        for kind, target in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', path.read_text(), re.M):
            if kind == "<":
                if layer in ISA_FOLDERS and target not in ISA_HEADERS:
                    errors.append(f"{name}: <{target}> may define inline functions")
                continue
            found = [base / target for base in (path.parent, csrc) if (base / target).is_file()]
            if not found:
                errors.append(f'{name}: "{target}" is not in csrc')
                continue
            above = found[0].resolve().relative_to(csrc.resolve()).parts[0]
            if above != layer and above not in CPP_LAYERS[layer]:
                errors.append(f"{name}: {layer}/ includes {above}/ ({target})")
    return errors


def rank(module: str) -> int:
    rows = (row for row, names in enumerate(PYTHON_LAYERS) if module in names)
    return next(rows, len(PYTHON_LAYERS))


def imports(tree: ast.Module, package: Path) -> Iterator[tuple[str, bool]]:
    """The modules imported, as dotted names, and whether that happens when `tree` is imported."""
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(outer)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package's imports are absolute"
            for alias in node.names:
                # `from rnnfast import layers` names a module, `from rnnfast import LSTM` does not.
                inner = package.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                name = f"{node.module}.{alias.name}" if is_module else node.module
                yield name, id(node) not in late


def import_errors(package: Path) -> list[str]:
    """What is wrong with the `import` lines of the package in the folder `package`."""
    errors = []
    for path in source_files(package, {".py", ".pyi"}):
        name = path.relative_to(package)
        module = name.parts[0].split(".")[0]
        for target, at_import in imports(ast.parse(path.read_text()), package):
            first, _, rest = target.partition(".")
            if first == package.name:
                above = rest.partition(".")[0] or "__init__"
                if above != module and rank(above) >= rank(module) != len(PYTHON_LAYERS):
                    errors.append(f"{name}: {module} imports {above}, which is not below it")
            elif first in {"tests", "bench", "examples"}:
                errors.append(f"{name}: the package imports {first}")
            elif at_import and first != "numpy" and first not in sys.stdlib_module_names:
                if first not in THIRD_PARTY.get(module, set()):
                    errors.append(f"{name}: needs {first} to be imported")
    return errors


@pytest.fixture
def csrc() -> Path:
    folder = ROOT / "csrc"
    if not folder.is_dir():
        pytest.skip("the tests run without the source tree")
    return folder


@pytest.fixture
def package(csrc: Path) -> Path:
    return ROOT / "rnnfast"


def test_no_include_goes_upward(csrc: Path) -> None:
    assert include_errors(csrc) == []


def test_no_import_goes_upward(package: Path) -> None:
    assert import_errors(package) == []


def test_files_stay_short(csrc: Path, package: Path) -> None:
    suffixes = {".py", ".pyi", ".pyx", ".h", ".inc", ".cpp", ".cu"}
    lengths = {
        path: len(path.read_text().splitlines())
        for folder in (csrc, package)
        for path in source_files(folder, suffixes)
    }
    assert lengths
    assert {str(path): n for path, n in lengths.items() if n > MAX_LINES} == {}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("name", "line", "error"),
    [
        ("core/args.h", '#include "cells/lstm.h"', "core/ includes cells/"),
        ("simd/vec.h", '#include "cells/lstm.h"', "simd/ includes cells/"),
        ("cells/gru.h", '#  include "../kernels/gemm.h"', "cells/ includes kernels/"),
        ("kernels/pack.h", '#include "dispatch/threads.h"', "kernels/ includes dispatch/"),
        ("dispatch/threads.cpp", '#include "bindings/arrays.h"', "dispatch/ includes bindings/"),
        ("include/rnnfast.h", '#include "dispatch/threads.h"', "include/ includes dispatch/"),
        ("api/rnnfast.cpp", '#include "bindings/arrays.h"', "api/ includes bindings/"),
        ("bindings/module.cpp", '#include "kernels/gemm.h"', "bindings/ includes kernels/"),
        ("kernels/pack.h", "#include <vector>", "<vector> may define inline functions"),
        ("simd/math.h", " # include <cmath>", "<cmath> may define inline functions"),
        ("core/args.h", '#include "absent.h"', '"absent.h" is not in csrc'),
        ("extra/x.h", "", "extra/ is no known layer"),
    ],
)
def test_a_bad_include_is_found(tmp_path: Path, name: str, line: str, error: str) -> None:
    good = {
        "core/args.h": "#include <cstddef>\n",
        "cells/lstm.h": '#include "core/args.h"\n',
        "kernels/gemm.h": '#include "cells/lstm.h"\n',
        "dispatch/threads.h": '#include <thread>\n#include "kernels/gemm.h"\n',
        "bindings/arrays.h": '#include "dispatch/threads.h"\n',
    }
    assert include_errors(plant(tmp_path, good)) == []
    (found,) = include_errors(plant(tmp_path, {name: f"#pragma once\n{line}\n"}))
    assert found.startswith(f"{name}: ") and error in found


@pytest.mark.parametrize(
    ("name", "line", "error"),
    [
        ("_cells.py", "from rnnfast import _backend", "_cells imports _backend"),
        ("_cells.py", "import rnnfast.layers", "_cells imports layers"),
        ("_backend.py", "from rnnfast.functional import pack", "_backend imports functional"),
        ("_backend.py", "def f():\n    import rnnfast.layers", "_backend imports layers"),
        ("functional.py", "from rnnfast import LSTM", "functional imports __init__"),
        ("functional.py", "import tests.helpers", "the package imports tests"),
        ("layers.py", "from rnnfast.torch import LSTM", "layers imports torch"),
        ("layers.py", "import torch", "needs torch to be imported"),
        ("_numba/lstm.py", "import torch", "needs torch to be imported"),
    ],
)
def test_a_bad_import_is_found(tmp_path: Path, name: str, line: str, error: str) -> None:
    good = {
        "__init__.py": "from rnnfast.layers import LSTM\n",
        "_cells.py": "import numpy as np\n",
        "_backend.py": "import os\nfrom rnnfast._cells import CELLS\n",
        "_numba/__init__.py": "import numba\nfrom rnnfast._numba import lstm\n",
        "functional.py": "from rnnfast import _backend\n",
        "layers.py": "from rnnfast import functional\ndef f():\n    import matplotlib\n",
        "torch/__init__.py": "import torch\nfrom rnnfast.layers import LSTM\n",
    }
    package = tmp_path / "rnnfast"
    assert import_errors(plant(package, good)) == []
    (found,) = import_errors(plant(package, {name: f"{line}\n"}))
    assert found.startswith(f"{name}: ") and error in found
