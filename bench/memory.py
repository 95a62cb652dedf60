"""Peak memory of one call beyond what was in use before it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pyops

_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes at the peak of `call`, results included; None where the system cannot tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed blocks that we and malloc keep would hide the call's own use.
        pyops.keep_memory(pyops.keep_memory(0))
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")  # Linux: the high-water mark starts again from here
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError, KeyError):
        return None


def _status_bytes(key: str) -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[key].split()[0]) * 1024
