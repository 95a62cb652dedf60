"""What is special to the CUDA kernels: tiles of 128 columns and 64 disparities, chunks of 16 and 32 channels, words of
four elements, the order of threads."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

MEAN_AND_COSINE = pytest.mark.parametrize("normalize", (False, True), ids=("mean", "cosine"))


def run(left, right, grad, normalize, need=(True, True)):
    groups, disparities = grad.shape[1:3]
    operators = torch.ops.pyops_simt
    return (
        operators.groupwise_correlation(left, right, disparities, groups, normalize),
        *operators.groupwise_correlation_backward(grad, left, right, normalize, *need),
    )


def draw(batch, channels, height, width, disparities, groups, dtype=torch.float32):
    left, right = torch.randn(2, batch, channels, height, width).to(dtype).unbind()
    return left, right, torch.randn(batch, groups, disparities, height, width).to(dtype)


def assert_follows_the_definition(found, left, right, grad, normalize):
    groups, disparities = grad.shape[1:3]
    leaves = [t.double().requires_grad_() for t in (left, right)]
    volume = reference.groupwise_correlation(*leaves, disparities, groups, normalize=normalize)
    exact = volume, *torch.autograd.grad(volume, leaves, grad.double())
    unit = torch.finfo(left.dtype).eps
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == left.dtype
        assert_close(
            ours.double(), truth.detach(), rtol=0, atol=16 * unit * float(truth.detach().abs().max())
        )


@MEAN_AND_COSINE
@pytest.mark.parametrize(
    "shape",
    (
        (1, 4, 1, 300, 9, 1),  # three tiles of columns, the last one in part
        (1, 2, 1, 129, 129, 1),  # three tiles of disparities
        (1, 6, 1, 132, 65, 3),  # two tiles of disparities, the second one in part
        (2, 70, 1, 12, 5, 2),  # 35 channels: three chunks, two tiles of channels
        (1, 17, 2, 131, 17, 1),  # one channel more than a chunk, one disparity more than a warp has
        (1, 64, 1, 8, 8, 1),
    ),
    ids=str,
)
def test_divisions_of_the_work(emulator, shape, normalize):
    left, right, grad = draw(*shape)
    assert_follows_the_definition(run(left, right, grad, normalize), left, right, grad, normalize)


@MEAN_AND_COSINE
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("width", (132, 133))
def test_words_and_elements(emulator, width, dtype, normalize):
    """Rows of whole words, and rows that begin anywhere."""
    left, right, grad = draw(1, 6, 2, width, 10, 2, dtype=dtype)
    found = run(left, right, grad, normalize)
    assert_follows_the_definition(found, left, right, grad, normalize)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (left, right)]
    for ours, plain in zip(run(*last, grad, normalize), found, strict=True):
        assert torch.equal(ours, plain)


@MEAN_AND_COSINE
def test_a_gradient_alone(emulator, normalize):
    left, right, grad = draw(1, 6, 2, 40, 18, 2)
    _, both_left, both_right = run(left, right, grad, normalize)
    _, alone, none = run(left, right, grad, normalize, (True, False))
    assert torch.equal(alone, both_left) and none.shape == (0,)
    _, none, alone = run(left, right, grad, normalize, (False, True))
    assert torch.equal(alone, both_right) and none.shape == (0,)
    assert all(t.shape == (0,) for t in run(left, right, grad, normalize, (False, False))[1:])


@MEAN_AND_COSINE
def test_order_of_threads(emulator, normalize):
    inputs = draw(1, 36, 1, 140, 70, 1)
    expected = run(*inputs, normalize)
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(run(*inputs, normalize), expected, strict=True))


@pytest.mark.parametrize("layout", ("contiguous", "expanded", "stepped"))
def test_layout_of_the_gradient(emulator, layout):
    left, right, grad = draw(1, 4, 2, 20, 6, 2)
    if layout == "expanded":
        grad = torch.ones(()).expand(grad.shape)
    elif layout == "stepped":
        grad = (
            torch.stack([grad, grad], -1).flatten(-2)[..., ::2].transpose(2, 3).contiguous().transpose(2, 3)
        )
    assert_follows_the_definition(run(left, right, grad, False), left, right, grad, False)
