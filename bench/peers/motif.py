"""Other ways to high-pass all channels, and to convolve the products of features with motifs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.motif import Camp, Highpass, Motif

PEERS = Peers()


def dense(features: Tensor) -> Tensor:
    """As in the code of MoCha-Stereo: a dense kernel of all channels with all channels."""
    channels = features.shape[1]
    kernel = torch.full((channels, channels, 3, 3), 1 / 9, dtype=features.dtype, device=features.device)
    return features - F.conv2d(features, kernel, padding=1)


def pooled(features: Tensor) -> Tensor:
    """The careful user's way: the same number for all channels, found once. Sums are float32, as ours are."""
    total = features.sum(1, keepdim=True, dtype=torch.promote_types(features.dtype, torch.float32))
    return (features - F.avg_pool2d(total, 3, 1, 1)).to(features.dtype)


def volume(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    """As in the code of MoCha-Stereo: all products, and a convolution of the volume that they make."""
    product = motif[:, :, None] * features[:, None]
    return F.conv3d(product, kernel[None], padding=1)[:, 0]


def weighted_windows(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    """The careful user's way: 27 weights a pixel by a convolution of the motifs, then as many products and sums."""
    height, width = features.shape[2:]
    centre = torch.eye(9, dtype=kernel.dtype, device=kernel.device).view(9, 3, 3)
    taps = torch.einsum("sdk,kyx->dksyx", kernel.flatten(2), centre).flatten(0, 1)
    weights = F.conv2d(motif, taps, padding=1)
    padded = F.pad(features, (1, 1, 1, 1, 1, 1))
    channels = features.shape[1]
    out = torch.zeros_like(features)
    for i in range(27):
        dc, dy, dx = i // 9, i // 3 % 3, i % 3
        window = padded[:, dc : dc + channels, dy : dy + height, dx : dx + width]
        out = out + weights[:, i : i + 1] * window
    return out


def _highpass(case: Motif) -> bool:
    return isinstance(case, Highpass)


def _camp(case: Motif) -> bool:
    return isinstance(case, Camp)


@PEERS.peer("torch conv2d, dense kernel", when=_highpass, stock=True)
def dense_kernel(case: Motif, x: Inputs):
    return case.task(dense, x)


@PEERS.peer("torch sum, avg_pool2d", when=lambda case: _highpass(case) and not case.overhead)
def by_pooling(case: Motif, x: Inputs):
    return case.task(pooled, x)


@PEERS.peer("torch product, conv3d", when=_camp, stock=True)
def by_volume(case: Motif, x: Inputs):
    return case.task(volume, x)


@PEERS.peer("torch weighted windows", when=lambda case: _camp(case) and not case.overhead)
def by_windows(case: Motif, x: Inputs):
    return case.task(weighted_windows, x)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer(
    "torch.compile conv2d, dense kernel",
    when=lambda case: _highpass(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled_highpass(case: Motif, x: Inputs):
    return case.task(_compiled(dense), x)


@PEERS.peer(
    "torch.compile product, conv3d",
    when=lambda case: _camp(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled_camp(case: Motif, x: Inputs):
    return case.task(_compiled(volume), x)
