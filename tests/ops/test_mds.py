"""Classical multidimensional scaling, and the product that it rests on: the contract."""

from __future__ import annotations

import math

import contract
import torch

import pyops
from pyops.testing import Invalid, OpCase


def block(shape, dtype, device, generator):
    *batch, points, columns = shape
    distances = torch.rand(*batch, points, points, generator=generator)
    vectors = torch.randn(*batch, points, columns, generator=generator)
    return dict(distances=distances.to(device, dtype), vectors=vectors.to(device, dtype))


def invalid_block(inputs):
    distances, vectors = inputs["distances"], inputs["vectors"]

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "distances", "torch.Tensor", "list", distances=[1.0]),
        wrong("no tensor", TypeError, "vectors", "torch.Tensor", "NoneType", vectors=None),
        wrong("dtype", TypeError, "distances", "float32", "int64", distances=distances.long()),
        wrong("dtypes differ", TypeError, "vectors", "float32", "float64", vectors=vectors.double()),
        wrong("not square", ValueError, "distances", "[..., N, N]", distances=distances[..., 1:]),
        wrong("shape", ValueError, "vectors", "[..., N, K]", vectors=vectors[:, 1:]),
        wrong("batch", ValueError, "vectors", "[..., N, K]", vectors=vectors[:1]),
        wrong("device", ValueError, "vectors", "device", "meta", vectors=vectors.to("meta")),
    ]


def embedding_of(distances, n_components):
    return pyops.classical_mds(distances, n_components).embedding


def reference_embedding(distances, n_components):
    return pyops.reference.classical_mds(distances, n_components).embedding


def far_apart(shape, dtype, device, generator):
    """Distances of points in more dimensions than are asked for, whose extents differ well."""
    points, components = shape
    dims = max(components + 2, 4)
    extents = 3.0 ** -torch.arange(dims, dtype=torch.float64)
    x = torch.randn(points, dims, generator=generator, dtype=torch.float64) * extents
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distances = (distances + distances.mT) / 2
    return dict(distances=distances.to(device, dtype), n_components=components)


def invalid_distances(inputs):
    distances = inputs["distances"]

    def with_value(value):
        changed = distances.clone()
        changed[1, 2] = value
        return changed

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "distances", "torch.Tensor", "list", distances=[1.0]),
        wrong("dtype", TypeError, "distances", "float64", "int64", distances=distances.long()),
        wrong("half", TypeError, "distances", "float64", "float16", distances=distances.half()),
        wrong("batch", ValueError, "distances", "[N, N]", distances=distances[None]),
        wrong("not square", ValueError, "distances", "[N, N]", distances=distances[1:]),
        wrong("NaN", ValueError, "distances", "finite", "nan", distances=with_value(math.nan)),
        wrong("inf", ValueError, "distances", "finite", "inf", distances=with_value(math.inf)),
        wrong("negative", ValueError, "distances", "at least 0", "-1", distances=with_value(-1.0)),
        wrong("not symmetric", ValueError, "distances", "symmetric", distances=with_value(30.0)),
        wrong("none", ValueError, "n_components", "from 1", "0", n_components=0),
        wrong("too many", ValueError, "n_components", "points", n_components=distances.shape[0] + 1),
        wrong("fraction", TypeError, "n_components", "float", n_components=2.0),
    ]


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

CASES = [
    OpCase(
        name="double-centred",
        function=pyops.double_centered_matmul,
        reference=pyops.reference.double_centered_matmul,
        make_inputs=block,
        differentiable=("distances", "vectors"),
        dtypes=FLOATS,
        shapes=((2, 13, 3), (1, 1, 1), (0, 3, 2), (2, 5, 0), (1, 0, 2), (1, 203, 9), (2, 1100, 2)),
        small=((2, 13, 3), (3, 9, 10)),
        tiny=(2, 4, 3),
        invalid=invalid_block,
    ),
    OpCase(
        name="classical-mds",
        function=embedding_of,
        reference=reference_embedding,
        make_inputs=far_apart,
        differentiable=("distances",),
        dtypes=(torch.float32, torch.float64),
        shapes=((12, 2), (5, 1), (60, 3)),
        small=((12, 2), (17, 2)),
        tiny=(6, 2),
        invalid=invalid_distances,
        capturable=False,  # the host looks at residuals
    ),
]


class TestContract(contract.Contract):
    cases = CASES
