"""knn: nearest neighbours in point clouds and among descriptors. Peers: `bench/peers/knn.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward
from ..limits import Bound, Chip

_CHUNK = 1 << 24  # distances of the definition at a time


def nearest(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All distances from differences, some queries at a time, and the k smallest."""
    step = max(1, _CHUNK // max(1, points.shape[0] * points.shape[1]))
    parts = []
    for part in query.split(step, 1):
        distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(distances.topk(k, largest=False, sorted=True))
    return torch.cat([p.values for p in parts], 1).square(), torch.cat([p.indices for p in parts], 1)


@dataclass(frozen=True)
class Knn(Case):
    batch: int = 1
    queries: int = 1024
    points: int = 1024
    dims: int = 3
    k: int = 16
    offset: bool = False
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        sizes = f"{self.points}" if self.points == self.queries else f"{self.queries} of {self.points}"
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{sizes} points",
            f"{self.dims} dimensions",
            f"k={self.k}",
            *(["far from the origin"] if self.offset else []),
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        query, points = (
            torch.rand(self.batch, n, self.dims, generator=generator) for n in (self.queries, self.points)
        )
        if (
            self.queries == self.points and self.dims <= 8 and not self.overhead
        ):  # every point's own neighbours
            query = points.clone()
        if self.offset:
            query, points = (t + torch.tensor([100.0, 200, 30]) for t in (query, points))
        grad = torch.randn(self.batch, self.queries, self.k, generator=generator) if self.backward else None
        return {
            "query": query.to(device, self.dtype),
            "points": points.to(device, self.dtype),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, search: Callable[..., Any], x: Inputs) -> Contestant:
        """The case's work with `search(query, points, k)`, which gives squared distances and indices."""
        if self.backward:
            clouds = x["query"], x["points"]
            return Contestant(forward_backward(lambda *c: search(*c, self.k)[0], clouds, x["grad"]))

        def view(found: Sequence[Tensor]) -> list[Tensor]:
            return self.checked(x, torch.as_tensor(found[0]), torch.as_tensor(found[1]))

        return Contestant(lambda: search(x["query"], x["points"], self.k), view=view)

    def checked(self, x: Inputs, squared: Tensor, indices: Tensor) -> list[Tensor]:
        """What was found, and how far the points found really are."""
        from pyops.reference.knn import pair_distances

        shape = self.batch, self.queries, self.k
        indices = indices.reshape(shape).long().to(x["query"].device)
        return [squared.reshape(shape), pair_distances(x["query"].double(), x["points"].double(), indices)]

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: self.task(pyops.knn, x)}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import knn as kernels

        def search(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
            return kernels.knn(query, points, k, None, None, float("inf"))

        def both() -> list[Tensor]:
            distances, indices = search(x["query"], x["points"], self.k)
            return [distances, *kernels.knn_backward(x["grad"], x["query"], x["points"], indices, True, True)]

        return Contestant(both) if self.backward else self.task(search, x)

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops.reference.knn import pair_distances

        query, points = inputs["query"].double(), inputs["points"].double()
        squared, indices = nearest(query, points, self.k)
        if not self.backward:
            return [squared, squared]
        return forward_backward(
            lambda q, p: pair_distances(q, p, indices), (query, points), inputs["grad"].double()
        )()

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value. Two points that only float64 tells apart take each other's gradient."""
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(self.dtype, 1e-5)
        if self.backward:
            return [Tolerance(limit, of_peak=True), *[Tolerance(limit, flips=2e-4, of_peak=True)] * 2]
        return [Tolerance(limit, of_peak=True)] * 2

    @property
    def bytes(self) -> int:
        """Clouds and neighbours; backward reads both and a gradient, and writes the gradients to the clouds."""
        clouds = self.batch * (self.queries + self.points) * self.dims * self.dtype.itemsize
        found = self.batch * self.queries * self.k
        forward = clouds + found * (self.dtype.itemsize + 8)
        return forward + (2 * clouds + found * (self.dtype.itemsize + 8) if self.backward else 0)

    @property
    def flops(self) -> int:
        """Of all distances, which a spatial structure does not compute."""
        return 3 * self.batch * self.queries * self.points * self.dims

    @property
    def least_flops(self) -> int:
        """Of the neighbours themselves; in many dimensions there is no way around products with the others."""
        if self.dims > 16:
            return 2 * self.batch * self.queries * self.points * self.dims
        return 3 * self.batch * self.queries * self.k * self.dims

    def bound(self, chip: Chip) -> Bound:
        """What the kernel that such clouds go to is held up by (`csrc/knn/knn*.cu`)."""
        pairs = self.batch * self.queries * self.points
        if self.dims >= 64 and self.queries * self.points * self.dims >= 1 << 28:
            products = self.least_flops / chip.flops("fma")
            return Bound(products + 16 * pairs / chip.copied, "products, then two looks at all of them")
        if self.dims <= 3 and self.points >= 4096 and pairs >= 1 << 26:
            steps = 800 * self.batch * self.queries / (2 / 3 * 4 * chip.multiprocessors * chip.clock)
            return Bound(steps, "instructions on the way through a tree")
        # A lane reads every coordinate of every point for its query, and in many dimensions the query's, too.
        words = pairs * self.dims * (1 if self.dims <= 3 and self.k <= 32 else 2)
        return Bound(words / chip.words, "coordinates of all pairs from shared memory")


CASES = (
    Knn(batch=32, headline=True, goal="25 us"),
    Knn(batch=32, backward=True, headline=True),
    Knn(queries=32768, points=32768, headline=True),
    Knn(batch=32, queries=32768, points=32768, headline=True, devices=("cuda",), goal="1.5 ms"),
    Knn(queries=20000, points=20000, dims=768, k=2, headline=True, devices=("cuda",), goal="2x its GEMM"),
    Knn(batch=32, offset=True),
    Knn(batch=32, queries=512, dtype=torch.float16),
    Knn(batch=32, k=64),
    Knn(queries=10000, points=10000, dims=128, k=2),
    Knn(batch=4, queries=256, points=512, quick=True),
    Knn(batch=4, queries=256, points=512, backward=True, quick=True),
    Knn(queries=1, points=1, k=1, overhead=True, quick=True),
)
