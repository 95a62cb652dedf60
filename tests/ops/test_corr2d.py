"""All-pairs correlation of images: the contract, then what is true of these operators alone."""

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

LEVELS = 3


def pyramid(library):
    """All levels side by side."""

    def corr2d_pyramid(first, second, levels, scale=None):
        found = library.corr2d_pyramid(first, second, levels, scale=scale)
        return torch.cat([level.flatten(3) for level in found], -1)

    return corr2d_pyramid


def lookup(library):
    def corr2d_lookup(level0, level1, level2, coords, radius):
        return library.corr2d_lookup([level0, level1, level2], coords, radius)

    return corr2d_lookup


def make_images(shape, dtype, device, generator):
    batch, channels, height, width, rows, columns, levels = shape
    first, second = (
        torch.randn(batch, channels, *size, generator=generator).to(device, dtype)
        for size in ((height, width), (rows, columns))
    )
    return dict(first=first, second=second, levels=levels)


def make_coords(batch, height, width, rows, columns, radius, generator):
    """Places inside and, on every side, outside of the planes."""
    reach = torch.tensor([columns, rows]).view(2, 1, 1) + 2 * radius + 4
    return torch.rand(batch, 2, height, width, generator=generator) * reach - radius - 2


def make_on_demand(shape, dtype, device, generator):
    *sizes, radius = shape
    inputs = make_images(sizes, dtype, device, generator)
    batch, _, height, width, rows, columns, _ = sizes
    coords = make_coords(batch, height, width, rows, columns, radius, generator)
    return dict(inputs, coords=coords.to(device, dtype), radius=radius)


def make_lookup(shape, dtype, device, generator):
    batch, height, width, rows, columns, radius = shape
    levels = {}
    for i in range(LEVELS):
        sizes = batch, height, width, max(1, rows >> i), max(1, columns >> i)
        levels[f"level{i}"] = torch.randn(sizes, generator=generator).to(device, dtype)
    coords = make_coords(batch, height, width, rows, columns, radius, generator)
    return dict(levels, coords=coords.to(device, dtype), radius=radius)


def steps(inputs, name):
    """Where a gradient to coords may jump: hardly more than rounding away from an entry of a level."""
    if name != "coords":
        return None
    fine = inputs["coords"].double() * (1 << (inputs.get("levels", LEVELS) - 1))
    return ((fine - fine.round()).abs() < 1e-3).any(1, keepdim=True).expand_as(fine)


def window_meets(coords, level, radius, entry):
    """``[B, (2 * radius + 1)**2, H, W]``: whether a value of the window of a level is blended from an entry."""
    near = []
    for places, at in zip(coords.unbind(1), (entry[1], entry[0]), strict=True):
        below = (places / 2**level).floor().unsqueeze(1) + torch.arange(-radius, radius + 1).view(-1, 1, 1)
        near.append((below == at) | (below + 1 == at))
    return (near[0].unsqueeze(2) & near[1].unsqueeze(1)).flatten(1, 2)


def poison_pyramid(inputs, value):
    changed = inputs["first"].clone()
    changed[0, 1, 1, 2] = value
    inputs = {**inputs, "first": changed}
    touched = torch.zeros_like(pyramid(pyops)(**inputs), dtype=torch.bool)
    touched[0, 1, 2] = True
    return inputs, touched


def poison_lookup(inputs, value):
    """An entry of level 1, in the plane of a pixel that finds it."""
    coords, changed = inputs["coords"], inputs["level1"].clone()
    y, x = ((coords[0] > 0) & (coords[0] < 6)).all(0).nonzero()[0].tolist()
    column, row = (coords[0, :, y, x] / 2).long().tolist()
    entry = row, column
    meets = window_meets(coords, 1, inputs["radius"], entry)
    changed[0, y, x][entry] = value
    nothing = torch.zeros_like(meets)
    at_level_1 = nothing.clone()
    at_level_1[0, :, y, x] = meets[0, :, y, x]
    return {**inputs, "level1": changed}, torch.cat([nothing, at_level_1, nothing], 1)


