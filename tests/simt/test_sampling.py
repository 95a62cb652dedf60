"""What only the CUDA kernels have: scans in every block, tiles of lines, slots of samples, and sums of many blocks."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

from . import build

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

POINTS_AND_CELLS = pytest.mark.parametrize("antialias", [False, True], ids=["points", "cells"])
PROCESSORS, SEED = 2, 0  # as the emulator has them


@pytest.fixture
def emulator():
    library = build.load()
    yield library
    library.pyops_simt_set_multiprocessors(PROCESSORS)
    library.pyops_simt_set_seed(SEED)


def draw(image_shape, columns, rows, order="any"):
    """Coordinates, a little beyond the image too, whose positions are exact in float32."""
    image = torch.rand(image_shape)
    place = [((torch.rand(len(image), n) * 2.4 - 1.2) * 1024).round() / 1024 for n in (columns, rows)]
    if order != "any":
        place = [p.sort(-1, descending=order == "falling").values for p in place]
    return image, *place


def run(image, x, y, antialias, *, border=False, adaptive=False, as_float=False):
    """Result and gradients, of the image where it is a floating-point one."""
    kind = "adaptive" if adaptive else "separable"
    forward = getattr(torch.ops.pyops_simt, f"{kind}_grid_sample")
    backward = getattr(torch.ops.pyops_simt, f"{kind}_grid_sample_backward")
    out = forward(image, x, y, False, border, antialias, as_float)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    need_image = image.is_floating_point()
    return out, *backward(grad, image, x, y, False, border, antialias, need_image, True, True)


def check(found, image, x, y, antialias, *, border=False, adaptive=False):
    """Against the definition in float64."""
    function = reference.adaptive_grid_sample if adaptive else reference.separable_grid_sample
    leaves = [t.detach().double().requires_grad_() for t in (image, x, y)]
    out = function(*leaves, padding_mode="border" if border else "zeros", antialias=antialias)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    expected = out, *torch.autograd.grad(out, leaves, grad.double())
    for ours, exact in zip(found, expected, strict=True):
        scale = float(exact.detach().abs().max())
        assert_close(ours.double(), exact.detach(), rtol=0, atol=(3e-5 if adaptive else 1e-5) * scale)


# ---- positions -----------------------------------------------------------------------------------------


@POINTS_AND_CELLS
@pytest.mark.parametrize("count", [2, 128, 300, 4097, 4099], ids="K={}".format)
def test_every_block_scans_the_same_vertices(emulator, count, antialias):
    """A block's own scan, a launch for long axes, and coordinates made of the vertices are the same bits."""
    image, logits = torch.rand(1, 1, 5, 9), [2 * torch.randn(1, n - 1) for n in (count, 3)]
    x, y = (2 * torch.ops.pyops_simt.interval_vertices(t) - 1 for t in logits)
    fused = torch.ops.pyops_simt.adaptive_grid_sample(image, *logits, False, False, antialias, False)
    apart = torch.ops.pyops_simt.separable_grid_sample(image, x, y, False, False, antialias, False)
    assert torch.equal(fused, apart)


