"""What a user reads when the native library is missing or broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyops

PACKAGE = Path(pyops.__file__).parent


def import_copy(tmp_path: Path, *, native: bytes | None, torch: str | None = None) -> str:
    """Imports a copy of the package in a new process; returns the last line of the failure."""
    shutil.copytree(PACKAGE, tmp_path / "pyops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if native is not None:
        (tmp_path / "pyops" / "_C.abi3.so").write_bytes(native)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import torch; "
    code += (f"torch.__version__ = {torch!r}; " if torch else "") + "import pyops"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode != 0
    return result.stderr.strip().splitlines()[-1]


def test_missing_library(tmp_path):
    message = import_copy(tmp_path, native=None)
    assert message.startswith("ImportError: pyops has no native library in")
    assert str(tmp_path / "pyops") in message and "pip install" in message


@pytest.mark.parametrize("native", (b"not a library", b"\x7fELF" + bytes(100)), ids=("text", "truncated"))
def test_broken_library(tmp_path, native):
    message = import_copy(tmp_path, native=native)
    assert message.startswith("ImportError: pyops could not load")
    assert "_C.abi3.so" in message and "reinstall" in message


def test_torch_too_old(tmp_path):
    message = import_copy(tmp_path, native=None, torch="2.9.1+cpu")
    assert message == "ImportError: pyops needs torch>=2.11 but found 2.9.1+cpu; upgrade torch."


def test_build_info():
    info = pyops.build_info()
    assert info["pyops"] == pyops.__version__ and Path(info["cpu_library"]).is_file()
    assert (info["cuda_library"] is None) == (info["cuda_problem"] is not None)
