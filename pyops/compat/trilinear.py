"""The interface of the extension `trilinear` (Image-Adaptive-3DLUT, Zeng et al., TPAMI 2022).

    from pyops.compat import trilinear                                  # was: import trilinear

`forward` and `backward` write into the tensors they are given and return 1, as the extension does; the LUT
has the same layout here and there, `lut[c, blue, green, red]`. What differs from the extension:

* Batches are right. The extension mixes the images of a batch on CUDA and computes only the first on the CPU;
  programs that work around it by passing `[3, batch, W, H]` should pass `[batch, 3, W, H]` again.
* Values outside [0, 1] are clamped; the extension reads outside the LUT.
* The LUT's gradient is bitwise repeatable.
* `TrilinearInterpolation` also returns the true gradient of the image; the original hands the gradient of the
  output through unchanged.
* `binsize` is taken as exactly `1 / (dim - 1)`; the usual 1.000001 in its place shifts a cell by a millionth.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyops

__all__ = ["TrilinearInterpolation", "backward", "forward"]


@torch.no_grad()
def forward(
    lut: Tensor, x: Tensor, output: Tensor, dim: int, shift: int, binsize: float, W: int, H: int, batch: int
) -> int:
    """Write the image `x` seen through `lut` into `output`.

    Args:
        lut: `[3, dim, dim, dim]`.
        x, output: `[batch, 3, W, H]` (in the original's naming W is the third axis).
        dim, shift, binsize: lattice points along an axis, `dim ** 3`, and `1 / (dim - 1)`.
        W, H, batch: the sizes of `x`.

    Returns:
        1.
    """
    _check(lut, x, output, dim, shift, binsize, W, H, batch)
    output.copy_(pyops.lut3d(x, lut))
    return 1


def backward(
    x: Tensor,
    x_grad: Tensor,
    lut_grad: Tensor,
    dim: int,
    shift: int,
    binsize: float,
    W: int,
    H: int,
    batch: int,
) -> int:
    """Add the gradient of the LUT to `lut_grad`.

    Args:
        x: the image given to `forward`, `[batch, 3, W, H]`.
        x_grad: the gradient of `forward`'s output, same shape; only read.
        lut_grad: `[3, dim, dim, dim]`; the gradient is added to what it holds.
        dim, shift, binsize, W, H, batch: as in `forward`.

    Returns:
        1.
    """
    _check(lut_grad, x, x_grad, dim, shift, binsize, W, H, batch)
    with torch.enable_grad():
        # The output is linear in the LUT, so its gradient is the same at any LUT: zeros will do.
        lut = torch.zeros_like(lut_grad, requires_grad=True)
        output = pyops.lut3d(x.detach(), lut)
    (grad,) = torch.autograd.grad(output, lut, x_grad.detach())
    with torch.no_grad():
        lut_grad.add_(grad)
    return 1


class TrilinearInterpolation(nn.Module):
    """The module of the same name in the original's `models_x.py`: `lut, output = module(lut, x)`."""

    def forward(self, lut: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """`lut [3, N, N, N]`, `x [B, 3, W, H]` -> `(lut, output [B, 3, W, H])`, with gradients to both."""
        return lut, pyops.lut3d(x, lut)


def _check(
    lut: Tensor, x: Tensor, output: Tensor, dim: int, shift: int, binsize: float, W: int, H: int, batch: int
) -> None:
    """The extension trusts its size arguments; here they must tell the truth."""
    shape = [batch, 3, W, H]
    if list(x.shape) not in (shape, [batch, 3, H, W]):
        raise ValueError(f"x: expected shape {shape} from batch, W and H, got {list(x.shape)}")
    if output.shape != x.shape:
        raise ValueError(
            f"output and its gradient: expected the shape of x {list(x.shape)}, got {list(output.shape)}"
        )
    if list(lut.shape) != [3, dim, dim, dim]:
        raise ValueError(
            f"lut and its gradient: expected shape [3, {dim}, {dim}, {dim}] from dim, got {list(lut.shape)}"
        )
    if shift != dim**3:
        raise ValueError(f"shift: expected dim ** 3 = {dim**3}, got {shift}")
    if abs(binsize * (dim - 1) - 1) > 1e-4:
        raise ValueError(f"binsize: expected 1 / (dim - 1) = {1 / (dim - 1):.6g}, got {binsize:.6g}")