@pytest.mark.parametrize("count", [1, 7, 128, 129, 1000])
def test_vertices_and_their_gradient(emulator, count):
    logits = 3 * torch.randn(3, count)
    leaf = logits.double().requires_grad_()
    exact = reference.interval_vertices(leaf)
    grad = torch.randn(exact.shape)
    (expected,) = torch.autograd.grad(exact, leaf, grad.double())
    vertices = torch.ops.pyops_simt.interval_vertices(logits)
    assert_close(vertices.double(), exact.detach(), rtol=0, atol=1e-6)
    assert (vertices[:, 0] == 0).all() and (vertices[:, -1] == 1).all()
    found = torch.ops.pyops_simt.interval_vertices_backward(grad, logits)
    assert_close(found.double(), expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@POINTS_AND_CELLS
def test_a_logit_that_is_not_finite_spoils_its_own_image(emulator, bad, antialias):
    image, x, y = torch.rand(2, 3, 6, 8), torch.randn(2, 200), torch.randn(2, 4)
    clean = run(image, x, y, antialias, adaptive=True)
    x[1, 150] = bad
    found = run(image, x, y, antialias, adaptive=True)
    for before, after in zip(clean, found, strict=True):
        assert torch.equal(before[0], after[0])
    assert torch.isnan(found[0][1]).all() and torch.isnan(found[2][1]).all()


# ---- tiles, slots, parts -------------------------------------------------------------------------------


@POINTS_AND_CELLS
@pytest.mark.parametrize("order", ["rising", "falling", "any"])
@pytest.mark.parametrize(
    ("shape", "columns", "rows"),
    [
        ((1, 2, 5, 2300), 6, 3),  # cells wider than a tile
        ((1, 1, 300, 9), 4, 2),  # cells taller than what is weighed at once
        ((1, 1, 4, 3), 700, 150),  # more samples of a pixel than a line of sums holds
        ((2, 7, 6, 40), 70, 9),  # several chunks of channels, and of columns
    ],
    ids=["wide", "tall", "dense", "many"],
)
def test_divisions_of_the_work(emulator, shape, columns, rows, order, antialias):
    image, x, y = draw(shape, columns, rows, order)
    border = order == "falling"
    check(run(image, x, y, antialias, border=border), image, x, y, antialias, border=border)


@POINTS_AND_CELLS
@pytest.mark.parametrize("adaptive", [False, True], ids=["separable", "adaptive"])
def test_any_number_of_multiprocessors(emulator, adaptive, antialias):
    """From all work in few blocks to one row, one channel and four columns a block."""
    image, x, y = draw((2, 6, 9, 50), 40, 70, "rising")
    for count in (1, 4, 200):
        emulator.pyops_simt_set_multiprocessors(count)
        found = run(image, x, y, antialias, adaptive=adaptive)
        check(found, image, x, y, antialias, adaptive=adaptive)
        again = run(image, x, y, antialias, adaptive=adaptive)
        assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@POINTS_AND_CELLS
def test_any_order_of_threads(emulator, antialias):
    image, x, y = draw((2, 3, 9, 50), 40, 30)
    expected = run(image, x, y, antialias)
    for seed in range(1, 4):
        emulator.pyops_simt_set_seed(seed)
        found = run(image, x, y, antialias)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_order_of_coordinates(emulator):
    """Points in another order are the same points, and the image gets the same gradient."""
    image, x, y = draw((1, 2, 9, 50), 300, 20)
    order = torch.randperm(300)
    grad = torch.randn(1, 2, 20, 300)

    def gradients(x, grad):
        return torch.ops.pyops_simt.separable_grid_sample_backward(
            grad, image, x, y, False, False, False, True, True, True
        )

    sorted_image, sorted_x, sorted_y = gradients(x, grad)
    mixed_image, mixed_x, mixed_y = gradients(x[:, order].contiguous(), grad[..., order])
    assert_close(mixed_image, sorted_image, rtol=0, atol=2e-5)
    assert_close(mixed_y, sorted_y, rtol=1e-5, atol=1e-4)
    assert torch.equal(mixed_x, sorted_x[:, order])


def test_samples_at_one_place(emulator):
    """All look at the same two pixels; the others get no gradient, and zeros are written."""
    image, y = torch.rand(1, 1, 3, 600), torch.tensor([[0.0]])
    x = torch.full((1, 900), 0.1)
    found = run(image, x, y, False)
    check(found, image, x, y, False)
    assert (found[1].amax((0, 1, 2)) != 0).sum() + (found[1].amin((0, 1, 2)) != 0).sum() <= 4


# ---- words and elements --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4, 6])
@pytest.mark.parametrize("channels_last", [False, True], ids=["planar", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.uint16])
def test_words_are_elements(emulator, dtype, channels_last, channels):
    """Rows on boundaries of four elements, which are read as words, are as good as others."""
    image, x, y = draw((2, channels, 7, 24), 5, 4, "rising")
    image = image if dtype.is_floating_point else image * (255 if dtype == torch.uint8 else 65535)
    image = image.to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    memory = torch.zeros(image.numel() + 1, dtype=torch.uint8 if dtype == torch.uint8 else torch.int16)
    memory = (torch.zeros(image.numel() + 1) if dtype == torch.float32 else memory).view(dtype)
    shifted = memory[1:].as_strided(image.shape, image.stride(), 1)
    shifted.copy_(image)
    aligned = run(image, x, y, True, as_float=True)
    for one, other in zip(aligned, run(shifted, x, y, True, as_float=True), strict=True):
        assert torch.equal(one, other)
    if dtype == torch.float32:
        check(aligned, image, x, y, True)
        assert channels_last == aligned[0].is_contiguous(memory_format=torch.channels_last) or channels == 1