def poison_on_demand(inputs, value):
    """A feature of second, on which hangs whatever finds its place, or one that it is averaged into.

    Every pixel finds it in the last level, so that the definition, which multiplies all by all, has no other NaN.
    """
    changed, (v, u) = inputs["second"].clone(), (3, 5)
    changed[0, 1, v, u] = value
    touched = []
    for level in range(inputs["levels"]):
        entry = v >> level, u >> level
        exists = entry[0] < changed.shape[2] >> level and entry[1] < changed.shape[3] >> level
        touched.append(window_meets(inputs["coords"], level, inputs["radius"], entry) & exists)
    touched = torch.cat(touched, 1)
    touched[1:] = False
    return {**inputs, "second": changed}, touched


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid_coords(inputs):
    coords = inputs["coords"]
    return [
        wrong("no tensor", TypeError, "coords", "NoneType", coords=None),
        wrong("integers", TypeError, "coords", "int64", coords=coords.long()),
        wrong("shape", ValueError, "coords", str(list(coords.shape)), coords=coords[..., 1:]),
        wrong("one axis", ValueError, "coords", "[B, 2, H, W]", coords=coords[:, :1]),
        wrong("rank", ValueError, "coords", "[B, 2, H, W]", coords=coords[0]),
        wrong("device", ValueError, "coords", "device", coords=coords.to("meta")),
        wrong("negative", ValueError, "radius", "from 0", "-1", radius=-1),
        wrong("too large", ValueError, "radius", "1024", "1025", radius=1025),
        wrong("fraction", TypeError, "radius", "float", radius=1.5),
    ]


def invalid_images(inputs):
    first, second = inputs["first"], inputs["second"]
    found = [
        wrong("no tensor", TypeError, "first", "torch.Tensor", "list", first=[1.0]),
        wrong("no tensor", TypeError, "second", "torch.Tensor", "NoneType", second=None),
        wrong("dtype", TypeError, "first", "float32", "int32", first=first.int()),
        wrong("dtypes differ", TypeError, "second", "float64", second=second.double()),
        wrong("rank", ValueError, "first", "[B, C, H, W]", first=first[0]),
        wrong("no channels", ValueError, "first", "above 0", first=first[:, :0]),
        wrong("no rows", ValueError, "second", "above 0", second=second[:, :, :0]),
        wrong("channels", ValueError, "second", "B and C", second=second[:, 1:]),
        wrong("device", ValueError, "second", "device", "meta", second=second.to("meta")),
        wrong("no level", ValueError, "levels", "from 1", "0", levels=0),
        wrong("too many", ValueError, "levels", "large enough", levels=9),
        wrong("too many rows halved", ValueError, "levels", "large enough", second=second[:, :, :2]),
        wrong("fraction", TypeError, "levels", "float", levels=2.0),
    ]
    return [*found, *(invalid_coords(inputs) if "coords" in inputs else ())]


def invalid_lookup(inputs):
    level0, level1 = inputs["level0"], inputs["level1"]
    return [
        wrong("no tensor", TypeError, "pyramid[0]", "torch.Tensor", "list", level0=[1.0]),
        wrong("dtype", TypeError, "pyramid[0]", "float32", "int32", level0=level0.int()),
        wrong("dtypes differ", TypeError, "pyramid[1]", "float64", level1=level1.double()),
        wrong("rank", ValueError, "pyramid[0]", "[B, H, W, U, V]", level0=level0[0]),
        wrong("no columns", ValueError, "pyramid[1]", "above 0", level1=level1[..., :0]),
        wrong("rows", ValueError, "pyramid[2]", "pyramid[0]", level2=inputs["level2"][:, 1:]),
        wrong("device", ValueError, "pyramid[1]", "device", level1=level1.to("meta")),
        *invalid_coords(inputs),
    ]


