"""motif: the high-pass of all channels, and convolution of products with motifs. Peers: `bench/peers/motif.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, forward_backward, size_name


@dataclass(frozen=True)
class Motif(Case):
    """A function of the tensors that `arguments` names."""

    shape: tuple[int, int] = (96, 312)  # a quarter of 1248x384 (KITTI)
    channels: int = 256
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    batch: int = 1
    seconds: float = 6.0

    @property
    def operator(self) -> str:
        raise NotImplementedError

    @property
    def arguments(self) -> tuple[str, ...]:
        raise NotImplementedError

    @property
    def words(self) -> list[str]:
        return [
            self.operator.replace("_", " "),
            *([f"{self.batch} x"] if self.batch > 1 else []),
            size_name(self.shape),
            f"{self.channels} channels",
            dtype_name(self.dtype),
            *(["channels_last"] if self.channels_last else []),
        ]

    def draw(self, channels: int, generator: torch.Generator) -> Tensor:
        memory = torch.channels_last if self.channels_last else torch.contiguous_format
        values = torch.randn(self.batch, channels, *self.shape, generator=generator)
        return values.contiguous(memory_format=memory)

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
        raise NotImplementedError

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        wide = {name: None if t is None else t.double() for name, t in inputs.items()}
        result = self.task(getattr(reference, self.operator), wide)()
        return result if self.backward else [result]

    def tolerances(self) -> list[Tolerance]:
        """Of the largest value: sums rounded to the dtype."""
        limit = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(self.dtype, 1e-5)
        return [Tolerance(limit, of_peak=True)] * ((1 + len(self.arguments)) if self.backward else 1)

    @property
    def pixels(self) -> int:
        return self.batch * self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Highpass(Motif):
    channels: int = 512  # of both views

    @property
    def operator(self) -> str:
        return "constant_highpass"

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("features",)

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        features = self.draw(self.channels, generator).to(device, self.dtype)
        grad = self.draw(self.channels, generator).to(device, self.dtype) if self.backward else None
        return {"features": features, "grad": grad}

    def triton(self, x: Inputs) -> Contestant:
        from pyops.triton.motif import constant_highpass

        def both() -> list[Tensor]:
            return [constant_highpass(x["features"]), constant_highpass(x["grad"])]

        return Contestant(both if self.backward else lambda: constant_highpass(x["features"]))

    @property
    def bytes(self) -> int:
        """Features and result; as much again for the gradients."""
        return self.pixels * self.channels * self.dtype.itemsize * (4 if self.backward else 2)

    @property
    def flops(self) -> int:
        return self.pixels * (2 * self.channels + 5) * (2 if self.backward else 1)


@dataclass(frozen=True)
class Camp(Motif):
    motifs: int = 4

    @property
    def operator(self) -> str:
        return "camp_conv"

    @property
    def arguments(self) -> tuple[str, ...]:
        return "motif", "features", "kernel"

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "motif": self.draw(self.motifs, generator).softmax(1),
            "features": self.draw(self.channels, generator),
            "kernel": torch.randn(self.motifs, 3, 3, 3, generator=generator) / 4,
            "grad": self.draw(self.channels, generator) if self.backward else None,
        }
        return {name: None if t is None else t.to(device, self.dtype) for name, t in tensors.items()}

    def triton(self, x: Inputs) -> Contestant:
        from pyops.triton import motif as kernels

        tensors = x["motif"], x["features"], x["kernel"]

        def both() -> list[Tensor]:
            grads = kernels.camp_conv_backward(x["grad"], *tensors, True, True, True)
            return [kernels.camp_conv(*tensors), *grads]

        return Contestant(both if self.backward else lambda: kernels.camp_conv(*tensors))

    @property
    def bytes(self) -> int:
        """Motifs, features, result; backward reads motifs, features and the result's gradient, and writes two."""
        motifs, features = self.motifs, self.channels
        numbers = (3 * motifs + 5 * features) if self.backward else (motifs + 2 * features)
        return self.pixels * numbers * self.dtype.itemsize

    @property
    def flops(self) -> int:
        return 2 * 27 * self.pixels * (self.channels + self.motifs) * (3 if self.backward else 1)


CASES = (
    Highpass(headline=True),
    Camp(headline=True),
    Camp(backward=True, headline=True),
    Highpass(channels=256),
    Highpass(backward=True),
    Highpass(dtype=torch.float16),
    Highpass(channels_last=True),
    Camp(dtype=torch.float16),
    Camp(channels_last=True),
    Camp(shape=(48, 156), channels=192),
    Highpass(shape=(24, 78), channels=64, quick=True),
    Camp(shape=(24, 78), channels=64, quick=True),
    Camp(shape=(24, 78), channels=64, backward=True, quick=True),
    Highpass(shape=(1, 1), channels=1, overhead=True, quick=True),
    Camp(shape=(1, 1), channels=1, motifs=1, overhead=True, quick=True),
)
