"""What is special to the CUDA kernels: tiles of 4 rows of 32 columns, shares of 9 displacements, chunks of 8 and 16
channels, sums of 64, words of four elements, parts of a dilated image, the order of threads."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run(first, second, grad, radius, dilation=1, need=(True, True)):
    operators = torch.ops.pyops_simt
    return (
        operators.local_correlation(first, second, radius, dilation),
        *operators.local_correlation_backward(grad, first, second, radius, dilation, *need),
    )


def draw(batch, channels, height, width, radius, dtype=torch.float32):
    first, second = torch.randn(2, batch, channels, height, width).to(dtype).unbind()
    return first, second, torch.randn(batch, (2 * radius + 1) ** 2, height, width).to(dtype)


def assert_follows_the_definition(found, first, second, grad, radius, dilation=1):
    leaves = [t.double().requires_grad_() for t in (first, second)]
    volume = reference.local_correlation(*leaves, radius, dilation=dilation)
    exact = volume, *torch.autograd.grad(volume, leaves, grad.double())
    unit = torch.finfo(first.dtype).eps
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == first.dtype
        atol = 16 * unit * float(truth.detach().abs().max())
        assert_close(ours.double(), truth.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize(
    "shape",
    (
        (1, 9, 5, 70, 4),  # three tiles of columns, two of rows, a second chunk of channels
        (2, 3, 4, 33, 1),  # three displacements to a side
        (1, 18, 9, 12, 2),  # five; two tiles of channels in the backward
        (1, 2, 6, 40, 3),  # seven of nine
        (1, 2, 5, 21, 5),  # two shares of displacements, in part
        (1, 1, 3, 4, 9),  # displacements wider than the image
        (1, 3, 4, 9, 0),
        (1, 131, 1, 5, 1),  # three sums of channels
    ),
    ids=str,
)
def test_divisions_of_the_work(emulator, shape):
    inputs = draw(*shape)
    assert_follows_the_definition(run(*inputs, shape[-1]), *inputs, shape[-1])


@pytest.mark.parametrize("dilation", (2, 3, 8))
def test_parts_of_a_dilated_image(emulator, dilation):
    """Parts of differing sizes, and with 8 more parts than there are rows."""
    inputs = draw(2, 3, 7, 71, 2)
    assert_follows_the_definition(run(*inputs, 2, dilation), *inputs, 2, dilation)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("width", (36, 37))
def test_words_and_elements(emulator, width, dtype):
    """Rows of whole words, and rows that begin anywhere."""
    inputs = first, second, grad = draw(1, 11, 3, width, 2, dtype=dtype)
    found = run(*inputs, 2)
    assert_follows_the_definition(found, *inputs, 2)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (first, second)]
    for ours, plain in zip(run(*last, grad, 2), found, strict=True):
        assert torch.equal(ours, plain)


def test_a_gradient_alone(emulator):
    inputs = draw(1, 6, 5, 20, 2)
    _, both_first, both_second = run(*inputs, 2)
    _, alone, none = run(*inputs, 2, need=(True, False))
    assert torch.equal(alone, both_first) and none.shape == (0,)
    _, none, alone = run(*inputs, 2, need=(False, True))
    assert torch.equal(alone, both_second) and none.shape == (0,)
    assert all(t.shape == (0,) for t in run(*inputs, 2, need=(False, False))[1:])


def test_order_of_threads(emulator):
    inputs = draw(1, 20, 6, 40, 4)
    expected = run(*inputs, 4)
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs, 4), expected, strict=True))


@pytest.mark.parametrize("layout", ("contiguous", "expanded", "stepped"))
def test_layout_of_the_gradient(emulator, layout):
    first, second, grad = draw(1, 4, 3, 20, 1)
    if layout == "expanded":
        grad = torch.ones(()).expand(grad.shape)
    elif layout == "stepped":
        grad = (
            torch.stack([grad, grad], -1).flatten(-2)[..., ::2].transpose(2, 3).contiguous().transpose(2, 3)
        )
    assert_follows_the_definition(run(first, second, grad, 1), first, second, grad, 1)
