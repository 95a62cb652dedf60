"""Drop-in replacements: other libraries' names and signatures on top of pyops, so that one import changes.

* `from pyops.compat.ailut import ailut_transform, lut_transform` in place of the package `ailut` (AdaInt);
* `from pyops.compat import trilinear` in place of the extension `trilinear` (Image-Adaptive-3DLUT).
"""
