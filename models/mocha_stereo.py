"""MoCha-Stereo: disparity of a rectified pair by motif channel attention and iterative updates.

    left, right ── features ──┬── match ── group-wise correlation ──┐
                              └── motif channels ── attention ──────┴── hourglass ── volume ── initial disparity
    volume, all-pairs correlation ── lookup at the disparity ── recurrent update ── disparity (again and again)
    disparity at 1/4 ── context upsampling ── refinement by the reconstruction error ── disparity

Source: Chen et al., MoCha-Stereo: Motif Channel Attention Network for Stereo Matching, CVPR 2024.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyops

from . import mocha_layers as layers
from ._checkpoint import load_checkpoint

LEVELS, RADIUS = 2, 4  # of the lookup
COARSEST = 32
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)


@dataclass(frozen=True)
class Widths:
    """How many channels each part has; the defaults are the published ones."""

    stem: tuple[int, int] = (32, 128)  # at 1/2 and 1/4
    match: int = 96  # of the descriptors that are correlated
    hidden: int = 128  # of each recurrent unit
    motion: tuple[int, int] = (64, 128)
    head: int = 256
    context: tuple[int, ...] | None = (
        64,
        128,
        128,
        128,
    )  # at 1/2 to 1/16; None: the features serve as context
    upsampling: tuple[int, int] = (24, 32)  # of the features for the initial and for every other disparity
    refinement: tuple[int, ...] = (32, 48, 64, 96, 128)  # at full resolution, 1/2 and so on


PUBLISHED = Widths()
SMALL = Widths(
    stem=(16, 16),
    match=32,
    hidden=48,
    motion=(32, 48),
    head=64,
    context=None,
    upsampling=(16, 16),
    refinement=(8, 16, 24, 32),
)
SMALL_ENCODER = (16, 24, 32, 48, 64)  # at 1/2 to 1/32


class MoChaStereo(nn.Module):
    """Disparity of rectified pairs of any size.

    Convention:
        What is at ``x`` on the left is at ``x - disparity`` on the right; disparities are in pixels of the input, at
        least 0. Inside, pictures are padded to multiples of 32 by their last row and column.

    Args:
        backbone: ``"small"``, a network of about a million parameters for CPUs, or the name of a network of timm, which
            brings the published widths (the authors took ``"tf_efficientnetv2_l"``).
        max_disparity: of the volume, a multiple of 32; the updates may go beyond.
        paper: True weights the correlations by those of the channels of both views (equations 5 and 6) and subtracts the
            residual of the refinement (equation 8); False gates them by the channels of the left view alone, and lets
            the residual stand for the disparity where that is less, as the published code does. Same weights.
        pretrained: loads the weights of timm for the backbone, which stays as it is in training.
        ops: where the operators come from: ``pyops``, or ``pyops.reference`` for plain PyTorch.

    Norms are over groups of channels of one image instead of over batches, so a batch of one trains as well.

    Example:
        >>> model = MoChaStereo(max_disparity=64).eval()
        >>> left, right = torch.randint(0, 256, (2, 1, 3, 60, 100), dtype=torch.uint8)
        >>> with torch.inference_mode():
        ...     model(left, right, iters=4).shape
        torch.Size([1, 1, 60, 100])
    """

    def __init__(
        self,
        backbone: str = "small",
        *,
        max_disparity: int = 192,
        paper: bool = True,
        pretrained: bool = False,
        ops: Any = pyops,
    ) -> None:
        super().__init__()
        _check_number("max_disparity", max_disparity)
        if max_disparity % COARSEST:
            raise ValueError(f"max_disparity must be a multiple of {COARSEST}, got {max_disparity}")
        if not isinstance(backbone, str):
            raise TypeError(f"backbone must be a str, got {type(backbone).__name__}")
        small = backbone == "small"
        if small and pretrained:
            raise ValueError("pretrained weights are those of a backbone of timm; 'small' has none")
        encoder = layers.Encoder(SMALL_ENCODER) if small else layers.TimmEncoder(backbone, pretrained)
        self.max_disparity, self.paper, self.ops = max_disparity, paper, ops
        self._build(encoder, SMALL if small else PUBLISHED)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU

    def _build(self, encoder: layers.Encoder | layers.TimmEncoder, w: Widths) -> None:
        conv2d, conv3d, volume = layers.conv2d, layers.conv3d, layers.VOLUME[0]
        self.features = layers.Features(encoder)
        c4, *coarse = self.features.channels
        self.stem2 = nn.Sequential(conv2d(3, w.stem[0], stride=2), conv2d(w.stem[0], w.stem[0]))
        self.stem4 = nn.Sequential(conv2d(w.stem[0], w.stem[1], stride=2), conv2d(w.stem[1], w.stem[1]))
        channels = (c4 + w.stem[1], *coarse)
        self.match = nn.Sequential(conv2d(channels[0], w.match), nn.Conv2d(w.match, w.match, 1))
        self.motifs = nn.ModuleList(layers.MotifAttention(c) for c in channels[:3])
        self.volume_stem = conv3d(layers.GROUPS, volume)
        self.volume_gate = layers.Gate(volume, channels[0])
        self.hourglass = layers.Hourglass(coarse)
        self.classifier = nn.Conv3d(volume, 1, 3, padding=1, bias=False)
        self.context = layers.Encoder(w.context) if w.context else None
        known = w.context[1:] if w.context else channels[:3]
        self.hidden = nn.ModuleList(nn.Conv2d(c, w.hidden, 3, padding=1) for c in known)
        self.inputs = nn.ModuleList(nn.Conv2d(c, 3 * w.hidden, 3, padding=1) for c in known)
        taps = LEVELS * (volume + 1) * (2 * RADIUS + 1)
        self.update = layers.Update(taps, w.hidden, w.motion, w.head)
        first, later = w.upsampling
        self.first_features = conv2d(channels[0], first)
        self.first_weights = layers.UpsampleWeights(first, w.stem[0])
        self.features_of_hidden = nn.Sequential(
            nn.Conv2d(w.hidden, later, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.weights = layers.UpsampleWeights(later, w.stem[0])
        self.refinement = layers.Refinement(w.refinement)

    @classmethod
    def from_checkpoint(cls, path: str | Path, backbone: str = "small", **options: Any) -> MoChaStereo:
        """Loads a ``state_dict`` of this class, ready for inference; ``options`` are those of the constructor.

        Only tensors are read, never code. Raises OSError if there is no such file, ValueError for anything else.
        """
        model = cls(backbone, **options)
        model.load_state_dict(load_checkpoint(path, "MoChaStereo", model.state_dict(), {}))
        return model.eval()

    def forward(self, left: Tensor, right: Tensor, *, iters: int = 16, cuda_graph: bool = False) -> Tensor:
        """Disparity ``[B, 1, H, W]`` of ``left``, in the dtype of the parameters.

        Args:
            left: ``[B, 3, H, W]`` in [0, 255], float or uint8. right: the other view, of its shape and dtype.
            iters: how many updates; fewer are faster, more are better.
            cuda_graph: captures an update once and replays it, without the launches of its kernels; for inference on
                CUDA devices only.
        """
        _check(left, right, iters)
        if cuda_graph and (left.device.type != "cuda" or torch.is_grad_enabled()):
            raise ValueError(
                "cuda_graph needs images on a CUDA device and no gradients (torch.inference_mode)"
            )
        pair = _Pair(self, left, right)
        for disparity, hidden in pair.updates(iters, cuda_graph):  # noqa: B007
            pass
        return pair.refined(pair.upsampled(disparity, hidden))

    def iterate(self, left: Tensor, right: Tensor, *, iters: int = 16) -> Iterator[Tensor]:
        """Yields after each update what `forward` would return for so many, to stop when time is up."""
        _check(left, right, iters)
        return self._iterate(left, right, iters)

    def _iterate(self, left: Tensor, right: Tensor, iters: int) -> Iterator[Tensor]:
        pair = _Pair(self, left, right)
        for disparity, hidden in pair.updates(iters):
            yield pair.refined(pair.upsampled(disparity, hidden))

    def predictions(self, left: Tensor, right: Tensor, *, iters: int = 16) -> tuple[Tensor, list[Tensor]]:
        """What `StereoLoss` compares: the disparity before any update, and that after each; the last one is refined."""
        _check(left, right, iters)
        pair = _Pair(self, left, right)
        full = [pair.upsampled(disparity, hidden) for disparity, hidden in pair.updates(iters)]
        weights = self.first_weights(self.first_features(pair.features[0]), pair.stem)
        first = self.ops.context_upsample(4 * pair.first, weights)
        return pair.cropped(first), [*map(pair.cropped, full[:-1]), pair.refined(full[-1])]

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles: of a module, the name
        state = super().__getstate__()
        return {**state, "ops": self.ops.__name__} if isinstance(self.ops, ModuleType) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.ops, str):
            self.ops = importlib.import_module(self.ops)


class _Pair:
    """What a model knows of two images before the first update, and the updates."""

    def __init__(self, model: MoChaStereo, left: Tensor, right: Tensor) -> None:
        self.model, self.shape = model, left.shape[2:]
        dtype = model.classifier.weight.dtype
        views = torch.cat([left, right]).to(dtype) / 127.5 - 1
        bottom, end = (-n % COARSEST for n in self.shape)
        views = F.pad(views, (0, end, 0, bottom), mode="replicate")
        self.left, self.right = views.chunk(2)
        views = views.contiguous(memory_format=torch.channels_last)
        stem, maps = model.stem2(views), model.features(views)
        maps[0] = torch.cat([maps[0], model.stem4(stem)], 1)
        self.stem = stem.chunk(2)[0]
        self.features = [m.chunk(2)[0] for m in maps]
        match = model.match(maps[0]).chunk(2)
        volume = self._aggregated(match, maps)
        cost = model.classifier(volume).squeeze(1).softmax(1)
        steps = torch.arange(cost.shape[1], dtype=dtype, device=cost.device).view(1, -1, 1, 1)
        self.first = (cost * steps).sum(1, keepdim=True)
        self.volumes = [volume]
        for _ in range(LEVELS - 1):
            self.volumes.append(F.avg_pool3d(self.volumes[-1], (2, 1, 1)))
        self.pyramid = model.ops.corr1d_pyramid(*match, LEVELS, scale=1.0)
        known = self.features if model.context is None else model.context(views[: len(left)])
        self.hidden = [conv(x).tanh() for conv, x in zip(model.hidden, known, strict=False)]
        self.inputs = []
        for conv, x, h in zip(model.inputs, known, self.hidden, strict=False):
            gates, candidate = conv(x).split((2 * h.shape[1], h.shape[1]), 1)
            self.inputs.append((gates, candidate))

    def _aggregated(self, match: tuple[Tensor, Tensor], maps: list[Tensor]) -> Tensor:
        """The cost volume ``[B, 8, max_disparity / 4, h, w]``, section 3.2."""
        model, ops, count = self.model, self.model.ops, self.model.max_disparity // 4
        other = [torch.cat(m.chunk(2)[::-1]) for m in maps]  # of each view the other one
        wanted = len(self.left) * (2 if model.paper else 1)
        channels = model.motifs[0](maps[0][:wanted], other[0][:wanted], ops)
        volume = self._correlation(*match, count, layers.GROUPS)
        if model.paper:
            volume = volume * self._correlation(*channels.chunk(2), count, 1)
            volume = model.volume_gate(model.volume_stem(volume), self.features[0])
        else:
            volume = model.volume_gate(model.volume_stem(volume), channels)
        attention = [
            motif(f, o[: len(f)], ops)
            for motif, f, o in zip(model.motifs[1:], self.features[1:3], other[1:3], strict=True)
        ]
        return model.hourglass(volume, [*attention, self.features[3]])

    def _correlation(self, left: Tensor, right: Tensor, count: int, groups: int) -> Tensor:
        seen = min(count, left.shape[3])  # beyond the width there is nothing to match
        volume = self.model.ops.groupwise_correlation(left, right, seen, groups)
        return F.pad(volume, (0, 0, 0, 0, 0, count - seen))

    def updates(self, iters: int, cuda_graph: bool = False) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Disparity at 1/4, in its pixels, and hidden states after each update; valid until the next."""
        disparity, hidden = self._step(self.first, self.hidden)
        yield disparity, hidden
        if cuda_graph and iters > 1:
            yield from self._replayed(disparity, hidden, iters - 1)
            return
        for _ in range(iters - 1):
            disparity, hidden = self._step(disparity, hidden)
            yield disparity, hidden

    def _step(self, disparity: Tensor, hidden: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        disparity = disparity.detach()
        cost = self.model.ops.geometry_lookup(self.volumes, self.pyramid, disparity.squeeze(1), RADIUS)
        hidden, change = self.model.update(hidden, self.inputs, cost, disparity)
        return disparity + change, hidden

    def _replayed(
        self, disparity: Tensor, hidden: list[Tensor], iters: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The first update, which is behind us, has warmed everything up that must not run within a capture."""
        state, graph = [disparity.clone(), *(h.clone() for h in hidden)], torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            after, states = self._step(state[0], state[1:])
            for old, new in zip(state, [after, *states], strict=True):
                old.copy_(new)
        for _ in range(iters):
            graph.replay()
            yield state[0], state[1:]

    def upsampled(self, disparity: Tensor, hidden: list[Tensor]) -> Tensor:
        model = self.model
        weights = model.weights(model.features_of_hidden(hidden[0]), self.stem)
        return model.ops.context_upsample(4 * disparity, weights)

    def refined(self, disparity: Tensor) -> Tensor:
        model = self.model
        residual = model.refinement(disparity, self.left, self.right, model.ops)
        if not model.paper:
            residual = (disparity + residual).relu()
        return self.cropped((disparity - residual).relu())

    def cropped(self, full: Tensor) -> Tensor:
        return full[..., : self.shape[0], : self.shape[1]]


def _check_number(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {type(number).__name__}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def _check(left: Any, right: Any, iters: Any) -> None:
    for name, image in (("left", left), ("right", right)):
        if not isinstance(image, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
        if image.dtype not in DTYPES:
            raise TypeError(f"{name} must be float or uint8, in [0, 255], got {image.dtype}")
    if left.dim() != 4 or left.shape[1] != 3 or 0 in left.shape:
        raise ValueError(f"left must be [B, 3, H, W] with B, H and W at least 1, got {list(left.shape)}")
    if right.shape != left.shape:
        raise ValueError(f"right must have the shape of left, {list(left.shape)}, got {list(right.shape)}")
    if right.dtype != left.dtype:
        raise TypeError(f"right must have the dtype of left, {left.dtype}, got {right.dtype}")
    if right.device != left.device:
        raise ValueError(f"right must be on the device of left, {left.device}, got {right.device}")
    _check_number("iters", iters)
