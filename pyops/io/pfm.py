"""The .pfm file: a picture of 32-bit floats, as stereo and depth tools exchange them.

A header of three lines ("Pf" for one channel or "PF" for three, width and height, a number whose sign is that of the
byte order: negative for little-endian), then the rows from the bottom to the top.
"""

from __future__ import annotations

import math
import os
import re
from typing import IO

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(rb"(Pf|PF)\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]{1,32})[ \t\r]?\n?")


def read_pfm(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a .pfm file, of either byte order.

    Returns:
        `[H, W]` or `[H, W, 3]` float32, the top row first; as stored, not multiplied by the number in the header.

    Raises:
        ValueError: the file is no PFM, or is not as long as it says.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    header = _HEADER.match(data)
    try:
        scale = float(header[4]) if header else 0.0
    except ValueError:
        scale = 0.0
    if header is None or scale == 0 or not math.isfinite(scale):
        raise ValueError(
            "not a PFM file: its header must be Pf or PF, width, height and a scale other than 0"
        )
    width, height, channels = int(header[2]), int(header[3]), 3 if header[1] == b"PF" else 1
    expected = 4 * width * height * channels
    if len(data) - header.end() != expected:
        raise ValueError(
            f"the PFM file holds {len(data) - header.end()} bytes of pixels, expected {expected}"
        )
    pixels = np.frombuffer(data, "<f4" if scale < 0 else ">f4", offset=header.end())
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.ascontiguousarray(pixels.reshape(shape)[::-1], np.float32)


def write_pfm(file: IO[bytes], pixels: NDArray[np.float32]) -> None:
    """Write `pixels [H, W]` or `[H, W, 3]` to an open, empty file, little-endian.

    Raises:
        ValueError: another shape.
    """
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"pixels must be [H, W] or [H, W, 3], got shape {list(pixels.shape)}")
    kind = b"Pf" if pixels.ndim == 2 else b"PF"
    file.write(b"%s\n%d %d\n-1.0\n" % (kind, pixels.shape[1], pixels.shape[0]))
    file.write(np.ascontiguousarray(pixels[::-1], "<f4").tobytes())
