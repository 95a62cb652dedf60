"""Min-plus products and shortest distances of dense graphs: the contract."""

from __future__ import annotations

import math

import contract
import torch

import pyops
from pyops.testing import Invalid, OpCase


def matrices(shape, dtype, device, generator):
    *batch, rows, inner, columns = shape
    a = torch.randn((*batch, rows, inner), generator=generator)
    b = torch.randn((*batch, inner, columns), generator=generator)
    return dict(a=a.to(device, dtype), b=b.to(device, dtype))


def poison(inputs, value):
    """One entry of a, on which a row of results hangs; -inf takes them all, inf leaves them to others."""
    a = inputs["a"].clone()
    a[0, 1, 2] = value
    touched = torch.zeros(*a.shape[:2], inputs["b"].shape[2], dtype=torch.bool)
    touched[0, 1] = True
    return {**inputs, "a": a}, touched


def invalid_matrices(inputs):
    a, b = inputs["a"], inputs["b"]

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "a", "torch.Tensor", "list", a=[1.0]),
        wrong("no tensor", TypeError, "b", "torch.Tensor", "NoneType", b=None),
        wrong("dtype", TypeError, "a", "float32", "int64", a=a.long()),
        wrong("dtypes differ", TypeError, "b", "float32", "float64", b=b.double()),
        wrong("vector", ValueError, "a", "2 dimensions", a=a[0, 0]),
        wrong("vector", ValueError, "b", "2 dimensions", b=b[0, 0]),
        wrong("inner size", ValueError, "b", "rows", str(a.shape[-1]), b=b[:, 1:]),
        wrong("batch", ValueError, "b", "broadcast", b=b[:1].expand(7, -1, -1)),
        wrong("device", ValueError, "b", "device", "meta", b=b.to("meta")),
    ]


def graphs(shape, dtype, device, generator):
    """Some edges are missing, some nodes out of reach; but of the smallest, where differences are taken."""
    weights = torch.rand(shape, generator=generator) + 0.05
    if shape[-1] > 5:
        weights[torch.rand(shape, generator=generator) < 0.3] = math.inf
        weights[..., :, 2] = math.inf
    return dict(weights=weights.to(device, dtype))


def invalid_graphs(inputs):
    weights = inputs["weights"]

    def with_value(value):
        changed = weights.clone()
        changed[0, 1, 2] = value
        return changed

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "weights", "torch.Tensor", "list", weights=[1.0]),
        wrong("dtype", TypeError, "weights", "float32", "int64", weights=torch.ones(3, 3).long()),
        wrong("vector", ValueError, "weights", "2 dimensions", weights=weights[0, 0]),
        wrong("not square", ValueError, "weights", "[..., N, N]", weights=weights[..., 1:]),
        wrong("negative", ValueError, "weights", "at least 0", "-1", weights=with_value(-1.0)),
        wrong("NaN", ValueError, "weights", "at least 0", "nan", weights=with_value(math.nan)),
        wrong("-inf", ValueError, "weights", "at least 0", "-inf", weights=with_value(-math.inf)),
    ]


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def product(name, shapes, small, tiny, make, poisoned=None):
    return OpCase(
        name=name,
        function=pyops.min_plus_matmul,
        reference=pyops.reference.min_plus_matmul,
        make_inputs=make,
        differentiable=("a", "b"),
        dtypes=FLOATS,
        shapes=shapes,
        small=small,
        tiny=tiny,
        poison=poisoned,
        invalid=invalid_matrices,
    )


CASES = [
    product(
        "min-plus",
        (
            *((2, 7, 13, 17), (1, 1, 1, 1), (0, 3, 4, 5), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)),
            *((1, 100, 300, 530), (3, 6, 5, 16)),
        ),
        ((2, 7, 13, 17), (3, 5, 9, 6)),
        (2, 3, 4, 5),
        matrices,
        poison,
    ),
    OpCase(
        name="floyd-warshall",
        function=pyops.floyd_warshall,
        reference=pyops.reference.floyd_warshall,
        make_inputs=graphs,
        differentiable=("weights",),
        dtypes=(torch.float32, torch.float64),
        shapes=((2, 9, 9), (1, 1, 1), (0, 3, 3), (3, 0, 0), (1, 97, 97), (2, 100, 100), (40, 12, 12)),
        small=((2, 7, 7), (2, 9, 9)),
        tiny=(2, 5, 5),
        invalid=invalid_graphs,
    ),
    OpCase(
        name="floyd-warshall-halves",  # where paths of the same length abound: no gradients here
        function=pyops.floyd_warshall,
        reference=pyops.reference.floyd_warshall,
        make_inputs=graphs,
        differentiable=(),
        dtypes=(torch.float16, torch.bfloat16),
        shapes=((2, 9, 9), (3, 100, 100)),
        small=((1, 7, 7), (1, 9, 9)),
        tiny=(2, 5, 5),
        invalid=invalid_graphs,
    ),
]


class TestContract(contract.Contract):
    cases = CASES
