"""Group-wise correlation: the contract, then what is true of this operator alone."""

from __future__ import annotations

import math

import contract
import pytest
import torch
from memory import LAYOUTS, relayout
from torch.testing import assert_close

import pyops
from pyops.testing import Invalid, OpCase, gradients


def make_inputs(normalize):
    def make(shape, dtype, device, generator):
        *sizes, max_disparity, groups = shape
        left, right = (torch.randn(sizes, generator=generator).to(device, dtype) for _ in range(2))
        return dict(left=left, right=right, max_disparity=max_disparity, groups=groups, normalize=normalize)

    return make


def poison(name):
    """One feature, on which hang the correlations of its pixel with all in reach."""

    def put(inputs, value):
        changed = inputs[name].clone()
        (channel, y, x), width = (1, 1, 4), changed.shape[3]
        changed[0, channel, y, x] = value
        inputs = {**inputs, name: changed}
        touched = torch.zeros_like(pyops.groupwise_correlation(**inputs), dtype=torch.bool)
        group = channel // (changed.shape[1] // inputs["groups"])
        for d in range(inputs["max_disparity"]):
            at = x if name == "left" else x + d
            if d <= at < width:
                touched[0, group, d, y, at] = True
        return inputs, touched

    return put


def invalid(inputs):
    left, right = inputs["left"], inputs["right"]

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "left", "torch.Tensor", "list", left=[1.0]),
        wrong("no tensor", TypeError, "right", "torch.Tensor", "NoneType", right=None),
        wrong("dtype", TypeError, "left", "float32", "int32", left=left.int()),
        wrong("dtypes differ", TypeError, "right", "float32", "float64", right=right.double()),
        wrong("rank", ValueError, "left", "[B, C, H, W]", left=left[0]),
        wrong("no channels", ValueError, "left", "above 0", left=left[:, :0]),
        wrong("no columns", ValueError, "left", "above 0", left=left[..., :0]),
        wrong("shape", ValueError, "right", str(list(left.shape)), right=right[..., 1:]),
        wrong("broadcast", ValueError, "right", str(list(left.shape)), right=right[:1]),
        wrong("device", ValueError, "right", "device", "meta", right=right.to("meta")),
        wrong("no disparity", ValueError, "max_disparity", "from 1", "0", max_disparity=0),
        wrong("too many", ValueError, "max_disparity", "width", max_disparity=left.shape[3] + 1),
        wrong("fraction", TypeError, "max_disparity", "float", max_disparity=2.0),
        wrong("flag", TypeError, "groups", "bool", groups=True),
        wrong("no groups", ValueError, "groups", "at least 1", groups=0),
        wrong("indivisible", ValueError, "groups", "divide", str(left.shape[1]), groups=left.shape[1] - 1),
    ]


def case(name, normalize, poisoned):
    return OpCase(
        name=name,
        function=pyops.groupwise_correlation,
        reference=pyops.reference.groupwise_correlation,
        make_inputs=make_inputs(normalize),
        differentiable=("left", "right"),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        # batch, channels, height, width, disparities, groups
        shapes=(
            *((2, 24, 5, 53, 13, 2), (1, 96, 17, 80, 48, 8), (2, 9, 3, 7, 7, 3), (1, 2, 1, 1, 1, 1)),
            *((1, 3, 1, 2100, 41, 1), (1, 10, 2, 130, 129, 2), (1, 14, 4, 8, 1, 2), (0, 4, 3, 9, 5, 2)),
            (1, 66, 2, 19, 11, 3),
        ),
        small=((2, 6, 3, 11, 7, 3), (3, 12, 4, 14, 7, 3)),
        tiny=(1, 4, 2, 5, 3, 2),
        poison=poison(poisoned),
        invalid=invalid,
    )


CASES = [case("groupwise-mean", False, "right"), case("groupwise-cosine", True, "left")]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------

MEAN_AND_COSINE = pytest.mark.parametrize("normalize", (False, True), ids=("mean", "cosine"))


