"""lookup: windows of costs around disparities, all levels at once. Peers: `bench/peers/lookup.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name
from ..limits import Bound, Chip


def scene(batch: int, height: int, width: int, farthest: float, generator: torch.Generator) -> Tensor:
    """Disparities ``[B, H, W]`` as scenes have them: a slanted ground, two objects before it, sub-pixel noise."""
    y, x = torch.linspace(0, 1, height).view(-1, 1), torch.linspace(0, 1, width)
    disparity = 0.1 + 0.5 * y + 0.05 * (9 * x).sin()
    disparity = torch.where((x - 0.3).square() + (y - 0.5).square() < 0.03, 0.8, disparity)
    disparity = torch.where((x > 0.6) & (x < 0.7) & (y > 0.2), 0.9 - 0.1 * x, disparity)
    noise = torch.rand(batch, height, width, generator=generator)
    return disparity * farthest + noise - 0.5


@dataclass(frozen=True)
class Lookup(Case):
    geometry: bool = False  # volumes too, and disparities for columns
    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    levels: int = 4
    radius: int = 4
    channels: int = 8  # of the volumes
    disparities: int = 48
    dtype: torch.dtype = torch.float32
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        what = f"{self.channels} channels" if self.geometry else "correlations"
        return [
            f"{size_name(self.shape)}",
            what,
            f"{self.levels} levels",
            f"radius {self.radius}",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        height, width = self.shape

        def costs(*size: int) -> Tensor:
            return torch.randn(1, *size, generator=generator).to(device, self.dtype)

        x: dict[str, Any] = {
            f"pyramid{level}": costs(height, width, max(1, width >> level)) for level in range(self.levels)
        }
        disparity = scene(1, height, width, 0.8 * self.disparities, generator)
        x["position"] = (disparity if self.geometry else torch.arange(width) - disparity).to(device)
        if self.geometry:
            for level in range(self.levels):
                depth = max(1, self.disparities >> level)
                x[f"volume{level}"] = costs(self.channels, depth, height, width)
        x["grad"] = costs(self.planes, height, width) if self.backward else None
        return x

    def costs(self, x: Inputs) -> list[Tensor]:
        kinds = ["volume", "pyramid"] if self.geometry else ["pyramid"]
        return [x[f"{kind}{level}"] for kind in kinds for level in range(self.levels)]

    def task(self, look_up: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `look_up(*costs, position, radius)`, costs as lists like the operators'."""

        def function(*tensors: Tensor) -> Tensor:
            *costs, position = tensors
            n = self.levels
            lists = (costs[:n], costs[n:]) if self.geometry else (costs,)
            return look_up(*lists, position, self.radius)

        tensors = [*self.costs(x), x["position"]]
        return forward_backward(function, tensors, x["grad"]) if self.backward else lambda: function(*tensors)

    def operator(self, library: ModuleType) -> Callable[..., Tensor]:
        return library.geometry_lookup if self.geometry else library.corr1d_lookup

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(self.operator(pyops), x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        result = self.task(self.operator(reference), wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(self.dtype, 1e-4)
        all_but_slope = [Tolerance(limit, of_peak=True)] * (1 + self.backward * len(self.costs_names()))
        # A gradient to a position jumps at entries: coordinates that go through [-1, 1] may miss the side.
        return [*all_but_slope, *([Tolerance(limit, flips=0.01, of_peak=True)] if self.backward else [])]

    def costs_names(self) -> range:
        return range(self.levels * (1 + self.geometry))

    @property
    def planes(self) -> int:
        return self.levels * (2 * self.radius + 1) * (1 + self.geometry * self.channels)

    @property
    def bytes(self) -> int:
        """Taps read and windows written; backward reads the windows' gradients and adds to taps in zeroed costs."""
        height, width = self.shape
        taps = self.planes * (2 * self.radius + 2) // (2 * self.radius + 1)
        sizes = [width >> level for level in range(self.levels)]
        if self.geometry:
            sizes += [self.channels * (self.disparities >> level) for level in range(self.levels)]
        numbers = taps + self.planes + self.backward * (self.planes + 3 * taps + sum(sizes))
        return height * width * (numbers * self.dtype.itemsize + 4 * (1 + self.backward))

    @property
    def flops(self) -> int:
        height, width = self.shape
        return 3 * self.planes * height * width * (3 if self.backward else 1)

    def bound(self, chip: Chip) -> Bound:
        """A window of a pixel's own line of correlations lies across sectors of 32 bytes, which come whole."""
        window = (2 * self.radius + 2) * self.dtype.itemsize
        more = 28 * self.levels * self.shape[0] * self.shape[1]  # on average, at both ends together
        return Bound(
            (self.bytes + more * (1 + 2 * self.backward)) / chip.copied, f"sectors around {window} bytes"
        )


CASES = (
    Lookup(headline=True, goal="6 us"),
    Lookup(geometry=True, levels=2, headline=True, goal="6 us"),
    Lookup(backward=True, headline=True),
    Lookup(geometry=True, levels=2, backward=True),
    Lookup(dtype=torch.float16),
    Lookup(shape=(136, 240)),
    Lookup(geometry=True, levels=2, shape=(136, 240)),
    Lookup(shape=(48, 156), quick=True),
    Lookup(geometry=True, levels=2, shape=(48, 156), quick=True),
    Lookup(shape=(1, 2), levels=1, radius=1, disparities=1, overhead=True, quick=True),
)
