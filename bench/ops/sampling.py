"""sampling: a grid that is a product of two axes, given or found from logits. Peers: `bench/peers/sampling.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name
from ..limits import Bound, Chip


@dataclass(frozen=True)
class Sampling(Case):
    shape: tuple[int, int] = (2160, 3840)
    size: tuple[int, int] = (256, 256)
    adaptive: bool = False
    antialias: bool = False
    dtype: torch.dtype = torch.float32
    as_float: bool = False  # float32 results, whatever the image is
    channels_last: bool = False
    align_corners: bool = False
    padding_mode: str = "zeros"
    batch: int = 1
    seconds: float = 4.0

    @property
    def words(self) -> list[str]:
        dtype = dtype_name(self.dtype)
        return [
            *([f"{self.batch} x"] if self.batch > 1 else []),
            f"{size_name(self.shape)} to {size_name(self.size)}",
            *(["from logits"] if self.adaptive else []),
            *(["antialias"] if self.antialias else []),
            f"{dtype} image, float32 result" if self.as_float else dtype,
            *(["channels_last"] if self.channels_last else []),
            *(["align_corners"] if self.align_corners else []),
            *([self.padding_mode] if self.padding_mode != "zeros" else []),
        ]

    @property
    def operator(self) -> str:
        return "adaptive_grid_sample" if self.adaptive else "separable_grid_sample"

    @property
    def result_dtype(self) -> torch.dtype:
        return torch.float32 if self.as_float else self.dtype

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        pixels = make.photo(self.batch, *self.shape, seed)
        x, y = self.axes(seed)
        grad = torch.randn(self.batch, 3, *self.size, generator=torch.Generator().manual_seed(seed + 1))
        return {
            "image": make.encoded(pixels, self.dtype, self.channels_last).to(device),
            "x": x.to(device),
            "y": y.to(device),
            "grad": grad.to(device, self.result_dtype) if self.backward else None,
        }

    def axes(self, seed: int) -> list[Tensor]:
        """Coordinates, or logits, of columns and rows."""
        axes = []
        for axis, (pixels, count) in enumerate(zip(reversed(self.shape), reversed(self.size), strict=True)):
            smooth = self.backward and not self.antialias
            logits = make.warp_logits(
                self.batch, count, pixels, self.align_corners, smooth, seed + 100 * axis
            )
            axes.append(logits if self.adaptive else make.warp_vertices(logits).float())
        return axes

    def task(self, sample: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `sample(image, x, y, ...)`, called like the operator: the output, then any gradients."""
        tensors = x["image"], x["x"], x["y"]
        function = partial(
            sample,
            align_corners=self.align_corners,
            padding_mode=self.padding_mode,
            antialias=self.antialias,
            dtype=x.get("dtype", torch.float32 if self.as_float else None),
        )
        if self.backward:
            return forward_backward(function, tensors, x["grad"])
        return lambda: function(*tensors)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        ours = {"pyops": lambda x: Contestant(self.task(getattr(pyops, self.operator), x))}
        return ours | ({"pyops (Triton)": self.triton} if device.type == "cuda" else {})

    def triton(self, x: Inputs) -> Contestant:
        """The Triton kernels by name: with the CUDA library installed, a plain call does not reach them."""
        from pyops.triton import sampling as kernels

        tensors = x["image"], x["x"], x["y"]
        flags = self.align_corners, self.padding_mode == "border", self.antialias
        forward = getattr(kernels, self.operator)
        if not self.backward:
            return Contestant(lambda: forward(*tensors, *flags, self.as_float))
        backward = getattr(kernels, f"{self.operator}_backward")

        def both() -> list[Tensor]:
            out = forward(*tensors, *flags, self.as_float)
            return [out, *backward(x["grad"], *tensors, *flags, True, True, True)]

        return Contestant(both)

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        floats = {k: v.double() for k, v in inputs.items() if v is not None and v.is_floating_point()}
        result = self.task(getattr(reference, self.operator), {**inputs, **floats, "dtype": torch.float64})()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """In float32 a position on a 4K image is known to 2e-4 of a pixel, to 1e-3 after a sum of 256 intervals;
        at the border a pixel's share falls from 1 to 0."""
        position = 5e-4 if self.adaptive else 1e-4
        output = Tolerance({torch.float16: 6e-4, torch.bfloat16: 5e-3}.get(self.result_dtype, position))
        return [output, *[Tolerance(2e-3, of_peak=True)] * 3] if self.backward else [output]

    @property
    def samples(self) -> int:
        return self.batch * 3 * self.size[0] * self.size[1]

    @property
    def pixels(self) -> int:
        return self.batch * 3 * self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """Forward: the pixels looked at and the output, whole cache lines not counted. Backward: the pixels once more
        for the slopes, the output's gradient, and the image's gradient, all of which is written."""
        looked = self.pixels if self.antialias else min(4 * self.samples, self.pixels)
        forward = looked * self.dtype.itemsize + self.samples * self.result_dtype.itemsize
        return 2 * forward + self.pixels * self.dtype.itemsize if self.backward else forward

    @property
    def flops(self) -> int:
        """Point by point: 3 lerps a sample. Antialias: along a row every pixel is weighted and added once, then every
        row of what is left of it. Backward twice that."""
        rows = self.batch * 3 * self.shape[0] * self.size[1]
        forward = 2 * (self.pixels + rows) if self.antialias else 9 * self.samples
        return forward * (3 if self.backward else 1)

    def bound(self, chip: Chip) -> Bound | None:
        """Memory comes in sectors of 32 bytes: of each sample's two rows at least one each."""
        if self.antialias:
            return None
        sectors = min(64 * self.samples, self.pixels * self.dtype.itemsize)
        return Bound((self.bytes + sectors) / chip.copied, "whole sectors around the samples")


FHD, SD = (1080, 1920), (480, 720)
CASES = (
    Sampling(headline=True),
    Sampling(backward=True, headline=True),
    Sampling(antialias=True, headline=True),
    Sampling(adaptive=True, goal="10 us, one launch"),
    Sampling(adaptive=True, backward=True),
    Sampling(adaptive=True, antialias=True),
    Sampling(dtype=torch.uint8, as_float=True),
    Sampling(dtype=torch.float16),
    Sampling(channels_last=True),
    Sampling(align_corners=True, padding_mode="border"),
    Sampling(shape=FHD, quick=True),
    Sampling(shape=FHD, antialias=True, quick=True),
    Sampling(shape=FHD, antialias=True, backward=True),
    Sampling(shape=SD, batch=4),
    Sampling(shape=(512, 512), size=(1024, 1024)),
    Sampling(shape=(1, 1), size=(2, 2), overhead=True, quick=True),
)
