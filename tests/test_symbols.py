"""Each object file of an ISA has one constant for the linker, and the instructions that it is for.

A weak symbol (an inline function or a template of a shared header) compiled with AVX-512 could be
the copy that the linker keeps for everyone, and then crash on an older CPU.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_programs import find_tool

ROOT = Path(__file__).resolve().parent.parent
# What the objects of each source export, with the ISA's name at the end.
TABLES = {"kernel_tu": "kernel_table", "low_precision_tu": "low_precision_table"}
# What multiplies int8, as objdump prints it, in the ISAs that have something for it.
DOTS = {
    "avx2vnni": "{vex} vpdpbusd",
    "avx512vnni": "vpdpbusd",
    "avx512bf16": "vpdpbusd",
    "amx": "tdpbusd",
    "neondot": "sdot",
}


def exported(nm_output: str) -> list[tuple[str, str]]:
    """The (type, name) of each symbol that is defined here and visible to the linker."""
    lines = re.findall(r"^[0-9a-f]+ (\w) (.+)$", nm_output, re.MULTILINE)
    return [(kind, name) for kind, name in lines if kind.isupper() or kind in "vwu"]


def symbol_errors(nm_output: str, table: str) -> list[str]:
    """What is wrong with the symbols of the object that should export `table`."""
    symbols = exported(nm_output)
    tables = [name for kind, name in symbols if kind in "DR" and table in name]
    errors = [f"{kind} {name}" for kind, name in symbols if name not in tables]
    if len(tables) != 1:
        errors.append(f"{len(tables)} symbols named {table}, not 1")
    return errors


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each table the command that compiles its object, as CMake would, but unoptimised.

    An unoptimised build inlines only what must be, so that it shows every weak symbol there is.
    """
    if not (ROOT / "csrc").is_dir():
        pytest.skip("the tests run without the source tree")
    if sys.platform != "linux":
        pytest.skip("reads ELF objects")
    for tool in ("cmake", "nm"):
        if not shutil.which(tool):
            pytest.skip(f"needs {tool}")
    generators = {"ninja": "Ninja", "make": "Unix Makefiles"}
    generator = next((name for tool, name in generators.items() if shutil.which(tool)), None)
    if generator is None:
        pytest.skip(f"needs {' or '.join(generators)}")
    build = tmp_path_factory.mktemp("build")
    configure = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build,
        "-G",
        generator,
        "-DRNNFAST_PYTHON=OFF",
        "-DCMAKE_BUILD_TYPE=Debug",
    ]
    result = subprocess.run(configure, capture_output=True, text=True)
    if "No CMAKE_CXX_COMPILER could be found" in result.stderr:
        pytest.skip("needs a C++ compiler")
    assert result.returncode == 0, result.stderr
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        isa = re.search(r"-DRNNFAST_ISA=(\w+)", entry["command"])
        if isa:
            table = f"{TABLES[Path(entry['file']).stem]}_{isa[1]}"
            command = shlex.split(entry["command"])
            command[command.index("-o") + 1] = str(build / f"{table}.o")
            found[table] = command
    return found


@pytest.fixture(scope="module")
def objects(commands: dict[str, list[str]]) -> dict[str, str]:
    """Each table's object."""
    compilers = {table: subprocess.Popen(command) for table, command in commands.items()}
    for table, compiler in compilers.items():
        assert compiler.wait() == 0, f"{table} does not compile"
    return {table: command[command.index("-o") + 1] for table, command in commands.items()}


def test_each_object_exports_its_table_and_nothing_else(objects: dict[str, str]) -> None:
    assert {f"{table}_generic" for table in TABLES.values()} < objects.keys()
    for table, target in objects.items():
        nm = subprocess.run(["nm", target], capture_output=True, text=True, check=True)
        assert symbol_errors(nm.stdout, table) == [], table


def test_int8_is_multiplied_by_what_the_isa_has(objects: dict[str, str]) -> None:
    objdump = find_tool("objdump")
    for table, target in objects.items():
        kind, isa = table.rsplit("_", 1)
        if kind == TABLES["low_precision_tu"]:
            command = [objdump, "-d", "--no-show-raw-insn", target]
            code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            used = {dot for dot in DOTS.values() if re.search(rf"\t{dot}\b", code)}
            assert (DOTS[isa] in used) if isa in DOTS else not used, f"{isa}: {used}"


GOOD = """
0000000000000000 t _ZN7rnnfast12_GLOBAL__N_17forwardEv
                 U memcpy
0000000000000000 D _ZN7rnnfast17kernel_table_avx2E
"""


@pytest.mark.parametrize(
    "line",
    [
        "0000000000000000 W _ZSt3maxIfERKT_S2_S2_",
        "0000000000000000 V _ZN7rnnfast5limitE",
        "0000000000000000 u _ZZN7rnnfast1fEvE1x",
        "0000000000000000 T _ZN7rnnfast3addEff",
        "0000000000000000 B _ZN7rnnfast5countE",
    ],
)
def test_a_bad_symbol_is_found(line: str) -> None:
    assert symbol_errors(GOOD, "kernel_table_avx2") == []
    assert symbol_errors(GOOD + line + "\n", "kernel_table_avx2") == [line[17:]]
    assert symbol_errors(GOOD, "kernel_table_generic") != []
