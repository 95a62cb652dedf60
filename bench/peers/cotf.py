"""CoTF in plain PyTorch, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..models.cotf import CoTF
from ..timing import captured
from .modulation import encoded, in_channels_last, layers
from .sampling import adaptive_grid_sample, decoded, grid_sample

PEERS = Peers()


@cache
def plain_ops() -> SimpleNamespace:
    from pyops import reference

    return SimpleNamespace(
        separable_grid_sample=grid_sample,
        adaptive_grid_sample=adaptive_grid_sample,
        fuse_luts=reference.fuse_luts,
        relation_aware_modulation=layers,
    )


@cache
def plain_model() -> type:
    from pyops import models

    class PlainCoTF(models.CoTF):
        """Decodes an integer image once, instead of in every operator, and leaves evenly spaced samples to PyTorch."""

        def forward(self, image: Tensor) -> Tensor:
            return encoded(super().forward(decoded(image)), image.dtype)

        def _small_copy(self, image: Tensor) -> Tensor:
            return F.interpolate(image, (256, 256), mode="bilinear", align_corners=False)

    return PlainCoTF


def plain(case: CoTF, x: Inputs, finish: Callable[..., Any] | None = None) -> Callable[[], Any]:
    return partial(case.model(plain_ops(), x, plain_model(), finish), x["image"])


@PEERS.peer("torch layers", stock=True)
def stock(case: CoTF, x: Inputs):
    return plain(case, x)


@PEERS.peer("torch layers, CUDA graph", devices=["cuda"], when=lambda case: case.latency)
def graph(case: CoTF, x: Inputs):
    return captured(plain(case, x))


def _packed(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():  # `Module.to` would refuse the tables, which have five axes
        parameter.data = in_channels_last(parameter.data)
    return model


@PEERS.peer(
    "torch layers, channels_last",
    when=lambda case: case.dtype == torch.float32 and not case.latency,
    cpu_headlines_only=True,
)
def channels_last(case: CoTF, x: Inputs):
    """Norms over channels then need no copy; image and weights are put into this layout beforehand."""
    return plain(case, {**x, "image": in_channels_last(x["image"])}, _packed)


def _compiled(model: torch.nn.Module) -> Callable[..., Any]:
    return torch.compile(model, dynamic=False)


@PEERS.peer("torch.compile layers", when=lambda case: case.headline or case.latency, slow_start=True)
def compiled(case: CoTF, x: Inputs):
    return plain(case, x, _compiled)
