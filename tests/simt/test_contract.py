"""The contract once more, on the CUDA kernels by the emulator."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import contract
import pytest
import torch

from pyops import testing

HERE = Path(__file__).parent
SOURCES = sorted(HERE.parents[1].glob("csrc/*/*.cu"))

pytestmark = pytest.mark.skipif(
    not SOURCES or shutil.which("g++") is None, reason="no CUDA sources, or no g++"
)


def emulated_kernels():
    spec = importlib.util.spec_from_file_location("simt_build", HERE / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    global library
    library = build.load()
    return {op: getattr(torch.ops.pyops_simt, op).default for op in testing._operators()}


@pytest.fixture(scope="module", autouse=True)
def _register():
    kernels = emulated_kernels()
    testing.register_backend("simt", lambda: kernels)


class TestContract(contract.Contract):
    cases = contract.all_cases()
    backend = "simt"
