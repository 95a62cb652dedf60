"""knn_graph: graphs of nearest neighbours. Peers: `bench/peers/knn_graph.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, forward_backward
from ..limits import Bound, Chip


@dataclass(frozen=True)
class KnnGraph(Case):
    points: int = 10_000
    dims: int = 3
    k: int = 10
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [f"{self.points} points", f"{self.dims} dimensions", f"k={self.k}"]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        x = torch.randn(self.points, self.dims, generator=torch.Generator().manual_seed(seed))
        return {"x": x.to(device)}

    def task(self, graph: Callable[..., Any], x: Inputs) -> Contestant:
        """The case's work with `graph(x, k)`, which gives sparse rows; the gradient is that of the sum of squares."""
        if not self.backward:
            return Contestant(lambda: graph(x["x"], self.k), view=viewed, graph=False)

        def energy(points: Tensor) -> Tensor:
            return graph(points, self.k)[2].square().sum()

        return Contestant(forward_backward(energy, [x["x"]], torch.ones_like(x["x"][0, 0])), graph=False)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: self.task(pyops.knn_graph, x)}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """Neighbours in float64 from all distances, some points at a time, without a matrix of the whole."""
        from pyops.reference.knn_graph import edge_lengths, others

        from .knn import nearest

        wide = inputs["x"].double()

        def graph(x: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
            count = len(x)
            rows, ends = others(nearest(x.detach()[None], x.detach()[None], k + 1)[1][0])
            edges = torch.cat([rows * count + ends, ends * count + rows]).unique()
            indptr = torch.searchsorted(edges, torch.arange(count + 1, device=x.device) * count)
            return indptr, edges % count, edge_lengths(x, indptr, edges % count)

        task = self.task(graph, {"x": wide})
        return list(task.view(task.call()))

    def tolerances(self) -> list[Tolerance]:
        """Where each row begins and leads, which are integers, and lengths."""
        close = Tolerance(1e-5, of_peak=True)
        return [close, close] if self.backward else [Tolerance(0.5), Tolerance(0.5), close]

    @property
    def bytes(self) -> int:
        """Points and the graph, of which at least half of the edges have no twin."""
        points = self.points * self.dims * 4
        return 8 * self.points + self.points * self.k * 12 + points * (2 if self.backward else 1)

    @property
    def flops(self) -> int:
        """Of all distances, which a spatial structure does not compute."""
        return 3 * self.points * self.points * self.dims

    @property
    def least_flops(self) -> int:
        """Of the neighbours themselves; in many dimensions there is no way around the others."""
        return self.flops if self.dims > 16 else 3 * self.points * self.k * self.dims

    @property
    def launches(self) -> int:
        """The search, a sort of all edges, their lengths; the host reads how many there are."""
        return 40

    def bound(self, chip: Chip) -> Bound:
        words = self.points**2 * self.dims * (1 if self.dims <= 3 and self.k < 32 else 2)
        return Bound(words / chip.words, "coordinates of all pairs from shared memory")


def viewed(graph: Sequence[Any]) -> list[Tensor]:
    return [torch.as_tensor(part).double() for part in graph]


CASES = (
    KnnGraph(headline=True),
    KnnGraph(backward=True),
    KnnGraph(points=2000, dims=512, k=300),
    KnnGraph(points=500, dims=3, k=5, quick=True),
)
