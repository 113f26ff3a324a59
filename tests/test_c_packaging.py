"""The C library's package: flags, CMake, pkg-config, installs without Python, and the examples."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from c_programs import (
    ROOT,
    compile_program,
    find_source,
    find_tool,
    library_flags,
    project_version,
    run,
    with_path,
)

import rnnfast
from rnnfast.__main__ import main

HIDDEN = 16  # of examples/c


def draws(seed: int, *sizes: int):
    """The numbers of the C example, uniform in -1..1."""
    for size in sizes:
        numbers = np.empty(size, "float32")
        for k in range(size):
            seed ^= seed << 13 & 0xFFFFFFFF
            seed ^= seed >> 17
            seed ^= seed << 5 & 0xFFFFFFFF
            numbers[k] = seed / 2**31 - 1
        yield numbers


def filtered(samples):
    """What examples/c makes of (frames, channels) 16-bit samples."""
    layer = rnnfast.LSTM(1, HIDDEN)
    shapes = [p.shape for p in layer.parameters.values()]
    *weights, linear = draws(2, *map(np.prod, shapes), HIDDEN)
    scales = (2, 0.25, 0.25, 0.25)
    for name, numbers, shape, scale in zip(layer.parameters, weights, shapes, scales, strict=True):
        layer.parameters[name] = (scale * numbers).astype("float32").reshape(shape)
    x = (samples / 32768).astype("float32")[:, :, None]
    y = x[:, :, 0] + layer(x)[0] @ (linear / 4)
    return np.round(32767 * np.clip(y, -1, 1))


def write_wav(path: Path, samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.astype("<i2").tobytes())


def read_wav(path: Path):
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.getsampwidth()) == (8000, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return samples.reshape(-1, file.getnchannels())


def check_example(program: Path, folder: Path, **options) -> None:
    """Filters a stereo file as the layer does, and says how fast it was."""
    samples = np.random.default_rng(0).integers(-32768, 32768, (3000, 2))
    write_wav(folder / "in.wav", samples)
    done = run(program, folder / "in.wav", folder / "out.wav", **options)
    assert re.search(r"^real-time factor \d+\.\d, \d+\.\d{3} us a sample$", done.stdout, re.M)
    np.testing.assert_allclose(read_wav(folder / "out.wav"), filtered(samples), rtol=0, atol=1)


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    source = find_source("examples/c/wav_lstm.c")
    return compile_program(source, tmp_path_factory.mktemp("example") / "wav_lstm")


@pytest.mark.parametrize("channels", [1, 2])
def test_the_c_example_filters(example, tmp_path, channels):
    samples = np.random.default_rng(channels).integers(-32768, 32768, (500, channels))
    write_wav(tmp_path / "in.wav", samples)
    run(example, tmp_path / "in.wav", tmp_path / "out.wav")
    np.testing.assert_allclose(read_wav(tmp_path / "out.wav"), filtered(samples), rtol=0, atol=1)


def test_the_c_example_makes_its_own_sound(example):
    done = run(example)
    assert done.stdout.startswith("10.00 s of 2 channel(s) at 44100 Hz, an LSTM of 16 units on ")
    factor = re.search(r"^real-time factor (\d+\.\d)", done.stdout, re.M)
    assert float(factor[1]) > 1


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: b"", "expected a RIFF WAVE file"),
        (lambda data: data[:-1], "its samples are cut off"),
        (lambda data: data[:36], "has no samples"),
        (lambda data: data[:20] + b"\3" + data[21:], "expected 16-bit PCM, mono or stereo"),
        (lambda data: data[:22] + b"\0" + data[23:], "expected 16-bit PCM, mono or stereo"),
    ],
)
def test_the_c_example_refuses_other_files(example, tmp_path, change, error):
    path = tmp_path / "in.wav"
    write_wav(path, np.ones((5, 2)))
    path.write_bytes(change(path.read_bytes()))
    assert run(example, path, status=1).stderr == f"wav_lstm: {path}: {error}\n"


def build(source: Path, folder: Path, *options) -> Path:
    """Configures and builds a CMake project in `folder`."""
    cmake, ninja = find_tool("cmake"), shutil.which("ninja")
    generator = ["-G", "Ninja"] if ninja else []
    run(cmake, "-S", source, "-B", folder, *generator, *options)
    run(cmake, "--build", folder, timeout=600)
    return folder


def test_cmake_finds_the_installed_library(tmp_path):
    (folder,) = library_flags("cmakedir")
    find_tool("cc", "gcc", "clang")
    built = build(find_source("examples/c"), tmp_path / "build", f"-Drnnfast_DIR={folder}")
    check_example(built / "wav_lstm", tmp_path)
    project = tmp_path / "CMakeLists.txt"
    for version, status in ((project_version(), 0), ("99.0", 1)):
        project.write_text(
            "cmake_minimum_required(VERSION 3.18)\n"
            f"project(p LANGUAGES C)\nfind_package(rnnfast {version} REQUIRED)\n"
        )
        options = ("-S", tmp_path, "-B", tmp_path / version, f"-Drnnfast_DIR={folder}")
        run("cmake", *options, status=status)


def package_config(folder: Path, *words: str) -> list[str]:
    """What pkg-config says of the library whose .pc file is in `folder`."""
    tool = find_tool("pkg-config", "pkgconf")
    done = run(tool, *words, "rnnfast", env=with_path("PKG_CONFIG_PATH", folder))
    return shlex.split(done.stdout)


def test_pkg_config_finds_the_installed_library(tmp_path):
    (folder,) = library_flags("pkgconfigdir")
    assert package_config(folder, "--modversion") == [project_version()]
    flags = package_config(folder, "--cflags", "--libs")
    source = find_source("examples/c/wav_lstm.c")
    program = compile_program(source, tmp_path / "wav_lstm", flags)
    variable = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
    check_example(program, tmp_path, env=with_path(variable, Path(folder).parent))


@pytest.mark.skipif(sys.platform != "linux", reason="the names of ELF libraries")
def test_an_install_without_python(tmp_path):
    """Of one ISA and not optimised, since that takes long; and moved to another place."""
    find_source("csrc")
    options = ["-DRNNFAST_PYTHON=OFF", "-DRNNFAST_ISAS=generic", "-DCMAKE_BUILD_TYPE=Debug"]
    prefix = ("-DCMAKE_INSTALL_PREFIX=/usr", "-DCMAKE_INSTALL_LIBDIR=lib/triple")
    built = build(ROOT, tmp_path / "build", *options, *prefix)
    run("cmake", "--install", built, "--prefix", tmp_path / "first")
    moved = (tmp_path / "first").rename(tmp_path / "moved")

    lib = moved / "lib" / "triple"
    version = project_version()
    link = lib / "librnnfast.so"
    assert link.is_symlink() and link.resolve().name == f"librnnfast.so.{version}"
    dynamic = run(find_tool("readelf"), "-d", link).stdout
    assert f"soname: [librnnfast.so.{version.rpartition('.')[0]}]" in dynamic
    assert sorted(p.name for p in moved.iterdir()) == ["include", "lib"]

    config = f"-Drnnfast_DIR={lib / 'cmake' / 'rnnfast'}"
    check_example(build(ROOT / "examples" / "c", tmp_path / "c", config) / "wav_lstm", tmp_path)
    flags = package_config(lib / "pkgconfig", "--cflags", "--libs")
    program = compile_program(ROOT / "examples" / "c" / "wav_lstm.c", tmp_path / "wav_lstm", flags)
    check_example(program, tmp_path, env=with_path("LD_LIBRARY_PATH", lib))


REFUSED_FILTERS = """
import numpy as np
from filter import Filter
import rnnfast
w = np.ones(4, "f4")
for layer in (
    rnnfast.GRU(1, 4),
    rnnfast.RNN(1, 4),
    rnnfast.LSTM(2, 4),
    rnnfast.LSTM(1, 5),
    rnnfast.LSTM(1, 5, proj_size=4),
    rnnfast.LSTM(1, 4, num_layers=2),
    rnnfast.LSTM(1, 4, bidirectional=True),
    rnnfast.LSTM(1, 4, bias=False),
):
    try:
        Filter(layer, w, 0.5)
    except ValueError as error:
        assert "expected" in str(error)
    else:
        raise SystemExit(f"{layer} was taken")
