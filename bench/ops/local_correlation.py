"""local_correlation: the cost volume of optical flow from two images. Peers: `bench/peers/local_correlation.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name


@dataclass(frozen=True)
class LocalCorrelation(Case):
    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    channels: int = 96
    radius: int = 4
    dilation: int = 1
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    batch: int = 1
    seconds: float = 6.0

    @property
    def words(self) -> list[str]:
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{size_name(self.shape)}",
            f"{self.channels} channels",
            f"radius {self.radius}",
            *([f"dilation {self.dilation}"] if self.dilation > 1 else []),
            dtype_name(self.dtype),
            *(["channels_last"] if self.channels_last else []),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = self.batch, self.channels, *self.shape
        first, second = (torch.randn(shape, generator=generator) for _ in range(2))
        volume = self.batch, self.displacements, *self.shape
        grad = torch.randn(volume, generator=generator) if self.backward else None
        return {
            "first": first.to(device, self.dtype).contiguous(memory_format=memory),
            "second": second.to(device, self.dtype).contiguous(memory_format=memory),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, correlate: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `correlate`, called like the operator: the volume, then gradients."""

        def function(first: Tensor, second: Tensor) -> Tensor:
            return correlate(first, second, self.radius, dilation=self.dilation)

        images = x["first"], x["second"]
        return forward_backward(function, images, x["grad"]) if self.backward else lambda: function(*images)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(pyops.local_correlation, x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import local_correlation as kernels

        images, how = (x["first"], x["second"]), (self.radius, self.dilation)

        def forward() -> Tensor:
            return kernels.local_correlation(*images, *how)

        def both() -> list[Tensor]:
            grads = kernels.local_correlation_backward(x["grad"], *images, *how, True, True)
            return [forward(), *grads]

        return Contestant(both if self.backward else forward)

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        result = self.task(reference.local_correlation, wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value: sums over channels, or over displacements, rounded to the dtype."""
        limit = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(self.dtype, 1e-5)
        return [Tolerance(limit, of_peak=True)] * (3 if self.backward else 1)

    @property
    def displacements(self) -> int:
        return (2 * self.radius + 1) ** 2

    @property
    def pixels(self) -> int:
        return self.batch * self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """Both images and the volume; backward reads images and the volume's gradient, and writes the images'."""
        numbers = 2 * self.channels * (3 if self.backward else 1) + self.displacements * (1 + self.backward)
        return self.pixels * self.dtype.itemsize * numbers

    @property
    def flops(self) -> int:
        return 2 * self.channels * self.displacements * self.pixels * (3 if self.backward else 1)


CASES = (
    LocalCorrelation(headline=True),
    LocalCorrelation(backward=True, headline=True),
    LocalCorrelation(channels=256),
    LocalCorrelation(channels=256, backward=True),
    LocalCorrelation(dtype=torch.float16),
    LocalCorrelation(channels_last=True),
    LocalCorrelation(radius=10, dilation=2, channels=256, shape=(48, 64)),  # FlowNetC at 512x384
    LocalCorrelation(shape=(24, 78), quick=True),
    LocalCorrelation(shape=(24, 78), backward=True, quick=True),
    LocalCorrelation(shape=(1, 1), channels=1, radius=0, overhead=True, quick=True),
)
