"""Geodesic distances: the contract. What is true of this operator alone: test_geodesic_facts.py."""

from __future__ import annotations

import contract
import torch

import pyops
from pyops.testing import Invalid, OpCase


def distances(library, **options):
    def geodesic_distances(indptr, indices, weights, sources=None):
        found = library.geodesic_distances((indptr, indices, weights), sources, **options)
        return found.masked_fill(found.isinf(), 0) if options else found  # finite differences of inf are none

    return geodesic_distances


def predecessors(library):
    def geodesic_predecessors(indptr, indices, weights, sources=None):
        graph = (indptr, indices, weights)
        return library.geodesic_distances(graph, sources, return_predecessors=True)[1]

    return geodesic_predecessors


def make_inputs(shape, dtype, device, generator):
    """A ring in which everything is in reach, and other edges; unsorted rows, parallel edges and loops included."""
    count, more, sources = shape
    rows = torch.cat(
        [torch.arange(count), torch.randint(max(count, 1), (more if count else 0,), generator=generator)]
    )
    ends = torch.randint(max(count, 1), rows.shape, generator=generator)
    ends[:count] = (torch.arange(count) + 1) % max(count, 1)
    rows, order = rows.sort(stable=True)
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), rows.bincount(minlength=count).cumsum(0)])
    weights = torch.rand(rows.shape, generator=generator, dtype=torch.float64) + 0.05
    graph = dict(indptr=indptr, indices=ends[order], weights=weights.to(dtype))
    if sources >= 0:
        graph["sources"] = torch.randint(max(count, 1), (sources,), generator=generator)
    return {name: t.to(device) for name, t in graph.items()}


def wrong(label, error, *words, **change):
    return Invalid(label, change, error, words)


def invalid(inputs):
    indptr, indices, weights = (inputs[name] for name in ("indptr", "indices", "weights"))
    count, edges = len(indptr) - 1, len(indices)
    falling = indptr.clone()
    falling[1] = edges
    return [
        wrong("no tensor", TypeError, "indptr", "torch.Tensor", "list", indptr=[0]),
        wrong("dtype", TypeError, "indptr", "int64", "int32", indptr=indptr.int()),
        wrong("rank", ValueError, "indptr", "[N + 1]", indptr=indptr[None]),
        wrong("no entry", ValueError, "indptr", "[N + 1]", "[0]", indptr=indptr[:0]),
        wrong("start", ValueError, "indptr", "from 0 to", indptr=indptr.clamp(min=1)),
        wrong("end", ValueError, "indptr", f"E={edges}", indptr=indptr[:-1])._replace(by_value=True),
        wrong("falling", ValueError, "indptr", "fall", indptr=falling),
        wrong("no tensor", TypeError, "indices", "torch.Tensor", indices=None),
        wrong("dtype", TypeError, "indices", "int64", "float32", indices=indices.float()),
        wrong("rank", ValueError, "indices", "[E]", indices=indices[:, None]),
        wrong("beyond", ValueError, "indices", f"N - 1 = {count - 1}", indices=indices + count),
        wrong("negative", ValueError, "indices", "-1", indices=indices - indices.max() - 1),
        wrong("device", ValueError, "indices", "device", "meta", indices=indices.to("meta")),
        wrong("no tensor", TypeError, "weights", "torch.Tensor", weights=1.0),
        wrong("dtype", TypeError, "weights", "float64", "float16", weights=weights.half()),
        wrong("shape", ValueError, "weights", f"[E={edges}]", weights=weights[1:]),
        wrong("negative", ValueError, "weights", "at least 0", weights=weights - 1),
        wrong("nan", ValueError, "weights", "nan", weights=torch.full_like(weights, torch.nan)),
        wrong("device", ValueError, "weights", "device", "meta", weights=weights.to("meta")),
        wrong("no tensor", TypeError, "sources", "torch.Tensor", "int", sources=0),
        wrong("dtype", TypeError, "sources", "int64", sources=indices[:1].int()),
        wrong("rank", ValueError, "sources", "[S]", sources=indices[0]),
        wrong("beyond", ValueError, "sources", str(count), sources=torch.tensor([count])),
        wrong("negative", ValueError, "sources", "-1", sources=torch.tensor([0, -1])),
        wrong("device", ValueError, "sources", "device", "meta", sources=indices.to("meta")),
    ]


def case(name, function, reference, shapes, **changes):
    values = dict(
        name=name,
        function=function,
        reference=reference,
        make_inputs=make_inputs,
        differentiable=("weights",),
        dtypes=(torch.float32, torch.float64),
        shapes=shapes,  # vertices, edges besides those of the ring, sources (-1: all)
        small=((5, 7, 2), (6, 5, 3)),
        tiny=(5, 4, 2),
        invalid=invalid,
    )
    return OpCase(**values | changes)


SHAPES = (
    *((300, 900, 120), (40, 3000, 50), (60, 60, 2), (1, 3, 2), (1, 0, 1), (2, 1, 1)),
    *((7, 12, 0), (0, 0, 0), (150, 400, 17)),
)

CASES = [
    case("geodesic", distances(pyops), distances(pyops.reference), SHAPES),
    case(
        "geodesic-all",
        distances(pyops),
        distances(pyops.reference),
        ((90, 200, -1), (1, 0, -1), (0, 0, -1)),
        small=((4, 5, -1), (5, 3, -1)),
        tiny=(4, 3, -1),
    ),
    case(
        "geodesic-cutoff",
        distances(pyops, cutoff=1.0),
        distances(pyops.reference, cutoff=1.0),
        ((200, 500, 70), (9, 9, 4)),
    ),
    case(
        "geodesic-predecessors",
        predecessors(pyops),
        predecessors(pyops.reference),
        SHAPES,
        differentiable=(),
    ),
]


class TestContract(contract.Contract):
    cases = CASES
