"""Lookups in volumes of costs: the contract, then what is true of these operators alone."""

from __future__ import annotations

import gc
import math

import contract
import pytest
import torch
from memory import peak_allocated
from torch.testing import assert_close

import pyops
from pyops.testing import Invalid, OpCase

LEVELS = 3


def lookup(library):
    def corr1d_lookup(level0, level1, level2, x, radius):
        return library.corr1d_lookup([level0, level1, level2], x, radius)

    return corr1d_lookup


def geometry(library):
    def geometry_lookup(volume0, volume1, level0, level1, disparity, radius):
        return library.geometry_lookup([volume0, volume1], [level0, level1], disparity, radius)

    return geometry_lookup


def make_pyramid(shape, dtype, device, generator):
    batch, height, width, columns, radius = shape
    levels = {
        f"level{i}": torch.randn(batch, height, width, max(1, columns >> i), generator=generator).to(
            device, dtype
        )
        for i in range(LEVELS)
    }
    # Some places lie outside of the lines, on either side.
    x = torch.rand(batch, height, width, generator=generator) * (columns + 2 * radius + 4) - radius - 2
    return dict(levels, x=x.to(device, dtype), radius=radius)


def make_geometry(shape, dtype, device, generator):
    batch, channels, depth, height, width, columns, radius = shape
    sizes = dict(
        volume0=(batch, channels, depth, height, width),
        volume1=(batch, channels, max(1, depth // 2), height, width),
        level0=(batch, height, width, columns),
        level1=(batch, height, width, max(1, columns // 2)),
    )
    costs = {k: torch.randn(size, generator=generator).to(device, dtype) for k, size in sizes.items()}
    disparity = torch.rand(batch, height, width, generator=generator) * (depth + radius + 2) - radius / 2 - 1
    return dict(costs, disparity=disparity.to(device, dtype), radius=radius)


def steps(inputs, name):
    """Where a gradient to a position may jump: hardly more than rounding away from an entry of a level."""
    if name not in ("x", "disparity"):
        return None
    place = inputs[name].double()
    if name == "disparity":
        place = torch.stack([place, torch.arange(place.shape[2]) - place])
    near = (place.mul(1 << (LEVELS - 1)) - place.mul(1 << (LEVELS - 1)).round()).abs() < 1e-3
    return near.any(0) if name == "disparity" else near


def poison(inputs, value):
    changed = inputs["level1"].clone()
    (y, x), t = (1, 2), changed.shape[3] // 2
    changed[0, y, x, t] = value
    inputs = {**inputs, "level1": changed}
    geometric, radius = "disparity" in inputs, inputs["radius"]
    position = inputs["disparity"] if geometric else inputs["x"]
    place = ((x - position) if geometric else position)[0, y, x].item() / 2
    window = 2 * radius + 1
    lines = 2 * inputs["volume0"].shape[1] + 1 if geometric else 1
    count = (lines + 1 if geometric else LEVELS) * window
    batch, height, width = position.shape
    touched = torch.zeros(batch, count, height, width, dtype=torch.bool)
    for d in range(-radius, radius + 1):
        if math.floor(place) + d in (t - 1, t):
            touched[0, lines * window + radius + d, y, x] = True
    return inputs, touched


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid_lookup(inputs):
    level, x = inputs["level0"], inputs["x"]
    return [
        wrong("no tensor", TypeError, "pyramid[0]", "torch.Tensor", "list", level0=[1.0]),
        wrong("dtype", TypeError, "pyramid[0]", "float32", "int32", level0=level.int()),
        wrong("dtypes differ", TypeError, "pyramid[1]", "float64", level1=inputs["level1"].double()),
        wrong("rank", ValueError, "pyramid[0]", "[B, H, W, D]", level0=level[0]),
        wrong("no columns", ValueError, "pyramid[1]", "above 0", level1=inputs["level1"][..., :0]),
        wrong("rows", ValueError, "pyramid[2]", "pyramid[0]", level2=inputs["level2"][:, 1:]),
        wrong("device", ValueError, "pyramid[1]", "device", level1=inputs["level1"].to("meta")),
        wrong("no tensor", TypeError, "x", "NoneType", x=None),
        wrong("integers", TypeError, "x", "int64", x=x.long()),
        wrong("shape", ValueError, "x", str(list(x.shape)), x=x[..., 1:]),
        wrong("rank", ValueError, "x", "[B, H, W]", x=x.unsqueeze(1)),
        wrong("device", ValueError, "x", "device", x=x.to("meta")),
        wrong("negative", ValueError, "radius", "from 0", "-1", radius=-1),
        wrong("fraction", TypeError, "radius", "float", radius=1.5),
        wrong("flag", TypeError, "radius", "bool", radius=True),
    ]


def invalid_geometry(inputs):
    volume = inputs["volume0"]
    return [
        wrong("no tensor", TypeError, "volumes[0]", "torch.Tensor", "list", volume0=[1.0]),
        wrong("dtype", TypeError, "volumes[1]", "float64", volume1=inputs["volume1"].double()),
        wrong("rank", ValueError, "volumes[0]", "[B, C, D, H, W]", volume0=volume[0]),
        wrong("channels", ValueError, "volumes[1]", "volumes[0]", volume1=inputs["volume1"][:, 1:]),
        wrong("columns", ValueError, "volumes[0]", "pyramid", volume0=volume[..., 1:]),
        wrong("no entries", ValueError, "volumes[1]", "above 0", volume1=inputs["volume1"][:, :, :0]),
        wrong("shape", ValueError, "disparity", "[B, H, W]", disparity=inputs["disparity"][:, None]),
        wrong("negative", ValueError, "radius", "from 0", "-2", radius=-2),
    ]


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
CASES = [
    OpCase(
        name="corr1d_lookup",
        function=lookup(pyops),
        reference=lookup(pyops.reference),
        make_inputs=make_pyramid,
        differentiable=("level0", "level1", "level2", "x"),
        dtypes=DTYPES,
        # batch, height, width, columns, radius
        shapes=(
            *((2, 5, 19, 21, 4), (1, 9, 70, 70, 4), (1, 3, 4, 37, 0), (1, 1, 1, 1, 1), (0, 3, 4, 9, 2)),
            *((1, 1, 600, 40, 3), (3, 2, 11, 5, 9)),
        ),
        small=((2, 3, 5, 9, 2), (3, 2, 7, 12, 2)),
        tiny=(1, 2, 3, 5, 1),
        near_discontinuity=steps,
        poison=poison,
        invalid=invalid_lookup,
    ),
    OpCase(
        name="geometry_lookup",
        function=geometry(pyops),
        reference=geometry(pyops.reference),
        make_inputs=make_geometry,
        differentiable=("volume0", "volume1", "level0", "level1", "disparity"),
        dtypes=DTYPES,
        # batch, channels, disparities, height, width, columns, radius
        shapes=(
            *((2, 3, 12, 5, 19, 21, 4), (1, 8, 24, 7, 40, 40, 4), (1, 1, 7, 3, 4, 9, 0)),
            *((1, 1, 1, 1, 1, 1, 1), (0, 2, 5, 3, 4, 9, 2), (1, 2, 9, 1, 300, 30, 3)),
        ),
        small=((2, 3, 10, 4, 7, 12, 2), (3, 2, 12, 5, 8, 14, 2)),
        tiny=(1, 2, 4, 2, 3, 5, 1),
        near_discontinuity=steps,
        poison=poison,
        invalid=invalid_geometry,
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def by_grid_sample(level, place, radius):
    """One level as in the code of the papers: the lines of all pixels as a batch of one-row images."""
    size = level.shape[-1]
    x = (place.unsqueeze(-1) + torch.arange(-radius, radius + 1)).flatten(0, 2)
    grid = torch.stack([2 * x / (size - 1) - 1, torch.zeros_like(x)], -1).unsqueeze(1)
    found = torch.nn.functional.grid_sample(level.reshape(-1, 1, 1, size), grid, align_corners=True)
    return found.view(*place.shape, -1).permute(0, 3, 1, 2)


def test_equals_grid_samples():
    pyramid = [draw(2, 6, 30, 48 >> i, dtype=torch.float64) for i in range(4)]
    x = torch.rand(2, 6, 30, dtype=torch.float64) * 60 - 6
    expected = torch.cat([by_grid_sample(level, x / 2**i, 4) for i, level in enumerate(pyramid)], 1)
    assert_close(pyops.corr1d_lookup(pyramid, x, 4), expected, rtol=0, atol=1e-11)


def test_order_of_channels():
    """Level by level; of a level first the volume's channels, each with its window, then the correlations."""
    volumes = [draw(1, 3, 9 >> i, 2, 5) for i in range(2)]
    pyramid = [draw(1, 2, 5, 8 >> i) for i in range(2)]
    disparity = torch.full((1, 2, 5), 2.5)
    found = pyops.geometry_lookup(volumes, pyramid, disparity, 1).unflatten(1, (2, 4, 3))
    assert_close(found[0, 0, 2, 0, 1, 3], (volumes[0][0, 2, 1, 1, 3] + volumes[0][0, 2, 2, 1, 3]) / 2)
    assert_close(found[0, 0, 3, 1, 0, 4], (pyramid[0][0, 0, 4, 1] + pyramid[0][0, 0, 4, 2]) / 2)
    at = volumes[1][0, 0, :, 1, 2]
    assert_close(found[0, 1, 0, 1, 1, 2], 0.75 * at[1] + 0.25 * at[2])
    line = pyramid[1][0, 1, 4]
    assert_close(found[0, 1, 3, 2, 1, 4], 0.25 * line[1] + 0.75 * line[2])


@pytest.mark.parametrize("x", (-1e30, -40.0, 40.0, 3e38, math.inf, -math.inf))
def test_far_outside(x):
    pyramid = [draw(1, 2, 9, 16)]
    position = torch.full((1, 2, 9), x, requires_grad=True)
    found = pyops.corr1d_lookup(pyramid, position, 4)
    assert (found == 0).all()
    assert (torch.autograd.grad(found.sum(), position)[0] == 0).all()


def test_nan():
    pyramid = [draw(1, 2, 9, 16), draw(1, 2, 9, 8)]
    x = torch.full((1, 2, 9), 4.0)
    x[0, 1, 5] = math.nan
    found = pyops.corr1d_lookup(pyramid, x, 2)
    assert torch.equal(found.isnan(), x.isnan().unsqueeze(1).expand_as(found))


@pytest.mark.parametrize("seed", range(3))
def test_smooth_and_torn_disparities(seed):
    """Neighbours in one row of taps, in two, and far from each other."""
    generator = torch.Generator().manual_seed(seed)
    volumes, pyramid = (
        [draw(1, 2, 20, 3, 64), draw(1, 2, 10, 3, 64)],
        [draw(1, 3, 64, 64), draw(1, 3, 64, 32)],
    )
    flat = torch.full((1, 1, 64), 7.3)
    slanted = torch.linspace(4, 9, 64).view(1, 1, 64)
    torn = torch.randint(-3, 24, (1, 1, 64), generator=generator) + 0.5
    disparity = torch.cat([flat, slanted, torn], 1)
    leaves = [t.requires_grad_() for t in (*volumes, *pyramid, disparity)]
    upstream = torch.randn(1, 54, 3, 64, generator=generator)
    results = []
    for library in (pyops, pyops.reference):
        out = library.geometry_lookup(leaves[:2], leaves[2:4], leaves[4], 4)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


# ---- one buffer for all gradients ------------------------------------------------------------------------


def losses(function, pyramid, x, count):
    return sum(((i + 1) * function(pyramid, x + i, 2).square()).sum() for i in range(count))


def test_many_lookups_add_up():
    pyramid = [draw(1, 4, 9, 12).requires_grad_(), draw(1, 4, 9, 6).requires_grad_()]
    x = (torch.rand(1, 4, 9) * 12).requires_grad_()
    ours = torch.autograd.grad(losses(pyops.corr1d_lookup, pyramid, x, 5), [*pyramid, x])
    theirs = torch.autograd.grad(losses(pyops.reference.corr1d_lookup, pyramid, x, 5), [*pyramid, x])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_other_uses_and_other_passes():
    """Of the same levels: another use beside lookups, a pass for a part of the graph, a pass that fails."""
    level, x = draw(1, 4, 9, 12).requires_grad_(), torch.rand(1, 4, 9) * 12
    x.requires_grad_()
    first, second = (pyops.corr1d_lookup([level], x + i, 2) for i in (0, 1))
    expected = [torch.autograd.grad(f.sum(), level, retain_graph=True)[0] for f in (first, second)]
    torch.autograd.grad(first.sum(), x, retain_graph=True)  # leaves something in a buffer that nobody takes
    assert_close(
        torch.autograd.grad(second.sum() + 3 * level.sum(), level, retain_graph=True)[0], expected[1] + 3
    )

    def fail(_):
        raise RuntimeError("broken")

    handle = level.register_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        first.sum().backward(retain_graph=True)
    handle.remove()
    (first.sum() + second.sum()).backward()
    assert_close(level.grad, expected[0] + expected[1])


def test_changed_in_between():
    """A level that is written to between two lookups is another one."""
    source = draw(1, 4, 9, 12).requires_grad_()
    level, x = source * 1, torch.rand(1, 4, 9) * 12
    first = pyops.corr1d_lookup([level], x, 2)
    level.mul_(2)
    second = pyops.corr1d_lookup([level], x, 2)
    assert_close(second, 2 * first)
    found = torch.autograd.grad(second.sum(), source)[0]
    expected = torch.autograd.grad(pyops.reference.corr1d_lookup([source * 2], x, 2).sum(), source)[0]
    assert_close(found, expected)


def test_leaves_nothing_behind():
    from pyops.ops import _accumulate

    level = draw(1, 4, 9, 12).requires_grad_()
    pyops.corr1d_lookup([level], torch.rand(1, 4, 9), 2).sum().backward()
    gc.collect()
    assert len(_accumulate._known) == 0


def test_memory_of_many_lookups():
    """22 lookups and their backward need one gradient of the pyramid, and not much more."""
    pyramid = [torch.randn(1, 48, 156, 156 >> i) for i in range(4)]
    bytes_of_pyramid = sum(level.nbytes for level in pyramid)
    for level in pyramid:
        level.requires_grad_()

    def iterate():
        total = torch.zeros((), requires_grad=True)
        for i in range(22):
            total = total + pyops.corr1d_lookup(pyramid, torch.full((1, 48, 156), 30.0 + i), 4).sum()
        total.backward()

    assert bytes_of_pyramid < peak_allocated(iterate) < 1.3 * bytes_of_pyramid
