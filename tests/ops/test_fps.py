"""Farthest point sampling: the contract, then what is true of this operator alone."""

from __future__ import annotations

import math

import contract
import pytest
import torch

import pyops
from pyops.testing import Invalid, OpCase


def make_inputs(of_clouds):
    def make(shape, dtype, device, generator):
        *sizes, m = shape
        batch, count, _ = sizes
        points = torch.randn(sizes, generator=generator).to(device, dtype)
        if not of_clouds:
            return dict(points=points, m=m)
        lengths = torch.randint(count // 2, count + 1, (batch,), generator=generator).to(device)
        start = torch.randint(0, max(count, 1), (batch,), generator=generator).to(device)
        return dict(points=points, m=m, lengths=lengths, start=start)

    return make


def invalid(inputs):
    points = inputs["points"]
    batch, count, _ = points.shape
    lengths = torch.full((batch,), count)

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "points", "torch.Tensor", "list", points=[1.0]),
        wrong("dtype", TypeError, "points", "float32", "int64", points=points.long()),
        wrong("rank", ValueError, "points", "[B, N, D]", points=points[0]),
        wrong("no axis", ValueError, "points", "from 1 to 64", points=points[..., :0]),
        wrong("axes", ValueError, "points", "from 1 to 64", points=points[..., :1].repeat(1, 1, 65)),
        wrong("fraction", TypeError, "m", "float", m=2.0),
        wrong("flag", TypeError, "m", "bool", m=True),
        wrong("negative", ValueError, "m", "at least 0", "-1", m=-1),
        wrong("no tensor", TypeError, "lengths", "torch.Tensor", "list", lengths=[3]),
        wrong("dtype", TypeError, "lengths", "int64", "int32", lengths=lengths.int()),
        wrong("shape", ValueError, "lengths", f"[B={batch}]", lengths=lengths[1:]),
        wrong("device", ValueError, "lengths", "device", "meta", lengths=lengths.to("meta")),
        wrong("negative", ValueError, "lengths", f"from 0 to N={count}", lengths=-lengths),
        wrong("too long", ValueError, "lengths", f"from 0 to N={count}", lengths=lengths + 1),
        wrong("dtype", TypeError, "start", "int64", "float32", start=lengths.float()),
        wrong("shape", ValueError, "start", f"[B={batch}]", start=lengths[:, None]),
        wrong("number", TypeError, "start", "float", start=0.0),
        wrong("beyond", ValueError, "start", str(count - 1), str(count), start=count),
        wrong("beyond", ValueError, "start", str(count - 1), str(count), start=lengths),
        wrong("negative", ValueError, "start", "-1", start=-1),
    ]


def case(name, of_clouds):
    return OpCase(
        name=name,
        function=pyops.farthest_point_sample,
        reference=pyops.reference.farthest_point_sample,
        make_inputs=make_inputs(of_clouds),
        differentiable=(),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        # batch, points, axes, samples
        shapes=(
            *((5, 1100, 3, 300), (2, 700, 8, 90), (2, 130, 9, 60), (1, 65, 64, 40), (3, 600, 1, 600)),
            *((2, 1, 3, 3), (1, 1, 1, 1), (2, 0, 3, 2), (0, 7, 3, 2), (2, 9, 2, 0), (2, 9, 2, 20)),
        ),
        small=((2, 20, 3, 6), (3, 37, 5, 6)),
        tiny=(2, 8, 2, 4),
        invalid=invalid,
    )


CASES = [case("fps", False), case("fps-lengths", True)]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------

SIZES = pytest.mark.parametrize("count", (40, 1500))  # without and with a tree


