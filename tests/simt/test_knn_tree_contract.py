"""The contract of nearest neighbours on CUDA with trees whatever the size: memory, layouts, what is not finite."""

from __future__ import annotations

import shutil
from typing import ClassVar

import contract
import pytest
import torch

from pyops import testing

from . import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture(scope="module", autouse=True)
def _register():
    library = build.load()
    kernels = {op: getattr(torch.ops.pyops_simt, op).default for op in ("knn", "knn_backward")}
    testing.register_backend("simt-trees", lambda: kernels)
    library.pyops_simt_set_knn_tree(1)
    yield
    library.pyops_simt_set_knn_tree(0)


class TestContract(contract.Contract):
    cases: ClassVar = [case for case in contract.all_cases() if case.name == "knn"]
    backend = "simt-trees"
