"""What the benchmarks of dense graphs and of their coordinates compare does the same work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import CPU, disagreeing, matches

from bench.models.isomap import Isomap, Step
from bench.ops.mds import Mds
from bench.ops.minplus import MinPlus, Reach
from bench.peers import isomap as isomap_peers
from bench.peers import mds as mds_peers
from bench.peers import minplus as minplus_peers


@pytest.mark.parametrize(
    "case",
    (
        MinPlus(size=23),
        MinPlus(size=23, backward=True),
        MinPlus(size=9, batch=3, dtype=torch.float16),
        MinPlus(size=1, overhead=True),
        MinPlus(size=23, batch=2, paths=True),
        MinPlus(size=23, paths=True, backward=True),
        Reach(queries=30, neighbours=4, points=23),
        Reach(queries=30, neighbours=4, points=23, backward=True),
        Reach(queries=30, neighbours=4, points=23, dtype=torch.float16),
        Reach(queries=1, neighbours=1, points=1, overhead=True),
    ),
    ids=lambda case: case.name,
)
def test_minplus_contestants_agree(case):
    assert disagreeing(case, minplus_peers.PEERS) == []


def test_minplus_finds_out_other_work():
    case = MinPlus(size=23)
    x = case.inputs(CPU)
    expected = case.reference(x)
    assert matches(case, [minplus_peers.all_sums(x["a"], x["b"])], expected)
    assert not matches(case, [minplus_peers.all_sums(x["b"], x["a"])], expected)
    edges = Reach(queries=30, neighbours=4, points=23)
    x = edges.inputs(CPU)
    some = [t[:, 1:] for t in (x["lengths"], x["indices"])]
    assert not matches(edges, [minplus_peers.edge_by_edge(*some, x["rows"])], edges.reference(x))
    paths = replace(case, paths=True)
    x = paths.inputs(CPU)
    assert not matches(paths, [x["weights"]], paths.reference(x))


@pytest.mark.parametrize(
    "case",
    (
        Mds(points=40, dtype=torch.float64),
        Mds(points=250),
        Mds(points=250, backward=True, dtype=torch.float64),
        Mds(points=40, components=5, product=True),
        Mds(points=2, components=1, product=True, overhead=True),
    ),
    ids=lambda case: case.name,
)
def test_mds_contestants_agree(case):
    assert disagreeing(case, mds_peers.PEERS) == []


def test_mds_finds_out_other_work():
    case = Mds(points=40, dtype=torch.float64)
    x = case.inputs(CPU)
    expected = case.reference(x)
    embedding, _ = mds_peers.all_eigenpairs(x["distances"], 3)
    embedding = embedding * torch.where((embedding * x["vectors"]).sum(0) < 0, -1, 1)
    assert matches(case, [embedding], expected)
    assert not matches(case, [embedding.flip(1)], expected)
    assert not matches(case, [embedding * 1.01], expected)


@pytest.mark.parametrize("placed", (0, 20))
def test_isomap_contestants_agree(placed):
    case = Isomap(points=150, placed=placed)
    assert disagreeing(case, isomap_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    other = replace(case, k=5).reference(x)
    assert matches(case, expected, expected) and not matches(case, other, expected)


@pytest.mark.parametrize("placed", (0, 20))
def test_isomap_of_a_gpu_is_compared_with_the_same(placed):
    """Where scikit-learn would take too long: paths and eigenpairs in plain PyTorch."""
    case = Isomap(points=150, placed=placed)
    x = case.inputs(CPU)
    points, new = x["points"].double(), x["new"].double()
    assert matches(case, case.upright(case.definition(points, new)), case.reference(x))
    other = replace(case, k=5).definition(points, new)
    assert not matches(case, case.upright(other), case.reference(x))


def test_steps_through_isomap_agree():
    case = Step(points=120, landmarks=30, features=40, backward=True)
    assert disagreeing(case, isomap_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    assert expected[1].norm() > 0, "a loss without a gradient"
    assert not matches(case, [expected[0], expected[1] * 1.01], expected)
    other = {**x, "landmarks": x["landmarks"][1:]}
    assert not matches(case, case.reference(other), expected)
