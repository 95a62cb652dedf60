"""All-pairs correlation along rows: the contract, then what is true of these operators alone."""

from __future__ import annotations

import math

import contract
import pytest
import torch
import torch.nn.functional as F
from memory import LAYOUTS, peak_allocated, relayout
from torch.testing import assert_close

import pyops
from pyops.testing import Invalid, OpCase


def pyramid(library):
    """All levels side by side."""

    def corr1d_pyramid(left, right, levels, scale=None):
        return torch.cat(library.corr1d_pyramid(left, right, levels, scale=scale), -1)

    return corr1d_pyramid


def make_views(shape, dtype, device, generator):
    batch, channels, height, width, columns, levels = shape
    left, right = (
        torch.randn(batch, channels, height, w, generator=generator).to(device, dtype)
        for w in (width, columns)
    )
    return dict(left=left, right=right, levels=levels)


def make_lookup(shape, dtype, device, generator):
    *sizes, radius = shape
    inputs = make_views(sizes, dtype, device, generator)
    batch, _, height, width = inputs["left"].shape
    reach = inputs["right"].shape[3] + 2 * radius + 4
    x = torch.rand(batch, height, width, generator=generator) * reach - radius - 2
    return dict(inputs, x=x.to(device, dtype), radius=radius)


def steps(inputs, name):
    """Where a gradient to x may jump: hardly more than rounding away from an entry of a level."""
    if name != "x":
        return None
    fine = inputs["x"].double() * (1 << (inputs["levels"] - 1))
    return (fine - fine.round()).abs() < 1e-3


def poison_pyramid(inputs, value):
    changed = inputs["left"].clone()
    changed[0, 1, 1, 2] = value
    inputs = {**inputs, "left": changed}
    touched = torch.zeros_like(pyramid(pyops)(**inputs), dtype=torch.bool)
    touched[0, 1, 2] = True
    return inputs, touched