def views(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def sliced(left, right, max_disparity, groups):
    """As in the code of the papers that use the volume."""
    batch, channels, height, width = left.shape
    volume = left.new_zeros(batch, groups, max_disparity, height, width)
    for d in range(max_disparity):
        product = left[..., d:] * right[..., : width - d]
        shape = (batch, groups, channels // groups, height, width - d)
        volume[:, :, d, :, d:] = product.view(shape).mean(2)
    return volume


def test_element_by_element():
    left, right = views(2, 6, 2, 5, dtype=torch.float64)
    volume = pyops.groupwise_correlation(left, right, 4, 2)
    cosine = pyops.groupwise_correlation(left, right, 4, 2, normalize=True)
    for b, g, d, h, w in torch.cartesian_prod(*(torch.arange(n) for n in volume.shape)).tolist():
        if w < d:
            assert volume[b, g, d, h, w] == 0 and cosine[b, g, d, h, w] == 0
            continue
        u, v = left[b, 3 * g : 3 * g + 3, h, w], right[b, 3 * g : 3 * g + 3, h, w - d]
        assert_close(volume[b, g, d, h, w], u @ v / 3)
        assert_close(cosine[b, g, d, h, w], u @ v / (u.norm() * v.norm()))


@pytest.mark.parametrize("shape", ((1, 32, 7, 61, 24, 8), (2, 40, 3, 200, 65, 1), (1, 5, 4, 33, 33, 5)))
def test_equals_slices(shape):
    *sizes, disparities, groups = shape
    left, right = views(*sizes)
    found = pyops.groupwise_correlation(left, right, disparities, groups)
    assert_close(found, sliced(left, right, disparities, groups), rtol=0, atol=1e-5)
    assert found.is_contiguous()


@MEAN_AND_COSINE
def test_no_partner_no_influence(normalize):
    """Where w < d there is an exact 0, whatever the features and the gradient that comes in."""
    left, right = (t.requires_grad_() for t in views(1, 4, 2, 40))
    with torch.no_grad():
        left[..., :7], right[..., 30:] = math.nan, math.inf
    volume = pyops.groupwise_correlation(left, right, 20, 2, normalize=normalize)
    alone = torch.arange(40) < torch.arange(20)[:, None, None]
    assert (volume[alone.expand_as(volume)] == 0).all()
    left, right = (t.requires_grad_() for t in views(1, 4, 2, 40))
    volume = pyops.groupwise_correlation(left, right, 20, 2, normalize=normalize)
    upstream = torch.randn_like(volume)
    expected = torch.autograd.grad(volume, (left, right), upstream, retain_graph=True)
    spoiled = upstream.masked_fill(alone, math.nan)
    for ours, clean in zip(torch.autograd.grad(volume, (left, right), spoiled), expected, strict=True):
        assert torch.equal(ours, clean)


def test_a_shifted_view_is_found_where_it_was_shifted_to():
    right = views(1, 16, 6, 64)[0]
    for shift in (0, 3, 11):
        left = torch.nn.functional.pad(right, (shift, 0))[..., :64]
        cosine = pyops.groupwise_correlation(left, right, 12, 2, normalize=True)
        assert (cosine[..., 12:].argmax(2) == shift).all()
        assert_close(cosine[:, :, shift, :, shift:], torch.ones(1, 2, 6, 64 - shift))


def test_groups_add_up():
    left, right = views(2, 12, 3, 30)
    one = pyops.groupwise_correlation(left, right, 9)
    for groups in (2, 3, 4, 6, 12):
        parts = pyops.groupwise_correlation(left, right, 9, groups)
        assert_close(parts.mean(1, keepdim=True), one, rtol=0, atol=1e-6)


def test_cosine_does_not_see_size():
    left, right = views(1, 8, 3, 20)
    expected = pyops.groupwise_correlation(left, right, 6, 2, normalize=True)
    assert expected.abs().max() <= 1 + 1e-6
    size = torch.logspace(-8, 8, 20)
    found = pyops.groupwise_correlation(left * size, right * size.flip(0), 6, 2, normalize=True)
    assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16, torch.float64))
