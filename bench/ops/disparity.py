"""disparity: upsampling by context, and the right image warped to the left. Peers: `bench/peers/disparity.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name


@dataclass(frozen=True)
class Stereo(Case):
    """A function of two tensors, by name in `inputs`."""

    shape: tuple[int, int] = (96, 312)
    dtype: torch.dtype = torch.float32
    batch: int = 1
    seconds: float = 4.0

    @property
    def operator(self) -> str:
        raise NotImplementedError

    @property
    def arguments(self) -> tuple[str, str]:
        raise NotImplementedError

    def task(self, function: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `function`, called like the operator: its result, then gradients."""
        tensors = [x[name] for name in self.arguments]
        return forward_backward(function, tensors, x["grad"]) if self.backward else lambda: function(*tensors)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(getattr(pyops, self.operator), x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import disparity as kernels

        tensors = [x[name] for name in self.arguments]
        forward = getattr(kernels, self.operator)
        backward = getattr(kernels, f"{self.operator}_backward")

        def both() -> list[Tensor]:
            return [forward(*tensors), *backward(x["grad"], *tensors, True, True)]

        return Contestant(both if self.backward else lambda: forward(*tensors))

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        floats = {k: v.double() for k, v in inputs.items() if v is not None and v.is_floating_point()}
        result = self.task(getattr(reference, self.operator), {**inputs, **floats})()
        return result if self.backward else [result]


@dataclass(frozen=True)
class Upsample(Stereo):
    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    scale: int = 4

    @property
    def operator(self) -> str:
        return "context_upsample"

    @property
    def arguments(self) -> tuple[str, str]:
        return "disparity", "weights"

    @property
    def fine(self) -> tuple[int, int]:
        return self.shape[0] * self.scale, self.shape[1] * self.scale

    @property
    def words(self) -> list[str]:
        return [
            "upsample",
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{size_name(self.shape)} to {size_name(self.fine)}",
            dtype_name(self.dtype),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        disparity = torch.rand(self.batch, 1, *self.shape, generator=generator) * 64
        weights = torch.randn(self.batch, 9, *self.fine, generator=generator).softmax(1)
        grad = torch.randn(self.batch, 1, *self.fine, generator=generator) if self.backward else None
        return {
            "disparity": disparity.to(device, self.dtype),
            "weights": weights.to(device, self.dtype),
            "grad": None if grad is None else grad.to(device, self.dtype),
        }

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value: sums of nine, or of 9 * scale^2, rounded to the dtype."""
        limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(self.dtype, 1e-5)
        return [Tolerance(limit, of_peak=True)] * (3 if self.backward else 1)

    @property
    def bytes(self) -> int:
        """Coarse pixels, nine weights and one result a fine one; backward reads all of it, and writes gradients."""
        forward = 1 + self.scale**2 * 10
        numbers = 2 * forward + 1 + self.scale**2 * 9 if self.backward else forward
        return self.batch * self.shape[0] * self.shape[1] * numbers * self.dtype.itemsize

    @property
    def flops(self) -> int:
        return self.batch * self.fine[0] * self.fine[1] * 18 * (5 if self.backward else 2) // 2


@dataclass(frozen=True)
class Warp(Stereo):
    shape: tuple[int, int] = (384, 1248)
    channels: int = 3
    channels_last: bool = False

    @property
    def operator(self) -> str:
        return "disparity_warp"

    @property
    def arguments(self) -> tuple[str, str]:
        return "image", "disparity"

    @property
    def words(self) -> list[str]:
        return [
            "warp",
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{size_name(self.shape)}",
            f"{self.channels} channels",
            dtype_name(self.dtype),
            *(["channels_last"] if self.channels_last else []),
        ]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        """A surface that falls from near to far, up to 64 pixels, in 64ths of which none is a pixel's edge."""
        generator = torch.Generator().manual_seed(seed)
        planes = -(-self.channels // 3)
        pixels = torch.cat([make.photo(self.batch, *self.shape, seed + i) for i in range(planes)], 1)
        smooth = make.photo(self.batch, *self.shape, seed + 100).mean(1, keepdim=True)
        disparity = ((smooth * 64).mul(64).floor() + 0.5) / 64
        shape = self.batch, self.channels, *self.shape
        grad = torch.randn(shape, generator=generator).to(device, self.dtype) if self.backward else None
        return {
            "image": make.encoded(pixels[:, : self.channels], self.dtype, self.channels_last).to(device),
            "disparity": disparity.to(device),
            "grad": grad,
        }

    def tolerances(self) -> list[Tolerance]:
        """An integer of another level is a tie in rounding. A slope is a sum over the channels."""
        if not self.dtype.is_floating_point:
            return [Tolerance(0.5, flips=1e-3, ceiling=1.5)]
        limit = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}.get(self.dtype, 3e-5)
        return [Tolerance(limit, of_peak=True)] * (3 if self.backward else 1)

    @property
    def bytes(self) -> int:
        """Image, disparity, result; backward reads image, disparity and the result's gradient, and writes two more."""
        image, disparity = self.channels * self.dtype.itemsize, 4
        each = 5 * image + 3 * disparity if self.backward else 2 * image + disparity
        return self.batch * self.shape[0] * self.shape[1] * each

    @property
    def flops(self) -> int:
        return self.batch * self.shape[0] * self.shape[1] * self.channels * (10 if self.backward else 3)


CASES = (
    Upsample(headline=True),
    Upsample(backward=True, headline=True),
    Warp(headline=True),
    Warp(backward=True, headline=True),
    Upsample(dtype=torch.float16),
    Upsample(shape=(136, 240), batch=2),
    Upsample(shape=(96, 160), scale=8),
    Upsample(shape=(24, 40), quick=True),
    Upsample(shape=(24, 40), backward=True, quick=True),
    Warp(dtype=torch.uint8),
    Warp(dtype=torch.float16),
    Warp(channels=3, channels_last=True),
    Warp(shape=(96, 312), channels=96),
    Warp(shape=(96, 160), quick=True),
    Warp(shape=(96, 160), backward=True, quick=True),
    Upsample(shape=(1, 1), scale=1, overhead=True, quick=True),
    Warp(shape=(1, 1), overhead=True, quick=True),
)