def poison_lookup(inputs, value):
    """A feature of right, on which hangs whatever finds its column, or one that it is averaged into."""
    changed = inputs["right"].clone()
    (y, v), x, radius = (1, 5), inputs["x"], inputs["radius"]
    changed[0, 1, y, v] = value
    touched = []
    for level in range(inputs["levels"]):
        below = (x / 2**level).floor().unsqueeze(1) + torch.arange(-radius, radius + 1, device=x.device).view(
            -1, 1, 1
        )
        exists = v >> level < changed.shape[3] >> level
        touched.append(exists & ((below == v >> level) | (below + 1 == v >> level)))
    touched = torch.cat(touched, 1)
    touched[1:], touched[0, :, :y], touched[0, :, y + 1 :] = False, False, False
    return {**inputs, "right": changed}, touched


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid(inputs):
    left, right = inputs["left"], inputs["right"]
    found = [
        wrong("no tensor", TypeError, "left", "torch.Tensor", "list", left=[1.0]),
        wrong("no tensor", TypeError, "right", "torch.Tensor", "NoneType", right=None),
        wrong("dtype", TypeError, "left", "float32", "int32", left=left.int()),
        wrong("dtypes differ", TypeError, "right", "float64", right=right.double()),
        wrong("rank", ValueError, "left", "[B, C, H, W]", left=left[0]),
        wrong("no channels", ValueError, "left", "above 0", left=left[:, :0]),
        wrong("no columns", ValueError, "right", "above 0", right=right[..., :0]),
        wrong("channels", ValueError, "right", "B, C and H", right=right[:, 1:]),
        wrong("rows", ValueError, "right", "B, C and H", right=right[:, :, 1:]),
        wrong("device", ValueError, "right", "device", "meta", right=right.to("meta")),
        wrong("no level", ValueError, "levels", "from 1", "0", levels=0),
        wrong("too many", ValueError, "levels", "width", levels=9),
        wrong("fraction", TypeError, "levels", "float", levels=2.0),
    ]
    if "x" not in inputs:
        return found
    x = inputs["x"]
    return [
        *found,
        wrong("no tensor", TypeError, "x", "NoneType", x=None),
        wrong("integers", TypeError, "x", "int64", x=x.long()),
        wrong("shape", ValueError, "x", str(list(x.shape)), x=x[..., 1:]),
        wrong("device", ValueError, "x", "device", x=x.to("meta")),
        wrong("negative", ValueError, "radius", "from 0", "-1", radius=-1),
        wrong("fraction", TypeError, "radius", "float", radius=1.5),
    ]


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CASES = [
    OpCase(
        name="corr1d_pyramid",
        function=pyramid(pyops),
        reference=pyramid(pyops.reference),
        make_inputs=make_views,
        differentiable=("left", "right"),
        dtypes=DTYPES,
        # batch, channels, height, width, columns of right, levels
        shapes=(
            *((2, 12, 5, 19, 21, 4), (1, 64, 9, 70, 70, 4), (1, 1, 1, 1, 1, 1), (1, 3, 2, 5, 7, 1)),
            *((0, 4, 3, 9, 8, 2), (1, 5, 2, 4, 300, 6)),
        ),
        small=((2, 4, 3, 11, 12, 3), (3, 5, 6, 13, 14, 3)),
        tiny=(1, 2, 2, 3, 5, 2),
        poison=poison_pyramid,
        invalid=invalid,
    ),
    OpCase(
        name="corr1d_lookup_on_demand",
        function=pyops.corr1d_lookup_on_demand,
        reference=pyops.reference.corr1d_lookup_on_demand,
        make_inputs=make_lookup,
        differentiable=("left", "right", "x"),
        dtypes=DTYPES,
        # ..., radius
        shapes=(
            *((2, 12, 2, 19, 21, 4, 4), (1, 20, 2, 40, 40, 4, 4), (1, 1, 1, 1, 1, 1, 1)),
            *((1, 3, 2, 5, 7, 1, 0), (0, 4, 3, 9, 8, 2, 2), (1, 9, 1, 12, 40, 3, 9)),
        ),
        small=((2, 4, 3, 11, 12, 3, 2), (3, 5, 6, 13, 14, 3, 2)),
        tiny=(1, 2, 2, 3, 5, 2, 1),
        near_discontinuity=steps,
        poison=poison_lookup,
        invalid=invalid,
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------


def views(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def test_equals_products_and_pools():
    """As in the code of the papers: products of all pairs, then pools of the volume."""
    left, right = views(2, 16, 5, 37)
    volume = torch.einsum("bchw,bchv->bhwv", left, right) / math.sqrt(16)
    for level in pyops.corr1d_pyramid(left, right):
        assert_close(level, volume)
        assert level.is_contiguous()
        volume = F.avg_pool2d(volume.flatten(0, 1), (1, 2)).unflatten(0, volume.shape[:2])


def test_scale():
    left, right = views(1, 9, 2, 8)
    plain, scaled = (pyops.corr1d_pyramid(left, right, 2, scale=s) for s in (None, -2.0))
    for a, b in zip(plain, scaled, strict=True):
        assert_close(b, a * (-2.0 * 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    left, right = views(2, 5, 4, 12)
    x = torch.rand(2, 4, 12) * 12
    expected = pyops.corr1d_pyramid(left, right, 2), pyops.corr1d_lookup_on_demand(left, right, x, 2, 2)
    left, right, x = (relayout(t, layout) for t in (left, right, x))
    found = pyops.corr1d_pyramid(left, right, 2), pyops.corr1d_lookup_on_demand(left, right, x, 2, 2)
    assert_close(found, expected)


@pytest.mark.parametrize("radius", (0, 1, 3, 4, 8))
def test_on_demand_equals_the_volume(radius):
    left, right = views(1, 48, 6, 70)
    x = torch.rand(1, 6, 70) * 90 - 10
    expected = pyops.corr1d_lookup(pyops.corr1d_pyramid(left, right), x, radius)
    assert_close(pyops.corr1d_lookup_on_demand(left, right, x, radius), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("x", (-1e30, -400.0, 400.0, math.inf, -math.inf, math.nan))
def test_far_outside_and_nan(x):
    left, right = (t.requires_grad_() for t in views(1, 4, 2, 30))
    position = torch.full((1, 2, 30), x, requires_grad=True)
    found = pyops.corr1d_lookup_on_demand(left, right, position, 4)
    grads = torch.autograd.grad(found.sum(), [left, right, position])
    if math.isnan(x):
        assert found.isnan().all() and (grads[2] == 0).all()
    else:
        assert (found == 0).all() and all((g == 0).all() for g in grads)


def test_float16_sums_do_not_overflow():
    left = right = torch.full((1, 256, 2, 16), 16.0, dtype=torch.float16)  # products sum to 65536
    for level in pyops.corr1d_pyramid(left, right):
        assert (level == 4096).all()
    x = torch.full((1, 2, 16), 7.0)
    assert (pyops.corr1d_lookup_on_demand(left, right, x, 1, 1) == 4096).all()


def test_on_demand_needs_memory_for_features_only():
    left, right = (t.requires_grad_() for t in views(1, 64, 32, 400))
    x = torch.rand(1, 32, 400) * 400
    features = left.nbytes + right.nbytes

    def there_and_back():
        pyops.corr1d_lookup_on_demand(left, right, x, 4).sum().backward()

    assert peak_allocated(there_and_back) < 4 * features
    volume = sum(level.nbytes for level in pyops.corr1d_pyramid(left.detach(), right.detach()))
    assert volume > 4 * features


def test_gradient_of_a_gradient():
    left, right = (t.requires_grad_() for t in views(1, 3, 2, 6, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda a, b: tuple(pyops.corr1d_pyramid(a, b, 2)), (left, right))
