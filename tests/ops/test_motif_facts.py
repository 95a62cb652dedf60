"""What is true of the motif operators alone."""

from __future__ import annotations

import closeness
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from memory import LAYOUTS, relayout
from motifs import FLOATS, make_camp, make_highpass
from torch.testing import assert_close

import pyops
from pyops import reference
from pyops.testing import gradients, in_double


@st.composite
def calls(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = [draw(st.integers(*bounds)) for bounds in ((0, 3), (1, 20), (1, 9), (1, 40))]
    dtype = draw(st.sampled_from(FLOATS))
    if draw(st.booleans()):
        inputs = make_highpass(sizes, dtype, "cpu", generator)
    else:
        inputs = make_camp((*sizes, draw(st.integers(1, 6))), dtype, "cpu", generator)
    return {name: relayout(t, draw(st.sampled_from(LAYOUTS))) for name, t in inputs.items()}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(calls())
def test_any_call(inputs):
    name = "camp_conv" if "kernel" in inputs else "constant_highpass"
    function, definition = getattr(pyops, name), getattr(reference, name)
    result, features = function(**inputs), inputs["features"]
    assert result.dtype == features.dtype and result.shape == features.shape
    closeness.assert_values_close(function, definition, inputs)
    upstream = torch.randn(result.shape, dtype=torch.float64).to(result.dtype)
    rounding = torch.finfo(torch.float32).eps
    closeness.assert_gradients_close(function, definition, inputs, list(inputs), upstream, rounding=rounding)


# ---- facts: constant_highpass --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 7, 8, 9, 64, 200])
def test_all_channels_lose_the_same(channels):
    features = torch.randn(2, channels, 11, 23)
    lost = features - pyops.constant_highpass(features)
    expected = F.avg_pool2d(features.sum(1, keepdim=True), 3, 1, 1)
    assert_close(lost, expected.expand_as(lost), rtol=0, atol=1e-5)


def test_highpass_is_its_own_gradient():
    features, grad = torch.randn(2, 2, 5, 9, 13, dtype=torch.float64).unbind()
    _, grads = gradients(pyops.constant_highpass, {"features": features}, ["features"], grad)
    assert torch.equal(grads["features"], pyops.constant_highpass(grad))
    one, other = (
        (grad * pyops.constant_highpass(features)).sum(),
        (pyops.constant_highpass(grad) * features).sum(),
    )
    assert_close(one, other)


def test_highpass_of_what_adds_up_to_nothing_is_itself():
    features = torch.randn(1, 6, 7, 9)
    features = torch.cat([features, -features.flip(1)], 1)
    assert_close(pyops.constant_highpass(features), features, rtol=0, atol=1e-6)


def test_sums_of_many_channels_are_as_exact_as_the_definition():
    features = torch.rand(1, 1024, 3, 5)
    exact = reference.constant_highpass(features.double())
    error = (pyops.constant_highpass(features).double() - exact).abs().max()
    assert error < 4 * torch.finfo(torch.float32).eps * exact.abs().max()


# ---- facts: camp_conv ----------------------------------------------------------------------------------


def test_camp_is_convolution_of_the_product():
    inputs = make_camp((2, 9, 6, 11, 3), torch.float32, "cpu", torch.Generator().manual_seed(0))
    motif, features, kernel = inputs.values()
    product = torch.einsum("bshw,bchw->bschw", motif, features)
    expected = F.conv3d(product, kernel[None], padding=1)[:, 0]
    assert_close(pyops.camp_conv(**inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tap", range(27))
def test_one_tap_is_one_neighbour(tap):
    """Element (dc, dy, dx) of a motif's kernel takes the product from the channel dc further, and so on."""
    motif, features = torch.rand(1, 2, 5, 10), torch.randn(1, 9, 5, 10)
    kernel = torch.zeros(2, 27)
    kernel[1, tap] = 1
    dc, dy, dx = (tap // 9, tap // 3 % 3, tap % 3)
    product = F.pad(motif[:, 1:] * features, (1, 1, 1, 1, 1, 1))
    expected = product[:, dc : dc + 9, dy : dy + 5, dx : dx + 10]
    assert_close(pyops.camp_conv(motif, features, kernel.view(2, 3, 3, 3)), expected, rtol=0, atol=0)


def test_camp_gradients_are_adjoint():
    """<g, A t> = <A' g, t>, with A linear in any one argument."""
    inputs = make_camp((2, 11, 6, 37, 3), torch.float64, "cpu", torch.Generator().manual_seed(1))
    grad = torch.randn(2, 11, 6, 37, dtype=torch.float64)
    result, grads = gradients(pyops.camp_conv, inputs, list(inputs), grad)
    for name, to in grads.items():
        assert_close((to * inputs[name]).sum(), (grad * result).sum())


def test_camp_of_one_motif_that_is_everywhere():
    """Then it is a convolution of the features alone."""
    features, kernel = torch.randn(2, 7, 9, 12), torch.randn(1, 3, 3, 3)
    expected = F.conv3d(features[:, None], kernel[None], padding=1)[:, 0]
    assert_close(pyops.camp_conv(torch.ones(2, 1, 9, 12), features, kernel), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 13, 700])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 33, 270])
def test_camp_on_strips_and_bundles(channels, width):
    inputs = make_camp((1, channels, 3, width, 2), torch.float32, "cpu", torch.Generator().manual_seed(2))
    upstream = torch.randn(inputs["features"].shape)
    result, grads = gradients(pyops.camp_conv, inputs, list(inputs), upstream)
    exact, exact_grads = gradients(reference.camp_conv, in_double(inputs), list(inputs), upstream)
    assert_close(result.double(), exact, rtol=0, atol=1e-5)
    for name in grads:
        size = float(exact_grads[name].abs().max())
        assert_close(grads[name].double(), exact_grads[name], rtol=0, atol=2e-6 * size)


# ---- layouts, threads, memory --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_and_gradients_are_laid_out_as_the_features(layout):
    inputs = make_camp((2, 6, 5, 17, 3), torch.float32, "cpu", torch.Generator().manual_seed(0))
    changed = {name: relayout(t, layout) for name, t in inputs.items()}
    last = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    camp = pyops.camp_conv(**changed)
    _, grad, _ = torch.ops.pyops.camp_conv_backward(camp, *changed.values(), True, True, True)
    for t in (pyops.constant_highpass(changed["features"]), camp, grad):
        assert t.is_contiguous(memory_format=last)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_do_not_depend_on_threads(threads):
    generator = torch.Generator().manual_seed(0)
    calls = (
        (pyops.camp_conv, make_camp((2, 40, 50, 90, 3), torch.float32, "cpu", generator)),
        (pyops.constant_highpass, make_highpass((2, 40, 50, 90), torch.float32, "cpu", generator)),
    )
    for function, inputs in calls:
        upstream = torch.randn(2, 40, 50, 90, generator=generator)
        _, expected = gradients(function, inputs, list(inputs), upstream)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            _, found = gradients(function, inputs, list(inputs), upstream)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(found[name], expected[name]) for name in found)


