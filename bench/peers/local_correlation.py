"""Other ways to make the volume of a local correlation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.local_correlation import LocalCorrelation

PEERS = Peers()


def slices(first: Tensor, second: Tensor, radius: int, *, dilation: int = 1) -> Tensor:
    """As in PWC-Net without its CUDA kernel: a padded image, and one displacement after the other."""
    reach, (height, width) = radius * dilation, first.shape[2:]
    padded = F.pad(second, (reach, reach, reach, reach))
    offsets = range(0, 2 * reach + 1, dilation)
    return torch.stack(
        [(first * padded[..., i : i + height, j : j + width]).sum(1) for i in offsets for j in offsets], 1
    )


def sampler(first: Tensor, second: Tensor, radius: int, *, dilation: int = 1) -> Tensor:
    from spatial_correlation_sampler import spatial_correlation_sample

    volume = spatial_correlation_sample(
        first, second, kernel_size=1, patch_size=2 * radius + 1, dilation_patch=dilation
    )
    return volume.flatten(1, 2)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


def _sampled(case: LocalCorrelation) -> bool:
    """It sums halves in halves, on a CPU knows none, and reads contiguous images."""
    return case.dtype == torch.float32 and not case.channels_last


@PEERS.peer("torch slices", stock=True)
def stock(case: LocalCorrelation, x: Inputs):
    return case.task(slices, x)


@PEERS.peer("spatial-correlation-sampler", needs="spatial_correlation_sampler", when=_sampled)
def spatial_correlation_sampler(case: LocalCorrelation, x: Inputs):
    return case.task(sampler, x)


@PEERS.peer(
    "torch.compile slices",
    when=lambda case: not case.overhead and case.radius <= 4,  # 441 slices compile for minutes
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: LocalCorrelation, x: Inputs):
    return case.task(_compiled(slices), x)
