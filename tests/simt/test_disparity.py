"""What is special to the CUDA kernels: threads that share the columns of a coarse pixel, windows of a row's sums, the
order of threads."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from memory import LAYOUTS, relayout
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def run(name, first, second, grad, need=(True, True)):
    operators = torch.ops.pyops_simt
    backward = getattr(operators, f"{name}_backward")
    return getattr(operators, name)(first, second), *backward(grad, first, second, *need)


def draw_upsample(batch, height, width, scale, dtype=torch.float32):
    fine = batch, 9, height * scale, width * scale
    disparity, weights = torch.rand(batch, 1, height, width) * 9, torch.randn(fine).softmax(1)
    return disparity.to(dtype), weights.to(dtype), torch.randn(batch, 1, *fine[2:]).to(dtype)


def draw_warp(batch, channels, height, width, reach):
    """Positions between pixels, where gradients do not jump."""
    disparity = (torch.rand(batch, 1, height, width) * reach).floor() + 0.25
    image, grad = torch.randn(2, batch, channels, height, width).unbind()
    return image, disparity, grad


def assert_follows_the_definition(name, found, first, second, grad):
    leaves = [t.double().requires_grad_() for t in (first, second)]
    out = getattr(reference, name)(*leaves)
    exact = out, *torch.autograd.grad(out, leaves, grad.double())
    unit = torch.finfo(first.dtype).eps
    for ours, truth in zip(found, exact, strict=True):
        assert_close(
            ours.double(), truth.detach(), rtol=0, atol=16 * unit * float(truth.detach().abs().max())
        )


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize(
    "shape",
    (
        (1, 2, 70, 8),  # more fine columns than a block has threads
        (1, 2, 300, 1),  # a thread for every coarse pixel, two blocks
        (2, 3, 3, 5),  # eight threads for five columns
        (1, 2, 2, 33),  # more columns than threads can share them
        (1, 1, 1, 70),
    ),
    ids=str,
)
def test_threads_that_share_a_coarse_pixel(emulator, shape, dtype):
    inputs = draw_upsample(*shape, dtype=dtype)
    assert_follows_the_definition("context_upsample", run("context_upsample", *inputs), *inputs)


@pytest.mark.parametrize("width", (4063, 4064, 4065, 8200))
def test_rows_wider_than_a_window(emulator, width):
    inputs = draw_warp(1, 1, 2, width, 500)
    assert_follows_the_definition("disparity_warp", run("disparity_warp", *inputs), *inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulator, layout):
    for name, inputs in (
        ("context_upsample", draw_upsample(2, 3, 5, 4)),
        ("disparity_warp", draw_warp(2, 3, 4, 21, 8)),
    ):
        expected = run(name, *inputs)
        for ours, plain in zip(run(name, *(relayout(t, layout) for t in inputs)), expected, strict=True):
            assert torch.equal(ours, plain)


@pytest.mark.parametrize("name", ("context_upsample", "disparity_warp"))
def test_a_gradient_alone(emulator, name):
    inputs = draw_upsample(1, 3, 5, 4) if name == "context_upsample" else draw_warp(1, 3, 2, 21, 8)
    _, both_first, both_second = run(name, *inputs)
    _, alone, none = run(name, *inputs, (True, False))
    assert torch.equal(alone, both_first) and none.shape == (0,)
    _, none, alone = run(name, *inputs, (False, True))
    assert torch.equal(alone, both_second) and none.shape == (0,)
    assert all(t.shape == (0,) for t in run(name, *inputs, (False, False))[1:])


@pytest.mark.parametrize("name", ("context_upsample", "disparity_warp"))
def test_order_of_threads(emulator, name):
    """Also where all samples of a row meet in one pixel."""
    inputs = draw_upsample(1, 3, 4, 40) if name == "context_upsample" else draw_warp(1, 2, 2, 600, 6000)
    expected = run(name, *inputs)
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert all(torch.equal(a, b) for a, b in zip(run(name, *inputs), expected, strict=True))


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_a_gradient_that_is_not_finite_spoils_its_two_pixels(emulator, bad):
    image, disparity, grad = draw_warp(1, 2, 2, 40, 8)
    _, clean, _ = run("disparity_warp", image, disparity, grad, (True, False))
    grad[0, 1, 1, 30] = bad
    _, found, _ = run("disparity_warp", image, disparity, grad, (True, False))
    left = int(30 - disparity[0, 0, 1, 30])
    expected = torch.zeros(1, 2, 2, 40, dtype=torch.bool)
    expected[0, 1, 1, left : left + 2] = True
    assert torch.equal(found.isnan(), expected)
    assert_close(found[~expected], clean[~expected], rtol=0, atol=1e-6)
