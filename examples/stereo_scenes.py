"""Rectified stereo pairs rendered from photographs, with the exact disparity of every pixel of the left view.

A scene is made of slanted planes: a wall, sometimes a floor and a side wall, and objects cut out of planes, thin ones
and ones with holes among them. A plane is ``disparity = a x + b y + c`` over the pixels of the left view, so a point of
it at ``x`` there is at ``(1 - a) x - b y - c`` in the right view, and back: both views are drawn from one geometry, the
nearest plane in front.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from exposure import HELD_OUT, TRAINING, photographs
from torch import Tensor

TEXTURES = {**TRAINING, "skimage": [*TRAINING["skimage"], "gravel.png", "coins.png"]}  # to train on
LEVELS = 3  # of each photograph: whole, half and a quarter as large
SAMPLES = 2  # a pixel is the mean of that many samples squared

Shape = Callable[[Tensor, Tensor], Tensor]
"""Whether points are inside, by their coordinates in the frame of the object, about -1..1."""


class Scene(NamedTuple):
    """A pair, and what is true of it."""

    left: Tensor
    """``[3, H, W]``, uint8."""
    right: Tensor
    disparity: Tensor
    """``[H, W]``, float32: the left pixel at ``x`` shows what the right view has at ``x - disparity``."""
    occluded: Tensor
    """``[H, W]``, bool: the right view does not show it, as something is in front or it lies beyond the border."""


@dataclass
class Plane:
    """A textured plane, or what a shape cuts out of it."""

    a: float
    b: float
    c: float
    texture: Tensor
    """``[3, h, w]`` in [0, 1]."""
    contrast: float
    brightness: Tensor
    """``[3, 1]``, added to the texture's values times its contrast."""
    to_texture: tuple[float, float, float, float, float, float]
    """From x and y to -1..1 in the texture, which goes on mirrored."""
    light: tuple[float, float, float]
    """Of the surface, a plane again."""
    shape: Shape | None = None
    to_shape: tuple[float, float, float, float, float, float] = (0, 0, 0, 0, 0, 0)

    def disparity(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a * x + (self.b * y + self.c)

    def from_right(self, x: Tensor, y: Tensor) -> Tensor:
        """Where in the left view the point is that the right view shows at ``x``."""
        return (x + (self.b * y + self.c)) / (1 - self.a)

    def covers(self, x: Tensor, y: Tensor) -> Tensor | None:
        return None if self.shape is None else self.shape(*_affine(self.to_shape, x, y))

    def colours(self, x: Tensor, y: Tensor) -> Tensor:
        """``[3, N]`` at points ``[N]``."""
        grid = torch.stack(_affine(self.to_texture, x, y), -1)[None, None]
        found = F.grid_sample(self.texture[None], grid, padding_mode="reflection", align_corners=False)
        u, v, w = self.light
        return found[0, :, 0].mul_(self.contrast).add_(self.brightness).clamp_(0, 1).mul_(u * x + v * y + w)


class Scenes:
    """Endless scenes of a few photographs; the same ones for the same seed."""

    def __init__(self, photos: dict[str, Tensor], seed: int = 0) -> None:
        self.textures = [_pyramid(photo) for photo in photos.values()]
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def scene(self, height: int, width: int, max_disparity: float) -> Scene:
        """A scene whose disparities are above 0 and at most ``max_disparity``."""
        planes = self._planes(height, width, max_disparity)
        x = torch.arange(width, dtype=torch.float32)[None]
        y = torch.arange(height, dtype=torch.float32)[:, None]
        disparity, _ = _nearest(planes, x, y, right=False)
        there = x - disparity
        in_front, _ = _nearest(planes, there, y, right=True)
        occluded = (there < 0) | (in_front > disparity + 1e-2)
        left, right = (self._view(planes, height, width, right) for right in (False, True))
        return Scene(*self._photographed(left, right), disparity, occluded)

    def batch(self, count: int, height: int, width: int, max_disparity: float) -> Scene:
        """Scenes of one size, each tensor with ``count`` in front."""
        scenes = [self.scene(height, width, max_disparity) for _ in range(count)]
        return Scene(*(torch.stack(parts) for parts in zip(*scenes, strict=True)))

    # ---- what is there -----------------------------------------------------------------------------------------------

    def _planes(self, height: int, width: int, most: float) -> list[Plane]:
        rng = self.rng
        planes = [self._wall(height, width, rng.uniform(0.02, 0.4) * most)]
        if rng.random() < 0.5:  # a floor, from the wall to the viewer
            horizon, nearest = rng.uniform(0, 0.7) * height, rng.uniform(0.3, 0.9) * most
            slope = nearest / (height - horizon)
            planes.append(self._textured(0, slope, -slope * horizon, plain=0.1))
        if rng.random() < 0.25:  # a wall on one side
            reach, slope = rng.uniform(0.1, 0.5) * width, rng.choice((-1, 1)) * rng.uniform(0.1, 0.4)
            slope = math.copysign(min(abs(slope), 0.9 * most / reach), slope)
            planes.append(
                self._textured(slope, 0, slope * (reach - width if slope > 0 else -reach), plain=0.1)
            )
        for _ in range(rng.randint(2, 7)):
            planes.append(self._object(height, width, most))
        return planes

    def _wall(self, height: int, width: int, at: float) -> Plane:
        across = self.rng.uniform(-0.9, 0.9) * at / width
        down = self.rng.uniform(-0.9, 0.9) * at / height
        return self._textured(across, down, at - across * width / 2 - down * height / 2, plain=0.1)

    def _object(self, height: int, width: int, most: float) -> Plane:
        rng = self.rng
        at = most * (0.1 + 0.85 * rng.random() ** 1.3)
        side = min(height, width) * math.exp(rng.uniform(math.log(0.1), math.log(0.6)))
        kind = rng.random()
        if kind < 0.25:  # thin
            sizes = side * rng.uniform(1, 2.5), rng.uniform(0.8, 4)
        else:
            sizes = side, side * math.exp(rng.uniform(-0.7, 0.7))
        reach = math.hypot(*sizes)
        tilt = min(rng.uniform(0, 0.35), 0.95 * (most - at) / reach, 0.9 * at / reach)
        direction, turn = (rng.uniform(0, 2 * math.pi) for _ in range(2))
        turn = turn if rng.random() < 0.6 else rng.choice((0, 0.5)) * math.pi
        a, b = tilt * math.cos(direction), tilt * math.sin(direction)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        plane = self._textured(a, b, at - a * x - b * y)
        plane.shape = _box if kind < 0.25 else self._shape()
        cos, sin = math.cos(turn), math.sin(turn)
        plane.to_shape = _centred(cos / sizes[0], sin / sizes[0], -sin / sizes[1], cos / sizes[1], x, y)
        return plane

    def _shape(self) -> Shape:
        rng = self.rng
        kind = rng.randrange(5)
        if kind == 0:
            return _box
        if kind == 1:
            return lambda p, q: p * p + q * q < 1
        if kind == 2:  # a ring
            hole = rng.uniform(0.2, 0.8)
            return lambda p, q: (p * p + q * q - (1 + hole) / 2).abs() < (1 - hole) / 2
        if kind == 3:  # slats
            count, share = rng.randint(2, 5), rng.uniform(0.3, 0.7)
            return lambda p, q: _box(p, q) & ((p * count).frac().abs() < share)
        sides, start = rng.randint(3, 6), rng.uniform(0, 2 * math.pi)
        edges = [
            (math.cos(t), math.sin(t), rng.uniform(0.4, 0.9))
            for t in (start + 2 * math.pi * (i + rng.uniform(-0.2, 0.2)) / sides for i in range(sides))
        ]

        def polygon(p: Tensor, q: Tensor) -> Tensor:
            inside = p * p + q * q < 2
            for u, v, r in edges:
                inside &= u * p + v * q < r
            return inside

        return polygon

    def _textured(self, a: float, b: float, c: float, plain: float = 0.25) -> Plane:
        """With a part of a photograph at a scale of its own, turned and mirrored, in other colours; some are plain."""
        rng = self.rng
        texture, mean = rng.choice(rng.choice(self.textures))
        if rng.random() < plain:  # nearly, of any colour
            contrast = math.exp(rng.uniform(-3, -1))
            goal = torch.tensor([rng.uniform(0.1, 0.9) for _ in range(3)])
        else:
            contrast = rng.uniform(0.5, 1.2) * rng.choice((1, 1, 1, -1))
            cast = torch.tensor([rng.uniform(0.75, 1.3) for _ in range(3)])
            goal = mean * cast * math.exp(rng.uniform(-0.5, 0.4))
        brightness = (goal - contrast * mean)[:, None]
        # Texels in a pixel: more would alias, far fewer blur.
        across = 2 * rng.uniform(0.4, 1.2) / texture.shape[2] * rng.choice((-1, 1))
        down = abs(across) * texture.shape[2] / texture.shape[1] * math.exp(rng.uniform(-0.3, 0.3))
        turn = rng.uniform(-math.pi, math.pi) if rng.random() < 0.5 else rng.gauss(0, 0.1)
        cos, sin = math.cos(turn), math.sin(turn)
        place = rng.uniform(-1, 1), rng.uniform(-1, 1)
        to_texture = across * cos, across * sin, place[0], -down * sin, down * cos, place[1]
        light = rng.gauss(0, 7e-4), rng.gauss(0, 7e-4), rng.uniform(0.85, 1.1)
        return Plane(a, b, c, texture, contrast, brightness, to_texture, light)

    # ---- what is seen ------------------------------------------------------------------------------------------------

    def _view(self, planes: list[Plane], height: int, width: int, right: bool) -> Tensor:
        """``[3, H, W]``, light in [0, 1]."""
        steps = [((torch.arange(n * SAMPLES) + 0.5) / SAMPLES - 0.5) for n in (height, width)]
        y, x = steps[0][:, None], steps[1][None]
        _, nearest = _nearest(planes, x, y, right)
        x, y = (t.expand(nearest.shape).reshape(-1) for t in (x, y))
        canvas, nearest = torch.empty(3, nearest.numel()), nearest.view(-1)
        for index, plane in enumerate(planes):
            which = (nearest == index).nonzero()[:, 0]
            if len(which):
                xs, ys = x[which], y[which]
                canvas.index_copy_(1, which, plane.colours(plane.from_right(xs, ys) if right else xs, ys))
        samples = canvas.view(3, height * SAMPLES, width * SAMPLES)
        return F.avg_pool2d(samples, SAMPLES).clamp_(0, 1)

    def _photographed(self, *views: Tensor) -> list[Tensor]:
        """In 8 bits, by two cameras that are nearly alike."""
        rng, taken = self.rng, []
        noise, same = rng.uniform(0, 0.012), rng.random() < 0.3
        for view in views:
            if not same:
                gains = [math.exp(rng.gauss(0, 0.05)) * math.exp(rng.gauss(0, 0.015)) for _ in range(3)]
                view = (
                    view.clamp_min(1e-3) ** math.exp(rng.gauss(0, 0.05)) * torch.tensor(gains)[:, None, None]
                )
                view = _blurred(view, max(rng.uniform(-0.5, 0.8), 0))
            view = view + noise * torch.randn(view.shape, generator=self.generator)
            taken.append((view * 255).round_().clamp_(0, 255).to(torch.uint8))
        return taken


def scene(
    seed: int, height: int, width: int, max_disparity: float, photos: dict[str, Tensor] | None = None
) -> Scene:
    """One scene, of the photographs to train on unless others are given."""
    return Scenes(photographs(TEXTURES) if photos is None else photos, seed).scene(
        height, width, max_disparity
    )


def held_out() -> dict[str, Tensor]:
    """Photographs of which no part is seen in training."""
    return photographs(HELD_OUT)


def _nearest(planes: list[Plane], x: Tensor, y: Tensor, right: bool) -> tuple[Tensor, Tensor]:
    """The disparity of what is seen at points of a view, and which plane it is."""
    shape = torch.broadcast_shapes(x.shape, y.shape)
    best, which = torch.full(shape, -math.inf), torch.zeros(shape, dtype=torch.uint8)
    for index, plane in enumerate(planes):
        place = plane.from_right(x, y) if right else x
        disparity = plane.disparity(place, y)
        inside = disparity > best
        covered = plane.covers(place, y)
        inside = inside if covered is None else inside & covered
        best = torch.where(inside, disparity, best)
        which.masked_fill_(inside, index)
    return best, which


def _affine(by: tuple[float, ...], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return by[0] * x + (by[1] * y + by[2]), by[3] * x + (by[4] * y + by[5])


def _centred(
    xx: float, xy: float, yx: float, yy: float, x: float, y: float
) -> tuple[float, float, float, float, float, float]:
    """An affine map that takes ``(x, y)`` to 0."""
    return xx, xy, -xx * x - xy * y, yx, yy, -yx * x - yy * y


def _box(p: Tensor, q: Tensor) -> Tensor:
    return (p.abs() < 1) & (q.abs() < 1)


def _pyramid(photo: Tensor) -> list[tuple[Tensor, Tensor]]:
    """A photograph at several sizes, each with its mean colour."""
    levels = [photo]
    while len(levels) < LEVELS:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return [(level, level.mean((1, 2))) for level in levels]


def _blurred(image: Tensor, sigma: float) -> Tensor:
    if sigma < 0.2:
        return image
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma) ** 2)
    taps = taps / taps.sum()
    rows = F.pad(image[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(rows, taps.view(1, 1, 1, 5)), taps.view(1, 1, 5, 1))[:, 0]
