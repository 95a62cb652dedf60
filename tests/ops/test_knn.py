"""Nearest neighbours: the contract. What is true of these operators alone is in test_knn_facts.py."""

from __future__ import annotations

import contract
import torch

import pyops
from pyops.testing import Invalid, OpCase


def distances(name):
    """An operator without its indices, and 0 where a neighbour is missing."""

    def of(library):
        def function(**inputs):
            found = getattr(library, name)(**inputs)
            return found.squared_distances.masked_fill(found.indices < 0, 0)

        function.__name__ = name
        return function

    return of(pyops), of(pyops.reference)


def draw(shape, dtype, generator):
    """Halves on a lattice, so that distances are exact in every dtype."""
    if dtype in (torch.float16, torch.bfloat16):
        return (torch.randint(-128, 128, shape, generator=generator) / 64).to(dtype)
    return torch.randn(shape, generator=generator, dtype=dtype)


def make_inputs(counted, radius):
    def make(shape, dtype, device, generator):
        batch, queries, points, dims, k = shape
        inputs = dict(
            query=draw((batch, queries, dims), dtype, generator).to(device),
            points=draw((batch, points, dims), dtype, generator).to(device),
            k=k,
        )
        if counted:
            for name, least, most in (("lengths", min(k, points), points), ("query_lengths", 0, queries)):
                inputs[name] = torch.randint(least, most + 1, (batch,), generator=generator).to(device)
        return {**inputs, radius: 1.4} if radius else inputs

    return make


def near_ties(inputs, name):
    """Neighbours hardly farther than others, or than the radius allows: rounding may exchange them."""
    if name is None:
        return None
    query, points = (inputs[n].double() for n in ("query", "points"))
    k, limit = inputs["k"], inputs.get("radius", inputs.get("max_radius", 1e9)) ** 2
    every = (query[:, :, None] - points[:, None]).square().sum(-1)
    if "radius" in inputs:  # one point more or less, and all that follow move
        band = ((every - limit).abs() < 1e-4).any(-1, keepdim=True)
        return band.expand(*every.shape[:2], k)
    far = every.new_full((*every.shape[:2], 1), 1e12)
    row = torch.cat([-far, every.sort(-1).values, *(far * (2 + i) for i in range(k + 1))], -1)
    gaps = row.diff(dim=-1) < 1e-4
    near = (row[..., 1:-1] - limit).abs() < 1e-4
    return (gaps[..., :-1] | gaps[..., 1:] | near)[..., :k]


def poison(name):
    def put(inputs, value):
        changed = inputs["query"].clone()
        changed[0, 1, 0] = value
        inputs = {**inputs, "query": changed}
        touched = torch.zeros_like(distances(name)[0](**inputs), dtype=torch.bool)
        touched[0, 1] = True
        return inputs, touched

    return put


def invalid(radius):
    def wrong_calls(inputs):
        query, points = inputs["query"], inputs["points"]
        batch, count = points.shape[:2]

        def wrong(label, error, *words, **change):
            return Invalid(label, change, error, words)

        found = [
            wrong("no tensor", TypeError, "query", "torch.Tensor", "list", query=[1.0]),
            wrong("no tensor", TypeError, "points", "torch.Tensor", "NoneType", points=None),
            wrong("dtype", TypeError, "query", "float32", "int32", query=query.int()),
            wrong("dtypes differ", TypeError, "points", "float32", "float64", points=points.double()),
            wrong("rank", ValueError, "query", "[B, points, D]", query=query[0]),
            wrong("no dimensions", ValueError, "query", "above 0", query=query[..., :0]),
            wrong(
                "dimensions", ValueError, "points", str(list(points[..., 1:].shape)), points=points[..., 1:]
            ),
            wrong("batch", ValueError, "points", "batch", points=points[:1]),
            wrong("device", ValueError, "points", "device", "meta", points=points.to("meta")),
            wrong("no neighbours", ValueError, "k", "from 1", "0", k=0),
            wrong("too many", ValueError, "k", "1024", k=1025),
            wrong("fraction", TypeError, "k", "float", k=2.0),
            wrong("list", TypeError, "lengths", "list", lengths=[1] * batch),
            wrong(
                "dtype", TypeError, "lengths", "int64", "int32", lengths=torch.ones(batch, dtype=torch.int32)
            ),
            wrong(
                "shape", ValueError, "lengths", str(batch), lengths=torch.ones(batch + 1, dtype=torch.int64)
            ),
            wrong("negative", ValueError, "lengths", "from 0", "-1", lengths=torch.full((batch,), -1)),
            wrong("too long", ValueError, "lengths", str(count), lengths=torch.full((batch,), count + 1)),
            wrong("negative", ValueError, "query_lengths", "-2", query_lengths=torch.full((batch,), -2)),
        ]
        return [
            *found,
            wrong("negative", ValueError, radius, "at least 0", **{radius: -1.0}),
            wrong("NaN", ValueError, radius, "nan", **{radius: float("nan")}),
            wrong("text", TypeError, radius, "str", **{radius: "1"}),
        ]

    return wrong_calls


def case(name, op, counted=False, radius=None, dims=3, shapes=()):
    function, reference = distances(op)
    return OpCase(
        name=name,
        function=function,
        reference=reference,
        make_inputs=make_inputs(counted, radius),
        differentiable=("query", "points"),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        # batch, queries, points, dims, k
        shapes=((2, 13, 50, dims, 5), (1, 1, 1, dims, 1), (0, 3, 9, dims, 2), (2, 0, 9, dims, 2), *shapes),
        small=((2, 4, 10, dims, 2), (3, 5, 13, dims, 2)),
        tiny=(1, 2, 5, dims, 2),
        near_discontinuity=near_ties,
        poison=poison(op),
        invalid=invalid(radius or "max_radius"),
    )


CASES = [
    case("knn", "knn", shapes=((1, 200, 1500, 3, 16), (2, 9, 700, 3, 70), (1, 5, 0, 3, 2))),
    case(
        "knn-lengths",
        "knn",
        True,
        "max_radius",
        9,
        shapes=((3, 20, 40, 9, 40), (2, 6, 33, 65, 3), (2, 17, 1000, 20, 1), (2, 20, 900, 24, 2)),
    ),
    case("ball-query", "ball_query", True, "radius", 3, shapes=((2, 9, 300, 3, 33),)),
]


class TestContract(contract.Contract):
    cases = CASES
