"""Lookups in volumes of costs: the contract, then what is true of these operators alone."""

from __future__ import annotations

import math

import contract
import torch

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
        place = torch.stack([place, torch.arange(place.shape[2], device=place.device) - place])
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
