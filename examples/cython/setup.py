"""Builds filter.pyx against the C library of the installed rnnfast."""

import shlex
import subprocess
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup


def flags(word: str) -> list[str]:
    command = [sys.executable, "-m", "rnnfast", word]
    return shlex.split(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


extension = Extension(
    "filter",
    ["filter.pyx"],
    extra_compile_args=flags("cflags"),
    extra_link_args=flags("libs"),
)
setup(name="rnnfast-cython-example", ext_modules=cythonize([extension]))