def cloud(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@SIZES
def test_greedy(count):
    """Every sample is as far from those before it as any point, and of the lowest index."""
    points = cloud(1, count, 3).double()
    samples = pyops.farthest_point_sample(points, 30, start=7)[0]
    distances = (points[0, :, None] - points[0, samples]).square().sum(-1)
    assert samples[0] == 7
    for i in range(1, 30):
        nearest = distances[:, :i].amin(1)
        assert nearest[samples[i]] == nearest.max() and nearest.argmax() == samples[i]


@SIZES
@pytest.mark.parametrize("kind", ("lattice", "same", "line", "clusters", "outlier", "infinite"))
def test_ties_and_shapes(kind, count):
    points = cloud(2, count, 3)
    if kind == "lattice":
        points = (points * 5).round()
    elif kind == "same":
        points = torch.ones_like(points)
    elif kind == "line":
        points = points[..., :1].expand_as(points) + 100
    elif kind == "clusters":
        points = points / 1000 + cloud(1, 7, 3, seed=1)[:, torch.arange(count) % 7]
    elif kind == "outlier":
        points[:, 17] = 1e18
    else:
        points[:, 3:9], points[:, 9:12] = math.inf, -math.inf
    found = pyops.farthest_point_sample(points, 200)
    assert torch.equal(found, pyops.reference.farthest_point_sample(points, 200))
    if kind == "same":
        assert torch.equal(found[0], torch.arange(200).where(torch.arange(200) < count, -1))


@SIZES
def test_every_point_once(count):
    for points in (cloud(1, count, 2), (cloud(1, count, 2) * 3).round()):
        found = pyops.farthest_point_sample(points, count + 10)[0]
        assert torch.equal(found[:count].sort().values, torch.arange(count))
        assert (found[count:] == -1).all()


@SIZES
def test_prefix(count):
    """Fewer samples are the first of more."""
    points = cloud(2, count, 3)
    many = pyops.farthest_point_sample(points, 40)
    for m in (0, 1, 2, 3, 17):
        assert torch.equal(pyops.farthest_point_sample(points, m), many[:, :m])


@SIZES
def test_nan_is_never_chosen(count):
    points = cloud(2, count, 3)
    points[0, ::3, 1] = math.nan
    points[1] = math.nan
    found = pyops.farthest_point_sample(points, count)
    whole = [i for i in range(count) if i % 3]
    assert found[0, 0] == 1, "in place of a start that is NaN"
    assert sorted(found[0, : len(whole)].tolist()) == whole
    assert (found[0, len(whole) :] == -1).all() and (found[1] == -1).all()


@SIZES
def test_lengths(count):
    points = cloud(3, count, 3)
    lengths = torch.tensor([count, 0, count // 2])
    found = pyops.farthest_point_sample(points, 25, lengths=lengths, start=count - 1)
    assert found[0, 0] == count - 1 and (found[1] == -1).all()
    assert torch.equal(found[2:], pyops.farthest_point_sample(points[2:, : count // 2], 25))
    points[2, count // 2 :] = math.nan
    assert torch.equal(pyops.farthest_point_sample(points, 25, lengths=lengths, start=count - 1), found)


def test_far_from_the_origin():
    """Differences before squares: what is added to all points changes nothing."""
    points = (cloud(1, 1000, 3) * 2**10).round() / 2**10
    moved = points + torch.tensor([128.0, 256, 32])
    assert torch.equal(
        pyops.farthest_point_sample(points, 100), pyops.farthest_point_sample(moved, 100)
    )


def test_covers():
    """No point is farther from the samples than the last two samples are from each other (Gonzalez)."""
    points = cloud(1, 3000, 2).double()
    samples = points[0, pyops.farthest_point_sample(points, 60)[0]]
    radius = torch.cdist(points[0], samples).amin(1).max()
    assert radius <= torch.nn.functional.pdist(samples).min() + 1e-12


def test_large_leaves_of_a_tree_of_many_levels():
    points = torch.cat([cloud(1, 20000, 3), cloud(1, 20000, 3) / 100 + 5], 1)
    found = pyops.farthest_point_sample(points, 120)
    assert torch.equal(found, pyops.reference.farthest_point_sample(points, 120))


def test_points_get_no_gradient():
    points = cloud(1, 10, 3).requires_grad_()
    found = pyops.farthest_point_sample(points, 4)
    assert found.dtype == torch.int64 and not found.requires_grad


def test_operator_checks_memory_itself():
    points, numbers = cloud(2, 10, 3), torch.zeros(2, dtype=torch.int64)
    sample = torch.ops.pyops.farthest_point_sample
    for name, args in (
        ("points", (points[0], 3, None, None)),
        ("points", (points.int(), 3, None, None)),
        ("points", (cloud(2, 10, 65), 3, None, None)),
        ("m", (points, -1, None, None)),
        ("lengths", (points, 3, numbers[:1], None)),
        ("lengths", (points, 3, numbers.int(), None)),
        ("start", (points, 3, None, numbers[:, None])),
    ):
        with pytest.raises(RuntimeError, match=name):
            sample(*args)
    wild = torch.tensor([-5, 99])
    assert torch.equal(sample(points, 3, wild, None)[0], torch.full((3,), -1))
    assert torch.equal(sample(points, 3, None, wild), sample(points, 3, None, None))
