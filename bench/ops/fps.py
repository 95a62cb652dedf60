"""fps: farthest point sampling of point clouds. Peers: `bench/peers/fps.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name
from ..limits import Bound, Chip


@dataclass(frozen=True)
class Fps(Case):
    points: int = 1024
    samples: int = 512
    batch: int = 32
    dims: int = 3
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{self.samples} of {self.points} points",
            *([f"{self.dims} axes"] if self.dims != 3 else []),
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        points = torch.rand(self.batch, self.points, self.dims, generator=generator)
        return {"points": points.to(device, self.dtype)}

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(lambda: pyops.farthest_point_sample(x["points"], self.samples))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernel by name: with the CUDA library installed, a plain call does not reach it."""
        from pyops.triton import fps as kernels

        return Contestant(lambda: kernels.farthest_point_sample(x["points"], self.samples, None, None))

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """In the same arithmetic: a tie that float64 breaks otherwise would change all samples behind it."""
        from pyops import reference

        return [reference.farthest_point_sample(inputs["points"], self.samples)]

    def tolerances(self) -> list[Tolerance]:
        """Samples that are as good as tied may come in another order where a rival rounds otherwise."""
        return [Tolerance(0.5, flips=0.01)]

    @property
    def bytes(self) -> int:
        return self.batch * (self.points * self.dims * self.dtype.itemsize + self.samples * 8)

    @property
    def flops(self) -> int:
        """Of the definition: every distance after every sample."""
        return 3 * self.dims * self.batch * self.points * self.samples

    @property
    def least_flops(self) -> int:
        """Every point once: buckets save the others."""
        return 3 * self.dims * self.batch * self.points

    def bound(self, chip: Chip) -> Bound:
        """No sample before the last one is known. Clouds too large for registers are read again each time, by the one
        multiprocessor that has them."""
        kept = (self.dims <= 3 and self.points <= 8192) or (self.dims <= 8 and self.points <= 4096)
        again = 0 if kept else self.points * self.dims * self.dtype.itemsize
        step = chip.step_s + again / chip.port
        return Bound(self.samples * step, f"{self.samples} samples, one after the other")


CASES = (
    Fps(headline=True, goal="0.3 ms"),
    Fps(points=32768, samples=8192, batch=1, headline=True),
    Fps(points=1024, samples=128, batch=4, quick=True),
    Fps(points=8192, samples=1024, batch=4),
    Fps(points=4096, samples=1024, batch=4, dims=16),
    Fps(dtype=torch.float16),
    Fps(points=1, samples=1, batch=1, overhead=True, quick=True),
)
