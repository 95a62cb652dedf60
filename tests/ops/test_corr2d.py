"""All-pairs correlation of images: the contract."""

from __future__ import annotations

import contract
import torch

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
    near, steps = [], torch.arange(-radius, radius + 1, device=coords.device).view(-1, 1, 1)
    for places, at in zip(coords.unbind(1), (entry[1], entry[0]), strict=True):
        below = (places / 2**level).floor().unsqueeze(1) + steps
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
