"""The functions of the package `ailut` (AdaInt, Yang et al., CVPR 2022).

    from pyops.compat.ailut import ailut_transform, lut_transform      # was: from ailut import ...

Two differences, both at the border of the domain: values outside [0, 1] are clamped (the original
extrapolates the outermost cell), and an interval is divided by its exact width (the original adds 1e-10).
"""

from __future__ import annotations

from torch import Tensor

import pyops

__all__ = ["ailut_transform", "lut_transform"]


def ailut_transform(img: Tensor, lut: Tensor, vertices: Tensor) -> Tensor:
    """Trilinear look-up on a non-uniform lattice.

    Args:
        img: `[b, 3, h, w]`, values in [0, 1].
        lut: `[b, 3, d, d, d]`, index order `lut[b, c, blue, green, red]`.
        vertices: `[b, 3, d]`, increasing from 0 to 1; rows for red, green, blue.

    Returns:
        `[b, 3, h, w]`, with gradients to `img`, `lut` and `vertices`.
    """
    return pyops.lut3d(img, lut, vertices=vertices)


def lut_transform(img: Tensor, lut: Tensor) -> Tensor:
    """Trilinear look-up on the uniform lattice; shapes as in :func:`ailut_transform`."""
    return pyops.lut3d(img, lut)
