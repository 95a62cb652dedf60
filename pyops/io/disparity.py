"""What disparities become: pictures in 16 bits, as the KITTI benchmark stores them, and in colours; points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 256  # levels in a pixel of disparity
LARGEST = (2**16 - 1) / STEPS
_RAMP = np.array(  # from far to near
    [
        (30, 20, 80),
        (50, 80, 190),
        (40, 165, 190),
        (110, 205, 110),
        (245, 220, 70),
        (245, 130, 50),
        (200, 30, 40),
    ]
)


def to_16_bits(disparity: NDArray[np.floating[Any]]) -> NDArray[np.uint16]:
    """256 times the disparity, rounded, at least 1; 0 where it is not finite, or 256 pixels or more."""
    known = np.isfinite(disparity) & (disparity <= LARGEST)
    levels = np.maximum(np.rint(np.where(known, disparity, 0) * STEPS), 1)
    return np.where(known, levels, 0).astype(np.uint16)


def from_16_bits(levels: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The disparity that `to_16_bits` has stored, infinite where there is none."""
    return np.where(levels > 0, levels.astype(np.float32) / STEPS, np.float32(np.inf))


def to_colours(disparity: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """`[H, W, 3]`: blue is far, red near, black unknown; nearly all of what there is takes the whole range."""
    known = np.isfinite(disparity)
    if not known.any():
        return np.zeros((*disparity.shape, 3), np.uint8)
    low, high = np.percentile(disparity[known], (0.5, 99.5))
    share = np.clip((np.where(known, disparity, low) - low) / max(high - low, 1e-6), 0, 1)
    anchors = np.linspace(0, 1, len(_RAMP))
    colours = np.stack([np.interp(share, anchors, channel) for channel in _RAMP.T], 2)
    return (np.rint(colours) * known[..., None]).astype(np.uint8)


def to_points(
    disparity: NDArray[np.float32], focal: float, baseline: float, cx: float | None, cy: float | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """`[N, 3]` and the pixels `[H, W]` they are of; x goes to the right, y down, z away from the left camera."""
    height, width = disparity.shape
    known = np.isfinite(disparity)
    y, x = np.nonzero(known)
    z = focal * baseline / disparity[known].astype(np.float64)
    cx, cy = (width - 1) / 2 if cx is None else cx, (height - 1) / 2 if cy is None else cy
    return np.stack([(x - cx) * z / focal, (y - cy) * z / focal, z], 1).astype(np.float32), known
