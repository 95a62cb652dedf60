"""What the all-pairs volumes of one and two dimensions share: products, and levels averaged in pairs or squares."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op


def arithmetic(t: Tensor) -> torch.dtype:
    """The products of the CPU are as exact as those of tensor cores only when computed in float32."""
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) and not t.is_cuda else t.dtype


def scale_of(features: Tensor, scale: float | None) -> float:
    return features.shape[1] ** -0.5 if scale is None else scale


class Pooling:
    """Two operators that are transposes of each other: all levels above a volume, and the sum of all spread over it.

    ``pool(volume, levels)`` halves the last ``axes`` axes from level to level, an odd last entry dropped;
    ``spread(grads)`` takes a gradient for each level, the volume's first. Both are linear, so each is the gradient of
    the other.
    """

    def __init__(self, pool: str, spread: str, stem: str, axes: int) -> None:
        self.axes, self._names = axes, (pool, spread)
        _op.declare(
            pool,
            stem=stem,
            fake=self._fake_pool,
            vmap=self._vmap_pool,
            setup_context=self._save_pool,
            backward=self._backward_pool,
        )
        _op.declare(
            spread,
            stem=stem,
            fake=lambda grads: grads[0].new_empty(grads[0].shape),
            vmap=self._vmap_spread,
            setup_context=self._save_spread,
            backward=lambda ctx, grad: [grad, *self.pool(grad, ctx.levels)],
        )

    def pool(self, volume: Tensor, levels: int) -> list[Tensor]:
        return getattr(torch.ops.pyops, self._names[0])(volume, levels)

    def spread(self, grads: list[Tensor]) -> Tensor:
        if not any(map(_op.is_batched, grads)):
            return getattr(torch.ops.pyops, self._names[1])(grads)
        total = torch.zeros_like(grads[0])  # the vmap of batched gradients cannot map operators of lists
        for level, grad in enumerate(grads):
            wide, missing = grad, []
            for axis in range(-1, -1 - self.axes, -1):
                wide = wide.repeat_interleave(1 << level, axis) / (1 << level)
                missing += [0, total.shape[axis] - wide.shape[axis]]
            total = total + torch.nn.functional.pad(wide, missing)
        return total

    def _fake_pool(self, volume, levels):
        sizes, pooled = volume.shape[: -self.axes], volume.shape[-self.axes :]
        return [volume.new_empty(*sizes, *(size >> level for size in pooled)) for level in range(1, levels)]

    @staticmethod
    def _save_pool(ctx, inputs, output):
        volume, _levels = inputs
        ctx.shape, ctx.dtype, ctx.device = volume.shape, volume.dtype, volume.device

    def _backward_pool(self, ctx, grads):
        return self.spread([torch.zeros(ctx.shape, dtype=ctx.dtype, device=ctx.device), *grads]), None

    @staticmethod
    def _save_spread(ctx, inputs, output):
        ctx.levels = len(inputs[0])

    def _vmap_pool(self, info, in_dims, volume, levels):
        pooled = self.pool(_op.fold(volume, in_dims[0], info.batch_size), levels)
        return pooled, [0] * len(pooled)

    def _vmap_spread(self, info, in_dims, grads):
        folded = [_op.fold(g, dim, info.batch_size) for g, dim in zip(grads, in_dims[0], strict=True)]
        return self.spread(folded), 0
