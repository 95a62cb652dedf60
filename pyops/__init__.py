"""Fused vision operators that stock PyTorch lacks or runs badly, as ordinary PyTorch functions on CPU and CUDA."""

from . import reference
from ._native import __version__, build_info
from .ops.lut3d import fuse_luts, identity_lut, lut3d, lut_monotonicity, lut_smoothness

__all__ = [
    "__version__",
    "build_info",
    "fuse_luts",
    "identity_lut",
    "lut3d",
    "lut_monotonicity",
    "lut_smoothness",
    "reference",
]
