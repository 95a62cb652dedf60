"""CoTF: real-time exposure correction by collaborative transformations and adaptive sampling.

A lookup table made for the image corrects all of it (global transformation); features of a small copy, which see the
surroundings of a pixel, then refine the result (pixel transformation and relation-aware modulation):

    image ── sampler ── 256 x 256 ── weights of 3 basis tables ── lut ──┐
      │                                                                 ├── modulation ── corrected image
      └── bilinear ── 256 x 256 ── context (encoder, decoder) ──────────┘

Source: Li et al., Real-Time Exposure Correction via Collaborative Transformations and Adaptive Sampling, CVPR 2024.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyops

from ._checkpoint import load_checkpoint
from ._operators import UsesOperators

SIZE = 256  # of the small copies


class CoTF(UsesOperators):
    """Exposure correction of images of any size.

    Args:
        ops: where the operators come from: ``pyops``, or ``pyops.reference`` for plain PyTorch, layer by layer.

    Example:
        >>> model = CoTF.pretrained()
        >>> with torch.inference_mode():
        ...     model(torch.randint(0, 256, (1, 3, 120, 200), dtype=torch.uint8)).dtype
        torch.uint8
    """

    def __init__(self, *, ops: Any = pyops) -> None:
        super().__init__()
        self.ops = ops
        self.sampler = AdaptiveSampler()
        self.luts = AdaptiveLUT()
        self.context = ContextBranch()
        self.context.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on a CPU
        self.modulation = RelationAwareModulation()

    @classmethod
    def pretrained(cls, *, ops: Any = pyops) -> CoTF:
        """With the weights that come with pyops; cotf.md beside this file says how they were made."""
        return cls.from_checkpoint(Path(__file__).with_name("cotf.pt"), ops=ops)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, ops: Any = pyops) -> CoTF:
        """Loads a checkpoint of the paper's authors, or the ``state_dict`` of this class, ready for inference.

        Only tensors are read, never code. Raises OSError if there is no such file, ValueError for anything else.
        """
        model = cls(ops=ops)
        model.load_state_dict(load_checkpoint(path, "CoTF", model.state_dict(), _PUBLISHED))
        return model.eval()

    def forward(self, image: Tensor, *, lut_weights: Tensor | None = None) -> Tensor:
        """Corrects ``image [B, 3, H, W]``, float in [0, 1], uint8 or uint16; same dtype out, float not clamped.

        ``lut_weights [B, 3]`` replace those that `lut_weights` finds for the image.
        """
        _check(image)
        small = self._small_copy(image)
        if lut_weights is None:
            lut_weights = self._find_lut_weights(image, small)
        elif lut_weights.shape != (len(image), len(self.luts.basis)):
            raise ValueError(f"lut_weights must be [B={len(image)}, 3], got shape {list(lut_weights.shape)}")
        lut = self.ops.fuse_luts(lut_weights, self.luts.basis)
        context = self.context(small.contiguous(memory_format=torch.channels_last))
        return self.modulation(image, lut, context, self.ops)

    def lut_weights(self, image: Tensor) -> Tensor:
        """``[B, 3]``, the global transformation that `forward` finds; smooth them in time for a video."""
        _check(image)
        return self._find_lut_weights(image, self._small_copy(image))

    def _find_lut_weights(self, image: Tensor, small: Tensor) -> Tensor:
        x_logits, y_logits = self.sampler(small)
        return self.luts(self.ops.adaptive_grid_sample(image, x_logits, y_logits, dtype=torch.float32))

    def _small_copy(self, image: Tensor) -> Tensor:
        """``[B, 3, 256, 256]``: bilinear, what ``F.interpolate`` gives, but for any dtype and without a float copy."""
        centres = (torch.arange(SIZE, dtype=torch.float32, device=image.device) * 2 + 1) / SIZE - 1
        centres = centres.expand(len(image), SIZE)
        return self.ops.separable_grid_sample(
            image, centres, centres, padding_mode="border", dtype=torch.float32
        )


def _check(image: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must be [B, 3, H, W] with H and W at least 1, got {list(image.shape)}")


def _backbone() -> nn.Sequential:
    """``[B, 3, 256, 256]`` to a code ``[B, 256]``."""
    stages = [
        nn.Sequential(
            nn.Conv2d(c, d, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.InstanceNorm2d(d, affine=True)
        )
        for c, d in itertools.pairwise((3, 8, 16, 32, 64))
    ]
    last = nn.Sequential(nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.LeakyReLU(0.2))
    return nn.Sequential(*stages, last, nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten())


class AdaptiveSampler(nn.Module):
    """Section 3.4: predicts where an image has much to see, as logits of the intervals along x and along y."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.intervals = nn.Linear(256, 2 * (SIZE - 1))
        nn.init.zeros_(self.intervals.weight)
        nn.init.ones_(self.intervals.bias)  # uniform

    def forward(self, small: Tensor) -> tuple[Tensor, Tensor]:
        y, x = self.intervals(self.backbone(small)).chunk(2, 1)
        return x, y


class AdaptiveLUT(nn.Module):
    """Section 3.1: basis tables, and how much of each an image wants."""

    def __init__(self, count: int = 3, size: int = 17) -> None:
        super().__init__()
        self.backbone = _backbone()
        self.head = nn.Linear(256, count)
        self.basis = nn.Parameter(torch.zeros(count, 3, size, size, size))
        nn.init.ones_(self.head.bias)
        self.basis.data[0] = pyops.identity_lut(size)

    def forward(self, samples: Tensor) -> Tensor:
        return self.head(self.backbone(samples))


