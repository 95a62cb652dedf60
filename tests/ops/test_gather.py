"""Gathering from point clouds: the contract. What is true of these operators alone: test_gather_facts.py."""

from __future__ import annotations

import contract
import torch

import pyops
from pyops.testing import Invalid, OpCase

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def draw(shape, dtype, device, generator):
    return torch.randn(shape, generator=generator).to(device, dtype)


def places(shape, count, device, generator):
    return (
        torch.randint(-1, max(count, 0), shape, generator=generator).to(device)
        if count
        else (torch.full(shape, -1, device=device))
    )


def gather_inputs(shape, dtype, device, generator):
    batch, count, channels, *queries = shape
    values = draw((batch, count, channels), dtype, device, generator)
    return dict(values=values, indices=places((batch, *queries), count, device, generator))


def blend_inputs(shape, dtype, device, generator):
    inputs = gather_inputs(shape, dtype, device, generator)
    return dict(inputs, weights=draw(inputs["indices"].shape, dtype, device, generator))


def interpolate_inputs(shape, dtype, device, generator):
    batch, count, channels, queries, dims = shape
    return dict(
        query=draw((batch, queries, dims), dtype, device, generator),
        points=draw((batch, count, dims), dtype, device, generator),
        values=draw((batch, count, channels), dtype, device, generator),
    )


def poison(inputs, value):
    """One value, in all entries of its point."""
    changed = inputs["values"].clone()
    point = int(inputs["indices"][0].flatten()[-1].clamp(min=0))
    changed[0, point, 1] = value
    touched = torch.zeros((*inputs["indices"].shape[: 2 if "weights" in inputs else None], changed.shape[2]))
    hit = inputs["indices"][0] == point
    touched[0, ..., 1] = (hit.any(-1) if "weights" in inputs else hit).float()
    return {**inputs, "values": changed}, touched.bool()


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid(inputs):
    values, indices = inputs["values"], inputs["indices"]
    count = values.shape[1]
    return [
        wrong("no tensor", TypeError, "values", "torch.Tensor", "list", values=[1.0]),
        wrong("dtype", TypeError, "values", "float32", "int64", values=values.long()),
        wrong("rank", ValueError, "values", "[B, N, C]", values=values[0]),
        wrong("no tensor", TypeError, "indices", "torch.Tensor", "NoneType", indices=None),
        wrong("dtype", TypeError, "indices", "int64", "int32", indices=indices.int()),
        wrong("batch", ValueError, "indices", "batch", indices=indices[:1]),
        wrong("rank", ValueError, "indices", "[B", indices=indices[:, 0, 0]),
        wrong("device", ValueError, "indices", "device", "meta", indices=indices.to("meta")),
        wrong("beyond", IndexError, "indices", str(count - 1), indices=indices.clamp(max=0) + count),
        wrong("negative", IndexError, "indices", "-2", indices=indices.clamp(max=0) - 2),
    ]


def invalid_blend(inputs):
    weights = inputs["weights"]
    return [
        *invalid(inputs),
        wrong("rank", ValueError, "indices", "[B, M, K]", indices=inputs["indices"][..., 0]),
        wrong("no tensor", TypeError, "weights", "torch.Tensor", weights=1.0),
        wrong("dtype", TypeError, "weights", "float32", "float64", weights=weights.double()),
        wrong("shape", ValueError, "weights", str(list(weights.shape)), weights=weights[..., 1:]),
        wrong("device", ValueError, "weights", "device", "meta", weights=weights.to("meta")),
    ]


def invalid_interpolation(inputs):
    query, points, values = inputs["query"], inputs["points"], inputs["values"]
    return [
        wrong("no tensor", TypeError, "query", "torch.Tensor", query=[1.0]),
        wrong("no tensor", TypeError, "points", "torch.Tensor", points=None),
        wrong("no tensor", TypeError, "values", "torch.Tensor", values=None),
        wrong("dtypes", TypeError, "float32", "float64", points=points.double()),
        wrong("axes", ValueError, "points", points=points[..., :1]),
        wrong("rank", ValueError, "values", "[B, N, C]", values=values[0]),
        wrong("points", ValueError, "values", str(points.shape[1]), values=values[:, 1:]),
        wrong("device", ValueError, "values", "device", "meta", values=values.to("meta")),
        wrong("eps", ValueError, "eps", "above 0", "0.0", eps=0.0),
        wrong("query", ValueError, "query", query=query[0]),
    ]


SMALL = ((2, 7, 5, 6, 3), (3, 9, 4, 5, 3))
BOTH = dict(dtypes=FLOATS, small=SMALL, tiny=(2, 4, 3, 3, 2), poison=poison)
CASES = [
    OpCase(
        name="gather_points",
        function=pyops.gather_points,
        reference=pyops.reference.gather_points,
        make_inputs=gather_inputs,
        differentiable=("values",),
        # batch, points, channels, and the axes of queries
        shapes=(
            *((3, 200, 67, 150, 5), (2, 40, 3, 500), (2, 9, 1, 4, 3, 2), (1, 1, 1, 1), (1, 300, 8, 2000)),
            *((2, 0, 3, 4), (0, 5, 3, 4), (2, 5, 0, 4), (2, 5, 3, 0), (2, 7, 32, 40)),
        ),
        invalid=invalid,
        **BOTH,
    ),
    OpCase(
        name="blend_points",
        function=pyops.blend_points,
        reference=pyops.reference.blend_points,
        make_inputs=blend_inputs,
        differentiable=("values", "weights"),
        # batch, points, channels, queries, neighbours
        shapes=(
            *((3, 100, 67, 150, 3), (2, 40, 3, 90, 16), (1, 1, 1, 1, 1), (2, 0, 3, 4, 2), (0, 5, 3, 4, 2)),
            *((2, 5, 0, 4, 2), (2, 5, 3, 0, 2), (2, 5, 3, 4, 0), (2, 9, 32, 40, 3)),
        ),
        invalid=invalid_blend,
        **BOTH,
    ),
    OpCase(
        name="three_interpolate",
        function=pyops.three_interpolate,
        reference=pyops.reference.three_interpolate,
        make_inputs=interpolate_inputs,
        differentiable=("query", "points", "values"),
        dtypes=(torch.float32, torch.float64),
        # batch, points, channels, queries, axes
        shapes=((2, 60, 17, 90, 3), (1, 2, 3, 5, 3), (1, 1, 1, 1, 1), (2, 5, 3, 0, 2), (0, 5, 3, 4, 2)),
        small=SMALL,
        tiny=(2, 5, 2, 3, 2),
        invalid=invalid_interpolation,
    ),
]


class TestContract(contract.Contract):
    cases = CASES
