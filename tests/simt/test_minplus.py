"""What is special to the CUDA kernels: tiles of 64 x 64, 16 entries at a time, graphs that no block holds, the order of
threads."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.mark.parametrize("shape", ((65, 17, 3), (3, 33, 130), (64, 16, 64), (1, 2049, 2)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_tiles(emulator, shape, dtype):
    rows, inner, columns = shape
    a, b = torch.randn(2, rows, inner).to(dtype), torch.randn(2, columns, inner).to(dtype).mT
    operators = torch.ops.pyops_simt
    assert torch.equal(operators.min_plus_matmul(a, b), reference.min_plus_matmul(a, b))
    leaves = [a.double().requires_grad_(), b.double().requires_grad_()]
    upstream = torch.randn(2, rows, columns).to(dtype)
    expected = torch.autograd.grad(reference.min_plus_matmul(*leaves), leaves, upstream.double())
    found = operators.min_plus_matmul_backward(upstream, a, b, True, True)
    for ours, exact in zip(found, expected, strict=True):
        unit = torch.finfo(dtype).eps
        assert_close(ours.double(), exact, rtol=0, atol=8 * unit * float(exact.abs().max()))


@pytest.mark.parametrize("seed", (0, 1))
def test_backward_is_that_of_the_cpu_bit_by_bit(emulator, seed):
    """Also where many sums are equal, in any order of threads."""
    a, b = torch.randint(4, (2, 1, 40, 40)).float().unbind()
    upstream = torch.randn(1, 40, 40)
    expected = torch.ops.pyops.min_plus_matmul_backward(upstream, a, b, True, True)
    emulator.pyops_simt_set_seed(seed)
    found = torch.ops.pyops_simt.min_plus_matmul_backward(upstream, a, b, True, True)
    assert all(torch.equal(ours, cpu) for ours, cpu in zip(found, expected, strict=True))


@pytest.mark.parametrize("columns", (1, 127, 128, 129, 300))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_pieces_of_rows(emulator, columns, dtype):
    """Values and gradients are those of the CPU bit by bit, in any order of threads; many sums are equal."""
    lengths, rows = torch.randint(3, (2, 9, 5)).to(dtype), torch.randint(4, (2, columns, 7)).to(dtype).mT
    indices = torch.randint(-2, 9, (2, 5, 9)).mT  # also outside
    upstream = torch.randn(2, columns, 9).to(dtype).mT
    operators, emulated = torch.ops.pyops, torch.ops.pyops_simt
    assert torch.equal(
        emulated.min_plus_gather(lengths, indices, rows), operators.min_plus_gather(lengths, indices, rows)
    )
    expected = operators.min_plus_gather_backward(upstream, lengths, indices, rows, True, True)
    for seed in (0, 1):
        emulator.pyops_simt_set_seed(seed)
        found = emulated.min_plus_gather_backward(upstream, lengths, indices, rows, True, True)
        assert all(torch.equal(ours, cpu) for ours, cpu in zip(found, expected, strict=True))


@pytest.mark.parametrize("nodes", (128, 129, 150))
@pytest.mark.parametrize("seed", (0, 1))
def test_graphs_in_blocks(emulator, nodes, seed):
    weights = torch.rand(2, nodes, nodes) + 0.05
    weights[torch.rand(2, nodes, nodes) < 0.9] = math.inf
    emulator.pyops_simt_set_seed(seed)
    assert_close(torch.ops.pyops_simt.floyd_warshall(weights), torch.ops.pyops.floyd_warshall(weights))
    half = weights.half()
    distances = torch.ops.pyops_simt.floyd_warshall(half)
    assert_close(distances, torch.ops.pyops.floyd_warshall(half), rtol=2e-3, atol=0)


def test_edges_of_no_length(emulator):
    place = torch.tensor([0.0, 0, 0, 1, 1, 3, 3, 3])
    weights = (place[:, None] - place).abs()[None]
    upstream = torch.rand(1, 8, 8)
    grad = torch.ops.pyops_simt.floyd_warshall_backward(upstream, weights, weights)
    assert grad.isfinite().all() and (grad >= 0).all()
    assert_close((grad * weights).sum(), (upstream * weights).sum())


@pytest.mark.parametrize("nodes", (5, 130))
@pytest.mark.parametrize("value", (-1.0, math.nan))
def test_what_cannot_be_refused_shows(emulator, nodes, value):
    weights = torch.rand(2, nodes, nodes) + 0.05
    weights[0, 1, 2] = value
    distances = torch.ops.pyops_simt.floyd_warshall(weights)
    assert distances[0, 1, 2].isnan() and not distances[1].isnan().any()
    grad = torch.ops.pyops_simt.floyd_warshall_backward(torch.ones_like(weights), weights, distances)
    assert grad.shape == weights.shape
