"""Memory of large results on the CPU."""

from __future__ import annotations

import torch


def keep_memory(limit: int) -> int:
    """Sets how much memory of former results on the CPU waits for new ones.

    Fresh memory costs more than most operators: the system clears it first. What results of 4 MiB and more leave
    behind is therefore kept, up to a limit, and given to the next results of about their size. The system takes it
    back when it runs short. Such results cannot be grown in place (``Tensor.resize_``).

    Args:
        limit: bytes to keep at most, 256 MiB unless set; what is kept beyond it is freed at once. With 0 results
            come from torch's own allocator.

    Returns:
        The limit before.

    Raises:
        TypeError: ``limit`` is no integer.
        ValueError: ``limit`` is negative.

    Example:
        >>> import pyops
        >>> before = pyops.keep_memory(0)  # frees what is kept
        >>> pyops.keep_memory(before)
        0
    """
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit must be an int, got {type(limit).__name__}")
    if limit < 0:
        raise ValueError(f"limit must not be negative, got {limit}")
    return torch.ops.pyops.keep_memory(limit)
