"""gather: values of point clouds by index, as they are or interpolated. Peers: `bench/peers/gather.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward


@dataclass(frozen=True)
class Gather(Case):
    points: int = 1024
    queries: int = 512
    neighbours: int = 16
    channels: int = 64
    batch: int = 32
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "gather",
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{self.queries} x {self.neighbours} of {self.points} points",
            f"{self.channels} channels",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(self.batch, self.points, self.channels, generator=generator)
        queries = self.batch, self.queries, self.neighbours
        indices = torch.randint(0, self.points, queries, generator=generator)
        grad = torch.randn(*queries, self.channels, generator=generator) if self.backward else None
        return {
            "values": values.to(device, self.dtype),
            "indices": indices.to(device),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, gather: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        if self.backward:
            return forward_backward(lambda values: gather(values, x["indices"]), [x["values"]], x["grad"])
        return lambda: gather(x["values"], x["indices"])

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(pyops.gather_points, x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {k: t.double() if t is not None and t.is_floating_point() else t for k, t in inputs.items()}
        result = self.task(reference.gather_points, wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(self.dtype, 1e-5)
        return [Tolerance(limit, of_peak=True)] * (1 + self.backward)

    @property
    def bytes(self) -> int:
        rows = self.batch * self.queries * self.neighbours
        values = self.batch * self.points * self.channels
        once = rows * (self.channels * self.dtype.itemsize + 8) + values * self.dtype.itemsize
        return once * (1 + self.backward)

    @property
    def flops(self) -> int:
        return self.batch * self.queries * self.neighbours * self.channels if self.backward else 0


@dataclass(frozen=True)
class Interpolate(Case):
    points: int = 512
    queries: int = 2048
    channels: int = 128
    batch: int = 16
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            "interpolate",
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{self.queries} from {self.points} points",
            f"{self.channels} channels",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        query, points = (
            torch.rand(self.batch, n, 3, generator=generator) for n in (self.queries, self.points)
        )
        values = torch.randn(self.batch, self.points, self.channels, generator=generator)
        grad = torch.randn(self.batch, self.queries, self.channels, generator=generator)
        found = {"query": query, "points": points, "values": values, "grad": grad}
        return {name: t.to(device, self.dtype) for name, t in found.items()}

    def task(self, interpolate: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        places = x["query"], x["points"]
        if self.backward:  # as in a network: places are given, features learn
            return forward_backward(lambda values: interpolate(*places, values), [x["values"]], x["grad"])
        return lambda: interpolate(*places, x["values"])

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(pyops.three_interpolate, x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        result = self.task(reference.three_interpolate, {k: t.double() for k, t in inputs.items()})()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """Of points at about the same distance a rival may take another one."""
        return [Tolerance(1e-3, of_peak=True, flips=1e-3)] * (1 + self.backward)

    @property
    def bytes(self) -> int:
        rows = self.batch * (self.queries + self.points)
        return rows * (3 + (1 + self.backward) * self.channels) * self.dtype.itemsize

    @property
    def flops(self) -> int:
        pairs = self.batch * self.queries * self.points
        return 9 * pairs + 6 * (1 + self.backward) * self.batch * self.queries * self.channels

    @property
    def least_flops(self) -> int:
        """Without the search."""
        return 6 * (1 + self.backward) * self.batch * self.queries * self.channels


CASES = (
    Gather(headline=True),
    Gather(backward=True, headline=True),
    Gather(channels=3),
    Gather(dtype=torch.float16),
    Gather(batch=4, queries=128, quick=True),
    Gather(points=1, queries=1, neighbours=1, channels=1, batch=1, overhead=True, quick=True),
    Interpolate(headline=True),
    Interpolate(backward=True),
    Interpolate(batch=2, quick=True),
)
