"""From places on a sphere-like map of features to directions of gaze, and back: ten numbers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

# Radians, by the square of a logarithm of a scale: next to nothing for a sphere, more than what noisy features gain by
# a center so far off that they lie on a plane, where a sphere is what they are to be trained towards.
_FLATNESS = 0.003


class Sphere(NamedTuple):
    center: Tensor  # [3]
    radius: Tensor  # []


class SphereAlignment(nn.Module):
    """Lays the sphere that embedded features lie near over the sphere of gaze directions.

    An embedded feature e is moved and turned, ``e' = R (e - c) / |e - c|``, and its angles are scaled: yaw
    ``k1 atan2(e'_x, e'_z) + b1``, pitch ``k2 arcsin(e'_y) + b2``. Center c, rotation R, k1, b1, k2 and b2 are all that
    is learnt.

    Convention:
        Gaze is a unit vector ``(cos(pitch) sin(yaw), sin(pitch), cos(pitch) cos(yaw))``; angles are in radians. A map
        that shows the sphere from inside has a negative k1.

    Example:
        >>> import torch
        >>> from pyops.models import SphereAlignment, directions
        >>> gaze = directions(torch.linspace(-1, 1, 20), torch.linspace(0.5, -0.4, 20) ** 2)
        >>> alignment = SphereAlignment().fit(3 * gaze + 1, gaze)
        >>> torch.allclose(alignment(3 * gaze + 1), gaze, atol=1e-3)
        True

    Source: equations 3 to 5 of Bao and Lu, From Feature to Gaze: A Generalizable Replacement of Linear Layer, CVPR
    2024. The equation asks for the arcsine of a coordinate; this is one of a unit vector here.
    """

    radius: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.zeros(3))
        self.turn = nn.Parameter(torch.zeros(3))  # rotation vector of R
        self.scale = nn.Parameter(torch.ones(2))  # k1, k2
        self.offset = nn.Parameter(torch.zeros(2))  # b1, b2
        self.register_buffer("radius", torch.ones(()))

    @property
    def rotation(self) -> Tensor:
        """R ``[3, 3]``."""
        return torch.linalg.matrix_exp(_cross(self.turn))

    def forward(self, embedding: Tensor) -> Tensor:
        """Gaze ``[..., 3]`` of embedded features ``[..., 3]``."""
        yaw, pitch = angles((embedding - self.center) @ self.rotation.mT)
        return directions(self.scale[0] * yaw + self.offset[0], self.scale[1] * pitch + self.offset[1])

    def inverse(self, gaze: Tensor) -> Tensor:
        """Where on the fitted sphere features of this gaze would ideally be embedded, ``[..., 3]``."""
        yaw, pitch = angles(gaze)
        unit = directions((yaw - self.offset[0]) / self.scale[0], (pitch - self.offset[1]) / self.scale[1])
        return self.radius * unit @ self.rotation + self.center

    def fit(self, embedding: Tensor, gaze: Tensor, steps: int = 200) -> SphereAlignment:
        """Finds the ten numbers that make the mean angle between prediction and ``gaze [N, 3]`` least, with scales that
        stay near 1 or -1 where that costs nearly nothing.

        The sphere comes from linear least squares, the rotation from the orthogonal problem of Procrustes (for both
        sides from which a sphere can be seen); L-BFGS takes a tenth of the steps from both and goes on from the better.

        Raises:
            ValueError: shapes differ, or are not ``[N, 3]`` with N of at least 4; a number is not finite; a gaze has no
                direction, or all features are embedded in one place.
        """
        if embedding.shape != gaze.shape or gaze.dim() != 2 or gaze.shape[1] != 3 or len(gaze) < 4:
            raise ValueError(
                "embedding and gaze must be [N, 3] of one shape, N at least 4, "
                f"got {list(embedding.shape)} and {list(gaze.shape)}"
            )
        require_directions("gaze", gaze)
        if not bool(embedding.isfinite().all()):
            raise ValueError("embedding must be finite, and is not")
        if bool((embedding == embedding[0]).all()):
            raise ValueError("embedding must have different places, got one")
        e, y = embedding.detach().double(), nn.functional.normalize(gaze.detach().double(), dim=1)
        sphere = fit_sphere(e)
        few = max(1, steps // 10)
        found = [_refined(e, y, _start(e, y, sphere, side), few) for side in (1.0, -1.0)]
        error, numbers = min(found, key=lambda pair: pair[0])
        if steps > few:
            _, numbers = min((error, numbers), _refined(e, y, numbers, steps - few), key=lambda pair: pair[0])
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), numbers.split([3, 3, 2, 2]), strict=True):
                parameter.copy_(value)
            self.radius.copy_((e - numbers[:3]).norm(dim=1).mean())
        return self


def fit_sphere(points: Tensor) -> Sphere:
    """The sphere through points ``[N, 3]``, by linear least squares."""
    ones = torch.ones_like(points[:, :1])
    middle = points.mean(0)
    centered = points - middle
    # On a sphere |p|^2 = 2 p.c + (r^2 - |c|^2), linear in c and the bracket.
    right = centered.square().sum(1, keepdim=True)
    solution = (torch.linalg.pinv(torch.cat([2 * centered, ones], 1)) @ right)[:, 0]
    center = solution[:3]
    return Sphere(center + middle, (solution[3] + center.square().sum()).clamp_min(0).sqrt())


def sphere_error(points: Tensor, sphere: Sphere | None = None) -> Tensor:
    """How far points ``[N, 3]`` are from a sphere, on average, in radii; from the one fitted to them if None."""
    sphere = fit_sphere(points) if sphere is None else sphere
    return (((points - sphere.center).norm(dim=1) - sphere.radius).abs() / sphere.radius).mean()


def angular_error(gaze: Tensor, other: Tensor) -> Tensor:
    """Angles ``[...]`` between directions ``[..., 3]``, in radians; right for the smallest, with gradients."""
    return 2 * torch.atan2((gaze - other).norm(dim=-1), (gaze + other).norm(dim=-1))


def angles(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Yaw and pitch ``[...]`` of vectors ``[..., 3]`` of any length, in radians."""
    x, y, z = directions.unbind(-1)
    return torch.atan2(x, z), torch.atan2(y, torch.hypot(x, z))


def directions(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Unit vectors ``[..., 3]`` of angles ``[...]`` in radians."""
    return torch.stack([pitch.cos() * yaw.sin(), pitch.sin(), pitch.cos() * yaw.cos()], -1)


def require_directions(name: str, vectors: Tensor) -> None:
    """Raises a ValueError unless vectors ``[N, 3]`` have directions."""
    wrong = ~vectors.isfinite().all(1) | (vectors == 0).all(1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name} must be directions, got {vectors[row].tolist()} in row {row}")


def _cross(v: Tensor) -> Tensor:
    x, y, z = v.unbind()
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)


def _start(e: Tensor, y: Tensor, sphere: Sphere, side: float) -> Tensor:
    """The ten numbers from which to go on: the sphere, and the rotation onto gaze mirrored by `side` in x."""
    mirror = y.new_tensor([side, 1.0, 1.0])
    unit = nn.functional.normalize(e - sphere.center, dim=1)
    u, _, v = torch.linalg.svd((y * mirror).mT @ unit)
    proper = torch.diag(torch.stack([y.new_ones(()), y.new_ones(()), torch.det(u @ v)]))
    turn = _rotation_vector(u @ proper @ v)
    return torch.cat([sphere.center, turn, y.new_tensor([side, 1.0, 0.0, 0.0])])


def _rotation_vector(rotation: Tensor) -> Tensor:
    """The vector v with exp(cross(v)) = `rotation`."""
    # The quaternion is the eigenvector of the greatest eigenvalue of this matrix, also for half a turn.
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    k = rotation.new_tensor(
        [
            [a - e - i, d + b, g + c, h - f],
            [d + b, e - a - i, h + f, c - g],
            [g + c, h + f, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    q = torch.linalg.eigh(k).eigenvectors[:, -1]
    q = torch.where(q[3] < 0, -q, q)
    sine = q[:3].norm()
    return q[:3] * (2 * torch.atan2(sine, q[3]) / sine.clamp_min(torch.finfo(q.dtype).tiny))


def _refined(e: Tensor, y: Tensor, start: Tensor, steps: int) -> tuple[float, Tensor]:
    numbers = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([numbers], max_iter=steps, line_search_fn="strong_wolfe")
    coordinates = e.mT.contiguous()

    def error() -> Tensor:
        center, turn, scale, offset = numbers.split([3, 3, 2, 2])
        yaw, pitch = angles(_turned(coordinates - center[:, None], turn).mT)
        predicted = directions(scale[0] * yaw + offset[0], scale[1] * pitch + offset[1])
        return angular_error(predicted, y).mean() + _FLATNESS * scale.abs().log().square().sum()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = error()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return float(error()), numbers.detach()


def _turned(p: Tensor, turn: Tensor) -> Tensor:
    """Points ``[3, N]`` turned by a rotation vector, after Rodrigues.

    For a few hundred points a product of matrices, and an exponential of one, wait longer for threads than they work.
    """
    angle = (turn.square().sum() + 1e-30).sqrt()  # of which a derivative exists at 0
    half = (angle / 2).sin() / angle
    across = _crossed(turn, p)
    return p + angle.sin() / angle * across + 2 * half.square() * _crossed(turn, across)


def _crossed(v: Tensor, p: Tensor) -> Tensor:
    (x, y, z), (a, b, c) = v.unbind(), p.unbind()
    return torch.stack([y * c - z * b, z * a - x * c, x * b - y * a])
