"""Vertices made of logits, and those that put a warped image back."""

from __future__ import annotations

import pytest
import torch
from places import pixel_centres, uneven
from torch.testing import assert_close

import pyops

conventions = pytest.mark.parametrize("align_corners", (False, True), ids=("pixels", "corners"))

# ---- vertices from logits ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64))
@pytest.mark.parametrize("spread", (0.0, 1.0, 30.0, 1e4))
def test_vertices_rise_from_exactly_0_to_exactly_1(dtype, spread):
    for shape in ((4, 255), (2, 3, 1), (1, 10_000)):
        vertices = pyops.interval_vertices((torch.randn(shape) * spread).to(dtype))
        assert vertices.shape == (*shape[:-1], shape[-1] + 1) and vertices.dtype == dtype
        assert bool((vertices[..., 0] == 0).all() and (vertices[..., -1] == 1).all())
        assert bool((vertices.diff(dim=-1) >= 0).all())


def test_vertices_of_equal_logits_are_even():
    for count in (1, 2, 255, 4000):
        expected = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        for logit in (0.0, 1.0, -500.0, 3e38):
            vertices = pyops.interval_vertices(torch.full((3, count), logit))
            assert_close(vertices.double(), expected.expand(3, -1), rtol=0, atol=1e-6)


def test_vertices_ignore_what_all_logits_share():
    logits = (torch.randn(2, 63) * 64).round() / 64  # so that the sums are exact
    vertices = pyops.interval_vertices(logits)
    for shift in (-1000.0, 7.0, 3e4):
        assert_close(pyops.interval_vertices(logits + shift), vertices, rtol=0, atol=1e-7)
    (grad,) = torch.autograd.grad(
        pyops.interval_vertices(logits.requires_grad_()), logits, torch.randn(2, 64)
    )
    assert_close(grad.sum(-1), torch.zeros(2), rtol=0, atol=1e-5)


# ---- putting back --------------------------------------------------------------------------------------


@conventions
def test_inverse_vertices_invert_the_piecewise_linear_map(align_corners):
    for size, count in ((7, 23), (300, 5), (1, 4), (16, 16)):
        vertices = uneven(2, count)
        back = pyops.inverse_vertices(vertices, size, align_corners=align_corners)
        last = count - 1
        position = (back + 1) / 2 * last if align_corners else ((back + 1) * count - 1) / 2
        cell = position.floor().clamp(0, last - 1).long()
        low, high = vertices.gather(1, cell), vertices.gather(1, cell + 1)
        place = low + (position - cell) * (high - low)
        centres = pixel_centres(size, align_corners, torch.float64)
        assert_close(place, centres.expand(2, -1), rtol=0, atol=1e-13)


@conventions
def test_warped_ramps_are_put_back_exactly(align_corners):
    height, width = 40, 55
    image = torch.arange(height).double()[:, None] * 2 - torch.arange(width).double() + 7
    image = image.expand(2, 3, height, width)
    centres = [pixel_centres(size, align_corners, torch.float64) for size in (width, height)]
    axes = [uneven(2, n, float(c[0]), float(c[-1])) for n, c in zip((30, 70), centres, strict=True)]
    options = dict(align_corners=align_corners, padding_mode="border")
    warped = pyops.separable_grid_sample(image, *axes, **options)
    inverse = [
        pyops.inverse_vertices(t, n, align_corners=align_corners)
        for t, n in zip(axes, (width, height), strict=True)
    ]
    assert_close(pyops.separable_grid_sample(warped, *inverse, **options), image, rtol=0, atol=1e-10)


@conventions
def test_warped_smooth_images_are_put_back_nearly(align_corners):
    """Both ways interpolate straight lines between samples: off by an eighth of the square of their distance."""
    size, count = 200, 150
    centres = pixel_centres(size, align_corners, torch.float64)
    axis = uneven(1, count, float(centres[0]), float(centres[-1]))
    wave = torch.sin(5 * centres) + torch.cos(3 * centres)
    image = (wave[:, None] + wave)[None, None]
    options = dict(align_corners=align_corners, padding_mode="border")
    inverse = pyops.inverse_vertices(axis, size, align_corners=align_corners)
    back = pyops.separable_grid_sample(
        pyops.separable_grid_sample(image, axis, axis, **options), inverse, inverse, **options
    )
    bend = 2 * (25 + 9)
    bound = bend / 8 * (float(axis.diff().max()) ** 2 + float(centres.diff().max()) ** 2)
    assert float((back - image).abs().max()) < bound < 0.01
    assert (
        float(
            (pyops.separable_grid_sample(image, axis, axis, **options) - image[..., :count, :count])
            .abs()
            .max()
        )
        > 0.1
    )


@conventions
def test_inverse_of_the_inverse(align_corners):
    """Exact for even vertices; else as exact as the places in between are fine."""
    even = pixel_centres(9, align_corners, torch.float64)
    there = pyops.inverse_vertices(even, 20, align_corners=align_corners)
    assert_close(pyops.inverse_vertices(there, 9, align_corners=align_corners), even, rtol=0, atol=1e-13)
    vertices, errors = uneven(1, 12), []
    for size in (50, 5000):
        there = pyops.inverse_vertices(vertices, size, align_corners=align_corners)
        back = pyops.inverse_vertices(there, 12, align_corners=align_corners)
        errors.append(float((back - vertices).abs().max()))
    assert errors[0] < 2 / 50 and errors[1] < errors[0] / 20
