"""Local correlation: the contract, then what is true of this operator alone."""

from __future__ import annotations

import math

import contract
import pytest
import torch
import torch.nn.functional as F
from memory import LAYOUTS, relayout
from torch.testing import assert_close

import pyops
from pyops.testing import Invalid, OpCase, gradients


def make_inputs(shape, dtype, device, generator):
    *sizes, radius, dilation = shape
    first, second = (torch.randn(sizes, generator=generator).to(device, dtype) for _ in range(2))
    return dict(first=first, second=second, radius=radius, dilation=dilation)


def poison(name):
    """One feature, on which hang the correlations of its pixel with all in reach."""

    def put(inputs, value):
        changed = inputs[name].clone()
        channel, y, x = 1, 1, 4
        changed[0, channel, y, x] = value
        inputs = {**inputs, name: changed}
        touched = torch.zeros_like(pyops.local_correlation(**inputs), dtype=torch.bool)
        height, width = changed.shape[2:]
        radius, dilation = inputs["radius"], inputs["dilation"]
        steps = range(-radius, radius + 1)
        for plane, (dy, dx) in enumerate((dilation * dy, dilation * dx) for dy in steps for dx in steps):
            at = (y, x) if name == "first" else (y - dy, x - dx)
            partner = (at[0] + dy, at[1] + dx)
            if all(0 <= i < height and 0 <= j < width for i, j in (at, partner)):
                touched[(0, plane, *at)] = True
        return inputs, touched

    return put


def invalid(inputs):
    first, second = inputs["first"], inputs["second"]

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "first", "torch.Tensor", "list", first=[1.0]),
        wrong("no tensor", TypeError, "second", "torch.Tensor", "NoneType", second=None),
        wrong("dtype", TypeError, "first", "float32", "int32", first=first.int()),
        wrong("dtypes differ", TypeError, "second", "float32", "float64", second=second.double()),
        wrong("rank", ValueError, "first", "[B, C, H, W]", first=first[0]),
        wrong("no channels", ValueError, "first", "above 0", first=first[:, :0]),
        wrong("no columns", ValueError, "first", "above 0", first=first[..., :0]),
        wrong("shape", ValueError, "second", str(list(first.shape)), second=second[..., 1:]),
        wrong("broadcast", ValueError, "second", str(list(first.shape)), second=second[:1]),
        wrong("device", ValueError, "second", "device", "meta", second=second.to("meta")),
        wrong("negative", ValueError, "radius", "from 0", "-1", radius=-1),
        wrong("huge", ValueError, "radius", "32768", "32769", radius=32769),
        wrong("fraction", TypeError, "radius", "float", radius=2.0),
        wrong("flag", TypeError, "dilation", "bool", dilation=True),
        wrong("no step", ValueError, "dilation", "at least 1", "0", dilation=0),
    ]


def case(name, poisoned, shapes, small, tiny):
    return OpCase(
        name=name,
        function=pyops.local_correlation,
        reference=pyops.reference.local_correlation,
        make_inputs=make_inputs,
        differentiable=("first", "second"),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        shapes=shapes,  # batch, channels, height, width, radius, dilation
        small=small,
        tiny=tiny,
        poison=poison(poisoned),
        invalid=invalid,
    )


