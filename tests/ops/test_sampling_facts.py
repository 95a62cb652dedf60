"""What is true of sampling on separable grids alone: values known beforehand, other people's results, numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from places import cell_edges, exact_places, pixel_centres, rand, uneven
from torch.testing import assert_close

import pyops
from pyops.testing import gradients

LEVELS = {torch.uint8: 255, torch.uint16: 65535}
paddings = pytest.mark.parametrize("padding_mode", ("zeros", "border"))
conventions = pytest.mark.parametrize("align_corners", (False, True), ids=("pixels", "corners"))
both_ways = pytest.mark.parametrize("antialias", (False, True), ids=("point", "antialias"))


# ---- values known beforehand ---------------------------------------------------------------------------


@paddings
@conventions
@pytest.mark.parametrize("channels", (1, 3, 6))
def test_equals_grid_sample(padding_mode, align_corners, channels):
    image = torch.randn(2, channels, 13, 9, dtype=torch.float64)
    x, y = rand(2, 40, low=-1.4, high=1.4).double(), rand(2, 31, low=-1.4, high=1.4).double()
    modes = dict(padding_mode=padding_mode, align_corners=align_corners)

    def theirs(image, x, y):
        grid = torch.stack([x[:, None].expand(-1, 31, -1), y[:, :, None].expand(-1, -1, 40)], -1)
        return F.grid_sample(image, grid, mode="bilinear", **modes)

    def ours(image, x, y):
        return pyops.separable_grid_sample(image, x, y, **modes)

    inputs = {"image": image, "x": x, "y": y}
    upstream = torch.randn(2, channels, 31, 40, dtype=torch.float64)
    expected, expected_grads = gradients(theirs, inputs, list(inputs), upstream)
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs["image"] = image.contiguous(memory_format=layout)
        result, grads = gradients(ours, inputs, list(inputs), upstream.contiguous(memory_format=layout))
        assert_close(result, expected, rtol=0, atol=1e-13)
        for name in inputs:
            assert_close(grads[name], expected_grads[name], rtol=0, atol=1e-11)
    assert_close(ours(*(t.float() for t in (image, x, y))).double(), expected, rtol=0, atol=2e-5)


@paddings
@pytest.mark.parametrize("align_corners, sizes", ((False, (32, 64)), (True, (33, 5)), (True, (1, 2))))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, *LEVELS))
def test_pixel_centres_return_the_image(padding_mode, align_corners, sizes, dtype):
    """Bit by bit: the coordinates of pixels are exact at these sizes."""
    image = (rand(2, 3, *sizes) * LEVELS.get(dtype, 1)).to(dtype)
    y, x = (pixel_centres(size, align_corners).expand(2, -1) for size in sizes)
    for columns, expected in ((x, image), (x.flip(1), image.double().flip(3).to(dtype))):
        out = pyops.separable_grid_sample(
            image, columns, y, align_corners=align_corners, padding_mode=padding_mode
        )
        assert torch.equal(out, expected)


@conventions
@pytest.mark.parametrize("height, width", ((61, 47), (3, 100), (1080, 7)))
def test_pixel_centres_of_any_size(align_corners, height, width):
    image = rand(1, 2, height, width)
    x, y = (pixel_centres(size, align_corners)[None] for size in (width, height))
    options = dict(align_corners=align_corners, padding_mode="border")
    out = pyops.separable_grid_sample(image, x, y, **options)
    assert_close(out, image, rtol=0, atol=2.5e-7 * max(height, width))
    as_bytes = (image * 255).byte()
    assert torch.equal(pyops.separable_grid_sample(as_bytes, x, y, **options), as_bytes)


@both_ways
@conventions
def test_constant_images_stay_constant(antialias, align_corners):
    image = torch.tensor([0.25, -3.5, 1e4]).view(1, 3, 1, 1).expand(2, 3, 17, 23)
    x, y = rand(2, 41, low=-2, high=2), rand(2, 30, low=-2, high=2)
    options = dict(align_corners=align_corners, antialias=antialias)
    for scale, padding_mode in ((1, "border"), (0.45, "zeros")):  # nothing reaches out of the image by 0.9
        out = pyops.separable_grid_sample(image, scale * x, scale * y, padding_mode=padding_mode, **options)
        assert_close(out, image[:, :, :1, :1].expand_as(out), rtol=1e-6, atol=0)


@both_ways
@conventions
def test_ramps_stay_ramps(antialias, align_corners):
    """A straight line has its value in the middle of a cell as its mean, and its slope as its gradient."""
    height, width = 12, 19
    image = 3 + 0.5 * torch.arange(height).double()[:, None] - 0.25 * torch.arange(width).double()

    def expected(image, x, y):
        if antialias:
            x, y = ((edges[:, 1:] + edges[:, :-1]) / 2 for edges in (cell_edges(x), cell_edges(y)))
        spare = int(align_corners)
        column, row = ((p * (n - spare) + n - 1) / 2 for p, n in zip((x, y), (width, height), strict=True))
        return (3 - 0.25 * column[:, None, :] + 0.5 * row[:, :, None])[:, None]

    def function(image, x, y):
        return pyops.separable_grid_sample(image, x, y, align_corners=align_corners, antialias=antialias)

    x, y = rand(1, 25, low=-0.8, high=0.8, dtype=torch.float64), uneven(1, 14, 0.8, -0.8)
    inputs, upstream = {"image": image[None, None], "x": x, "y": y}, torch.randn(1, 1, 14, 25)
    truth, slopes = gradients(expected, inputs, ["x", "y"], upstream)
    for dtype, atol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        given = {name: t.to(dtype) for name, t in inputs.items()}
        result, grads = gradients(function, given, ["x", "y"], upstream)
        assert_close(result, truth.to(dtype), rtol=0, atol=atol)
        for name in slopes:
            assert_close(grads[name], slopes[name].to(dtype), rtol=0, atol=20 * atol)


@both_ways
def test_batches_and_parts_are_what_they_are_alone(antialias):
    image, x, y = rand(3, 5, 40, 50), rand(3, 70, low=-1.2, high=1.2), rand(3, 61, low=-1.2, high=1.2)
    out = pyops.separable_grid_sample(image, x, y, antialias=antialias)
    for i in range(3):
        one = pyops.separable_grid_sample(image[i : i + 1], x[i : i + 1], y[i : i + 1], antialias=antialias)
        assert_close(out[i : i + 1], one, rtol=0, atol=1e-6)
    for channels in (slice(0, 1), slice(1, 5)):
        one = pyops.separable_grid_sample(image[:, channels], x, y, antialias=antialias)
        assert_close(out[:, channels], one, rtol=0, atol=1e-6)
    if not antialias:
        part = pyops.separable_grid_sample(image, x[:, 11:14], y[:, 60:])
        assert_close(out[:, :, 60:, 11:14], part, rtol=0, atol=1e-6)


# ---- adaptive ------------------------------------------------------------------------------------------


def test_adaptive_is_vertices_then_separable():
    image, x, y = rand(2, 3, 21, 17), torch.randn(2, 30), torch.randn(2, 12)
    for options in ({}, {"align_corners": True, "padding_mode": "border"}, {"antialias": True}):
        axes = (2 * pyops.interval_vertices(t) - 1 for t in (x, y))
        expected = pyops.separable_grid_sample(image, *axes, **options)
        assert_close(pyops.adaptive_grid_sample(image, x, y, **options), expected, rtol=0, atol=2e-5)


def test_even_samples_of_white_mix_with_black_at_the_border():
    """What the weights of CoTF were trained on: the outermost samples lie half a pixel outside."""
    for height, width, dtype in ((9, 11, torch.float32), (300, 257, torch.float32), (8, 8, torch.float64)):
        out = pyops.adaptive_grid_sample(
            torch.ones(1, 3, height, width, dtype=dtype), torch.ones(1, 5), torch.ones(1, 3)
        )
        expected = torch.ones(4, 6, dtype=dtype)
        expected[[0, -1]] *= 0.5
        expected[:, [0, -1]] *= 0.5
        assert_close(out, expected.expand(1, 3, 4, 6), rtol=0, atol=1e-6 * height)
        assert out[0, 0, 0, 0] == 0.25 and out[0, 0, -1, -1] == 0.25


@both_ways
@pytest.mark.parametrize("value", (float("nan"), float("inf"), -float("inf")))
def test_logits_that_are_no_numbers_spoil_their_own_image(antialias, value):
    """Nobody looks at logits in compiled code or on a GPU, so kernels must cope; as does the operator here."""
    image, x, y = rand(3, 2, 9, 8), torch.randn(3, 6), torch.randn(3, 5)
    clean = pyops.adaptive_grid_sample(image, x, y, antialias=antialias)
    x[0, 2], y[2, 0] = value, value
    for kind in (torch.float32, torch.uint8):
        values = image if kind.is_floating_point else (image * 255).byte()
        out = torch.ops.pyops.adaptive_grid_sample(values, x, y, False, False, antialias, False)
        if kind.is_floating_point:
            assert bool(out[[0, 2]].isnan().all())
            assert torch.equal(out[1], clean[1])
        else:
            assert int(out[[0, 2]].max()) == 0 and int(out[1].max()) > 0
    grads = torch.ops.pyops.adaptive_grid_sample_backward(
        torch.ones_like(clean), image, x, y, False, False, antialias, True, True, True
    )
    assert all(bool(grad[1].isfinite().all()) for grad in grads)
    assert bool(torch.ops.pyops.interval_vertices(x)[0].isnan().all())


# ---- element types and layouts -------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("dtype", LEVELS)
def test_integers_are_the_float_path_rounded(antialias, dtype):
    levels = LEVELS[dtype]
    image = torch.randint(0, levels + 1, (2, 3, 33, 47)).to(dtype)
    x, y = exact_places(2, 90), exact_places(2, 80, high=1.2)
    real = pyops.separable_grid_sample(image.double() / levels, x.double(), y.double(), antialias=antialias)
    result = pyops.separable_grid_sample(image, x, y, antialias=antialias).double()
    rounding = 1e-6 * levels
    sure = ((real * levels).frac() - 0.5).abs() > rounding
    assert float(sure.double().mean()) > 0.8
    assert torch.equal(result[sure], (real * levels).round()[sure])
    assert float((result - real * levels).abs().max()) < 0.5 + rounding
    plain = pyops.separable_grid_sample(image, x, y, antialias=antialias, dtype=torch.float32)
    assert plain.dtype == torch.float32
    assert_close(plain.double(), real, rtol=0, atol=1e-6)


@both_ways
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_half_images_compute_in_float32(antialias, dtype):
    image, x, y = rand(1, 3, 33, 35).to(dtype), rand(1, 50, low=-1.1), rand(1, 41, low=-1.1)
    real = pyops.separable_grid_sample(image.float(), x, y, antialias=antialias)
    assert torch.equal(pyops.separable_grid_sample(image, x, y, antialias=antialias), real.to(dtype))
    single = pyops.separable_grid_sample(image, x, y, antialias=antialias, dtype=torch.float32)
    assert torch.equal(single, real)
    x, y = x.to(dtype), y.to(dtype)
    wide = pyops.separable_grid_sample(image.float(), x.float(), y.float(), antialias=antialias)
    assert torch.equal(pyops.separable_grid_sample(image, x, y, antialias=antialias), wide.to(dtype))
    logits = torch.randn(1, 20).to(dtype)
    wide = pyops.adaptive_grid_sample(image.float(), logits.float(), logits.float(), antialias=antialias)
    assert torch.equal(pyops.adaptive_grid_sample(image, logits, logits, antialias=antialias), wide.to(dtype))


@both_ways
def test_float64_anywhere_makes_all_float64(antialias):
    image, x, y = rand(1, 3, 33, 35), rand(1, 50, low=-1.1), rand(1, 41, low=-1.1)
    exact = pyops.separable_grid_sample(image.double(), x.double(), y.double(), antialias=antialias).float()
    for given in ((image, x.double(), y), (image, x, y.double())):
        assert torch.equal(pyops.separable_grid_sample(*given, antialias=antialias), exact)
    assert not torch.equal(pyops.separable_grid_sample(image, x, y, antialias=antialias), exact)
    out = pyops.separable_grid_sample(image.double(), x, y, antialias=antialias, dtype=torch.float32)
    assert torch.equal(out, exact)


@both_ways
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.uint8, torch.uint16))
@pytest.mark.parametrize("channels", (1, 3, 4, 7))
def test_memory_format_is_kept(antialias, dtype, channels):
    image, x, y = (rand(2, channels, 21, 22) * 200).to(dtype), rand(2, 30, low=-1.2), rand(2, 17, low=-1.2)
    last = image.contiguous(memory_format=torch.channels_last)

    def run(image, **options):
        return pyops.separable_grid_sample(image, x, y, antialias=antialias, **options)

    plain = run(image)
    for options in ({}, {"dtype": torch.float32}):
        out = run(last, **options)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert out.is_contiguous() == (channels == 1)
        assert_close(out, run(image, **options), rtol=1e-6, atol=0 if dtype in LEVELS else 1e-6)
    assert plain.is_contiguous()
    if dtype.is_floating_point:
        leaf = last.requires_grad_()
        run(leaf).sum().backward()
        assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


# ---- coordinates that are no places --------------------------------------------------------------------


@paddings
@conventions
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.uint8))
def test_coordinates_far_away_and_not_numbers(padding_mode, align_corners, dtype):
    """NaN gives NaN (0 in integers), everything else what lies there; nothing else changes, nor do gradients."""
    image = (rand(1, 2, 6, 7) * LEVELS.get(dtype, 1)).to(dtype)
    far = torch.tensor([torch.nan, torch.inf, -torch.inf, 3e38, -3e38, 1e30, -(2.0**31), 2.0**33, -1e10])
    near = rand(12, low=-1, high=1)
    x, y = torch.cat([near[:5], far, near[5:]])[None], rand(1, 9)
    options = dict(padding_mode=padding_mode, align_corners=align_corners)
    out, plain = (pyops.separable_grid_sample(image, c, y, **options) for c in (x, near[None]))
    assert torch.equal(torch.cat([out[..., :5], out[..., 14:]], -1), plain)
    right = far[1:] > 0
    assert bool(out[..., 5].isnan().all()) if dtype.is_floating_point else int(out[..., 5].max()) == 0
    edges = [pyops.separable_grid_sample(image, torch.full((1, 1), e), y, **options) for e in (-1.3, 1.3)]
    beyond = (
        torch.where(right, edges[1], edges[0])
        if padding_mode == "border"
        else torch.zeros_like(out[..., 6:14])
    )
    assert_close(out[..., 6:14], beyond, rtol=0, atol=1e-6 if dtype.is_floating_point else 0)
    if not dtype.is_floating_point:
        return
    for name, grid in (("x", {"x": x, "y": y}), ("y", {"x": y, "y": x})):

        def function(image, x, y):
            return pyops.separable_grid_sample(image, x, y, **options)

        inputs = {"image": image, **grid}
        upstream = torch.ones_like(function(**inputs))
        _, grads = gradients(function, inputs, ["image", "x", "y"], upstream)
        assert not grads[name][0, 6:14].any()
        without = {**inputs, name: near[None]}
        _, alone = gradients(function, without, [name], torch.ones_like(function(**without)))
        assert torch.equal(torch.cat([grads[name][:, :5], grads[name][:, 14:]], 1), alone[name])
