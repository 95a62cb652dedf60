"""What is special to the CUDA kernels: parts of 64 columns, bands of 32 channels, ten taps at a time, the order of
threads."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def draw(channels, size, other, levels, radius):
    first = torch.randn(1, channels, *size)
    second = torch.randn(1, channels, *other)
    coords = torch.rand(1, 2, *size) * torch.tensor([other[1], other[0]]).view(2, 1, 1)
    grad = torch.randn(1, levels * (2 * radius + 1) ** 2, *size)
    return grad, first, second, coords, radius, levels, None


def run(inputs, need=(True, True, True)):
    operators = torch.ops.pyops_simt
    found = operators.corr2d_lookup_on_demand(*inputs[1:])
    return found, *operators.corr2d_lookup_on_demand_backward(*inputs, *need)


@pytest.mark.parametrize(
    "sizes",
    (
        (5, (2, 3), (3, 130), 1, 2),  # three parts of columns, the last one in part
        (70, (2, 3), (4, 6), 2, 1),  # three bands of channels
        (3, (2, 3), (9, 12), 3, 5),  # two turns of taps
        (2, (1, 40), (4, 66), 2, 9),  # windows over both parts
    ),
    ids=str,
)
def test_divisions_of_the_work(emulator, sizes):
    grad, first, second, coords, radius, levels, _ = inputs = draw(*sizes)
    leaves = [t.double().requires_grad_() for t in (first, second, coords)]
    exact = reference.corr2d_lookup_on_demand(*leaves, radius, levels)
    expected = exact.detach(), *torch.autograd.grad(exact, leaves, grad.double())
    for ours, truth in zip(run(inputs), expected, strict=True):
        assert_close(ours.double(), truth, rtol=0, atol=2e-6 * float(truth.abs().max()))


def test_a_gradient_alone(emulator):
    inputs = draw(5, (2, 3), (6, 7), 2, 2)
    _, *together = run(inputs)
    for i, expected in enumerate(together):
        _, *alone = run(inputs, [i == k for k in range(3)])
        assert torch.equal(alone[i], expected)
        assert all(t.shape == (0,) for k, t in enumerate(alone) if k != i)


def test_order_of_threads(emulator):
    inputs = draw(40, (3, 5), (7, 70), 2, 3)
    levels = [torch.randn(1, 3, 5, 7 >> i, 70 >> i) for i in range(2)]
    lookup = torch.ops.pyops_simt.corr2d_lookup_backward

    def everything():
        return [*run(inputs), *lookup(inputs[0], levels, inputs[3], 3, True, True)]

    expected = everything()
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))
