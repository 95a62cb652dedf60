"""All-pairs correlation of images: the volume with its pyramid, or only what is looked up in it."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._corr2d_lookup import _validate_coords, corr2d_lookup
from ._pooling import Pooling, arithmetic, scale_of
from ._validate import _require_device, _require_float, _require_int

__all__ = ["corr2d_lookup", "corr2d_lookup_on_demand", "corr2d_pyramid"]

_MOST_LEVELS = 16


def corr2d_pyramid(
    first: Tensor, second: Tensor, levels: int = 4, *, scale: float | None = None
) -> list[Tensor]:
    """Correlates every pixel with every pixel of another image, and averages the result in squares.

    Convention:
        Level 0 is ``out[b, h, w, u, v] = scale * sum of first[b, c, h, w] * second[b, c, u, v] over c``. Level l is
        level l - 1 averaged in squares of 2 x 2 of its last two axes; an odd last row or column is dropped.

    Args:
        first: ``[B, C, H, W]``, features of the image to match; float32, float16, bfloat16 or float64 (CPU); any
            strides.
        second: ``[B, C, U, V]``, features of the other image; dtype and device of ``first``.
        levels: from 1 to 16, and no more than leave the last one an entry.
        scale: a number; None for ``1 / sqrt(C)``.

    Returns:
        A list of ``[B, H, W, U // 2**l, V // 2**l]``, contiguous; dtype of the inputs. Sums are float32, or float64 for
        float64. Differentiable (any number of times) with respect to both images.

    Raises:
        TypeError: an image is no tensor or has an unsupported dtype, the dtypes differ, or levels is no integer.
        ValueError: a shape, a size, a device or the number of levels is wrong.

    Example:
        >>> import torch, pyops
        >>> first, second = torch.rand(2, 1, 32, 24, 40).unbind()
        >>> [list(level.shape) for level in pyops.corr2d_pyramid(first, second, levels=3)]
        [[1, 24, 40, 24, 40], [1, 24, 40, 12, 20], [1, 24, 40, 6, 10]]

    Cost:
        ``C * U * V`` multiply-adds a pixel, by the matrix product of torch; ``4 / 3 * U * V`` numbers written. The
        gradient is two such products, after one pass over the gradients of all levels. float16 and bfloat16 on the CPU
        are computed through a float32 volume.

    Source:
        Teed and Deng, RAFT, ECCV 2020, section 3.2.
    """
    _validate(first, second, levels)
    return torch.ops.pyops.corr2d_pyramid(first, second, levels, scale)


def corr2d_lookup_on_demand(
    first: Tensor, second: Tensor, coords: Tensor, radius: int, levels: int = 4, *, scale: float | None = None
) -> Tensor:
    """What :func:`pyops.corr2d_lookup` reads from the pyramid of two images, without the pyramid.

    Only the correlations that are looked up are computed, again in the backward: memory is that of the features and of
    the result, however large the image. With few lookups of a large image it is faster too.

    Args:
        first: ``[B, C, H, W]``, features of the image to match; float32, float16, bfloat16 or float64 (CPU); any
            strides.
        second: ``[B, C, U, V]``, features of the other image; dtype and device of ``first``.
        coords: ``[B, 2, H, W]``, x and y of places in ``second`` in pixels, 0 being the first; a float dtype. Far
            outside all is 0, and NaN gives NaN.
        radius: from 0 to 1024.
        levels: from 1 to 16, and no more than leave the last one an entry.
        scale: a number; None for ``1 / sqrt(C)``.

    Returns:
        ``[B, levels * (2 * radius + 1)**2, H, W]``, contiguous; dtype of the inputs; see :func:`pyops.corr2d_lookup`.
        Differentiable (twice) with respect to both images and coords; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor of a supported dtype, the dtypes of the images differ, or a number is no
            int.
        ValueError: a shape, a size, a device, the radius or the number of levels is wrong.

    Example:
        >>> import torch, pyops
        >>> first, second = torch.rand(2, 1, 32, 24, 40).unbind()
        >>> coords = torch.rand(1, 2, 24, 40) * 24
        >>> found = pyops.corr2d_lookup_on_demand(first, second, coords, 4)
        >>> torch.allclose(found, pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second), coords, 4), atol=1e-4)
        True

    Cost:
        ``C * levels * (2 * radius + 2)**2`` multiply-adds a pixel; the gradients twice as many, and once more for
        coords. Memory besides the result: the averaged second image and, in the backward, as much again and on CUDA
        a little more than the result.

    Source:
        Teed and Deng, RAFT, ECCV 2020, section 3.2.
    """
    _validate(first, second, levels)
    _validate_coords(coords, first, "first", (first.shape[0], *first.shape[2:]), radius)
    return torch.ops.pyops.corr2d_lookup_on_demand(first, second, coords, radius, levels, scale)


def _validate(first: Tensor, second: Tensor, levels: int) -> None:
    _require_float("first", first)
    _require_float("second", second)
    for name, t in (("first", first), ("second", second)):
        if t.dim() != 4 or 0 in t.shape[1:]:
            raise ValueError(
                f"{name} must be [B, C, H, W] with C, H and W above 0, got shape {list(t.shape)}"
            )
    if second.shape[:2] != first.shape[:2]:
        raise ValueError(
            f"second must have B and C of first, {list(first.shape[:2])}, got shape {list(second.shape)}"
        )
    if second.dtype != first.dtype:
        raise TypeError(f"second must have the dtype of first, {first.dtype}, got {second.dtype}")
    _require_device("second", second, first, "first")
    _require_int("levels", levels)
    if not 1 <= levels <= _MOST_LEVELS or any(size >> (levels - 1) == 0 for size in second.shape[2:]):
        raise ValueError(
            f"levels must be from 1 to {_MOST_LEVELS}, and second large enough for that many halvings; "
            f"got {levels} for {second.shape[2]} x {second.shape[3]}"
        )


# ---- the pyramid: products by torch, and one pass for all levels ----------------------------------------------------


def _pyramid(first: Tensor, second: Tensor, levels: int, scale: float | None) -> list[Tensor]:
    dtype = arithmetic(first)
    rows, columns = first.to(dtype).flatten(2).mT, second.to(dtype).flatten(2)
    volume = _op.new_large(rows, (first.shape[0], *first.shape[2:], *second.shape[2:]))
    products = volume.view(*rows.shape[:2], columns.shape[2])
    torch.baddbmm(products, rows, columns, beta=0, alpha=scale_of(first, scale), out=products)
    return [level.to(first.dtype) for level in (volume, *_pooling.pool(volume, levels))]


def _fake_pyramid(first, second, levels, scale):
    sizes = first.shape[0], *first.shape[2:]
    return [first.new_empty(*sizes, *(size >> level for size in second.shape[2:])) for level in range(levels)]


def _save_pyramid(ctx, inputs, output):
    first, second, _, ctx.scale = inputs
    ctx.save_for_backward(first, second)


def _backward_pyramid(ctx, grads):
    first, second = ctx.saved_tensors
    dtype, factor = arithmetic(first), scale_of(first, ctx.scale)
    batch, channels, *sizes = first.shape
    other = second.shape[2:]
    grad = _pooling.spread([g.to(dtype) for g in grads]).reshape(
        batch, sizes[0] * sizes[1], other[0] * other[1]
    )
    need_first, need_second = ctx.needs_input_grad[:2]
    to_first = (second.to(dtype).flatten(2) * factor) @ grad.mT if need_first else None
    to_second = (first.to(dtype).flatten(2) * factor) @ grad if need_second else None
    return (
        *(
            None if g is None else g.reshape(batch, channels, *size).to(first.dtype)
            for g, size in ((to_first, sizes), (to_second, other))
        ),
        None,
        None,
    )


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(first, second, coords, radius, levels, scale):
    return first.new_empty(first.shape[0], levels * (2 * radius + 1) ** 2, *first.shape[2:])


def _definition(first, second, coords, radius, levels, scale):
    return _reference.corr2d_lookup_on_demand(first, second, coords, radius, levels, scale=scale)


_pooling = Pooling("pool_squares", "spread_squares", stem="corr2d", axes=2)
_op.declare(
    "corr2d_pyramid",
    stem="corr2d",
    fake=_fake_pyramid,
    setup_context=_save_pyramid,
    backward=_backward_pyramid,
    composed=("(Tensor first, Tensor second, SymInt levels, float? scale) -> Tensor[]", _pyramid),
    batched=True,
)
_op.declare_pair(
    "corr2d_lookup_on_demand",
    stem="corr2d",
    tensors=3,
    fake=_fake,
    definition=_definition,
    keeps_layout=False,
)
