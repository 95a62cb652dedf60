"""The contract once more, on the CUDA kernels by the emulator."""

from __future__ import annotations

import shutil

import contract
import pytest
import torch

from pyops import testing

from . import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module", autouse=True)
def _register():
    build.load()
    kernels = {
        op: getattr(torch.ops.pyops_simt, op).default
        for op in testing._operators()
        if hasattr(torch.ops.pyops_simt, op)  # what has no tensors has no device
        and torch._C._dispatch_has_kernel_for_dispatch_key(f"pyops_simt::{op}", "CPU")
    }
    testing.register_backend("simt", lambda: kernels)


class TestContract(contract.Contract):
    cases = contract.all_cases()
    backend = "simt"
