"""What is true of upsampling and warping of disparities alone."""

from __future__ import annotations

import math

import closeness
import pytest
import torch
import torch.nn.functional as F
from disparities import FLOATS, LEVELS, draw_disparity, draw_image, make_upsample, make_warp, near_pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import pyops
from pyops import reference, testing
from pyops.testing import in_double


def any_layout(draw, t):
    order = draw(st.permutations(range(4)))
    t = t.permute(order).contiguous().permute([order.index(i) for i in range(4)])
    return torch.stack([t, t], -1).flatten(-2)[..., ::2] if draw(st.booleans()) else t


@st.composite
def calls(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, height, width = draw(st.integers(0, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    kinds = [draw(st.sampled_from(FLOATS)) for _ in range(2)]
    if draw(st.booleans()):
        inputs = make_upsample(
            (batch, height, width, draw(st.integers(1, 9))), torch.float64, "cpu", generator
        )
    else:
        kinds[0] = draw(st.sampled_from((*FLOATS, *LEVELS)))
        shape = (batch, draw(st.integers(1, 9)), height, width)
        image = draw_image(shape, kinds[0], generator)
        inputs = {"image": image, "disparity": draw_disparity(batch, height, width, torch.float64, generator)}
    pairs = zip(inputs.items(), kinds, strict=True)
    return {name: any_layout(draw, t.to(kind)) for (name, t), kind in pairs}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(calls())
def test_any_call(inputs):
    name = "disparity_warp" if "image" in inputs else "context_upsample"
    function, definition = getattr(pyops, name), getattr(reference, name)
    first = next(iter(inputs.values()))
    result, exact = function(**inputs), definition(**in_double(inputs))
    assert result.dtype == first.dtype and result.shape == exact.shape
    if not result.is_floating_point():
        testing.assert_close_with_boundary_band(
            result, exact, near_pixels(inputs, None), atol=0, max_share=0.1
        )
        return
    closeness.assert_values_close(function, definition, inputs)
    upstream = torch.randn(result.shape, dtype=torch.float64)
    if "image" in inputs:
        upstream = upstream.masked_fill(near_pixels(inputs, "disparity"), 0)
    rounding = torch.finfo(torch.float32).eps
    closeness.assert_gradients_close(
        function, definition, inputs, list(inputs), upstream.to(result.dtype), rounding=rounding
    )


# ---- facts: context_upsample ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8, 11])
def test_one_weight_is_one_neighbour(scale):
    """Weight k alone takes the coarse pixel dy rows below and dx columns right, and nothing beyond the image."""
    disparity = torch.rand(2, 1, 5, 6) + 1
    around = F.pad(disparity, (1, 1, 1, 1))
    for k in range(9):
        weights = torch.zeros(2, 9, 5 * scale, 6 * scale)
        weights[:, k] = 1
        dy, dx = divmod(k, 3)
        expected = (
            around[:, :, dy : dy + 5, dx : dx + 6].repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        )
        assert torch.equal(pyops.context_upsample(disparity, weights), expected)


def test_upsample_is_unfold_and_interpolate():
    disparity, weights = torch.rand(2, 1, 12, 17) * 64, torch.randn(2, 9, 48, 68).softmax(1)
    near = F.interpolate(F.unfold(disparity, 3, 1, 1).view(2, 9, 12, 17), (48, 68), mode="nearest")
    assert_close(
        pyops.context_upsample(disparity, weights),
        (near * weights).sum(1, keepdim=True),
        rtol=1e-6,
        atol=1e-5,
    )


def test_upsample_of_a_constant_is_it_inside():
    weights = torch.randn(1, 9, 24, 40).softmax(1)
    fine = pyops.context_upsample(torch.full((1, 1, 6, 10), 7.0), weights)
    assert_close(fine[..., 4:-4, 4:-4], torch.full((1, 1, 16, 32), 7.0))
    assert (fine <= 7 + 1e-5).all() and (fine[..., 0, 0] < 7).all()


def test_upsample_beyond_the_image_is_zero_times_the_weight():
    """As in the definition: an infinite weight of a neighbour that is not there makes NaN."""
    weights = torch.ones(1, 9, 6, 6)
    weights[0, 0] = math.inf
    disparity = torch.ones(1, 1, 3, 3)
    found, expected = (m.context_upsample(disparity, weights) for m in (pyops, reference))
    assert torch.equal(found.isnan(), expected.isnan()) and found[0, 0, 0, 0].isnan()


def test_upsample_gradients_are_adjoint():
    """<g, A d> = <A' g, d> with A linear in either argument."""
    disparity, weights = torch.rand(2, 1, 7, 9).double(), torch.randn(2, 9, 35, 45).double()
    grad = torch.randn(2, 1, 35, 45).double()
    inner = (grad * pyops.context_upsample(disparity, weights)).sum()
    to = torch.ops.pyops.context_upsample_backward(grad, disparity, weights, True, True)
    assert_close((to[0] * disparity).sum(), inner)
    assert_close((to[1] * weights).sum(), inner)


# ---- facts: disparity_warp -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *LEVELS])
@pytest.mark.parametrize("shift", [0, 1, 5, -3, 40, -40])
def test_whole_disparities_move_pixels(dtype, shift):
    image = draw_image((2, 3, 4, 11), dtype, torch.Generator().manual_seed(0))
    column = (torch.arange(11) - shift).clamp(0, 10)
    expected = image.double()[..., column].to(dtype)
    assert torch.equal(pyops.disparity_warp(image, torch.full((2, 1, 4, 11), float(shift))), expected)


def test_warp_is_grid_sample():
    image, disparity = torch.rand(2, 3, 9, 31), torch.rand(2, 1, 9, 31) * 20 - 5
    x = (torch.arange(31.0) - disparity[:, 0]) / 30 * 2 - 1
    y = torch.linspace(-1, 1, 9)[None, :, None].expand_as(x)
    theirs = F.grid_sample(image, torch.stack([x, y], -1), padding_mode="border", align_corners=True)
    assert_close(pyops.disparity_warp(image, disparity), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.uint16])
def test_disparities_that_are_not_finite(dtype):
    """Infinities sample the border; NaN gives NaN, or 0 in integers. Neither has a gradient."""
    image = draw_image((1, 2, 1, 6), dtype, torch.Generator().manual_seed(1))
    disparity = torch.tensor([0.0, math.inf, -math.inf, math.nan, 1e30, -1e30])[None, None, None]
    out = pyops.disparity_warp(image, disparity)
    column = torch.tensor([0, 0, 5, 0, 0, 5])
    expected = image.double()[..., column].to(dtype)
    known = torch.tensor([True, True, True, False, True, True])
    assert torch.equal(out[..., known], expected[..., known])
    unknown = out[..., 3]
    assert unknown.isnan().all() if dtype.is_floating_point else (unknown.double() == 0).all()
    if dtype.is_floating_point:
        _, grads = testing.gradients(
            pyops.disparity_warp,
            dict(image=image, disparity=disparity),
            ["image", "disparity"],
            torch.ones(1, 2, 1, 6),
        )
        assert torch.equal(grads["image"], torch.tensor([3.0, 0, 0, 0, 0, 2]).to(dtype).expand(1, 2, 1, 6))
        assert (grads["disparity"] == 0).all()


def test_all_samples_at_one_pixel():
    """A row's sums stay exact where thousands of samples meet."""
    image, disparity = torch.rand(1, 1, 2, 5000), torch.full((1, 1, 2, 5000), 1e6)
    grad = torch.rand(1, 1, 2, 5000)
    to, _ = torch.ops.pyops.disparity_warp_backward(grad, image, disparity, True, False)
    assert_close(to[..., 0].double(), grad.double().sum(-1), rtol=1e-6, atol=0)
    assert (to[..., 1:] == 0).all()


def test_gradient_of_a_ramp():
    """On a ramp every sample inside moves by minus the ramp's slope."""
    image = torch.arange(20.0).expand(1, 3, 2, 20).contiguous()
    disparity = torch.full((1, 1, 2, 20), 4.25, requires_grad=True)
    out = pyops.disparity_warp(image, disparity)
    out.sum().backward()
    inside = torch.arange(20) > 4
    assert_close(out[..., inside], (torch.arange(20.0) - 4.25)[inside].expand(1, 3, 2, -1))
    assert torch.equal(disparity.grad, torch.where(inside, -3.0, 0.0).expand(1, 1, 2, 20))


# ---- memory and threads --------------------------------------------------------------------------------


def test_operators_check_memory_themselves():
    disparity, weights = torch.zeros(2, 1, 3, 4), torch.zeros(2, 9, 6, 8)
    upsample, warp = torch.ops.pyops.context_upsample, torch.ops.pyops.disparity_warp
    for match, args in (
        ("disparity", (disparity[:, :0], weights)),
        ("floating", (disparity.int(), weights)),
        ("weights", (disparity, weights[:, :8])),
        ("weights", (disparity, weights[:1])),
        ("weights", (disparity, weights[..., 1:])),
        ("weights", (disparity, weights[:, :, :2])),
    ):
        with pytest.raises(RuntimeError, match=match):
            upsample(*args)
    image, shift = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5)
    for match, args in (
        ("image", (image[:, :0], shift)),
        ("image", (image.int(), shift)),
        ("disparity", (image, shift.int())),
        ("disparity", (image, shift[..., 1:])),
        ("disparity", (image, shift[:1])),
    ):
        with pytest.raises(RuntimeError, match=match):
            warp(*args)
    grad = torch.zeros(2, 1, 6, 8)
    for wrong_grad in (grad[0], grad[:1], grad[..., 1:], grad.int()):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.pyops.context_upsample_backward(wrong_grad, disparity, weights, True, True)
    for wrong_grad in (image[0], image[:1], image[..., 1:], image.int()):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.pyops.disparity_warp_backward(wrong_grad, image, shift, True, True)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_do_not_depend_on_threads(threads):
    generator = torch.Generator().manual_seed(0)
    calls = (
        (pyops.context_upsample, make_upsample((2, 33, 47, 4), torch.float32, "cpu", generator)),
        (pyops.disparity_warp, make_warp((2, 5, 65, 190), torch.float32, "cpu", generator)),
    )
    for function, inputs in calls:
        upstream = torch.randn(function(**inputs).shape, generator=generator)
        _, expected = testing.gradients(function, inputs, list(inputs), upstream)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            _, found = testing.gradients(function, inputs, list(inputs), upstream)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[name], expected[name]) for name in found)