# No size of the first of `small` is that of another axis, or 2, that of coords: a compiler takes equal sizes for one.
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CASES = [
    OpCase(
        name="corr2d_pyramid",
        function=pyramid(pyops),
        reference=pyramid(pyops.reference),
        make_inputs=make_images,
        differentiable=("first", "second"),
        dtypes=DTYPES,
        # batch, channels, height, width, rows and columns of second, levels
        shapes=(
            *((2, 12, 5, 7, 9, 13, 3), (1, 32, 12, 20, 12, 20, 3), (1, 1, 1, 1, 1, 1, 1)),
            *((1, 3, 2, 5, 7, 3, 1), (0, 4, 3, 5, 8, 6, 2), (1, 5, 2, 4, 40, 33, 6)),
        ),
        small=((3, 4, 5, 7, 6, 9, 3), (4, 5, 6, 8, 7, 8, 3)),
        tiny=(1, 2, 2, 3, 3, 4, 2),
        poison=poison_pyramid,
        invalid=invalid_images,
    ),
    OpCase(
        name="corr2d_lookup",
        function=lookup(pyops),
        reference=lookup(pyops.reference),
        make_inputs=make_lookup,
        differentiable=("level0", "level1", "level2", "coords"),
        dtypes=DTYPES,
        # batch, height, width, rows, columns, radius
        shapes=(
            *((2, 5, 9, 11, 13, 4), (1, 12, 20, 24, 40, 4), (1, 3, 4, 17, 9, 0), (1, 1, 1, 1, 1, 1)),
            *((0, 3, 4, 9, 8, 2), (1, 1, 70, 6, 31, 3), (3, 2, 3, 5, 40, 9)),
        ),
        small=((5, 7, 9, 13, 16, 2), (4, 6, 8, 12, 20, 2)),
        tiny=(1, 2, 3, 4, 5, 1),
        near_discontinuity=steps,
        poison=poison_lookup,
        invalid=invalid_lookup,
    ),
    OpCase(
        name="corr2d_lookup_on_demand",
        function=pyops.corr2d_lookup_on_demand,
        reference=pyops.reference.corr2d_lookup_on_demand,
        make_inputs=make_on_demand,
        differentiable=("first", "second", "coords"),
        dtypes=DTYPES,
        # ..., radius
        shapes=(
            *((2, 12, 5, 7, 9, 13, 3, 4), (1, 64, 12, 20, 12, 20, 3, 4), (1, 1, 1, 1, 1, 1, 1, 1)),
            *((1, 3, 2, 5, 7, 3, 1, 0), (0, 4, 3, 5, 8, 6, 2, 2), (1, 81, 3, 4, 17, 20, 4, 6)),
        ),
        small=((3, 4, 5, 7, 6, 9, 3, 2), (4, 5, 6, 8, 7, 8, 3, 2)),
        tiny=(1, 2, 2, 3, 3, 4, 2, 1),
        near_discontinuity=steps,
        poison=poison_on_demand,
        invalid=invalid_images,
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------


def images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def test_equals_products_and_pools():
    """As in the code of RAFT: products of all pairs, then pools of the volume."""
    first, second = images(2, 16, 9, 17)
    volume = (first.flatten(2).mT @ second.flatten(2) / 4).view(2 * 9 * 17, 1, 9, 17)
    for level in pyops.corr2d_pyramid(first, second):
        assert_close(level.flatten(0, 2).unsqueeze(1), volume)
        assert level.is_contiguous()
        volume = F.avg_pool2d(volume, 2) if min(volume.shape[2:]) > 1 else volume


def by_grid_sample(level, places, radius):
    """One level as in the code of RAFT: the planes of all pixels as a batch of images."""
    rows, columns = level.shape[3:]
    steps = torch.arange(-radius, radius + 1, dtype=level.dtype)
    delta = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    place = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) + delta
    grid = 2 * place / torch.tensor([columns - 1, rows - 1], dtype=level.dtype) - 1
    found = F.grid_sample(level.reshape(-1, 1, rows, columns), grid, align_corners=True)
    return found.view(*level.shape[:3], -1).permute(0, 3, 1, 2)


def test_equals_grid_samples():
    levels = [torch.randn(2, 6, 11, 24 >> i, 40 >> i, dtype=torch.float64) for i in range(4)]
    coords = torch.rand(2, 2, 6, 11, dtype=torch.float64) * 50 - 8
    expected = torch.cat([by_grid_sample(level, coords / 2**i, 4) for i, level in enumerate(levels)], 1)
    assert_close(pyops.corr2d_lookup(levels, coords, 4), expected, rtol=0, atol=1e-11)


def test_order_of_channels():
    """Level by level; of a level column by column."""
    levels = [torch.randn(1, 2, 3, 8 >> i, 12 >> i) for i in range(2)]
    coords = torch.tensor([6.5, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    found = pyops.corr2d_lookup(levels, coords, 1).unflatten(1, (2, 3, 3))
    plane = levels[0][0, 1, 2]
    assert_close(found[0, 0, 0, 2, 1, 2], (plane[5, 5] + plane[5, 6]) / 2)
    plane = levels[1][0, 0, 1]
    assert_close(found[0, 1, 2, 0, 0, 1], 0.75 * plane[1, 4] + 0.25 * plane[1, 5])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    first, second = images(2, 5, 4, 12)
    coords = torch.rand(2, 2, 4, 12) * 12

    def run(first, second, coords):
        found = pyops.corr2d_lookup_on_demand(first, second, coords, 2, 2)
        return [*pyops.corr2d_pyramid(first, second, 2), found]

    expected = run(first, second, coords)
    assert_close(run(*(relayout(t, layout) for t in (first, second, coords))), expected)


@pytest.mark.parametrize("radius", (0, 1, 3, 4, 8))
def test_on_demand_equals_the_volume(radius):
    first, second = images(1, 48, 10, 14)
    coords = torch.rand(1, 2, 10, 14) * 24 - 6
    expected = pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second), coords, radius)
    assert_close(pyops.corr2d_lookup_on_demand(first, second, coords, radius), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("far", (-1e30, -400.0, 400.0, 3e38, math.inf, -math.inf))
def test_far_outside(far, axis):
    first, second = (t.requires_grad_() for t in images(1, 4, 8, 9))
    coords = torch.full((1, 2, 8, 9), 4.0)
    coords[:, axis] = far
    coords.requires_grad_()
    levels = pyops.corr2d_pyramid(first, second, 3)
    for found in (
        pyops.corr2d_lookup(levels, coords, 4),
        pyops.corr2d_lookup_on_demand(first, second, coords, 4, 3),
    ):
        assert (found == 0).all()
        grads = torch.autograd.grad(found.sum(), [first, second, coords], retain_graph=True)
        assert all((g == 0).all() for g in grads)


def test_nan():
    first, second = images(1, 4, 8, 9)
    coords = torch.full((1, 2, 8, 9), 4.0)
    coords[0, 0, 1, 5] = coords[0, 1, 2, 6] = math.nan
    expected = coords.isnan().any(1, keepdim=True)
    coords.requires_grad_()
    for found in (
        pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second, 3), coords, 2),
        pyops.corr2d_lookup_on_demand(first, second, coords, 2, 3),
    ):
        assert torch.equal(found.isnan(), expected.expand_as(found))
        (slope,) = torch.autograd.grad(found.sum(), coords)
        assert (slope[coords.isnan()] == 0).all()


