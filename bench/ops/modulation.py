"""modulation: the full-resolution half of CoTF, from an image and a table to the result. Peers: `bench/peers`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import inputs as make
from ..case import Case, Contestant, Inputs, Tolerance, dtype_name, size_name

LUT_SIZE = 17
QUERY = (8, 256, 256)
# Multiplications of a pixel with their additions: convolutions and attention, in their order.
MULTIPLY_ADDS = 8 * 27 + 16 * 8 + 16 * 9 + 8 * 4 + 8 * 8 + 32 * 8 + 32 * 9 + 8 * 16 + 3 * 72
# The table's trilinear lookup, two layer norms of 8 channels, 24 gelus of about 10, pooling, gate and residuals.
OTHER_FLOPS = 75 + 2 * 8 * 6 + 24 * 10 + 8 + 16 + 2 * 8
WIDE_PIXELS = 1 << 20


def definition_dtype(pixels: int, device: torch.device) -> torch.dtype:
    """float64, but on a CPU only up to a megapixel: its depthwise convolutions take over ten times as long as in
    float32, which is itself within 1e-6 of float64."""
    return torch.float64 if device.type == "cuda" or pixels <= WIDE_PIXELS else torch.float32


def weights(seed: int = 0) -> dict[str, Tensor]:
    """As the module starts, but norms, temperatures and attention that do something, and colours mostly in [0, 1]."""
    from pyops.models.cotf import RelationAwareModulation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        w = {name: value.detach().clone() for name, value in RelationAwareModulation().weights.items()}
        for name in ("norm1", "norm2", "temperature"):
            w[name] *= 1 + 0.3 * torch.randn_like(w[name])
        for name in ("norm1_bias", "norm2_bias"):
            w[name] += 0.2 * torch.randn_like(w[name])
        w["temperature"] *= 3
        w["project"] *= 2
        w["out"] *= 0.35
        w["out_bias"] = torch.tensor([0.5, 0.45, 0.4])
    return w


@dataclass(frozen=True)
class Modulation(Case):
    shape: tuple[int, int] = (1080, 1624)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    seconds: float = 8.0

    @property
    def words(self) -> list[str]:
        layout = ["channels_last"] if self.channels_last else []
        return [size_name(self.shape), dtype_name(self.dtype), *layout]

    def inputs(self, device: torch.device, seed: int = 0) -> Inputs:
        image = make.encoded(make.photo(1, *self.shape, seed), self.dtype, self.channels_last)
        # Related to the image, as features of a small copy are: noise would leave attention nothing to find.
        mix = torch.randn(QUERY[0], 3, 1, 1, generator=torch.Generator().manual_seed(seed + 1))
        query = F.conv2d(make.photo(1, *QUERY[1:], seed) - 0.4, mix)
        tensors = {"image": image, "lut": make.grading_lut(LUT_SIZE)[None], "query": query, **weights(seed)}
        return {name: t.to(device) for name, t in tensors.items()}

    def task(self, modulation: Callable[..., Tensor], x: Inputs) -> Callable[[], Any]:
        """The case's work with `modulation(image, lut, query, weights)`."""
        import pyops

        w = pyops.ModulationWeights(**{name: x[name] for name in pyops.ModulationWeights._fields})
        return lambda: modulation(x["image"], x["lut"], x["query"], w)

    def ours(self, device: torch.device) -> dict[str, Callable[[Inputs], Contestant]]:
        import pyops

        return {"pyops": lambda x: Contestant(self.task(pyops.relation_aware_modulation, x))}

    def reference(self, inputs: Inputs) -> list[Tensor]:
        from pyops import reference

        dtype = definition_dtype(self.pixels, inputs["image"].device)
        wide = {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}
        return [self.task(reference.relation_aware_modulation, wide)()]

    def tolerances(self) -> list[Tolerance]:
        return [image_tolerance(self.dtype)]

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bytes(self) -> int:
        """The image twice, since attention needs to have seen all of it, and the result once; table and query."""
        small = 4 * (3 * LUT_SIZE**3 + torch.Size(QUERY).numel())
        return 3 * 3 * self.pixels * self.dtype.itemsize + small

    @property
    def flops(self) -> int:
        return self.pixels * (2 * MULTIPLY_ADDS + OTHER_FLOPS)


def image_tolerance(dtype: torch.dtype) -> Tolerance:
    """Of colours: 1e-4, or what rounding to half or to levels adds."""
    if dtype in make.LEVELS:
        return Tolerance(0.5, flips=0.03, ceiling=1.0)
    return Tolerance({torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-4))


CASES = (
    Modulation(headline=True),
    Modulation(shape=(1024, 1024), quick=True),
    Modulation(shape=(2160, 3840)),
    Modulation(dtype=torch.uint8),
    Modulation(dtype=torch.float16),
)
