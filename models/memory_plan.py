"""How much memory a fit of Isomap takes, how much there is, and what to do if that is too little."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = 256  # of shortest paths between two signs of progress
_SCRATCH = 128  # bytes a vertex and thread for the search of shortest paths: lanes, orders, a heap
_BLOCKS = 10  # of a basis in which eigenvectors are found
_MATRICES = 6  # the centred one, its eigenvectors, and room to find them
_NEAR = 0.9  # share of the free memory from which on a fit is warned of


class MemoryPlan(NamedTuple):
    """Bytes that a fit takes at its peak besides the points, by what takes them."""

    graph: int
    """Of nearest neighbours."""
    distances: int
    """Geodesic distances; of landmarks twice, once in each order."""
    work: int
    """What the search of paths, or the scaling, needs besides."""

    @property
    def peak(self) -> int:
        return sum(self)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in zip(self._fields, self, strict=True))
        return f"{_gigabytes(self.peak)} GB ({parts})"


def memory_plan(
    points: int, n_neighbors: int, n_components: int, dtype: torch.dtype, landmarks: int | None
) -> MemoryPlan:
    """What a fit of ``points`` is about to allocate: by `Isomap`, or by `LandmarkIsomap` with ``landmarks``."""
    item, edges = dtype.itemsize, 2 * points * n_neighbors  # there are no more
    rows = points if landmarks is None else min(landmarks, points)
    threads = torch.get_num_threads()
    distances = rows * points * item
    joining = 13 * edges  # what scipy copies to find connected components
    search = (
        distances
        + min(rows, SOURCES) * points * item
        + (1 + threads) * edges * (4 + item)
        + threads * points * _SCRATCH
    )
    scaling = distances + 3 * 8 * rows * _BLOCKS * (n_components + 4)
    if rows <= 4 * n_components:  # then all eigenvectors are found
        scaling = distances + _MATRICES * rows * rows * item
    kept = distances
    if landmarks is not None:
        kept *= 2
        scaling += rows * rows * item
    return MemoryPlan(edges * (8 + item) + 8 * points, kept, max(joining, search, scaling, kept) - kept)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new allocation may take; None where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    known = [size for size in (_of_machine(), _of_control_group()) if size is not None]
    return min(known, default=None)


def require_memory(plan: MemoryPlan, plan_of: Callable[[int], MemoryPlan], free: int | None) -> None:
    """Refuses a fit that cannot end well, before it begins; `plan_of` plans it for a number of landmarks.

    Raises:
        MemoryError: it takes more than is free.
    """
    if free is None or plan.peak <= _NEAR * free:
        return
    message = f"this fit takes {plan}, and {_gigabytes(free)} GB are free"
    most = most_landmarks(plan_of, _NEAR * free)
    advice = (
        f"LandmarkIsomap with up to {most:,} landmarks fits, and on several machines pyops.distributed keeps a share "
        "of the distances on each"
        if most
        else "take fewer points or neighbors, or a machine with more memory"
    )
    if plan.peak > free:
        raise MemoryError(f"{message}: {advice}")
    warnings.warn(f"{message}, which may not suffice: {advice}", ResourceWarning, stacklevel=4)


def most_landmarks(plan_of: Callable[[int], MemoryPlan], free: float) -> int:
    """With how many landmarks a fit goes into so much memory; 0 if with none."""
    low, high = 0, 1
    while plan_of(high).peak <= free:  # of all points it is not
        high *= 2
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if plan_of(middle).peak <= free else (low, middle - 1)
    return low


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g}"


def _of_machine() -> int | None:
    """Without what a file cache would give back, `sysconf` alone says too little."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


# Files of a control group, such as a container: its limit, its use, and what of that is cache.
_LIMITS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)


def _of_control_group() -> int | None:
    """Within the container; limits of groups inside of it are not looked for."""
    for folder, limit, use, cache in _LIMITS:
        try:
            most, used = (Path(folder, name).read_text().strip() for name in (limit, use))
            statistics = Path(folder, "memory.stat").read_text().splitlines()
        except OSError:
            continue
        if most == "max":
            return None
        returned = sum(int(line.split()[1]) for line in statistics if line.startswith(cache))
        return max(0, int(most) - int(used) + returned)
    return None
