"""isomap: `pyops.models.Isomap`, fits and placing of new points. Its peers are in `bench/peers/isomap.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name
from ..ops.geodesic import swiss_roll


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
        return Contestant(lambda: estimator.fit_transform(points), view=self.upright)

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
        """scikit-learn's, in float64: an implementation by others."""
        from sklearn.manifold import Isomap

        points, new = (inputs[name].cpu().double().numpy() for name in ("points", "new"))
        model = Isomap(n_neighbors=self.k, n_components=self.components)
        return self.upright(model.fit(points).transform(new) if self.placed else model.fit_transform(points))

    def tolerances(self) -> list[Tolerance]:
        return [Tolerance(1e-3, of_peak=True)]

    @property
    def bytes(self) -> int:
        """Of the distances, the greatest part by far: written once, and read once to place a new point."""
        return (self.placed * self.k or self.points) * self.points * self.dtype.itemsize

    @property
    def flops(self) -> int:
        """Every edge of the graph relaxed once from each point; of a new point, its edges to all points."""
        if self.placed:
            return 2 * self.placed * self.points * (self.k + self.components)
        return 4 * self.points**2 * self.k


CASES = (
    Isomap(headline=True),
    Isomap(points=2000, k=300, components=3, headline=True),
    Isomap(placed=5000, headline=True),
    Isomap(points=2000, dtype=torch.float64),
    Isomap(points=300, quick=True),
    Isomap(points=300, placed=50, quick=True),
)