class ContextBranch(nn.Module):
    """Section 3.2: features ``[B, 8, 256, 256]`` that know the surroundings of each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 8, 1, bias=False)
        self.enc = ExposureNormalisation(8)
        self.encoder = nn.ModuleList(_separable_conv(d, 2 * d, 2 * d, stride=2) for d in (8, 16))
        self.decoder = nn.ModuleList(_decoder_stage(d) for d in (32, 16))
        self.auxiliary = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, small: Tensor) -> Tensor:
        x = self.enc(F.leaky_relu(self.project(small), 0.1))
        skips = []
        for stage in self.encoder:
            skips.append(x)
            x = stage(x)
        for stage in self.decoder:
            x = stage(x) + skips.pop()
        return x


class ExposureNormalisation(nn.Module):
    """Equations (1) and (2): normalised and plain features side by side, then a gate for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.InstanceNorm2d(half, affine=True)
        self.normalised = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.plain = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, half, 3, padding=1),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(half, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.mix(x).chunk(2, 1)
        x = torch.cat([self.normalised(self.norm(a)), self.plain(b)], 1)
        return x * self.gate(x)


def _decoder_stage(d: int) -> nn.Sequential:
    """From d channels to d / 2 at twice the size."""
    return nn.Sequential(nn.ConvTranspose2d(d, d // 2, 2, stride=2), *_separable_conv(d // 2, d, d // 2))


def _separable_conv(before: int, inside: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, inside, 1, bias=False),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(inside, inside, 3, stride=stride, padding=1, groups=inside, bias=False),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(inside, after, 1, bias=False),
    )


class RelationAwareModulation(nn.Module):
    """Section 3.3: compares the channels of both branches, at full resolution only where it must be."""

    def __init__(self) -> None:
        super().__init__()
        self.context_conv = nn.Conv2d(8, 8, 3, padding=1)
        self.query = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False))
        shapes = pyops.ModulationWeights.shapes()
        self.weights = nn.ParameterDict({name: torch.empty(shape) for name, shape in shapes.items()})
        self.reset_parameters()

    def forward(self, image: Tensor, lut: Tensor, context: Tensor, ops: Any) -> Tensor:
        w = pyops.ModulationWeights(**self.weights)
        context = F.gelu(self.context_conv(context)).movedim(1, -1)
        context = F.layer_norm(context, (8,), w.norm1, w.norm1_bias).movedim(-1, 1)
        return ops.relation_aware_modulation(image, lut, self.query(context), w)

    def reset_parameters(self) -> None:
        """As PyTorch starts convolutions; norms and temperatures start at 1."""
        for name, w in self.weights.items():
            if w.dim() == 4:
                nn.init.kaiming_uniform_(w, a=math.sqrt(5))
            elif name in ("conv_bias", "out_bias"):
                bound = 1 / math.sqrt(self.weights[name.removesuffix("_bias")][0].numel())
                nn.init.uniform_(w, -bound, bound)
            else:
                nn.init.constant_(w, 0 if name.endswith("bias") else 1)


# ---- the published checkpoints ---------------------------------------------------------------------------------------

_PUBLISHED = {  # the authors' names, by prefix
    "autoencoder.in_proj.": "context.project.",
    "autoencoder.enc.conv1.": "context.enc.mix.",
    "autoencoder.enc.instance.": "context.enc.norm.",
    "autoencoder.enc.conv2_1.": "context.enc.normalised.",
    "autoencoder.enc.conv2_2.": "context.enc.plain.",
    "autoencoder.enc.process.0.": "context.enc.gate.1.",
    "autoencoder.enc.process.2.": "context.enc.gate.3.",
    **{
        f"autoencoder.encoder_layers.{i}.{j}.": f"context.encoder.{i}.{2 * j}."
        for i in (0, 1)
        for j in (0, 1, 2)
    },
    **{f"autoencoder.decoder_layers.{i}.0.": f"context.decoder.{i}.0." for i in (0, 1)},
    **{
        f"autoencoder.decoder_layers.{i}.{j}.": f"context.decoder.{i}.{2 * j - 1}."
        for i in (0, 1)
        for j in (1, 2, 3)
    },
    "autoencoder.out_conv2.": "context.auxiliary.",
    "sampler.generator.": "sampler.backbone.",
    "sampler.intervals_generator.": "sampler.intervals.",
    "lut.backbone.": "luts.backbone.",
    "lut.lut3d_generator.weights_generator.": "luts.head.",
    "lut.lut3d_generator.basis_luts_bank.weight": "luts.basis",
    "fusion.conv1.": "modulation.context_conv.",
    "fusion.attn.q.": "modulation.query.0.",
    "fusion.attn.q_dwconv.": "modulation.query.1.",
    "fusion.conv2.weight": "modulation.weights.conv",
    "fusion.conv2.bias": "modulation.weights.conv_bias",
    "fusion.norm1.body.weight": "modulation.weights.norm1",
    "fusion.norm1.body.bias": "modulation.weights.norm1_bias",
    "fusion.attn.kv.weight": "modulation.weights.key_value",
    "fusion.attn.kv_dwconv.weight": "modulation.weights.key_value_depthwise",
    "fusion.attn.temperature": "modulation.weights.temperature",
    "fusion.attn.project_out.weight": "modulation.weights.project",
    "fusion.norm2.body.weight": "modulation.weights.norm2",
    "fusion.norm2.body.bias": "modulation.weights.norm2_bias",
    "fusion.ffn.project_in.weight": "modulation.weights.expand",
    "fusion.ffn.dwconv.weight": "modulation.weights.expand_depthwise",
    "fusion.ffn.project_out.weight": "modulation.weights.contract",
    "map.weight": "modulation.weights.out",
    "map.bias": "modulation.weights.out_bias",
}
