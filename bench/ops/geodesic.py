"""geodesic: shortest paths in graphs of neighbouring points. Peers: `bench/peers/geodesic.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, forward_backward
from ..limits import Bound, Chip

_CHECKED = 32  # sources whose distances are compared


def swiss_roll(count: int, generator: torch.Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator, dtype=torch.float64))
    height = 21 * torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.stack([angle * angle.cos(), height, angle * angle.sin()], 1)


def graph_of_neighbours(points: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Edges to the k nearest points of each, and back."""
    parts = [
        torch.cdist(part, points).topk(k + 1, largest=False).indices[:, 1:] for part in points.split(1000)
    ]
    count, here = len(points), points.device
    rows = torch.arange(count, device=here).repeat_interleave(k)
    ends = torch.cat(parts).flatten() if parts else rows
    pairs = torch.cat([rows * count + ends, ends * count + rows]).unique()
    rows, ends = pairs // count, pairs % count
    indptr = torch.searchsorted(rows, torch.arange(count + 1, device=here))
    return indptr, ends, (points[rows] - points[ends]).norm(dim=1).float()


def by_neighbours(graph: tuple[Tensor, Tensor, Tensor], sources: Tensor) -> Tensor:
    """Distances in a symmetric graph: the first neighbour of all vertices, then the next, until none helps."""
    indptr, ends, lengths = graph
    degrees = indptr.diff()
    place = torch.arange(int(degrees.max()), device=ends.device)[:, None]
    edges = (indptr[:-1] + place).clamp(max=len(ends) - 1)
    lengths = torch.where(place < degrees, lengths[edges], torch.inf)
    distances = lengths.new_full((len(degrees), len(sources)), torch.inf)
    distances[sources, torch.arange(len(sources), device=ends.device)] = 0
    before = None
    while before is None or not torch.equal(before, distances):
        before = distances.clone()
        for vertices, length in zip(ends[edges], lengths, strict=True):
            torch.minimum(distances, distances[vertices].add_(length[:, None]), out=distances)
    return distances.mT


@dataclass(frozen=True)
class Geodesic(Case):
    arithmetic: ClassVar[str] = "add, min"
    points: int = 10000
    k: int = 10
    sources: int = 0  # 0: all
    dims: int = 0  # of a Gaussian cloud; 0: a swiss roll
    predecessors: bool = False
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "swiss roll" if self.dims == 0 else f"{self.dims} dimensions",
            f"{self.points} points",
            f"k={self.k}",
            f"{self.sources} sources" if self.sources else "all pairs",
            *(["predecessors"] if self.predecessors else []),
        ]

    @property
    def rows(self) -> int:
        return self.sources or self.points

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        if self.dims:
            points = torch.randn(self.points, self.dims, generator=generator, dtype=torch.float64)
        else:
            points = swiss_roll(self.points, generator)
        indptr, indices, weights = graph_of_neighbours(points, self.k)
        sources = torch.randperm(self.points, generator=generator)[: self.rows]
        grad = torch.randn(self.rows, self.points, generator=generator) if self.backward else None
        found = dict(indptr=indptr, indices=indices, weights=weights, sources=sources, grad=grad)
        return {name: None if t is None else t.to(device) for name, t in found.items()}

    def task(
        self, search: Callable[[tuple[Tensor, Tensor, Tensor], Tensor], Tensor], x: Inputs
    ) -> Contestant:
        """The case's work with `search(graph, sources)`."""
        if self.backward:

            def of_weights(weights: Tensor) -> Tensor:
                return search((x["indptr"], x["indices"], weights), x["sources"])

            return Contestant(forward_backward(of_weights, [x["weights"]], x["grad"]), view=self.checked)
        graph = x["indptr"], x["indices"], x["weights"]
        return Contestant(lambda: search(graph, x["sources"]), view=self.checked)

    def checked(self, result) -> list[Tensor]:
        """Of all distances those of some sources; predecessors may tie, so distances stand for them."""
        parts = result if isinstance(result, (list, tuple)) else [result]
        some = torch.as_tensor(parts[0])[:: max(1, self.rows // _CHECKED)]
        return [some, *(torch.as_tensor(t) for t in parts[1:])] if self.backward else [some]

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        def search(graph, sources):
            return pyops.geodesic_distances(graph, sources, return_predecessors=self.predecessors)

        return {"pyops": lambda x: self.task(search, x)}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        weights, sources = inputs["weights"].double(), inputs["sources"]
        if self.backward:

            def of_weights(weights: Tensor) -> Tensor:
                return reference.geodesic_distances((inputs["indptr"], inputs["indices"], weights), sources)

            return self.checked(forward_backward(of_weights, [weights], inputs["grad"].double())())
        some = sources[:: max(1, self.rows // _CHECKED)]
        graph = inputs["indptr"], inputs["indices"], weights
        return [torch.cat([reference.geodesic_distances(graph, part) for part in some.split(4)])]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value; where two paths differ by rounding alone, a gradient may take the other."""
        distances = Tolerance(1e-5, of_peak=True)
        return [distances, Tolerance(1e-4, flips=1e-3, of_peak=True)] if self.backward else [distances]

    @property
    def edges(self) -> int:
        return 2 * self.points * min(self.k, max(self.points - 1, 0))

    @property
    def bytes(self) -> int:
        """The graph, about, and the distances; predecessors, and the gradient that comes in."""
        graph, found = 8 * (self.points + 1) + 12 * self.edges, self.rows * self.points
        return graph + 4 * found + 8 * found * self.predecessors + 4 * found * self.backward

    @property
    def flops(self) -> int:
        """Every edge relaxed once from each source, at most that of both directions: an addition, a comparison."""
        return 2 * self.rows * self.edges

    def bound(self, chip: Chip) -> Bound:
        """Rounds, about as many as edges on the longest path, each with its barrier, for four sources at a time on a
        multiprocessor; and edges, 8 bytes each, which are relaxed about three times."""
        longest = 1.3 * math.sqrt(self.points * 10 / self.k)
        waves = math.ceil(self.rows / (4 * chip.multiprocessors))
        rounds = waves * longest * (2e-6 + self.points / 512 * 40 / chip.clock)
        relaxed = 3 * 8 * self.edges * self.rows / chip.l2
        if rounds > relaxed:
            return Bound(rounds, f"about {longest:.0f} rounds, {waves} times")
        return Bound(relaxed, "edges from the second-level cache, three times")


CASES = (
    Geodesic(headline=True, goal="25 ms"),
    Geodesic(points=2000, k=300, headline=True),
    Geodesic(sources=256, headline=True),
    Geodesic(points=2000),
    Geodesic(dims=8, sources=1000),
    Geodesic(points=50000, sources=3),
    Geodesic(points=2000, predecessors=True),
    Geodesic(points=1000, sources=64, backward=True),
    Geodesic(points=400, quick=True),
    Geodesic(points=200, sources=20, backward=True, quick=True),
    Geodesic(points=2, k=1, overhead=True, quick=True),
)
