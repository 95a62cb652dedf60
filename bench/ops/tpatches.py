"""tpatches: chains of patches through sequences of point clouds. Peers: `bench/peers/tpatches.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name
from ..limits import Bound, Chip


@dataclass(frozen=True)
class TPatches(Case):
    frames: int = 32
    points: int = 1024
    queries: int = 512  # of each direction
    k: int = 16
    batch: int = 4
    still: bool = True  # bodies that move; else every frame is another cloud
    dtype: torch.dtype = torch.float32
    seconds: float = 8.0

    @property
    def words(self) -> list[str]:
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{self.frames} frames",
            f"{self.points} points",
            f"{self.queries} chains each way",
            f"k={self.k}",
            *([] if self.still else ["unrelated frames"]),
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        """Points that wander by a hundredth a frame, in another order in each."""
        generator = torch.Generator().manual_seed(seed)
        shape = self.batch, self.frames, self.points, 3
        steps = torch.randn(shape, generator=generator)
        clouds = torch.randn(self.batch, 1, self.points, 3, generator=generator)
        points = clouds + 0.01 * steps.cumsum(1) if self.still else steps
        order = torch.rand(shape[:3], generator=generator).argsort(-1)
        points = points.gather(2, order[..., None].expand(shape))
        start = torch.rand(self.batch, 2, self.points, generator=generator).argsort(-1)[..., : self.queries]
        first, last = (t.contiguous().to(device) for t in start.unbind(1))
        return {"points": points.to(device, self.dtype), "first": first, "last": last}

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        def call(x: Inputs) -> Contestant:
            run = pyops.bidirectional_tpatches
            return Contestant(lambda: run(x["points"], x["first"], x["last"], self.k), view=lambda r: r[:2])

        ours: dict[str, Callable[[Inputs], Contestant]] = {"pyops": call}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernel by name: with the CUDA library installed, a plain call does not reach it."""
        from pyops.triton import tpatches as kernels

        def run() -> tuple[Tensor, ...]:
            queries = torch.cat([x["first"], x["last"]], 1)
            return kernels.extract_tpatches(
                x["points"], queries, self.k, self.queries, None, None, float("inf")
            )

        return Contestant(run, view=lambda r: r[:2])

    def reference(self, inputs: Inputs) -> list[Tensor]:
        """In the same arithmetic: a tie that float64 breaks otherwise would change all that follows."""
        from pyops import reference

        found = reference.bidirectional_tpatches(inputs["points"], inputs["first"], inputs["last"], self.k)
        return [found.indices, found.squared_distances]

    def tolerances(self) -> list[Tolerance]:
        """Neighbours as good as tied may come in another order where a rival rounds otherwise."""
        return [Tolerance(0.5, flips=0.002), Tolerance(1e-5, flips=0.002)]

    @property
    def bytes(self) -> int:
        size, chains = self.dtype.itemsize, 2 * self.queries
        each = self.points * 3 * size + chains * (self.k * (8 + size) + 3 * size)
        return self.batch * (self.frames * each + chains * 8)

    @property
    def flops(self) -> int:
        return 8 * self.batch * self.frames * 2 * self.queries * self.points

    @property
    def least_flops(self) -> int:
        """Of the neighbours themselves."""
        return 8 * self.batch * self.frames * 2 * self.queries * self.k

    def bound(self, chip: Chip) -> Bound:
        """A frame cannot begin before the last one has shown where its chain goes: a cloud on its way to shared memory,
        a look at 32 points at a time (45 clocks), three sorts of what came near. If there are many chains, some 12
        operations for each of their points."""
        frame = chip.far_s + 3 * 0.25e-6 + self.points / 32 * 45 / chip.clock
        operations = 12 * self.batch * self.frames * 2 * self.queries * self.points / chip.lanes
        if operations > self.frames * frame:
            return Bound(operations, "12 operations a point and chain")
        return Bound(self.frames * frame, f"{self.frames} frames, one after the other")


CASES = (
    TPatches(headline=True),
    TPatches(still=False),
    TPatches(frames=64, headline=True, goal="0.4 ms"),  # the published workload
    TPatches(frames=8, points=256, queries=64, quick=True),
    TPatches(frames=16, points=8192, queries=512, batch=1),
    TPatches(frames=1, points=1, queries=1, k=1, batch=1, overhead=True, quick=True),
)
