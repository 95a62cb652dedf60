"""Farthest point sampling: a subset of a point cloud that covers it evenly."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from ._validate import _require_device, _require_float, _require_int

_MOST_DIMS = 64


def farthest_point_sample(
    points: Tensor, m: int, *, lengths: Tensor | None = None, start: int | Tensor = 0
) -> Tensor:
    """Samples points one after the other, each as far as possible from those that are samples already.

    Convention:
        The first sample is ``start``. Every further one is the point whose distance to the nearest sample is greatest,
        of equal ones that of the lowest index. Squared distances are sums of squared differences, axis after axis,
        rounded after every operation, so that every backend finds the same indices. No point is a sample twice, also
        where others lie at the same place. A point with a NaN coordinate is never a sample. Two points at the same
        infinity have no distance: neither lowers that of the other. Where all points that can be samples are samples,
        the remaining entries are -1. If ``start`` cannot be a sample, because of a NaN or of ``lengths``, the point
        of the lowest index that can takes its place.

    Args:
        points: ``[B, N, D]``, D from 1 to 64; float32, float16, bfloat16 or float64 (CPU); any strides.
        m: how many samples of each cloud.
        lengths: ``[B]`` int64, how many points each cloud has, from 0 to N; those beyond are never read. None: all N.
        start: index of the first sample, of all clouds or ``[B]`` int64 of each.

    Returns:
        ``[B, m]`` int64, the indices in the order in which they became samples. Not differentiable.

    Raises:
        TypeError: an argument is no tensor or no int, or has an unsupported dtype.
        ValueError: a shape, size or device is wrong; a length or a start is outside of its range, which on a GPU, and
            inside compiled functions, is not looked at: there lengths are clamped.

    Example:
        >>> import torch, pyops
        >>> line = torch.tensor([0.0, 1, 2, 3, 10]).view(1, 5, 1)
        >>> pyops.farthest_point_sample(line, 4)
        tensor([[0, 4, 3, 1]])
        >>> pyops.farthest_point_sample(line, 4, lengths=torch.tensor([3]), start=1)
        tensor([[ 1,  0,  2, -1]])

    Cost:
        At most ``m * N`` distances a cloud. In up to 8 dimensions the CPU groups points in leaves of a k-d tree and
        computes distances only in those that a sample can concern: about ``log(N)`` of them. CUDA runs one block a
        cloud, with points and distances in registers where they fit.

    Source:
        Gonzalez, Clustering to minimize the maximum intercluster distance, Theoretical Computer Science 1985; Eldar et
        al., The farthest point strategy for progressive image sampling, IEEE Transactions on Image Processing 1997; as
        used in Qi et al., PointNet++, NeurIPS 2017, section 3.2.
    """
    _require_float("points", points)
    if points.dim() != 3 or not 1 <= points.shape[2] <= _MOST_DIMS:
        raise ValueError(
            f"points must be [B, N, D] with D from 1 to {_MOST_DIMS}, got shape {list(points.shape)}"
        )
    if points.dtype == torch.float64 and points.device.type == "cuda":
        raise TypeError(f"points must be float32, float16 or bfloat16 on {points.device}, got torch.float64")
    _require_int("m", m)
    if m < 0:
        raise ValueError(f"m must be at least 0, got {m}")
    count = points.shape[1]
    if lengths is not None:
        _require_of_clouds("lengths", lengths, points)
        if _op.values_visible(lengths) and bool(((lengths < 0) | (lengths > count)).any()):
            raise ValueError(f"lengths must be from 0 to N={count}, got {lengths.tolist()}")
    if isinstance(start, Tensor):
        _require_of_clouds("start", start, points)
        if _op.values_visible(start) and count > 0 and bool(((start < 0) | (start >= count)).any()):
            raise ValueError(f"start must be from 0 to N - 1 = {count - 1}, got {start.tolist()}")
    else:
        _require_int("start", start)
        if start < 0 or (start > 0 and start >= count):
            raise ValueError(f"start must be from 0 to N - 1 = {count - 1}, got {start}")
        # Nothing to read where it is the first point.
        start = None if start == 0 else torch.full((points.shape[0],), start, device=points.device)  # type: ignore[assignment]
    return torch.ops.pyops.farthest_point_sample(points.detach(), m, lengths, start)


def _require_of_clouds(name: str, t: Tensor, points: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(t).__name__}")
    if t.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {t.dtype}")
    if tuple(t.shape) != (points.shape[0],):
        raise ValueError(f"{name} must be [B={points.shape[0]}] like points, got shape {list(t.shape)}")
    _require_device(name, t, points, "points")


# ---- what PyTorch needs to know of the operator ----------------------------------------------------------------------


def _fake(points, m, lengths, start):
    return points.new_empty((points.shape[0], m), dtype=torch.int64)


_op.declare("farthest_point_sample", stem="fps", fake=_fake, batched=True)
