"""corr1d: all-pairs correlation along rows, as a pyramid or on demand. Peers: `bench/peers/corr1d.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, size_name
from .lookup import scene


@dataclass(frozen=True)
class Corr1d(Case):
    on_demand: bool = False
    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    channels: int = 256
    levels: int = 4
    radius: int = 4  # on demand
    dtype: torch.dtype = torch.float32
    seconds: float = 8.0

    @property
    def words(self) -> list[str]:
        return [
            f"{size_name(self.shape)}",
            f"{self.channels} channels",
            *([f"on demand, radius {self.radius}"] if self.on_demand else []),
            f"{self.levels} levels",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        height, width = self.shape

        def draw(*size: int) -> Tensor:
            return torch.randn(1, *size, generator=generator).to(device, self.dtype)

        x: dict[str, Any] = {name: draw(self.channels, height, width) for name in ("left", "right")}
        if self.on_demand:
            disparity = scene(1, height, width, width / 6, generator)
            x["position"] = (torch.arange(width) - disparity).to(device)
        sizes = (
            [(self.levels * (2 * self.radius + 1), height, width)]
            if self.on_demand
            else [(height, width, max(1, width >> level)) for level in range(self.levels)]
        )
        for i, size in enumerate(sizes):
            x[f"grad{i}"] = draw(*size) if self.backward else None
        return x

    def task(self, function: Callable[..., Any], x: Inputs) -> Callable[[], list[Tensor]]:
        """The case's work with an operator called like ours: its results, then gradients to both views."""
        others = (x["position"], self.radius, self.levels) if self.on_demand else (self.levels,)
        leaves = [x[name].detach().requires_grad_(self.backward) for name in ("left", "right")]
        grads = [x[name] for name in sorted(x) if name.startswith("grad")]

        def call() -> list[Tensor]:
            found = function(*leaves, *others)
            found = [found] if isinstance(found, Tensor) else list(found)
            if not self.backward:
                return found
            return [*(t.detach() for t in found), *torch.autograd.grad(found, leaves, grads)]

        return call

    def operator(self, library: ModuleType) -> Callable[..., Any]:
        return library.corr1d_lookup_on_demand if self.on_demand else library.corr1d_pyramid

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(self.operator(pyops), x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        return self.task(self.operator(reference), wide)()

    def tolerances(self) -> list[Tolerance]:
        limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(self.dtype, 1e-5)
        count = (1 if self.on_demand else self.levels) + 2 * self.backward
        return [Tolerance(limit, of_peak=True)] * count

    @property
    def _written(self) -> int:
        """Numbers a pixel."""
        if self.on_demand:
            return self.levels * (2 * self.radius + 1)
        return sum(self.shape[1] >> level for level in range(self.levels))

    @property
    def bytes(self) -> int:
        """Views read, results written; backward reads views and gradients of results, and writes those of views."""
        numbers = 2 * self.channels * (3 if self.backward else 1) + self._written * (1 + self.backward)
        return self.shape[0] * self.shape[1] * numbers * self.dtype.itemsize

    @property
    def flops(self) -> int:
        taps = self.levels * (2 * self.radius + 2) if self.on_demand else self.shape[1]
        return 2 * self.channels * taps * self.shape[0] * self.shape[1] * (3 if self.backward else 1)


CASES = (
    Corr1d(headline=True, goal="1.5x its GEMM"),
    Corr1d(on_demand=True, headline=True),
    Corr1d(backward=True),
    Corr1d(on_demand=True, backward=True),
    Corr1d(shape=(136, 240), channels=96, levels=2),
    Corr1d(shape=(48, 156), channels=64, quick=True),
    Corr1d(shape=(48, 156), channels=64, on_demand=True, quick=True),
    Corr1d(shape=(1, 1), channels=1, levels=1, overhead=True, quick=True),
)
