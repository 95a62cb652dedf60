"""MoCha-Stereo: disparity of a rectified pair by motif channel attention and iterative updates.

    left, right ── features ──┬── match ── group-wise correlation ──┐
                              └── motif channels ── attention ──────┴── hourglass ── volume ── initial disparity
    volume, all-pairs correlation ── lookup at the disparity ── recurrent update ── disparity (again and again)
    disparity at 1/4 ── context upsampling ── refinement by the reconstruction error ── disparity

Source: Chen et al., MoCha-Stereo: Motif Channel Attention Network for Stereo Matching, CVPR 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pyops

from . import mocha_features as features
from . import mocha_layers as layers
from ._checkpoint import load_checkpoint
from ._operators import UsesOperators
from .mocha_pair import COARSEST, LEVELS, RADIUS, Pair

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


class MoChaStereo(UsesOperators):
    """Disparity of rectified pairs of any size.

    Convention:
        What is at ``x`` on the left is at ``x - disparity`` on the right; disparities are in pixels of the input, at
        least 0. Inside, pictures are padded to multiples of 32 by their last row and column.

    Args:
        backbone: ``"small"``, a network of two million parameters for CPUs, or the name of a network of timm, which
            brings the published widths (the authors took ``"tf_efficientnetv2_l"``).
        max_disparity: of the volume, pixels, a multiple of 32; the updates may go beyond.
        paper: True weights the correlations by those of the channels of both views (equations 5 and 6), and subtracts
            the residual of the refinement (equation 8). False gates them by the channels of the left view alone, and
            ``-residual`` replaces the disparity where it is less, as in the published code. The weights are the same.
        pretrained: loads the weights of timm for the backbone, which stays as it is in training.
        ops: where the operators come from: ``pyops``, or ``pyops.reference`` for plain PyTorch.

    Differences:
        From the paper: motif channels are found without a Fourier transform, and the channels of the left view gate the
        hourglass, as in the published code. From both: norms are over groups of channels of one image, so that a batch
        of one trains; descriptors are normalised over the image before they are correlated, and the volume is added to
        what the hourglass makes of it, so that matching is learnt sooner; updates are by GRUs; the U-Net of the
        refinement goes down and up once. ``"small"`` takes the context of the updates from the features instead of a
        network of its own.

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
        encoder = features.Encoder(SMALL_ENCODER) if small else features.TimmEncoder(backbone, pretrained)
        self.max_disparity, self.paper, self.ops = max_disparity, paper, ops
        self._build(encoder, SMALL if small else PUBLISHED)
        for module in self.modules():  # both faster on a CPU
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            elif isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _build(self, encoder: features.Encoder | features.TimmEncoder, w: Widths) -> None:
        conv2d, conv3d, volume = layers.conv2d, layers.conv3d, layers.VOLUME[0]
        self.features = features.Features(encoder)
        c4, *coarse = self.features.channels
        self.stem2 = nn.Sequential(conv2d(3, w.stem[0], stride=2), conv2d(w.stem[0], w.stem[0]))
        self.stem4 = nn.Sequential(conv2d(w.stem[0], w.stem[1], stride=2), conv2d(w.stem[1], w.stem[1]))
        channels = (c4 + w.stem[1], *coarse)
        self.match = nn.Sequential(conv2d(channels[0], w.match), nn.Conv2d(w.match, w.match, 1, bias=False))
        self.motifs = nn.ModuleList(layers.MotifAttention(c) for c in channels[:3])
        self.volume_stem = conv3d(layers.GROUPS, volume)
        self.volume_gate = layers.Gate(volume, channels[0])
        self.hourglass = layers.Hourglass(coarse)
        self.classifier = nn.Conv3d(volume, 1, 3, padding=1, bias=False)
        self.context = features.Encoder(w.context) if w.context else None
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
    def pretrained(cls, *, ops: Any = pyops) -> MoChaStereo:
        """The small one with mocha_stereo.pt beside this file, or FileNotFoundError: see mocha_stereo.md."""
        return cls.from_checkpoint(Path(__file__).with_name("mocha_stereo.pt"), max_disparity=64, ops=ops)

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
        pair = Pair(self, left, right)
        for disparity, hidden in pair.updates(iters, cuda_graph):  # noqa: B007
            pass
        return pair.refined(pair.upsampled(disparity, hidden)).relu()

    def iterate(self, left: Tensor, right: Tensor, *, iters: int = 16) -> Iterator[Tensor]:
        """Yields after each update what `forward` would return for so many, to stop when time is up."""
        _check(left, right, iters)
        return self._iterate(left, right, iters)

    def _iterate(self, left: Tensor, right: Tensor, iters: int) -> Iterator[Tensor]:
        pair = Pair(self, left, right)
        for disparity, hidden in pair.updates(iters):
            yield pair.refined(pair.upsampled(disparity, hidden)).relu()

    def predictions(self, left: Tensor, right: Tensor, *, iters: int = 16) -> tuple[Tensor, list[Tensor]]:
        """What `StereoLoss` compares: the disparity before any update, and those after each; the last one is refined.

        They may be negative, where `forward` gives 0: there, too, a gradient shows the way.
        """
        _check(left, right, iters)
        pair = Pair(self, left, right)
        full = [pair.upsampled(disparity, hidden) for disparity, hidden in pair.updates(iters)]
        weights = self.first_weights(self.first_features(pair.features[0]), pair.stem)
        first = self.ops.context_upsample(4 * pair.first, weights)
        return pair.cropped(first), [*map(pair.cropped, full[:-1]), pair.refined(full[-1])]


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