def test_float16_sums_do_not_overflow():
    first = second = torch.full((1, 256, 8, 8), 16.0, dtype=torch.float16)  # products sum to 65536
    for level in pyops.corr2d_pyramid(first, second):
        assert (level == 4096).all()
    coords = torch.full((1, 2, 8, 8), 4.0)
    assert (pyops.corr2d_lookup_on_demand(first, second, coords, 1, 1) == 4096).all()


def test_gradient_of_a_gradient():
    first, second = (t.requires_grad_() for t in images(1, 3, 2, 4, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda a, b: tuple(pyops.corr2d_pyramid(a, b, 2)), (first, second))


def test_gradients_for_any_number_of_threads():
    first, second = (t.requires_grad_() for t in images(1, 96, 30, 40))
    coords = (torch.rand(1, 2, 30, 40) * 40).requires_grad_()

    def grads():
        found = pyops.corr2d_lookup_on_demand(first, second, coords, 4)
        return torch.autograd.grad(found.square().sum(), [first, second, coords])

    threads, expected = torch.get_num_threads(), grads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(grads(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_on_demand_needs_memory_for_features_only():
    first, second = (t.requires_grad_() for t in images(1, 128, 48, 64))
    coords = torch.rand(1, 2, 48, 64) * 48
    features = first.nbytes + second.nbytes

    def there_and_back():
        pyops.corr2d_lookup_on_demand(first, second, coords, 3).sum().backward()

    result = 4 * 49 * 48 * 64 * 4
    assert peak_allocated(there_and_back) < 4 * features + 2 * result
    assert 4 * (48 * 64) ** 2 > 2 * (4 * features + 2 * result)  # what the volume would need


# ---- one buffer for all gradients ------------------------------------------------------------------------


def test_many_lookups_add_up():
    levels = [torch.randn(1, 4, 5, 9 >> i, 12 >> i).requires_grad_() for i in range(2)]
    coords = (torch.rand(1, 2, 4, 5) * 10).requires_grad_()
    results = []
    for library in (pyops, pyops.reference):
        loss = sum(((i + 1) * library.corr2d_lookup(levels, coords + i, 2).square()).sum() for i in range(4))
        results.append(torch.autograd.grad(loss, [*levels, coords]))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_memory_of_many_lookups():
    """12 lookups and their backward need one gradient of the pyramid, and not much more."""
    levels = [torch.randn(1, 24, 40, 24 >> i, 40 >> i).requires_grad_() for i in range(3)]
    bytes_of_pyramid = sum(level.nbytes for level in levels)

    def iterate():
        total = torch.zeros((), requires_grad=True)
        for i in range(12):
            total = total + pyops.corr2d_lookup(levels, torch.full((1, 2, 24, 40), 3.0 + i), 2).sum()
        total.backward()

    assert bytes_of_pyramid < peak_allocated(iterate) < 1.5 * bytes_of_pyramid
