"""Builds filter.pyx against the C library of the installed rnnfast."""

import shlex
import subprocess
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup


def flags(word: str) -> list[str]:
    return shlex.split(subprocess.check_output([sys.executable, "-m", "rnnfast", word], text=True))


extension = Extension(
    "filter",
    ["filter.pyx"],
    extra_compile_args=flags("cflags"),
    extra_link_args=flags("libs"),
)
setup(name="rnnfast-cython-example", ext_modules=cythonize([extension]))