"""


def test_the_cython_example(tmp_path):
    pytest.importorskip("Cython")
    pytest.importorskip("setuptools")
    library_flags("libs")
    folder = tmp_path / "cython"
    shutil.copytree(find_source("examples/cython"), folder)
    run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=folder)
    # Unlike the other tests', this process is to import what lies beside its script.
    environment = {**os.environ, "PYTHONSAFEPATH": ""}
    done = run(sys.executable, "time_filter.py", cwd=folder, env=environment)
    assert re.search(r"linear layer: \d+\.\d{3} us a step$", done.stdout.strip())
    run(sys.executable, "-c", REFUSED_FILTERS, cwd=folder, env=environment)


def test_readme_s_program_runs(tmp_path):
    text = find_source("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```c\n(.*?)^```$", text, re.M | re.S)
    source = tmp_path / "program.c"
    source.write_text(block)
    done = run(compile_program(source, tmp_path / "program"))
    layer = rnnfast.RNN(1, 2, bias=False)
    layer.parameters["weight_ih_l0"] = np.array([[1], [-1]], "float32")
    layer.parameters["weight_hh_l0"] = np.array([[0, 1], [1, 0]], "float32") / 2
    output, _ = layer(np.array([1, 2, 3], "float32")[:, None])
    np.testing.assert_allclose(np.loadtxt(done.stdout.splitlines()), output, atol=1e-5)


def test_the_flags_of_both_folders_of_an_editable_install(tmp_path, monkeypatch, capsys):
    source, built = tmp_path / "source", tmp_path / "built with space"
    (built / "include").mkdir(parents=True)
    (built / "include" / "rnnfast.h").touch()
    monkeypatch.setattr(rnnfast, "__path__", [str(source), str(built)])
    assert main(["cflags", "cmakedir"]) == 0
    assert shlex.split(capsys.readouterr().out) == [
        f"-I{built}/include",
        f"{built}/lib/cmake/rnnfast",
    ]


def test_an_install_without_the_library_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rnnfast, "__path__", [str(tmp_path)])
    assert main(["libs"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "rnnfast: this install has no C library: there was no compiler for it\n"


@pytest.mark.parametrize("words", [["cflags", "x"], ["info", "libs"], []])
def test_other_words_are_refused(words, capsys):
    assert main(words) == 2
    assert "cflags" in capsys.readouterr().err
