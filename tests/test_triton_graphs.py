"""What is special to the Triton kernels of dense graphs: several blocks of nodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops import testing

pytestmark = pytest.mark.skipif(
    "triton" not in testing.backends(), reason="no Triton kernels, or no interpreter"
)


def test_graphs_in_blocks(monkeypatch):
    from pyops.triton import minplus

    monkeypatch.setattr(minplus, "_BLOCK", 4)
    weights = torch.rand(1, 10, 10) + 0.05
    weights[torch.rand(1, 10, 10) < 0.6] = math.inf
    expected = pyops.floyd_warshall(weights)
    with testing.backend("triton"):
        assert_close(pyops.floyd_warshall(weights), expected)