CASES = [
    case(
        "local_correlation",
        "second",
        (
            *((2, 24, 13, 53, 4, 1), (1, 96, 12, 80, 4, 1), (1, 3, 4, 9, 0, 1), (1, 2, 1, 1, 1, 1)),
            *((1, 70, 7, 131, 1, 1), (1, 10, 3, 20, 6, 1), (1, 2, 1, 300, 2, 1), (0, 4, 3, 9, 2, 1)),
            (1, 5, 3, 2, 5, 1),
        ),
        ((2, 6, 4, 11, 2, 1), (3, 5, 3, 14, 2, 1)),
        (1, 3, 2, 5, 1, 1),
    ),
    case(
        "local_correlation-dilated",
        "first",
        ((2, 20, 17, 45, 3, 2), (1, 7, 11, 70, 2, 5), (1, 3, 4, 6, 1, 9), (1, 150, 9, 40, 4, 2)),
        ((2, 3, 5, 9, 1, 2), (3, 4, 4, 10, 1, 2)),
        (1, 2, 3, 5, 1, 2),
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------


def images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def padded(first, second, radius, dilation=1):
    """As in the code of the papers that use the volume: slices of a padded image."""
    height, width = first.shape[2:]
    wide = F.pad(second, (radius * dilation,) * 4)
    offsets = range(0, 2 * radius * dilation + 1, dilation)
    planes = [(first * wide[..., i : i + height, j : j + width]).sum(1) for i in offsets for j in offsets]
    return torch.stack(planes, 1)


@pytest.mark.parametrize("dilation", (1, 2, 3))
def test_element_by_element(dilation):
    first, second = images(2, 3, 4, 6, dtype=torch.float64)
    volume = pyops.local_correlation(first, second, 2, dilation=dilation)
    for b, plane, y, x in torch.cartesian_prod(*(torch.arange(n) for n in volume.shape)).tolist():
        i, j = y + dilation * (plane // 5 - 2), x + dilation * (plane % 5 - 2)
        inside = 0 <= i < 4 and 0 <= j < 6
        expected = first[b, :, y, x] @ second[b, :, i, j] if inside else torch.zeros((), dtype=torch.float64)
        assert_close(volume[b, plane, y, x], expected)


@pytest.mark.parametrize(
    "shape", ((1, 32, 17, 61, 4, 1), (2, 40, 9, 200, 3, 2), (1, 300, 9, 33, 4, 1), (1, 5, 40, 9, 7, 1))
)
def test_equals_slices_of_a_padded_image(shape):
    *sizes, radius, dilation = shape
    first, second = images(*sizes)
    found = pyops.local_correlation(first, second, radius, dilation=dilation)
    assert_close(found, padded(first, second, radius, dilation), rtol=0, atol=1e-4)
    assert found.is_contiguous()


def test_no_partner_no_influence():
    """Where a partner lies outside there is an exact 0, whatever the features and the gradient that comes in."""
    first, second = images(1, 4, 7, 20)
    alone = padded(torch.ones_like(first), torch.ones_like(second), 2, 3) == 0
    edges = first.clone()
    edges[:, 1, 0], edges[..., -1] = math.nan, math.inf
    assert (pyops.local_correlation(edges, second, 2, dilation=3)[alone] == 0).all()
    inputs = dict(first=first, second=second, radius=2, dilation=3)
    upstream = torch.randn(alone.shape)
    spoiled = upstream.masked_fill(alone, math.nan)
    _, expected = gradients(pyops.local_correlation, inputs, ["first", "second"], upstream)
    _, found = gradients(pyops.local_correlation, inputs, ["first", "second"], spoiled)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("shift", ((0, 0), (2, -3), (-4, 4), (4, 1)))
def test_a_shifted_image_is_found_where_it_was_shifted_to(shift):
    first = F.normalize(images(1, 16, 20, 30)[0], dim=1)
    second = first.roll(shift, (2, 3))
    best = pyops.local_correlation(first, second, 4)[..., 4:-4, 4:-4].argmax(1)
    assert (best == (shift[0] + 4) * 9 + shift[1] + 4).all()


def test_exchanged_images_give_the_mirrored_volume():
    """first and second trade places with a displacement and its opposite."""
    first, second = images(1, 8, 9, 14)
    there = pyops.local_correlation(first, second, 2).unflatten(1, (5, 5))
    back = pyops.local_correlation(second, first, 2).unflatten(1, (5, 5))
    for i in range(5):
        for j in range(5):
            dy, dx = i - 2, j - 2
            rows = slice(max(0, -dy), min(9, 9 - dy)), slice(max(0, dy), min(9, 9 + dy))
            columns = slice(max(0, -dx), min(14, 14 - dx)), slice(max(0, dx), min(14, 14 + dx))
            here, other = there[:, i, j, rows[0], columns[0]], back[:, 4 - i, 4 - j, rows[1], columns[1]]
            assert_close(here, other)


def test_an_image_with_itself():
    """The same tensor twice: both of its gradients, added."""
    image, other = images(1, 5, 6, 9)[0].requires_grad_(), images(1, 5, 6, 9)[0].requires_grad_()
    upstream = torch.randn(1, 25, 6, 9)
    expected = torch.autograd.grad(pyops.local_correlation(image, other, 2), (image, other), upstream)
    found = torch.autograd.grad(pyops.local_correlation(image, image, 2), image, upstream)[0]
    assert_close(found, sum(expected))


def test_dilation_takes_an_image_apart():
    """Every second pixel of every second row is an image of its own."""
    first, second = images(1, 5, 9, 12)
    volume = pyops.local_correlation(first, second, 3, dilation=2)
    for i in (0, 1):
        for j in (0, 1):
            part = pyops.local_correlation(first[..., i::2, j::2], second[..., i::2, j::2], 3)
            assert_close(volume[..., i::2, j::2], part)


@pytest.mark.parametrize("dilation", (7, 100, 2**62))
def test_displacements_wider_than_the_image(dilation):
    first, second = (t.requires_grad_() for t in images(2, 3, 5, 7))
    volume = pyops.local_correlation(first, second, 2, dilation=dilation)
    center = torch.zeros_like(volume)
    center[:, 12] = (first * second).sum(1)
    assert_close(volume, center)
    grads = torch.autograd.grad(volume, (first, second), torch.ones_like(volume))
    assert_close(grads, (second.detach(), first.detach()))


def test_a_radius_wider_than_the_image():
    first, second = images(1, 3, 2, 3)
    wide = pyops.local_correlation(first, second, 30).unflatten(1, (61, 61))
    narrow = pyops.local_correlation(first, second, 3).unflatten(1, (7, 7))
    assert torch.equal(wide[:, 27:34, 27:34], narrow)
    assert wide.count_nonzero() == narrow.count_nonzero()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_sums_of_halves_are_float32(dtype):
    """Partial sums beyond the range of float16, and small terms beside a large one."""
    first, second = torch.zeros(2, 1, 256, 3, 20, dtype=dtype).unbind()
    first[:, :128], second[:, :128] = 200, 250
    first[:, 128:], second[:, 128:] = 200, -250
    first[:, 0] = 201
    volume = pyops.local_correlation(first, second, 1)
    assert (volume[:, 4] == 250).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_are_contiguous_and_gradients_as_the_images(layout):
    first, second = (relayout(t, layout).requires_grad_() for t in images(2, 6, 5, 17))
    volume = pyops.local_correlation(first, second, 2)
    grads = torch.ops.pyops.local_correlation_backward(
        torch.ones_like(volume), first, second, 2, 1, True, True
    )
    assert volume.is_contiguous()
    last = layout == "channels_last"
    assert all(
        g.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format) for g in grads
    )


def test_expanded_gradient():
    first, second = (t.requires_grad_() for t in images(2, 6, 5, 17))
    volume = pyops.local_correlation(first, second, 2)
    expected = torch.autograd.grad(volume, (first, second), torch.ones_like(volume), retain_graph=True)
    for ours, dense in zip(torch.autograd.grad(volume.sum(), (first, second)), expected, strict=True):
        assert torch.equal(ours, dense)


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_gradients_do_not_depend_on_threads(threads):
    first, second = images(1, 24, 40, 150)
    inputs = dict(first=first, second=second, radius=3)
    upstream = torch.randn(1, 49, 40, 150)
    _, expected = gradients(pyops.local_correlation, inputs, ["first", "second"], upstream)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _, found = gradients(pyops.local_correlation, inputs, ["first", "second"], upstream)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_operator_checks_memory_itself():
    first, second = images(2, 6, 3, 11)
    forward = torch.ops.pyops.local_correlation
    for name, args in (
        ("first", (first[:, :0], second[:, :0], 3, 1)),
        ("first", (first.int(), second.int(), 3, 1)),
        ("second", (first, second[..., 1:], 3, 1)),
        ("second", (first, second.half(), 3, 1)),
        ("radius", (first, second, -1, 1)),
        ("radius", (first, second, 1 << 16, 1)),
        ("dilation", (first, second, 1, 0)),
    ):
        with pytest.raises(RuntimeError, match=name):
            forward(*args)
    grad = torch.zeros(2, 9, 3, 11)
    for wrong in (grad[0], grad[..., 1:], grad[:1], grad.double(), grad[:, :4]):
        with pytest.raises(RuntimeError, match="grad"):
            torch.ops.pyops.local_correlation_backward(wrong, first, second, 1, 1, True, True)
