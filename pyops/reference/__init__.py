"""Every operator once more in plain PyTorch: the specification, the oracle of the tests, and a slow path by name.

Same names and signatures as :mod:`pyops`, so a model built with ``ops=pyops.reference`` is the plain definition.
"""

from .lut3d import fuse_luts, identity_lut, lut3d, lut_monotonicity, lut_smoothness

__all__ = ["fuse_luts", "identity_lut", "lut3d", "lut_monotonicity", "lut_smoothness"]