def test_operators_check_memory_themselves():
    motif, features, kernel = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 4, 5), torch.zeros(3, 3, 3, 3)
    for t in (features[0], features[:, :0], features.int()):
        with pytest.raises(RuntimeError, match="features"):
            torch.ops.pyops.constant_highpass(t)
    for match, args in (
        ("features", (motif, features[:, :0], kernel)),
        ("motif", (motif[:1], features, kernel)),
        ("motif", (motif[..., 1:], features, kernel)),
        ("motif", (motif.half(), features, kernel)),
        ("kernel", (motif, features, kernel[:2])),
        ("kernel", (motif, features, kernel[..., :2])),
        ("kernel", (motif, features, kernel.double())),
    ):
        with pytest.raises(RuntimeError, match=match):
            torch.ops.pyops.camp_conv(*args)
    for grad in (features[0], features[:1], features[..., 1:], features.double()):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.pyops.camp_conv_backward(grad, motif, features, kernel, True, True, True)


def test_no_gradient_to_a_kernel_without_images():
    motif, features, kernel = torch.zeros(0, 3, 4, 5), torch.zeros(0, 6, 4, 5), torch.ones(3, 3, 3, 3)
    grads = torch.ops.pyops.camp_conv_backward(features, motif, features, kernel, True, True, True)
    assert (grads[2] == 0).all() and grads[2].shape == kernel.shape