def test_vectors_without_direction(dtype):
    left, right = (t.to(dtype) for t in views(1, 6, 2, 12))
    left[:, :3, :, 5], right[:, 3:, 1] = 0, 0
    inputs = dict(left=left, right=right, max_disparity=4, groups=2, normalize=True)
    upstream = torch.ones(1, 2, 4, 2, 12)
    volume, grads = gradients(pyops.groupwise_correlation, inputs, ["left", "right"], upstream)
    assert (volume[:, 0, ..., 5] == 0).all() and (volume[:, 1, :, 1] == 0).all()
    assert (grads["left"][:, :3, :, 5] == 0).all() and (grads["right"][:, 3:, 1] == 0).all()
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads.values())


def test_second_derivative_of_a_vector_without_direction_is_finite():
    left, right = (t.double() for t in views(1, 4, 1, 6))
    left[..., 2] = 0
    leaves = [left.requires_grad_(), right.requires_grad_()]
    volume = pyops.groupwise_correlation(*leaves, 3, 2, normalize=True)
    first = torch.autograd.grad(volume.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
    assert all(g.isfinite().all() for g in second)


def test_gradient_is_orthogonal_to_what_was_normalized():
    left, right = (t.double() for t in views(1, 8, 2, 15))
    inputs = dict(left=left, right=right, max_disparity=5, groups=2, normalize=True)
    upstream = torch.randn(1, 2, 5, 2, 15)
    _, grads = gradients(pyops.groupwise_correlation, inputs, ["left", "right"], upstream)
    for name, grad in grads.items():
        assert (grad * inputs[name]).unflatten(1, (2, 4)).sum(2).abs().max() < 1e-14


@MEAN_AND_COSINE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_contiguous_and_gradients_as_the_views(layout, normalize):
    left, right = (relayout(t, layout).requires_grad_() for t in views(2, 6, 5, 17))
    volume = pyops.groupwise_correlation(left, right, 6, 3, normalize=normalize)
    grads = torch.ops.pyops.groupwise_correlation_backward(
        torch.ones_like(volume), left, right, normalize, True, True
    )
    assert volume.is_contiguous()
    last = layout == "channels_last"
    assert all(
        g.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format) for g in grads
    )


def test_expanded_gradient():
    left, right = (t.requires_grad_() for t in views(2, 6, 5, 17))
    volume = pyops.groupwise_correlation(left, right, 6, 3)
    expected = torch.autograd.grad(volume, (left, right), torch.ones_like(volume), retain_graph=True)
    for ours, dense in zip(torch.autograd.grad(volume.sum(), (left, right)), expected, strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_gradients_do_not_depend_on_threads(threads):
    left, right = views(1, 24, 40, 150)
    inputs = dict(left=left, right=right, max_disparity=40, groups=2, normalize=True)
    upstream = torch.randn(1, 2, 40, 40, 150)
    _, expected = gradients(pyops.groupwise_correlation, inputs, ["left", "right"], upstream)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _, found = gradients(pyops.groupwise_correlation, inputs, ["left", "right"], upstream)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_operator_checks_memory_itself():
    left, right = views(2, 6, 3, 11)
    forward = torch.ops.pyops.groupwise_correlation
    for name, args in (
        ("left", (left[:, :0], right[:, :0], 3, 1)),
        ("left", (left.int(), right.int(), 3, 2)),
        ("right", (left, right[..., 1:], 3, 2)),
        ("right", (left, right.half(), 3, 2)),
        ("groups", (left, right, 3, 4)),
        ("groups", (left, right, 3, 0)),
        ("max_disparity", (left, right, 12, 2)),
        ("max_disparity", (left, right, 0, 2)),
    ):
        with pytest.raises(RuntimeError, match=name):
            forward(*args, False)
    grad = torch.zeros(2, 3, 7, 3, 11)
    for wrong in (grad[0], grad[..., 1:], grad[:1], grad.double(), grad[:, :, :0]):
        with pytest.raises(RuntimeError, match=r"grad|max_disparity"):
            torch.ops.pyops.groupwise_correlation_backward(wrong, left, right, False, True, True)
