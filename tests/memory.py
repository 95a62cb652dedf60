"""Memory for tests: other layouts of the same values, guards around tensors, how much is used."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyops

LAYOUTS = ("contiguous", "permuted", "sliced", "stepped", "channels_last")
BAND = 256  # bytes on each side; keeps the alignment that torch's allocator gives


def relayout(t: Any, layout: str) -> Any:
    """The same values in another place, order or spacing."""
    if not isinstance(t, Tensor) or t.dim() < 2 or layout == "contiguous":
        return t
    if layout == "permuted":
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "sliced":
        return torch.nn.functional.pad(t.float(), (1, 2, 1, 1)).to(t.dtype)[..., 1:-1, 1:-2]
    if layout == "stepped":
        return torch.stack([t, t], -1).flatten(-2)[..., ::2]
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


def far_apart(t: Tensor) -> Tensor:
    """The same values, with more than 2^31 elements between the halves of the first axis of two, if there is one: up to
    8 GiB of memory that is asked for and, but for a few pages, not touched."""
    axis = next((i for i, n in enumerate(t.shape) if n == 2), None)
    if axis is None or t.itemsize > 4:
        return t
    stride = list(t.contiguous().stride())
    stride[axis] = 2**31 + 64
    length = 1 + sum((n - 1) * s for n, s in zip(t.shape, stride, strict=True))
    try:
        memory = torch.empty(length, dtype=t.dtype, device=t.device)
    except RuntimeError:  # torch's for too little memory, on a GPU that others use, too
        pytest.skip(f"needs {length * t.itemsize >> 30} GiB of free memory")
    return memory.as_strided(t.shape, stride).copy_(t)


def require_free(needed: int, device: str) -> None:
    """Skips the test where there is less memory."""
    if device == "cuda":
        free = torch.cuda.mem_get_info()[0]
    else:
        sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(sizes["MemAvailable"].split()[0]) * 1024
    if free < needed:
        pytest.skip(f"needs {needed >> 30} GiB of free memory")


class Guarded:
    """Tensors that lie in the middle of larger buffers full of one byte."""

    def __init__(self, fill: int) -> None:
        self.fill = fill
        self.buffers: list[Tensor] = []

    def new(self, size, stride, dtype: torch.dtype, device: Any) -> Tensor:
        length = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if 0 not in size else 0
        band = BAND // dtype.itemsize
        total = length * dtype.itemsize + 2 * BAND
        buffer = torch.empty_strided((total,), (1,), dtype=torch.uint8, device=device).fill_(self.fill)
        self.buffers.append(buffer)
        return buffer.view(dtype).as_strided(size, stride, band)

    def copy(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self.new(value.shape, value.stride(), value.dtype, value.device).copy_(value)

    def check(self) -> None:
        for buffer in self.buffers:
            around = torch.cat([buffer[:BAND], buffer[-BAND:]])
            assert bool((around == self.fill).all()), "a kernel wrote outside of a tensor"


@contextmanager
def nothing_kept():
    """Large results come from torch's allocator, too."""
    limit = pyops.keep_memory(0)
    try:
        yield
    finally:
        pyops.keep_memory(limit)


@contextmanager
def guarded_allocations(guarded: Guarded, device: str):
    """Takes every `empty` from `guarded`, also those of the native kernels."""

    def empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        stride = [1] * len(size)
        order = [1, 3, 2, 0] if memory_format == torch.channels_last else range(len(size) - 1, -1, -1)
        step = 1
        for axis in order:
            stride[axis], step = step, step * max(size[axis], 1)
        dtype = dtype or torch.get_default_dtype()
        if 0 in size:  # torch makes results empty and then resizes them, rightly, into what is around
            return torch.empty_strided(size, stride, dtype=dtype, device=device)
        return guarded.new(size, stride, dtype, device)

    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            library.impl("empty.memory_format", empty, device.upper(), allow_override=True)
        with nothing_kept():
            yield
    finally:
        library._destroy()


def peak_allocated(function):
    """Bytes of tensors alive at the peak of `function`, by the profiler: free of what malloc keeps."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with nothing_kept(), torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
