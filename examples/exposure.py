"""Well-exposed photographs, and what a camera would have made of the same scenes with another exposure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

GAMMA = 2.2  # of the photographs

# Photographs inside installed packages, all free to use; no part of those held out is seen in training.
TRAINING = {
    "skimage": ["astronaut.png", "chelsea.png", "rocket.jpg", "camera.png", "brick.png", "grass.png"],
    "sklearn": ["china.jpg"],
    "matplotlib": ["grace_hopper.jpg"],
}
HELD_OUT = {
    "skimage": ["coffee.png", "motorcycle_left.png"],
    "sklearn": ["flower.jpg"],
}
_FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}


def photographs(packaged: dict[str, list[str]], others: Iterable[Path] = ()) -> dict[str, Tensor]:
    """``[3, H, W]`` in [0, 1] by name: those of installed packages, then other files or folders of files."""
    paths = []
    for package, names in packaged.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package}, whose photographs are wanted, is not installed")
        paths += [Path(spec.origin).parent / _FOLDERS[package] / name for name in names]
    for path in others:
        paths += sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found = {}
    for path in paths:
        with Image.open(path) as image:
            pixels = np.array(image.convert("RGB"))
        found[path.name] = torch.from_numpy(pixels).movedim(-1, 0).contiguous().float() / 255
    return found


@dataclass
class Camera:
    """A response curve, from light to pixel values: a power, with the dark and the bright end lifted or lowered."""

    gamma: float = GAMMA
    toe: float = 0.0
    shoulder: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> Camera:
        return cls(rng.uniform(1.8, 2.6), rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5))

    def __call__(self, light: Tensor) -> Tensor:
        u = light.clamp(0, 1) ** (1 / self.gamma)
        return u + self.toe * u * (1 - u) ** 3 + self.shoulder * u**3 * (1 - u)


def expose(
    photo: Tensor, ev: float, camera: Camera, *, noise: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """The scene of ``photo`` with ``2**ev`` times the light, in 8 bits; ``noise`` at full light, shot noise."""
    light = photo**GAMMA * 2**ev
    if noise:
        light = light + noise * light.sqrt() * torch.randn(light.shape, generator=generator)
    return (camera(light) * 255).round() / 255


class Scenes:
    """Endless pairs of an exposure and the photograph, from few photographs.

    Each is a part of a photograph at a scale of its own, turned and mirrored, with its channels permuted, a cast and
    another saturation; some are collages of two, so that a scene tells nothing about the light it should have.
    """

    def __init__(self, photos: dict[str, Tensor], seed: int = 0) -> None:
        self.photos = list(photos.values())
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """``count`` exposures and photographs, each ``[count, 3, size, size]``."""
        pairs = [self.pair(size) for _ in range(count)]
        exposures, photos = zip(*pairs, strict=True)
        return torch.stack(exposures), torch.stack(photos)

    def pair(self, size: int) -> tuple[Tensor, Tensor]:
        photo, rng = self.photo(size), self.rng
        kind = rng.random()
        # Most need no correction: a dark scene looks like an underexposed one, and in doubt it is to stay as it is.
        if kind < 0.35:
            return expose(photo, 0, Camera(), noise=rng.uniform(0, 0.01), generator=self.generator), photo
        ev = 0.0 if kind < 0.7 else rng.choice((-1, 1)) * rng.uniform(0.5, 2.2)
        return expose(
            photo, ev, Camera.drawn(rng), noise=rng.uniform(0, 0.02), generator=self.generator
        ), photo

    def photo(self, size: int) -> Tensor:
        part, rng = self._part(size), self.rng
        if rng.random() < 0.25:
            border, other = int(size * rng.uniform(0.25, 0.75)), self._part(size)
            part = torch.cat([part[..., :border], other[..., border:]], -1)
            part = part if rng.random() < 0.5 else part.mT
        if rng.random() < 0.5:
            part = part[rng.sample(range(3), 3)]
        grey = part.mean(0)
        light = (grey + (part - grey) * rng.uniform(0.5, 1.2)).clamp(0, 1) ** GAMMA
        cast = torch.tensor([math.exp(rng.uniform(-0.2, 0.2)) for _ in range(3)])
        return _well_exposed(light * cast[:, None, None])

    def _part(self, size: int) -> Tensor:
        rng = self.rng
        photo = rng.choice(self.photos)
        height, width = photo.shape[1:]
        side, aspect = min(height, width) * rng.uniform(0.5, 1), math.exp(rng.uniform(-0.4, 0.4))
        h, w = min(height, int(side * aspect)), min(width, int(side / aspect))
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        part = photo[:, top : top + h, left : left + w]
        # Half of them of single pixels, as the small copies of a large photograph are.
        part = F.interpolate(part[None], (size, size), mode="bilinear", antialias=rng.random() < 0.5)[0]
        part = part.flip(-1) if rng.random() < 0.5 else part
        return torch.rot90(part, rng.choice([0, 0, 1, 2, 3]), (1, 2))


def _well_exposed(light: Tensor) -> Tensor:
    """As a photograph whose bright parts are bright, and whose mean is neither that of a dark nor of a pale one."""
    bright = light.flatten().kthvalue(int(0.995 * light.numel())).values.item()
    photo = (light * (min(max(bright, 0.55), 1) / max(bright, 1e-4))).clamp(0, 1) ** (1 / GAMMA)
    mean = photo.mean().clamp(0.01, 0.99).item()
    return photo ** (math.log(min(max(mean, 0.24), 0.6)) / math.log(mean))
