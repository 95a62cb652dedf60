"""isomap: `pyops.models.Isomap`, fits and placing of new points. Its peers are in `bench/peers/isomap.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name
from ..limits import Bound, Chip, launches_of
from ..ops.geodesic import Geodesic, by_neighbours, graph_of_neighbours, swiss_roll
from ..ops.mds import eigenpairs_bound


@dataclass(frozen=True)
class Isomap(Case):
    points: int = 10000
    k: int = 10
    components: int = 2
    dtype: torch.dtype = torch.float32
    placed: int = 0  # new points, with the fit outside the clock; 0: the fit
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            f"{self.placed} points placed among" if self.placed else "fit",
            f"{self.points} points",
            f"k={self.k}",
            f"{self.components} components",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        points, new = (swiss_roll(n, generator).to(self.dtype).to(device) for n in (self.points, self.placed))
        return {"points": points, "new": new}

    def task(self, estimator: Any, points: Any, new: Any) -> Contestant:
        """The case's work with an estimator of scikit-learn's interface."""
        if self.placed:
            estimator.fit(points)
            return Contestant(lambda: estimator.transform(new), view=self.upright)
        return Contestant(lambda: estimator.fit_transform(points), view=self.upright, graph=False)

    def upright(self, embedding: Any) -> list[Tensor]:
        """Axes with the sign that makes their greatest coordinate positive."""
        found = torch.as_tensor(embedding).double()
        return [found * found.gather(0, found.abs().argmax(0, keepdim=True)).sign()]

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        from pyops import models

        def ready(x: Inputs) -> Contestant:
            model = models.Isomap(self.k, n_components=self.components)
            return self.task(model, x["points"], x["new"])

        return {"pyops": ready}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """scikit-learn's, in float64: an implementation by others. On a GPU, where that would take minutes of one CPU
        core, `definition`, which a test compares with it."""
        from sklearn.manifold import Isomap

        if inputs["points"].device.type == "cuda":
            return self.upright(self.definition(inputs["points"].double(), inputs["new"].double()))
        points, new = (inputs[name].cpu().double().numpy() for name in ("points", "new"))
        model = Isomap(n_neighbors=self.k, n_components=self.components)
        return self.upright(model.fit(points).transform(new) if self.placed else model.fit_transform(points))

    def definition(self, points: Tensor, new: Tensor) -> Tensor:
        """In plain PyTorch: shortest paths, then the greatest eigenpairs by repeated products."""
        indptr, indices, lengths = graph_of_neighbours(points, self.k)
        distances = by_neighbours((indptr, indices, lengths.double()), torch.arange(len(points)).to(indices))
        squares = distances.square()
        means = squares.mean(0)
        vectors = torch.randn(len(points), self.components + 8, dtype=points.dtype).to(points.device)
        for _ in range(100):
            product = -0.5 * (squares @ (vectors - vectors.mean(0)))
            vectors = torch.linalg.qr(product - product.mean(0)).Q
        product = -0.5 * (squares @ (vectors - vectors.mean(0)))
        values, rotation = torch.linalg.eigh(vectors.mT @ (product - product.mean(0)))
        values, vectors = (
            values.flip(0)[: self.components],
            (vectors @ rotation).flip(1)[:, : self.components],
        )
        embedding = vectors * values.sqrt()
        if not self.placed:
            return embedding
        near = torch.cdist(new, points).topk(self.k, largest=False)
        among = torch.stack([(distances[i] + d[:, None]).amin(0) for d, i in zip(*near, strict=True)])
        return -0.5 * (among.square() - means) @ (embedding / values)

    def tolerances(self) -> list[Tolerance]:
        return [Tolerance(1e-3, of_peak=True)]

    @property
    def bytes(self) -> int:
        """Of the distances, the greatest part by far: written once, or those of all neighbours read once."""
        rows = min(self.placed * self.k, self.points) + self.placed if self.placed else self.points
        return rows * self.points * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Every edge of the graph relaxed once from each point; of a new point, its edges to all points."""
        if self.placed:
            return 2 * self.placed * self.points * (self.k + self.components)
        return 4 * self.points**2 * self.k

    def bound(self, chip: Chip) -> Bound | None:
        """All paths, then the eigenpairs; a millisecond for the graph, and what the host waits for."""
        if self.placed:
            rows = self.placed * self.k * self.points * self.dtype.itemsize
            return Bound(rows / chip.l2, "rows from the second-level cache")
        paths = Geodesic(points=self.points, k=self.k).bound(chip).seconds
        return Bound(1e-3 + paths + eigenpairs_bound(self.points, chip).seconds, "paths, then products")


@dataclass(frozen=True)
class Step(Case):
    """A step of training features through Isomap: the embedding, laid over a target, and the gradient of its error."""

    points: int = 512
    landmarks: int = 64
    features: int = 512
    k: int = 20
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return ["training step", f"{self.points} samples", f"{self.landmarks} landmarks"]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        """Directions within a cone, as gaze has them, bent into many dimensions."""
        generator = torch.Generator().manual_seed(seed)
        target = torch.randn(self.points, 3, generator=generator, dtype=torch.float64) * 0.4
        target = torch.nn.functional.normalize(target + torch.tensor([0.0, 0.0, 1.0]), dim=1)
        features = (target @ torch.randn(3, self.features, generator=generator, dtype=torch.float64)).tanh()
        landmarks = torch.randperm(self.points, generator=generator)[: self.landmarks]
        return {
            "features": features.to(device, self.dtype),
            "target": target.to(device, self.dtype),
            "landmarks": landmarks.to(device),
        }

    def task(self, ops: Any, x: Inputs) -> Contestant:
        from pyops.models import isomap_embedding
        from pyops.models.gaze_loss import laid_over

        features, target = x["features"].detach().requires_grad_(), x["target"]

        def step() -> list[Tensor]:
            found = isomap_embedding(features, self.k, 3, landmarks=x["landmarks"], ops=ops)
            error = (laid_over(found, target) - target).square().mean()
            return [error.detach(), *torch.autograd.grad(error, [features])]

        return Contestant(step, graph=False)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: self.task(pyops, x)}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
        step = self.task(reference, wide)
        return list(step.view(step.call()))

    def tolerances(self) -> list[Tolerance]:
        """Where two paths differ by rounding alone, the gradient may take the other."""
        return [Tolerance(1e-4, of_peak=True), Tolerance(1e-3, flips=1e-2, of_peak=True)]

    @property
    def bytes(self) -> int:
        """Features and their gradient, distances to the landmarks and theirs."""
        return 2 * self.points * (self.features + self.landmarks) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Of all pairs of features."""
        return 3 * self.points**2 * self.features

    @property
    def launches(self) -> int:
        return _launches()

    def bound(self, chip: Chip) -> Bound:
        """cuSOLVER takes about two milliseconds for either small matrix, however small."""
        return Bound(4e-3, "an eigenproblem and a decomposition of small matrices")


@cache
def _launches() -> int:
    import pyops

    case = Step()
    return launches_of(case.task(pyops, case.inputs(torch.device("cpu"))).call)


CASES = (
    Isomap(headline=True, goal="120 ms"),
    Isomap(points=2000, k=300, components=3, headline=True),
    Isomap(placed=5000, headline=True),
    Isomap(points=2000, dtype=torch.float64),
    Isomap(points=300, quick=True),
    Isomap(points=300, placed=50, quick=True),
    Step(backward=True, latency=True, headline=True, goal="20 ms"),
    Step(points=120, landmarks=30, features=40, backward=True, latency=True, quick=True),
)
