"""Checks rnnfast-cuda13 as it is installed beside a pure-Python rnnfast of the same version."""

from __future__ import annotations

import importlib.metadata

import rnnfast

NAME = "rnnfast-cuda13"
LIBRARY = "rnnfast_cuda13/lib/librnnfast_cuda.so"


def main() -> None:
    files = {str(file) for file in importlib.metadata.files(NAME) or ()}
    own = {file for file in files if ".dist-info/" not in file}
    assert own == {LIBRARY}, f"it carries {own}"
    assert any(file.endswith("/LICENSE") for file in files), f"it has no licence: {files}"
    requires = importlib.metadata.requires(NAME)
    assert requires == [f"rnnfast=={rnnfast.__version__}"], requires
    assert importlib.metadata.version(NAME) == rnnfast.__version__
    config = rnnfast.show_config()
    assert config["native"].startswith("missing: a pure-Python install"), config["native"]
    # Which only the library itself can tell.
    assert config["cuda"].startswith(("no device: CUDA: ", "found: ")), config["cuda"]


if __name__ == "__main__":
    main()
