"""Means over cells: against integrals, sums that must stay, and what a fine pattern becomes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from places import cell_edges, rand, uneven
from torch.testing import assert_close

import pyops
from pyops import reference
from pyops.testing import gradients, in_double

paddings = pytest.mark.parametrize("padding_mode", ("zeros", "border"))
conventions = pytest.mark.parametrize("align_corners", (False, True), ids=("pixels", "corners"))


def mean(image, x, y, **options):
    return pyops.separable_grid_sample(image, x, y, antialias=True, **options)


# ---- integrals -----------------------------------------------------------------------------------------


@paddings
@conventions
@pytest.mark.parametrize("order", ("rising", "falling", "any"))
def test_equals_the_mean_of_many_samples(padding_mode, align_corners, order):
    """20000 points for each cell, of a line at a time; `F.grid_sample` takes them."""
    image = torch.randn(1, 2, 9, 6, dtype=torch.float64)
    x = {
        "rising": uneven(1, 7, -1.2, 1.3),
        "falling": uneven(1, 7, 1.1, -1.4),
        "any": rand(1, 7, low=-1.5, high=1.5, dtype=torch.float64),
    }[order]
    y = torch.tensor([[-0.3]], dtype=torch.float64)  # one coordinate alone is a point
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    edges = cell_edges(x)[0]
    part = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    fine = edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * part
    grid = torch.stack([fine.flatten(), y.expand(fine.numel(), 1)[:, 0]], -1)[None, None]
    expected = F.grid_sample(image, grid, **options).view(1, 2, 1, 7, -1).mean(-1)
    assert_close(mean(image, x, y, **options), expected, rtol=0, atol=1e-7)
    assert_close(mean(image.mT, y, x, **options), expected.mT, rtol=0, atol=1e-7)
    single = mean(image.float(), x.float(), y.float(), **options)
    assert_close(single.double(), expected, rtol=0, atol=2e-5)


@paddings
@pytest.mark.parametrize("flip", (1, -1))
def test_cells_of_any_partition_hold_the_same_sum(padding_mode, flip):
    """Energy: mean times width, summed over the cells of a span, is the integral over the span."""
    image = torch.randn(2, 3, 30, 41, dtype=torch.float64)
    sums = []
    for count in (2, 5, 60, 500):
        x, y = flip * uneven(2, count, -1.3, 0.9), uneven(2, count + 3, -0.7, 1.1)
        width, height = cell_edges(x).diff(dim=1), cell_edges(y).diff(dim=1)
        out = mean(image, x, y, padding_mode=padding_mode)
        sums.append((out * width[:, None, None, :] * height[:, None, :, None]).sum((2, 3)))
    for total in sums[1:]:
        assert_close(total, sums[0], rtol=0, atol=1e-12)


def test_uniform_cells_of_whole_pixels_hold_all_of_the_image():
    """Between the centres of the outermost pixels that is the trapezoidal rule."""
    image = rand(1, 1, 33, 65)
    shares = [F.pad(torch.ones(n - 2), (1, 1), value=0.5) / (n - 1) for n in (33, 65)]
    expected = float((image[0, 0] * shares[0][:, None] * shares[1]).sum())
    x, y = (torch.linspace(-1, 1, n)[None] for n in (17, 9))
    weight = [F.pad(torch.ones(n - 2), (1, 1), value=0.5) / (n - 1) for n in (9, 17)]
    out = mean(image, x, y, align_corners=True)[0, 0]
    assert abs(float((out * weight[0][:, None] * weight[1]).sum()) - expected) < 1e-6


@paddings
@pytest.mark.parametrize("step", (0.0, 2.0**-20, 2.0**-16))
def test_cells_within_a_pixel_are_points(padding_mode, step):
    """Also far from the origin and on large values, where differences of integrals would be lost in rounding."""
    image, y = 1000 + rand(1, 2, 3, 4096), torch.zeros(1, 1)

    def points(image, x, y):
        edges = cell_edges(x)
        return pyops.separable_grid_sample(
            image, (edges[:, 1:] + edges[:, :-1]) / 2, y, padding_mode=padding_mode
        )

    def means(image, x, y):
        return mean(image, x, y, padding_mode=padding_mode)

    for pixel in (60, 1700, 2300, 3900, 4050):
        place = torch.tensor((2 * (pixel + 0.3) + 1) / 4096 - 1, dtype=torch.float64)
        x = (place * 2**22).round() / 2**22 + step * torch.arange(5)
        inputs = {"image": image, "x": x[None].float(), "y": y}
        upstream = torch.randn(1, 2, 1, 5)
        result, grads = gradients(means, inputs, ["image", "x"], upstream)
        expected, slopes = gradients(points, in_double(inputs), ["image", "x"], upstream)
        assert_close(result.double(), expected, rtol=0, atol=3e-4)
        assert_close(grads["x"].double(), slopes["x"], rtol=0, atol=5)  # of 2048 times a difference of pixels
        assert float(slopes["x"].abs().max()) > 100
        assert_close(grads["image"].double(), slopes["image"], rtol=0, atol=1e-5)


def test_large_cells_are_exact():
    """A thousand pixels in a mean, as exact as one."""
    image = rand(1, 3, 16, 5000)
    x, y = torch.tensor([[-1.0, -0.1, 0.3, 1.0]]), torch.tensor([[-0.5, 0.6]])
    expected = reference.separable_grid_sample(image.double(), x.double(), y.double(), antialias=True)
    assert_close(mean(image, x, y).double(), expected, rtol=0, atol=3e-7)
    raised = mean(1000 + image, x, y, padding_mode="border") - 1000
    assert_close(raised, mean(image, x, y, padding_mode="border"), rtol=0, atol=5e-4)


@conventions
def test_a_single_coordinate_is_a_point(align_corners):
    image, x, y = rand(2, 3, 9, 8), rand(2, 1, low=-1), rand(2, 1, low=-1)
    point = pyops.separable_grid_sample(image, x, y, align_corners=align_corners)
    assert_close(mean(image, x, y, align_corners=align_corners), point, rtol=0, atol=1e-6)


# ---- aliasing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, layout", ((torch.float32, torch.contiguous_format), (torch.uint8, torch.channels_last))
)
def test_a_fine_chequerboard_turns_grey(dtype, layout):
    """4K to 256 x 256: points see patterns that are not there, means do not."""
    height, width = 2160, 3840
    board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    image = (board * (1 if dtype.is_floating_point else 255)).to(dtype).expand(1, 3, -1, -1)
    image = image.contiguous(memory_format=layout)
    even = torch.zeros(1, 255)
    options = dict(padding_mode="border", dtype=torch.float32)
    grey = pyops.adaptive_grid_sample(image, even, even, antialias=True, **options)
    assert float((grey - 0.5).abs().max()) < 0.01
    assert float((grey[..., 1:-1, 1:-1] - 0.5).abs().max()) < 1e-3
    points = pyops.adaptive_grid_sample(image, even, even, **options)
    assert float(points.std()) > 0.1


# ---- what is not finite --------------------------------------------------------------------------------


@paddings
@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_a_pixel_that_is_not_finite_reaches_the_cells_that_touch_it(padding_mode, value):
    image, x, y = rand(2, 2, 12, 15), uneven(2, 9, -1.1, 1.1).float(), uneven(2, 20, 0.9, -1).float()
    clean = mean(image, x, y, padding_mode=padding_mode)
    row, column = 4, 7
    image[1, 0, row, column] = value
    out = mean(image, x, y, padding_mode=padding_mode)
    hit = []
    for place, size, pixel in ((y, 12, row), (x, 15, column)):
        edges = ((cell_edges(place[1:].double()) + 1) * size - 1) / 2
        low, high = edges.unfold(1, 2, 1).amin(-1)[0], edges.unfold(1, 2, 1).amax(-1)[0]
        hit.append((high.floor() + 1 >= pixel) & (low.floor() <= pixel))
        sure = (edges - edges.round()).abs().min()
        assert float(sure) > 1e-4, "a bound lies on a pixel; choose other coordinates"
    touched = torch.zeros_like(out, dtype=torch.bool)
    touched[1, 0] = hit[0][:, None] & hit[1]
    assert 0 < int(touched.sum()) < touched[1, 0].numel()
    assert torch.equal(~out.isfinite(), touched)
    assert torch.equal(out[~touched], clean[~touched])


@paddings
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_coordinates_that_are_no_places(padding_mode, dtype):
    """NaN spoils the two or three cells that it bounds; whatever is infinitely far away has its limit."""
    image, y = rand(1, 2, 6, 7).to(dtype), rand(1, 5, low=-1).to(dtype)
    nan, inf = torch.nan, torch.inf
    x = torch.tensor([[0.1, 0.5, nan, -0.2, 0.3, 0.4, -0.6]], dtype=dtype)
    out = mean(image, x, y, padding_mode=padding_mode)
    assert out.isnan().all(2)[0, 0].tolist() == [False, True, True, True, False, False, False]
    assert not bool(out[..., [0, 4, 5, 6]].isnan().any())
    for far in ([-inf, 0.1, inf], [3e38, -3e38, 0.2, 0.5], [0.1, 2.0**31, 2.0**33, 0.0], [1e20, 1e20, 1e20]):
        x = torch.tensor([far], dtype=dtype)
        out = mean(image, x, y, padding_mode=padding_mode)
        expected = reference.separable_grid_sample(image, x, y, padding_mode=padding_mode, antialias=True)
        assert_close(out, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
        inputs = {"image": image, "x": x, "y": y}
        _, grads = gradients(
            lambda **given: mean(**given, padding_mode=padding_mode),
            inputs,
            list(inputs),
            torch.ones_like(out),
        )
        assert bool(grads["image"].isfinite().all())
