"""Temporal patches: the contract, then what is true of these operators alone."""

from __future__ import annotations

import math

import contract
import torch

import pyops
from pyops import reference
from pyops.testing import Invalid, OpCase


def make_points(shape, dtype, generator):
    """On a grid where every distance is exact in every dtype, with many ties; anywhere for float64."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(dtype) if dtype == torch.float64 else ((values * 8).round() / 8).clamp(-3, 3).to(dtype)


def make_inputs(reverse, max_radius, jitter):
    def make(shape, dtype, device, generator):
        batch, frames, size, queries, k = shape
        points = make_points((batch, frames, size, 3), dtype, generator)
        indices = torch.randint(size, (batch, queries), generator=generator)
        inputs = dict(points=points.to(device), query_indices=indices.to(device), k=k)
        if jitter:
            noise = make_points((batch, frames, queries, 3), dtype, generator) / 4
            inputs["noise"] = noise.to(device)
        return dict(inputs, reverse=reverse, max_radius=max_radius)

    return make


def make_bidirectional(shape, dtype, device, generator):
    inputs = make_inputs(False, None, True)(shape, dtype, device, generator)
    del inputs["reverse"], inputs["max_radius"]
    queries = inputs.pop("query_indices")
    lengths = torch.randint(shape[4], shape[2] + 1, shape[:2], generator=generator).to(device)
    most = lengths[:, :1].minimum(lengths[:, -1:]) - 1
    return dict(
        inputs,
        first_indices=queries[:, : shape[3] // 2].minimum(most),
        last_indices=queries[:, shape[3] // 2 :].minimum(most),
        lengths=lengths,
    )


def values_of(function, field, name):
    """The operator with one of its results, under its own name: that of its kernels."""

    def call(**inputs):
        return getattr(function(**inputs), field)

    call.__name__ = name
    return call


def poison(inputs, value):
    """A point of the last frame that is never found: what it takes part in, it leaves."""
    points = inputs["points"].clone()
    last = 0 if inputs.get("reverse") else -1
    points[0, last, 1, 2] = value
    changed = {**inputs, "points": points}
    touched = torch.zeros_like(pyops.extract_tpatches(**inputs).squared_distances, dtype=torch.bool)
    touched[0, slice(None) if inputs.get("reverse") else -1] = True
    return changed, touched


def invalid(inputs):
    points, k = inputs["points"], inputs["k"]
    batch, frames, size, _ = points.shape
    name = "query_indices" if "query_indices" in inputs else "first_indices"
    queries = inputs[name]

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "points", "torch.Tensor", "list", points=[1.0]),
        wrong("dtype", TypeError, "points", "float32", "int64", points=points.long()),
        wrong("rank", ValueError, "points", "[B, T, N, 3]", points=points[0]),
        wrong("columns", ValueError, "points", "[B, T, N, 3]", points=points[..., :2]),
        wrong("no tensor", TypeError, name, "torch.Tensor", "NoneType", **{name: None}),
        wrong("dtype", TypeError, name, "int64", "int32", **{name: queries.int()}),
        wrong("rank", ValueError, name, "[B, M]", **{name: queries[0]}),
        wrong("batch", ValueError, name, str(batch), **{name: queries[:1]}),
        wrong("device", ValueError, name, "device", "meta", **{name: queries.to("meta")}),
        wrong("negative", ValueError, name, "from 0 to", "-1", **{name: queries - queries.max() - 1}),
        wrong("too large", ValueError, name, str(size - 1), **{name: queries - queries.min() + size}),
        wrong("no neighbour", ValueError, "k", "at least 1", "0", k=0),
        wrong("fraction", TypeError, "k", "float", k=2.0),
        wrong("noise", TypeError, "noise", "torch.Tensor", "float", noise=0.1),
        wrong("noise's shape", ValueError, "noise", "[B, T, M, 3]", noise=points[..., :1]),
        wrong("noise's dtype", TypeError, "noise", "float64", noise=inputs["noise"].double()),
        wrong("noise's device", ValueError, "noise", "device", noise=inputs["noise"].to("meta")),
        wrong("radius", ValueError, "max_radius", "at least 0", "-1", max_radius=-1.0),
        wrong("radius", ValueError, "max_radius", "nan", max_radius=math.nan),
        wrong("radius", TypeError, "max_radius", "str", max_radius="1"),
        wrong("lengths", TypeError, "lengths", "int64", lengths=torch.ones(batch)),
        wrong("lengths", ValueError, "lengths", "[B, T]", lengths=torch.ones(batch + 1, dtype=torch.int64)),
        wrong("lengths", ValueError, "lengths", str(size), lengths=torch.full((batch,), size + 1)),
        wrong("lengths", ValueError, "lengths", "-1", lengths=torch.full((batch, frames), -1)),
        wrong("lengths", ValueError, "lengths", "device", lengths=torch.full((batch,), k, device="meta")),
    ]


def case(name, field, function, definition, make, **more):
    return OpCase(
        name=f"tpatches-{name}",
        function=values_of(function, field, "extract_tpatches"),
        reference=values_of(definition, field, "extract_tpatches"),
        make_inputs=make,
        differentiable=("points", "noise"),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        invalid=invalid,
        **more,
    )


# batch, frames, points, queries, k
SHAPES = (
    (2, 5, 70, 13, 8),
    (1, 2, 300, 40, 16),
    (3, 3, 9, 5, 9),
    (1, 4, 40, 3, 33),
    (1, 2, 1, 4, 1),
    (0, 2, 5, 3, 2),
)
SMALL = (2, 4, 9, 5, 2), (3, 5, 12, 7, 2)
CASES = [
    case(
        "distances",
        "squared_distances",
        pyops.extract_tpatches,
        reference.extract_tpatches,
        make_inputs(False, None, True),
        shapes=SHAPES,
        small=SMALL,
        tiny=(1, 2, 5, 2, 2),
        poison=poison,
    ),
    case(
        "centers",
        "centers",
        pyops.extract_tpatches,
        reference.extract_tpatches,
        make_inputs(True, 0.75, True),
        shapes=SHAPES,
        small=SMALL,
        tiny=(1, 2, 5, 2, 2),
    ),
    case(
        "both",
        "squared_distances",
        pyops.bidirectional_tpatches,
        reference.bidirectional_tpatches,
        make_bidirectional,
        shapes=SHAPES,
        small=((2, 4, 12, 9, 2), (3, 5, 14, 11, 2)),  # no two sizes that change are alike, and none is 3
        tiny=(1, 3, 6, 3, 2),
    ),
]


class TestContract(contract.Contract):
    cases = CASES
