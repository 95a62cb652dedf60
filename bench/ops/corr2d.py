"""corr2d: all-pairs correlation of images, its lookups, and lookups on demand. Peers: `bench/peers/corr2d.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, size_name


def motion(height: int, width: int, farthest: float, generator: torch.Generator) -> Tensor:
    """Places ``[1, 2, H, W]`` that pixels move to: smoothly, with sub-pixel noise."""
    corners = torch.randn(1, 2, 4, 6, generator=generator) * farthest / 2
    flow = F.interpolate(corners, size=(height, width), mode="bilinear", align_corners=True)
    noise = torch.rand(1, 2, height, width, generator=generator) - 0.5
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).unsqueeze(0) + flow + noise


@dataclass(frozen=True)
class Corr2d(Case):
    kind: str = "lookup"  # or pyramid, or on demand
    shape: tuple[int, int] = (55, 128)  # an eighth of 1024x440 (Sintel)
    channels: int = 256
    levels: int = 4
    radius: int = 4
    dtype: torch.dtype = torch.float32
    seconds: float = 8.0

    @property
    def words(self) -> list[str]:
        return [
            self.kind,
            f"{size_name(self.shape)}",
            *([f"{self.channels} channels"] if self.kind != "lookup" else []),
            f"{self.levels} levels",
            *([f"radius {self.radius}"] if self.kind != "pyramid" else []),
            dtype_name(self.dtype),
        ]

    @property
    def _sizes(self) -> list[tuple[int, ...]]:
        """Of the levels."""
        height, width = self.shape
        return [
            (height, width, max(1, height >> level), max(1, width >> level)) for level in range(self.levels)
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)

        def draw(*size: int) -> Tensor:
            return torch.randn(1, *size, generator=generator).to(device, self.dtype)

        x: dict[str, Any] = {}
        if self.kind == "lookup":
            x |= {f"level{i}": draw(*size) for i, size in enumerate(self._sizes)}
        else:
            x |= {name: draw(self.channels, *self.shape) for name in ("first", "second")}
        if self.kind != "pyramid":
            x["position"] = motion(*self.shape, 8, generator).to(device)
        found = self._sizes if self.kind == "pyramid" else [(self._planes, *self.shape)]
        for i, size in enumerate(found):
            x[f"grad{i}"] = draw(*size) if self.backward else None
        return x

    def task(self, function: Callable[..., Any], x: Inputs) -> Callable[[], list[Tensor]]:
        """The case's work with an operator called like ours: its results, then gradients to what it reads."""
        names = [name for name in x if not name.startswith("grad") and name != "position"]
        leaves = [x[name].detach().requires_grad_(self.backward) for name in names]
        grads = [x[name] for name in sorted(x) if name.startswith("grad")]

        def call() -> list[Tensor]:
            if self.kind == "lookup":
                found = function(leaves, x["position"], self.radius)
            elif self.kind == "pyramid":
                found = function(*leaves, self.levels)
            else:
                found = function(*leaves, x["position"], self.radius, self.levels)
            found = [found] if isinstance(found, Tensor) else list(found)
            if not self.backward:
                return found
            return [*(t.detach() for t in found), *torch.autograd.grad(found, leaves, grads)]

        return call

    def operator(self, library: ModuleType) -> Callable[..., Any]:
        return {
            "lookup": library.corr2d_lookup,
            "pyramid": library.corr2d_pyramid,
            "on demand": library.corr2d_lookup_on_demand,
        }[self.kind]

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(self.operator(pyops), x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        return self.task(self.operator(reference), wide)()

    def tolerances(self) -> list[Tolerance]:
        single = 1e-5 if self.kind == "pyramid" else 1e-4  # coordinates that go through [-1, 1] lose digits
        limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(self.dtype, single)
        results = self.levels if self.kind == "pyramid" else 1
        leaves = self.levels if self.kind == "lookup" else 2
        return [Tolerance(limit, of_peak=True)] * (results + leaves * self.backward)

    @property
    def _planes(self) -> int:
        return self.levels * (2 * self.radius + 1) ** 2

    @property
    def _taps(self) -> int:
        return self.levels * (2 * self.radius + 2) ** 2

    @property
    def bytes(self) -> int:
        """What is read and written; backward reads gradients of results too, and writes those of what was read."""
        volume = sum(size[2] * size[3] for size in self._sizes)
        results = volume if self.kind == "pyramid" else self._planes
        if self.kind == "lookup":  # taps read; added to in zeroed levels
            numbers = self._taps + results + self.backward * (results + 2 * self._taps + volume)
        else:
            numbers = 2 * self.channels * (3 if self.backward else 1) + results * (1 + self.backward)
        return self.shape[0] * self.shape[1] * numbers * self.dtype.itemsize

    @property
    def flops(self) -> int:
        pixels, times = self.shape[0] * self.shape[1], 3 if self.backward else 1
        if self.kind == "lookup":
            return 6 * self._planes * pixels * times
        return 2 * self.channels * (pixels if self.kind == "pyramid" else self._taps) * pixels * times


CASES = (
    Corr2d(headline=True),
    Corr2d(backward=True, headline=True),
    Corr2d(kind="on demand", headline=True),
    Corr2d(kind="on demand", backward=True),
    Corr2d(kind="pyramid"),
    Corr2d(kind="pyramid", backward=True),
    Corr2d(dtype=torch.float16),
    Corr2d(shape=(24, 48), quick=True),
    Corr2d(kind="on demand", shape=(24, 48), channels=64, quick=True),
    Corr2d(kind="pyramid", shape=(24, 48), channels=64, quick=True),
    Corr2d(shape=(2, 2), levels=1, radius=1, overhead=True, quick=True),
)
