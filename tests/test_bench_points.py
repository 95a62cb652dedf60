"""Benchmarks of point clouds: contestants do the same work, and other work is found out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benches import CPU, disagreeing, matches

from bench.ops.fps import Fps
from bench.ops.gather import Gather, Interpolate
from bench.ops.geodesic import Geodesic
from bench.ops.knn import Knn
from bench.ops.knn_graph import KnnGraph
from bench.ops.tpatches import TPatches
from bench.peers import fps as fps_peers
from bench.peers import gather as gather_peers
from bench.peers import geodesic as geodesic_peers
from bench.peers import knn as knn_peers
from bench.peers import knn_graph as knn_graph_peers
from bench.peers import tpatches as tpatches_peers

SAMPLES = Fps(points=150, samples=40, batch=2)
GATHERED = Gather(points=30, queries=9, neighbours=4, channels=5, batch=2)
INTERPOLATED = Interpolate(points=30, queries=50, channels=5, batch=2)


@pytest.mark.parametrize("changes", ({}, {"dims": 5}, {"dtype": torch.float16}), ids=str)
def test_fps_contestants_agree(changes):
    case = replace(SAMPLES, **changes)
    assert disagreeing(case, fps_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    for other in (x["points"].flip(1), x["points"] * torch.tensor([3.0] + [1.0] * (case.dims - 1))):
        assert not matches(case, fps_peers.loop(other.to(case.dtype), case.samples), expected)


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("case", (GATHERED, INTERPOLATED), ids=("gather", "interpolate"))
def test_gather_contestants_agree(case, backward):
    case = replace(case, backward=backward)
    assert disagreeing(case, gather_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    function = gather_peers.expanded if isinstance(case, Gather) else gather_peers.searched
    other = {**x, "values": x["values"].roll(1, 1)}
    assert not matches(case, case.task(function, other)(), expected)
    if backward:
        assert not matches(case, [expected[0], expected[1] * 1.01], expected)


PATHS = [
    Geodesic(points=90, k=6),
    Geodesic(points=90, k=40, sources=7, predecessors=True),
    Geodesic(points=70, k=5, dims=8, sources=9, backward=True),
    Geodesic(points=2, k=1, overhead=True),
]


@pytest.mark.parametrize("case", PATHS, ids=lambda case: case.name)
def test_geodesic_contestants_agree(case):
    assert disagreeing(case, geodesic_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    other = {**x, "weights": x["weights"] * 1.01}
    wrong = geodesic_peers.rounds(case, other)
    assert not matches(case, wrong.view(wrong.call()), expected)


NEIGHBOURS = [
    Knn(batch=2, queries=30, points=70, k=5),
    Knn(queries=60, points=60, k=5, offset=True),
    Knn(batch=2, queries=30, points=70, k=5, backward=True),
    Knn(queries=20, points=40, dims=40, k=2, dtype=torch.float16),
    Knn(queries=20, points=40, dims=70, k=2),
    Knn(queries=1, points=1, k=1, overhead=True),
]


@pytest.mark.parametrize("case", NEIGHBOURS, ids=lambda case: case.name)
def test_knn_contestants_agree(case):
    found = disagreeing(case, knn_peers.PEERS)
    assert found == (["torch.cdist by products, topk", "faiss flat"][: len(found)] if case.offset else [])


def test_knn_finds_out_other_work():
    """Neighbours of lower rank, those of another cloud, a distance that is not theirs."""
    case = NEIGHBOURS[0]
    x = case.inputs(CPU)
    expected, result = case.reference(x), knn_peers.nearest(x["query"], x["points"], 6)
    right = [t[..., :5] for t in result]
    assert matches(case, case.checked(x, *right), expected)
    for wrong in (
        [t[..., 1:] for t in result],
        [right[0], right[1].flip(0)],
        [right[0] * 1.01, right[1]],
        [right[0], right[1].roll(1, 1)],
    ):
        assert not matches(case, case.checked(x, *wrong), expected)


CHAINS = [
    TPatches(frames=3, points=60, queries=9, k=5, batch=2),
    TPatches(frames=3, points=60, queries=9, k=5, batch=2, still=False),
    TPatches(frames=1, points=1, queries=1, k=1, batch=1, overhead=True),
]


@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case.name)
def test_tpatches_contestants_agree(case):
    assert disagreeing(case, tpatches_peers.PEERS) == []


@pytest.mark.parametrize("case", [c for c in CHAINS if not c.overhead], ids=lambda case: case.name)
def test_tpatches_finds_out_other_work(case):
    """Frames in another order, chains that all go one way, one neighbour less, roots of the distances."""
    x = case.inputs(CPU)
    expected = case.reference(x)

    def work(x):
        return tpatches_peers.both(case, x, tpatches_peers.differences)

    assert matches(case, work(x), expected)
    indices, distances = expected
    for other in (
        work({**x, "points": x["points"].flip(1)}),
        work({**x, "first": x["last"], "last": x["first"]}),
        [indices.roll(1, -1), distances],
        [indices, distances.sqrt()],
    ):
        assert not matches(case, other, expected)


@pytest.mark.parametrize(
    "case", (KnnGraph(points=80, k=4), KnnGraph(points=60, dims=20, k=7, backward=True)), ids=str
)
def test_knn_graph_contestants_agree(case):
    assert disagreeing(case, knn_graph_peers.PEERS) == []
    x = case.inputs(CPU)
    expected = case.reference(x)
    other = case.task(knn_graph_peers.composed, {"x": x["x"] * torch.tensor([3.0] + [1.0] * (case.dims - 1))})
    assert not matches(case, list(other.view(other.call())), expected)


@pytest.mark.parametrize("sources", (0, 7))
def test_paths_by_neighbours_agree(sources):
    """A peer on GPUs, here on a CPU."""
    case = Geodesic(points=90, k=6, sources=sources)
    x = case.inputs(CPU)
    rival = geodesic_peers.neighbours(case, x)
    assert matches(case, rival.view(rival.call()), case.reference(x))


@pytest.mark.parametrize("case", NEIGHBOURS[:2], ids=lambda case: case.name)
def test_flashlib_is_called_as_it_wants(case):
    """On a CPU it falls back to PyTorch, with the same arguments and results; far from the origin it is not exact."""
    pytest.importorskip("flashlib")
    x = case.inputs(CPU)
    rival = knn_peers.flash(case, x)
    assert matches(case, rival.view(rival.call()), case.reference(x)) or case.offset
