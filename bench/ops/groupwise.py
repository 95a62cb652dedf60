"""groupwise: the cost volume of stereo matching from two views' features. Peers: `bench/peers/groupwise.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name


@dataclass(frozen=True)
class Groupwise(Case):
    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    channels: int = 96
    disparities: int = 48
    groups: int = 8
    normalize: bool = False
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
            f"{self.groups} groups",
            f"{self.disparities} disparities",
            *(["cosine"] if self.normalize else []),
            dtype_name(self.dtype),
            *(["channels_last"] if self.channels_last else []),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        shape = self.batch, self.channels, *self.shape
        left, right = (torch.randn(shape, generator=generator) for _ in range(2))
        volume = self.batch, self.groups, self.disparities, *self.shape
        grad = torch.randn(volume, generator=generator) if self.backward else None
        return {
            "left": left.to(device, self.dtype).contiguous(memory_format=memory),
            "right": right.to(device, self.dtype).contiguous(memory_format=memory),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def task(self, correlate: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `correlate(left, right, ...)`, called like the operator: the volume, then gradients."""

        def function(left: Tensor, right: Tensor) -> Tensor:
            return correlate(left, right, self.disparities, self.groups, normalize=self.normalize)

        views = x["left"], x["right"]
        return forward_backward(function, views, x["grad"]) if self.backward else lambda: function(*views)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(pyops.groupwise_correlation, x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import groupwise as kernels

        views = x["left"], x["right"]

        def forward() -> Tensor:
            return kernels.groupwise_correlation(*views, self.disparities, self.groups, self.normalize)

        def both() -> list[Tensor]:
            grads = kernels.groupwise_correlation_backward(x["grad"], *views, self.normalize, True, True)
            return [forward(), *grads]

        return Contestant(both if self.backward else forward)

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        result = self.task(reference.groupwise_correlation, wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value: sums over a group, or over disparities, rounded to the dtype."""
        limit = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(self.dtype, 1e-5)
        return [Tolerance(limit, of_peak=True)] * (3 if self.backward else 1)

    @property
    def pixels(self) -> int:
        return self.batch * self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """Both views and the volume; backward reads views and the volume's gradient, and writes the views'."""
        views, volume = 2 * self.channels, self.groups * self.disparities
        return (
            self.pixels
            * self.dtype.itemsize
            * ((3 if self.backward else 1) * views + (1 + self.backward) * volume)
        )

    @property
    def flops(self) -> int:
        return 2 * self.channels * self.disparities * self.pixels * (3 if self.backward else 1)


CASES = (
    Groupwise(headline=True, goal="70 % of write bandwidth"),
    Groupwise(backward=True, headline=True),
    Groupwise(normalize=True),
    Groupwise(normalize=True, backward=True),
    Groupwise(dtype=torch.float16),
    Groupwise(channels_last=True),
    Groupwise(shape=(136, 240)),
    Groupwise(shape=(48, 156), quick=True),
    Groupwise(shape=(48, 156), backward=True, quick=True),
    Groupwise(shape=(64, 128), channels=320, disparities=64, groups=40, batch=2),
    Groupwise(shape=(1, 1), channels=1, disparities=1, groups=1, overhead=True, quick=True),
)
