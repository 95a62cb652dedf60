"""The .ply file: a cloud of coloured points, binary and little-endian."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_VERTEX = np.dtype([(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")])
_TYPES = {"<f4": "float", "|u1": "uchar"}


def write_ply(file: IO[bytes], points: NDArray[Any], colours: NDArray[np.uint8]) -> None:
    """Write `points [N, 3]`, as float32, and their `colours [N, 3]` to an open, empty file.

    Raises:
        ValueError: other shapes, or colours that are not uint8.
    """
    if points.ndim != 2 or points.shape[1] != 3 or colours.shape != points.shape:
        raise ValueError(
            f"points and colours must be [N, 3], got {list(points.shape)} and {list(colours.shape)}"
        )
    if colours.dtype != np.uint8:
        raise ValueError(f"colours must be uint8, got {colours.dtype}")
    vertices = np.empty(len(points), _VERTEX)
    for axis, name in enumerate("xyz"):
        vertices[name] = points[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, channel]
    properties = [f"property {_TYPES[_VERTEX[name].str]} {name}" for name in _VERTEX.names or ()]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties]
    file.write("\n".join([*header, "end_header\n"]).encode("ascii"))
    file.write(vertices.tobytes())
