"""What is special to the CUDA kernels: tiles of 32 pixels, eight slices of channels, 16 or 32 channels a thread, sums
of blocks, the order of threads."""

from __future__ import annotations

import shutil

import pytest
import torch
from memory import LAYOUTS, relayout
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def draw(batch, channels, height, width, motifs, dtype=torch.float32):
    motif = torch.rand(batch, motifs, height, width)
    features, grad = torch.randn(2, batch, channels, height, width).unbind()
    return [t.to(dtype) for t in (motif, features, torch.randn(motifs, 3, 3, 3), grad)]


def run(motif, features, kernel, grad, need=(True, True, True)):
    operators = torch.ops.pyops_simt
    return (
        operators.camp_conv(motif, features, kernel),
        *operators.camp_conv_backward(grad, motif, features, kernel, *need),
    )


def assert_follows_the_definition(found, motif, features, kernel, grad):
    leaves = [t.double().requires_grad_() for t in (motif, features, kernel)]
    out = reference.camp_conv(*leaves)
    exact = out, *torch.autograd.grad(out, leaves, grad.double())
    unit = torch.finfo(features.dtype).eps
    for ours, truth in zip(found, exact, strict=True):
        assert ours.dtype == features.dtype
        assert_close(
            ours.double(), truth.detach(), rtol=0, atol=16 * unit * float(truth.detach().abs().max())
        )


SHAPES = (
    (1, 33, 3, 45, 2),  # one channel more than a thread has; tiles that end in the middle of rows
    (2, 70, 2, 9, 4),  # tiles that end in the next image, three groups of channels
    (1, 1, 1, 1, 1),
    (1, 9, 4, 8, 12),  # slices without a channel, more motifs than slices
    (3, 2, 1, 5, 3),
)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_divisions_of_the_work(emulator, shape, dtype):
    inputs = draw(*shape, dtype=dtype)
    assert_follows_the_definition(run(*inputs), *inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_highpass_of_parts_of_channels_and_pixels(emulator, shape):
    features = draw(*shape)[1]
    for layout in (torch.contiguous_format, torch.channels_last):
        found = torch.ops.pyops_simt.constant_highpass(features.contiguous(memory_format=layout))
        exact = reference.constant_highpass(features.double())
        assert_close(found.double(), exact, rtol=0, atol=2e-6 * float(exact.abs().max()))


def test_more_tiles_than_blocks(emulator):
    """A block then adds up several tiles for the kernel before it writes."""
    inputs = draw(1, 1, 65, 513, 1)
    assert_follows_the_definition(run(*inputs), *inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulator, layout):
    inputs = draw(2, 11, 4, 13, 3)
    changed = [relayout(t, layout) for t in inputs]
    for ours, plain in zip(run(*changed), run(*inputs), strict=True):
        assert torch.equal(ours, plain)


def test_a_gradient_alone(emulator):
    inputs = draw(2, 11, 4, 13, 3)
    _, *together = run(*inputs)
    for i in range(3):
        need = [k == i for k in range(3)]
        _, *alone = run(*inputs, need)
        assert torch.equal(alone[i], together[i])
        assert all(alone[k].shape == (0,) for k in range(3) if k != i)


def test_order_of_threads(emulator):
    inputs = draw(1, 40, 3, 50, 5)
    highpass = torch.ops.pyops_simt.constant_highpass
    expected = [*run(*inputs), highpass(inputs[1])]
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        found = [*run(*inputs), highpass(inputs[1])]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_image_no_gradient_to_the_kernel(emulator):
    _, *grads = run(*draw(0, 4, 3, 5, 2))
    assert grads[2].shape == (2, 3, 3, 3) and (grads[2] == 0).all()
