"""mds: coordinates from distances, and the product that they rest on. Peers: `bench/peers/mds.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward
from ..limits import Bound, Chip


@dataclass(frozen=True)
class Mds(Case):
    points: int = 2000
    components: int = 3
    product: bool = False  # by `components` columns, in place of coordinates
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "product" if self.product else "coordinates",
            f"{self.points} points",
            f"{self.components} columns" if self.product else f"{self.components} dimensions",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        """Geodesic-like distances: of points in some dimensions, curved, so that all eigenvalues count."""
        generator = torch.Generator().manual_seed(seed)
        extents = torch.tensor([3.0, 2.2, 1.6, 1.1, 0.5, 0.4, 0.3, 0.2], dtype=torch.float64)
        x = torch.randn(self.points, 8, generator=generator, dtype=torch.float64) * extents
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").pow(0.9)
        vectors = torch.randn(self.points, self.components, generator=generator)
        return {
            "distances": distances.to(device, self.dtype),
            "vectors": vectors.to(device, self.dtype),
        }

    def task(self, function: Callable[..., Any], x: Inputs) -> Callable[[], Any]:
        if self.product:
            return lambda: function(x["distances"], x["vectors"])

        def inner(distances: Tensor) -> Tensor:
            """The signs of coordinates are a convention."""
            found = function(distances, self.components)[0]
            return found * torch.where((found.detach() * x["vectors"]).sum(0) < 0, -1, 1).to(found)

        if self.backward:
            return forward_backward(inner, [x["distances"]], x["vectors"])
        return lambda: inner(x["distances"])

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        function = pyops.double_centered_matmul if self.product else pyops.classical_mds
        # Eigenpairs are looked at by the host, product after product.
        return {"pyops": lambda x: Contestant(self.task(function, x), graph=self.product)}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: t.double() for name, t in inputs.items()}
        function = reference.double_centered_matmul if self.product else reference.classical_mds
        result = self.task(function, wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value; eigenvectors are as exact as gaps between eigenvalues are wide."""
        limit = 1e-5 if self.product else 1e-4
        return [Tolerance(limit, of_peak=True)] * (1 + self.backward)

    @property
    def bytes(self) -> int:
        """The matrix once; backward reads it again, and writes one."""
        return self.points**2 * self.dtype.itemsize * (3 if self.backward else 1)

    @property
    def flops(self) -> int:
        """Of one product: how many coordinates take depends on the eigenvalues."""
        return 2 * self.points**2 * (self.components + 1)

    def bound(self, chip: Chip) -> Bound | None:
        return None if self.product else eigenpairs_bound(self.points, chip)


def eigenpairs_bound(points: int, chip: Chip) -> Bound:
    """Some fifteen products by a few columns, and after each an eigenproblem of the basis and a look by the host: a
    millisecond and a half."""
    matrix = 4 * points**2
    each = matrix / (chip.copied if matrix > chip.l2_bytes else chip.l2) + 1.5e-3
    return Bound(15 * each, "fifteen products, one after the other")


CASES = (
    Mds(headline=True),
    Mds(backward=True, headline=True),
    Mds(points=5000, components=7, product=True),
    Mds(points=1000, dtype=torch.float64, devices=("cpu",)),
    Mds(points=300, quick=True),
    Mds(points=300, backward=True, quick=True),
    Mds(points=2, components=1, product=True, overhead=True, quick=True),
)
